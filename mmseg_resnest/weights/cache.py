# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Names and addresses of published files, and where their downloads are kept."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mmengine.hub

from ..errors import UserError
from .catalogue import Entry, catalogue, find
from .download import ELSEWHERE, Limits, Wanted, cache_folder, fetch
from .hashes import promised_digits
from .hub import SCHEME, WEIGHTS_FILE, hub_folder, hub_name, is_hub

#: MMEngine's schemes and its lists of the addresses that their names stand for.
_LISTS = {
    "open-mmlab": "openmmlab.json",
    "openmmlab": "openmmlab.json",
    "mmcls": "mmcls.json",
    "torchvision": "torchvision_0.12.json",
    "modelzoo": "torchvision_0.12.json",
}
_SCHEMES = (*(f"{scheme}://" for scheme in _LISTS), SCHEME)


def cache_path(entry: Entry) -> Path:
    """Where the file of a catalogue entry lies in the cache, if it is there."""
    return cache_folder() / entry.file


def verify(entry: Entry, path: Path | None = None) -> str | None:
    """How a file's hash differs from a catalogue entry's; None if it does not.

    ``path`` None is the entry's place in the cache. Raises UserError if it cannot be read.
    """
    path = path or cache_path(entry)
    try:
        return _wanted_entry(entry).difference(path)
    except OSError as error:
        message = f"cannot be read ({error.strerror or error})"
        raise UserError("unreadable", path, message) from error


def is_address(source: str | Path) -> bool:
    """Whether a checkpoint is named by an address: http, https, hf, one of OpenMMLab's schemes."""
    return str(source).startswith(("http://", "https://", *_SCHEMES))


def is_remote(source: str | Path) -> bool:
    """Whether a checkpoint is named by an address or a catalogue name; a file goes first."""
    text = str(source)
    return is_address(text) or (text in catalogue() and not os.path.isfile(text))


def check_remote(source: str) -> None:
    """Check an address or a catalogue name without fetching; raises UserError."""
    if is_hub(source):
        hub_name(source)
    else:
        _wanted(source)


def download(source: str, limits: Limits | None = None) -> Path:
    """The file of an address or a catalogue name in the cache, fetched if it is not there.

    A file that an earlier download or a person put there is used if its hash is right. A transfer
    that is cut off continues where it was. Of several processes one fetches, the others wait.

    Args:
        source: A name or an address of the catalogue, another http or https address, or
            ``open-mmlab://NAME``, ``mmcls://NAME``, ``torchvision://NAME``, or a published model
            of a hub (:mod:`.hub`).
        limits: None is the defaults and the time-out of ``MMSEG_RESNEST_TIMEOUT``, in seconds.

    Returns:
        The file's path: of a published .zip the checkpoint in it, unpacked.

    Raises:
        UserError: It cannot be fetched, has another hash, or cannot be written; says which file to
            put into which folder by hand.
    """
    if is_hub(source):
        return hub_folder(source, limits) / WEIGHTS_FILE
    return fetch(_wanted(source), limits)


def download_file(
    url: str,
    path: Path,
    digest: str | None = None,
    algorithm: str | None = None,
    elsewhere: str = "give another folder",
    limits: Limits | None = None,
) -> Path:
    """A published file other than a checkpoint, fetched like :func:`download` if it is not there.

    ``digest`` is the hash it must have, if known, ``algorithm`` a name of ``hashlib``;
    ``elsewhere`` says in errors how to have it in another folder. Returns ``path``.

    Raises:
        UserError: As :func:`download`.
    """
    return fetch(Wanted(url, path, (url,), digest, algorithm, elsewhere), limits)


@cache
def _hub(scheme: str) -> dict[str, str]:
    """MMEngine's own list of the addresses that a scheme's names stand for."""
    folder, file = Path(mmengine.hub.__file__).parent, _LISTS[scheme]
    if not (folder / file).is_file():
        raise UserError("not-found", f"{scheme}://", f"this MMEngine has no list of names ({file})")
    names = json.loads((folder / file).read_text(encoding="utf-8"))
    if file == "openmmlab.json":
        renamed = json.loads((folder / "deprecated.json").read_text(encoding="utf-8"))
        names.update({old: names[new] for old, new in renamed.items() if new in names})
    return {name: url for name, url in names.items() if url}


def _web_address(source: str) -> str:
    """The http address that ``open-mmlab://NAME`` and its like stand for."""
    if not source.startswith(_SCHEMES):
        return source
    scheme, _, name = source.partition("://")
    names = _hub(scheme)
    if name not in names:
        some = ", ".join(sorted(names)[:8])
        message = f"MMEngine's list for {scheme}:// does not have {name!r}; it has {some}, ..."
        raise UserError("not-found", f"checkpoint {source}", message)
    return names[name]


def _wanted_entry(entry: Entry) -> Wanted:
    label = f"checkpoint {entry.name}"
    return Wanted(label, cache_path(entry), entry.urls, entry.digest, entry.algorithm, ELSEWHERE)


def _wanted(source: str) -> Wanted:
    if not is_address(source):
        return _wanted_entry(find(source))
    url = _web_address(source)
    for entry in catalogue().values():
        if url in entry.urls:
            return _wanted_entry(entry)
    name = unquote(Path(urlsplit(url).path).name)
    if not name or "/" in name or "\0" in name or name.startswith("."):
        raise UserError("argument", f"checkpoint {source}", "the address does not end in a file")
    digits = promised_digits(name)
    folder = cache_folder()
    if digits is None:
        # two addresses may end in the same name without being the same file
        folder = folder / hashlib.sha256(url.encode()).hexdigest()[:16]
    return Wanted(f"checkpoint {source}", folder / name, (url,), digits, None, ELSEWHERE)
