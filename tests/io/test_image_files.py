# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from user_errors import raises_user_error

from mmseg_resnest.io.image_files import read_rgb, save_image, unique_stems


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
    ],
)
def test_names_of_outputs(paths: list[str], stems: list[str]) -> None:
    assert list(unique_stems(paths, endings=("_overlay",)).values()) == stems


def test_an_image_that_is_named_twice_keeps_its_name() -> None:
    assert unique_stems(["d/a.png", "d/a.png", "d/b.png"]) == {"d/a.png": "a", "d/b.png": "b"}


def test_pictures_are_written_atomically(tmp_path: Path) -> None:
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    path = save_image(pixels, tmp_path / "new" / "p.png")
    assert np.array_equal(read_rgb(path), pixels)
    blocker = tmp_path / "file"
    blocker.touch()
    with raises_user_error("not-writable", blocker / "p.png"):
        save_image(pixels, blocker / "p.png")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["p.png"]


@pytest.mark.parametrize(
    ("content", "code"), [(None, "not-found"), (b"", "empty"), (b"GIF no", "image")]
)
def test_what_is_not_an_image(tmp_path: Path, content: bytes | None, code: str) -> None:
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    with raises_user_error(code, path):
        read_rgb(path)


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(grey).save(tmp_path / "g.png")
    assert np.array_equal(read_rgb(tmp_path / "g.png"), np.dstack([grey] * 3))
    Image.fromarray(np.dstack([grey] * 4)).save(tmp_path / "a.png")
    assert read_rgb(tmp_path / "a.png").shape == (3, 4, 3)
