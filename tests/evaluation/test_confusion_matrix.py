# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The confusion matrix and its scores against a slow reference in plain Python."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from user_errors import raises_user_error

from mmseg_resnest.evaluation import confusion_matrix, scores_from_confusion
from mmseg_resnest.evaluation.confusion_matrix import count_unchecked


def slow_matrix(pred, label, num_classes, ignore_index):
    matrix = [[0] * num_classes for _ in range(num_classes)]
    for p, t in zip(pred, label, strict=True):
        if t != ignore_index:
            matrix[t][p] += 1
    return matrix


def slow_scores(pred, label, num_classes, ignore_index):
    """pixAcc, mIoU, mAcc, IoU and Acc as exact fractions from sets of pixels; None: no score."""
    pixels = [(p, t) for p, t in zip(pred, label, strict=True) if t != ignore_index]
    iou, acc = [], []
    for c in range(num_classes):
        truth = {i for i, (_, t) in enumerate(pixels) if t == c}
        found = {i for i, (p, _) in enumerate(pixels) if p == c}
        iou.append(Fraction(len(truth & found), len(truth | found)) if truth | found else None)
        acc.append(Fraction(len(truth & found), len(truth)) if truth else None)
    correct = sum(p == t for p, t in pixels)

    def mean(values):
        values = [v for v in values if v is not None]
        return sum(values, Fraction(0)) / len(values) if values else None

    pix_acc = Fraction(correct, len(pixels)) if pixels else None
    return pix_acc, mean(iou), mean(acc), iou, acc


def same(value, expected):
    if expected is None:
        return math.isnan(value)
    return math.isclose(value, float(expected), rel_tol=1e-14, abs_tol=0)


@st.composite
def maps(draw):
    num_classes = draw(st.integers(1, 9))
    # 255 and -100 are usual; a class of its own number shows that ignore_index wins.
    ignore_index = draw(st.sampled_from([255, -100, -1, num_classes, 0]))
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    seen = draw(st.lists(st.integers(0, num_classes - 1), min_size=1, unique=True))
    said = draw(st.lists(st.integers(0, num_classes - 1), min_size=1, unique=True))
    ignored = draw(st.sampled_from([0.0, 0.2, 0.9, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    label = rng.choice(seen, shape)
    label[rng.random(shape) < ignored] = ignore_index
    pred = rng.choice(said, shape)
    pred_type = draw(st.sampled_from([torch.uint8, torch.int32, torch.int64, torch.float32]))
    label_type = torch.uint8 if ignore_index >= 0 else torch.int16
    label_type = draw(st.sampled_from([label_type, torch.int64]))
    return (
        torch.from_numpy(pred).to(pred_type),
        torch.from_numpy(label).to(label_type),
        num_classes,
        ignore_index,
    )


@given(maps())
def test_equal_to_the_slow_reference(case):
    pred, label, num_classes, ignore_index = case
    matrix = confusion_matrix(pred, label, num_classes, ignore_index)
    flat = [int(v) for v in pred.flatten()], label.flatten().tolist()
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == slow_matrix(*flat, num_classes, ignore_index)

    scores = scores_from_confusion(matrix)
    pix_acc, mean_iou, mean_acc, iou, acc = slow_scores(*flat, num_classes, ignore_index)
    assert same(scores.pix_acc, pix_acc)
    assert same(scores.mean_iou, mean_iou)
    assert same(scores.mean_acc, mean_acc)
    assert all(same(a, b) for a, b in zip(scores.iou, iou, strict=True))
    assert all(same(a, b) for a, b in zip(scores.acc, acc, strict=True))
    assert scores.iou.dtype == scores.acc.dtype == np.float64


def test_no_overflow_of_narrow_types():
    # 150 * 150 does not fit the type of the maps.
    pred = torch.full((4, 4), 148, dtype=torch.uint8)
    label = torch.full((4, 4), 149, dtype=torch.uint8)
    matrix = confusion_matrix(pred, label, 150)
    assert matrix[149, 148] == 16
    assert matrix.sum() == 16


def test_more_than_two_to_the_24th_pixels():
    side = 4097  # 16,785,409 pixels: odd and above 2^24, so float32 cannot hold the count
    label = torch.zeros(side, side, dtype=torch.uint8)
    pred = torch.zeros_like(label)
    pred[0, 0] = 1
    matrix = confusion_matrix(pred, label, 2)
    assert matrix.tolist() == [[side * side - 1, 1], [0, 0]]
    total = matrix.clone()
    for _ in range(200):
        total += matrix
    assert total.tolist() == [[201 * (side * side - 1), 201], [0, 0]]  # above 2^31
    assert scores_from_confusion(total).pix_acc == (side * side - 1) / (side * side)


def test_nothing_labelled_is_nan_everywhere():
    matrix = confusion_matrix(torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), 255), 3)
    assert matrix.sum() == 0
    scores = scores_from_confusion(matrix)
    assert math.isnan(scores.pix_acc)
    assert math.isnan(scores.mean_iou)
    assert math.isnan(scores.mean_acc)
    assert np.isnan(scores.iou).all()
    empty = torch.zeros(0, 4, dtype=torch.long)
    assert confusion_matrix(empty, empty, 3).tolist() == [[0] * 3] * 3


@pytest.mark.parametrize("value", [3, 254, -1])
def test_values_out_of_range(value):
    with raises_user_error("label", "the label map"):
        confusion_matrix(torch.zeros(2, dtype=torch.long), torch.tensor([0, value]), 3)
    # Also where the label is ignored: the model has a class that the data set lacks.
    for label in (0, 255):
        with raises_user_error("classes", "the prediction"):
            confusion_matrix(torch.tensor([0, value]), torch.tensor([0, label]), 3)


def test_other_wrong_arguments():
    zeros = torch.zeros(2, 3, dtype=torch.long)
    with raises_user_error("size-mismatch", "label maps"):
        confusion_matrix(zeros, zeros.T, 2)
    with raises_user_error("argument", "num_classes"):
        confusion_matrix(zeros, zeros, 0)
    with raises_user_error("label", "the prediction"):
        confusion_matrix(zeros + 0.5, zeros, 2)
    with pytest.raises(ValueError, match="square"):
        scores_from_confusion(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="integers"):
        scores_from_confusion(np.zeros((2, 2)))


def test_precision_recall_f1_and_weighted_iou_by_hand():
    """Against the definitions, class by class in plain Python."""
    generator = torch.Generator().manual_seed(8)
    matrix = torch.randint(0, 50, (6, 6), generator=generator)
    matrix[4] = 0  # never labelled
    matrix[:, 5] = 0  # never predicted
    rows = matrix.tolist()
    scores = scores_from_confusion(matrix)
    total, weighted = sum(map(sum, rows)), 0.0
    for k in range(6):
        tp = rows[k][k]
        fn = sum(rows[k]) - tp
        fp = sum(row[k] for row in rows) - tp
        for got, top, bottom in (
            (scores.precision[k], tp, tp + fp),
            (scores.recall[k], tp, tp + fn),
            (scores.f1[k], 2 * tp, 2 * tp + fp + fn),
        ):
            if bottom:
                assert got == pytest.approx(top / bottom, rel=1e-15)
            else:
                assert np.isnan(got)
        if tp + fn:
            weighted += (tp + fn) / total * tp / (tp + fp + fn)
    assert scores.frequency_weighted_iou == pytest.approx(weighted, rel=1e-14)


@given(maps(), st.integers(0, 3), st.integers(0, 3))
def test_counting_without_waiting(drawn, wrong_preds, wrong_labels):
    """The same matrix; pixels that are out of range are counted and left out."""
    pred, label, num_classes, ignore_index = drawn
    pred, label = pred.to(torch.int64), label.to(torch.int64)
    matrix, wrong = count_unchecked(pred, label, num_classes, ignore_index)
    assert torch.equal(matrix, confusion_matrix(pred, label, num_classes, ignore_index))
    assert int(wrong) == 0
    pred, label = pred.flatten(), label.flatten()
    outside = torch.tensor([-7, num_classes + 1, 4000])  # num_classes may be ignore_index
    bad_pred = torch.cat([pred, outside[:wrong_preds], pred[:1].expand(wrong_labels)])
    bad_label = torch.cat([label, label[:1].expand(wrong_preds), outside[:wrong_labels]])
    again, wrong = count_unchecked(bad_pred, bad_label, num_classes, ignore_index)
    assert torch.equal(again, matrix)
    assert int(wrong) == wrong_preds + wrong_labels
