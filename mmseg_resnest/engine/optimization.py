# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The optimizer and the schedules of a config, built before the run to check what they say."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from ..errors import UserError
from ..registry import building
from .failing_parts import failing
from .resume_schedules import advance_schedules

#: Share of the first learning rate that counts as none: what rounding leaves of 0.
_NO_RATE = 1e-9
#: Steps of schedules that are tried before a run: some seconds.
_MOST_STEPS = 1_000_000


def build_optimization(cfg: Config, model: nn.Module) -> tuple[Any, Any]:
    """``optim_wrapper`` and ``param_schedulers`` of a config, to compare a checkpoint with.

    Their kinds, names and sizes are those of the run; their numbers are not: the run knows the
    length of an epoch. UserError says which cannot be built.
    """
    with building(cfg.get("default_scope", "mmseg_resnest")):
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
