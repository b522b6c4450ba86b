# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Two tiny untrained models and a photo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from small_models import balanced, blobs, small_config

from mmseg_resnest import load_segmentor
from mmseg_resnest.inference import Segmentor


@pytest.fixture(scope="session")
def pixel_model() -> Segmentor:
    torch.manual_seed(1)
    return balanced(load_segmentor(small_config(pixel=True), None, "cpu"))


@pytest.fixture(scope="session")
def small_model() -> Segmentor:
    torch.manual_seed(1)
    return balanced(load_segmentor(small_config(), None, "cpu"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(blobs(40, 56)).save(path)
    return path
