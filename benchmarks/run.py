# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Run comparisons side by side and write what they measured.

    python benchmarks/run.py                      every comparison
    python benchmarks/run.py predictions          one
    python benchmarks/run.py --list               what there is
    python benchmarks/run.py --threads 1 --out DIR

Each way of a comparison runs in its own process, in turns, after a warm-up. Written are
DIR/NAME.json and DIR/NAME.md, each when its comparison is done; docs/benchmarks.md is made from the
committed ones by `python benchmarks/report.py`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
NAMES = (
    "predictions",
    "evaluate_single",
    "evaluate_multi",
    "backbone",
    "inference",
    "training",
    "pipeline",
    "start_up",
    "memory_reuse",
    "deploy",
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--out", type=Path, default=FOLDER / "results", metavar="DIR")
    parser.add_argument("--case", action="append", metavar="CASE", help="only these cases")
    parser.add_argument("--repeats", type=int, help="turns that are timed")
    parser.add_argument("--threads", type=int, help="of torch (default: all cores)")
    parser.add_argument("--remark", default="", help="about the machine, kept with the results")
    parser.add_argument("--list", action="store_true", help="say what there is and end")
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in NAMES:
            parser.error(f"{name}: no such comparison; there are {', '.join(NAMES)}")
    if args.repeats is not None and args.repeats < 1:
        parser.error(f"--repeats {args.repeats}: must be at least 1")
    if args.threads is not None:
        if args.threads < 1:
            parser.error(f"--threads {args.threads}: must be at least 1")
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # for the processes of the ways
            os.environ[variable] = str(args.threads)
    # Only now: torch reads the number of threads when it is imported.
    from report import markdown

    if args.list:
        for name in NAMES:
            comparison = importlib.import_module(name).COMPARISON
            print(f"{name}: {comparison.title}")
            for case, what in comparison.cases.items():
                print(f"    {case}: {what}")
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in args.names or NAMES:
        result, complete = run(name, args.case, args.repeats, args.remark)
        failed |= not complete
        write(args.out / f"{name}.json", json.dumps(result, indent=1) + "\n")
        write(args.out / f"{name}.md", markdown(result))
        print(markdown(result), flush=True)
    return int(failed)


def run(
    name: str, cases: list[str] | None, repeats: int | None, remark: str
) -> tuple[dict[str, Any], bool]:
    """The result of one comparison, and whether every case was measured."""
    from harness import machine, measure

    comparison = importlib.import_module(name).COMPARISON
    result: dict[str, Any] = {
        "name": name,
        "title": comparison.title,
        "note": comparison.note,
        "reference": comparison.reference,
        "least": dict(comparison.least),
        "machine": {**machine(), "remark": remark},
        "cases": {},
        "not_run": dict(comparison.missing),
    }
    if result["machine"]["gpu"] is None:
        result["not_run"]["on a GPU"] = "torch finds none on this machine"
    complete = True
    for case in cases or comparison.cases:
        if case not in comparison.cases:
            continue
        if left_out := [way for way in comparison.left_out.get(case, ()) if way in comparison.ways]:
            why = "left out to keep the time in bounds"
            result["not_run"][f"{case}: {', '.join(left_out)}"] = why
        try:
            result["cases"][case] = measure(
                name, case, repeats or comparison.repeats, lambda text: print(text, file=sys.stderr)
            )
        except RuntimeError as error:
            complete = False
            result["not_run"][case] = str(error)
            print(f"error: {name}, {error}", file=sys.stderr)
    return result, complete


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    sys.exit(main())
