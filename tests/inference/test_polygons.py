# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Outlines of label maps: exact, whole, and the same in every format."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from mmseg_resnest.inference import coco_json, geojson, polygons, rasterize, region_polygons

MAPS = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2))
NAMES = ["a", "b", "c", "d"]


def check(labels: NDArray[np.uint8]) -> None:
    regions = region_polygons(labels)
    # scipy finds as many regions, of the same sizes
    expected = []
    for value in np.unique(labels):
        parts, number = ndimage.label(labels == value)
        expected += [(int(value), int(n)) for n in np.bincount(parts.reshape(-1))[1 : number + 1]]
    assert sorted((r.label, r.area) for r in regions) == sorted(expected)

    text = json.loads(json.dumps(geojson(regions, NAMES)))
    features = [(f["properties"]["class"], f["geometry"]["coordinates"]) for f in text["features"]]
    assert np.array_equal(rasterize(features, *labels.shape), labels)

    coco = json.loads(json.dumps(coco_json({"x.png": (regions, labels.shape)}, NAMES)))
    flat = [
        (a["category_id"] - 1, [np.reshape(s, (-1, 2)).tolist() for s in a["segmentation"]])
        for a in coco["annotations"]
    ]
    assert all(len(rings) == 1 for _, rings in flat)
    assert np.array_equal(rasterize(flat, *labels.shape), labels)


@settings(deadline=None, max_examples=150)
@given(MAPS)
def test_any_small_map_comes_back(labels: NDArray[np.uint8]) -> None:
    check(labels)


@pytest.mark.parametrize("seed", [0, 1])
def test_holes_in_holes_and_long_outlines(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(size=(60, 75))
    smooth = ndimage.gaussian_filter(noise, 1.5 + seed)
    check(np.digitize(smooth, np.quantile(smooth, [0.3, 0.6, 0.8])).astype(np.uint8))


def test_rings_in_rings() -> None:
    labels = np.zeros((15, 15), np.uint8)
    for i in range(7):
        labels[i : 15 - i, i : 15 - i] = i % 2
    check(labels)
    assert [len(r.holes) for r in region_polygons(labels)] == [1, 1, 1, 1, 1, 1, 0]


def test_bands_of_rows_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (37, 20), np.uint8)
    whole = geojson(region_polygons(labels), NAMES)
    monkeypatch.setattr(polygons, "_ROWS", 5)
    assert geojson(region_polygons(labels), NAMES) == whole


def test_other_people_s_fill_agrees() -> None:
    """Pillow fills the enlarged outline; at odd places its pixels are the centres of ours."""
    labels = np.zeros((12, 16), np.uint8)
    cv2.circle(labels, (7, 6), 5, 1, -1)
    outer = next(r for r in region_polygons(labels) if r.label == 1).outer
    canvas = Image.new("L", (64, 48))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in (outer * 4).tolist()], fill=1)
    assert np.array_equal(np.asarray(canvas)[2::4, 2::4], labels)
