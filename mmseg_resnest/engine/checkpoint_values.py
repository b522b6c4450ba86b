# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What values of a checkpoint must be, as a specification that one function walks.

A specification is a :class:`Rule` for one value, a structure of specifications (:class:`Fields`,
:class:`MapOf`, :class:`ListOf`, :class:`Items`, :class:`Maybe`), or a function like :func:`checked`
without the argument ``spec``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..io.text import printable

__all__ = ["ANY", "COUNT", "DROP", "FLAG", "LARGEST", "NUMBER", "POSITIVE"]
__all__ += ["Fields", "Items", "ListOf", "MapOf", "Maybe", "Refusal", "Rule", "Spec", "checked"]
__all__ += ["describe", "integer", "is_integer", "is_number", "like", "plain_tensor"]

#: Above it a float, which JSON and NumPy may make of an integer, is not exact.
LARGEST = 2**53
_LARGEST_OPTION = 1e30  # its powers, which schedules take, are still finite
_LONGEST_KEY = 200
_LONGEST_NAME = 256
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
            "resume",
            f"--resume {printable(self.file)}",
            f"{printable(reason)}; take another checkpoint, or start from its weights with "
            "--cfg-options load_from=FILE",
        )


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


# --- specifications -------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """One value: whether it fits, and what is expected, in words."""

    fits: Callable[[Any], bool]
    expected: str


@dataclass(frozen=True)
class Fields:
    """A mapping with known keys.

    Attributes:
        known: Specifications by key; a key that ends in ``*`` stands for all that begin so.
        needed: Keys that must be there.
        unknown: What happens to other keys: ``refuse``, ``drop`` or ``keep``.
    """

    known: Mapping[Any, Spec]
    needed: Collection[Any] = ()
    unknown: str = "refuse"

    @classmethod
    def exactly(cls, known: Mapping[Any, Spec]) -> Fields:
        """A mapping with these keys and no others."""
        return cls(known, tuple(known))

    def spec_of(self, name: Any) -> Spec | None:
        """The specification of a key."""
        if type(name) in (str, int) and name in self.known:
            return self.known[name]
        if isinstance(name, str) and len(name) <= _LONGEST_NAME:
            for pattern, spec in self.known.items():
                start, star, _ = str(pattern).partition("*")
                if star and name.startswith(start):
                    return spec
        return None


@dataclass(frozen=True)
class MapOf:
    """A mapping from keys of a kind to values of a kind, of at most ``most`` entries."""

    key: Rule
    item: Spec
    most: int = LARGEST


@dataclass(frozen=True)
class ListOf:
    """A list of any length."""

    item: Spec


@dataclass(frozen=True)
class Items:
    """A list of known length."""

    items: Sequence[Spec]


@dataclass(frozen=True)
class Maybe:
    """None, or something."""

    spec: Spec


Spec: TypeAlias = (
    Rule | Fields | MapOf | ListOf | Items | Maybe | Callable[[Any, str, Refusal], Any]
)


def checked(value: Any, spec: Spec, key: str, refuse: Refusal) -> Any:
    """Check a value of a checkpoint.

    Args:
        value: Anything that torch's safe loader returns.
        spec: What it must be.
        key: Where it stands in the checkpoint.
        refuse: Called with what does not fit.

    Returns:
        The value without keys that are dropped; numbers of NumPy as Python's.

    Raises:
        UserError: Something does not fit.
    """
    if isinstance(value, np.number | np.bool_):
        value = value.item()
    if isinstance(spec, Rule):
        if not spec.fits(value):
            refuse(key, value, spec.expected)
        return value
    if isinstance(spec, Maybe):
        return None if value is None else checked(value, spec.spec, key, refuse)
    if isinstance(spec, ListOf | Items):
        return _checked_list(value, spec, key, refuse)
    if not isinstance(spec, Fields | MapOf):
        return spec(value, key, refuse)
    if not isinstance(value, dict):
        refuse(key, value, "a mapping")
    if isinstance(spec, MapOf):
        if len(value) > spec.most:
            refuse.because(f"{key} holds {len(value):,} keys, more than {spec.most:,}")
        for name in value:
            checked(name, spec.key, f"a key of {key}", refuse)
        return {
            name: checked(item, spec.item, _place(key, name), refuse)
            for name, item in value.items()
        }
    return _checked_fields(value, spec, key, refuse)


def _checked_list(value: Any, spec: ListOf | Items, key: str, refuse: Refusal) -> Any:
    if not isinstance(value, list | tuple):
        refuse(key, value, "a list")
    specs = spec.items if isinstance(spec, Items) else [spec.item] * len(value)
    if len(value) != len(specs):
        refuse(key, value, f"a list of {len(specs)}")
    pairs = enumerate(zip(value, specs, strict=True))
    items = [checked(item, one, _place(key, index), refuse) for index, (item, one) in pairs]
    return tuple(items) if isinstance(value, tuple) else items


def _checked_fields(value: dict, spec: Fields, key: str, refuse: Refusal) -> dict[Any, Any]:
    for name in spec.needed:
        if name not in value:
            refuse.because(f"{key} holds no {name}")
    result = {}
    for name, item in value.items():
        one = spec.spec_of(name)
        if one is None:
            if not isinstance(name, str):
                refuse(f"a key of {key}", name, "a text")
            if spec.unknown == "refuse":
                refuse.because(f"{key} holds {describe(name)}, which this run does not have")
            one = DROP if spec.unknown == "drop" else ANY
        if one is not DROP:
            result[name] = checked(item, one, _place(key, name), refuse)
    return result


def _place(key: str, name: Any) -> str:
    return f"{key}.{name}" if isinstance(name, str) else f"{key}[{name}]"


# --- rules ----------------------------------------------------------------------------------


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


def integer(least: int = 0, most: int = LARGEST) -> Rule:
    """An integer in a range."""
    upto = f" to {most}" if most < LARGEST else ""
    return Rule(lambda value: is_integer(value, least, most), f"an integer from {least}{upto}")


#: Any value; a known key that is not taken over.
ANY = Rule(lambda value: True, "a value")
DROP = Rule(lambda value: True, "a value that is not used")
COUNT = integer()
FLAG = Rule(lambda value: isinstance(value, bool), "True or False")
NUMBER = Rule(_is_option, f"a number up to {_LARGEST_OPTION:g}")
POSITIVE = Rule(lambda value: _is_option(value) and value > 0, "a number above 0")


def plain_tensor(value: Any) -> bool:
    """Whether a value is an ordinary tensor whose numbers are all in the file."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_nested or value.is_conj() or value.is_neg())
    )


def like(own: Any, number: Callable[[float], Rule] = lambda own: NUMBER) -> Spec:
    """What is of the same kind as a value of the run.

    Args:
        own: A number, text, flag, None, tensor, or a list or mapping of them. Texts and flags must
            be equal, tensors of equal shape and type; None may become a number.
        number: The rule for a number in place of this one.
    """
    if isinstance(own, bool | str):
        return Rule(
            lambda value: type(value) is type(own) and value == own, f"{own!r}, as in the config"
        )
    if own is None:
        return Maybe(number(0))
    if isinstance(own, int | float):
        return number(own)
    if isinstance(own, Tensor):
        return Rule(
            lambda value: (
                plain_tensor(value) and value.shape == own.shape and value.dtype == own.dtype
            ),
            describe(own),
        )
    if isinstance(own, dict):
        return Fields.exactly({name: like(item, number) for name, item in own.items()})
    if isinstance(own, list | tuple):
        return Items([like(item, number) for item in own])
    return Rule(lambda value: False, f"a {type(own).__name__}")
