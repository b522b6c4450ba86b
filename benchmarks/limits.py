# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""How far each benchmark is from what this machine can do.

    python benchmarks/limits.py            measure, and write the table into docs/performance.md

Each comparison is timed in turns with a float32 product of large matrices and a large copy. The
floor of a time is the larger of two: its multiply-adds over the rate of the product, and the bytes
that must be read and written over the rate of the copy. Multiply-adds are those of convolutions and
matrix products, without padding. What reads files or starts Python has another floor: decoding the
files, or importing torch, measured in the same turns.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, Server, Work, arguments, machine
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from mmseg_resnest.io.atomic import atomic_write

RESULTS = Path(__file__).resolve().parent / "results" / "limits" / "limits.json"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- made by benchmarks/limits.py -->\n", "<!-- end -->\n"
OURS = "mmseg-resnest"
Size = torch.Size


def counter() -> FlopCounterMode:
    """Counts operations of convolutions and matrix products, without those with padding."""
    aten = torch.ops.aten
    mapping = {aten.convolution: _convolution, aten.convolution_backward: _backward}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _convolution(
    x: Size, weight: Size, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Operations of a convolution of maps (N, C, H, W)."""
    if transposed:
        raise NotImplementedError("transposed convolutions are not counted")
    places = 1
    for axis, length in enumerate(x[2:]):
        step, pad, rate = (int(v[axis % len(v)]) for v in (stride, padding, dilation))
        taps = torch.arange(weight[2 + axis]) * rate - pad
        count = (length + 2 * pad - rate * (weight[2 + axis] - 1) - 1) // step + 1
        rows = torch.arange(count)[:, None] * step + taps
        places *= int(((rows >= 0) & (rows < length)).sum())
    return 2 * x[0] * weight[0] * weight[1] * places


def _backward(
    gradient: Size, x: Size, weight: Size, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, wanted: Any, **_: Any,
) -> int:  # fmt: skip
    return sum(wanted[:2]) * _convolution(x, weight, None, stride, padding, dilation, transposed)


def count(module: str, case: str) -> int:
    """Operations of this package's variant."""
    work = importlib.import_module(module).COMPARISON.ways[OURS](case)
    work()  # what it prepares once
    with counter() as counted:
        work()
    return counted.get_total_flops()


def rates(threads: int) -> dict[str, float]:
    """``operations`` and ``bytes`` a second that this machine can do with so many threads."""
    torch.set_num_threads(threads)
    a, b = torch.randn(2, 3072, 3072, generator=torch.Generator().manual_seed(0))
    source = torch.ones(2**28, dtype=torch.uint8)
    target = torch.zeros_like(source)
    product = min(_seconds(lambda: a @ b) for _ in range(3))
    copy = min(_seconds(lambda: target.copy_(source)) for _ in range(5))
    return {"operations": 2 * 3072**3 / product, "bytes": 2 * len(source) / copy}


def _seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    module: str  # of the comparison
    case: str
    floor: str  # what it is, for people; for products and bytes there are words
    other: str = ""  # the variant of the comparison that is the floor
    moved: Callable[[str], int] | None = None  # bytes that have to be read and written


def _predicted(case: str) -> int:
    """Scores in; labels out, and in again with the true ones for the matrix: 8 bytes each."""
    from predictions import CASES, SIZES

    classes, (height, width), _, (rows, columns) = SIZES[CASES[case][0]]
    return 4 * classes * height * width + 3 * 8 * rows * columns


def _cropped(case: str) -> int:
    """Of each crop the pixels and labels in, and pixels and 8-byte labels out."""
    from pipeline import SAMPLES, SETS

    height, width = SETS[case.split()[0]]["crop"]
    return SAMPLES * height * width * (3 + 1 + 3 + 8)


ROWS = (
    Row("inference", "batch 1", "products"),
    Row("inference", "batch 8", "products"),
    Row("evaluate_single", "341x256", "products"),
    Row("evaluate_multi", "341x256", "products"),
    Row("training", "480x480, batch 2", "products"),
    Row("predictions", "ade20k, regions", "bytes", moved=_predicted),
    Row("predictions", "ade20k, noise", "bytes", moved=_predicted),
    Row("predictions", "cityscapes, regions", "bytes", moved=_predicted),
    Row("predictions", "cityscapes, noise", "bytes", moved=_predicted),
    Row("pipeline", "ADE20K", "decoding of the files, as it does it", "decoding alone"),
    Row("pipeline", "Cityscapes", "decoding of the files, as it does it", "decoding alone"),
    Row("pipeline", "Cityscapes from the cache", "bytes", moved=_cropped),
    Row("start_up", "20,000 images", "import of torch", "import torch"),
)


@contextlib.contextmanager
def _serving(row: Row, way: str) -> Iterator[Server]:
    server = Server(row.module, row.case, way)
    try:
        server.threads = server.answer()["threads"]
        server.ask("time")
        yield server
    finally:
        server.close()


def measure(row: Row, turns: int) -> dict[str, Any]:
    """Seconds, floor and share of it, each the median of the turns."""
    operations = count(row.module, row.case) if row.floor == "products" else 0
    moved = row.moved(row.case) if row.moved else 0
    found: list[tuple[float, float, dict[str, float]]] = []
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(_serving(row, OURS))
        other = stack.enter_context(_serving(row, row.other)) if row.other else None
        for _ in range(turns):
            rate = rates(ours.threads)
            wall = ours.ask("time")["wall"]
            if other is not None:
                floor = other.ask("time")["wall"]
            else:
                floor = max(operations / rate["operations"], moved / rate["bytes"])
            found.append((wall, floor, rate))
    walls, floors, all_rates = zip(*found, strict=True)
    return {
        "module": row.module,
        "case": row.case,
        "title": importlib.import_module(row.module).COMPARISON.title,
        "floor": row.floor,
        "operations": operations,
        "bytes": moved,
        "threads": ours.threads,
        "seconds": statistics.median(walls),
        "floor_seconds": statistics.median(floors),
        "share": statistics.median(f / w for f, w in zip(floors, walls, strict=True)),
        "rates": {
            name: statistics.median(rate[name] for rate in all_rates)
            for name in ("operations", "bytes")
        },
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["| work | time | floor | share | what the floor is |", "|---|---|---|---|---|"]
    for row in result["rows"]:
        operations, moved = row["rates"]["operations"] / 1e9, row["rates"]["bytes"] / 1e9
        core = ", one core" if row["threads"] == 1 else ""
        words = {
            "products": f"{row['operations'] / 1e9:.0f} GFLOP at {operations:.0f} GFLOP/s",
            "bytes": f"{row['bytes'] / 1e6:.0f} MB at {moved:.0f} GB/s{core}",
        }
        cells = (
            f"{_time(row['seconds'])} | {_time(row['floor_seconds'])} | {100 * row['share']:.0f} %"
        )
        what = words.get(row["floor"], row["floor"])
        lines.append(f"| {row['title']}: {row['case']} | {cells} | {what} |")
    machine = result["machine"]
    said = f"Made by `python benchmarks/limits.py` on {machine['cpu']}, {machine['cores']} cores, "
    said += f"{machine['instructions']}; median of {result['turns']} turns, commit "
    return "\n".join([*lines, "", f"{said}{machine['commit'][:12]}."]) + "\n"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"


def page(text: str, result: dict[str, Any]) -> str:
    """docs/performance.md with the table of a result."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table(result)}\n{END}{rest.split(END)[1]}"


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args(argv)
    if args.turns < 1:
        parser.error(f"--turns {args.turns}: must be at least 1")
    if torch.cuda.is_available():
        parser.error("a GPU is there: benchmarks/gpu.py measures its floors")
    result: dict[str, Any] = {"machine": machine(), "turns": args.turns}
    result["rows"] = [measure(row, args.turns) for row in tqdm(ROWS, unit="row")]
    atomic_write(RESULTS, json.dumps(result, indent=1) + "\n")
    atomic_write(PAGE, page(PAGE.read_text("utf-8"), result))
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
