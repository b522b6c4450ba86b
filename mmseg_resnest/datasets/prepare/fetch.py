# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Downloading an archive."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import UserError
from ...weights import download as weights_download


def fetch(url: str, folder: Path, name: str, sha1: str | None = None) -> Path:
    """The file of an address in a folder, fetched when it is not there yet.

    Args:
        url: An http or https address.
        folder: Where to keep it.
        name: Its file name there.
        sha1: What it must hash to; None where no hash is published.

    Returns:
        The file.

    Raises:
        UserError: It cannot be fetched; says which file to get by hand.
    """
    target = folder / name
    if target.is_file():
        return target
    before = os.environ.get(weights_download.CACHE_VARIABLE)
    os.environ[weights_download.CACHE_VARIABLE] = str(folder)
    try:
        fetched = weights_download.download(url)
    finally:
        if before is None:
            del os.environ[weights_download.CACHE_VARIABLE]
        else:
            os.environ[weights_download.CACHE_VARIABLE] = before
    if fetched != target:
        try:
            fetched.replace(target)
        except OSError as error:
            raise UserError(f"{target}: cannot be written ({error.strerror})") from error
    return target
