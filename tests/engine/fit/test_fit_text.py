# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The model of one data set becomes that of another: classes, overlap and channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from overlapping import shapes_config

from mmseg_resnest.datasets.prepare.bands import BandStatistics
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.fit import Budget, Facts, Origin, Wishes, choose
from mmseg_resnest.engine.fit.text import model_text
from mmseg_resnest.engine.model import build_model
from mmseg_resnest.io.bands import BandOptions

CLASSES = ("sky", "road", "pole", "car")
BANDS = BandStatistics(BandOptions(), (1.0, 2.0, 3.0, 4.0, 5.0), (1.0,) * 5)


def facts(**how: Any) -> Facts:
    return Facts(
        train_images=9, val_images=2, width=64, height=48, classes=CLASSES,
        train_pixels=(900, 90, 9, 9), val_pixels=(9, 9, 9, 9), memory=None, cores=1, **how,
    )  # fmt: skip


def base_of(kind: str) -> Config:
    cfg = shapes_config(Path("data"), kind == "overlap")
    if kind == "bands":
        cfg.model.backbone.in_channels = 7
        cfg.model.data_preprocessor.update(mean=[0.0] * 7, std=[1.0] * 7, bgr_to_rgb=False)
    cfg.model.decode_head.ignore_index = 0
    return cfg


def model_for(base: Config, found: Facts, weights: Any = "auto") -> Any:
    wishes = Wishes(Budget(iterations=9), "base.py", class_weights=weights)
    plan = choose(found, wishes, Origin())
    names = {name: plan[name] for name in ("class_weights", "crop_size")}
    names["num_classes"] = len(CLASSES)
    exec(model_text(base, found, plan, Origin()), names)
    return names["model"]


@pytest.mark.parametrize("kind", ["one output", "overlap", "bands"])
@pytest.mark.parametrize("bands", [None, BANDS])
@pytest.mark.parametrize("multilabel", [False, True])
def test_any_model_for_any_data(kind: str, bands: Any, multilabel: bool) -> None:
    model = model_for(base_of(kind), facts(bands=bands, multilabel=multilabel))
    head = model["decode_head"]
    losses = head["loss_decode"] if isinstance(head["loss_decode"], list) else [head["loss_decode"]]
    built: Any = build_model(Config({"model": model, "default_scope": "mmseg_resnest"})).eval()
    channels = 5 if bands else 3
    assert (built.decode_head.out_channels, built.decode_head.ignore_index) == (4, 255)
    assert bool(model.get("multilabel")) == multilabel
    assert [bool(one.get("use_sigmoid")) for one in losses][:1] == [multilabel]
    assert len(built.data_preprocessor.mean) == channels
    assert model["data_preprocessor"]["bgr_to_rgb"] == (bands is None)
    with torch.no_grad():
        images = built.data_preprocessor.mean.new_zeros(1, channels, 48, 64)
        scores = built.decode_head(built.backbone(images))
    assert scores.shape[1] == 4


def test_batches_have_the_size_of_their_crops_not_of_the_base() -> None:
    model = model_for(load_config("segnext_mscant_ade20k"), facts())
    built: Any = build_model(Config({"model": model, "default_scope": "mmseg_resnest"}))
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, 64, 64)))
    batch = dict(inputs=[torch.zeros(3, 64, 64)], data_samples=[sample])
    assert built.data_preprocessor(batch, True)["inputs"].shape == (1, 3, 64, 64)
    assert built.data_preprocessor.test_cfg == dict(size_divisor=32)


def test_class_weights_of_a_file_are_those_of_classes_that_overlap() -> None:
    model = model_for(base_of("overlap"), facts(multilabel=True), (1.0, 2.0, 3.0, 4.0))
    entropy, dice = model["decode_head"]["loss_decode"]
    assert entropy["class_weight"] == [1.0, 2.0, 3.0, 4.0]
    assert "class_weight" not in dice
