# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Remedies that messages name: which there are, and the errors that name them."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from user_errors import printed_error

from mmseg_resnest.errors import UserError

ROOT = Path(__file__).parents[1]
Assignment = ast.Assign | ast.AugAssign
PACKAGES = ("mmseg_resnest", "mmseg_resnest_cli")

_VERBS = (
    "add|allow|ask|build|call|change|check|choose|compare|complete|continue|convert|copy|"
    "correct|define|delete|do|download|drop|empty|end|evaluate|export|fetch|fix|get|give|inherit|"
    "install|keep|label|leave|load|lower|make|map|mount|move|name|open|pack|pass|pip install|put|"
    "raise|reduce|remove|rename|repeat|replace|run|save|say|set|share|shorten|start|take|test|"
    "train|trust|try|unpack|use|wait|write"
)  # fmt: skip
#: A message that tells somebody to do something; "must be at least 1" states a limit.
ADVICE = re.compile(
    rf"(?:^|[;.:,] |\(|\b(?:or|and) )(?:(?:first|then|or) )?(?:{_VERBS})\b"
    r"|(?<![\w-])--[a-z]|did you mean",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Site:
    """A place in the code that makes a UserError.

    Attributes:
        where: ``FILE:FUNCTION``; the file below ``mmseg_resnest``, or as ``cli/FILE``.
        line: Its line.
        text: The message, as far as it is written there; ``{}`` is what is put into it.
    """

    where: str
    line: int
    text: str


@cache
def sites() -> tuple[Site, ...]:
    """All places that make a UserError."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += _Sites(path.relative_to(ROOT).as_posix(), tree).found
    return tuple(found)


@cache
def advice() -> tuple[Site, ...]:
    """The places whose message tells what to do."""
    return tuple(site for site in sites() if ADVICE.search(site.text))


class _Sites(ast.NodeVisitor):
    """Finds the places of one file."""

    def __init__(self, file: str, tree: ast.Module) -> None:
        self.found: list[Site] = []
        self._file = file
        self._scopes: list[tuple[str, ast.AST]] = [("", tree)]
        self._assignments: dict[ast.AST, list[tuple[str, Assignment]]] = {}
        self.visit(tree)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._scopes.append((node.name, node))
        self.generic_visit(node)
        self._scopes.pop()

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id == "UserError":
            message = next((k.value for k in node.keywords if k.arg == "message"), node.args[-1])
            where = f"{_short(self._file)}:{self._scopes[-1][0]}"
            self.found.append(Site(where, node.lineno, self._text(message, node.lineno)))
        self.generic_visit(node)

    def _text(self, node: ast.expr | None, line: int, depth: int = 0) -> str:
        """What is written of a text."""

        def text(part: ast.expr | None) -> str:
            return self._text(part, line, depth)

        def of_name(name: str) -> str:
            given = self._assigned(name, line)
            if given is None:
                return "{}"
            before = of_name_above(name, given) if isinstance(given, ast.AugAssign) else ""
            return before + self._text(given.value, given.lineno, depth + 1)

        def of_name_above(name: str, given: ast.AugAssign) -> str:
            return self._text(ast.Name(id=name), given.lineno, depth + 1)

        match node:
            case ast.Constant(value=str(value)):
                return value
            case ast.JoinedStr(values=parts):
                return "".join(map(text, parts))
            case ast.FormattedValue(value=value):
                return text(value)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return text(left) + text(right)
            case ast.IfExp(body=body, orelse=other):
                return f"{text(body)}{text(other)}"
            case ast.Name(id=name) if depth < 4:
                return of_name(name)
        return "{}"

    def _assigned(self, name: str, line: int) -> Assignment | None:
        """The assignment of a name that is nearest above a line, or anywhere in the module."""
        for _, scope in reversed(self._scopes):
            if scope not in self._assignments:
                self._assignments[scope] = [*_assignments(scope)]
            found = [one for key, one in self._assignments[scope] if key == name]
            above = [one for one in found if one.lineno < line]
            if above:
                return max(above, key=lambda one: one.lineno)
        return None


def _assignments(scope: ast.AST) -> Iterator[tuple[str, Assignment]]:
    for node in ast.walk(scope):
        if isinstance(node, Assignment):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((one.id, node) for one in targets if isinstance(one, ast.Name))


def _short(file: str) -> str:
    package, _, rest = file.partition("/")
    return rest if package == "mmseg_resnest" else f"cli/{rest}"


@contextmanager
def _origins() -> Iterator[list[tuple[UserError, str]]]:
    """The errors that are made meanwhile, and where."""
    made: list[tuple[UserError, str]] = []
    init = UserError.__init__

    def note(error: UserError, *parts: Any) -> None:
        init(error, *parts)
        made.append((error, _where(sys._getframe(1).f_code)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UserError, "__init__", note)
        yield made


def _where(code: CodeType) -> str:
    for package in PACKAGES:
        _, found, rest = code.co_filename.rpartition(f"/{package}/")
        if found:
            return f"{_short(f'{package}/{rest}')}:{code.co_name}"
    return code.co_filename


@contextmanager
def advises(where: str, *words: str) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """What is called in it fails with an error that is made there and names the remedy.

    Args:
        where: As :attr:`Site.where`.
        *words: What the message names: options, keys, commands; text, for :func:`remedied`.
    """
    with _origins() as made, pytest.raises(UserError) as caught:
        yield caught
    origins = [origin for error, origin in made if error is caught.value]
    assert where in origins, (origins, str(caught.value))
    assert all(word in caught.value.message for word in words), str(caught.value)


def helps(where: str, *words: str, call: Callable[[], Any], remedy: Callable[[], Any]) -> Any:
    """A call fails with the advice; after the remedy the same call succeeds."""
    with advises(where, *words):
        call()
    remedy()
    return call()


def refused(where: str, *words: str, command: Sequence[object]) -> str:
    """Like :func:`advises`, for a command in this process; returns the text of the error."""
    import in_process  # of tests/tools

    with _origins() as made:
        said = in_process.run(*command, codes=(2,))
    _, text = printed_error(said)
    origins = [origin for error, origin in made if error.text == text]
    assert where in origins, (origins, said)
    assert all(word in text for word in words), text
    return text


@cache
def remedied() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Where and words of all remedies that tests execute, as they are written."""
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if not _CASE.search(text):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and _CASE.match(f"{getattr(node.func, 'id', '')}("):
                words = [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
                if words and re.fullmatch(r"[\w/]+\.py:\w+", words[0]):
                    found.append((words[0], tuple(words[1:])))
    return tuple(found)


_CASE = re.compile(r"\b(advises|helps|refused|Remedy)\(")
