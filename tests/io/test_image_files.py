# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from user_errors import raises_user_error

from mmseg_resnest.io.image_files import as_picture, save_image, unique_stems


@pytest.mark.parametrize(
    ("paths", "stems"),
    [
        (["d/a.jpg"], ["a"]),
        (["d/a.jpg", "d/b.jpg"], ["a", "b"]),
        (["d/a.jpg", "d/a.png", "d/b.png"], ["a.jpg", "a.png", "b"]),
        (["d/A.jpg", "d/a.png"], ["A.jpg", "a.png"]),
        (["d/x/a.jpg", "d/y/a.jpg"], ["x/a", "y/a"]),
        (["d/a.png", "d/a_overlay.jpg"], ["a", "a_overlay.jpg"]),
        (["d/a_overlay.jpg"], ["a_overlay"]),
        (["d/a.jpg", "d/a.png", "d/a.jpg.png"], ["a.jpg", "a.png", "a.jpg.png"]),
        (["d/a.jpg", "d/a.png", "d/a.jpg_overlay.tif"], ["a.jpg", "a.png", "a.jpg_overlay.tif"]),
    ],
)
def test_names_of_outputs(paths: list[str], stems: list[str]) -> None:
    assert list(unique_stems(paths, endings=("_overlay",)).values()) == stems


@given(
    st.sets(st.from_regex(r"(?:a|b|a_side)(?:\.jpg|\.png|_side)?\.(?:jpg|png|tif)", fullmatch=True))
)
def test_no_output_of_an_image_is_that_of_another(paths: set[str]) -> None:
    stems = [*unique_stems(sorted(paths), endings=("_side",)).values()]
    written = [*stems, *(f"{stem}_side" for stem in stems)]
    assert len(set(written)) == 2 * len(paths)


def test_an_image_that_is_named_twice_keeps_its_name() -> None:
    assert unique_stems(["d/a.png", "d/a.png", "d/b.png"]) == {"d/a.png": "a", "d/b.png": "b"}


def test_pictures_are_written_atomically(tmp_path: Path) -> None:
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    path = save_image(pixels, tmp_path / "new" / "p.png")
    assert np.array_equal(np.asarray(Image.open(path)), pixels)
    blocker = tmp_path / "file"
    blocker.touch()
    with raises_user_error("not-writable", blocker / "p.png"):
        save_image(pixels, blocker / "p.png")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["p.png"]


def test_pictures_of_any_pixels() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(as_picture(grey), np.dstack([grey] * 3))
    assert np.array_equal(as_picture(grey[:, :, None].astype(np.float32)), np.dstack([grey] * 3))
    colours = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    assert np.array_equal(as_picture(colours), colours[:, :, [2, 1, 0]])
    assert np.array_equal(as_picture(colours, rgb=True), colours[:, :, :3])
    deep = as_picture(np.array([[1000, 2000, 5000]], np.uint16))
    assert deep[0, :, 0].tolist() == [0, 64, 255]
    part = as_picture(np.array([[0, 0.5, 1, np.nan]], np.float32))
    assert part[0, :, 1].tolist() == [0, 128, 255, 0]
