# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the errors of a run's preparation tell people to do is done, and then it goes on."""

from __future__ import annotations

import copy
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from advice import advises, helps
from mmengine.config import Config
from mmengine.hooks import CheckpointHook as MMEngineHook
from mmengine.registry import DefaultScope
from PIL import Image
from small_runs import small_config

from mmseg_resnest.datasets.scenes import write_scenes
from mmseg_resnest.engine.benchmark import benchmark
from mmseg_resnest.engine.browse import draw_sample
from mmseg_resnest.engine.dry_step import dry_step
from mmseg_resnest.engine.hooks.checkpoint import CheckpointHook
from mmseg_resnest.engine.launch import Machine
from mmseg_resnest.engine.model import build_seeded_model
from mmseg_resnest.engine.optimization import (
    check_cycles,
    check_schedule_ends,
    check_schedules,
)
from mmseg_resnest.engine.resolve import TestingOptions, TrainingOptions, resolve
from mmseg_resnest.engine.run_options import RunOptions
from mmseg_resnest.engine.sharding import check_sharding
from mmseg_resnest.engine.testing import _check_submission_folder, check_test_data
from mmseg_resnest.engine.tracking import check_services
from mmseg_resnest.registry import DATASETS, HOOKS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three images to validate on one is smaller."""
    root = write_scenes(tmp_path_factory.mktemp("data") / "scenes", 4, 3, progress=False)
    for kind in ("images", "annotations"):
        path = sorted((root / kind / "validation").iterdir())[1]
        with Image.open(path) as image:
            small = image.crop((0, 0, 80, 64))
        small.save(path)
    return root


@pytest.fixture(scope="module")
def small(scenes: Path) -> Config:
    return small_config(scenes, validate=True)


@pytest.fixture
def cfg(small: Config) -> Config:
    return copy.deepcopy(small)


_done: set[str] = set()  # the configs whose steps went well


def step(cfg: Config, world_size: int = 1) -> None:
    """The dry step of a run, as one of its processes does it; once for a config."""
    same = f"{world_size} {cfg.to_dict()}"
    if same not in _done:
        machine = Machine(world_size - 1, world_size)
        options = TrainingOptions("work", launcher="none" if world_size == 1 else "pytorch")
        cfg = resolve(cfg, options, machine).cfg
        dry_step(cfg, build_seeded_model(cfg), machine)
        _done.add(same)


# --- the first step --------------------------------------------------------------------------


@pytest.mark.long
def test_steps_of_the_pipelines(cfg: Config, scenes: Path) -> None:
    def without(loader: str, kind: str) -> None:
        steps = cfg[loader].dataset.pipeline
        cfg[loader].dataset.pipeline = [one for one in steps if one.type != kind]

    whole = {name: cfg[name].dataset.pipeline for name in ("train_dataloader", "val_dataloader")}

    def restore() -> None:
        for name, steps in whole.items():
            cfg[name].dataset.pipeline = steps

    without("train_dataloader", "LoadAnnotations")
    helps("engine/failing_parts.py:_explain_batch", "seg_map_path", "LoadAnnotations",
          call=lambda: step(cfg), remedy=restore)  # fmt: skip
    without("train_dataloader", "PackSegInputs")
    helps("engine/failing_parts.py:failing_model", "PackSegInputs",
          call=lambda: step(cfg), remedy=restore)  # fmt: skip
    without("val_dataloader", "LoadAnnotations")
    helps("engine/dry_step.py:_validate", "seg_map_path", "LoadAnnotations",
          call=lambda: step(cfg), remedy=restore)  # fmt: skip


@pytest.mark.long
def test_batches_of_the_validation(cfg: Config) -> None:
    cfg.val_dataloader.batch_size = 2
    helps("engine/failing_parts.py:_explain_batch", ".batch_size=1",
          call=lambda: step(cfg),
          remedy=lambda: cfg.merge_from_dict({"val_dataloader.batch_size": 1}))  # fmt: skip
    sampler = cfg.val_dataloader.sampler
    cfg.val_dataloader.sampler = dict(type="InfiniteSampler")
    helps("engine/first_batches.py:check_end", "DefaultSampler", call=lambda: step(cfg),
          remedy=lambda: cfg.val_dataloader.update(sampler=dict(sampler, type="DefaultSampler")),
    )  # fmt: skip


@pytest.mark.long
def test_sizes_of_the_batch(cfg: Config) -> None:
    part = cfg.model.data_preprocessor
    part.update(size=(64, 64), size_divisor=32)
    helps("engine/failing_parts.py:_explain_part", "the other one to None",
          call=lambda: step(cfg), remedy=lambda: part.update(size_divisor=None))  # fmt: skip
    part.update(size=None, size_divisor=None)
    helps("engine/failing_parts.py:_explain_part", "set one of them",
          call=lambda: step(cfg), remedy=lambda: part.update(size_divisor=32))  # fmt: skip


def test_schedules_that_stay_or_end_too_early() -> None:
    schedules = [dict(type="PolyLR")]
    cfg = Config(dict(train_cfg=dict(max_epochs=9), param_scheduler=schedules))
    helps("engine/optimization.py:check_schedules", "is missing", "set it to",
          call=partial(check_schedules, cfg),
          remedy=partial(cfg.param_scheduler[0].update, end=9))  # fmt: skip
    for remedy in (dict(end=2), dict(convert_to_iter_based=True)):
        cfg.param_scheduler = [dict(type="LinearLR", end=1)]
        helps("engine/optimization.py:check_schedules", "set it to", "convert_to_iter_based=True",
              call=partial(check_schedules, cfg),
              remedy=partial(cfg.param_scheduler[0].update, remedy))  # fmt: skip
    cfg.param_scheduler = dict(type="OneCycleLR", total_steps=2)
    with advises("engine/optimization.py:check_cycles", "remove it and set end="):
        check_cycles(cfg, 3)
    del cfg.param_scheduler["total_steps"]
    cfg.param_scheduler.end = 9
    check_cycles(cfg, 3)


@pytest.mark.long
def test_parts_that_do_not_fit(cfg: Config) -> None:
    head, right = cfg.model.auxiliary_head, cfg.model.auxiliary_head.in_channels
    head.in_channels = 7
    with advises("engine/failing_parts.py:_explain_part", "in_channels", "model.backbone") as told:
        step(cfg)
    found = re.search(r"takes 7 channels and gets (\d+)", told.value.message)
    assert found is not None and int(found[1]) == right
    head.in_channels = int(found[1])
    step(cfg)


@pytest.mark.long
def test_batch_norm_of_one_image(cfg: Config) -> None:
    head = cfg.model.decode_head
    head.update(type="PSPHead", in_channels=2048, in_index=3, pool_scales=(1,))
    for key in ("input_transform", "num_convs", "concat_input", "kernel_size"):
        head.pop(key, None)
    cfg.train_dataloader.batch_size = 1
    helps("engine/failing_parts.py:_explain_batch", "at least 2 images", "SyncBN",
          call=lambda: step(cfg), remedy=lambda: cfg.train_dataloader.update(batch_size=2),
    )  # fmt: skip
    cfg.train_dataloader.update(batch_size=3, sampler=dict(type="DefaultSampler", shuffle=True))
    cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2)
    helps("engine/dry_step.py:_train", "train_dataloader.drop_last=True",
          call=lambda: step(cfg), remedy=lambda: cfg.train_dataloader.update(drop_last=True),
    )  # fmt: skip


@pytest.mark.long
def test_a_part_that_nothing_reads(cfg: Config) -> None:
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.train_dataloader.batch_size = 4
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.update(type="FCNHead", in_channels=1024, in_index=2, input_transform=None)
    read = copy.deepcopy(cfg)
    helps("engine/dry_step.py:_check_unused", "must be True", "take out the part",
          call=lambda: step(cfg, 2), remedy=lambda: cfg.update(find_unused_parameters=True),
    )  # fmt: skip
    read.model.auxiliary_head.update(in_channels=2048, in_index=3)
    step(read, 2)  # every part is read


def test_scores_and_their_rules() -> None:
    def save(name: str, rule: str | None = None) -> None:
        CheckpointHook(interval=1, save_best=name, rule=rule)

    with advises("engine/hooks/monitor.py:naming", "rule='greater'", "correct the name"):
        save("sharpness")
    save("sharpness", "greater")
    save("mIoU")


def test_checkpoint_hooks_of_ones_own(tmp_path: Path) -> None:
    with advises("engine/hooks/checkpoint.py:__init__", "remove", "backend_args"):
        CheckpointHook(backend_args=dict(backend="petrel"))
    hook = CheckpointHook()
    runner: Any = SimpleNamespace()  # of another class
    with advises("engine/hooks/checkpoint.py:before_train", "'mmengine.CheckpointHook'"):
        hook.before_train(runner)
    assert type(HOOKS.build(dict(type="mmengine.CheckpointHook"))) is MMEngineHook


def test_pictures_of_a_pipeline_that_loads_nothing(cfg: Config) -> None:
    dataset = cfg.train_dataloader.dataset

    def draw() -> Any:
        with DefaultScope.overwrite_default_scope("mmseg_resnest"):
            return draw_sample(DATASETS.build(copy.deepcopy(dataset)), 0, 0)

    steps, dataset.pipeline = dataset.pipeline, []
    helps("engine/browse.py:draw_sample", "add LoadImageFromFile", call=draw,
          remedy=lambda: dataset.update(pipeline=[steps[0]]))  # fmt: skip


@pytest.mark.long
def test_measuring_training(cfg: Config) -> None:
    def measure(batch_size: int) -> Any:
        return benchmark(
            cfg, batch_size=batch_size, shape=(64, 64), training=True, device="cpu", seconds=0.1
        )

    with advises("engine/benchmark.py:benchmark", "--batch-size 2 or more"):
        measure(1)
    assert measure(2)


# --- what a run is resolved to ---------------------------------------------------------------


def training(cfg: Config, world_size: int = 1, memory: int | None = None, **options: Any) -> Config:
    machine = Machine(0, world_size, memory=memory)
    return resolve(cfg, TrainingOptions("work", **options), machine).cfg


def evaluation(cfg: Config, **options: Any) -> Config:
    return resolve(cfg, TestingOptions(work_dir="work", **options), Machine()).cfg


def test_parts_of_the_validation(cfg: Config) -> None:
    evaluator = cfg.val_evaluator
    cfg.val_evaluator = None
    helps("engine/resolve.py:resolve", "give all of",
          call=lambda: training(cfg), remedy=lambda: cfg.update(val_evaluator=evaluator),
    )  # fmt: skip
    cfg.val_evaluator = cfg.val_dataloader = cfg.val_cfg = None
    training(cfg)


def test_where_a_config_without_a_file_writes(cfg: Config) -> None:
    plain = Config(cfg.to_dict())
    with advises("engine/resolve.py:default_work_dir", "name a folder"):
        resolve(plain, TrainingOptions(), Machine())
    resolve(plain, TrainingOptions("work"), Machine())


def test_batch_and_learning_rate(cfg: Config) -> None:
    cfg.train_dataloader.batch_size = 4
    cfg.auto_scale_lr = None
    with advises("engine/resolve.py:_share_batch", "--auto-scale-lr", "multiple of"):
        training(cfg, 3)
    training(cfg, 2)
    cfg.train_dataloader.batch_size = 6
    with advises("engine/resolve.py:_scale_learning_rate", "base_batch_size="):
        training(cfg, 3, auto_scale_lr=True)
    cfg.auto_scale_lr = dict(base_batch_size=4)
    training(cfg, 3, auto_scale_lr=True)
    optimizer = cfg.optim_wrapper.optimizer
    cfg.optim_wrapper.optimizer = dict(type="SGD")
    with advises("engine/run_options.py:_set_rate", "--cfg-options"):
        training(cfg, run=RunOptions(lr=0.1))
    cfg.optim_wrapper.optimizer = optimizer  # as --cfg-options optim_wrapper.optimizer.lr does
    training(cfg, run=RunOptions(lr=0.1))


def test_the_crop(cfg: Config) -> None:
    steps = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = [one for one in steps if one.type != "RandomCrop"]
    helps("engine/run_options.py:_set_image_size", "RandomCrop",
          call=lambda: training(cfg, run=RunOptions(image_size=(64, 64))),
          remedy=lambda: cfg.train_dataloader.dataset.update(pipeline=steps))  # fmt: skip
    for size in ((10**6, 10**6), (64, 10**10)):
        with advises("engine/run_options.py:_check_crop", "give a smaller size"):
            training(cfg, memory=10**11, run=RunOptions(image_size=size))
        training(cfg, run=RunOptions(image_size=size))  # not known
    training(cfg, run=RunOptions(image_size=(96, 64)))


def test_augmented_tests(cfg: Config) -> None:
    cfg.tta_model = None
    with advises("engine/resolve.py:_use_tta", "tta_model=") as told:
        evaluation(cfg, tta=True)
    added = told.value.message.rpartition("tta_model=")[2]
    cfg.tta_model = eval(added, {"dict": dict})
    assert evaluation(cfg, tta=True).model.type == "MultiScaleGridTTA"


def test_a_schedule_that_ends_early(cfg: Config) -> None:
    end = cfg.train_cfg.max_iters // 2
    cfg.param_scheduler = [dict(type="PolyLR", eta_min=0.0, begin=0, end=end, by_epoch=False)]
    with advises("engine/optimization.py:check_schedule_ends", "--allow-changes") as told:
        check_schedule_ends(cfg)
    found = re.search(r"set param_scheduler\.0\.end=(\d+)", told.value.message)
    assert found is not None
    cfg.param_scheduler[0].end = int(found[1])
    check_schedule_ends(cfg)


def test_sharded_runs(cfg: Config) -> None:
    cfg.model_wrapper_cfg = dict(type="FSDP")
    cfg.custom_hooks = [dict(type="EMAHook")]
    with advises("engine/sharding.py:check_sharding", "remove the hook", "model_wrapper_cfg"):
        check_sharding(cfg)
    check_sharding({**cfg, "custom_hooks": []})
    check_sharding({**cfg, "model_wrapper_cfg": None})


def test_services(monkeypatch: pytest.MonkeyPatch) -> None:
    with advises("engine/tracking.py:check_services", "choose of") as told:
        check_services(["neptune"])
    (service, *_) = told.value.message.partition("choose of ")[2].split(", ")
    monkeypatch.setitem(sys.modules, service, None)
    visualizer = dict(vis_backends=[dict(type="ClearMLVisBackend")])
    with advises("engine/tracking.py:check_services", "pip install", "or remove it") as told:
        check_services([], visualizer)
    assert "pip install clearml" in told.value.message
    check_services([], dict(vis_backends=[]))
    with advises("engine/tracking.py:check_services", "pip install"):
        check_services([service])
    for name in ("clearml", service):  # they are installed
        module = ModuleType(name)
        module.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    check_services([service], visualizer)


# --- tests -----------------------------------------------------------------------------------


def test_labels_of_a_test(cfg: Config, scenes: Path) -> None:
    prefix = cfg.test_dataloader.dataset.data_prefix

    def unscored(cfg: Config) -> Config:  # --cfg-options test_evaluator=[]
        return evaluation(Config({**cfg.to_dict(), "test_evaluator": []}))

    labels = prefix.seg_map_path
    prefix.seg_map_path = None
    with advises("engine/testing.py:check_test_data", "test_evaluator=[]", "--out DIR"):
        check_test_data(evaluation(cfg))
    check_test_data(unscored(cfg))
    prefix.seg_map_path = "nowhere"
    with advises("engine/testing.py:check_test_data", "test_evaluator=[]", "--out DIR"):
        check_test_data(evaluation(cfg))
    check_test_data(unscored(cfg))
    prefix.seg_map_path = labels
    check_test_data(evaluation(cfg))


def test_folders_of_submissions(tmp_path: Path) -> None:
    (tmp_path / "x.txt").touch()
    with advises("engine/testing.py:_check_submission_folder", "--out DIR"):
        _check_submission_folder(None, "cityscapes")
    with advises("engine/testing.py:_check_submission_folder", "name an empty folder"):
        _check_submission_folder(tmp_path, "cityscapes")
    _check_submission_folder(tmp_path / "new", "cityscapes")
