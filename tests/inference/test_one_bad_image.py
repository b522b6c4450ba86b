# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""One image that cannot be read, prepared, segmented or written fails alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from small_models import balanced, blobs, small_config
from user_errors import raises_user_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.errors import UserError
from mmseg_resnest.inference import Segmentor, files
from mmseg_resnest.inference.files import FileJob
from mmseg_resnest.inference.images import find_images, find_inputs
from mmseg_resnest.inference.video import predict_video


def save(path: Path, height: int = 40, width: int = 56, **options: object) -> None:
    Image.fromarray(blobs(height, width)).save(path, **options)


def animation(path: Path, kind: str) -> None:
    frames = [Image.fromarray(blobs(40, 56, seed=i)) for i in range(3)]
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])


def changed(path: Path, change: Callable[[bytes], bytes]) -> None:
    save(path)
    path.write_bytes(change(path.read_bytes()))


# How each file is made, and the code of its error; None where it has a result.
READ: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "1x1.png": (lambda p: save(p, 1, 1), None),
    "1x9.png": (lambda p: save(p, 1, 9), None),
    "wide.png": (lambda p: save(p, 2, 3000), "image"),  # nothing is left of it after Resize
    "high.png": (lambda p: save(p, 70000, 1), "image"),
    "zero.png": (lambda p: p.write_bytes(b""), "empty"),
    "cut.png": (lambda p: changed(p, lambda data: data[:60]), "image"),
    "text.png": (lambda p: p.write_text("no image"), "image"),
    "png_inside.jpg": (lambda p: save(p, format="PNG"), None),
    "16bit.png": (lambda p: Image.fromarray(np.full((9, 9), 40000, np.uint16)).save(p), None),
    "cmyk.jpg": (lambda p: Image.fromarray(blobs(9, 9)).convert("CMYK").save(p), None),
    "gif_inside.png": (lambda p: animation(p, "GIF"), None),
    "animated.webp": (lambda p: animation(p, "WEBP"), None),
    "pages.tif": (lambda p: animation(p, "TIFF"), None),
    "nowhere.png": (lambda p: p.symlink_to("missing.png"), "not-found"),
    "itself.png": (lambda p: p.symlink_to(p), "unreadable"),
    "new\nline.png": (save, None),
    os.fsdecode(b"not_utf8_\xff.png"): (save, None),
    f"{'n' * 250}.png": (save, "not-writable"),  # no room for _overlay
}


@pytest.fixture(scope="module")
def resizing_model() -> Segmentor:
    cfg = small_config()
    cfg.test_dataloader.dataset.pipeline.insert(
        1, dict(type="Resize", scale=(96, 64), keep_ratio=True)
    )
    return balanced(load_segmentor(cfg, None, "cpu"))


def test_what_cannot_be_read_or_prepared(resizing_model: Segmentor, tmp_path: Path) -> None:
    images = tmp_path / "in"
    images.mkdir()
    for name, (make, _) in READ.items():
        make(images / name)
    save(images / "a.png")
    (images / "folder.png").mkdir()
    save(images / "folder.png" / "z.png")
    (images / "link").symlink_to("folder.png")
    os.mkfifo(images / "pipe.png")  # reading it would wait for ever
    found, others = find_inputs(str(images))
    assert others == [images / "pipe.png"]
    out = tmp_path / "out"
    job = FileJob(resizing_model, found, out, ["labels", "overlay", "side", "geojson", "coco"])
    summary = job.run()
    wanted = {str(images / name): code for name, (_, code) in READ.items() if code is not None}
    named = {image: e.code for image in found for e in summary.failed if image in e.subject}
    assert named == wanted
    assert len(summary.failed) == len(wanted)
    assert summary.done == len(found) - len(wanted)
    assert summary.several == 3  # the animations and the pages
    for name in ("a", "folder.png/z", "link/z"):
        with Image.open(out / f"{name}.png") as labels:
            expected = resizing_model(images / f"{name}.png").labels
            assert np.array_equal(np.asarray(labels), expected)
    # Only what failed is tried again.
    again = FileJob(resizing_model, found, out, job.outputs).run()
    assert (again.done, again.skipped, len(again.failed)) == (0, summary.done, len(wanted))


OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


@pytest.fixture
def fussy(small_model: Segmentor) -> Iterator[Callable[[Exception], list[int]]]:
    """Has the network raise for batches with a white image; gives the sizes of all batches."""
    hooks = []

    def install(error: Exception) -> list[int]:
        sizes: list[int] = []

        def check(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            sizes.append(len(args[0]))
            if (args[0].amin((1, 2, 3)) > 2).any():
                raise error

        hooks.append(small_model.model.backbone.register_forward_pre_hook(check))
        return sizes

    yield install
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("Kernel size can't be greater than actual input size"), "image"),
        (IndexError("list index out of range"), "image"),
        (RuntimeError(OUT_OF_MEMORY), "memory"),
        (MemoryError(), "memory"),
        (UserError("model", "model.onnx", "cannot compute it"), "model"),
    ],
)
@pytest.mark.parametrize("tile", [0, 64])
def test_the_network_fails_on_one_of_a_batch(
    small_model: Segmentor,
    fussy: Callable[[Exception], list[int]],
    tmp_path: Path,
    error: Exception,
    code: str,
    tile: int,
) -> None:
    pictures = [blobs(70, 90, seed=i) for i in range(3)]
    pictures[1][:] = 255
    expected = [small_model(picture, tile=tile).labels for picture in pictures]
    sources = [str(tmp_path / f"{i}.png") for i in range(3)]
    for picture, source in zip(pictures, sources, strict=True):
        Image.fromarray(picture).save(source)
    sizes = fussy(error)
    summary = FileJob(small_model, sources, tmp_path / "out", ["labels"], tile=tile).run()
    assert [e.code for e in summary.failed] == [code]
    assert sources[1] in summary.failed[0].subject
    for i in (0, 2):
        with Image.open(tmp_path / "out" / f"{i}.png") as labels:
            assert np.array_equal(np.asarray(labels), expected[i])
    assert not (tmp_path / "out" / "1.png").exists()
    if tile == 0:
        assert sizes == [3, 1, 1, 1]
    results = list(small_model.attempts(pictures, tile=tile))
    assert [isinstance(result, UserError) for result in results] == [False, True, False]
    with raises_user_error(code):
        small_model(pictures, tile=tile)


def test_a_frame_that_fails_is_named(
    small_model: Segmentor, fussy: Callable[[Exception], list[int]], tmp_path: Path
) -> None:
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), 12, (48, 32))
    for i in range(4):
        writer.write(np.full((32, 48, 3), 255, np.uint8) if i == 2 else blobs(32, 48, seed=i))
    writer.release()
    fussy(RuntimeError("no"))
    with raises_user_error("image", f"{film}, frame 3"):
        predict_video(small_model, str(film), tmp_path / "out", ["overlay"])
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_a_gpu_that_failed_is_no_fault_of_an_image(
    small_model: Segmentor, fussy: Callable[[Exception], list[int]]
) -> None:
    fussy(torch.AcceleratorError("CUDA error: device-side assert triggered"))
    with pytest.raises(torch.AcceleratorError):
        list(small_model.attempts([np.full((16, 16, 3), 255, np.uint8)]))


def test_what_cannot_be_written(
    small_model: Segmentor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [str(tmp_path / f"{i}.png") for i in range(3)]
    for source in sources:
        save(Path(source))
    out = tmp_path / "out"
    (out / "1.png" / "in the way").mkdir(parents=True)
    summary = FileJob(small_model, sources, out).run()
    assert (summary.done, [e.code for e in summary.failed]) == (2, ["not-writable"])
    assert sources[1] in summary.failed[0].subject
    assert (out / "0.png").is_file() and (out / "2.png").is_file()
    # A JPEG has 65,500 pixels along an edge at most: the overlay of a longer image is reduced.
    monkeypatch.setattr(files, "JPEG_EDGE", 655)
    Image.fromarray(blobs(2, 700)).save(tmp_path / "long.jpg", "PNG")
    assert FileJob(small_model, [str(tmp_path / "long.jpg")], out).run().done == 1
    with Image.open(out / "long.png") as labels, Image.open(out / "long_overlay.jpg") as drawn:
        assert (labels.size, drawn.size) == ((700, 2), (350, 1))


@pytest.mark.parametrize("out", ["in/out", "in", ".", "elsewhere"])
def test_outputs_are_no_inputs(small_model: Segmentor, tmp_path: Path, out: str) -> None:
    images, target = tmp_path / "in", tmp_path / out
    (images / "in").mkdir(parents=True)
    save(images / "a.jpg")
    save(images / "in" / "b.jpg")
    for _ in range(3):
        found, others = find_inputs(str(images), target)
        assert [Path(image).name for image in found] == ["a.jpg", "b.jpg"]
        assert others == []
        FileJob(small_model, found, target).run()
    # Nor of a run into another folder, of a pattern, and in Python.
    assert find_inputs(str(images), tmp_path / "new")[0] == found
    pattern, _ = find_inputs(f"{images}/**/*.*", tmp_path / "new")
    assert sorted(pattern) == sorted(found)
    assert list(map(str, find_images(images)[0])) == found
    if out == "in/out":
        with raises_user_error("empty", "out"):
            find_images(target)


def test_a_run_never_overwrites_its_input(small_model: Segmentor, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    with raises_user_error("output-exists", "--out"):
        FileJob(small_model, find_inputs(str(tmp_path), tmp_path)[0], tmp_path)


def test_what_a_pattern_matches(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("missing.png")
    (tmp_path / "c.png").mkdir()
    found, others = find_inputs(f"{tmp_path}/*.png")
    assert [Path(path).name for path in found] == ["a.png", "b.png"]
    assert others == [tmp_path / "c.png"]
    with raises_user_error("not-found", "b.png"):
        find_inputs(str(tmp_path / "b.png"))
