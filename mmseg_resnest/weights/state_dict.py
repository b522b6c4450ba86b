# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""State dicts in files that a stranger may have written: found, checked, and shown in messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..io.text import printable

LISTED_KEYS = 20
#: The longest name of a tensor, characters; those of models have below 100.
LONGEST_KEY = 1000
_SHOWN_LENGTH = 160
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_MAX_WRAPPERS = 4
#: What DistributedDataParallel and torch.compile put before every key.
_PREFIXES = ("module.", "_orig_mod.")


def list_keys(keys: Iterable[str]) -> str:
    """``a, b, c`` without control characters; of long lists the first 20 and how many more."""
    names = list(keys)
    shown = ", ".join(map(_shown, names[:LISTED_KEYS]))
    more = len(names) - LISTED_KEYS
    return f"{shown} and {more} more" if more > 0 else shown


def _shown(key: str) -> str:
    return printable(key if len(key) <= _SHOWN_LENGTH else f"{key[: _SHOWN_LENGTH - 3]}...")


def check_names(state_dict: Any, label: str = "state dict") -> Mapping[str, Any]:
    """The state dict, if it is a mapping whose keys are texts of names' length; or UserError."""
    if not isinstance(state_dict, Mapping) or not all(isinstance(key, str) for key in state_dict):
        message = "does not hold a state dict (a mapping from names to tensors)"
        raise UserError("checkpoint", label, message)
    for key in state_dict:
        if len(key) > LONGEST_KEY:
            message = f"a key has {len(key):,} characters, more than {LONGEST_KEY:,}: {_shown(key)}"
            raise UserError("checkpoint", label, message)
    return state_dict


def unwrap_state_dict(record: Any, label: str = "state dict") -> dict[str, Any]:
    """The state dict inside a checkpoint record, without the prefixes of wrappers.

    Looks under ``state_dict``, ``model_state_dict`` and ``model``, and takes ``module.`` and
    ``_orig_mod.`` off when every key has it.

    Raises:
        UserError: It is not a mapping with text keys, or is empty, or a key is too long.
    """
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(record, Mapping):
            break
        inner = [record[key] for key in _WRAPPERS if isinstance(record.get(key), Mapping)]
        if not inner:
            break
        record = inner[0]
    state_dict = check_names(record, label)
    if not state_dict:
        raise UserError("empty", label, "the state dict is empty")
    start, ends = 0, (min(state_dict), max(state_dict))  # what both begin with, all do
    while prefix := next(
        (p for p in _PREFIXES if all(key.startswith(p, start) for key in ends)), ""
    ):
        start += len(prefix)
    return {key[start:]: value for key, value in state_dict.items()}


def as_tensor(name: str, value: Any, label: str = "state dict") -> Tensor:
    """A tensor or an array as a plain tensor, sharing its memory where that is possible.

    Raises UserError if it is neither a dense tensor nor a numeric array.
    """
    subject = f"{label}: key {_shown(name)}"
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise UserError("checkpoint", subject, "only dense tensors with values are supported")
        return value.detach()
    if not isinstance(value, np.ndarray | np.generic):
        message = f"is a {type(value).__name__}, not a tensor; give the model's state dict"
        raise UserError("checkpoint", subject, message)
    array = np.asarray(value)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        message = f"arrays of type {array.dtype} are not supported"
        raise UserError("checkpoint", subject, message) from error
