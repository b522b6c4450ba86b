# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a test predicts is what every other way to give an image predicts, pixel by pixel."""

from __future__ import annotations

import copy
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import mmseg.datasets.transforms.loading as stack_loading
import numpy as np
import pytest
import torch
from loader_cases import FILE, World, evaluated, labels_of, write_alpha, write_deep_colours
from mmengine.config import Config
from PIL import Image
from small_models import blobs
from user_errors import raises_user_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.engine.browse import browse
from mmseg_resnest.inference.files import FileJob


def test_files_bytes_and_arrays(tested: World, tmp_path: Path) -> None:
    model, case = tested.model, tested.case
    assert len(tested.labels) == 3
    for path, expected in tested.labels.items():
        assert np.array_equal(model(path).labels, expected)
        found = model.reader.decode(Path(path).read_bytes(), f"http://host/a{case.suffix}")
        assert np.array_equal(model(found).labels, expected)
        assert model(path).image.shape == (*expected.shape, 3)
        assert np.array_equal(model(path).scores().argmax(0), expected)
        if case.arrays:
            loaded = model.reader.read(path).pixels
            colours = loaded.ndim == 3 and loaded.shape[2] == 3 and not model.reader.rgb
            array = loaded[:, :, ::-1].copy() if colours else loaded
            assert np.array_equal(model(array).labels, expected)
            three = array[:, :, None] if array.ndim == 2 else array
            assert np.array_equal(model(three).labels, expected)
            if array.dtype != np.float32 or not model.reader.eight_bit:
                tensor = torch.from_numpy(three.copy()).permute(2, 0, 1)
                assert np.array_equal(model(tensor).labels, expected)
                assert np.array_equal(model(tensor[None])[0].labels, expected)
    job = FileJob(model, list(tested.labels), tmp_path, ["labels", "overlay", "side"])
    assert (job.run().done, len(list(tmp_path.rglob("*.*")))) == (3, 10)
    for path, expected in tested.labels.items():
        assert np.array_equal(labels_of(tmp_path / f"{Path(path).stem}.png"), expected)


def test_pil_images(tested: World) -> None:
    # Pillow decodes JPEG to other greys than OpenCV, and 8 of 16 bits of a colour.
    if (
        tested.case.suffix == ".png"
        and not tested.case.own
        and tested.case.write is not write_deep_colours
    ):
        for path, expected in tested.labels.items():
            with Image.open(path) as image:
                if image.mode != "RGBA":
                    assert np.array_equal(tested.model(image).labels, expected)


@pytest.mark.parametrize("name", ["12 bits", "four channels", "grey"])
def test_tiles_of_files(world: Callable[[str], World], name: str, tmp_path: Path) -> None:
    tested = world(name)
    path = tmp_path / "large.png"
    tested.case.write(path, blobs(150, 130, seed=7))
    expected = tested.model(path, tile=64)
    assert len(np.unique(expected.labels)) > 1
    FileJob(tested.model, [str(path)], tmp_path / "out", ["labels", "side"], tile=64).run()
    assert np.array_equal(labels_of(tmp_path / "out" / "large.png"), expected.labels)


def test_arrays_that_the_loader_does_not_give(world: Callable[[str], World]) -> None:
    grey, deep = world("grey").model, world("12 bits").model
    colours, shape = blobs(40, 56), (40, 56)
    with raises_user_error("input", "image array"):
        grey(np.zeros(shape, np.uint16))
    with raises_user_error("image", "an image"):
        deep(colours)
    with raises_user_error("input", "image array"):
        deep(np.zeros(shape, bool))
    data = io.BytesIO()
    Image.fromarray(colours).save(data, "PNG")
    expected = grey(grey.reader.decode(data.getvalue(), "a.png")).labels
    for image in (colours, np.dstack([colours, colours[:, :, :1]]), Image.fromarray(colours)):
        assert np.array_equal(grey(image).labels, expected)


def test_channels_that_the_model_does_not_take(
    world: Callable[[str], World], tmp_path: Path
) -> None:
    colours = {"test_dataloader.dataset.pipeline": [
        dict(type=FILE), dict(type="LoadAnnotations"), dict(type="PackSegInputs"),
    ]}  # fmt: skip
    with raises_user_error("config-conflict", "model.backbone.in_channels"):
        evaluated(world("12 bits"), tmp_path, cfg=colours)
    cfg = copy.deepcopy(world("12 bits").cfg)
    cfg.merge_from_dict(colours)
    with raises_user_error("config-conflict", "model.backbone.in_channels"):
        load_segmentor(cfg, None, "cpu")
    tested = world("float")
    shutil.copytree(Path(next(iter(tested.labels))).parent, tmp_path / "images")
    write_alpha(tmp_path / "images" / "2.png", blobs(48, 56))
    mixed = copy.deepcopy(tested.cfg.test_dataloader.dataset)
    mixed.data_prefix.img_path = str(tmp_path / "images")
    mixed.pipeline[0].color_type = "unchanged"
    with raises_user_error("image", "2.png") as caught:  # not of all images
        evaluated(tested, tmp_path, cfg={"test_dataloader.dataset": mixed})
    assert "data_preprocessor.mean" in caught.value.message
    model = load_segmentor(
        Config(dict(tested.cfg, test_dataloader=dict(dataset=mixed))), None, "cpu"
    )
    with raises_user_error("image", "2.png"):
        model(tmp_path / "images" / "2.png")


def test_without_gdal(world: Callable[[str], World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_loading, "gdal", None)
    with raises_user_error("missing-package", "test_dataloader.dataset.pipeline"):
        load_segmentor(world("remote sensing").cfg, None, "cpu")
    with raises_user_error("missing-package", "test_dataloader.dataset.pipeline"):
        browse(world("remote sensing").cfg, "unused", "test")
