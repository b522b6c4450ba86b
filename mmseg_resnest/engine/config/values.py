# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The values of ``--cfg-options``: MMEngine's notation, with quoted text and dictionaries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_CLOSES = {"(": ")", "[": "]", "{": "}"}
#: Behind which characters a quotation mark opens quoted text, by the bracket around it.
_BEFORE_QUOTES = {"": ",", "(": "(,", "[": "[,", "{": "{,:", "dict(": "(,="}
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPED = dict(zip("\\'\"abfnrtv0\n", ["\\", "'", '"', *"\a\b\f\n\r\t\v\0", ""], strict=True))
_CONSTANTS = {"None": None, "null": None, "true": True, "false": False}
_MAX_DEPTH = 50


def parse_value(text: str) -> Any:
    """Read a value; nothing is executed.

    ``1``, ``1e-3``, ``True`` or ``true``, ``None`` or ``null``; ``'text'`` or ``"text"`` with
    Python's escapes; ``[a, b]`` or ``a,b``, a list; ``(a, b)``, a tuple, also of one; ``{key: a}``
    or ``dict(key=a)``; each within each. Anything else is text without quotation marks, whose
    spaces are kept, but for those around it.

    Raises:
        ValueError: Brackets or quotation marks do not match, or an entry of a dictionary lacks its
            key; the message says what.
    """
    return _read(text, 0)


def _read(text: str, depth: int, outer: str = "") -> Any:
    """The value of ``text``, which may be a list without brackets; ``outer`` is as below."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"the brackets are nested more than {_MAX_DEPTH} deep")
    text = text.strip()
    outside = list(_outside(text, outer))
    kind = "dict(" if text.startswith("dict(") else text[:1]
    if outside == [*range(len(kind)), len(text) - 1]:  # it ends where what opens it is closed
        inner = text[len(kind) : -1]
        if kind == "[":
            return _items(inner, depth, kind)
        if kind == "(":
            return tuple(_items(inner, depth, kind))
        if kind in ("{", "dict("):
            return _dictionary(inner, depth, kind)
        if kind in ("'", '"'):
            return _ESCAPE.sub(_unescape, inner)
    if any(text[i] == "," for i in outside):
        return _items(text, depth, outer)
    if kind in ("'", '"'):
        raise ValueError(f"there is more behind the quoted text: {text}")
    return _scalar(text)


def _outside(text: str, outer: str) -> Iterator[int]:
    """Positions of the characters outside brackets and quoted text, and of those themselves.

    ``outer`` opens what ``text`` is the inside of.
    """
    opened: list[str] = []
    quotable, i = True, 0
    while i < len(text):
        char = text[i]
        if not opened:
            yield i
        if char in "'\"" and quotable:
            quoted = _QUOTED.match(text, i)
            if quoted is None:
                raise ValueError(f"the quotation mark is not closed in {text[i:]}")
            i = quoted.end() - 1
            if not opened:
                yield i
        elif char in _CLOSES:
            opened.append("dict(" if char == "(" and text.endswith("dict", 0, i) else char)
        elif char in ")]}":
            if not opened or _CLOSES[opened.pop()[-1]] != char:
                raise ValueError(f"{char} closes no bracket")
            if not opened:
                yield i
        around = opened[-1] if opened else outer
        quotable = char in _BEFORE_QUOTES[around] or (quotable and char.isspace())
        i += 1
    if opened:
        raise ValueError(f"{opened[-1]} is not closed")


def _pieces(text: str, outer: str) -> list[str]:
    """What stands between the commas of the inside of a bracket."""
    cuts = [i for i in _outside(text, outer) if text[i] == ","]
    starts, ends = [0, *(i + 1 for i in cuts)], [*cuts, len(text)]
    if not text[starts[-1] :].strip():  # nothing, or what follows the last comma
        starts.pop()
    return [text[a:b] for a, b in zip(starts, ends, strict=False)]


def _items(text: str, depth: int, outer: str) -> list[Any]:
    return [_read(piece, depth + 1, outer) for piece in _pieces(text, outer)]


def _dictionary(text: str, depth: int, outer: str) -> dict[Any, Any]:
    sign = "=" if outer == "dict(" else ":"
    entries: dict[Any, Any] = {}
    for piece in _pieces(text, outer):
        signs = [i for i in _outside(piece, outer) if piece[i] == sign]
        # As in YAML a colon with a space behind it comes first: {http://host: 1}.
        spaced = [i for i in signs if sign == ":" and piece[i + 1 : i + 2].isspace()]
        cut = next(iter(spaced or signs), 0)
        name = piece[:cut].strip()
        if not name:
            raise ValueError(f"an entry of a dictionary is KEY{sign}VALUE, not {piece.strip()!r}")
        key = name if sign == "=" else _read(name, depth + 1)
        if sign == "=" and not name.isidentifier():
            raise ValueError(f"{name!r} cannot be a key of dict(...); write {{{name!r}: ...}}")
        try:
            known = key in entries
        except TypeError as error:
            raise ValueError(f"{name} cannot be a key of a dictionary") from error
        if known:
            raise ValueError(f"the key {name} is there twice")
        entries[key] = _read(piece[cut + 1 :], depth + 1, outer)
    return entries


def _unescape(match: re.Match[str]) -> str:
    code = match[1]
    if len(code) > 1:
        number = int(code[1:], 16)
        return chr(number) if number <= 0x10FFFF else match[0]
    return _ESCAPED.get(code, match[0])  # as in Python, an unknown one stays as it is


def _scalar(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    word = text.lower() if text.lower() in ("true", "false") else text
    return _CONSTANTS.get(word, text)
