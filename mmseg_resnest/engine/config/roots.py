# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Data roots of any name in configs.

MMEngine puts the value of ``{{$MMSEG_RESNEST_DATA:data}}`` into the config's code before that runs:
a quote in the name of a folder would end the text it stands in. So all characters but letters,
digits and ``_ . / -`` are written as escape sequences of that text.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping

from mmengine.config import Config

from ..._stack import config_environment


@contextlib.contextmanager
def set_roots(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that configs read; they are put back at the end."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: _escaped(value) for name, value in values.items()})
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                del os.environ[name]
            else:
                os.environ[name] = old


def restore_roots(cfg: Config, values: Mapping[str, str]) -> None:
    """Let a config that was read have the variables without escape sequences."""
    environment = config_environment(cfg)
    environment.update({name: values[name] for name in values if name in environment})


def _escaped(text: str) -> str:
    # Two backslashes: MMEngine's replacement takes them for one.
    return re.sub(r"[^\w./ -]", lambda match: f"\\\\U{ord(match[0]):08x}", text)
