# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Optional packages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UserError

__all__ = ["needs_extra"]


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """The context in which optional packages are imported.

    Args:
        extra: The extra of this package that installs them.

    Raises:
        UserError: One is not installed; says what to install.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(
            "missing-package", error.name or extra, f"pip install 'mmseg-resnest[{extra}]'"
        ) from error
