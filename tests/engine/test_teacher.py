# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Training with a teacher: resumed exactly, told by its weights, refused where it does not fit."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from advice import advises, helps
from mmengine.config import Config
from run_state import differences, load
from small_runs import losses, run, small_config
from user_errors import raises_user_error

from mmseg_resnest.datasets.scenes import write_scenes
from mmseg_resnest.engine.launch import Machine
from mmseg_resnest.engine.model import build_model
from mmseg_resnest.engine.resolve import TrainingOptions, resolve
from mmseg_resnest.engine.teacher import find_teacher, teach
from mmseg_resnest.inference import load_segmentor

OPEN = partial(load_segmentor, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and the run of a ``teacher`` with another head, mean and deviation."""
    folder = tmp_path_factory.mktemp("taught")
    write_scenes(folder / "scenes", 6, 1, progress=False)
    cfg = student(folder, head="encnet", iterations=2)
    cfg.model.data_preprocessor.update(mean=[100.0, 110.0, 120.0], std=[50.0, 60.0, 70.0])
    run(cfg, folder / "teacher")
    return folder


def student(folder: Path, **options: Any) -> Config:
    return small_config(folder / "scenes", dry_step=False, **options)


@pytest.fixture(scope="module")
def taught(folder: Path) -> Path:
    """With averaged weights and accumulated gradients."""
    return _train(folder, "taught", str(folder / "teacher"))


def _config(folder: Path) -> Config:
    cfg = student(folder)
    cfg.custom_hooks = [dict(type="EMAHook", momentum=0.1)]
    cfg.optim_wrapper.accumulative_counts = 3
    return cfg


def _train(folder: Path, name: str, teacher: str, **arguments: Any) -> Path:
    cfg = _config(folder)
    cfg.dry_step = name == "taught"  # which changes nothing
    run(cfg, folder / name, teacher=teacher, open_model=OPEN, **arguments)
    return folder / name


def test_a_run_that_goes_on_is_the_same_run(folder: Path, taught: Path) -> None:
    again = folder / "again"
    again.mkdir()
    shutil.copy(taught / "iter_3.pth", again)
    moved = folder / "elsewhere"
    shutil.copytree(folder / "teacher", moved)  # the same weights under another name
    _train(folder, "again", str(moved), resume=str(again / "iter_3.pth"))
    first, second = (load(path / "iter_6.pth") for path in (taught, again))
    assert losses(again / "iter_6.pth") == losses(taught / "iter_6.pth")
    for key in ("state_dict", "ema_state_dict", "optimizer"):
        assert differences(first[key], second[key]) == []


def test_a_checkpoint_holds_no_teacher(folder: Path, taught: Path) -> None:
    record = load(taught / "iter_6.pth")
    names = set(build_model(_config(folder)).state_dict())
    assert set(record["state_dict"]) == names
    assert {n.removeprefix("module.") for n in record["ema_state_dict"]} == names | {"steps"}
    assert "train/distill.loss_kl" in record["message_hub"]["log_scalars"]
    assert len(record["meta"]["config_values"]["distillation.weights"]) == 16
    assert load_segmentor(taught, device="cpu").classes  # no teacher is loaded to predict


def test_another_teacher_is_another_run(folder: Path, taught: Path) -> None:
    other = folder / "other"
    record = torch.load(folder / "teacher" / "iter_2.pth", weights_only=True)
    record["state_dict"]["decode_head.conv_seg.bias"][0] += 1
    other.mkdir()
    torch.save(record, other / "iter_2.pth")
    resume = str(taught / "iter_3.pth")
    for teacher, keys in ((str(other), "distillation.weights"), (None, "distillation")):
        arguments: dict[str, Any] = dict(resume=resume, teacher=teacher, open_model=OPEN)
        with raises_user_error("resume-changed", resume) as caught:
            run(_config(folder), folder / "changed", **arguments)
        assert keys in caught.value.message
        assert not (folder / "changed").exists()
    run(_config(folder), folder / "changed", resume=resume, teacher=str(other), open_model=OPEN,
        allow_changes=["distillation"])  # fmt: skip
    assert (folder / "changed" / "iter_6.pth").exists()


# --- what is refused -------------------------------------------------------------------------


def check(folder: Path, teacher: Any, change: Callable[[Config], None] = lambda cfg: None) -> Any:
    """The checks of a start, with a teacher's name or the run of one."""
    cfg = student(folder)
    change(cfg)
    name = teacher if isinstance(teacher, str) else "teacher"
    cfg = resolve(cfg, TrainingOptions("work", teacher=name), Machine()).cfg
    found = find_teacher(cfg, OPEN if isinstance(teacher, str) else lambda name: teacher)
    assert found is not None
    model = build_model(cfg)
    return teach(found, cfg, model), model


def loaded(cfg: Config) -> Any:
    return load_segmentor(cfg, None, "cpu")


def with_classes(folder: Path, names: list[str]) -> Any:
    cfg = student(folder)
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.num_classes, head.loss_decode = len(names), dict(type="CrossEntropyLoss")
    cfg.test_dataloader.dataset.metainfo = dict(classes=names)
    return loaded(cfg)


def test_classes(folder: Path) -> None:
    names = list(load_segmentor(folder / "teacher", device="cpu").classes)
    with advises(
        "engine/teacher.py:_order", "and the student", "name a teacher of the student's classes"
    ):
        check(folder, with_classes(folder, names[:-1]))
    with advises("engine/teacher.py:_order", "which the student has not, and lacks its") as told:
        check(folder, with_classes(folder, ["tent" if n == names[3] else n for n in names]))
    assert all(word in told.value.message for word in ("tent", names[3]))
    rows, model = check(folder, with_classes(folder, names))
    assert model.distillation._order is None and "order" not in rows[0][1]
    rows, model = check(folder, with_classes(folder, names[::-1]))
    assert model.distillation._order == list(range(len(names)))[::-1] and "order" in rows[0][1]
    unknown = with_classes(folder, [f"class {i}" for i in range(len(names))])
    assert check(folder, unknown)[1].distillation._order is None


def test_images(folder: Path) -> None:
    def grey(cfg: Config) -> None:
        load = dict(type="LoadImageFromFile", color_type="grayscale")
        for loader in (cfg.train_dataloader, cfg.test_dataloader):
            loader.dataset.pipeline = [load, *loader.dataset.pipeline[1:]]
        cfg.model.data_preprocessor.update(mean=[114.0], std=[58.0], bgr_to_rgb=False)
        cfg.model.backbone.in_channels = 1

    with advises("engine/teacher.py:_reverses", "name a teacher of the same images"):
        check(folder, str(folder / "teacher"), grey)
    cfg = student(folder)
    grey(cfg)
    assert check(folder, loaded(cfg), grey)
    cfg = student(folder)
    cfg.test_dataloader.dataset.pipeline[0] = dict(type="LoadImageFromFile", color_type="unchanged")
    with advises("engine/teacher.py:_reverses", "name a teacher that reads them in the same way"):
        check(folder, loaded(cfg))
    cfg = student(folder)
    cfg.model.data_preprocessor.bgr_to_rgb = False
    assert check(folder, loaded(cfg))[1].distillation._reversed
    assert not check(folder, str(folder / "teacher"))[1].distillation._reversed


def test_kinds_of_models(folder: Path) -> None:
    def overlap(cfg: Config) -> None:
        cfg.model.multilabel = True
        loss = dict(type="CrossEntropyLoss", use_sigmoid=True)
        for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
            head.loss_decode = loss
        for loader in (cfg.train_dataloader, cfg.test_dataloader):
            for step in loader.dataset.pipeline:
                if step.type == "LoadAnnotations":
                    step.update(type="LoadMultilabel", num_classes=12)

    cfg = student(folder)
    overlap(cfg)
    with advises("engine/teacher.py:teach", "name a teacher with the student's model.multilabel"):
        check(folder, loaded(cfg))

    def points(cfg: Config) -> None:
        cfg.model.type = "CascadeEncoderDecoder"
        cfg.model.num_stages = 2
        cfg.model.decode_head = [cfg.model.decode_head, copy.deepcopy(cfg.model.decode_head)]

    with raises_user_error("config-conflict", "config key model"):
        check(folder, str(folder / "teacher"), points)
    exported = load_segmentor(folder / "teacher", device="cpu")
    exported.model = torch.nn.Identity()  # as that of a file without a network
    with advises("engine/teacher.py:find_teacher", "name the run, the checkpoint"):
        check(folder, exported)
    assert check(folder, str(folder / "teacher" / "iter_2.pth"))  # the checkpoint instead


def test_a_teacher_that_is_not_there(folder: Path) -> None:
    work = folder / "nothing"
    for name in ("no_such_model", str(folder / "no" / "file.pth"), str(folder / "scenes")):
        with raises_user_error(("not-found", "argument", "model"), f"teacher {name}"):
            run(student(folder), work, teacher=name, open_model=OPEN)
    assert not work.exists()
    cfg = student(folder)
    cfg.distillation = dict(losses=[dict(type="KLDivergence")])

    def decide() -> Any:
        return resolve(cfg, TrainingOptions("work"), Machine()).cfg

    def name_it() -> None:
        cfg.distillation.teacher = str(folder / "teacher")

    ready = helps("engine/teacher.py:set_distillation", "name the teacher there", "--teacher",
                  call=decide, remedy=name_it)  # fmt: skip
    assert [one.type for one in ready.distillation.losses] == ["KLDivergence"]
    with advises("engine/teacher.py:find_teacher", "pass train(open_model=load_segmentor)"):
        find_teacher(ready, None)
    assert find_teacher(ready, OPEN)


def test_the_config_or_the_command_line_names_it(folder: Path) -> None:
    cfg = student(folder, distillation=dict(teacher="a", losses=[dict(type="KLDivergence")]))
    assert resolve(cfg, TrainingOptions("work"), Machine()).cfg.distillation.teacher == "a"
    chosen = resolve(cfg, TrainingOptions("work", teacher="b"), Machine())
    assert chosen.cfg.distillation == dict(teacher="b", losses=[dict(type="KLDivergence")])
    assert cfg.distillation.teacher == "a"
    default = resolve(student(folder), TrainingOptions("work", teacher="b"), Machine()).cfg
    kinds = [one.type for one in default.distillation.losses]
    assert kinds == ["ChannelWiseDivergence", "KLDivergence"]
    plain = resolve(student(folder), TrainingOptions("work"), Machine()).cfg
    assert "distillation" not in plain
    for wrong, subject in (
        (dict(teachers="a"), "distillation.teachers"),
        ("a", "distillation"),
        (dict(teacher=["a"]), "distillation.teacher"),
    ):
        with raises_user_error(("config-key", "config-value"), subject):
            student(folder, distillation=wrong)
