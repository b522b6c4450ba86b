# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Scores of classes that overlap, against sorting and counting pixel by pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from user_errors import raises_user_error

from mmseg_resnest.evaluation import MultilabelMetric, average_precision, class_table, write_result
from mmseg_resnest.evaluation.results_file import read_results_file

NAMES = ["a", "b", "c"]


def sorted_precision(chances: NDArray[Any], truth: NDArray[np.bool_]) -> float:
    """Average precision as its definition says: all equal scores are one threshold."""
    total, before, area = truth.sum(), 0.0, 0.0
    for limit in sorted(set(chances.tolist()), reverse=True):
        chosen = chances >= limit
        recall = (truth & chosen).sum() / total
        area += (recall - before) * (truth & chosen).sum() / chosen.sum()
        before = recall
    return float(area)


def make(seed: int, height: int, width: int, bins: int = 64) -> dict[str, Any]:
    """A sample whose probabilities are borders of bins."""
    rng = np.random.default_rng(seed)
    chances = rng.integers(0, bins, (3, height, width)) / bins
    labels = rng.integers(0, 2, (3, height, width)).astype(np.uint8)
    labels[2] = 0  # never labelled
    labels[:, rng.random((height, width)) < 0.2] = 255
    masks = (chances > 0.5).astype(np.uint8)
    data = dict(pred_sem_seg=masks, gt_sem_seg=labels, seg_logits=chances.astype(np.float32))
    found: dict[str, Any] = {k: dict(data=torch.from_numpy(v)) for k, v in data.items()}
    return dict(found, img_path=f"{seed}.png")


def metric(samples: list[dict[str, Any]], **options: Any) -> MultilabelMetric:
    found = MultilabelMetric(**options)
    found.dataset_meta = dict(classes=NAMES)
    for sample in samples:
        found.process(None, [sample])
    return found


def planes(samples: list[dict[str, Any]], key: str, c: int) -> NDArray[Any]:
    return np.concatenate([s[key]["data"][c].numpy().reshape(-1) for s in samples])


@given(st.integers(0, 2**32 - 4), st.integers(2, 6), st.integers(2, 6))
@settings(max_examples=15, deadline=None)
def test_scores_are_those_of_counting(seed: int, height: int, width: int) -> None:
    samples = [make(seed + i, height, width + i) for i in range(3)]
    counted = metric(samples, bins=64)
    if all((sample["gt_sem_seg"]["data"] == 255).all() for sample in samples):
        return
    scores = counted.evaluate(3)
    assert counted.last_result is not None
    rows = counted.last_result["classes"]
    for c, row in enumerate(rows):
        label = planes(samples, "gt_sem_seg", c)
        known = label != 255
        truth, guess = label[known] == 1, planes(samples, "pred_sem_seg", c)[known] == 1
        both, union = (truth & guess).sum(), (truth | guess).sum()
        assert row["IoU"] == (pytest.approx(100 * both / union) if union else None)
        sizes = truth.sum() + guess.sum()
        assert row["F1"] == (pytest.approx(200 * both / sizes) if union else None)
        chances = planes(samples, "seg_logits", c)[known]
        exact = sorted_precision(chances, truth) if truth.any() else None
        assert row["AP"] == (None if exact is None else pytest.approx(100 * exact))
    for name in ("IoU", "F1", "AP"):
        known_scores = [row[name] for row in rows if row[name] is not None]
        if known_scores:
            assert scores[f"m{name}"] == pytest.approx(sum(known_scores) / len(known_scores))


def test_scores_of_counts() -> None:
    one = torch.tensor([*[1, 0, 2, 3], 3, 5, 4] + [0] * 14 + [9])
    counted = metric([], bins=2)
    scores = counted.compute_metrics([one, one])
    # Below 0.5 a pixel off the class and two on it, above three on it.
    assert scores["mAP"] == pytest.approx(100 * (3 / 5 + 2 / 5 * 5 / 6))
    assert scores["mIoU"] == pytest.approx(100 * 3 / 6)
    assert counted.last_result is not None
    assert counted.last_result["classes"][0]["predicted"] == 8
    assert counted.last_result["labelled_pixels"] == 18


def test_scores_between_borders_are_off_by_little() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(3000) < 0.3
    chances = np.clip(rng.normal(np.where(truth, 0.6, 0.4), 0.15), 0, 1).astype(np.float32)
    bins = np.minimum((chances * 4096).astype(int), 4095)
    histogram = np.stack([np.bincount(bins[truth == k], minlength=4096) for k in (False, True)])
    assert average_precision(histogram) == pytest.approx(sorted_precision(chances, truth), abs=2e-3)


def test_images_that_fill_up_count_once_and_order_does_not_matter() -> None:
    samples = [make(i, 4, 5) for i in range(4)]
    once, again = metric(samples), metric([*samples[::-1], samples[0]])
    first = once.evaluate(4)
    assert again.evaluate(4) == first
    assert again.last_result == once.last_result


def test_the_result_is_written_and_read(tmp_path: Path) -> None:
    counted = metric([make(1, 6, 6)], output_json=tmp_path / "own.json")
    counted.evaluate(1)
    assert counted.last_result is not None
    assert json.loads((tmp_path / "own.json").read_text())["mAP"] == counted.last_result["mAP"]
    write_result(counted.last_result, tmp_path / "results.json")
    assert read_results_file(tmp_path / "results.json")["mIoU"] == counted.last_result["mIoU"]
    table = class_table(counted.last_result)
    assert "recall" in table
    assert "AP" in table


def test_what_cannot_be_scored() -> None:
    sample = make(1, 4, 4)
    with raises_user_error("dataset", "1.png"):
        metric([{k: v for k, v in sample.items() if k != "gt_sem_seg"}])
    with raises_user_error("config-conflict", "1.png"):
        metric([dict(sample, pred_sem_seg=dict(data=torch.zeros(1, 4, 4)))])
    with raises_user_error("size-mismatch", "1.png"):
        metric([dict(sample, gt_sem_seg=dict(data=torch.zeros(3, 4, 5)))])
    with raises_user_error("model-output", "1.png"):
        metric([dict(sample, seg_logits=dict(data=torch.full((3, 4, 4), float("nan"))))])
    with raises_user_error("label", "1.png"):
        metric([dict(sample, gt_sem_seg=dict(data=torch.full((3, 4, 4), 2)))])
    with raises_user_error("label", "the data set"):
        metric([dict(sample, gt_sem_seg=dict(data=torch.full((3, 4, 4), 255)))]).evaluate(1)
    with raises_user_error("empty", "the data set"):
        metric([]).evaluate(3)
    with raises_user_error("argument", "bins"):
        metric([], bins=100)
