# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The configs of configs/classification/ hold the published recipe, number by number.

What needs MMPretrain is in tests/classify/.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import CosineAnnealingLR, LinearLR

from mmseg_resnest.engine.hooks import DropBlockHook
from mmseg_resnest.models import ARCHITECTURES, DropBlock2d, ResNeSt
from mmseg_resnest.models.resnest import Bottleneck

CONFIGS = Path(__file__).parents[1] / "configs/classification"
IMAGES, EPOCHS, WARM_UP = 1281167, 270, 5
#: Total batch, peak learning rate, training and test crop, dropout, DropBlock.
TABLE = {
    "resnest14": (1024, 0.4, 224, 224, 0.0, 0.0),
    "resnest26": (1024, 0.4, 224, 224, 0.0, 0.0),
    "resnest50": (8192, 3.2, 224, 224, 0.0, 0.1),
    "resnest101": (4096, 1.6, 224, 256, 0.0, 0.1),
    "resnest200": (2048, 0.8, 256, 320, 0.2, 0.1),
    "resnest269": (2048, 0.8, 320, 416, 0.2, 0.1),
    **{name: (8192, 3.2, 224, 224, 0.0, 0.1) for name in ARCHITECTURES if "fast" in name},
}
TOP1 = dict(
    **dict(resnest14=75.75, resnest26=78.68, resnest50=81.03, resnest101=82.83),
    **dict(resnest200=83.84, resnest269=84.54),
    **dict(resnest50_fast_1s1x64d=80.33, resnest50_fast_2s1x64d=80.53),
    **dict(resnest50_fast_4s1x64d=80.76, resnest50_fast_1s2x40d=80.59),
    **dict(resnest50_fast_2s2x40d=80.61, resnest50_fast_4s2x40d=81.14),
    **dict(resnest50_fast_1s4x24d=80.99),
)


def read(name: str) -> Config:
    return Config.fromfile(CONFIGS / f"{name}.py", import_custom_modules=False)


def test_there_is_one_for_each_published_model() -> None:
    names = {path.stem for path in CONFIGS.glob("*.py")}
    assert names == {f"{name}_imagenet" for name in ARCHITECTURES} | {"resnest14_scenes_crops"}
    assert set(TABLE) == set(ARCHITECTURES)
    for name, value in TOP1.items():
        assert f"{value:.2f} at" in (CONFIGS / f"{name}_imagenet.py").read_text()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_config_is_the_published_recipe(name: str) -> None:
    cfg = read(f"{name}_imagenet")
    batch, rate, train_crop, test_crop, dropout, dropblock = TABLE[name]
    length = EPOCHS * (IMAGES // batch)
    loader, backbone, head = cfg.train_dataloader, cfg.model.backbone, cfg.model.head
    assert loader.batch_size == cfg.auto_scale_lr.base_batch_size == batch
    assert cfg.train_cfg.max_iters == length
    nesterov = dict(nesterov=True) if name in ("resnest14", "resnest26") else {}
    assert cfg.optim_wrapper.optimizer == dict(
        type="SGD", lr=rate, momentum=0.9, weight_decay=1e-4, **nesterov
    )
    assert cfg.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
    assert (backbone.type, backbone.arch, backbone.output_stride) == ("ResNeSt", name, 32)
    assert backbone.zero_init_residual
    assert (backbone.dropblock_prob, backbone.dropblock_size) == (dropblock, 3)
    assert cfg.custom_hooks == [dict(type="DropBlockHook")]
    assert (head.dropout, head.num_classes, head.in_channels) == (dropout, 1000, 2048)
    assert head.loss == dict(type="mmpretrain.LabelSmoothLoss", label_smooth_val=0.1)
    assert cfg.model.data_preprocessor.mixup == 0.2

    steps = {step.type.removeprefix("mmpretrain."): step for step in loader.dataset.pipeline}
    assert list(steps) == [
        *("LoadImageFromFile", "RandAugment", "EfficientNetRandomCrop", "RandomFlip"),
        *("ColorJitter", "Lighting", "PackInputs"),
    ]
    augment = steps["RandAugment"]
    assert (augment.num_policies, augment.magnitude_level, augment.total_level) == (2, 12, 30)
    assert len(augment.policies) == 16
    policies = {policy.type.removeprefix("mmpretrain."): policy for policy in augment.policies}
    assert policies["Cutout"].pad_val == (114, 123, 125)
    assert policies["Translate"].interpolation == "bicubic"
    assert math.ceil(policies["Posterize"].magnitude_range[1] * 12 / 30) == int(4 * 12 / 30) == 1
    crop = steps["EfficientNetRandomCrop"]
    assert crop.scale == train_crop and crop.interpolation == "bilinear"
    assert tuple(crop.crop_ratio_range) == (0.1, 1.0)
    assert tuple(crop.aspect_ratio_range) == (3 / 4, 4 / 3)
    jitter = steps["ColorJitter"]
    assert (jitter.brightness, jitter.contrast, jitter.saturation) == (0.4, 0.4, 0.4)
    assert steps["Lighting"].alphastd == 0.1
    for split in ("val", "test"):
        (crop,) = [s for s in cfg[f"{split}_dataloader"].dataset.pipeline if "Crop" in s.type]
        assert (crop.crop_size, crop.interpolation) == (test_crop, "bicubic")
    assert cfg.test_evaluator == dict(type="mmpretrain.Accuracy", topk=(1, 5))


@pytest.mark.parametrize("name", ["resnest50", "resnest101", "resnest200", "resnest14"])
def test_learning_rate_at_chosen_iterations(name: str) -> None:
    """From 0 to the peak in 5 epochs, then half a cosine to 0 in the other 265."""
    cfg = read(f"{name}_imagenet")
    peak, length = TABLE[name][1], cfg.train_cfg.max_iters
    warm_up = WARM_UP * (IMAGES // TABLE[name][0])
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=cfg.optim_wrapper.optimizer.lr)
    kinds = {"LinearLR": LinearLR, "CosineAnnealingLR": CosineAnnealingLR}
    schedules = []
    for one in cfg.param_scheduler:
        options = {key: value for key, value in one.items() if key != "type"}
        schedules.append(kinds[one.type](optimizer, **options))
    optimizer.step()
    chosen = {0, 1, warm_up // 2, warm_up - 1, warm_up, warm_up + 1, length // 2, length - 1}
    for i in range(length):
        if i in chosen:
            wanted = peak * i / warm_up
            if i >= warm_up:
                passed = (i - warm_up) / (length - warm_up)
                wanted = peak * (1 + math.cos(math.pi * passed)) / 2
            assert optimizer.param_groups[0]["lr"] == pytest.approx(wanted, rel=1e-6, abs=1e-9), i
        for schedule in schedules:
            schedule.step()


def test_dropblock_rises_linearly_in_the_last_two_stages() -> None:
    backbone = ResNeSt("resnest14", dropblock_prob=0.1)
    layers = {name: m for name, m in backbone.named_modules() if isinstance(m, DropBlock2d)}
    assert {name.partition(".")[0] for name in layers} == {"layer3", "layer4"}
    assert len(layers) == 6  # behind each of the three norms of a block
    runner = SimpleNamespace(model=backbone, iter=0, max_iters=1000)
    hook = DropBlockHook()
    hook.before_train(runner)
    for runner.iter, wanted in ((0, 0.0), (1, 1e-4), (500, 0.05), (999, 0.0999)):
        hook.before_train_iter(runner, runner.iter)
        assert [layer.drop_prob for layer in layers.values()] == [pytest.approx(wanted)] * 6
    hook.after_train(runner)
    assert {layer.drop_prob for layer in layers.values()} == {0.1}


def test_last_gamma_of_each_block_begins_at_zero() -> None:
    backbone = ResNeSt("resnest14", output_stride=32, zero_init_residual=True)
    for name, module in backbone.named_modules():
        if isinstance(module, Bottleneck):
            assert not module.bn3.weight.any(), name
            assert (module.bn1.weight == 1).all()
    assert ResNeSt("resnest14").layer1[0].bn3.weight.all()
