# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The optimizer and the schedules of a config, built before the run to check what they say."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from ..errors import UserError
from ..registry import building, type_name
from .failing_parts import failing
from .logs import nothing_printed
from .resume_schedules import advance_schedules
from .run_length import is_warm_up

#: Share of the first learning rate that counts as none: what rounding leaves of 0.
_NO_RATE = 1e-9
#: Steps of schedules that are tried before a run: some seconds.
_MOST_STEPS = 1_000_000
#: How the names of schedules begin that go on to their end, and the option that names it as well.
_ENDS = {
    **dict.fromkeys(("Linear", "Constant", "Poly", "QuadraticWarmup"), "end"),
    "CosineAnnealing": "T_max",
    "OneCycle": "total_steps",
}


def build_optimization(cfg: Config, model: nn.Module) -> tuple[Any, Any]:
    """``optim_wrapper`` and ``param_schedulers`` of a config, to compare a checkpoint with.

    Their kinds, names and sizes are those of the run; their numbers are not: the run knows the
    length of an epoch. UserError says which cannot be built.
    """
    # Printed would be the options of each parameter.
    with building(cfg.get("default_scope", "mmseg_resnest")), nothing_printed():
        with failing("optim_wrapper", "it cannot be built", cfg.optim_wrapper):
            optim_wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
        if isinstance(optim_wrapper, OptimWrapperDict):
            message = (
                "builds several optimizers, and MMSegmentation's models train with one; give a "
                "group of parameters its own learning rate with optim_wrapper.paramwise_cfg"
            )
            raise UserError("config-value", "config key optim_wrapper", message)
        configs = cfg.get("param_scheduler")
        if configs is None:
            return optim_wrapper, None
        return optim_wrapper, _build_schedules(configs, optim_wrapper)


def schedule_key(configs: Any, index: int) -> str:
    """The config key of a schedule: one alone, or one of a list."""
    return f"param_scheduler.{index}" if isinstance(configs, list | tuple) else "param_scheduler"


def _build_schedules(configs: Any, optim_wrapper: OptimWrapper) -> list[Any]:
    built = []
    for index, config in enumerate(configs if isinstance(configs, list | tuple) else [configs]):
        with failing(schedule_key(configs, index), "it cannot be built"):
            config = {"end": 1_000_000, **copy.deepcopy(config)}
            arguments = {"optimizer": optim_wrapper, "epoch_length": 1}
            built.append(PARAM_SCHEDULERS.build(config, default_args=arguments))
    return built


def check_schedules(cfg: Mapping[str, Any]) -> None:
    """Raise UserError for a schedule by whose options a value would stay where it begins.

    Each of them says when it ends, and a warm-up has a step after the first.
    """
    configs, loop = cfg.get("param_scheduler"), cfg.get("train_cfg") or {}
    for index, one in enumerate(configs if isinstance(configs, list | tuple) else [configs]):
        if not isinstance(one, Mapping) or "type" not in one:
            continue
        kind, end, begin = type_name(one["type"]), one.get("end"), one.get("begin", 0)
        key = f"config key {schedule_key(configs, index)}.end"
        unit = "max_epochs" if "max_epochs" in loop else "max_iters"
        instead = next((name for start, name in _ENDS.items() if kind.startswith(start)), "end")
        constant = kind.startswith("Constant") and one.get("factor") == 1
        endless = end is None and one.get(instead) is None and not constant
        if endless and kind.startswith(tuple(_ENDS)):
            message = f"is missing: without it {kind} never leaves its first value"
            alike = bool(one.get("by_epoch", True)) == (unit == "max_epochs")
            if alike and loop.get(unit):
                message += f"; set it to {loop[unit]}, train_cfg.{unit}, or to where it ends"
            raise UserError("config-key", key, message)
        if is_warm_up(one) and isinstance(end, int) and isinstance(begin, int) and end - begin == 1:
            message = f"is {end}: {kind} with one step never leaves its first value; "
            message += f"set it to {begin + 2} or more"
            message += ", or convert_to_iter_based=True" if one.get("by_epoch", True) else ""
            raise UserError("config-value", key, message)


def check_cycles(cfg: Mapping[str, Any], epoch: int) -> None:
    """Raise UserError if a run has more steps than a schedule that then fails (OneCycleLR).

    ``epoch`` is the length of an epoch in iterations.
    """
    configs, loop = cfg.get("param_scheduler"), cfg.get("train_cfg") or {}
    epochs = loop.get("max_epochs") or math.ceil(loop.get("max_iters", 0) / epoch)
    iterations = loop.get("max_iters") or epochs * epoch
    for index, one in enumerate(configs if isinstance(configs, list | tuple) else [configs]):
        total = one.get("total_steps") if isinstance(one, Mapping) else None
        if not isinstance(total, int):
            continue
        last = epochs if one.get("by_epoch", True) else iterations
        end = min(last, one.get("end") or last)
        if end - one.get("begin", 0) > total:
            name = f"config key {schedule_key(configs, index)}.total_steps"
            message = f"is {total:,}, but the run has {last:,} steps: {type_name(one['type'])} "
            message += f"fails after {total:,}; remove it and set end={last}"
            raise UserError("config-conflict", name, message)


def check_schedule_ends(cfg: Config) -> None:
    """Raise UserError if a schedule ends long before the run, with a learning rate of 0.

    Every step of the schedules is tried, so runs of more than a million steps are not checked.
    """
    train_cfg = cfg.get("train_cfg") or {}
    by_epoch = "max_epochs" in train_cfg
    key = "max_epochs" if by_epoch else "max_iters"
    length = train_cfg.get(key)
    configs = cfg.get("param_scheduler")
    listed = configs if isinstance(configs, list | tuple) else [configs]
    if not isinstance(length, int) or not all(_end_is_known(one) for one in listed):
        return
    early = [
        (one["end"], index)
        for index, one in enumerate(listed)
        if one.get("end") is not None
        and one["end"] < length
        and one.get("by_epoch", True) == by_epoch
    ]
    later = len(early) < len(listed)  # another schedule may raise it again
    if not early or (length if later else max(early)[0]) > _MOST_STEPS:
        return
    if "optimizer" not in cfg.optim_wrapper:  # building it says why not
        return
    # Of a small model: the schedules of many groups of parameters take minutes.
    wrapper = dict(type="OptimWrapper", optimizer=cfg.optim_wrapper.optimizer)
    small = Config(dict(optim_wrapper=wrapper, param_scheduler=configs))
    small.default_scope = cfg.get("default_scope", "mmseg_resnest")
    optim_wrapper, schedules = build_optimization(small, nn.Linear(1, 1))
    end, index = max(early)
    groups = optim_wrapper.optimizer.param_groups
    for steps in (end, length - 1 - end) if later else (end,):
        with failing("param_scheduler", "a step of it fails"):
            advance_schedules(schedules, steps, steps if by_epoch else 0)
        if any(group["lr"] > _NO_RATE * group.get("initial_lr", 0) for group in groups):
            return
    name = schedule_key(configs, index)
    raise UserError(
        "config-conflict",
        f"config key {name}.end",
        f"the learning rate is 0 from step {end:,} on, but train_cfg.{key} is {length:,}; set "
        f"{name}.end={length} (when resuming, allow it with --allow-changes param_scheduler)",
    )


def _end_is_known(config: Any) -> bool:
    """Whether it is known from its config alone when a schedule ends."""
    return (
        isinstance(config, Mapping)
        and "type" in config
        and not config.get("convert_to_iter_based")
        and (config.get("end") is None or isinstance(config["end"], int))
        and "Plateau" not in str(config["type"])
    )
