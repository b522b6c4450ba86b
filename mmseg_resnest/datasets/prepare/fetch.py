# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Downloading an archive."""

from __future__ import annotations

from pathlib import Path

from ...weights import download_file
from .sources import Archive


def fetch(archive: Archive, folder: Path) -> Path:
    """An official file in a folder, fetched when it is not there yet, continued when it was cut.

    Args:
        archive: The file; it has an address.
        folder: Where to keep it.

    Returns:
        The file.

    Raises:
        UserError: It cannot be fetched; says which file to get by hand.
    """
    assert archive.url is not None
    algorithm = "sha1" if archive.sha1 else "md5"
    digest = archive.sha1 or archive.md5
    return download_file(
        archive.url, folder / archive.name, digest, algorithm, "--root names another"
    )
