# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Images to prepare an engine with: a drawn scene, images to calibrate on."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from numpy.typing import NDArray

from ..datasets import build_dataset
from ..datasets.scenes import draw_scene
from ..errors import UserError
from ..registry import building

__all__ = ["calibration_images", "drawn_picture", "spread"]

_SPLITS = ("train_dataloader", "test_dataloader")


def drawn_picture(height: int, width: int) -> NDArray[np.uint8]:
    """A scene of the built-in data set, (height, width, 3) RGB, where no image is at hand."""
    image = draw_scene(0, 0)[0]
    rows = np.arange(height) * image.shape[0] // height
    columns = np.arange(width) * image.shape[1] // width
    return np.ascontiguousarray(image[rows][:, columns])


def spread(paths: Sequence[str], most: int) -> list[str]:
    """At most so many of the paths, evenly."""
    number = min(most, len(paths))
    return [str(paths[i * len(paths) // number]) for i in range(number)]


def calibration_images(cfg: Config, most: int) -> list[str]:
    """At most so many images, spread evenly, of a config's training split, or its test split.

    No labels are read; none where both splits' files are missing.
    """
    for name in _SPLITS:
        dataset_cfg = (cfg.get(name) or {}).get("dataset")
        if not isinstance(dataset_cfg, Mapping):
            continue
        try:
            with building(cfg.get("default_scope", "mmseg")):
                dataset = build_dataset(copy.deepcopy(dataset_cfg), keep=True)
            paths = [dataset.get_data_info(i)["img_path"] for i in range(len(dataset))]
        except (OSError, UserError, KeyError, TypeError, AttributeError):  # no data set's files
            continue
        found = spread(paths, most)
        if found and all(Path(path).is_file() for path in found):
            return found
    return []
