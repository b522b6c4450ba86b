# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Fetches published files once into one folder."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mmengine.dist import barrier, get_local_rank
from torch.hub import download_url_to_file

from ..errors import UserError

CACHE_VARIABLE = "MMSEG_RESNEST_CACHE"


def cache_folder() -> Path:
    """Where downloads are kept: ``$MMSEG_RESNEST_CACHE``, or ``~/.cache/mmseg_resnest``."""
    folder = os.environ.get(CACHE_VARIABLE)
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "mmseg_resnest"


def is_address(name_or_path: str | Path) -> bool:
    """Whether a checkpoint is named by an http or https address."""
    return str(name_or_path).startswith(("http://", "https://"))


def download(url: str) -> Path:
    """The file of ``url`` in the cache folder, fetched when it is not there yet.

    It is written beside its place and renamed when it is whole. On several processes of a
    machine the first one fetches and the others wait.

    Args:
        url: An http or https address.

    Returns:
        The file's path.

    Raises:
        UserError: The address has no file name, or it cannot be fetched; says which file to put
            into which folder by hand.
    """
    name = unquote(Path(urlsplit(url).path).name)
    if not name:
        raise UserError(f"checkpoint {url!r}: the address has no file name")
    file = cache_folder() / name
    error: Exception | None = None
    if not file.is_file() and get_local_rank() == 0:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            download_url_to_file(url, str(file))
        except Exception as reason:  # the network has many ways to fail, all with one remedy
            error = reason
    barrier()
    if not file.is_file():
        raise UserError(
            f"checkpoint {url}: cannot be fetched ({error or 'see the first process'}); put the "
            f"file {name} into the folder {file.parent} ({CACHE_VARIABLE} names another)"
        ) from error
    return file
