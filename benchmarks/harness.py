# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Measures variants of the same work, in turns.

Each variant runs in a process of its own, so that memory and settings are its own. The processes
work one after the other, again and again, so that other load on the machine falls on all of them
alike; the ratio of two variants is taken turn by turn.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Work = Callable[[], Any]


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A script's parser, whose help is its docstring."""
    kept = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=doc, formatter_class=kept)


@dataclass(frozen=True)
class Comparison:
    """Variants of the same work; numbers that are mappings have one for each case.

    Attributes:
        cases: Name of each input to its description.
        variants: Name of each to a function of the case that returns the work. The work returns
            what is compared: an array, or None.
        agree: (reference's result, another's) to the share of equal values.
        remarks: Variants that compute something else, and what; their results are not compared.
        costs: Variant to a function that returns its ``parameters``, ``flops`` and ``published``
            mIoU, where they are wanted.
        warmed: Whether memory is measured at the second call. The first one loads code and prepares
            the model as well.
    """

    title: str
    reference: str  # the variant that the others are compared with
    cases: Mapping[str, str]
    variants: Mapping[str, Callable[[str], Work]]
    agree: Callable[[Any, Any], float] | None = None
    at_least_equal: float | Mapping[str, float] = 0.9999  # the share that is asked for
    least: Mapping[str, float | Mapping[str, float]] = field(default_factory=dict)  # times as fast
    most_memory: Mapping[str, float] = field(default_factory=dict)  # of the reference's
    missing: Mapping[str, str] = field(default_factory=dict)  # variants that cannot run here, why
    remarks: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)  # of a call, for images a second
    costs: Mapping[str, Callable[[], dict[str, Any]]] = field(default_factory=dict)
    left_out: Mapping[str, Collection[str]] = field(default_factory=dict)  # to save time, by case
    warmed: bool = False
    repeats: int = 7
    note: str = ""  # what a reader has to know of the inputs


# --- in the process of one variant


def _peak_of(work: Work) -> tuple[Any, int | None]:
    """What the work returns, and the bytes that it took beyond what was there.

    Work that other processes do has a method ``measured``, which returns both.
    """
    import torch

    if hasattr(work, "measured"):
        result, peak = work.measured()
        return result, peak

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result, resident = _resident_peak_of(work)
        torch.cuda.synchronize()
        used = torch.cuda.max_memory_allocated()
        # What uses no GPU, such as the decoding of files, is measured as without one.
        return result, used - before if used else resident
    return _resident_peak_of(work)


def _resident_peak_of(work: Work) -> tuple[Any, int | None]:
    from mmseg_resnest.io.memory import forget_peak_memory, peak_memory

    if not os.access("/proc/self/clear_refs", os.W_OK):  # the peak cannot start anew
        return work(), None
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    forget_peak_memory()
    before = peak_memory()
    result = work()
    return result, max(peak_memory() - before, 0)


def serve(module: str, case: str, variant: str) -> None:
    """Build the work of a variant, then do it once for every line on standard input."""
    import torch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints
    # With TF32 outputs could not be compared.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    comparison: Comparison = importlib.import_module(module).COMPARISON
    torch.manual_seed(0)
    work = comparison.variants[variant](case)
    print(json.dumps({"threads": torch.get_num_threads()}), file=answers, flush=True)
    for line in sys.stdin:
        command, _, path = line.strip().partition(" ")
        if command == "save":
            if comparison.warmed:
                work()
            result, peak = _peak_of(work)
            if result is not None:
                torch.save(result, path)
            answer = {"peak": peak}
        else:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            wall, cpu = time.perf_counter(), _cpu_seconds()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            answer = {"wall": time.perf_counter() - wall, "cpu": _cpu_seconds() - cpu}
        print(json.dumps(answer), file=answers, flush=True)


# --- in the process that compares


class Server:
    """The process of one variant."""

    def __init__(self, module: str, case: str, variant: str) -> None:
        paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by close)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, module, case, variant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        self.name = variant
        self.threads = 0  # of torch, for who keeps it

    def answer(self) -> dict[str, Any]:
        """The next answer; RuntimeError if the process has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            words = self.errors.read().strip().splitlines()
            status = self.process.wait()
            why = f"by signal {-status}, memory?" if status < 0 else f"with status {status}"
            raise RuntimeError(f"{self.name} ended {why}" + (f": {words[-1]}" if words else ""))
        return json.loads(line)

    def ask(self, command: str) -> dict[str, Any]:
        """The answer to a command."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: the answer says why
            print(command, file=self.process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.process.communicate(timeout=20)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.errors.close()


def summary(values: list[float]) -> dict[str, Any]:
    """Median and quartiles."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    )
    return {"median": middle, "low": low, "high": high, "all": values}


def _cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def measure(module: str, case: str, repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
    """One case of a comparison, in ``repeats`` timed turns after two that warm up.

    Returns:
        ``variants``: for each of them ``seconds``, ``cpu_seconds`` and ``speed`` (the reference's
        seconds over its own), each with median, low and high quartile; ``peak_bytes`` (of the first
        turn); ``agreement``; ``threads`` of torch. ``failed``: name of each variant that ended with
        an error, or does not agree, and why.

    Raises:
        RuntimeError: The reference ended with an error, or nothing is left to compare with it; the
            message does not name the case.
    """
    import torch

    comparison: Comparison = importlib.import_module(module).COMPARISON
    failed: dict[str, str] = {}
    result: dict[str, Any] = {
        "what": comparison.cases[case],
        "repeats": repeats,
        "variants": {},
        "failed": failed,
    }
    servers: dict[str, Server] = {}

    def ask(variant: str, question: Callable[[Server], dict[str, Any]]) -> dict[str, Any] | None:
        """The answer of a variant; None, after ending it, where it fails."""
        try:
            return question(servers[variant])
        except RuntimeError as error:
            leave_out(variant, str(error))
            return None

    def leave_out(variant: str, why: str) -> None:
        servers.pop(variant).close()
        result["variants"].pop(variant, None)
        if variant == comparison.reference:
            raise RuntimeError(why)
        failed[variant] = why

    def check_that_some_are_left() -> None:
        if len(servers) == 1 and failed:
            raise RuntimeError("; ".join(failed.values()))

    with tempfile.TemporaryDirectory() as folder:
        try:
            for variant in comparison.variants:
                if variant in comparison.left_out.get(case, ()):
                    continue
                servers[variant] = Server(module, case, variant)
                if ready := ask(variant, Server.answer):
                    result["variants"][variant] = {"threads": ready["threads"]}
            expected = None
            for variant in sorted(servers, key=lambda variant: variant != comparison.reference):
                path = Path(folder) / "result"
                answer = ask(variant, lambda server, path=path: server.ask(f"save {path}"))
                if answer is None:
                    continue
                result["variants"][variant]["peak_bytes"] = answer["peak"]
                # On the CPU, where every peer's result can be.
                output = torch.load(path, map_location="cpu") if path.exists() else None
                path.unlink(missing_ok=True)
                if variant == comparison.reference:
                    expected = output
                elif not (
                    comparison.agree is None or output is None or variant in comparison.remarks
                ):
                    try:
                        share = comparison.agree(expected, output)
                    except Exception as error:  # another shape, say
                        leave_out(
                            variant,
                            f"{variant}: cannot be compared: {type(error).__name__}: {error}",
                        )
                        continue
                    result["variants"][variant]["agreement"] = share
                    least = comparison.at_least_equal
                    if share < (least[case] if isinstance(least, Mapping) else least):
                        reference = comparison.reference
                        leave_out(variant, f"{variant} agrees with {reference} on {share:.4%} only")
                        continue
                ask(variant, lambda server: server.ask("time"))
            check_that_some_are_left()
            times: dict[str, list[dict[str, float]]] = {variant: [] for variant in servers}
            for turn in range(repeats):
                for variant in list(servers) if turn % 2 == 0 else list(servers)[::-1]:
                    if measured := ask(variant, lambda server: server.ask("time")):
                        times[variant].append(measured)
                say(f"{case}: turn {turn + 1} of {repeats}")
            check_that_some_are_left()
        finally:
            for server in servers.values():
                server.close()
    reference = times[comparison.reference]
    for variant, turns in times.items():
        if variant in failed:
            continue
        ratios = [r["wall"] / t["wall"] for r, t in zip(reference, turns, strict=True)]
        cpu_ratios = [r["cpu"] / max(t["cpu"], 1e-9) for r, t in zip(reference, turns, strict=True)]
        result["variants"][variant].update(
            seconds=summary([turn["wall"] for turn in turns]),
            cpu_seconds=summary([turn["cpu"] for turn in turns]),
            speed=summary(ratios),
            cpu_speed=summary(cpu_ratios),
        )
        if case in comparison.images:
            result["variants"][variant]["images"] = comparison.images[case]
        if variant in comparison.costs:
            result["variants"][variant]["costs"] = comparison.costs[variant]()
    return result


# Whose version a figure may depend on, peers among them.
_PACKAGES = (
    *("torch", "onedl-mmsegmentation", "onedl-mmengine", "onedl-mmcv", "numpy"),
    *("kornia-rs", "opencv-python-headless", "opencv-python", "pillow", "resnest"),
    *("onnxruntime", "openvino", "timm", "segmentation-models-pytorch", "torchvision"),
)


def machine() -> dict[str, Any]:
    """What the figures come from."""
    import torch

    from mmseg_resnest.io.processes import cpu_count, processor_name

    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "cpu": processor_name(),
        "cores": cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": list(os.getloadavg()),
        "versions": versions,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}",
        "commit": _git("rev-parse", "HEAD"),
        # What the runs before have written changes no figure.
        "changed_files": [
            line
            for line in _git("status", "--porcelain", "--untracked-files=no").splitlines()
            if "benchmarks/results/" not in line and "docs/" not in line
        ],
    }


def _git(*arguments: str) -> str:
    with contextlib.suppress(FileNotFoundError):  # git is not installed
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT)
        return done.stdout.rstrip()
    return ""


if __name__ == "__main__":
    serve(*sys.argv[1:])
