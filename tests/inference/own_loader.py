# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A loader of somebody's own, in a module that other processes can import."""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image

from mmseg_resnest.registry import TRANSFORMS


@TRANSFORMS.register_module(force=True)
class ReadHalf(BaseTransform):
    """Every second column of a file, in a name of its own."""

    def __init__(self, said: object = "half") -> None:
        self.said = said

    def transform(self, results: dict) -> dict:
        results["img"] = np.asarray(Image.open(results["img_path"]))[:, ::2].copy()
        results["img_shape"] = results["ori_shape"] = results["img"].shape[:2]
        results["said"] = self.said
        return results
