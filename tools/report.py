# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Write one self-contained HTML file about a run, or several beside each other.

    python tools/report.py work_dirs/fcn_resnest14_scenes --out report.html
    python tools/report.py RUN_A RUN_B RUN_C --out comparison.html

It works offline and on a phone, and is smaller than 10 MB. What tools/test.py wrote into the run's
folder is in it: scores, the confusion matrix, example images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import _checkout  # noqa: F401

from mmseg_resnest.engine.cli import ArgumentParser, as_invoked, run_tool
from mmseg_resnest.engine.hooks import print_header
from mmseg_resnest.engine.logs import shown
from mmseg_resnest.evaluation import write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = ArgumentParser(prog="report.py", description=__doc__)
    parser.add_argument(
        "work_dirs", metavar="WORK_DIR", nargs="+", help="work folder of a run (or its test folder)"
    )
    parser.add_argument("--out", metavar="FILE", default="report.html", help="default: report.html")
    args = parser.parse_args(argv)
    done = write_report(args.work_dirs, args.out)
    rows = [
        ("report", f"{shown(args.out)}, {done['bytes'] / 1e6:.1f} MB"),
        ("runs", ", ".join(done["runs"])),
        ("examples", str(done["examples"])),
        ("open", Path(args.out).resolve().as_uri()),
    ]
    print_header(rows)
    if not done["examples"]:
        command = as_invoked("python tools/test.py CONFIG CHECKPOINT")
        print(f"for example images evaluate the run first: {command}")
    return 0


if __name__ == "__main__":
    run_tool(main)
