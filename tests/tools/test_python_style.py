# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A config in MMEngine's Python style in every tool: the same as the config with texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import catch_services, run
from mmengine.config import Config
from PIL import Image
from two_classes import write_images, write_python_style
from user_errors import printed_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.engine.config import load_config

STYLES = ("mine.py", "text.py")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both configs and the data, and a run of each; commands run in it."""
    folder = tmp_path_factory.mktemp("styles")
    write_images(folder / "data")
    write_python_style(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "text.py").write_text(run("print-config", "mine.py"))
        for config in STYLES:
            run("train", config)
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def checkpoint(config: str, name: str = "iter_6.pth") -> Path:
    return Path("work_dirs", Path(config).stem, name)


def label_maps(folder: Path) -> dict[str, np.ndarray]:
    return {file.name: np.array(Image.open(file)) for file in folder.glob("*.png")}


def test_both_train_the_same_weights() -> None:
    mine, text = (torch.load(checkpoint(c), weights_only=True)["state_dict"] for c in STYLES)
    assert mine.keys() == text.keys()
    assert all(torch.equal(mine[key], text[key]) for key in mine)


def test_a_run_of_one_is_resumed_by_the_other() -> None:
    changed = ("train_cfg.max_iters=8", "param_scheduler.0.end=9")
    run(
        *("train", "mine.py", "--work-dir", "resumed", "--resume", checkpoint("text.py")),
        *("--cfg-options", *changed, "--allow-changes", "train_cfg", "param_scheduler"),
    )
    assert torch.load("resumed/iter_8.pth", weights_only=True)["meta"]["iter"] == 8


@pytest.mark.parametrize("options", [(), ("--tta",)], ids=["plain", "tta"])
def test_evaluation_and_comparison(options: tuple[str, ...]) -> None:
    scores = []
    for config in STYLES:
        folder = Path(f"test_{config}{len(options)}")
        run("test", config, checkpoint("mine.py"), "--work-dir", folder, *options)
        scores.append(json.loads((folder / "results.json").read_text())["classes"])
    assert scores[0] == scores[1]
    run("compare-runs", *(f"test_{config}{len(options)}" for config in STYLES))
    run("report", f"test_mine.py{len(options)}", "work_dirs/mine", "--out", "report.html")


def test_predictions_exports_and_publishing() -> None:
    images, weights = Path("data/images/val"), checkpoint("mine.py")
    for config in STYLES:
        run("predict", config, weights, images, "--out", f"out_{config}", "--save", "labels")
    wanted, found = (label_maps(Path(f"out_{config}")) for config in STYLES[::-1])
    assert wanted.keys() == found.keys() and len(wanted) == 4
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)

    run("export-onnx", "mine.py", weights, "model.onnx")
    run("publish-model", "mine.py", weights, "published")
    models = {
        "a loaded config": load_segmentor(load_config("mine.py"), weights, "cpu"),
        "MMEngine's config": load_segmentor(Config.fromfile("mine.py"), weights, "cpu"),
        "the file": load_segmentor("mine.py", weights, "cpu"),
        "ONNX": load_segmentor("model.onnx", device="cpu"),
        "a folder": load_segmentor("published", device="cpu"),
        "its training config": load_segmentor("published/training_config.py", weights, "cpu"),
    }
    for name, model in models.items():
        for file in images.iterdir():
            labels = model(file).labels
            assert np.array_equal(labels, wanted[f"{file.stem}.png"]), name


def test_a_part_of_the_users_own_is_not_published(place: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(place)
    Path("own_head.py").write_text("from mmseg.models import FCNHead\nclass Own(FCNHead): ...\n")
    text = Path("mine.py").read_text() + "from own_head import Own\n"
    Path("own.py").write_text(text + "model['decode_head'].update(type=Own)\n")
    said = run("publish-model", "own.py", checkpoint("mine.py"), "own_folder", codes=(2,))
    code, message = printed_error(said)
    assert code == "export" and "decode_head" in message
    run("predict", "own.py", checkpoint("mine.py"), "data/images/val", "--out", "own_out")


def test_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the services are started with; they are not started."""
    served = catch_services(monkeypatch)
    for command in ("serve", "demo-app"):
        run(command, "mine.py", checkpoint("mine.py"))
    file = next(Path("data/images/val").iterdir())
    first, second = (model(file).labels for model in served)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("options", [(), ("--resolved",), ("--resolved", "test", "--tta")])
def test_print_config(options: tuple[str, ...]) -> None:
    said = []
    for config in STYLES:
        text = run("print-config", config, *options).replace("work_dirs/text", "work_dirs/mine")
        Path("printed.py").write_text(text)
        said.append(load_config("printed.py").to_dict())
    assert said[0] == said[1]
    assert "no difference" in run("print-config", "text.py", "--diff", "mine.py")


def test_options_change_a_type() -> None:
    said = run("print-config", "mine.py", "--cfg-options", "model.backbone.norm_cfg.type=SyncBN")
    assert "type='SyncBN'" in said


def test_the_other_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    for config in STYLES:
        run("check-data", config, "--json", f"check_{config}.json")
        run("browse-data", config, "--out", f"sheets_{config}", "--images", 2)
        run("benchmark", config, "--seconds", 0.1, "--out", f"speed_{config}.json")
        run("benchmark", config, "--train", "--batch-size", 2, "--seconds", 0.1)
    for name in ("clean", "counts", "splits"):
        mine, text = (json.loads(Path(f"check_{c}.json").read_text())[name] for c in STYLES)
        assert mine == text
    sheets = [sorted(Path(f"sheets_{config}").iterdir()) for config in STYLES]
    for mine, text in zip(*sheets, strict=True):
        assert mine.read_bytes() == text.read_bytes()
    speeds = [json.loads(Path(f"speed_{config}.json").read_text()) for config in STYLES]
    assert speeds[0]["parameters"] == speeds[1]["parameters"]
