# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Palette images, overlays, legends and panels."""

import io

import numpy as np
import pytest
from PIL import Image
from user_errors import raises_user_error

from mmseg_resnest.evaluation import (
    default_palette,
    legend,
    overlay,
    palette_image,
    side_by_side,
)

PALETTE = [[200, 0, 0], [0, 180, 0], [0, 0, 160]]
CLASSES = ["red thing", "green thing", "blue thing"]


def blocks(height=40, width=60):
    """Left half class 0, right half class 2, with an ignored corner."""
    label = np.zeros((height, width), np.int64)
    label[:, width // 2 :] = 2
    label[:5, :5] = 255
    return label


def grey(height=40, width=60):
    return np.full((height, width, 3), 100, np.uint8)


def colours_of(picture):
    return {tuple(int(v) for v in colour) for colour in picture.reshape(-1, 3)}


def test_palette_image_reads_back_as_the_labels():
    label = blocks()
    file = io.BytesIO()
    palette_image(label, PALETTE).save(file, "PNG")
    image = Image.open(file)
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), label)
    rgb = np.asarray(image.convert("RGB"))
    assert rgb[20, 10].tolist() == PALETTE[0]
    assert rgb[20, 50].tolist() == PALETTE[2]
    assert rgb[0, 0].tolist() == [0, 0, 0]  # ignored


def test_default_palette_tells_classes_apart():
    colours = np.array(default_palette(150), float)
    assert colours.shape == (150, 3)
    assert colours.min() >= 0 and colours.max() <= 255
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert distance.min() > 3  # no two alike
    assert distance[:20, :20].min() > 30  # and a usual number of them far apart
    assert default_palette(20) == default_palette(150)[:20]


def test_overlay_mixes_inside_and_marks_borders():
    label = blocks()
    picture = overlay(grey(), label, PALETTE, opacity=0.25)
    assert picture.dtype == np.uint8 and picture.shape == (40, 60, 3)
    assert picture[20, 10].tolist() == [125, 75, 75]  # 0.75 * 100 + 0.25 * colour
    assert picture[20, 50].tolist() == [75, 75, 115]
    assert picture[2, 2].tolist() == [100, 100, 100]  # ignored: the image itself
    border = picture[20, 29].astype(int)  # last column of class 0
    assert (border > picture[20, 28]).all()  # whitened
    different = (picture != picture[20, 10]).any(-1)[20, :30]
    assert different.sum() == 1  # thin: one pixel


def test_overlay_extremes():
    label = blocks()
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert np.array_equal(overlay(image, label, PALETTE, opacity=0), image)
    solid = overlay(image, label, PALETTE, opacity=1)
    assert solid[20, 10].tolist() == PALETTE[0]
    assert solid[2, 2].tolist() == [0, 0, 0]


def test_legend_shows_the_classes_present():
    picture = legend(CLASSES, PALETTE, present=[2, 0, 255], width=600)
    assert picture.shape[1] == 600
    colours = colours_of(picture)
    assert {(200, 0, 0), (0, 0, 160), (0, 0, 0)} <= colours
    assert (0, 180, 0) not in colours
    assert (picture < 90).all(-1).any()  # text
    assert (0, 180, 0) in colours_of(legend(CLASSES, PALETTE))


def test_legend_wraps_and_shortens():
    names = [f"a rather long class name, number {i}" for i in range(30)]
    wide = legend(names, default_palette(30), width=2000)
    narrow = legend(names, default_palette(30), width=300)
    tiny = legend(names, default_palette(30), width=60)
    assert wide.shape[0] < narrow.shape[0] == tiny.shape[0]
    # Nothing runs over the right edge: the last columns stay white.
    for picture in (wide, narrow, tiny):
        assert (picture[:, -2:] == 255).all()
    assert legend(names, default_palette(30), present=[]).shape[1] == 640


def test_side_by_side():
    truth, prediction = blocks(300, 400), np.full((300, 400), 1)
    image = np.full((300, 400, 3), 240, np.uint8)
    figure = side_by_side(image, truth, prediction, PALETTE, CLASSES, opacity=1)
    height, width = figure.shape[:2]
    assert 3 * 400 < width < 3 * 400 + 100
    assert 300 < height < 450
    assert (figure[0] == 255).all() and (figure[:, 0] == 255).all()
    third = width // 3
    # Left the image, in the middle the label, right the prediction; below, all their classes.
    assert (figure[150, third // 2] == 240).all()
    assert figure[150, third + 100].tolist() == PALETTE[0]
    assert figure[150, 2 * third - 100].tolist() == PALETTE[2]
    assert figure[150, 2 * third + 200].tolist() == PALETTE[1]
    below = colours_of(figure[-40:])
    assert {(200, 0, 0), (0, 180, 0), (0, 0, 160), (0, 0, 0)} <= below

    without = side_by_side(image, None, prediction, PALETTE, CLASSES)
    assert 2 * 400 < without.shape[1] < 2 * 400 + 100


@pytest.mark.parametrize(("shape", "expected"), [((12, 16), 360), ((512, 1024), 720)])
def test_side_by_side_brings_images_to_a_readable_size(shape, expected):
    label = np.zeros(shape, int)
    figure = side_by_side(np.zeros((*shape, 3), np.uint8), label, label, PALETTE, CLASSES)
    assert 3 * expected < figure.shape[1] < 3 * expected + 100


@pytest.mark.parametrize(
    ("call", "code", "subject"),
    [
        (lambda: palette_image(np.array([[0, 3]]), PALETTE), "label", "the label map"),
        (lambda: palette_image(np.array([[0, -1]]), PALETTE), "label", "the label map"),
        (lambda: palette_image(np.zeros((2, 2, 2)), PALETTE), "size-mismatch", "the label map"),
        (lambda: palette_image(blocks(), default_palette(256)), "classes", "the palette"),
        (lambda: overlay(grey(), blocks(20, 60), PALETTE), "size-mismatch", "the label map"),
        (lambda: overlay(grey(), blocks(), PALETTE, opacity=2), "argument", "opacity"),
        (lambda: overlay(grey() / 255, blocks(), PALETTE), "image", "the image"),
        (lambda: legend(CLASSES, PALETTE[:2]), "classes", "the palette"),
        (lambda: legend(CLASSES, PALETTE, present=[3]), "classes", "class 3"),
        (
            lambda: side_by_side(grey(), blocks(), blocks(10, 60), PALETTE, CLASSES),
            "size-mismatch",
            "the prediction",
        ),
        (
            lambda: side_by_side(grey(), blocks(10, 60), blocks(), PALETTE, CLASSES),
            "size-mismatch",
            "the label",
        ),
    ],
)
def test_mistakes(call, code, subject):
    with raises_user_error(code, subject):
        call()
