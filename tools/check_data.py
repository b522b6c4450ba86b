# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Check a config's data before they cost a night: every file, as training loads it.

python tools/check_data.py CONFIG
python tools/check_data.py CONFIG --split train --json problems.json --fix-list mend.txt
python tools/check_data.py CONFIG --report data.html --ignore grey_image duplicate_image

Exit code: 0 clean, 1 problems, 2 could not run.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import _checkout  # noqa: F401

from mmseg_resnest.datasets.check import (
    KINDS,
    check_data,
    print_report,
    write_fix_list,
    write_report,
)
from mmseg_resnest.engine.cli import ArgumentParser, add_config_options, print_next, run_tool
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.errors import UserError
from mmseg_resnest.evaluation import overlay, write_result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = ArgumentParser(prog="check_data.py", description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--split",
        nargs="+",
        choices=["train", "val", "test"],
        help="splits to check (default: those that the config has)",
    )
    parser.add_argument("--json", metavar="FILE", help="write everything that was found here")
    parser.add_argument(
        "--fix-list", metavar="FILE", help="write kind, file and what to do here, one line each"
    )
    parser.add_argument(
        "--report",
        metavar="FILE.html",
        help="write a page with the problems, class frequencies, image sizes and labelled samples",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one for each core)"
    )
    parser.add_argument(
        "--ignore",
        nargs="+",
        default=[],
        metavar="KIND",
        help=f"kinds of problems to leave out; kinds: {', '.join(KINDS)}",
    )
    add_config_options(parser)
    args = parser.parse_args(argv)
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: must be at least 1")
    if args.report and Path(args.report).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--report {args.report}: is written as HTML; let its name end in .html")

    cfg = load_config(args.config, args.cfg_options, args.data_root)
    report = check_data(cfg, args.split, args.workers, ignore=args.ignore)
    print_report(report)
    if args.json:
        write_result({"config": args.config, **report.as_dict()}, args.json)
    if args.fix_list:
        write_fix_list(report, args.fix_list)
    if args.report:
        write_report(report, args.report, Path(args.config).stem, overlay)
    for what, file in (("JSON", args.json), ("list", args.fix_list), ("page", args.report)):
        if file:
            print(f"{what:<5} {file}")
    if not report.problems:
        root = f" --data-root {shlex.quote(args.data_root)}" if args.data_root else ""
        print_next(f"python tools/train.py {shlex.quote(args.config)}{root}")
    elif not args.fix_list:
        print("--fix-list FILE writes every file with what to do")
    return 1 if report.problems else 0


if __name__ == "__main__":
    run_tool(main)
