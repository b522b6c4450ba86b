# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The fast cache: written by prepare, read by the transforms."""

import os
from pathlib import Path

import numpy as np
import pytest
from advice import advises
from mmcv.transforms import LoadImageFromFile as PlainImage
from mmseg.datasets.transforms import LoadAnnotations as PlainLabels
from PIL import Image
from user_errors import raises_user_error

from mmseg_resnest.datasets import LoadAnnotations, LoadImageFromFile, cache
from mmseg_resnest.datasets.cache import (
    FOLDER,
    entry_bytes,
    read_entry,
)
from mmseg_resnest.datasets.prepare import build_cache
from mmseg_resnest.datasets.transforms import loading
from mmseg_resnest.io.folder_lock import FolderLock

PATTERNS = (("image", "images/*/*.*"), ("label", "labels/*.png"))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images of several kinds, sizes and EXIF rotations, and label maps."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    (root / "images/a").mkdir(parents=True)
    (root / "labels").mkdir()
    for n, suffix in enumerate((".jpg", ".png", ".jpg")):
        pixels = rng.integers(0, 256, (10 + n, 14, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6 if n == 2 else 1
        Image.fromarray(pixels).save(root / f"images/a/{n}{suffix}", exif=exif)
        labels = rng.integers(0, 256, (10 + n, 14), dtype=np.uint8)
        image = Image.fromarray(labels)
        if n == 1:
            image.putpalette(list(range(256)) * 3)
        image.save(root / f"labels/{n}.png")
    cache._cache_of_folder.cache_clear()
    cache._root_of_cache.cache_clear()
    cache._warn_stale.cache_clear()
    return root


def _images(data: Path) -> list[Path]:
    return sorted((data / "images/a").iterdir())


def _load_image(file: Path, **kwargs: object) -> dict:
    loaded = LoadImageFromFile(**kwargs).transform(dict(img_path=str(file)))  # type: ignore[arg-type]
    assert loaded is not None
    return loaded


def _no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(loading, "decode_image", refuse)
    monkeypatch.setattr(loading, "decode_label", refuse)
    monkeypatch.setattr(PlainImage, "transform", refuse)


def test_pixels_are_those_of_the_files(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [PlainImage().transform(dict(img_path=str(f))) for f in _images(data)]
    uncached = [_load_image(f) for f in _images(data)]  # no cache yet: the file is decoded
    cache._cache_of_folder.cache_clear()
    report = build_cache(data, PATTERNS, jobs=1)
    assert (report.files, report.done) == (6, {"made": 6, "kept": 0, "removed": 0})
    assert report.size == sum(f.stat().st_size for f in (data / FOLDER).rglob("*.raw"))
    assert report.size == 6 * 64 + 4 * 14 * (10 + 11 + 12)
    _no_decoding(monkeypatch)
    for file, expected, before in zip(_images(data), plain, uncached, strict=True):
        found = _load_image(file)
        for key in ("img_shape", "ori_shape"):
            assert found[key] == expected[key] == before[key]
        np.testing.assert_array_equal(found["img"], expected["img"])
        np.testing.assert_array_equal(before["img"], expected["img"])
        assert found["img"].dtype == np.uint8 and found["img"].flags.writeable
        assert _load_image(file, to_float32=True)["img"].dtype == np.float32


@pytest.mark.parametrize("reduce_zero_label", [False, True])
@pytest.mark.parametrize("label_map", [None, {3: 7, 7: 255, 255: 1}])
def test_labels_are_those_of_the_files(
    data: Path, monkeypatch: pytest.MonkeyPatch, reduce_zero_label: bool, label_map: dict | None
) -> None:
    def results(file: Path) -> dict:
        return dict(
            seg_map_path=str(file),
            reduce_zero_label=reduce_zero_label,
            label_map=label_map,
            seg_fields=[],
        )

    files = sorted((data / "labels").iterdir())
    expected = [PlainLabels().transform(results(file)) for file in files]
    build_cache(data, PATTERNS, jobs=1)
    _no_decoding(monkeypatch)
    for file, wanted in zip(files, expected, strict=True):
        found = LoadAnnotations().transform(results(file))
        assert found["seg_fields"] == wanted["seg_fields"] == ["gt_seg_map"]
        np.testing.assert_array_equal(found["gt_seg_map"], wanted["gt_seg_map"])
        assert found["gt_seg_map"].dtype == np.uint8


def test_changing_pixels_changes_no_file(data: Path) -> None:
    build_cache(data, PATTERNS, jobs=1)
    image = _load_image(_images(data)[0])["img"]
    before = image.copy()
    image += 1
    np.testing.assert_array_equal(_load_image(_images(data)[0])["img"], before)


def test_a_changed_source_is_decoded_and_cached_anew(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_cache(data, PATTERNS, jobs=1)
    file = data / "images/a/1.png"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # nothing but the time
    assert read_entry(data / FOLDER / "images/a/1.png.raw", file) is None
    Image.fromarray(np.full((5, 6, 3), 9, dtype=np.uint8)).save(file)
    assert _load_image(file)["img"].shape == (5, 6, 3)
    (data / "labels/0.png").unlink()
    report = build_cache(data, PATTERNS, jobs=1)
    assert report.done == {"made": 1, "kept": 4, "removed": 1}
    entry = read_entry(data / FOLDER / "images/a/1.png.raw", file)
    assert entry is not None and entry.shape == (5, 6, 3)


def test_repeating_changes_nothing(data: Path) -> None:
    build_cache(data, PATTERNS, jobs=1)
    before = {f: f.stat().st_mtime_ns for f in (data / FOLDER).rglob("*")}
    assert build_cache(data, PATTERNS, jobs=1).done["kept"] == 6
    assert build_cache(data, PATTERNS, jobs=2, verify=True).done["kept"] == 6
    assert {f: f.stat().st_mtime_ns for f in (data / FOLDER).rglob("*")} == before


def test_damaged_entries_are_not_used(data: Path) -> None:
    build_cache(data, PATTERNS, jobs=1)
    file, entry = data / "images/a/1.png", data / FOLDER / "images/a/1.png.raw"
    expected = _load_image(file)["img"].copy()
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-1])
    assert read_entry(entry, file) is None
    np.testing.assert_array_equal(_load_image(file)["img"], expected)
    entry.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert read_entry(entry, file, check=True) is None
    assert build_cache(data, PATTERNS, jobs=1, verify=True).done["made"] == 1
    np.testing.assert_array_equal(_load_image(file)["img"], expected)
    # Of a process that was killed, and of somebody else.
    for name in (".0.png.raw.0123abcd.part", ".download.zip.part"):
        (data / FOLDER / "labels" / name).write_bytes(b"half")
    build_cache(data, PATTERNS, jobs=1)
    assert [p.name for p in (data / FOLDER).rglob("*.part")] == [".download.zip.part"]
    with FolderLock(data / FOLDER), raises_user_error("in-use", "mmseg_cache"):
        build_cache(data, PATTERNS, jobs=1)


def test_a_cache_elsewhere(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = build_cache(data, PATTERNS, tmp_path / "ssd", jobs=1)
    assert report.linked and (data / FOLDER).samefile(tmp_path / "ssd")
    expected = PlainImage().transform(dict(img_path=str(data / "images/a/1.png")))
    _no_decoding(monkeypatch)
    np.testing.assert_array_equal(_load_image(data / "images/a/1.png")["img"], expected["img"])
    (data / FOLDER).unlink()
    cache._cache_of_folder.cache_clear()
    found = _load_image(data / "images/a/1.png", cache_dir=str(tmp_path / "ssd"))
    np.testing.assert_array_equal(found["img"], expected["img"])
    with advises("datasets/cache.py:_root_of_cache", "--cache") as told:
        _load_image(data / "images/a/1.png", cache_dir=str(tmp_path))
    assert told.value.code == "format"


def test_mistakes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_cache(data, PATTERNS, tmp_path / "ssd", jobs=1)
    (data / "images/a/9.png").write_bytes(b"no image")
    with raises_user_error("unsafe-path", "mmseg_cache"):
        build_cache(data, PATTERNS, jobs=1)
    (data / FOLDER).unlink()
    with raises_user_error("image", "9.png"):
        build_cache(data, PATTERNS, jobs=1)


def test_only_needed_rows_are_read(tmp_path: Path) -> None:
    """A crop of a mapped image touches its own pages: the array is a view of the file's."""
    source = tmp_path / "x"
    source.write_bytes(b"x")
    pixels = np.arange(200 * 300 * 3, dtype=np.uint32).astype(np.uint8).reshape(200, 300, 3)
    (tmp_path / "x.raw").write_bytes(entry_bytes(pixels, source.stat()))
    found = read_entry(tmp_path / "x.raw", source)
    assert found is not None and not found.flags.owndata
    np.testing.assert_array_equal(found[50:60, 7:9], pixels[50:60, 7:9])
