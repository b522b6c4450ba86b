# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Which score decides what is best, and whether more of it is better; early stopping by one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from mmengine.hooks import CheckpointHook
from mmengine.hooks import EarlyStoppingHook as MMEngineEarlyStoppingHook
from mmengine.runner import Runner

from ...errors import UserError
from ...evaluation import score_name
from ...registry import HOOKS
from ..config.numbers import is_whole

#: Names of scores, or parts of them in any case, of which more is better: MMEngine's and more.
GREATER = (
    *("acc", "top", "AR@", "auc", "precision", "mAP", "IoU", "dice", "recall", "F1", "score"),
    *("kappa", "d1", "d2", "d3"),
)
#: Those of which less is better.
LESS = ("loss", "error", "ECE", "MCE", "rmse", "abs_rel", "sq_rel", "log10", "silog", "MAE", "MSE")


class Monitored(NamedTuple):
    """The score that decides which validation is the best."""

    name: str
    value: float
    better: Callable[[float, float], bool]
    """Whether the first value is better than the second."""


def monitored(runner: Runner, scores: Mapping[str, float]) -> Monitored | None:
    """The score of ``save_best`` (``auto``: the first), or else mIoU, or the first one, if any."""
    key, rule = "mIoU", None
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.save_best:
            key, rule = hook.key_indicators[0], hook.rules[0]
    name = score_name(scores, key) or next(iter(scores), None)
    if name is None:
        return None
    less = rule == "less" if rule else more_is_worse(name)
    return Monitored(name, scores[name], (lambda a, b: a < b) if less else (lambda a, b: a > b))


def more_is_worse(name: str) -> bool:
    """Whether less is better, by MMEngine's rule for the name of a score."""
    lower = name.lower()
    greater, less = ([key.lower() for key in keys] for keys in (GREATER, LESS))
    if lower in greater or lower in less:
        return lower in less
    return not any(key in lower for key in greater) and any(key in lower for key in less)


def require_score(scores: Mapping[str, Any], name: str, key: str) -> str:
    """The full name of a score that the config key ``key`` asks for; UserError without one."""
    found = score_name(scores, name)
    if found is None:
        known = ", ".join(map(str, scores)) or "none"
        message = f"the evaluators give no score {name}; they give {known}"
        raise UserError("config-value", f"config key {key}", message)
    return found


@contextlib.contextmanager
def naming(key: str) -> Iterator[None]:
    """Turn what MMEngine's hooks raise for wrong options into a UserError that names the key."""
    try:
        yield
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        message = str(error.args[0] if error.args else error)
        if "infer the rule" in message:
            message += " Add rule='greater' or rule='less', or correct the name."
        raise UserError("config-value", f"config key {key}", message) from error


@HOOKS.register_module()
class EarlyStoppingHook(MMEngineEarlyStoppingHook):
    """MMEngine's, which knows the direction of more scores and refuses a score that is not there.

    Its patience is saved with the run: one that is resumed stops when it would have stopped.

    Args: as MMEngine's, and
        begin: Validations before this iteration count for nothing: a learning rate that is still
            high makes scores go up and down, and by chance one of them is high.
    """

    priority = "LOW"  # before CheckpointHook, which saves what this validation has changed

    _default_greater_keys = list(GREATER)
    _default_less_keys = list(LESS)

    def __init__(self, *args: Any, begin: int = 0, **kwargs: Any) -> None:
        with naming("custom_hooks (EarlyStoppingHook)"):
            if not is_whole(begin, 0):
                raise ValueError(f"begin must be a whole number of at least 0, not {begin!r}")
            super().__init__(*args, **kwargs)
        self.begin = begin

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Stop the training if the score has not become better for long."""
        key = "custom_hooks (EarlyStoppingHook).monitor"
        name = require_score(metrics or {}, self.monitor, key)
        if runner.iter >= self.begin:
            super().after_val_epoch(runner, {self.monitor: (metrics or {})[name]})

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Put the best score, and for how long there was no better one, into the checkpoint."""
        state = {"best_score": float(self.best_score), "wait_count": self.wait_count}
        checkpoint.setdefault("early_stopping", {})[self.monitor] = state

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Resuming: take them over."""
        state = (checkpoint.get("early_stopping") or {}).get(self.monitor)
        if state is not None:
            self.best_score, self.wait_count = state["best_score"], state["wait_count"]

    def before_train(self, runner: Runner) -> None:
        """A run that had stopped when it was saved stops again."""
        if self.wait_count >= self.patience:
            runner.train_loop.stop_training = True
