# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Checks of single values in a record that a stranger may have written.

A check takes a value as JSON gives it and the path of its key, and returns the value that goes on:
tuples where JSON has lists, classes where it has names of parts. It raises :class:`NotAllowed` for
every other value, so that what is not named here is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Check = Callable[[Any, str], Any]


class NotAllowed(ValueError):
    """A record has something that is not allowed at a key, such as ``model.backbone.depth``."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"key {key}: {reason}")
        self.key = key
        self.reason = reason


def _shown(value: Any) -> str:
    written = ascii(value)  # control characters stay out of terminals
    return written if len(written) <= 80 else written[:77] + "..."


def _child(key: str, name: Any) -> str:
    plain = isinstance(name, str) and name.isidentifier() and name.isascii() and len(name) <= 80
    step = name if plain else _shown(name)
    return f"{key}.{step}" if key else step


def flag(value: Any, key: str) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise NotAllowed(key, f"{_shown(value)} is not true or false")
    return value


def none(value: Any, key: str) -> None:
    """Null, where the stack has an argument that a record may not use."""
    if value is not None:
        raise NotAllowed(key, f"{_shown(value)} is not allowed, only null")


def whole(low: int, high: int) -> Check:
    """A whole number from ``low`` to ``high``."""

    def check(value: Any, key: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise NotAllowed(key, f"{_shown(value)} is not a whole number from {low} to {high}")
        return value

    return check


def number(low: float, high: float) -> Check:
    """A finite number from ``low`` to ``high``."""

    def check(value: Any, key: str) -> float:
        # Nothing that is not finite lies between; an integer may be too large for a float.
        if type(value) not in (int, float) or not low <= value <= high:
            raise NotAllowed(key, f"{_shown(value)} is not a number from {low:g} to {high:g}")
        return value

    return check


def text(most: int) -> Check:
    """A text of 1 to ``most`` characters that can be written as UTF-8."""

    def check(value: Any, key: str) -> str:
        if type(value) is not str or not 1 <= len(value) <= most:
            raise NotAllowed(key, f"{_shown(value)} is not a text of 1 to {most} characters")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise NotAllowed(key, f"{_shown(value)} holds half a character") from None
        return value

    return check


def one_of(*values: str | int) -> Check:
    """One of some texts or whole numbers."""

    def check(value: Any, key: str) -> Any:
        if not any(type(value) is type(known) and value == known for known in values):
            known = ", ".join(map(str, values))
            raise NotAllowed(key, f"{_shown(value)} is not one of {known}")
        return value

    return check


def optional(check: Check) -> Check:
    """Null, or what ``check`` allows."""
    return lambda value, key: None if value is None else check(value, key)


def several(check: Check, least: int, most: int) -> Check:
    """A list of ``least`` to ``most`` items; returns a tuple."""

    def check_all(value: Any, key: str) -> tuple[Any, ...]:
        if type(value) is not list or not least <= len(value) <= most:
            length = str(least) if least == most else f"{least} to {most}"
            raise NotAllowed(key, f"{_shown(value)} is not a list of {length}")
        return tuple(check(item, f"{key}[{i}]") for i, item in enumerate(value))

    return check_all


def one_or_several(check: Check, least: int, most: int) -> Check:
    """One item, or a list of them."""
    many = several(check, least, most)
    return lambda value, key: many(value, key) if type(value) is list else check(value, key)


def either(mapping: Check, other: Check) -> Check:
    """An object that ``mapping`` allows, or what ``other`` allows."""
    return lambda value, key: (mapping if type(value) is dict else other)(value, key)


def fields(
    known: Mapping[str, Check], required: tuple[str, ...] = (), others: bool = False
) -> Check:
    """An object with known keys; ``others`` are left out of what is returned, or refused."""

    def check(value: Any, key: str) -> dict[str, Any]:
        if type(value) is not dict:
            raise NotAllowed(key or "(top)", f"{_shown(value)} is not an object")
        for name in value:
            if name not in known and not others:
                raise NotAllowed(_child(key, name), "is not allowed here")
        for name in required:
            if name not in value:
                raise NotAllowed(_child(key, name), "is missing")
        return {
            name: known[name](item, _child(key, name))
            for name, item in value.items()
            if name in known
        }

    return check


@dataclass(frozen=True)
class Part:
    """A kind of part that a record may name, and its arguments."""

    made_by: type | None  # goes where the record has the name; None leaves a name of the stack
    keys: Mapping[str, Check]
    required: tuple[str, ...] = ()
    others: tuple[type, ...] = ()  # further classes that are written under this name


def part(kinds: Mapping[str, Part]) -> Check:
    """An object whose ``type`` is one of some names and whose other keys are its arguments."""
    checks = {name: fields(kind.keys, kind.required) for name, kind in kinds.items()}

    def check(value: Any, key: str) -> dict[str, Any]:
        if type(value) is not dict:
            raise NotAllowed(key, f"{_shown(value)} is not an object")
        name = value.get("type")
        if type(name) is not str or name not in kinds:
            known = ", ".join(kinds)
            raise NotAllowed(f"{key}.type", f"{_shown(name)} is not one of {known}")
        options = {option: item for option, item in value.items() if option != "type"}
        return {"type": kinds[name].made_by or name, **checks[name](options, key)}

    return check
