# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The speed table of one GPU, in parts that each end within a limit of time.

    python benchmarks/gpu.py --list
    python benchmarks/gpu.py --part inference --case resnest50 --no-compiled
    python benchmarks/gpu.py --part inference --case 'resnest269, batch 16'
    python benchmarks/gpu.py --part training --case resnest50 --minutes 8 --out DIR
    python benchmarks/gpu.py --toy                      every part at toy size, also on a CPU
    python benchmarks/gpu.py --table DIR                the tables of what is in DIR

A part writes DIR/PART.json and DIR/PART.md after each of its cases (with --case, DIR/PART-CASE.*).
It starts anew each time, so a file holds what one command has measured; one that was interrupted
says so. What the time did not suffice for is named; run it with --case. docs/gpu.md lists the
commands of the whole table.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
# Read by cuBLAS when it starts; without it, deterministic algorithms are refused.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
NAMES = ("inference", "latency", "training", "predictions", "evaluation", "loader")


def main(argv: list[str] | None = None) -> int:
    start = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", action="append", choices=NAMES, help="only these parts")
    parser.add_argument(
        "--case", action="append", metavar="NAME", help="only these cases, or those of this part"
    )
    parser.add_argument("--out", type=Path, default=FOLDER / "results" / "gpu", metavar="DIR")
    parser.add_argument(
        "--minutes", type=float, default=8, help="begin nothing new after so many (default: 8)"
    )
    parser.add_argument("--turns", type=int, default=5, help="how often each way is timed")
    parser.add_argument(
        "--no-compiled", dest="compiled", action="store_false", help="without torch.compile"
    )
    parser.add_argument("--rate", type=float, help="images/s of a training step, for the loader")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, some seconds on a CPU")
    parser.add_argument("--list", action="store_true", help="name the parts and end")
    parser.add_argument("--table", type=Path, metavar="DIR", help="print the tables and end")
    args = parser.parse_args(argv)
    if args.turns < 1 or args.minutes <= 0:
        parser.error("--turns and --minutes must be above 0")
    from gpu_report import markdown

    if args.list:
        print("\n".join(NAMES))
        return 0
    if args.table:
        results = [
            json.loads(path.read_text("utf-8")) for path in sorted(args.table.glob("*.json"))
        ]
        results = [result for result in results if "part" in result]  # CamVid's runs have none
        if not results:
            parser.error(f"--table {args.table}: no results of a part in it")
        print("\n".join(["# Speed on one GPU\n", *map(markdown, results)]), end="")
        return 0

    def left() -> float:
        return 60 * args.minutes - (time.monotonic() - start)

    failed = False
    for name in args.part or NAMES:
        failed |= not run(name, args, left)
    return int(failed)


def run(name: str, args: argparse.Namespace, left: Any) -> bool:
    """One part, written after each case; whether the references ran and all that ran agrees."""
    import torch
    from gpu_measure import CUDA, ceilings, measure
    from gpu_parts import PARTS
    from gpu_report import described_machine, markdown, write
    from mmengine.logging import MMLogger

    from mmseg_resnest.kernels import gpu as kernels

    if not CUDA and not args.toy:
        sys.exit("error: torch finds no GPU here; --toy runs everything at toy size on a CPU")
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    words = "-".join(args.case or [])
    stem = f"{name}{'-' if words else ''}{''.join(c if c.isalnum() else '_' for c in words)}"
    # The stack prints a table of all classes with every evaluation.
    MMLogger.get_current_instance().setLevel("WARNING")
    bounds = ceilings(args.toy)
    memory = torch.cuda.get_device_properties(0).total_memory if CUDA else None
    result: dict[str, Any] = {
        "part": name,
        "command": " ".join(["python benchmarks/gpu.py", *_shown(args, name)]),
        "toy": args.toy,
        "machine": {**described_machine(), "gpu_memory": memory, "cuda": torch.version.cuda},
        "ceilings": bounds,
        "turns": args.turns,
        "cases": {},
        "not_run": {"what may follow": "the command was interrupted here"},
    }

    def save() -> None:
        write(args.out / f"{stem}.json", json.dumps(result, indent=1) + "\n")
        write(args.out / f"{stem}.md", markdown(result))

    agreed, over = True, False
    cases = iter(PARTS[name](args.toy, args))
    while True:
        if left() <= 0 and result["cases"]:
            over = True
            break
        make = next(cases, None)
        if make is None:
            break
        case = make()
        if args.case and not any(chosen(case.name, word) for word in args.case):
            continue
        print(f"{name}: {case.name}", file=sys.stderr, flush=True)
        turns, least = (1, 0.0) if args.toy else (args.turns, 0.3)
        measured = measure(case, bounds, turns, least, left)
        if reason := kernels.why_not():
            measured["not_run"]["kernels in Triton"] = reason
        if name == "loader" and args.rate:
            measured["cores"] = {
                way: args.rate / figures["per_second"] for way, figures in measured["ways"].items()
            }
            measured["rate"] = args.rate
        result["cases"][case.name] = measured
        agreed &= all(
            way.get("compared", {}).get("agrees", 1.0) == 1.0 for way in measured["ways"].values()
        )
        agreed &= measured["reference"] in measured["ways"] or not case.ways
        save()
    if not result["cases"] and args.case:
        sys.exit(f"error: --case {' --case '.join(args.case)}: names no case of the part {name}")
    result["not_run"] = (
        {"further cases": f"{args.minutes:g} minutes were over; name them with --case"}
        if over else {}
    )  # fmt: skip
    save()
    print(markdown(result), flush=True)
    return agreed


def chosen(name: str, word: str) -> bool:
    """Whether ``--case WORD`` means a case: its name, or what stands before or after a comma."""
    return word == name or word in name.split(", ")


def _shown(args: argparse.Namespace, name: str) -> list[str]:
    words = ["--part", name]
    for case in args.case or []:
        words += ["--case", case]
    words += ["--toy"] if args.toy else []
    words += [] if args.compiled else ["--no-compiled"]
    words += ["--rate", f"{args.rate:g}"] if args.rate else []
    return words


if __name__ == "__main__":
    sys.exit(main())
