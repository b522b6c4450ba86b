# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Finding and reading a config, before anything is built."""

from __future__ import annotations

import ast
import difflib
import errno
import os
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...errors import UserError
from ...registry import building
from ...weights.hub import is_hub
from ..logs import display_path, nothing_printed
from .check import check_config
from .data import CONFIG_SUFFIXES, DATA_SUFFIXES, load_data_config, read_config_text
from .options import apply_options, parse_cfg_options
from .portable import PACKAGE, base_constants, config_folder, find_config, read_python
from .roots import restore_roots, set_roots
from .types import named_types

DATA_VARIABLE = "MMSEG_RESNEST_DATA"
SCENES_VARIABLE = "MMSEG_RESNEST_SCENES"
_WHERE = "; the configs are in configs/"
#: By the toolbox of a config's model: what it is, and the command that takes it.
_OTHER_TASKS = {"mmdet": ("detector", "detect"), "mmpretrain": ("classifier", "classify")}


def command_name(path: str | os.PathLike[str]) -> str:
    """How to write a config in a command: its file, or ``configs/...`` where that finds it."""
    file = Path(path).resolve()
    if file.is_relative_to(config_folder()):
        name = Path("configs", file.relative_to(config_folder()))
        if find_config(name).resolve() == file:
            return str(name)
    return display_path(path)


def load_config(
    path: str | os.PathLike[str],
    cfg_options: Sequence[str] | Mapping[str, Any] | None = None,
    data_root: str | os.PathLike[str] | None = None,
) -> Config:
    """Read a config file, apply the changes asked for, and check it; from any thread.

    Args:
        path: A ``.py``, ``.json`` or ``.yaml`` config; or the name of one that comes with the
            package (see :func:`find_config`). Python is run; JSON and YAML are data, see
            :func:`~mmseg_resnest.engine.config.data.load_data_config`.
        cfg_options: Changes, as ``KEY=VALUE`` strings (see :func:`.parse_cfg_options`) or as a
            mapping of dotted keys. A key that does not exist is an error unless the class it
            belongs to takes it, or ``+`` stands before it. ``data_root`` is put into every data
            set of the data loaders.
        data_root: Folder that holds ``camvid/``, ``ade20k/`` and so on: what the environment
            variable ``MMSEG_RESNEST_DATA`` says otherwise.

    Raises:
        UserError: The config is missing, does not parse, or names what does not exist; a change
            names an unknown key or has an unfit value; ``data_root`` is not a folder or is not
            read by the config.
    """
    if is_hub(path):
        message = "is a model on a hub and no config; name a config, and this as its weights"
        raise UserError("argument", path, message)
    with building():
        file = find_config(path)
        _check_config_file(file)
        options = cfg_options or {}
        if not isinstance(options, Mapping):
            options = parse_cfg_options(options)
        # MMEngine would print each environment variable that it fills in.
        roots = _data_root_variables(data_root)
        with nothing_printed(), set_roots(roots):
            cfg = _read(file)
        restore_roots(cfg, roots)
        if data_root is not None and not {DATA_VARIABLE, SCENES_VARIABLE} & set(cfg.env_variables):
            raise UserError(
                "config-conflict",
                "--data-root",
                f"{file} does not read {{{{${DATA_VARIABLE}:...}}}}; use --cfg-options "
                "data_root=DIR, the folder of the data set itself",
            )
        apply_options(cfg, options)
        check_config(cfg)
        return cfg


def require(cfg: Config, keys: Iterable[str], task: str) -> None:
    """Check that a config has the parts that a task needs; UserError names a missing one."""
    for key in keys:
        if cfg.get(key) is None:
            message = f"has no {key}, which {task} needs; inherit it from a config in configs/"
            raise UserError("config-key", f"config {cfg.filename}", message)


def require_segmentation(cfg: Config, task: str) -> None:
    """Check that a config is not a detector's or a classifier's; UserError says what takes it."""
    scope = str((cfg.get("model") or {}).get("type")).partition(".")[0]
    if scope in _OTHER_TASKS:
        what, command = _OTHER_TASKS[scope]
        message = f"is of a {what}, and {task} is for segmentation; use mmseg-resnest {command}"
        raise UserError("model", f"config {cfg.filename}", message)


def _check_config_file(path: Path) -> None:
    if not path.exists():
        raise UserError(
            "not-found", f"config {path}", f"does not exist{similar_configs(path) or _WHERE}"
        )
    if not path.is_dir() and path.suffix not in CONFIG_SUFFIXES:
        message = "is not a config file: its name must end in .py, .json or .yaml"
        raise UserError("config-syntax", f"config {path}", message)
    read_config_text(path)


def similar_configs(path: Path) -> str:
    """``; did you mean ...`` with the nearest names in configs/, or ''."""
    found: dict[str, Path] = {}
    for folder in (Path("configs"), config_folder(), path.parent):
        if folder.is_dir():
            for file in [*folder.glob("*.py"), *folder.glob("[!_.]*/*.py")]:
                found.setdefault(file.stem, file)
    names = difflib.get_close_matches(path.stem, list(found), n=3, cutoff=0.6)
    if not names:
        return ""
    return "; did you mean " + " or ".join(display_path(found[name]) for name in names) + "?"


def _data_root_variables(data_root: str | os.PathLike[str] | None) -> dict[str, str]:
    """The environment variables that configs read the data root from, as they are to be."""
    if data_root is None:
        names = (DATA_VARIABLE, SCENES_VARIABLE)
        return {name: os.environ[name] for name in names if name in os.environ}
    root = Path(data_root)
    if not root.is_dir():
        message = "is not a folder; it must hold the folders that data/README.md shows"
        raise UserError("not-found", f"--data-root {root}", message)
    return {DATA_VARIABLE: str(root), SCENES_VARIABLE: str(root / "scenes")}


def _read(path: Path) -> Config:
    copies: dict[str, str] = {}
    try:
        if path.suffix in DATA_SUFFIXES:
            return load_data_config(path)
        _check_python(path, {})
        return named_types(read_python(path, copies))
    except UserError:
        raise
    except Exception as error:
        raise _explain_parse_error(path, error, copies) from error


def _check_python(path: Path, seen: dict[Path, str]) -> str:
    """Check that a Python config and its bases parse, are Python, and inherit in one style.

    MMEngine would read JSON and YAML with a loader that runs what they say. Returns the statement
    by which the file inherits, an empty text if it does not.
    """
    if path in seen or not path.is_file():
        return seen.get(path, "")
    seen[path] = ""
    try:
        tree = ast.parse(read_config_text(path))
    except (SyntaxError, ValueError, RecursionError) as error:
        line, text = getattr(error, "lineno", None), getattr(error, "text", None) or ""
        place = f"config {path}, line {line}" if line else f"config {path}"
        reason = getattr(error, "msg", str(error)) + (f": {text.strip()}" if text.strip() else "")
        raise UserError("config-syntax", place, reason) from error
    name = f"config {path}"
    for constant in base_constants(tree):
        base = str(constant.value)
        if base.startswith(PACKAGE) and not find_config(base).is_file():
            known = similar_configs(Path(base.removeprefix(PACKAGE))) or _WHERE
            message = f"_base_ names {base!r}, which is not a config of the package{known}"
            raise UserError("config-syntax", f"{name}, line {constant.lineno}", message)
    found = list(_bases(tree, path.parent))
    if "_base_" not in [style for style, _, _ in found]:
        _check_imports(name, tree)
    for style, base, file in found:
        if base.lower().endswith(DATA_SUFFIXES):
            message = f"_base_ names {base!r}; a Python config inherits from Python only"
            raise UserError("config-syntax", name, message)
        if seen[path] not in ("", style):
            raise UserError("config-syntax", name, "holds _base_ and read_base(); keep one of them")
        seen[path] = style
        theirs = _check_python(file, seen) if file is not None else ""
        if theirs not in ("", style):
            message = f"inherits with {style} from {file}, which inherits with {theirs}; MMEngine "
            message += f"cannot mix them: inherit with {theirs} here too"
            raise UserError("config-syntax", name, message)
    return seen[path]


def _check_imports(name: str, tree: ast.Module) -> None:
    """Refuse what MMEngine's reading of Python style would stumble over."""
    for node in tree.body:
        wrong = ""
        if isinstance(node, ast.With) and ast.unparse(node.items[0]) != "read_base()":
            wrong = "with read_base() is the only with statement that MMEngine takes in a config"
        elif isinstance(node, ast.ImportFrom) and [part.name for part in node.names] == ["*"]:
            wrong = "only with read_base() imports *, from a config; write the names"
        elif isinstance(node, ast.ImportFrom) and node.level:
            wrong = "only with read_base() imports relative to the file; put the module's folder "
            wrong += "on PYTHONPATH and import it without the dot"
        if wrong:
            raise UserError("config-syntax", f"{name}, line {node.lineno}", wrong)


def _bases(tree: ast.Module, folder: Path) -> Iterator[tuple[str, str, Path | None]]:
    """Of each base of a config: the statement, what it names, and its file where that is plain."""
    for constant in base_constants(tree):
        base = str(constant.value)
        file = find_config(base) if base.startswith(PACKAGE) else folder / base
        yield "_base_", base, file if file.suffix == ".py" else None
    for node in tree.body:
        if isinstance(node, ast.With):
            for part in node.body:
                if isinstance(part, ast.ImportFrom) and part.module:
                    above = Path(folder, *[".."] * (part.level - 1))
                    file = above / (part.module.replace(".", "/") + ".py")
                    yield "read_base()", part.module, file if part.level else None


def _explain_parse_error(path: Path, error: Exception, copies: Mapping[str, str]) -> UserError:
    """Which file and line of a config (or of its bases) raised an error, and why.

    ``copies`` of files were read: their names, and those of the files.
    """
    name = f"config {path}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(
            "not-writable",
            name,
            f"it is copied to the folder for temporary files first, which is full "
            f"({os.strerror(error.errno)}); make room there, or name another one with TMPDIR",
        )
    if isinstance(error, FileNotFoundError):
        message = f"a file it inherits from in _base_ is missing: {error}"
        return UserError("config-syntax", name, message)
    if isinstance(error, ImportError) and "custom modules" in str(error):
        return UserError(
            "config-value",
            name,
            f"custom_imports: {error.__cause__ or error}; install its package, or set PYTHONPATH "
            "to the folder of the module",
        )
    reason = f"{type(error).__name__}: {error.args[0] if error.args else error}".splitlines()[0]
    # Config files run under their own name, so the last frame outside the packages is theirs.
    here = str(path.resolve().parent)
    libraries = (sysconfig.get_path("stdlib") + os.sep, f"{os.sep}site-packages{os.sep}")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        filename = copies.get(frame.filename, frame.filename)
        in_package = any(library in filename for library in libraries)
        theirs = filename.startswith(here) or not in_package
        ours = Path(filename).is_relative_to(Path(__file__).parents[2])
        if theirs and not ours and filename.endswith(".py"):
            place = f"config {filename}, line {frame.lineno}"
            return UserError("config-syntax", place, reason)
    return UserError("config-syntax", name, reason)
