# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What values of a checkpoint must be.

A specification is a function of a value, its key in the checkpoint and a :class:`Refusal`. It
returns the value without keys that are dropped, and numbers of NumPy as Python's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..io.text import printable

#: Above it a float, which JSON and NumPy may make of an integer, is not exact.
LARGEST = 2**53
_LARGEST_OPTION = 1e30  # its powers, which schedules take, are still finite
_LONGEST_KEY = 200
_LONGEST_NAME = 256
_LONGEST_REASON = 1000


class Refusal:
    """Raises the error that names a key of a checkpoint, what it holds and what was expected."""

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
            "resume",
            f"--resume {printable(self.file)}",
            f"{printable(reason)}; take another checkpoint, or start from its weights with "
            "--cfg-options load_from=FILE",
        )


Spec: TypeAlias = Callable[[Any, str, Refusal], Any]


def describe(value: Any) -> str:
    """A value of a checkpoint in a few words, whatever it is."""
    if isinstance(value, Tensor | np.ndarray):
        kind = "a tensor" if isinstance(value, Tensor) else "an array"
        return f"{kind} of shape {list(value.shape)} and type {value.dtype}"
    if isinstance(value, str):
        return f"the text {value[:60]!r}" + ("..." if len(value) > 60 else "")
    if isinstance(value, Mapping | list | tuple | set | bytes):
        return f"a {type(value).__name__} of {len(value)}"
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) <= LARGEST else "a number of many digits"
    return f"a {type(value).__name__}"


def rule(fits: Callable[[Any], bool], expected: str) -> Spec:
    """One value that ``fits``; ``expected`` says in words which do."""

    def check(value: Any, key: str, refuse: Refusal) -> Any:
        if isinstance(value, np.number | np.bool_):
            value = value.item()
        if not fits(value):
            refuse(key, value, expected)
        return value

    return check


def fields(
    known: Mapping[Any, Spec], needed: Collection[Any] = (), unknown: str = "refuse"
) -> Spec:
    """A mapping with known keys; one that ends in ``*`` stands for all that begin so.

    ``needed`` keys must be there; ``unknown`` ones: ``refuse``, ``drop`` or ``keep`` them.
    """

    def spec_of(name: Any) -> Spec | None:
        if type(name) in (str, int) and name in known:
            return known[name]
        if isinstance(name, str) and len(name) <= _LONGEST_NAME:
            for pattern, spec in known.items():
                start, star, _ = str(pattern).partition("*")
                if star and name.startswith(start):
                    return spec
        return None

    def check(value: Any, key: str, refuse: Refusal) -> dict[Any, Any]:
        _check_mapping(value, key, refuse)
        for name in needed:
            if name not in value:
                refuse.because(f"{key} holds no {name}")
        result = {}
        for name, item in value.items():
            spec = spec_of(name)
            if spec is None:
                if not isinstance(name, str):
                    refuse(f"a key of {key}", name, "a text")
                if unknown == "refuse":
                    refuse.because(f"{key} holds {describe(name)}, which this run does not have")
                spec = DROP if unknown == "drop" else ANY
            if spec is not DROP:
                result[name] = spec(item, _place(key, name), refuse)
        return result

    return check


def exactly(known: Mapping[Any, Spec]) -> Spec:
    """A mapping with these keys and no others."""
    return fields(known, tuple(known))


def map_of(name: Spec, item: Spec, most: int = LARGEST) -> Spec:
    """A mapping from keys of a kind to values of a kind, of at most ``most`` entries."""

    def check(value: Any, key: str, refuse: Refusal) -> dict[Any, Any]:
        _check_mapping(value, key, refuse)
        if len(value) > most:
            refuse.because(f"{key} holds {len(value):,} keys, more than {most:,}")
        for one in value:
            name(one, f"a key of {key}", refuse)
        return {one: item(inner, _place(key, one), refuse) for one, inner in value.items()}

    return check


def list_of(items: Spec | Sequence[Spec]) -> Spec:
    """A list of any length with one specification, or of as many items as there are of them."""

    def check(value: Any, key: str, refuse: Refusal) -> Any:
        if not isinstance(value, list | tuple):
            refuse(key, value, "a list")
        specs = [items] * len(value) if callable(items) else items
        if len(value) != len(specs):
            refuse(key, value, f"a list of {len(specs)}")
        pairs = enumerate(zip(value, specs, strict=True))
        result = [spec(item, _place(key, index), refuse) for index, (item, spec) in pairs]
        return tuple(result) if isinstance(value, tuple) else result

    return check


def maybe(spec: Spec) -> Spec:
    """None, or something."""
    return lambda value, key, refuse: None if value is None else spec(value, key, refuse)


def _check_mapping(value: Any, key: str, refuse: Refusal) -> None:
    if not isinstance(value, dict):
        refuse(key, value, "a mapping")


def _place(key: str, name: Any) -> str:
    return f"{key}.{name}" if isinstance(name, str) else f"{key}[{name}]"


def is_integer(value: Any, least: int = 0, most: int = LARGEST) -> bool:
    """Whether a value is an integer in a range; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; True and False are not."""
    if isinstance(value, float):
        return math.isfinite(value)
    return is_integer(value, -LARGEST)


def _is_option(value: Any) -> bool:
    return is_number(value) and abs(value) <= _LARGEST_OPTION


def integer(least: int = 0, most: int = LARGEST) -> Spec:
    """An integer in a range."""
    upto = f" to {most}" if most < LARGEST else ""
    return rule(lambda value: is_integer(value, least, most), f"an integer from {least}{upto}")


#: Any value; a known key that is not taken over.
ANY = rule(lambda value: True, "a value")
DROP = rule(lambda value: True, "a value that is not used")
COUNT = integer()
FLAG = rule(lambda value: isinstance(value, bool), "True or False")
NUMBER = rule(_is_option, f"a number up to {_LARGEST_OPTION:g}")
POSITIVE = rule(lambda value: _is_option(value) and value > 0, "a number above 0")


def plain_tensor(value: Any) -> bool:
    """Whether a value is an ordinary tensor whose numbers are all in the file."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_nested or value.is_conj() or value.is_neg())
    )


def is_like(value: Any, own: Tensor) -> bool:
    """Whether a value is an ordinary tensor of the shape and type of the run's own."""
    return plain_tensor(value) and value.shape == own.shape and value.dtype == own.dtype


def tensor_like(own: Tensor) -> Spec:
    """A tensor of the same shape and type, which the file holds, wherever the run's own is."""
    return rule(lambda value: is_like(value, own), describe(own))


def like(own: Any, number: Callable[[float], Spec] = lambda own: NUMBER) -> Spec:
    """What is of the same kind as a number, text, flag, None, tensor, or list or mapping of them.

    Texts and flags must be equal, tensors of equal shape and type; None may become a number.
    ``number`` makes the rule for a number.
    """
    if isinstance(own, bool | str):
        return rule(
            lambda value: type(value) is type(own) and value == own, f"{own!r}, as in the config"
        )
    if own is None:
        return maybe(number(0))
    if isinstance(own, int | float):
        return number(own)
    if isinstance(own, Tensor):
        return tensor_like(own)
    if isinstance(own, dict):
        return exactly({name: like(item, number) for name, item in own.items()})
    if isinstance(own, list | tuple):
        return list_of([like(item, number) for item in own])
    return rule(lambda value: False, f"a {type(own).__name__}")
