# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The config that a checkpoint holds: MMEngine's text of it, read as data.

The text looks like Python, and whoever made the file may have written anything. So it is never run:
only names with literal values are read, and what they may say is what a config in JSON may say.
"""

from __future__ import annotations

import ast
import io
import itertools
import tokenize
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...errors import UserError
from ...registry import building
from .check import check_config
from .data import MAX_BYTES, check_data_config
from .options import apply_options

#: Operators that literals have, and those of them that may stand behind a value.
_OPERATORS, _BEHIND_VALUES = frozenset("()[]{},:=-"), frozenset(")]},:=")


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
    """The values of ``name = literal`` lines; nothing is run.

    Literals are constants, lists, tuples, mappings, and ``dict()`` and ``float()`` as MMEngine
    writes them.
    """
    if len(text) > MAX_BYTES:
        message = f"its config is longer than {MAX_BYTES:,} characters"
        raise UserError("too-large", f"checkpoint {path}", message)
    try:
        _check_operators(text)
        return _pairs(map(_assignment, ast.parse(text).body), again=True)
    except (tokenize.TokenError, SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = str(error.args[0] if error.args else type(error).__name__)
        message = f"its config is not made of plain values alone ({reason:.200})"
        raise UserError("config-syntax", f"checkpoint {path}", message) from error


def _check_operators(text: str) -> None:
    """Refuse operators between values, calls of calls and the like, which nest without brackets."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    for before, token in itertools.pairwise(tokens):
        known = _OPERATORS
        if before.type == tokenize.NAME:
            known = _BEHIND_VALUES | {"("}
        elif before.type in (tokenize.NUMBER, tokenize.STRING) or before.string in (")", "]", "}"):
            known = _BEHIND_VALUES
        if token.type == tokenize.OP and token.string not in known:
            raise ValueError(f"line {token.start[0]}")


def _assignment(node: ast.stmt) -> tuple[str, Any]:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name, _value(value)
    raise ValueError(f"line {node.lineno}")


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return value
        case ast.Name(id="inf" | "nan" as name):  # as MMEngine writes it
            return float(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            number = _value(operand)
            if isinstance(number, int | float) and not isinstance(number, bool):
                return -number
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return _pairs((_value(key), _value(value)) for key, value in pairs if key is not None)
        case ast.Call(func=ast.Name(id="dict"), args=[ast.Dict() as mapping], keywords=[]):
            return _value(mapping)  # as MMEngine writes keys that are not names
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            return _pairs((keyword.arg, _value(keyword.value)) for keyword in keywords)
        case ast.Call(
            func=ast.Name(id="float"),
            args=[ast.Constant(value="inf" | "-inf" | "nan" as name)],
            keywords=[],
        ):
            return float(name)
    raise ValueError(f"line {node.lineno}")


def _pairs(pairs: Iterable[tuple[Any, Any]], again: bool = False) -> dict[Any, Any]:
    """A mapping; ValueError for a key that is not text or number, or twice without ``again``."""
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str | int):
            raise ValueError(f"a key is {key!r:.80}")
        if key in found and not again:
            raise ValueError(f"the key {key!r:.80} is twice")
        found[key] = value
    return found
