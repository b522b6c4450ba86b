# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the errors of predicting and serving tell people to do is done, and then it works."""

from __future__ import annotations

import resource
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from advice import advises, helps
from PIL import Image
from small_models import blobs, small_config
from user_errors import raises_user_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.apps import server
from mmseg_resnest.apps.connections import ConnectionLimits, _room
from mmseg_resnest.export import export_model
from mmseg_resnest.inference.faults import image_error
from mmseg_resnest.inference.files import FileJob, plan_outputs
from mmseg_resnest.inference.images import find_images, find_inputs
from mmseg_resnest.inference.result import class_indices
from mmseg_resnest.inference.video import _make_room
from mmseg_resnest.io.up_to_date import Journal


def test_a_config_needs_weights(tmp_path: Path) -> None:
    cfg, config = small_config(True), tmp_path / "small.py"
    cfg.dump(config)
    weights = tmp_path / "small.pth"
    torch.save(load_segmentor(cfg, weights=None, device="cpu").model.state_dict(), weights)
    for named in (cfg, config, str(config)):
        with advises("inference/load.py:_load", "name a checkpoint", "weights=None"):
            load_segmentor(named, device="cpu")
        assert load_segmentor(named, weights, device="cpu").classes
        assert load_segmentor(named, weights=None, device="cpu").classes
    with raises_user_error("not-found", "gone.py"):
        load_segmentor(tmp_path / "gone.py")
    for name in ("fcn_resnest14_scenes", "configs/fcn_resnest14_scenes.py"):  # of the package
        with raises_user_error("argument-missing", "fcn_resnest14_scenes"):
            load_segmentor(name)
    with raises_user_error("not-found", "fcn_resnest14_scene"):
        load_segmentor("fcn_resnest14_scene")


def test_files_that_are_read(tmp_path: Path) -> None:
    model = load_segmentor(small_config(True), None, "cpu")
    path = tmp_path / "a.png"
    Image.fromarray(blobs(32, 32)).save(path)
    text = path.open("r", encoding="latin-1", newline="")
    with text, advises("io/image_sources.py:read_bytes", "open it with mode 'rb'"):
        model(text)
    with path.open("rb") as file:
        file.read()
        with advises("io/image_sources.py:read_bytes", "call its seek(0)"):
            model(file)
        file.seek(0)
        assert model(file).path == str(path)


def test_where_outputs_go(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    with advises("inference/files.py:plan_outputs", "name another folder"):
        plan_outputs([str(image)], tmp_path, ["labels"])
    plan_outputs([str(image)], tmp_path / "o", ["labels"])
    (tmp_path / "000001.png").touch()
    journal = Journal(tmp_path / "journal")
    with advises("inference/video.py:_make_room", "name another folder"):
        _make_room(tmp_path, journal, "v.mp4")
    _make_room(tmp_path / "other", journal, "v.mp4")


def test_which_images(tmp_path: Path) -> None:
    Image.fromarray(blobs(32, 32)).save(tmp_path / "a.png")
    with advises("inference/images.py:find_images", "name an image file or a folder"):
        find_images(tmp_path / "gone")
    with advises("inference/images.py:find_inputs", "name an image file or a folder"):
        find_inputs(str(tmp_path / "gone.png"))
    assert find_images(tmp_path)[0] and find_inputs(str(tmp_path / "a.png"))[0]
    assert find_inputs(str(tmp_path))[0]


def test_kinds_of_outputs(tmp_path: Path) -> None:
    many = load_segmentor(small_config(True, classes=300), None, "cpu")
    with advises("inference/files.py:__init__", "choose geojson or coco"):
        FileJob(many, ["a.png"], tmp_path, ["labels"])
    for kind in ("geojson", "coco"):
        FileJob(many, ["a.png"], tmp_path, [kind])
    few = load_segmentor(small_config(True), None, "cpu")
    with advises("inference/files.py:__init__", "choose from") as told:
        FileJob(few, ["a.png"], tmp_path, ["lables"])
    FileJob(few, ["a.png"], tmp_path, told.value.message.partition("choose from ")[2].split(", "))
    with advises("inference/result.py:class_indices", "choose from") as told:
        class_indices("cat", few.classes)
    known = told.value.message.partition("choose from ")[2].split(", ")
    assert class_indices(known, few.classes) == [0, 1, 2, 3]


def test_channels_of_images() -> None:
    cfg = small_config()
    load, backbone = cfg.test_dataloader.dataset.pipeline[0], cfg.model.backbone
    backbone.in_channels = 1
    with advises("datasets/channels.py:conflict", "color_type", "in_channels"):
        load_segmentor(cfg, None, "cpu")
    backbone.in_channels = 3
    load_segmentor(cfg, None, "cpu")
    backbone.in_channels = 1
    load.color_type = "grayscale"
    cfg.model.data_preprocessor.update(mean=[0.0], std=[1.0], bgr_to_rgb=False)
    load_segmentor(cfg, None, "cpu")


def test_images_that_take_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_segmentor(small_config(True), None, "cpu")
    compute = model._run

    def run(samples: Any, scores: bool) -> Any:  # a small memory
        if any(sample["inputs"].numel() > 3 * 100 * 100 for sample in samples):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(samples, scores=scores)

    monkeypatch.setattr(model, "_run", run)
    image = blobs(128, 160)

    def predict(pixels: np.ndarray, tile: int | None = None) -> Any:
        try:
            return model(pixels, tile=tile).labels if tile else model(pixels).labels
        except Exception as error:
            raise image_error(error, "a.png", "the network failed") from error

    with advises("inference/faults.py:image_error", "make it smaller", "use smaller tiles"):
        predict(image)
    predict(image[:64, :64])
    predict(image, 64)


def test_exported_models(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = load_segmentor(small_config(True), None, "cpu")
    whole = export_model(model, tmp_path / "whole.onnx", processing=True)
    with advises("inference/runtimes.py:require_scores", "without --processing"):
        load_segmentor(str(whole))(blobs(32, 32)).scores()
    plain = export_model(model, tmp_path / "plain.onnx")
    assert load_segmentor(str(plain))(blobs(32, 32)).scores() is not None
    import onnx

    bare = onnx.load(plain)
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    with advises("inference/runtimes.py:load_exported", "mmseg-resnest export-onnx writes one"):
        load_segmentor(str(tmp_path / "bare.onnx"))


# --- services --------------------------------------------------------------------------------


def test_open_files_of_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(40, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    helps("apps/connections.py:_room", "ulimit -n 1024",
          call=_room, remedy=lambda: limits.append((1024, 4096)))  # fmt: skip


def test_ports_that_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(server.uvicorn.Server, "run", lambda *_, **__: started.append("it"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        def serve(port: int) -> None:
            server.run(None, "127.0.0.1", port, ConnectionLimits(), lambda *_: None)

        with advises("apps/server.py:run", "another --port", "or 0"):
            serve(taken.getsockname()[1])
        serve(0)
    assert started
