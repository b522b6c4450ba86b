# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmseg_resnest.engine.hooks import duration
from mmseg_resnest.engine.preflight import check_file, check_writable
from mmseg_resnest.errors import UserError
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


def test_pictures_are_whole_or_absent(tmp_path: Path) -> None:
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    path = save_image(pixels, tmp_path / "new" / "p.png")
    assert np.array_equal(read_rgb(path), pixels)
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    blocker = tmp_path / "file"
    blocker.touch()
    with pytest.raises(UserError, match="cannot be written"):
        save_image(pixels, blocker / "p.png")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["p.png"]


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), (b"", "empty"), (b"GIF no", "broken")]
)
def test_what_is_no_image(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.png: .*{message}"):
        read_rgb(path)


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(grey).save(tmp_path / "g.png")
    assert np.array_equal(read_rgb(tmp_path / "g.png"), np.dstack([grey] * 3))
    Image.fromarray(np.dstack([grey] * 4)).save(tmp_path / "a.png")
    assert read_rgb(tmp_path / "a.png").shape == (3, 4, 3)


def test_output_folders_leave_no_trace_when_they_cannot_be(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", "--out")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out .*file is a file"):
        check_writable(tmp_path / "file" / "x", "--out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "file"]


def test_files_to_read(tmp_path: Path) -> None:
    (tmp_path / "best_mIoU.pth").write_bytes(b"x")
    check_file(tmp_path / "best_mIoU.pth", "checkpoint")
    with pytest.raises(UserError, match=r"is a folder; .*best_mIoU\.pth"):
        check_file(tmp_path, "checkpoint")
    with pytest.raises(UserError, match=r"beside it there is best_mIoU\.pth"):
        check_file(tmp_path / "best.pth", "checkpoint")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (3725, "1 h 02 min"), (200_000, "2 d 07 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
