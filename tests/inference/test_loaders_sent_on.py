# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Each loader in published folders, exported files and services: the labels of the test."""

from __future__ import annotations

import base64
import copy
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from advice import advises
from loader_cases import CASES, PILLOW, World
from own_loader import ReadHalf
from PIL import Image
from starlette.testclient import TestClient
from user_errors import raises_user_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.apps import demo, serving
from mmseg_resnest.datasets.file_loading import decoded_by, received
from mmseg_resnest.export import compare, export_model
from mmseg_resnest.export.publish import check_loads_back, publish
from mmseg_resnest.io import decode_worker
from mmseg_resnest.registry import TRANSFORMS

OFTEN = (
    *("default", "jpeg", "stock class", "grey for three means", "12 bits", "four channels"),
    *("bands", "chosen bands", "npy", "volume", "own"),
)


@pytest.mark.parametrize(
    "tested",
    [pytest.param(name, marks=() if name in OFTEN else pytest.mark.long) for name in CASES],
    indirect=True,
)
def test_published_and_exported(tested: World, tmp_path: Path) -> None:
    model, case = tested.model, tested.case
    if not case.published:  # another step is of somebody's own
        with raises_user_error("export", "test_dataloader.dataset.pipeline"):
            publish(model, tmp_path / "published")
        with raises_user_error("export", "test_dataloader.dataset.pipeline"):
            export_model(model, tmp_path / "model.torchscript")
        return
    publish(model, tmp_path / "published")
    check_loads_back(model, tmp_path / "published")
    export_model(model, tmp_path / "model.torchscript")
    others = [
        load_segmentor(tmp_path / "published", device="cpu"),
        load_segmentor(tmp_path / "model.torchscript", trust=True),
    ]
    resized = [step for step in case.steps if step != PILLOW]
    one_for_three = case is CASES["grey for three means"]
    if model.reader.eight_bit and not resized and not one_for_three:
        export_model(model, tmp_path / "whole.torchscript", processing=True)
        others.append(load_segmentor(tmp_path / "whole.torchscript", trust=True))
    else:
        with raises_user_error("export", "test_dataloader.dataset.pipeline"):
            export_model(model, tmp_path / "whole.torchscript", processing=True)
    for other in others:
        if case.own:
            path, expected = next(iter(tested.labels.items()))
            pixels = model.reader.read(path).pixels
            assert np.array_equal(other(pixels[:, :, ::-1]).labels, expected)
            with advises("datasets/transforms/loading.py:transform", "give the array", "config"):
                other(path)
            with advises("datasets/file_loading.py:decoded_by", "serve the config"):
                serving.create_app(other)
            serving.create_app(model)
            continue
        assert compare(model, other, list(tested.labels)[:1]).good
        # A file that resizes as well rounds scores in another order.
        allowed = 1e-3 if case.steps and getattr(other.model, "gives_labels", False) else 0
        for path, expected in tested.labels.items():
            assert (other(path).labels != expected).mean() <= allowed
    publish(others[0], tmp_path / "again")  # carries the loader on


@pytest.mark.parametrize("name", ["12 bits", "chosen bands"])
def test_onnx(world: Callable[[str], World], name: str, tmp_path: Path) -> None:
    tested = world(name)
    export_model(tested.model, tmp_path / "model.onnx")
    other = load_segmentor(tmp_path / "model.onnx")
    for path, expected in tested.labels.items():
        assert np.array_equal(other(path).labels, expected)


@pytest.mark.parametrize("name", ["grey", "12 bits", "bands", "chosen bands"])
def test_served(world: Callable[[str], World], name: str) -> None:
    tested = world(name)
    with TestClient(serving.create_app(tested.model)) as client:
        for path, expected in tested.labels.items():
            answer = client.post("/predict", content=Path(path).read_bytes())
            assert answer.status_code == 200, answer.text
            with Image.open(io.BytesIO(answer.content)) as labels:
                assert np.array_equal(np.asarray(labels), expected)
            overlay = client.post("/predict?output=overlay", content=Path(path).read_bytes())
            assert overlay.status_code == 200


def test_shown_on_the_page(world: Callable[[str], World]) -> None:
    names = ("12 bits", "grey", "default")
    choices = [demo.Choice(name, lambda name=name: world(name).model) for name in names]
    with TestClient(demo.create_app(choices)) as client:
        for name in names:  # each reads in its way
            for path, expected in world(name).labels.items():
                data = Path(path).read_bytes()
                answer = client.post("/segment", params={"model": name}, content=data).json()
                picture = base64.b64decode(answer["labels"].partition(",")[2])
                with Image.open(io.BytesIO(picture)) as labels:
                    assert np.array_equal(np.asarray(labels)[:, :, 0], expected)


@pytest.mark.parametrize("steps", [
    [dict(type="LoadBiomedicalImageFromFile", decode_backend="pickle"), dict(type="MiddleSlice")],
    [dict(type="LoadHere")],
])  # fmt: skip
def test_loaders_that_no_service_can_run(
    world: Callable[[str], World], steps: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReadHalf, "__module__", "own_loader")
    here = type("LoadHere", (ReadHalf,), {"__module__": "__main__"})
    TRANSFORMS.register_module(name="LoadHere", module=here, force=True)
    cfg = copy.deepcopy(world("own").cfg)
    cfg.test_dataloader.dataset.pipeline = [*steps, dict(type="PackSegInputs")]
    model = load_segmentor(cfg, None, "cpu")
    with advises("datasets/file_loading.py:refused", "use predict"):
        serving.create_app(model)
    if len(steps) == 1:
        path, expected = next(iter(world("own").labels.items()))
        model.model.load_state_dict(world("own").model.model.state_dict())
        assert np.array_equal(model(path).labels, expected)


@pytest.mark.parametrize("name", ["npy", "remote sensing", "volume", "own"])
def test_bytes_for_a_loader_in_another_process(
    world: Callable[[str], World], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What that process does, here; paths of modules are those that it was sent."""
    tested = world(name)
    flag, kind = decoded_by(tested.model.reader).as_bytes()
    assert kind == b"pickle"
    monkeypatch.setattr(sys, "path", [])
    function = decode_worker._function(flag.decode())
    for path, expected in tested.labels.items():
        pixels, facts = function(Path(path).read_bytes())
        image = received(tested.model.reader, (pixels, json.loads(json.dumps(facts))))
        assert np.array_equal(tested.model(image).labels, expected)
    assert facts.get("said") == ("half" if name == "own" else None)


@pytest.mark.long
def test_a_loader_that_reads_files_is_served(world: Callable[[str], World]) -> None:
    tested, program = world("own"), io.BytesIO()
    np.save(program, np.array([print], object))
    with TestClient(serving.create_app(tested.model)) as client:
        for path, expected in tested.labels.items():
            answer = client.post("/predict", content=Path(path).read_bytes())
            with Image.open(io.BytesIO(answer.content)) as labels:
                assert np.array_equal(np.asarray(labels), expected)
        for data in (program.getvalue(), b"no image", b""):
            answer = client.post("/predict", content=data)
            assert answer.status_code == 400, answer.text
            assert "/" not in answer.json()["detail"]  # no names of this machine
        assert "program" in client.post("/predict", content=program.getvalue()).text
        assert not [*Path("/dev/shm").glob("decode_*/*/*")]
