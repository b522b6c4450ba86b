# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Configs in MMEngine's Python style beside those with texts; each tool is in test_forms.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from in_process import run
from mmengine.config import Config
from two_classes import write_images, write_python_style
from user_errors import printed_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.engine.config import load_config

WEIGHTS = "work_dirs/text/iter_6.pth"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both configs, the data and a run of the one with texts; commands run in it."""
    folder = tmp_path_factory.mktemp("styles")
    write_images(folder / "data")
    write_python_style(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "text.py").write_text(run("print-config", "mine.py"))
        run("train", "text.py")
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_a_run_of_one_is_resumed_by_the_other() -> None:
    changed = ("train_cfg.max_iters=8", "param_scheduler.0.end=9")
    run(
        *("train", "mine.py", "--work-dir", "resumed", "--resume", WEIGHTS),
        *("--cfg-options", *changed, "--allow-changes", "train_cfg", "param_scheduler"),
    )
    assert torch.load("resumed/iter_8.pth", weights_only=True)["meta"]["iter"] == 8


def test_configs_in_memory() -> None:
    image = next(Path("data/images/val").iterdir())
    wanted = load_segmentor("text.py", WEIGHTS, "cpu")(image).labels
    for config in (load_config("mine.py"), Config.fromfile("mine.py")):
        assert (load_segmentor(config, WEIGHTS, "cpu")(image).labels == wanted).all()


def test_the_config_of_a_published_folder() -> None:
    run("publish-model", "mine.py", WEIGHTS, "published")
    image = next(Path("data/images/val").iterdir())
    wanted = load_segmentor("text.py", WEIGHTS, "cpu")(image).labels
    again = load_segmentor("published/training_config.py", WEIGHTS, "cpu")
    assert (again(image).labels == wanted).all()


def test_a_part_of_the_users_own_is_not_published(place: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(place)
    Path("own_head.py").write_text("from mmseg.models import FCNHead\nclass Own(FCNHead): ...\n")
    text = Path("mine.py").read_text() + "from own_head import Own\n"
    Path("own.py").write_text(text + "model['decode_head'].update(type=Own)\n")
    said = run("publish-model", "own.py", WEIGHTS, "own_folder", codes=(2,))
    code, message = printed_error(said)
    assert code == "export" and "decode_head" in message
    run("predict", "own.py", WEIGHTS, "data/images/val", "--out", "own_out")


def test_options_change_a_type() -> None:
    said = run("print-config", "mine.py", "--cfg-options", "model.backbone.norm_cfg.type=SyncBN")
    assert "type='SyncBN'" in said


def test_no_difference_between_both() -> None:
    assert "no difference" in run("print-config", "text.py", "--diff", "mine.py")
