# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Loading bands: what a sample has, what is shown of it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from user_errors import raises_user_error

from mmseg_resnest.datasets import LoadBands, PhotoMetricDistortion
from mmseg_resnest.datasets.reader import ImageReader
from mmseg_resnest.datasets.transforms import RandomResizeCrop
from mmseg_resnest.datasets.transforms.geometry import Pad, RandomRotate
from mmseg_resnest.models import SegDataPreProcessor


@pytest.fixture
def image(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 4000, (24, 32, 6), dtype=np.uint16)
    np.save(tmp_path / "a.npy", values)
    return tmp_path / "a.npy"


def test_a_sample(image: Path) -> None:
    sample = LoadBands(bands=[6, 1])({"img_path": str(image)})
    np.testing.assert_array_equal(sample["img"], np.load(image)[:, :, [5, 0]])
    assert sample["img"].dtype == np.float32
    assert sample["img_shape"] == sample["ori_shape"] == (24, 32)


def test_what_is_shown(image: Path) -> None:
    """Three of the bands that are taken, by their numbers."""
    values = np.load(image).astype(np.float32)
    for options, channels in (
        (dict(), (0, 1, 2)),
        (dict(bands=[4, 6, 2, 1]), (3, 5, 1)),
        (dict(bands=[4, 6, 2, 1], picture=[1, 2, 4]), (0, 1, 3)),
        (dict(picture=[6, 5, 4]), (5, 4, 3)),
    ):
        shown = ImageReader([dict(type=LoadBands, **options)]).read(image).picture
        chosen = values[:, :, list(channels)]
        low, high = chosen.min(), chosen.max()
        expected = np.rint((chosen - low) * (255 / (high - low)))
        np.testing.assert_allclose(shown, expected, atol=1)


@pytest.mark.parametrize(
    "options",
    [
        dict(bands=[]), dict(bands=[0]), dict(bands="1"), dict(bands=[1.5]), dict(bands=[True]),
        dict(layout="WHC"), dict(nodata="0"), dict(fill=[1, 2], bands=[1]), dict(fill="0"),
        dict(fill=float("nan")), dict(picture=[1, 2]), dict(picture=[1, 2, 3], bands=[1, 2]),
    ],
)  # fmt: skip
def test_arguments_that_are_refused(options: dict[str, Any]) -> None:
    with raises_user_error("config-value", "LoadBands argument"):
        LoadBands(**options)


def test_files_that_are_refused(image: Path, tmp_path: Path) -> None:
    with raises_user_error("image", "a.npy") as caught:
        LoadBands(bands=[7])({"img_path": str(image)})
    assert "no band 7" in caught.value.message
    with raises_user_error("not-found", "b.npy"):
        LoadBands()({"img_path": str(tmp_path / "b.npy")})
    (tmp_path / "b.npy").write_bytes(image.read_bytes()[:-1])
    with raises_user_error("image", "b.npy"):
        LoadBands()({"img_path": str(tmp_path / "b.npy")})
    np.save(tmp_path / "c.npy", np.array([[{}]]))
    with raises_user_error("image", "c.npy"):
        LoadBands()({"img_path": str(tmp_path / "c.npy")})


def test_the_transforms_after_it(image: Path) -> None:
    """Those that move pixels take any number of bands; those of colours refuse them."""
    sample = LoadBands()({"img_path": str(image)})
    sample["gt_seg_map"] = np.zeros((24, 32), np.uint8)
    sample["seg_fields"] = ["gt_seg_map"]
    steps = [
        RandomRotate(prob=1.0, degree=9, pad_val=0),
        Pad(size=(40, 40)),
        RandomResizeCrop(scale=(40, 40), ratio_range=(1.1, 2.0), crop_size=(32, 32)),
    ]
    for step in steps:
        sample = step(sample)
    assert sample["img"].shape == (32, 32, 6) and sample["img"].dtype == np.float32
    with raises_user_error("image", "PhotoMetricDistortion"):
        PhotoMetricDistortion()(sample)


def test_means_of_any_number_of_channels() -> None:
    mean, std = [1.0, 2, 3, 4, 5], [2.0, 3, 4, 5, 6]
    inputs = torch.rand(5, 8, 9)
    found = SegDataPreProcessor(mean=mean, std=std)({"inputs": [inputs]})["inputs"][0]
    for channel in range(5):
        expected = (inputs[channel] - mean[channel]) / std[channel]
        assert torch.equal(found[channel], expected)
    with raises_user_error("config-value", "model.data_preprocessor.std"):
        SegDataPreProcessor(mean=mean, std=std[:4])
    with raises_user_error("config-value", "model.data_preprocessor.std"):
        SegDataPreProcessor(mean=mean[:3], std=std)
