# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""model(image): every kind of input, batches, threads, tiles."""

from __future__ import annotations

import copy
import functools
import http.server
import io
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from PIL import Image
from small_models import blobs, small_config
from user_errors import raises_user_error

from mmseg_resnest.datasets import reader
from mmseg_resnest.inference import Segmentation, Segmentor, load_segmentor
from mmseg_resnest.inference.tiles import Tiling, _weights, tiled
from mmseg_resnest.io import image_sources
from mmseg_resnest.models.folding import FoldedConv2d
from mmseg_resnest.registry import building


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server of the folder, on this machine only."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_every_kind_of_input_agrees(small_model: Segmentor, photo: Path, address: str) -> None:
    array = np.asarray(Image.open(photo))
    expected = small_model(photo).labels
    assert expected.shape == (40, 56)
    assert len(np.unique(expected)) > 1
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for kind in [
        str(photo), f"{address}/photo.png", Image.open(photo), Image.open(photo).convert("RGBA"),
        array, tensor, tensor.float() / 255, tensor[None].double() / 255,
    ]:  # fmt: skip
        result = small_model(kind)
        result = result[0] if isinstance(result, list) else result
        assert np.array_equal(result.labels, expected), type(kind)
    data = photo.read_bytes()
    with photo.open("rb") as opened, tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(data)
        spooled.seek(0)
        kinds = [data, bytearray(data), memoryview(data), io.BytesIO(data), opened, spooled]
        results = small_model(kinds)
        assert not opened.closed
        with raises_user_error("empty", photo):
            small_model(opened)  # is at its end
    assert [r.path for r in results] == [None, None, None, None, str(photo), None]
    assert all(np.array_equal(r.labels, expected) for r in results)
    assert results[3].scores("c1").shape == expected.shape  # the file is not read once more
    listed = small_model([photo, array, tensor])
    assert [r.path for r in listed] == [str(photo), None, None]
    folder = small_model(photo.parent)
    assert len(folder) == 1
    assert np.array_equal(folder[0].labels, expected)


def test_bytes_for_a_loader_that_reads_files() -> None:
    values = blobs(24, 36).astype(np.float32) / 3
    data = io.BytesIO()
    np.save(data, values)
    with building("mmseg_resnest"):
        load = reader.ImageReader([dict(type="LoadImageFromNpyFile")])
    for kind in (data.getvalue(), io.BytesIO(data.getvalue())):
        found = load.read(kind)
        assert found.path is None
        np.testing.assert_array_equal(found.pixels, values)


def test_more_pixels_than_are_decoded(
    small_model: Segmentor, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_sources, "MAX_PIXELS", 100)
    for kind in (photo.read_bytes(), io.BytesIO(photo.read_bytes())):
        with raises_user_error("too-large", "image"):
            small_model(kind)


def test_a_folded_model_gives_the_same(small_model: Segmentor, photo: Path) -> None:
    before = small_model(photo)
    folded = copy.deepcopy(small_model)
    assert folded.fold() is folded
    assert any(isinstance(m, FoldedConv2d) for m in folded.model.modules())
    after = folded.fold()(photo)
    assert np.array_equal(after.labels, before.labels)
    np.testing.assert_allclose(after.scores(), before.scores(), atol=1e-5)
    assert not any(isinstance(m, FoldedConv2d) for m in small_model.model.modules())


def test_orientation_and_depth_of_files_and_pil_images(
    small_model: Segmentor, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = blobs(40, 56)
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    deep = pixels[:, :, 0].astype(np.uint16) * 256 + 7
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for name, same in (("turned.png", np.rot90(pixels, -1)), ("deep.png", pixels[:, :, 0])):
        expected = small_model(np.ascontiguousarray(same)).labels
        for kind in (tmp_path / name, Image.open(tmp_path / name)):
            assert np.array_equal(small_model(kind).labels, expected)


def _closed() -> io.BytesIO:
    file = io.BytesIO(b"x")
    file.close()
    return file


@pytest.mark.parametrize(
    ("image", "code", "subject"),
    [
        (torch.zeros(1, 4, 4), "input", "image tensor"),
        (torch.full((3, 4, 4), 1.5), "input", "image tensor"),
        (torch.zeros((3, 4, 4), dtype=torch.int64), "input", "image tensor"),
        (Image.new("F", (4, 4)), "input", "PIL image of mode F"),
        (3, "input", "image"),
        (b"", "empty", "bytes"),
        (b"text", "image", "bytes"),
        (io.StringIO("text"), "input", "file"),
        (_closed(), "unreadable", "file"),
        (np.zeros((4, 4, 3), np.float32), "input", "image array"),
        (np.zeros((4, 4, 2), np.uint8), "input", "image array"),
        (np.zeros((0, 4, 3), np.uint8), "input", "image array"),
        ("missing.png", "not-found", "missing.png"),
        ("http://127.0.0.1:9/x.png", "download", "127.0.0.1"),
    ],
)
def test_bad_images(small_model: Segmentor, image: Any, code: str, subject: str) -> None:
    with raises_user_error(code, subject):
        small_model(image)


def test_bad_addresses(
    small_model: Segmentor, photo: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photo.parent / "page.html").write_text("<html>")
    monkeypatch.setattr(image_sources, "MAX_DOWNLOAD", 100)
    for name, code in (("none.png", "download"), ("page.html", "image"), ("photo.png", "download")):
        with raises_user_error(code, name):
            small_model(f"{address}/{name}")


def test_large_images_are_refused_before_decoding(
    small_model: Segmentor, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_sources, "MAX_PIXELS", 1000)
    monkeypatch.setattr(reader.ImageReader, "decode", lambda *data: pytest.fail("was decoded"))
    with raises_user_error("too-large", photo):
        small_model(photo)


def test_images_of_equal_size_share_a_batch(
    small_model: Segmentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [blobs(*size, seed=i) for i, size in enumerate([(24, 32), (16, 16)] * 5)]
    alone = [small_model(p).labels for p in pictures]
    shapes: list[tuple[int, ...]] = []
    forward = small_model.model.extract_feat

    def seen(inputs: torch.Tensor) -> Any:
        shapes.append((len(inputs), *inputs.shape[2:]))
        return forward(inputs)

    monkeypatch.setattr(small_model.model, "extract_feat", seen)
    monkeypatch.setattr(small_model, "batch_pixels", 3 * 24 * 32)
    together = [r.labels for r in small_model.stream(iter(pictures))]
    assert all(n * h * w <= 3 * 24 * 32 for n, h, w in shapes)
    assert max(n for n, _, _ in shapes) >= 3
    assert sum(n for n, _, _ in shapes) == 10
    for a, b in zip(alone, together, strict=True):  # batched convolutions round differently
        assert a.shape == b.shape
        assert (a != b).mean() < 0.01


def test_a_stream_reads_as_it_goes(small_model: Segmentor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_model, "batch_pixels", 16 * 16)
    taken = 0

    def endless() -> Iterator[Any]:
        nonlocal taken
        while True:
            taken += 1
            yield blobs(16, 16)

    next(small_model.stream(endless()))
    assert taken <= 4


def test_threads_share_a_model(small_model: Segmentor) -> None:
    pictures = [blobs(24 + 8 * (i % 3), 32, seed=i) for i in range(12)]
    expected = [small_model(p).labels for p in pictures]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            results = list(pool.map(small_model, pictures))
            for result, labels in zip(results, expected, strict=True):
                assert np.array_equal(result.labels, labels)


def test_scores_are_probabilities_of_the_labels(small_model: Segmentor, photo: Path) -> None:
    result = small_model(photo)
    scores = result.scores()
    assert scores.shape == (4, 40, 56)
    assert np.allclose(scores.sum(0), 1, atol=1e-5)
    assert np.array_equal(scores.argmax(0), result.labels)
    assert np.array_equal(result.scores(["c2", 0]), scores[[2, 0]])
    assert np.array_equal(result.scores("c1"), scores[1])
    for unknown in ("road", 4):
        with raises_user_error("classes", str(unknown)):
            result.scores(unknown)
    bare = Segmentation(result.labels, result.image, result.classes, result.palette)
    with raises_user_error("input", "scores"):
        bare.scores()


def test_classes_by_the_indices_of_arrays(small_model: Segmentor, photo: Path) -> None:
    result = small_model(photo)
    for index in np.unique(result.labels):
        assert result.scores(index).shape == result.size
        assert set(np.unique(result.only(index).labels)) <= {index, 255}
    assert len(result.scores(np.unique(result.labels))) == len(np.unique(result.labels))
    with raises_user_error("classes", "1.5"):
        result.scores([1.5])


def test_areas_and_pictures(small_model: Segmentor, photo: Path) -> None:
    result = small_model(photo)
    areas = result.areas()
    assert list(areas) == ["c0", "c1", "c2", "c3"]
    assert sum(a.pixels for a in areas.values()) == 40 * 56
    assert areas["c1"].pixels == (result.labels == 1).sum()
    assert areas["c1"].share == pytest.approx((result.labels == 1).mean())
    largest = max(areas, key=lambda name: areas[name].pixels)
    words = f"of {photo}, 56 x 40 pixels: {largest} {areas[largest].share:.1%}"
    assert words in repr(result)
    assert len({result, result}) == 1
    only = np.asarray(result.overlay(1.0, classes="c1"))
    assert (only[result.labels != 1] == 0).mean() > 0.5
    page = result._repr_html_()
    assert "data:image/jpeg;base64," in page
    assert "c1" in page
    assert result._repr_png_().startswith(b"\x89PNG")


# --- tiles


@pytest.mark.parametrize("length", [64, 65, 100, 127, 128, 129, 1000, 1023, 4096])
def test_tiles_cover_and_weights_sum_to_one(length: int) -> None:
    tiling = Tiling(length, length, 64, 8)
    spans = tiling.spans(length)
    total = np.zeros(length)
    for (start, end), weight in zip(spans, _weights(spans), strict=True):
        assert end - start <= 64
        assert len(weight) == end - start
        total[start:end] += weight
    assert (spans[0][0], spans[-1][1]) == (0, length)
    assert np.allclose(total, 1)
    for (_, end), (start, _) in pairwise(spans):
        assert end - start >= 8
        assert end - start <= 8 + 16


def test_tiles_do_not_change_a_model_of_single_pixels(pixel_model: Segmentor) -> None:
    picture = blobs(300, 421)
    whole, cut = pixel_model(picture, tile=0), pixel_model(picture, tile=96)
    assert len(np.unique(whole.labels)) > 1
    assert np.array_equal(whole.labels, cut.labels)
    assert np.allclose(whole.scores(), cut.scores(), atol=1e-5)


def test_blending_is_the_weighted_mean_of_the_tiles() -> None:
    tiling = Tiling(150, 170, 64, 16)
    picture = np.zeros((150, 170, 3), np.uint8)
    picture[:, :, 0], picture[:, :, 1] = np.arange(150)[:, None], np.arange(170)

    def score(tile: np.ndarray) -> np.ndarray:  # differs from tile to tile at the same pixel
        y, x = tile[0, 0, :2]
        return np.stack([np.full(tile.shape[:2], v, np.float32) for v in (y, x, 1)])

    rows, columns = tiling.spans(150), tiling.spans(170)
    expected = np.zeros((3, 150, 170))
    for (y0, y1), wy in zip(rows, _weights(rows), strict=True):
        for (x0, x1), wx in zip(columns, _weights(columns), strict=True):
            weight = wy[:, None] * wx
            expected[:, y0:y1, x0:x1] += weight * np.array([y0, x0, 1])[:, None, None]
    bands = list(tiled(lambda a, b: picture[a:b], score, tiling, labels=False))
    assert [top for top, _ in bands] == [y0 for y0, _ in rows]
    assert np.allclose(np.concatenate([b for _, b in bands], axis=1), expected, atol=1e-3)


def test_which_images_are_cut_into_tiles(pixel_model: Segmentor) -> None:
    assert pixel_model.tiling((4096, 4096)) is None
    assert pixel_model.tiling((4096, 4097)) == Tiling(4096, 4097, 1024, 128)
    assert pixel_model.tiling((9000, 9000), 0) is None
    with raises_user_error("argument", "tile"):
        pixel_model(blobs(16, 16), tile=10)
    with raises_user_error("argument", "batch_pixels"):
        load_segmentor(small_config(pixel=True), None, "cpu", batch_pixels=0)


def test_probabilities_of_a_model_of_one_output() -> None:
    # The one output is the logit of class 1, which the head compares with its threshold.
    cfg = small_config(pixel=True)
    cfg.model.decode_head.update(out_channels=1, num_classes=2, threshold=0.4)
    torch.manual_seed(3)
    model = load_segmentor(cfg, None, "cpu")
    picture = blobs(32, 48)
    with torch.inference_mode():
        batch = model.model.data_preprocessor(pseudo_collate([model._prepare(picture)]), False)
        logits = model.model.decode_head.forward(model.model.extract_feat(batch["inputs"]))
    expected = torch.nn.functional.interpolate(logits, (32, 48), mode="bilinear")[0, 0].sigmoid()
    result = model(picture)
    scores = result.scores()
    np.testing.assert_allclose(scores[1], expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(scores.sum(0), 1, atol=1e-6)
    assert np.array_equal(result.labels == 1, scores[1] > 0.4)
