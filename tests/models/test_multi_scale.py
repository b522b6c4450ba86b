# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The published multi-scale evaluation against a plain reference and the published outputs."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmseg.structures import SegDataSample
from tiny_models import (
    MEAN,
    STD,
    batch_of,
    build,
    metas_of,
    relative_error,
    seeded_images,
    tiny_config,
)
from torch import nn
from user_errors import raises_user_error

import mmseg_resnest
from mmseg_resnest.models.multi_scale import (
    MultiScaleGrid,
    MultiScaleGridTTA,
    add_multi_scale_scores,
    window_logits,
)
from mmseg_resnest.weights import convert_state_dict

BLACK = -torch.tensor(MEAN, dtype=torch.float64) / torch.tensor(STD, dtype=torch.float64)


class TinyNet(nn.Module):
    """A random net of output stride 8 with logits at its input's size; not mirror symmetric."""

    def __init__(self, classes=3, seed=0, dtype=torch.float64, full_size=True):
        super().__init__()
        self.full_size = full_size
        generator = torch.Generator().manual_seed(seed)
        shapes = [(4, 3, 3, 3), (4, 4, 3, 3), (classes, 4, 3, 3)]
        self.weights = [
            (torch.randn(shape, generator=generator, dtype=torch.float64) / 3).to(dtype)
            for shape in shapes
        ]
        self.batches = []

    def forward(self, images):
        self.batches.append(len(images))
        features = images
        for weight in self.weights:
            features = torch.tanh(F.conv2d(features, weight, stride=2, padding=1))
        if not self.full_size:
            return features
        return F.interpolate(features, images.shape[2:], mode="bilinear", align_corners=True)


# The reference: the text of the protocol, line by line, with whole maps.


def black_canvas(image, height, width):
    canvas = BLACK.to(image)[None, :, None, None].repeat(1, 1, height, width)
    canvas[:, :, : image.shape[2], : image.shape[3]] = image
    return canvas


def reference_run(net, image, flip):
    logits = net(image)
    if flip:
        logits = logits + torch.flip(net(torch.flip(image, [3])), [3])
    return torch.exp(logits)


def reference_scores(net, image, scales, flip, base_size, crop_size):
    """Summed scores (1, C, H, W) of one normalised image (1, 3, H, W)."""
    h, w = image.shape[2:]
    stride = int(crop_size * (2.0 / 3.0))
    total = 0
    for scale in scales:
        long_size = math.ceil(base_size * scale)
        if h > w:
            height, width = long_size, int(1.0 * w * long_size / h + 0.5)
            short_size = width
        else:
            height, width = int(1.0 * h * long_size / w + 0.5), long_size
            short_size = height
        resized = F.interpolate(image, (height, width), mode="bilinear", align_corners=True)
        if long_size <= crop_size:
            canvas = black_canvas(resized, crop_size, crop_size)
            result = reference_run(net, canvas, flip)[:, :, :height, :width]
        else:
            if short_size < crop_size:
                canvas = black_canvas(resized, max(height, crop_size), max(width, crop_size))
            else:
                canvas = resized
            canvas_h, canvas_w = canvas.shape[2:]
            h_grids = math.ceil((canvas_h - crop_size) / stride) + 1
            w_grids = math.ceil((canvas_w - crop_size) / stride) + 1
            sums, hits = 0, torch.zeros(1, 1, canvas_h, canvas_w, dtype=image.dtype)
            for i in range(h_grids):
                for j in range(w_grids):
                    top, left = i * stride, j * stride
                    bottom, right = min(top + crop_size, canvas_h), min(left + crop_size, canvas_w)
                    window = black_canvas(
                        canvas[:, :, top:bottom, left:right], crop_size, crop_size
                    )
                    score = reference_run(net, window, flip)
                    score = score[:, :, : bottom - top, : right - left]
                    sums = sums + F.pad(score, (left, canvas_w - right, top, canvas_h - bottom))
                    hits[:, :, top:bottom, left:right] += 1
            assert hits.min() >= 1
            result = (sums / hits)[:, :, :height, :width]
        total = total + F.interpolate(result, (h, w), mode="bilinear", align_corners=True)
    return total


def our_scores(net, image, classes=3, **kwargs):
    scores = torch.zeros(classes, *image.shape[2:], dtype=image.dtype)
    black = BLACK.to(image)[:, None, None]
    add_multi_scale_scores(scores, image[0], net, MultiScaleGrid(**kwargs), black)
    return scores[None]


@st.composite
def base_and_crop(draw):
    """Sizes that make a handful of windows an edge, not thousands."""
    crop_size = draw(st.integers(2, 30))
    return draw(st.integers(max(crop_size // 2, 2), 3 * crop_size // 2)), crop_size


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(3, 48), st.integers(3, 48)),
    scales=st.lists(st.floats(0.3, 2.5), min_size=1, max_size=3),
    base_and_crop=base_and_crop(),
    flip=st.booleans(),
    window_batch_size=st.integers(1, 7),
)
# long edge equal to the crop, then one pixel longer
@example((20, 30), [1.0], (24, 24), True, 1)
@example((20, 30), [1.0], (25, 24), True, 1)
# short edge below the crop: portrait, landscape
@example((40, 11), [1.0, 1.5], (40, 24), True, 2)
@example((11, 40), [1.0, 1.5], (40, 24), True, 2)
# a last window of which one new row is in the image: crop 24, stride 16, 24 + 16 + 1 rows
@example((41, 41), [1.0], (41, 24), True, 3)
# windows that reach the border exactly: 24 + 16
@example((40, 40), [1.0], (40, 24), True, 3)
# an image that is reduced, and one whose size stays
@example((48, 47), [0.5], (24, 12), False, 4)
@example((33, 33), [1.0], (33, 12), True, 100)
def test_equals_the_plain_reference(size, scales, base_and_crop, flip, window_batch_size):
    base_size, crop_size = base_and_crop
    image = seeded_images(1, *size, dtype=torch.float64)
    # strips that the published code cannot score are tested below
    if int(min(size) * math.ceil(base_size * min(scales)) / max(size) + 0.5) == 0:
        return
    net = TinyNet()
    expected = reference_scores(net, image, scales, flip, base_size, crop_size)
    ours = our_scores(
        net, image, scales=tuple(scales), flip=flip, base_size=base_size, crop_size=crop_size,
        window_batch_size=window_batch_size,
    )  # fmt: skip
    assert relative_error(ours, expected) < 1e-12


@pytest.mark.parametrize("size", [(97, 151), (210, 83)])
def test_equals_the_plain_reference_in_float32(size, monkeypatch):
    # Bands of several pieces and pieces of several result bands: 3 classes in 16 MiB have one.
    monkeypatch.setattr("mmseg_resnest.models.multi_scale._RESIZE_BYTES", 20_000)
    image = seeded_images(1, *size)
    net = TinyNet(dtype=torch.float32)
    kwargs = {"scales": (0.5, 1.0, 1.7, 2.3), "flip": True, "base_size": 130, "crop_size": 60}
    expected = reference_scores(net, image, **kwargs)
    assert relative_error(our_scores(net, image, **kwargs), expected) < 1e-6


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(3, 48), st.integers(3, 48)),
    base_and_crop=base_and_crop(),
    window_batch_size=st.integers(1, 7),
    align_corners=st.booleans(),
)
def test_logits_at_the_heads_resolution(size, base_and_crop, window_batch_size, align_corners):
    """Summed before they are resized, and resized where the image is: the same scores."""
    base_size, crop_size = base_and_crop
    image = seeded_images(1, *size, dtype=torch.float64)
    low = TinyNet(full_size=False)

    def full(images):
        mode = {"mode": "bilinear", "align_corners": align_corners}
        return F.interpolate(low(images), images.shape[2:], **mode)

    scales = (1.0, 1.7)
    grid = MultiScaleGrid(scales, True, base_size, crop_size, window_batch_size)
    black = BLACK.to(image)[:, None, None]
    expected, ours = (torch.zeros(3, *size, dtype=torch.float64) for _ in range(2))
    add_multi_scale_scores(expected, image[0], full, grid, black)
    add_multi_scale_scores(ours, image[0], low, grid, black, align_corners)
    assert relative_error(ours, expected) < 1e-12


def test_a_strip_too_thin_for_the_scale_is_scored_one_pixel_wide():
    image = seeded_images(1, 1, 900, dtype=torch.float64)
    ours = our_scores(TinyNet(), image, scales=(0.5,), base_size=100, crop_size=24)
    assert ours.shape == (1, 3, 1, 900)
    assert torch.isfinite(ours).all()
    assert (ours > 0).all()


def test_windows_of_one_scale_run_as_batches():
    image = seeded_images(1, 40, 40, dtype=torch.float64)
    kwargs = {"scales": (1.0, 0.5), "base_size": 40, "crop_size": 16, "flip": False}
    # 40 pixels in windows of 16 every 10: 4 by 4 windows; 20 pixels: 2 by 2.
    for size, expected in [(1, [1] * 20), (6, [6, 6, 4, 4]), (100, [16, 4])]:
        net = TinyNet()
        our_scores(net, image, window_batch_size=size, **kwargs)
        assert net.batches == expected


def test_half_precision_logits_do_not_overflow():
    def net(images):
        return torch.full((1, 2, *images.shape[2:]), 9.0, dtype=torch.float16)

    scores = window_logits(net, seeded_images(1, 4, 4, dtype=torch.float64), flip=True).exp()
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, torch.tensor(18.0).exp())


def test_overflow_is_reported(monkeypatch):
    messages = []
    monkeypatch.setattr(
        "mmseg_resnest.models.multi_scale.print_log", lambda message, **_: messages.append(message)
    )
    image = seeded_images(1, 9, 9)
    for logit, count in [(40.0, 0), (60.0, 1)]:

        def net(images, logit=logit):
            return torch.full((len(images), 3, *images.shape[2:]), logit)

        our_scores(net, image, scales=(1.0,), base_size=9, crop_size=9)
        assert len(messages) == count
    assert "overflowed" in messages[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scales", ()), ("scales", 1.0), ("scales", (1.0, 0.0)), ("scales", (float("nan"),)),
        ("scales", "0.5"), ("scales", (True,)), ("flip", 1), ("base_size", 0),
        ("base_size", 520.0), ("crop_size", 0), ("crop_size", 1), ("crop_size", (480, 480)),
        ("window_batch_size", 0), ("window_batch_size", True), ("crop", 480), ("stride", 320),
    ],
)  # fmt: skip
def test_bad_settings_name_their_key(key, value):
    code = "config-key" if key in ("crop", "stride") else "config-value"
    with raises_user_error(code, f"model.test_cfg.{key}"):
        MultiScaleGrid.from_config({"mode": "multi_scale_grid", key: value}, "model.test_cfg")


def test_published_defaults():
    options = MultiScaleGrid.from_config({}, "model.test_cfg")
    assert options.scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert (options.base_size, options.crop_size, options.stride) == (520, 480, 320)
    assert options.flip is True
    assert options.scaled_size(375, 500, 0.5) == (195, 260)
    assert options.scaled_size(500, 333, 1.25) == (650, 433)


PEAK_SCRIPT = """
import resource, torch
from mmseg_resnest.models.multi_scale import MultiScaleGrid, add_multi_scale_scores

torch.set_num_threads(1)
CLASSES, SIZE = 40, 512
image = torch.randn(3, SIZE, SIZE)
weight = torch.randn(CLASSES, 3, 8, 8) / 14

def net(windows):
    logits = torch.nn.functional.conv2d(windows, weight, stride=8)
    return torch.nn.functional.interpolate(
        logits, windows.shape[2:], mode="bilinear", align_corners=True)

def peak(scales):
    scores = torch.zeros(CLASSES, SIZE, SIZE)
    settings = MultiScaleGrid(scales=scales, base_size=320, crop_size=120)
    add_multi_scale_scores(scores, image, net, settings, torch.zeros(3, 1, 1))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

net(image[None, :, :120, :120])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(CLASSES * SIZE * SIZE * 4, before, peak((1.75,)), peak((0.5, 0.75, 1.0, 1.25, 1.5, 1.75)))
"""


@pytest.mark.long
def test_peak_memory_does_not_grow_with_the_number_of_scales():
    """High-water marks of one process: with the largest scale alone, then with six."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PEAK_SCRIPT],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(mmseg_resnest.__file__).parents[1],
        # glibc else keeps freed blocks of some MiB to itself: noise in the process's size
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one_map, before, one_scale, six_scales = map(int, done.stdout.split()[-4:])
    # A map is 40 MiB. Five more of them, or of their scaled maps, would be seen.
    assert six_scales - one_scale < one_map / 3
    # The image's scores, a band of 120 of 560 rows, one window, some rows being resized. With a
    # whole map of the scale, its average and its resized copy it would be 4.4 maps.
    assert one_scale - before < 3 * one_map


# The model of a config, and the published code's output


PROTOCOL = {"scales": (0.5, 1.0, 1.5), "flip": True, "base_size": 40, "crop_size": 24}
TTA = {"type": "MultiScaleGridTTA", **PROTOCOL, "window_batch_size": 3}


def test_tta_model_gives_the_published_scores_and_labels():
    tta = build({**TTA, "module": tiny_config({"mode": "whole"})})
    assert isinstance(tta, MultiScaleGridTTA)
    batch = batch_of(37, 53)
    (result,) = tta.test_step(batch)

    def net(images):
        logits = tta.module.decode_head(tta.module.extract_feat(images))
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=True)

    inputs = tta.module.data_preprocessor(batch)["inputs"]
    with torch.no_grad():
        expected = reference_scores(net, inputs, **PROTOCOL)
    assert relative_error(result.seg_logits.data[None], expected) < 1e-5
    assert torch.equal(result.pred_sem_seg.data, expected.argmax(1))


def test_tta_model_refuses_what_it_cannot_run():
    stock = tiny_config({"mode": "whole"}, type="mmseg.EncoderDecoder")
    for change, code, subject in (
        ({"crop_size": 0}, "config-value", "tta_model.crop_size"),
        ({"scale": 1}, "config-key", "tta_model.scale"),
        ({"module": stock}, "config-value", "model.type"),
    ):
        with raises_user_error(code, subject):
            build({**TTA, "module": tiny_config(), **change})
    tta = build({**TTA, "module": tiny_config()})
    with raises_user_error("config-value", "tta_pipeline"):
        tta.test_step({key: [value, value] for key, value in batch_of().items()})
    sample = SegDataSample()
    assert tta.merge_preds([[sample]]) == [sample]
    with raises_user_error("config-value", "tta_pipeline"):
        tta.merge_preds([[sample, sample]])


GOLDEN_HEADS = {
    "fcn": {
        "type": "PublishedFCNHead",
        "channels": 512,
        "num_convs": 1,
        "concat_input": False,
        "dropout_ratio": 0.1,
    },
    "deeplab": {"type": "DeepLabV3Head", "channels": 256},
}


@pytest.mark.parametrize(
    ("name", "window_batch_size"),
    [
        pytest.param("multiscale_fcn_resnest50_voc", 4, marks=pytest.mark.long),
        ("multiscale_deeplab_resnest50_citys", 1),
    ],
)
def test_golden_multi_scale(name, window_batch_size, golden):
    """Equal to the published code: 1e-5 of the largest score, every label the same."""
    weights, image, outputs = golden.load_case(name)
    case = ConfigDict(golden.manifest[name])
    common = {"num_classes": case.num_classes, "norm_cfg": {"type": "SyncBN"}}
    head = {**GOLDEN_HEADS[case.head], "in_channels": 2048, "in_index": 3, **common}
    auxiliary = {**GOLDEN_HEADS["fcn"], "channels": 256, "in_channels": 1024, "in_index": 2}
    test_cfg = {key: case[key] for key in ("scales", "flip", "base_size", "crop_size")}
    test_cfg |= {"mode": "multi_scale_grid", "window_batch_size": window_batch_size}
    model = build(
        tiny_config(
            test_cfg,
            backbone={"type": "ResNeSt", "arch": case.arch, "output_stride": 8},
            decode_head={**head, "align_corners": True},
            auxiliary_head={**auxiliary, **common, "align_corners": True},
        )
    )
    weights = {key: torch.from_numpy(np.asarray(value)) for key, value in weights.items()}
    missing, unexpected = model.load_state_dict(convert_state_dict(weights), strict=False)
    assert not unexpected
    assert not [key for key in missing if not key.startswith("auxiliary_head.")]
    images = torch.from_numpy(image)
    (scores,) = model.inference(images, metas_of(images))
    step = max(case.num_classes // 16, 1)
    expected = torch.from_numpy(outputs["scores"])
    assert relative_error(scores[None, ::step, ::3, ::3][:, : expected.shape[1]], expected) <= 1e-5
    labels = scores.argmax(0).numpy()
    assert np.array_equal(labels, outputs["labels"].reshape(labels.shape))
