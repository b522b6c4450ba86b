# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Asking a web server for a file; whatever it answers, memory and time stay bounded."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from ..errors import UserError
from ..version import __version__

if TYPE_CHECKING:  # imported when something is fetched: most runs fetch nothing
    import requests

MAX_REDIRECTS = 10
_CHUNK = 1 << 16
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: A transfer that brings less than this, bytes a second, over a whole time-out has stalled.
_MIN_SPEED = 1024


class HttpError(Exception):
    """A server cannot be reached, or its answer is not accepted.

    The message completes "the server ..."; ``retryable``: another attempt may succeed.
    """

    def __init__(
        self, message: str, retryable: bool = False, answer: requests.Response | None = None
    ) -> None:
        super().__init__(message)
        self.retryable, self.answer = retryable, answer


@contextlib.contextmanager
def open_address(
    address: str,
    timeout: float,
    headers: Mapping[str, str] | None = None,
    may_be_encoded: bool = False,
) -> Iterator[requests.Response]:
    """A server's answer, of which only the header has been read; the body: :func:`read_body`.

    The server is asked not to compress the body. A compressed answer is refused: a few bytes of it
    could unpack to any number.

    Args:
        address: http or https.
        timeout: Seconds to wait for a connection, and for the next bytes.
        headers: More headers of the request; ``Authorization`` is not sent on to another host.
        may_be_encoded: Accept an answer labelled as compressed, and do not unpack it: some servers
            label ``.tgz`` files so.

    Raises:
        HttpError: It cannot be reached, does not answer, redirects without end or to something
            other than http and https, or compresses.
    """
    import requests

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> str | None:
            return None  # requests would first read, and unpack, the body of the redirect

    fields = {
        "Accept-Encoding": "identity",
        "User-Agent": f"mmseg-resnest/{__version__}",
        **(headers or {}),
    }
    with Session() as session, contextlib.ExitStack() as stack:
        for _ in range(MAX_REDIRECTS + 1):
            if urlsplit(address).scheme.lower() not in ("http", "https"):
                raise HttpError("redirects to an address that is neither http nor https")
            try:
                answer = session.get(
                    address, headers=fields, stream=True, timeout=timeout, allow_redirects=False
                )
            except requests.exceptions.Timeout as error:
                raise HttpError(f"does not answer within {timeout:g} s", True) from error
            except (requests.exceptions.RequestException, ValueError) as error:
                retryable = (
                    isinstance(error, requests.exceptions.ConnectionError)
                    and not isinstance(error, requests.exceptions.SSLError)
                    and "NameResolutionError" not in repr(error)
                )
                raise HttpError(f"cannot be reached ({_reason(error)})", retryable) from error
            stack.enter_context(answer)
            if answer.status_code not in _REDIRECTS or "Location" not in answer.headers:
                break
            target = urljoin(address, answer.headers["Location"])
            if urlsplit(target)[:2] != urlsplit(address)[:2]:
                fields.pop("Authorization", None)
            address = target
        else:
            raise HttpError(f"redirects more than {MAX_REDIRECTS} times")
        encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
        if answer.ok and encoding not in ("", "identity") and not may_be_encoded:
            raise HttpError(f"compresses the file ({_clean(encoding, 20)}), unasked")
        yield answer


def announced_size(answer: requests.Response) -> int | None:
    """Size of the body in bytes as the header says it; None without a usable one."""
    text = answer.headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"\d{1,18}", text) else None


def read_body(answer: requests.Response, timeout: float, max_bytes: int) -> Iterator[bytes]:
    """The body of an answer of :func:`open_address` in pieces, as they arrive.

    Raises HttpError if the transfer ends early, brings less than 1 KiB a second over ``timeout``
    seconds, or is larger than ``max_bytes``.
    """
    import urllib3

    large = HttpError(f"sends more than {max_bytes >> 20:,} MiB")
    if (announced_size(answer) or 0) > max_bytes:
        raise large
    total, start, received = 0, time.monotonic(), 0
    raw: Any = answer.raw
    while True:
        try:
            # read1: read would wait for a full chunk, however slowly it comes
            data = raw.read1(_CHUNK, decode_content=False)
        except urllib3.exceptions.TimeoutError as error:
            raise HttpError(f"sends nothing for {timeout:g} s", True) from error
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            message = f"ends the transfer early, after {total:,} bytes ({_reason(error)})"
            raise HttpError(message, True) from error
        if not data:
            return
        total += len(data)
        if total > max_bytes:
            raise large
        yield data
        received += len(data)
        if (now := time.monotonic()) - start >= timeout:
            if received < _MIN_SPEED * timeout:
                raise HttpError(f"sends less than {_MIN_SPEED} bytes a second", True)
            start, received = now, 0


def fetch_bytes(address: str, subject: str, max_bytes: int, timeout: float, most: float) -> bytes:
    """All of what lies at an http or https address; UserError if it cannot be fetched.

    ``timeout`` is in seconds for a connection and for the next bytes, ``most`` for all of it.
    """
    end = time.monotonic() + most
    data = bytearray()
    try:
        with open_address(address, timeout) as answer:
            if not answer.ok:
                raise HttpError(f"answers {status_text(answer)}")
            for piece in read_body(answer, timeout, max_bytes):
                data += piece
                if time.monotonic() > end:
                    raise HttpError(f"takes longer than {most:g} s")
    except HttpError as error:
        advice = "check the address, or fetch it to a file and give its path"
        raise UserError("download", subject, f"the server {error}; {advice}") from error
    size = announced_size(answer)
    if size is not None and size != len(data):
        raise UserError("download", subject, f"cut off after {len(data)} of {size} bytes; retry")
    return bytes(data)


def status_text(answer: requests.Response) -> str:
    """The status of an answer, for messages: the server's text without control characters."""
    return f"{answer.status_code} {_clean(answer.reason or '', 80)}".strip()


def _clean(text: str | bytes, most: int) -> str:
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    return "".join(c for c in text[:most] if c.isprintable())


def _reason(error: BaseException) -> str:
    """The innermost cause of an error of the network, in a few words."""
    while True:
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = re.sub(r"^<?[\w.]+\(.*?\)>?: |^HTTPS?ConnectionPool\(.*?\): ", "", str(error))
    return _clean(text, 200)
