# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Print a script that completes the commands and their options in a shell.

    mmseg-resnest completion bash > ~/.local/share/bash-completion/completions/mmseg-resnest
    mmseg-resnest completion zsh > DIR/_mmseg-resnest
    mmseg-resnest completion tcsh | source /dev/stdin

For zsh, DIR is a folder of $fpath, set before compinit.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

_FOLDERS = re.compile(r"\b(DIR|FOLDER|WORK_DIRS?)\b")
_FILES = re.compile(r"\b(CONFIG|CHECKPOINT|FILE(\.\w+)?|INPUT|SOURCE|PATH|SRC|DST|BASE|OUT)\b")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"])


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    import shtab

    from .main import COMMANDS, PROGRAM, SCRIPTS, parser_of

    top = argparse.ArgumentParser(PROGRAM)
    top.add_argument("--version", action="store_true", help="print the version")
    commands = top.add_subparsers(dest="command")
    for name, about in COMMANDS.items():
        if name in SCRIPTS:
            parser = commands.add_parser(name, help=about)
            words: Any = parser.add_argument("arguments", nargs="*", help="see --help")
            words.complete = shtab.FILE
            continue
        commands.add_parser(name, help=about, add_help=False)
        parser = commands.choices[name] = parser_of(name)
        _complete_paths(parser, shtab)
    print(shtab.complete(top, args.shell))
    return 0


def _complete_paths(parser: argparse.ArgumentParser, shtab: Any) -> None:
    """Mark the arguments that are files and folders, as their names say."""
    for action in parser._actions:
        marked: Any = action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                _complete_paths(sub, shtab)
        elif action.choices is None and action.nargs != 0:
            metavar = action.metavar if isinstance(action.metavar, str) else ""
            name = f"{metavar} {action.dest}".upper()
            if _FOLDERS.search(name):
                marked.complete = shtab.DIRECTORY
            elif _FILES.search(name):
                marked.complete = shtab.FILE
