# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Names of tensors in files that a stranger may have written: checked, and shown in messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import UserError
from ..io.text import printable

LISTED_KEYS = 20
#: The longest name of a tensor, characters; those of models have below 100.
LONGEST_KEY = 1000
_SHOWN_LENGTH = 160


def list_keys(keys: Iterable[str]) -> str:
    """``a, b, c`` without control characters; of long lists the first 20 and how many more."""
    names = list(keys)
    shown = ", ".join(map(_shown, names[:LISTED_KEYS]))
    more = len(names) - LISTED_KEYS
    return f"{shown} and {more} more" if more > 0 else shown


def _shown(key: str) -> str:
    return printable(key if len(key) <= _SHOWN_LENGTH else f"{key[: _SHOWN_LENGTH - 3]}...")


def check_names(state_dict: Any) -> Mapping[str, Any]:
    """A state dict, checked to be a mapping whose keys can be names of tensors.

    Raises:
        UserError: It is no mapping, or a key is no text or too long.
    """
    if not isinstance(state_dict, Mapping) or not all(isinstance(key, str) for key in state_dict):
        raise UserError(
            "checkpoint", "", "the checkpoint holds no state dict (a mapping from names to tensors)"
        )
    long = next((key for key in state_dict if len(key) > LONGEST_KEY), None)
    if long is not None:
        raise UserError(
            "checkpoint",
            "",
            f"a key of the checkpoint has {len(long):,} characters, and {LONGEST_KEY:,} are the "
            f"limit: {_shown(long)}",
        )
    return state_dict
