# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the installed package holds, read without importing it: that takes seconds."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .options import UsageError

_OTHER = ("classification", "detection")  # folders of configs


def package_folder() -> Path:
    """The folder of the package ``mmseg_resnest``."""
    spec = importlib.util.find_spec("mmseg_resnest")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def version() -> str:
    """The version of the package."""
    text = (package_folder() / "version.py").read_text(encoding="utf-8")
    values = [node.value for node in ast.parse(text).body if isinstance(node, ast.Assign)]
    return str(ast.literal_eval(values[0]))


def config_folder() -> Path:
    """The folder of the configs that come with the package: in a clone, its ``configs/``."""
    return (package_folder() / ".mim" / "configs").resolve()


def list_configs() -> list[str]:
    """The names of the segmentation configs that come with the package."""
    folder = config_folder()
    files = [*sorted(folder.glob("*.py")), *sorted(folder.glob("openmmlab/*.py"))]
    return [file.relative_to(folder).with_suffix("").as_posix() for file in files]


def list_other_configs() -> list[str]:
    """The names of the configs that other toolboxes than MMSegmentation read."""
    folder = config_folder()
    files = [file for name in _OTHER for file in sorted(folder.glob(f"{name}/*.py"))]
    return [file.relative_to(folder).with_suffix("").as_posix() for file in files]


def near_names(words: Sequence[str], names: Sequence[str]) -> str:
    """``; did you mean ...`` with what is close to words in names, or in parts of them, or ''."""
    parts = [*names, *{part for name in names for part in re.split(r"[_/]", name)}]
    near = [close for word in words for close in difflib.get_close_matches(word, parts, 1)]
    return f"; did you mean {' '.join(near)}?" if near else ""


def copy_configs(folder: str | os.PathLike[str]) -> int:
    """Copy the configs that come with the package to a new folder; returns their number."""
    target = Path(folder)
    ignore = shutil.ignore_patterns("__pycache__", "custom")
    start = f".{target.name[:50]}."
    try:
        if target.exists():
            raise UsageError(f"{target}: exists; name a new folder to copy the configs to")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=start, dir=target.parent) as beside:
            shutil.copytree(config_folder(), part := Path(beside, "configs"), ignore=ignore)
            part.rename(target)
    except OSError as error:
        raise UsageError(f"--copy {target}: cannot be written ({error.strerror})") from error
    return len(list_configs()) + len(list_other_configs())


def catalogue() -> dict[str, dict[str, Any]]:
    """The catalogue of published weights as its file holds it, by name.

    :func:`mmseg_resnest.weights.catalogue` documents the fields.
    """
    file = package_folder() / "weights" / "catalogue.json"
    entries: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return entries


def model_costs() -> dict[str, dict[str, Any]]:
    """What each config's model costs, by its name; see :mod:`mmseg_resnest.engine.model_costs`."""
    file = package_folder() / "engine" / "model_costs.json"
    costs: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return costs


def measured_here() -> dict[str, dict[str, Any]]:
    """What ``mmseg-resnest benchmark`` has measured on this machine, by the config's name."""
    try:
        kept = json.loads((cache_folder() / "benchmarks.json").read_text(encoding="utf-8"))
        here = kept[platform.node()]
        return {str(name): dict(row) for name, row in here.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError):
        return {}


def cache_folder() -> Path:
    """Where downloads are kept: ``$MMSEG_RESNEST_CACHE``, or ``~/.cache/mmseg_resnest``."""
    folder = os.environ.get("MMSEG_RESNEST_CACHE")
    try:
        return Path(folder).expanduser() if folder else Path.home() / ".cache" / "mmseg_resnest"
    except RuntimeError:
        message = (
            "home folder: this user has none; set MMSEG_RESNEST_CACHE to a folder for downloads"
        )
        raise UsageError(message) from None
