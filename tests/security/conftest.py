# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A sandbox for each test; small valid files, made once, that tests turn into hostile ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path += [
    str(Path(__file__).resolve().parents[1] / folder)
    for folder in ("engine", "inference", "export", "datasets/prepare", "tools")
]

from sandbox import Sandbox
from small_models import balanced, small_config
from tiny_runs import make_runner

from mmseg_resnest import load_segmentor
from mmseg_resnest.export.files import export_onnx
from mmseg_resnest.export.publish import publish
from mmseg_resnest.inference import Segmentor


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """The working folder is that of the hostile files, and Python finds their modules."""
    made = Sandbox.make(tmp_path)
    monkeypatch.chdir(made.files)
    monkeypatch.syspath_prepend(made.files)
    return made


@pytest.fixture(scope="session")
def tiny_model() -> Segmentor:
    return balanced(load_segmentor(small_config(), None, "cpu"))


@pytest.fixture(scope="session")
def published(tiny_model: Segmentor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid published folder."""
    folder = tmp_path_factory.mktemp("published") / "model"
    publish(tiny_model, folder)
    return folder


@pytest.fixture(scope="session")
def exported(tiny_model: Segmentor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid ONNX file."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return export_onnx(tiny_model, tmp_path_factory.mktemp("exported") / "model.onnx")


@pytest.fixture(scope="session")
def training_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny run, at iteration 6 of 12."""
    folder = tmp_path_factory.mktemp("run")
    make_runner(folder, iterations=6).train()
    return folder / "iter_6.pth"
