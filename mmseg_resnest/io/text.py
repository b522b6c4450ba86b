# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Text of users on its way to a terminal, a table or a picture."""

from __future__ import annotations

import os


def error_words(error: Exception, most: int = 300) -> str:
    """The kind of an error of another package, and at most so many characters of what it says."""
    return f"{type(error).__name__}: {printable(' '.join(str(error).split()))[:most]}"


def printable(text: str | os.PathLike[str]) -> str:
    r"""A text on one line, which UTF-8 can encode.

    Line breaks, control characters and lone surrogates are written as ``\n``, ``\x1b``, ``\udc80``.
    """
    encodable = os.fspath(text).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in encodable)


def gigabytes(count: float) -> str:
    """E.g. ``3.4 GB``, or ``340 MB``."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
