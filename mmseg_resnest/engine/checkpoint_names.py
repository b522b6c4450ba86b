# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The names that a run gives its files: nothing else in its folders is ever removed."""

from __future__ import annotations

import contextlib
import os
import re
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..io.remove import remove_file
from .saving import POINTER

__all__ = ["CheckpointNames", "remove_parts"]

_KEY = "config key default_hooks.checkpoint.filename_tmpl"
_FIELD = re.compile(r"(0[1-9])?d?")  # {} or e.g. {:06d}
_MAX_BYTES = 120  # a name has at most 255, and best_<key>_ and .<pid>.part are put around it


class CheckpointNames:
    """The names of a run's checkpoints: ``iter_4000.pth``, ``best_mIoU_iter_4000.pth``.

    Args:
        template: MMEngine's ``filename_tmpl``: where ``{}`` stands, a checkpoint has its number.

    Raises:
        UserError: The template is no name of a file in one folder, names all checkpoints alike, or
            names them as ``--resume`` does not look for them.
    """

    def __init__(self, template: Any) -> None:
        said = f"{_KEY}: {template!r}"
        hint = "write a name such as 'iter_{}.pth'"
        try:
            pieces = list(string.Formatter().parse(template))
            fields = [piece[1:] for piece in pieces if piece[1] is not None]
        except (TypeError, ValueError):
            raise UserError("input", "", f"{said} is no template of a file name; {hint}") from None
        if len(fields) != 1:
            raise UserError("argument", "", f"{said} must hold {{}} once, for the number; {hint}")
        name, form, conversion = fields[0]
        if name not in ("", "0") or conversion or not _FIELD.fullmatch(form or ""):
            raise UserError(
                "argument", f"{said} must hold {{}} or {{", f"06d}}, for the number; {hint}"
            )
        text = "".join(piece[0] for piece in pieces)
        if not text.isprintable() or set(text) & set("/\\"):
            raise UserError(
                "argument", "", f"{said} must be the name of a file, without a folder; {hint}"
            )
        first = template.format(1)
        if first.startswith((".", "best_")) or not first.endswith(".pth"):
            raise UserError(
                "input",
                "",
                f"{said} must end with .pth and not begin with a dot or best_, or --resume would"
                f" not find the checkpoints; {hint}",
            )
        if len(os.fsencode(text)) > _MAX_BYTES:
            raise UserError("input", "", f"{said} is too long for a file name; {hint}")
        at = 1 + next(i for i, piece in enumerate(pieces) if piece[1] is not None)
        start, end = ("".join(piece[0] for piece in some) for some in (pieces[:at], pieces[at:]))
        number = rf"{re.escape(start)}([0-9]{{1,18}}){re.escape(end)}"
        self._template = template
        self._numbered = re.compile(number)
        self._best = re.compile(rf"best_[^/]+_{number}")
        self._part = re.compile(rf"\.({POINTER}|(best_[^/]+_)?{number})\.[0-9]{{1,7}}\.part")

    def numbered(self, step: int) -> str:
        """The name of the checkpoint of a step."""
        return self._template.format(step)

    def best(self, key: str, step: int) -> str:
        """The name of the checkpoint with the best score."""
        return f"{_best(key)}{self.numbered(step)}"

    def step_of(self, name: str) -> int | None:
        """The step of a checkpoint of that name; None if no step's checkpoint is called so."""
        found = self._numbered.fullmatch(name)
        if found is None:
            return None
        step = int(found[1])
        return step if self.numbered(step) == name else None

    def is_best(self, name: str, key: str) -> bool:
        """Whether a checkpoint with the best score is called so; by any key if it is ``auto``."""
        if key == "auto":
            return self._best.fullmatch(name) is not None
        start = _best(key)
        return name.startswith(start) and self.step_of(name[len(start) :]) is not None

    def is_part(self, name: str) -> bool:
        """Whether an interrupted write of a checkpoint or of ``last_checkpoint`` left it."""
        return self._part.fullmatch(name) is not None


def _best(key: str) -> str:
    return f"best_{key}_".replace("/", "_")


def remove_parts(folders: Iterable[Path], names: CheckpointNames) -> list[str]:
    """Remove what interrupted writes of checkpoints have left.

    Args:
        folders: Where the run writes; no other process writes there now.
        names: Of the run's checkpoints; files of other names stay.

    Returns:
        The names of what was removed.
    """
    removed = []
    for folder in dict.fromkeys(folders):
        for path in sorted(folder.glob(".*.part")):
            if names.is_part(path.name):
                with contextlib.suppress(OSError):
                    if remove_file(path):
                        removed.append(path.name)
    return removed
