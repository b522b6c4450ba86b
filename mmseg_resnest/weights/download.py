# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Fetches a published file: resumed when it was cut off, checked against its hash, atomic.

Connections and redirects are requests', attempts and pauses urllib3's ``Retry``, the lock between
processes filelock's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import UserError, reason
from ..io.http import HttpError
from .archive import unpack
from .hashes import difference
from .transfer import forget, say, size_of, transfer
from .zip_directory import read_directory

CACHE_VARIABLE = "MMSEG_RESNEST_CACHE"
ELSEWHERE = f"set {CACHE_VARIABLE} to use another folder"
TIMEOUT_VARIABLE = "MMSEG_RESNEST_TIMEOUT"
#: An attempt that brings this much, bytes, makes up for the failures before it.
_PROGRESS = 1 << 20
_LONGEST_PAUSE = 60  # seconds
_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head")


@dataclass(frozen=True)
class Limits:
    """How long to try."""

    timeout: float = 30.0  # seconds for a connection, for an answer, and for the next bytes
    tries: int = 3  # for each address
    backoff: float = 1.0  # seconds of pause, doubled before each further attempt


class _WrongFile(HttpError):
    """What has arrived is not the wanted file."""


@dataclass(frozen=True)
class Wanted:
    """A file to fetch from one of ``urls``, tried in turn, to ``path``.

    A url that ends in .zip where ``path`` does not holds the file as its one member.
    """

    label: str  # what the user called it
    path: Path
    urls: tuple[str, ...]
    digest: str | None  # the first digits of its hash, or all
    algorithm: str | None  # None is SHA-256, SHA-1 or MD5
    elsewhere: str  # how to have it in another folder, for messages
    most: int | None = None  # bytes that it may have
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # of the requests

    def difference(self, file: Path) -> str | None:
        """How the file's hash differs from the one it must have, if one is known."""
        if self.digest is None:
            return None
        with file.open("rb") as stream:
            return difference(stream, self.digest, self.algorithm)

    def is_packed(self, url: str) -> bool:
        """Whether the file of an address holds the wanted one as its member."""
        return url.endswith(".zip") and self.path.suffix != ".zip"


def cache_folder() -> Path:
    """Where downloads are kept: ``$MMSEG_RESNEST_CACHE``, or ``~/.cache/mmseg_resnest``.

    Raises:
        UserError: This user has no home folder.
    """
    folder = os.environ.get(CACHE_VARIABLE)
    try:
        return Path(folder).expanduser() if folder else Path.home() / ".cache" / "mmseg_resnest"
    except RuntimeError:
        message = f"this user has none; set {CACHE_VARIABLE} to a folder for downloads"
        raise UserError("environment", "home folder", message) from None


def default_limits() -> Limits:
    """The limits that the environment sets; raises UserError if it is not a number."""
    text = os.environ.get(TIMEOUT_VARIABLE, "30")
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", text) or not float(text):
        raise UserError("environment", TIMEOUT_VARIABLE, f"{text!r} is not a number of seconds")
    return Limits(timeout=float(text))


def fetch(wanted: Wanted, limits: Limits | None = None) -> Path:
    """The wanted file, fetched if it is not there; see :func:`~mmseg_resnest.weights.download`."""
    limits = limits or default_limits()
    path = wanted.path
    try:
        if not path.is_file() or wanted.difference(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path):
                _get(wanted, limits)
        return path
    except OSError as error:
        place = error.filename or path.parent
        message = f"{place} cannot be written ({error.strerror or error}); {wanted.elsewhere}"
        raise UserError("not-writable", wanted.label, message) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process at a time; the others wait until it has the file or has given up."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that fetches {path.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _get(wanted: Wanted, limits: Limits) -> None:
    path, problems = wanted.path, []
    if path.is_file():
        wrong = wanted.difference(path)
        if wrong is None:
            return  # another process has fetched it
        problems.append(f"the file there is another one: {wrong}")
        say(f"{path}: {wrong}; fetching it again")
    names = [Path(urlsplit(url).path).name for url in wanted.urls]
    archives = [path.with_name(name) for name in names if wanted.is_packed(name)]
    for archive in filter(Path.is_file, archives):  # put there by hand
        try:
            return _place(wanted, archive, packed=True)
        except HttpError as error:
            problems.append(f"{archive}: {error}")
    for url, name in zip(wanted.urls, names, strict=True):
        try:
            return _fetch(wanted, url, path.with_name(f".{name}.part"), limits)
        except HttpError as error:
            problems.append(f"{urlsplit(url).netloc} {error}")
    either = f" (or {archives[0].name})" if archives else ""
    raise UserError(
        "download",
        wanted.label,
        f"cannot be fetched: {'; '.join(problems)}. Put the file {path.name}{either} into the "
        f"folder {path.parent} ({wanted.elsewhere}); it is at {' or '.join(wanted.urls)}",
    )


def _fetch(wanted: Wanted, url: str, part: Path, limits: Limits) -> None:
    """Bring the wanted file from one address to its place; raises HttpError."""
    from urllib3.exceptions import InvalidHeader, MaxRetryError
    from urllib3.util import Retry

    fresh = Retry(
        limits.tries - 1,
        backoff_factor=limits.backoff,
        backoff_max=_LONGEST_PAUSE,
        retry_after_max=_LONGEST_PAUSE,
    )
    retry = fresh
    while True:
        before = size_of(part)
        try:
            continued = transfer(
                url, part, limits.timeout, wanted.digest is not None, wanted.most, wanted.headers
            )
            _place(wanted, part, wanted.is_packed(part.stem))
            return forget(part)
        except _WrongFile:
            forget(part)
            if not continued:
                raise
            # the first half may have been of another file: once more from the beginning
        except HttpError as error:
            if not error.retryable:
                raise
            if size_of(part) >= before + _PROGRESS:
                retry = fresh
            try:
                retry = retry.increment(error=error)
            except MaxRetryError:
                raise error from None
            with contextlib.suppress(InvalidHeader):
                retry.sleep(error.answer.raw if error.answer is not None else None)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                forget(part)  # what little room there is belongs to others
            raise


def _place(wanted: Wanted, file: Path, packed: bool) -> None:
    """Check a file that is complete, and move it, or its one member, to its place."""
    temporary = wanted.path.with_name(f".{wanted.path.name}.unpacked") if packed else file
    try:
        with file.open("rb") as source:
            head = source.read(64).lstrip().lower()
            if not head or head.startswith(_PAGE):
                raise _WrongFile(f"sent {'a web page' if head else 'an empty file'}")
            if packed:
                with temporary.open("wb") as target:
                    unpack(source, read_directory(source, "the .zip"), "the .zip", target)
        if wrong := wanted.difference(temporary):
            raise _WrongFile(f"sent another file: {wrong}")
        with temporary.open("rb") as source:
            os.fsync(source.fileno())
        temporary.replace(wanted.path)
    except UserError as error:
        raise _WrongFile(f"sent an archive that cannot be used: {reason(error)}") from error
    finally:
        if packed:
            temporary.unlink(missing_ok=True)
