# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Seconds that engines take for images: what is known of them, and in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..engine.resume_changes import Note

__all__ = ["known_times", "times_note"]


def known_times(seconds: dict[str, Any], place: str) -> dict[str, float]:
    """Seconds by engine that were measured in a place, which is added to ``seconds`` if need be."""
    times = seconds.get(place)
    if not isinstance(times, dict) or not all(isinstance(s, float) for s in times.values()):
        times = seconds[place] = {}
    return times


def times_note(times: Mapping[str, float], images: Tensor, auto: bool) -> Note:
    """Which engine is the fastest for images (N, C, H, W); ``auto``: it is to be taken."""
    count, _, height, width = images.shape
    what = f"{count} image{'s' if count > 1 else ''} of {width}x{height}"
    order = sorted(times, key=lambda name: times[name])
    said = ", ".join(f"{name} {times[name]:.3g} s" for name in order)
    return "measured", f"{what}: {said}" + ("; compile is not tried, it takes minutes" * auto)
