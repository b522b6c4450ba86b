# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Data sets of images of bands: their config goes with the bands that are asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from custom_sets import build, custom, masks
from tiny_archives import labels_of, png_of, write_folder
from user_errors import raises_user_error

from mmseg_resnest.datasets.prepare import custom as prepare_module
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.io.bands import BandOptions


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """Six images of four bands, their masks, and the options that name them."""
    (tmp_path / "images").mkdir()
    for n in range(6):
        bands = np.random.default_rng(n).normal([5, 50, 500, 5000], 2, (6, 8, 4))
        np.save(tmp_path / f"images/{'abcdef'[n]}.npy", bands.astype(np.float32))
        write_folder(tmp_path / "labels", {f"{'abcdef'[n]}.png": png_of(labels_of(n, 3))})
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    return masks(tmp_path)


def _means(config: Path | None) -> list[float]:
    return load_config(config).model.data_preprocessor.mean


def test_other_bands_without_their_config(tmp_path: Path, options: dict[str, Any]) -> None:
    report = custom(tmp_path, **options)
    assert report.config is not None
    np.testing.assert_allclose(_means(report.config), [5, 50, 500, 5000], atol=0.5)
    report.config.unlink()
    again = custom(tmp_path, **options, bands=BandOptions(bands=(4, 2)))
    assert not again.unchanged
    np.testing.assert_allclose(_means(again.config), [5000, 50], atol=0.5)
    assert custom(tmp_path, **options, bands=BandOptions(bands=(4, 2))).unchanged


@pytest.mark.parametrize("multilabel", [False, True])
def test_what_is_padded_has_the_means(
    tmp_path: Path, options: dict[str, Any], multilabel: bool
) -> None:
    """Black would be 28 deviations away from the mean of 500."""
    if multilabel:
        for file in list((tmp_path / "labels").iterdir()):
            write_folder(tmp_path / "masks/a", {file.name: file.read_bytes()})
        options = {**options, "form": "masks", "sources": (tmp_path / "masks",), "classes": None}
    report = custom(tmp_path, inherits="fcn_resnest14_camvid", **options, multilabel=multilabel)
    cfg = load_config(report.config)
    steps = cfg.train_dataloader.dataset.pipeline
    pads = [step for step in steps if step.type == "Pad"]
    assert [pad.pad_val for pad in pads] == [dict(img=_means(report.config), seg=255)]
    cfg.train_dataloader.dataset.pipeline = [*steps[: steps.index(pads[0]) + 1]]
    pads[0].size = (1000, 900)
    image = build(cfg)[0]["img"]
    np.testing.assert_allclose(image[-1, -1], _means(report.config), rtol=1e-5)


def test_a_run_that_ends_once_the_config_is_written(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module.Outputs, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            custom(tmp_path, **options)
    written = (tmp_path / "configs/mine.py").read_bytes()
    report = custom(tmp_path, **options)  # not: it was changed by hand
    assert report.config is not None and report.config.read_bytes() == written


@pytest.mark.parametrize("shape", [(), (8,), (1, 6, 8, 4), (0, 8, 4)], ids=str)
def test_arrays_that_are_no_images(
    tmp_path: Path, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    np.save(tmp_path / "images/a.npy", np.zeros(shape, np.float32))
    with raises_user_error("image", "a.npy"):
        custom(tmp_path, **options)


@pytest.mark.parametrize(("shape", "layout"), [((6, 8, 12), "HWC"), ((12, 6, 8), "CHW")])
def test_more_bands_than_rows(
    tmp_path: Path, options: dict[str, Any], shape: tuple[int, ...], layout: str
) -> None:
    for name in "abcdef":
        np.save(tmp_path / f"images/{name}.npy", np.random.default_rng(0).normal(0, 1, shape))
    bands = BandOptions(layout=layout)
    assert len(_means(custom(tmp_path, **options, bands=bands).config)) == 12
    square = [[0, 0], [4, 0], [4, 4]]
    shapes = [dict(label=label, points=square) for label in "ab"]
    for name in "abcdef":
        data = dict(shapes=shapes, imagePath=f"{name}.npy", imageHeight=6, imageWidth=8)
        write_folder(tmp_path / "lm", {f"{name}.json": json.dumps(data).encode()})
    labelme: dict[str, Any] = dict(form="labelme", sources=(tmp_path / "lm",))
    labelme |= dict(images=tmp_path / "images", bands=bands, multilabel=True, force=True)
    assert len(_means(custom(tmp_path, **labelme).config)) == 12
    other = BandOptions(layout="CHW" if layout == "HWC" else "HWC")
    with raises_user_error("size-mismatch", ".npy"):
        custom(tmp_path, **{**options, "bands": other}, root="other", force=True)
