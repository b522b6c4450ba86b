# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What belongs to the length, batch, rate and image size of a training moves with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from small_runs import run, small_config
from user_errors import raises_user_error

from mmseg_resnest.datasets.scenes import write_scenes
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.run_options import (
    RunOptions,
    counts_images,
    schedule_note,
    set_run_options,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def _config(name: str = "fcn_resnest50_ade20k") -> Config:
    return load_config(CONFIGS / f"{name}.py")


def _sizes(node: Any) -> dict[str, list[Any]]:
    """The options of transforms that are sizes, in order."""
    found: dict[str, list[Any]] = {}
    for step in node:
        for key in ("crop_size", "scale", "size", "base_size"):
            if key in step:
                found.setdefault(f"{step['type']}.{key}", []).append(step[key])
    return found


def test_length_moves_schedules_and_intervals() -> None:
    cfg = _config()
    before = cfg.to_dict()
    assert before["train_cfg"]["max_iters"] == before["param_scheduler"][-1]["end"] - 1
    batch = cfg.train_dataloader.batch_size
    images = batch * before["train_cfg"]["max_iters"] // 10
    set_run_options(cfg, RunOptions(epochs=5, images=images), False)  # half as long
    half = before["train_cfg"]["max_iters"] // 2
    assert cfg.train_cfg.max_iters == half
    assert cfg.train_cfg.val_interval * 2 == before["train_cfg"]["val_interval"]
    saving = "default_hooks", "checkpoint"
    assert cfg[saving[0]][saving[1]].interval * 2 == before[saving[0]][saving[1]]["interval"]
    assert cfg.param_scheduler[-1].end == half + 1
    for new, old in zip(cfg.param_scheduler[:-1], before["param_scheduler"], strict=False):
        assert new.end == round(old["end"] / 2)


def test_epochs_count_the_new_batch_and_part_of_one() -> None:
    cfg = _config()
    notes = set_run_options(cfg, RunOptions(epochs=1.5, batch_size=4, images=10), False)
    assert cfg.train_dataloader.batch_size == 4
    assert cfg.train_cfg.max_iters == 4  # 15 images in batches of 4
    assert [name for name, _ in notes] == ["learning rate", "length"]
    assert set_run_options(cfg, RunOptions(batch_size=8, lr=0.1), False) == []
    assert set_run_options(cfg, RunOptions(batch_size=2), True) == []


def test_epoch_loops_take_whole_epochs() -> None:
    cfg = _config()
    cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=10, val_interval=2)
    cfg.param_scheduler = [
        dict(type="MultiStepLR", milestones=[6, 8], begin=0, end=10),
        dict(type="CosineAnnealingLR", T_max=10, begin=2, end=10, eta_min=0.001),
    ]
    set_run_options(cfg, RunOptions(epochs=20, lr=cfg.optim_wrapper.optimizer.lr * 3), False)
    assert (cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval) == (20, 4)
    assert cfg.param_scheduler[0].milestones == [12, 16]
    second = cfg.param_scheduler[1]
    assert (second.T_max, second.begin, second.end) == (20, 4, 20)
    assert second.eta_min == pytest.approx(0.003)
    with raises_user_error("argument", "--epochs"):
        set_run_options(cfg, RunOptions(epochs=2.5), False)


def test_what_counts_iterations_moves_with_the_length() -> None:
    cfg = _config()
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=100, val_begin=60)
    cfg.train_cfg.dynamic_intervals = [(0, 20), (80, 5)]
    cfg.default_hooks.checkpoint.update(interval=10, save_begin=50)
    cfg.custom_hooks = [
        dict(type="EMAHook", begin_iter=90, interval=3),
        dict(type="EarlyStoppingHook", monitor="mIoU", begin=50),
        dict(type="PreciseBNHook", interval=10),
    ]
    cfg.param_scheduler = [
        dict(type="CosineRestartLR", periods=[33] * 3, eta_min=0, by_epoch=False),
        dict(type="ExponentialLR", gamma=0.81, by_epoch=False),
        dict(type="ReduceOnPlateauLR", monitor="mIoU", begin=2, end=5),
    ]
    batch = cfg.train_dataloader.batch_size
    set_run_options(cfg, RunOptions(epochs=1, images=50 * batch), False)  # half as long
    loop, hooks, schedules = cfg.train_cfg, cfg.custom_hooks, cfg.param_scheduler
    assert (loop.max_iters, loop.val_begin, loop.val_interval) == (50, 30, 500)
    assert loop.dynamic_intervals == [(0, 10), (40, 2)]
    assert cfg.default_hooks.checkpoint.interval == 5
    assert cfg.default_hooks.checkpoint.save_begin == 25
    assert (hooks[0].begin_iter, hooks[0].interval) == (45, 3)
    assert (hooks[1].begin, hooks[2].interval) == (25, 5)
    assert schedules[0].periods == [16, 17, 17]
    assert schedules[1].gamma == pytest.approx(0.81**2)
    assert (schedules[2].begin, schedules[2].end) == (2, 5)


@pytest.mark.parametrize(
    ("options", "by_iteration", "by_epoch"),
    [
        (dict(epochs=20), (10, 200), 20),
        (dict(batch_size=2), (10, 200), 10),  # epochs of twice as many iterations
        (dict(epochs=5, batch_size=2), (5, 100), 5),
        (dict(batch_size=4), (5, 100), 10),
    ],
)
def test_in_a_run_by_epochs_iterations_count_too(
    options: dict[str, Any], by_iteration: tuple[int, int], by_epoch: int
) -> None:
    cfg = _config()
    cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=10)
    cfg.train_dataloader.batch_size = 4
    cfg.param_scheduler = [
        dict(type="LinearLR", begin=0, end=5, by_epoch=False),
        dict(type="PolyLR", begin=5, end=100, by_epoch=False),
        dict(type="PolyLR", begin=0, end=10, convert_to_iter_based=True),
    ]
    cfg.custom_hooks = [dict(type="EarlyStoppingHook", monitor="mIoU", begin=5)]
    set_run_options(cfg, RunOptions(**options, images=40), False)
    warm, poly, converted = cfg.param_scheduler
    assert (warm.end, poly.end) == by_iteration and poly.begin == warm.end
    assert cfg.custom_hooks[0].begin == by_iteration[0]
    assert converted.end == by_epoch


def test_a_converted_schedule_follows_the_batch_of_a_run_by_iterations() -> None:
    cfg = _config()
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=100, val_interval=10)
    cfg.train_dataloader.batch_size = 4
    cfg.param_scheduler = dict(type="PolyLR", begin=0, end=10, convert_to_iter_based=True)
    options = RunOptions(batch_size=8, images=40)
    assert counts_images(cfg, options) and not counts_images(_config(), options)
    set_run_options(cfg, options, False)
    assert cfg.train_cfg.max_iters == 100 and cfg.param_scheduler.end == 20


def test_a_warm_up_keeps_the_step_in_which_it_ends() -> None:
    """LinearLR of one step stays at the part of the rate at which it begins."""
    cfg = _config()
    cfg.train_cfg.max_iters = 1000
    cfg.param_scheduler = [
        dict(type="LinearLR", start_factor=1e-6, begin=0, end=50, by_epoch=False),
        dict(type="PolyLR", begin=50, end=1000, by_epoch=False),
    ]
    batch = cfg.train_dataloader.batch_size
    set_run_options(cfg, RunOptions(epochs=1, images=10 * batch), False)
    assert cfg.param_scheduler[0].end == 2 and cfg.param_scheduler[1].end == 10


def test_a_rate_moves_those_of_schedules_and_nothing_else() -> None:
    cfg = _config()
    cfg.optim_wrapper.optimizer.lr = 0.1
    cfg.param_scheduler = [
        dict(type="OneCycleLR", eta_max=[0.2, 0.4], end=10),
        dict(type="ReduceOnPlateauLR", monitor="mIoU", min_value=1e-3),
        dict(type="CosineAnnealingParamScheduler", param_name="lr", eta_min=1e-3, end=10),
        dict(type="CosineAnnealingMomentum", eta_min=0.85, end=10),
        dict(type="PolyParamScheduler", param_name="weight_decay", eta_min=0.01, end=10),
    ]
    set_run_options(cfg, RunOptions(lr=0.2), False)
    cycle, plateau, cosine, momentum, decay = cfg.param_scheduler
    assert cycle.eta_max == [0.4, 0.8]
    assert (plateau.min_value, cosine.eta_min) == pytest.approx((2e-3, 2e-3))
    assert (momentum.eta_min, decay.eta_min) == (0.85, 0.01)


def test_image_size_moves_the_sizes_of_the_pipelines() -> None:
    cfg = _config()
    before = _sizes(cfg.train_dataloader.dataset.pipeline)
    (crop,) = before["RandomCrop.crop_size"]
    tta = dict(cfg.tta_model)
    set_run_options(cfg, RunOptions(image_size=(crop[1] // 2, crop[0] // 2)), False)
    after = _sizes(cfg.train_dataloader.dataset.pipeline)
    assert after["RandomCrop.crop_size"] == [(crop[0] // 2, crop[1] // 2)]
    for name, values in before.items():
        for old, new in zip(values, after[name], strict=True):
            old, new = ((one,) if isinstance(one, int) else one for one in (old, new))
            assert [2 * one for one in new] == list(old), name
    assert cfg.tta_model.base_size * 2 == tta["base_size"]
    tested = _sizes(cfg.test_dataloader.dataset.pipeline)
    assert tested["Resize.scale"] == [(tta["base_size"] // 2,) * 2]


def test_sizes_that_are_not_square_keep_their_order() -> None:
    cfg = _config("fcn_resnest14_camvid")
    (crop,) = _sizes(cfg.train_dataloader.dataset.pipeline)["RandomCrop.crop_size"]
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type="Resize", scale=(100, 50)))
    cfg.model.test_cfg = dict(mode="slide", crop_size=(40, 80), stride=(20, 60))
    set_run_options(cfg, RunOptions(image_size=(crop[1] * 2, crop[0])), False)  # twice as wide
    after = _sizes(cfg.train_dataloader.dataset.pipeline)["RandomCrop.crop_size"]
    assert after == [(crop[0], crop[1] * 2)]
    assert cfg.test_dataloader.dataset.pipeline[1]["scale"] == (200, 50)
    assert tuple(cfg.model.test_cfg.crop_size) == (40, 160)
    assert tuple(cfg.model.test_cfg.stride) == (20, 120)


def test_what_is_refused() -> None:
    for options, name in (
        (RunOptions(epochs=0), "--epochs"),
        (RunOptions(lr=-1.0), "--lr"),
        (RunOptions(batch_size=0), "--batch-size"),
        (RunOptions(image_size=(8, 64)), "--image-size"),
    ):
        with raises_user_error("argument", name):
            set_run_options(_config(), options, False)
    cfg = _config()
    cfg.train_dataloader.dataset.pipeline = []
    with raises_user_error("config-conflict", "--image-size"):
        set_run_options(cfg, RunOptions(image_size=(64, 64)), False)
    cfg.optim_wrapper = dict(type="OptimWrapperDict")
    with raises_user_error("config-conflict", "--lr"):
        set_run_options(cfg, RunOptions(lr=0.1), False)


def test_a_run_follows_them(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "scenes", 6, 3, progress=False)
    options = RunOptions(epochs=2, batch_size=3, lr=0.5, image_size=(96, 64))
    summary = run(small_config(root, validate=True), tmp_path / "work", run=options)
    assert summary["iteration"] == 4
    assert (tmp_path / "work/iter_4.pth").is_file()
    cfg = Config.fromfile(tmp_path / "work/fcn_resnest14_scenes.py")
    assert cfg.train_cfg.max_iters == 4 and cfg.optim_wrapper.optimizer.lr == 0.5


@pytest.mark.parametrize(
    ("length", "end", "kind", "said"),
    [
        (100, 101, "PolyLR", None),
        (100, 100, "PolyLR", None),
        (100, 1000, "PolyLR", "after the end"),
        (100, 50, "PolyLR", "before the run"),
        (100, 50, "LinearLR", None),
        (100, None, "PolyLR", None),
    ],
)
def test_a_length_that_does_not_fit_the_schedule_is_said(
    length: int, end: int | None, kind: str, said: str | None
) -> None:
    schedules = [dict(type="LinearLR", begin=0, end=5, by_epoch=False)]
    schedules.append(dict(type=kind, begin=5, end=end, by_epoch=False))
    note = schedule_note(Config(dict(train_cfg=dict(max_iters=length), param_scheduler=schedules)))
    assert (note is None) if said is None else (said in note[1])
