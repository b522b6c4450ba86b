# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Two tiny untrained models and a photo; a model for each loader."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import mmseg.datasets.transforms.loading as stack_loading
import pytest
import torch
from loader_cases import CASES, Gdal, World, make_world
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


@pytest.fixture
def gdal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_loading, "gdal", Gdal(), raising=False)


@pytest.fixture(scope="session")
def made_world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    @cache
    def made(name: str) -> World:
        return make_world(CASES[name], tmp_path_factory.mktemp("data"))

    return made


@pytest.fixture
def world(gdal: None, made_world: Callable[[str], World]) -> Callable[[str], World]:
    """The model of a loader in :data:`CASES`, by its name, and its labels."""
    return made_world


@pytest.fixture(params=CASES)
def tested(request: pytest.FixtureRequest, world: Callable[[str], World]) -> World:
    return world(request.param)
