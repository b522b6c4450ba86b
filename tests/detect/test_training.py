# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Real training: a detector from random weights to 50 box AP (`make train-shapes`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmseg_resnest.datasets.shapes import write_shapes
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.training import train

CONFIG = Path(__file__).parents[2] / "configs" / "detection" / "faster_rcnn_resnest14_shapes.py"


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_faster_rcnn_learns_the_shapes(tmp_path):
    write_shapes(tmp_path / "shapes", progress=False)
    summary = train(load_config(CONFIG, data_root=tmp_path), work_dir=tmp_path / "run")
    assert summary["scores"]["coco/bbox_mAP"] >= 0.5
