# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""List the configs that come with the package, or copy them to a folder to build on.

    mmseg-resnest configs
    mmseg-resnest configs deeplabv3 ade20k       (those with all of these words in their name)
    mmseg-resnest configs --copy configs         (a folder to inherit from and to change)

Every tool takes a listed name where it asks for a config.
"""

from __future__ import annotations

import argparse

from .options import UsageError
from .package import copy_configs, list_configs, list_other_configs, near_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("words", nargs="*", metavar="WORD", help="list only names that hold these")
    parser.add_argument("--copy", metavar="DIR", help="copy all of them into this new folder")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    if args.copy is not None:
        if args.words:
            raise UsageError("--copy: copies all configs, because they inherit from one another")
        number = copy_configs(args.copy)
        print(f'{number} configs in {args.copy}; inherit from them with _base_ = "{args.copy}/..."')
        return 0
    every = [*list_configs(), *list_other_configs()]
    names = [name for name in every if all(word in name for word in args.words)]
    if not names:
        near = near_names(args.words, every)
        raise UsageError(f"no config has {' and '.join(args.words)} in its name{near}")
    print("\n".join(names))
    return 0
