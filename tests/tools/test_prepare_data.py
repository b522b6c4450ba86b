# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""tools/prepare_data.py as a user runs it; what it calls is tested in tests/datasets/prepare."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tool_runs import RunTool
from user_errors import printed_error

from mmseg_resnest import load_segmentor
from mmseg_resnest_cli import main

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the tool in this process: (exit code, stdout, stderr)."""
    monkeypatch.delenv("MMSEG_RESNEST_DATA", raising=False)
    monkeypatch.delenv("MMSEG_RESNEST_SCENES", raising=False)
    monkeypatch.chdir(tmp_path)

    def run_it(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_info:
            main("prepare-data", [str(arg) for arg in args])
        code = exit_info.value.code
        assert isinstance(code, int)
        return code, *capfd.readouterr()

    return run_it


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Four images of two videos and their index maps."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name in ("a_1", "a_2", "b_1", "b_2"):
        pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{name}.png")
        labels = rng.integers(0, 2, (24, 32), dtype=np.uint8)
        Image.fromarray(labels).save(tmp_path / f"labels/{name}.png")
    (tmp_path / "classes.txt").write_text("left\nright\n")
    return tmp_path


def test_ade20k_and_its_cache(run: Run, tmp_path: Path) -> None:
    for kind, suffix in (("images", "jpg"), ("annotations", "png")):
        folder = tmp_path / "source" / kind / "validation"
        folder.mkdir(parents=True)
        shape = (4, 5, 3) if kind == "images" else (4, 5)
        Image.fromarray(np.ones(shape, dtype=np.uint8)).save(folder / f"x.{suffix}")
    assert printed_error(run("ade20k", "--source", "source")[2])[0] == "dataset"
    args = ("ade20k", "--source", "source", "--allow-incomplete", "--cache", "--jobs", 1)
    code, out, _ = run(*args)
    assert code == 0
    assert "ade20k: training 0, validation 1 in data/ade20k" in out
    assert "files: 2 linked" in out
    assert "cache: 2 files (0 kept, 2 made, 0 removed)" in out
    assert (tmp_path / "data/ade20k/ADEChallengeData2016/images/validation/x.jpg").is_file()
    code, out, _ = run(*args, "--verify-cache")
    assert code == 0 and "everything was there and has not changed" in out
    assert "(2 kept, 0 made, 0 removed)" in out


def test_custom_from_export_to_training(run: Run, run_tool: RunTool, pairs: Path) -> None:
    code, out, _ = run(
        "export", "--format", "coco", "--images", "images", "--labels", "labels",
        "--classes", "classes.txt", "--out", "coco", "--jobs", 1,
    )  # fmt: skip
    assert code == 0 and "4 label maps as coco" in out
    args = (
        "custom", "--name", "mine", "--format", "coco", "--source", "coco/annotations.json",
        "--config-dir", "configs", "--base", ROOT / "configs/fcn_resnest14_scenes.py",
        "--epochs", 2, "--jobs", 1, "--frames",
    )  # fmt: skip
    code, out, err = run(*args)
    assert code == 0, err
    assert "train: 2 images in 1 groups" in out and "val: 2 images in 1 groups" in out
    assert "next\n  mmseg-resnest check-data configs/mine.py" in out
    assert "  mmseg-resnest train configs/mine.py" in out
    for name in ("a_1", "b_2"):
        made = np.asarray(Image.open(pairs / f"data/mine/annotations/{name}.png"))
        np.testing.assert_array_equal(made, np.asarray(Image.open(pairs / f"labels/{name}.png")))
    assert "everything was there" in run(*args)[1]
    # It trains as it is, wherever it lies.
    (pairs / "moved").mkdir()
    text = (pairs / "configs/mine.py").read_text()
    (pairs / "configs/mine.py").unlink()
    assert re.search(r"^# Training images: crops of \d+x\d+", text, re.M)
    line = '# load_from = "weights.pth"'  # to start from weights, in effect here
    assert line in text
    (pairs / "moved/mine.py").write_text(text.replace(line, line.removeprefix("# ")))
    model = load_segmentor(ROOT / "configs/fcn_resnest14_scenes.py", None, "cpu").model
    torch.save(model.state_dict(), pairs / "weights.pth")
    small = ["train_dataloader.batch_size=2", "train_cfg.max_iters=1", "train_cfg.val_interval=1"]
    for loader in ("train", "val"):
        small += [f"{loader}_dataloader.num_workers=0"]
        small += [f"{loader}_dataloader.persistent_workers=False"]
    config = ("moved/mine.py", "--data-root", "data")
    said = run_tool("train.py", *config, "--cfg-options", *small, cwd=pairs).check().stdout
    assert re.search(r"^weights .*weights.pth", said, re.M)
    assert (pairs / "work_dirs/mine/iter_1.pth").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ("--val-list", "val.txt", "--seed", 3),
        ("--val-source", "val", "--frames"),
        ("--val-source", "val", "--group-pattern", "(.)_.*"),
        ("--val-list", "val.txt", "--val-fraction", 0.4),
        ("--group-pattern", "(.)_.*", "--no-frames"),
    ],
)
def test_options_that_others_replace(run: Run, words: tuple[object, ...]) -> None:
    code, _, err = run("custom", "--name", "mine", "--source", "labels", *words)
    option = next(word for word in reversed(words) if str(word).startswith("--"))
    assert code == 2 and str(option) in err


def test_colour_masks_in_american_spelling(run: Run, pairs: Path) -> None:
    code, _, err = run(
        "export", "--format", "color", "--images", "images", "--labels", "labels",
        "--classes", "classes.txt", "--out", "out", "--jobs", 1,
    )  # fmt: skip
    assert code == 0, err
    code, _, err = run(
        "custom", "--name", "mine", "--format", "color", "--source", "out/masks", "--images",
        "images", "--classes", "out/colours.json", "--jobs", 1,
    )  # fmt: skip
    assert code == 0, err
    text = (pairs / "configs/custom/mine.py").read_text()  # of the current folder
    if not torch.cuda.is_available():
        assert '"mmseg_resnest::fcn_resnest14_camvid"' in text
    made = np.asarray(Image.open(pairs / "data/mine/annotations/a_1.png"))
    np.testing.assert_array_equal(made, np.asarray(Image.open(pairs / "labels/a_1.png")))


BAD = {
    "missing": (["camvid", "--source", "nowhere"], "not-found", "--source nowhere"),
    "base": (
        ["custom", "--name", "x", "--format", "coco", "--source", "x", "--base", "no.py"],
        "not-found",
        "no.py",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes(run: Run, name: str) -> None:
    args, code, subject = BAD[name]
    exit_code, _, err = run(*args)
    printed, text = printed_error(err)
    assert exit_code == 2 and printed == code and subject in text


CUSTOM = ["custom", "--name", "x", "--format", "coco", "--source", "x"]


@pytest.mark.parametrize(
    "args",
    [
        ["camvid", "--source", ".", "--jobs", "0"],
        ["camvid", "--source", ".", "--verify-cache"],
        ["ade"],
        ["custom", "--format", "coco", "--source", "x"],
        [*CUSTOM, "--label-map", "bus=car", "bus=ignore"],
        [*CUSTOM, "--label-map", "bus"],
        [*CUSTOM, "--bands", "1,two"],
        [*CUSTOM, "--bands", "0"],
    ],
)
def test_wrong_usage(run: Run, args: list[str]) -> None:
    code, _, err = run(*args)
    assert code == 2 and "error: " in err and "[argument]" in err and "Traceback" not in err
