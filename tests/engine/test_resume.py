# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A checkpoint to resume from is data: checked key by key, never parsed, and never half taken."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from mmengine.optim import (
    MultiStepLR,
    OneCycleLR,
    OptimWrapper,
    PolyLR,
    ReduceOnPlateauLR,
)
from tiny_runs import Model, make_runner
from user_errors import raises_user_error

from mmseg_resnest.engine.checkpoint_names import CheckpointNames
from mmseg_resnest.engine.checkpoint_schema import check_training_checkpoint
from mmseg_resnest.engine.checkpoint_values import Refusal
from mmseg_resnest.engine.hooks import ResultsHook
from mmseg_resnest.engine.resume import fit_to_run, keep_own_names
from mmseg_resnest.engine.resume_schedules import restore_schedules, states_of_schedules
from mmseg_resnest.errors import UserError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    make_runner(folder, iterations=4).train()
    return folder / "iter_4.pth"


@pytest.fixture(scope="module")
def record(saved: Path) -> dict[str, Any]:
    record = torch.load(saved, weights_only=True)
    record["results"] = {
        "history": [{"iteration": 4, "mIoU": 1.5}],
        "best": {"iteration": 4, "mIoU": 1.5},
    }
    return record


def _optimization(model: Model) -> tuple[OptimWrapper, list[PolyLR]]:
    wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=0.01))
    return wrapper, [PolyLR(wrapper, power=0.9, end=12, by_epoch=False)]


def _check(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """All checks of a start, as the training tool makes them."""
    torch.save(record, path)
    model = Model()
    checkpoint = check_training_checkpoint(str(path))
    return fit_to_run(checkpoint, Refusal(str(path)), model, *_optimization(model))


_MISSING = object()


def _put(record: dict[str, Any], place: tuple, value: Any = _MISSING) -> dict[str, Any]:
    """A copy with another value at a place, which need not exist; or without one."""
    record = copy.deepcopy(record)
    node: Any = record
    for key in place[:-1]:
        node = node[key]
    if value is _MISSING:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    return record


GROUP = ("optimizer", "param_groups", 0)
STATE = ("optimizer", "state", 0)
PLAN = ("param_schedulers", 0)
INFO = ("message_hub", "runtime_info")
LOSS = ("message_hub", "log_scalars", "train/loss")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("meta", "run_id"), "../../etc"),
        (("meta", "start"), float("nan")),
        (("state_dict", "layers.0.weight"), torch.zeros(6, 4, dtype=torch.float64)),
        (("state_dict", 5), torch.zeros(1)),
        (("ema_state_dict", "steps"), torch.tensor(-1)),
        (("ema_state_dict", "module.other"), torch.zeros(2)),
        (("optimizer", "hooks"), {}),
        ((*GROUP, "params"), [0, 1]),
        ((*GROUP, "params"), [0, 0, 1, 2, 3, 4]),
        ((*GROUP, "lr"), float("inf")),
        ((*GROUP, "betas"), (1.0, 0.9)),
        ((*GROUP, "weight_decay"), -1.0),
        ((*GROUP, "eps"), 1e300),
        ((*GROUP, "amsgrad"), True),
        ((*STATE, "exp_avg"), torch.zeros(1, 1).expand(6, 4)),
        ((*STATE, "step"), torch.tensor(float("nan"))),
        ((*STATE, "momentum_buffer"), torch.zeros(6, 4)),
        (("optimizer", "state", 99), {}),
        ((*PLAN, "last_step"), 10**6),
        ((*PLAN, "_global_step"), -5),
        ((*PLAN, "total_iters"), 3),
        ((*PLAN, "param_name"), "weight_decay"),
        ((*PLAN, "base_values"), [0.1, 0.1]),
        ((*INFO, "eta"), -1.0),
        ((*INFO, "loop_stage"), "print(1)"),
        ((*INFO, 5), 5),
        ((*LOSS, "log_history"), torch.zeros(4, dtype=torch.bfloat16)),
        ((*LOSS, "max_length"), 1),
        ((*LOSS, "max_length"), 10**12),
        (("results", "history"), {}),
        (("results", "history", 0, "iteration"), "1"),
        (("results", "history", 0, "mIoU"), "high"),
        (("results", "best", "classes"), [{"name": 5}]),
        (("results", "best", "note"), {"a": torch.ones(2)}),
    ],
)
def test_a_wrong_value_is_refused_by_name(
    record: dict, tmp_path: Path, place: tuple, value: Any
) -> None:
    with pytest.raises(UserError, match=r"wrong\.pth") as info:
        _check(_put(record, place, value), tmp_path / "wrong.pth")
    # What the reader of the file refuses already is named by the file alone.
    assert info.value.code != "resume" or str(place[0]) in info.value.message


@pytest.mark.parametrize(
    "place",
    [
        *(("meta",), ("optimizer",), ("message_hub",), ("meta", "iter"), ("meta", "epoch")),
        *(("param_schedulers",), ("optimizer", "state"), (*GROUP, "lr"), (*GROUP, "params")),
        *((*STATE, "exp_avg_sq"), (*PLAN, "last_step"), (*PLAN, "base_values")),
        *(("message_hub", "runtime_info"), ("message_hub", "resumed_keys")),
        *((*LOSS, "count"), ("results", "best"), ("ema_state_dict", "steps")),
        ("ema_state_dict", "module.layers.0.weight"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(record: dict, tmp_path: Path, place: tuple) -> None:
    with raises_user_error("resume", "wrong.pth") as info:
        _check(_put(record, place), tmp_path / "wrong.pth")
    assert str(place[-1]) in info.value.message


def test_a_refused_checkpoint_changes_nothing(record: dict, tmp_path: Path) -> None:
    path = tmp_path / "wrong.pth"
    torch.save(_put(record, (*PLAN, "last_step"), "3"), path)
    runner = make_runner(tmp_path / "on", resume=path)
    before = copy.deepcopy(runner.model.state_dict())
    with raises_user_error("resume", "wrong.pth"):
        runner.train()
    after = runner.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert runner.iter == 0
    assert not list((tmp_path / "on").glob("*.pth"))


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"history": 5, "iteration": 1}', "[]", '{"history": [], "iteration": "1"}'],
)
def test_results_of_a_work_folder_are_data_too(saved: Path, tmp_path: Path, text: str) -> None:
    """Read where a checkpoint holds none, as those from before its first validation."""
    (tmp_path / "results.json").write_text(text)
    runner = make_runner(tmp_path, iterations=5, resume=saved, hooks=[ResultsHook()])
    runner.train()
    assert runner.iter == 5


def test_unknown_keys_are_dropped(record: dict, tmp_path: Path) -> None:
    record = copy.deepcopy(record)
    record["more"] = record["meta"]["more"] = "x"
    record["message_hub"]["runtime_info"]["more"] = "x"
    record["optimizer"]["loss_scaler"] = {"scale": "x"}  # this run scales nothing
    record["results"]["best"].update(config="evil.py", best_checkpoint="/etc/passwd")
    checked = _check(record, tmp_path / "more.pth")
    assert "more" not in checked and "more" not in checked["meta"]
    assert "more" not in checked["message_hub"]["runtime_info"]
    assert set(checked["optimizer"]) == {"state", "param_groups"}
    assert checked["results"]["best"] == {"iteration": 4, "mIoU": 1.5}


def _places(node: Any, place: tuple = ()) -> list[tuple]:
    """Every place of a record, however deep."""
    found = [place] if place else []
    if isinstance(node, dict):
        children = list(node.items())
    else:
        children = list(enumerate(node)) if isinstance(node, list) else []
    for key, child in children:
        found += _places(child, (*place, key))
    return found


HOSTILE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just({}),
    st.just([]), st.just(torch.zeros(2, 3)), st.just(torch.zeros(())), st.just((1, "a")),
    st.just({"a": [1]}), st.just(b"x"), st.just(10**400), st.just(np.ones(2)),
)  # fmt: skip


@given(data=st.data())
def test_any_change_is_refused_in_words_or_harmless(
    record: dict, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """One value anywhere becomes another: an error in words, or a state that trains on."""
    place = data.draw(st.sampled_from(_places(record)))
    changed = _put(record, place, data.draw(HOSTILE))
    folder = tmp_path_factory.mktemp("any")
    try:
        checked = _check(changed, folder / "any.pth")
    except UserError:
        return
    model = Model()
    wrapper, schedulers = _optimization(model)
    model.load_state_dict(record["state_dict"])
    wrapper.load_state_dict(checked["optimizer"])
    restore_schedules(schedulers, checked["param_schedulers"])
    for _ in range(3):
        loss = model([torch.rand(4), torch.rand(4)])["loss"]
        wrapper.update_params(loss)
        schedulers[0].step()


def _parameters(count: int = 2) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(3)) for _ in range(count)]


def _train(wrapper: OptimWrapper, steps: int = 2) -> None:
    for _ in range(steps):
        loss = sum(p.square().sum() for g in wrapper.optimizer.param_groups for p in g["params"])
        wrapper.update_params(loss)


def _fit(wrapper: Any, state: dict, schedulers: Any = None, states: Any = None) -> dict:
    checkpoint = {"optimizer": state, "param_schedulers": states, "state_dict": {}}
    return fit_to_run(checkpoint, Refusal("a.pth"), Model(), wrapper, schedulers)


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
        lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
        lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
        lambda p: torch.optim.NAdam(p, lr=0.1),
        lambda p: torch.optim.Adadelta(p),
        lambda p: torch.optim.SGD([{"params": p[:1], "lr": 1.0}, {"params": p[1:]}], lr=0.1),
    ],
)
def test_every_optimizer_takes_its_own_state(build: Callable) -> None:
    first, second = (OptimWrapper(build(_parameters())) for _ in range(2))
    _train(first)
    state = copy.deepcopy(first.state_dict())
    fitted = _fit(second, copy.deepcopy(state))
    assert set(fitted["optimizer"]) == set(state)
    second.load_state_dict(fitted["optimizer"])
    for one, other in zip(first.optimizer.param_groups, second.optimizer.param_groups, strict=True):
        for mine, theirs in zip(one["params"], other["params"], strict=True):
            theirs.data.copy_(mine.data)
    _train(first)
    _train(second)
    for one, other in zip(first.optimizer.param_groups, second.optimizer.param_groups, strict=True):
        assert all(map(torch.equal, one["params"], other["params"]))


def test_the_state_of_another_optimizer_is_refused() -> None:
    adam = OptimWrapper(torch.optim.Adam(_parameters(), lr=0.1))
    sgd = OptimWrapper(torch.optim.SGD(_parameters(), lr=0.1, momentum=0.9))
    for one, other in ((adam, sgd), (sgd, adam)):
        _train(one)
        with raises_user_error("resume", "a.pth"):
            _fit(other, one.state_dict())
    with raises_user_error("resume", "a.pth"):
        _fit(OptimWrapper(torch.optim.Adam(_parameters(3), lr=0.1)), adam.state_dict())


def test_an_optimizer_that_cannot_be_tried_is_checked_too() -> None:
    """Adagrad makes its state when it is made, not in a step."""
    wrapper = OptimWrapper(torch.optim.Adagrad(_parameters(), lr=0.1))
    state = copy.deepcopy(wrapper.state_dict())
    for name, value in (("step", -1), ("sum", torch.ones(2)), ("sum", "x"), (5, 1)):
        wrong = copy.deepcopy(state)
        wrong["state"][0][name] = value
        with raises_user_error("resume", "a.pth"):
            _fit(wrapper, wrong)


class Scaler:
    """The state of a loss scaler, which needs a GPU."""

    def state_dict(self) -> dict[str, Any]:
        return {
            "scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5,
            "growth_interval": 2000, "_growth_tracker": 0,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"), [("scale", 0.0), ("growth_interval", 1.5), ("_growth_tracker", -1)]
)
def test_the_loss_scaler_is_checked(key: str, value: Any) -> None:
    wrapper = OptimWrapper(torch.optim.SGD(_parameters(), lr=0.1))
    wrapper.loss_scaler = Scaler()
    state = {**wrapper.state_dict(), "loss_scaler": Scaler().state_dict()}
    assert _fit(wrapper, state)["optimizer"]["loss_scaler"] == Scaler().state_dict()
    state["loss_scaler"][key] = value
    with raises_user_error("resume", "a.pth"):
        _fit(wrapper, state)


@pytest.mark.parametrize(
    "build",
    [
        lambda w: MultiStepLR(w, milestones=[2, 4], by_epoch=False),
        lambda w: OneCycleLR(w, eta_max=0.5, total_steps=20, by_epoch=False),
        lambda w: ReduceOnPlateauLR(w, monitor="loss", by_epoch=True),
    ],
)
def test_every_schedule_takes_its_own_state(build: Callable, tmp_path: Path) -> None:
    wrappers = [OptimWrapper(torch.optim.SGD(_parameters(), lr=0.1)) for _ in range(2)]
    first, second = map(build, wrappers)
    for _ in range(3):
        wrappers[0].step()
        first.step()
    torch.save(states_of_schedules([first]), tmp_path / "states.pth")
    states = torch.load(tmp_path / "states.pth", weights_only=True)
    fitted = _fit(wrappers[1], wrappers[0].state_dict(), [second], states)
    wrappers[1].load_state_dict(fitted["optimizer"])
    restore_schedules([second], fitted["param_schedulers"])
    for _ in range(3):
        first.step()
        second.step()
        assert wrappers[0].get_lr() == wrappers[1].get_lr()
    if isinstance(first, MultiStepLR):
        for milestones in ({2: 1}, {2: 1, "x": 1}, {2: 1, 4: 0}, [2, 4]):
            with raises_user_error("resume", "a.pth"):
                _fit(
                    wrappers[1], wrappers[0].state_dict(), [second],
                    [{**states[0], "milestones": milestones}],
                )  # fmt: skip
        assert isinstance(second.milestones, Counter)


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/runs/old/best_mIoU_iter_40.pth", "best_mIoU_iter_40.pth"),
        ("C:\\runs\\best_mIoU_iter_40.pth", "best_mIoU_iter_40.pth"),
        ("/runs/old/iter_40.pth", None),
        ("/etc/passwd", None),
        ("../../best_mIoU_iter_4.pth/..", None),
        ("best_mIoU_iter_4.pth\n", None),
        ("best_\0_iter_4.pth", None),
        ("", None),
    ],
)
def test_only_names_of_our_own_files_are_restored(path: str, kept: str | None) -> None:
    info = {"best_ckpt": path, "best_ckpt_mIoU": path, "best_score": 1.0, "last_ckpt": path}
    keep_own_names(info, Path("here"), CheckpointNames("iter_{}.pth"))
    expected = None if kept is None else os.path.join("here", kept)
    assert info.get("best_ckpt") == info.get("best_ckpt_mIoU") == expected
    assert "best_score" in info
    assert info.get("last_ckpt") == ("here/iter_40.pth" if path.endswith("/iter_40.pth") else None)


def test_names_with_leading_zeros_are_restored() -> None:
    info = {"best_ckpt": "/runs/old/best_mIoU_iter_000040.pth", "last_ckpt": "/old/iter_000040.pth"}
    keep_own_names(info, Path("here"), CheckpointNames("iter_{:06d}.pth"))
    names = ("best_mIoU_iter_000040.pth", "iter_000040.pth")
    assert [*info.values()] == [os.path.join("here", name) for name in names]


def test_a_checkpoint_of_mmengine_goes_on(record: dict, tmp_path: Path) -> None:
    """With histories as MMEngine saves them, its metadata and no results of ours."""
    record = copy.deepcopy(record)
    scalars = record["message_hub"]["log_scalars"]
    for name, value in scalars.items():
        scalars[name] = HistoryBuffer(value["log_history"].tolist(), value["count"].tolist())
    for key in ("run_id", "start", "total_batch", "world_size", "validation_pending"):
        del record["meta"][key]
    del record["results"], record["ema_state_dict"]
    record["optimizer"]["state"] = {
        number: {**state, "step": int(state["step"])}
        for number, state in record["optimizer"]["state"].items()
    }
    torch.save(record, tmp_path / "theirs.pth")
    runner = make_runner(tmp_path / "on", iterations=6, resume=tmp_path / "theirs.pth")
    runner.train()
    meta = torch.load(tmp_path / "on" / "iter_6.pth", weights_only=True)["meta"]
    assert (meta["iter"], meta["start"], len(meta["run_id"])) == (6, 1, 32)
    assert len(runner.message_hub.get_scalar("train/loss").data[0]) == 6
