# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The published augmentation against Pillow, and its distribution."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from advice import advises
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.dataset import Compose
from PIL import Image
from scipy import stats

import mmseg_resnest  # noqa: F401  (registers)
from mmseg_resnest.datasets.transforms.long_edge import RandomLongEdgeResize
from mmseg_resnest.datasets.transforms.resample import resize_image, resize_labels
from mmseg_resnest.registry import TRANSFORMS


def sample(height: int, width: int, seed: int = 0, classes: int = 20) -> dict:
    """A loaded sample: random image and labels."""
    rng = np.random.default_rng(seed)
    return dict(
        img=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        gt_seg_map=rng.integers(0, classes, (height, width), dtype=np.uint8),
        seg_fields=["gt_seg_map"],
        img_shape=(height, width),
        ori_shape=(height, width),
    )


def published_size(width: int, height: int, long_size: int) -> tuple[int, int]:
    """(width, height) by the published rule, written as it is there."""
    if height > width:
        return int(1.0 * width * long_size / height + 0.5), long_size
    return long_size, int(1.0 * height * long_size / width + 0.5)


@given(
    height=st.integers(20, 150),
    width=st.integers(20, 150),
    base=st.integers(16, 120),
    low=st.floats(0.5, 1.0),
    span=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**31 - 1),
)
def test_resize_is_the_published_one(height, width, base, low, span, seed):
    results = sample(height, width, seed)
    image, labels = Image.fromarray(results["img"]), Image.fromarray(results["gt_seg_map"])
    np.random.seed(seed)
    out = RandomLongEdgeResize(base, (low, low + span))(results)

    size = out["scale"]
    assert int(base * low) <= max(size) <= int(base * (low + span))
    assert size == published_size(width, height, max(size))
    assert out["img_shape"] == size[::-1] == out["img"].shape[:2] == out["gt_seg_map"].shape
    assert out["scale_factor"] == (size[0] / width, size[1] / height)
    assert out["ori_shape"] == (height, width)
    np.testing.assert_array_equal(out["img"], image.resize(size, Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(out["gt_seg_map"], labels.resize(size, Image.Resampling.NEAREST))
    assert out["img"].dtype == out["gt_seg_map"].dtype == np.uint8


def test_shrinking_is_antialiased():
    """A one-pixel checkerboard shrinks to its mean, where plain bilinear would alias."""
    board = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
    shrunk = resize_image(np.dstack([board] * 3), (32, 32))
    assert np.abs(shrunk[4:-4, 4:-4].astype(int) - 127).max() <= 2


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, bool])
def test_labels_of_every_type_keep_their_type_and_values(dtype):
    high = 2 if dtype is bool else 250 if dtype is np.uint8 else 30000
    labels = np.random.default_rng(0).integers(0, high, (37, 53)).astype(dtype)
    out = resize_labels(labels, (29, 71))
    # The rule itself: the source pixel under the centre of the new one.
    rows = ((np.arange(71) + 0.5) * 37 / 71).astype(int)
    cols = ((np.arange(29) + 0.5) * 53 / 29).astype(int)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, labels[rows][:, cols])


@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 1), (40, 60, 2), (40, 60, 3), (40, 60, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_images_of_every_type_and_depth(shape, dtype):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    out = resize_image(image, (50, 30))
    assert out.shape == (30, 50, *shape[2:]) and out.dtype == dtype
    planes = image.astype(np.float32).reshape(40, 60, -1)
    for index, plane in enumerate(np.moveaxis(planes, 2, 0)):
        exact = np.asarray(Image.fromarray(plane).resize((50, 30), Image.Resampling.BILINEAR))
        got = out.reshape(30, 50, -1)[..., index].astype(np.float32)
        assert np.abs(got - exact).max() <= (0 if np.dtype(dtype).kind == "f" else 1)


def test_non_contiguous_image():
    image = sample(40, 60)["img"]
    mirrored = image[:, ::-1]  # what a flip leaves behind
    np.testing.assert_array_equal(
        resize_image(mirrored, (50, 30)), resize_image(mirrored.copy(), (50, 30))
    )


def test_long_edge_is_a_uniform_integer():
    """Both ends included, every integer as often as any other."""
    transform = RandomLongEdgeResize(20, (0.5, 2.0))
    np.random.seed(0)
    counts = Counter(transform._draw_long_edge() for _ in range(31 * 400))
    assert sorted(counts) == list(range(10, 41))
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_extreme_aspect_ratio_keeps_a_pixel():
    out = RandomLongEdgeResize(20, (1.0, 1.0))(sample(1, 3000))
    assert out["img"].shape == (1, 20, 3) and out["gt_seg_map"].shape == (1, 20)


@pytest.mark.parametrize("ratio_range", [(2.0, 0.5), (0.0, 1.0), (-1.0, 1.0), (0.001, 1.0)])
def test_empty_range_is_refused(ratio_range):
    with advises("datasets/transforms/long_edge.py:__init__", "the smaller first") as told:
        RandomLongEdgeResize(520, ratio_range)
    assert told.value.code == "config-value"


def published_pipeline(crop: int, base: int, seg_pad_val: int = 255) -> Compose:
    steps = [
        dict(type="RandomFlip", prob=0.5),
        dict(type="RandomLongEdgeResize", base_size=base, ratio_range=(0.5, 2.0)),
        dict(type="Pad", size=(crop, crop), pad_val=dict(img=0, seg=seg_pad_val)),
        dict(type="RandomCrop", crop_size=(crop, crop)),
    ]
    return Compose([TRANSFORMS.build(step) for step in steps])


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(8, 100),
    width=st.integers(8, 100),
    crop=st.integers(16, 64),
    seed=st.integers(0, 2**31 - 1),
)
def test_whole_augmentation(height, width, crop, seed):
    """Always a full crop; new pixels only at the bottom and at the right, black and ignored."""
    results = sample(height, width, seed)
    results["img"] = np.maximum(results["img"], 1)  # no black pixel of its own
    np.random.seed(seed)
    out = published_pipeline(crop, base=48)(results)
    assert out["img"].shape == (crop, crop, 3) and out["gt_seg_map"].shape == (crop, crop)
    padded = out["gt_seg_map"] == 255
    np.testing.assert_array_equal(padded, (out["img"] == 0).all(axis=2))
    rows, cols = crop - padded[:, 0].sum(), crop - padded[0].sum()
    expected = np.ones((crop, crop), bool)
    expected[:rows, :cols] = False
    np.testing.assert_array_equal(padded, expected)
