# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The state of a training checkpoint, compared with the run that takes it over.

A state is loaded only when it has the names, types and shapes that the run's own model, optimizer
and schedules have: torch's and MMEngine's ``load_state_dict`` take over attributes and options as
they come. The numbers of the checkpoint count, not those of the config, as in MMEngine. Dropped are
the state of a loss scaler where this run scales nothing, averaged weights where this run keeps
none, and ``foreach`` and ``fused``, which say how this run computes.
"""

from __future__ import annotations

import copy
import functools
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import OptimWrapper, ReduceOnPlateauParamScheduler
from torch import Tensor, nn

from .checkpoint import bare_model
from .checkpoint_names import CheckpointNames
from .checkpoint_values import (
    ANY,
    COUNT,
    DROP,
    POSITIVE,
    Refusal,
    Spec,
    describe,
    exactly,
    fields,
    is_like,
    is_number,
    like,
    list_of,
    plain_tensor,
    rule,
    tensor_like,
)
from .resume_changes import Changes
from .resume_schedules import schedules_like

_NO_CHANGES = Changes()


def fit_to_run(
    checkpoint: dict[str, Any],
    refuse: Refusal,
    model: nn.Module,
    optim_wrapper: OptimWrapper,
    schedulers: Sequence[Any] | None,
    changes: Changes = _NO_CHANGES,
) -> dict[str, Any]:
    """Check a checkpoint against what it will be loaded into; nothing is loaded.

    Args:
        checkpoint: What :func:`~.checkpoint_schema.check_training_checkpoint` returned.
        refuse: Called with what does not fit: names the key, what it holds and what was expected.
        model: The model of the run, wrapped or not.
        optim_wrapper: Its optimizer, with the schedules built on it.
        schedulers: Its schedules; None without.
        changes: What may differ between the run and the checkpoint's.

    Returns:
        The checkpoint with ``optimizer`` and ``param_schedulers`` as the run loads them; without
        ``param_schedulers`` where :func:`follows_config`.
    """
    checkpoint = dict(checkpoint)
    own, weights = bare_model(model).state_dict(), checkpoint["state_dict"]
    # Names are compared where the weights are loaded.
    shapes = {name: tensor_like(value) for name, value in own.items()}
    fields(shapes, unknown="keep")(weights, "state_dict", refuse)
    if "ema_state_dict" in checkpoint and set(weights) != set(own):
        name = next(iter(set(weights) ^ set(own)))
        refuse.because(f"ema_state_dict and the config's model differ in {name}")

    follows = follows_config(changes, schedulers, refuse)
    checkpoint["optimizer"] = _optimizer(
        *(checkpoint["optimizer"], "optimizer", refuse, optim_wrapper),
        follows=follows,
        new=changes.new_optimizer,
    )

    key = "param_schedulers"
    states = checkpoint.pop(key, None)
    if follows or not (schedulers or states):
        return checkpoint
    checkpoint[key] = schedules_like(schedulers or [])(states, key, refuse)
    return checkpoint


def follows_config(changes: Changes, schedulers: Sequence[Any] | None, refuse: Refusal) -> bool:
    """Whether options of the optimizer and schedules are the config's, not the checkpoint's.

    A schedule that depends on scores that the run has seen cannot follow the config: it is refused.
    """
    if not changes.optimization:
        return False
    if any(isinstance(one, ReduceOnPlateauParamScheduler) for one in schedulers or ()):
        if changes.optimization <= {"train_cfg", "train_dataloader"}:
            return False  # it continues with the scores it has seen
        refuse.because(
            "a schedule reduces its values by the scores of validations, so it cannot follow other "
            "settings of the optimizer or the schedules"
        )
    return True


_NOT_NEGATIVE = rule(lambda value: is_number(value) and 0 <= value <= 1e30, "a number from 0")
_BELOW_1 = rule(lambda value: is_number(value) and 0 <= value < 1, "a number from 0, below 1")


def _optimizer(
    value: Any, key: str, refuse: Refusal, wrapper: OptimWrapper, follows: bool, new: bool
) -> dict[str, Any]:
    """The state of an optimizer wrapper as it loads it."""
    scaler = getattr(wrapper, "loss_scaler", None)
    settings = None if follows else wrapper.base_param_settings
    parts: dict[str, Spec] = {
        "state": ANY,
        "param_groups": ANY,
        "loss_scaler": DROP if scaler is None else _scaler_like(scaler.state_dict()),
        "base_param_settings": DROP if settings is None else _options_like(settings),
    }
    found = fields(parts, ("state", "param_groups"))(value, key, refuse)
    if "base_param_settings" in found:
        found["base_param_settings"] = {**(settings or {}), **found["base_param_settings"]}

    ours = wrapper.optimizer.param_groups
    groups, place = found["param_groups"], f"{key}.param_groups"
    if follows:
        groups = _regroup(groups, ours, place, refuse)
    groups = list_of([_options_like(own) for own in ours])(groups, place, refuse)
    # Options that an older torch did not write are the run's own.
    groups = [{**own, **group} for own, group in zip(ours, groups, strict=True)]
    numbers = [number for group in groups for number in group["params"]]
    if len(set(numbers)) != len(numbers):
        refuse.because(f"{place} name a parameter twice")

    state = {} if new else found["state"]
    state = _state_like(groups, wrapper.optimizer, follows)(state, f"{key}.state", refuse)
    found["state"] = {number: one for number, one in state.items() if one is not None}
    found["param_groups"] = groups
    return found


def _options_like(own: Mapping[str, Any]) -> Spec:
    """The options of a group, in the ranges that the constructors of torch's optimizers check."""
    options: dict[str, Spec] = dict.fromkeys(("foreach", "fused"), DROP)
    needed = ["lr"]
    for name, value in own.items():
        if name == "params" and isinstance(value, list):
            options[name] = list_of([COUNT] * len(value))
            needed.append(name)
        elif name == "betas":
            options[name] = like(value, lambda own: _BELOW_1)
        elif name.endswith("lr"):
            options[name] = like(value)
        elif name not in options:
            options[name] = like(value, lambda own: _NOT_NEGATIVE)
    return fields(options, needed)


def _scaler_like(own: Mapping[str, Any]) -> Spec:
    kinds = {name: COUNT if isinstance(value, int) else POSITIVE for name, value in own.items()}
    return exactly(kinds)


def _regroup(
    groups: Any, ours: Sequence[dict[str, Any]], key: str, refuse: Refusal
) -> list[dict[str, Any]]:
    """The run's own groups of parameters with the numbers that the checkpoint's have.

    MMEngine numbers parameters in the order of the model, whether it makes one group of all or one
    of each. In other groupings only groups of the same sizes are taken to be the same.
    """
    if not isinstance(groups, list) or not all(
        isinstance(one, dict) and isinstance(one.get("params"), list) for one in groups
    ):
        refuse(key, groups, "a list of groups of parameters")
    before, now = ([len(one["params"]) for one in some] for some in (groups, ours))
    in_order = all(len(sizes) == 1 or set(sizes) == {1} for sizes in (before, now))
    if sum(before) != sum(now) or (before != now and not in_order):
        refuse.because(
            f"{key} are {len(before)} groups, which cannot become the config's {len(now)}"
        )
    rest = iter([number for one in groups for number in one["params"]])
    return [{**own, "params": [next(rest) for _ in own["params"]]} for own in ours]


def _state_like(
    groups: Sequence[dict[str, Any]], optimizer: torch.optim.Optimizer, follows: bool
) -> Spec:
    """The state of each parameter: what a step of this optimizer makes of it, and nothing else."""
    states: dict[Any, Spec] = {}
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        expected = _states_after_a_step(optimizer, group, own["params"])
        for index, number in enumerate(group["params"]):
            if expected is None:
                states[number] = _unknown_state(own["params"][index])
            else:
                states[number] = functools.partial(
                    _parameter_state, own=expected[index], follows=follows
                )
    return fields(states)


def _parameter_state(
    value: Any, key: str, refuse: Refusal, own: Mapping[str, Any], follows: bool
) -> dict[str, Any] | None:
    """Checked; None where the config differs and the optimizer now keeps something else."""
    if not isinstance(value, dict):
        refuse(key, value, "a mapping")
    # None stands for nothing: an older torch wrote it for a momentum of 0.
    value = {name: v for name, v in value.items() if v is not None or name in own}
    if follows and set(value) != set(own):
        return None
    return exactly({name: _entry_like(one) for name, one in own.items()})(value, key, refuse)


def _entry_like(own: Any) -> Spec:
    if own is None:
        return rule(lambda value: value is None, "None")
    # The trial step keeps counters as numbers, or on the CPU.
    if isinstance(own, Tensor) and (own.ndim or own.device.type != "cpu"):
        return rule(lambda value: is_like(value, own) and _is_dense(value), describe(own))
    return rule(lambda value: _is_counter(value, own), "a number from 0")


def _is_counter(value: Any, own: Any) -> bool:
    """Whether it counts steps and the like, by which optimizers divide; older torch had numbers."""
    if isinstance(value, Tensor):
        if not isinstance(own, Tensor) or not is_like(value, own):
            return False
        value = value.item()
    return is_number(value) and value >= 0


def _is_dense(value: Tensor) -> bool:
    """Whether every number of a tensor has a place of its own, so that it can be changed."""
    expected = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size if size > 1 else 1
    return True


def _unknown_state(parameter: Tensor) -> Spec:
    """The state of an optimizer that cannot be tried: tensors like the parameter, and numbers."""

    def is_entry(value: Any) -> bool:
        if isinstance(value, Tensor):
            fits = plain_tensor(value) and value.shape in (parameter.shape, (), (1,))
            return fits and _is_dense(value)
        return value is None or isinstance(value, bool) or is_number(value)

    words = f"a number, or a tensor of shape {list(parameter.shape)}"
    return fields({"step": _entry_like(torch.zeros(())), "*": rule(is_entry, words)})


def _states_after_a_step(
    optimizer: torch.optim.Optimizer, options: Mapping[str, Any], parameters: Sequence[Tensor]
) -> list[dict[str, Any]] | None:
    """What the optimizer keeps of each parameter, found by a step with tensors without values.

    None where it needs more than gradients, or numbers to compute with.
    """
    stand_ins = []
    for parameter in parameters:
        one = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"))
        one.grad = torch.empty_like(one)
        stand_ins.append(one)
    trial = copy.copy(optimizer)
    trial.state = defaultdict(dict)
    how = {name: False for name in ("foreach", "fused") if name in options}
    trial.param_groups = [{**options, **how, "params": stand_ins}]
    try:
        type(optimizer).step(trial)  # not the one that schedules have put around it
    except Exception:  # an optimizer of any library, in any way
        return None
    return [dict(trial.state[one]) for one in stand_ins]


def keep_own_names(info: dict[str, Any], folder: Path, names: CheckpointNames) -> None:
    """Keep of the paths in a checked ``runtime_info`` only names of the run's own files, in place.

    A path of a checkpoint is where its run was, on any machine. What is left of it names files
    that this run may replace and remove, in ``folder``.
    """
    for key in [key for key in info if key == "last_ckpt" or key.startswith("best_ckpt")]:
        if info[key] is None:
            continue
        name = re.split(r"[/\\]", info[key])[-1]
        last = key == "last_ckpt"
        if names.step_of(name) is not None if last else names.is_best(name, "auto"):
            info[key] = str(folder / name)
        else:
            del info[key]
