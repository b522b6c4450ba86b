# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Importing the OpenMMLab stack in less time: what hardly anyone needs is imported when needed.

Half of the time goes into six import statements, for functions that one loss, one transform, two
models, one optimizer and the text encoders use: SciPy three times, a vocabulary that is unpacked,
and torch's distributed optimizers with its compiler behind them. In their place those statements,
and no others, are given stand-ins that import the real thing when they are called. Where a package
is missing, the statement runs as it stands, with its own error.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import gc
import importlib
import importlib.util
import inspect
import sys
from abc import ABCMeta
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

__all__ = ["importing"]


def _function(module: str, name: str) -> Callable[..., Any]:
    """A function that imports the real one when it is called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    call.__name__, call.__qualname__, call.__module__ = name, name, module
    return call


class _Module:
    """A module that is imported when something of it is asked for."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def _zero_redundancy_optimizer() -> type:
    """A base class that gives its place to torch's when an object of a class below it is made."""
    from torch.optim import Optimizer

    class ZeroRedundancyOptimizer(Optimizer, metaclass=ABCMeta):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            from torch.distributed.optim import ZeroRedundancyOptimizer as Real

            for below in ZeroRedundancyOptimizer.__subclasses__():
                below.__bases__ = tuple(
                    Real if base is ZeroRedundancyOptimizer else base for base in below.__bases__
                )
            Real.__init__(self, *args, **kwargs)  # type: ignore[arg-type]

    return ZeroRedundancyOptimizer


_VOCABULARIES = ("get_classes", "get_predefined_templates")
# Importing module and name of what it imports: packages that must be there; what it is given.
_LATE: dict[tuple[str, str], tuple[tuple[str, ...], Callable[[], dict[str, Any]]]] = {
    ("mmseg.datasets.transforms.transforms", "scipy.ndimage"): (
        ("scipy",),
        lambda: {"gaussian_filter": _function("scipy.ndimage", "gaussian_filter")},
    ),
    ("mmseg.models.losses.huasdorff_distance_loss", "scipy.ndimage"): (
        ("scipy",),
        lambda: {"distance_transform_edt": _function("scipy.ndimage", "distance_transform_edt")},
    ),
    ("mmseg.models.assigners.hungarian_assigner", "scipy.optimize"): (
        ("scipy",),
        lambda: {"linear_sum_assignment": _function("scipy.optimize", "linear_sum_assignment")},
    ),
    ("mmseg.models.backbones.beit", "scipy"): (
        ("scipy",),
        lambda: {"interpolate": _Module("scipy.interpolate")},
    ),
    ("mmseg.utils", "tokenizer"): (
        ("ftfy", "regex"),
        lambda: {"tokenize": _function("mmseg.utils.tokenizer", "tokenize")},
    ),
    ("mmseg.models.text_encoder.clip_text_encoder", "mmseg.utils"): (
        ("ftfy", "regex"),
        lambda: {
            **{name: _function("mmseg.utils", name) for name in _VOCABULARIES},
            "tokenizer": _Module("mmseg.utils.tokenizer"),
        },
    ),
    ("mmengine.optim.optimizer.zero_optimizer", "torch.distributed.optim"): (
        ("torch",),
        lambda: {"ZeroRedundancyOptimizer": _zero_redundancy_optimizer()},
    ),
}


def _stand_in(importer: str, name: str, wanted: Sequence[str]) -> Any:
    """What to give an import statement in place of the module, or None for the module itself."""
    late = _LATE.get((importer, name))
    if late is None:
        return None
    needed, make = late
    if any(importlib.util.find_spec(package) is None for package in needed):
        return None
    given = make()
    return SimpleNamespace(**given) if set(wanted) <= set(given) else None


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    real = builtins.__import__

    @functools.wraps(real)
    def import_(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        if fromlist and globals:
            given = _stand_in(globals.get("__name__", ""), name, fromlist)
            if given is not None:
                return given
        return real(name, globals, locals, fromlist, level)

    builtins.__import__ = import_
    try:
        yield
    finally:
        builtins.__import__ = real


@contextlib.contextmanager
def _no_source_lines() -> Iterator[None]:
    """Spare torch the reading of source files.

    For each operator that it registers it asks for the file and line of the caller, and
    ``inspect`` looks up the text of the line as well.
    """
    real = inspect.getframeinfo
    inspect.getframeinfo = lambda frame, context=0: real(frame, 0)
    try:
        yield
    finally:
        inspect.getframeinfo = real


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Spare the search for garbage, of which an import leaves little, in ever more objects."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            # All objects become old ones: the next search among the young ones is short.
            gc.freeze()
            gc.unfreeze()
            gc.enable()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """The context in which the stack is imported; does nothing where it has been imported."""
    if "mmseg.models" in sys.modules:
        yield
        return
    with _no_collections(), _no_source_lines(), _stand_ins():
        yield
