# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A resumed run is compared with the run that it resumes; allowed changes take effect."""

from __future__ import annotations

import copy
import functools
import json
import operator
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from small_runs import logged, losses, run, small_config
from user_errors import raises_user_error

from mmseg_resnest.datasets.class_names import classes_json
from mmseg_resnest.datasets.scenes import write_scenes
from mmseg_resnest.engine.checkpoint_schema import check_training_checkpoint
from mmseg_resnest.engine.numerics import numerics_of, precision_of
from mmseg_resnest.engine.resume_changes import (
    LONGEST_TEXT,
    MOST_KEYS,
    Changes,
    compare_with_run,
    describe_config,
    describe_data,
    rounding_notes,
)


class Images(list):
    """A data set of images at these paths."""

    def get_data_info(self, index: int) -> dict[str, str]:
        return {"img_path": self[index]}


CONFIG = dict(
    model=dict(
        type="EncoderDecoder",
        backbone=dict(type="ResNeSt", init_cfg=dict(type="Pretrained", checkpoint="a.pth")),
        decode_head=dict(loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0)),
        test_cfg=dict(mode="whole"),
    ),
    train_dataloader=dict(
        batch_size=4, num_workers=2, dataset=dict(data_root="/a", pipeline=[dict(type="Flip")])
    ),
    val_evaluator=dict(type="SegmentationMetric"),
    train_cfg=dict(type="IterBasedTrainLoop", max_iters=6, val_interval=3),
    optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.01, momentum=0.9)),
    param_scheduler=[dict(type="PolyLR", end=6, by_epoch=False)],
    default_hooks=dict(checkpoint=dict(interval=3), nonfinite=dict(type="NonFiniteHook")),
    custom_hooks=[dict(type="EMAHook", momentum=0.1)],
    randomness=dict(seed=0),
    work_dir="here",
    crop_size=96,
)


def _with(key: str, value: Any) -> Config:
    cfg = Config(copy.deepcopy(CONFIG))
    cfg.merge_from_dict({key: value})
    return cfg


def _compare(cfg: Any, allowed: tuple[str, ...] = ()) -> Changes:
    before = Config(copy.deepcopy(CONFIG))
    meta = {"config_values": describe_config(before), "numerics": numerics_of(before)}
    return compare_with_run("a.pth", meta, describe_config(cfg), numerics_of(cfg), allowed)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_cfg.max_iters", 12),
        ("param_scheduler", [dict(type="PolyLR", end=12, by_epoch=False)]),
        ("optim_wrapper.optimizer.lr", 0.02),
        ("optim_wrapper.type", "BFloat16OptimWrapper"),
        ("model.decode_head.loss_decode.loss_weight", 2.0),
        ("train_dataloader.batch_size", 8),
        ("train_dataloader.dataset.pipeline", [dict(type="Flip", prob=0.1)]),
        ("default_hooks.nonfinite.on_nonfinite", "skip"),
        ("auto_scale_lr", dict(enable=True, base_batch_size=16)),
        ("model.something_new", 1),
        ("model_wrapper_cfg", dict(type="FSDP", mixed_precision=True)),
        ("numerics", dict(fused=False)),
    ],
)
def test_a_change_of_the_run_is_refused_unless_allowed(key: str, value: Any) -> None:
    changed = _with(key, value)
    with raises_user_error("resume-changed", "--resume a.pth") as info:
        _compare(changed)
    if key == "optim_wrapper.optimizer.lr":
        assert f"{key} is 0.02, the run had 0.01" in info.value.message
    wanted = info.value.message.rpartition("--allow-changes ")[2].split()
    numerics = {"optim_wrapper.type": "precision", "numerics": "fused"}
    top = numerics.get(key, key.partition(".")[0])
    assert wanted and all(one.partition(".")[0] == top for one in wanted)
    assert _compare(changed, tuple(wanted)).keys == set(wanted)
    assert _compare(changed, (top,)).keys == set(wanted)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "param_scheduler",
            [dict(type="LinearLR"), dict(type="PolyLR")],
            "param_scheduler is 2 items (LinearLR, PolyLR), the run had 1 items (PolyLR)",
        ),
        (
            "model.decode_head.loss_decode",
            [dict(type="DiceLoss")],
            "is 1 items (DiceLoss), the run had CrossEntropyLoss",
        ),
        ("model.decode_head", None, "is None, the run had a mapping"),
        ("train_cfg.max_epochs", 3, "train_cfg.max_epochs is 3, the run had none"),
    ],
)
def test_both_values_are_told_where_one_is_of_another_form(key: str, value: Any, said: str) -> None:
    cfg = Config(copy.deepcopy(CONFIG))
    *parents, name = key.split(".")
    functools.reduce(operator.getitem, parents, cfg)[name] = value  # type: ignore[arg-type]
    with raises_user_error("resume-changed", "--resume a.pth") as info:
        _compare(cfg)
    assert said in info.value.message


def test_other_classes_are_another_run() -> None:
    """A classifier's are the names of folders, which no config has."""
    cfg, meta = _with("seed", 1), {"config_values": describe_config(CONFIG)}
    ours = describe_config(cfg) | describe_data(SimpleNamespace(metainfo={"classes": ("a", "c")}))
    for classes in (("a", "b"), ("c", "a"), ("a", "c", "d")):
        with raises_user_error("resume-changed", "a.pth"):
            compare_with_run("a.pth", meta | {"classes": classes}, ours, {})
        allowed = ["train_dataloader"]
        assert compare_with_run("a.pth", meta | {"classes": classes}, ours, {}, allowed).keys
    assert not compare_with_run("a.pth", meta | {"classes": ("a", "c")}, ours, {}).keys
    assert not compare_with_run("a.pth", meta, ours, {}).keys  # of a version without them


def test_many_changes_are_allowed_together() -> None:
    cfg = _with("model.decode_head", {f"option_{i}": i for i in range(30)})
    cfg.train_cfg.max_iters = 12
    with raises_user_error("resume-changed", "a.pth") as info:
        _compare(cfg)
    text = info.value.message
    assert text.endswith("--allow-changes model train_cfg") and len(text) < 1000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("custom_hooks", CONFIG["custom_hooks"]),  # the same
        ("work_dir", "there"),
        ("train_dataloader.dataset.data_root", "/b"),
        ("train_dataloader.num_workers", 8),
        ("default_hooks.checkpoint.interval", 1),
        ("test_dataloader", dict(batch_size=1)),
        ("model.backbone.init_cfg", None),
        ("load_from", "a.pth"),
        ("randomness.seed", 7),
        ("model.decode_head.loss_decode.loss_weight", 1),  # the same number
        ("auto_scale_lr", dict(enable=False, base_batch_size=16)),
    ],
)
def test_what_no_result_depends_on_is_ignored(key: str, value: Any) -> None:
    assert _compare(_with(key, value)) == Changes()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("val_evaluator.metrics", ["ECE"]),
        ("model.test_cfg.mode", "slide"),
        ("train_cfg.val_interval", 2),
        ("model_wrapper_cfg.type", "FSDP"),
        ("crop_size", 64),
    ],
)
def test_other_validations_and_rounding_are_one_line(key: str, value: Any) -> None:
    changes = _compare(_with(key, value))
    assert not changes.keys
    ((_, note),) = changes.notes
    assert key in note


def test_an_allowed_key_that_changes_nothing_is_noted() -> None:
    ((_, note),) = _compare(Config(copy.deepcopy(CONFIG)), ("optim_wrapper", "nonsense")).notes
    assert "optim_wrapper nonsense" in note
    with raises_user_error("resume-changed"):  # a key is not the start of a word
        _compare(_with("train_cfg.max_iters", 12), ("train",))


def test_an_older_checkpoint_is_not_compared() -> None:
    ours = describe_config(CONFIG)
    changes = compare_with_run("a.pth", {"iter": 1}, ours, numerics_of(CONFIG), ["train_cfg"])
    assert changes.optimization == {"train_cfg"}
    assert len(changes.notes) == 1


def test_differences_of_rounding_are_a_line_each() -> None:
    ours = numerics_of(CONFIG, 2)
    before = {**ours, "world_size": 4, "threads": 99, "memory_order": "channels_last"}
    before |= {"engine": "compile", "float32_matmul": "high", "fused_steps": ["matrix_products"]}
    before["versions"] = {**ours["versions"], "torch": "1.0", "numpy": "1.0"}
    ours["fused_steps"] = ["matrix_products", "merged_pipeline"]
    notes = [note for _, note in rounding_notes(ours, before)]
    assert len(notes) == 8
    assert any("world_size is 2" in note and "4" in note for note in notes)
    assert any("torch is" in note and "1.0" in note for note in notes)
    assert rounding_notes(ours, ours) == rounding_notes(ours, None) == []


@pytest.mark.parametrize(
    ("optim_wrapper", "precision"),
    [
        (None, "float32"),
        (dict(optimizer=dict(type="SGD")), "float32"),
        (dict(type="AmpOptimWrapper"), "float16 (loss scale dynamic)"),
        (dict(type="AmpOptimWrapper", dtype="bfloat16", loss_scale=8), "bfloat16 (loss scale 8)"),
        (dict(type="mmseg_resnest.BFloat16OptimWrapper"), "bfloat16"),
        (dict(type="ApexOptimWrapper"), "ApexOptimWrapper"),
    ],
)
def test_the_precision_is_told(optim_wrapper: Any, precision: str) -> None:
    assert precision_of(optim_wrapper) == precision


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=400) | st.binary(),
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(max_size=400), inner),
    max_leaves=60,
)


@pytest.mark.long
@given(values=st.dictionaries(st.text(min_size=1), _VALUES, max_size=5))
def test_any_config_is_described_in_short_texts(values: dict[str, Any]) -> None:
    described = describe_config(values)
    for key, text in described.items():
        assert key.isprintable() and text.isprintable() and len(text) <= LONGEST_TEXT
    assert json.loads(json.dumps(described)) == described == describe_config(values)


def test_a_huge_config_is_described_within_bounds() -> None:
    values = {"model": {f"key_{i}": i for i in range(2 * MOST_KEYS)}}
    assert len(describe_config(values)) == MOST_KEYS
    assert len(describe_config({"indices": list(range(10**5))})) == 1


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", 4, 1, progress=False)


@pytest.fixture(scope="module")
def first(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six iterations; its last checkpoint."""
    folder = tmp_path_factory.mktemp("first")
    run(small_config(scenes), folder)
    return folder / "iter_6.pth"


def _resume(
    first: Path, folder: Path, cfg: Config, *allowed: str, **arguments: Any
) -> dict[int, float]:
    run(cfg, folder, resume=str(first), allow_changes=allowed, **arguments)
    return logged(folder)


def test_checkpoints_say_how_they_were_computed(first: Path) -> None:
    meta = torch.load(first, weights_only=True)["meta"]
    assert meta["numerics"]["memory_order"] == "channels_last"
    assert "matrix_products" in meta["numerics"]["fused_steps"]
    assert meta["numerics"]["versions"]["torch"] == torch.__version__
    assert meta["config_values"]["train_dataloader.batch_size"] == "2"
    read = check_training_checkpoint(str(first))["meta"]
    assert read["numerics"] == meta["numerics"]  # nothing that is compared is dropped
    assert {*meta["numerics"]} == {*numerics_of(CONFIG), "fused_steps"}


def test_a_refused_run_writes_nothing(first: Path, scenes: Path, tmp_path: Path) -> None:
    for iterations, arguments in ((12, {}), (6, {"amp": True})):
        cfg = small_config(scenes, iterations=iterations)
        with raises_user_error("resume-changed", first):
            run(cfg, tmp_path / "on", resume=str(first), **arguments)
        assert not (tmp_path / "on").exists()


def test_another_number_of_images_is_another_run(first: Path, scenes: Path, tmp_path: Path) -> None:
    """A data root of the same form, with an image less."""
    fewer = Path(shutil.copytree(scenes, tmp_path / "fewer"))
    for kind in ("images", "annotations"):
        min((fewer / kind / "training").iterdir()).unlink()
    arguments: dict[str, Any] = dict(resume=str(first.with_name("iter_3.pth")))
    with raises_user_error("resume-changed", "iter_3.pth") as info:
        run(small_config(fewer), tmp_path / "on", **arguments)
    assert "train_dataloader.images is 3, the run had 4" in info.value.message
    run(small_config(fewer), tmp_path / "on", allow_changes=["train_dataloader"], **arguments)
    meta = torch.load(tmp_path / "on" / "iter_6.pth", weights_only=True)["meta"]
    assert meta["config_values"]["train_dataloader.images"] == "3"


def test_as_many_other_images_are_another_run(first: Path, scenes: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(scenes, tmp_path / "other"))
    for kind in ("images", "annotations"):
        for file in (other / kind / "training").iterdir():
            file.rename(file.with_name(f"new_{file.name}"))
    with raises_user_error("resume-changed", "iter_3.pth") as info:
        run(small_config(other), tmp_path / "on", resume=str(first.with_name("iter_3.pth")))
    assert "train_dataloader.files is 'new_" in info.value.message


def test_images_are_described_by_their_names_wherever_they_are() -> None:
    def describe(*paths: str) -> dict[str, str]:
        return describe_data(Images(paths))

    first = describe("/a/one.png", "/a/é.png")
    assert first == describe("b/two/one.png", "b/e\u0301.png")
    assert first != describe("/a/é.png", "/a/one.png")  # in another order
    assert "train_dataloader.files" not in describe_data([1, 2])
    many = describe(*(f"{number:05d}\n\udc80.png" for number in range(20_000)))
    assert many["train_dataloader.files"].isprintable() and len(str(many)) < LONGEST_TEXT


def test_classes_of_a_file_in_another_order_are_another_run(scenes: Path, tmp_path: Path) -> None:
    """The config names the file alone."""
    file, names = tmp_path / "classes.json", [f"class {n}" for n in range(12)]

    def config(names: list[str]) -> Config:
        file.write_bytes(classes_json([(name, (0, 0, 0)) for name in names]))
        cfg = small_config(scenes)
        options = dict(type="CustomDataset", classes_file=str(file), reduce_zero_label=True)
        cfg.train_dataloader.dataset.update(options)
        return cfg

    run(config(names), tmp_path / "first")
    arguments: dict[str, Any] = dict(resume=str(tmp_path / "first/iter_3.pth"))
    with raises_user_error("resume-changed", "iter_3.pth") as info:
        run(config(names[::-1]), tmp_path / "on", **arguments)
    assert "train_dataloader.classes" in info.value.message
    run(config(names), tmp_path / "on", **arguments)


def test_a_longer_run_follows_the_new_schedule(first: Path, scenes: Path, tmp_path: Path) -> None:
    """With the learning rates of a run that has had the new schedule from its start."""
    whole = tmp_path / "whole"
    run(small_config(scenes, iterations=12), whole)
    rates = _resume(
        first, tmp_path / "on", small_config(scenes, iterations=12), "train_cfg", "param_scheduler"
    )
    assert rates == {step: lr for step, lr in logged(whole).items() if step > 6}
    assert all(rates.values())
    again = run(  # what a launcher repeats
        small_config(scenes, iterations=12), tmp_path / "on", resume="auto",
        allow_changes=["train_cfg", "param_scheduler"],
    )  # fmt: skip
    assert again["last_checkpoint"] == "iter_12.pth"


def test_a_longer_run_without_a_longer_schedule_is_refused(
    first: Path, scenes: Path, tmp_path: Path
) -> None:
    resuming = dict(resume=str(first), allow_changes=["train_cfg.max_iters"])
    for arguments in (resuming, {}):
        cfg = small_config(scenes)
        cfg.train_cfg.max_iters = 12
        with raises_user_error("config-conflict", "param_scheduler.1.end"):
            run(cfg, tmp_path / "on", **arguments)
    assert not (tmp_path / "on").exists()


def test_other_options_of_the_optimizer_take_effect(
    first: Path, scenes: Path, tmp_path: Path
) -> None:
    cfg = small_config(
        scenes, iterations=6, optim_wrapper__optimizer__lr=0.3,
        optim_wrapper__optimizer__weight_decay=0.25,
    )  # fmt: skip
    middle = first.with_name("iter_3.pth")
    rates = _resume(middle, tmp_path / "on", cfg, "optim_wrapper")
    before = logged(first.parent)
    assert rates == {step: pytest.approx(100 * before[step]) for step in (4, 5, 6)}
    saved = torch.load(tmp_path / "on" / "iter_6.pth", weights_only=True)["optimizer"]
    assert {group["weight_decay"] for group in saved["param_groups"]} == {0.25}
    assert {int(state["step"]) for state in saved["state"].values()} == {6}  # moments went on


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "allowed", "steps"),
    [
        # one group becomes one a parameter, in the same order
        ({"optim_wrapper.paramwise_cfg": dict(custom_keys=dict(decode_head=dict(lr_mult=10)))},
         ["optim_wrapper.paramwise_cfg"], 6),
        ({"optim_wrapper.optimizer": dict(type="SGD", lr=0.1, momentum=0.9, _delete_=True)},
         ["optim_wrapper.optimizer"], None),
        ({"optim_wrapper.optimizer.amsgrad": True}, ["optim_wrapper"], 3),
    ],
    ids=["groups", "another optimizer", "more state"],
)  # fmt: skip
def test_another_optimizer_goes_on(
    change: dict, allowed: list[str], steps: int | None, first: Path, scenes: Path, tmp_path: Path
) -> None:
    cfg = small_config(scenes)
    cfg.merge_from_dict(change)
    cfg.optim_wrapper.optimizer.pop("_delete_", None)
    if steps is None:
        for name in ("fused", "weight_decay"):
            cfg.optim_wrapper.optimizer.pop(name)
    _resume(first.with_name("iter_3.pth"), tmp_path, cfg, *allowed)
    saved = torch.load(tmp_path / "iter_6.pth", weights_only=True)["optimizer"]
    found = {int(state["step"]) for state in saved["state"].values() if "step" in state}
    assert found == ({steps} if steps else set())


def test_another_precision_goes_on(first: Path, scenes: Path, tmp_path: Path) -> None:
    middle = first.with_name("iter_3.pth")
    rates = _resume(middle, tmp_path / "on", small_config(scenes), "precision", amp=True)
    assert rates == {step: lr for step, lr in logged(first.parent).items() if step > 3}
    meta = torch.load(tmp_path / "on" / "iter_6.pth", weights_only=True)["meta"]
    assert meta["numerics"]["precision"] == "bfloat16"
    assert losses(tmp_path / "on" / "iter_6.pth")[:3] == losses(middle)


@pytest.mark.parametrize(("allowed", "seed"), [((), 0), (("randomness",), 7)])
def test_another_seed_has_effect_where_it_is_allowed(
    allowed: tuple[str, ...], seed: int, first: Path, scenes: Path, tmp_path: Path
) -> None:
    middle = first.with_name("iter_3.pth")
    _resume(middle, tmp_path, small_config(scenes), *allowed, seed=7)
    last = tmp_path / "iter_6.pth"
    assert torch.load(last, weights_only=True)["meta"]["seed"] == seed
    assert (losses(last) == losses(first)) == (seed == 0)
    assert losses(last)[:3] == losses(middle)
    _resume(last, tmp_path / "on", small_config(scenes), *allowed, seed=7)  # a repeated command


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config_values", {"a": 5}),
        ("config_values", {"a": "x" * 10_000}),
        ("config_values", {"a": "\x1b[2J"}),
        ("config_values", {str(i): "" for i in range(30_000)}),
        ("numerics", "x"),
        ("numerics", {"precision": ["float32"]}),
        ("numerics", {"versions": {"torch": 2}}),
    ],
)
def test_what_is_compared_is_checked(key: str, value: Any, first: Path, tmp_path: Path) -> None:
    record = torch.load(first, weights_only=True)
    record["meta"][key] = value
    torch.save(record, tmp_path / "wrong.pth")
    with raises_user_error("resume", "wrong.pth") as info:
        check_training_checkpoint(str(tmp_path / "wrong.pth"))
    assert f"meta.{key}" in info.value.message
