# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Scores of labels against a second implementation; planted errors: tests/test_benchmarks.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from user_errors import raises_user_error

from mmseg_resnest.datasets.scenes import draw_scene
from mmseg_resnest.evaluation.label_page import _local
from mmseg_resnest.evaluation.label_quality import (
    LabelEvidence,
    confident_thresholds,
    find_regions,
    gather,
)

CLASSES = 12


def random_scores(labels: NDArray, rng: np.random.Generator) -> NDArray:
    """Probabilities (C, H, W) that often give the label the highest one."""
    logits = 1.5 * rng.normal(size=(CLASSES, *labels.shape))
    logits += 3 * (np.arange(CLASSES)[:, None, None] == labels)
    chances = np.exp(logits)
    return (chances / chances.sum(0)).astype(np.float32)


def bands(scores: NDArray, rows: int = 0) -> list[tuple[int, NDArray]]:
    step = rows or scores.shape[1]
    return [(top, scores[:, top : top + step]) for top in range(0, scores.shape[1], step)]


def test_the_scores_of_an_image_are_those_of_the_paper(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = draw_scene(0, 1)[1].astype(np.int64)[::2, ::2] - 1
    labels[labels < 0] = 255
    labels[5:9] = 7  # ignored here
    scores = random_scores(labels, rng)
    found = gather(labels, bands(scores, 10), CLASSES, ignore_index=7)
    whole = gather(labels, bands(scores), CLASSES, ignore_index=7)

    kept = (labels < CLASSES) & (labels != 7)
    own = np.array([scores[k, y, x] for y, x in np.argwhere(kept) for k in [labels[y, x]]])
    weight = np.exp((1 - own.astype(np.float64)) / 0.1)
    assert found.quality == pytest.approx(float((own * weight).sum() / weight.sum()), rel=1e-6)
    assert found.quality == pytest.approx(whole.quality, rel=1e-9)
    limits = confident_thresholds(found.confidence, found.pixels)
    for k in range(CLASSES):
        mine = kept & (labels == k)
        if mine.any():
            assert limits[k] == pytest.approx(float(scores[k][mine].mean()), rel=1e-5)
        else:
            assert np.isnan(limits[k])

    found.save(tmp_path / "one.npz")
    again = LabelEvidence.load(tmp_path / "one.npz")
    regions, wrong = find_regions(again, limits)
    best = scores.argmax(0)
    expected = kept & (best != labels) & (scores.max(0) >= limits[best])
    marked = np.zeros(labels.shape, int)
    for region in regions:
        x, y, width, height = region.box
        part = marked[y : y + height, x : x + width]
        part[region.mask] += 1
        inside = labels[y : y + height, x : x + width][region.mask]
        assert (inside == region.given).all() and region.area == region.mask.sum() == len(inside)
        assert (best[y : y + height, x : x + width][region.mask] == region.predicted).all()
    # A probability is kept in 16 bits, so a pixel on its threshold may fall to either side.
    assert np.abs((marked == 1).astype(int) - expected).sum() <= 2 and marked.max() == 1
    assert wrong == (marked == 1).sum() > 20
    assert [r.score for r in regions] == sorted(r.score for r in regions)
    large = find_regions(again, limits, min_area=12)[0]
    assert [r.box for r in large] == [r.box for r in regions if r.area >= 12]

    nothing = gather(np.full((4, 6), 255), bands(scores[:, :4, :6]), CLASSES)
    assert np.isnan(nothing.quality) and find_regions(nothing, limits) == ([], 0)
    (tmp_path / "one.npz").write_bytes(b"PK")
    with raises_user_error("format", tmp_path / "one.npz"):
        LabelEvidence.load(tmp_path / "one.npz")


def test_a_thick_region_is_worse_than_a_thin_one_of_equal_pixels() -> None:
    labels = np.zeros((40, 40), np.int64)
    scores = np.full((3, 40, 40), 0.05, np.float32)
    scores[0] = 0.9
    for window in (np.s_[2:10, 2:10], np.s_[20:22, 2:34]):
        scores[(0, *window)], scores[(1, *window)] = 0.05, 0.9
    scores[0, 30, 30], scores[2, 30, 30] = 0.3, 0.65
    labels[35:] = 1
    scores[:, 35:] = np.array([0.2, 0.7, 0.1])[:, None, None]
    evidence = gather(labels, bands(scores), 3)
    limits = confident_thresholds(evidence.confidence, evidence.pixels)
    (thick, thin), wrong = find_regions(evidence, limits)  # class 2 is no label of any pixel
    assert (thick.area, thin.area, wrong) == (64, 64, 128)
    assert (thick.box, thin.box) == ((2, 2, 8, 8), (2, 20, 32, 2))
    ratio = np.log(0.9 / limits[1]) - np.log(0.05 / limits[0])
    assert thick.score == pytest.approx(1 / (1 + np.log(5) * ratio), rel=0.03)  # of a disc in it
    assert thin.score == pytest.approx(1 / (1 + np.log(2) * ratio), rel=1e-3)
    assert (thick.given, thick.predicted) == (0, 1)
    assert (thick.p_given, thick.p_predicted) == pytest.approx((0.05, 0.9), abs=1e-4)


def test_a_window_of_more_classes_than_an_overlay_has_colours() -> None:
    """The rarest have none; what is left keeps its own."""
    labels = np.repeat(np.arange(-1, 300), 2)[None, 3:]  # one pixel of class 0, two of others
    indices, colours = _local(labels, [[c % 256, c // 256, 0] for c in range(300)])
    assert len(colours) == 255 and indices[0, 0] == 255
    shown = indices[0] != 255
    assert [colours[i] for i in indices[0][shown]] == [
        [c % 256, c // 256, 0] for c in labels[0][shown]
    ]
