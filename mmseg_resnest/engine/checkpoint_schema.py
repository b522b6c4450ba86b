# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a training checkpoint may hold: every known key with its type and range.

The file has been read as tensors and plain data (:mod:`mmseg_resnest.weights`). Nothing in it is
parsed, imported or looked up after that: a text of a checkpoint stays a text. What depends on the
model and the optimizer is compared in :mod:`.resume`.

Other keys of the record, of ``meta`` and of ``runtime_info`` are dropped: the run sets them itself
(the config's text, versions, times, names), or nothing reads them. A known key with another type,
shape or range is refused by name.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.logging import HistoryBuffer
from numpy.typing import NDArray
from torch import Tensor

from .._stack import make_history
from ..evaluation import class_table
from ..weights import load_training_checkpoint
from .checkpoint_values import (
    ANY,
    COUNT,
    DROP,
    FLAG,
    Fields,
    ListOf,
    MapOf,
    Maybe,
    Refusal,
    Rule,
    Spec,
    checked,
    integer,
    is_integer,
    is_number,
    like,
    plain_tensor,
)
from .resume_changes import LONGEST_TEXT, MOST_KEYS
from .saving import HISTORY

__all__ = ["RUN_ID", "check_results", "check_training_checkpoint", "restore_histories"]

#: What identifies a run: hex digits, as ``secrets.token_hex`` makes them.
RUN_ID = re.compile(r"[0-9a-f]{16,64}")
_LONGEST_HISTORY = 100_000_000
_MOST_VALUES = 10_000_000

_TEXT = Rule(lambda value: isinstance(value, str) and len(value) <= 4096, "a text")
_NAME = Rule(lambda value: isinstance(value, str) and len(value) <= 256, "a short text")
_PRINTED = Rule(  # shown on a terminal
    lambda value: isinstance(value, str) and len(value) <= LONGEST_TEXT and value.isprintable(),
    "a short text",
)
_PRINTED_TEXTS = MapOf(_PRINTED, _PRINTED, MOST_KEYS)
_SEED = Maybe(integer(0, 2**32 - 1))
# A score without a value is NaN or None.
_SCORE = Rule(
    lambda value: value is None or isinstance(value, float) or is_number(value), "a score"
)
_WEIGHTS = MapOf(_TEXT, Rule(plain_tensor, "a dense tensor with values"))
_META = Fields(
    {
        "iter": COUNT,
        "epoch": COUNT,
        "seed": _SEED,
        "total_batch": COUNT,
        "world_size": integer(1),
        "validation_pending": FLAG,
        "run_id": Rule(
            lambda value: isinstance(value, str) and RUN_ID.fullmatch(value) is not None,
            "16 to 64 hex digits",
        ),
        "start": COUNT,
        "config_values": _PRINTED_TEXTS,
        "numerics": Fields(
            {
                "fused": FLAG,
                "precision": _PRINTED,
                "memory_order": _PRINTED,
                "world_size": integer(1),
                "deterministic": FLAG,
                "threads": integer(1),
                "device": _PRINTED,
                "versions": _PRINTED_TEXTS,
            },
            unknown="drop",
        ),
        "dataset_meta": Maybe(Fields({"classes": Maybe(ListOf(_TEXT))}, unknown="drop")),
    },
    needed=("iter", "epoch"),
    unknown="drop",
)
_RUNTIME_INFO = Fields(
    {
        "iter": COUNT,
        "epoch": COUNT,
        "max_iters": COUNT,
        "max_epochs": COUNT,
        "seed": _SEED,
        "eta": Rule(lambda value: is_number(value) and value >= 0, "a number of seconds"),
        "loop_stage": Rule(
            lambda value: isinstance(value, str) and value in ("train", "val", "test"),
            "train, val or test",
        ),
        "last_ckpt": _TEXT,
        "keep_ckpt_ids": ListOf(COUNT),
        "best_score": Rule(is_number, "a number"),
        "best_score_*": Rule(is_number, "a number"),  # with several metrics
        "best_ckpt": Maybe(_TEXT),
        "best_ckpt_*": Maybe(_TEXT),
    },
    unknown="drop",
)


def check_training_checkpoint(filename: str) -> dict[str, Any]:
    """Read a checkpoint that training can continue from, and check all that needs no model.

    Args:
        filename: The file.

    Returns:
        The known keys, checked; histories of logged numbers are MMEngine's ``HistoryBuffer``.
        ``optimizer`` and ``param_schedulers`` are not checked yet.

    Raises:
        UserError: It cannot be read, something that resuming needs is not in it, or a value has
            another type or range than training writes.
    """
    refuse = Refusal(filename)
    record = Fields(
        {
            "meta": _META,
            "state_dict": _WEIGHTS,
            "optimizer": ANY,
            "message_hub": _message_hub,
            "ema_state_dict": ANY,
            "param_schedulers": ANY,
            "results": _results,
        },
        needed=("meta", "state_dict", "optimizer", "message_hub"),
        unknown="drop",
    )
    found = checked(load_training_checkpoint(filename), record, "it", refuse)
    if "ema_state_dict" in found:
        averages = {f"module.{name}": like(value) for name, value in found["state_dict"].items()}
        found["ema_state_dict"] = checked(
            found["ema_state_dict"],
            Fields.exactly({**averages, "steps": _STEPS}),
            "ema_state_dict",
            refuse,
        )
    about = found["meta"].pop("dataset_meta", None) or {}
    if about.get("classes") is not None:
        found["meta"]["classes"] = tuple(about["classes"])
    return found


_STEPS = Rule(
    lambda value: (
        plain_tensor(value)
        and value.numel() == 1
        and value.dtype == torch.int64
        and int(value) >= 0
    ),
    "one integer from 0",
)


def _message_hub(value: Any, key: str, refuse: Refusal) -> dict[str, Any]:
    names = MapOf(_NAME, ANY)
    parts: dict[str, Spec] = {"log_scalars": names, "runtime_info": names}
    parts["resumed_keys"] = MapOf(_NAME, FLAG)
    hub = checked(value, Fields(parts, tuple(parts), "drop"), key, refuse)
    info = checked(hub["runtime_info"], _RUNTIME_INFO, f"{key}.runtime_info", refuse)
    scalars = restore_histories(hub["log_scalars"], refuse)
    # MMEngine saves nothing of a key that is False, and asserts that a key never changes.
    kept = dict.fromkeys([*scalars, *info], True)
    return {"log_scalars": scalars, "runtime_info": info, "resumed_keys": kept}


def restore_histories(scalars: Mapping[str, Any], refuse: Refusal) -> dict[str, HistoryBuffer]:
    """Histories of logged numbers as MMEngine's, from those that ``saving.snapshot`` made of them.

    Args:
        scalars: From names to those of a snapshot, or to MMEngine's own.
        refuse: Called with what does not fit.

    Raises:
        UserError: One is damaged.
    """
    restored = {}
    for name, value in scalars.items():
        key = f"message_hub.log_scalars.{name}"
        if isinstance(value, HistoryBuffer):
            (log, count), length = value.data, value.max_length
        else:
            parts: dict[str, Spec] = {HISTORY: _numbers, "count": _numbers, "max_length": ANY}
            history = checked(value, Fields(parts, tuple(parts)), key, refuse)
            log, count, length = history[HISTORY], history["count"], history["max_length"]
        if log.ndim != 1 or log.dtype.kind not in "biuf":
            refuse(f"{key}.{HISTORY}", log, "a list of numbers")
        if count.shape != log.shape or count.dtype.kind not in "biuf":
            refuse(f"{key}.count", count, f"{len(log)} numbers, one for each of {HISTORY}")
        least = max(1, len(log))
        length = checked(length, integer(least, _LONGEST_HISTORY), f"{key}.max_length", refuse)
        restored[name] = make_history(log, count, length)
    return restored


def _numbers(value: Any, key: str, refuse: Refusal) -> NDArray:
    # Contiguous: otherwise a few bytes could stand for any number of values.
    if isinstance(value, Tensor) and plain_tensor(value) and value.is_contiguous():
        with contextlib.suppress(TypeError):  # a type that NumPy does not have
            return value.detach().numpy().copy()
    refuse(key, value, "a tensor of numbers")


# --- results --------------------------------------------------------------------------------

#: What the run itself puts into ``results.json``; a checkpoint does not speak for it.
_OF_THE_RUN = (
    *("task", "config", "version", "numerics", "best_checkpoint", "last_checkpoint", "history"),
)
_HISTORY = ListOf(Fields({"iteration": COUNT, "*": _SCORE}, needed=("iteration",)))


def check_results(results: Any, refuse: Refusal) -> dict[str, Any]:
    """Check what ``ResultsHook`` has saved.

    Args:
        results: Its ``history`` of scores and its ``best`` result.
        refuse: Called with what does not fit.

    Returns:
        Both, without what the run itself says in ``results.json``.

    Raises:
        UserError: A value has another type than the hook writes.
    """
    return _results(results, "results", refuse)


def _results(value: Any, key: str, refuse: Refusal) -> dict[str, Any]:
    best = Fields(
        {
            **dict.fromkeys(_OF_THE_RUN, DROP),
            "iteration": COUNT,
            "mIoU": Rule(lambda value: value is not None and _SCORE.fits(value), "a score"),
        },
        unknown="keep",
    )
    parts: dict[str, Spec] = {"history": _HISTORY, "best": best}
    found = checked(value, Fields(parts, tuple(parts), "drop"), key, refuse)
    best_result = found["best"]
    if best_result and not is_integer(best_result.get("iteration")):
        refuse(f"{key}.best.iteration", None, COUNT.expected)
    _check_plain(best_result, f"{key}.best", refuse)
    if "classes" in best_result:
        try:
            class_table(best_result)
        except Exception:  # whatever a value of another kind makes of it
            refuse(f"{key}.best.classes", best_result["classes"], "the scores of each class")
    return found


def _check_plain(value: Any, key: str, refuse: Refusal) -> None:
    """Numbers, texts, and lists and mappings of them, bounded in depth and number."""
    level: list[tuple[str, Any]] = [(key, value)]
    for _ in range(6):  # what is written has four levels
        # Counted before they are listed: a list may hold itself many times.
        if sum(len(v) for _, v in level if isinstance(v, dict | list | tuple)) > _MOST_VALUES:
            refuse.because(f"{key} holds more than {_MOST_VALUES:,} values")
        level = [child for place, one in level for child in _children(place, one, refuse)]
    if level:
        refuse.because(f"{level[0][0]} is nested too deeply")


def _children(key: str, value: Any, refuse: Refusal) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        for name in value:
            checked(name, _TEXT, f"a key of {key}", refuse)
        return [(f"{key}.{name}", child) for name, child in value.items()]
    if isinstance(value, list | tuple):
        return [(f"{key}[{index}]", child) for index, child in enumerate(value)]
    if not (isinstance(value, bool) or _TEXT.fits(value) or _SCORE.fits(value)):
        refuse(key, value, "a number, a text, or a list or mapping of them")
    return []
