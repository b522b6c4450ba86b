# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Reading a config, changing it from the command line, and finding its mistakes.

Everything here happens before anything is built: a config that :func:`load_config` returns
parses, names only types that exist, and gives them only options that they take.
"""

from __future__ import annotations

import ast
import difflib
import errno
import inspect
import os
import textwrap
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmengine.registry as mmengine_registry
import mmseg.registry as mmseg_registry
from mmengine.config import Config, ConfigDict
from mmengine.registry import Registry
from mmengine.runner import Runner
from mmseg.utils import register_all_modules
from torch.utils.data import DataLoader

from ... import registry as our_registry
from ..._stack import config_tree, parse_option_value
from ...errors import UserError
from ..logs import display_path, nothing_printed
from .data import (
    DATA_SUFFIXES,
    load_data_config,
    read_config_text,
    refuse_data_bases,
)
from .roots import plain_roots, restore_roots

__all__ = [
    "check_config",
    "command_name",
    "config_folder",
    "find_config",
    "load_config",
    "parse_cfg_options",
    "require",
]

DATA_VARIABLE = "MMSEG_RESNEST_DATA"
SCENES_VARIABLE = "MMSEG_RESNEST_SCENES"

# A registry imports its own module when asked, but not that of its parent: without this, the names
# of MMSegmentation that nobody has imported yet would seem not to exist.
register_all_modules(init_default_scope=False)

# Top-level keys that something reads after the config is parsed. Any other one is a variable of
# the config file: changing it afterwards changes nothing.
_RUNNER_KEYS = frozenset(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"}
_EFFECTIVE_KEYS = _RUNNER_KEYS | {
    "activation_checkpointing",
    "compile",
    "custom_imports",
    "data_root",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "numerics",
    "runner_type",
    "strategy",
    "sync_bn",
    "total_batch_size",
    "tta_model",
    "tta_pipeline",
}
_DATALOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
# A data loader has no type; these are the keys it takes.
_DATALOADER_KEYS = frozenset(inspect.signature(DataLoader.__init__).parameters) - {"self"} | {
    "disable_subprocess_warning",
    "num_batch_per_epoch",
}
_UNTYPED_KEYS = {
    "randomness": frozenset({"seed", "deterministic", "diff_rank_seed"}),
    "auto_scale_lr": frozenset({"enable", "base_batch_size"}),
    "numerics": frozenset({"fused"}),
    "env_cfg": frozenset({"cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"}),
}
# Keys that a registry's build function takes out before it calls the class.
_BUILD_KEYS = {
    "hook": {"priority"},
    "optimizer wrapper": {"constructor", "optimizer", "paramwise_cfg"},
    "optim_wrapper": {"constructor", "optimizer", "paramwise_cfg"},
    "parameter scheduler": {"convert_to_iter_based"},
    "model": {"requires_grad"},  # of normalisation layers
}


# ------------------------------------------------------------------------------------------------
# Finding


def config_folder() -> Path:
    """The folder of the configs that come with the package: in a clone, its ``configs/``."""
    return (Path(__file__).parents[2] / ".mim" / "configs").resolve()


def find_config(path: str | os.PathLike[str]) -> Path:
    """The file of a config.

    Args:
        path: A file; or one that comes with the package, by its name (``fcn_resnest50_ade20k``,
            ``openmmlab/...``) or as a clone has it (``configs/fcn_resnest50_ade20k.py``). A file
            that exists goes first.

    Returns:
        The file, or ``path`` itself if there is none.
    """
    given = Path(path)
    if given.exists() or given.is_absolute():
        return given
    parts = given.parts[1:] if given.parts[:1] == ("configs",) else given.parts
    if not parts or ".." in parts:
        return given
    name = Path(*parts)
    found = config_folder() / (name if name.suffix == ".py" else f"{name}.py")
    return found if found.is_file() else given


def command_name(path: str | os.PathLike[str]) -> str:
    """How to write a config in a command: its file, or ``configs/...`` where that finds it."""
    file = Path(path).resolve()
    if file.is_relative_to(config_folder()):
        name = Path("configs", file.relative_to(config_folder()))
        if find_config(name).resolve() == file:
            return str(name)
    return display_path(path)


# ------------------------------------------------------------------------------------------------
# Reading


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
        cfg_options: Changes, as ``KEY=VALUE`` strings (see :func:`parse_cfg_options`) or as a
            mapping of dotted keys. A key that does not exist is an error unless the class it
            belongs to takes it, or ``+`` stands before it. ``data_root`` is put into every data
            set of the data loaders.
        data_root: Folder that holds ``camvid/``, ``ade20k/`` and so on: what the environment
            variable ``MMSEG_RESNEST_DATA`` says otherwise.

    Returns:
        The config.

    Raises:
        UserError: The config is missing, does not parse, or names what does not exist; a change
            names an unknown key or has an unfit value; ``data_root`` is no folder or is not read
            by the config.
    """
    with our_registry.building():
        return _load_config(find_config(path), cfg_options, data_root)


def _load_config(
    path: Path,
    cfg_options: Sequence[str] | Mapping[str, Any] | None,
    data_root: str | os.PathLike[str] | None,
) -> Config:
    _check_config_file(path)
    options = (
        dict(cfg_options)
        if isinstance(cfg_options, Mapping)
        else parse_cfg_options(cfg_options or [])
    )
    # MMEngine would print each environment variable that it fills in.
    with nothing_printed(), plain_roots(_data_root_variables(data_root)) as roots:
        try:
            if path.suffix in DATA_SUFFIXES:
                cfg = load_data_config(path, find_config, config_folder())
            else:
                refuse_data_bases(path)
                cfg = Config.fromfile(path)
        except Exception as error:
            raise _explain_parse_error(path, error) from error
    restore_roots(cfg, roots)
    if data_root is not None and not {DATA_VARIABLE, SCENES_VARIABLE} & set(cfg.env_variables):
        raise UserError(
            "config-value",
            f"--data-root has no effect on {path}",
            f"it does not read {{{{${DATA_VARIABLE}:...}}}}; "
            "use --cfg-options data_root=DIR, the folder of the data set itself",
        )
    _apply_options(cfg, options)
    check_config(cfg)
    return cfg


def require(cfg: Config, keys: Iterable[str], task: str) -> None:
    """Check that a config has the parts that a task needs.

    Raises:
        UserError: Names the first missing one.
    """
    for key in keys:
        if cfg.get(key) is None:
            raise UserError(
                "config-value",
                cfg.filename,
                f"has no {key}, which {task} needs; inherit it from one of the configs in configs/",
            )


def _check_config_file(path: Path) -> None:
    if not path.exists():
        raise UserError("not-found", f"config {path}", f"does not exist{_similar_configs(path)}")
    if not path.is_dir() and path.suffix not in (".py", *DATA_SUFFIXES):
        raise UserError(
            "config-syntax",
            f"config {path}",
            "is no config; its name must end in .py, .json or .yaml",
        )
    read_config_text(path)


def _similar_configs(path: Path) -> str:
    """``; did you mean ...`` with the nearest names in configs/, or where to look."""
    folders = [Path("configs"), config_folder(), path.parent]
    found: dict[str, Path] = {}
    for folder in folders:
        if folder.is_dir():
            for file in [*folder.glob("*.py"), *folder.glob("openmmlab/*.py")]:
                found.setdefault(file.stem, file)
    names = difflib.get_close_matches(path.stem, list(found), n=3, cutoff=0.6)
    if not names:
        return "; the configs are in configs/"
    return "; did you mean " + " or ".join(display_path(found[name]) for name in names) + "?"


def _data_root_variables(data_root: str | os.PathLike[str] | None) -> dict[str, str]:
    """The environment variables that configs read the data root from, as they are to be."""
    if data_root is None:
        names = (DATA_VARIABLE, SCENES_VARIABLE)
        return {name: os.environ[name] for name in names if name in os.environ}
    root = Path(data_root)
    if not root.is_dir():
        raise UserError(
            "not-found",
            f"--data-root {root}",
            "is no folder; it must hold the data sets' folders (camvid/, "
            "ade20k/, ...) as data/README.md shows",
        )
    return {DATA_VARIABLE: str(root), SCENES_VARIABLE: str(root / "scenes")}


def _explain_parse_error(path: Path, error: Exception) -> UserError:
    """Say which file and line of a config (or of its bases) does not parse, and why."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, SyntaxError):
        bad = _find_syntax_error(path, set())
        if bad is not None:
            where, syntax = bad
            line = (syntax.text or "").strip()
            return UserError(
                "config-value",
                f"config {where}, line {syntax.lineno}",
                f"{syntax.msg}{f': {line}' if line else ''}",
            )
        return UserError("config-value", f"config {path}", f"{error.msg}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(
            "unreadable",
            f"config {path}",
            f"cannot be read, for it is copied to the folder for temporary files "
            f"first, and that takes nothing more ({os.strerror(error.errno)}); make room there, or "
            "name another one with TMPDIR",
        )
    if isinstance(error, UnicodeDecodeError):
        return UserError(
            "config-value",
            f"config {path}",
            "is no text file, or one that it inherits from is none",
        )
    if isinstance(error, FileNotFoundError):
        return UserError(
            "config-syntax",
            f"config {path}",
            f"a file it inherits from in _base_ is missing: {error}",
        )
    reason = f"{type(error).__name__}: {error.args[0] if error.args else error}".splitlines()[0]
    if isinstance(error, ImportError) and "custom modules" in str(error):
        cause = error.__cause__ or error
        return UserError(
            "config-value",
            f"config {path}",
            f"custom_imports: {cause}; install its package, or set PYTHONPATH to "
            "the folder of the module",
        )
    # Config files run under their own name, so the last frame outside the packages is theirs.
    here = str(path.resolve().parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        in_package = f"{os.sep}site-packages{os.sep}" in frame.filename
        ours = frame.filename.startswith(here) or not in_package
        if ours and frame.filename.endswith(".py") and frame.filename != __file__:
            if Path(frame.filename).is_relative_to(Path(__file__).parents[2]):
                continue
            return UserError(
                "config-value", f"config {frame.filename}, line {frame.lineno}", f"{reason}"
            )
    return UserError("config-value", f"config {path}", f"{reason}")


def _find_syntax_error(path: Path, seen: set[Path]) -> tuple[Path, SyntaxError] | None:
    """The first file that is no Python, of a config and those it inherits from."""
    if path in seen or not path.is_file() or path.suffix != ".py":
        return None
    seen.add(path)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except SyntaxError as error:
        return path, error
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "_base_"
        ):
            try:
                bases = ast.literal_eval(node.value)
            except ValueError:
                continue
            for base in [bases] if isinstance(bases, str) else bases:
                found = _find_syntax_error(path.parent / base, seen)
                if found is not None:
                    return found
    return None


# ------------------------------------------------------------------------------------------------
# Changes from the command line


def parse_cfg_options(options: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` strings as a mapping.

    Values are read as MMEngine reads them: numbers, ``True``/``False``, ``None``, ``a,b`` or
    ``[a,b]`` as a list, ``(a,b)`` as a tuple, anything else as text.

    Args:
        options: E.g. ``["model.decode_head.num_classes=3", "train_cfg.max_iters=100"]``.

    Returns:
        ``{key: value}``, keys as given (with a leading ``+`` where there is one).

    Raises:
        UserError: A string is not of that form.
    """
    parsed = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key.strip("+") or key != key.strip():
            raise UserError(
                "config-value",
                f"--cfg-options {option}",
                "is not of the form KEY=VALUE (no spaces)",
            )
        if any(not part for part in key.lstrip("+").split(".")):
            raise UserError(
                "config-value",
                f"--cfg-options {option}",
                "the key has an empty part between two dots",
            )
        try:
            parsed[key] = parse_option_value(value)
        except AssertionError as error:
            raise UserError(
                "config-value", f"--cfg-options {option}", "the brackets of the value do not match"
            ) from error
    return parsed


def _apply_options(cfg: Config, options: Mapping[str, Any]) -> None:
    changes: dict[str, Any] = {}
    for key, value in options.items():
        if key == "data_root":
            _set_data_root(cfg, value)
            continue
        _check_option(cfg, key, value)
        changes[key.lstrip("+")] = value
    try:
        cfg.merge_from_dict(changes)
    except (KeyError, TypeError) as error:
        raise UserError("config-value", "--cfg-options", f"{error.args[0]}") from error


def _set_data_root(cfg: Config, root: Any) -> None:
    """Make ``root`` the data_root of every data set in the data loaders."""
    if not isinstance(root, str):
        raise UserError("config-value", f"--cfg-options data_root={root}", "is no folder name")
    sets = [d for name in _DATALOADERS for d in _datasets(cfg.get(name))]
    if not sets:
        raise UserError(
            "config-value", "--cfg-options data_root", "the config has no data loader to change"
        )
    for dataset in sets:
        dataset["data_root"] = root
    cfg["data_root"] = root


def _datasets(loader: Any) -> Iterator[ConfigDict]:
    """The data sets of a data loader config, those inside wrappers too."""
    todo = [loader.get("dataset")] if isinstance(loader, Mapping) else []
    while todo:
        dataset = todo.pop()
        if not isinstance(dataset, ConfigDict):
            continue
        inner = [dataset["dataset"]] if "dataset" in dataset else list(dataset.get("datasets", []))
        if inner:
            todo.extend(inner)
        else:
            yield dataset


def _check_option(cfg: Config, key: str, value: Any) -> None:
    """Check one change against the config it is made to."""
    free = key.startswith("+")
    parts = key.lstrip("+").split(".")
    name = f"--cfg-options {key}"
    at: Any = config_tree(cfg)
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth])
        if isinstance(at, list | tuple):
            if not part.isdigit() or int(part) >= len(at):
                raise UserError(
                    "config-value",
                    name,
                    f"{where} is a list of {len(at)}; put a number from 0 to "
                    f"{len(at) - 1} in place of {part}",
                )
            at = at[int(part)]
            continue
        if not isinstance(at, Mapping):
            raise UserError(
                "config-value",
                "",
                f"{name}: {where} is {at!r}, which has no keys; set {where} itself"
                if at is not None
                else f"{name}: {where} is None; set it as a whole in a config that inherits",
            )
        if part not in at or (depth == 0 and part not in _EFFECTIVE_KEYS):
            if free:
                return
            _refuse_unknown_key(name, parts[:depth], part, at, cfg.get("default_scope", "mmengine"))
            return  # a new option of a known class: below it anything goes
        at = at[part]
    _check_kind(name, at, value)


def _refuse_unknown_key(
    name: str, parents: list[str], part: str, at: Mapping[str, Any], scope: str
) -> None:
    """Raise unless the class that ``at`` configures takes an option ``part``."""
    if not parents:
        if part in _EFFECTIVE_KEYS:
            return
        if part in at:
            raise UserError(
                "config-value",
                name,
                f"{part} is a variable inside the config file; changing it here has no "
                f"effect on what was made from it. Change the full key (mmseg-resnest print-config "
                f"shows it), or write a config that inherits. +{part}=... sets it nevertheless",
            )
        known: Iterable[str] = _EFFECTIVE_KEYS & (set(at) | _RUNNER_KEYS)
    else:
        accepted = _accepted_keys(tuple(parents), at, scope)
        if accepted is not None and part in accepted:
            return
        known = set(at) | (accepted or set())
    place = ".".join(parents) or "the config"
    similar = difflib.get_close_matches(part, [str(k) for k in known], n=1)
    hint = f"did you mean {'.'.join([*parents, similar[0]])}? " if similar else ""
    own = sorted(str(k) for k in at if k != "type")
    has = f"{place} has {', '.join(own)}. " if parents and not similar and own else ""
    raise UserError(
        "config-value", name, f"{place} has no key {part}; {hint}{has}+{name[14:]}=... adds it"
    )


def _check_kind(name: str, old: Any, new: Any) -> None:
    """A number stays a number, a switch a switch, a dictionary a dictionary (or None)."""
    if isinstance(old, bool):
        fits = isinstance(new, bool) or new is None
        kind = "True or False"
    elif isinstance(old, int | float):
        fits = not isinstance(new, str | bool)
        kind = "a number"
    elif isinstance(old, Mapping):
        fits = new is None or isinstance(new, Mapping)
        kind = f"a dictionary: set one of its keys ({', '.join(str(k) for k in old)})"
    else:
        return
    if not fits:
        raise UserError(
            "argument", f"{name}={new}", f"the value must be {kind}; in the config it is {old!r}"
        )


# ------------------------------------------------------------------------------------------------
# Types and options


def check_config(cfg: Config | Mapping[str, Any]) -> None:
    """Check every ``dict(type=...)`` of a config against the registries, without building it.

    Raises:
        UserError: A type is in no registry it is looked up in, or does not take an option it is
            given; names the place in the config and near matches.
    """
    root = config_tree(cfg) if isinstance(cfg, Config) else cfg
    scope = root.get("default_scope", "mmengine")
    for key, value in root.items():
        # Variables of the config file are only checked where they are used.
        if key in _EFFECTIVE_KEYS:
            _check_node((str(key),), value, scope)


def _check_node(path: tuple[str, ...], node: Any, scope: str) -> None:
    if isinstance(node, list | tuple):
        for i, item in enumerate(node):
            _check_node((*path, str(i)), item, scope)
        return
    if not isinstance(node, Mapping):
        return
    registries = _registries(path, scope)
    accepted = None
    if "type" in node:
        kind = node["type"]
        found = _find_type(kind, registries, node.get("_scope_"))
        if found is None:
            raise UserError("config-value", "", _unknown_type(path, kind, registries))
        accepted = _options_of(found, registries)
        if kind == "Albu":  # its transforms are albumentations', not ours to check
            node = {k: v for k, v in node.items() if k != "transforms"}
    elif path[-1] in _DATALOADERS and len(path) == 1:
        accepted = set(_DATALOADER_KEYS)
    elif len(path) == 1 and path[0] in _UNTYPED_KEYS:
        accepted = set(_UNTYPED_KEYS[path[0]])
    for key, value in node.items():
        if accepted is not None and key not in accepted and key not in ("type", "_scope_"):
            raise UserError("config-value", "", _unknown_option(path, node, str(key), accepted))
        _check_node((*path, str(key)), value, scope)


def _registry(name: str, scope: str) -> Registry | None:
    modules = [our_registry, mmseg_registry, mmengine_registry]
    for module in modules[{"mmseg_resnest": 0, "mmseg": 1}.get(scope, 2) :]:
        if hasattr(module, name):
            return getattr(module, name)
    return None


def _registries(path: tuple[str, ...], scope: str) -> list[Registry]:
    """The registries in which a type at this place of a config is looked up."""
    last = next((p for p in reversed(path) if not p.isdigit()), "")
    top = path[0]
    if last == "init_cfg" or (len(path) > 1 and path[-2] == "init_cfg"):
        names = ["WEIGHT_INITIALIZERS"]
    elif last in ("pipeline", "transforms", "tta_pipeline") or "transforms" in path:
        names = ["TRANSFORMS"]
    elif top in _DATALOADERS:
        names = {
            "dataset": ["DATASETS"],
            "datasets": ["DATASETS"],
            "sampler": ["DATA_SAMPLERS"],
            "batch_sampler": ["DATA_SAMPLERS"],
            "collate_fn": ["FUNCTIONS"],
            "worker_init_fn": ["FUNCTIONS"],
        }.get(last, ["DATASETS", "TRANSFORMS", "DATA_SAMPLERS"])
    elif top in ("val_evaluator", "test_evaluator"):
        names = ["METRICS", "EVALUATOR"]
    elif top in ("default_hooks", "custom_hooks"):
        deep = len(path) > 2
        names = ["HOOKS", "MODELS", "VISUALIZERS", "VISBACKENDS"] if deep else ["HOOKS"]
    elif top in ("train_cfg", "val_cfg", "test_cfg") and len(path) == 1:
        names = ["LOOPS"]
    elif top == "optim_wrapper":
        names = {"optim_wrapper": ["OPTIM_WRAPPERS"], "optimizer": ["OPTIMIZERS"]}.get(
            last, ["OPTIMIZERS", "OPTIM_WRAPPERS"]
        )
    elif top == "param_scheduler":
        names = ["PARAM_SCHEDULERS"]
    elif last == "vis_backends":
        names = ["VISBACKENDS"]
    elif top == "visualizer":
        names = ["VISUALIZERS"]
    elif top == "log_processor":
        names = ["LOG_PROCESSORS"]
    elif top == "model_wrapper_cfg":
        names = ["MODEL_WRAPPERS"]
    elif top in ("model", "tta_model", "data_preprocessor"):
        names = ["MODELS", "TASK_UTILS"]
    else:
        return _all_registries()
    found = [_registry(name, scope) for name in names]
    return [r for r in found if isinstance(r, Registry)]


def _find_type(kind: Any, registries: list[Registry], scope: str | None = None) -> Any:
    """The class or function that a ``type`` names, or None."""
    if not isinstance(kind, str):
        return kind if callable(kind) else None
    names = [f"{scope}.{kind}", kind] if scope and "." not in kind else [kind]
    for name in names:
        for registry in registries:
            try:
                found = registry.get(name)
            except Exception:  # a dotted name whose module cannot be imported
                found = None
            if found is not None:
                return found
    return None


def _all_registries() -> list[Registry]:
    """Ours, each with its parents behind it, and those that only MMEngine has."""
    names = [n for n in dir(mmengine_registry) if n.isupper()]
    found = [_registry(name, "mmseg_resnest") for name in names]
    return [r for r in found if isinstance(r, Registry)]


def _names(registry: Registry | None) -> Iterator[str]:
    while registry is not None:
        yield from registry.module_dict
        registry = registry.parent


def _unknown_type(path: tuple[str, ...], kind: Any, registries: list[Registry]) -> str:
    if not isinstance(kind, str):
        return f"config key {'.'.join(path)}.type: {kind!r} is neither a name nor a class"
    known = sorted({n for r in registries for n in _names(r) if isinstance(n, str)})
    lower = {n.lower(): n for n in known}
    similar = [
        lower[n] for n in difflib.get_close_matches(kind.lower(), list(lower), n=3, cutoff=0.6)
    ]
    what = " or ".join(r.name.replace("_", " ") for r in registries[:2])
    hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
    if not hint:
        other = next((r.name for r in _all_registries() if r.get(kind) is not None), None)
        hint = (
            f"; {kind} is a {other.replace('_', ' ')}"
            if other
            else "; name its module in custom_imports if it is yours"
        )
    return f"config key {'.'.join(path)}.type: there is no {what} called {kind}{hint}"


def _unknown_option(
    path: tuple[str, ...], node: Mapping[str, Any], key: str, accepted: set[str]
) -> str:
    kind = node.get("type")
    who = getattr(kind, "__name__", kind) or ".".join(path)
    similar = difflib.get_close_matches(key, sorted(accepted), n=1)
    hint = f"did you mean {similar[0]}?" if similar else f"it takes {', '.join(sorted(accepted))}"
    return f"config key {'.'.join((*path, key))}: {who} has no option {key}; {hint}"


def _accepted_keys(path: tuple[str, ...], node: Mapping[str, Any], scope: str) -> set[str] | None:
    """The keys a dictionary at this place may have; None when that cannot be known."""
    if "type" in node:
        registries = _registries(path, scope)
        found = _find_type(node["type"], registries, node.get("_scope_"))
        return None if found is None else _options_of(found, registries)
    if len(path) == 1:
        if path[0] in _DATALOADERS:
            return set(_DATALOADER_KEYS)
        default = {"optim_wrapper": "OptimWrapper", "log_processor": "LogProcessor"}.get(path[0])
        if default is not None:
            registries = _registries(path, scope)
            return _options_of(_find_type(default, registries), registries)
        if path[0] in _UNTYPED_KEYS:
            return set(_UNTYPED_KEYS[path[0]])
    return None


def _options_of(found: Any, registries: list[Registry]) -> set[str] | None:
    """Names of the options of a class or function; None when it takes any.

    A class that hands its ``**kwargs`` to the next class of its bases takes the options of that
    one too, and so on down to the first that has no ``**kwargs``. A class that uses them itself
    takes any.
    """
    extra = set().union(*(_BUILD_KEYS.get(r.name, set()) for r in registries))
    extra |= {"_scope_"}
    callables: list[Any] = [found]
    if inspect.isclass(found):
        callables = [
            vars(base)["__init__"] for base in inspect.getmro(found) if "__init__" in vars(base)
        ]
    accepted: set[str] = set()
    for function in callables:
        if function is object.__init__:
            return None
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return None
        accepted |= {
            p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        rest = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
        if rest is None:
            return accepted - {"self"} | extra
        if not _hands_on(function, rest):
            return None
    return None


def _hands_on(function: Any, kwargs: str) -> bool:
    """Whether an ``__init__`` does nothing with its kwargs but ``super().__init__(**kwargs)``."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError):
        return False
    uses = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == kwargs]
    return len(uses) == 1 and any(
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "__init__"
        and any(k.arg is None and k.value is uses[0] for k in call.keywords)
        for call in ast.walk(tree)
    )
