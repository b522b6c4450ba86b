# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Transforms of albumentations: labels stay labels, and new pixels are ignored."""

from __future__ import annotations

import sys
import types
from typing import Any

import mmseg.datasets.transforms.transforms as stack_module
import numpy as np
import pytest
from test_labels import apply, build, make
from user_errors import raises_user_error


class Sequence:
    """What the test needs of albumentations' own."""

    def __init__(self, transforms: list, additional_targets: Any = None) -> None:
        self.transforms, self.seeds = transforms, []

    def set_random_seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def __call__(self, **sample: Any) -> dict[str, Any]:
        for transform in self.transforms:
            image = sample["image"]
            sample["image"], sample["mask"] = transform(image, sample["mask"])
            more = [transform(image, mask)[1] for mask in sample.get("masks", ())]
            sample |= {"masks": more} if more else {}
        return sample


class Shift:
    def __init__(self, by: int, fill_mask: int = 0, mask_interpolation: int = 0) -> None:
        self.by, self.fill = by, fill_mask

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        image, mask = np.roll(image, self.by, 1), np.roll(mask, self.by, 1)
        image[:, : self.by], mask[:, : self.by] = 0, self.fill
        return image, mask


class Wrong(Shift):
    def __call__(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return image, mask + np.uint8(1)


@pytest.fixture
def albumentations(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("albumentations")
    vars(module).update(Shift=Shift, Wrong=Wrong)
    monkeypatch.setitem(sys.modules, "albumentations", module)
    for name, value in dict(albumentations=module, Compose=Sequence, ALBU_INSTALLED=True).items():
        monkeypatch.setattr(stack_module, name, value)


def test_albumentations_fills_with_ignore(albumentations: None) -> None:
    before = make(3)
    shift = build("Albu", transforms=[dict(type="Shift", by=9)])
    after = apply(shift, before, 1)
    for key in ("gt_seg_map", "gt_second"):
        assert (after[key][:, :9] == 255).all()
        assert np.array_equal(after[key][:, 9:], before[key][:, :-9])
    apply(shift, before, 1)
    assert shift.aug.seeds[0] == shift.aug.seeds[1]
    asked = build("Albu", transforms=[dict(type="Shift", by=9, fill_mask=0)])
    before["gt_seg_map"][0, 0] = before["gt_second"][0, 0] = 0
    assert (apply(asked, before, 1)["gt_seg_map"][:, :9] == 0).all()
    with raises_user_error("config-value", "transform Albu"):
        build("Albu", transforms=[dict(type="Shift", by=9, mask_interpolation=1)])
    with raises_user_error("config-type", "transform Albu"):
        build("Albu", transforms=[dict(type="Nothing")])
    with raises_user_error("label", "transform Albu"):
        apply(build("Albu", transforms=[dict(type="Wrong", by=0)]), before, 1)
    with raises_user_error("config-value", "transform Albu"):
        apply(shift, {**before, "img": before["img"][:, :, 0]}, 1)
