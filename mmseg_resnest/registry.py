# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Registries of scope ``mmseg_resnest``, children of MMSegmentation's.

A config with ``default_scope = 'mmseg_resnest'`` finds the parts registered here first and
every part of MMSegmentation and MMEngine behind them, without a prefix; those of other toolboxes
with theirs (``mmdet.FPN``). In every other scope, MMDetection's and MMPretrain's too,
``mmseg_resnest.ResNeSt`` is the part with that name in here.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import DefaultScope, Registry
from mmseg import registry as mmseg_registry

_lock = threading.RLock()


@contextlib.contextmanager
def building(scope: str | None = None) -> Iterator[None]:
    """The context in which configs are read and their parts are built: one thread at a time.

    MMEngine has one default scope for all threads, and reads configs through variables of the
    process (environment, ``sys.modules``, Python's parser of source code). The default scope is
    put back at the end, also after an error.

    Args:
        scope: The default scope meanwhile; None leaves it as it is.
    """
    with _lock, DefaultScope.overwrite_default_scope(scope):
        yield


def type_name(kind: Any) -> str:
    """The name of a config's ``type``, a string or a class, without its scope or module."""
    return str(getattr(kind, "__name__", kind)).rsplit(".", 1)[-1]


def option_of(registry: Registry, node: Mapping[str, Any], option: str) -> Any:
    """An option of a part's config: what it says, else the default of the class it names."""
    if option in node:
        return node[option]
    kind = node.get("type")
    kind = registry.get(kind) if isinstance(kind, str) else kind
    for base in inspect.getmro(kind) if isinstance(kind, type) else ():
        if "__init__" in vars(base):
            parameter = inspect.signature(vars(base)["__init__"]).parameters.get(option)
            if parameter is not None and parameter.default is not parameter.empty:
                return parameter.default
    return None


def _child(name: str, room: str) -> Registry:
    parent = getattr(mmseg_registry, name)
    child = Registry(
        parent.name, parent=parent, scope="mmseg_resnest", locations=[f"mmseg_resnest.{room}"]
    )
    # Other toolboxes look up a scope among the children of MMEngine's registry only.
    child.root.children[child.scope] = child
    return child


# OpenMMLab's tools look for metafiles only in the packages of this table.
MODULE2PACKAGE.setdefault("mmseg_resnest", "mmseg-resnest")

MODELS = _child("MODELS", "models")
MODEL_WRAPPERS = _child("MODEL_WRAPPERS", "engine")
WEIGHT_INITIALIZERS = _child("WEIGHT_INITIALIZERS", "models")
DATASETS = _child("DATASETS", "datasets")
TRANSFORMS = _child("TRANSFORMS", "datasets")
METRICS = _child("METRICS", "evaluation")
DATA_SAMPLERS = _child("DATA_SAMPLERS", "engine")
HOOKS = _child("HOOKS", "engine")
LOOPS = _child("LOOPS", "engine")
RUNNERS = _child("RUNNERS", "engine")
OPTIMIZERS = _child("OPTIMIZERS", "engine")
OPTIM_WRAPPERS = _child("OPTIM_WRAPPERS", "engine")
OPTIM_WRAPPER_CONSTRUCTORS = _child("OPTIM_WRAPPER_CONSTRUCTORS", "engine")
PARAM_SCHEDULERS = _child("PARAM_SCHEDULERS", "engine")
EVALUATOR = _child("EVALUATOR", "evaluation")
TASK_UTILS = _child("TASK_UTILS", "models")
LOG_PROCESSORS = _child("LOG_PROCESSORS", "engine")
VISUALIZERS = _child("VISUALIZERS", "engine")
VISBACKENDS = _child("VISBACKENDS", "engine")
