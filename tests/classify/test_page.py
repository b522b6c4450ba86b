# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The commands and the Python of docs/classification.md run: in shorter runs, on the same data."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmseg_resnest.engine.config import load_config
from mmseg_resnest.models import ResNeSt
from mmseg_resnest.weights.load_into import load_backbone

PAGE = (Path(__file__).parents[2] / "docs/classification.md").read_text()
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith("    mmseg-resnest ")]
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SHORT = ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "default_hooks.checkpoint.interval=2"]
SHORT += ["train_dataloader.batch_size=4", "train_dataloader.num_workers=0"]
SHORT += ["val_dataloader.num_workers=0", "test_dataloader.num_workers=0"]
SMALL = dict(blocks=(1, 1, 1, 1), base_width=4, stem_width=4)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a photo, the page's files and images of four bands."""
    folder = tmp_path_factory.mktemp("page")
    Image.effect_noise((96, 72), 50).convert("RGB").save(folder / "photo.jpg")
    (folder / "four_bands.py").write_text(PYTHON[0])
    random = np.random.RandomState(0)
    for split in ("train", "val"):
        for name in ("dry", "wet"):
            (folder / "my_bands" / split / name).mkdir(parents=True)
            for index in range(4):
                pixels = random.rand(60, 60, 4).astype(np.float32)
                np.save(folder / "my_bands" / split / name / f"{index}.npy", pixels)
    return folder


def run(tool, place: Path, command: str) -> str:
    words = shlex.split(command)[1:]
    if "train" in words[:2]:
        words += [*([] if "--cfg-options" in words else ["--cfg-options"]), *SHORT]
    done = tool(*words, cwd=place)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def test_from_scratch_on_the_built_in_data(tool, place: Path) -> None:
    begin = COMMANDS.index("mmseg-resnest prepare-data scenes")
    commands = COMMANDS[begin : begin + 6]
    assert [shlex.split(line)[-1].partition("=")[0] for line in commands][-1].endswith("init_cfg")
    for command in commands:
        said = run(tool, place, command)
        if "crops" in command.split()[2]:
            numbers = re.findall(r"([\d,]+) images of (\d+) classes", said)
            stated = re.search(
                r"here ([\d,]+) for training and ([\d,]+) for validation, of 9", PAGE
            )
            assert stated and numbers == [(stated[1], "9"), (stated[2], "9")]
    assert "backbone: " in said and "best.pth" in said  # the header of the segmentation
    found = json.loads((place / "classes.json").read_text())
    assert len(found["images"]) == len(list((place / "data/scenes_crops/val/sky").iterdir()))
    given = torch.load(place / "work_dirs/resnest14_scenes_crops/best.pth", weights_only=True)
    assert given["meta"]["dataset_meta"]["classes"][0] == "building"


def test_python_on_the_page(place: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(place)
    exec(compile(PYTHON[1], "docs/classification.md", "exec"), {})
    assert capsys.readouterr().out.count("'class'") == 3


def test_other_channels(tool, place: Path) -> None:
    (command,) = [line for line in COMMANDS if "four_bands" in line]
    run(tool, place, f"{command} --work-dir bands")
    backbone = ResNeSt("resnest14", in_channels=4)
    load_backbone(backbone, place / "bands/best.pth")
    given = torch.load(place / "bands/best.pth", weights_only=True)["state_dict"]
    assert backbone.conv1[0].weight.shape[1] == 4
    assert torch.equal(backbone.conv1[0].weight, given["backbone.conv1.0.weight"])


def test_the_other_commands(tool, place: Path, imagenet: Path) -> None:
    """Those on ImageNet, and on images of one's own, with a tiny network on the made-up ones."""
    config = "configs/classification/resnest50_imagenet.py"
    done = [line for line in COMMANDS if config in line and "dist-train" not in line]
    assert len(done) == 6
    (place / "my_images").symlink_to(imagenet)
    (place / "classes.json").unlink(missing_ok=True)
    stand_in = {"CHECKPOINT": "work_dirs/resnest50_imagenet/last.pth", "512": "4", "64": "4"}
    stand_in |= {"270": "0.1", "100": "0.1"}
    for command in done:
        words = [stand_in.get(word, word) for word in shlex.split(command)]
        if "--images" not in words and words[2] != "predict":
            words += ["--images", "my_images"]
        words += ["--cfg-options", f"model.backbone.arch={SMALL}".replace(" ", "")]
        words.append("test_dataloader.num_workers=0")
        said = run(tool, place, shlex.join(words))
        assert ("of 4 images" in said) == (words[2] == "train")
        if "--auto-scale-lr" in words:  # 3.2 at 8192
            assert "learning rate 0.0015625" in said
    assert len(json.loads((place / "classes.json").read_text())["images"]) == 1


@pytest.mark.parametrize("name", ["resnest50", "resnest200"])
def test_number_of_parameters(name: str) -> None:
    from mmseg_resnest.engine.model import build_model

    with torch.device("meta"):
        model = build_model(load_config(f"classification/{name}_imagenet"))
    count = sum(p.numel() for p in model.parameters())
    assert count == {"resnest50": 27_483_240, "resnest200": 70_201_544}[name]
