# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Changes of a config from the command line: ``--cfg-options KEY=VALUE``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config

from ..._stack import config_tree, parse_option_value
from ...datasets import leaf_datasets
from ...errors import UserError
from .check import DATALOADERS, EFFECTIVE_KEYS, RUNNER_KEYS, accepted_keys


def parse_cfg_options(options: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` strings as a mapping, keys as given (with a leading ``+`` where there is one).

    Values are read as MMEngine reads them: numbers, ``True``/``False``, ``None``, ``a,b`` or
    ``[a,b]`` as a list, ``(a,b)`` as a tuple, anything else as text. UserError names a string of
    another form.
    """
    parsed = {}
    for option in options:
        key, equals, value = option.partition("=")
        name = f"--cfg-options {option}"
        if not equals or not key.strip("+") or key != key.strip():
            raise UserError("argument", name, "must be of the form KEY=VALUE (no spaces)")
        if not all(key.lstrip("+").split(".")):
            raise UserError("argument", name, "the key has an empty part between two dots")
        try:
            parsed[key] = parse_option_value(value)
        except AssertionError as error:
            raise UserError("argument", name, "the brackets of the value do not match") from error
    return parsed


def apply_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Change a config, in place; UserError for unknown keys and values of another kind."""
    changes: dict[str, Any] = {}
    for key, value in options.items():
        if key == "data_root":
            _set_data_root(cfg, value)
        else:
            _check_option(cfg, key, value)
            changes[key.lstrip("+")] = value
    try:
        cfg.merge_from_dict(changes)
    except (KeyError, TypeError) as error:
        raise UserError("config-key", "--cfg-options", str(error.args[0])) from error


def _set_data_root(cfg: Config, root: Any) -> None:
    """Make ``root`` the data_root of every data set in the data loaders."""
    if not isinstance(root, str):
        raise UserError("config-value", f"--cfg-options data_root={root}", "must name a folder")
    loaders = [(cfg.get(name) or {}).get("dataset") for name in DATALOADERS]
    sets: list[Any] = [one for d in loaders if isinstance(d, Mapping) for one in leaf_datasets(d)]
    if not sets:
        message = "the config has no data loader to change"
        raise UserError("config-key", "--cfg-options data_root", message)
    for dataset in sets:
        dataset["data_root"] = root
    cfg["data_root"] = root


def _check_option(cfg: Config, key: str, value: Any) -> None:
    """Check one change against the config it is made to."""
    parts = key.lstrip("+").split(".")
    name = f"--cfg-options {key}"
    at: Any = config_tree(cfg)
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth])
        if isinstance(at, list | tuple):
            if not part.isdigit() or int(part) >= len(at):
                message = f"{where} is a list: put a number from 0 to {len(at) - 1} for {part}"
                raise UserError("config-key", name, message)
            at = at[int(part)]
        elif not isinstance(at, Mapping):
            message = f"{where} is {at!r}, which has no keys; set {where} itself"
            if at is None:
                message = f"{where} is None; set it as a whole in a config that inherits"
            raise UserError("config-key", name, message)
        elif part in at and (depth or part in EFFECTIVE_KEYS):
            at = at[part]
        else:
            if not key.startswith("+"):
                scope = cfg.get("default_scope", "mmengine")
                _refuse_unknown_key(name, tuple(parts[:depth]), part, at, scope)
            return  # a new option of a known class: below it anything goes
    _check_kind(name, at, value)


def _refuse_unknown_key(
    name: str, parents: tuple[str, ...], part: str, at: Mapping[str, Any], scope: str
) -> None:
    """Raise unless the class that ``at`` configures takes an option ``part``."""
    accepted = accepted_keys(parents, at, scope) if parents else EFFECTIVE_KEYS
    if accepted is not None and part in accepted:
        return
    if not parents and part in at:
        raise UserError(
            "config-key",
            name,
            f"{part} is a variable inside the config file; what was made from it does not change. "
            "Change the full key (mmseg-resnest print-config shows it), or write a config that "
            f"inherits. +{part}=... sets it nevertheless",
        )
    known = set(at) | (accepted or set()) if parents else EFFECTIVE_KEYS & (set(at) | RUNNER_KEYS)
    place = ".".join(parents) or "the config"
    similar = difflib.get_close_matches(part, [str(k) for k in known], n=1)
    own = sorted(str(k) for k in at if k != "type")
    hint = ""
    if similar:
        hint = f"did you mean {'.'.join([*parents, similar[0]])}? "
    elif parents and own:
        hint = f"{place} has {', '.join(own)}. "
    full = ".".join([*parents, part])
    raise UserError("config-key", name, f"{place} has no key {part}; {hint}+{full}=... adds it")


def _check_kind(name: str, old: Any, new: Any) -> None:
    """A number stays a number, a switch a switch, a dictionary a dictionary (or None)."""
    if isinstance(old, bool):
        fits, kind = isinstance(new, bool) or new is None, "True or False"
    elif isinstance(old, int | float):
        fits, kind = not isinstance(new, str | bool), "a number"
    elif isinstance(old, Mapping):
        fits = new is None or isinstance(new, Mapping)
        kind = f"a dictionary: set one of its keys ({', '.join(str(k) for k in old)})"
    else:
        return
    if not fits:
        message = f"the value must be {kind}; in the config it is {old!r}"
        raise UserError("config-value", f"{name}={new}", message)
