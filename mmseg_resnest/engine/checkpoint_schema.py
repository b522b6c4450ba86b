# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a training checkpoint may hold: every known key with its type and range.

The file has been read as tensors and plain data (:mod:`mmseg_resnest.weights`). Nothing in it is
parsed, imported or looked up after that: a text of a checkpoint stays a text. What depends on the
model and the optimizer is compared in :mod:`mmseg_resnest.engine.resume`.

==================  ==============================================================================
key                 what is restored
==================  ==============================================================================
``meta``            ``iter``, ``epoch`` (both needed), ``seed``, ``total_batch``, ``world_size``,
                    ``validation_pending``, ``run_id``, ``start``, the class names in
                    ``dataset_meta``; to be compared, ``config_values`` (dotted keys and texts) and
                    ``numerics``
``state_dict``      the weights (needed)
``ema_state_dict``  averaged weights of MMEngine's ``EMAHook``
``optimizer``       state of the optimizer or of several (needed)
``param_schedulers``  state of the schedules
``message_hub``     ``log_scalars``, ``runtime_info`` (:data:`_RUNTIME_INFO`), ``resumed_keys``
``results``         ``history`` and ``best`` of ``ResultsHook``
==================  ==============================================================================

Every other key of the record, of ``meta`` and of ``runtime_info`` is dropped: the run sets it
itself (the config's text, versions, times, names), or nothing reads it. A known key with another
type, shape or range is refused by name.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from numpy.typing import NDArray
from torch import Tensor

from mmseg_resnest.engine.checkpoint_values import (
    Refusal,
    describe,
    is_integer,
    is_number,
    plain_tensor,
)
from mmseg_resnest.engine.resume_changes import LONGEST_KEY, LONGEST_VALUE, MOST_KEYS
from mmseg_resnest.engine.saving import HISTORY
from mmseg_resnest.errors import UserError
from mmseg_resnest.evaluation import class_table
from mmseg_resnest.weights import load_training_checkpoint

from .._stack import make_history

__all__ = [
    "RUN_ID",
    "check_results",
    "check_training_checkpoint",
    "restore_histories",
]

#: What identifies a run: hex digits, as ``secrets.token_hex`` makes them.
RUN_ID = re.compile(r"[0-9a-f]{16,64}")
_LONGEST_TEXT = 4096
_LONGEST_HISTORY = 100_000_000
_MOST_VALUES = 10_000_000


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
    record = load_training_checkpoint(filename)
    refuse = Refusal(filename)
    needed = ("meta", "state_dict", "optimizer", "message_hub")
    missing = [key for key in needed if key not in record]
    if missing:
        raise UserError(
            "config-value",
            f"--resume {filename}",
            f"holds no {missing[0]}, so training cannot continue from it; "
            "to start from its weights use --cfg-options load_from=FILE",
        )
    checked: dict[str, Any] = {
        "meta": _check_meta(record["meta"], refuse),
        "state_dict": _check_weights(record["state_dict"], "state_dict", refuse),
        "optimizer": _mapping(record["optimizer"], "optimizer", refuse),
        "message_hub": _check_message_hub(record["message_hub"], refuse),
    }
    if "ema_state_dict" in record:
        checked["ema_state_dict"] = _check_averages(
            record["ema_state_dict"], checked["state_dict"], refuse
        )
    if "param_schedulers" in record:
        value = record["param_schedulers"]
        if not isinstance(value, list | dict):
            refuse("param_schedulers", value, "a list, or a mapping from optimizers to lists")
        checked["param_schedulers"] = value
    if "results" in record:
        checked["results"] = check_results(record["results"], refuse)
    return checked


def _mapping(value: Any, key: str, refuse: Refusal) -> dict[Any, Any]:
    if not isinstance(value, dict):
        refuse(key, value, "a mapping")
    return value


def _native(value: Any) -> Any:
    """A number of NumPy as Python's; MMEngine's own checkpoints hold some."""
    return value.item() if isinstance(value, np.number | np.bool_) else value


# --- meta -----------------------------------------------------------------------------------

_Check = Callable[[Any], bool]
_COUNT: tuple[_Check, str] = (is_integer, "a whole number from 0")
_FLAG: tuple[_Check, str] = (lambda value: isinstance(value, bool), "True or False")
_SEED: tuple[_Check, str] = (
    lambda value: value is None or is_integer(value, most=2**32 - 1),
    "None or a whole number from 0 to 2**32 - 1",
)

_META: dict[str, tuple[_Check, str]] = {
    "iter": _COUNT,
    "epoch": _COUNT,
    "seed": _SEED,
    "total_batch": _COUNT,
    "world_size": (lambda value: is_integer(value, 1), "a whole number from 1"),
    "validation_pending": _FLAG,
    "run_id": (
        lambda value: isinstance(value, str) and RUN_ID.fullmatch(value) is not None,
        "16 to 64 hex digits",
    ),
    "start": _COUNT,
}


def _check_meta(meta: Any, refuse: Refusal) -> dict[str, Any]:
    meta = _mapping(meta, "meta", refuse)
    for key in ("iter", "epoch"):
        if key not in meta:
            refuse.because(f"meta holds no {key}")
    checked = {}
    for key, (fits, expected) in _META.items():
        if key in meta:
            value = _native(meta[key])
            if not fits(value):
                refuse(f"meta.{key}", value, expected)
            checked[key] = value
    if "config_values" in meta:
        checked["config_values"] = _check_texts(meta["config_values"], "meta.config_values", refuse)
    if "numerics" in meta:
        checked["numerics"] = _check_numerics(meta["numerics"], refuse)
    if meta.get("dataset_meta") is not None:
        about = _mapping(meta["dataset_meta"], "meta.dataset_meta", refuse)
        classes = about.get("classes")
        if classes is not None:
            if not isinstance(classes, list | tuple) or not all(map(_is_text, classes)):
                refuse("meta.dataset_meta.classes", classes, "a list of class names")
            checked["classes"] = tuple(classes)
    return checked


def _check_texts(value: Any, key: str, refuse: Refusal) -> dict[str, str]:
    """A mapping from short texts to short texts, which are compared and shown."""
    texts = _mapping(value, key, refuse)
    if len(texts) > MOST_KEYS:
        refuse.because(f"{key} holds {len(texts):,} keys, more than {MOST_KEYS:,}")
    for name, text in texts.items():
        if not _is_printable(name, LONGEST_KEY):
            refuse(f"a key of {key}", name, "a short text")
        if not _is_printable(text, LONGEST_VALUE):
            refuse(f"{key}.{name}", text, "a short text")
    return dict(texts)


_NUMERICS: dict[str, tuple[_Check, str]] = {
    "fused": _FLAG,
    "precision": (lambda value: _is_printable(value, LONGEST_VALUE), "a short text"),
    "memory_order": (lambda value: _is_printable(value, LONGEST_VALUE), "a short text"),
    "world_size": _META["world_size"],
    "deterministic": _FLAG,
    "threads": _META["world_size"],
    "device": (lambda value: _is_printable(value, LONGEST_VALUE), "a short text"),
}


def _check_numerics(value: Any, refuse: Refusal) -> dict[str, Any]:
    numerics = _mapping(value, "meta.numerics", refuse)
    checked: dict[str, Any] = {}
    for key, (fits, expected) in _NUMERICS.items():
        if key in numerics:
            if not fits(numerics[key]):
                refuse(f"meta.numerics.{key}", numerics[key], expected)
            checked[key] = numerics[key]
    if "versions" in numerics:
        checked["versions"] = _check_texts(numerics["versions"], "meta.numerics.versions", refuse)
    return checked


def _is_printable(value: Any, longest: int) -> bool:
    # It is shown on a terminal.
    return isinstance(value, str) and len(value) <= longest and value.isprintable()


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT


# --- weights --------------------------------------------------------------------------------


def _check_weights(weights: Any, key: str, refuse: Refusal) -> dict[str, Any]:
    for name, value in _mapping(weights, key, refuse).items():
        if not _is_text(name):
            refuse(f"a key of {key}", name, "the name of a tensor")
        if not plain_tensor(value):
            refuse(f"{key}.{name}", value, "a dense tensor with values")
    return weights


def _check_averages(averages: Any, weights: Mapping[str, Tensor], refuse: Refusal) -> dict:
    """EMAHook exchanges them with the weights one by one, so they must be the same tensors."""
    averages = _check_weights(averages, "ema_state_dict", refuse)
    for name, value in averages.items():
        if name == "steps":
            if value.numel() != 1 or value.dtype != torch.int64 or int(value) < 0:
                refuse("ema_state_dict.steps", value, "one whole number from 0")
            continue
        other = weights.get(name.removeprefix("module."))
        if not name.startswith("module.") or other is None:
            refuse.because(f"ema_state_dict.{name} is the average of nothing in state_dict")
        if other.shape != value.shape or other.dtype != value.dtype:
            refuse(f"ema_state_dict.{name}", value, describe(other))
    missing = [name for name in weights if f"module.{name}" not in averages]
    if missing:
        refuse.because(f"ema_state_dict holds no module.{missing[0]}")
    if "steps" not in averages:
        refuse.because("ema_state_dict holds no steps")
    return averages


# --- message hub ----------------------------------------------------------------------------

#: What of ``message_hub.runtime_info`` is restored. The rest is set by the run, never by a file:
#: the config's text, names, versions, the data set's classes.
_RUNTIME_INFO: dict[str, tuple[_Check, str]] = {
    "iter": _COUNT,
    "epoch": _COUNT,
    "max_iters": _COUNT,
    "max_epochs": _COUNT,
    "seed": _SEED,
    "eta": (lambda value: is_number(value) and value >= 0, "a number of seconds"),
    "loop_stage": (
        lambda value: isinstance(value, str) and value in ("train", "val", "test"),
        "train, val or test",
    ),
    "last_ckpt": (_is_text, "the path of a checkpoint"),
    "keep_ckpt_ids": (
        lambda value: isinstance(value, list) and all(map(is_integer, value)),
        "a list of whole numbers from 0",
    ),
}
_BEST = {
    "best_score": (is_number, "a number"),
    "best_ckpt": (lambda value: value is None or _is_text(value), "the path of a checkpoint"),
}


def _rule_of(name: str) -> tuple[_Check, str] | None:
    """What a key of ``runtime_info`` must hold; None for one that is not restored."""
    if name in _RUNTIME_INFO:
        return _RUNTIME_INFO[name]
    for start, rule in _BEST.items():  # with several metrics: best_score_mIoU, ...
        if name == start or name.startswith(f"{start}_"):
            return rule
    return None


def _check_message_hub(hub: Any, refuse: Refusal) -> dict[str, Any]:
    hub = _mapping(hub, "message_hub", refuse)
    for key in ("log_scalars", "runtime_info", "resumed_keys"):
        if key not in hub:
            refuse.because(f"message_hub holds no {key}")
        for name in _mapping(hub[key], f"message_hub.{key}", refuse):
            if not isinstance(name, str) or len(name) > 256:
                refuse(f"a key of message_hub.{key}", name, "a short name")
    info = {}
    for name, value in hub["runtime_info"].items():
        rule, value = _rule_of(name), _native(value)
        if rule is None:
            continue
        if not rule[0](value):
            refuse(f"message_hub.runtime_info.{name}", value, rule[1])
        info[name] = value
    scalars = restore_histories(hub["log_scalars"], refuse)
    for name, value in hub["resumed_keys"].items():
        if not isinstance(value, bool):
            refuse(f"message_hub.resumed_keys.{name}", value, "True or False")
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
            value = _mapping(value, key, refuse)
            log = _history_part(value, HISTORY, key, refuse)
            count = _history_part(value, "count", key, refuse)
            length = value.get("max_length")
        length = _native(length)
        if log.ndim != 1 or log.dtype.kind not in "biuf":
            refuse(f"{key}.{HISTORY}", log, "a list of numbers")
        if count.shape != log.shape or count.dtype.kind not in "biuf":
            refuse(f"{key}.count", count, f"{len(log)} numbers, one for each of {HISTORY}")
        if not is_integer(length, 1, _LONGEST_HISTORY) or len(log) > length:
            refuse(f"{key}.max_length", length, f"a whole number from {max(1, len(log))}")
        restored[name] = make_history(log, count, length)
    return restored


def _history_part(history: Mapping[str, Any], part: str, key: str, refuse: Refusal) -> NDArray:
    tensor = history.get(part)
    # Contiguous: otherwise a few bytes could stand for any number of values.
    if isinstance(tensor, Tensor) and plain_tensor(tensor) and tensor.is_contiguous():
        with contextlib.suppress(TypeError):  # a type that NumPy does not have
            return tensor.detach().numpy().copy()
    refuse(f"{key}.{part}", tensor, "a tensor of numbers")


# --- results --------------------------------------------------------------------------------

#: What the run itself puts into ``results.json``; a checkpoint does not speak for it.
_OF_THE_RUN = (
    *("task", "config", "version", "numerics", "best_checkpoint", "last_checkpoint", "history"),
)


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
    results = _mapping(results, "results", refuse)
    history, best = results.get("history"), results.get("best")
    if not isinstance(history, list):
        refuse("results.history", history, "a list of the scores of each validation")
    checked = []
    for index, entry in enumerate(history):
        key = f"results.history[{index}]"
        entry = {name: _native(v) for name, v in _mapping(entry, key, refuse).items()}
        if not is_integer(entry.get("iteration")):
            refuse(f"{key}.iteration", entry.get("iteration"), _COUNT[1])
        for name, value in entry.items():
            if not _is_text(name) or not _is_score(value):
                refuse(f"{key}.{name}", value, "a score")
        checked.append(entry)
    best = {k: v for k, v in _mapping(best, "results.best", refuse).items() if k not in _OF_THE_RUN}
    if best and not is_integer(best.get("iteration")):
        refuse("results.best.iteration", best.get("iteration"), _COUNT[1])
    if "mIoU" in best and (best["mIoU"] is None or not _is_score(best["mIoU"])):
        refuse("results.best.mIoU", best["mIoU"], "a score")
    level: list[tuple[str, Any]] = [("results.best", best)]
    for _ in range(6):  # level by level: what is written has four
        # Before they are listed: a list may hold itself many times.
        if sum(len(v) for _, v in level if isinstance(v, dict | list | tuple)) > _MOST_VALUES:
            refuse.because(f"results.best holds more than {_MOST_VALUES:,} values")
        level = [child for key, value in level for child in _inside(key, value, refuse)]
    if level:
        refuse.because(f"{level[0][0]} is nested too deeply")
    if "classes" in best:
        try:
            class_table(best)
        except Exception:  # whatever a value of another kind makes of it
            refuse("results.best.classes", best["classes"], "the scores of each class")
    return {"history": checked, "best": best}


def _is_score(value: Any) -> bool:
    # A score that has no value is NaN or None.
    return value is None or isinstance(value, float) or is_number(value)


def _inside(key: str, value: Any, refuse: Refusal) -> list[tuple[str, Any]]:
    """What a value of ``results.best`` holds, by key."""
    if isinstance(value, dict):
        if not all(map(_is_text, value)):
            refuse(f"a key of {key}", next(k for k in value if not _is_text(k)), "a text")
        return [(f"{key}.{name}", child) for name, child in value.items()]
    if isinstance(value, list | tuple):
        return [(f"{key}[{index}]", child) for index, child in enumerate(value)]
    if not (isinstance(value, bool) or _is_text(value) or _is_score(value)):
        refuse(key, value, "a number, a text, or a list or mapping of them")
    return []
