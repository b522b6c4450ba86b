# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""GluonCV 0.7's table of latencies again: ImageNet classifiers at the sizes of their test crops.

    python benchmarks/latency.py --python DIR/bin/python           the table, on the CPU and a GPU
    python benchmarks/latency.py --only resnest50 --batch 1        one cell
    python benchmarks/latency.py --toy --out DIR                   images of 64 pixels, one call

EfficientNet and SENet-154 are timm's, which needs torchvision: --python names the Python of an
environment that has both, which `benchmarks/peers.sh DIR` makes (DIR/bin/python); without it they
are measured where timm is installed beside this package. Networks are in evaluation mode, with
random weights, in float32 without TF32, on all cores; a call is repeated after a warm-up, and its
median taken. Written are OUT/DEVICE.json and OUT/DEVICE.md after each cell; the same command goes
on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]


class Row(NamedTuple):
    """A line of the table: ``published`` are milliseconds an image on a V100, batch 16."""

    model: str
    library: str  # mmseg-resnest or timm
    name: str  # of the architecture there
    size: int
    published: float
    top1: float


# The times, and top-1 of ResNeSt and SENet-154: GluonCV 0.7. EfficientNet's top-1 is that of its
# authors' weights with AutoAugment, as mmpretrain's table of them states it.
ROWS = (
    Row("ResNeSt-50", "mmseg-resnest", "resnest50", 224, 1.78, 81.04),
    Row("ResNeSt-101", "mmseg-resnest", "resnest101", 256, 3.43, 82.81),
    Row("ResNeSt-200", "mmseg-resnest", "resnest200", 320, 9.49, 83.88),
    Row("ResNeSt-269", "mmseg-resnest", "resnest269", 416, 19.50, 84.53),
    Row("EfficientNet-B2", "timm", "efficientnet_b2", 260, 2.18, 80.21),
    Row("EfficientNet-B3", "timm", "efficientnet_b3", 300, 2.96, 81.58),
    Row("EfficientNet-B4", "timm", "efficientnet_b4", 380, 6.70, 82.95),
    Row("EfficientNet-B5", "timm", "efficientnet_b5", 456, 11.86, 83.82),
    Row("EfficientNet-B6", "timm", "efficientnet_b6", 528, 18.55, 84.05),
    Row("EfficientNet-B7", "timm", "efficientnet_b7", 600, 28.64, 84.38),
    Row("SENet-154", "timm", "legacy_senet154", 224, 5.07, 81.26),
)
BATCHES = (16, 1)
TOY_SIZE = 64


# --- in the process that measures one cell, which may have another package set


def serve(library: str, name: str, size: int, batch: int, device: str, calls: int) -> None:
    """Time a network and print ``{"seconds": [...], "parameters": n, "versions": {...}}``."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints
    import torch

    versions = {"torch": torch.__version__}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    model: Any
    if library == "timm":
        import timm

        versions["timm"] = timm.__version__
        model = timm.create_model(name)
    else:
        from mmseg_resnest.models import ResNeSt

        model = ResNeSt(name, out_indices=(3,), num_classes=1000)
    model = model.eval().to(device)
    images = torch.randn(batch, 3, size, size, device=device)
    seconds = []
    with torch.inference_mode():
        for _ in range(calls + max(1, calls // 3)):
            start = time.perf_counter()
            model(images)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    parameters = sum(p.numel() for p in model.parameters())
    found = {"seconds": seconds[-calls:], "parameters": parameters, "versions": versions}
    print(json.dumps(found), file=answers, flush=True)


# --- in the process that makes the table


def measure(
    row: Row, batch: int, device: str, python: str, calls: int, size: int
) -> dict[str, Any]:
    """The answer of :func:`serve` in a process of its own; RuntimeError if it fails."""
    words = (row.library, row.name, size, batch, device, calls)
    path = os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [python, "-W", "ignore", __file__, "--serve", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"ended with {done.returncode}")
    return json.loads(done.stdout)


def markdown(result: dict[str, Any]) -> str:
    """The table, with what it was measured on."""
    machine, cells = result["machine"], result["cells"]
    where = machine["gpu"] if result["device"] == "cuda" else machine["cpu"]
    head = [f"batch {batch}, ms an image" for batch in BATCHES]
    lines = [
        f"| network | crop | parameters | {' | '.join(head)} | V100, batch 16, ms | top-1 |",
        "|---|---:|---:|" + "---:|" * (len(BATCHES) + 2),
    ]
    for row in ROWS:
        found = {batch: cells.get(f"{row.model} {batch}") for batch in BATCHES}
        some = next(filter(None, found.values()), None)
        times = [f"{cell['ms']:.2f}" if cell else "" for cell in found.values()]
        parameters = f"{some['parameters'] / 1e6:.1f} M" if some else ""
        last = f"{row.published:.2f} | {row.top1:.2f}"
        size = some["size"] if some else row.size
        lines.append(f"| {row.model} | {size} | {parameters} | {' | '.join(times)} | {last} |")
    threads = "" if result["device"] == "cuda" else f", {machine['threads']} threads"
    said = "".join(f"; {words}" for words in versions_of(cells))
    commits = sorted({cell["commit"][:10] or "unknown" for cell in cells.values()})
    said += f"; commit {', '.join(commits)}" if commits else ""
    lines += ["", f"{where}{threads}{said}."]
    lines += [f"Not run: {what}: {why}." for what, why in sorted(result["not_run"].items())]
    return "\n".join(lines) + "\n"


def versions_of(cells: dict[str, Any]) -> list[str]:
    """``timm 1.0.20: torch 2.14.1`` for each library that cells were measured with."""
    library = {f"{row.model} {batch}": row.library for row in ROWS for batch in BATCHES}
    found: dict[str, None] = {}
    for key, cell in cells.items():
        versions = dict(cell["versions"])
        own = versions.pop(library[key], "")
        others = ", ".join(f"{name} {version}" for name, version in versions.items())
        found[f"{library[key]} {own}".strip() + f": {others}"] = None
    return sorted(found)


def load(
    file: Path, result: dict[str, Any], sizes: dict[str, int], parser: argparse.ArgumentParser
) -> None:
    """Take over the cells of an earlier run on this machine, if their images had these sizes.

    ``sizes`` are pixels by the name of the cell.
    """
    if not file.exists():
        return
    try:
        earlier = json.loads(file.read_text("utf-8"))
        differing = [
            key
            for key in ("cpu", "gpu", "threads")
            if earlier["machine"][key] != result["machine"][key]
        ]
        for key, cell in earlier["cells"].items():
            if cell["size"] == sizes.get(key):
                result["cells"][key] = {"commit": earlier["machine"]["commit"], **cell}
    except (ValueError, KeyError, TypeError, AttributeError):
        parser.error(f"--out: {file} is no result of this script; name another folder")
    if differing:
        parser.error(f"--out: {file} has another {differing[0]}; name another folder, or remove it")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [row.name for row in ROWS]
    parser.add_argument("--python", help="the Python of an environment that has timm")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--batch", nargs="+", type=int, choices=BATCHES, default=list(BATCHES))
    parser.add_argument(
        "--device", nargs="+", choices=("cpu", "cuda"), help="default: what is there"
    )
    parser.add_argument("--calls", type=int, default=9, help="that are timed (default: 9)")
    parser.add_argument("--again", action="store_true", help="measure also what is there already")
    parser.add_argument("--toy", action="store_true", help="images of 64 pixels, one call")
    parser.add_argument(
        "--out", type=Path, default=FOLDER / "results" / "latency", metavar="DIR",
        help="default: benchmarks/results/latency; --toy needs another one",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.calls < 1:
        parser.error(f"--calls {args.calls}: must be at least 1")
    if args.toy and args.out == parser.get_default("out"):
        parser.error("--toy: name a folder for its figures with --out")
    rows = [row for row in ROWS if args.only is None or row.name in args.only]
    python = args.python or sys.executable
    without = ""
    if any(row.library == "timm" for row in rows):
        try:
            test = subprocess.run([python, "-c", "import timm"], capture_output=True, text=True)
            without = test.stderr.strip().splitlines()[-1] if test.returncode else ""
        except OSError as error:
            without = str(error)
        if without and args.python:
            parser.error(f"--python {args.python}: cannot import timm ({without})")
    import torch
    from harness import machine

    from mmseg_resnest.io.atomic import atomic_write

    there = ["cpu", *["cuda"] * torch.cuda.is_available()]
    for device in args.device or there:
        if device not in there:
            parser.error(f"--device {device}: torch finds none here")
    args.out.mkdir(parents=True, exist_ok=True)
    failed = False
    sizes = {f"{r.model} {b}": TOY_SIZE if args.toy else r.size for r in ROWS for b in BATCHES}
    for device in args.device or there:
        result = {"device": device, "machine": machine(), "cells": {}, "not_run": {}}
        file = args.out / f"{device}.json"
        load(file, result, sizes, parser)
        for row in rows:
            if row.library == "timm" and without:
                result["not_run"][row.model] = f"timm is not here ({without})"
                continue
            for batch in args.batch:
                key = f"{row.model} {batch}"
                if key in result["cells"] and not args.again:
                    continue
                size, calls = sizes[key], 1 if args.toy else args.calls
                interpreter = python if row.library == "timm" else sys.executable
                try:
                    found = measure(row, batch, device, interpreter, calls, size)
                except RuntimeError as error:
                    result["not_run"][key] = str(error)
                    failed = True
                else:
                    seconds = sorted(found["seconds"])[len(found["seconds"]) // 2]
                    found |= {"ms": 1000 * seconds / batch, "size": size}
                    found["commit"] = result["machine"]["commit"]
                    result["cells"][key] = found
                    print(f"{device}: {key}: {found['ms']:.2f} ms an image", file=sys.stderr)
                atomic_write(file, json.dumps(result, indent=1) + "\n")
        atomic_write(file, json.dumps(result, indent=1) + "\n")
        atomic_write(file.with_suffix(".md"), markdown(result))
        print(markdown(result), flush=True)
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        library, name, size, batch, device, calls = sys.argv[2:]
        serve(library, name, int(size), int(batch), device, int(calls))
    else:
        try:
            sys.exit(main())
        except KeyboardInterrupt:
            print("interrupted: the same command goes on from here", file=sys.stderr)
            sys.exit(130)
