# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Exported files agree with the model at any size, through the same API."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_models import HEADS, head_config, resnest_config
from mmcv.image import imrescale, imresize
from numpy.typing import NDArray
from small_models import balanced, blobs, small_config
from user_errors import raises_user_error

from mmseg_resnest import UserError, load_segmentor
from mmseg_resnest.export import compare, export_model, network
from mmseg_resnest.export.check import require_agreement
from mmseg_resnest.export.network import _ImageResize
from mmseg_resnest.inference import Segmentation, Segmentor


@pytest.fixture(scope="module")
def exported(small_segmentor: Segmentor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(small_segmentor, tmp_path_factory.mktemp("export") / "model.onnx")


@pytest.fixture(scope="module")
def whole(small_segmentor: Segmentor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "whole.onnx"
    return export_model(small_segmentor, path, processing=True)


@pytest.mark.parametrize("part", [*HEADS, "resnest"])
def test_parts_keep_their_sizes_free(part: str, tmp_path: Path) -> None:
    cfg = resnest_config() if part == "resnest" else head_config(part)
    model = balanced(load_segmentor(cfg, None, "cpu"))
    path = export_model(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path)
    for shape in ((1, 3, 64, 80), (3, 3, 97, 71), (2, 3, 33, 120)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            want = model.model.encode_decode(images, [dict(img_shape=images.shape[2:])] * shape[0])
        got = session.run(None, {"images": images.numpy()})[0]
        np.testing.assert_allclose(got, want.numpy(), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["pillow", "cv2"])
@pytest.mark.parametrize(("scale", "keep"), [((70, 44), True), ((97, 61), False)])
def test_resizing_in_the_graph_is_that_of_the_pipeline(
    scale: tuple[int, int], keep: bool, backend: str
) -> None:
    """Size and values, for many odd sizes, in PyTorch and in ONNX Runtime."""
    resize, file = _ImageResize(scale, keep, backend), io.BytesIO()
    assert resize.is_exact()
    axes = {"x": {2: "height", 3: "width"}}
    torch.onnx.export(
        resize, (torch.rand(1, 3, 33, 47),), file, dynamo=False, opset_version=17,
        input_names=["x"], dynamic_axes=axes, autograd_inlining=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(file.getvalue())
    rng = np.random.default_rng(0)
    edges = rng.integers(20, 300, (25, 2))
    squeezed = [
        (33, 66),
        (131, 17),
        (17, 131),
        (120, 40),
        (44, 70),
        (61, 97),
        (88, 140),
        (285, 855),
    ]
    for size in [*edges, *squeezed]:
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        want = (imrescale if keep else imresize)(image, scale, backend=backend)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        for got in (resize(pixels).numpy(), session.run(None, {"x": pixels.numpy()})[0]):
            np.testing.assert_array_equal(got[0].transpose(1, 2, 0), want, f"{size}")


def test_a_resize_that_the_file_cannot_copy_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cfg = small_config()
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type="Resize", scale=(90, 90)))
    model = load_segmentor(cfg, None, "cpu")
    libraries = network.mmcv.imresize
    monkeypatch.setattr(network.mmcv, "imresize", lambda *args, **kw: libraries(*args, **kw) // 2)
    with raises_user_error("export", "test_dataloader.dataset.pipeline"):
        export_model(model, tmp_path / "model.onnx", processing=True)


@pytest.mark.parametrize("backend", ["pillow", "cv2"])
def test_a_file_with_processing_takes_images_and_gives_labels(
    backend: str, tmp_path: Path, pictures: list[NDArray[np.uint8]]
) -> None:
    """Read back with ONNX Runtime alone, as a program in another language would."""
    cfg = small_config()
    resize = dict(type="Resize", scale=(90, 90), keep_ratio=True, backend=backend)
    cfg.test_dataloader.dataset.pipeline.insert(1, resize)
    model = balanced(load_segmentor(cfg, None, "cpu"))
    path = export_model(model, tmp_path / "model.onnx", processing=True)
    session = onnxruntime.InferenceSession(path)
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("images", "tensor(uint8)", ["batch", "height", "width", 3])
    ]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("labels", "tensor(uint8)", ["batch", "height", "width"])
    ]
    for picture in pictures:
        batch = np.stack([picture, picture[:, ::-1]])
        got = session.run(None, {"images": batch})[0]
        for labels, image in zip(got, batch, strict=True):
            assert (labels == model(image).labels).mean() > 0.9995
    assert compare(model, load_segmentor(path), pictures).labels > 0.9995


@pytest.mark.parametrize("suffix", [".torchscript", ".pt2"])
def test_torch_formats(suffix: str, pictures: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    """Of a head with all that sizes go into; torch.export takes long for each further layer."""
    cfg = small_config(pixel=True)
    cfg.model.decode_head = head_config("psp").model.decode_head
    cfg.model.decode_head.update(in_channels=3, in_index=0)
    model = balanced(load_segmentor(cfg, None, "cpu"))
    path = export_model(model, tmp_path / f"model{suffix}")
    agreement = compare(model, load_segmentor(path, trust=True), pictures)
    assert agreement.good, agreement


def test_openvino(
    small_segmentor: Segmentor, pictures: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="not among the pins: its wheel is large")
    for processing in (False, True):
        path = export_model(small_segmentor, tmp_path / f"{processing}.xml", processing)
        agreement = compare(small_segmentor, load_segmentor(path), pictures)
        assert agreement.good, agreement


def test_the_opset_is_chosen(small_segmentor: Segmentor, tmp_path: Path) -> None:
    for opset in (11, 20):
        path = export_model(small_segmentor, tmp_path / f"{opset}.onnx", opset=opset)
        assert [o.version for o in onnx.load(path).opset_import if not o.domain] == [opset]
        agreement = compare(small_segmentor, load_segmentor(path), [blobs(70, 91, 3)])
        assert agreement.good, agreement


def test_results_are_those_of_the_model(
    exported: Path, small_segmentor: Segmentor, pictures: list[NDArray[np.uint8]]
) -> None:
    other = load_segmentor(exported)
    assert (other.classes, other.palette) == (small_segmentor.classes, small_segmentor.palette)
    ours, theirs = small_segmentor(pictures), other(pictures)
    for a, b in zip(ours, theirs, strict=True):
        assert isinstance(b, Segmentation)
        np.testing.assert_array_equal(a.labels, b.labels)
        np.testing.assert_allclose(a.scores(), b.scores(), atol=1e-4)
        assert a.areas() == b.areas()
        assert np.asarray(b.overlay()).shape == a.image.shape
    tiles = [m(blobs(200, 300, 5), tile=128).labels for m in (small_segmentor, other)]
    assert (tiles[0] == tiles[1]).mean() > 0.999


def test_sliding_windows_go_through_the_file(tmp_path: Path) -> None:
    cfg = small_config()
    cfg.model.test_cfg = dict(mode="slide", crop_size=(64, 64), stride=(48, 48))
    model = balanced(load_segmentor(cfg, None, "cpu"))
    path = export_model(model, tmp_path / "model.onnx")
    assert compare(model, load_segmentor(path), [blobs(100, 140, 2)]).good
    with raises_user_error("export", "model.test_cfg.mode"):
        export_model(model, tmp_path / "whole.onnx", processing=True)


def test_labels_alone_have_no_scores_but_tiles(whole: Path, small_segmentor: Segmentor) -> None:
    other = load_segmentor(whole)
    image = blobs(200, 300, 5)
    with pytest.raises(UserError):
        other(image).scores()
    tiled = other(image, tile=128).labels
    assert (tiled == small_segmentor(image, tile=128).labels).mean() > 0.97


def test_a_model_of_one_output(tmp_path: Path) -> None:
    cfg = small_config(classes=2)
    cfg.model.decode_head.update(out_channels=1, threshold=0.4)
    cfg.model.decode_head.loss_decode = dict(type="CrossEntropyLoss", use_sigmoid=True)
    model = load_segmentor(cfg, None, "cpu")
    image = blobs(60, 70, 1)
    net = model.model
    with torch.inference_mode():
        data = net.data_preprocessor({"inputs": [torch.from_numpy(image.transpose(2, 0, 1))]})
        middle = net.encode_decode(data["inputs"], [dict(img_shape=(60, 70))]).median().item()
    net.decode_head.conv_seg.bias.data -= middle + np.log(1 / 0.4 - 1)
    for processing in (False, True):
        path = export_model(model, tmp_path / f"{processing}.onnx", processing)
        other = load_segmentor(path)
        # Many pixels lie next to the threshold, so one may fall on its other side.
        assert (other(image).labels == model(image).labels).mean() > 0.999
        assert set(np.unique(other(image).labels)) == {0, 1}


def test_a_file_that_differs_is_refused(
    exported: Path, small_segmentor: Segmentor, tmp_path: Path
) -> None:
    graph = onnx.load(exported)
    for tensor in graph.graph.initializer:
        if tensor.name.endswith("conv_seg.bias"):
            values = onnx.numpy_helper.to_array(tensor) + np.array([0.5, 0, 0, 0], np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(graph, tmp_path / "changed.onnx")
    other = load_segmentor(tmp_path / "changed.onnx")
    agreement = compare(small_segmentor, other, [blobs(60, 70, 1)])
    with raises_user_error("export", "changed.onnx"):
        require_agreement(agreement, "changed.onnx")


@pytest.mark.parametrize(
    ("name", "options", "subject"),
    [("a.engine", {}, "a.engine"), ("a.onnx", dict(opset=21), "--opset")],
)
def test_unknown_formats_are_refused(
    small_segmentor: Segmentor, tmp_path: Path, name: str, options: Any, subject: str
) -> None:
    with raises_user_error("argument", subject):
        export_model(small_segmentor, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())
