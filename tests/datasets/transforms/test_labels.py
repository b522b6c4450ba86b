# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Every transform of the stack and of ours keeps labels with their pixels, or is refused."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import cv2
import mmseg.datasets.transforms.transforms as stack_module
import numpy as np
import pytest
from advice import advises
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from user_errors import raises_user_error

from mmseg_resnest.datasets.transforms.kinds import REFUSED
from mmseg_resnest.errors import UserError
from mmseg_resnest.registry import TRANSFORMS

MIX = "mix_results"
BLOCK = 16  # pixels of a block of one label, at least
#: Arguments of each transform that moves pixels: the same for images and label maps.
MOVING: dict[str, list[dict[str, Any]]] = {
    "CenterCrop": [
        dict(crop_size=30),
        dict(crop_size=(90, 40), auto_pad=True),
        dict(crop_size=(90, 40)),
    ],
    "Pad": [
        dict(size=(80, 90)),
        dict(size_divisor=32, pad_val=0.0),
        dict(pad_to_square=True, pad_val=dict(img=0)),
        dict(size=(100, 20), padding_mode="reflect"),
    ],
    "RandomChoiceResize": [dict(scales=[(70, 40), (30, 60)])],
    "RandomCrop": [
        dict(crop_size=(25, 30)),
        dict(crop_size=200),
        dict(crop_size=20, cat_max_ratio=0.5),
    ],
    "RandomCutOut": [
        dict(prob=1.0, n_holes=(1, 3), cutout_shape=[(9, 12), (30, 4)]),
        dict(prob=1.0, n_holes=2, cutout_ratio=(0.4, 0.2), fill_in=(0, 0, 0)),
    ],
    "RandomFlip": [
        dict(prob=0.9, direction=["horizontal", "vertical", "diagonal"]),
        dict(prob=0.5),
    ],
    "RandomLongEdgeCrop": [dict(crop_size=(50, 45), base_size=60)],
    "RandomLongEdgeResize": [dict(base_size=60)],
    "RandomMosaic": [dict(prob=1.0, img_scale=(40, 50))],
    "RandomResize": [
        dict(scale=(80, 60), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(scale=(50, 60), ratio_range=(0.5, 2.0)),
    ],
    "RandomResizeCrop": [dict(scale=(80, 60), ratio_range=(0.5, 2.0), crop_size=(40, 30))],
    "RandomRotate": [
        dict(prob=1.0, degree=180.0),
        dict(prob=1.0, degree=(20, 70), auto_bound=True),
        dict(prob=1.0, degree=30, center=(5, 9)),
    ],
    "RandomRotFlip": [
        dict(rotate_prob=1.0),
        dict(rotate_prob=0.0, flip_prob=1.0),
        dict(degree=90),
    ],
    "Resize": [
        dict(scale=(70, 50)),
        dict(scale=(90, 40), keep_ratio=True),
        dict(scale_factor=1.5, interpolation="bicubic"),
    ],
    "ResizeShortestEdge": [dict(scale=40, max_size=70)],
    "ResizeToMultiple": [dict(size_divisor=16)],
}
#: Of those that change colours alone.
COLOURS: dict[str, list[dict[str, Any]]] = {
    "AdjustGamma": [dict(gamma=2.0)],
    "BioMedicalGaussianBlur": [dict(prob=1.0)],
    "BioMedicalGaussianNoise": [dict(prob=1.0, std=30.0)],
    "BioMedicalRandomGamma": [
        dict(prob=1.0),
        dict(prob=1.0, per_channel=True, retain_stats=True, invert_image=True),
    ],
    "CLAHE": [dict()],
    "GenerateEdge": [dict(edge_width=3)],
    "Normalize": [dict(mean=[1.0] * 3, std=[2.0] * 3)],
    "PhotoMetricDistortion": [dict()],
    "RGB2Gray": [dict(), dict(out_channels=1)],
    "RandomGrayscale": [dict(prob=1.0, keep_channels=True), dict(prob=1.0)],
    "Rerange": [dict(min_value=0, max_value=1)],
}
#: Those that have no pixels of labels in their hands: they load, pack, or call others.
OTHERS = {
    *("ImageToTensor", "InferencerLoader", "LoadAnnotations", "LoadDepthAnnotation"),
    *(
        "LoadBands",
        "LoadMultilabel",
        "LoadBiomedicalAnnotation",
        "LoadBiomedicalData",
        "LoadBiomedicalImageFromFile",
    ),
    *("LoadGivenArrays", "LoadImageFromFile", "LoadImageFromNDArray", "LoadImageFromNpyFile"),
    *("LoadMultipleRSImageFromFile", "LoadSingleRSImageFromFile", "PackSegInputs", "ToTensor"),
    *("Compose", "KeyMapper", "RandomApply", "RandomChoice", "TestTimeAug"),
    *("TransformBroadcaster",),  # test_pipelines.py
    *("ConcatCDInput", "RandomDepthMix"),  # below
    "Albu",  # in test_albu.py
}
#: Those of volumes (C, Z, Y, X), of which a transform of one's own takes slices.
VOLUMES: dict[str, list[dict[str, Any]]] = {
    "BioMedical3DPad": [dict(pad_shape=(9, 30, 12))],
    "BioMedical3DRandomCrop": [
        dict(crop_shape=(4, 9, 8)),
        dict(crop_shape=6, keep_foreground=False),
    ],
    "BioMedical3DRandomFlip": [dict(prob=0.7, axes=(0, 1, 2))],
}
LABELS = (0, 1, 5, 18)  # 0 is what a wrong fill would be


def names_of_transforms() -> set[str]:
    names: set[str] = set()
    registry: Any = TRANSFORMS
    while registry is not None:
        names |= {n for n, kind in registry.module_dict.items() if _is_of_the_stack(kind)}
        registry = registry.parent
    return names


def _is_of_the_stack(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("mmcv", "mmengine", "mmseg", "mmseg_resnest")


def test_every_transform_is_covered_or_refused() -> None:
    refused = {
        kind.__name__ for kind in REFUSED if TRANSFORMS.get(kind.__name__) is kind
    }  # others have one of ours in their place
    covered = MOVING.keys() | COLOURS.keys() | VOLUMES.keys() | OTHERS
    assert names_of_transforms() == covered | refused
    assert not covered & refused


def build(name: str, **options: Any) -> Any:
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        return TRANSFORMS.build(dict(type=name, **options))


def coded(labels: np.ndarray, channels: int = 3, dtype: Any = np.uint8) -> np.ndarray:
    """An image (H, W[, C]) whose grey level says the label; ``channels`` 0 is (H, W)."""
    grey = (80 + 8 * labels.astype(int)).astype(dtype)
    return grey if not channels else np.repeat(grey[:, :, None], channels, axis=2)


def make(seed: int, height: int = 50, width: int = 64, **image: Any) -> dict[str, Any]:
    """A loaded sample of blocks of labels with two label maps; 20 and more is the second's."""
    rng = np.random.default_rng(seed)
    down, across = height // BLOCK, width // BLOCK
    blocks = rng.choice(LABELS, (down, across)).astype(np.uint8)
    labels = blocks[np.arange(height) * down // height][:, np.arange(width) * across // width]
    return dict(
        img=coded(labels, **image),
        gt_seg_map=labels,
        gt_second=labels + np.uint8(20),
        seg_fields=["gt_seg_map", "gt_second"],
        img_shape=(height, width),
        ori_shape=(height, width),
        img_path="image.png",
    )


def apply(transform: Any, sample: dict[str, Any], seed: int) -> dict[str, Any]:
    sample = copy.deepcopy(sample)
    if hasattr(transform, "get_indices"):
        sample[MIX] = [copy.deepcopy(sample) for _ in range(3)]
    random.seed(seed)
    np.random.seed(seed)
    return transform(sample)


def assert_labels_stay(before: dict[str, Any], after: dict[str, Any], ignored: int = 255) -> None:
    """Labels are among those before or ignored, and where the image shows them."""
    image, labels, second = after["img"], after["gt_seg_map"], after["gt_second"]
    assert labels.dtype == second.dtype == np.uint8
    assert image.shape[:2] == labels.shape == second.shape == tuple(after["img_shape"])
    assert set(np.unique(labels)) <= {*np.unique(before["gt_seg_map"]), ignored}
    new = labels == ignored
    assert np.array_equal(second, np.where(new, ignored, labels + np.uint8(20)))
    # Where all labels around are the same, the image shows that label or the fill.
    grey = image if image.ndim == 3 else image[:, :, None]
    old = before["img"].shape[:2]
    scale = max(labels.shape[0] / old[0], labels.shape[1] / old[1], 1)
    edge = int(np.ceil(1.5 * scale)) + 1
    kernel = np.ones((2 * edge + 1, 2 * edge + 1), np.uint8)
    inside = cv2.erode(labels, kernel) == cv2.dilate(labels, kernel)
    for side in (slice(None, edge), slice(-edge, None)):  # what is beyond is not known
        inside[side] = inside[:, side] = False
    shown = np.where(new, 0, 80 + 8 * labels.astype(int))[:, :, None]
    assert np.abs(grey.astype(float) - shown)[inside].max(initial=0) <= 2
    block = BLOCK * min(1, *after.get("scale_factor", (1,)))
    assert inside.any() or min(labels.shape) < 4 * edge or block < 2 * edge + 2


CASES = [(name, options) for name in MOVING for options in MOVING[name]]


@pytest.mark.parametrize(("name", "options"), CASES)
@settings(max_examples=8, deadline=None)
@given(
    height=st.integers(33, 80),
    width=st.integers(33, 80),
    seed=st.integers(0, 2**31 - 1),
)
def test_labels_move_with_the_image(
    name: str, options: dict[str, Any], height: int, width: int, seed: int
) -> None:
    transform, before = build(name, **options), make(seed, height, width)
    after = apply(transform, before, seed)
    assert_labels_stay(before, after)
    again = apply(transform, before, seed)
    for key in ("img", "gt_seg_map", "gt_second"):
        assert np.array_equal(after[key], again[key])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [0, 1, 3, 4, 6])
@pytest.mark.parametrize("name", MOVING)
def test_other_images_work(name: str, channels: int, dtype: Any) -> None:
    for options in MOVING[name]:
        if "fill_in" in options or options.get("interpolation"):
            continue
        transform, before = build(name, **options), make(3, channels=channels, dtype=dtype)
        after = apply(transform, before, 5)
        assert after["img"].dtype == dtype
        assert (after["img"].size // after["gt_seg_map"].size) == max(channels, 1)
        assert_labels_stay(before, after)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [0, 1, 3, 4])
@pytest.mark.parametrize("name", COLOURS)
def test_colours_leave_labels_alone(name: str, channels: int, dtype: Any) -> None:
    usual = (channels, dtype) == (3, np.uint8)
    for options in COLOURS[name]:
        before = make(4, channels=channels, dtype=dtype)
        if name == "Normalize" and channels != 3:
            options = {**options, "mean": [1.0], "std": [2.0], "to_rgb": False}
        try:
            after = apply(build(name, **options), before, 6)
        except UserError as error:
            refused = error.code if not usual else "refused"
            assert refused in ("image", "config-value")
            continue
        for key in ("gt_seg_map", "gt_second"):
            assert np.array_equal(after[key], before[key])
        assert after["img"].shape[:2] == before["img"].shape[:2] == after["img_shape"][:2]
        assert len(after["img_shape"]) == 2
        assert np.isfinite(after["img"]).all()


@pytest.mark.parametrize("name", VOLUMES)
@settings(max_examples=8, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(2, 12)),
    channels=st.integers(1, 2),
    seed=st.integers(0, 2**31 - 1),
)
def test_labels_move_with_the_volume(
    name: str, shape: tuple[int, int, int], channels: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).choice(LABELS, shape).astype(np.uint8)
    before = dict(gt_seg_map=labels, img=np.stack([coded(labels, 0)] * channels), img_path="a")
    for options in VOLUMES[name]:
        after = apply(build(name, **options), before, seed)
        moved = after["gt_seg_map"]
        assert set(np.unique(moved)) <= {*LABELS, 255} and moved.dtype == np.uint8
        shown = np.where(moved == 255, 0, 80 + 8 * moved.astype(int))
        assert np.array_equal(after["img"], np.stack([shown] * channels))
        if name == "BioMedical3DPad":
            assert moved.shape == after["img_shape"] == tuple(np.maximum(shape, (9, 30, 12)))
            assert (moved != 255).sum() == labels.size


#: Where the stack is right, ours does the same: by arguments.
SAME = {
    "Pad": dict(size_divisor=32, pad_val=dict(img=(7, 8, 9), seg=255)),
    "CenterCrop": dict(crop_size=(90, 40), auto_pad=True),
    "RandomCutOut": dict(
        prob=1.0, n_holes=3, cutout_shape=(9, 12), fill_in=(1, 2, 3), seg_fill_in=9
    ),
    "RandomMosaic": dict(prob=1.0, img_scale=(40, 50), pad_val=7),
    "RandomRotate": dict(prob=1.0, degree=180.0),
    "RandomCrop": dict(crop_size=(25, 30), cat_max_ratio=0.75),
    "AdjustGamma": dict(gamma=2.0),
    "CLAHE": dict(),
    "RandomGrayscale": dict(prob=0.5, keep_channels=True, channel_weights=(0.1, 0.3, 0.6)),
    "Rerange": dict(min_value=0, max_value=1),
    "RGB2Gray": dict(weights=(0.1, 0.3, 0.6)),
}


def photo(seed: int, height: int = 50, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", SAME)
def test_it_draws_and_makes_what_the_stack_does(name: str) -> None:
    for seed in range(5):
        sample = {**make(seed), "img": photo(seed)}
        ours = apply(build(name, **SAME[name]), sample, seed)
        number = random.random(), np.random.random()
        stocks = apply(build(f"mmseg.{name}", **SAME[name]), sample, seed)
        assert number == (random.random(), np.random.random())
        for key in ("img", "gt_seg_map"):
            assert np.array_equal(ours[key], stocks[key])
            assert ours[key].dtype == stocks[key].dtype


def test_the_image_of_a_rotation_or_turn_is_the_stacks() -> None:
    for seed in range(8):
        sample = {**make(seed), "img": photo(seed)}
        stock = stack_module.RandomRotFlip(rotate_prob=0.4, flip_prob=0.7)
        ours = apply(build("RandomRotFlip", rotate_prob=0.4, flip_prob=0.7), sample, seed)
        number = np.random.random()
        assert np.array_equal(ours["img"], apply(stock, sample, seed)["img"])
        assert number == np.random.random()


@pytest.mark.parametrize("name", ["GaussianNoise", "GaussianBlur", "RandomGamma"])
def test_biomedical_colours_are_the_stacks_of_planes(name: str) -> None:
    sample = {**make(1), "img": photo(1).astype(np.float32)}
    planes = np.ascontiguousarray(sample["img"].transpose(2, 0, 1))
    name = f"BioMedical{name}"
    ours = apply(build(name, prob=1.0), sample, 3)["img"]
    stocks = apply(build(f"mmseg.{name}", prob=1.0), {"img": planes}, 3)["img"]
    assert np.allclose(ours, stocks.transpose(1, 2, 0), atol=1e-4)
    volume = dict(img=np.random.default_rng(2).normal(size=(2, 4, 9, 8)).astype(np.float32))
    ours = apply(build(name, prob=1.0), volume, 3)["img"]
    assert np.allclose(ours, apply(build(f"mmseg.{name}", prob=1.0), volume, 3)["img"], atol=1e-4)
    # Values of 8 bits are cut off, not taken modulo 256.
    dark = apply(build("BioMedicalGaussianNoise", prob=1.0, mean=-50.0), make(1), 3)
    assert dark["img"].max() <= 80 + 8 * max(LABELS) - 40


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("RandomCrop", dict(crop_size=(25, 30))),
        ("RandomResize", dict(scale=(80, 60), ratio_range=(0.5, 2.0))),
        ("RandomResize", dict(scale=[(80, 60), (90, 100)])),
        ("Resize", dict(scale=(80, 60), keep_ratio=True)),
        ("Resize", dict(scale_factor=(0.5, 0.7))),
        ("ResizeShortestEdge", dict(scale=(80, 60), max_size=90)),
        ("RandomChoiceResize", dict(scales=[(80, 60), (90, 100)], keep_ratio=True)),
        ("RandomResizeCrop", dict(scale=(80, 60), ratio_range=(0.5, 2.0), crop_size=(40, 30))),
        ("RandomCutOut", dict(prob=1.0, n_holes=(1, 3), cutout_shape=[(9, 12), (30, 4)])),
        ("RandomCutOut", dict(prob=1.0, n_holes=2, cutout_ratio=(0.4, 0.2))),
        ("CenterCrop", dict(crop_size=(90, 40), auto_pad=True)),
        ("Pad", dict(size=(90, 80), pad_val=dict(img=(1, 2, 3)))),
        ("RandomRotate", dict(prob=1.0, degree=(10, 20), center=(5, 9))),
        ("RandomMosaic", dict(prob=1.0, img_scale=(40, 50), center_ratio_range=(0.5, 1.5))),
    ],
)
def test_lists_of_json_are_tuples(name: str, options: dict[str, Any]) -> None:
    listed = json.loads(json.dumps(options))
    before = make(3)
    first, second = (apply(build(name, **one), before, 2) for one in (options, listed))
    for key in ("img", "gt_seg_map"):
        assert np.array_equal(first[key], second[key])


@pytest.mark.parametrize("scales", [(80, 60), 50, [(80, 60), 50]])
def test_one_scale_or_several(scales: Any) -> None:
    options = dict(scales=scales, resize_type="Resize", keep_ratio=True)
    for seed in range(4):
        ours = apply(build("RandomChoiceResize", **options), make(3), seed)
        stocks = apply(build("mmcv.RandomChoiceResize", **options), make(3), seed)
        assert ours["img"].shape == stocks["img"].shape
        assert np.array_equal(ours["gt_seg_map"], stocks["gt_seg_map"])


def test_every_channel_is_filled() -> None:
    for name, options in {
        "Pad": dict(size=(80, 60), pad_val=114.0),
        "RandomRotate": dict(prob=1.0, degree=(45, 46), pad_val=114),
    }.items():
        after = apply(build(name, **options), make(2, 40, 70), 1)
        new = after["gt_seg_map"] == 255
        assert (np.median(after["img"][new], axis=0) == 114).all()


def test_labels_that_are_swapped_with_the_mirror_image() -> None:
    before = make(3)
    flip = build("RandomFlip", prob=1.0, swap_seg_labels=[(0, 5)])
    after = apply(flip, before, 0)
    mirrored = before["gt_seg_map"][:, ::-1]
    expected = np.where(mirrored == 0, 5, np.where(mirrored == 5, 0, mirrored))
    assert np.array_equal(after["gt_seg_map"], expected)


def test_holes_may_keep_their_labels() -> None:
    before = make(3)
    options = dict(prob=1.0, n_holes=1, cutout_ratio=(0.5, 0.5))
    kept = apply(build("RandomCutOut", **options, seg_fill_in=None), before, 0)
    assert np.array_equal(kept["gt_seg_map"], before["gt_seg_map"])
    assert (kept["img"] == 0).any()
    three = apply(build("RandomCutOut", **options, fill_in=(3, 3, 3)), make(3, channels=4), 0)
    assert (three["img"] == 3).any()
    with advises("datasets/transforms/geometry.py:_fill_of", "give one or as many") as told:
        apply(build("RandomCutOut", **options, fill_in=(1, 2, 3)), make(3, channels=4), 0)
    assert (told.value.code, told.value.subject) == ("config-value", "transform RandomCutOut")


def test_a_mosaic_of_samples_without_labels_is_an_error() -> None:
    mosaic = build("RandomMosaic", prob=1.0, img_scale=[40, 50])
    with raises_user_error("config-value", "transform RandomMosaic"):
        mosaic({**make(1), MIX: [{"img": photo(1)}] * 3})


def test_one_mosaic_of_four_sizes() -> None:
    """Each part lies in its own corner, in its own proportions."""
    samples = [make(seed, 40 + 7 * seed, 90 - 11 * seed) for seed in range(4)]
    for n, sample in enumerate(samples):
        sample["gt_seg_map"][:] = n
        sample["gt_second"][:] = n + 20
        sample["img"] = coded(sample["gt_seg_map"])
    np.random.seed(2)
    mosaic = build("RandomMosaic", prob=1.0, img_scale=(40, 50), center_ratio_range=(0.99, 1.01))
    after = mosaic({**copy.deepcopy(samples[0]), MIX: copy.deepcopy(samples[1:])})
    assert after["img"].shape == (80, 100, 3) and after["ori_shape"] == (80, 100)
    labels = after["gt_seg_map"]
    quarters = [
        half[:, side]
        for half in (labels[:40], labels[40:])
        for side in (slice(50), slice(50, None))
    ]
    for n, quarter in enumerate(quarters):
        assert set(np.unique(quarter[3:-3, 3:-3])) <= {n, 255}
        scale = min(40 / samples[n]["img"].shape[0], 50 / samples[n]["img"].shape[1])
        area = int(samples[n]["img"].shape[0] * scale) * int(samples[n]["img"].shape[1] * scale)
        assert abs((quarter == n).sum() - area) <= 100  # the point is up to a pixel off
    assert_labels_stay({**samples[0], "gt_seg_map": np.arange(4)}, after)


def test_edges_follow_the_labels() -> None:
    labels = np.zeros((20, 24), np.uint8)
    labels[:, 12:] = 1
    labels[:, 20:] = 255
    sample = dict(gt_seg_map=labels, img_shape=labels.shape, seg_fields=["gt_seg_map"])
    edges = build("GenerateEdge", edge_width=3)(sample)["gt_edge_map"]
    assert set(np.flatnonzero(edges.any(axis=0))) <= set(range(9, 15))
    assert edges[:, 11:13].all()


def test_depth_is_mixed_into_the_image_alone() -> None:
    before = {**make(3), "gt_depth_map": np.full((50, 64), 7.0)}
    after = apply(build("RandomDepthMix", prob=1.0), before, 0)
    assert np.array_equal(after["gt_seg_map"], before["gt_seg_map"])
    assert (after["img"] == 7).any()


def test_images_of_two_times_are_joined_and_move_together() -> None:
    before = make(3)
    before["img2"] = before["img"] + np.uint8(1)
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        steps = Compose([dict(type="ConcatCDInput"), dict(type="RandomRotFlip", rotate_prob=1.0)])
    after = apply(steps, before, 1)
    assert after["img"].shape[2] == 6
    assert_labels_stay(before, {**after, "img": after["img"][:, :, :3]})
