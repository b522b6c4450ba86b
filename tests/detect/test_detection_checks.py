# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a detector's config and data contradict is said before a run, not met in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from advice import advises
from mmengine.config import Config
from user_errors import raises_user_error

from mmseg_resnest.datasets.shapes import SHAPES, write_shapes
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.detection import check_detection, check_trained_classes
from mmseg_resnest.engine.run_options import RunOptions
from mmseg_resnest.engine.training import train
from mmseg_resnest_cli.main import parser_of

NAME = "detection/faster_rcnn_resnest14_shapes"
LOADERS = ("train_dataloader", "val_dataloader")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data root with a few drawn shapes."""
    write_shapes(tmp_path / "data" / "shapes", 2, 1, progress=False)
    return tmp_path / "data"


def read(data: Path, *options: str) -> Config:
    return load_config(NAME, options, data)


def test_other_classes_in_validation_are_refused(data: Path, tmp_path: Path) -> None:
    file = data / "shapes/annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"].reverse()
    file.write_text(json.dumps(content))
    with raises_user_error("classes", "instances_val2017.json"):
        train(read(data), work_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_heads_have_the_classes_of_the_data(data: Path) -> None:
    key = "model.roi_head.bbox_head.num_classes"
    with advises("engine/detection.py:_check_heads", "set it to") as told:
        check_detection(read(data, f"{key}=80"), LOADERS)
    assert told.value.subject == f"config key {key}" and told.value.message.endswith("set it to 4")
    check_detection(read(data, f"{key}=4"), LOADERS)


def test_scores_are_of_the_same_file(data: Path, tmp_path: Path) -> None:
    other = write_shapes(tmp_path / "other", 2, 1, seed=1, progress=False)
    moved = read(data, f"data_root={other}")
    assert moved.val_evaluator.ann_file == f"{other}/annotations/instances_val2017.json"
    check_detection(moved, LOADERS)
    for loader in LOADERS:
        moved[loader].dataset.data_root = str(data / "shapes")
    with advises("engine/detection.py:_check_same_file", "name the same file") as told:
        check_detection(moved, LOADERS)
    assert told.value.code == "config-conflict"
    moved.val_evaluator.ann_file = str(tmp_path / "gone.json")
    with advises("engine/detection.py:_check_same_file", "does not exist; name the file"):
        check_detection(moved, LOADERS)
    moved.val_evaluator.ann_file = str(data / "shapes/annotations/instances_val2017.json")
    check_detection(moved, LOADERS)


def test_a_length_in_epochs_is_asked_of_data_that_are_there(tmp_path: Path) -> None:
    with raises_user_error("not-found", "shapes"):
        train(read(tmp_path), work_dir=tmp_path / "run", run=RunOptions(epochs=1))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_other_classes_is_not_tested(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "last.pth"

    def save(classes: Any) -> None:
        torch.save({"meta": {"dataset_meta": {"classes": classes}}, "state_dict": {}}, file)

    save([*SHAPES[::-1]])
    with advises("engine/detection.py:check_trained_classes", "as they were") as told:
        check_trained_classes(read(data), file)
    assert told.value.code == "classes" and "disc in place of cross" in told.value.message
    save([*SHAPES, "star"])
    with raises_user_error("classes"):
        check_trained_classes(read(data), file)
    save([*SHAPES])
    check_trained_classes(read(data), file)


def test_options_of_training_that_detectors_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmseg_resnest_cli import detect

    def run(*options: str) -> None:
        detect.run(parser_of("detect").parse_args(["train", NAME, *options]))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(detect, "_load", lambda args: 1 / 0)  # as far as it gets without them
    with raises_user_error("argument", "--teacher"):
        run("--teacher", "x")
    with advises("cli/detect.py:run_training", "--amp out"):
        run("--amp")
    with pytest.raises(ZeroDivisionError):
        run()
