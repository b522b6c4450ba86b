# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Kinds of values that keys of a config take: what a part would fail on with a traceback."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

from ...errors import check_value

DATALOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
_NOTHING = type(None)
_TEXT, _DICTIONARY, _LIST = (str, _NOTHING), (Mapping, _NOTHING), (list, tuple)
_SEVERAL = (Mapping, *_LIST, _NOTHING)
_NAMES = (str, *_LIST, _NOTHING)
#: Of plain values; objects that Python code has built are left alone.
_PLAIN = (str, int, float, bool, Mapping, list, tuple, _NOTHING)
_WORDS = {str: "a text", Mapping: "a dictionary", list: "a list", bool: "True or False"}
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("default_scope", "load_from", "work_dir", "experiment_name"), _TEXT),
    **dict.fromkeys(("env_cfg", "model", "custom_imports"), (Mapping,)),
    **dict.fromkeys(
        (
            *("auto_scale_lr", "default_hooks", "log_processor", "model_wrapper_cfg", "numerics"),
            "distillation",
            *("optim_wrapper", "randomness", "tta_model", "visualizer", "data_preprocessor"),
            *DATALOADERS,
            *("train_cfg", "val_cfg", "test_cfg"),
        ),
        _DICTIONARY,
    ),
    **dict.fromkeys(("param_scheduler", "val_evaluator", "test_evaluator"), _SEVERAL),
    "custom_hooks": (*_LIST, _NOTHING),
    "compile": (bool, Mapping, _NOTHING),
    **dict.fromkeys(
        ("activation_checkpointing", "efficient_conv_bn_eval"), (str, *_LIST, _NOTHING)
    ),
    **dict.fromkeys(("dry_step", "find_unused_parameters"), (bool, _NOTHING)),
    "log_level": (str, int),
}
#: In the data loaders, by the last part of the key.
_OF_DATA: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("data_root", "ann_file", "img_path", "seg_map_path"), _TEXT),
    **dict.fromkeys(("sampler", "batch_sampler", "data_prefix", "metainfo"), _DICTIONARY),
    "dataset": (Mapping,),
    "datasets": _LIST,
    "pipeline": _LIST,
    "classes": _NAMES,
}


def check_kinds(root: Mapping[str, Any]) -> None:
    """UserError unless parts of a config are dictionaries, lists or texts where they must be."""
    for key, value in root.items():
        _check(str(key), value, _KINDS.get(key))
    for key, hook in (root.get("default_hooks") or {}).items():
        _check(f"default_hooks.{key}", hook, _DICTIONARY)
    for index, hook in enumerate(root.get("custom_hooks") or ()):
        _check(f"custom_hooks.{index}", hook, (Mapping,))
    _check("distillation.teacher", (root.get("distillation") or {}).get("teacher"), _TEXT)
    scope = root.get("default_scope")
    known = scope is None or bool(scope.isidentifier() and importlib.util.find_spec(scope))
    wanted = "the name of a package with parts, such as mmseg_resnest"
    check_value("default_scope", scope, wanted, known)
    level, sync = root.get("log_level", "INFO"), root.get("sync_bn")
    known = not isinstance(level, str) or isinstance(logging.getLevelName(level), int)
    check_value("log_level", level, "the name of a level, such as INFO", known)
    # MMEngine goes on without.
    check_value("sync_bn", sync, "'torch', 'mmcv' or None", sync in (None, "torch", "mmcv"))
    for name in DATALOADERS:
        _check_data(name, root.get(name))


def _check_data(key: str, node: Any) -> None:
    if isinstance(node, Mapping):
        for name, value in node.items():
            _check(f"{key}.{name}", value, _OF_DATA.get(name))
            if name == "pipeline":
                for index, step in enumerate(value):
                    _check(f"{key}.{name}.{index}", step, (Mapping,))
            else:
                _check_data(f"{key}.{name}", value)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            _check_data(f"{key}.{index}", value)


def _check(key: str, value: Any, kinds: tuple[type, ...] | None) -> None:
    if kinds is None or isinstance(value, kinds) or not isinstance(value, _PLAIN):
        return
    words = [_WORDS[kind] for kind in kinds if kind in _WORDS]
    if _NOTHING in kinds:
        words.append("None")
    check_value(key, value, " or ".join(words), False)
