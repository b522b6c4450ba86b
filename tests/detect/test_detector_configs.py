# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Every config of configs/detection has the published recipe, trains and predicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmseg_resnest.datasets.shapes import write_shapes
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.training import train
from mmseg_resnest.registry import MODELS, PARAM_SCHEDULERS, building

CONFIGS = Path(__file__).parents[2] / "configs" / "detection"
# Published box AP and mask AP.
AUTHORS = {
    "faster_rcnn_resnet50_coco": (39.25,),
    "faster_rcnn_resnet101_coco": (41.37,),
    "faster_rcnn_resnest50_coco": (42.33,),
    "faster_rcnn_resnest101_coco": (44.72,),
    "cascade_rcnn_resnet50_coco": (42.52,),
    "cascade_rcnn_resnet101_coco": (44.03,),
    "cascade_rcnn_resnest50_coco": (45.41,),
    "cascade_rcnn_resnest101_coco": (47.50,),
    "cascade_rcnn_resnest200_coco": (49.03,),
    "mask_rcnn_resnet50_coco": (39.97, 36.05),
    "mask_rcnn_resnet101_coco": (41.78, 37.51),
    "mask_rcnn_resnest50_coco": (42.81, 38.14),
    "mask_rcnn_resnest101_coco": (45.75, 40.65),
    "cascade_mask_rcnn_resnest50_coco": (46.19, 39.55),
    "cascade_mask_rcnn_resnest101_coco": (48.30, 41.56),
    "cascade_mask_rcnn_resnest200_coco": (50.54, 44.21),
}
GLUON = {
    "faster_rcnn_resnest50_gluon_coco": (42.7,),
    "faster_rcnn_resnest101_gluon_coco": (44.9,),
    "faster_rcnn_resnest269_gluon_coco": (46.5,),
}
SHAPES = "faster_rcnn_resnest14_shapes"
RGB = dict(mean=[123.68, 116.779, 103.939], std=[58.393, 57.12, 57.375], bgr_to_rgb=True)


def load(name: str) -> Config:
    return load_config(CONFIGS / f"{name}.py")


def box_heads(cfg: Config) -> list[Any]:
    heads = cfg.model.roi_head.bbox_head
    return heads if isinstance(heads, list) else [heads]


def rates(cfg: Config, iterations: tuple[int, ...]) -> list[float]:
    """The learning rate at these iterations."""
    rate = cfg.optim_wrapper.optimizer.lr
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    with building("mmseg_resnest"):
        schedules = [
            PARAM_SCHEDULERS.build(dict(s, optimizer=optimizer)) for s in cfg.param_scheduler
        ]
    optimizer.step()
    found = {}
    for iteration in range(max(iterations) + 1):
        if iteration in iterations:
            found[iteration] = optimizer.param_groups[0]["lr"]
        for schedule in schedules:
            schedule.step()
    return [found[iteration] for iteration in iterations]


def test_the_list_is_complete():
    assert {path.stem for path in CONFIGS.glob("*.py")} == {*AUTHORS, *GLUON, SHAPES}


@pytest.mark.parametrize("name", [*AUTHORS, *GLUON])
def test_parts_that_all_share(name):
    cfg, published = load(name), {**AUTHORS, **GLUON}[name]
    text = (CONFIGS / f"{name}.py").read_text()
    kind, backbone = name.split("_rcnn_")[0], name.split("_rcnn_")[1].split("_")[0]
    said = text.splitlines()[1]
    assert f"published box AP {published[0]:.{1 if 'gluon' in name else 2}f}" in said
    assert ("mask AP" in said) == ("mask" in kind) == (len(published) == 2)
    assert len(published) == 1 or f"mask AP {published[1]:.2f}" in said

    model = cfg.model
    for part in [model.neck, *box_heads(cfg)]:
        assert part.norm_cfg.type == "SyncBN"
    for head in box_heads(cfg):
        assert head.type == "mmdet.Shared4Conv1FCBBoxHead"  # 4 convolutions, 1 linear layer
        assert (head.conv_out_channels, head.fc_out_channels) == (256, 1024)
        assert head.loss_bbox.type == "mmdet.L1Loss"
    assert model.rpn_head.loss_bbox.type == "mmdet.L1Loss"
    assert cfg.optim_wrapper.optimizer.momentum == 0.9
    assert cfg.optim_wrapper.optimizer.weight_decay == 1e-4
    assert cfg.optim_wrapper.get("clip_grad") is None
    assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size
    if backbone.startswith("resnest"):
        assert {key: model.data_preprocessor[key] for key in RGB} == RGB
        assert model.backbone.type == "ResNeSt" and model.backbone.arch == backbone
        assert model.backbone.output_stride == 32
        assert model.backbone.init_cfg.checkpoint == backbone
    else:
        assert model.backbone.type == "mmdet.ResNet" and model.backbone.depth == int(backbone[6:])
    assert model.backbone.norm_cfg.type == "SyncBN"
    with building("mmseg_resnest"), torch.device("meta"):
        built = MODELS.build(dict(model, data_preprocessor=None))
    frozen = {key for key, value in built.named_parameters() if not value.requires_grad}
    stem = tuple(f"backbone.{part}." for part in ("conv1", "bn1", "layer1"))
    wanted = {key for key, _ in built.named_parameters() if key.startswith(stem)}
    assert frozen == (set() if name in GLUON else wanted)
    assert "mask" not in kind or built.roi_head.with_mask


@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_recipe(name):
    cfg = load(name)
    assert (cfg.train_dataloader.batch_size, cfg.optim_wrapper.optimizer.lr) == (16, 0.02)
    assert cfg.train_cfg.max_iters == 90000
    assert cfg.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0.0)
    (hook,) = cfg.custom_hooks
    assert hook == dict(type="PreciseBNHook", num_iters=200)
    resize = next(s for s in cfg.train_dataloader.dataset.pipeline if s.type == "RandomResize")
    assert resize.scale == [(1333, 640), (1333, 800)] and resize.keep_ratio
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (1333, 800)
    assert cfg.val_evaluator.metric == (["bbox", "segm"] if "mask" in name else ["bbox"])
    if name.startswith("cascade"):
        assert cfg.model.train_cfg.rpn_proposal.max_per_img == 2000
        assert [one.assigner.pos_iou_thr for one in cfg.model.train_cfg.rcnn] == [0.5, 0.6, 0.7]
        assert all(head.reg_class_agnostic for head in box_heads(cfg))
        stds = [head.bbox_coder.target_stds for head in box_heads(cfg)]
        np.testing.assert_allclose([[1 / s for s in one] for one in stds], [
            [10, 10, 5, 5], [20, 20, 10, 10], [30, 30, 15, 15]
        ])  # fmt: skip
    else:
        assert cfg.model.train_cfg.rpn_proposal.max_per_img == 1000
        assert not box_heads(cfg)[0].reg_class_agnostic


def test_the_authors_learning_rate():
    """From a thousandth to 0.02 over 1,000 iterations; a tenth after 60,000 and 80,000."""
    found = rates(load("faster_rcnn_resnest50_coco"), (0, 500, 1000, 59999, 60000, 80000, 89999))
    expected = [2e-5, 2e-5 + (0.02 - 2e-5) / 2, 0.02, 0.02, 0.002, 0.0002, 0.0002]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", GLUON)
def test_gluon_s_recipe(name):
    cfg, large = load(name), "resnest269" in name
    batch, rate, warm_up = (8, 0.01, 1000) if large else (16, 0.02, 500)
    assert (cfg.train_dataloader.batch_size, cfg.optim_wrapper.optimizer.lr) == (batch, rate)
    assert "paramwise_cfg" not in cfg.optim_wrapper and cfg.get("custom_hooks") is None
    epoch = 117266 // batch
    assert cfg.train_cfg.max_iters == 26 * epoch and cfg.train_cfg.val_interval == epoch
    moments = (0, warm_up // 2, warm_up, 20 * epoch - 1, 20 * epoch, 24 * epoch)
    found = rates(cfg, moments)
    np.testing.assert_allclose(
        found, [rate / 3, rate * 2 / 3, rate, rate, rate / 10, rate / 100], rtol=1e-6
    )
    scales = [(1440, 640), (1440, 864)] if large else [(1333, 640), (1333, 800)]
    resize = next(s for s in cfg.train_dataloader.dataset.pipeline if s.type == "RandomResize")
    assert resize.scale == scales
    for split in ("val", "test"):
        assert cfg[f"{split}_dataloader"].dataset.pipeline[1].scale == scales[1]
    train_cfg, test_cfg = cfg.model.train_cfg, cfg.model.test_cfg
    assert (train_cfg.rpn_proposal.nms_pre, train_cfg.rpn_proposal.max_per_img) == (12000, 2000)
    assert (test_cfg.rpn.nms_pre, test_cfg.rpn.max_per_img) == (6000, 1000)
    sampler = train_cfg.rcnn.sampler
    assert (sampler.num, sampler.pos_fraction) == (512, 0.25)


# --- for real ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root whose COCO are shapes that bear the first four of its 80 names."""
    from mmdet.datasets import CocoDataset

    root = tmp_path_factory.mktemp("data")
    names = CocoDataset.METAINFO["classes"]
    write_shapes(root / "coco", 4, 2, names=names[:4], progress=False)
    for file in (root / "coco").glob("annotations/*.json"):
        data = json.loads(file.read_text())
        data["categories"] = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
        file.write_text(json.dumps(data))
    write_shapes(root / "shapes", 4, 2, progress=False)
    return root


def small(cfg: Config) -> None:
    """One iteration of two small images and few regions; nothing is fetched."""
    cfg.model.backbone.init_cfg = None
    cfg.train_cfg.update(max_iters=1, val_interval=1)
    cfg.param_scheduler, cfg.dry_step = [], False
    cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    for name in ("val_dataloader", "test_dataloader"):
        cfg[name].update(num_workers=0, persistent_workers=False)
        cfg[name].dataset.pipeline[1].scale = (96, 80)
    for step in cfg.train_dataloader.dataset.pipeline:
        if step.type == "RandomResize":
            step.scale = [(96, 64), (96, 80)]
    cfg.default_hooks.checkpoint.interval = 1
    # Also where the recipe has none: after one step the moving averages are no statistics, and a
    # deep network of random weights overflows with them.
    cfg.custom_hooks = [dict(type="PreciseBNHook", interval=1, num_iters=2)]
    stages = cfg.model.train_cfg.rcnn
    for stage in stages if isinstance(stages, list) else [stages]:
        stage.sampler.num = 16
    cfg.model.train_cfg.rpn_proposal.max_per_img = 40
    cfg.model.test_cfg.rpn.max_per_img = 20
    cfg.optim_wrapper.optimizer.lr = 1e-4  # from random weights a step at 0.02 may go too far
    cfg.model.test_cfg.rcnn.score_thr = -1.0  # one step finds nothing above 0.05


@pytest.mark.parametrize("name", [*AUTHORS, *GLUON, SHAPES])
def test_a_step_an_evaluation_and_a_prediction(name, coco, tmp_path, capsys):
    from mmdet.apis import inference_detector, init_detector

    cfg = load_config(CONFIGS / f"{name}.py", data_root=coco)
    small(cfg)
    summary = train(cfg, work_dir=tmp_path / "run", seed=0)
    scores = json.loads((tmp_path / "run" / "results.json").read_text())["history"][-1]
    assert "warning: backbone." not in capsys.readouterr().err  # of each frozen parameter
    keys = ["coco/bbox_mAP", *(["coco/segm_mAP"] if "mask" in name else [])]
    assert scores["iteration"] == 1
    assert all(0 <= scores[key] <= 1 for key in keys), scores

    checkpoint = tmp_path / "run" / summary["last_checkpoint"]
    image = str(next((coco / "coco" / "val2017").glob("*.png")))
    model = init_detector(cfg, str(checkpoint), device="cpu")
    found = inference_detector(model, image).pred_instances
    assert 0 < len(found.bboxes) <= 100 and found.scores.isfinite().all()
    assert (found.bboxes[:, 2:] >= found.bboxes[:, :2]).all()
    assert (found.bboxes.min() >= 0) and found.bboxes[:, 2].max() <= 160  # of the image's own size
    assert ("masks" in found) == ("mask" in name)
    assert "mask" not in name or found.masks.shape[1:] == (128, 160)
