# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Write one self-contained HTML file about a run, or several beside each other.

    mmseg-resnest report work_dirs/fcn_resnest14_scenes --out report.html
    mmseg-resnest report RUN_A RUN_B RUN_C --out comparison.html

It works offline and on a phone, and is smaller than 10 MB. It holds what mmseg-resnest test wrote
into the run's folder: scores, the confusion matrix, example images.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "work_dirs",
        metavar="WORK_DIR",
        nargs="+",
        help="work folder of a run (or its test folder), or a checkpoint in it",
    )
    parser.add_argument("--out", metavar="FILE", default="report.html", help="default: report.html")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmseg_resnest.engine.hooks import print_header
    from mmseg_resnest.engine.logs import display_path
    from mmseg_resnest.engine.trained import evaluated_folder
    from mmseg_resnest.evaluation import write_report

    done = write_report([evaluated_folder(one) for one in args.work_dirs], args.out)
    rows = [
        ("report", f"{display_path(args.out)}, {done['bytes'] / 1e6:.1f} MB"),
        ("runs", ", ".join(done["runs"])),
        ("examples", str(done["examples"])),
        ("open", Path(args.out).resolve().as_uri()),
    ]
    print_header(rows)
    for folder in done["left_out"]:
        print(f"left out    {display_path(folder)}: it evaluates other weights than that run's")
    if not done["examples"]:
        print("for example images evaluate the run first: mmseg-resnest test CONFIG CHECKPOINT")
    return 0
