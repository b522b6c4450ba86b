# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Every loss trains every head; samplers; the class branch of EncNet; one output."""

from __future__ import annotations

import pytest
import torch
from loss_references import softmax
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from test_losses import CE, HD, SIGMOID, batch
from tiny_models import build, built, seeded_images, tiny_config
from user_errors import raises_user_error

from mmseg_resnest.models import OHEMPixelSampler

BASE = dict(dropout_ratio=0, norm_cfg=dict(type="SyncBN"))
LIST = dict(in_channels=[8], in_index=[0])
HEADS = {
    "FCN": dict(type="FCNHead"),
    "published FCN": dict(type="PublishedFCNHead"),
    "PSP": dict(type="PublishedPSPHead", pool_scales=(1, 2)),
    "DeepLabV3": dict(type="DeepLabV3Head", dilations=(1, 2)),
    "EncNet": dict(type="PublishedEncHead", num_codes=4, **LIST),
    "EncNet, no branch": dict(type="EncHead", num_codes=4, use_se_loss=False, **LIST),
    "UPerNet": dict(type="UPerHead", pool_scales=(1, 2), **LIST),
}
LOSSES = {
    "ce": dict(type=CE),
    "weighted ce": dict(type=CE, class_weight=[1.0, 5.0], avg_non_ignore=True),
    "sigmoid": dict(**SIGMOID, class_weight=[1.0, 5.0]),
    "ohem": dict(type="OhemCrossEntropy", min_kept=50),
    "focal": dict(type="FocalLoss"),
    "boundary": dict(type="BoundaryLoss"),
    "dice": dict(type="DiceLoss"),
    "tversky": dict(type="TverskyLoss"),
    "lovasz": dict(type="LovaszLoss"),
    "hausdorff": dict(type=HD),
    "list": [
        dict(type=CE, class_weight=[1.0, 5.0]),
        dict(type="FocalLoss", loss_name="loss_ce"),
        dict(type="DiceLoss", loss_weight=3),
    ],
}


def model_of(head: str, loss, outputs: int = 2, **options):
    """A tiny model in training mode, with an auxiliary head of the same losses."""
    both = {"channels": 8, "num_classes": 2, "loss_decode": loss, **BASE, **options}
    if outputs == 1:
        both.update(out_channels=1, threshold=0.5)
    config = tiny_config()
    config["decode_head"] = {"in_channels": 8, "in_index": 0, **both, **HEADS[head]}
    config["auxiliary_head"] = [{"type": "FCNHead", "in_channels": 8, "in_index": 0, **both}]
    model = build(config)
    model.train()
    return model


def samples_of(labels):
    """Data samples with label maps (N, H, W)."""
    samples = []
    for label in labels:
        sample = SegDataSample(metainfo=dict(img_shape=label.shape, ori_shape=label.shape))
        sample.gt_sem_seg = PixelData(data=label[None])
        samples.append(sample)
    return samples


def picture(ignored: int = 255):
    """Two images, 24x20, and labels that can be seen in them."""
    images = seeded_images(2, 24, 20)
    labels = (torch.arange(20) > 8).long().expand(2, 24, 20).clone()
    images += 4 * labels.unsqueeze(1)
    labels[:, :5] = ignored
    return images, labels


def train(model, images, labels, steps: int = 6):
    """Losses of some steps, with the log of the last."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    totals = []
    for _ in range(steps):
        total, log = model.parse_losses(model.loss(images, samples_of(labels)))
        optimizer.zero_grad()
        total.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        totals.append(float(total))
    return totals, log


def separates(model, images, labels) -> bool:
    """Whether class 1 has higher scores where it is."""
    scores = model.encode_decode(images, [dict(img_shape=(24, 20))] * 2)[:, -1]
    return bool(scores[labels == 1].mean() > scores[labels == 0].mean())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_every_head(head, loss):
    totals, log = train(model_of(head, LOSSES[loss]), *picture())
    assert all(total == total for total in totals) and totals[-1] < totals[0], totals
    assert 0 <= float(log["decode.acc_seg"]) <= 100
    assert ("decode.loss_se" in log) == (head == "EncNet")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loss", LOSSES)
def test_one_output(loss):
    """Training makes the score of class 1 higher where class 1 is."""
    images, labels = picture()
    model = model_of("published FCN", LOSSES[loss], outputs=1)
    totals, log = train(model, images, labels, 15)
    assert totals[-1] < totals[0] and not any("acc_seg" in key for key in log)
    assert separates(model, images, labels)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ignored", [-1, 0, 7])
def test_other_labels_are_ignored_by_a_head(loss, ignored):
    model = model_of("EncNet", LOSSES[loss], ignore_index=ignored)
    images, labels = picture(ignored)
    train(model, images, labels, 1)
    # Nothing is labelled: the head's losses and gradients are 0.
    model.decode_head.use_se_loss = False
    model.zero_grad()
    features = model.extract_feat(images)
    scores = model.decode_head.forward(features).requires_grad_()
    losses = model.decode_head.loss_by_feat(scores, samples_of(torch.full_like(labels, ignored)))
    total, _ = model.parse_losses(losses)
    (slope,) = torch.autograd.grad(total, scores)
    assert float(total) == 0 and not slope.any()


def test_the_class_branch_learns_the_labelled_classes():
    """A class that is ignored is not in the image; one class is class 1."""
    head = model_of("EncNet", LOSSES["ce"]).decode_head
    seen = []
    head.loss_se_decode.forward = lambda scores, targets: seen.append(targets.tolist())
    labels = torch.full((3, 4, 4), 1)
    labels[1], labels[2, 0], labels[0, 0] = 0, 0, 255
    outputs = torch.zeros(3, 2, 4, 4), torch.zeros(3, 2)
    head.loss_by_feat(outputs, samples_of(labels))
    head.ignore_index = 0
    head.loss_by_feat(outputs, samples_of(labels.masked_fill(labels == 255, 1)))
    head.num_classes, head.ignore_index = 1, 255
    head.loss_by_feat((torch.zeros(3, 1, 4, 4), torch.zeros(3, 1)), samples_of(labels))
    assert seen == [
        [[0, 1], [1, 0], [1, 1]],
        [[0, 1], [0, 0], [0, 1]],
        [[1], [0], [1]],
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("thresh", [None, 0.6])
@pytest.mark.parametrize("loss", ["weighted ce", "sigmoid", "focal", "list"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_sampler(thresh, loss, outputs):
    losses = LOSSES[loss]
    if loss == "list":
        losses = losses[:2] if thresh is None else losses
    sampler = dict(type="OHEMPixelSampler", thresh=thresh, min_kept=40)
    model = model_of("FCN", losses, outputs, sampler=sampler)
    assert isinstance(model.decode_head.sampler, OHEMPixelSampler)
    images, labels = picture()
    train(model, images, labels, 15)  # the loss is of ever harder pixels and need not fall
    assert separates(model, images, labels)


class Context:
    """A head, as far as a sampler reads it."""

    ignore_index = 255
    loss_decode = None


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_sampler_takes_the_hardest(outputs):
    scores, labels = batch(outputs, 255)
    sampler = OHEMPixelSampler(Context(), thresh=0.2, min_kept=4)
    weight = sampler.sample(scores, labels.unsqueeze(1))
    places = (labels != 255).nonzero().tolist()
    chances = sorted(
        (softmax(scores[n, :, y, x].tolist())[labels[n, y, x]], (n, y, x)) for n, y, x in places
    )
    expected = {place for rank, (p, place) in enumerate(chances) if p < 0.2 or rank < 8}
    assert {tuple(place) for place in weight.nonzero().tolist()} == expected
    assert set(weight.unique().tolist()) == {0, 1}


def test_a_model_with_a_wrong_number_of_weights_is_not_built():
    with raises_user_error("config-conflict", "model.decode_head.loss_decode.class_weight"):
        model_of("FCN", dict(type=CE, class_weight=[1.0, 2.0, 3.0]))
    built(head=dict(loss_decode=dict(type=CE, class_weight=[1.0, 2.0, 3.0, 4.0])))
