# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Tensors that would meet on two devices, and waiting for the GPU, are found without a GPU."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from fake_gpu import DEVICE, fake_gpu
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.hooks import NonFiniteHook
from mmseg_resnest.engine.label_predictions import predict_labels_only
from mmseg_resnest.engine.model import build_model
from mmseg_resnest.evaluation import SegmentationMetric
from mmseg_resnest.inference import Segmentor
from mmseg_resnest.models import Distillation, KLDivergence, fold_for_inference
from mmseg_resnest.registry import MODELS, building

SIZE = (48, 64)
#: Each image and each label map goes to the GPU once.
COPY = "copy to the GPU, data_preprocessor.py:forward"
INPUTS = Counter({COPY: 4})
#: The one look at loss and gradients before an update.
GUARD = Counter({"item, nonfinite.py:_is_finite": 1})
#: A label that is not a class is a clear error; the stack stops the process on a GPU.
CHECKED = Counter({"boolean index, base.py:check_labels": 1})
CONFIGS = (
    "fcn_resnest14_camvid",
    "deeplabv3_resnest50_ade20k",
    "pspnet_resnest50_ade20k",
    "encnet_resnest50_ade20k",
    "segnext_mscant_camvid",
    "segformer_mitb0_camvid",
)


def _config(name):
    cfg = load_config(name)
    cfg.model.backbone.init_cfg = None
    if "resnest" in str(cfg.model.backbone.get("arch")):
        cfg.model.backbone.arch = "resnest14"
    cfg.optim_wrapper.type = "OptimWrapper"  # meta has no autocast
    cfg.optim_wrapper.optimizer.pop("fused", None)
    cfg.optim_wrapper.clip_grad = None  # of which one test is
    return cfg


def _batch():
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(img_shape=SIZE, ori_shape=SIZE, pad_shape=SIZE))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 5, (1, *SIZE)))
        samples.append(sample)
    images = [torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8) for _ in samples]
    return {"inputs": images, "data_samples": samples}


def _step(cfg, model, monkeypatch):
    """Waits of a second training step, but for the inputs' and those of the stack's accuracy()."""
    if DEVICE.type == "cuda":  # whose backward pass needs a driver

        def backward(loss, **kwargs):
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)

        monkeypatch.setattr(torch.Tensor, "backward", backward)
    with fake_gpu() as gpu:
        model.train().to(DEVICE)
        if model.data_preprocessor.size_divisor is None:
            model.data_preprocessor.size = SIZE
        with building("mmseg_resnest"):
            wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        wrapper.guard = NonFiniteHook()
        model.train_step(_batch(), wrapper)
        gpu.waits.clear()  # the first step copies what is kept
        logs = model.train_step(_batch(), wrapper)
    assert logs["loss"].device == DEVICE
    waits = gpu.waits - INPUTS
    for name in ("segmentor.py:loss", "segmentor.py:_losses_of_scores", "heads.py:loss_by_feat"):
        waits.pop(f"boolean index, {name}", None)
    waits.pop("boolean index, optim.py:backward", None)  # of a boolean index in the loss
    return waits


@pytest.fixture(autouse=True)
def _quiet():
    logger = MMLogger.get_instance("mmengine")
    level = logger.level
    logger.setLevel("WARNING")  # build_optim_wrapper names every parameter
    yield
    logger.setLevel(level)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_training_step_waits_for_its_guard_alone(name, monkeypatch):
    cfg = _config(name)
    assert _step(cfg, build_model(cfg), monkeypatch) == GUARD


def test_clipped_gradients(monkeypatch):
    """The stack's wrapper asks for their norm, which it logs."""
    cfg = _config("fcn_resnest14_camvid")
    cfg.optim_wrapper.clip_grad = dict(max_norm=1)
    more = Counter({"item, optim.py:step": 1})
    assert _step(cfg, build_model(cfg), monkeypatch) == GUARD + more


@pytest.mark.parametrize(
    ("loss", "more"),
    [
        (dict(type="CrossEntropyLoss", class_weight=[1.0] * 11, avg_non_ignore=True), Counter()),
        (dict(type="DiceLoss"), CHECKED),
        pytest.param(dict(type="FocalLoss"), CHECKED, marks=pytest.mark.long),
        pytest.param(dict(type="TverskyLoss"), CHECKED, marks=pytest.mark.long),
        (
            dict(type="LovaszLoss", per_image=True, reduction="none"),
            CHECKED + Counter({"boolean index, regions.py:<listcomp>": 4}),
        ),
        (
            dict(type="OhemCrossEntropy"),
            CHECKED
            + Counter({"boolean index, pixels.py:forward": 2, "item, pixels.py:hardest": 1}),
        ),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_losses(loss, more, monkeypatch):
    cfg = _config("fcn_resnest14_camvid")
    cfg.model.decode_head.loss_decode = loss
    assert _step(cfg, build_model(cfg), monkeypatch) == GUARD + more


def test_distillation(monkeypatch):
    cfg = _config("fcn_resnest14_camvid")
    teacher, model = build_model(_config("deeplabv3_resnest26_camvid")), build_model(cfg)
    model.distillation = Distillation(teacher, [KLDivergence()], model.data_preprocessor)
    assert _step(cfg, model, monkeypatch) == GUARD


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "scores"])
@pytest.mark.parametrize("name", [CONFIGS[1], CONFIGS[4]])
def test_an_evaluation_waits_in_the_end(name, labels):
    cfg = _config(name)
    model, metric = build_model(cfg).eval(), SegmentationMetric()
    metric.dataset_meta = {"classes": [str(i) for i in range(model.num_classes)]}
    if labels:
        predict_labels_only(model)
    with fake_gpu() as gpu, torch.inference_mode():
        model.to(DEVICE)
        for _ in range(2):
            batch = _batch()
            samples = model.test_step(batch)
            assert samples[0].pred_sem_seg.data.device == DEVICE
            metric.process(batch, [sample.to_dict() for sample in samples])
        assert gpu.waits == INPUTS + INPUTS
        metric.evaluate(4)
    assert gpu.waits - INPUTS - INPUTS == {
        "copy to the CPU, counting.py:_summed": 2,
        "item, metric.py:_check_counted": 1,
    }


@pytest.mark.parametrize("mode", ["multi_scale_grid", "tta", "slide"])
def test_other_evaluations(mode):
    """Once an image the scores are asked for an overflow; the stack's windows whether one lacks."""
    cfg = _config("deeplabv3_resnest50_ade20k")
    grid = dict(mode="multi_scale_grid", base_size=64, crop_size=48, scales=(0.5, 1.0))
    if mode != "tta":
        windows = dict(mode="slide", crop_size=(32, 32), stride=(21, 21))
        cfg.model.test_cfg = grid if mode == "multi_scale_grid" else windows
    model = build_model(cfg).eval()
    with fake_gpu() as gpu, torch.inference_mode():
        model.to(DEVICE)
        if mode == "tta":
            settings = dict(cfg.tta_model, base_size=64, crop_size=48, scales=(0.5, 1.0))
            model = MODELS.build({**settings, "module": model})
        model.test_step(_batch())
    slide = mode == "slide"
    asked = {"segmentor.py:inference": 1} if slide else {"multi_scale.py:add_multi_scale_scores": 2}
    assert gpu.waits == INPUTS + Counter({f"item, {where}": n for where, n in asked.items()})


def test_a_prediction_waits_for_its_labels_alone():
    cfg = _config("deeplabv3_resnest50_ade20k")
    model = build_model(cfg)
    with fake_gpu() as gpu:
        fold_for_inference(model.eval().to(DEVICE))
        result = Segmentor(model, cfg, DEVICE)(np.zeros((*SIZE, 3), np.uint8))
    assert result.labels.shape == SIZE
    assert gpu.waits == {
        COPY: 1,
        "copy to the CPU, segmentor.py:<listcomp>": 1,
    }


def test_tensors_of_two_devices_are_an_error():
    with fake_gpu() as gpu:
        images = torch.zeros(2, 3, device=DEVICE)
        with pytest.raises(RuntimeError):
            images + torch.ones(2, 3)
        assert (images + torch.ones(())).device == DEVICE
        assert images[images > 0].device == DEVICE and not images.sum().item()
    assert gpu.waits == {"boolean index, elsewhere": 1, "item, elsewhere": 1}
