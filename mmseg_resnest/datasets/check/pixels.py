# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Whether the model takes the images as the loader gives them: their channels and their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import UserError
from ...registry import building
from ..channels import Channels
from ..pipelines import is_stock, preprocessor_of
from ..reader import ImageReader
from .parts import Part
from .rules import Problem

# Where normalised values lie: their mean, and their spread, of all images together.
_FARTHEST = 5.0
_LEAST_SPREAD, _MOST_SPREAD = 0.02, 50.0


def check_pixels(cfg: Mapping[str, Any], parts: Sequence[Part]) -> list[Problem]:
    """Compare what was read of the images with what the model of the config takes."""
    with building(cfg.get("default_scope", "mmseg")):
        return [problem for part in parts for problem in _check_part(cfg, part)]


def _check_part(cfg: Mapping[str, Any], part: Part) -> list[Problem]:
    problems: list[Problem] = []
    channels = Channels.of(cfg)
    counts = {facts.channels for facts in part.facts if facts.channels is not None}
    for count in counts:
        made = _made(part, count)
        fault = None if made is None else channels.fault(made)
        if fault is None:
            continue
        files = [fault[0]]  # where all images are so, the config is wrong
        if len(counts) > 1:
            of_count = zip(part.samples, part.facts, strict=True)
            files = [s["img_path"] for s, facts in of_count if facts.channels == count]
        problems += [Problem("channels", file, fault[1], part.split) for file in files]
    return problems or _check_values(cfg, part)


def _steps(part: Part) -> ImageReader | None:
    """The reader of a data set with all of its steps; None with steps that may do anything."""
    try:
        reader = ImageReader(part.pipeline)
    except UserError:
        return None
    return reader if all(map(is_stock, reader.steps)) else None


def _made(part: Part, count: int) -> int | None:
    """Channels of the model's input, of images of ``count``; None where that cannot be told."""
    sample = next(
        sample
        for sample, facts in zip(part.samples, part.facts, strict=True)
        if facts.channels == count
    )
    try:
        reader = ImageReader(part.pipeline)
        made = reader.prepare(reader.load_sample(sample))
    except UserError:  # some steps need labels
        return None if _steps(part) is None else count
    if "inputs" in made:
        return int(made["inputs"].shape[0])
    return int(made["img"].shape[2]) if made["img"].ndim == 3 else 1


def _check_values(cfg: Mapping[str, Any], part: Part) -> list[Problem]:
    preprocessor = preprocessor_of(cfg)
    mean, std = preprocessor.get("mean"), preprocessor.get("std")
    found = [facts.values for facts in part.facts if facts.values is not None]
    reader = _steps(part)
    if mean is None or std is None or not found or reader is None:
        return []
    if any("Normalize" in type(step).__name__ for step in reader.steps):
        return []
    if len({one.shape for one in found}) > 1:
        return []
    values = np.mean(found, axis=0)  # means, and means of squares, of each channel
    centre, spread = values[0], np.sqrt(np.maximum(values[1] - values[0] ** 2, 0))
    away = (centre.mean() - np.mean(mean)) / np.mean(std)
    contrast = spread.mean() / np.mean(std)
    if abs(away) <= _FARTHEST and _LEAST_SPREAD <= contrast <= _MOST_SPREAD:
        return []
    what = f"is {_numbers(mean)} with std {_numbers(std)}, but the images of {part.name} have a "
    what += f"mean of {centre.mean():.4g} and a deviation of {spread.mean():.4g}"
    if len(mean) == 1:
        centre, spread = centre.mean(keepdims=True), spread.mean(keepdims=True)
    elif len(centre) == 3 and preprocessor.get("bgr_to_rgb") and not reader.rgb:
        centre, spread = centre[::-1], spread[::-1]
    remedy = f"set mean={_numbers(centre)} and std={_numbers(spread)}, or read other values"
    return [
        Problem("values", "config key model.data_preprocessor.mean", what, part.split, "", remedy)
    ]


def _numbers(values: Any) -> str:
    return f"[{', '.join(f'{float(value):.6g}' for value in values)}]"
