# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Exported files behave as their records say; what they must not do is in tests/security."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import blobs
from user_errors import raises_user_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.export import export_model
from mmseg_resnest.inference import Segmentor
from mmseg_resnest.inference.runtimes import RECORD_KEY


def test_trust_loads_them(pixel_model: Segmentor, tmp_path: Path) -> None:
    path = export_model(pixel_model, tmp_path / "model.torchscript")
    image = blobs(40, 50)
    other = load_segmentor(path, trust=True)
    assert (other(image).labels == pixel_model(image).labels).mean() > 0.999


@pytest.fixture(scope="module")
def exported(pixel_model: Segmentor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(pixel_model, tmp_path_factory.mktemp("exported") / "model.onnx")


def with_record(exported: Path, target: Path, **changes: object) -> Path:
    graph = onnx.load(exported)
    record = json.loads(next(p.value for p in graph.metadata_props if p.key == RECORD_KEY))
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, {RECORD_KEY: json.dumps(record | changes)})
    onnx.save(graph, target)
    return target


def test_outputs_and_inputs_are_those_of_the_record(exported: Path, tmp_path: Path) -> None:
    classes = dict(classes=list("abcde"), palette=[[0, 0, 0]] * 5, out_channels=5)
    path = with_record(exported, tmp_path / "five.onnx", **classes)
    with raises_user_error("model-output", path):
        load_segmentor(path)(blobs(20, 30))
    path = with_record(exported, tmp_path / "other.onnx", input="uint8", output="labels")
    with raises_user_error("format", path):
        load_segmentor(path)


def test_labels_are_classes_of_the_record(pixel_model: Segmentor, tmp_path: Path) -> None:
    whole = export_model(pixel_model, tmp_path / "whole.onnx", processing=True)
    classes = dict(classes=["a", "b"], palette=[[0, 0, 0]] * 2, out_channels=2)
    path = with_record(whole, tmp_path / "two.onnx", **classes)
    image = np.concatenate([blobs(60, 60, seed) for seed in range(4)])
    assert pixel_model(image).labels.max() > 1
    with raises_user_error("model-output", path):
        load_segmentor(path)(image)


def test_errors_of_the_runtime_name_the_file(exported: Path, tmp_path: Path) -> None:
    graph = onnx.load(exported)
    graph.graph.input[0].type.tensor_type.shape.dim[-1].dim_value = 7
    path = tmp_path / "narrow.onnx"
    onnx.save(graph, path)
    model = load_segmentor(path)
    with raises_user_error("model", path):
        model(blobs(40, 50))
