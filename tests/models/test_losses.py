# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Losses: their values and gradients, what is ignored, precision, and options that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import loss_references as by_hand
import numpy as np
import pytest
import torch
import torch.distributed as dist
from user_errors import raises_user_error

from mmseg_resnest.models.losses import check_losses
from mmseg_resnest.registry import MODELS

CE, FOCAL, OHEM = "CrossEntropyLoss", "FocalLoss", "OhemCrossEntropy"
HD = "HuasdorffDisstanceLoss"
W3 = [1.0, 5.0, 0.5]
#: Type, outputs, options, function, its arguments.
CASES = [
    (CE, 3, {}, by_hand.cross_entropy, {}),
    (CE, 1, {}, by_hand.cross_entropy, {}),
    (CE, 2, dict(avg_non_ignore=True), by_hand.cross_entropy, dict(avg_non_ignore=True)),
    (CE, 3, dict(class_weight=W3), by_hand.cross_entropy, dict(weights=W3)),
    (CE, 3, dict(class_weight=W3, avg_non_ignore=True), by_hand.cross_entropy, dict(weights=W3)),
    (CE, 1, dict(class_weight=[2.0, 5.0]), by_hand.cross_entropy, dict(weights=[2.0, 5.0])),
    (CE, 1, dict(class_weight=[5.0]), by_hand.cross_entropy, dict(weights=[5.0])),
    (CE, 3, dict(reduction="sum", class_weight=W3), by_hand.cross_entropy,
     dict(weights=W3, reduction="sum")),
    (CE, 3, dict(reduction="none"), by_hand.cross_entropy, dict(reduction="none")),
    *[
        (CE, outputs, dict(use_sigmoid=True, **options), by_hand.sigmoid_cross_entropy, arguments)
        for outputs in (1, 3)
        for options, arguments in (
            ({}, {}),
            (dict(avg_non_ignore=True), dict(avg_non_ignore=True)),
            (dict(reduction="sum"), dict(reduction="sum")),
        )
    ],
    *[
        (CE, outputs, dict(use_sigmoid=True, class_weight=weights, avg_non_ignore=mean),
         by_hand.sigmoid_cross_entropy, dict(weights=weights, avg_non_ignore=mean))
        for outputs, weights in ((1, [3.0]), (1, [2.0, 5.0]), (2, [1.0, 5.0]), (3, W3))
        for mean in (False, True)
    ],
    (CE, 3, dict(use_sigmoid=True, reduction="none"), by_hand.sigmoid_cross_entropy,
     dict(reduction="none")),
    *[(FOCAL, outputs, {}, by_hand.focal, {}) for outputs in (1, 2, 3)],
    (FOCAL, 3, dict(gamma=1.5, alpha=0.25), by_hand.focal, dict(gamma=1.5, alpha=0.25)),
    (FOCAL, 3, dict(gamma=1, alpha=[0.2, 0.5, 0.9]), by_hand.focal,
     dict(gamma=1, alpha=[0.2, 0.5, 0.9])),
    (FOCAL, 3, dict(class_weight=W3, reduction="sum"), by_hand.focal,
     dict(weights=W3, reduction="sum")),
    (FOCAL, 1, dict(class_weight=[2.0, 5.0]), by_hand.focal, dict(weights=[2.0, 5.0])),
    (FOCAL, 1, dict(reduction="none"), by_hand.focal, dict(reduction="none")),
    (FOCAL, 2, dict(reduction="none"), by_hand.focal, dict(reduction="none")),
    *[
        (OHEM, outputs, dict(thres=thres, min_kept=kept), by_hand.ohem,
         dict(thres=thres, min_kept=kept))
        for outputs in (1, 3)
        for thres, kept in ((0.3, 1), (0.0, 7), (0.3, 1000))
    ],
    (OHEM, 3, dict(thres=0.4, class_weight=W3, min_kept=1), by_hand.ohem,
     dict(thres=0.4, weights=W3)),
    *[("BoundaryLoss", outputs, {}, by_hand.boundary, {}) for outputs in (1, 2, 3)],
    *[
        ("DiceLoss", outputs, dict(use_sigmoid=sigmoid, naive_dice=naive, reduction=reduction),
         by_hand.dice, dict(use_sigmoid=sigmoid, naive=naive, reduction=reduction))
        for outputs in (1, 3)
        for sigmoid in (True, False)
        for naive, reduction in ((False, "mean"), (True, "sum"), (True, "none"))
    ],
    *[("DiceLoss", 3, dict(eps=eps), by_hand.dice, dict(eps=eps)) for eps in (0, 0.5)],
    ("TverskyLoss", 3, dict(smooth=0), by_hand.tversky, dict(smooth=0)),
    ("DiceLoss", 3, dict(activate=False), by_hand.dice, dict(activate=False)),
    *[("TverskyLoss", outputs, {}, by_hand.tversky, {}) for outputs in (1, 2, 3)],
    ("TverskyLoss", 3, dict(alpha=0.6, beta=0.4, smooth=0.1, class_weight=W3), by_hand.tversky,
     dict(alpha=0.6, beta=0.4, smooth=0.1, weights=W3)),
    *[("LovaszLoss", outputs, {}, by_hand.lovasz, {}) for outputs in (1, 2, 3)],
    ("LovaszLoss", 3, dict(classes="all", reduction="none"), by_hand.lovasz, dict(classes="all")),
    ("LovaszLoss", 3, dict(classes=[0, 2], class_weight=W3), by_hand.lovasz,
     dict(classes=[0, 2], weights=W3)),
    ("LovaszLoss", 1, dict(loss_type="binary"), by_hand.lovasz, dict(binary=True)),
    *[(HD, outputs, {}, by_hand.hausdorff, {}) for outputs in (1, 2, 3)],
    (HD, 3, dict(class_weight=W3), by_hand.hausdorff, dict(weights=W3)),
]  # fmt: skip


def build(kind: str, **options):
    return MODELS.build(dict(type=f"mmseg_resnest.{kind}", **options))


def name_of(case) -> str:
    kind, outputs, options = case[:3]
    return "-".join([kind, str(outputs), *(f"{key}={value}" for key, value in options.items())])


def batch(outputs: int, ignored: int | None = None, seed: int = 0):
    """Scores (2, outputs, 5, 4) and labels (2, 5, 4), a third of them the ignored label."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, outputs, 5, 4, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(0, max(outputs, 2), (2, 5, 4), generator=generator)
    if ignored is not None:
        labels[torch.rand(2, 5, 4, generator=generator) < 0.33] = ignored
    return scores, labels


def gradient(loss, scores, labels, **arguments):
    scores = scores.clone().requires_grad_()
    value = loss(scores, labels, **arguments)
    value.sum().backward()
    return value.detach(), scores.grad


@pytest.mark.parametrize("ignored", [None, 255, -1, 7])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_value_is_the_one_by_hand(case, ignored):
    kind, outputs, options, function, arguments = case
    scores, labels = batch(outputs, ignored)
    valid = np.ones(labels.shape, bool) if ignored is None else (labels != ignored).numpy()
    expected = function(scores.numpy(), labels.numpy(), valid, **arguments)
    value = build(kind, **options, loss_weight=0.5)(scores, labels, ignore_index=ignored)
    expected = torch.as_tensor(0.5 * expected, dtype=torch.float64)
    torch.testing.assert_close(value.reshape(expected.shape), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_what_is_ignored_changes_nothing(case):
    """Other scores at ignored pixels: the same loss, the same gradient, and none there."""
    kind, outputs, options = case[:3]
    loss = build(kind, **options)
    scores, labels = batch(outputs, 255)
    ignored = (labels == 255).unsqueeze(1)
    value, slope = gradient(loss, scores, labels, ignore_index=255)
    others = torch.where(ignored, 9 - 3 * scores, scores)
    value_of_others, slope_of_others = gradient(loss, others, labels, ignore_index=255)
    assert torch.equal(value, value_of_others)
    assert torch.equal(slope, slope_of_others)
    assert not slope[ignored.expand_as(slope)].any() and slope.any()


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_nothing_labelled_is_a_loss_of_zero(case):
    kind, outputs, options = case[:3]
    scores, labels = batch(outputs)
    value, slope = gradient(
        build(kind, **options), scores, torch.full_like(labels, 255), ignore_index=255
    )
    assert not value.any() and not slope.any()
    # ... also in one image of two, and where a single pixel is labelled
    labels[0] = 255
    labels[1].flatten()[1:] = 255
    value, slope = gradient(build(kind, **options), scores, labels, ignore_index=255)
    assert value.isfinite().all() and slope.isfinite().all()


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision_of_scores(case, dtype):
    """Scores of low precision are computed with in float32."""
    kind, outputs, options, function, arguments = case
    scores, labels = batch(outputs, 255)
    scores = scores.to(dtype)
    expected = function(
        scores.double().numpy(), labels.numpy(), (labels != 255).numpy(), **arguments
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        value, slope = gradient(build(kind, **options), scores, labels, ignore_index=255)
    assert value.dtype == torch.float32 and slope.dtype == dtype and slope.isfinite().all()
    expected = torch.as_tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(value.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [("DiceLoss", {}), ("DiceLoss", dict(naive_dice=True)), ("TverskyLoss", {}), (HD, {})],
)
def test_a_class_that_is_ignored_is_left_out(kind, arguments):
    """By the head or by the loss: label 1 is ignored, and its channel does not count."""
    functions = {"DiceLoss": by_hand.dice, "TverskyLoss": by_hand.tversky, HD: by_hand.hausdorff}
    scores, labels = batch(3)
    naive = {"naive": True} if arguments else {}
    valid = (labels != 1).numpy()
    expected = functions[kind](scores.numpy(), labels.numpy(), valid, without=[1], **naive)
    for own, heads in ((None, 1), (1, 255), (1, None)):
        value = build(kind, ignore_index=own, **arguments)(scores, labels, ignore_index=heads)
        assert float(value) == pytest.approx(expected)


def test_lovasz_per_image():
    scores, labels = batch(3, 255)
    valid = (labels != 255).numpy()
    images = [
        by_hand.lovasz(*(part[n : n + 1] for part in (scores.numpy(), labels.numpy(), valid)))
        for n in range(2)
    ]
    for reduction, expected in (
        ("none", images),
        ("mean", [sum(images) / 2]),
        ("sum", [sum(images)]),
    ):
        loss = build("LovaszLoss", per_image=True, reduction=reduction)
        value = loss(scores, labels, ignore_index=255)
        assert value.reshape(-1).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("case", [case for case in CASES if case[0] != HD], ids=name_of)
def test_pixels_of_weight_0_are_left_out(case):
    """As a pixel sampler has it; a mean over all or all labelled pixels keeps its divisor."""
    kind, outputs, options = case[:3]
    options = {**options, **(dict(reduction="sum") if kind in (CE, FOCAL) else {})}
    loss = build(kind, **options)
    scores, labels = batch(outputs, 255)
    weight = (torch.arange(labels.numel()).view(labels.shape) % 3 > 0).double()
    left_out = labels.masked_fill(weight == 0, 255)
    value, slope = gradient(loss, scores, labels, weight=weight, ignore_index=255)
    expected, expected_slope = gradient(loss, scores, left_out, ignore_index=255)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(slope, expected_slope)


def test_a_number_to_divide_by():
    scores, labels = batch(3, 255)
    for kind, options in ((CE, {}), (CE, dict(use_sigmoid=True)), (FOCAL, {}), ("DiceLoss", {})):
        total = build(kind, **options, reduction="sum")(scores, labels, ignore_index=255)
        mean = build(kind, **options)(scores, labels, avg_factor=7, ignore_index=255)
        assert float(mean) == pytest.approx(float(total) / 7, rel=1e-6)
        none = build(kind, **options)(scores, labels, reduction_override="none", ignore_index=255)
        assert float(none.sum()) == pytest.approx(float(total), rel=1e-6)


@pytest.mark.parametrize("kind", [CE, FOCAL, "DiceLoss"])
def test_several_classes_at_a_place(kind):
    """Targets (N, C) of the class branch of EncNet: as many places of one class each."""
    options = dict(use_sigmoid=True)
    scores = torch.randn(4, 3, dtype=torch.float64)
    targets = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    value = build(kind, **options)(scores, targets)
    chance = scores.sigmoid()
    if kind == "DiceLoss":
        overlap = 2 * (chance * targets).sum(1)
        expected = 1 - overlap / ((chance**2).sum(1) + targets.sum(1) + 2e-3)
    else:
        right = torch.where(targets == 1, chance, 1 - chance)
        expected = -right.log() * (0.5 * (1 - right) ** 2 if kind == FOCAL else 1)
    assert float(value) == pytest.approx(float(expected.mean()))


@pytest.mark.parametrize("kind", [CE, FOCAL, OHEM, "BoundaryLoss", "DiceLoss", "TverskyLoss",
                                  "LovaszLoss", HD])  # fmt: skip
@pytest.mark.parametrize(("outputs", "wrong"), [(3, 3), (2, 254), (1, 2), (2, -1)])
def test_a_label_that_is_no_class(kind, outputs, wrong):
    scores, labels = batch(outputs, wrong)
    with raises_user_error("label"):
        build(kind)(scores, labels, ignore_index=255)


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".npy"])
def test_class_weights_of_a_file(suffix, tmp_path: Path):
    path = tmp_path / f"weights{suffix}"
    np.save(path, W3) if suffix == ".npy" else path.write_text(json.dumps(W3))
    scores, labels = batch(3, 255)
    for kind in (CE, FOCAL, OHEM, "TverskyLoss", "LovaszLoss", HD):
        values = [
            float(build(kind, class_weight=weights)(scores, labels, ignore_index=255))
            for weights in (str(path), W3)
        ]
        assert values[0] == values[1]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("none.json", None, "not-found"),
        ("weights.pkl", b"cos\nsystem\n(S'true'\ntR.", "format"),
        ("weights.json", b"[1, 2", "format"),
        ("weights.yaml", b"!!python/object/apply:os.system ['true']", "format"),
        ("weights.npy", b"no array", "format"),
        ("weights.json", b'["a", 1]', "config-value"),
        ("weights.json", b"[-1, 1]", "config-value"),
        ("weights.json", b"[NaN, 1]", "config-value"),
    ],
)
def test_a_bad_file_of_class_weights(name, content, code, tmp_path: Path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    loss = dict(type="mmseg_resnest.CrossEntropyLoss", class_weight=str(path))
    head = dict(num_classes=2, loss_decode=[dict(type="mmseg_resnest.DiceLoss"), loss])
    with raises_user_error(code, "model.decode_head.loss_decode.1.class_weight"):
        check_losses(dict(decode_head=head))


SIGMOID = dict(type=CE, use_sigmoid=True)


@pytest.mark.parametrize(
    ("head", "code", "key"),
    [
        *[
            (dict(loss_decode=dict(type=kind, class_weight=[1.0, 2.0])), "config-conflict",
             "loss_decode.class_weight")
            for kind in (CE, FOCAL, OHEM, "TverskyLoss", "LovaszLoss", HD)
        ],
        (dict(out_channels=1, loss_decode=dict(**SIGMOID, class_weight=W3)), "config-conflict",
         "loss_decode.class_weight"),
        (dict(loss_decode=dict(type=CE, class_weight=[1.0, "a", 2.0])), "config-value",
         "loss_decode.class_weight"),
        (dict(loss_decode=dict(type=CE, use_mask=True)), "config-value", "loss_decode.use_mask"),
        (dict(loss_decode=dict(type=CE, reduction="avg")), "config-value", "loss_decode.reduction"),
        (dict(loss_decode=dict(type=CE, loss_weight="1")), "config-value",
         "loss_decode.loss_weight"),
        (dict(loss_decode=dict(type=CE, weights=[1])), "config-key", "loss_decode.weights"),
        (dict(loss_decode=dict(type=HD, ignore=1)), "config-key", "loss_decode.ignore"),
        (dict(loss_decode=dict(type="DiceLoss", reduction=None)), "config-value",
         "loss_decode.reduction"),
        (dict(loss_decode=dict(type="TverskyLoss", alpha="0")), "config-value",
         "loss_decode.alpha"),
        (dict(loss_decode=dict(type="DiceLoss", eps=-1)), "config-value", "loss_decode.eps"),
        (dict(ignore_index="255"), "config-value", "ignore_index"),
        (dict(loss_decode=dict(type="DiceLoss", ignore_index=[0])), "config-value",
         "loss_decode.ignore_index"),
        (dict(loss_decode=dict(type=OHEM, ignore_label=0.5)), "config-value",
         "loss_decode.ignore_label"),
        (dict(loss_decode=dict(type=OHEM, thres=70)), "config-value", "loss_decode.thres"),
        (dict(loss_decode=dict(type=CE, loss_name="ce")), "config-value", "loss_decode.loss_name"),
        (dict(loss_decode=dict(type=FOCAL, use_sigmoid=False)), "config-value",
         "loss_decode.use_sigmoid"),
        (dict(loss_decode=dict(type=FOCAL, alpha=[0.5])), "config-conflict", "loss_decode.alpha"),
        (dict(loss_decode=dict(type=FOCAL, alpha=2.0)), "config-value", "loss_decode.alpha"),
        (dict(loss_decode=dict(type="TverskyLoss", alpha=0.5)), "config-value", "loss_decode.beta"),
        (dict(loss_decode=dict(type="LovaszLoss", loss_type="binary")), "config-conflict",
         "loss_decode.loss_type"),
        (dict(loss_decode=dict(type="LovaszLoss", classes=[3])), "config-conflict",
         "loss_decode.classes"),
        (dict(loss_decode=dict(type="LovaszLoss", classes="some")), "config-value",
         "loss_decode.classes"),
        (dict(loss_decode=dict(type="SiLogLoss")), "config-type", "loss_decode.type"),
        (dict(loss_decode=dict(type="KLDivLoss")), "config-type", "loss_decode.type"),
        (dict(loss_decode=dict(type="DiceLos")), "config-type", "loss_decode.type"),
        *[(dict(loss_decode=value), "config-value", "loss_decode") for value in (None, [], CE, {})],
        (dict(loss_se_decode=[SIGMOID]), "config-value", "loss_se_decode"),
        (dict(loss_decode=dict(type="DiceLoss"), sampler=dict(type="OHEMPixelSampler")),
         "config-conflict", "sampler.thresh"),
        (dict(loss_se_decode=dict(type=CE)), "config-conflict", "loss_se_decode"),
        (dict(loss_se_decode=dict(**SIGMOID, class_weight=[1.0])), "config-conflict",
         "loss_se_decode.class_weight"),
    ],
)  # fmt: skip
def test_a_loss_that_does_not_fit_its_head(head, code, key):
    with raises_user_error(code, f"config key model.decode_head.{key}"):
        check_losses(dict(decode_head=dict(num_classes=3, **head)))
    with raises_user_error(code, f"config key model.auxiliary_head.1.{key}"):
        check_losses(dict(auxiliary_head=[{}, dict(num_classes=3, **head)]))


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("weights", [None, W3])
@pytest.mark.parametrize("mean", [False, True])
def test_two_processes_have_the_loss_of_one(sigmoid, weights, mean, monkeypatch):
    """The mean of their losses and gradients is that of all images, for every kind of mean."""
    loss = build(CE, use_sigmoid=sigmoid, class_weight=weights, avg_non_ignore=mean)
    scores, labels = batch(3, 255)
    labels[0, :3] = 255  # the images differ in how much of them is labelled
    whole, whole_slope = gradient(loss, scores, labels, ignore_index=255)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    sent: list[torch.Tensor] = []

    def parts(all_reduce):
        monkeypatch.setattr(dist, "all_reduce", all_reduce)
        each = zip(scores.split(1), labels.split(1), strict=True)
        return [gradient(loss, *images, ignore_index=255) for images in each]

    parts(lambda number: sent.append(number.clone()))
    (first, slope), (second, other_slope) = parts(lambda number: number.copy_(sum(sent)))
    assert float(first + second) / 2 == pytest.approx(float(whole), rel=1e-6)
    torch.testing.assert_close(
        torch.cat([slope, other_slope]) / 2, whole_slope, rtol=1e-6, atol=1e-12
    )
