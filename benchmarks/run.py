# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Run comparisons side by side and write what they measured.

    python benchmarks/run.py                      every comparison
    python benchmarks/run.py predictions          one
    python benchmarks/run.py --list               what there is
    python benchmarks/run.py --threads 1 --out DIR

Each variant runs in its own process, in turns, after a warm-up. DIR/NAME.json and DIR/NAME.md are
written after each case (with --case only if --out names DIR); `python benchmarks/report.py` makes
docs/benchmarks.md of the committed ones. All of them take about an hour on two cores.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import arguments

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
NAMES = (
    *("predictions", "evaluate_single", "evaluate_multi", "backbone", "inference", "training"),
    *("pipeline", "start_up", "deploy"),
)
_INTERRUPTED = "interrupted before it was measured"


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="where results are written over older ones (default: benchmarks/results, whose are "
        "committed)",
    )  # fmt: skip
    parser.add_argument("--case", action="append", metavar="CASE", help="only these (see --list)")
    parser.add_argument(
        "--repeats", type=int, help="turns that are timed (default: 3 to 7, the comparison's own)"
    )
    parser.add_argument("--threads", type=int, help="of torch (default: all cores)")
    parser.add_argument("--remark", default="", help="about the machine, kept with the results")
    parser.add_argument("--list", action="store_true", help="list comparisons and cases")
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in NAMES:
            parser.error(f"{name}: no such comparison; there are {', '.join(NAMES)}")
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out}: is a file; name a folder")
    for option, value in (("repeats", args.repeats), ("threads", args.threads)):
        if value is not None and value < 1:
            parser.error(f"--{option} {value}: must be at least 1")
    if args.threads is not None:  # for the variants' processes
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(args.threads))
    # Only now: torch reads the number of threads when it is imported.
    from report import markdown

    from mmseg_resnest.io.atomic import atomic_write

    if args.list:
        for name in NAMES:
            comparison = importlib.import_module(name).COMPARISON
            print(f"{name}: {comparison.title}")
            for case, what in comparison.cases.items():
                print(f"    {case}: {what}")
        return 0
    names = args.names or NAMES
    if args.case:
        cases = {name: importlib.import_module(name).COMPARISON.cases for name in names}
        for case in args.case:
            if not any(case in known for known in cases.values()):
                known = ", ".join(f"'{one}'" for found in cases.values() for one in found)
                parser.error(f"--case {case}: no such case; there are {known}")
        names = [name for name in names if any(case in cases[name] for case in args.case)]
    out = args.out or (None if args.case else FOLDER / "results")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    complete = True
    for name in names:
        result: dict[str, Any] = {}
        try:
            for result in run(name, args.case, args.repeats, args.remark):
                if out is not None and result["cases"]:
                    atomic_write(out / f"{name}.json", json.dumps(result, indent=1) + "\n")
                    atomic_write(out / f"{name}.md", markdown(result))
        except KeyboardInterrupt:
            done = ", ".join(result.get("cases", ())) or "no case"
            if result.get("cases"):
                print(markdown(result))
            print(f"interrupted: of {name} {done} was measured", file=sys.stderr)
            return 130
        complete &= result["complete"]
        print(markdown(result), flush=True)
    return int(not complete)


def run(
    name: str, cases: list[str] | None, repeats: int | None, remark: str
) -> Iterator[dict[str, Any]]:
    """The result of one comparison, after each of its cases; ``complete`` if nothing failed."""
    from harness import machine, measure

    comparison = importlib.import_module(name).COMPARISON
    result: dict[str, Any] = {
        "name": name,
        "title": comparison.title,
        "note": comparison.note,
        "reference": comparison.reference,
        "least": dict(comparison.least),
        "most_memory": dict(comparison.most_memory),
        "machine": {**machine(), "remark": remark},
        "complete": False,
        "cases": {},
        "not_run": dict(comparison.missing),
        "remarks": {
            variant: why
            for variant, why in comparison.remarks.items()
            if variant in comparison.variants
        },
    }
    if result["machine"]["gpu"] is None:
        result["not_run"]["on a GPU"] = "torch finds none on this machine"
    wanted = [case for case in cases or comparison.cases if case in comparison.cases]
    result["not_run"].update(dict.fromkeys(wanted, _INTERRUPTED))
    complete = True
    for case in wanted:
        if left_out := [
            variant
            for variant in comparison.left_out.get(case, ())
            if variant in comparison.variants
        ]:
            why = "left out to keep the time in bounds"
            result["not_run"][f"{case}: {', '.join(left_out)}"] = why
        del result["not_run"][case]
        try:
            measured = measure(
                name, case, repeats or comparison.repeats, lambda text: print(text, file=sys.stderr)
            )
        except RuntimeError as error:
            errors = {case: str(error)}
        else:
            errors = {f"{case}: {variant}": why for variant, why in measured.pop("failed").items()}
            result["cases"][case] = measured
        for what, why in errors.items():
            complete = False
            result["not_run"][what] = why
            print(f"error: {name}, {what}: {why}", file=sys.stderr)
        result["complete"] = complete and _INTERRUPTED not in result["not_run"].values()
        yield result


if __name__ == "__main__":
    sys.exit(main())
