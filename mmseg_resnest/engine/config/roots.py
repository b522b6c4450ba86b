# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Data roots whose names would not survive in the text of a config.

MMEngine puts the value of ``{{$MMSEG_RESNEST_DATA:data}}`` into the config's code before that runs:
a quote in the name of a folder would end the text it stands in. A name of more than letters, digits
and ``_ . / -`` is replaced by a plain one while the config is read, and put back afterwards.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

from ..._stack import config_environment, config_tree

_PLAIN = re.compile(r"[\w./ -]*")


@contextlib.contextmanager
def plain_roots(values: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Set environment variables that configs read, with plain stand-ins for other names.

    Yields the stand-ins and what they stand for, for :func:`restore_roots`.
    """
    roots = {}
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        if not _PLAIN.fullmatch(value):
            plain = f"root_{secrets.token_hex(8)}"
            roots[plain] = value
            value = plain
        os.environ[name] = value
    try:
        yield roots
    finally:
        for name, old in before.items():
            if old is None:
                del os.environ[name]
            else:
                os.environ[name] = old


def restore_roots(cfg: Config, roots: Mapping[str, str]) -> None:
    """Put the names that :func:`plain_roots` yielded back into a config, in place."""
    if roots:
        for table in (config_tree(cfg), config_environment(cfg)):
            for key in list(table):
                table[key] = _restored(table[key], roots)


def _restored(value: Any, roots: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for plain, root in roots.items():
            value = value.replace(plain, root)
    elif isinstance(value, dict):
        for key in list(value):
            value[key] = _restored(value[key], roots)
    elif isinstance(value, list):
        value[:] = [_restored(item, roots) for item in value]
    elif isinstance(value, tuple):
        return type(value)(_restored(item, roots) for item in value)
    return value
