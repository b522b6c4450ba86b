# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Fetches published files once into one folder, whole and checked, or not at all.

Connections, redirects and proxies are requests', the lock between processes is filelock's, the
progress bar tqdm's. What joins them stands here, because no library for it does what published
weights need: pooch starts again from the beginning when a transfer is cut off, and compares whole
hashes of the file that is sent, where most of the published ones are 8 digits or those of a .zip's
member; huggingface_hub forgets the part that it has when the process ends, and does not notice
that a file has changed meanwhile; fsspec's caches continue nothing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote, urlsplit

import mmengine.hub
from filelock import FileLock, Timeout
from tqdm import tqdm

from ..errors import UserError, reason
from ..io.http import UnusableAnswerError, open_address, short_reason, status_text
from .archive import unpack
from .catalogue import Entry, catalogue, find
from .hashes import difference, promised_digits
from .zip_directory import read_directory

if TYPE_CHECKING:  # imported when something is fetched: most runs fetch nothing
    import requests

CACHE_VARIABLE = "MMSEG_RESNEST_CACHE"
TIMEOUT_VARIABLE = "MMSEG_RESNEST_TIMEOUT"

_CHUNK = 1 << 16
#: A transfer that brings less than this, bytes a second, over a whole time-out hangs.
_LEAST_SPEED = 1024
#: An attempt that brings this much, bytes, is not counted as a failed one.
_PROGRESS = 1 << 20
#: The largest file that is fetched, bytes; data sets have 20 GB.
_MAX_BYTES = 64 << 30
#: Files that a server may say are compressed, for they are.
_PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zip")
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_PAUSE = 60.0
_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head")
_SCHEMES = ("open-mmlab://", "openmmlab://", "mmcls://", "torchvision://", "modelzoo://")


@dataclass(frozen=True)
class Limits:
    """How long to try.

    Attributes:
        timeout: Seconds to wait for a connection, for an answer, and for the next bytes.
        tries: Attempts for each address; one that timed out counts twice.
        backoff: Seconds before the second attempt, doubled before each further one.
        patience: Seconds to wait for another process that fetches the file and gets nowhere.
    """

    timeout: float = 30.0
    tries: int = 4
    backoff: float = 1.0
    patience: float = 600.0


class _Transient(Exception):
    """An attempt failed in a way that another one may not."""

    def __init__(self, reason: str, cost: int = 1, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.cost = cost
        self.pause = pause


class _Unusable(Exception):
    """An address does not have what is wanted."""


@dataclass(frozen=True)
class _Wanted:
    """A file to have in the cache.

    Attributes:
        label: What the user called it.
        path: Where it goes.
        urls: Where it is, tried in turn. One that ends in .zip where ``path`` does not holds it
            as its one member.
        digest: The first digits of its hash, or all; None if nobody says.
        algorithm: Of the hash; None is SHA-256 or SHA-1.
        elsewhere: How to have it in another folder.
    """

    label: str
    path: Path
    urls: tuple[str, ...]
    digest: str | None
    algorithm: str | None
    elsewhere: str = f"{CACHE_VARIABLE} names another"

    def difference(self, file: Path) -> str | None:
        """How the file's hash differs from the one it must have, if one is known."""
        if self.digest is None:
            return None
        with file.open("rb") as stream:
            return difference(stream, self.digest, self.algorithm)

    def is_packed(self, name: str) -> bool:
        """Whether a file of this name holds the wanted one as its member."""
        return name.endswith(".zip") and self.path.suffix != ".zip"


# --- names and places -----------------------------------------------------------------------


def cache_folder() -> Path:
    """Where downloads are kept: ``$MMSEG_RESNEST_CACHE``, or ``~/.cache/mmseg_resnest``."""
    folder = os.environ.get(CACHE_VARIABLE)
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "mmseg_resnest"


def cache_path(entry: Entry) -> Path:
    """Where the file of a catalogue entry lies in the cache, if it is there."""
    return cache_folder() / entry.file


def verify(entry: Entry, path: Path | None = None) -> str | None:
    """How a file differs from what a catalogue entry says; None if it is that file, whole.

    Args:
        entry: The entry.
        path: The file; None is the entry's place in the cache.

    Raises:
        UserError: The file cannot be read.
    """
    path = cache_path(entry) if path is None else path
    try:
        return _wanted_entry(entry).difference(path)
    except OSError as error:
        raise UserError("unreadable", path, f"cannot be read: {error.strerror or error}") from error


def is_address(source: str | Path) -> bool:
    """Whether a checkpoint is named by an address: http, https, or one of OpenMMLab's schemes."""
    return str(source).startswith(("http://", "https://", *_SCHEMES))


@cache
def _hub(scheme: str) -> dict[str, str]:
    """MMEngine's own list of the addresses that a scheme's names stand for."""
    file = {"openmmlab": "openmmlab.json", "mmcls": "mmcls.json"}.get(
        scheme, "torchvision_0.12.json"
    )
    folder = Path(mmengine.hub.__file__).parent
    if not (folder / file).is_file():
        raise UserError("checkpoint", scheme, f"//: this MMEngine has no list of names ({file})")
    names = json.loads((folder / file).read_text(encoding="utf-8"))
    if scheme == "openmmlab":
        renamed = json.loads((folder / "deprecated.json").read_text(encoding="utf-8"))
        names.update({old: names[new] for old, new in renamed.items() if new in names})
    return {name: url for name, url in names.items() if url}


def _web_address(source: str) -> str:
    """The http address that ``open-mmlab://NAME`` and its like stand for.

    Raises:
        UserError: The scheme has no such name.
    """
    if not source.startswith(_SCHEMES):
        return source
    scheme, _, name = source.partition("://")
    names = _hub(scheme.replace("open-mmlab", "openmmlab"))
    if name not in names:
        raise UserError(
            "checkpoint",
            f"checkpoint {source!r}",
            f"MMEngine's list for {scheme}:// has no {name!r}; it has "
            f"{', '.join(sorted(names)[:8])}, ...",
        )
    return names[name]


def _wanted_entry(entry: Entry) -> _Wanted:
    return _Wanted(
        f"checkpoint {entry.name}", cache_path(entry), entry.urls, entry.digest, entry.algorithm
    )


def _wanted_address(source: str) -> _Wanted:
    url = _web_address(source)
    for entry in catalogue().values():
        if url in entry.urls:
            return _wanted_entry(entry)
    name = unquote(Path(urlsplit(url).path).name)
    if not name or name in (".", "..") or "/" in name or "\0" in name or name.startswith("."):
        raise UserError("checkpoint", f"checkpoint {source!r}", "the address has no file name")
    digits = promised_digits(name)
    folder = cache_folder()
    if digits is None:
        # two addresses may end in the same name without being the same file
        folder = folder / hashlib.sha256(url.encode()).hexdigest()[:16]
    return _Wanted(f"checkpoint {source}", folder / name, (url,), digits, None)


def is_remote(source: str | Path) -> bool:
    """Whether a checkpoint is named by an address or a catalogue name.

    A file that exists goes before a name.
    """
    text = str(source)
    return is_address(text) or (text in catalogue() and not os.path.isfile(text))


def check_remote(source: str) -> None:
    """Check an address, or a catalogue name, without fetching anything.

    Raises:
        UserError: It has no file name, or there is no such name.
    """
    if is_address(source):
        _wanted_address(source)
    else:
        find(source)


# --- fetching -------------------------------------------------------------------------------


def download(source: str, limits: Limits | None = None) -> Path:
    """The file of an address or a catalogue name in the cache, fetched if it is not there.

    What is there, put there by an earlier download or by hand, is used if its hash is right. A
    transfer that is cut off continues where it was, now or in a later run. Of several processes
    that want the file one fetches it and the others wait.

    Args:
        source: A name of the catalogue, or an http or https address, or ``open-mmlab://NAME``,
            ``mmcls://NAME``, ``torchvision://NAME``. An address of the catalogue stands for its
            entry: it has the entry's hash and its other addresses.
        limits: How long to try; None is the defaults, with the time-out that the environment
            variable ``MMSEG_RESNEST_TIMEOUT`` names.

    Returns:
        The file's path: of a published .zip the checkpoint in it, unpacked.

    Raises:
        UserError: It cannot be fetched, is not what its hash says, or cannot be written; says
            which file to put into which folder by hand.
    """
    wanted = _wanted_address(source) if is_address(source) else _wanted_entry(find(source))
    return _fetched(wanted, limits)


def download_file(
    url: str,
    path: Path,
    digest: str | None = None,
    algorithm: str | None = None,
    elsewhere: str = "give another",
    limits: Limits | None = None,
) -> Path:
    """A published file that is no checkpoint, fetched to a place of its own if it is not there.

    Like :func:`download`: hash, continued transfers, one process at a time.

    Args:
        url: An http or https address.
        path: Where it goes.
        digest: What it must hash to; None where nobody says.
        algorithm: Of the hash, a name of ``hashlib``.
        elsewhere: What the message says about having it in another folder.
        limits: How long to try, as for :func:`download`.

    Returns:
        ``path``.

    Raises:
        UserError: As :func:`download`.
    """
    return _fetched(_Wanted(url, path, (url,), digest, algorithm, elsewhere), limits)


def _fetched(wanted: _Wanted, limits: Limits | None) -> Path:
    limits = limits or _default_limits()
    try:
        return _get(wanted, limits)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            "unreadable",
            wanted.label,
            f"{error.filename or wanted.path.parent} cannot be read or written "
            f"({reason}); {wanted.elsewhere} folder for downloads",
        ) from error


def _default_limits() -> Limits:
    text = os.environ.get(TIMEOUT_VARIABLE)
    if not text:
        return Limits()
    try:
        timeout = float(text)
        if not 0 < timeout < 1e6:
            raise ValueError
    except ValueError as error:
        raise UserError(
            "checkpoint", "", f"{TIMEOUT_VARIABLE}={text!r} is not a number of seconds"
        ) from error
    return Limits(timeout=timeout)


def _get(wanted: _Wanted, limits: Limits) -> Path:
    path = wanted.path
    wrong = wanted.difference(path) if path.is_file() else "not there"
    if wrong is None:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(wanted, limits):
        wrong = wanted.difference(path) if path.is_file() else None
        if path.is_file() and wrong is None:
            return path  # another process has fetched it
        problems = []
        if wrong:
            problems.append(f"the file there is another one: {wrong}")
            _say(f"{path}: {wrong}; fetching it again")
        for url in wanted.urls:
            by_hand = path.parent / Path(urlsplit(url).path).name
            if wanted.is_packed(by_hand.name) and by_hand.is_file():
                try:
                    _place_member(wanted, by_hand)
                    return path
                except (_Unusable, UserError) as error:
                    problems.append(reason(error).replace("sent", f"{by_hand.name} there is", 1))
        for url in wanted.urls:
            try:
                _fetch(wanted, url, limits)
                return path
            except _Unusable as error:
                problems.append(f"{urlsplit(url).netloc} {error}")
    packed = [Path(urlsplit(u).path).name for u in wanted.urls if wanted.is_packed(u)]
    names = f"{path.name} (or {packed[0]})" if packed else path.name
    where = "" if len(wanted.urls) == 1 and wanted.urls[0] in wanted.label else "; it is at "
    raise UserError(
        "checkpoint",
        wanted.label,
        f"cannot be fetched: {'; '.join(problems)}. Put the file {names} into the "
        f"folder {path.parent} ({wanted.elsewhere})"
        f"{where}{' or '.join(wanted.urls) if where else ''}",
    )


@contextlib.contextmanager
def _locked(wanted: _Wanted, limits: Limits) -> Iterator[None]:
    """Held by one process at a time; gives up when the one that has it gets nowhere."""
    folder, name = wanted.path.parent, wanted.path.name
    lock = FileLock(folder / f".{name}.lock")
    last: Any = None
    since, told = time.monotonic(), False
    while True:
        try:
            lock.acquire(timeout=min(1.0, limits.patience))
            break
        except Timeout:
            now = time.monotonic()
            seen = [(p.name, s.st_size, s.st_mtime) for p, s in _parts(folder)]
            if seen != last:
                last, since = seen, now
            if not told:
                _say(f"waiting for another process that fetches {name}")
                told = True
            if now - since >= limits.patience:
                raise UserError(
                    "checkpoint",
                    wanted.label,
                    f"another process has been fetching {name} into {folder} and "
                    f"got nowhere for {limits.patience:g} s; end it, or put the file there by hand",
                ) from None
    try:
        yield
    finally:
        lock.release()


def _parts(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for part in sorted(folder.glob(".*.part")):
        with contextlib.suppress(OSError):
            yield part, part.stat()


def _fetch(wanted: _Wanted, url: str, limits: Limits) -> None:
    """Brings the wanted file from one address to its place.

    Raises:
        _Unusable: That address does not give it.
    """
    part = wanted.path.parent / f".{Path(urlsplit(url).path).name}.part"
    failures = most = 0
    while True:
        try:
            continued = _transfer(wanted, url, part, limits)
        except _Transient as error:
            size = part.stat().st_size if part.exists() else 0
            failures = error.cost if size >= most + _PROGRESS else failures + error.cost
            most = max(most, size)
            if failures >= limits.tries:
                raise _Unusable(str(error)) from error
            pause = max(limits.backoff * 2 ** (failures - 1), error.pause)
            time.sleep(min(pause, _LONGEST_PAUSE))
            continue
        except OSError as error:
            _give_room_back(error, part)
            raise
        try:
            _settle(wanted, part, Path(urlsplit(url).path).name)
        except _Unusable:
            _forget(part)
            if not continued:
                raise
            # the first half may have been of another file: once more from the beginning
        except OSError as error:
            _give_room_back(error, part)
            raise
        else:
            _forget(part)
            return


def _give_room_back(error: OSError, part: Path) -> None:
    """On a full disk what little room there is belongs to others."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        _forget(part)


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_suffix(".json").unlink(missing_ok=True)


def _settle(wanted: _Wanted, part: Path, name: str) -> None:
    """Checks a file that has arrived and moves it, or its member, to its place."""
    with part.open("rb") as file:
        head = file.read(64).lstrip().lower()
        if head.startswith(_PAGE):
            raise _Unusable("sent a web page, not a checkpoint")
        if not head:
            raise _Unusable("sent an empty file")
        os.fsync(file.fileno())
    if wanted.is_packed(name):
        _place_member(wanted, part)
        return
    wrong = wanted.difference(part)
    if wrong:
        raise _Unusable(f"sent another file: {wrong}")
    part.replace(wanted.path)


def _place_member(wanted: _Wanted, packed: Path) -> None:
    """Unpacks the checkpoint in a .zip to its place, if its hash is right."""
    temporary = wanted.path.parent / f".{wanted.path.name}.unpacked"
    try:
        with packed.open("rb") as file, temporary.open("w+b") as target:
            try:
                unpack(file, read_directory(file, "the .zip"), "the .zip", target)
            except UserError as error:
                raise _Unusable(f"sent an archive that is of no use: {error.text}") from error
            target.flush()
            os.fsync(target.fileno())
        wrong = wanted.difference(temporary)
        if wrong:
            raise _Unusable(f"sent an archive with another file: {wrong}")
        temporary.replace(wanted.path)
    finally:
        temporary.unlink(missing_ok=True)


# --- one transfer ---------------------------------------------------------------------------


def _read_notes(part: Path, url: str) -> dict[str, Any]:
    """What was noted about a partial file, if it is of this address."""
    try:
        notes = json.loads(part.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) and notes.get("url") == url else {}


def _transfer(wanted: _Wanted, url: str, part: Path, limits: Limits) -> bool:
    """Brings the file of an address into ``part``, from where that ends.

    Returns:
        Whether it continued a part that was there.

    Raises:
        _Transient: It was cut off, hangs, or the server is busy; what came is kept.
        _Unusable: The server refuses, or sends something else.
        OSError: The part cannot be written.
    """
    notes = _read_notes(part, url)
    have = part.stat().st_size if notes and part.exists() else 0
    if not (notes.get("validator") or wanted.digest):
        have = 0  # nothing could tell that the two halves belong together
    headers = {}
    if have:
        headers["Range"] = f"bytes={have}-"
        if notes.get("validator"):
            headers["If-Range"] = notes["validator"]
    with _ask(url, headers, limits) as answer:
        status = answer.status_code
        if status == 416 and have:
            if notes.get("size") == have:
                return True  # it was whole; the process ended before it was checked
            _forget(part)
            raise _Transient("no longer has the rest of the file")
        if status in _PASSING:
            raise _Transient(f"answers {status_text(answer)}", pause=_retry_after(answer))
        if status != 200 and not (status == 206 and have):
            raise _Unusable(f"answers {status_text(answer)}")
        if "html" in answer.headers.get("Content-Type", "").lower():
            raise _Unusable("sent a web page, not a checkpoint")
        total = _total_size(answer, have)
        if (total or 0) > _MAX_BYTES:
            raise _Unusable(f"announces more than {_MAX_BYTES >> 30} GiB")
        if status == 206 and (total is None or notes.get("size") not in (None, total)):
            _forget(part)
            raise _Transient("has changed the file meanwhile")
        if status == 200:
            have = 0
        _check_room(part.parent, (total or 0) - have)
        if not have:
            _forget(part)
            _note(part, url, answer, total)
        bar = _bar(wanted.path.name, urlsplit(url).netloc, total, have)
        with part.open("ab") as file, bar:
            _copy(answer.raw, file, bar, limits)
        size = part.stat().st_size
        if total is not None and size != total:
            if size > total:
                _forget(part)
            raise _Transient(_cut_off(size, total))
    return have > 0


@contextlib.contextmanager
def _ask(url: str, headers: dict[str, str], limits: Limits) -> Iterator[requests.Response]:
    import requests

    packed = urlsplit(url).path.lower().endswith(_PACKED)
    with contextlib.ExitStack() as stack:
        try:
            answer = stack.enter_context(open_address(url, limits.timeout, headers, packed))
        except UnusableAnswerError as error:
            raise _Unusable(str(error)) from error
        except requests.exceptions.Timeout as error:
            raise _Transient(f"does not answer within {limits.timeout:g} s", cost=2) from error
        except requests.exceptions.ConnectionError as error:
            reason = f"cannot be reached ({short_reason(error)})"
            if "NameResolutionError" in repr(error) or isinstance(
                error, requests.exceptions.SSLError
            ):
                raise _Unusable(reason) from error
            raise _Transient(reason) from error
        except (requests.exceptions.RequestException, ValueError) as error:
            raise _Unusable(f"cannot be asked ({short_reason(error)})") from error
        yield answer


def _retry_after(answer: requests.Response) -> float:
    text = answer.headers.get("Retry-After", "")
    return float(text) if re.fullmatch(r"\d{1,4}", text) else 0.0


def _total_size(answer: requests.Response, have: int) -> int | None:
    """Size of the whole file, bytes; None where the server does not say, or says nonsense."""
    if answer.status_code == 206:
        pattern = r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})"
        match = re.fullmatch(pattern, answer.headers.get("Content-Range", "").strip())
        return int(match[2]) if match and int(match[1]) == have else None
    text = answer.headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"\d{1,18}", text) else None


def _note(part: Path, url: str, answer: requests.Response, size: int | None) -> None:
    """Writes down what continuing the part will need."""
    tag = answer.headers.get("ETag", "")
    validator = tag if tag.startswith('"') else answer.headers.get("Last-Modified")
    notes = {"url": url, "size": size, "validator": validator}
    part.with_suffix(".json").write_text(json.dumps(notes), encoding="utf-8")


def _check_room(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if need > free:
        raise OSError(
            errno.ENOSPC, f"{need / 1e6:.0f} MB are needed, {free / 1e6:.0f} free", str(folder)
        )


def _bar(name: str, host: str, total: int | None, have: int) -> tqdm:
    bar = tqdm(
        desc=name,
        total=total,
        initial=have,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=None,
        leave=False,
    )
    if bar.disable:  # no terminal: one line
        size = f" ({total / 1e6:.1f} MB{', the rest' if have else ''})" if total else ""
        _say(f"fetching {name}{size} from {host}")
    return bar


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _cut_off(size: int, total: int | None) -> str:
    return f"cut off after {size} {f'of {total} ' if total else ''}bytes"


def _copy(source: Any, target: BinaryIO, bar: tqdm, limits: Limits) -> None:
    """Copies what a server sends; what arrived before an error is in the target."""
    import urllib3

    window, received = time.monotonic(), 0
    while True:
        try:
            # read1: read would wait for a full chunk, however slowly it comes
            data = source.read1(_CHUNK, decode_content=False)
        except urllib3.exceptions.TimeoutError as error:
            raise _Transient(f"sends nothing for {limits.timeout:g} s", cost=2) from error
        except urllib3.exceptions.ProtocolError as error:
            raise _Transient(_cut_off(target.tell(), bar.total)) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _Transient(f"cut off ({short_reason(error)})") from error
        if not data:
            return
        if target.tell() + len(data) > _MAX_BYTES:
            raise _Unusable(f"sends more than {_MAX_BYTES >> 30} GiB")
        target.write(data)
        bar.update(len(data))
        received += len(data)
        now = time.monotonic()
        if now - window >= limits.timeout:
            if received < _LEAST_SPEED * limits.timeout:
                raise _Transient(
                    f"sends less than {_LEAST_SPEED} bytes a second, {limits.timeout:g} s long",
                    cost=2,
                )
            window, received = now, 0
