# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Published models on a Hugging Face hub by name: ``hf://OWNER/NAME``, ``hf://OWNER/NAME@REVISION``.

A revision is a branch, a tag or a commit; it is looked up once and becomes a commit, under which
the files are kept. Two files are fetched, ``config.json`` and ``model.safetensors``, both data,
and only if their SHA-256 is that of ``SHA256SUMS`` beside them; where a folder has no such list,
``config.json`` has the hash of the weights. Addresses are those of the hub's
own client (https://huggingface.co/docs/hub/api), which is not needed here.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from ..errors import UserError
from ..io.atomic import atomic_write
from ..io.http import HttpError, open_address, read_body, status_text
from ..io.json_files import parse_json, read_json
from ..io.text import printable
from .download import ELSEWHERE, Limits, Wanted, cache_folder, default_limits, fetch
from .hashes import hex_digests
from .transfer import BUSY

__all__ = [
    "CONFIG_FILE", "MAX_BYTES", "SCHEME", "SUMS_FILE", "WEIGHTS_FILE", "HubName", "endpoint",
    "hub_folder", "hub_name", "is_hub", "pinned", "sums_of",
]  # fmt: skip

SCHEME = "hf://"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
#: The SHA-256 of each file, as ``sha256sum`` writes and checks them.
SUMS_FILE = "SHA256SUMS"
#: The most bytes of each file. The weights: eight times the largest published model.
MAX_BYTES = {CONFIG_FILE: 4 << 20, WEIGHTS_FILE: 4 << 30, SUMS_FILE: 1 << 16}
_MAX_ANSWER = 16 << 20  # bytes of what the hub says of a revision
_PART = r"(?![^/@]*(?:--|\.\.))[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}"
_NAME = re.compile(rf"hf://(?:models/)?((?:{_PART})/(?:{_PART}))(?:@(\S+))?", re.ASCII)
_REVISION = re.compile(r"(?!.*(?:\.\.|//))[A-Za-z0-9_][A-Za-z0-9_./+-]{0,254}", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
_LOG_IN = "set HF_TOKEN to a token that may read it, or run: hf auth login"


@dataclass(frozen=True)
class HubName:
    """The name of a model on a hub."""

    repo: str  # OWNER/NAME
    revision: str = "main"

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}@{self.revision}"

    @property
    def folder(self) -> Path:
        """Where the files of a commit are kept."""
        return cache_folder() / "hub" / self.repo.replace("/", "--") / self.revision

    def address(self, file: str) -> str:
        """Of a file of a commit."""
        return f"{endpoint()}/{self.repo}/resolve/{self.revision}/{file}"


def is_hub(source: object) -> bool:
    """Whether a model is named as one of a hub."""
    return isinstance(source, str) and source.startswith(SCHEME)


def hub_name(source: str) -> HubName:
    """The parts of a name; UserError if it is not a name of a hub."""
    match = _NAME.fullmatch(source)
    revision = unquote(match[2]) if match and match[2] else "main"
    if match is None or not _REVISION.fullmatch(revision):
        message = "is not a name of a model on a hub: hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
        raise UserError("argument", printable(source)[:300], message)
    return HubName(match[1], revision)


def endpoint() -> str:
    """The address of the hub: ``$HF_ENDPOINT``, or https://huggingface.co."""
    address = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).netloc:
        raise UserError("environment", "HF_ENDPOINT", "is not an http or https address")
    return address


def pinned(source: str, limits: Limits | None = None) -> str:
    """A name with the commit that its revision is now, ``hf://OWNER/NAME@COMMIT``.

    A name that has a commit already needs no request; any other text is returned as it is.

    Raises:
        UserError: There is no such model or revision, it is private, or the hub cannot be reached.
    """
    if not is_hub(source):
        return source
    name = hub_name(source)
    if _COMMIT.fullmatch(name.revision):
        return str(name)
    revision = quote(name.revision, safe="")
    address = f"{endpoint()}/api/models/{name.repo}/revision/{revision}"
    answer = _get(address, source, name, _MAX_ANSWER, limits)
    about = parse_json(answer or b"{}", f"answer for {source}")
    commit = about.get("sha") if isinstance(about, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        host = urlsplit(address).netloc
        raise UserError("download", source, f"{host} does not say which commit that is")
    return str(HubName(name.repo, commit))


def hub_folder(source: str, limits: Limits | None = None) -> Path:
    """The folder in the cache with config and weights of a model, fetched if they are not there.

    Raises:
        UserError: As :func:`pinned` and :func:`.download`; or it is no folder that
            ``mmseg-resnest publish-model`` wrote, or a file is not the one it lists.
    """
    name = hub_name(pinned(source, limits))
    folder, sums = name.folder, name.folder / SUMS_FILE
    known = sums.is_file()
    data = sums.read_bytes() if known else _sums(source, name, limits)
    listed = _read_sums(data, source)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        path, url = folder / file, name.address(file)
        if _offline() and not path.is_file():
            raise _unreachable(source, name, "HF_HUB_OFFLINE is set")
        fetch(
            Wanted(
                *(source, path, (url,), listed[file], "sha256", ELSEWHERE),
                most=MAX_BYTES[file],
                headers=_headers(),
            ),
            limits,
        )
        if file == CONFIG_FILE:  # before what may be a long download
            about = read_json(path, f"{source}: {file}", MAX_BYTES[file])
            if not isinstance(about, dict) or about.get("sha256") != listed[WEIGHTS_FILE]:
                raise _foreign(source, name, f"its {CONFIG_FILE} is not of its {WEIGHTS_FILE}")
    if not known:  # last: the folder is complete
        try:
            atomic_write(sums, data)
        except OSError as error:
            said = f"cannot be written ({error.strerror or error})"
            raise UserError("not-writable", sums, said) from error
    return folder


def _sums(source: str, name: HubName, limits: Limits | None) -> bytes:
    """The list of a commit; made from its config if it has none."""
    data = _get(name.address(SUMS_FILE), source, name, MAX_BYTES[SUMS_FILE], limits)
    if data is not None:
        return data
    config = _get(name.address(CONFIG_FILE), source, name, MAX_BYTES[CONFIG_FILE], limits)
    if config is None:
        raise _foreign(source, name, f"it has no {CONFIG_FILE}")
    about = parse_json(config, f"{source}: {CONFIG_FILE}")
    digest = about.get("sha256") if isinstance(about, dict) else None
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise _foreign(source, name, f"its {CONFIG_FILE} has no sha256 of {WEIGHTS_FILE}")
    own = hashlib.sha256(config).hexdigest()
    return f"{own}  {CONFIG_FILE}\n{digest}  {WEIGHTS_FILE}\n".encode()


def sums_of(folder: Path, names: Iterable[str]) -> str:
    """What :data:`SUMS_FILE` of a folder holds for files in it."""
    lines = []
    for name in sorted(names):
        with open(folder / name, "rb") as file:
            lines.append(f"{hex_digests(file, 'sha256')[0]}  {name}\n")
    return "".join(lines)


def _read_sums(data: bytes, source: str) -> dict[str, str]:
    """The SHA-256 of each file that a list has."""
    found: dict[str, str] = {}
    subject = f"{source}: {SUMS_FILE}"
    for line in data.decode("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            said = f"is not a list of SHA-256 sums: {printable(line)[:80]!r}"
            raise UserError("format", subject, said)
        if not _FILE.fullmatch(match[2]):
            said = f"names a file outside of its folder: {printable(match[2])[:80]!r}"
            raise UserError("unsafe-path", subject, said)
        if found.setdefault(match[2], match[1]) != match[1]:
            raise UserError("format", subject, f"lists {match[2]} twice")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in found:
            raise UserError("format", subject, f"does not list {name}")
    return found


def _get(
    address: str, source: str, name: HubName, most: int, limits: Limits | None = None
) -> bytes | None:
    """The body of a small answer of the hub; None where a commit lacks a file."""
    limits = limits or default_limits()
    if _offline():
        raise _unreachable(source, name, "HF_HUB_OFFLINE is set")
    tried = 0
    while True:
        tried += 1
        try:
            with open_address(address, limits.timeout, _headers()) as answer:
                if not answer.ok:
                    again = answer.status_code in BUSY
                    raise HttpError(f"answers {status_text(answer)}", again, answer)
                return b"".join(read_body(answer, limits.timeout, most))
        except HttpError as error:
            if _lacks(error):
                return None
            if not error.retryable or tried >= limits.tries:
                raise _explained(error, source, name) from error
            time.sleep(limits.backoff * 2 ** (tried - 1))


def _lacks(error: HttpError) -> bool:
    """Whether there is the commit, but not the file."""
    if error.answer is None or error.answer.status_code != 404:
        return False
    kind = error.answer.headers.get("X-Error-Code")
    return kind == "EntryNotFound" or (kind is None and "/resolve/" in error.answer.url)


def _explained(error: HttpError, source: str, name: HubName) -> UserError:
    """What a refusal of the hub means."""
    answer, host = error.answer, urlsplit(endpoint()).netloc
    if answer is None:
        return _unreachable(source, name, f"{host} {error}")
    kind, status = answer.headers.get("X-Error-Code", ""), answer.status_code
    if kind == "RevisionNotFound":
        message = (
            f"{host} has this model, but not the revision {name.revision}; give a branch, a "
            "tag or a commit of it"
        )
        return UserError("not-found", source, message)
    if kind == "GatedRepo":
        message = f"{host} asks to accept the conditions of this model first, at "
        message += f"{endpoint()}/{name.repo}; then {_LOG_IN}"
        return UserError("download", source, message)
    if status in (401, 403):
        message = (
            f"{host} {error}: there is no such model, or it is private; check the name, and "
            f"{_LOG_IN}"
        )
        return UserError("download", source, message)
    if status == 404:
        message = (
            f"{host} has no such model or revision; check the name; a private one needs a "
            f"token: {_LOG_IN}"
        )
        return UserError("not-found", source, message)
    return UserError("download", source, f"{host} {error}; try again later")


def _foreign(source: str, name: HubName, why: str) -> UserError:
    message = f"holds no model that mmseg-resnest publish-model wrote: {why}; weights of others "
    message += f"load by the address of their file, {name.address('FILE')}"
    return UserError("format", source, message)


def _unreachable(source: str, name: HubName, why: str) -> UserError:
    """Without a network: what of the model is in the cache."""
    folder = name.folder.parent
    there = [path.parent for path in folder.glob(f"*/{SUMS_FILE}")]
    if there:
        newest = max(there, key=lambda path: path.stat().st_mtime).name
        advice = f"give the commit that is in the cache: {HubName(name.repo, newest)}"
    else:
        advice = f"run mmseg-resnest weights fetch {source} where there is one, and copy the "
        advice += f"folder {folder} from its cache ({ELSEWHERE})"
    return UserError("download", source, f"{why}; without a network {advice}")


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _headers() -> dict[str, str]:
    """The token of this user, where the hub's own client looks for it."""
    home = os.environ.get("HF_HOME") or Path(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        file = Path(os.environ.get("HF_TOKEN_PATH") or Path(home, "token"))
        try:
            token = file.expanduser().read_text(encoding="utf-8").strip()
        except (OSError, ValueError, RuntimeError):  # the last: this user has no home folder
            return {}
    if not re.fullmatch(r"[!-~]*", token):
        raise UserError("environment", "HF_TOKEN", "is not a token: it holds other characters")
    return {"Authorization": f"Bearer {token}"} if token else {}
