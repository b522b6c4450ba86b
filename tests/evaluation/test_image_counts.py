# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Counts of images: the interval of mIoU, and runs compared, against plain loops."""

import json
import math
import random
import statistics
import zipfile

import numpy as np
import pytest
from user_errors import raises_user_error

from mmseg_resnest.evaluation.compare import _holm, compare_counts, comparison_table
from mmseg_resnest.evaluation.image_counts import (
    ImageCounts,
    bootstrap_interval,
    image_mean_iou,
)

CLASSES = ["road", "sky", "car", "cat"]


def make(seed=0, images=30, right=0.7, classes=4):
    """Labels depend on the image alone, predictions on the seed too; class 3 is nowhere."""
    counts = np.zeros((3, images, classes), np.int64)
    for i in range(images):
        labels = np.random.default_rng(i).integers(0, classes - 1, 200)
        dice = np.random.default_rng([i, seed])
        pred = np.where(dice.random(200) < right, labels, dice.integers(0, classes - 1, 200))
        for k in range(classes):
            counts[0, i, k] = ((labels == k) & (pred == k)).sum()
            counts[1, i, k] = (labels == k).sum()
            counts[2, i, k] = (pred == k).sum()
    names = [f"val/{i:03d}.png" for i in range(images)]
    return ImageCounts(names, CLASSES[:classes], *counts)


def slow_miou(counts, chosen):
    """mIoU of a list of images, in plain Python."""
    scores = []
    for k in range(len(counts.classes)):
        both = sum(int(counts.intersection[i, k]) for i in chosen)
        union = sum(int(counts.label[i, k] + counts.predicted[i, k]) for i in chosen) - both
        if union:
            scores.append(both / union)
    return statistics.fmean(scores)


def test_scores_of_draws():
    counts = make()
    chosen = random.Random(0).choices(range(30), k=30)
    weights = np.array([[chosen.count(i) for i in range(30)]], float)
    iou = counts.iou(weights)[0]
    assert math.isnan(iou[3])
    assert np.nanmean(iou) == pytest.approx(slow_miou(counts, chosen), rel=1e-14)


def test_interval_is_that_of_a_plain_bootstrap():
    counts = make()
    low, high = bootstrap_interval(counts, draws=1500)
    dice = random.Random(5)
    plain = sorted(slow_miou(counts, dice.choices(range(30), k=30)) for _ in range(1500))
    width = high - low
    assert low == pytest.approx(plain[37], abs=0.1 * width)
    assert high == pytest.approx(plain[1462], abs=0.1 * width)
    assert low < slow_miou(counts, range(30)) < high
    assert bootstrap_interval(counts, draws=1500) == (low, high)  # the seed decides


def test_mean_over_images():
    counts = make(images=6)
    assert image_mean_iou(counts) == pytest.approx(
        statistics.fmean(slow_miou(counts, [i]) for i in range(6)), rel=1e-14
    )
    counts.label[2], counts.predicted[2], counts.intersection[2] = 0, 0, 0  # all ignored
    assert image_mean_iou(counts) == pytest.approx(
        statistics.fmean(slow_miou(counts, [i]) for i in (0, 1, 3, 4, 5)), rel=1e-14
    )


def test_file_reads_back(tmp_path):
    counts = make()
    counts.save(tmp_path / "new" / "images.npz")
    for place in (tmp_path / "new", tmp_path / "new" / "images.npz"):
        again = ImageCounts.load(place)
        assert (again.images, again.classes) == (counts.images, counts.classes)
        np.testing.assert_array_equal(again.intersection, counts.intersection)
        np.testing.assert_array_equal(again.predicted, counts.predicted)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["images.npz"]


def test_an_evaluation_of_another_run_is_not_that_of_a_folder(tmp_path):
    make().save(tmp_path / "test" / "images.npz")
    for place, run in ((tmp_path, "a" * 32), (tmp_path / "test", "b" * 32)):
        (place / "results.json").write_text(json.dumps({"run_id": run}))
    with raises_user_error("run", tmp_path / "test"):
        ImageCounts.load(tmp_path)
    ImageCounts.load(tmp_path / "test")  # named itself
    (tmp_path / "test" / "results.json").write_text(json.dumps({"run_id": "a" * 32}))
    ImageCounts.load(tmp_path)


def test_files_that_are_none(tmp_path):
    with raises_user_error("not-found", "images.npz"):
        ImageCounts.load(tmp_path)
    (tmp_path / "images.npz").write_bytes(b"no zip")
    with raises_user_error("format", ".npz"):
        ImageCounts.load(tmp_path)
    (tmp_path / "images.npz").write_bytes(b"")
    with raises_user_error("format", ".npz"):
        ImageCounts.load(tmp_path)
    with zipfile.ZipFile(tmp_path / "images.npz", "w"):
        pass
    with raises_user_error("format", ".npz"):
        ImageCounts.load(tmp_path)


def test_equal_runs_do_not_differ():
    rows = compare_counts(make(), make(), draws=200)
    assert rows[0].name == "mIoU"
    assert [row.name for row in rows[1:]] == CLASSES
    for row in rows[:4]:
        assert row.difference == row.low == row.high == 0
        assert row.p == row.adjusted == 1.0
    assert math.isnan(rows[4].p)
    assert "*" not in comparison_table(rows)


def test_a_better_run_is_told_from_a_lucky_one():
    base = make(seed=1)
    better = compare_counts(base, make(seed=2, right=0.8), draws=1000)
    assert better[0].p == pytest.approx(2 / 1001)
    assert better[0].low > 0
    assert better[0].b == pytest.approx(100 * slow_miou(make(seed=2, right=0.8), range(30)))
    assert "*" in comparison_table(better)
    lucky = compare_counts(base, make(seed=3), draws=1000)
    assert lucky[0].p > 0.05
    assert lucky[0].low < 0 < lucky[0].high


def test_p_values_are_those_of_plain_paired_draws():
    a, b = make(seed=1), make(seed=4, right=0.72)
    rows = compare_counts(a, b, draws=2000)
    dice = random.Random(9)
    below = 0
    for _ in range(1000):
        chosen = dice.choices(range(30), k=30)
        below += slow_miou(b, chosen) <= slow_miou(a, chosen)
    plain = 2 * min(below, 1000 - below) / 1000
    assert rows[0].p == pytest.approx(plain, abs=0.06)


def test_holm_on_a_worked_example():
    # Holm (1979): ordered p times 4, 3, 2, 1, never falling.
    got = _holm(np.array([0.01, 0.04, np.nan, 0.03, 0.005]))
    np.testing.assert_allclose(got, [0.03, 0.06, np.nan, 0.06, 0.02])


def test_runs_that_cannot_be_compared():
    a = make()
    with raises_user_error("dataset", "the runs"):
        compare_counts(a, make(images=29))
    with raises_user_error("classes", "the runs"):
        compare_counts(a, make(classes=3))
    turned = ImageCounts(
        [f"elsewhere/{name}" for name in a.images[::-1]],
        CLASSES, a.intersection[::-1], a.label[::-1], a.predicted[::-1],
    )  # fmt: skip
    assert repr(compare_counts(a, turned, 200)) == repr(compare_counts(a, a, 200))
    b = make()
    b.label[3, 0] += 1
    with raises_user_error("dataset", "val/003.png"):
        compare_counts(a, b)
