# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""How long a training may take: a time, or a number of iterations."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...errors import UserError

_UNITS = {"s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True)
class Budget:
    """One of ``seconds`` and ``iterations``; the other is None."""

    seconds: float | None = None
    iterations: int | None = None

    def __str__(self) -> str:
        if self.iterations is not None:
            return f"{self.iterations:,} iterations"
        return f"{(self.seconds or 0) / 60:g} min"


def parse_budget(text: str) -> Budget:
    """A budget such as ``25min``, ``90s``, ``2h`` or ``5000it``; UserError for other text or 0."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)\s*(it|s|min|h)", text.strip())
    number = float(match[1]) if match else 0.0
    if match is None or number <= 0 or (match[2] == "it" and "." in match[1]):
        message = "must be a time or a number of iterations, such as 25min, 90s, 2h or 5000it"
        raise UserError("argument", f"--budget {text}", message)
    if match[2] == "it":
        return Budget(iterations=int(number))
    return Budget(seconds=number * _UNITS[match[2]])
