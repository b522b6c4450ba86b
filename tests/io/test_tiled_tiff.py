# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Tiled TIFF files that OpenCV misreads are read right wherever images are."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from mmseg_resnest.datasets.reader import ImageReader
from mmseg_resnest.datasets.transforms import LoadImageFromFile
from mmseg_resnest.io.decoding import DecodePool
from mmseg_resnest.io.image_files import Decoding
from mmseg_resnest.io.tiled_tiff import readable

KINDS: dict[str, dict[str, Any]] = {
    "16 bits": {"deep": True},
    "16 bits, other byte order": {"deep": True, "byteorder": ">"},
    "BigTIFF of 16 bits": {"deep": True, "bigtiff": True},
    "grey and alpha": {"channels": 2},
    "mirrored": {"channels": 3, "extratags": [(274, "H", 1, 2, True)]},
    "turned": {"deep": True, "extratags": [(274, "H", 1, 6, True)]},
}


def file_of(deep: bool = False, channels: int = 1, **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, channels)).astype(np.uint8)
    values: NDArray[Any] = pixels.astype(np.uint16) * 257 if deep else pixels
    options |= {"photometric": "rgb" if channels == 3 else "minisblack"}
    options |= {"extrasamples": ["unassalpha"]} if channels == 2 else {}
    options |= {"planarconfig": "contig"} if channels > 1 else {}
    data = io.BytesIO()
    tifffile.imwrite(data, values if channels > 1 else values[:, :, 0], **options)
    return data.getvalue()


@pytest.fixture(scope="module")
def pool() -> Any:
    made = DecodePool(1 << 20, 1)
    yield made
    made.close()


@pytest.mark.parametrize("flag", ["color", "grayscale"])
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_are_read_as_strips_are(
    kind: str, flag: str, tmp_path: Any, pool: DecodePool
) -> None:
    strips = file_of(**KINDS[kind], rowsperstrip=16)
    tiles = file_of(**KINDS[kind], tile=(32, 32), compression="zlib")
    code = cv2.IMREAD_COLOR if flag == "color" else cv2.IMREAD_GRAYSCALE
    expected = cv2.imdecode(np.frombuffer(strips, np.uint8), code)
    path = tmp_path / "tiles.tif"
    path.write_bytes(tiles)
    loader = LoadImageFromFile(color_type=flag)
    assert np.array_equal(loader({"img_path": str(path)})["img"], expected)  # training, test
    assert np.array_equal(ImageReader([loader]).read(path).pixels, expected)  # predict
    how = Decoding(flag)
    sent = pool.submit(tiles, pool.check(tiles, "a", how), "a", how).result(60)  # serve
    assert np.array_equal(sent, expected)


def test_other_files_stay_as_they_are() -> None:
    for data in (
        file_of(tile=(32, 32)),
        file_of(channels=3, tile=(32, 32)),
        file_of(deep=True, rowsperstrip=16),
        file_of(deep=True, tile=(32, 32))[:100],
        b"II*\0\xff\xff\xff\xff",
        b"P5 1 1 255\n\0",
    ):
        assert readable(data) is data


@pytest.mark.filterwarnings("ignore")
def test_what_pillow_cannot_read_either_is_refused() -> None:
    for data in (
        file_of(channels=2, deep=True, tile=(32, 32)),
        file_of(deep=True, tile=(32, 32))[:-4000],  # cut off
    ):
        with pytest.raises(ValueError, match="strips"):
            readable(data)
