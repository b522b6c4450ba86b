# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Print what a config became: everything it inherits, filled in and checked.

    python tools/print_config.py configs/fcn_resnest50_ade20k.py
    python tools/print_config.py my_experiment.py --diff configs/fcn_resnest50_ade20k.py
    python tools/print_config.py CONFIG --cfg-options optim_wrapper.optimizer.lr=0.02

The output without --diff is a config itself: redirect it to a .py file to keep it.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence

import _checkout  # noqa: F401
from pygments import highlight
from pygments.formatters import TerminalFormatter
from pygments.lexers import DiffLexer, PythonLexer

from mmseg_resnest.engine.cli import ArgumentParser, add_config_options, run_tool
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.config_text import config_as_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = ArgumentParser(prog="print_config.py", description=__doc__)
    parser.add_argument("config", help="config file")
    add_config_options(parser)
    parser.add_argument(
        "--diff",
        metavar="BASE",
        help="print only what differs from this config (as it is, without --cfg-options)",
    )
    args = parser.parse_args(argv)

    text = config_as_text(load_config(args.config, args.cfg_options, args.data_root))
    lexer = PythonLexer()
    if args.diff is not None:
        base = config_as_text(load_config(args.diff, data_root=args.data_root))
        lines = difflib.unified_diff(
            base.splitlines(), text.splitlines(), args.diff, args.config, lineterm=""
        )
        text, lexer = "\n".join(lines), DiffLexer()
        if not text:
            print(f"no difference from {args.diff}", file=sys.stderr)
            return 0
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        text = highlight(text, lexer, TerminalFormatter())
    print(text.rstrip("\n"))
    return 0


if __name__ == "__main__":
    run_tool(main)
