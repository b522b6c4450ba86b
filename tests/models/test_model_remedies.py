# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the errors of models and losses tell people to do is done, and then they compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from advice import advises, helps
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.models import EncoderDecoder as StackEncoderDecoder
from tiny_models import batch_of, build, built, tiny_config

from mmseg_resnest.models import MultiScaleGridTTA
from mmseg_resnest.models.losses.base import check_labels
from mmseg_resnest.models.losses.check import check_losses
from mmseg_resnest.models.losses.pixels import CrossEntropyLoss
from mmseg_resnest.models.losses.regions import LovaszLoss
from mmseg_resnest.models.multi_scale import MultiScaleGrid
from mmseg_resnest.models.multilabel import check_multilabel
from mmseg_resnest.models.norm import build_norm

GRID = dict(mode="multi_scale_grid", scales=(1.0,), base_size=64, crop_size=64)


def test_norms() -> None:
    with advises("models/norm.py:build_norm", "BN, SyncBN or GN"):
        build_norm(dict(type="BatchNormm"), 8)
    for kind in ("BN", "SyncBN"):
        build_norm(dict(type=kind), 8)
    build_norm(dict(type="GN", num_groups=2), 8)


def test_settings_of_the_grid() -> None:
    with advises("models/multi_scale.py:from_config", "remove it", "use one of") as told:
        MultiScaleGrid.from_config(dict(GRID, stride=3), "model.test_cfg")
    names = told.value.message.rpartition("use one of ")[2].split(", ")
    assert {"base_size", "crop_size"} <= set(names)
    MultiScaleGrid.from_config(GRID, "model.test_cfg")


@pytest.fixture(scope="module")
def one_output() -> Any:
    return built(test_cfg=GRID, head=dict(num_classes=2, out_channels=1, threshold=0.5))


def test_a_head_of_one_output(one_output: Any) -> None:
    with advises("models/segmentor.py:multi_scale_grid_inference", "set it to 2", "'whole'"):
        one_output.test_step(batch_of())
    one_output.test_cfg = Config(dict(a=dict(mode="whole"))).a
    one_output.test_step(batch_of())
    built(test_cfg=GRID, head=dict(num_classes=2, out_channels=2)).test_step(batch_of())


def test_augmentation() -> None:
    settings = dict(scales=(1.0,), base_size=64, crop_size=64)
    config = tiny_config()
    theirs = build({**config, "type": StackEncoderDecoder})
    with advises("models/multi_scale.py:__init__", "mmseg_resnest.EncoderDecoder"):
        MultiScaleGridTTA(theirs, **settings)
    ours = MultiScaleGridTTA(build({**config, "type": "mmseg_resnest.EncoderDecoder"}), **settings)
    batch = batch_of()
    several = {key: [value, value] for key, value in batch.items()}
    with advises("models/multi_scale.py:test_step", "remove TestTimeAug"):
        ours.test_step(several)
    ours.test_step(batch)


def test_losses() -> None:
    with advises("models/losses/pixels.py:__init__", "use use_sigmoid"):
        CrossEntropyLoss(use_mask=True)
    CrossEntropyLoss(use_sigmoid=True)
    with advises("models/losses/regions.py:__init__", "remove it"):
        LovaszLoss(loss_type="binary", class_weight=[1.0, 2.0])
    binary = LovaszLoss(loss_type="binary", reduction="none")
    with advises("models/losses/regions.py:check_outputs", "use 'multi_class'"):
        binary.check_outputs(3)
    LovaszLoss(loss_type="multi_class", reduction="none").check_outputs(3)
    head: dict[str, Any] = dict(type="FCNHead", num_classes=3)
    head["loss_decode"] = dict(type="CrossEntropyLoss", loss_name="ce")
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        helps("models/losses/check.py:_check_head", "change the name",
              call=lambda: check_losses(dict(decode_head=head)),
              remedy=lambda: head["loss_decode"].update(loss_name="loss_ce"))  # fmt: skip
    labels = torch.tensor([0, 1, 7])
    with advises("models/losses/base.py:check_labels", "check-data"):
        check_labels(labels, torch.ones(3, dtype=torch.bool), 3)
    check_labels(labels[:2], torch.ones(2, dtype=torch.bool), 3)


def test_heads_of_classes_that_overlap() -> None:
    head: dict[str, Any] = dict(type="FCNHead", num_classes=3)

    def check(decode_head: Any) -> None:
        with DefaultScope.overwrite_default_scope("mmseg_resnest"):
            check_multilabel(dict(decode_head=decode_head))

    with advises("models/multilabel.py:check_multilabel", "name one"):
        check([head, head])
    with advises("models/multilabel.py:_check_head", "remove it with model.multilabel"):
        check(head | dict(sampler=dict(type="OHEMPixelSampler")))
    with advises("models/multilabel.py:_check_head", "output: remove it"):
        check(head | dict(out_channels=1))
    check(head)
    options = dict(head=dict(num_classes=3, loss_decode=dict(type="CrossEntropyLoss",
                   use_sigmoid=True)), test_cfg=dict(thresholds=0.3))  # fmt: skip
    with advises("models/segmentor.py:__init__", "set model.multilabel=True"):
        built(**options)
    built(**options, multilabel=True)
