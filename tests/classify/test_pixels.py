# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The test pipeline cuts and resizes as the published evaluation does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmseg_resnest.datasets.imagenet import centre_crop
from mmseg_resnest.datasets.reader import ImageReader
from mmseg_resnest.engine.classification import load_classification
from mmseg_resnest.registry import building


@pytest.mark.parametrize(
    ("name", "size"), [("resnest50", 224), ("resnest101", 256), ("resnest269", 416)]
)
def test_pixels_of_the_test_pipeline(name: str, size: int, tmp_path: Path) -> None:
    cfg = load_classification(f"classification/{name}_imagenet", splits=())
    with building("mmseg_resnest"):
        reader = ImageReader.of(cfg.test_dataloader.dataset, "test_dataloader.dataset")
    random = np.random.RandomState(0)
    # MMPretrain rounds the square's edge down, so that it may lack a last row and column: not here.
    for width, height in ((500, 375), (360, 480)):
        image = Image.fromarray(random.randint(0, 256, (height, width, 3)).astype(np.uint8))
        image.save(tmp_path / "a.png")
        found = reader.prepare(reader.read(tmp_path / "a.png"))["inputs"].numpy()
        wanted = np.asarray(centre_crop(image, size, "published"))
        assert np.array_equal(found[::-1].transpose(1, 2, 0), wanted), (width, height)
