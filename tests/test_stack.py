# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The stack is imported quietly, and private names that are used are where they are expected."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmseg_resnest import _stack
from mmseg_resnest.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
#: Documented in spite of their form, and argparse's.
_DOCUMENTED = frozenset({"_asdict", "_exit", "_fields", "_replace", "_inductor"})
_OF_ARGPARSE = frozenset({"_actions", "_ArgumentGroup", "_SubParsersAction"})
_BY_NAME = ("getattr", "setattr", "hasattr", "delattr")


def run_python(code: str, *options: str, path: Path | None = None) -> subprocess.CompletedProcess:
    """Run code in a new interpreter that finds this checkout (and ``path`` before it)."""
    folders = [str(folder) for folder in (path, ROOT, os.environ.get("PYTHONPATH")) if folder]
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        timeout=500,
    )


@pytest.mark.parametrize("module", _stack.PRIVATE_NAMES)
def test_private_names_are_where_they_were(module: str) -> None:
    """The functions of ``_stack`` that use a missing name have to be changed."""
    found = importlib.import_module(module)
    source = inspect.getsource(found)
    missing = [
        name
        for name in _stack.PRIVATE_NAMES[module]
        if not hasattr(found, name) and name not in source
    ]
    assert not missing, f"{module} no longer has {', '.join(missing)}"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _sources() -> Iterator[tuple[str, ast.Module]]:
    for package in ("mmseg_resnest", "mmseg_resnest_cli", "benchmarks", "tools"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def _defined(node: ast.AST) -> str:
    """The name that a function, a class, an assignment or an annotation makes, or ""."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
        return node.attr if isinstance(node, ast.Attribute) else node.id
    return ""


def test_private_names_of_dependencies_are_in_one_file() -> None:
    """Except those of parent classes: see the next test."""
    trees = dict(_sources())
    del trees["mmseg_resnest/_stack.py"]
    own = {_defined(node) for tree in trees.values() for node in ast.walk(tree)}
    found = []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            names: list[str] = []
            owner: Any = None
            if isinstance(node, ast.Attribute):
                names, owner = [node.attr], node.value
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in _BY_NAME:
                owner, text = node.args[:2]
                names = [text.value] if isinstance(text, ast.Constant) else []
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [*str(node.module).split("."), *(one.name for one in node.names)]
            elif isinstance(node, ast.Import):
                names = [part for one in node.names for part in one.name.split(".")]
            if getattr(owner, "id", "") in ("self", "cls") or isinstance(owner, ast.Call):
                continue
            found += [
                f"{name}:{node.lineno} {one}"
                for one in names
                if _is_private(one) and one not in own | _DOCUMENTED | _OF_ARGPARSE
            ]
    assert found == []


def test_private_names_of_parent_classes_are_listed() -> None:
    listed = {name for names in _stack.PRIVATE_NAMES.values() for name in names}
    missing = []
    for name, tree in _sources():
        if not name.startswith("mmseg_resnest"):
            continue
        for node in (one for one in ast.walk(tree) if isinstance(one, ast.ClassDef)):
            used = {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)}
            used |= {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
            used = {one for one in used if _is_private(one)} - listed
            if not used:
                continue
            try:
                module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
            except UserError as error:
                if error.code == "missing-package":  # of an extra that is not installed
                    continue
                raise
            kind = getattr(module, node.name, None)
            for base in inspect.getmro(kind)[1:] if kind else ():
                root = base.__module__.partition(".")[0]
                if root.startswith("mmseg_resnest") or root in sys.stdlib_module_names:
                    continue
                words = set(re.findall(r"\w+", inspect.getsource(base)))
                missing += [f"{name} {node.name}: {one} of {base}" for one in used & words]
    assert missing == []


def test_the_import_prints_nothing_and_warns_of_nothing() -> None:
    result = run_python(
        "import mmseg_resnest", "-W", "error::UserWarning", "-W", "error::ImportWarning"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_all_parts_of_mmseg_are_registered() -> None:
    from mmseg import registry

    names = {
        "MODELS": "UPerHead",
        "DATASETS": "CityscapesDataset",
        "METRICS": "IoUMetric",
        "HOOKS": "SegVisualizationHook",
        "TRANSFORMS": "PackSegInputs",
        "VISUALIZERS": "SegLocalVisualizer",
    }
    for part, name in names.items():
        assert name in getattr(registry, part).module_dict


def test_only_the_lines_to_drop_are_dropped(capsys: pytest.CaptureFixture) -> None:
    with _stack._without_printed_noise():
        print("Could not import OneDL\nkeep me\nCould not import OneDL\nno line end", end="")
    assert capsys.readouterr().out == "keep me\nno line end"


STUBS = {
    "mmpretrain/__init__.py": "",
    "mmpretrain/datasets/__init__.py": "",
    "mmpretrain/datasets/_palette.py": "DEFAULT_PALETTE = []",
    # As mmdet.models.reid.base_reid.
    "mmdet/__init__.py": "try:\n    import mmpretrain\nexcept ImportError:\n    mmpretrain = None",
}


@pytest.mark.parametrize("with_mmdet", [pytest.param(False, marks=pytest.mark.long), True])
def test_mmpretrain_is_left_to_those_who_use_it(tmp_path: Path, with_mmdet: bool) -> None:
    """MMSegmentation's OneDL data set does not load it; MMDetection, where it is, finds it."""
    for name, text in STUBS.items():
        if with_mmdet or "mmdet" not in name:
            (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / name).write_text(text)
    code = "import sys, mmseg_resnest\nfrom mmseg.registry import DATASETS\n"
    code += "print('mmpretrain' in sys.modules, 'OneDLDataset' in DATASETS)\n"
    code += "print(bool(sys.modules['mmdet'].mmpretrain))\n" if with_mmdet else ""
    code += "import mmseg.datasets.onedl\nprint('OneDLDataset' in DATASETS)"
    result = run_python(code, path=tmp_path)
    assert result.returncode == 0, result.stderr
    first = ["True", "False", "True"] if with_mmdet else ["False", "False"]
    assert result.stdout.split() == [*first, "True"]


FAKES = {
    "mmcv is missing": (
        {"mmcv/__init__.py": "raise ModuleNotFoundError(\"No module named 'mmcv'\", name='mmcv')"},
        ("No module named 'mmcv'", "pip install onedl-mmsegmentation onedl-mmengine onedl-mmcv"),
    ),
    "mmcv-lite beside mmseg 1.2": (
        {
            "mmseg/__init__.py": "",
            "mmseg/datasets.py": "raise ModuleNotFoundError('No module named mmcv._ext', "
            "name='mmcv._ext')",
        },
        ("mmseg.datasets", "compiled operators"),
    ),
    "ftfy is missing": (
        {
            "mmseg/__init__.py": "",
            "mmseg/datasets.py": "raise ModuleNotFoundError(\"No module named 'ftfy'\", "
            "name='ftfy')",
        },
        ("No module named 'ftfy'", "pip install ftfy regex"),
    ),
    "opencv without libGL": (
        {
            "mmcv/__init__.py": "raise ImportError('libGL.so.1: cannot open shared object file: "
            "No such file or directory')"
        },
        ("libGL.so.1", "opencv-python-headless"),
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("case", FAKES)
def test_a_missing_package_is_one_error_that_says_what_to_install(
    tmp_path: Path, case: str
) -> None:
    files, expected = FAKES[case]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    result = run_python("import mmseg_resnest", path=tmp_path)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert last.startswith("ImportError: mmseg-resnest cannot import mm")
    for text in expected:
        assert text in last
