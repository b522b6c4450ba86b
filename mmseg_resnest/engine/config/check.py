# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Types and options of a config, checked against the registries without building anything."""

from __future__ import annotations

import ast
import difflib
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mmengine.registry as mmengine_registry
import mmseg.registry as mmseg_registry
import torch
from mmcv.transforms import RandomChoiceResize, RandomResize
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.registry import Registry
from mmengine.runner import Runner
from mmseg.evaluation.metrics import CityscapesMetric, DepthMetric, IoUMetric
from mmseg.models.losses import HuasdorffDisstanceLoss
from mmseg.utils import register_all_modules
from torch.utils.data import DataLoader

from ... import registry as our_registry
from ..._stack import config_tree, import_operators
from ...errors import UserError
from ...evaluation import MORE_METRICS, SegmentationMetric
from ...registry import type_name
from .kinds import DATALOADERS, check_kinds
from .numbers import check_numbers
from .pipelines import PipelineCheck

# A registry imports its own module when asked, but not that of its parent: without this, the names
# of MMSegmentation that nobody has imported yet would seem not to exist.
register_all_modules(init_default_scope=False)

#: The modules that hold registries: each one's have those of the next as parents.
REGISTRY_MODULES = (our_registry, mmseg_registry, mmengine_registry)
#: What the registries are called in those modules.
REGISTRY_NAMES = tuple(name for name in dir(mmengine_registry) if name.isupper())
#: Top-level keys that something reads after the config is parsed. Any other one is a variable of
#: the config file: changing it afterwards changes nothing.
RUNNER_KEYS = frozenset(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"}
EFFECTIVE_KEYS = RUNNER_KEYS | {
    *("activation_checkpointing", "compile", "custom_imports", "data_root", "dry_step"),
    "distillation",
    *("efficient_conv_bn_eval", "find_unused_parameters", "model_wrapper_cfg", "numerics"),
    *("runner_type", "strategy", "sync_bn", "total_batch_size", "tta_model", "tta_pipeline"),
}
#: Keys whose value is looked up in a registry.
TYPE_KEYS = ("type", "constructor", "runner_type")
#: The keys of top-level dictionaries that have no type.
_UNTYPED: dict[str, frozenset[str]] = {
    "randomness": frozenset({"seed", "deterministic", "diff_rank_seed"}),
    "auto_scale_lr": frozenset({"enable", "base_batch_size"}),
    "env_cfg": frozenset({"cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"}),
    "numerics": frozenset({"fused"}),
    "distillation": frozenset({"teacher", "losses"}),
    "compile": frozenset(inspect.signature(torch.compile).parameters) - {"model"},
    **dict.fromkeys(
        DATALOADERS,
        frozenset(inspect.signature(DataLoader.__init__).parameters) - {"self"}
        | {"disable_subprocess_warning", "num_batch_per_epoch"},
    ),
}
#: The type of top-level dictionaries that may leave it out.
_DEFAULT_TYPES = {"optim_wrapper": "OptimWrapper", "log_processor": "LogProcessor"}
#: Keys that a registry's build function takes out before it calls the class.
_BUILD_KEYS = {
    "hook": {"priority"},
    "optimizer wrapper": {"constructor", "optimizer", "paramwise_cfg"},
    "optim_wrapper": {"constructor", "optimizer", "paramwise_cfg"},
    "parameter scheduler": {"convert_to_iter_based"},
    "model": {"requires_grad"},  # of normalisation layers
    "weight initializer": {"override"},
}
#: Registries in which types are looked up, by top-level key.
_REGISTRIES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(DATALOADERS, ("DATASETS", "TRANSFORMS", "DATA_SAMPLERS")),
    **dict.fromkeys(("val_evaluator", "test_evaluator"), ("METRICS", "EVALUATOR")),
    **dict.fromkeys(("default_hooks", "custom_hooks"), ("HOOKS",)),
    **dict.fromkeys(("train_cfg", "val_cfg", "test_cfg"), ("LOOPS",)),
    **dict.fromkeys(("model", "tta_model", "data_preprocessor"), ("MODELS", "TASK_UTILS")),
    "optim_wrapper": ("OPTIMIZERS", "OPTIM_WRAPPERS"),
    "param_scheduler": ("PARAM_SCHEDULERS",),
    "visualizer": ("VISUALIZERS",),
    "log_processor": ("LOG_PROCESSORS",),
    "distillation": ("MODELS",),
    "model_wrapper_cfg": ("MODEL_WRAPPERS",),
}
#: The same, by top-level key and the last key.
_REGISTRIES_OF_KEYS: dict[tuple[str, str], tuple[str, ...]] = {
    ("optim_wrapper", "optim_wrapper"): ("OPTIM_WRAPPERS",),
    ("optim_wrapper", "optimizer"): ("OPTIMIZERS",),
    ("visualizer", "vis_backends"): ("VISBACKENDS",),
    **{
        (loader, key): (name,)
        for loader in DATALOADERS
        for key, name in {
            "dataset": "DATASETS",
            "datasets": "DATASETS",
            "sampler": "DATA_SAMPLERS",
            "batch_sampler": "DATA_SAMPLERS",
            "collate_fn": "FUNCTIONS",
            "worker_init_fn": "FUNCTIONS",
        }.items()
    },
}

#: Options of metrics that name scores; a wrong one would fail at the first validation.
_CHOICES: dict[Any, tuple[str, tuple[str, ...]]] = {
    SegmentationMetric: ("metrics", MORE_METRICS),
    IoUMetric: ("iou_metrics", ("mIoU", "mDice", "mFscore")),
}
#: Scores that ``SegmentationMetric`` has under another name, or without being asked.
_SAME_SCORES = {
    **dict.fromkeys(("mIoU", "IoU", "mAcc", "pixAcc"), "it is always computed; leave it out"),
    "aAcc": "it is pixAcc here, which is always computed; leave it out",
    **dict.fromkeys(("mDice", "Dice"), "it is called F1 here, which of a class is the same"),
    **dict.fromkeys(("mFscore", "Fscore"), "write F1, precision and recall"),
}

#: Classes that build another part from the options they do not know: the option that names it, its
#: default, its registry, and what they give it themselves.
_HANDED_ON: dict[type, tuple[str, str, str, set[str]]] = {
    RandomResize: ("resize_type", "Resize", "TRANSFORMS", {"scale", "scale_factor"}),
    RandomChoiceResize: ("resize_type", "Resize", "TRANSFORMS", {"scale", "scale_factor"}),
    EMAHook: ("ema_type", "ExponentialMovingAverage", "MODELS", {"model"}),
}
#: Classes that do nothing with options they do not know.
_DROPPING: tuple[type, ...] = (
    *(CityscapesMetric, DepthMetric, IoUMetric, HuasdorffDisstanceLoss),
    CheckpointHook,  # and fails with the first checkpoint
)

#: Keys whose type MMDetection looks up in ``mmcv.ops``.
_OPERATOR_KEYS = ("nms", "roi_layer")

#: Functions of this package that read options and change none.
_READERS = frozenset({"check_losses", "check_multilabel", "set"})

Path = tuple[str, ...]


def check_config(cfg: Config | Mapping[str, Any]) -> None:
    """Check every ``dict(type=...)`` of a config against the registries, without building it.

    Raises:
        UserError: A part is of another kind than it must be (a dictionary, a list, a text), a type
            is in no registry it is looked up in, or does not take an option it is given, or a
            transform is refused; names the place in the config and near matches.
    """
    root = config_tree(cfg) if isinstance(cfg, Config) else cfg
    check_kinds(root)
    check_numbers(root)
    scope = root.get("default_scope", "mmengine")
    for key, value in root.items():
        # Variables of the config file are only checked where they are used.
        if key in EFFECTIVE_KEYS:
            _check_node((str(key),), value, scope)
    _check_pipelines(root, scope)


def _check_pipelines(root: Mapping[str, Any], scope: str) -> None:
    def find(path: Path, node: Mapping[str, Any]) -> Any:
        return _find_type(node["type"], _registries(path, scope), node.get("_scope_"))

    check = PipelineCheck(find)
    for loader in DATALOADERS:
        check.check_dataset((loader, "dataset"), (root.get(loader) or {}).get("dataset"))
    check.check_steps(("tta_pipeline",), root.get("tta_pipeline"))


def _check_node(path: Path, node: Any, scope: str) -> None:
    if isinstance(node, list | tuple):
        for i, item in enumerate(node):
            _check_node((*path, str(i)), item, scope)
    if not isinstance(node, Mapping):
        return
    accepted = None
    if "type" in node:
        kind, registries = node["type"], _registries(path, scope)
        found = _find_type(kind, registries, node.get("_scope_"))
        if found is None and path[-1] in _OPERATOR_KEYS:
            found = getattr(import_operators(), str(kind), None)
        if found is None:
            raise _unknown_type(path, kind, registries)
        known, others = _options_at(path, node, found, registries, scope)
        accepted = None if others else known
        if found in _CHOICES:
            _check_choices(path, node, *_CHOICES[found])
        if kind == "Albu":  # its transforms are albumentations', not ours to check
            node = {k: v for k, v in node.items() if k != "transforms"}
    elif len(path) == 1 and path[0] in _UNTYPED:
        accepted = set(_UNTYPED[path[0]])
    elif path == ("log_processor",):  # it may leave its type out
        accepted = accepted_keys(path, node, scope)
    for key, value in node.items():
        if accepted is not None and key not in accepted and key not in ("type", "_scope_"):
            raise _unknown_option(path, node, str(key), accepted)
        _check_node((*path, str(key)), value, scope)


def _options_at(
    path: Path, node: Mapping[str, Any], found: Any, registries: list[Registry], scope: str
) -> tuple[set[str], bool]:
    """As :func:`_options_of`, with the options of the part that a class builds from the rest."""
    known, others = _options_of(found, registries)
    for kind, (key, default, family, given) in _HANDED_ON.items():
        if isinstance(found, type) and issubclass(found, kind) and others:
            name, owner = node.get(key, default), registry_of(family, scope)
            inside = [] if owner is None else [owner]
            part = _find_type(name, inside)
            if part is None:
                raise _unknown_type(path, name, inside, key)
            inner, others = _options_of(part, inside)
            known = known | (inner - given)
    return known, others


def _check_choices(path: Path, node: Mapping[str, Any], key: str, known: Sequence[str]) -> None:
    """Raise unless an option is one of the known names, or several."""
    value = node.get(key, ())
    for name in value if isinstance(value, list | tuple) else [value] if value else ():
        if name not in known:
            similar = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
            hint = f" did you mean {similar[0]}? It" if similar else " it"
            if known is MORE_METRICS and str(name) in _SAME_SCORES:
                hint = f" {_SAME_SCORES[str(name)]}. It"
            place = f"config key {'.'.join((*path, key))}"
            message = f"{type_name(node['type'])} takes no {name} there;{hint} takes "
            raise UserError("config-value", place, message + ", ".join(known))


def accepted_keys(path: Path, node: Mapping[str, Any], scope: str) -> set[str] | None:
    """The keys that a dictionary at ``path`` is known to take; None when none can be known."""
    kind = node.get("type", _DEFAULT_TYPES.get(path[0]) if len(path) == 1 else None)
    if kind is not None:
        registries = _registries(path, scope)
        found = _find_type(kind, registries, node.get("_scope_"))
        if found is None:
            return None
        return _options_at(path, node, found, registries, scope)[0] or None
    return set(_UNTYPED[path[0]]) if len(path) == 1 and path[0] in _UNTYPED else None


def takes_key(path: Path, node: Mapping[str, Any], key: str, scope: str) -> bool:
    """Whether :func:`check_config` would let a key stand in a dictionary at ``path``."""
    kind = {name: node[name] for name in ("type", "_scope_") if name in node}
    try:
        _check_node(path, {**kind, key: None}, scope)
    except UserError:
        return False
    return True


def registry_of(name: str, scope: str) -> Registry | None:
    """The registry in which a scope looks first, of a name of :data:`REGISTRY_NAMES`."""
    for module in REGISTRY_MODULES[{"mmseg_resnest": 0, "mmseg": 1}.get(scope, 2) :]:
        found = getattr(module, name, None)
        if isinstance(found, Registry):
            return found
    return None


def _registries(path: Path, scope: str) -> list[Registry]:
    """The registries in which a type at this place of a config is looked up."""
    last = next((p for p in reversed(path) if not p.isdigit()), "")
    top = path[0]
    names: tuple[str, ...] | None
    if last == "init_cfg" or path[-2:-1] == ("init_cfg",):
        names = ("WEIGHT_INITIALIZERS",)
    elif last in ("pipeline", "transforms", "tta_pipeline") or "transforms" in path:
        names = ("TRANSFORMS",)
    elif top in ("default_hooks", "custom_hooks") and len(path) > 2:
        names = ("HOOKS", "MODELS", "VISUALIZERS", "VISBACKENDS")
    elif top in ("train_cfg", "val_cfg", "test_cfg") and len(path) > 1:
        names = None
    else:
        names = _REGISTRIES_OF_KEYS.get((top, last)) or _REGISTRIES.get(top)
    return _registries_called(names, scope) if names is not None else _registries_called()


def _registries_called(
    names: Sequence[str] = REGISTRY_NAMES, scope: str = "mmseg_resnest"
) -> list[Registry]:
    """Registries that have their parents behind them; by default all."""
    found = (registry_of(name, scope) for name in names)
    return [registry for registry in found if registry is not None]


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


def _names(registry: Registry | None) -> Iterator[str]:
    while registry is not None:
        yield from registry.module_dict
        registry = registry.parent


def _unknown_type(
    path: Path, kind: Any, registries: list[Registry], key: str = "type"
) -> UserError:
    place = f"config key {'.'.join((*path, key))}"
    if not isinstance(kind, str):
        return UserError("config-type", place, f"{kind!r} is neither a name nor a class")
    lower = {n.lower(): n for r in registries for n in _names(r) if isinstance(n, str)}
    similar = difflib.get_close_matches(kind.lower(), sorted(lower), n=3, cutoff=0.6)
    what = " or ".join(r.name.replace("_", " ") for r in registries[:2])
    other = next((r.name for r in _registries_called() if kind and r.get(kind) is not None), None)
    hint = "name its module in custom_imports if it is yours"
    if similar:
        hint = f"did you mean {' or '.join(lower[name] for name in similar)}?"
    elif other:
        hint = f"{kind} is a {other.replace('_', ' ')}"
    return UserError("config-type", place, f"there is no {what} called {kind}; {hint}")


def _unknown_option(path: Path, node: Mapping, key: str, accepted: set[str]) -> UserError:
    kind = node.get("type")
    who = getattr(kind, "__name__", kind) or ".".join(path)
    similar = difflib.get_close_matches(key, sorted(accepted), n=1)
    hint = f"did you mean {similar[0]}?" if similar else f"it takes {', '.join(sorted(accepted))}"
    place = f"config key {'.'.join((*path, key))}"
    return UserError("config-key", place, f"{who} has no option {key}; {hint}")


def _options_of(found: Any, registries: list[Registry]) -> tuple[set[str], bool]:
    """Names of the options of a class or function, and whether it takes others.

    A class that does nothing with its ``**kwargs`` but hand them to the next class of its bases
    takes the options of that one too, and so on.
    """
    callables: list[Any] = [found]
    if inspect.isclass(found):
        callables = [
            vars(base)["__init__"] for base in inspect.getmro(found) if "__init__" in vars(base)
        ]
    drops = inspect.isclass(found) and issubclass(found, _DROPPING)
    accepted: set[str] = {"_scope_"}.union(*(_BUILD_KEYS.get(r.name, set()) for r in registries))
    for function in callables:
        if function is object.__init__:
            break
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            break
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        accepted |= {p.name for p in parameters if p.kind in named and p.name != "self"}
        rest = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
        if rest is None:
            return accepted, False
        if not _hands_on(function, rest):
            return accepted, not drops
    return accepted, True


def _hands_on(function: Any, kwargs: str) -> bool:
    """Whether an ``__init__`` hands its kwargs to ``super().__init__(**kwargs)`` as they are."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError):
        return False
    uses = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == kwargs]
    read = [
        call.args[0]
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in _READERS and call.args
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):  # {**kwargs}
            read += [value for k, value in zip(node.keys, node.values, strict=True) if k is None]
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Name):
            read.append(node.value)
    handed = [
        keyword.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "__init__"
        for keyword in call.keywords
        if keyword.arg is None
    ]
    others = [use for use in uses if use not in handed and use not in read]
    return any(use in handed for use in uses) and not others
