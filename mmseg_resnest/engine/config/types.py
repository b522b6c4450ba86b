# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Names in place of the classes and functions that configs in MMEngine's Python style hold.

Such a config imports what it names (``type=EncoderDecoder``). Everything behind this module sees
the config that says the same with texts, which can be printed, saved, compared and read again.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.utils import get_object_from_string

from ..._stack import config_environment, config_imports, config_tree
from ...errors import UserError
from .check import EFFECTIVE_KEYS, REGISTRY_NAMES, TYPE_KEYS, registry_of

SCOPE = "mmseg_resnest"
#: Parts of this package that are not the parts of the stack with their names.
_OTHER_PARTS = frozenset({"ResNeSt"})


def named_types(cfg: Config) -> Config:
    """The same config with a name for each class and function; ``cfg`` itself where it has none.

    A part gets the name that finds it in the config's default scope; one of the stack that is
    extended there under its own name becomes the extended one, as it is for a text. What no name
    finds gets its full name, with its module. A config in Python style that has no default scope
    gets this package's.

    Raises:
        UserError: An import fails, or a key holds a class or a function that has no such name, or
            that nothing looks up.
    """
    imported = config_imports(cfg)
    tree = config_tree(cfg)
    if not imported and not _holds_objects(tree):
        return cfg
    scope = tree.get("default_scope") or SCOPE
    values: dict[str, Any] = {}
    for key in [key for key in tree if key not in imported]:  # unused imports may fail
        value = tree[key]
        if not inspect.ismodule(value) and not inspect.isroutine(value):
            values[key] = _named((key,), value, scope)
    values["default_scope"] = scope
    return Config(values, cfg.text, cfg.filename, config_environment(cfg))


def _holds_objects(value: Any) -> bool:
    if isinstance(value, dict):  # whose own values() would import what it names
        return any(_holds_objects(item) for item in dict.values(value))
    if isinstance(value, list | tuple):
        return any(map(_holds_objects, value))
    return isinstance(value, LazyObject | LazyAttr) or _is_code(value)


def _is_code(value: Any) -> bool:
    """A class, a function, or a function with some of its arguments."""
    return inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, partial)


def _named(path: tuple[str, ...], value: Any, scope: str) -> Any:
    if isinstance(value, LazyObject | LazyAttr):  # in lists MMEngine leaves them
        value = value.build()
    if isinstance(value, Mapping):
        scope = value.get("_scope_") or scope
        found = {key: _named((*path, str(key)), item, scope) for key, item in value.items()}
        return ConfigDict(found)
    if isinstance(value, list | tuple):
        return type(value)(_named((*path, str(i)), item, scope) for i, item in enumerate(value))
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if not _is_code(value):
        return value
    if path[0] in EFFECTIVE_KEYS and path[-1] not in TYPE_KEYS:
        shown = getattr(value, "__name__", repr(value))
        message = f"holds {shown} itself, which cannot be saved with the run; only type may name a "
        message += f"class or a function: write dict(type={shown})"
        raise UserError("config-value", f"config key {'.'.join(path)}", message)
    return _name_of(path, value, scope)


def _name_of(path: tuple[str, ...], kind: Any, scope: str) -> str:
    """The text that finds a class or function in the default scope."""
    for family in REGISTRY_NAMES:
        owner = registry_of(family, SCOPE)
        while owner is not None:
            owner.import_from_location()
            for name, part in owner.module_dict.items():
                if part is kind and _stands_for(family, name, kind, scope):
                    return name
            owner = owner.parent
    if kind is torch.nn.SyncBatchNorm:
        return "SyncBN"  # registered is a class that extends it
    name = f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', '')}"
    if get_object_from_string(name) is not kind:
        message = f"{kind!r} cannot be found by the name {name}; define it at the top of a module "
        message += "and import it from there"
        raise UserError("config-type", f"config key {'.'.join(path)}", message)
    return name


def _stands_for(family: str, name: str, kind: Any, scope: str) -> bool:
    """Whether a scope has ``kind`` under its name, or a part of this package that replaces it."""
    registry = registry_of(family, scope)
    found = None if registry is None else registry.get(name)
    if isinstance(found, type) and isinstance(kind, type):
        ours = found.__module__.startswith(f"{SCOPE}.") and name not in _OTHER_PARTS
        return ours or issubclass(found, kind)
    return found is kind
