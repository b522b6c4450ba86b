# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

import os
from pathlib import Path

import pytest
from advice import advises
from mmengine.config import Config
from user_errors import raises_user_error

from mmseg_resnest.datasets import LoadImageFromFile
from mmseg_resnest.engine.config import check_config, load_config, require, require_segmentation

ROOT = Path(__file__).resolve().parents[3]
CAMVID = ROOT / "configs" / "fcn_resnest14_camvid.py"


def test_data_root_of_all_data_sets(tmp_path: Path) -> None:
    (tmp_path / "camvid").mkdir()
    before = dict(os.environ)
    cfg = load_config(CAMVID, data_root=tmp_path)
    loaders = (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
    assert {loader.dataset.data_root for loader in loaders} == {f"{tmp_path}/camvid"}
    assert dict(os.environ) == before

    cfg = load_config(CAMVID, ["data_root=/elsewhere"])
    loaders = (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
    assert {loader.dataset.data_root for loader in loaders} == {"/elsewhere"}


def test_data_root_that_the_config_does_not_read(tmp_path: Path) -> None:
    config = tmp_path / "c.py"
    config.write_text("model = dict(type='EncoderDecoder')\n")
    with raises_user_error("config-conflict", "--data-root"):
        load_config(config, data_root=tmp_path)


def test_near_names_are_suggested() -> None:
    with raises_user_error("not-found", "fcn_resnst14_camvid.py") as info:
        load_config("configs/fcn_resnst14_camvid.py")
    assert "fcn_resnest14_camvid.py" in info.value.message


def test_mistakes_in_a_base_are_found_there(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("a = 1\nb = (\n")
    (tmp_path / "leaf.py").write_text("_base_ = 'base.py'\n")
    with raises_user_error("config-syntax", "base.py, line 2"):
        load_config(tmp_path / "leaf.py")
    (tmp_path / "base.py").write_text("a = 1\nb = a / 0\n")
    with raises_user_error("config-syntax", "base.py, line 2") as info:
        load_config(tmp_path / "leaf.py")
    assert info.value.message.startswith("ZeroDivisionError")


@pytest.mark.parametrize(
    "good",
    [
        # **kwargs handed to a base class, used by the class itself, and taken by the builder.
        dict(model=dict(type="EncoderDecoder", decode_head=dict(type="FCNHead", num_classes=2))),
        dict(tta_model=dict(type="MultiScaleGridTTA", scales=(1.0,))),
        dict(param_scheduler=[dict(type="PolyLR", power=0.9, convert_to_iter_based=True)]),
        dict(custom_hooks=[dict(type="EMAHook", momentum=0.1, priority="LOW")]),
        dict(model=dict(type="ResNeSt", norm_cfg=dict(type="BN", requires_grad=True, eps=1e-3))),
        dict(optim_wrapper=dict(optimizer=dict(type="SGD", lr=1))),
        # Options of another part, which this one builds.
        dict(custom_hooks=[dict(type="EMAHook", ema_type="MomentumAnnealingEMA", gamma=9)]),
        dict(tta_pipeline=[dict(type="RandomResize", scale=(9, 9), keep_ratio=True)]),
        dict(tta_pipeline=[
            dict(type="RandomChoiceResize", scales=[9], resize_type="ResizeShortestEdge",
                 max_size=9)
        ]),
        dict(model=dict(type="FCNHead", init_cfg=dict(type="Normal", override=dict(name="x")))),
        dict(compile=dict(backend="eager", dynamic=False)),
        dict(log_processor=dict(custom_cfg=[dict(data_src="loss", method_name="max")])),
        dict(optim_wrapper=dict(paramwise_cfg=dict(
            norm_decay_mult=0.0, custom_keys=dict(head=dict(lr_mult=10, momentum=0.5)))
        )),
    ],
)  # fmt: skip
def test_what_the_stack_accepts_is_accepted(good: dict) -> None:
    check_config({"default_scope": "mmseg_resnest", **good})


@pytest.mark.parametrize(
    ("bad", "key", "said"),
    [
        (dict(model=dict(type="EncoderDecoder", auxilary_head={})),
         "model.auxilary_head", "auxiliary_head"),
        (dict(custom_hooks=[dict(type="EMAHook", momentun=0.1)]),
         "custom_hooks.0.momentun", "momentum"),
        (dict(custom_hooks=[dict(type="EMAHook", ema_type="SWA")]), "custom_hooks.0.ema_type", ""),
        (dict(tta_pipeline=[dict(type="RandomResize", scale=(9, 9), keep_rato=True)]),
         "tta_pipeline.0.keep_rato", "keep_ratio"),
        (dict(tta_pipeline=[dict(type="RandomResize", scale=(9, 9), resize_type="Resise")]),
         "tta_pipeline.0.resize_type", "Resize"),
        (dict(default_hooks=dict(checkpoint=dict(type="CheckpointHook", max_keep=2))),
         "default_hooks.checkpoint.max_keep", "max_keep_ckpts"),
        (dict(val_evaluator=dict(type="IoUMetric", iou_metric="mDice")),
         "val_evaluator.iou_metric", "iou_metrics"),
        (dict(val_evaluator=dict(type="SegmentationMetric", metrics=["mIoU"])),
         "val_evaluator.metrics", "always"),
        (dict(val_evaluator=dict(type="SegmentationMetric", metrics="mDice")),
         "val_evaluator.metrics", "F1"),
        (dict(compile=dict(backen="eager")), "compile.backen", "backend"),
        (dict(sync_bn=True), "sync_bn", "torch"),
        (dict(efficient_conv_bn_eval=3), "efficient_conv_bn_eval", "a list"),
        (dict(default_hooks=dict(logger=dict(type="LoggerHook", interval=0))),
         "default_hooks.logger.interval", "from 1 on"),
        (dict(default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1.5))),
         "default_hooks.checkpoint.interval", "whole"),
        (dict(default_hooks=dict(checkpoint=dict(type="CheckpointHook", max_keep_ckpts="a"))),
         "default_hooks.checkpoint.max_keep_ckpts", "whole"),
        (dict(train_cfg=dict(dynamic_intervals=[(1, 0)])), "train_cfg.dynamic_intervals", "pairs"),
        (dict(train_cfg=dict(val_begin="a")), "train_cfg.val_begin", "whole"),
        (dict(val_cfg=dict(fp16="x")), "val_cfg.fp16", "True"),
        (dict(optim_wrapper=dict(accumulative_counts=0)),
         "optim_wrapper.accumulative_counts", "from 1 on"),
        (dict(optim_wrapper=dict(paramwise_cfg=dict(norm_decay_mul=0))),
         "optim_wrapper.paramwise_cfg.norm_decay_mul", "norm_decay_mult"),
        (dict(optim_wrapper=dict(paramwise_cfg=dict(bias_lr_mult="a"))),
         "optim_wrapper.paramwise_cfg.bias_lr_mult", "a number"),
        (dict(optim_wrapper=dict(paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mul=1))))),
         "optim_wrapper.paramwise_cfg.custom_keys.head.lr_mul", "lr_mult"),
        (dict(log_processor=dict(window_size=0)), "log_processor.window_size", "from 1 on"),
        (dict(log_processor=dict(by_epoch=False, custom_cfg=[
            dict(data_src="loss", method_name="mean")])),
         "log_processor.custom_cfg.0.window_size", "missing"),
        (dict(log_processor=dict(custom_cfg=[dict(data_src="loss", method_name="meen")])),
         "log_processor.custom_cfg.0.method_name", "mean"),
        (dict(env_cfg=dict(mp_cfg="fork")), "env_cfg.mp_cfg", "dictionary"),
        (dict(env_cfg=dict(mp_cfg=dict(opencv_num_threads="a"))),
         "env_cfg.mp_cfg.opencv_num_threads", "whole"),
        (dict(model=dict(auxiliary_head=[dict(num_classes="2")])),
         "model.auxiliary_head.0.num_classes", "whole"),
        (dict(model=dict(decode_head=dict(ignore_index="a"))),
         "model.decode_head.ignore_index", "whole"),
        (dict(model=dict(data_preprocessor=dict(std=[1, 0, 1]))),
         "model.data_preprocessor.std", "above 0"),
    ],
)  # fmt: skip
def test_what_a_part_cannot_take_is_named(bad: dict, key: str, said: str) -> None:
    with raises_user_error(("config-key", "config-value", "config-type"), key) as caught:
        check_config({"default_scope": "mmseg_resnest", **bad})
    assert caught.value.subject == f"config key {key}"
    assert said in caught.value.message


def test_another_scope_is_checked_against_its_own_parts() -> None:
    """MMSegmentation's ResNeSt has a depth, ours has none."""
    model = dict(model=dict(type="ResNeSt", depth=50))
    check_config({"default_scope": "mmseg", **model})
    with raises_user_error("config-key", "model.depth"):
        check_config({"default_scope": "mmseg_resnest", **model})


def test_required_parts() -> None:
    cfg = load_config(CAMVID)
    require(cfg, ["model"], "training")
    cfg.model = None
    with raises_user_error("config-key", CAMVID):
        require(cfg, ["model"], "training")


@pytest.mark.parametrize(
    ("kind", "command"),
    [("mmdet.FasterRCNN", "detect"), ("mmpretrain.ImageClassifier", "classify")],
)
def test_a_config_of_another_task_says_its_command(kind: str, command: str) -> None:
    with advises("engine/config/load.py:require_segmentation", "use mmseg-resnest") as told:
        require_segmentation(Config(dict(model=dict(type=kind))), "train")
    assert told.value.code == "model" and told.value.message.endswith(f"mmseg-resnest {command}")
    require_segmentation(Config(dict(model=dict(type="EncoderDecoder"))), "train")


def test_an_image_of_another_task_is_not_for_check_data(tmp_path: Path) -> None:
    """It reads data sets with label maps only."""
    (tmp_path / "a.png").write_bytes(b"none")
    for sample, said in ((dict(gt_label=1), False), (dict(instances=[]), False), ({}, True)):
        with raises_user_error("image", "a.png") as told:
            LoadImageFromFile()(dict(img_path=str(tmp_path / "a.png"), **sample))
        assert ("check-data" in told.value.message) == said
