# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The state of a training checkpoint, compared with the run that takes it over.

A state is loaded only when it has the names, types and shapes that the run's own model, optimizer
and schedules have: torch's and MMEngine's ``load_state_dict`` take over attributes and options as
they come. The values of the checkpoint count, not those of the config, as in MMEngine.

* Refused by name: tensors that the model or the optimizer does not have, has in another shape or
  type; unknown or differing options of a group of parameters; another number of groups,
  parameters or schedules; unknown attributes of a schedule.
* Dropped: the state of a loss scaler where this run scales nothing, averaged weights where this
  run keeps none, and ``foreach`` and ``fused``, which say how this run computes.
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
from mmengine.optim import OptimWrapper, OptimWrapperDict, ReduceOnPlateauParamScheduler
from torch import Tensor, nn

from mmseg_resnest.engine.checkpoint import bare_model
from mmseg_resnest.engine.checkpoint_values import (
    Refusal,
    describe,
    fit,
    is_integer,
    is_number,
    plain_tensor,
)
from mmseg_resnest.engine.resume_changes import Changes
from mmseg_resnest.engine.resume_schedules import fit_schedules, flat_schedules

__all__ = [
    "fit_to_run",
    "follows_config",
    "keep_own_names",
]


_NO_CHANGES = Changes()


def fit_to_run(
    checkpoint: dict[str, Any],
    refuse: Refusal,
    model: nn.Module,
    optim_wrapper: OptimWrapper | OptimWrapperDict,
    schedulers: Any,
    changes: Changes = _NO_CHANGES,
) -> dict[str, Any]:
    """Check a checkpoint against what it will be loaded into; nothing is loaded.

    Args:
        checkpoint: What :func:`~.checkpoint_schema.check_training_checkpoint` returned.
        refuse: Called with what does not fit.
        model: The model of the run, wrapped or not.
        optim_wrapper: Its optimizer, or optimizers by name, with the schedules built on them.
        schedulers: Its schedules: a list, or lists by optimizer; None without.
        changes: What may differ between the run and the checkpoint's.

    Returns:
        The checkpoint with ``optimizer`` and ``param_schedulers`` as the run loads them; without
        ``param_schedulers`` where :func:`follows_config`.

    Raises:
        UserError: Something does not fit; names the key, what it holds and what was expected.
    """
    checkpoint = dict(checkpoint)
    _check_types(checkpoint, bare_model(model), refuse)
    follows = follows_config(changes, schedulers, refuse)
    fit_optimizer = functools.partial(
        _fit_optimizer, refuse=refuse, follows=follows, new=changes.new_optimizer
    )
    if isinstance(optim_wrapper, OptimWrapperDict):
        theirs, ours = checkpoint["optimizer"], dict(optim_wrapper.items())
        _same_names(theirs, ours, "optimizer", refuse)
        checkpoint["optimizer"] = {
            name: fit_optimizer(theirs[name], one, f"optimizer.{name}")
            for name, one in ours.items()
        }
    else:
        checkpoint["optimizer"] = fit_optimizer(checkpoint["optimizer"], optim_wrapper, "optimizer")
    key = "param_schedulers"
    if follows:
        checkpoint.pop(key, None)
        return checkpoint
    theirs = checkpoint.get(key)
    if isinstance(schedulers, dict):
        if not isinstance(theirs, dict):
            refuse(key, theirs, "a mapping from optimizers to lists")
        _same_names(theirs, schedulers, key, refuse)
        checkpoint[key] = {
            name: fit_schedules(theirs[name], some, f"{key}.{name}", refuse)
            for name, some in schedulers.items()
        }
    elif schedulers or theirs:
        checkpoint[key] = fit_schedules(theirs, schedulers or [], key, refuse)
    return checkpoint


def follows_config(changes: Changes, schedulers: Any, refuse: Refusal) -> bool:
    """Whether options of the optimizer and schedules are the config's, not the checkpoint's.

    Args:
        changes: What is allowed to differ.
        schedulers: The run's schedules: a list, or lists by optimizer; None without.
        refuse: Called with what cannot be followed.

    Raises:
        UserError: A schedule depends on scores that the run has seen.
    """
    if not changes.optimization:
        return False
    if any(isinstance(one, ReduceOnPlateauParamScheduler) for one in flat_schedules(schedulers)):
        if changes.optimization <= {"train_cfg", "train_dataloader"}:
            return False  # it goes on with what it has seen
        refuse.because(
            "a schedule reduces its values by the scores of validations, so it cannot follow other "
            "settings of the optimizer or the schedules"
        )
    return True


def _same_names(theirs: Any, ours: Mapping[str, Any], key: str, refuse: Refusal) -> None:
    if not isinstance(theirs, dict) or set(theirs) != set(ours):
        refuse(key, theirs, f"a mapping with the keys {', '.join(map(str, ours))}")


def _check_types(checkpoint: dict[str, Any], model: nn.Module, refuse: Refusal) -> None:
    """Types and shapes of the weights; names are compared where they are loaded."""
    own = model.state_dict()
    weights = checkpoint["state_dict"]
    for name, value in weights.items():
        same = name not in own or (value.dtype, value.shape) == (own[name].dtype, own[name].shape)
        if not same:
            refuse(f"state_dict.{name}", value, describe(own[name]))
    if "ema_state_dict" in checkpoint and set(weights) != set(own):
        name = next(iter(set(weights) ^ set(own)))
        refuse.because(f"ema_state_dict and the config's model differ in {name}")


# --- optimizer ------------------------------------------------------------------------------

#: Options of a group that say how to compute, not what.
_OWN_OPTIONS = ("foreach", "fused")
#: Entries beside those of torch's optimizers.
_OF_THE_WRAPPER = ("loss_scaler", "base_param_settings")


def _fit_optimizer(
    theirs: Any,
    wrapper: OptimWrapper,
    key: str,
    refuse: Refusal,
    follows: bool = False,
    new: bool = False,
) -> dict:
    if not isinstance(theirs, dict):
        refuse(key, theirs, "a mapping")
    for name in theirs:
        if name not in ("state", "param_groups", *_OF_THE_WRAPPER):
            refuse.because(f"{key} holds {describe(name)}, which no optimizer of this run has")
    groups, ours = theirs.get("param_groups"), wrapper.optimizer.param_groups
    if follows:
        groups = _regroup(groups, ours, f"{key}.param_groups", refuse)
    if not isinstance(groups, list) or len(groups) != len(ours):
        refuse(f"{key}.param_groups", groups, f"a list of {len(ours)} groups of parameters")
    fitted = [
        _fit_group(group, own, f"{key}.param_groups[{index}]", refuse)
        for index, (group, own) in enumerate(zip(groups, ours, strict=True))
    ]
    numbers = [number for group in fitted for number in group["params"]]
    if len(set(numbers)) != len(numbers):
        refuse.because(f"{key}.param_groups name a parameter twice")
    state = {} if new else theirs.get("state")
    result = {
        "state": _fit_state(state, fitted, wrapper.optimizer, f"{key}.state", refuse, follows),
        "param_groups": fitted,
    }
    settings = wrapper.base_param_settings
    if settings is not None and not follows and "base_param_settings" in theirs:
        name = f"{key}.base_param_settings"
        result["base_param_settings"] = _fit_options(
            theirs["base_param_settings"], settings, name, refuse
        )
    scaler = getattr(wrapper, "loss_scaler", None)
    if scaler is not None and "loss_scaler" in theirs:
        name = f"{key}.loss_scaler"
        result["loss_scaler"] = _fit_scaler(
            theirs["loss_scaler"], scaler.state_dict(), name, refuse
        )
    return result


def _regroup(
    groups: Any, ours: Sequence[dict[str, Any]], key: str, refuse: Refusal
) -> list[dict[str, Any]]:
    """The run's own groups of parameters with the numbers that the checkpoint's have.

    MMEngine numbers parameters in the order of the model, whether it makes one group of all or one
    of each. In other groupings only groups of the same sizes can be told to be the same.
    """
    if not isinstance(groups, list) or not all(
        isinstance(one, dict) and isinstance(one.get("params"), list) for one in groups
    ):
        refuse(key, groups, "a list of groups of parameters")
    numbers = [number for one in groups for number in one["params"]]
    before, now = ([len(one["params"]) for one in some] for some in (groups, ours))
    in_order = all(len(sizes) == 1 or set(sizes) == {1} for sizes in (before, now))
    if sum(before) != sum(now) or (before != now and not in_order):
        refuse.because(f"{key} are {len(before)} groups, which cannot become the {len(now)} of the "
                       "config")  # fmt: skip
    rest = iter(numbers)
    return [
        {**{name: value for name, value in own.items() if name != "params"},
         "params": [next(rest) for _ in own["params"]]}
        for own in ours
    ]  # fmt: skip


def _fit_scaler(theirs: Any, own: Mapping[str, Any], key: str, refuse: Refusal) -> dict[str, Any]:
    fit(theirs, dict(own), key, refuse)
    for name, value in theirs.items():
        if isinstance(own[name], int) and not is_integer(value):
            refuse(f"{key}.{name}", value, "a whole number from 0")
        if isinstance(own[name], float) and value <= 0:
            refuse(f"{key}.{name}", value, "a number above 0")
    return dict(theirs)


def _fit_group(theirs: Any, own: dict[str, Any], key: str, refuse: Refusal) -> dict[str, Any]:
    if not isinstance(theirs, dict):
        refuse(key, theirs, "a mapping")
    params, count = theirs.get("params"), len(own["params"])
    if not isinstance(params, list) or len(params) != count or not all(map(is_integer, params)):
        refuse(f"{key}.params", params, f"a list of {count} whole numbers, one a parameter")
    ours = {name: value for name, value in own.items() if name != "params"}
    options = {name: value for name, value in theirs.items() if name != "params"}
    return {**_fit_options(options, ours, key, refuse), "params": list(params)}


def _fit_options(theirs: Any, own: Mapping[str, Any], key: str, refuse: Refusal) -> dict[str, Any]:
    """Options of a group; those that an older torch did not write are the run's own."""
    if not isinstance(theirs, dict):
        refuse(key, theirs, "a mapping")
    result = dict(own)
    if "lr" not in theirs:
        refuse.because(f"{key} holds no lr")
    for name, value in theirs.items():
        if name not in own:
            refuse.because(f"{key} holds {describe(name)}, an option that this run does not have")
        if name in _OWN_OPTIONS:
            continue
        fit(value, own[name], f"{key}.{name}", refuse)
        _check_option(name, value, f"{key}.{name}", refuse)
        result[name] = value
    return result


def _check_option(name: str, value: Any, key: str, refuse: Refusal) -> None:
    """The ranges that torch's optimizers ask of their arguments; a state sets them unasked."""
    values = value if isinstance(value, list | tuple) else [value]
    numbers = [one for one in values if isinstance(one, int | float)]
    if name == "betas" and not all(0 <= one < 1 for one in numbers):
        refuse(key, value, "numbers from 0 up to below 1")
    if not name.endswith("lr") and not all(one >= 0 for one in numbers):
        refuse(key, value, "a number from 0")


def _fit_state(
    theirs: Any,
    groups: Sequence[dict[str, Any]],
    optimizer: torch.optim.Optimizer,
    key: str,
    refuse: Refusal,
    follows: bool = False,
) -> dict[int, dict[str, Any]]:
    """The state of each parameter: what a step of this optimizer makes of it, and nothing else.

    Where the config may differ, a state that this optimizer does not keep starts anew.
    """
    if not isinstance(theirs, dict):
        refuse(key, theirs, "a mapping from the numbers of parameters")
    result = {}
    known = {number for group in groups for number in group["params"]}
    for number, state in theirs.items():
        if not is_integer(number) or number not in known:
            refuse.because(f"{key} holds {describe(number)}, the number of no parameter")
        if not isinstance(state, dict):
            refuse(f"{key}[{number}]", state, "a mapping")
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        expected = _states_after_a_step(optimizer, group, own["params"])
        for index, number in enumerate(group["params"]):
            if number not in theirs:
                continue  # a parameter that has had no gradient
            state, place = theirs[number], f"{key}[{number}]"
            if expected is None:
                result[number] = _fit_unknown_state(state, own["params"][index], place, refuse)
                continue
            model = expected[index]
            # None stands for nothing: an older torch wrote it for a momentum of 0.
            state = {name: v for name, v in state.items() if v is not None or name in model}
            if set(state) != set(model):
                if follows:  # e.g. momentum, which the run has not had
                    continue
                name = next(iter(set(state) ^ set(model)))
                what = "lacks" if name in model else "holds"
                refuse.because(f"{place} {what} {describe(name)}: the optimizer is another one")
            for name, value in state.items():
                _fit_tensor(value, model[name], f"{place}.{name}", refuse)
            result[number] = state
    return result


def _fit_tensor(value: Any, own: Any, key: str, refuse: Refusal) -> None:
    if own is None:
        if value is not None:
            refuse(key, value, "None")
        return
    # The trial step keeps counters as numbers, or with the CPU.
    counter = not isinstance(own, Tensor) or (own.ndim == 0 and own.device.type == "cpu")
    if counter and not isinstance(value, Tensor):  # an older torch counted in plain numbers
        _check_counter(value, key, refuse)
        return
    if not isinstance(own, Tensor):
        refuse(key, value, "a number")
    if not _is_dense(value) or value.shape != own.shape or value.dtype != own.dtype:
        refuse(key, value, describe(own))
    if counter:
        _check_counter(value.item(), key, refuse)


def _is_dense(value: Any) -> bool:
    """Whether every number of a tensor has a place of its own, so that it can be changed."""
    if not plain_tensor(value):
        return False
    expected = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size if size > 1 else 1
    return True


def _is_single(value: Any) -> bool:
    return plain_tensor(value) and value.numel() == 1


def _check_counter(value: Any, key: str, refuse: Refusal) -> None:
    """The number of steps and the like, by which optimizers divide."""
    if not is_number(value) or value < 0:
        refuse(key, value, "a number from 0")


def _fit_unknown_state(
    state: Mapping[Any, Any], parameter: Tensor, key: str, refuse: Refusal
) -> dict[str, Any]:
    """The state of an optimizer that cannot be tried: tensors like the parameter, and numbers."""
    for name, value in state.items():
        if not isinstance(name, str):
            refuse(f"a key of {key}", name, "a text")
        if name == "step":
            _check_counter(value.item() if _is_single(value) else value, f"{key}.step", refuse)
        elif isinstance(value, Tensor):
            if not _is_dense(value) or value.shape not in (parameter.shape, (), (1,)):
                refuse(f"{key}.{name}", value, f"a tensor of shape {list(parameter.shape)}")
        elif value is not None and not is_number(value) and not isinstance(value, bool):
            refuse(f"{key}.{name}", value, "a tensor or a number")
    return dict(state)


def _states_after_a_step(
    optimizer: torch.optim.Optimizer, options: Mapping[str, Any], parameters: Sequence[Tensor]
) -> list[dict[str, Any]] | None:
    """What the optimizer keeps of each parameter, found by a step with tensors without values.

    Returns:
        By parameter, names and tensors on the device ``meta``; None where the optimizer needs more
        than gradients, or numbers to compute with.
    """
    stand_ins = []
    for parameter in parameters:
        one = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"))
        one.grad = torch.empty_like(one)
        stand_ins.append(one)
    trial = copy.copy(optimizer)
    trial.state = defaultdict(dict)
    how = {name: False for name in _OWN_OPTIONS if name in options}
    trial.param_groups = [{**options, **how, "params": stand_ins}]
    try:
        type(optimizer).step(trial)  # not the one that schedules have put around it
    except Exception:  # an optimizer of any library, in any way
        return None
    return [dict(trial.state[one]) for one in stand_ins]


# --- names of files -------------------------------------------------------------------------


def keep_own_names(info: dict[str, Any], folder: Path, template: str) -> None:
    """Keep of the paths of a checkpoint only the names of the run's own files, in its folder.

    A path of a checkpoint is where its run was, on any machine. What is left of it names files
    that this run may replace and remove.

    Args:
        info: The checked ``runtime_info`` of a message hub; changed in place.
        folder: Where this run saves its checkpoints.
        template: Name of a checkpoint with ``{}`` for its number.
    """
    start, _, end = template.partition("{}")
    numbered = rf"{re.escape(start)}\d+{re.escape(end)}"
    for key in [key for key in info if key == "last_ckpt" or key.startswith("best_ckpt")]:
        if info[key] is None:
            continue
        pattern = numbered if key == "last_ckpt" else rf"best_[^\x00-\x1f]+_{numbered}"
        name = re.split(r"[/\\]", info[key])[-1]
        if re.fullmatch(pattern, name):
            info[key] = str(folder / name)
        else:
            del info[key]
