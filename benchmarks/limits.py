# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""How far each benchmark is from what this machine can do.

    python benchmarks/limits.py            measure, and write the table into docs/performance.md
    python benchmarks/limits.py --table    only write the table again, from what was measured

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
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from mmseg_resnest.io.atomic import atomic_write

RESULTS = Path(__file__).resolve().parent / "results" / "limits"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- made by benchmarks/limits.py -->\n", "<!-- end -->\n"
OURS = "mmseg-resnest"


class ProductCounter(TorchDispatchMode):
    """Operations of convolutions and matrix products, 2 a multiply-add, without padding's."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # In inference mode an operation comes as what is made of others; they are to be counted.
        with self:
            made = func.decompose(*args, **kwargs)
        if made is not NotImplemented:
            return made
        name = func.overloadpacket.__name__
        if name == "convolution":
            self.operations += _convolution(args[0], args[1], *args[3:6], args[6])
        elif name == "convolution_backward":
            once = _convolution(args[1], args[2], *args[4:7], args[7])
            self.operations += once * sum(args[10][:2])
        elif name in ("mm", "bmm"):
            self.operations += 2 * args[0].numel() * args[1].shape[-1]
        elif name in ("addmm", "baddbmm"):
            self.operations += 2 * args[1].numel() * args[2].shape[-1]
        return func(*args, **kwargs)


def _convolution(
    x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, transposed: bool
) -> int:
    """Operations of a convolution of maps (N, C, H, W)."""
    if transposed:
        raise NotImplementedError("transposed convolutions are not counted")
    places = 1
    for axis, length in enumerate(x.shape[2:]):
        taps = torch.arange(weight.shape[2 + axis]) * _at(dilation, axis) - _at(padding, axis)
        reach = (weight.shape[2 + axis] - 1) * _at(dilation, axis)
        count = (length + 2 * _at(padding, axis) - reach - 1) // _at(stride, axis) + 1
        rows = torch.arange(count)[:, None] * _at(stride, axis) + taps
        places *= int(((rows >= 0) & (rows < length)).sum())
    return 2 * x.shape[0] * weight.shape[0] * weight.shape[1] * places


def _at(value: Any, axis: int) -> int:
    return int(value[axis] if len(value) > 1 else value[0])


def count(module: str, case: str) -> int:
    """Operations of this package's variant."""
    work = importlib.import_module(module).COMPARISON.ways[OURS](case)
    work()  # what it prepares once
    with ProductCounter() as counter:
        work()
    return counter.operations


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
    """One line of the table.

    Attributes:
        module: Of the comparison.
        case: Of that.
        floor: What the floor is, for people; for ``products`` and ``bytes`` there are words.
        other: The way of the comparison that is the floor, if one is.
        moved: Bytes that have to be read and written, of the case.
    """

    module: str
    case: str
    floor: str
    other: str = ""
    moved: Callable[[str], int] | None = None


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
    lines = [
        "| work | time | floor | share | what the floor is |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        rate = row["rates"]
        words = {
            "products": f"{row['operations'] / 1e9:.0f} GFLOP at "
            f"{rate['operations'] / 1e9:.0f} GFLOP/s",
            "bytes": f"{row['bytes'] / 1e6:.0f} MB at {rate['bytes'] / 1e9:.0f} GB/s"
            f"{', one core' if row['threads'] == 1 else ''}",
        }
        lines.append(
            f"| {row['title']}: {row['case']} | {_time(row['seconds'])} "
            f"| {_time(row['floor_seconds'])} | {100 * row['share']:.0f} % "
            f"| {words.get(row['floor'], row['floor'])} |"
        )
    machine = result["machine"]
    lines += [
        "",
        f"Made by `python benchmarks/limits.py` on {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['instructions']}; median of {result['turns']} turns, commit "
        f"{machine['commit'][:12]}.",
    ]
    return "\n".join(lines) + "\n"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"


def page(text: str, result: dict[str, Any]) -> str:
    """docs/performance.md with the table of a result."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"error: {PAGE}: the lines that enclose the table are gone")
    return before + begin + "\n" + table(result) + "\n" + end + after


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="only write the page's table again")
    args = parser.parse_args(argv)
    if args.turns < 1:
        parser.error(f"--turns {args.turns}: must be at least 1")
    if not args.table:
        if torch.cuda.is_available():
            parser.error("a GPU is there: benchmarks/gpu.py measures its floors")
        result: dict[str, Any] = {"machine": machine(), "turns": args.turns}
        result["rows"] = [measure(row, args.turns) for row in tqdm(ROWS, unit="row")]
        RESULTS.mkdir(parents=True, exist_ok=True)
        atomic_write(RESULTS / "limits.json", json.dumps(result, indent=1) + "\n")
        print(table(result))
    committed = json.loads((RESULTS / "limits.json").read_text("utf-8"))
    atomic_write(PAGE, page(PAGE.read_text("utf-8"), committed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
