# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Kinds of image files through each decoder: a pipeline, files, bytes and processes agree.

Pixels are compared, so no network runs; ``test_same_labels.py`` goes on from pixels to labels.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from advice import helps
from mmengine.dataset import Compose
from PIL import Image
from small_models import blobs

from mmseg_resnest.datasets.file_loading import decoded_by, received
from mmseg_resnest.datasets.reader import ImageReader
from mmseg_resnest.errors import UserError
from mmseg_resnest.inference.rows import open_rows
from mmseg_resnest.registry import building

COLOURS = blobs(24, 36)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _tiff(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def _rotated(kind: str, image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _saved(image, kind, exif=exif)


def _transparent_palette() -> bytes:
    return _saved(Image.fromarray(COLOURS).quantize(8), "PNG", transparency=1)


RGB, GREY = Image.fromarray(COLOURS), Image.fromarray(COLOURS[:, :, 0])
DEEP_COLOURS = COLOURS.astype(np.uint16) * 200
DEEP = COLOURS[:, :, 0].astype(np.uint16) * 200
FILES: dict[str, Callable[[], bytes]] = {
    "colours.png": lambda: _saved(RGB, "PNG"),
    "colours.jpg": lambda: _saved(RGB, "JPEG"),
    "colours.webp": lambda: _saved(RGB, "WEBP", lossless=True),
    "colours.bmp": lambda: _saved(RGB, "BMP"),
    "rotated.jpg": lambda: _rotated("JPEG", RGB),
    "rotated.png": lambda: _rotated("PNG", RGB),
    "rotated grey.jpg": lambda: _rotated("JPEG", GREY),
    "rotated.tif": lambda: _rotated("TIFF", RGB),
    "grey.png": lambda: _saved(GREY, "PNG"),
    "grey and alpha.png": lambda: _saved(RGB.convert("LA"), "PNG"),
    "alpha.png": lambda: _saved(RGB.convert("RGBA"), "PNG"),
    "deep.png": lambda: _saved(Image.fromarray(DEEP), "PNG"),
    "deep colours.png": lambda: cv2.imencode(".png", DEEP_COLOURS)[1].tobytes(),
    "deep.tif": lambda: _tiff(DEEP),
    "deep colours.tif": lambda: _tiff(DEEP_COLOURS, photometric="rgb"),
    "floats.tif": lambda: _tiff(COLOURS[:, :, 0].astype(np.float32) / 9),
    "five bands.tif": lambda: _tiff(
        np.dstack([COLOURS, COLOURS[:, :, :2]]), photometric="minisblack", planarconfig="contig"
    ),
    "CMYK.jpg": lambda: _saved(RGB.convert("CMYK"), "JPEG"),
    "CMYK.tif": lambda: _saved(RGB.convert("CMYK"), "TIFF"),
    "palette.png": lambda: _saved(RGB.quantize(8), "PNG"),
    "transparent palette.png": _transparent_palette,
    "one bit.png": lambda: _saved(GREY.convert("1"), "PNG"),
    "one bit.tif": lambda: _saved(GREY.convert("1"), "TIFF", compression="group4"),
    "animation.gif": lambda: _saved(RGB, "GIF", save_all=True, append_images=[GREY]),
    "cut.png": lambda: _saved(RGB, "PNG")[:400],
    "text.png": lambda: b"no image",
}  # fmt: skip
TYPES = ("color", "grayscale", "unchanged", "color_ignore_orientation",
         "grayscale_ignore_orientation")  # fmt: skip
OPTIONS: tuple[dict[str, Any], ...] = (
    {"to_float32": True}, {"ignore_empty": True}, {"backend_args": {"backend": "local"}},
)  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    for name, content in FILES.items():
        (folder / name).write_bytes(content())
    return sorted(folder.iterdir())


def _pixels(read: Callable[[Any], Any], source: Any) -> Any:
    """What reading gives, as values and their type; None where there is an error."""
    try:
        pixels = read(source)
    except UserError:
        return None
    return None if pixels is None else (pixels.dtype, pixels.shape, pixels.tobytes())


@pytest.mark.parametrize("backend", ["cv2", "pillow", "tifffile"])
def test_a_pipeline_files_and_bytes_agree(files: list[Path], backend: str) -> None:
    read = 0
    steps = [dict(color_type=colour) for colour in TYPES]
    steps += [dict(color_type="unchanged", **options) for options in OPTIONS]
    for options in steps:
        step = dict(type="LoadImageFromFile", imdecode_backend=backend, **options)
        with building("mmseg_resnest"):
            pipeline, reader = Compose([step]), ImageReader([step])
        how = decoded_by(reader)
        ways: list[Callable[[str], Any]] = [
            lambda path, pipeline=pipeline: (pipeline({"img_path": path}) or {}).get("img"),
            lambda path, reader=reader: reader.read(path).pixels,
            lambda path, reader=reader: reader.decode(Path(path).read_bytes(), path).pixels,
        ]
        for file in files:
            trained, *others = (_pixels(way, str(file)) for way in ways)
            assert others == [trained] * 2, f"{file.name} {step}"
            if trained is not None:
                sent = received(reader, how(file.read_bytes()))
                assert _pixels(np.asarray, sent.pixels) == trained
                assert sent.picture.shape == (*sent.size, 3)
                read += 1
    assert read > 8


def test_bands_are_no_colours(files: list[Path], tmp_path: Path) -> None:
    """OpenCV refuses more than four; so does what reads a large TIFF in parts."""
    file = tmp_path / "five.tif"
    with building("mmseg_resnest"):
        reader = ImageReader()
    for read in (reader.read, lambda file: open_rows(file, reader)):
        shutil.copy(files[0].with_name("five bands.tif"), file)
        helps("datasets/reader.py:_not_an_image", "save its colours with 8 bits",
              call=lambda read=read: read(file),
              remedy=lambda: file.write_bytes(_tiff(COLOURS, photometric="rgb")))  # fmt: skip
