# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The length of a training, and what counts its iterations or epochs and moves with it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from mmengine.config import Config

from ..errors import UserError
from ..registry import type_name
from .config.numbers import is_whole

#: After how many iterations ``IterBasedTrainLoop`` validates, if ``val_interval`` does not say.
VAL_INTERVAL = 1000
#: Options of hooks that count iterations, and those that count epochs.
_ITERATIONS = {
    "EarlyStoppingHook": ("begin",),
    "EMAHook": ("begin_iter",),
    "PreciseBNHook": ("interval",),
}
_EPOCHS = {"EMAHook": ("begin_epoch",)}
#: How the names of schedules begin after which a run goes on.
WARM_UPS = ("Linear", "Constant")
_SAVING = ("interval", "save_begin")


class RunLength(NamedTuple):
    """How many iterations and epochs a run has."""

    iterations: Fraction
    epochs: Fraction

    @classmethod
    def of(cls, cfg: Config, images: int) -> RunLength:
        """Of a config that trains on so many images; of no number of them, as of one batch."""
        loader = cfg.train_dataloader
        batch = batch_holder(cfg).get("batch_size")
        batch = batch if is_whole(batch, 1) else 1  # what else it may be is refused later
        whole = loader.get("drop_last") and images > batch
        each = max(1, images // batch if whole else math.ceil(images / batch))
        loop = cfg.train_cfg
        if (iterations := loop.get("max_iters")) is not None:
            return cls(Fraction(iterations), Fraction(iterations, each))
        epochs = loop.get("max_epochs") or 1
        return cls(Fraction(epochs * each), Fraction(epochs))


def batch_holder(cfg: Config) -> Any:
    """What holds ``batch_size`` of the training: the data loader or its batch sampler."""
    loader = cfg.train_dataloader
    return loader if "batch_size" in loader else loader.get("batch_sampler") or {}


def schedules_of(cfg: Mapping[str, Any]) -> list[Any]:
    """The configs of the schedules."""
    configs = cfg.get("param_scheduler")
    listed = configs if isinstance(configs, list | tuple) else [configs]
    return [one for one in listed if isinstance(one, Mapping)]


def is_warm_up(schedule: Mapping[str, Any]) -> bool:
    """Whether a schedule starts at a part of the value, and reaches it in its second step or later.

    With one step the value would stay where it starts.
    """
    by_parts = schedule.get("start_factor", schedule.get("factor", 0)) != 1
    kind = type_name(schedule.get("type"))
    return by_parts and kind.startswith(WARM_UPS) and not schedule.get("convert_to_iter_based")


def set_epochs(cfg: Config, epochs: float, images: int) -> None:
    """Let a run have so many passes over its images; nothing else moves yet."""
    loop, whole = cfg.train_cfg, int(epochs)
    if loop.get("max_iters") is not None:
        batch = batch_holder(cfg).get("batch_size") or 1
        loop["max_iters"] = max(1, math.ceil(epochs * images / batch))
    elif not loop.get("max_epochs") or epochs != whole:
        raise UserError("argument", "--epochs", f"must be a whole number, not {epochs:g}")
    else:
        loop["max_epochs"] = whole


def move_with_length(cfg: Config, before: RunLength, after: RunLength) -> None:
    """Stretch, in place, what counts the iterations or the epochs of a run.

    These are its schedules, the intervals of validation and saving, and where hooks begin.
    """
    iterations = _Stretch(before.iterations, after.iterations)
    epochs = _Stretch(before.epochs, after.epochs)
    loop, by_epoch = cfg.train_cfg, "max_iters" not in cfg.train_cfg
    own = epochs if by_epoch else iterations
    if own.factor != 1:
        default = 1 if by_epoch else VAL_INTERVAL
        loop["val_interval"] = own.step(loop.get("val_interval", default))
    own.move(loop, "val_begin")
    if loop.get("dynamic_intervals"):
        loop["dynamic_intervals"] = [(own.begin(a), own.step(b)) for a, b in loop.dynamic_intervals]
    for kind, hook in _hooks(cfg):
        if kind == "CheckpointHook":
            (epochs if hook.get("by_epoch", True) else iterations).move(hook, *_SAVING)
        iterations.move(hook, *_ITERATIONS.get(kind, ()))
        epochs.move(hook, *_EPOCHS.get(kind, ()))
    for schedule in schedules_of(cfg):
        if "Plateau" not in str(schedule.get("type")):  # it counts validations
            (epochs if schedule.get("by_epoch", True) else iterations).schedule(schedule)


def _hooks(cfg: Config) -> Iterator[tuple[str, Any]]:
    """The configs of hooks with the names of their types."""
    defaults = cfg.get("default_hooks") or {}
    for hook in (*defaults.values(), *(cfg.get("custom_hooks") or ())):
        if isinstance(hook, Mapping):
            saving = hook is defaults.get("checkpoint")
            yield "CheckpointHook" if saving else type_name(hook.get("type")), hook


class _Stretch:
    """What numbers of steps become when a run of ``before`` steps becomes one of ``after``."""

    def __init__(self, before: Fraction, after: Fraction) -> None:
        self.before, self.after = before, after
        self.factor = after / before

    def begin(self, value: int) -> int:
        """Of a step at which something begins; 0 stays."""
        return value and self.step(value)

    def step(self, value: int) -> int:
        """Of a number of steps."""
        return max(1, round(value * self.factor))

    def move(self, node: Any, *names: str) -> None:
        """Of options that are there, and above 0: -1 stands for never."""
        for name in names:
            if isinstance(node.get(name), int) and node[name] > 0:
                node[name] = self.step(node[name])

    def schedule(self, node: Any) -> None:
        """Of the steps that a schedule counts."""
        if self.factor == 1:
            return
        begin, end = node.get("begin", 0), node.get("end")
        node["begin"] = self.begin(begin)
        if end is not None:
            # What ends with the run, or just after it, still does.
            late = end >= self.before
            node["end"] = math.ceil(self.after) + (end - math.ceil(self.before))
            least = node["begin"] + min(end - begin, 2 if is_warm_up(node) else 1)
            node["end"] = max(node["end"] if late else self.step(end), least)
        for key in ("milestones", "T_max", "step_size", "total_steps"):
            if isinstance(node.get(key), list | tuple):
                node[key] = [self.step(one) for one in node[key]]
            elif node.get(key) is not None:
                node[key] = self.step(node[key])
        if node.get("periods"):  # by their ends, so that the last one is that of the run
            ends = [self.step(one) for one in itertools.accumulate(node["periods"])]
            node["periods"] = [max(1, b - a) for a, b in itertools.pairwise([0, *ends])]
        if "Exponential" in str(node.get("type")) and node.get("gamma"):  # a factor of each step
            node["gamma"] = float(node["gamma"] ** float(1 / self.factor))
