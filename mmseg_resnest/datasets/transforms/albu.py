# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""albumentations' transforms, with labels that stay labels and numbers that follow the seed."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import mmseg.datasets.transforms as stack
import numpy as np

from ...errors import UserError
from ...registry import TRANSFORMS
from .geometry import IGNORED, label_keys

# The label of pixels that come from nowhere, as versions of albumentations name it.
_FILLS = (
    *("fill_mask", "mask_value", "mask_fill_value", "mask_drop_value", "mask_pad_val"),
    *("cval_mask", "pad_cval_mask"),
)


@TRANSFORMS.register_module()
class Albu(stack.Albu):
    """mmseg's ``Albu``: new pixels are ignored, where albumentations makes them class 0.

    Holes are ignored too. Arguments are those of mmseg's; an option of a transform that says which
    label to fill with is kept. Label maps that ``keymap`` does not name move as the others.

    Raises:
        UserError: An option interpolates labels, or labels appear that were not there.
    """

    def albu_builder(self, cfg: dict) -> object:
        """One transform of albumentations, with those inside it."""
        kind = cfg["type"]
        if isinstance(kind, str):
            kind = getattr(importlib.import_module("albumentations"), kind, None)
        if kind is None:
            reason = f"albumentations has no {cfg['type']}"
            raise UserError("config-type", "transform Albu", reason)
        known = inspect.signature(kind).parameters
        options = {**{name: IGNORED for name in _FILLS if name in known}, **cfg}
        if options.get("mask_interpolation", 0) != 0:
            reason = f"mask_interpolation of {cfg['type']} mixes labels; leave it out"
            raise UserError("config-value", "transform Albu", reason)
        return super().albu_builder(options)

    def transform(self, results: dict) -> dict:
        """Changes ``img`` (H, W[, C]) and the label maps."""
        keys = label_keys(results)
        if self.bgr_to_rgb and (results["img"].ndim, results["img"].shape[-1]) != (3, 3):
            reason = "needs images of three channels; set bgr_to_rgb=False for others"
            raise UserError("config-value", "transform Albu", reason)
        # From 2.0 on it has a generator of its own.
        if hasattr(self.aug, "set_random_seed"):
            self.aug.set_random_seed(int(np.random.randint(2**31)))
        before = {key: np.unique(results[key]) for key in keys}
        more = [key for key in keys if key not in self.keymap_to_albu]
        given = {**results, "masks": [results[key] for key in more]} if more else results
        changed: dict[str, Any] = super().transform(given)
        changed.update(zip(more, changed.pop("masks", ()), strict=True))
        for key in keys:
            new = np.setdiff1d(changed[key], [*before[key], IGNORED])
            if new.size:
                reason = f"makes labels {new[:5].tolist()} that were not in {key}; "
                reason += "choose what it fills label maps with, or nearest neighbour for them"
                raise UserError("label", "transform Albu", reason)
        changed["img_shape"] = changed["img"].shape[:2]
        return changed
