# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Uncertainty against a second implementation: of results, of files, whole and in tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from small_models import blobs, small_config
from user_errors import raises_user_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.evaluation.uncertainty import uncertainty_of
from mmseg_resnest.export import export_model
from mmseg_resnest.inference import Segmentation, Segmentor
from mmseg_resnest.inference.files import FileJob


def entropy(scores: NDArray, overlap: bool = False) -> NDArray:
    values = torch.from_numpy(scores.astype(np.float64)).clamp(1e-300, 1)
    if overlap:
        return torch.distributions.Bernoulli(values).entropy().mean(0).numpy() / np.log(2)
    return torch.distributions.Categorical(values.moveaxis(0, -1)).entropy().numpy() / np.log(
        len(scores)
    )


def test_the_ends_of_the_scale_and_what_is_between() -> None:
    sure, even = np.eye(5)[:, :3], np.full((5, 3), 0.2)
    two = np.array([[0.5], [0.5], [0], [0], [0]])
    for kind in ("entropy", "margin"):
        assert np.allclose(uncertainty_of(sure, kind), 0)
        assert np.allclose(uncertainty_of(even, kind), 1)
    assert uncertainty_of(two, "entropy")[0] == pytest.approx(np.log(2) / np.log(5))
    assert uncertainty_of(two, "margin")[0] == 1
    assert uncertainty_of(np.array([[0.7], [0.2], [0.1]]), "margin")[0] == pytest.approx(0.5)
    masks = np.array([[0.9, 0.5], [0.3, 1.0]])
    assert np.allclose(uncertainty_of(masks, "margin", overlap=True), [0.6, 1])
    assert np.allclose(uncertainty_of(masks, overlap=True), entropy(masks, True))
    assert uncertainty_of(masks, overlap=True)[1] == pytest.approx(0.5)
    assert np.array_equal(uncertainty_of(np.ones((1, 2, 2))), np.zeros((2, 2)))
    with raises_user_error("argument", "uncertainty"):
        uncertainty_of(sure, "variance")


def test_of_a_result(pixel_model: Segmentor, photo: Path) -> None:
    result = pixel_model(photo)
    scores = np.sort(result.scores(), axis=0)
    found = result.uncertainty()
    assert found.shape == (40, 56) and found.dtype == np.float32
    np.testing.assert_allclose(found, entropy(scores), atol=1e-5)
    np.testing.assert_allclose(result.uncertainty("margin"), 1 - scores[-1] + scores[-2], atol=1e-6)
    large = blobs(150, 170)
    whole, cut = (pixel_model(large, tile=edge).uncertainty() for edge in (0, 96))
    np.testing.assert_allclose(whole, cut, atol=1e-5)
    with raises_user_error("argument", "uncertainty"):
        result.uncertainty("variance")
    bare = Segmentation(result.labels, result.image, result.classes, result.palette)
    with raises_user_error("input", "uncertainty"):
        bare.uncertainty()


@pytest.mark.parametrize("overlap", [False, True])
def test_files(overlap: bool, tmp_path: Path) -> None:
    cfg = small_config(pixel=True)
    if overlap:
        cfg.model.multilabel = True
        cfg.model.decode_head.loss_decode = dict(type="FocalLoss")
    torch.manual_seed(2)
    model = load_segmentor(cfg, None, "cpu")
    paths = {name: tmp_path / f"{name}.png" for name in ("small", "large")}
    for name, size in (("small", (40, 60)), ("large", (150, 170))):
        Image.fromarray(blobs(*size)).save(paths[name])
    out = tmp_path / "out"
    images = [str(path) for path in paths.values()]
    job = FileJob(model, images, out, ["labels", "uncertainty"], tile=96)
    assert job.run().done == 2
    for name, path in paths.items():
        picture = Image.open(out / f"{name}_uncertainty.png")
        expected = 255 * entropy(model(path, tile=0).scores(), overlap)
        assert picture.mode == "L" and picture.size == Image.open(path).size
        assert np.abs(np.asarray(picture) - expected).max() <= 0.51
        assert expected.max() - expected.min() > 20
    assert FileJob(model, images, out, ["uncertainty"], tile=96).run().skipped == 2


def test_exported_models(pixel_model: Segmentor, photo: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    plain = load_segmentor(str(export_model(pixel_model, tmp_path / "plain.onnx")))
    expected = pixel_model(photo).uncertainty()
    np.testing.assert_allclose(plain(photo).uncertainty(), expected, atol=1e-4)
    whole = load_segmentor(str(export_model(pixel_model, tmp_path / "whole.onnx", processing=True)))
    with raises_user_error("model", "scores"):
        whole(photo).uncertainty()
    with raises_user_error("model", "scores"):  # before an image is read
        FileJob(whole, [str(photo)], tmp_path / "out", ["labels", "uncertainty"])
    assert not (tmp_path / "out").exists()
