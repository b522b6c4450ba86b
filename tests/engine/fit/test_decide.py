# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Decisions from facts, wishes and measurements that are made up."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from user_errors import raises_user_error

from mmseg_resnest.engine.fit import (
    Budget,
    Facts,
    Measured,
    Origin,
    Plan,
    Step,
    Wishes,
    check_facts,
    choose,
    decide,
    parse_budget,
    range_steps,
    read_class_weights,
)
from mmseg_resnest.engine.fit.decide import balanced_weights
from mmseg_resnest.engine.loop import validation_steps

GIB = 1 << 30
CAMVID = Facts(
    train_images=367, val_images=101, width=480, height=360, classes=("sky", "road", "pole"),
    train_pixels=(17_000, 30_000, 1_000), val_pixels=(1_700, 3_000, 100), memory=16 * GIB, cores=2,
)  # fmt: skip
SCRATCH = Origin()
WISHES = Wishes(Budget(seconds=1500))


def measured(per_image: float = 0.2, gib: float = 0.1, **values: object) -> Measured:
    """Steps of 2 and 8 images that take so many seconds and GiB an image, and 0.5 GiB at all."""
    steps = tuple(Step(n, int((0.5 + n * gib) * GIB), n * per_image) for n in (2, 8))
    filled = {"load_seconds": 0.01, "val_seconds": 0.1, **values}
    return Measured(steps, **filled)  # type: ignore[arg-type]


def plan_of(
    facts: Facts = CAMVID,
    wishes: Wishes = WISHES,
    origin: Origin = SCRATCH,
    found: Measured | None = None,
) -> Plan:
    chosen = choose(facts, wishes, origin)
    return decide(facts, wishes, origin, chosen, found or measured())


def test_a_small_data_set_on_a_cpu() -> None:
    plan = plan_of()
    names = ("model_of", "base_size", "crop_size", "batch_size", "accumulative_counts", "lr")
    assert [plan[name] for name in names] == [
        "fcn_resnest14_camvid", 384, (192, 256), 8, 1, 0.003,
    ]  # fmt: skip
    assert plan["num_workers"] == 1
    assert all(one.reason and one.name in one.line().replace(" ", "_") for one in plan.decisions)


def test_a_gpu_gets_a_larger_model_and_larger_crops() -> None:
    plan = plan_of(replace(CAMVID, gpu="a GPU", memory=80 * GIB, cores=16, width=2048, height=1024))
    assert plan["model_of"] == "deeplabv3plus_resnest50_camvid"
    assert (plan["base_size"], plan["crop_size"]) == (1024, (256, 512))
    assert plan["batch_size"] == 16
    small = plan_of(replace(CAMVID, gpu="a GPU", memory=4 * GIB, cores=16))
    assert small["model_of"] == "fcn_resnest14_camvid"


@pytest.mark.parametrize("gib", [(80, 79), (4, 3)])
def test_the_free_memory_of_the_moment_is_in_no_reason(gib: tuple[int, int]) -> None:
    """A command that is repeated writes the same config."""
    first, second = (
        choose(replace(CAMVID, gpu="a GPU", memory=one * GIB), WISHES, SCRATCH) for one in gib
    )
    assert first == second


def test_a_crop_larger_than_the_long_edge_would_be() -> None:
    chosen = choose(CAMVID, replace(WISHES, image_size=(480, 352)), SCRATCH)
    assert (chosen["base_size"], chosen["crop_size"]) == (480, (352, 480))
    assert "--image-size" in chosen.reason("base_size")


def test_a_rate_is_checked_before_steps_are_measured() -> None:
    for lr in (0.0, -1.0, float("nan"), float("inf")):
        with raises_user_error("argument", "--lr"):
            choose(CAMVID, replace(WISHES, lr=lr), SCRATCH)


@given(
    width=st.integers(20, 5000),
    height=st.integers(20, 5000),
    images=st.integers(2, 5000),
    memory=st.integers(2, 64),
    seconds=st.floats(0.01, 5.0),
    budget=st.floats(1000, 50_000),
)
@settings(max_examples=40, deadline=None)
def test_every_plan_keeps_its_limits(
    width: int, height: int, images: int, memory: int, seconds: float, budget: float
) -> None:
    facts = replace(CAMVID, width=width, height=height, train_images=images, memory=memory * GIB)
    plan = plan_of(facts, Wishes(Budget(seconds=budget)), found=measured(seconds))
    assert plan.memory <= memory * GIB
    assert plan.seconds <= budget * 1.001
    assert plan.seconds > budget / 2 or plan["max_iters"] < 10
    assert 2 <= plan["batch_size"] <= max(2, images)
    crop_height, crop_width = plan["crop_size"]
    assert crop_height % 32 == crop_width % 32 == 0
    assert crop_height * crop_width <= 256 * 256 + 1
    assert 0 < plan["save_interval"] <= plan["val_interval"] <= plan["max_iters"]
    assert plan["warmup_iters"] < plan["max_iters"]


def test_less_memory_takes_smaller_steps_of_the_same_batch() -> None:
    plan = plan_of(replace(CAMVID, memory=int(1.2 * GIB)))
    assert (plan["batch_size"], plan["accumulative_counts"]) == (4, 2)


def test_a_step_that_was_killed_is_not_tried_again() -> None:
    found = Measured((Step(2, GIB, 1.0),), killed=True)
    plan = plan_of(found=found)
    assert (plan["batch_size"], plan["accumulative_counts"]) == (2, 4)


@pytest.mark.parametrize(
    ("memory", "found"), [(GIB // 2, measured()), (16 * GIB, Measured(killed=True))]
)
def test_too_little_memory_for_the_smallest_step(memory: int, found: Measured) -> None:
    with raises_user_error("memory", "this machine"):
        plan_of(replace(CAMVID, memory=memory), found=found)


def test_a_batch_that_is_asked_for_is_kept_or_refused() -> None:
    wishes = replace(WISHES, batch_size=6)
    assert plan_of(wishes=wishes)["batch_size"] == 6
    with raises_user_error("memory", "this machine"):
        plan_of(replace(CAMVID, memory=GIB), wishes)
    with raises_user_error("memory", "this machine"):
        plan_of(wishes=wishes, found=Measured((Step(2, GIB, 1.0),), killed=True))


def test_a_budget_of_time_holds_with_its_validations() -> None:
    plan = plan_of(found=measured(0.25, val_seconds=0.5))  # 2.04 s a step, 50.5 s a validation
    validations = 1500 * 0.15 // 50.5
    assert plan["max_iters"] == int((1500 - validations * 50.5) / 2.04)
    made = validation_steps(plan["max_iters"], plan["val_interval"])
    assert len(made) == validations and plan.reason("val_interval") == "4 validations"
    assert plan.seconds == pytest.approx(1500, abs=2.04)
    assert plan["patience"] is None


@pytest.mark.parametrize("iterations", [59, 119, 601, 762, 1422, 4999])
def test_a_run_validates_as_often_as_is_said(iterations: int) -> None:
    """Its end is among them, not one more."""
    plan = plan_of(wishes=Wishes(Budget(iterations=iterations)))
    made = validation_steps(plan["max_iters"], plan["val_interval"])
    assert plan.reason("val_interval").split()[0] == str(len(made))
    assert len(made) == max(1, min(10, iterations // 60)) and made[-1] == iterations
    took = iterations * plan.iteration + len(made) * 101 * 0.1
    assert plan.seconds == pytest.approx(took)


def test_a_budget_of_iterations_is_their_number() -> None:
    plan = plan_of(wishes=Wishes(Budget(iterations=6)))
    assert (plan["max_iters"], plan["val_interval"], plan["warmup_iters"]) == (6, 6, 0)
    # LinearLR of one step would stay where it begins.
    assert plan_of(wishes=Wishes(Budget(iterations=15)))["warmup_iters"] == 0
    long = plan_of(wishes=Wishes(Budget(iterations=5000)))
    assert (long["max_iters"], long["val_interval"], long["patience"]) == (5000, 500, 3)


def test_a_budget_that_cannot_be_met() -> None:
    with raises_user_error("argument", "--budget"):
        plan_of(wishes=Wishes(Budget(seconds=20)), found=measured(0.5))


@pytest.mark.parametrize(
    ("text", "seconds", "iterations"),
    [("25min", 1500, None), ("90s", 90, None), ("1.5h", 5400, None), ("5000it", None, 5000)],
)
def test_budgets(text: str, seconds: float | None, iterations: int | None) -> None:
    assert parse_budget(text) == Budget(seconds, iterations)


@pytest.mark.parametrize("text", ["", "25", "0min", "-1h", "1.5it", "min", "25 minutes", "nanmin"])
def test_texts_that_are_no_budget(text: str) -> None:
    with raises_user_error("argument", "--budget"):
        parse_budget(text)


def test_wishes_come_before_decisions() -> None:
    wishes = Wishes(Budget(seconds=1500), "some_config", (320, 256), 4, 0.02, (1.0, 2.0, 3.0))
    plan = plan_of(wishes=wishes, found=measured(lr=0.5, range_steps=60))
    names = ("model_of", "crop_size", "batch_size", "lr", "class_weights")
    assert [plan[name] for name in names] == [
        "some_config", (256, 320), 4, 0.02, [1.0, 2.0, 3.0],
    ]  # fmt: skip


def test_weights_to_start_from_lower_the_rate_of_the_backbone() -> None:
    plan = plan_of(origin=Origin("w.pth", "--from", "fcn_resnest14_camvid"))
    assert (plan["lr"], plan["backbone_lr_mult"]) == (0.001, 0.1)
    own = Origin("best.pth", "--from", "config.py", Config({"model": {}}))
    plan = plan_of(origin=own)
    assert (plan["lr"], plan["backbone_lr_mult"]) == (0.003, 1.0)


def test_a_range_test_decides_the_rate() -> None:
    assert plan_of(found=measured(lr=0.0042, range_steps=30))["lr"] == 0.0042


@pytest.mark.parametrize(
    ("budget", "steps"),
    [(Budget(seconds=1500), 60), (Budget(seconds=500), 25), (Budget(seconds=300), 0),
     (Budget(iterations=6), 0), (Budget(iterations=5000), 60)],
)  # fmt: skip
def test_a_range_test_is_a_twentieth_of_the_run(budget: Budget, steps: int) -> None:
    assert range_steps(budget, 1.0) == steps


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=20).filter(any))
@settings(max_examples=40, deadline=None)
def test_class_weights_are_one_on_average_and_bounded(pixels: list[int]) -> None:
    weights = balanced_weights(pixels)
    assert all(0 < weight <= 10 for weight in weights)
    mean = sum(w * p for w, p in zip(weights, pixels, strict=True)) / sum(pixels)
    assert mean == pytest.approx(1, abs=0.02) or max(weights) == 10
    seen = sorted((p, w) for p, w in zip(pixels, weights, strict=True) if p)
    assert all(a[1] >= b[1] for a, b in itertools.pairwise(seen))


def test_class_weights_are_those_of_the_hand_made_config() -> None:
    """Of CamVid's training pixels, in percent, by class."""
    shares = (16.9, 24.4, 1.0, 33.6, 4.7, 10.3, 1.1, 1.04, 5.7, 0.65, 0.23)
    expected = [0.9, 0.75, 3.7, 0.64, 1.71, 1.16, 3.52, 3.64, 1.56, 4.6, 7.87]
    assert balanced_weights([int(1e6 * s) for s in shares]) == pytest.approx(expected, rel=0.06)


def test_class_weights_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "weights.txt"
    file.write_text("# mine\nsky 1\ntraffic light 2.5\n\n")
    assert read_class_weights(file, ["traffic light", "sky"]) == (2.5, 1.0)
    for encoding in ("utf-8-sig", "utf-16"):  # as editors on Windows write it
        file.write_text("größe\t2\r\nsky 1\r\n", encoding=encoding)
        assert read_class_weights(file, ["größe", "sky"]) == (2.0, 1.0)
    wrong = {"sky 1\n": "classes", "sky 1\nroad 2\nx 1\n": "classes", "sky\n": "format"}
    for text, code in {**wrong, "sky -1\n": "format", "sky nan": "format"}.items():
        file.write_text(text)
        with raises_user_error(code, file):
            read_class_weights(file, ["sky", "road"])
    with raises_user_error("not-found", "--class-weights"):
        read_class_weights(tmp_path / "none.txt", ["sky"])


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"train_pixels": (5, 0, 0), "val_pixels": (5, 0, 0)}, "classes"),
        ({"train_pixels": (5, 5, 0)}, "classes"),
        ({"val_pixels": (0, 0, 0)}, "classes"),
        ({"train_images": 1}, "dataset"),
        ({"val_images": 0}, "dataset"),
    ],
)
def test_labels_that_nothing_can_be_learned_from(changes: dict, code: str) -> None:
    with raises_user_error(code, "photos"):
        check_facts(replace(CAMVID, **changes), "photos")


def test_measurements_come_back_from_plain_data() -> None:
    found = measured(lr=0.1, range_steps=20, killed=True)
    assert Measured.of(found.messages(), found.killed) == found
    assert found.memory(8) == int(1.3 * GIB)
    assert found.memory(5) == pytest.approx(1.0 * GIB)
    assert found.seconds(16) == pytest.approx(3.2)
