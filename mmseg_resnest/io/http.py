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

__all__ = ["UnusableAnswerError", "fetch_bytes", "open_address", "short_reason", "status_text"]

#: How often a server may send on to another address.
MAX_REDIRECTS = 10
_CHUNK = 1 << 16
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class UnusableAnswerError(Exception):
    """A server answers in a way that is not accepted; the message completes "the server ..."."""


@contextlib.contextmanager
def open_address(
    address: str,
    timeout: float,
    headers: Mapping[str, str] | None = None,
    may_be_encoded: bool = False,
) -> Iterator[requests.Response]:
    """A server's answer, of which no more than the header has been read.

    The body is to be read as it is sent (``answer.raw.read1(..., decode_content=False)``): the
    server is asked not to compress it, and an answer that is compressed nevertheless is refused,
    for a few bytes of it could unpack to any number.

    Args:
        address: http or https.
        timeout: Seconds to wait for a connection, and for the next bytes.
        headers: More headers of the request.
        may_be_encoded: Take an answer that says it is compressed, for a file that is itself a
            compressed one: some servers label ``.tgz`` files so. It is not unpacked.

    Raises:
        UnusableAnswerError: It redirects without end or to something other than http and https,
            or compresses.
        requests.exceptions.RequestException: It cannot be reached, or does not answer.
        ValueError: The address is none.
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
                raise UnusableAnswerError("redirects to an address that is neither http nor https")
            answer = session.get(
                address, headers=fields, stream=True, timeout=timeout, allow_redirects=False
            )
            if answer.status_code not in _REDIRECTS or "Location" not in answer.headers:
                break
            answer.close()
            address = urljoin(address, answer.headers["Location"])
        else:
            raise UnusableAnswerError(f"redirects more than {MAX_REDIRECTS} times")
        stack.enter_context(answer)
        encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
        if answer.ok and encoding not in ("", "identity") and not may_be_encoded:
            raise UnusableAnswerError(
                f"sends it compressed ({_printable(encoding, 20)}), although it was asked not to"
            )
        yield answer


def fetch_bytes(address: str, subject: str, max_bytes: int, timeout: float, most: float) -> bytes:
    """What lies at an address, whole, in memory.

    Args:
        address: http or https.
        subject: What to call it in errors, such as ``image https://...``.
        max_bytes: The most that is taken.
        timeout: Seconds to wait for a connection, and for the next bytes.
        most: Seconds that all of it may take.

    Raises:
        UserError: It cannot be fetched, or is larger or slower than that.
    """
    import requests
    import urllib3

    too_large = UserError(
        "too-large",
        subject,
        f"has more than {max_bytes >> 20} MiB; fetch it to a file and name that",
    )
    end = time.monotonic() + most
    data = bytearray()
    try:
        with open_address(address, timeout) as answer:
            if not answer.ok:
                raise UserError("download", subject, f"the server answers {status_text(answer)}")
            length = answer.headers.get("Content-Length", "")
            if re.fullmatch(r"\d{1,18}", length) and int(length) > max_bytes:
                raise too_large
            raw: Any = answer.raw
            while part := raw.read1(_CHUNK, decode_content=False):
                data += part
                if len(data) > max_bytes:
                    raise too_large
                if time.monotonic() > end:
                    raise UserError(
                        "download",
                        subject,
                        f"takes longer than {most:g} s; fetch it to a file and name that",
                    )
    except UnusableAnswerError as error:
        raise UserError("download", subject, f"the server {error}") from error
    except (
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        OSError,
        ValueError,
    ) as error:
        raise UserError(
            "download", subject, f"cannot be fetched ({short_reason(error)})"
        ) from error
    if re.fullmatch(r"\d{1,18}", length) and int(length) != len(data):
        raise UserError(
            "corrupt", subject, f"cut off after {len(data)} of {length} bytes; try again"
        )
    return bytes(data)


def status_text(answer: requests.Response) -> str:
    """The status of an answer, for messages: the server's text without control characters."""
    return f"{answer.status_code} {_printable(answer.reason or '', 80)}".strip()


def _printable(text: str | bytes, most: int) -> str:
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    return "".join(c for c in text[:most] if c.isprintable())


def short_reason(error: BaseException) -> str:
    """The innermost cause of an error of the network, in a few words."""
    while True:
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    if len(error.args) > 1 and isinstance(error.args[1], BaseException):
        return f"{error.args[0]}: {short_reason(error.args[1])}"
    text = re.sub(r"^<?[\w.]+\(.*?\)>?: |^HTTPS?ConnectionPool\(.*?\): ", "", str(error))
    return _printable(text, 200)
