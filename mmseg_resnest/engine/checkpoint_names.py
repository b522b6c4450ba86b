# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The names that a run gives its files: nothing else in its folders is ever removed."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..io.remove import remove_file
from .saving import BEST_LINK, LAST_LINK, POINTER

_TEMPLATE = re.compile(r"(?!\.|best_)([^{}/\\]*)\{0?(?::(?:0[1-9])?d)?\}([^{}/\\]*\.pth)")
_MAX_BYTES = 120  # a name has at most 255, and best_<key>_ is put before it


class CheckpointNames:
    """The names of a run's checkpoints: ``iter_4000.pth``, ``best_mIoU_iter_4000.pth``.

    ``template`` is MMEngine's ``filename_tmpl``. A UserError refuses one that is not the name of a
    file, names all checkpoints alike, or names them as ``--resume`` does not look for them.
    """

    def __init__(self, template: Any) -> None:
        parts = _TEMPLATE.fullmatch(template) if isinstance(template, str) else None
        if not parts or not template.isprintable() or len(os.fsencode(template)) > _MAX_BYTES:
            raise UserError(
                "config-value",
                "config key default_hooks.checkpoint.filename_tmpl",
                f"{template!r} is not a template such as 'iter_{{}}.pth': a file name with {{}} or "
                "{:06d} once, for the number; it ends with .pth and begins neither with a dot nor "
                "with best_",
            )
        number = rf"{re.escape(parts[1])}([0-9]{{1,18}}){re.escape(parts[2])}"
        self._template = template
        self._numbered = re.compile(number)
        self._best = re.compile(rf"best_[^/\x00-\x1f]+_{number}")
        own = f"{POINTER}|{BEST_LINK}|{LAST_LINK}"
        self._part = re.compile(rf"\.({own}|(best_[^/]+_)?{number})\.[0-9a-f]{{1,8}}\.part")

    def numbered(self, step: int) -> str:
        """The name of the checkpoint of a step."""
        return self._template.format(step)

    def best(self, key: str, step: int) -> str:
        """The name of the checkpoint with the best score."""
        return f"{_best(key)}{self.numbered(step)}"

    def step_of(self, name: str) -> int | None:
        """The step of a checkpoint of that name; None if it is not a checkpoint's name."""
        found = self._numbered.fullmatch(name)
        return int(found[1]) if found and self.numbered(int(found[1])) == name else None

    def is_best(self, name: str, key: str) -> bool:
        """Whether a checkpoint with the best score has this name; by any key if it is ``auto``."""
        if key == "auto":
            return self._best.fullmatch(name) is not None
        return name.startswith(_best(key)) and self.step_of(name[len(_best(key)) :]) is not None

    def is_part(self, name: str) -> bool:
        """Whether an interrupted write of a checkpoint or of ``last_checkpoint`` left it."""
        return self._part.fullmatch(name) is not None


def _best(key: str) -> str:
    return f"best_{key}_".replace("/", "_")


def remove_parts(folders: Iterable[Path], names: CheckpointNames) -> list[str]:
    """Remove what interrupted writes have left where a run alone writes; returns the names."""
    removed = []
    for folder in dict.fromkeys(folders):
        for path in sorted(folder.glob(".*.part")):
            if names.is_part(path.name):
                with contextlib.suppress(OSError):
                    if remove_file(path):
                        removed.append(path.name)
    return removed
