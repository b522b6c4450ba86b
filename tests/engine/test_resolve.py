# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Config, options and machine become the config that the runner gets."""

from __future__ import annotations

import builtins
import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from user_errors import raises_user_error

from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.launch import Machine
from mmseg_resnest.engine.resolve import (
    ResumePoint,
    TestingOptions,
    TrainingOptions,
    resolve,
)
from mmseg_resnest.engine.run_options import RunOptions
from mmseg_resnest.io.processes import has_bfloat16

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
HERE = Machine(cores=2)
ALL = TrainingOptions(
    work_dir="run",
    seed=7,
    amp=True,
    auto_scale_lr=True,
    launcher="pytorch",
    log_to=("wandb", "mlflow", "wandb"),
    resume=ResumePoint("iter_4.pth", 3),
    classes={"train_dataloader": (11,), "val_dataloader": (11,)},
)


@pytest.fixture(scope="module")
def loaded() -> Config:
    return load_config(CONFIGS / "deeplabv3_resnest26_camvid.py")


@pytest.fixture
def cfg(loaded: Config) -> Config:
    return copy.deepcopy(loaded)


@pytest.fixture(scope="module")
def cityscapes() -> Config:
    return load_config(CONFIGS / "fcn_resnest50_cityscapes.py")


def at(cfg: Any, key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    for part in key.split("."):
        if cfg is None:
            return None
        cfg = cfg[int(part)] if part.isdigit() else cfg.get(part)
    return cfg


@pytest.mark.parametrize(
    "options",
    [
        ALL,
        replace(ALL, run=RunOptions(2, 4, 0.1, (96, 64), images=10), teacher="large"),
        TestingOptions(tta=True),
        TestingOptions(submission="cityscapes"),
    ],
)
def test_resolving_is_pure(
    options: Any, cityscapes: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The input stays, the result is the same, and nothing of the process is read or changed."""
    before = cityscapes.to_dict()
    machine = Machine(rank=1, world_size=2, cores=3)
    first = resolve(cityscapes, options, machine)
    assert cityscapes.to_dict() == before

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("resolve reads or changes something")

    environment, threads = dict(os.environ), torch.get_num_threads()
    states = torch.get_rng_state()
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", refuse)
        patch.setattr(Path, "open", refuse)
        patch.setattr(torch.cuda, "is_available", refuse)
        patch.setattr(os, "environ", {})
        second = resolve(cityscapes, options, machine)
    assert first.cfg.to_dict() == second.cfg.to_dict()
    assert first.notes == second.notes
    assert (dict(os.environ), torch.get_num_threads()) == (environment, threads)
    assert torch.equal(torch.get_rng_state(), states)
    assert cityscapes.to_dict() == before


TRAINING: list[tuple[TrainingOptions, Machine, dict[str, Any]]] = [
    (
        TrainingOptions(),
        HERE,
        {
            "work_dir": os.path.join("work_dirs", "deeplabv3_resnest26_camvid"),
            "resume": False,
            "randomness.seed": 0,
            "default_hooks.nonfinite.type": "NonFiniteHook",
            "optim_wrapper.type": "OptimWrapper",
            "train_dataloader.num_workers": 2,
            "train_dataloader.pin_memory": False,
            "launcher": "none",
            "model_wrapper_cfg": None,
        },
    ),
    (TrainingOptions(amp=True), HERE, {"optim_wrapper.type": "BFloat16OptimWrapper"}),
    (
        TrainingOptions(amp=True),
        Machine(cuda=True),
        {"optim_wrapper.type": "AmpOptimWrapper", "optim_wrapper.loss_scale": "dynamic"},
    ),
    (
        TrainingOptions(auto_scale_lr=True),
        HERE,
        {"auto_scale_lr.enable": True, "auto_scale_lr.base_batch_size": 16},
    ),
    (
        TrainingOptions(log_to=("wandb", "wandb")),
        HERE,
        {"visualizer.vis_backends.1.service": "wandb", "visualizer.vis_backends.1.name": "wandb"},
    ),
    (
        TrainingOptions(launcher="pytorch"),
        Machine(world_size=4),
        {
            "train_dataloader.batch_size": 4,
            "launcher": "pytorch",
            "model_wrapper_cfg.type": "MMDistributedDataParallel",
        },
    ),
    (
        TrainingOptions(launcher="slurm"),
        Machine(world_size=2, cuda=True),
        {"launcher": "slurm", "model_wrapper_cfg": None, "train_dataloader.pin_memory": True},
    ),
    (
        TrainingOptions(resume=ResumePoint("iter_4.pth", 9)),
        HERE,
        {"resume": True, "load_from": "iter_4.pth", "randomness.seed": 9},
    ),
    (
        TrainingOptions(classes={"train_dataloader": (11,)}),
        HERE,
        {
            "train_dataloader.dataset.pipeline.1.num_classes": 11,
            "train_dataloader.dataset.pipeline.1.ignore_index": 255,
        },
    ),
    (
        TrainingOptions(classes={"train_dataloader": (None,)}),
        HERE,
        {"train_dataloader.dataset.pipeline.1.num_classes": None},
    ),
]


@pytest.mark.parametrize(("options", "machine", "expected"), TRAINING)
def test_options_of_a_training(
    options: TrainingOptions, machine: Machine, expected: dict[str, Any], cfg: Config
) -> None:
    resolved = resolve(cfg, options, machine).cfg
    assert {key: at(resolved, key) for key in expected} == expected


TESTING: list[tuple[TestingOptions, dict[str, Any]]] = [
    (
        TestingOptions(),
        {
            "work_dir": os.path.join("work_dirs", "fcn_resnest50_cityscapes", "test"),
            "load_from": None,
            "resume": False,
            "test_evaluator.image_counts": os.path.join(
                "work_dirs", "fcn_resnest50_cityscapes", "test", "images.npz"
            ),
            "model.type": "EncoderDecoder",
            "launcher": "none",
        },
    ),
    (
        TestingOptions(tta=True),
        {
            "work_dir": os.path.join("work_dirs", "fcn_resnest50_cityscapes", "test_tta"),
            "model.type": "MultiScaleGridTTA",
            "model.module.type": "EncoderDecoder",
        },
    ),
    (TestingOptions(official=True), {"test_evaluator.1.type": "CityscapesOfficialMetric"}),
    (
        TestingOptions(submission="cityscapes", official=True),
        {"test_evaluator": [], "test_dataloader.dataset.data_prefix.seg_map_path": None},
    ),
]


@pytest.mark.parametrize(("options", "expected"), TESTING)
def test_options_of_an_evaluation(
    options: TestingOptions, expected: dict[str, Any], cityscapes: Config
) -> None:
    resolved = resolve(cityscapes, options, HERE).cfg
    assert {key: at(resolved, key) for key in expected} == expected
    reads_labels = "LoadAnnotations" in str(resolved.test_dataloader)
    assert reads_labels == (options.submission is None)


def test_the_pipeline_stays_unless_steps_may_be_fused(cfg: Config) -> None:
    def steps(fused: bool) -> list[str]:
        cfg.numerics = dict(fused=fused)
        resolved = resolve(cfg, TrainingOptions(), HERE).cfg
        assert resolved.numerics == dict(fused=fused)
        return [step["type"] for step in resolved.train_dataloader.dataset.pipeline]

    assert steps(fused=False) == [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert "RandomCrop" not in steps(fused=True)


PRETRAINED = {"model.backbone.init_cfg": dict(type="Pretrained", checkpoint="backbone.pth")}
NO_WORKERS = dict(num_workers=0, persistent_workers=True, prefetch_factor=2, timeout=5)


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        (PRETRAINED, dict(resume=ResumePoint("a.pth")), {"model.backbone.init_cfg": None}),
        (PRETRAINED, {}, {"model.backbone.init_cfg.type": "Pretrained"}),
        (
            {"default_hooks.nonfinite": dict(type="NonFiniteHook", on_nonfinite="skip")},
            {},
            {"default_hooks.nonfinite.on_nonfinite": "skip"},
        ),
        (
            {"model_wrapper_cfg": dict(type="FSDP")},
            dict(launcher="pytorch"),
            {"model_wrapper_cfg.type": "FSDP"},
        ),
        (
            {"train_cfg": dict(_delete_=True, by_epoch=False, max_iters=10)},
            {},
            {"train_cfg.type": "IterBasedTrainLoop", "train_cfg.by_epoch": None},
        ),
        (
            {"train_cfg": dict(_delete_=True, max_epochs=2)},
            {},
            {"train_cfg.type": "EpochBasedTrainLoop"},
        ),
        ({"train_dataloader.timeout": 5}, {}, {"train_dataloader.timeout": 5}),
        (
            {f"train_dataloader.{key}": value for key, value in NO_WORKERS.items()},
            {},
            {f"train_dataloader.{key}": None for key in list(NO_WORKERS)[1:]},
        ),
    ],
)
def test_what_the_config_says(
    change: dict[str, Any], options: dict[str, Any], expected: dict[str, Any], cfg: Config
) -> None:
    cfg.merge_from_dict(change)
    resolved = resolve(cfg, TrainingOptions(**options), HERE).cfg
    assert {key: at(resolved, key) for key in expected} == expected


def test_what_the_header_says(cfg: Config) -> None:
    notes = dict(resolve(cfg, ALL, Machine(world_size=2, cores=2)).notes)
    assert "bfloat16" in notes["precision"]
    assert notes["batch"] == "16 images a step = 2 processes x 8"
    assert "3" in notes["seed"] and "7" in notes["seed"]
    assert resolve(cfg, TrainingOptions(), HERE).notes == []


@pytest.mark.parametrize(
    ("change", "options", "world", "code", "named"),
    [
        *(
            ({"train_dataloader.batch_size": size}, {}, world, code, "train_dataloader.batch_size")
            for size, world, code in [
                *((16, 3, "config-conflict"), (2, 4, "config-conflict")),
                *((0, 1, "config-value"), ("16", 1, "config-value"), (None, 1, "config-value")),
            ]
        ),
        ({"optim_wrapper.type": "Own"}, {"amp": True}, 1, "config-conflict", "--amp"),
        ({"auto_scale_lr": None}, {"auto_scale_lr": True}, 1, "config-key", "--auto-scale-lr"),
        ({}, {"seed": -1}, 1, "argument", "--seed"),
        ({}, {"seed": 2**32}, 1, "argument", "--seed"),
        ({"randomness.seed": "five"}, {}, 1, "config-value", "randomness.seed"),
        ({"randomness.seed": True}, {}, 1, "config-value", "randomness.seed"),
        ({"numerics": dict(fused="no")}, {}, 1, "config-value", "numerics.fused"),
    ],
)
def test_mistakes_of_a_training(
    change: dict[str, Any], options: dict[str, Any], world: int, code: str, named: str, cfg: Config
) -> None:
    cfg.merge_from_dict(change)
    with raises_user_error(code, named):
        resolve(cfg, TrainingOptions(**options), Machine(world_size=world))


def test_mistakes_of_an_evaluation(cfg: Config) -> None:
    cfg.pop("tta_model", None)
    cases = {
        "--tta": (TestingOptions(tta=True), "config-key"),
        "--official": (TestingOptions(official=True), "config-conflict"),
        "--format coco": (TestingOptions(submission="coco"), "argument"),
    }
    for named, (options, code) in cases.items():
        with raises_user_error(code, named):
            resolve(cfg, options, HERE)


def test_a_config_without_a_file_needs_a_work_folder() -> None:
    with raises_user_error("argument-missing", "work_dir"):
        resolve(Config(dict(model=dict())), TrainingOptions(), HERE)


@pytest.mark.parametrize(
    ("machine", "amp", "said"),
    [
        (Machine(bfloat16=False), True, True),
        (Machine(bfloat16=True), True, False),
        (Machine(bfloat16=None), True, False),
        (Machine(bfloat16=False, cuda=True), True, False),
        (Machine(bfloat16=False), False, False),
    ],
)
def test_a_processor_without_units_for_mixed_precision(
    cfg: Config, machine: Machine, amp: bool, said: bool
) -> None:
    notes = resolve(cfg, TrainingOptions("work", amp=amp), machine).notes
    assert any("no units" in text for _, text in notes) == said


def test_units_for_mixed_precision_are_read_from_the_processor(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    assert has_bfloat16(file) is None
    for text, found in (
        ("flags\t\t: fpu avx512_bf16 sse\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2\n", False),
        ("model name\t: x\n", None),
    ):
        file.write_text(text)
        assert has_bfloat16(file) is found
