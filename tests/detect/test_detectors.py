# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Detectors on the command line: what is missing is said; the page's code runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from PIL import Image

import mmseg_resnest
from mmseg_resnest.datasets.shapes import draw_shapes, write_shapes
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.model import build_model
from mmseg_resnest.models import ResNeSt
from mmseg_resnest.registry import MODELS, building

ROOT = Path(__file__).parents[2]
SHAPES = "configs/detection/faster_rcnn_resnest14_shapes.py"
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/detection.md").read_text(), re.DOTALL)


def detect(*words: object, without: str = "", root: Path) -> str:
    """What ``mmseg-resnest detect`` prints as its error where a module is not installed."""
    start = f"import sys; sys.modules[{without!r}] = None; " if without else ""
    start += "from mmseg_resnest_cli import main; main()"
    environment = {**os.environ, "MMSEG_RESNEST_DATA": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", start, "detect", *map(str, words)],
        capture_output=True, text=True, env=environment, cwd=root, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return said


@pytest.mark.parametrize(
    ("without", "code", "words"),
    [
        ("mmdet", "missing-package", ("mmdet", "mmseg-resnest[detect]")),
        ("mmcv._ext", "missing-package", ("compiled operators", "MMCV_WITH_OPS=1")),
        ("", "not-found", ("coco", "does not exist")),
    ],
)
def test_what_is_missing_is_said_before_anything_is_written(without, code, words, tmp_path):
    config = "configs/detection/faster_rcnn_resnest50_coco.py"
    said = detect("train", config, without=without, root=tmp_path)
    assert said.endswith(f"[{code}]") and all(word in said for word in words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lost", ["annotations/instances_train2017.json", "train2017"])
def test_a_part_of_coco_is_missing(lost, tmp_path):
    (tmp_path / "data").mkdir()
    folder = write_shapes(tmp_path / "data" / "shapes", 2, 2, progress=False)
    (folder / lost).rename(tmp_path / "lost")
    said = detect("train", SHAPES, root=tmp_path / "data")
    assert said.endswith("[not-found]") and lost in said
    assert not (tmp_path / "data" / "work_dirs").exists()


def test_a_config_that_is_no_detector_s(tmp_path):
    said = detect("train", "fcn_resnest14_scenes", root=tmp_path)
    assert said.endswith("[config-key]") and "configs/detection/" in said


# --- the page ------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the configs, a photo and random weights under the names of the page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MMSEG_RESNEST_DATA", raising=False)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    Image.fromarray(draw_shapes(0, 0)[0]).save("photo.jpg")
    run = "work_dirs/faster_rcnn_resnest14_shapes/last.pth"
    weights(load_config(SHAPES), run, ("disc", "square", "triangle", "cross"))
    return tmp_path


def weights(cfg: Config, name: str, classes: tuple[str, ...] = ()) -> None:
    """Random weights of a config's model as a checkpoint."""
    cfg.model.backbone.init_cfg = None
    meta = {"dataset_meta": {"classes": classes}}
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": build_model(cfg).state_dict(), "meta": meta}, name)


def block(*words: str) -> str:
    """The one code block of the page that holds these words."""
    (found,) = [text for text in BLOCKS if all(word in text for word in words)]
    return found


def test_a_config_for_data_of_one_s_own(place):
    write_shapes(place / "data" / "shapes", 2, 2, progress=False)
    (place / "my_detector.py").write_text(block("# my_detector.py"))
    cfg = load_config("my_detector.py")
    assert build_model(cfg).roi_head.bbox_head.fc_cls.out_features == 5
    with building("mmseg_resnest"):
        dataset = mmseg_resnest.datasets.build_dataset(cfg.train_dataloader.dataset)
    assert len(dataset) == 2 and len(dataset[0]["data_samples"].gt_instances.labels) > 0


def test_the_backbone_in_a_config_of_mmdetection(place):
    import mmdet

    theirs = Path(mmdet.__file__).parent / ".mim/configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
    (place / "own.py").write_text(f"_base_ = {str(theirs)!r}\n{block('custom_imports')}")
    cfg = Config.fromfile("own.py")
    with building(cfg.default_scope):
        model: Any = MODELS.build(cfg.model)
    assert cfg.default_scope == "mmdet" and type(model.backbone) is ResNeSt


def test_a_detector_in_python(place, capsys):
    exec(block("init_detector(", "zip("), {})
    assert "Traceback" not in capsys.readouterr().err


def test_one_photo_classified_searched_and_segmented(place, monkeypatch, capsys):
    script = block("ImageNetClassifier")
    assert len(script.strip().splitlines()) <= 20
    classifier = ResNeSt("resnest50", num_classes=1000).eval()
    monkeypatch.setattr("mmseg_resnest.inference.imagenet.load_classifier", lambda *_: classifier)
    weights(load_config("configs/detection/faster_rcnn_resnest50_coco.py"),
            "faster_rcnn_resnest50_coco.pth", tuple(map(str, range(80))))  # fmt: skip
    cfg = load_config("configs/fcn_resnest14_scenes.py")
    weights(cfg, "segmentor.pth")
    segmentor = mmseg_resnest.load_segmentor("configs/fcn_resnest14_scenes.py", "segmentor.pth")
    monkeypatch.setattr(mmseg_resnest, "load_segmentor", lambda name: segmentor)
    exec(script, {})
    said = capsys.readouterr().out
    assert re.search(r"class \d+ of ImageNet 0", said) and "objects [" in said
    assert Image.open("overlay.png").size == (160, 128)
