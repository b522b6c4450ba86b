# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The image in a form (multipart/form-data, RFC 7578), in memory, as the body was."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message

from ..work import Refused

__all__ = ["FIELD", "image_in"]

#: The field that holds the image.
FIELD = "image"
_MOST_PARTS = 16
_MOST_HEADER = 4096  # bytes of a part's header


def image_in(body: bytes, content_type: str, encoding: str = "") -> bytes:
    """The image file in a request's body: its field ``image`` where that is a form, or all of it.

    Raises:
        Refused: 400: the body is compressed or empty, or a form that is damaged or does not hold
            one image and nothing else.
    """
    if encoding.strip().lower() not in ("", "identity"):
        raise Refused(400, "the body is compressed; send the file of the image as it is")
    if not body:
        raise Refused(400, "the body is empty; send the file of an image in it")
    header = _header("content-type", content_type)
    if header.get_content_type() != "multipart/form-data":
        return body
    boundary = header.get_param("boundary", header="content-type")
    if not isinstance(boundary, str) or not 1 <= len(boundary) <= 70 or not boundary.isascii():
        raise Refused(400, "the content type of the form has no boundary")
    found: tuple[int, int] | None = None
    others = []
    for name, start, end in _parts(body, b"--" + boundary.encode()):
        if name != FIELD:
            others.append(name)
        elif found is not None:
            raise Refused(400, f"the form holds several images; send one {FIELD} a request")
        elif end > start:  # a file that was not chosen is sent empty
            found = start, end
    if others:
        said = (
            f"the form has the field {others[0]!r:.60}; it takes {FIELD} alone, and options "
            "belong into the query, ?output=areas"
        )
        raise Refused(400, said)
    if found is None:
        raise Refused(400, f"the form holds no image; send it as the field {FIELD}")
    return body[found[0] : found[1]]


def _header(name: str, value: str) -> Message:
    message = Message()
    message[name] = value.replace("\r", " ").replace("\n", " ")
    return message


def _parts(body: bytes, delimiter: bytes) -> Iterator[tuple[str, int, int]]:
    """The name of each field, and where its content begins and ends."""
    cut = Refused(400, "the form is damaged or cut short")
    position = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    if position == 1:
        raise cut
    for _ in range(_MOST_PARTS + 1):
        position += len(delimiter)
        if body.startswith(b"--", position):
            return
        head = body.find(b"\r\n", position, position + _MOST_HEADER) + 2
        start = body.find(b"\r\n\r\n", head - 2, head + _MOST_HEADER) + 4
        end = body.find(b"\r\n" + delimiter, max(start - 2, 0))
        if head == 1 or body[position : head - 2].strip(b" \t") or start == 3 or end < 0:
            raise cut
        name = None
        for line in body[head : start - 4].decode("utf-8", "replace").split("\r\n"):
            key, _, value = line.partition(":")
            key = key.strip().lower()
            if key == "content-disposition":
                name = _header(key, value.strip()).get_param("name", header=key)
            elif key == "content-transfer-encoding" and value.strip().lower() not in (
                *("7bit", "8bit", "binary"),
            ):
                raise Refused(400, "the form encodes its content; send the bytes of the file")
        if not isinstance(name, str):
            raise Refused(400, "a part of the form has no name")
        yield name, start, end
        position = end + 2
    raise Refused(400, f"the form has more than {_MOST_PARTS} parts")
