# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A file imports only from rooms below its own, also inside functions; so there are no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: From the lowest; those of a row stand beside each other.
ROOMS = (
    ("version",),
    ("errors", "io"),
    ("registry", "_stack"),
    ("kernels", "weights"),
    ("models", "datasets", "evaluation"),
    ("engine",),
    ("runtimes",),
    ("inference",),
    ("export", "apps"),
)
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
#: Errors are printed as texts are, and files raise them.
TOGETHER = {"errors", "io"}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("mmseg_resnest", "mmseg_resnest_cli")
    for path in (ROOT / package).rglob("*.py")
}


def _imports(name: str) -> Iterator[str]:
    """The modules of the two packages that a module imports, at its top or in a function."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name in MODULES)
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            found = {f"{source}.{one.name}" for one in node.names} & MODULES.keys()
            yield from found or {source} & MODULES.keys()


def test_rooms_import_from_rooms_below() -> None:
    wrong = []
    for name in MODULES:
        package, _, rest = name.partition(".")
        room = rest.partition(".")[0]
        for other in _imports(name):
            other_package, _, rest = other.partition(".")
            below = rest.partition(".")[0]
            if package == "mmseg_resnest" and room in LEVEL:
                good = below == room or {room, below} == TOGETHER
                good = good or LEVEL.get(below, len(ROOMS)) < LEVEL[room]
                if not good or other_package != package:
                    wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {name: {one for one in _imports(name) if one != name} for name in MODULES}
    TopologicalSorter(graph).prepare()  # CycleError names the circle
