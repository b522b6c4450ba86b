# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The config that a checkpoint holds: MMEngine's text of it, read as data.

The text looks like Python, and whoever made the file may have written anything. So it is never run:
only names with literal values are read, and what they may say is what a config in JSON may say.
"""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from mmengine.config import Config

from ...errors import UserError
from ...registry import building
from .check import check_config
from .data import MAX_BYTES, MAX_DEPTH, check_data_config
from .options import apply_options

_CONSTANTS: dict[str, Any] = {
    "None": None,
    "True": True,
    "False": False,
    "inf": float("inf"),  # as MMEngine writes it
    "nan": float("nan"),
}
_SKIPPED = (tokenize.NL, tokenize.COMMENT, tokenize.ENCODING)


def read_saved_config(
    text: Any, path: Path, cfg_options: Mapping[str, Any], filename: str | None = None
) -> Config:
    """The config in a checkpoint, with changes applied, checked as any other.

    Args:
        text: What the checkpoint holds under ``meta.cfg``.
        path: The checkpoint, for messages.
        cfg_options: As :func:`.load_config` takes a mapping.
        filename: Of the config, which names what is written; None: that of the checkpoint.

    Raises:
        UserError: It is not the text of a config, names a part that a config in JSON may not name,
            or imports modules; says that the config file has to be named.
    """
    try:
        if not isinstance(text, str) or not text.strip():
            raise UserError("config-syntax", f"checkpoint {path}", "holds no config")
        values = parse_literals(text, path)
        check_data_config(path, values)
    except UserError as error:
        said = f"{error.message}; name the config file as well, in front of the checkpoint"
        raise UserError(error.code, error.subject, said) from error
    with building():
        cfg = Config(values, cfg_text=text, filename=filename or str(path))
        apply_options(cfg, cfg_options)
        check_config(cfg)
        return cfg


def parse_literals(text: str, path: Path) -> dict[str, Any]:
    """The values of ``name = literal`` lines; nothing is run, and the depth is bounded."""
    if len(text) > MAX_BYTES:
        message = f"its config is longer than {MAX_BYTES:,} characters"
        raise UserError("too-large", f"checkpoint {path}", message)
    return _Literals(text, path).read()


class _Literals:
    """Reads assignments of constants, lists, tuples, mappings and ``dict()`` of either form."""

    def __init__(self, text: str, path: Path) -> None:
        self._path = path
        self._at = 0
        try:
            tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        except (tokenize.TokenError, SyntaxError, ValueError) as error:
            self._refuse(str(error.args[0] if error.args else error))
        self._tokens = [token for token in tokens if token.type not in _SKIPPED]

    def read(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while self._next.type != tokenize.ENDMARKER:
            if self._next.type == tokenize.NEWLINE:
                self._take()
                continue
            key = self._name()
            self._expect("=")
            values[key] = self._value(0)
            if self._take().type not in (tokenize.NEWLINE, tokenize.ENDMARKER):
                self._refuse()
        return values

    @property
    def _next(self) -> tokenize.TokenInfo:
        return self._tokens[self._at]

    def _take(self) -> tokenize.TokenInfo:
        token = self._tokens[self._at]
        self._at = min(self._at + 1, len(self._tokens) - 1)
        return token

    def _refuse(self, why: str = "") -> NoReturn:
        line = "" if why else f" (line {self._tokens[max(self._at - 1, 0)].start[0]})"
        message = f"its config is not made of plain values alone{line or f' ({why:.200})'}"
        raise UserError("config-syntax", f"checkpoint {self._path}", message)

    def _expect(self, text: str) -> None:
        if self._take().string != text:
            self._refuse()

    def _name(self) -> str:
        token = self._take()
        if token.type != tokenize.NAME or keyword.iskeyword(token.string):
            self._refuse()
        return token.string

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            self._refuse(f"nested deeper than {MAX_DEPTH} levels")
        token = self._take()
        if token.type == tokenize.STRING:
            return self._string(token)
        if token.type == tokenize.NUMBER:
            return self._literal(token)
        if token.string == "-":
            number = self._value(depth + 1)
            if isinstance(number, bool) or not isinstance(number, int | float):
                self._refuse()
            return -number
        if token.string == "dict":
            return self._keywords(depth)
        if token.string == "float":
            self._expect("(")
            number = self._value(depth + 1)
            self._expect(")")
            if number not in ("inf", "-inf", "nan"):
                self._refuse()
            return float(number)
        if token.string in _CONSTANTS:
            return _CONSTANTS[token.string]
        if token.string == "{":
            return self._mapping(depth)
        if token.string in ("[", "("):
            return self._items("]" if token.string == "[" else ")", depth)
        self._refuse()

    def _literal(self, token: tokenize.TokenInfo) -> Any:
        try:
            value = ast.literal_eval(token.string)
        except (ValueError, SyntaxError, MemoryError):
            self._refuse()
        if not isinstance(value, str | int | float):
            self._refuse()
        return value

    def _string(self, token: tokenize.TokenInfo) -> str:
        parts = [self._literal(token)]
        while self._next.type == tokenize.STRING:  # one text over several lines
            parts.append(self._literal(self._take()))
        if not all(isinstance(part, str) for part in parts):
            self._refuse()
        return "".join(parts)

    def _keywords(self, depth: int) -> dict[Any, Any]:
        self._expect("(")
        if self._next.string == "{":  # as MMEngine writes keys that are not names
            self._take()
            mapping = self._mapping(depth)
            self._expect(")")
            return mapping
        found: dict[Any, Any] = {}
        while self._next.string != ")":
            key = self._name()
            self._expect("=")
            self._add(found, key, depth)
            self._separator(")")
        self._take()
        return found

    def _mapping(self, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        while self._next.string != "}":
            key = self._value(depth + 1)
            if not isinstance(key, str | int):
                self._refuse()
            self._expect(":")
            self._add(found, key, depth)
            self._separator("}")
        self._take()
        return found

    def _add(self, found: dict[Any, Any], key: Any, depth: int) -> None:
        if key in found:
            self._refuse(f"the key {key!r:.80} is twice")
        found[key] = self._value(depth + 1)

    def _items(self, end: str, depth: int) -> Any:
        found = []
        comma = False
        while self._next.string != end:
            found.append(self._value(depth + 1))
            comma = self._separator(end)
        self._take()
        if end == ")":
            return found[0] if len(found) == 1 and not comma else tuple(found)
        return found

    def _separator(self, end: str) -> bool:
        """Take a comma; without one the end must come."""
        if self._next.string == ",":
            self._take()
            return True
        if self._next.string != end:
            self._refuse()
        return False
