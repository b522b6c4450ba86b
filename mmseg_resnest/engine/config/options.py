# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Changes of a config from the command line: ``--cfg-options KEY=VALUE``."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.utils import import_modules_from_strings

from ..._stack import config_tree
from ...datasets import leaf_datasets
from ...errors import UserError
from ...evaluation import metric_configs
from .check import EFFECTIVE_KEYS, RUNNER_KEYS, accepted_keys, takes_key
from .kinds import DATALOADERS
from .values import parse_value

_logger = logging.getLogger(__name__)
_DELETE = "_delete_"
#: Keys that a run sets from its arguments, and the option for each.
_ARGUMENTS = {"launcher": "--launcher", "resume": "--resume"}


def parse_cfg_options(options: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` strings as a mapping, keys as given (with a leading ``+`` where there is one).

    Values are read by :func:`.values.parse_value`. Of a key that is given twice the last value
    counts, with a warning. UserError names a string of another form.
    """
    parsed: dict[str, Any] = {}
    for option in options:
        name = f"--cfg-options {option}"
        key, equals, value = str(option).partition("=")
        if not equals:
            message = "must be of the form KEY=VALUE; put quotes around it if it has spaces"
            raise UserError("argument", name, message)
        _parts(key, name)
        if key in parsed:
            _logger.warning("--cfg-options %s is given twice; the last one counts", key)
            del parsed[key]
        try:
            parsed[key] = parse_value(value)
        except ValueError as error:
            hint = f"for text, put it in quotes within the others: {key}=\"'...'\""
            raise UserError("argument", name, f"{error}; {hint}") from error
    return parsed


def apply_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Change a config, in place; UserError for unknown keys and values of another kind.

    A dictionary is merged into the one that is there, as where a config inherits: ``_delete_=True``
    in it drops the old keys. A number in a key is the place in a list. A warning names a key that
    changes nothing.
    """
    given = {key: _parts(key, f"--cfg-options {key}") for key in options}
    heads = {tuple(parts) for parts in given.values()}

    def rank(key: str) -> int:
        # What the other keys rely on comes first, whatever the order; a type within a dictionary
        # that another key sets comes after that.
        *above, last = given[key]
        within = any(tuple(above[:depth]) in heads for depth in range(1, len(above) + 1))
        return 0 if last == _DELETE else 1 if last == "type" and not within else 2

    for key in sorted(options, key=rank):
        parts, value = given[key], options[key]
        if parts[-1] == _DELETE:
            parts, value = parts[:-1], {_DELETE: value}
        if not parts or parts[0] in _ARGUMENTS:
            option = _ARGUMENTS.get(parts[0]) if parts else "a key before it"
            message = f"changes nothing here; use {option}"
            raise UserError("config-key", f"--cfg-options {key}", message)
        if parts == ["data_root"]:
            _set_data_root(cfg, value)
            continue
        _check_option(cfg, key, parts, value)
        before = config_tree(cfg).get(parts[0])
        cfg[parts[0]] = _put(before, parts[1:], value)
        if before is not None and config_tree(cfg)[parts[0]] == before:
            _logger.warning("--cfg-options %s changes nothing: the config has that value", key)
    if any(parts[0] == "custom_imports" for parts in given.values()):
        _import_modules(cfg)


def _parts(key: Any, name: str) -> list[str]:
    """The names and numbers that a key consists of."""
    if not isinstance(key, str) or not key.lstrip("+") or key != key.strip():
        raise UserError("argument", name, "must be of the form KEY=VALUE (no spaces in KEY)")
    parts = key.lstrip("+").split(".")
    if not all(parts):
        raise UserError("argument", name, "the key has an empty part between two dots")
    return parts


def _index(at: Sequence[Any], part: Any, where: str, name: str) -> int:
    """The place that a part of a key names in a list."""
    text = str(part)
    if text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < len(at):
        return int(text)
    message = f"{where} is a list: put a number from 0 to {len(at) - 1} for {text}"
    if not at:
        message = f"{where} is an empty list"
    raise UserError("config-key", name, f"{message}, or set it as a whole: {where}=[...]")


def _put(node: Any, parts: Sequence[Any], value: Any) -> Any:
    """``node`` with the value in the place that ``parts`` name; what it holds is not changed."""
    if not parts:
        return _merged(node, value)
    part, *rest = parts
    if isinstance(node, list | tuple):
        items = list(node)
        items[int(part)] = _put(items[int(part)], rest, value)
        return type(node)(items)
    changed = ConfigDict(node) if isinstance(node, Mapping) else ConfigDict()
    changed[part] = _put(changed.get(part), rest, value)
    return changed


def _merged(old: Any, new: Any) -> Any:
    """``new``; of two dictionaries one with the keys of both."""
    if not isinstance(new, Mapping):
        return new
    keys = [key for key in new if key != _DELETE]
    places = isinstance(old, list | tuple) and keys and all(str(key).isdecimal() for key in keys)
    if new.get(_DELETE) or not (isinstance(old, Mapping) or places):
        old = ConfigDict()
    for key in keys:
        if isinstance(old, list | tuple):
            _index(old, key, "the value", "--cfg-options")
        old = _put(old, [key], new[key])
    return old


def _import_modules(cfg: Config) -> None:
    """Import the modules of ``custom_imports``, which reading the config did not know of."""
    try:
        import_modules_from_strings(**(cfg.get("custom_imports") or {}))
    except Exception as error:  # of any kind: it runs the user's module
        message = f"cannot be imported ({error}); set PYTHONPATH to the folder of the module"
        raise UserError("config-value", "--cfg-options custom_imports", message) from error


def _set_data_root(cfg: Config, root: Any) -> None:
    """Make ``root`` the data_root of every data set, also for metrics that read a file below it."""
    if not isinstance(root, str):
        message = "must name a folder; one that reads as something else needs quotes of its own: "
        message += "data_root=\"'...'\""
        raise UserError("config-value", f"--cfg-options data_root={root}", message)
    loaders = [(cfg.get(name) or {}).get("dataset") for name in DATALOADERS]
    sets: list[Any] = [one for d in loaders if isinstance(d, Mapping) for one in leaf_datasets(d)]
    if not sets:
        message = "the config has no data loader to change"
        raise UserError("config-key", "--cfg-options data_root", message)
    before = {os.path.join(d["data_root"], "") for d in sets if d.get("data_root")}
    evaluators = [cfg.get(name) or () for name in ("val_evaluator", "test_evaluator")]
    metrics = {id(metric): metric for one in evaluators for metric in metric_configs(one)}
    for metric in metrics.values():
        file = metric.get("ann_file") if isinstance(metric, dict) else None
        if isinstance(file, str) and (start := next(filter(file.startswith, before), None)):
            metric["ann_file"] = os.path.join(root, file[len(start) :])
    for dataset in sets:
        dataset["data_root"] = root
    cfg["data_root"] = root


def _check_option(cfg: Config, key: str, parts: Sequence[str], value: Any) -> None:
    """Check one change against the config it is made to."""
    name = f"--cfg-options {key}"
    at: Any = config_tree(cfg)
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth])
        if isinstance(at, list | tuple):
            at = at[_index(at, part, where, name)]
        elif not isinstance(at, Mapping):
            rest = ".".join(parts[depth:])
            message = f"{where} is {at!r}, which has no keys; set it: {where}={{{rest}: ...}}"
            raise UserError("config-key", name, message)
        elif part in at and (depth or part in EFFECTIVE_KEYS):
            at = at[part]
        else:
            if not key.startswith("+"):
                scope = cfg.get("default_scope", "mmengine")
                _refuse_unknown_key(name, tuple(parts[:depth]), part, at, scope)
            elif not depth and part not in EFFECTIVE_KEYS:
                _logger.warning("%s: no part of the stack reads the key %s", name, part)
            return  # a new option of a known class: below it anything goes
    _check_kind(name, at, value)


def _refuse_unknown_key(
    name: str, parents: tuple[str, ...], part: str, at: Mapping[str, Any], scope: str
) -> None:
    """Raise unless the class that ``at`` configures takes an option ``part``."""
    accepted = accepted_keys(parents, at, scope) if parents else EFFECTIVE_KEYS
    if (accepted is None and parents and not at) or (accepted is not None and part in accepted):
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
    hints = []
    if similar:
        hints.append(f"did you mean {'.'.join([*parents, similar[0]])}?")
    elif parents and own:
        hints.append(f"{place} has {', '.join(own)}.")
    if not parents or takes_key(parents, at, part, scope):
        hints.append(f"+{'.'.join([*parents, part])}=... adds it")
    raise UserError("config-key", name, f"{place} has no key {part}; {' '.join(hints)}")


def _check_kind(name: str, old: Any, new: Any) -> None:
    """A number stays a number, a switch a switch, a dictionary a dictionary (or some, or None)."""
    if isinstance(old, bool):
        fits, kind = isinstance(new, bool) or new is None, "True or False"
    elif isinstance(old, int | float):
        fits, kind = not isinstance(new, str | bool | Mapping), "a number"
    elif isinstance(old, Mapping) or (old and _are_dictionaries(old)):
        fits = new is None or isinstance(new, Mapping) or _are_dictionaries(new)
        kind = "a dictionary, {key: value}, or a list of them"
        if isinstance(old, Mapping):
            kind += f"; or set one of its keys ({', '.join(str(k) for k in old)})"
    else:
        return
    if not fits:
        message = f"the value must be {kind}; in the config it is {old!r}"
        raise UserError("config-value", f"{name}={new}", message)


def _are_dictionaries(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, Mapping) for one in value)
