# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Every config loads, names only what exists, and builds what its name says.

Networks are built on the meta device, where they take no memory: their forward passes give the
shapes of the scores. Equal backbones of several configs are built once. One config of each head is
trained for a step and evaluated for real, on its smallest backbone.
tests/models/test_published_models.py compares losses and a training step with the published code.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from itertools import product
from pathlib import Path

import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmseg_resnest.engine.checkpoint import load_weights
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.models import ARCHITECTURES, ResNeSt
from mmseg_resnest.registry import (
    DATASETS,
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    METRICS,
    MODELS,
    PARAM_SCHEDULERS,
    VISUALIZERS,
)
from mmseg_resnest.weights.catalogue import find

CONFIGS = Path(__file__).parents[1] / "configs"
FROM_SCRATCH = (
    "fcn_resnest14_scenes",
    "fcn_resnest14_camvid",
    "deeplabv3_resnest26_camvid",
    "deeplabv3_resnest50_camvid",
    "deeplabv3plus_resnest50_camvid",
    "deeplabv3plus_resnet50_camvid",
    "segnext_mscant_camvid",
    "segformer_mitb0_camvid",
)
# Heads of other papers, with their own recipe: tests/test_other_models.py compares them.
OTHER = [
    *product(("segnext",), ("mscant", "mscans", "mscanb", "mscanl"), ("ade20k", "cityscapes")),
    *product(("segformer",), ("mitb0", "mitb2", "mitb4"), ("ade20k", "cityscapes")),
]
OTHER_NAMES = sorted("_".join(parts) for parts in OTHER)


def required() -> set[str]:
    """The names that configs/ must hold."""
    three = ("ade20k", "cityscapes", "voc12aug")
    grid = [
        *product(("fcn", "pspnet", "deeplabv3", "encnet"), ("resnest50", "resnest101"), three),
        *product(("deeplabv3",), ("resnest200", "resnest269"), three),
        *product(("deeplabv3plus", "upernet"), ("resnest101",), three),
        *product(("fcn", "deeplabv3"), ("resnest50", "resnest101"), ("pascal_context",)),
        *product(("deeplabv3",), ("resnest200", "resnest269"), ("pascal_context",)),
        *product(("fcn", "deeplabv3"), ("resnet50", "resnet101"), ("ade20k",)),
    ]
    return {"_".join(parts) for parts in [*grid, *OTHER]} | set(FROM_SCRATCH)


# MMSegmentation's names, one of which lacks a dash.
_HEADS = ("fcn", "deeplabv3", "deeplabv3plus")
OPENMMLAB = {
    *(f"resnest_s101-d8_{head}_4xb4-160k_ade20k-512x512" for head in (*_HEADS, "pspnet")),
    *(f"resnest_s101-d8_{head}_4xb2-80k_cityscapes-512x1024" for head in _HEADS),
    "resnest_s101-d8_pspnet_4xb2-80k_cityscapes512x1024",
}
PUBLISHED_NAMES = sorted(required() - set(FROM_SCRATCH) - set(OTHER_NAMES))
ALL = sorted(required()) + sorted(f"openmmlab/{name}" for name in OPENMMLAB)


@functools.cache
def _load(name: str) -> Config:
    return load_config(CONFIGS / f"{name}.py")


def load(name: str) -> Config:
    """The checked config; a copy, so that a test may change it."""
    return copy.deepcopy(_load(name))


def _without_storage(config: dict) -> torch.nn.Module:
    """The module of a config on the meta device."""
    with DefaultScope.overwrite_default_scope("mmseg_resnest"), torch.device("meta"):
        return MODELS.build(config)


@functools.cache
def _backbone(config: str) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """A backbone without storage, and its features of two images (3, 64, 96)."""
    backbone = _without_storage(json.loads(config))
    return backbone, backbone(torch.empty(2, 3, 64, 96, device="meta"))


def meta_backbone(name: str) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The backbone of a config, and its features."""
    return _backbone(json.dumps(load(name).model.backbone.to_dict(), sort_keys=True))


@functools.cache
def meta_model(name: str) -> torch.nn.Module:
    """The network of a config without storage, on a ResNeSt of four blocks."""
    model = load(name).model
    if model.backbone.type == "ResNeSt":
        model.backbone.arch = "resnest14"
    return _without_storage(model)


@pytest.fixture(autouse=True)
def _scope_and_one_thread():
    """Names mean what they mean in a run; everything is tiny: threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        yield
    torch.set_num_threads(threads)


def parts(name: str) -> tuple[str, str, str]:
    """(head, backbone, data set) from the name of a config."""
    if name.startswith("openmmlab/"):
        head, data = re.search(r"d8_([a-z0-9]+)_4x.*k_([a-z0-9]+?)-?512x", name).groups()
        return head, "resnest101", data
    head, backbone, data = name.split("_", 2)
    return head, backbone, data


def test_the_list_is_complete_and_every_base_is_used():
    assert {path.stem for path in CONFIGS.glob("*.py")} == required()
    assert {path.stem for path in (CONFIGS / "openmmlab").glob("*.py")} == OPENMMLAB
    used = set()
    for path in CONFIGS.rglob("*.py"):
        for base in re.findall(r'"([^"\s]+\.py)"', path.read_text()):
            used.add((path.parent / base).resolve())
    assert {path.resolve() for path in (CONFIGS / "_base_").rglob("*.py")} <= used


# Step of the score map in pixels: stage 1 for heads that go back up to it.
SCORE_STRIDE = dict(fcn=8, pspnet=8, deeplabv3=8, encnet=8, deeplabv3plus=4, upernet=4)
SCORE_STRIDE |= dict(segnext=8, segformer=4)
WIDTHS = {"mscant": (32, 64, 160, 256), "mitb0": (32, 64, 160, 256)}
CLASSES = dict(ade20k=150, cityscapes=19, voc12aug=21, pascal_context=59, camvid=11, scenes=12)


@pytest.mark.parametrize("name", ALL)
def test_config(name, tmp_path):
    """A config has few lines and the network of its name, and all its parts can be built."""
    lines = (CONFIGS / f"{name}.py").read_text().splitlines()
    assert sum(not line.startswith("#") for line in lines) <= (20 if name in FROM_SCRATCH else 12)
    cfg = load(name)
    _check_shapes(name, cfg)
    _check_schedule(cfg)
    for hook in cfg.default_hooks.values():
        assert isinstance(HOOKS.build(hook), Hook)
    assert METRICS.build(cfg.val_evaluator) and METRICS.build(cfg.test_evaluator)
    assert LOG_PROCESSORS.build(dict(type="LogProcessor", **cfg.log_processor))
    # The visualiser is one a process; another name keeps the tests apart.
    visualizer = dict(cfg.visualizer, name=f"visualizer {name}", save_dir=str(tmp_path))
    assert VISUALIZERS.build(visualizer)
    for loop in (cfg.train_cfg, cfg.val_cfg, cfg.test_cfg):
        assert LOOPS.get(loop.type)
    model = copy.copy(meta_model(name))  # copied: test-time augmentation changes its test_cfg
    assert build_optim_wrapper(model, cfg.optim_wrapper)
    assert MODELS.build(dict(cfg.tta_model, module=model))
    assert cfg.default_hooks.checkpoint.interval == cfg.train_cfg.val_interval
    assert cfg.train_dataloader.batch_size == cfg.total_batch_size
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=cfg.total_batch_size)
    if name in FROM_SCRATCH:
        assert cfg.model.backbone.get("init_cfg") is None


def _check_shapes(name, cfg):
    head, backbone, data = parts(name)
    model, classes = meta_model(name), CLASSES[data]
    built, features = meta_backbone(name)
    other = head in ("segnext", "segformer")
    output_stride = 32 if head == "upernet" or other else 8
    if name in FROM_SCRATCH and not other:
        output_stride = cfg.model.backbone.get("output_stride", 8)
    if backbone.startswith("resnest"):
        assert type(built) is ResNeSt
        assert built.arch == ARCHITECTURES[backbone]
    strides = [4, 8, min(16, output_stride), output_stride]
    widths = [256 * 2**stage for stage in range(4)]
    if other:
        widths = WIDTHS.get(backbone, (64, 128, 320, 512))
    assert [tuple(f.shape) for f in features] == [
        (2, width, 64 // stride, 96 // stride)
        for width, stride in zip(widths, strides, strict=True)
    ]
    if head == "encnet":  # autocast, which its encoding layer guards against, has no meta device
        decode_head = MODELS.build(cfg.model.decode_head)
        scores, presence = decode_head([torch.zeros(feature.shape) for feature in features])
        assert presence.shape == (2, classes)
    else:
        scores = model.decode_head(features)
    stride = 64 // scores.shape[2] if name in FROM_SCRATCH else SCORE_STRIDE[head]
    assert 4 <= stride <= output_stride or name not in FROM_SCRATCH
    assert scores.shape == (2, classes, 64 // stride, 96 // stride)
    if not other:
        auxiliary = model.auxiliary_head(features)
        assert auxiliary.shape == (2, classes, 64 // strides[2], 96 // strides[2])
    assert len(DATASETS.get(cfg.train_dataloader.dataset.type).METAINFO["classes"]) == classes


def _check_schedule(cfg):
    """Above the end until the last step, never rising after the warm-up."""
    _check_rates(cfg.train_cfg.max_iters, json.dumps(cfg.to_dict()["param_scheduler"]))


@functools.cache
def _check_rates(length: int, text: str) -> None:
    schedules = [Config(one) for one in json.loads(text)]
    short = schedules[-1].begin + 1000
    if length > short:
        # The recursion is linear in the length: a part of it has the same course.
        schedules[-1].end += short - length
        length = short
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedulers = [PARAM_SCHEDULERS.build(dict(s, optimizer=optimizer)) for s in schedules]
    rates = []
    optimizer.step()
    for _ in range(length):
        rates.append(optimizer.param_groups[0]["lr"])
        for scheduler in schedulers:
            scheduler.step()
    floor = schedules[-1].eta_min
    peak = int(np.argmax(rates))
    assert peak <= max((s.get("end", 0) for s in schedules[:-1]), default=0)
    assert rates[peak] == pytest.approx(1.0, abs=0.02)
    assert (np.diff(rates[peak + 1 :]) < 0).all() and rates[-1] >= floor
    assert optimizer.param_groups[0]["lr"] == pytest.approx(floor, abs=1e-12)


def tiny_batch(classes: int) -> list[SegDataSample]:
    """Labels of two images (64, 96), an eighth ignored."""
    labels = torch.randint(classes, (2, 1, 64, 96), generator=torch.Generator().manual_seed(0))
    labels[..., :12] = 255
    meta = dict(img_shape=(64, 96), ori_shape=(64, 96))
    return [SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=one)) for one in labels]


@pytest.mark.parametrize(
    "name",
    [
        "fcn_resnest14_scenes",
        "fcn_resnet50_ade20k",
        "pspnet_resnest50_voc12aug",
        "deeplabv3_resnest26_camvid",
        "encnet_resnest50_voc12aug",
        pytest.param("deeplabv3plus_resnest101_voc12aug", marks=pytest.mark.long),
        pytest.param("upernet_resnest101_voc12aug", marks=pytest.mark.long),
        "openmmlab/resnest_s101-d8_deeplabv3plus_4xb2-80k_cityscapes-512x1024",
    ],
)
def test_a_training_step_and_a_prediction_for_real(name):
    cfg = load(name)
    cfg.model.backbone.init_cfg = None  # no download
    if cfg.model.backbone.type == "ResNeSt":
        cfg.model.backbone.arch = "resnest14"
    if "size" in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = (64, 96)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    images = list(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8))
    samples = tiny_batch(model.decode_head.num_classes)
    model.train(True)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    batch = model.data_preprocessor(dict(inputs=images, data_samples=samples), True)
    loss, _ = model.parse_losses(model(**batch, mode="loss"))
    loss.backward()
    assert torch.isfinite(loss)
    assert [key for key, value in model.named_parameters() if value.grad is None] == []
    wrapper.step()

    model.train(False)
    # Scores go back to the image's own size, not that of the network's input.
    samples[0].set_metainfo(dict(img_shape=(64, 96), ori_shape=(50, 75), padding_size=[0] * 4))
    batch = dict(inputs=images[:1], data_samples=samples[:1])
    with torch.no_grad():
        prediction = model.test_step(batch)[0].pred_sem_seg.data
    assert prediction.shape == (1, 50, 75)
    assert prediction.max() < model.decode_head.num_classes


# --- the published models, recipe and protocol ----------------------------------------------------

IMAGENET = dict(
    resnest50="528c19ca", resnest101="22405ba7", resnest200="75117900", resnest269="0cc87c48"
)
IMAGES = dict(ade20k=20210, cityscapes=2975, voc12aug=10582, pascal_context=4998)
EPOCHS = dict(ade20k=120, cityscapes=240, voc12aug=80, pascal_context=80)
LEARNING_RATE = dict(ade20k=0.01, cityscapes=0.01, voc12aug=0.001, pascal_context=0.001)


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_published_config(name):
    """What a shape does not show."""
    cfg = load(name)
    _, backbone, data = parts(name)
    for part in (cfg.model.decode_head, cfg.model.auxiliary_head):
        assert part.align_corners and part.norm_cfg.type == "SyncBN" and part.dropout_ratio == 0.1
    preprocessor = cfg.model.data_preprocessor
    np.testing.assert_allclose(np.array(preprocessor.mean) / 255, (0.485, 0.456, 0.406))
    np.testing.assert_allclose(np.array(preprocessor.std) / 255, (0.229, 0.224, 0.225))
    assert preprocessor.bgr_to_rgb and cfg.model.test_cfg == dict(mode="whole")
    assert cfg.model.backbone.norm_cfg.type == "SyncBN"
    if backbone in IMAGENET:
        assert cfg.model.backbone.get("avd_in_dilated", True)
        assert cfg.model.backbone.init_cfg == dict(type="Pretrained", checkpoint=backbone)
        assert find(backbone).urls[0] == (
            "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1/"
            f"{backbone}-{IMAGENET[backbone]}.pth"
        )

    epochs = 180 if data == "ade20k" and backbone in ("resnest101", "resnest200") else EPOCHS[data]
    iterations = epochs * (IMAGES[data] // 16)
    assert cfg.train_cfg.max_iters == iterations
    assert cfg.total_batch_size == 16
    assert cfg.train_cfg.val_interval == 10 * (IMAGES[data] // 16)
    assert cfg.optim_wrapper.optimizer == dict(
        type="SGD", lr=LEARNING_RATE[data], momentum=0.9, weight_decay=1e-4
    )
    assert [(s.type, s.power, s.eta_min, s.begin, s.end) for s in cfg.param_scheduler] == [
        ("PolyLR", 0.9, 0.0, 0, iterations + 1)
    ]

    steps = cfg.train_dataloader.dataset.pipeline[2:]
    assert [step.type for step in steps] == [
        *("RandomFlip", "RandomLongEdgeResize", "Pad", "RandomCrop", "PackSegInputs")
    ]
    flip, resize, pad, crop = steps[:4]
    assert flip.prob == 0.5 and (resize.base_size, *resize.ratio_range) == (520, 0.5, 2.0)
    assert tuple(pad.size) == tuple(crop.crop_size) == (480, 480)
    tta = cfg.tta_model
    assert tta.type == "MultiScaleGridTTA" and tta.flip
    assert (tta.base_size, tta.crop_size) == (520, 480)
    coarse, fine = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), (0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25)
    assert tuple(tta.scales) == (fine if data == "cityscapes" else coarse)


def test_learning_rate_along_the_whole_published_schedule():
    """lr * (1 - i / N) ** 0.9 for the backbone and ten times that for both heads, to zero."""
    cfg, model = load("fcn_resnest50_pascal_context"), meta_model("fcn_resnest50_pascal_context")
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    assert {group["lr"] for group in groups} == {0.001, 0.01}
    groups = [dict(params=[torch.zeros(1, requires_grad=True)], lr=rate) for rate in (0.001, 0.01)]
    optimizer = torch.optim.SGD(groups, lr=0.001)
    (scheduler,) = [
        PARAM_SCHEDULERS.build(dict(s, optimizer=optimizer)) for s in cfg.param_scheduler
    ]
    length = 80 * (4998 // 16)
    optimizer.step()
    for i in range(length + 1):
        if i in (0, 1, 1000, length // 2, length - 1, length):
            rate = 0.001 * (1 - i / length) ** 0.9
            assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-6, abs=1e-15)
            assert optimizer.param_groups[1]["lr"] == pytest.approx(10 * rate, rel=1e-6, abs=1e-15)
        scheduler.step()


# --- MMSegmentation's variants -------------------------------------------------------------------


def stock_config(name: str) -> Config:
    file = Path(mmseg.__file__).parent / ".mim" / "configs" / "resnest" / f"{name}.py"
    if not file.is_file():
        pytest.skip("this installation of mmseg brings no configs")
    return Config.fromfile(file)


def without(node: dict, *keys: str) -> dict:
    return {key: value for key, value in node.items() if key not in keys}


@pytest.mark.parametrize("name", sorted(OPENMMLAB))
def test_openmmlab_config_is_the_stack_s_own(name):
    """Same model but for the name of the backbone, same schedule, augmentation and evaluation."""
    theirs, ours = stock_config(name), load(f"openmmlab/{name}")
    for part in ("decode_head", "auxiliary_head", "test_cfg", "data_preprocessor"):
        mine, stock = (dict(cfg.model[part]) for cfg in (ours, theirs))
        if part == "data_preprocessor":
            mine["size"], stock["size"] = tuple(mine["size"]), tuple(stock["size"])
        assert mine == stock, part
    assert without(ours.model.backbone, "norm_cfg", "init_cfg") == dict(
        type="ResNeSt", arch="resnest101", output_stride=8, avd_in_dilated=False
    )

    total = 16 if "4xb4" in name else 8
    assert ours.total_batch_size == total == 4 * theirs.train_dataloader.batch_size
    assert ours.optim_wrapper.optimizer == theirs.optim_wrapper.optimizer
    assert "paramwise_cfg" not in ours.optim_wrapper
    assert ours.param_scheduler == theirs.param_scheduler
    assert ours.train_cfg == theirs.train_cfg
    assert ours.tta_model == theirs.tta_model
    for key in ("train_dataloader", "val_dataloader", "test_dataloader"):
        mine, stock = ours[key].dataset, theirs[key].dataset
        assert mine.type == stock.type and mine.data_prefix == stock.data_prefix
        assert [without(s, "reduce_zero_label") for s in mine.pipeline] == [
            without(s, "reduce_zero_label") for s in stock.pipeline
        ]
    assert [without(s, "backend_args") for s in ours.tta_pipeline] == [
        without(s, "backend_args") for s in theirs.tta_pipeline
    ]


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.long if "cityscapes" in name else ())  # as on ADE20K
    for name in sorted(OPENMMLAB)
])  # fmt: skip
def test_openmmlab_checkpoint_gives_what_the_stack_s_own_model_gives(name, tmp_path, monkeypatch):
    """A file in the zoo's layout, loaded as the tools load it, with four blocks: equal scores."""
    theirs, ours = stock_config(name).model, load(f"openmmlab/{name}").model
    theirs.pretrained = None
    stages = mmseg.models.backbones.ResNeSt.arch_settings
    monkeypatch.setitem(stages, 14, (stages[50][0], (1, 1, 1, 1)))
    theirs.backbone.depth, theirs.backbone.stem_channels = 14, 64
    ours.backbone.arch = "resnest14"
    for part in (theirs.backbone, theirs.decode_head, theirs.auxiliary_head):
        part.norm_cfg.type = "BN"  # the stack's SyncBN does not run on a CPU
    for part in (theirs, ours):
        part.pop("data_preprocessor")
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmseg"):
        stock = mmseg.registry.MODELS.build(theirs)
    model = MODELS.build(ours)
    for network in (stock, model):
        network.train(False)
    for key, value in stock.state_dict().items():
        if key.endswith(("bias", "running_mean")):
            value.normal_(0.0, 0.1)
    checkpoint = tmp_path / "zoo.pth"
    torch.save({"meta": {"classes": ["wall"]}, "state_dict": stock.state_dict()}, checkpoint)
    load_weights(model, checkpoint)

    image = torch.randn(1, 3, 33, 65)
    metas = [dict(ori_shape=(33, 65), img_shape=(33, 65), pad_shape=(33, 65))]
    with torch.no_grad():
        found, wanted = model.encode_decode(image, metas), stock.encode_decode(image, metas)
        auxiliary = [m.auxiliary_head(m.extract_feat(image)) for m in (model, stock)]
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (auxiliary[0] - auxiliary[1]).abs().max() <= 1e-5 * auxiliary[1].abs().max()
