# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""GluonCV 0.7's table of latencies again: ImageNet classifiers at the sizes of their test crops.

    DIR/bin/python benchmarks/latency.py                           the table, on the CPU and a GPU
    DIR/bin/python benchmarks/latency.py --only resnest50 --batch 1        one cell
    python benchmarks/latency.py --toy --out DIR                   images of 64 pixels, one call

EfficientNet and SENet-154 are timm's, which needs torchvision: `benchmarks/peers.sh DIR` makes an
environment that has both beside this package; elsewhere they are left out. Networks are in
evaluation mode, with random weights, in float32 without TF32, on all cores, each in a process of
its own; a call is repeated after a warm-up, and its median taken. Written are OUT/DEVICE.json and
OUT/DEVICE.md after each cell; the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import Comparison, Server, Work, arguments, machine
from peers import missing

from mmseg_resnest.io.atomic import atomic_write
from mmseg_resnest.models import ResNeSt

RESULTS = Path(__file__).resolve().parent / "results" / "latency"


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


def _network(row: Row) -> Any:
    if row.library == "timm":
        import timm

        return timm.create_model(row.name)
    return ResNeSt(row.name, out_indices=(3,), num_classes=1000)


def _calls(row: Row) -> Callable[[str], Work]:
    def variant(case: str) -> Work:
        device, batch, size = case.split()
        model = _network(row).eval().to(device)
        images = torch.randn(int(batch), 3, int(size), int(size), device=device)

        @torch.inference_mode()
        def work() -> None:
            model(images)

        return work

    return variant


# Of the processes that measure; the cases are made as they are needed.
COMPARISON = Comparison("Latency", "", {}, {row.name: _calls(row) for row in ROWS})


def measure(row: Row, batch: int, device: str, calls: int, size: int) -> list[float]:
    """Seconds of each call in a process of its own; RuntimeError if it fails."""
    server = Server("latency", f"{device} {batch} {size}", row.name)
    try:
        server.answer()
        for _ in range(max(1, calls // 3)):
            server.ask("time")
        return [server.ask("time")["wall"] for _ in range(calls)]
    finally:
        server.close()


def markdown(result: dict[str, Any]) -> str:
    """The table, with what it was measured on."""
    machine, cells = result["machine"], result["cells"]
    head = [f"batch {batch}, ms an image" for batch in BATCHES]
    lines = [
        f"| network | crop | parameters | {' | '.join(head)} | V100, batch 16, ms | top-1 |",
        "|---|---:|---:|" + "---:|" * (len(BATCHES) + 2),
    ]
    for row in ROWS:
        found = {batch: cells.get(f"{row.model} {batch}") for batch in BATCHES}
        some = next(filter(None, found.values()), {"size": row.size})
        times = [f"{cell['ms']:.2f}" if cell else "" for cell in found.values()]
        parameters = f"{some['parameters'] / 1e6:.1f} M" if "parameters" in some else ""
        last = f"{row.published:.2f} | {row.top1:.2f}"
        cell = f"{row.model} | {some['size']} | {parameters}"
        lines.append(f"| {cell} | {' | '.join(times)} | {last} |")
    on_cpu = f"{machine['cpu']}, {machine['threads']} threads"
    where = machine["gpu"] if result["device"] == "cuda" else on_cpu
    versions = [f"{name} {machine['versions'].get(name, '(none)')}" for name in ("torch", "timm")]
    commits = sorted({cell["commit"][:10] or "unknown" for cell in cells.values()})
    lines += ["", f"{where}; {', '.join(versions)}; commit {', '.join(commits) or 'unknown'}."]
    lines += [f"Not run: {what}: {why}." for what, why in sorted(result["not_run"].items())]
    return "\n".join(lines) + "\n"


def earlier_cells(file: Path, here: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run has written; SystemExit if it was of another machine or environment."""
    if not file.exists():
        return {}
    earlier = json.loads(file.read_text("utf-8"))
    for key in ("cpu", "gpu", "threads", "versions"):
        if earlier["machine"][key] != here[key]:
            raise SystemExit(f"error: {file} is of other {key}; name another folder with --out")
    return dict(earlier["cells"])


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    names = [row.name for row in ROWS]
    there = ["cpu", *["cuda"] * torch.cuda.is_available()]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--batch", nargs="+", type=int, choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--device", nargs="+", choices=there, default=there)
    parser.add_argument("--calls", type=int, default=9, help="that are timed (default: 9)")
    parser.add_argument("--again", action="store_true", help="measure also what is there already")
    parser.add_argument("--toy", action="store_true", help="images of 64 pixels, one call")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    args = parser.parse_args(argv)
    if args.calls < 1:
        parser.error(f"--calls {args.calls}: must be at least 1")
    if args.toy and args.out == RESULTS:
        parser.error("--toy: name a folder for its figures with --out")
    rows = [row for row in ROWS if args.only is None or row.name in args.only]
    without = missing("timm")
    args.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {}
    for device in args.device:
        file = args.out / f"{device}.json"
        result = {"device": device, "machine": machine(), "not_run": {}}
        result["cells"] = earlier_cells(file, result["machine"])
        for row in rows:
            for batch in args.batch:
                key, size = f"{row.model} {batch}", 64 if args.toy else row.size
                if row.library == "timm" and without:
                    result["not_run"][key] = f"timm {without}"
                elif args.again or result["cells"].get(key, {}).get("size") != size:
                    try:
                        times = measure(row, batch, device, 1 if args.toy else args.calls, size)
                    except RuntimeError as error:
                        result["not_run"][key] = str(error)
                        continue
                    with torch.device("meta"):
                        parameters = sum(p.numel() for p in _network(row).parameters())
                    result["cells"][key] = {
                        "ms": 1000 * statistics.median(times) / batch, "size": size,
                        "parameters": parameters, "commit": result["machine"]["commit"],
                    }  # fmt: skip
                    print(f"{device}: {key}: {result['cells'][key]['ms']:.2f} ms", file=sys.stderr)
                atomic_write(file, json.dumps(result, indent=1) + "\n")
                atomic_write(file.with_suffix(".md"), markdown(result))
        print(markdown(result), flush=True)
    return int(any("timm" not in why for why in result["not_run"].values()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)
