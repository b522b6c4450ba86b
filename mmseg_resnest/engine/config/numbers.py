# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Numbers and flags of a config that nothing looks at before a run is under way."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

from ...errors import UserError, check_value
from ...registry import type_name

#: What ``paramwise_cfg`` of MMEngine's constructors may hold.
_PARAMWISE = (
    *("bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "dwconv_decay_mult"),
    *("flat_decay_mult", "dcn_offset_lr_mult", "bypass_duplicate", "custom_keys"),
)
_CONSTRUCTOR = "DefaultOptimWrapperConstructor"
_WINDOWS = ("epoch", "global")
_METHODS = ("mean", "min", "max", "current")


def check_numbers(root: Mapping[str, Any]) -> None:
    """UserError unless numbers of hooks, loops, optimizer, log and machine are possible.

    The kinds of the values above them have been checked (:func:`.check_kinds`).
    """
    hooks = {f"default_hooks.{k}": v for k, v in (root.get("default_hooks") or {}).items()}
    hooks |= {f"custom_hooks.{i}": v for i, v in enumerate(root.get("custom_hooks") or ())}
    for key, hook in hooks.items():
        if isinstance(hook, Mapping):
            _check_hook(key, hook)
    loop = root.get("train_cfg") or {}
    _whole("train_cfg.val_begin", loop.get("val_begin", 0), 0)
    _check_intervals(loop.get("dynamic_intervals"))
    for key in ("val_cfg", "test_cfg"):
        _flag(f"{key}.fp16", (root.get(key) or {}).get("fp16", False))
    _check_optimizer(root.get("optim_wrapper") or {})
    _check_log(root.get("log_processor") or {})
    env = root.get("env_cfg") or {}
    _flag("env_cfg.cudnn_benchmark", env.get("cudnn_benchmark", False))
    processes = env.get("mp_cfg") or {}
    _mapping("env_cfg.mp_cfg", processes)
    threads = processes.get("opencv_num_threads")
    if threads is not None:
        _whole("env_cfg.mp_cfg.opencv_num_threads", threads, 0)
    model = root.get("model") or {}
    for key in ("decode_head", "auxiliary_head"):
        heads = model.get(key) or ()
        several = isinstance(heads, list | tuple)
        for i, head in enumerate(heads if several else [heads]):
            place = f"model.{key}.{i}" if several else f"model.{key}"
            for option, least in (("ignore_index", None), ("num_classes", 1)):
                if isinstance(head, Mapping) and head.get(option) is not None:
                    _whole(f"{place}.{option}", head[option], least)
    for key, node in (("model.data_preprocessor", model), ("data_preprocessor", root)):
        node = node.get("data_preprocessor")
        std = node.get("std") if isinstance(node, Mapping) else None
        if isinstance(std, list | tuple):
            good = all(is_positive(one) for one in std)
            check_value(f"{key}.std", std, "numbers above 0, by which images are divided", good)


def _check_hook(key: str, hook: Mapping[str, Any]) -> None:
    saves = type_name(hook.get("type")) == "CheckpointHook"
    if "interval" in hook:  # -1 saves no checkpoint but the last
        _whole(f"{key}.interval", hook["interval"], None if saves else 1)
    for option in ("max_keep_ckpts", "save_begin") if saves else ():
        if option in hook:
            _whole(f"{key}.{option}", hook[option])


def _check_intervals(value: Any) -> None:
    """``dynamic_intervals`` of a loop."""
    if value is None:
        return
    pairs = value if isinstance(value, list | tuple) else [value]
    for pair in pairs:
        two = isinstance(pair, list | tuple) and len(pair) == 2
        good = two and all(is_whole(n, least) for n, least in zip(pair, (0, 1), strict=True))
        wanted = "a list of pairs, first step and interval from there on"
        check_value("train_cfg.dynamic_intervals", value, wanted, good)


def _check_optimizer(node: Mapping[str, Any]) -> None:
    if "accumulative_counts" in node:
        _whole("optim_wrapper.accumulative_counts", node["accumulative_counts"], 1)
    options = node.get("paramwise_cfg")
    if not isinstance(options, Mapping) or node.get("constructor", _CONSTRUCTOR) != _CONSTRUCTOR:
        return
    key = "optim_wrapper.paramwise_cfg"
    _known(key, options, _PARAMWISE)
    for name, value in options.items():
        if name.endswith("_mult") and value is not None:
            _number(f"{key}.{name}", value)
    custom = options.get("custom_keys") or {}
    _mapping(f"{key}.custom_keys", custom)
    for name, one in custom.items():
        _mapping(f"{key}.custom_keys.{name}", one)
        for option in ("lr_mult", "decay_mult"):
            if option in one:
                _number(f"{key}.custom_keys.{name}.{option}", one[option])
        for option in one:  # others are options of the optimizer
            near = difflib.get_close_matches(str(option), ("lr_mult", "decay_mult"), 1, 0.75)
            if near and option not in near:
                message = f"is not an option of a parameter; did you mean {near[0]}?"
                place = f"config key {key}.custom_keys.{name}.{option}"
                raise UserError("config-key", place, message)


def _check_log(node: Mapping[str, Any]) -> None:
    """``log_processor``, which meets a mistake when it writes its first line."""
    if "window_size" in node:
        _whole("log_processor.window_size", node["window_size"], 1)
    custom = node.get("custom_cfg") or ()
    listed = isinstance(custom, list | tuple)
    check_value("log_processor.custom_cfg", custom, "a list of dictionaries", listed)
    for i, one in enumerate(custom):
        key = f"log_processor.custom_cfg.{i}"
        _mapping(key, one)
        needed = ["data_src", "method_name"]
        needed += [] if node.get("by_epoch", True) else ["window_size"]
        for option in needed:
            if option not in one:
                raise UserError("config-key", f"config key {key}.{option}", "is missing")
        method = one["method_name"]
        check_value(
            f"{key}.method_name", method, f"one of {', '.join(_METHODS)}", method in _METHODS
        )
        if one.get("window_size", "epoch") not in _WINDOWS:
            _whole(f"{key}.window_size", one["window_size"], 1, " or 'epoch' or 'global'")


def _known(key: str, node: Mapping[str, Any], known: Iterable[str]) -> None:
    for name in node:
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UserError("config-key", f"config key {key}.{name}", f"is not an option; {hint}")


def is_whole(value: Any, least: int | None = None) -> bool:
    """Whether a value is a whole number from ``least`` on; True and False are not numbers here."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and (least is None or value >= least)


def is_positive(value: Any) -> bool:
    """Whether a value is a finite number above 0; True is not a number here."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < math.inf


def _whole(key: str, value: Any, least: int | None = None, more: str = "") -> None:
    limit = "" if least is None else f" from {least} on"
    check_value(key, value, f"a whole number{limit}{more}", is_whole(value, least))


def _number(key: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    check_value(key, value, "a number", number)


def _flag(key: str, value: Any) -> None:
    check_value(key, value, "True or False", isinstance(value, bool))


def _mapping(key: str, value: Any) -> None:
    check_value(key, value, "a dictionary", isinstance(value, Mapping))
