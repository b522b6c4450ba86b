# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Distillation: losses against written-out ones; what a teacher is given and what stays of it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from advice import advises
from mmengine.structures import PixelData
from tiny_models import MEAN, batch_of, build, built, tiny_config
from torch import Tensor
from user_errors import raises_user_error

from mmseg_resnest.models import Distillation, fold_for_inference
from mmseg_resnest.models.losses import DistillationLoss, build_distillation, check_losses
from mmseg_resnest.registry import MODELS

CWD, KL = "ChannelWiseDivergence", "KLDivergence"
LOSSES = [dict(type=CWD), dict(type=KL)]


def divergence(wanted: list[float], found: list[float]) -> float:
    """Of the softmax of one list of numbers from that of another."""
    p, q = ([math.exp(one) for one in numbers] for numbers in (wanted, found))
    return sum(
        a / sum(p) * (math.log(a / sum(p)) - math.log(b / sum(q)))
        for a, b in zip(p, q, strict=True)
    )


def by_hand(kind: str, scores: Tensor, wanted: Tensor, t: float, overlapping: bool) -> float:
    """The loss without its weight, number by number."""
    ours, theirs = (one.flatten(2) / t for one in (scores, wanted))
    lists: list[tuple[list[float], list[float]]] = []
    if kind == CWD:
        lists = [(a.tolist(), b.tolist()) for n in range(len(ours))
                 for a, b in zip(theirs[n], ours[n], strict=True)]  # fmt: skip
    elif overlapping or ours.shape[1] == 1:  # a score against 0
        lists = [([float(a), 0.0], [float(b), 0.0])
                 for a, b in zip(theirs.flatten(), ours.flatten(), strict=True)]  # fmt: skip
    else:
        lists = [(theirs[n, :, i].tolist(), ours[n, :, i].tolist())
                 for n in range(len(ours)) for i in range(ours.shape[2])]  # fmt: skip
    return t * t * sum(divergence(*pair) for pair in lists) / len(lists)


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(CWD, {}), (KL, {}), (CWD, dict(temperature=1.0)), (KL, dict(temperature=2.5, loss_weight=2))],
)
def test_losses(kind: str, options: dict[str, Any], outputs: int, overlapping: bool) -> None:
    torch.manual_seed(0)
    scores, wanted = (3 * torch.randn(2, outputs, 4, 5, dtype=torch.float64) for _ in range(2))
    scores.requires_grad_()
    wanted.requires_grad_()
    loss = MODELS.build(dict(type=kind, **options))
    value = loss(scores, wanted, overlapping)
    weight, t = options.get("loss_weight", {CWD: 3, KL: 1}[kind]), options.get("temperature", 4.0)
    expected = weight * by_hand(kind, scores.detach(), wanted.detach(), t, overlapping)
    assert value.item() == pytest.approx(expected, rel=1e-9)
    value.backward()
    assert scores.grad is not None and scores.grad.abs().max() > 0
    assert wanted.grad is None
    assert float(loss(wanted.detach(), wanted, overlapping)) == pytest.approx(0, abs=1e-12)
    halved = loss(scores.half(), wanted.half(), overlapping)
    assert halved.dtype == torch.float32
    assert halved.item() == pytest.approx(value.item(), rel=0.05)


def test_scores_without_bounds_are_finite() -> None:
    scores = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1).repeat(1, 1, 2, 2).requires_grad_()
    for one in build_distillation(LOSSES, "losses"):
        for overlapping in (False, True):
            value = one(scores, -scores.detach(), overlapping)
            value.backward()
            assert value.isfinite() and scores.grad is not None and scores.grad.isfinite().all()


def labelled(batch: dict[str, Any], planes: int = 0) -> dict[str, Any]:
    for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
        size = image.shape[1:]
        labels = torch.randint(0, 2, (planes or 1, *size), dtype=torch.uint8)
        sample.gt_sem_seg = PixelData(data=labels if planes else labels.long())
    return batch


def pair(teacher: Any, student: Any, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(1)
    for one in (teacher, student):
        torch.nn.init.normal_(one.decode_head.conv_seg.weight)
    losses = build_distillation(LOSSES, "losses")
    student.distillation = Distillation(teacher, losses, student.data_preprocessor, **options)
    return teacher, student.train()


def step(student: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    data = student.data_preprocessor(batch, True)
    return student.loss(data["inputs"], data["data_samples"])


SIZE = dict(size=(37, 53), pad_val=0, seg_pad_val=255)


@pytest.mark.parametrize("multilabel", [False, True])
def test_only_the_student_learns(multilabel: bool) -> None:
    """Its own losses are what they are alone, and nothing of the teacher is in it."""
    head = dict(loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=True)) if multilabel else {}
    config = dict(head=dict(dropout_ratio=0, **head), preprocessor=SIZE, multilabel=multilabel)
    alone = built(**config)
    teacher, student = pair(built(**config), built(**config), overlapping=multilabel)
    alone.load_state_dict(student.state_dict())
    batch = labelled(batch_of(count=2), 4 if multilabel else 0)
    names = list(student.state_dict())
    before = copy.deepcopy(teacher.state_dict())
    losses = step(student, copy.deepcopy(batch))
    own = step(alone.train(), copy.deepcopy(batch))
    assert {k: v.item() for k, v in own.items()} == {k: losses[k].item() for k in own}
    added = ("distill.loss_channel_wise", "distill.loss_kl")
    assert set(losses) - set(own) == set(added)
    images = alone.data_preprocessor(batch, True)["inputs"]
    wanted, scores = teacher.logits(images), alone.logits(images)
    for name, loss in zip(added, build_distillation(LOSSES, "x"), strict=True):
        assert torch.allclose(losses[name], loss(scores, wanted, multilabel), rtol=1e-5)
    sum(losses[name] for name in added).backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not teacher.training and not any(m.training for m in teacher.modules())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert list(student.state_dict()) == names
    assert not any(m is teacher for m in student.modules())
    assert copy.deepcopy(student).distillation.teacher is teacher


@pytest.mark.parametrize("reverse", [False, True])
def test_the_teacher_gets_images_as_its_own_preprocessor_makes_them(reverse: bool) -> None:
    other = dict(mean=[10.0, 120.0, 200.0], std=[20.0, 60.0, 90.0], bgr_to_rgb=not reverse)
    batch = batch_of(30, 40, count=2)  # both are padded
    teacher, student = pair(
        built(preprocessor={**SIZE, **other}), built(preprocessor=SIZE), reversed_channels=reverse
    )
    given: list[Tensor] = []
    teacher.backbone.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    step(student, labelled(copy.deepcopy(batch)))
    expected = teacher.data_preprocessor(labelled(batch), True)["inputs"]
    assert torch.allclose(given[0], expected, atol=1e-4)


def test_equal_images_are_not_copied() -> None:
    teacher, student = pair(built(), built())
    given: list[Tensor] = []
    teacher.backbone.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    images = torch.randn(1, 3, 32, 32)
    student.distillation.scores(images, [])
    assert given[0] is images
    grey = built(preprocessor=dict(mean=[MEAN[0]] * 3, std=[58.0]))
    assert (
        pair(grey, student)[1]
        .distillation.scores(images, labelled(batch_of())["data_samples"])[0]
        .isfinite()
        .all()
    )


def test_a_teacher_of_another_stride_and_order() -> None:
    """Folded, as in a run on a CPU, and of twice the resolution."""
    order = [2, 0, 3, 1]
    config = tiny_config()
    student = build(config)
    teacher = build(config)
    teacher.backbone.conv2.stride = (1, 1)
    pair(teacher, student, order=order, reversed_channels=False)
    images = torch.randn(2, 3, 32, 48)
    fold_for_inference(teacher)
    wanted = student.distillation.scores(images, [])
    assert wanted.shape == (2, 4, 16, 24)
    scores = student.logits(images)
    assert scores.shape == (2, 4, 8, 12)
    found = student.distillation.losses(scores, wanted, True)
    resized = torch.nn.functional.interpolate(wanted, (8, 12), mode="bilinear", align_corners=True)[
        :, order
    ]
    (channel, kl) = build_distillation(LOSSES, "losses")
    assert torch.allclose(found["distill.loss_channel_wise"], channel(scores, resized))
    assert torch.allclose(found["distill.loss_kl"], kl(scores, resized))


def test_one_output_and_two_are_the_same_classes() -> None:
    one, two = (
        built(head=dict(num_classes=2, out_channels=n, threshold=0.3 if n == 1 else None))
        for n in (1, 2)
    )
    scores = torch.randn(1, 1, 4, 4)
    pairs = torch.cat([torch.zeros_like(scores), scores], 1)
    for teacher, student, wanted, ours in ((one, two, scores, pairs), (two, one, pairs, scores)):
        found = pair(teacher, student)[1].distillation.losses(ours, wanted, True)
        assert all(float(value) == pytest.approx(0, abs=1e-6) for value in found.values())
    swapped = pair(one, one, order=[1, 0])[1].distillation.losses(scores, -scores, True)
    assert float(swapped["distill.loss_kl"]) == pytest.approx(0, abs=1e-6)


class Unfinished(DistillationLoss):
    """Without ``divergence``."""

    def __init__(self) -> None:
        super().__init__(1.0, 1.0, "loss_unfinished")


@pytest.mark.parametrize(
    ("losses", "code", "subject"),
    [
        ([], "config-value", "distillation.losses"),
        ("KLDivergence", "config-value", "distillation.losses"),
        ([dict(temperature=2)], "config-value", "distillation.losses"),
        ([dict(type=KL, temperature=0)], "config-value", "distillation.losses.0.temperature"),
        ([dict(type=KL, temperature="2")], "config-value", "distillation.losses.0.temperature"),
        ([dict(type=KL), dict(type=CWD, tau=1)], "config-key", "distillation.losses.1.tau"),
        ([dict(type=CWD, loss_name="distance")], "config-value", "distillation.losses.0.loss_name"),
        ([dict(type=CWD, loss_weight=math.nan)], "config-value", "losses.0.loss_weight"),
        ([dict(type=Unfinished)], "config-value", "distillation.losses.0"),
    ],
)
def test_options_that_are_refused(losses: Any, code: str, subject: str) -> None:
    with raises_user_error(code, subject):
        build_distillation(losses, "distillation.losses")


def test_losses_of_labels_and_of_scores_are_not_exchanged() -> None:
    with advises("models/losses/check.py:build_distillation", "take", KL):
        build_distillation([dict(type="CrossEntropyLoss")], "distillation.losses")
    assert build_distillation([dict(type=KL)], "distillation.losses")
    with raises_user_error("config-type", "model.decode_head.loss_decode.type"):
        check_losses(dict(decode_head=dict(num_classes=3, loss_decode=dict(type=CWD))))
