# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Schedules of a resumed run: saved, compared with the run's own, restored, or stepped anew."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .._stack import mark_stepped
from .checkpoint_values import (
    DROP,
    NUMBER,
    POSITIVE,
    Refusal,
    Spec,
    fields,
    integer,
    is_number,
    like,
    list_of,
    map_of,
    rule,
)

#: Attributes that count steps; -1 is before the first one.
_COUNTERS = ("last_step", "_global_step", "total_iters", "begin", "end", "num_bad_epochs")
_NEEDED = ("last_step", "_global_step", "base_values", "_last_value")
#: Numbers that change while a schedule runs, and may be 0.
_VALUES = ("base_values", "_last_value", "cooldown_counter")


def schedules_like(ours: Sequence[Any]) -> Spec:
    """What a checkpoint must hold of the schedules of an optimizer.

    ``load_state_dict`` of MMEngine's schedules sets every attribute that it is given, methods too:
    only those are taken over that the run's own have and that are numbers, texts or lists of them.
    """
    return list_of([functools.partial(_schedule, own=one.state_dict()) for one in ours])


def _schedule(value: Any, key: str, refuse: Refusal, own: dict[str, Any]) -> dict[str, Any]:
    needed = [name for name in _NEEDED if name in own]
    attributes = {name: _attribute_like(name, one) for name, one in own.items()}
    found = fields(attributes, needed)(value, key, refuse)
    # The counters must agree: a schedule divides by what is left of its steps.
    state = {**own, **found}
    length = state["end"] - state["begin"]
    if length <= 0:
        refuse(f"{key}.end", state["end"], f"an integer above {state['begin']}, its begin")
    if state.get("total_iters", length - 1) != length - 1:
        refuse(f"{key}.total_iters", state["total_iters"], f"{length - 1}, one less than its steps")
    last = min(state["_global_step"], length - 1)
    if "base_values" in state and state["last_step"] > last:  # others count validations
        refuse(f"{key}.last_step", state["last_step"], f"at most {last}")
    return found


def _attribute_like(name: str, own: Any) -> Spec:
    if name == "verbose" or not _is_plain(own):
        return DROP  # the run's own; functions above all
    if name in _COUNTERS:
        return integer(-1)
    if isinstance(own, Counter):  # milestones, and how often each is given
        return functools.partial(_milestones, count=len(own))
    if name == "best":  # infinite before the first score
        return rule(lambda value: isinstance(value, float) or is_number(value), "a number")
    if isinstance(own, float) and not math.isfinite(own):  # the worst score
        return rule(lambda value: isinstance(value, float) and value == own, repr(own))
    if name in _VALUES:
        return like(own)
    # What is above 0 in the config divides, or is a factor, and never becomes 0.
    return like(own, lambda own: POSITIVE if own > 0 else NUMBER)


def _milestones(value: Any, key: str, refuse: Refusal, count: int) -> Counter:
    steps = map_of(integer(), integer(1, 10))(value, key, refuse)
    if len(steps) != count:
        refuse(key, value, f"a mapping of {count}")
    return Counter(steps)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | Tensor)


def states_of_schedules(schedulers: Sequence[Any]) -> list[dict[str, Any]]:
    """What a checkpoint holds of schedules: their attributes, without functions."""
    return [
        {name: value for name, value in one.state_dict().items() if _is_plain(value)}
        for one in schedulers
    ]


def restore_schedules(schedulers: Sequence[Any], states: Any) -> None:
    """Load checked states."""
    for one, state in zip(schedulers, states, strict=True):
        one.load_state_dict(state)


def advance_schedules(schedulers: Sequence[Any] | None, iterations: int, epochs: int = 0) -> None:
    """Step new schedules, in place, to where a run has them that has followed them from its start.

    They are stepped in the order of a run, so that the values are the same to the bit; ``epochs``,
    all of the same length, are among the iterations, or 0 in a loop that counts iterations.
    """
    if not schedulers or not iterations:
        return
    # Without a step of the optimizer before theirs, schedules warn.
    mark_stepped(schedulers[0].optimizer)
    length = iterations // epochs if epochs else 0
    by_epoch = [one for one in schedulers if one.by_epoch]
    by_iteration = [one for one in schedulers if not one.by_epoch]
    for step in range(1, iterations + 1):
        for one in by_iteration:
            one.step()
        if length and step % length == 0:
            for one in by_epoch:
                one.step()
