# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Check a config's data before they cost a night: every file, as training loads it.

mmseg-resnest check-data CONFIG
mmseg-resnest check-data CONFIG --split train --json problems.json --fix-list fix.txt
mmseg-resnest check-data CONFIG --report data.html --ignore grey_image duplicate_image

Exit code: 0 clean, 1 problems, 2 could not run.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from .console import print_next
from .options import add_config_options, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--split",
        nargs="+",
        choices=["train", "val", "test"],
        help="splits to check (default: those that the config has)",
    )
    parser.add_argument("--json", metavar="FILE", help="write everything that was found here")
    parser.add_argument(
        "--fix-list", metavar="FILE", help="write rule, file and what to do here, one line each"
    )
    parser.add_argument(
        "--report",
        metavar="FILE.html",
        help="write a page with the problems, class frequencies, image sizes and labelled samples",
    )
    parser.add_argument(
        "--workers", type=whole(1), metavar="N", help="processes (default: one for each core)"
    )
    parser.add_argument(
        "--ignore",
        nargs="+",
        default=[],
        metavar="RULE",
        help="rules to leave out, by the names in the report",
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmseg_resnest.datasets.check import (
        check_data,
        print_report,
        write_fix_list,
        write_report,
    )
    from mmseg_resnest.engine.config import load_config, require_segmentation
    from mmseg_resnest.engine.preflight import check_output_file
    from mmseg_resnest.errors import UserError
    from mmseg_resnest.evaluation import overlay, write_result

    if args.report and Path(args.report).suffix.lower() not in (".html", ".htm"):
        raise UserError(
            "argument", f"--report {args.report}", "is written as HTML; end its name in .html"
        )

    cfg = load_config(args.config, args.cfg_options, args.data_root)
    require_segmentation(cfg, "check-data")
    for option in ("json", "fix_list", "report"):
        if (file := getattr(args, option)) is not None:
            check_output_file(file, f"--{option.replace('_', '-')}")
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
        print_next(f"mmseg-resnest train {shlex.quote(args.config)}{root}")
    elif not args.fix_list:
        print("--fix-list FILE writes every file with what to do")
    return 1 if report.problems else 0
