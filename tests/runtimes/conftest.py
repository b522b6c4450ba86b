# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A small model and pictures, and a cache of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "inference"))

from small_models import balanced, blobs, small_config

from mmseg_resnest import load_segmentor
from mmseg_resnest.inference import Segmentor


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, empty."""
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture
def small_segmentor() -> Segmentor:
    torch.manual_seed(1)
    return balanced(load_segmentor(small_config(), None, "cpu"))


@pytest.fixture
def pictures() -> list[NDArray[np.uint8]]:
    return [blobs(97, 133, 1), blobs(120, 88, 2)]
