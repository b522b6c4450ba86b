# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The config of a plan: every decision below its reason, and nothing inherited."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...datasets.channels import Channels
from ...datasets.class_names import CLASSES_FILE
from ...datasets.prepare.custom_config import (
    label_map_line,
    loader_text,
    suffix_line,
    text_literal,
)
from ...errors import UserError
from ..config import config_as_text
from .decide import Plan
from .facts import Facts
from .weights import Origin

_LOAD_PLANES = 'dict(type="LoadMultilabel", num_classes=num_classes)'
_SCALES = """\
tta_pipeline = [load_image, load_labels, dict(type="PackSegInputs")]
tta_model = dict(
    type="MultiScaleGridTTA",
    scales=(0.75, 1.0, 1.25),
    flip=True,
    base_size=base_size,
    crop_size=max(crop_size),
)"""
_VIEWS = """\
flips = [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)]
views = dict(
    type="TestTimeAug", transforms=[flips, [resize], [load_labels], [dict(type="PackSegInputs")]]
)
tta_pipeline = [load_image, views]
tta_model = dict(type="SegTTAModel")"""
# Means and deviations of photos, in ImageNet.
_PHOTOS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
# In a model, the names of decisions whose values stand above it.
_CLASS_WEIGHTS, _NUM_CLASSES, _CROP_SIZE = _NAMES = "@class_weights", "@num_classes", "@crop_size"


def fit_config_text(
    facts: Facts,
    plan: Plan,
    origin: Origin,
    model: str,
    data_root: Path,
    load_from: Path | None,
    seed: int = 0,
) -> str:
    """The text of a config for prepared labels (see :mod:`mmseg_resnest.datasets.prepare.custom`).

    ``model`` is what :func:`model_text` returned; ``load_from`` the weights of a whole model to
    start from, or None.
    """
    decided = []
    for one in plan.decisions:
        if one.name not in ("model_of", "start"):
            decided.append(f"# {_comment(one.reason)}\n{one.name} = {one.value!r}")
    backbone = ""
    if plan["backbone_lr_mult"] != 1.0:
        backbone = (
            "\n    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=backbone_lr_mult))),"
        )
    stopping = ""
    if plan["patience"] is not None:
        stopping = (
            "custom_hooks = [\n"
            '    dict(type="EarlyStoppingHook", monitor="mIoU", patience=patience,'
            " begin=max_iters // 2)\n]\n"
        )
    wrapper = '"BFloat16OptimWrapper"' if facts.gpu else '"OptimWrapper"'
    start = f"from {origin.name}" if origin.starts else "from scratch"
    newline, bands = "\n", facts.bands
    backend = "cv2" if bands else "pillow"  # which takes 8 bits alone
    fill = 'load_image["fill"]' if bands else 0  # 0 may be many deviations from any band's value
    return f"""\
# {facts.train_images} / {facts.val_images} images, {len(facts.classes)} classes.
# Written by mmseg-resnest fit. Below each reason stands what was decided for it.
default_scope = "mmseg_resnest"
data_root = {text_literal(data_root.as_posix())}
num_classes = {len(facts.classes)}
{newline.join(decided)}

# {_comment(start)}: {_comment(plan.reason("start"))}
load_from = {text_literal(load_from.as_posix()) if load_from else None}
# the model of {_comment(plan["model_of"])}: {_comment(plan.reason("model_of"))}
{model.strip()}

load_image = {loader_text(bands) if bands else 'dict(type="LoadImageFromFile")'}
load_labels = {_LOAD_PLANES if facts.multilabel else 'dict(type="LoadAnnotations")'}
train_pipeline = [
    load_image,
    load_labels,
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomLongEdgeResize", base_size=base_size, ratio_range=(0.7, 1.35)),
    # Pad takes (width, height), RandomCrop (height, width).
    dict(type="Pad", size=crop_size[::-1], pad_val=dict(img={fill}, seg=255)),
    dict(type="RandomCrop", crop_size=crop_size),{_colours(facts)}
    dict(type="PackSegInputs"),
]
resize = dict(type="Resize", scale=(base_size, base_size), keep_ratio=True, backend="{backend}")
test_pipeline = [load_image, resize, load_labels, dict(type="PackSegInputs")]
{_VIEWS if facts.multilabel else _SCALES}
dataset = dict(
    type="CustomDataset",
    data_root=data_root,
    data_prefix=dict(img_path="images", seg_map_path="annotations"),
    classes_file="{CLASSES_FILE}",  # names and colours, in data_root
{suffix_line(facts.suffixes) if bands else ""}{label_map_line(facts.label_map)})
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    persistent_workers=True,
    sampler=dict(type="ExactSampler", shuffle=True),
    dataset=dict(ann_file="splits/train.txt", pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=num_workers,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(ann_file="splits/val.txt", pipeline=test_pipeline, **dataset),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="{"Multilabel" if facts.multilabel else "Segmentation"}Metric")
test_evaluator = val_evaluator

optim_wrapper = dict(
    type={wrapper},
    optimizer=dict(type="AdamW", lr=lr, weight_decay=0.05, fused=True),
    accumulative_counts=accumulative_counts,
    clip_grad=dict(max_norm=5.0),{backbone}
)
param_scheduler = [{_warm_up(plan)}
    dict(
        type="PolyLR", power=0.9, eta_min=0.0, begin=warmup_iters, end=max_iters + 1, by_epoch=False
    ),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=val_interval)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(
        type="LoggerHook", interval=max(1, min(50, max_iters // 20)), log_metric_by_epoch=False
    ),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(
        type="CheckpointHook",
        by_epoch=False,
        interval=save_interval,
        max_keep_ckpts=2,
        save_last=True,
        save_best="mIoU",
    ),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    nonfinite=dict(type="NonFiniteHook", on_nonfinite="stop"),
)
{stopping}
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
)
visualizer = dict(
    type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer"
)
log_processor = dict(by_epoch=False)
log_level = "INFO"
resume = False
randomness = dict(seed={seed})
"""


def model_text(base: Config, facts: Facts, plan: Plan, origin: Origin) -> str:
    """The lines of a config that say its model: that of ``base`` for other classes and channels.

    UserError says that a head of it has no number of classes.
    """
    text = config_as_text(Config({"model": _model(base, facts, plan, origin)}))
    for name in _NAMES:
        text = text.replace(f"'{name}'", name[1:])
    return text


def _comment(text: str) -> str:
    """A text for a comment: one line, without what MMEngine replaces in the text of a config."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() and c not in "{}" else "?" for c in line)


def _colours(facts: Facts) -> str:
    return '\n    dict(type="PhotoMetricDistortion"),' if facts.gpu and not facts.bands else ""


def _warm_up(plan: Plan) -> str:
    if not plan["warmup_iters"]:
        return ""
    return """
    dict(type="LinearLR", start_factor=0.01, begin=0, end=warmup_iters, by_epoch=False),"""


def _model(base: Config, facts: Facts, plan: Plan, origin: Origin) -> Any:
    """The model of a config for other data, with names in place of what is decided."""
    model: Any = copy.deepcopy(base.model).to_dict()
    if base.get("data_preprocessor") is not None:
        model.setdefault("data_preprocessor", copy.deepcopy(base.data_preprocessor).to_dict())
    overlapped = model.pop("multilabel", False)
    for key in ("decode_head", "auxiliary_head"):
        heads = model.get(key) or []
        for head in heads if isinstance(heads, list | tuple) else [heads]:
            if "num_classes" not in head:
                message = f"model.{key} has no num_classes; take another config"
                raise UserError("config-key", f"--base {plan['model_of']}", message)
            head["num_classes"] = _NUM_CLASSES
            sigmoid = overlapped or head.pop("out_channels", None) is not None
            for option in ("out_channels", "threshold", "ignore_index"):
                head.pop(option, None)
            _set_losses(head, facts.multilabel, plan["class_weights"] is not None, sigmoid)
    test_cfg = model.setdefault("test_cfg", {})
    test_cfg.pop("thresholds", None)
    if facts.multilabel:
        model["multilabel"] = True
        test_cfg["thresholds"] = 0.5
    _set_channels(model, facts)
    preprocessor = model.get("data_preprocessor") or {}
    if preprocessor.get("size") is not None:  # which the crops of a batch are padded to
        preprocessor["size"] = _CROP_SIZE
    if "backbone" in model:
        model["backbone"].pop("init_cfg", None)
        if origin.backbone and origin.there:
            model["backbone"]["init_cfg"] = dict(type="Pretrained", checkpoint=origin.name)
    return model


def _set_losses(head: Any, multilabel: bool, weighted: bool, sigmoid: bool) -> None:
    """Losses for classes that exclude each other, or overlap, in place of those of other classes.

    ``sigmoid`` says that those of the head were for one output, or for classes that overlap.
    """
    losses = head.get("loss_decode") or []
    losses = losses if isinstance(losses, list | tuple) else [losses]
    weights = dict(class_weight=_CLASS_WEIGHTS) if weighted else {}
    if multilabel:
        head.pop("sampler", None)
        same = dict(loss_weight=losses[0].get("loss_weight", 1.0) if losses else 1.0)
        entropy = dict(type="CrossEntropyLoss", use_sigmoid=True, avg_non_ignore=True)
        head["loss_decode"] = [{**entropy, **same, **weights}, dict(type="DiceLoss", **same)]
        return
    for loss in losses:
        for option in ("class_weight", "ignore_index", *(["use_sigmoid"] if sigmoid else [])):
            loss.pop(option, None)
        if loss.get("type") == "CrossEntropyLoss" and weighted:
            loss |= {**weights, "avg_non_ignore": True}


def _set_channels(model: Any, facts: Facts) -> None:
    """Let a model take the channels of the images."""
    bands = facts.bands
    if bands is None and Channels.of({"model": model}).fault(3) is None:
        return
    model.setdefault("data_preprocessor", dict(type="SegDataPreProcessor"))
    preprocessor = model["data_preprocessor"]
    preprocessor.pop("rgb_to_bgr", None)
    if bands is None:
        preprocessor |= _PHOTOS
        model["backbone"].pop("in_channels", None)
    else:
        preprocessor |= dict(mean=list(bands.mean), std=list(bands.std), bgr_to_rgb=False)
        model["backbone"]["in_channels"] = len(bands.mean)
