# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Compare two evaluated runs class by class, with the significance of the difference.

python tools/test.py CONFIG A.pth --work-dir a
python tools/test.py CONFIG B.pth --work-dir b
python tools/compare_runs.py a b --json difference.json

Paired bootstrap over the images; * marks differences that are significant at 5 % (of the classes
after Holm's correction for their number).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import _checkout  # noqa: F401

from mmseg_resnest.engine.cli import ArgumentParser, run_tool
from mmseg_resnest.errors import UserError
from mmseg_resnest.evaluation import ImageCounts, compare_counts, comparison_table, write_result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = ArgumentParser(prog="compare_runs.py", description=__doc__)
    parser.add_argument("a", help="work folder of tools/test.py (or the images.npz in it)")
    parser.add_argument("b", help="the other one")
    parser.add_argument("--draws", type=int, default=2000, help="bootstrap draws (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers here")
    args = parser.parse_args(argv)
    if args.draws < 100:
        raise UserError(f"--draws {args.draws}: at least 100 are needed for a p-value")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must be 0 or more")

    one, two = ImageCounts.load(args.a), ImageCounts.load(args.b)
    rows = compare_counts(one, two, args.draws, seed=args.seed)
    print(f"A {args.a}\nB {args.b}\n{len(one.images):,} images, {args.draws:,} draws\n")
    print(comparison_table(rows))
    if args.json:
        found = [dataclasses.asdict(row) for row in rows]
        record = {"a": args.a, "b": args.b, "draws": args.draws, "seed": args.seed}
        write_result({**record, "images": len(one.images), "scores": found}, args.json)
    return 0


if __name__ == "__main__":
    run_tool(main)
