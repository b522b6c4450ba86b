# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Inference, training step, predictions and data loading on one GPU, beside the stack.

    python benchmarks/gpu.py                             all four parts, at most 9 minutes
    python benchmarks/gpu.py inference --arch resnest101 --batch 16
    python benchmarks/gpu.py training --no-compile --out DIR
    python benchmarks/gpu.py --toy                       toy size, as always without a GPU

The variants of a case run in one process and take turns, because two processes share a GPU badly.
Times are the median of the turns after a warm-up, with what a call has queued on the device. All
variants have the same seeded weights, and their results are compared. Written are DIR/gpu.json and
DIR/gpu.md, after each case; what was not measured within --minutes is named.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import Work, arguments, machine, summary
from models import TOY, our_model, stock_model, training_step
from torch import Tensor

from mmseg_resnest.io.atomic import atomic_write
from mmseg_resnest.models import fold_for_inference

FOLDER = Path(__file__).resolve().parent
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
STACK, OURS = "MMSegmentation", "mmseg-resnest"
HALF = torch.bfloat16


@dataclass(frozen=True)
class Case:
    """Variants of the same work.

    ``agree`` maps the reference's result and another's to a number that is to be ``at_least``.
    """

    name: str
    items: int  # images of one call
    variants: Mapping[str, Callable[[], Work]]  # the first is the reference
    agree: Callable[[Any, Any], float]
    at_least: float


# --- the parts


def _model(make: Callable[..., Any], args: argparse.Namespace) -> Any:
    size = (14, TOY, 16) if args.toy else (int(args.arch.removeprefix("resnest")),)
    return make(*size).to(DEVICE)


def _compile(model: Any) -> None:
    # ``forward``, because heads are called by it; making samples is Python, and stays that.
    for part in (model.backbone, model.decode_head):
        part.forward = torch.compile(part.forward)


def _predictor(args: argparse.Namespace, make: Callable[..., Any], fast: bool, compiled: bool,
               autocast: bool) -> Work:  # fmt: skip
    """Normalised images to labels at their size; fast: folded, channels last, bfloat16."""
    model = _model(make, args)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(args.batch, 3, *args.size, generator=generator).to(DEVICE)
    if fast:
        model.test_cfg["keep_scores"] = False
        model = fold_for_inference(model).to(HALF, memory_format=torch.channels_last)
        images = images.to(HALF, memory_format=torch.channels_last)
    if compiled:
        _compile(model)

    @torch.inference_mode()
    def work() -> Tensor:
        with torch.autocast(DEVICE, HALF, enabled=autocast):
            samples = model.predict(images, None)
        return torch.cat([sample.pred_sem_seg.data for sample in samples])

    return work


def inference(args: argparse.Namespace) -> Iterator[Case]:
    """DeepLabV3 of 150 classes."""
    variants = {
        f"{STACK}, float32": (stock_model, False, False, False),
        f"{STACK}, bfloat16": (stock_model, False, False, True),
        f"{OURS}, float32": (our_model, False, False, False),
        OURS: (our_model, True, False, False),
    }
    if args.compile:
        variants[f"{STACK}, compiled"] = (stock_model, False, True, True)
        variants[f"{OURS}, compiled"] = (our_model, True, True, False)
    name = f"{args.arch}, {args.batch} images of {args.size[0]}x{args.size[1]}"
    made = {variant: lambda how=how: _predictor(args, *how) for variant, how in variants.items()}
    # Random weights and bfloat16: many pixels are close calls.
    yield Case(name, args.batch, made, lambda a, b: float((a == b).double().mean()), 0.8)


def _step(args: argparse.Namespace, make: Callable[..., Any], channels_last: bool,
          compiled: bool) -> Work:  # fmt: skip
    model = _model(make, args)
    model.decode_head.dropout = torch.nn.Identity()  # its mask differs with the order in memory
    if channels_last:
        model.to(memory_format=torch.channels_last)
    if compiled:
        _compile(model)
    # A CPU's bfloat16 is slow, and there is nothing to see in it.
    return training_step(model, args.crop, args.batch, HALF if CUDA else None)


def training(args: argparse.Namespace) -> Iterator[Case]:
    """Forward, backward and SGD of the same segmentor, bfloat16."""
    variants = {STACK: (stock_model, False, False), OURS: (our_model, True, False)}
    if args.compile:
        variants[f"{STACK}, compiled"] = (stock_model, False, True)
        variants[f"{OURS}, compiled"] = (our_model, True, True)
    name = f"{args.arch}, {args.batch} crops of {args.crop[0]}x{args.crop[1]}"
    made = {variant: lambda how=how: _step(args, *how) for variant, how in variants.items()}
    yield Case(name, args.batch, made, lambda a, b: 1 - float(((a - b) / a).abs()[0]), 0.98)


def comparison(name: str, args: argparse.Namespace) -> Iterator[Case]:
    """The cases of a comparison of benchmarks/run.py, this package's beside the stack."""
    module = importlib.import_module(name)
    found, least = module.COMPARISON, module.COMPARISON.at_least_equal
    for case in list(found.cases)[: 1 if args.toy else None]:
        variants = {
            variant: lambda make=found.variants[variant], case=case: make(case)
            for variant in (STACK, OURS)
        }
        wanted = least[case] if isinstance(least, Mapping) else least
        yield Case(case, getattr(module, "SAMPLES", 1), variants, found.agree, wanted)


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Case]]] = {
    "inference": inference,
    "training": training,
    "predictions": lambda args: comparison("predictions", args),
    "loader": lambda args: comparison("pipeline", args),  # last: it sets torch to one thread
}


# --- measuring


def _seconds(work: Work, calls: int) -> float:
    """Mean time of a call, with what it has queued on the device."""
    if CUDA:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        work()
    if CUDA:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def _warm_up(work: Work) -> tuple[Any, dict[str, Any]]:
    """The first result, and on a GPU the memory of a second call beyond the weights."""
    result = work()  # compiles, or chooses its kernels
    if not CUDA:
        return result, {}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return result, {"peak_bytes": torch.cuda.max_memory_allocated() - before}


def measure(case: Case, turns: int, least: float, left: Callable[[], float]) -> dict[str, Any]:
    """One case.

    Nothing new begins after ``left()`` seconds; a timing takes at least ``least`` seconds.

    Returns:
        ``items``; ``variants``: for each ``seconds``, ``speed`` (the reference's seconds over its
        own; not without a reference), ``per_second``, ``peak_bytes`` of a call beyond weights,
        ``agreement``; ``not_run``: variants and reasons.
    """
    found: dict[str, Any] = {"items": case.items, "variants": {}, "not_run": {}}
    works: dict[str, tuple[Work, int]] = {}
    reference, expected = next(iter(case.variants)), None
    for name, make in case.variants.items():
        if works and left() <= 0:
            found["not_run"][name] = "the time was over"
            continue
        try:
            work = make()
            result, figures = _warm_up(work)
            if name == reference:
                expected = result
            elif expected is not None:
                figures["agreement"] = case.agree(expected, result)
                if not figures["agreement"] >= case.at_least:
                    raise ValueError(f"agrees on {figures['agreement']:.4%} only")
            calls = max(1, min(200, round(least / max(_seconds(work, 1), 1e-6))))
            works[name], found["variants"][name] = (work, calls), figures
        except Exception as error:  # memory, a compiler: the other variants go on
            found["not_run"][name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns):
        if turn and left() <= 0:
            found["not_run"]["the last turns"] = f"the time was over after {turn} of {turns}"
            break
        for name in list(works) if turn % 2 == 0 else list(works)[::-1]:
            times[name].append(_seconds(*works[name]))
    for name, measured in times.items():
        seconds = summary(measured)
        found["variants"][name] |= {
            "seconds": seconds, "per_second": case.items / seconds["median"],
        }  # fmt: skip
        if reference in times:
            ratios = [b / a for a, b in zip(measured, times[reference], strict=True)]
            found["variants"][name]["speed"] = summary(ratios)
    return found


def markdown(result: dict[str, Any]) -> str:
    """The results as a table."""
    described = result["machine"]
    lines = [f"# Speed on {described['gpu'] or described['cpu'] + ' (no GPU)'}", ""]
    lines += ["Toy size: the figures only show that it runs.", ""] if result["toy"] else []
    lines += ["| work | variant | time | images/s | times as fast | memory | agreement |",
              "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, found in result["cases"].items():
        for variant, one in found["variants"].items():
            memory = f"{one['peak_bytes'] / 2**20:.0f} MiB" if "peak_bytes" in one else ""
            agreement = f"{100 * one['agreement']:.3f} %" if "agreement" in one else ""
            speed = f"{one['speed']['median']:.2f}" if "speed" in one else ""
            lines.append(
                f"| {name} | {variant} | {1e3 * one['seconds']['median']:.3g} ms | "
                f"{one['per_second']:.4g} | {speed} | {memory} | {agreement} |"
            )
    lines.append("")
    for name, found in result["cases"].items():
        lines += [f"- Not run: {name}, {what}: {why}." for what, why in found["not_run"].items()]
    lines += [f"- Not run: {what}: {why}." for what, why in result["not_run"].items()]
    versions = ", ".join(" ".join(pair) for pair in described["versions"].items())
    lines.append(f"- `{result['command']}`. {versions}. Commit {described['commit'][:12]}.")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    start = time.monotonic()
    parser = arguments(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--arch", choices=("resnest50", "resnest101"), default="resnest50")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=8, help="begin nothing new after so many")
    parser.add_argument("--turns", type=int, default=5, help="how often each variant is timed")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--out", type=Path, default=FOLDER / "results" / "gpu", metavar="DIR")
    parser.add_argument("--toy", action="store_true", help="tiny, without torch.compile")
    args = parser.parse_args(argv)
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"{part}: is not one of {', '.join(PARTS)}")
    args.toy |= not CUDA
    args.size, args.crop = ((64, 64), (32, 32)) if args.toy else ((512, 512), (480, 480))
    if args.toy:
        args.arch, args.batch, args.turns, args.compile = "toy", 2, 1, False
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    def left() -> float:
        return 60 * args.minutes - (time.monotonic() - start)

    command = " ".join(["python benchmarks/gpu.py", *(sys.argv[1:] if argv is None else argv)])
    result: dict[str, Any] = {"command": command, "toy": args.toy, "machine": machine(),
                              "cases": {}, "not_run": {}}  # fmt: skip
    for part in args.parts or PARTS:
        if left() <= 0:
            result["not_run"][part] = "the time was over; run it by itself"
            continue
        for case in PARTS[part](args):
            print(f"{part}: {case.name}", file=sys.stderr, flush=True)
            found = measure(case, args.turns, 0 if args.toy else 0.3, left)
            result["cases"][f"{part}: {case.name}"] = found
            args.out.mkdir(parents=True, exist_ok=True)
            atomic_write(args.out / "gpu.json", json.dumps(result, indent=1) + "\n")
            atomic_write(args.out / "gpu.md", markdown(result))
            gc.collect()
            if CUDA:
                torch.cuda.empty_cache()
    print(markdown(result))
    return int(bool(result["not_run"]) or any(c["not_run"] for c in result["cases"].values()))


if __name__ == "__main__":
    sys.exit(main())
