# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Resize and crop in one step, colour jitter and packing: the same samples as the stack's.

Every transform draws the same random numbers as the stack's, so that equal seeds must give equal
samples; scale, crop position, flip, colour moments and ``cat_max_ratio`` then have the same
distribution. That is checked sample by sample, and the moments once more over many.
"""

import copy

import cv2
import mmcv
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import init_default_scope
from user_errors import raises_user_error

from mmseg_resnest.datasets.transforms.merge import merge_steps
from mmseg_resnest.datasets.transforms.resample import labels_part, resized_part
from mmseg_resnest.datasets.transforms.resized_crop import is_dominated
from mmseg_resnest.registry import TRANSFORMS


def photo(height, width, seed=0):
    """A smooth picture (H, W, 3) with some noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def label(height, width, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (4, 5), dtype=np.uint8)
    coarse[0, 0] = 255
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)


def sample(height=90, width=140, seed=0):
    return dict(
        img=photo(height, width, seed),
        gt_seg_map=label(height, width, seed=seed),
        seg_fields=["gt_seg_map"],
        img_shape=(height, width),
        ori_shape=(height, width),
        img_path="x.jpg",
    )


def run(steps, results, seed):
    np.random.seed(seed)
    results = copy.deepcopy(results)
    for step in steps:
        results = step(results)
    return results


def build(*steps):
    init_default_scope("mmseg_resnest")
    return [TRANSFORMS.build(dict(step)) for step in steps]


def stock_and_ours(scale, crop, ratio, **more):
    stock = build(
        dict(type="mmcv.RandomResize", scale=scale, ratio_range=ratio, keep_ratio=True),
        dict(type="mmseg.RandomCrop", crop_size=crop, **more),
    )
    return stock, build(
        dict(type="RandomResizeCrop", scale=scale, ratio_range=ratio, crop_size=crop, **more)
    )


@settings(deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(3, 150), st.integers(3, 150)),
    resized=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    data=st.data(),
)
def test_a_part_is_that_of_the_whole_resized_image(size, resized, data):
    width, height = resized
    top = data.draw(st.integers(0, height - 1))
    left = data.draw(st.integers(0, width - 1))
    bottom = data.draw(st.integers(top + 1, height))
    right = data.draw(st.integers(left + 1, width))
    image, labels = photo(*size), label(*size)
    whole = mmcv.imresize(image, resized)[top:bottom, left:right]
    part = resized_part(image, resized, (top, bottom, left, right))
    assert part.shape == whole.shape
    # A 64th of the difference between neighbours along each axis, and rounding.
    steepest = sum(np.abs(np.diff(image.astype(int), axis=axis)).max() for axis in (0, 1))
    assert np.abs(part.astype(int) - whole).max() <= steepest / 64 + 1
    nearest = mmcv.imresize(labels, resized, interpolation="nearest")[top:bottom, left:right]
    assert np.array_equal(labels_part(labels, resized, (top, bottom, left, right)), nearest)


@pytest.mark.parametrize("more", [{}, dict(cat_max_ratio=0.4)])
@pytest.mark.parametrize("crop", [(40, 50), (200, 30)])
def test_equal_seeds_give_the_samples_of_the_stack(crop, more):
    """Scale, position and the draws that ``cat_max_ratio`` rejects, one after another."""
    stock, ours = stock_and_ours((160, 96), crop, (0.5, 2.0), **more)
    boxes = set()
    for seed in range(40):
        before = sample(seed=seed % 4)
        expected, results = run(stock, before, seed), run(ours, before, seed)
        after = np.random.random()
        assert np.array_equal(results["gt_seg_map"], expected["gt_seg_map"])
        assert np.abs(results["img"].astype(int) - expected["img"]).mean() <= 0.3
        for key in ("img_shape", "scale", "scale_factor", "keep_ratio"):
            assert results[key] == expected[key], key
        run(stock, before, seed)
        assert np.random.random() == after  # as many numbers were drawn
        boxes.add((results["scale"], results["img_shape"]))
    assert len(boxes) > 20


@settings(deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    classes=st.integers(1, 4),
    share=st.floats(0, 1),
    ignored=st.floats(0, 1),
    limit=st.sampled_from([0.2, 0.51, 0.75, 0.9]),
    seed=st.integers(0, 9),
)
def test_a_dominant_class_is_found_as_the_stack_finds_it(
    size, classes, share, ignored, limit, seed
):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size, dtype=np.uint8)
    labels[rng.random(size) < share] = classes - 1
    labels[rng.random(size) < ignored] = 255
    # A pattern that the few pixels that are looked at first miss.
    if seed % 2:
        labels[:: max(1, size[0] // 32), :: max(1, size[1] // 32)] = 0
    found, counts = np.unique(labels, return_counts=True)
    counts = counts[found != 255]
    accepted = len(counts) > 1 and np.max(counts) / np.sum(counts) < limit
    assert is_dominated(labels, limit) == (not accepted)
    assert is_dominated(labels.astype(np.int64), limit) == (not accepted)


def test_random_crop_alone_is_the_stacks():
    for more in ({}, dict(cat_max_ratio=0.5)):
        stock = build(dict(type="mmseg.RandomCrop", crop_size=(30, 40), **more))
        ours = build(dict(type="RandomCrop", crop_size=(30, 40), **more))
        assert type(ours[0]).__module__.startswith("mmseg_resnest")
        for seed in range(30):
            expected, results = run(stock, sample(), seed), run(ours, sample(), seed)
            assert np.array_equal(results["img"], expected["img"])
            assert np.array_equal(results["gt_seg_map"], expected["gt_seg_map"])


@pytest.mark.parametrize("flipped", [False, True])
def test_the_published_augmentation_in_one_step_is_the_same(flipped):
    crop = (48, 48)
    long_edge = dict(base_size=60, ratio_range=(0.5, 2.0))
    steps = build(
        dict(type="RandomLongEdgeResize", **long_edge),
        dict(type="Pad", size=crop[::-1], pad_val=dict(img=0, seg=255)),
        dict(type="mmseg.RandomCrop", crop_size=crop),
    )
    one = build(dict(type="RandomLongEdgeCrop", crop_size=crop, **long_edge))
    bias = []
    for seed in range(60):
        before = sample(*((90, 140), (140, 90), (31, 47))[seed % 3], seed=seed % 4)
        if flipped:
            before["img"], before["gt_seg_map"] = (
                before["img"][:, ::-1],
                before["gt_seg_map"][:, ::-1],
            )
        expected, results = run(steps, before, seed), run(one, before, seed)
        assert np.array_equal(results["gt_seg_map"], expected["gt_seg_map"])
        difference = results["img"].astype(int) - expected["img"]
        assert np.abs(difference).max() <= 2
        bias.append(difference.mean())
        for key in ("img_shape", "pad_shape", "scale", "scale_factor", "keep_ratio"):
            assert results[key] == expected[key], key
    assert abs(np.mean(bias)) <= 0.01


@pytest.mark.parametrize("flip", [None, "horizontal", "vertical"])
def test_colour_jitter_is_the_stacks(flip):
    stock = build(dict(type="mmseg.PhotoMetricDistortion"))[0]
    ours = build(dict(type="PhotoMetricDistortion"))[0]
    assert type(ours).__module__.startswith("mmseg_resnest")
    for seed in range(60):
        image = photo(40, 50, seed % 5)
        view = {None: image, "horizontal": image[:, ::-1], "vertical": image[::-1]}[flip]
        np.random.seed(seed)
        expected = stock(dict(img=view.copy()))["img"]
        state = np.random.random()
        np.random.seed(seed)
        assert np.array_equal(ours(dict(img=view))["img"], expected)
        assert np.random.random() == state


@pytest.mark.parametrize("flip", [False, True])
def test_packing_gives_the_stacks_tensors(flip):
    before = {**sample(), "flip": flip, "reduce_zero_label": True}
    if flip:
        before["img"], before["gt_seg_map"] = before["img"][:, ::-1], before["gt_seg_map"][:, ::-1]
    stock, ours = build(dict(type="mmseg.PackSegInputs"), dict(type="PackSegInputs"))
    expected, packed = stock(copy.deepcopy(before)), ours(copy.deepcopy(before))
    assert torch.equal(packed["inputs"], expected["inputs"])
    assert packed["inputs"].is_contiguous()
    labels = [one["data_samples"].gt_sem_seg.data for one in (expected, packed)]
    assert torch.equal(*labels)
    assert labels[0].dtype == labels[1].dtype == torch.int64
    assert packed["data_samples"].metainfo == expected["data_samples"].metainfo
    for image in (before["img"].astype(np.float32), before["img"][:, :, 0]):
        grey = {**before, "img": image}
        assert torch.equal(ours(dict(grey))["inputs"], stock(dict(grey))["inputs"])


def test_pipelines_are_merged_where_nothing_is_lost():
    resize = dict(type="RandomResize", scale=(160, 96), ratio_range=(0.5, 2.0), keep_ratio=True)
    crop = dict(type="RandomCrop", crop_size=(40, 50))
    counted = dict(type="RandomCrop", crop_size=(40, 50), cat_max_ratio=0.75)
    flip = dict(type="RandomFlip", prob=0.5)
    merged = merge_steps([flip, resize, counted, flip])
    assert [step["type"] for step in merged] == [
        "RandomFlip",
        "mmseg_resnest.RandomResizeCrop",
        "RandomFlip",
    ]
    one = build(merged[1])[0]
    assert (one.scale, one.ratio_range) == ((160, 96), (0.5, 2.0))
    assert (one.crop_size, one.cat_max_ratio) == ((40, 50), 0.75)

    long_edge = dict(type="RandomLongEdgeResize", base_size=60, ratio_range=(0.5, 2.0))
    pad = dict(type="Pad", size=(50, 40), pad_val=dict(img=0, seg=0))
    (step,) = merge_steps([long_edge, pad, crop])
    one = build(step)[0]
    assert (one.crop_size, one.base_size, one.pad_val) == ((40, 50), 60, dict(img=0, seg=0))
    for kept in (
        [resize, flip, crop],
        [{**resize, "keep_ratio": False}, crop],
        [{**resize, "backend": "pillow"}, crop],
        [resize, {**crop, "type": "mmseg.RandomCrop"}],
        [long_edge, {**pad, "size": (40, 50)}, crop],
        [long_edge, pad, {**crop, "cat_max_ratio": 0.5}],
        [crop, resize],
        [],
    ):
        assert merge_steps(kept) == kept


def test_wrong_sizes_are_named():
    for kind in ("RandomResizeCrop", "RandomLongEdgeCrop"):
        arguments = dict(scale=(8, 8), ratio_range=(1, 2)) if kind == "RandomResizeCrop" else {}
        with raises_user_error("config-value", kind):
            build(dict(type=kind, crop_size=(0, 4), **arguments))
