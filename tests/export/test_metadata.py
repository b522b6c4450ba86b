# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Exported files tell other programs how to use them; the page's example gives our labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_models import head_config
from PIL import Image
from small_models import balanced, blobs

from mmseg_resnest import load_segmentor
from mmseg_resnest.export import export_model
from mmseg_resnest.export.int8 import quantise
from mmseg_resnest.inference import Segmentor

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deployment.md"
BLOCKS = PAGE.read_text(encoding="utf-8").split("```python\n")[1:]
(EXAMPLE,) = (text.partition("```")[0] for text in BLOCKS if "custom_metadata_map" in text)
OPENCV = "x = np.float32(cv2.resize(np.asarray(image), scale))"
SIZES = ((97, 133), (64, 64), (51, 240), (300, 201))
KEYS = {
    "classes", "palette", "input", "output", "channel_order", "mean", "std", "resize", "pad",
    "align_corners", "threshold", "mode",
}  # fmt: skip


def model_of(resize: dict[str, Any] | None, corners: bool, bgr: bool = False) -> Segmentor:
    cfg = head_config("fcn")
    cfg.model.decode_head.align_corners = corners
    cfg.model.data_preprocessor.bgr_to_rgb = not bgr
    if resize is not None:
        cfg.test_dataloader.dataset.pipeline.insert(1, dict(type="Resize", **resize))
    return balanced(load_segmentor(cfg, None, "cpu"))


def about(file: Path) -> dict[str, Any]:
    props = {p.key: p.value for p in onnx.load(file).metadata_props}
    assert props.keys() == {"mmseg_resnest", *KEYS}
    return {key: json.loads(value) for key, value in props.items()}


CASES = {
    "as it is": (None, True, False),
    "into an edge": (dict(scale=(90, 90), keep_ratio=True, backend="pillow"), True, False),
    "into two edges": (dict(scale=(160, 70), keep_ratio=True, backend="pillow"), False, True),
    "to a size, by OpenCV": (dict(scale=(110, 72)), True, False),
    "by OpenCV": (dict(scale=(90, 60), keep_ratio=True), False, False),
}


@pytest.mark.parametrize("name", CASES)
def test_the_example_of_the_page_gives_our_labels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resize, corners, bgr = CASES[name]
    model = model_of(resize, corners, bgr)
    export_model(model, tmp_path / "model.onnx")
    exported = load_segmentor(tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    code = EXAMPLE
    if resize is not None and "backend" not in resize:
        assert OPENCV in PAGE.read_text(encoding="utf-8")
        line = "x = np.float32(image.resize(scale, Image.Resampling.BILINEAR))"
        assert line in code
        code = "import cv2\n" + code.replace(line, OPENCV)
    for number, size in enumerate(SIZES):
        image = Image.fromarray(blobs(*size, number))
        exif = image.getexif()
        exif[0x0112] = 6 if number == 0 else 1  # a camera that was turned
        image.save("photo.jpg", quality=95, exif=exif)
        found: dict[str, Any] = {}
        exec(code, found)
        result = model("photo.jpg")
        labels = result.labels
        assert len(np.unique(labels)) > 2
        np.testing.assert_array_equal(found["labels"], exported("photo.jpg").labels)
        # ONNX Runtime and PyTorch add in another order, which decides near ties.
        second, first = np.sort(result.scores(), axis=0)[-2:]
        clear = first - second > 1e-5
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(found["labels"][clear], labels[clear])
        assert found["about"]["classes"] == model.classes


def test_what_the_keys_say(tmp_path: Path, pictures: list) -> None:
    resize = dict(scale=(90, 60), keep_ratio=True, backend="pillow")
    model = model_of(resize, True, bgr=True)
    file = export_model(model, tmp_path / "model.onnx")
    found = about(file)
    assert found["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert found["std"] == pytest.approx([58.395, 57.12, 57.375])
    assert found["resize"] == {
        "scale": [90, 60], "keep_ratio": True, "interpolation": "bilinear", "library": "pillow",
        "antialias": True,
    }  # fmt: skip
    assert (found["channel_order"], found["align_corners"], found["mode"]) == ("BGR", True, "whole")
    assert found["palette"] == [list(colour) for colour in model.palette]
    assert (found["input"], found["output"], found["threshold"]) == ("float32", "logits", None)
    assert about(quantise(file, tmp_path / "small.onnx", pictures)) == found
    whole = about(export_model(model, tmp_path / "whole.onnx", processing=True))
    assert (whole["input"], whole["output"]) == ("uint8", "labels")
    assert whole["mean"] == found["mean"] and whole["resize"] == found["resize"]


@pytest.mark.parametrize("suffix", [".torchscript", pytest.param(".pt2", marks=pytest.mark.long)])
def test_programs_have_the_same_keys(suffix: str, tmp_path: Path) -> None:
    model = model_of(None, True)
    expected = about(export_model(model, tmp_path / "a.onnx"))
    file, texts = export_model(model, tmp_path / f"a{suffix}"), dict.fromkeys(expected, "")
    if suffix == ".pt2":
        torch.export.load(file, extra_files=texts)
    else:
        torch.jit.load(file, _extra_files=texts)
    assert {key: json.loads(text) for key, text in texts.items()} == expected


def test_steps_that_are_no_resizing_are_told(tmp_path: Path) -> None:
    cfg = head_config("fcn")
    step = dict(type="Resize", scale_factor=0.5)
    cfg.test_dataloader.dataset.pipeline.insert(1, step)
    file = export_model(balanced(load_segmentor(cfg, None, "cpu")), tmp_path / "model.onnx")
    assert about(file)["resize"] == {"steps": [step]}
