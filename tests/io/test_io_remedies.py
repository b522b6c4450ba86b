# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the errors of files tell people to do is done, and then they are read and written."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from advice import advises, helps
from hostile_images import hostile, packed_texts, png, saved
from mmengine.registry import DefaultScope
from PIL import Image

from mmseg_resnest.datasets.reader import ImageReader
from mmseg_resnest.inference.rows import _ArrayRows, open_rows
from mmseg_resnest.io import image_sources
from mmseg_resnest.io.atomic import atomic_write
from mmseg_resnest.io.folder_lock import FolderLock
from mmseg_resnest.io.image_header import ImageHeader, check_structure, read_header
from mmseg_resnest.io.linking import put_link
from mmseg_resnest.io.packages import needs_extra
from mmseg_resnest.io.parallel import in_parallel
from mmseg_resnest.io.walk import walk


def test_places_to_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with advises("io/atomic.py:atomic_open", "choose another place"):
        atomic_write(tmp_path / "file/x", "text")
    atomic_write(tmp_path / "folder/x", "text")
    with advises("io/atomic.py:atomic_open", "shorten the name"):
        atomic_write(tmp_path / ("x" * 300), "text")
    atomic_write(tmp_path / ("x" * 200), "text")


def test_folders_in_use(tmp_path: Path) -> None:
    (tmp_path / "another").mkdir()
    first = FolderLock(tmp_path, "--work-dir").acquire()
    with advises("io/folder_lock.py:_refusal", "wait until that ends", "use another folder"):
        FolderLock(tmp_path, "--work-dir").acquire()
    FolderLock(tmp_path / "another", "--work-dir").acquire().release()
    first.release()
    FolderLock(tmp_path, "--work-dir").acquire().release()
    with advises("io/folder_lock.py:acquire", "use another folder"):
        FolderLock(tmp_path / "gone", "--work-dir").acquire()


def check(data: bytes) -> None:
    header = read_header(data, "x")
    assert isinstance(header, ImageHeader)
    check_structure(data, header, "x")


def test_images_that_cost_too_much() -> None:
    with advises("io/image_header.py:_check_png", "without its metadata"):
        check(packed_texts(300))
    check(png())
    with advises("io/image_header.py:check_structure", "save it as baseline"):
        check(hostile()["JPEG of scans"])
    check(saved("JPEG"))
    garbage = hostile()["JPEG of fill bytes"]
    with advises("io/image_header.py:read_header", "without its metadata"):
        read_header(garbage, "x")
    check(saved("JPEG"))


def test_images_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_sources, "MAX_PIXELS", 100)
    file = tmp_path / "a.png"
    image = Image.fromarray(np.zeros((20, 20, 3), np.uint8))
    image.save(file)
    with advises("io/image_sources.py:_check_size", "convert it to a TIFF", "predict"):
        image_sources.read_image_file(str(file))
    image.save(tmp_path / "a.tif", compression="tiff_adobe_deflate")
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        steps = [dict(type="LoadImageFromFile"), dict(type="PackSegInputs")]
        reader = ImageReader(steps, "test")
    assert not isinstance(open_rows(tmp_path / "a.tif", reader), _ArrayRows)


def test_an_empty_image(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.touch()
    helps("io/image_sources.py:read_image_file", "copy it again",
          call=lambda: image_sources.read_image_file(str(file)),
          remedy=lambda: file.write_bytes(saved("PNG")))  # fmt: skip


def test_addresses(tmp_path: Path) -> None:
    with advises("io/http.py:fetch_bytes", "fetch it to a file and give its path"):
        image_sources.fetch_image("http://127.0.0.1:9/a.png")
    (tmp_path / "a.png").write_bytes(saved("PNG"))
    assert image_sources.read_image_file(str(tmp_path / "a.png"))


def test_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a"
    source.write_text("x")

    def no_link(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    with advises("io/linking.py:put_link", "--link auto"):
        put_link(source, tmp_path / "b", "hard")
    put_link(source, tmp_path / "b", "auto")
    assert (tmp_path / "b").read_text() == "x"


def test_packages_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def imported() -> None:
        with needs_extra("deploy"):
            import io_remedy_package  # noqa: F401

    with advises("io/packages.py:needs_extra", "pip install 'mmseg-resnest["):
        imported()
    monkeypatch.setitem(sys.modules, "io_remedy_package", sys)
    imported()


def _die(job: int) -> int:
    if os.getpid() != _PARENT:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


_PARENT = os.getpid()


def test_processes_that_die() -> None:
    jobs = range(100)
    with advises("io/parallel.py:in_parallel", "fewer --jobs or --workers"):
        list(in_parallel(_die, jobs, 2, "work"))
    assert list(in_parallel(_die, jobs, 1, "work")) == [*jobs]


def test_folders_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o300)
    real = os.scandir

    def scandir(path: str) -> object:  # no permission counts for the superuser
        if not os.stat(path).st_mode & 0o400:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    helps("io/walk.py:_refuse", "change its permissions",
          call=lambda: list(walk(tmp_path)), remedy=lambda: tmp_path.chmod(0o700))  # fmt: skip
