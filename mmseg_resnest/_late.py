# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Importing the OpenMMLab stack in less time: what hardly anyone needs is imported when needed.

More than half of the time goes into eight import statements, for what one loss, one transform, two
models, one optimizer, sharded training and the text encoders use: SciPy three times, a vocabulary
that is unpacked, and parts of torch.distributed with SymPy and torch's compiler behind them. In
their place those statements, and no others, are given stand-ins that import the real thing when
they are used. Where a package is missing, the statement runs as it stands, with its own error.
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
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

__all__ = ["importing", "stand_ins"]


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


class _LateClass(type):
    """A class whose module is imported when an object or a class below it is made.

    Until then it stands in the registry, under the real one's name. Who looks that up there is
    given the real one.
    """

    _path: tuple[str, str]

    def __new__(
        meta, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any
    ) -> Any:
        late = [isinstance(base, _LateClass) for base in bases]
        if not any(late):
            return super().__new__(meta, name, bases, namespace)
        real = tuple(base._real() if isinstance(base, _LateClass) else base for base in bases)
        return type(real[late.index(True)])(name, real, namespace, **kwargs)

    def _real(cls) -> Any:
        module, name = cls._path
        real = getattr(importlib.import_module(module), name)
        package = module.partition(".")[0]
        for path, loaded in list(sys.modules.items()):
            if (
                path.partition(".")[0] == package
                and getattr(loaded, "__dict__", {}).get(name) is cls
            ):
                setattr(loaded, name, real)
        return real

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._real()(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # Python itself is asking
        return getattr(cls._real(), name)

    def __instancecheck__(cls, instance: Any) -> bool:
        return cls._path[0] in sys.modules and isinstance(instance, cls._real())

    def __subclasscheck__(cls, subclass: type) -> bool:
        if subclass is cls:
            return True
        return cls._path[0] in sys.modules and issubclass(subclass, cls._real())


class _Classes(dict[str, Any]):
    """What a registry holds; a class that stands in for another is not handed out."""

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        return found._real() if isinstance(found, _LateClass) else found


def _class(module: str, name: str, registry: str) -> type:
    """A class that stands in for the one of a module, in one of MMEngine's registries, too."""
    late = _LateClass(name, (), {"__module__": module, "_path": (module, name)})
    holder = getattr(importlib.import_module("mmengine.registry"), registry)
    classes = holder._module_dict = _Classes(holder._module_dict)
    classes[name] = late
    register = holder._register_module

    def give_way(module: Any, *args: Any, **kwargs: Any) -> None:
        """Registers; the real class, however it came to be imported, takes its place back."""
        if getattr(module, "__name__", "") == name and classes.get(name) is late:
            del classes[name]
        register(module, *args, **kwargs)

    holder._register_module = give_way
    return late


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
    # setuptools behind it: asked for the name of an error that a C compiler may raise.
    ("mmengine.utils.dl_utils.collect_env", "distutils"): (
        (),
        lambda: {"errors": _Module("distutils.errors")},
    ),
    ("mmengine.optim.optimizer", "zero_optimizer"): (
        ("torch",),
        lambda: {
            "ZeroRedundancyOptimizer": _class(
                "mmengine.optim.optimizer.zero_optimizer", "ZeroRedundancyOptimizer", "OPTIMIZERS"
            )
        },
    ),
    ("mmengine.model.wrappers", "fully_sharded_distributed"): (
        ("torch",),
        lambda: {
            "MMFullyShardedDataParallel": _class(
                "mmengine.model.wrappers.fully_sharded_distributed",
                "MMFullyShardedDataParallel",
                "MODEL_WRAPPERS",
            )
        },
    ),
    ("mmengine._strategy", "fsdp"): (
        ("torch",),
        lambda: {"FSDPStrategy": _class("mmengine._strategy.fsdp", "FSDPStrategy", "STRATEGIES")},
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
def stand_ins() -> Iterator[None]:
    """The context in which the named import statements are given their stand-ins."""
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
    with _no_collections(), _no_source_lines(), stand_ins():
        yield
