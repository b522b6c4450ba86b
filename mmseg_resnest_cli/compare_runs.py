# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Compare two evaluated runs class by class, with the significance of the difference.

mmseg-resnest compare-runs work_dirs/my_run work_dirs/my_run-2     (evaluated before)
mmseg-resnest test CONFIG A.pth --work-dir a
mmseg-resnest test CONFIG B.pth --work-dir b
mmseg-resnest compare-runs a b --json difference.json

Paired bootstrap over the images; * marks differences that are significant at 5 % (of the classes
after Holm's correction for their number). Scores of other metrics stand side by side.
"""

from __future__ import annotations

import argparse
import dataclasses

from .options import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "a",
        help="a run that was evaluated: its work folder, a checkpoint in it, the work folder of "
        "mmseg-resnest test, or the images.npz in that",
    )
    parser.add_argument("b", help="the other one")
    parser.add_argument(
        "--draws", type=whole(100, 1_000_000), default=2000, help="bootstrap draws (default: 2000)"
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="of the draws (default: 0)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers here")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmseg_resnest.engine.trained import evaluated_folder
    from mmseg_resnest.errors import UserError
    from mmseg_resnest.evaluation import (
        ImageCounts,
        compare_counts,
        comparison_table,
        other_scores_of,
        scores_table,
        write_result,
    )

    places = [
        path if path.endswith(".npz") else evaluated_folder(path) for path in (args.a, args.b)
    ]
    tables, rows, images = [], [], None
    try:
        one, two = map(ImageCounts.load, places)
        rows, images = compare_counts(one, two, args.draws, seed=args.seed), len(one.images)
        tables.append(f"{images:,} images, {args.draws:,} draws\n\n{comparison_table(rows)}")
    except UserError as error:
        others = [other_scores_of(path, counted=False) for path in places]
        if error.code != "not-found" or not others[0].keys() & others[1].keys():
            raise
    else:
        others = [other_scores_of(path, counted=True) for path in places]
    if others[0].keys() & others[1].keys():  # nothing is known of their spread over the images
        tables.append(scores_table(*others))
    print(f"A {args.a}\nB {args.b}\n" + "\n\n".join(tables))
    if args.json:
        found = [dataclasses.asdict(row) for row in rows]
        record = {"a": args.a, "b": args.b, "draws": args.draws, "seed": args.seed}
        record.update(
            images=images, scores=found, other_scores=dict(zip("ab", others, strict=True))
        )
        write_result(record, args.json)
    return 0
