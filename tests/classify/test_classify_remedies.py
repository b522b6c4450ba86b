# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What is refused before a classifier is trained, and that what the error says helps."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from advice import advises
from user_errors import printed_error, raises_user_error

from mmseg_resnest.engine.classification import check_classes, load_classification


def test_a_missing_or_empty_folder_is_one_error(
    tool, config: Path, imagenet: Path, tmp_path: Path
) -> None:
    """It names the command to run, which works; nothing is written."""
    images = tmp_path / "images"
    with advises("engine/classification.py:_classes_in", "--images DIR names another folder"):
        load_classification(config, images=images)
    (images / "train").mkdir(parents=True)
    with raises_user_error("empty", images / "train"):
        load_classification(config, images=images)
    (tmp_path / "here").mkdir()
    done = tool("classify", "train", config, "--images", images, cwd=tmp_path / "here")
    assert done.returncode == 2 and not list((tmp_path / "here").iterdir())
    code, text = printed_error(done.stderr)
    assert code == "empty" and text.endswith("; --images DIR names another folder")
    assert load_classification(config, images=imagenet).model.head.num_classes == 6


def first_classes(images: Path, copy: Path, count: int) -> Path:
    """A copy of a folder of images that has so many of its classes."""
    shutil.copytree(images, copy)
    for split in ("train", "val"):
        for folder in sorted((copy / split).iterdir())[count:]:
            shutil.rmtree(folder)
    return copy


def test_the_number_of_classes(config: Path, imagenet: Path, tmp_path: Path) -> None:
    two = first_classes(imagenet, tmp_path / "two", 2)
    with advises("engine/classification.py:load_classification", "add --images"):
        load_classification(config, [f"data_root={two}"])
    cfg = load_classification(config, images=two)
    assert cfg.model.head.num_classes == cfg.model.data_preprocessor.num_classes == 2
    assert cfg.val_evaluator.topk == [1]


def test_a_single_class_is_refused(config: Path, imagenet: Path, tmp_path: Path) -> None:
    one = first_classes(imagenet, tmp_path / "one", 1)
    with advises("engine/classification.py:load_classification", "add a folder for each class"):
        load_classification(config, images=one)
    for split in ("train", "val"):
        shutil.copytree(one / split / "n00000000", one / split / "other")
    assert load_classification(config, images=one).model.head.num_classes == 2


def test_another_kind_of_config() -> None:
    with raises_user_error("config-key", "fcn_resnest14_scenes"):
        load_classification("fcn_resnest14_scenes")


def test_a_head_without_a_number_of_classes(config: Path, imagenet: Path) -> None:
    given = ["model.head=dict(_delete_=True, type='mmpretrain.ClsHead')"]
    for images in (None, imagenet):
        with advises("engine/classification.py:check_head", "set it to the number of classes"):
            load_classification(config, given, images=images)
    given = ["model.head=dict(_delete_=True, type='mmpretrain.LinearClsHead', num_classes=6)"]
    assert load_classification(config, given, images=imagenet).model.head.num_classes == 6


def test_options_of_training_reach_it(
    config: Path, imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmseg_resnest.engine import training
    from mmseg_resnest_cli import main

    given = {}

    def train(cfg, **options):
        given.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", train)
    words = ["train", config, "--images", imagenet, "--compile", "--amp", "--seed", "3"]
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        main("classify", [*map(str, words)])
    assert (given["compiled"], given["amp"], given["seed"]) == (True, True, 3)


def test_other_classes_are_not_tested(config: Path, imagenet: Path, tmp_path: Path) -> None:
    import torch

    file = tmp_path / "last.pth"
    names = [path.name for path in sorted((imagenet / "val").iterdir())]
    cfg = load_classification(config, images=imagenet, splits=("test",))
    torch.save({"meta": {"dataset_meta": {"classes": [*names[:-1], "x"]}}, "state_dict": {}}, file)
    with advises("engine/classification.py:check_classes", "test on images of the same classes"):
        check_classes(cfg, file)
    torch.save({"meta": {"dataset_meta": {"classes": names}}, "state_dict": {}}, file)
    check_classes(cfg, file)


@pytest.mark.parametrize("option", [("--teacher", "x")])
def test_options_of_segmentation(tool, config: Path, imagenet: Path, option: tuple) -> None:
    done = tool("classify", "train", config, "--images", imagenet, *option)
    assert printed_error(done.stderr)[0] == "argument"
