# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the errors of exporting and publishing tell people to do is done, and then it works."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import pytest
from advice import advises
from mmengine.config import Config
from numpy.typing import NDArray
from PIL import Image
from small_models import balanced, small_config

from mmseg_resnest import load_segmentor
from mmseg_resnest.export import export_model
from mmseg_resnest.export.check import check_images, compare, images_of_test
from mmseg_resnest.export.int8 import quantise
from mmseg_resnest.export.network import ExportNetwork, make_record
from mmseg_resnest.export.publish import publish, read_results
from mmseg_resnest.inference import Segmentor

Pictures = list[NDArray[np.uint8]]


def model_of(change: dict[str, Any], *steps: dict[str, Any], **loader: Any) -> Segmentor:
    """A small model of a changed config and pipeline."""
    cfg = small_config()
    cfg.merge_from_dict(change)
    load = {"type": "LoadImageFromFile", **loader}
    cfg.test_dataloader.dataset.pipeline = [load, *steps, dict(type="PackSegInputs")]
    return load_segmentor(cfg, None, "cpu")


RESIZE = dict(type="Resize", scale=(64, 64))
FLIP = dict(type="RandomFlip", prob=0.0)


def test_files_with_processing() -> None:
    slide = dict(mode="slide", crop_size=(32, 32), stride=(16, 16))
    sliding = model_of({"model.test_cfg": slide})
    with advises("export/network.py:_take_preprocessor", "without it", "test_cfg.mode=whole"):
        ExportNetwork(sliding, True)
    ExportNetwork(sliding, False)
    ExportNetwork(model_of({"model.test_cfg": dict(slide, mode="whole")}), True)
    padding = model_of({"model.data_preprocessor.test_cfg": dict(size=(64, 64))})
    with advises("export/network.py:_take_preprocessor", "it pads images", "without it"):
        ExportNetwork(padding, True)
    ExportNetwork(padding, False)
    flipping = model_of({}, FLIP)
    with advises("export/network.py:_resize_step", "without it, or remove the step"):
        ExportNetwork(flipping, True)
    ExportNetwork(flipping, False)
    ExportNetwork(model_of({}, RESIZE), True)
    deep = model_of({}, RESIZE, to_float32=True)
    with advises("export/network.py:_check_reading", "export without it"):
        ExportNetwork(deep, True)
    ExportNetwork(deep, False)


def test_libraries_that_resize_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of({}, RESIZE)
    resize = mmcv.imresize
    monkeypatch.setattr(mmcv, "imresize", lambda *args, **how: resize(*args, **how) // 2)
    with advises("export/network.py:_resize_step", "OpenCV does not resize here", "without it"):
        ExportNetwork(model, True)
    ExportNetwork(model, False)


def test_a_network_that_fixes_its_sizes(
    small_segmentor: Segmentor, pictures: Pictures, tmp_path: Path
) -> None:
    """The words are of the export, not of ONNX Runtime."""
    other = load_segmentor(export_model(small_segmentor, tmp_path / "a.onnx"))
    run = other.model.run
    other.model.run = lambda images: run(images[:, :2])
    with advises("export/check.py:_of_exported", "publish-model"):
        compare(small_segmentor, other, pictures)
    publish(small_segmentor, tmp_path / "a")
    assert compare(small_segmentor, load_segmentor(tmp_path / "a", device="cpu"), pictures).good


def test_programs_with_processing(tmp_path: Path) -> None:
    model = balanced(model_of({}, RESIZE))
    with advises("export/files.py:export_model", "export .pt2 without it"):
        export_model(model, tmp_path / "a.pt2", processing=True)
    assert ExportNetwork(model, False).resize is None  # which test_torch_formats exports


def test_parts_of_others(small_segmentor: Segmentor) -> None:
    with advises("export/network.py:make_record", "remove it"):
        make_record(model_of({}, FLIP), False)
    make_record(small_segmentor, False)


def test_images_to_check_on(small_segmentor: Segmentor, pictures: Pictures, tmp_path: Path) -> None:
    dataset = dict(
        type="BaseSegDataset", data_root="nowhere", data_prefix=dict(img_path="images"),
        metainfo=dict(classes=("a",)),
        pipeline=[dict(type="LoadImageFromFile"), dict(type="PackSegInputs")],
    )  # fmt: skip
    cfg = Config(dict(default_scope="mmseg_resnest", test_dataloader=dict(dataset=dataset)))
    with advises("export/check.py:check_images", "--images"):
        check_images(cfg)
    (tmp_path / "images").mkdir()
    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    Image.fromarray(pictures[0]).save(tmp_path / "images" / "a.jpg")
    with advises("export/check.py:images_of_test", "name the config and the checkpoint"):
        images_of_test(small_segmentor.cfg)  # as that of a published folder
    cfg.test_dataloader.dataset.data_root = str(tmp_path)
    assert len(images_of_test(cfg)) == 1
    with advises("export/check.py:images_of_test", "has no labels", "export without --int8"):
        images_of_test(cfg, labelled=True)
    assert check_images(cfg, str(tmp_path / "*.png")) == [str(tmp_path / "a.png")]
    with advises("export/check.py:compare", "give at least one"):
        compare(small_segmentor, small_segmentor, [])
    assert compare(small_segmentor, small_segmentor, pictures[:1]).good


def test_quantised_files(small_segmentor: Segmentor, pictures: Pictures, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    source = export_model(small_segmentor, tmp_path / "a.onnx")
    with advises("export/int8.py:quantise", "end the name in .onnx"):
        quantise(source, tmp_path / "b.xml", pictures[:1])
    with advises("export/int8.py:quantise", "give at least one image"):
        quantise(source, tmp_path / "b.onnx", [])
    assert quantise(source, tmp_path / "b.onnx", pictures[:1])


def test_published_folders(small_segmentor: Segmentor, tmp_path: Path) -> None:
    publish(small_segmentor, tmp_path / "a")
    with advises("export/publish.py:publish", "another name", "--force"):
        publish(small_segmentor, tmp_path / "a")
    publish(small_segmentor, tmp_path / "a", force=True)
    publish(small_segmentor, tmp_path / "b")
    weights = tmp_path / "a/model.safetensors"
    kept = shutil.move(weights, tmp_path / "kept")
    with advises("inference/published.py:load_published", "copy the published folder completely"):
        load_segmentor(tmp_path / "a")
    shutil.move(kept, weights)
    load_segmentor(tmp_path / "a")


def test_scores_to_publish(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text('{"task": "test", "mIoU": 50.0}')
    with advises("export/publish.py:read_results", "that mmseg-resnest test wrote"):
        read_results(file)
    file.write_text('{"task": "test", "mIoU": 50.0, "classes": [{"name": "a", "IoU": 1.0}]}')
    assert read_results(file)["mIoU"] == 50
