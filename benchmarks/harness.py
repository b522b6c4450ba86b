# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Measuring several ways of doing the same work, in turns.

Every way runs in a process of its own, so that its memory is its own and a setting of one does not
reach another. The processes are asked to work one after the other, again and again: what else the
machine does then falls on all of them alike, and the ratio of two ways is taken turn by turn.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Comparison:
    """Ways of doing the same work.

    Attributes:
        title: One line for people.
        reference: The way that the others are compared with.
        cases: Name of each input to what it is, for people.
        ways: Name to a function of the case that returns the work. The work returns what is
            compared: an array, or None.
        agree: (reference's result, a way's result) to the share of equal values, or a reason why
            they differ by more than is allowed.
        least: The ratio to reach, by way: one number, or one for each case.
        missing: Ways that this machine cannot run, and why.
        left_out: Ways that are not measured for a case, by case, to keep its time in bounds.
        warmed: Whether memory is measured at the second time of doing the work. The first one also
            brings in code, which stays; but a model's preparations, too.
        repeats: Turns, unless the command says otherwise.
        note: What a reader has to know of the inputs.
    """

    title: str
    reference: str
    cases: Mapping[str, str]
    ways: Mapping[str, Callable[[str], Work]]
    agree: Callable[[Any, Any], float] | None = None
    at_least_equal: float = 0.9999
    least: Mapping[str, float | Mapping[str, float]] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, Collection[str]] = field(default_factory=dict)
    warmed: bool = False
    repeats: int = 7
    note: str = ""


# --- in the process of one way


def _memory(name: str) -> int | None:
    """A line of /proc/self/status in bytes: VmRSS, or VmHWM, its peak."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return 1024 * int(line.split()[1])
    return None


def _peak_of(work: Work) -> tuple[Any, int | None]:
    """What the work returns, and the bytes that it took beyond what was there."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = work()
        torch.cuda.synchronize()
        return result, torch.cuda.max_memory_allocated() - before
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except OSError:
        return work(), None
    resident = _memory("VmRSS")
    result = work()
    peak = _memory("VmHWM")
    return result, None if resident is None or peak is None else max(peak - resident, 0)


def serve(module: str, case: str, way: str) -> None:
    """Build the work of a way, then do it once for every line on standard input."""
    import torch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints
    comparison: Comparison = importlib.import_module(module).COMPARISON
    torch.manual_seed(0)
    work = comparison.ways[way](case)
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


class _Server:
    """The process of one way."""

    def __init__(self, module: str, case: str, way: str) -> None:
        paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by close)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, module, case, way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        self.name = way

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            words = self.errors.read().strip().splitlines()
            raise RuntimeError(f"{self.name} ended: {words[-1] if words else 'no reason given'}")
        return json.loads(line)

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(command, file=self.process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.process.communicate(timeout=20)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.errors.close()


def _summary(values: list[float]) -> dict[str, Any]:
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
    """One case of a comparison.

    Args:
        module: Name of the module that holds the comparison.
        case: Name of the case.
        repeats: Turns that are timed; two more warm up, the first of which measures the memory.
        say: Told what is going on.

    Returns:
        For each way ``seconds``, ``cpu_seconds`` and ``speed`` (the reference's seconds over its
        own), each with median, low and high quartile; ``peak_bytes``; ``agreement``.

    Raises:
        RuntimeError: A way ended with an error, or the results do not agree.
    """
    import torch

    comparison: Comparison = importlib.import_module(module).COMPARISON
    result: dict[str, Any] = {"what": comparison.cases[case], "repeats": repeats, "ways": {}}
    servers: list[_Server] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for way in comparison.ways:
                if way in comparison.left_out.get(case, ()):
                    continue
                servers.append(_Server(module, case, way))
                result["threads"] = servers[-1].answer()["threads"]
            outputs = {}
            for server in servers:
                path = Path(folder) / str(len(outputs))
                peak = server.ask(f"save {path}")["peak"]
                outputs[server.name] = torch.load(path) if path.exists() else None
                result["ways"][server.name] = {"peak_bytes": peak}
                server.ask("time")
            expected = outputs[comparison.reference]
            for way, output in outputs.items():
                if comparison.agree is None or output is None or way == comparison.reference:
                    continue
                share = comparison.agree(expected, output)
                result["ways"][way]["agreement"] = share
                if share < comparison.at_least_equal:
                    raise RuntimeError(
                        f"{case}: {way} agrees with {comparison.reference} on {share:.4%} only"
                    )
            times: dict[str, list[dict[str, float]]] = {server.name: [] for server in servers}
            for turn in range(repeats):
                for server in servers if turn % 2 == 0 else servers[::-1]:
                    times[server.name].append(server.ask("time"))
                say(f"{case}: turn {turn + 1} of {repeats}")
        finally:
            for server in servers:
                server.close()
    reference = times[comparison.reference]
    for way, turns in times.items():
        ratios = [r["wall"] / t["wall"] for r, t in zip(reference, turns, strict=True)]
        cpu_ratios = [r["cpu"] / max(t["cpu"], 1e-9) for r, t in zip(reference, turns, strict=True)]
        result["ways"][way].update(
            seconds=_summary([turn["wall"] for turn in turns]),
            cpu_seconds=_summary([turn["cpu"] for turn in turns]),
            speed=_summary(ratios),
            cpu_speed=_summary(cpu_ratios),
        )
    return result


def machine() -> dict[str, Any]:
    """What the figures come from."""
    import torch

    words = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                words = line.split(":", 1)[1].strip()
                break
    versions = {"python": platform.python_version()}
    for name in ("torch", "onedl-mmsegmentation", "onedl-mmengine", "onedl-mmcv", "numpy", "numba"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "cpu": words or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": list(os.getloadavg()),
        "versions": versions,
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": _git("status", "--porcelain", "--untracked-files=no").splitlines(),
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT)
    return done.stdout.rstrip()


if __name__ == "__main__":
    serve(*sys.argv[1:])
