# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Calibration error against a loop over pixels."""

import math

import numpy as np
import pytest
import torch

from mmseg_resnest.evaluation.calibration import (
    calibration_counts,
    calibration_error,
    predicted_probability,
)


def slow_error(confidence, correct, bins):
    """(ECE, MCE) with intervals that are open on the left."""
    groups = [[] for _ in range(bins)]
    for c, right in zip(confidence.tolist(), correct.tolist(), strict=True):
        b = next(i for i in range(bins) if c <= (i + 1) / bins or i == bins - 1)
        groups[b].append((c, right))
    total, worst = 0.0, 0.0
    for group in groups:
        if group:
            gap = abs(sum(r for _, r in group) - sum(c for c, _ in group)) / len(group)
            total += gap * len(group) / len(confidence)
            worst = max(worst, gap)
    return total, worst


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_error_is_that_of_the_definition(bins):
    generator = torch.Generator().manual_seed(bins)
    logits = torch.randn(5, 20, 30, generator=generator) * 3
    label = torch.randint(0, 5, (20, 30), generator=generator)
    labelled = torch.rand(20, 30, generator=generator) > 0.2
    confidence = predicted_probability(logits, logits.argmax(dim=0))
    expected = logits.double().softmax(dim=0).amax(dim=0)
    torch.testing.assert_close(confidence.double(), expected, rtol=1e-5, atol=1e-6)
    correct = logits.argmax(dim=0) == label
    counts = calibration_counts(confidence, correct, labelled, bins)
    assert int(counts[0].sum()) == int(labelled.sum())
    assert int(counts[1].sum()) == int(correct[labelled].sum())
    got = calibration_error(counts.numpy())
    assert got == pytest.approx(slow_error(confidence[labelled], correct[labelled], bins), abs=1e-6)


def test_the_sum_does_not_depend_on_how_pixels_are_shared_out():
    generator = torch.Generator().manual_seed(1)
    confidence = torch.rand(40, 50, generator=generator)
    correct = torch.rand(40, 50, generator=generator) < confidence
    every = torch.ones(40, 50, dtype=torch.bool)
    whole = calibration_counts(confidence, correct, every)
    parts = [
        calibration_counts(confidence[rows], correct[rows], every[rows])
        for rows in (slice(0, 7), slice(7, 31), slice(31, 40))
    ]
    assert torch.equal(whole, sum(parts))


def test_a_certain_and_right_model_has_no_error():
    confidence = torch.ones(4, 4)
    right = torch.ones(4, 4, dtype=torch.bool)
    assert calibration_error(calibration_counts(confidence, right, right).numpy()) == (0.0, 0.0)
    wrong = calibration_counts(confidence, ~right, right).numpy()
    assert calibration_error(wrong) == (1.0, 1.0)
    assert all(math.isnan(v) for v in calibration_error(np.zeros((3, 15), np.int64)))


def test_sums_and_two_class_scores():
    sums = torch.tensor([[[6.0]], [[2.0]]])
    first = torch.zeros(1, 1, dtype=torch.int64)
    assert float(predicted_probability(sums, first, are_logits=False)) == 0.75
    assert float(predicted_probability(torch.tensor([[[0.2]]]), first)) == pytest.approx(0.8)
    # A threshold of 0.3 decides for class 1, which the model holds for less likely.
    assert float(predicted_probability(torch.tensor([[[0.4]]]), first + 1)) == pytest.approx(0.4)
