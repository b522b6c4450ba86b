# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""New schedules are stepped to where a run has them that has followed them from its start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmengine
import pytest
from advice import helps
from mmengine.hooks import Hook
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from tiny_runs import Data, Model, make_plain_runner, make_runner
from torch import nn
from user_errors import raises_user_error

from mmseg_resnest.engine import Runner
from mmseg_resnest.engine.checkpoint_values import Refusal
from mmseg_resnest.engine.optimization import (
    build_optimization,
    check_cycles,
    check_schedule_ends,
    check_schedules,
)
from mmseg_resnest.engine.resume import follows_config
from mmseg_resnest.engine.resume_changes import Changes
from mmseg_resnest.engine.resume_schedules import advance_schedules

SCHEDULES: dict[str, list[dict[str, Any]]] = {
    "poly": [dict(type="PolyLR", power=0.9, end=40)],
    "steps": [dict(type="MultiStepLR", milestones=[3, 9, 20])],
    "warm-up": [
        dict(type="LinearLR", start_factor=0.1, end=5),
        dict(type="PolyLR", power=0.9, begin=5, end=40),
    ],
    "cosine": [dict(type="CosineAnnealingLR", T_max=40, eta_min=1e-4, end=40)],
    "cycle": [dict(type="OneCycleLR", eta_max=0.1, total_steps=40)],
    "momentum": [dict(type="PolyLR", end=40), dict(type="LinearMomentum", end=10)],
}
FACTORS = dict(custom_keys={"layers.0": dict(lr_mult=10), "layers.3": dict(decay_mult=0)})


def _config(schedules: list[dict[str, Any]], by_epoch: bool, factors: bool) -> mmengine.Config:
    return mmengine.Config(
        dict(
            optim_wrapper=dict(
                type="OptimWrapper",
                optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4),
                paramwise_cfg=FACTORS if factors else None,
            ),
            param_scheduler=[dict(one, by_epoch=by_epoch) for one in schedules],
        )
    )  # fmt: skip


def _options(wrapper: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in g.items() if k != "params"} for g in wrapper.param_groups]


@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("by_epoch", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_values_are_those_of_a_run_from_its_start(name: str, by_epoch: bool, factors: bool) -> None:
    """To the bit, at the moment and in every step after it."""
    cfg = _config(SCHEDULES[name], by_epoch, factors)
    per_epoch = 3
    whole, followed = build_optimization(cfg, Model())
    resumed, schedules = build_optimization(cfg, Model())
    epochs = 7 if by_epoch else 0
    advance_schedules(schedules, 21, epochs)
    for step in range(1, 40):
        if not by_epoch or step % per_epoch == 0:
            for one in followed:
                one.step()
        if step < 21:
            continue
        if step > 21 and (not by_epoch or step % per_epoch == 0):
            for one in schedules:
                one.step()
        assert _options(resumed) == _options(whole)
    for one, other in zip(schedules, followed, strict=True):
        assert one.get_last_value() == other.get_last_value()
        assert one.base_values == other.base_values
    groups = resumed.optimizer.param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(Model().parameters()))


def test_epochs_and_iterations_are_stepped_in_the_order_of_a_run() -> None:
    cfg = _config([dict(type="ExponentialLR", gamma=0.9)], False, False)
    cfg.param_scheduler.append(dict(type="MultiStepLR", milestones=[1, 2], by_epoch=True))
    whole, (by_iteration, by_epoch) = build_optimization(cfg, Model())
    for step in range(1, 11):
        by_iteration.step()
        if step % 5 == 0:
            by_epoch.step()
    resumed, schedules = build_optimization(cfg, Model())
    advance_schedules(schedules, 10, 2)
    assert _options(resumed) == _options(whole)


class TwoOptimizers(DefaultOptimWrapperConstructor):
    """Builds two, as for adversarial training."""

    def __call__(self, model: nn.Module) -> Any:
        return OptimWrapperDict(first=super().__call__(model), second=super().__call__(model))


def test_several_optimizers_are_refused() -> None:
    cfg = _config([dict(type="PolyLR", end=40)], False, False)
    name = "TwoOptimizers"
    OPTIM_WRAPPER_CONSTRUCTORS.register_module(name, module=TwoOptimizers)
    try:
        cfg.optim_wrapper.constructor = name
        helps("engine/optimization.py:build_optimization", "optim_wrapper.paramwise_cfg",
              call=lambda: build_optimization(cfg, Model()),
              remedy=lambda: cfg.optim_wrapper.pop("constructor"))  # fmt: skip
    finally:
        OPTIM_WRAPPER_CONSTRUCTORS.module_dict.pop(name)


def test_a_schedule_that_has_seen_scores_follows_no_other_settings() -> None:
    schedules = [dict(type="ReduceOnPlateauLR", monitor="score")]
    _, built = build_optimization(_config(schedules, True, False), Model())
    refuse = Refusal("a.pth")
    assert not follows_config(Changes(frozenset({"train_cfg.max_epochs"})), built, refuse)
    assert not follows_config(Changes(frozenset({"model.depth"})), built, refuse)
    with raises_user_error("resume", "a.pth"):
        follows_config(Changes(frozenset({"optim_wrapper.optimizer.lr"})), built, refuse)


@pytest.mark.parametrize(
    ("schedules", "key"),
    [
        ([dict(type="PolyLR", end=6)], "param_scheduler.0.end"),
        (dict(type="PolyLR", end=6), "param_scheduler.end"),
        (
            [dict(type="LinearLR", start_factor=0.1, end=2), dict(type="PolyLR", begin=2, end=6)],
            "param_scheduler.1.end",
        ),
        ([dict(type="CosineAnnealingLR", T_max=5, end=6)], "param_scheduler.0.end"),
        ([dict(type="LinearLR", start_factor=1, end_factor=0, end=6)], "param_scheduler.0.end"),
    ],
)
@pytest.mark.parametrize("length", ["max_iters", "max_epochs"])
def test_a_schedule_that_ends_at_0_before_the_run_is_named(
    schedules: Any, key: str, length: str
) -> None:
    listed = schedules if isinstance(schedules, list) else [schedules]
    cfg = _config(listed, length == "max_epochs", False)
    if isinstance(schedules, dict):
        cfg.param_scheduler = cfg.param_scheduler[0]
    cfg.train_cfg = {length: 12}
    with raises_user_error("config-conflict", key) as info:
        check_schedule_ends(cfg)
    assert f"{key}=12" in info.value.message
    cfg.train_cfg = {length: 6}
    check_schedule_ends(cfg)


@pytest.mark.parametrize(
    "schedules",
    [
        [dict(type="PolyLR", end=6, eta_min=1e-5)],
        [dict(type="LinearLR", start_factor=0.1, end=6)],
        [dict(type="MultiStepLR", milestones=[3])],
        [dict(type="LinearMomentum", start_factor=0.5, end=6)],
        # zero in the last step, as always, and the warm-up is over long before
        [dict(type="LinearLR", start_factor=0.1, end=2), dict(type="PolyLR", begin=2, end=12)],
        [],
    ],
)
def test_a_learning_rate_that_stays_goes_on(schedules: list[dict[str, Any]]) -> None:
    cfg = _config(schedules, False, False)
    cfg.train_cfg = dict(max_iters=12)
    check_schedule_ends(cfg)


def test_what_a_checkpoint_is_compared_with_prints_nothing(capfd: Any) -> None:
    """MMEngine's constructor has a line for each option of each parameter."""
    build_optimization(_config([], False, factors=True), Model())
    assert "paramwise_options" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "schedule",
    [
        dict(type="PolyLR"),
        dict(type="LinearLR", start_factor=0.1),
        dict(type="LinearMomentum", start_factor=0.1),
        dict(type="CosineAnnealingLR", eta_min=1e-5),
        dict(type="OneCycleLR", eta_max=0.1),
        dict(type="LinearLR", start_factor=0.1, begin=3, end=4),
        dict(type="ConstantLR", end=1),
    ],
)
def test_a_schedule_that_would_stay_where_it_begins_is_refused(schedule: dict[str, Any]) -> None:
    code = "config-value" if "end" in schedule else "config-key"
    for config, key in (([schedule], "param_scheduler.0.end"), (schedule, "param_scheduler.end")):
        with raises_user_error(code, key):
            check_schedules(dict(train_cfg=dict(max_epochs=9), param_scheduler=config))


def test_schedules_that_go_on_are_not_refused() -> None:
    schedules = [
        dict(type="CosineAnnealingLR", T_max=9),
        dict(type="OneCycleLR", eta_max=0.1, total_steps=9),
        dict(type="MultiStepLR", milestones=[3]),
        dict(type="LinearLR", start_factor=0.1, end=2),
        dict(type="LinearLR", start_factor=0.1, end=1, convert_to_iter_based=True),
        dict(type="PolyLR", begin=8, end=9),
        dict(type="ConstantLR", factor=1),
    ]
    check_schedules(dict(train_cfg=dict(max_epochs=9), param_scheduler=schedules))
    check_schedules(dict(train_cfg=dict(max_epochs=9), param_scheduler=None))


@pytest.mark.parametrize(
    ("length", "total", "more", "fits"),
    [
        (dict(max_iters=12), 12, dict(by_epoch=False), True),
        (dict(max_iters=12), 11, dict(by_epoch=False), False),
        (dict(max_iters=12), 11, dict(by_epoch=False, end=11), True),
        (dict(max_epochs=3), 3, {}, True),
        (dict(max_epochs=3), 2, dict(convert_to_iter_based=True), False),
        (dict(max_epochs=3), 11, dict(by_epoch=False), False),
        (dict(max_epochs=3), 12, dict(by_epoch=False), True),
    ],
)
def test_a_cycle_lasts_as_long_as_the_run(
    length: dict[str, int], total: int, more: dict[str, Any], fits: bool
) -> None:
    """Epochs have four iterations; one step too many would end the run with MMEngine's error."""
    schedules = [dict(type="OneCycleLR", eta_max=0.1, total_steps=total, **more)]
    cfg = dict(train_cfg=length, param_scheduler=schedules)
    if fits:
        check_cycles(cfg, epoch=4)
        return
    with raises_user_error("config-conflict", "param_scheduler.0.total_steps"):
        check_cycles(cfg, epoch=4)


def test_a_scaled_rate_is_that_of_schedules_and_of_the_log(tmp_path: Path) -> None:
    """Data of 8 in batches of 4 for a config of 8: half of each learning rate."""
    schedules = [
        dict(type="OneCycleLR", eta_max=0.4, total_steps=2, by_epoch=False),
        dict(type="CosineAnnealingMomentum", eta_min=0.2, T_max=2, by_epoch=False),
    ]
    runner = make_plain_runner(
        *(tmp_path / "scaled", Data(8), 4, 0.1, None),
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=2),
        auto_scale_lr=dict(enable=True, base_batch_size=8),
        param_scheduler=schedules,
    )
    optimizer = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4)
    runner.optim_wrapper = dict(optimizer=optimizer, paramwise_cfg=FACTORS)
    runner.train()
    assert runner.param_schedulers[0].eta_max == pytest.approx(0.2)
    assert runner.param_schedulers[1].eta_min == pytest.approx(0.2)
    assert schedules[0]["eta_max"] == 0.4
    assert runner.optim_wrapper.base_param_settings["max_lr"] == pytest.approx(0.2)
    rates = [group["lr"] for group in runner.optim_wrapper.param_groups]
    assert len(set(rates)) == 1  # MMEngine's cycle knows no groups


def test_a_runner_follows_the_config(tmp_path: Any) -> None:
    """The runner itself, with averaged weights: the new rates, the moments of the checkpoint."""
    make_runner(tmp_path / "first", iterations=6).train()
    runner = make_runner(tmp_path / "on", iterations=8, resume=tmp_path / "first" / "iter_6.pth")
    runner.optim_wrapper["optimizer"]["lr"] = 0.02
    runner.changes = Changes(frozenset({"optim_wrapper.optimizer.lr"}))
    runner.train()
    whole = make_runner(tmp_path / "whole", iterations=8)
    whole.optim_wrapper["optimizer"]["lr"] = 0.02
    whole.train()
    assert _options(runner.optim_wrapper) == _options(whole.optim_wrapper)
    states = runner.optim_wrapper.optimizer.state.values()
    assert {int(state["step"]) for state in states} == {8}


class Rates(Hook):
    """Notes the learning rate of each step."""

    priority = "VERY_HIGH"

    def __init__(self, rates: list[float]) -> None:
        self.rates = rates

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self.rates.append(runner.optim_wrapper.get_lr()["lr"][0])


def _by_epoch(folder: Path, batch: int, resume: Path | None = None) -> Runner:
    """Four epochs of 16 samples with a warm-up by iterations and a schedule of each iteration."""
    return make_plain_runner(
        folder, Data(16), batch, 0.01, resume,
        train_cfg={"type": "EpochBasedTrainLoop", "max_epochs": 4},
        param_scheduler=[
            {"type": "LinearLR", "start_factor": 0.1, "end": 5, "by_epoch": False},
            {"type": "PolyLR", "end": 4, "by_epoch": True, "convert_to_iter_based": True},
            {"type": "MultiStepLR", "milestones": [1, 3], "by_epoch": True},
        ],
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1, "by_epoch": True}},
    )  # fmt: skip


@pytest.mark.parametrize(("batch", "length"), [(8, 2), (2, 8), (4, 4)])
def test_epochs_of_another_length_follow_the_schedule_by_epochs(
    batch: int, length: int, tmp_path: Path
) -> None:
    """With another batch or more data, the iterations of the resumed run are others."""
    _by_epoch(tmp_path / "first", 4).train()
    rates: dict[str, list[float]] = {"whole": [], "on": []}
    for name, into in rates.items():
        resume = tmp_path / "first" / "epoch_3.pth" if name == "on" else None
        runner = _by_epoch(tmp_path / name, batch, resume)
        runner.changes = Changes(frozenset({"train_dataloader.batch_size"}))
        runner.register_hook(Rates(into))
        runner.train()
        assert runner.iter == runner.max_iters == 4 * length
    assert len(rates["on"]) == length and rates["on"][0] > 0
    assert rates["on"] == rates["whole"][-length:]
