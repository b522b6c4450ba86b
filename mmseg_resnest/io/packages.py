# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Optional packages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UserError


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Imports packages that an extra installs; raises UserError if one is missing."""
    try:
        yield
    except ImportError as error:
        message = f"pip install 'mmseg-resnest[{extra}]'"
        raise UserError("missing-package", error.name or extra, message) from error
