# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a training checkpoint may hold: every known key with its type and range.

The file has been read as tensors and plain data (:mod:`mmseg_resnest.weights`), and nothing in it
is parsed, imported or looked up after that. What depends on the model and the optimizer is compared
in :mod:`.resume`. Unknown keys are dropped: the run sets them itself, or nothing reads them.
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
    Refusal,
    Spec,
    exactly,
    fields,
    integer,
    is_integer,
    is_number,
    like,
    list_of,
    map_of,
    maybe,
    plain_tensor,
    rule,
)
from .resume_changes import LONGEST_TEXT, MOST_KEYS
from .saving import HISTORY

#: What identifies a run: hex digits, as ``secrets.token_hex`` makes them.
RUN_ID = re.compile(r"[0-9a-f]{16,64}")
_LONGEST_HISTORY = 100_000_000
_MOST_VALUES = 10_000_000


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 4096


_TEXT = rule(_is_text, "a text")
_NAME = rule(lambda value: isinstance(value, str) and len(value) <= 256, "a short text")
_PRINTED = rule(  # shown on a terminal
    lambda value: isinstance(value, str) and len(value) <= LONGEST_TEXT and value.isprintable(),
    "a short text",
)
_PRINTED_TEXTS = map_of(_PRINTED, _PRINTED, MOST_KEYS)
_SEED = maybe(integer(0, 2**32 - 1))


def _is_score(value: Any) -> bool:  # one without a value is NaN or None
    return value is None or isinstance(value, float) or is_number(value)


_SCORE = rule(_is_score, "a score")
_WEIGHTS = map_of(_TEXT, rule(plain_tensor, "a dense tensor with values"))
_META = fields(
    {
        "iter": COUNT,
        "epoch": COUNT,
        "seed": _SEED,
        "total_batch": COUNT,
        "world_size": integer(1),
        "validation_pending": FLAG,
        "run_id": rule(
            lambda value: isinstance(value, str) and RUN_ID.fullmatch(value) is not None,
            "16 to 64 hex digits",
        ),
        "start": COUNT,
        "config_values": _PRINTED_TEXTS,
        "numerics": fields(
            {
                "fused": FLAG,
                "fused_steps": list_of(_PRINTED),
                "precision": _PRINTED,
                "engine": _PRINTED,
                "float32_matmul": _PRINTED,
                "memory_order": _PRINTED,
                "world_size": integer(1),
                "deterministic": FLAG,
                "threads": integer(1),
                "device": _PRINTED,
                "versions": _PRINTED_TEXTS,
            },
            unknown="drop",
        ),
        "dataset_meta": maybe(fields({"classes": maybe(list_of(_TEXT))}, unknown="drop")),
    },
    needed=("iter", "epoch"),
    unknown="drop",
)
_EARLY_STOPPING = exactly(
    {"best_score": rule(lambda value: isinstance(value, float), "a number"), "wait_count": COUNT}
)
_RUNTIME_INFO = fields(
    {
        "iter": COUNT,
        "epoch": COUNT,
        "max_iters": COUNT,
        "max_epochs": COUNT,
        "seed": _SEED,
        "eta": rule(lambda value: is_number(value) and value >= 0, "a number of seconds"),
        "loop_stage": rule(
            lambda value: isinstance(value, str) and value in ("train", "val", "test"),
            "train, val or test",
        ),
        "last_ckpt": _TEXT,
        "keep_ckpt_ids": list_of(COUNT),
        "best_score": rule(is_number, "a number"),
        "best_score_*": rule(is_number, "a number"),  # with several metrics
        "best_ckpt": maybe(_TEXT),
        "best_ckpt_*": maybe(_TEXT),
    },
    unknown="drop",
)


def check_training_checkpoint(filename: str) -> dict[str, Any]:
    """Read a checkpoint that training can continue from, and check all that needs no model.

    Returns:
        The known keys; histories of logged numbers are MMEngine's ``HistoryBuffer``. ``optimizer``
        and ``param_schedulers`` are not checked yet.

    Raises:
        UserError: It cannot be read, something that resuming needs is not in it, or a value has
            another type or range than training writes.
    """
    refuse = Refusal(filename)
    record = fields(
        {
            "meta": _META,
            "state_dict": _WEIGHTS,
            "optimizer": ANY,
            "message_hub": _message_hub,
            "ema_state_dict": ANY,
            "param_schedulers": ANY,
            "results": check_results,
            "early_stopping": map_of(_NAME, _EARLY_STOPPING),
        },
        needed=("meta", "state_dict", "optimizer", "message_hub"),
        unknown="drop",
    )
    found = record(load_training_checkpoint(filename), "it", refuse)
    if "ema_state_dict" in found:
        averages = {f"module.{name}": like(value) for name, value in found["state_dict"].items()}
        averaged = exactly({**averages, "steps": _STEPS})
        found["ema_state_dict"] = averaged(found["ema_state_dict"], "ema_state_dict", refuse)
    about = found["meta"].pop("dataset_meta", None) or {}
    if about.get("classes") is not None:
        found["meta"]["classes"] = tuple(about["classes"])
    return found


_STEPS = rule(
    lambda value: (
        plain_tensor(value)
        and value.numel() == 1
        and value.dtype == torch.int64
        and int(value) >= 0
    ),
    "one integer from 0",
)


def _message_hub(value: Any, key: str, refuse: Refusal) -> dict[str, Any]:
    names = map_of(_NAME, ANY)
    parts: dict[str, Spec] = {"log_scalars": names, "runtime_info": names}
    parts["resumed_keys"] = map_of(_NAME, FLAG)
    hub = fields(parts, tuple(parts), "drop")(value, key, refuse)
    info = _RUNTIME_INFO(hub["runtime_info"], f"{key}.runtime_info", refuse)
    scalars = restore_histories(hub["log_scalars"], refuse)
    # MMEngine saves nothing of a key that is False, and asserts that a key never changes.
    kept = dict.fromkeys([*scalars, *info], True)
    return {"log_scalars": scalars, "runtime_info": info, "resumed_keys": kept}


def restore_histories(scalars: Mapping[str, Any], refuse: Refusal) -> dict[str, HistoryBuffer]:
    """MMEngine's histories of logged numbers, by name, from those that ``saving.snapshot`` made.

    A damaged one is refused.
    """
    restored = {}
    for name, value in scalars.items():
        key = f"message_hub.log_scalars.{name}"
        if isinstance(value, HistoryBuffer):
            (log, count), length = value.data, value.max_length
        else:
            parts: dict[str, Spec] = {HISTORY: _numbers, "count": _numbers, "max_length": ANY}
            history = exactly(parts)(value, key, refuse)
            log, count, length = history[HISTORY], history["count"], history["max_length"]
        if log.ndim != 1 or log.dtype.kind not in "biuf":
            refuse(f"{key}.{HISTORY}", log, "a list of numbers")
        if count.shape != log.shape or count.dtype.kind not in "biuf":
            refuse(f"{key}.count", count, f"{len(log)} numbers, one for each of {HISTORY}")
        least = max(1, len(log))
        length = integer(least, _LONGEST_HISTORY)(length, f"{key}.max_length", refuse)
        restored[name] = make_history(log, count, length)
    return restored


def _numbers(value: Any, key: str, refuse: Refusal) -> NDArray:
    # Contiguous: otherwise a few bytes could stand for any number of values.
    if isinstance(value, Tensor) and plain_tensor(value) and value.is_contiguous():
        with contextlib.suppress(TypeError):  # a type that NumPy does not have
            return value.detach().numpy().copy()
    refuse(key, value, "a tensor of numbers")


#: What the run itself puts into ``results.json``; a checkpoint does not speak for it.
_OF_THE_RUN = (
    *("task", "config", "version", "run_id", "numerics", "best_checkpoint", "last_checkpoint"),
    "history",
)
_HISTORY = list_of(fields({"iteration": COUNT, "*": _SCORE}, needed=("iteration",)))


def check_results(value: Any, key: str, refuse: Refusal) -> dict[str, Any]:
    """The ``history`` of scores and the ``best`` result that ``ResultsHook`` has saved.

    Without what the run itself says in ``results.json``. A value of another type is refused.
    """
    best = fields(
        {
            **dict.fromkeys(_OF_THE_RUN, DROP),
            "iteration": COUNT,
            "scores": map_of(_TEXT, _SCORE),
            "mIoU": rule(lambda value: value is not None and _is_score(value), "a score"),
        },
        unknown="keep",
    )
    parts: dict[str, Spec] = {"history": _HISTORY, "best": best}
    found = fields(parts, tuple(parts), "drop")(value, key, refuse)
    best_result = found["best"]
    if best_result and not is_integer(best_result.get("iteration")):
        refuse(f"{key}.best.iteration", None, "an integer from 0")
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
            _TEXT(name, f"a key of {key}", refuse)
        return [(f"{key}.{name}", child) for name, child in value.items()]
    if isinstance(value, list | tuple):
        return [(f"{key}[{index}]", child) for index, child in enumerate(value)]
    if not (isinstance(value, bool) or _is_text(value) or _is_score(value)):
        refuse(key, value, "a number, a text, or a list or mapping of them")
    return []
