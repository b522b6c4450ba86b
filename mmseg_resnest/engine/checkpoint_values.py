# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Values of a checkpoint: which kind they are, and the error that names the key of a wrong one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from mmseg_resnest.errors import UserError
from mmseg_resnest.io.text import printable

__all__ = ["LARGEST", "Refusal", "describe", "fit", "is_integer", "is_number", "plain_tensor"]

#: Above it a float, which JSON and NumPy may make of a whole number, is no longer the number.
LARGEST = 2**53
# Powers of it, which schedules take, are still finite.
_LARGEST_OPTION = 1e30
_LONGEST_KEY = 200
_LONGEST_REASON = 1000


class Refusal:
    """Raises the error that names a key of a checkpoint, what it holds and what was expected.

    Args:
        file: The checkpoint.
    """

    def __init__(self, file: str) -> None:
        self.file = file

    def __call__(self, key: str, value: Any, expected: str) -> NoReturn:
        """Refuse the value of a key."""
        if len(key) > _LONGEST_KEY:  # a name of the file is part of it
            key = f"{key[:_LONGEST_KEY]}..."
        self.because(f"{key} is {describe(value)}, expected {expected}")

    def because(self, reason: str) -> NoReturn:
        """Refuse the checkpoint for a reason in words."""
        if len(reason) > _LONGEST_REASON:
            reason = f"{reason[:_LONGEST_REASON]}..."
        raise UserError(
            "config-value",
            f"--resume {printable(self.file)}",
            f"{printable(reason)}; training cannot "
            "continue from it. Take another checkpoint, or start from its weights with "
            "--cfg-options load_from=FILE",
        )


def describe(value: Any) -> str:
    """A value of a checkpoint in a few words, whatever it is."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)} and type {value.dtype}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {list(value.shape)} and type {value.dtype}"
    if isinstance(value, str):
        return f"the text {value[:60]!r}" + ("..." if len(value) > 60 else "")
    if isinstance(value, Mapping | list | tuple | set | bytes):
        return f"a {type(value).__name__} of {len(value)}"
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) <= LARGEST else "a number of many digits"
    return f"a {type(value).__name__}"


def is_integer(value: Any, least: int = 0, most: int = LARGEST) -> bool:
    """Whether a value is a whole number in a range; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; True and False are none."""
    if isinstance(value, float):
        return math.isfinite(value)
    return is_integer(value, -LARGEST)


def plain_tensor(value: Any) -> bool:
    """Whether a value is an ordinary tensor whose numbers are all in the file."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_nested
        and not value.is_conj()
        and not value.is_neg()
    )


def fit(value: Any, own: Any, key: str, refuse: Refusal) -> None:
    """Check that a value is of the run's own kind; numbers may differ, texts and flags not.

    Args:
        value: Of the checkpoint.
        own: Of the run: a number, text, flag, None, tensor, or a list or mapping of them.
        key: Where the value stands in the checkpoint.
        refuse: Called with what does not fit.

    Raises:
        UserError: The value is of another kind, size or shape.
    """
    if isinstance(own, bool):
        if not isinstance(value, bool) or value != own:
            refuse(key, value, f"{own}, as the config has it")
    elif isinstance(own, int | float):
        if not is_number(value) or abs(value) > _LARGEST_OPTION:
            refuse(key, value, f"a number up to {_LARGEST_OPTION:g}")
    elif own is None:
        if value is not None and not (is_number(value) and abs(value) <= _LARGEST_OPTION):
            refuse(key, value, f"None or a number up to {_LARGEST_OPTION:g}")
    elif isinstance(own, str):
        if not isinstance(value, str) or value != own:
            refuse(key, value, f"{own!r}, as the config has it")
    elif isinstance(own, Tensor):
        if not plain_tensor(value) or value.shape != own.shape or value.dtype != own.dtype:
            refuse(key, value, describe(own))
    elif isinstance(own, dict):
        if not isinstance(value, dict) or set(value) != set(own):
            refuse(key, value, f"a mapping with the keys {', '.join(map(str, own))}")
        for name, item in own.items():
            fit(value[name], item, f"{key}.{name}", refuse)
    elif isinstance(own, list | tuple):
        if not isinstance(value, list | tuple) or len(value) != len(own):
            refuse(key, value, f"a list of {len(own)}")
        for index, (item, expected) in enumerate(zip(value, own, strict=True)):
            fit(item, expected, f"{key}[{index}]", refuse)
    else:
        refuse(key, value, f"a {type(own).__name__}")
