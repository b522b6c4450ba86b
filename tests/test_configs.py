# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Every config loads, names only what exists, and builds what its name says.

Networks are built on the meta device, where they take neither time nor memory: their forward
passes give the shapes of the scores, and the losses are computed for real on scores of those
shapes. One config of each head is trained for a step and evaluated for real, on its smallest
backbone.
"""

from __future__ import annotations

import copy
import functools
import logging
import re
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image

import mmseg_resnest
from mmseg_resnest.engine import Runner
from mmseg_resnest.engine.checkpoint import load_weights
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.models import ARCHITECTURES
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
PUBLISHED_DATA = ("ade20k", "cityscapes", "voc12aug", "pascal_context")
FROM_SCRATCH = (
    "fcn_resnest14_scenes",
    "fcn_resnest14_camvid",
    "deeplabv3_resnest26_camvid",
    "deeplabv3_resnest50_camvid",
    "deeplabv3plus_resnest50_camvid",
    "deeplabv3plus_resnet50_camvid",
)


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
    return {"_".join(parts) for parts in grid} | set(FROM_SCRATCH)


# MMSegmentation's names, one of which lacks a dash.
OPENMMLAB = {
    *(
        f"resnest_s101-d8_{head}_4xb4-160k_ade20k-512x512"
        for head in ("fcn", "pspnet", "deeplabv3", "deeplabv3plus")
    ),
    *(
        f"resnest_s101-d8_{head}_4xb2-80k_cityscapes-512x1024"
        for head in ("fcn", "deeplabv3", "deeplabv3plus")
    ),
    "resnest_s101-d8_pspnet_4xb2-80k_cityscapes512x1024",
}
PUBLISHED_NAMES = sorted(required() - set(FROM_SCRATCH))
ALL = sorted(required()) + sorted(f"openmmlab/{name}" for name in OPENMMLAB)


@functools.cache
def _load(name: str) -> Config:
    return load_config(CONFIGS / f"{name}.py")


def load(name: str) -> Config:
    """The checked config; a copy, so that a test may change it."""
    return copy.deepcopy(_load(name))


@functools.cache
def meta_model(name: str) -> torch.nn.Module:
    """The network without storage."""
    with DefaultScope.overwrite_default_scope("mmseg_resnest"), torch.device("meta"):
        return MODELS.build(load(name).model)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Everything here is tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _scope():
    """Names mean what they mean in a run."""
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        yield


_FEATURES: dict[str, tuple[torch.Tensor, ...]] = {}


def meta_features(backbone: str, model: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    """Features of two images (3, 64, 96), computed once for all configs of one backbone."""
    if backbone not in _FEATURES:
        _FEATURES[backbone] = model.extract_feat(torch.empty(2, 3, 64, 96))
    return _FEATURES[backbone]


def parts(name: str) -> tuple[str, str, str]:
    """(head, backbone, data set) from the name of a flat config."""
    head, backbone, data = name.split("_", 2)
    return head, backbone, data


def test_the_list_is_complete_and_nothing_else_is_there():
    assert {path.stem for path in CONFIGS.glob("*.py")} == required()
    assert {path.stem for path in (CONFIGS / "openmmlab").glob("*.py")} == OPENMMLAB


def test_every_base_is_used():
    used = set()
    for path in CONFIGS.rglob("*.py"):
        used |= {
            (path.parent / base).resolve()
            for base in re.findall(r'"([^"\s]+\.py)"', path.read_text())
        }
    assert {path.resolve() for path in (CONFIGS / "_base_").rglob("*.py")} <= used


@pytest.mark.parametrize("name", ALL)
def test_an_experiment_is_a_few_lines(name):
    lines = (CONFIGS / f"{name}.py").read_text().splitlines()
    # The configs trained from scratch may change more of their model.
    limit = 20 if name in FROM_SCRATCH else 11
    assert sum(not line.startswith("#") for line in lines) <= limit


# --- models --------------------------------------------------------------------------------------

# Width of the score map's step, in pixels: stage 1 for heads that go back up to it.
SCORE_STRIDE = dict(fcn=8, pspnet=8, deeplabv3=8, encnet=8, deeplabv3plus=4, upernet=4)


def tiny_batch(scores: torch.Tensor, classes: int) -> list[SegDataSample]:
    """Labels (N, H, W) at four times the size of the scores (N, C, h, w), an eighth ignored."""
    size = (1, scores.shape[2] * 4, scores.shape[3] * 4)
    samples = []
    for index in range(scores.shape[0]):
        labels = torch.randint(
            classes, size, generator=torch.Generator().manual_seed(index), dtype=torch.int64
        )
        labels[..., : size[2] // 8] = 255
        sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
        sample.set_metainfo(dict(img_shape=size[1:], ori_shape=size[1:]))
        samples.append(sample)
    return samples


@pytest.mark.parametrize("name", ALL)
def test_model_forward_and_loss(name):
    cfg = load(name)
    model = meta_model(name)
    with torch.device("meta"):
        features = meta_features(repr(cfg.model.backbone), model)
        auxiliary = model.auxiliary_head(features)
    if "encnet" in name:  # autocast, which its encoding layer guards against, has no meta device
        decode_head = MODELS.build(load(name).model.decode_head)
        scores = decode_head([torch.zeros(feature.shape) for feature in features])
    else:
        scores = model.decode_head(features)

    if name.startswith("openmmlab/"):
        head = re.search(r"d8_([a-z0-9]+)_4x", name)[1]
        backbone, output_stride = "resnest101", 8
        classes = 150 if "ade20k" in name else 19
    else:
        head, backbone, data = parts(name)
        output_stride = 32 if head == "upernet" else 8
        if name in FROM_SCRATCH:  # no published model
            output_stride = cfg.model.backbone.get("output_stride", 8)
        classes = dict(
            ade20k=150, cityscapes=19, voc12aug=21, pascal_context=59, camvid=11, scenes=12
        )[data]
    if backbone.startswith("resnest"):
        published = mmseg_resnest.models.ResNeSt
        assert type(model.backbone) is published
        assert model.backbone.arch == ARCHITECTURES[backbone]
    strides = [4, 8, min(16, output_stride), output_stride]
    assert [tuple(f.shape) for f in features] == [
        (2, 256 * 2**stage, 64 // stride, 96 // stride) for stage, stride in enumerate(strides)
    ]
    if head == "encnet":
        scores, presence = scores
        assert presence.shape == (2, classes)
    if name in FROM_SCRATCH:
        stride = 64 // scores.shape[2]
        assert 4 <= stride <= output_stride
    else:
        stride = SCORE_STRIDE[head]
    assert scores.shape == (2, classes, 64 // stride, 96 // stride)
    assert auxiliary.shape == (2, classes, 64 // strides[2], 96 // strides[2])
    assert len(DATASETS.get(cfg.train_dataloader.dataset.type).METAINFO["classes"]) == classes

    # Losses for real, on scores of these shapes.
    torch.manual_seed(0)
    scores = torch.randn(scores.shape, requires_grad=True)
    samples = tiny_batch(scores, classes)
    outputs = (scores, torch.randn(2, classes)) if head == "encnet" else scores
    losses = model.decode_head.loss_by_feat(outputs, samples)
    losses |= {
        f"aux.{key}": value
        for key, value in model.auxiliary_head.loss_by_feat(
            torch.randn(auxiliary.shape), samples
        ).items()
    }
    expected = {"loss_ce", "acc_seg", "aux.loss_ce", "aux.acc_seg"}
    assert set(losses) == expected | ({"loss_se"} if head == "encnet" else set())
    sum(value for key, value in losses.items() if "loss" in key).backward()
    assert torch.isfinite(scores.grad).all() and scores.grad.abs().sum() > 0


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_loss_is_the_published_one(name):
    """Cross entropy over labelled pixels + 0.2 auxiliary + 0.2 presence of classes (EncNet)."""
    heads = [meta_model(name).decode_head, meta_model(name).auxiliary_head]
    classes = heads[0].num_classes
    torch.manual_seed(0)
    scores, presence = torch.randn(2, classes, 6, 7), torch.randn(2, classes)
    samples = tiny_batch(scores, classes)
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    resized = torch.nn.functional.interpolate(
        scores, labels.shape[1:], mode="bilinear", align_corners=True
    )
    entropy = torch.nn.functional.cross_entropy(resized, labels, ignore_index=255)
    for head, weight in zip(heads, (1.0, 0.2), strict=True):
        encnet = hasattr(head, "loss_se_decode")
        losses = head.loss_by_feat((scores, presence) if encnet else scores, samples)
        torch.testing.assert_close(losses["loss_ce"], weight * entropy)
        if encnet:
            there = torch.stack(
                [(label[..., None] == torch.arange(classes)).any(0).any(0) for label in labels]
            )
            loss = torch.nn.functional.binary_cross_entropy_with_logits(presence, there.float())
            torch.testing.assert_close(losses["loss_se"], 0.2 * loss)
    assert ("loss_se" in losses) is False  # the auxiliary head has none


@pytest.mark.parametrize(
    "name",
    [
        "fcn_resnest14_scenes",
        "fcn_resnet50_ade20k",
        "pspnet_resnest50_voc12aug",
        "deeplabv3_resnest26_camvid",
        "encnet_resnest50_voc12aug",
        "deeplabv3plus_resnest101_voc12aug",
        "upernet_resnest101_voc12aug",
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
    samples = tiny_batch(torch.empty(2, 1, 16, 24), model.decode_head.num_classes)
    model.train(True)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    batch = model.data_preprocessor(dict(inputs=images, data_samples=samples), True)
    loss, _ = model.parse_losses(model(**batch, mode="loss"))
    loss.backward()
    assert torch.isfinite(loss)
    assert [key for key, value in model.named_parameters() if value.grad is None] == []
    wrapper.step()
    changed = [key for key, value in model.named_parameters() if not value.equal(before[key])]
    assert any(key.startswith("backbone.") for key in changed)
    assert any(key.startswith("decode_head.") for key in changed)

    model.train(False)
    # Scores go back to the image's own size, not that of the network's input.
    samples[0].set_metainfo(dict(img_shape=(64, 96), ori_shape=(50, 75), padding_size=[0] * 4))
    batch = dict(inputs=images[:1], data_samples=samples[:1])
    with torch.no_grad():
        prediction = model.test_step(batch)[0].pred_sem_seg.data
    assert prediction.shape == (1, 50, 75)
    assert prediction.min() >= 0 and prediction.max() < model.decode_head.num_classes


IMAGENET = dict(
    resnest50="528c19ca", resnest101="22405ba7", resnest200="75117900", resnest269="0cc87c48"
)


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_published_models(name):
    """What a shape does not show."""
    cfg = load(name).model
    _, backbone, _ = parts(name)
    for part in (cfg.decode_head, cfg.auxiliary_head):
        assert part.align_corners and part.norm_cfg.type == "SyncBN" and part.dropout_ratio == 0.1
    preprocessor = cfg.data_preprocessor
    np.testing.assert_allclose(np.array(preprocessor.mean) / 255, (0.485, 0.456, 0.406))
    np.testing.assert_allclose(np.array(preprocessor.std) / 255, (0.229, 0.224, 0.225))
    assert preprocessor.bgr_to_rgb
    assert cfg.backbone.norm_cfg.type == "SyncBN" and cfg.test_cfg == dict(mode="whole")
    if backbone in IMAGENET:
        assert cfg.backbone.get("avd_in_dilated", True)
        assert cfg.backbone.init_cfg == dict(type="Pretrained", checkpoint=backbone)
        assert find(backbone).urls[0] == (
            "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1/"
            f"{backbone}-{IMAGENET[backbone]}.pth"
        )


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_from_scratch_means_no_download(name):
    assert load(name).model.backbone.get("init_cfg") is None


# --- recipe --------------------------------------------------------------------------------------

IMAGES = dict(ade20k=20210, cityscapes=2975, voc12aug=10582, pascal_context=4998)
EPOCHS = dict(ade20k=120, cityscapes=240, voc12aug=80, pascal_context=80)
LEARNING_RATE = dict(ade20k=0.01, cityscapes=0.01, voc12aug=0.001, pascal_context=0.001)


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_length_of_the_published_recipe(name):
    cfg = load(name)
    _, backbone, data = parts(name)
    epochs = 180 if data == "ade20k" and backbone in ("resnest101", "resnest200") else EPOCHS[data]
    iterations = epochs * (IMAGES[data] // 16)
    assert cfg.train_cfg.max_iters == iterations
    assert cfg.train_dataloader.batch_size == cfg.total_batch_size == 16
    assert cfg.optim_wrapper.optimizer == dict(
        type="SGD", lr=LEARNING_RATE[data], momentum=0.9, weight_decay=1e-4
    )
    assert [(s.type, s.power, s.eta_min, s.begin, s.end) for s in cfg.param_scheduler] == [
        ("PolyLR", 0.9, 0.0, 0, iterations + 1)
    ]
    # Evaluated and saved at the same iterations, ten epochs apart.
    interval = 10 * (IMAGES[data] // 16)
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == interval


@pytest.mark.parametrize("data", PUBLISHED_DATA)
def test_learning_rate_of_every_parameter(data):
    """lr * (1 - i / N) ** 0.9 for the backbone, ten times that for both heads, at chosen i."""
    cfg, model = load(f"fcn_resnest50_{data}"), meta_model(f"fcn_resnest50_{data}")
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = wrapper.optimizer.param_groups
    assert sum(len(group["params"]) for group in groups) == len(names)
    (scheduler,) = [PARAM_SCHEDULERS.build(dict(s, optimizer=wrapper)) for s in cfg.param_scheduler]
    iterations, base = cfg.train_cfg.max_iters, LEARNING_RATE[data]
    chosen = {0, 1, 50, 250}
    for i in range(max(chosen) + 1):
        if i in chosen:
            rate = base * (1 - i / iterations) ** 0.9
            for group in groups:
                head = names[id(group["params"][0])].startswith(("decode_head", "auxiliary_head"))
                assert group["lr"] == pytest.approx(rate * (10 if head else 1), rel=1e-9)
                assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)
        scheduler.step()


def test_learning_rate_along_the_whole_published_schedule():
    """Backbone and heads at iterations from the first to behind the last, at which it is zero."""
    cfg = load("fcn_resnest50_pascal_context")
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


@pytest.mark.parametrize("batch", [4, 32])
def test_auto_scale_lr_scales_every_group(batch):
    """In proportion to the total batch, heads at ten times the backbone as before."""
    cfg, model = load("fcn_resnest50_ade20k"), meta_model("fcn_resnest50_ade20k")
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    runner = SimpleNamespace(
        _train_dataloader=dict(batch_size=batch // 2),
        world_size=2,
        logger=logging.getLogger("test"),
        param_schedulers=cfg.param_scheduler,
    )
    Runner.scale_lr(runner, wrapper, {**cfg.auto_scale_lr, "enable": True})
    for group in wrapper.optimizer.param_groups:
        head = names[id(group["params"][0])].startswith(("decode_head", "auxiliary_head"))
        assert group["lr"] == pytest.approx(0.01 * batch / 16 * (10 if head else 1))


@pytest.mark.parametrize("name", ALL)
def test_learning_rate_falls_to_its_end(name):
    """The whole schedule of one parameter: above the end until the last step, never rising
    after the warm-up."""
    cfg = load(name)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedulers = [PARAM_SCHEDULERS.build(dict(s, optimizer=optimizer)) for s in cfg.param_scheduler]
    rates = []
    # The recursion is linear in the length: a hundredth of it has the same course.
    length = cfg.train_cfg.max_iters
    if length > 1000 and len(schedulers) == 1:
        length = 1000
        end = length + (cfg.param_scheduler[0].end - cfg.train_cfg.max_iters)
        optimizer.param_groups[0]["lr"] = 1.0
        schedulers = [
            PARAM_SCHEDULERS.build(dict(cfg.param_scheduler[0], end=end, optimizer=optimizer))
        ]
    for _ in range(length):
        rates.append(optimizer.param_groups[0]["lr"])
        for scheduler in schedulers:
            scheduler.step()
    floor = cfg.param_scheduler[-1].eta_min
    peak = int(np.argmax(rates))
    assert peak <= max(s.get("end", 0) for s in cfg.param_scheduler[:-1] or [dict(end=0)])
    assert rates[peak] == pytest.approx(1.0, abs=0.02)
    assert (np.diff(rates[peak + 1 :]) < 0).all() and rates[-1] >= floor
    assert optimizer.param_groups[0]["lr"] == pytest.approx(floor, abs=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_whatever_a_run_builds_can_be_built(name, tmp_path):
    cfg = load(name)
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


# --- data ----------------------------------------------------------------------------------------

# Per data set: image and label file, {split file: contents}, and what a label file's values
# become. 0 and 255 are in every map.
STAND_INS = {
    "ade20k": (
        "ade20k/ADEChallengeData2016/images/{ade}/a.jpg",
        "ade20k/ADEChallengeData2016/annotations/{ade}/a.png",
        (),
        {0: 255, 1: 0, 150: 149},
    ),
    "cityscapes": (
        "cityscapes/leftImg8bit/{split}/town/a_leftImg8bit.png",
        "cityscapes/gtFine/{split}/town/a_gtFine_labelTrainIds.png",
        (),
        {0: 0, 18: 18, 255: 255},
    ),
    "voc12aug": (
        "voc2012/VOCdevkit/VOC2012/JPEGImages/a.jpg",
        "voc2012/VOCdevkit/VOC2012/SegmentationClass{voc}/a.png",
        ("voc2012/VOCdevkit/VOC2012/ImageSets/Segmentation/{voc_list}.txt",),
        {0: 0, 20: 20, 255: 255},
    ),
    "pascal_context": (
        "pascal_context/VOCdevkit/VOC2010/JPEGImages/a.jpg",
        "pascal_context/VOCdevkit/VOC2010/SegmentationClassContext/a.png",
        ("pascal_context/VOCdevkit/VOC2010/ImageSets/SegmentationContext/{split}.txt",),
        {0: 255, 1: 0, 59: 58},
    ),
    "camvid": ("camvid/{split}/a.png", "camvid/{split}annot/a.png", (), {0: 0, 10: 10, 11: 255}),
    "scenes": (
        "scenes/images/{ade}/a.png",
        "scenes/annotations/{ade}/a.png",
        (),
        {0: 255, 1: 0, 12: 11},
    ),
}


def write_stand_in(root: Path, data: str, width: int, height: int) -> None:
    """One image a split, in the data set's layout: a picture of noise and stripes of labels."""
    image_path, label_path, lists, values = STAND_INS[data]
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stripes = np.resize(np.array(list(values), np.uint8), (width, height)).T.copy()
    for split, ade, voc, voc_list in (
        ("train", "training", "Aug", "trainaug"),
        ("val", "validation", "", "val"),
    ):
        words = dict(split=split, ade=ade, voc=voc, voc_list=voc_list)
        for path, array in ((image_path, noise), (label_path, stripes)):
            file = root / path.format(**words)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(file)
        for path in lists:
            file = root / path.format(**words)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("a\n")


DATA_CONFIGS = [
    "fcn_resnest50_ade20k",
    "fcn_resnest50_cityscapes",
    "fcn_resnest50_voc12aug",
    "fcn_resnest50_pascal_context",
    "fcn_resnest14_camvid",
    "deeplabv3_resnest26_camvid",
    "deeplabv3plus_resnest50_camvid",
    "fcn_resnest14_scenes",
    "openmmlab/resnest_s101-d8_fcn_4xb4-160k_ade20k-512x512",
    "openmmlab/resnest_s101-d8_fcn_4xb2-80k_cityscapes-512x1024",
]


def data_of(name: str) -> str:
    return next(data for data in STAND_INS if data in name)


@pytest.mark.parametrize("name", DATA_CONFIGS)
def test_samples(name, tmp_path):
    """The data loaders' data sets find a stand-in and make samples of the right size and values."""
    data = data_of(name)
    width, height = (160, 128) if data == "scenes" else (480, 360)
    write_stand_in(tmp_path, data, width, height)
    cfg = load_config(CONFIGS / f"{name}.py", data_root=tmp_path)
    expected = set(STAND_INS[data][3].values())

    np.random.seed(0)
    train = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(train) == 1
    crop = tuple(cfg.crop_size)
    seen = set()
    for _ in range(6):
        sample = train[0]
        size = sample["inputs"].shape[1:]
        assert size == sample["data_samples"].gt_sem_seg.shape
        if name.startswith("openmmlab/"):  # the model pads what is smaller
            assert max(size) <= max(crop)
        else:
            assert size == crop
        seen |= set(sample["data_samples"].gt_sem_seg.data.unique().tolist())
    assert expected <= seen <= expected | {255}

    for dataloader in (cfg.val_dataloader, cfg.test_dataloader):
        sample = DATASETS.build(dataloader.dataset)[0]
        labels = sample["data_samples"].gt_sem_seg
        assert labels.shape == (height, width)  # untouched: scores go to the image's own size
        assert set(labels.data.unique().tolist()) == expected
        if name.startswith("openmmlab/"):
            long_edge = int(width / height * min(cfg.scale) + 0.5)
        else:
            long_edge = cfg.base_size
        assert sample["inputs"].shape[2] == long_edge

    # Test-time augmentation: the image at its own size, or one sample a scale and mirroring.
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    sample = DATASETS.build(cfg.test_dataloader.dataset)[0]
    if name.startswith("openmmlab/"):
        widths = [int(width * ratio + 0.5) for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)]
        assert [image.shape[2] for image in sample["inputs"]] == [w for w in widths for _ in "lr"]
    else:
        assert sample["inputs"].shape == (3, height, width)


def test_padding_of_labels(tmp_path):
    """Ignored everywhere but on Pascal VOC, whose published padding is background."""
    for name, padding in (("fcn_resnest50_ade20k", 255), ("fcn_resnest50_voc12aug", 0)):
        data = data_of(name)
        write_stand_in(tmp_path, data, 200, 20)
        cfg = load_config(CONFIGS / f"{name}.py", data_root=tmp_path)
        sample = DATASETS.build(cfg.train_dataloader.dataset)[0]
        # 20 rows become at most 104: the last of 480 are padding.
        assert (sample["data_samples"].gt_sem_seg.data[0, 110:] == padding).all()
        assert (sample["inputs"][:, 110:] == 0).all()


@pytest.mark.parametrize("name", sorted(required()))
def test_published_protocol(name):
    cfg = load(name)
    tta = cfg.tta_model
    assert tta.type == "MultiScaleGridTTA" and tta.flip
    if "cityscapes" in name:
        assert tuple(tta.scales) == (0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25)
    else:
        assert tuple(tta.scales) == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    if name not in FROM_SCRATCH:
        assert (tta.base_size, tta.crop_size) == (520, 480)
        steps = [step.type for step in cfg.train_dataloader.dataset.pipeline]
        assert steps[2:] == [
            "RandomFlip",
            "RandomLongEdgeResize",
            "Pad",
            "RandomCrop",
            "PackSegInputs",
        ]
        flip, resize, pad, crop = cfg.train_dataloader.dataset.pipeline[2:6]
        assert flip.prob == 0.5 and (resize.base_size, *resize.ratio_range) == (520, 0.5, 2.0)
        assert tuple(pad.size) == tuple(crop.crop_size) == (480, 480)


# --- MMSegmentation's variants -------------------------------------------------------------------


def without(node: dict, *keys: str) -> dict:
    return {key: value for key, value in node.items() if key not in keys}


@pytest.mark.parametrize("name", sorted(OPENMMLAB))
def test_openmmlab_config_is_the_stack_s_own(name):
    """Same model but for the name of the backbone, same schedule, augmentation and evaluation."""
    import mmseg

    stock_file = Path(mmseg.__file__).parent / ".mim" / "configs" / "resnest" / f"{name}.py"
    if not stock_file.is_file():
        pytest.skip("this installation of mmseg brings no configs")
    theirs, ours = Config.fromfile(stock_file), load(f"openmmlab/{name}")

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


def seeded_state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Numbers for a model's names: convolutions by fan-in, norms around one."""
    result = {}
    for index, (key, value) in enumerate(model.state_dict().items()):
        generator = torch.Generator().manual_seed(index)
        drawn = torch.empty(value.shape)
        if not value.is_floating_point():
            drawn = torch.zeros_like(value, device="cpu")
        elif value.dim() > 1:
            drawn.normal_(0.0, (2.0 / value[0].numel()) ** 0.5, generator=generator)
        elif key.endswith(("bias", "running_mean")):
            drawn.normal_(0.0, 0.1, generator=generator)
        else:
            low, high = (0.1, 0.3) if key.endswith("bn3.weight") else (0.5, 1.5)
            drawn.uniform_(low, high, generator=generator)
        result[key] = drawn
    return result


@pytest.mark.parametrize(
    ("name", "full"),
    [
        *((name, False) for name in sorted(OPENMMLAB)),
        ("resnest_s101-d8_deeplabv3plus_4xb4-160k_ade20k-512x512", True),
    ],
)
def test_openmmlab_checkpoint_gives_what_the_stack_s_own_model_gives(
    name, full, tmp_path, monkeypatch
):
    """A file in the zoo's layout, loaded as the tools load it: scores, auxiliary scores, labels.

    All eight with four blocks, one of them also with its 101 layers.
    """
    import mmseg

    stock_file = Path(mmseg.__file__).parent / ".mim" / "configs" / "resnest" / f"{name}.py"
    if not stock_file.is_file():
        pytest.skip("this installation of mmseg brings no configs")
    theirs, ours = Config.fromfile(stock_file).model, load(f"openmmlab/{name}").model
    theirs.pretrained = None
    if not full:
        stages = mmseg.models.backbones.ResNeSt.arch_settings
        monkeypatch.setitem(stages, 14, (stages[50][0], (1, 1, 1, 1)))
        theirs.backbone.depth, theirs.backbone.stem_channels = 14, 64
        ours.backbone.arch = "resnest14"
    for part in (theirs.backbone, theirs.decode_head, theirs.auxiliary_head):
        part.norm_cfg.type = "BN"  # the stack's SyncBN does not run on a CPU
    for part in (theirs, ours):
        part.pop("data_preprocessor")
    with DefaultScope.overwrite_default_scope("mmseg"), torch.device("meta"):
        stock = mmseg.registry.MODELS.build(theirs)
    with torch.device("meta"):
        model = MODELS.build(ours)
    for network in (stock, model):
        network.to_empty(device="cpu").train(False)
    weights = seeded_state_dict(stock)
    stock.load_state_dict(weights)
    checkpoint = tmp_path / "zoo.pth"
    torch.save({"meta": {"classes": ["wall"]}, "state_dict": weights}, checkpoint)
    assert load_weights(model, checkpoint).startswith("the whole model from")

    image = torch.randn(1, 3, 33, 65, generator=torch.Generator().manual_seed(0))
    metas = [dict(ori_shape=(33, 65), img_shape=(33, 65), pad_shape=(33, 65))]
    with torch.no_grad():
        found, wanted = model.encode_decode(image, metas), stock.encode_decode(image, metas)
        auxiliary = [m.auxiliary_head(m.extract_feat(image)) for m in (model, stock)]
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (auxiliary[0] - auxiliary[1]).abs().max() <= 1e-5 * auxiliary[1].abs().max()
    assert torch.equal(found.argmax(1), wanted.argmax(1))
