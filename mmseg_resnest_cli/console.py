# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What several commands print."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["print_next", "print_table"]


def print_next(*commands: str) -> None:
    """Print what to run next, one command a line."""
    print("next")
    for command in commands:
        print(f"  {command}")
    sys.stdout.flush()


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text in aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip())
