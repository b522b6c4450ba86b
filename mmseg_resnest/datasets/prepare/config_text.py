# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Texts as they may stand in a config, which is Python that MMEngine changes before it runs."""

from __future__ import annotations


def text_literal(text: str) -> str:
    """A Python literal of a text that is safe wherever MMEngine reads a config.

    Every character but letters, digits and ``_ . / -`` and the space is an escape sequence, also
    lone surrogates, which paths have for bytes that are not UTF-8.
    """
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character.isalnum() or character in "_./- ":
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
