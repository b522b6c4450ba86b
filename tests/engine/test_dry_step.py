# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A mistake that a first step or validation shows is refused before anything is written."""

from __future__ import annotations

import random
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from run_state import differences, final_state
from small_runs import run, small_config
from user_errors import raises_user_error

from mmseg_resnest.datasets.scenes import write_scenes
from mmseg_resnest.engine.dry_step import dry_step
from mmseg_resnest.engine.launch import Machine
from mmseg_resnest.engine.model import build_seeded_model
from mmseg_resnest.engine.resolve import TrainingOptions, resolve
from mmseg_resnest.evaluation import read_scalars
from mmseg_resnest.registry import METRICS, TRANSFORMS


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images to train on; of three to validate on one is smaller."""
    root = write_scenes(tmp_path_factory.mktemp("data") / "scenes", 6, 3, progress=False)
    for kind in ("images", "annotations"):
        path = sorted((root / kind / "validation").iterdir())[1]
        with Image.open(path) as image:
            small = image.crop((0, 0, 80, 64))
        small.save(path)
    return root


@TRANSFORMS.register_module()
class Fails:
    """A transform with a mistake."""

    def __call__(self, results: dict) -> dict:
        raise ZeroDivisionError("no pixels")


@METRICS.register_module()
class NeedsEverything:
    """A metric that wants what there is not."""

    def __init__(self) -> None:
        raise KeyError("everything")


def _set(key: str, value: Any) -> Callable[[Config], None]:
    def change(cfg: Config) -> None:
        cfg.merge_from_dict({key: value})

    return change


def _add_step(loader: str, **step: Any) -> Callable[[Config], None]:
    def change(cfg: Config) -> None:
        cfg[loader].dataset.pipeline.insert(1, step or dict(type="Fails"))

    return change


def _merge(cfg: Config) -> None:
    """Two steps that become one, and behind them one that fails."""
    resize = dict(type="RandomResize", scale=(80, 64), ratio_range=(1.0, 2.0), keep_ratio=True)
    steps = cfg.train_dataloader.dataset.pipeline
    (crop,) = [i for i, step in enumerate(steps) if step.type == "RandomCrop"]
    steps[crop : crop + 1] = [resize, steps[crop], dict(type="Fails")]


def _wrap(*steps: dict[str, Any]) -> Callable[[Config], None]:
    """Steps behind the first one of the data set, which stands in two wrappers."""

    def change(cfg: Config) -> None:
        inner = cfg.train_dataloader.dataset
        inner.pipeline[1:1] = list(steps)
        repeated = dict(type="RepeatDataset", times=2, dataset=inner)
        cfg.train_dataloader.dataset = dict(type="ConcatDataset", datasets=[repeated])

    return change


@TRANSFORMS.register_module(force=True)
class AddBand:
    """A fourth channel."""

    def __call__(self, results: dict) -> dict:
        return {**results, "img": np.dstack([results["img"], results["img"][:, :, :1]])}


def _add_band(cfg: Config) -> None:
    cfg.train_dataloader.dataset.pipeline.insert(1, dict(type="AddBand"))
    cfg.model.backbone.in_channels = 4


def _pooling(images: int) -> Callable[[Config], None]:
    """A head with batch norm after global pooling."""

    def change(cfg: Config) -> None:
        cfg.model.decode_head.update(type="PSPHead", in_channels=2048, in_index=3, pool_scales=(1,))
        for key in ("input_transform", "num_convs", "concat_input", "kernel_size"):
            cfg.model.decode_head.pop(key, None)
        cfg.train_dataloader.batch_size = images

    return change


def _by_epoch(images: int, sampler: str, **loader: Any) -> Callable[[Config], None]:
    def change(cfg: Config) -> None:
        sampler_cfg = dict(type=sampler, shuffle=True)
        cfg.train_dataloader.update(batch_size=images, sampler=sampler_cfg, **loader)
        cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2)

    return change


def _without(loader: str, kind: str) -> Callable[[Config], None]:
    def change(cfg: Config) -> None:
        steps = cfg[loader].dataset.pipeline
        cfg[loader].dataset.pipeline = [step for step in steps if step.type != kind]

    return change


CASES: dict[str, tuple[Callable[[Config], None], str, str]] = {
    "class weights of the wrong number": (
        _set("model.decode_head.loss_decode.class_weight", [1.0, 2.0]),
        "config-conflict", "model.decode_head.loss_decode.class_weight",
    ),
    "a score that there is not": (
        _set("default_hooks.checkpoint.save_best", "mDice"),
        "config-value", "default_hooks.checkpoint.save_best",
    ),
    "a score whose rule is unknown": (
        _set("default_hooks.checkpoint", dict(save_best="kappa", rule=None)),
        "config-value", "default_hooks.checkpoint",
    ),
    "stopping by a score that there is not": (
        _set("custom_hooks", [dict(type="EarlyStoppingHook", monitor="val/mIoU")]),
        "config-value", "custom_hooks.0.monitor",
    ),
    "a schedule by a score that there is not": (
        _set("param_scheduler", [
            dict(type="ReduceOnPlateauLR", monitor="loss", patience=1)
        ]),
        "config-value", "param_scheduler.0.monitor",
    ),
    "a hook with a wrong option": (
        _set("custom_hooks", [dict(type="EMAHook", momentum=5.0)]),
        "config-value", "custom_hooks.0",
    ),
    "batch norm of one image": (
        _pooling(1), "config-value", "train_dataloader.batch_size",
    ),
    "images of two sizes in a batch": (
        _set("val_dataloader.batch_size", 2), "config-conflict", "val_dataloader.batch_size",
    ),
    "size beside size_divisor": (
        _set("model.data_preprocessor", dict(size=(64, 64), size_divisor=32)),
        "config-conflict", "model.data_preprocessor.size",
    ),
    "neither size nor size_divisor": (
        _set("model.data_preprocessor", dict(size=None, size_divisor=None)),
        "config-value", "model.data_preprocessor.size",
    ),
    "a mean of two channels": (
        _set("model.data_preprocessor", dict(mean=[1.0, 2.0], std=[1.0, 1.0])),
        "config-conflict", "model.data_preprocessor.mean",
    ),

    "a backbone of four channels": (
        _set("model.backbone.in_channels", 4), "config-conflict", "model.backbone.in_channels",
    ),
    "three means of four bands": (
        _add_band, "config-conflict", "model.data_preprocessor.mean",
    ),
    "a head with other channels than the backbone": (
        _set("model.auxiliary_head.in_channels", 7), "model", "model.auxiliary_head",
    ),
    "a head that reads a stage that there is not": (
        _set("model.auxiliary_head.in_index", 9), "config-value", "model.auxiliary_head",
    ),
    "a tracker that is not installed": (
        _set("visualizer.vis_backends", [dict(type="ClearMLVisBackend")]),
        "missing-package", "visualizer.vis_backends.0.type",
    ),
    "a transform that fails": (
        _add_step("train_dataloader"), "data-loading", "train_dataloader.dataset.pipeline.1",
    ),
    "a transform behind those that are merged": (
        _merge, "data-loading", "train_dataloader.dataset.pipeline.5",
    ),
    "a transform of the validation that fails": (
        _add_step("val_dataloader"), "data-loading", "val_dataloader.dataset.pipeline.1",
    ),
    "a transform inside others, inside wrappers": (
        _wrap(dict(type="RandomApply", transforms=[dict(type="Fails")], prob=1.0)),
        "data-loading", "train_dataloader.dataset.datasets.0.dataset.pipeline.1.transforms.0",
    ),
    "a transform that lacks an option": (
        _wrap(dict(type="ResizeToMultiple", size_divisor=None, interpolation="x"),
              dict(type="RandomRotate", prob=0.5)),
        "config-value", "train_dataloader.dataset.datasets.0.dataset.pipeline.2",
    ),
    "a transform whose options are refused": (
        _add_step("val_dataloader", type="RandomCrop", crop_size=0),
        "config-value", "val_dataloader.dataset.pipeline.1",
    ),
    "a loss that cannot be built": (
        _set("model.auxiliary_head.loss_decode",
             dict(type="LovaszLoss", loss_type="x", _delete_=True)),
        "config-value", "model.auxiliary_head.loss_decode",
    ),
    "a backbone that cannot be built": (
        _set("model.backbone", dict(type="ResNet", depth=17, _delete_=True)),
        "config-value", "model.backbone",
    ),
    "a norm that cannot be built": (
        _set("model.decode_head.norm_cfg", dict(type="GN", num_groups=7)),
        "config-value", "model.decode_head.norm_cfg",
    ),
    "a second metric that cannot be built": (
        _set("val_evaluator", [dict(type="SegmentationMetric"), dict(type="NeedsEverything")]),
        "config-value", "val_evaluator.1",
    ),
    "a way to compile that there is not": (
        _set("compile", dict(backend="nope")), "config-value", "compile",
    ),
    "a part to checkpoint that there is not": (
        _set("activation_checkpointing", ["backbone", "nowhere"]),
        "config-value", "activation_checkpointing",
    ),
    "a part to fuse that cannot be traced": (
        _set("efficient_conv_bn_eval", "decode_head"), "config-value", "efficient_conv_bn_eval",
    ),
    "validation without labels": (
        _without("val_dataloader", "LoadAnnotations"), "config-value", "val_dataloader.dataset",
    ),
    "a metric that cannot be built": (
        _set("val_evaluator", dict(type="NeedsEverything", _delete_=True)),
        "config-value", "val_evaluator",
    ),
    "training without labels": (
        _without("train_dataloader", "LoadAnnotations"), "config-value", "train_dataloader.dataset",
    ),
    "samples that are not packed": (
        _without("train_dataloader", "PackSegInputs"),
        "config-value", "train_dataloader.dataset.pipeline",
    ),
    "an epoch without an end": (
        _by_epoch(2, "ExactSampler"), "config-conflict", "train_dataloader.sampler.type",
    ),
    "a validation without an end": (
        _set("val_dataloader.sampler", dict(type="InfiniteSampler", _delete_=True)),
        "config-conflict", "val_dataloader.sampler.type",
    ),
    "no complete batch": (
        _by_epoch(20, "DefaultSampler", drop_last=True),
        "config-conflict", "train_dataloader.batch_size",
    ),
    "weights of a part that there is not": (
        _set("model.decode_head.init_cfg", dict(type="Normal", override=dict(name="nowhere"))),
        "config-value", "model.decode_head",
    ),
    "averages from after the end on": (
        _set("custom_hooks", [dict(type="EMAHook", begin_iter=1000)]),
        "config-conflict", "custom_hooks.0.begin_iter",
    ),
    "an unknown way to start processes": (
        _set("env_cfg.mp_cfg.mp_start_method", "spork"),
        "config-value", "env_cfg.mp_cfg.mp_start_method",
    ),
    "a schedule that ends before it begins": (
        _set("param_scheduler", [
            dict(type="PolyLR", begin=5, end=2, by_epoch=False)
        ]),
        "config-value", "param_scheduler",
    ),
    "a schedule with a wrong value": (
        _set("param_scheduler", [
            dict(type="PolyLR", power="x", begin=0, end=4, by_epoch=False)
        ]),
        "config-value", "param_scheduler",
    ),
    "a cycle that is shorter than the run": (
        _set("param_scheduler", [
            dict(type="OneCycleLR", eta_max=0.1, total_steps=2, by_epoch=False)
        ]),
        "config-conflict", "param_scheduler.0.total_steps",
    ),
    "a norm that is no number": (
        _set("optim_wrapper.clip_grad", dict(max_norm="a")), "config-value", "optim_wrapper",
    ),
    "a schedule by epochs of a run by iterations": (
        _set("param_scheduler", [dict(type="PolyLR", begin=0, end=6)]),
        "config-conflict", "param_scheduler.0.by_epoch",
    ),
    "checkpoints by epochs of a run by iterations": (
        _set("default_hooks.checkpoint.by_epoch", True),
        "config-conflict", "default_hooks.checkpoint.by_epoch",
    ),
    "averages by epochs of a run by iterations": (
        _set("custom_hooks", [dict(type="EMAHook", begin_epoch=1)]),
        "config-conflict", "custom_hooks.0.begin_epoch",
    ),
    "validations from after the end on": (
        _set("train_cfg.val_begin", 1000), "config-conflict", "train_cfg.val_begin",
    ),
    "a hook that everything needs": (
        _set("default_hooks.runtime_info", None), "config-value", "default_hooks.runtime_info",
    ),
    "a hook without a type": (
        _set("custom_hooks", [dict(momentum=0.1)]), "config-value", "custom_hooks.0",
    ),
    "a priority that there is not": (
        _set("custom_hooks", [dict(type="EMAHook", priority="HIGHER")]),
        "config-value", "custom_hooks.0.priority",
    ),
    "a stage that there is not": (
        _set("model.backbone.frozen_stages", 9), "config-value", "model.backbone",
    ),
    "a stage that is no output": (
        _set("model.backbone.out_indices", (0, 1, 3)), "config-value", "model.decode_head",
    ),
    "mixed precision of a GPU on a CPU": (
        _set("optim_wrapper.type", "AmpOptimWrapper"), "config-value", "optim_wrapper.type",
    ),
    "a metric of another kind of labels": (
        _set("val_evaluator", dict(type="DepthMetric", _delete_=True)),
        "config-value", "val_evaluator",
    ),
    "no interval": (
        _set("train_cfg.val_interval", 0), "config-value", "train_cfg.val_interval",
    ),
    "no iterations": (_set("train_cfg.max_iters", 0), "config-value", "train_cfg.max_iters"),
    "an optimizer with a wrong value": (
        _set("optim_wrapper.optimizer.lr", -1.0), "config-value", "optim_wrapper.optimizer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_found_before_anything_is_written(
    name: str, scenes: Path, tmp_path: Path
) -> None:
    change, code, subject = CASES[name]
    cfg = small_config(scenes, validate=True)
    change(cfg)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with raises_user_error(code, f"config key {subject}") as caught:
        run(cfg, tmp_path / "work")
    assert "\n" not in caught.value.message and "Traceback" not in caught.value.message
    assert list(tmp_path.iterdir()) == []
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_the_run_after_it_is_the_same_run(scenes: Path, tmp_path: Path) -> None:
    """Losses, weights, running statistics, averages, optimizer, scores: all bits are equal."""
    for name, dry in (("with", True), ("without", False)):
        cfg = small_config(
            scenes, validate=True, train_cfg__val_interval=3,
            default_hooks__checkpoint__save_best="mIoU",
            optim_wrapper__type="BFloat16OptimWrapper", optim_wrapper__accumulative_counts=2,
        )  # fmt: skip
        cfg.model.decode_head.dropout_ratio = 0.5
        cfg.custom_hooks = [dict(type="EMAHook", momentum=0.1)]
        cfg.train_dataloader.sampler = dict(type="InfiniteSampler", shuffle=True)
        if not dry:
            cfg.dry_step = False
        run(cfg, tmp_path / name)
    assert differences(final_state(tmp_path / "with"), final_state(tmp_path / "without")) == []


def test_its_memory_is_given_back_when_the_copy_of_the_model_is_gone(
    scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[weakref.ref] = []
    gone: list[bool] = []
    module = sys.modules[dry_step.__module__]
    forecast = lambda model, *others: copies.append(weakref.ref(model))  # noqa: E731
    give_back = lambda: gone.append(copies[0]() is None)  # noqa: E731
    monkeypatch.setattr(module, "forecast", forecast)
    monkeypatch.setattr(module, "give_back_freed_memory", give_back)
    _step(small_config(scenes))
    assert gone == [True]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_memory_that_does_not_suffice(error: Exception, scenes: Path) -> None:
    cfg = small_config(scenes)
    built = build_seeded_model(cfg)
    built.model.decode_head.loss = _Raises(error)
    cfg = resolve(cfg, TrainingOptions("work"), Machine()).cfg
    with raises_user_error("memory", "config key train_dataloader.batch_size"):
        dry_step(cfg, built, Machine())


class _Raises:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *arguments: Any) -> None:
        raise self.error


def _step(cfg: Config, rank: int = 0, world_size: int = 1) -> list[tuple[str, str]]:
    machine = Machine(rank, world_size)
    options = TrainingOptions("work", launcher="none" if world_size == 1 else "pytorch")
    cfg = resolve(cfg, options, machine).cfg
    rows = dry_step(cfg, build_seeded_model(cfg), machine)
    return [row for row in rows if row[0] not in ("memory", "time")]


def test_a_last_batch_of_one_image(scenes: Path) -> None:
    """Six images in batches of five: with drop_last, or in batches of four, they can be trained."""
    cfg = small_config(scenes)
    _pooling(5)(cfg)
    cfg.train_dataloader.sampler = dict(type="DefaultSampler", shuffle=True)
    cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2)
    with raises_user_error("config-value", "config key train_dataloader.drop_last"):
        _step(cfg)
    cfg.train_dataloader.drop_last = True
    assert _step(cfg) == []
    cfg.train_dataloader.update(drop_last=False, batch_size=4)
    assert _step(cfg) == []


def test_the_header_names_the_epochs_of_the_config(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two epochs of one batch of four of six images: two iterations."""
    cfg = small_config(scenes)
    _by_epoch(4, "DefaultSampler", drop_last=True)(cfg)
    cfg.train_cfg.max_epochs = 2
    run(cfg, tmp_path / "work")
    assert "2 iterations of 4 images (2 epochs)" in capsys.readouterr().out


def test_scores_of_a_run_by_epochs_are_logged_at_their_iteration(
    scenes: Path, tmp_path: Path
) -> None:
    cfg = small_config(scenes, validate=True)
    _by_epoch(2, "DefaultSampler")(cfg)
    cfg.default_hooks.logger = dict(type="LoggerHook", interval=1)  # as MMEngine has it
    done = run(cfg, tmp_path / "work")
    steps = read_scalars(tmp_path / "work")["mIoU"].steps.tolist()
    assert steps == [row["iteration"] for row in done["history"]] == [3, 6]


@pytest.mark.parametrize("key", [None, "find_unused_parameters"])
def test_a_part_that_no_loss_reads_on_two_processes(key: str | None, scenes: Path) -> None:
    """The heads read the third stage; the fourth gets no gradient."""
    cfg = small_config(scenes, train_dataloader__batch_size=4)
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.update(type="FCNHead", in_channels=1024, in_index=2, input_transform=None)
    assert _step(cfg) == []
    if key is None:
        with raises_user_error("config-value", "config key find_unused_parameters") as caught:
            _step(cfg, 1, 2)
        assert "backbone.layer4" in caught.value.message
    else:
        cfg[key] = True
        assert _step(cfg, 1, 2) == []


@pytest.mark.parametrize("kind", ["BN", "SyncBN"])
def test_one_image_for_each_of_two_processes(kind: str, scenes: Path) -> None:
    """Batch norm over both processes has two; the backbone's attention pools all pixels."""
    cfg = small_config(scenes)
    for part in (cfg.model.backbone, cfg.model.decode_head, cfg.model.auxiliary_head):
        part.norm_cfg = dict(type=kind)
    if kind == "SyncBN":
        assert _step(cfg, 1, 2) == []
        return
    with raises_user_error("config-value", "config key train_dataloader.batch_size"):
        _step(cfg, 1, 2)


def test_keys_of_the_optimizer_that_match_nothing_are_shown(scenes: Path) -> None:
    cfg = small_config(scenes)
    keys = dict(head=dict(lr_mult=10.0), pos_embed=dict(decay_mult=0.0))
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys=keys)
    ((row, text),) = _step(cfg)
    assert row == "optimizer"
    assert "pos_embed" in text
    assert "head" not in text


def test_rates_that_a_schedule_takes_away_are_shown(scenes: Path) -> None:
    """MMEngine's OneCycleLR sets its eta_max for all groups of parameters."""
    cfg = small_config(scenes)
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys=dict(head=dict(lr_mult=10.0)))
    cfg.param_scheduler = dict(type="OneCycleLR", eta_max=0.1, total_steps=6, by_epoch=False)
    ((row, text),) = _step(cfg)
    assert row == "optimizer" and "lr_mult" in text
