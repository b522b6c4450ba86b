# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""List the configs that come with the package, or copy them to a folder to build on.

    python tools/configs.py
    python tools/configs.py deeplabv3 ade20k       (those with all of these words in their name)
    python tools/configs.py --copy configs         (a folder to inherit from and to change)

Every tool takes a listed name where it asks for a config.
"""

from __future__ import annotations

from collections.abc import Sequence

import _checkout  # noqa: F401

from mmseg_resnest.engine.cli import ArgumentParser, run_tool
from mmseg_resnest.engine.config import copy_configs, list_configs
from mmseg_resnest.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = ArgumentParser(prog="configs.py", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", help="list only names that hold these")
    parser.add_argument("--copy", metavar="DIR", help="copy all of them into this new folder")
    args = parser.parse_args(argv)

    if args.copy is not None:
        if args.words:
            raise UserError("--copy: copies all configs, because they inherit from one another")
        number = copy_configs(args.copy)
        print(f'{number} configs in {args.copy}; inherit from them with _base_ = "{args.copy}/..."')
        return 0
    names = [name for name in list_configs() if all(word in name for word in args.words)]
    if not names:
        raise UserError(f"no config has {' and '.join(args.words)} in its name")
    print("\n".join(names))
    return 0


if __name__ == "__main__":
    run_tool(main)
