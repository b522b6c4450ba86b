# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Schedules of a resumed run: saved, compared with the run's own, restored, or stepped anew."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from mmseg_resnest.engine.checkpoint_values import Refusal, describe, fit, is_integer, is_number

from .._stack import mark_stepped, pick_last_values

__all__ = [
    "advance_schedules",
    "fit_schedules",
    "flat_schedules",
    "restore_schedules",
    "states_of_schedules",
]

#: Attributes that count steps; -1 is before the first one.
_COUNTERS = ("last_step", "_global_step", "total_iters", "begin", "end", "num_bad_epochs")
_NEEDED = ("last_step", "_global_step", "base_values", "_last_value")
#: Numbers that change while a schedule goes on, and may be 0.
_VALUES = ("base_values", "_last_value", "cooldown_counter")


def fit_schedules(theirs: Any, ours: Sequence[Any], key: str, refuse: Refusal) -> list[dict]:
    """Check the states of the schedules of an optimizer; nothing is loaded.

    Args:
        theirs: The states of the checkpoint.
        ours: The schedules of the run.
        key: Where the states stand in the checkpoint.
        refuse: Called with what does not fit.

    Returns:
        What :func:`restore_schedules` takes.

    Raises:
        UserError: The schedules are others, or a value of theirs is of another kind.
    """
    if not isinstance(theirs, list) or len(theirs) != len(ours):
        held = "missing" if theirs is None else describe(theirs)
        refuse.because(f"{key} is {held}, expected a list of {len(ours)} schedules")
    return [
        _fit_schedule(state, own, f"{key}[{index}]", refuse)
        for index, (state, own) in enumerate(zip(theirs, ours, strict=True))
    ]


def _fit_schedule(theirs: Any, scheduler: Any, key: str, refuse: Refusal) -> dict[str, Any]:
    """The attributes of a schedule that are numbers, texts, or lists of them.

    ``load_state_dict`` of MMEngine's schedules sets every attribute that it is given, methods too.
    """
    if not isinstance(theirs, dict):
        refuse(key, theirs, "a mapping")
    own = scheduler.state_dict()
    result = {}
    for name in _NEEDED:
        if name in own and name not in theirs:
            refuse.because(f"{key} holds no {name}")
    for name, value in theirs.items():
        if name not in own:
            refuse.because(
                f"{key} holds {describe(name)}, which {type(scheduler).__name__} does not have"
            )
        if name == "verbose" or not _is_plain(own[name]):
            continue  # the run's own; functions above all
        place = f"{key}.{name}"
        if name in _COUNTERS:
            if not is_integer(value, -1):
                refuse(place, value, "a whole number from -1")
        elif isinstance(own[name], Counter):  # milestones, and how often each is given
            value = _fit_milestones(value, own[name], place, refuse)
        elif name == "best":  # infinite before the first score
            if not isinstance(value, float) and not is_number(value):
                refuse(place, value, "a number")
        elif isinstance(own[name], float) and not math.isfinite(own[name]):  # the worst score
            if not isinstance(value, float) or value != own[name]:
                refuse(place, value, repr(own[name]))
        else:
            fit(value, own[name], place, refuse)
            if name not in _VALUES:
                _same_sign(value, own[name], place, refuse)
        result[name] = value
    _check_steps({**own, **result}, key, refuse)
    return result


def _fit_milestones(value: Any, own: Counter, key: str, refuse: Refusal) -> Counter:
    fits = isinstance(value, dict) and all(
        is_integer(step) and is_integer(times, 1, 10) for step, times in value.items()
    )
    if not fits or len(value) != len(own):
        refuse(key, value, f"a mapping from {len(own)} steps to numbers from 1 to 10")
    return Counter(value)


def _same_sign(value: Any, own: Any, key: str, refuse: Refusal) -> None:
    """What is above 0 in the config divides, or is a factor, and never becomes 0."""
    if isinstance(own, dict):
        for name, item in own.items():
            _same_sign(value[name], item, f"{key}.{name}", refuse)
    elif isinstance(own, list | tuple):
        for index, (one, item) in enumerate(zip(value, own, strict=True)):
            _same_sign(one, item, f"{key}[{index}]", refuse)
    elif isinstance(own, int | float) and own > 0 and value <= 0:
        refuse(key, value, "a number above 0")


def _check_steps(state: Mapping[str, Any], key: str, refuse: Refusal) -> None:
    """The counters of a schedule must agree: it divides by what is left of its steps."""
    length = state["end"] - state["begin"]
    if length <= 0:
        refuse(f"{key}.end", state["end"], f"a whole number above {state['begin']}, its begin")
    if state.get("total_iters", length - 1) != length - 1:
        refuse(f"{key}.total_iters", state["total_iters"], f"{length - 1}, one less than its steps")
    last = min(state["_global_step"], length - 1)
    if "base_values" in state and state["last_step"] > last:  # others count validations
        refuse(f"{key}.last_step", state["last_step"], f"at most {last}")


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | Tensor)


def states_of_schedules(schedulers: Any) -> Any:
    """What a checkpoint holds of schedules: their attributes, without functions.

    Args:
        schedulers: A list of them, or lists by optimizer.
    """
    if isinstance(schedulers, dict):
        return {name: states_of_schedules(some) for name, some in schedulers.items()}
    return [
        {name: value for name, value in one.state_dict().items() if _is_plain(value)}
        for one in schedulers
    ]


def restore_schedules(schedulers: Any, states: Any) -> None:
    """Load states that :func:`fit_to_run` has checked.

    Args:
        schedulers: A list of schedules, or lists by optimizer; changed in place.
        states: Of the same form.
    """
    if isinstance(schedulers, dict):
        for name, some in schedulers.items():
            restore_schedules(some, states[name])
        return
    for one, state in zip(schedulers, states, strict=True):
        one.load_state_dict(state)


# --- schedules that are not the checkpoint's ------------------------------------------------


def flat_schedules(schedulers: Any) -> list[Any]:
    """All schedules of a list of them, of lists by optimizer, or of None."""
    if isinstance(schedulers, dict):
        return [one for some in schedulers.values() for one in some]
    return list(schedulers or [])


def advance_schedules(schedulers: Any, iterations: int, epochs: int = 0) -> None:
    """Step new schedules to where a run that has followed them from its start has them.

    They are stepped in the order of a run, so that the values are the same to the bit.

    Args:
        schedulers: A list of schedules, or lists by optimizer, none of which has been stepped;
            changed in place, with the options of their optimizers.
        iterations: Iterations to step by.
        epochs: Epochs among them, all of the same length; 0 in a loop that counts iterations.
    """
    if isinstance(schedulers, dict):
        for some in schedulers.values():
            advance_schedules(some, iterations, epochs)
        return
    if not schedulers or not iterations:
        return
    length = iterations // epochs if epochs else 0
    by_epoch = [one for one in schedulers if one.by_epoch]
    by_iteration = [one for one in schedulers if not one.by_epoch]
    with _distinct_groups(schedulers):
        for step in range(1, iterations + 1):
            for one in by_iteration:
                one.step()
            if length and step % length == 0:
                for one in by_epoch:
                    one.step()


@contextlib.contextmanager
def _distinct_groups(schedulers: Sequence[Any]) -> Iterator[None]:
    """Leave an optimizer only one of each kind of groups of parameters while it is stepped.

    With a factor for some layers, MMEngine makes a group of each parameter; 400 groups for 100,000
    iterations take a minute.
    """
    wrapper = schedulers[0].optimizer
    optimizer = getattr(wrapper, "optimizer", wrapper)
    groups = optimizer.param_groups
    # Without a step of the optimizer before theirs, schedules warn.
    mark_stepped(wrapper)
    kinds: dict[tuple, int] = {}
    kind_of = [kinds.setdefault(_options(group), len(kinds)) for group in groups]
    firsts = [kind_of.index(kind) for kind in range(len(kinds))]
    known = all(type(one).__module__.startswith("mmengine.") for one in schedulers)
    if (
        not known
        or len(kinds) == len(groups)
        or not all(hasattr(s, "base_values") for s in schedulers)
    ):
        yield
        return
    # MMEngine's wrapper adds a group without parameters at the end.
    more = list(range(len(groups), len(schedulers[0].base_values)))
    full = [list(one.base_values) for one in schedulers]
    for one in schedulers:
        one.base_values = [one.base_values[index] for index in [*firsts, *more]]
    optimizer.param_groups = [groups[index] for index in firsts]
    try:
        yield
    finally:
        optimizer.param_groups = groups
        for group, kind in zip(groups, kind_of, strict=True):
            values = groups[firsts[kind]]
            group.update({name: value for name, value in values.items() if name != "params"})
        places = [*kind_of, *range(len(kinds), len(kinds) + len(more))]
        for one, values in zip(schedulers, full, strict=True):
            one.base_values = values
            pick_last_values(one, places)


def _options(group: Mapping[str, Any]) -> tuple:
    return tuple((name, repr(value)) for name, value in group.items() if name != "params")
