# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Many classes that overlap: label maps of 16 bits, whole and in tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import blobs, small_config

from mmseg_resnest import load_segmentor
from mmseg_resnest.inference import MultilabelSegmentation
from mmseg_resnest.inference.files import FileJob
from mmseg_resnest.io.bit_planes import from_file


@pytest.mark.parametrize("classes", [9, 20])
def test_label_maps_of_16_bits(tmp_path: Path, classes: int) -> None:
    torch.manual_seed(0)
    cfg = small_config(classes=classes)
    cfg.model.update(multilabel=True)
    cfg.model.decode_head.loss_decode = dict(type="FocalLoss")
    model = load_segmentor(cfg, None, "cpu")
    images = {}
    for name, size in (("small", (60, 80)), ("large", (150, 170))):
        images[name] = tmp_path / f"{name}.png"
        Image.fromarray(blobs(*size)).save(images[name])
    chances = model(images["large"]).scores()
    model.model.test_cfg.thresholds = np.median(chances, axis=(1, 2)).tolist()
    kinds = ["labels", "overlay", "side", "coco"]
    job = FileJob(model, [*map(str, images.values())], tmp_path / "out", kinds, tile=96)
    assert job.run().done == 2
    for name, path in images.items():
        picture = Image.open(tmp_path / "out" / f"{name}.png")
        result = model(path, tile=96)
        assert isinstance(result, MultilabelSegmentation)
        assert picture.mode == "I;16"
        assert np.array_equal(from_file(np.asarray(picture), classes), result.labels)
        assert 0.1 < result.masks.mean() < 0.9
        assert len(np.unique(result.labels)) > 9
    assert result._repr_png_().startswith(b"\x89PNG")
    result.save(tmp_path / "saved.png")
    saved = np.asarray(Image.open(tmp_path / "saved.png"))
    assert np.array_equal(from_file(saved, classes), result.labels)
    assert {name: area.pixels for name, area in result.areas().items()} == {
        name: int(mask.sum()) for name, mask in zip(result.classes, result.masks, strict=True)
    }
