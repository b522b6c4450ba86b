# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Classes that overlap: losses against written-out ones, predictions, and configs refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from advice import advises
from mmengine.structures import PixelData
from tiny_models import batch_of, built, tiny_config
from torch import Tensor
from user_errors import raises_user_error

from mmseg_resnest.models import EncoderDecoder
from mmseg_resnest.registry import MODELS

CE = dict(type="CrossEntropyLoss", use_sigmoid=True)


def targets(count: int = 2, classes: int = 3, size: tuple[int, int] = (5, 6)) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(0, 2, (count, classes, *size), generator=generator)
    labels[:, :, :2, :3] = 255
    labels[0, 1, 4] = 255  # of one class alone
    return labels.to(torch.uint8)


def by_hand(kind: str, scores: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """The loss element by element, in plain words."""
    chance = 1 / (1 + torch.exp(-scores))
    known = labels != 255
    truth = (labels == 1).to(scores)
    own = torch.where(truth == 1, chance, 1 - chance)
    if kind == "ce":
        terms = -own.log() * known
        weights = torch.tensor(options.get("weights", [1.0] * 3)).to(scores).view(1, -1, 1, 1)
        terms = torch.where(truth == 1, weights * terms, terms)
        return terms.sum() / (known.sum() if options.get("known") else known.numel())
    if kind == "focal":
        return (-0.5 * (1 - own) ** 2 * own.log() * known).mean()
    losses = []
    for i in range(len(scores)):
        p, t = chance[i][known[i]], truth[i][known[i]]
        losses.append(1 - 2 * (p * t).sum() / ((p * p).sum() + (t * t).sum() + 2e-3))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("config", "kind", "options"),
    [
        (CE, "ce", {}),
        (dict(CE, avg_non_ignore=True), "ce", dict(known=True)),
        (dict(CE, class_weight=[1.0, 4.0, 0.5]), "ce", dict(weights=[1.0, 4.0, 0.5])),
        (dict(type="FocalLoss"), "focal", {}),
        (dict(type="DiceLoss"), "dice", {}),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_losses(config: dict[str, Any], kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    labels = targets()
    loss = MODELS.build(config)(scores, labels, ignore_index=255)
    expected = by_hand(kind, scores, labels, **options)
    assert torch.allclose(loss, expected, rtol=1e-9)
    ours, theirs = (torch.autograd.grad(x, scores, retain_graph=True)[0] for x in (loss, expected))
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-12)
    assert not ours[labels == 255].any()
    spoilt = scores.detach().masked_fill(labels == 255, float("nan")).requires_grad_()
    other = MODELS.build(config)(spoilt, labels, ignore_index=255)
    assert torch.equal(other, loss)


def model(**options: Any) -> Any:
    head = dict(num_classes=3, loss_decode=[CE, dict(type="DiceLoss")])
    size = dict(size=(37, 53), pad_val=0, seg_pad_val=255)
    return built(preprocessor=size, head=head, multilabel=True, **options)


def test_the_sum_of_losses() -> None:
    found = model().train()
    batch = batch_of(count=2)
    for sample, labels in zip(batch["data_samples"], targets(size=(37, 53)), strict=True):
        sample.gt_sem_seg = PixelData(data=labels)
    data = found.data_preprocessor(batch, True)
    torch.manual_seed(1)
    losses = found.loss(**data)
    assert set(losses) == {"decode.loss_ce", "decode.loss_dice"}
    found.eval()
    with torch.no_grad():
        losses = found.loss(**data)
        scores = found.inference(data["inputs"], [s.metainfo for s in data["data_samples"]])
    labels = targets(size=(37, 53))
    assert torch.allclose(losses["decode.loss_ce"], by_hand("ce", scores, labels), rtol=1e-4)
    assert torch.allclose(losses["decode.loss_dice"], by_hand("dice", scores, labels), rtol=1e-4)


def test_labels_of_another_kind_are_refused() -> None:
    found = model().train()

    def loss(labels: Tensor) -> Any:
        batch = batch_of(count=2)
        for sample in batch["data_samples"]:
            sample.gt_sem_seg = PixelData(data=labels)
        return found.loss(**found.data_preprocessor(batch, True))

    for wrong in (torch.zeros(1, 37, 53, dtype=torch.int64), targets(1, 2, (37, 53))[0]):
        with advises("models/multilabel.py:_targets", "load them by"):
            loss(wrong)
    loss(targets(1, 3, (37, 53))[0])


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("classes", [1, 3])
def test_predictions(mode: str, classes: int) -> None:
    windows = dict(crop_size=(32, 32), stride=(20, 20)) if mode == "slide" else {}
    limits = [0.2, 0.5, 0.8][:classes]
    head = dict(num_classes=classes, loss_decode=CE)
    test_cfg = dict(mode=mode, thresholds=limits, **windows)
    found = built(head=head, multilabel=True, test_cfg=test_cfg)
    torch.nn.init.normal_(found.decode_head.conv_seg.weight, std=1.0)
    batch = batch_of(ori_shape=(74, 60))
    with torch.no_grad():
        data = found.data_preprocessor(batch, False)
        metas = [sample.metainfo for sample in data["data_samples"]]
        scores = found.inference(data["inputs"], metas)
        resize = torch.nn.functional.interpolate
        scores = resize(scores, (74, 60), mode="bilinear", align_corners=True)[0]
        for keep in (True, False):
            found.test_cfg.keep_scores = keep
            (sample,) = found.test_step(batch)
            expected = scores.sigmoid() > torch.tensor(limits)[:, None, None]
            assert torch.equal(sample.pred_sem_seg.data, expected.to(torch.uint8))
    assert torch.allclose(sample.seg_logits.data, scores.sigmoid())


WRONG: list[tuple[str, str, dict[str, Any]]] = [
    ("config-conflict", "decode_head.loss_decode", dict(head=dict(loss_decode=dict(
        type="CrossEntropyLoss")))),
    ("config-conflict", "decode_head.loss_decode.1", dict(head=dict(loss_decode=[CE, dict(
        type="LovaszLoss")]))),
    ("config-conflict", "decode_head.sampler", dict(head=dict(sampler=dict(
        type="OHEMPixelSampler", thresh=0.7)))),
    ("config-conflict", "decode_head.out_channels", dict(head=dict(num_classes=2, out_channels=1,
                                                                   threshold=0.5))),
    ("config-value", "decode_head.num_classes", dict(head=dict(num_classes=64))),
    ("config-conflict", "decode_head.type", dict(head=dict(type="EncHead", num_codes=4))),
    ("config-conflict", "decode_head.type", dict(head=dict(type=torch.nn.Identity))),
    ("config-conflict", "test_cfg.mode", dict(test_cfg=dict(mode="multi_scale_grid",
                                                            crop_size=32))),
    ("config-value", "test_cfg.thresholds", dict(test_cfg=dict(thresholds=[0.5, 0.5]))),
    ("config-value", "test_cfg.thresholds", dict(test_cfg=dict(thresholds=1.5))),
    ("config-value", "model.multilabel", dict(multilabel=3)),
    ("config-conflict", "test_cfg.thresholds", dict(test_cfg=dict(thresholds=0.5),
                                                    multilabel=False)),
]  # fmt: skip


@pytest.mark.parametrize(("code", "subject", "change"), WRONG, ids=[key for _, key, _ in WRONG])
def test_configs_that_are_refused(code: str, subject: str, change: dict[str, Any]) -> None:
    head = dict(num_classes=3, loss_decode=CE) | change.get("head", {})
    config = tiny_config(**{"multilabel": True, **change, "head": head})
    del config["type"]
    with raises_user_error(code, subject):
        EncoderDecoder(**config)
