# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Configs of the package by their names, also as bases.

A config with ``_base_ = "mmseg_resnest::fcn_resnest50_ade20k"`` works from any folder, with a clone
and with an installed wheel. MMEngine has a form like it for the packages of its own table alone. So
a config that names a base of this package, or inherits from one that does, is read from a copy
whose bases are paths.
"""

from __future__ import annotations

import ast
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from ..._stack import config_environment, config_tree

#: What stands before the name of a config of the package.
PACKAGE = "mmseg_resnest::"


def config_folder() -> Path:
    """The folder of the configs that come with the package: in a clone, its ``configs/``."""
    return (Path(__file__).parents[2] / ".mim" / "configs").resolve()


def find_config(path: str | os.PathLike[str]) -> Path:
    """The file of a config, or ``path`` itself if it names no config.

    A file that exists; or one that comes with the package, by its name (``fcn_resnest50_ade20k``,
    ``openmmlab/...``), with the package's (``mmseg_resnest::fcn_resnest50_ade20k``), or as a clone
    has it (``configs/fcn_resnest50_ade20k.py``).
    """
    given = Path(path)
    if os.fspath(path).startswith(PACKAGE):
        name = Path(os.fspath(path).removeprefix(PACKAGE))
        return given if name.is_absolute() else _of_package(name) or given
    if given.exists() or given.is_absolute():
        return given
    parts = given.parts[1:] if given.parts[:1] == ("configs",) else given.parts
    return _of_package(Path(*parts)) or given


def _of_package(name: Path) -> Path | None:
    if not name.parts or ".." in name.parts:
        return None
    found = config_folder() / (name if name.suffix == ".py" else f"{name}.py")
    return found if found.is_file() else None


def portable_name(path: str | os.PathLike[str]) -> str | None:
    """``mmseg_resnest::NAME`` of a config that comes with the package; None of another one."""
    file = Path(path).resolve()
    if file.suffix != ".py" or not file.is_relative_to(config_folder()):
        return None
    return PACKAGE + file.relative_to(config_folder()).with_suffix("").as_posix()


def base_constants(tree: ast.Module) -> Iterator[ast.Constant]:
    """The texts in what a config assigns to ``_base_``."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "_base_" for target in node.targets
        ):
            for part in ast.walk(node.value):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part


def read_python(path: Path, copies: dict[str, str]) -> Config:
    """Read a Python config as ``Config.fromfile`` does, with bases named by the package.

    It parses, as those that it inherits from do. ``copies`` is filled with the copies that were
    read, and what they are copies of, for errors.
    """
    with tempfile.TemporaryDirectory(prefix="mmseg_resnest_config_") as folder:
        copy = _Copies(Path(folder), copies).of(Path(os.path.abspath(path)))
        if copy is None:
            return Config.fromfile(path)
        read = Config.fromfile(copy)
    text = read.text
    for name, original in copies.items():
        text = text.replace(name, original)
    return Config(config_tree(read), text, os.fspath(path), config_environment(read))


class _Copies:
    """Copies of configs that name a base of the package, or inherit from one that does."""

    def __init__(self, folder: Path, copies: dict[str, str]) -> None:
        self._folder, self._copies = folder, copies
        self._known: dict[Path, Path | None] = {}

    def of(self, path: Path) -> Path | None:
        """The copy of a file; None: it can be read as it is."""
        if path in self._known:
            return self._known[path]
        self._known[path] = None  # a circle ends here, and MMEngine finds it
        text = _filled_in(path.read_text(encoding="utf-8"), path)
        constants = list(base_constants(ast.parse(text)))
        copied = False
        changes: list[tuple[ast.Constant, str]] = []
        for constant in constants:
            base = str(constant.value)
            if base.startswith(PACKAGE):
                copied = True
                changes.append((constant, os.fspath(find_config(base))))
            elif "::" not in base and not base.startswith("{{"):
                file = Path(os.path.abspath(path.parent / base))
                copy = self.of(file) if file.suffix == ".py" and file.is_file() else None
                copied |= copy is not None
                changes.append((constant, os.fspath(copy or file)))
        if not copied:
            return None
        place = self._folder / str(len(self._copies))
        place.mkdir()
        copy = place / path.name
        copy.write_text(_replaced(text, changes), encoding="utf-8")
        self._known[path] = copy
        self._copies[os.fspath(copy)] = os.fspath(path)
        return copy


def _filled_in(text: str, path: Path) -> str:
    """The text with what MMEngine knows of the place of a config, which a copy would change."""
    known = {
        "fileDirname": os.path.dirname(path),
        "fileBasename": path.name,
        "fileBasenameNoExtension": path.stem,
        "fileExtname": path.suffix,
    }
    for name, value in known.items():
        # As the replacement, a path with a backslash would be a pattern.
        text = value.join(re.split(r"\{\{\s*" + name + r"\s*\}\}", text))
    return text


def _replaced(text: str, changes: list[tuple[ast.Constant, str]]) -> str:
    """The text with other constants; each line keeps its number."""
    # Bytes are split at the ends of lines that Python counts; a str at others too, such as \x0c.
    lines = text.encode().splitlines(keepends=True)
    for node, value in sorted(changes, key=lambda c: (c[0].lineno, c[0].col_offset), reverse=True):
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        after = lines[last][node.end_col_offset :]
        start = lines[first][: node.col_offset] + repr(value).encode() + b"\n" * (last - first)
        lines[first : last + 1] = [start + after, *[b""] * (last - first)]
    return b"".join(lines).decode()
