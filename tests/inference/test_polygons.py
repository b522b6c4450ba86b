# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Outlines of label maps: COCO's own tools fill them and get the label map back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from outlines import rasterize
from scipy import ndimage

from mmseg_resnest.inference import coco_json, geojson, region_polygons
from mmseg_resnest.inference.polygons import mask_polygons

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
    for region in regions:
        for ring in (region.outer, *region.holes):
            steps = np.roll(ring, -1, axis=0) - ring
            assert ((steps == 0).sum(axis=1) == 1).all()  # along the edges of pixels

    text = json.loads(json.dumps(geojson(regions, NAMES)))
    features = [(f["properties"]["class"], f["geometry"]["coordinates"]) for f in text["features"]]
    np.testing.assert_array_equal(rasterize(features, *labels.shape), labels)

    coco = json.loads(json.dumps(coco_json({"x.png": (regions, labels.shape)}, NAMES)))
    joined = [(a["category_id"] - 1, a["segmentation"]) for a in coco["annotations"]]
    assert all(len(rings) == 1 for _, rings in joined)
    np.testing.assert_array_equal(rasterize(joined, *labels.shape), labels)


@given(MAPS)
def test_any_small_map_comes_back(labels: NDArray[np.uint8]) -> None:
    check(labels)


@pytest.mark.parametrize("seed", [0, 1])
def test_holes_in_holes_and_long_outlines(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(size=(60, 75))
    smooth = ndimage.gaussian_filter(noise, 1.5 + seed)
    check(np.digitize(smooth, np.quantile(smooth, [0.3, 0.6, 0.8])).astype(np.uint8))


def test_masks_that_overlap_come_back() -> None:
    masks = np.random.default_rng(0).random((3, 12, 14)) < np.array([0.0, 0.4, 0.7])[:, None, None]
    features = geojson(mask_polygons(iter(masks)), NAMES)["features"]
    for c, mask in enumerate(masks):
        own = [f["geometry"]["coordinates"] for f in features if f["properties"]["class"] == c]
        filled = rasterize([(1, rings) for rings in own], 12, 14, fill=0)
        np.testing.assert_array_equal(filled == 1, mask)


def test_rings_in_rings() -> None:
    labels = np.zeros((15, 15), np.uint8)
    for i in range(7):
        labels[i : 15 - i, i : 15 - i] = i % 2
    check(labels)
    assert [len(r.holes) for r in region_polygons(labels)] == [1, 1, 1, 1, 1, 1, 0]
