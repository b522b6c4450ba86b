# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Images of any number of bands, against what was written; what is hostile is refused."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_resnest.io.bands import BandOptions, decode_bands
from mmseg_resnest.io.decoding import DecodePool
from mmseg_resnest.io.image_files import Decoding
from mmseg_resnest.io.image_header import read_header

ALL = BandOptions()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(folder: Path, array: np.ndarray, **options: Any) -> bytes:
    tifffile.imwrite(folder / "x.tif", array, photometric="minisblack", **options)
    return (folder / "x.tif").read_bytes()


def values(kind: str, shape: tuple[int, ...] = (19, 23, 5)) -> np.ndarray:
    drawn = np.random.default_rng(1).normal(0, 90, shape)
    return (np.abs(drawn) if kind.startswith("u") else drawn).astype(kind)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["u1", "i1", "<u2", ">u2", "i4", "<f2", ">f4", "f8"]),
    bands=st.none() | st.lists(st.integers(1, 5), min_size=1, max_size=7),
    channels_first=st.booleans(),
    columns_first=st.booleans(),
)
def test_npy(kind: str, bands: list[int] | None, channels_first: bool, columns_first: bool) -> None:
    pixels = values(kind)
    stored = np.moveaxis(pixels, 2, 0) if channels_first else pixels
    data = npy(np.asfortranarray(stored) if columns_first else np.ascontiguousarray(stored))
    layout = "CHW" if channels_first else "HWC"
    options = BandOptions(None if bands is None else tuple(bands), layout)
    found = decode_bands(data, options)
    expected = pixels if bands is None else pixels[:, :, [band - 1 for band in bands]]
    assert found.dtype == np.float32 and found.flags.writeable and found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    assert BandOptions.of_text(options.as_text()) == options
    header = read_header(data, "x.npy")
    assert header is not None and (header.height, header.width) == (19, 23)


@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f4"])
@pytest.mark.parametrize(
    "options",
    [
        dict(planarconfig="contig"),
        dict(planarconfig="separate"),
        dict(planarconfig="contig", compression="zlib"),
        dict(planarconfig="separate", compression="zlib", tile=(16, 16)),
        dict(),  # a page for each band
    ],
    ids=["samples", "planes", "deflate", "tiles", "pages"],
)
def test_tiff(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    pixels = values(kind)
    planes = options.get("planarconfig") != "contig"
    stored = np.ascontiguousarray(np.moveaxis(pixels, 2, 0)) if planes else pixels
    data = tiff(tmp_path, stored, **options)
    found = decode_bands(data, BandOptions((5, 1), layout="CHW"))
    np.testing.assert_array_equal(found, pixels[:, :, [4, 0]].astype(np.float32))


def test_overviews_are_no_bands(tmp_path: Path) -> None:
    pixels = values("u2", (32, 32))
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(pixels, subifds=0, photometric="minisblack")
        file.write(pixels[::2, ::2], subfiletype=1, photometric="minisblack")
    found = decode_bands((tmp_path / "x.tif").read_bytes(), ALL)
    np.testing.assert_array_equal(found, pixels[:, :, None].astype(np.float32))


def test_values_without_data(tmp_path: Path) -> None:
    pixels = values("f4", (16, 16, 2))
    pixels[0, 0, 0], pixels[1, 1, 1], pixels[2, 2, 0] = np.nan, np.inf, -9999
    found = decode_bands(npy(pixels), BandOptions(nodata=-9999, fill=(7, 8)))
    assert (found[0, 0, 0], found[1, 1, 1], found[2, 2, 0]) == (7, 8, 7)
    assert (found != pixels).sum() == 3
    # A type that cannot hold the value has none of it.
    assert decode_bands(npy(values("u2")), BandOptions(nodata=-1)).min() >= 0
    # GDAL writes the value into a tag, as text; float32's lowest is not exact there.
    low = np.finfo("f4").min
    pixels[2, 2, 0] = low
    tag = [(42113, "s", 0, "-3.4028234663852886e+38", True)]
    data = tiff(tmp_path, pixels, planarconfig="contig", extratags=tag)
    assert decode_bands(data, BandOptions(fill=3))[2, 2, 0] == 3
    assert decode_bands(data, BandOptions(nodata=5, fill=3))[2, 2, 0] == low


class Trap:
    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


def header_of(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


BAD = {
    "pickled": lambda folder: npy(np.array([[Trap()]], dtype=object)),
    "a pickle": lambda folder: pickle.dumps(Trap()),
    "complex": lambda folder: npy(np.zeros((4, 4), complex)),
    "four axes": lambda folder: npy(np.zeros((2, 2, 2, 2))),
    "no pixel": lambda folder: npy(np.zeros((0, 4, 3))),
    "cut off": lambda folder: npy(values("f4"))[:-1],
    "huge": lambda folder: header_of(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000)}"
    ),
    "code": lambda folder: header_of("{'descr': print('x'), 'shape': (1, 1)}"),
    "another version": lambda folder: b"\x93NUMPY\x09\x00" + npy(values("f4"))[8:],
    "no image": lambda folder: b"hello",
    "many bands": lambda folder: npy(np.zeros((4, 4, 1025), np.uint8)),
    "half a tiff": lambda folder: tiff(folder, values("f4"), planarconfig="contig")[:300],
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_of_bands(name: str, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(Exception) as caught:
        decode_bands(BAD[name](tmp_path), ALL)
    assert not isinstance(caught.value, MemoryError)
    assert "unpickled" not in capsys.readouterr().out


def test_a_band_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no band 6; its bands are 1 to 5"):
        decode_bands(npy(values("f4")), BandOptions((1, 6)))


def test_in_processes_of_their_own(tmp_path: Path) -> None:
    """As a service decodes them: the same values, and what is broken is an error."""
    pixels = values("u2", (40, 30, 12))
    how = Decoding(BandOptions((12, 1), fill=tuple(range(2))).as_text(), "bands")
    pool = DecodePool(1 << 16, 1)
    try:
        for data in (npy(pixels), tiff(tmp_path, pixels, planarconfig="contig")):
            found = pool.submit(data, pool.check(data, "x"), "x", how).result(60)
            np.testing.assert_array_equal(found, how(data))
        data = npy(pixels)[:-1]
        with pytest.raises(Exception, match="damaged"):
            pool.submit(data, pool.check(data, "x"), "x", how).result(60)
    finally:
        pool.close()
