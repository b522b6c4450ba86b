# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Hostile annotations, archives and caches through everything that reads data."""

from __future__ import annotations

import functools
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_data as made
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from sandbox import Sandbox
from tiny_archives import jpeg, labels_of, png_of, write_folder

from mmseg_resnest.datasets.cache import FOLDER, find_pixels, read_entry
from mmseg_resnest.datasets.prepare import CustomOptions, build_cache, prepare
from mmseg_resnest.datasets.prepare.ade20k import ADE20K
from mmseg_resnest.datasets.prepare.custom import prepare_custom
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.registry import DATASETS

pytestmark = pytest.mark.timeout(60)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMSEG_RESNEST_DATA", raising=False)


@functools.cache
def base() -> Config:
    return load_config(ROOT / "configs/fcn_resnest14_scenes.py")


def custom(box: Sandbox, **options: Any) -> list[str]:
    """Prepare a data set, read its config, load its samples; returns the class names."""
    config = base()
    filled: dict[str, Any] = {"name": "mine", "group_pattern": "(.*)", **options}
    data = box.files / "data"
    report = prepare_custom(
        CustomOptions(**filled), data, box.files / "configs", config, epochs=2, jobs=1
    )
    cfg = load_config(report.config)
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(dataset) > 0 and dataset[0]
    return list(dataset.metainfo["classes"])


def labelme(box: Sandbox, folder: Path) -> Callable[[], list[str]]:
    return lambda: custom(box, form="labelme", sources=(folder,))


def coco(box: Sandbox, file: Path) -> Callable[[], list[str]]:
    return lambda: custom(box, form="coco", sources=(file,))


# --- LabelMe ------------------------------------------------------------------------------------


def test_the_valid_annotations_are_taken(sandbox: Sandbox) -> None:
    names = sandbox.harmless(labelme(sandbox, made.labelme(sandbox))).value
    assert names == ["road", "sky"]


@pytest.mark.parametrize("path", made.PATHS, ids=range(len(made.PATHS)))
def test_image_paths_of_labelme(path: str, sandbox: Sandbox) -> None:
    folder = made.labelme(sandbox, imagePath=sandbox.fill(path))
    (folder / "a0.jpg").rename(folder / "elsewhere.jpg")
    made.add_links(sandbox, folder)
    sandbox.refused(labelme(sandbox, folder), "a0.json", "text.jpg")
    # With the images in a folder of their own.
    images = sandbox.files / "images"
    images.mkdir()
    for file in folder.glob("*.jpg"):
        file.rename(images / file.name)
    options: dict[str, Any] = dict(form="labelme", sources=(folder,), images=images)
    sandbox.refused(lambda: custom(sandbox, **options), "a0.json", "text.jpg", "linked", "pipe.jpg")
    sandbox.check_nothing_leaked(sandbox.files / "data")


@pytest.mark.parametrize("case", made.LABELME)
def test_parts_of_labelme(case: str, sandbox: Sandbox) -> None:
    folder = made.labelme(sandbox, **made.LABELME[case])
    sandbox.harmless(labelme(sandbox, folder), "a0.json", "a0")
    sandbox.check_nothing_leaked(sandbox.files / "data")


def test_outline_of_many_corners(sandbox: Sandbox) -> None:
    """Corners at the upper and lower edge by turns: each pair crosses every row of the image."""
    folder = made.labelme(sandbox)
    Image.new("L", (64, 8000)).save(folder / "a0.jpg")
    points = [[n % 64, 8000 * (n % 2)] for n in range(60_000)]
    data = {"imagePath": "a0.jpg", "shapes": [made.shape(points=points)]}
    (folder / "a0.json").write_text(json.dumps(data))
    sandbox.harmless(labelme(sandbox, folder), "a0.json")


@pytest.mark.parametrize(
    "text", [b"[" * 200_000 + b"]" * 200_000, b'{"shapes":' * 200_000, b"null", b"\xff\xfe", b"\0"],
    ids=range(5),
)  # fmt: skip
def test_other_texts_as_annotations(text: bytes, sandbox: Sandbox) -> None:
    folder = made.labelme(sandbox)
    (folder / "a0.json").write_bytes(text)
    sandbox.refused(labelme(sandbox, folder), "a0.json")
    sandbox.refused(coco(sandbox, folder / "a0.json"), "a0.json")


def _named(box: Sandbox, name: str) -> Path:
    for made_before in ("data", "configs", "labels"):
        shutil.rmtree(box.files / made_before, ignore_errors=True)
    folder = made.labelme(box)
    for file in folder.glob("*.json"):
        data = json.loads(file.read_text())
        data["shapes"][0]["label"] = name
        file.write_text(json.dumps(data))
    return folder


def test_class_names_stay_text(sandbox: Sandbox, subtests: Any) -> None:
    for name in map(sandbox.fill, made.NAMES):
        with subtests.test(name=name[:80]):
            done = sandbox.harmless(labelme(sandbox, _named(sandbox, name)))
            assert done.error is not None or sorted(done.value) == sorted(["road", name])
            # Python that reads the config as a text of code must not find the name in it either.
            for config in (sandbox.files / "configs").glob("*.py"):
                assert sandbox.code not in config.read_text()


# --- COCO, masks, lists ---------------------------------------------------------------------------


def _coco(box: Sandbox, change: Callable[[made.Json], Any] = lambda record: None) -> Path:
    record = made.coco(box)
    change(record)
    (box.files / "coco" / "evil.json").write_text(json.dumps(record))
    return box.files / "coco" / "evil.json"


def test_the_valid_coco_file_is_taken(sandbox: Sandbox) -> None:
    names = sandbox.harmless(coco(sandbox, _coco(sandbox))).value
    assert names == ["road", "sky"]


@pytest.mark.parametrize("case", made.COCO)
def test_parts_of_coco(case: str, sandbox: Sandbox) -> None:
    file = _coco(sandbox, made.COCO[case])
    if case.startswith("runs"):  # memory is overwritten where a sum of runs overflows
        sandbox.survives(coco(sandbox, file))
    sandbox.harmless(coco(sandbox, file), "evil.json", "a0")


@pytest.mark.parametrize("path", made.PATHS, ids=range(len(made.PATHS)))
def test_file_names_of_coco(path: str, sandbox: Sandbox) -> None:
    file = _coco(sandbox, lambda r: r["images"][0].update(file_name=sandbox.fill(path)))
    made.add_links(sandbox, file.parent)
    sandbox.refused(coco(sandbox, file))
    sandbox.check_nothing_leaked(sandbox.files / "data")


def _masks(box: Sandbox) -> dict[str, Any]:
    names = ["a0", "a1", "a2", "a3"]
    write_folder(box.files / "images", {f"{n}.jpg": jpeg(i) for i, n in enumerate(names)})
    write_folder(
        box.files / "masks", {f"{n}.png": png_of(labels_of(i, 2)) for i, n in enumerate(names)}
    )
    (box.files / "classes.txt").write_text("sky 1 2 3\nroad 4 5 6\n")
    return dict(
        form="index", sources=(box.files / "masks",), images=box.files / "images",
        classes=box.files / "classes.txt",
    )  # fmt: skip


@pytest.mark.parametrize("form", ["index", "colour"])
@pytest.mark.parametrize("size", [(100_000, 100_000), (40_000, 4_000)])
def test_masks_that_are_bombs(form: str, size: tuple[int, int], sandbox: Sandbox) -> None:
    options = {**_masks(sandbox), "form": form}
    (sandbox.files / "masks" / "a0.png").write_bytes(made.bomb_png(*size))
    sandbox.refused(lambda: custom(sandbox, **options), "a0", "a1")


@pytest.mark.parametrize("file", ["masks/a0.png", "images/a0.jpg"])
def test_other_files_as_images(file: str, sandbox: Sandbox, subtests: Any) -> None:
    options = _masks(sandbox)
    for content in (b"", b"%!PS-Adobe-3.0 EPSF-3.0", b"\x80\x04.", b"\x89PNG\r\n\x1a\n", b"<svg/>"):
        sandbox.write(file, content)
        with subtests.test(content=content):
            sandbox.refused(lambda: custom(sandbox, **options), "a0")


@pytest.mark.parametrize("table", made.TABLES)
def test_class_tables(table: str, sandbox: Sandbox) -> None:
    options = _masks(sandbox)
    name, content = made.TABLES[table]
    file = sandbox.write(name, content)
    sandbox.harmless(lambda: custom(sandbox, **{**options, "classes": file}), name, "a0", "mine")


@pytest.mark.parametrize(
    "lines",
    ["../../outside/photo", "/etc/passwd", "a0\n../outside/photo", "\0", "a" * 100_000,
     "../images/a0", "a0/../../outside/photo"],
    ids=range(7),
)  # fmt: skip
def test_lists_that_leave_the_folder(lines: str, sandbox: Sandbox) -> None:
    options = _masks(sandbox)
    listed = {**options, "val_list": sandbox.write("val.txt", lines)}
    sandbox.refused(lambda: custom(sandbox, **listed), "val.txt")
    # The same list as a data set's own.
    good = {**options, "name": "good"}
    sandbox.harmless(lambda: custom(sandbox, **good))
    (sandbox.files / "data/good/splits/train.txt").write_text(lines)
    cfg = load_config(sandbox.files / "configs/good.py")

    def load() -> Any:
        with DefaultScope.overwrite_default_scope("mmseg_resnest"):
            return DATASETS.build(cfg.train_dataloader.dataset)[0]

    sandbox.refused(load, "train.txt")


# --- archives -------------------------------------------------------------------------------------

_INSIDE = "ADEChallengeData2016"


def _members() -> made.Members:
    members = {}
    for split in ("training", "validation"):
        members[f"{_INSIDE}/images/{split}/ADE_a.jpg"] = jpeg(1)
        members[f"{_INSIDE}/annotations/{split}/ADE_a.png"] = png_of(labels_of(1, 150))
    return members


def _prepare(box: Sandbox, archive: Path) -> Any:
    data = box.files / "data"
    return prepare(ADE20K, data, [archive], allow_incomplete=True, jobs=1)


@pytest.mark.parametrize("write", [made.write_tar, made.write_zip], ids=["tar", "zip"])
def test_the_valid_archive_is_taken(write: Any, sandbox: Sandbox) -> None:
    path = write(sandbox, _members())
    assert sandbox.harmless(lambda: _prepare(sandbox, path)).value.counts == {
        "training": 1, "validation": 1
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_entries_of_tar_files(mode: str, sandbox: Sandbox, subtests: Any) -> None:
    for name, entry in made.tar_entries(sandbox, _INSIDE).items():
        path = made.write_tar(sandbox, _members(), entry, mode=mode)
        with subtests.test(entry=name):
            sandbox.refused(lambda path=path: _prepare(sandbox, path), path.name)
    sandbox.check_nothing_leaked(sandbox.files / "data")


def test_a_file_after_a_link_of_its_name(sandbox: Sandbox) -> None:
    """A link first, then a file that would be written through it."""
    name = f"{_INSIDE}/images/training/x"
    link = made.entry(name, tarfile.SYMTYPE, str(sandbox.outside))
    path = sandbox.files / "evil.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(link)
        info = tarfile.TarInfo(f"{name}/weights.pth")
        archive.addfile(info)
    sandbox.refused(lambda: _prepare(sandbox, path), path.name)


def test_entries_of_zip_files(sandbox: Sandbox, subtests: Any) -> None:
    for name in (
        "../outside/new.jpg", "{outside}/new.jpg", f"{_INSIDE}/../../outside/new.jpg", "C:/new.jpg",
        f"{_INSIDE}\\..\\..\\new.jpg", f"{_INSIDE}/images/training/a\nb.jpg",
    ):  # fmt: skip
        path = made.write_zip(sandbox, {**_members(), sandbox.fill(name): b"x"})
        with subtests.test(name=name):
            sandbox.refused(lambda path=path: _prepare(sandbox, path), path.name)
    link = made.zip_link(f"{_INSIDE}/images/training/ADE_evil.jpg")
    path = made.write_zip(sandbox, _members(), link)
    sandbox.refused(lambda: _prepare(sandbox, path), path.name)


# --- what lies in a data set's folder -------------------------------------------------------------


@pytest.fixture
def data_set(sandbox: Sandbox) -> Path:
    """A folder of images, as somebody may have sent it."""
    folder = sandbox.files / "set"
    write_folder(folder / "images", {"a.png": png_of(labels_of(1, 3))})
    return folder


def test_a_linked_cache_removes_nothing(data_set: Path, sandbox: Sandbox) -> None:
    """Cameras call their files .raw, too."""
    (sandbox.outside / "holiday.raw").write_bytes(b"photo")
    (sandbox.outside / "film.part").write_bytes(b"photo")
    (data_set / FOLDER).symlink_to(sandbox.outside, target_is_directory=True)
    patterns = (("image", "images/*.png"),)
    sandbox.refused(lambda: build_cache(data_set, patterns, jobs=1), FOLDER)


@pytest.mark.parametrize("name", ["images", "cache.json"])
def test_links_in_a_cache(name: str, data_set: Path, sandbox: Sandbox) -> None:
    (data_set / FOLDER).mkdir()
    (data_set / FOLDER / name).symlink_to(sandbox.outside / ("" if name == "images" else "x.json"))
    patterns = (("image", "images/*.png"),)
    sandbox.refused(lambda: build_cache(data_set, patterns, jobs=1), FOLDER)


@pytest.mark.parametrize(
    "inside",
    [".prepare", ".prepare/tmp", ".prepare/staging", ".prepare/staging/a/b", f"{_INSIDE}/images",
     f"{_INSIDE}/annotations/training"],
)  # fmt: skip
def test_a_linked_folder_is_not_written_or_removed(inside: str, sandbox: Sandbox) -> None:
    for name in ("tmp", "staging", "images"):
        (sandbox.outside / name).mkdir()
        (sandbox.outside / name / "precious.txt").write_text("precious")
    link = sandbox.files / "data" / "ade20k" / inside
    link.parent.mkdir(parents=True)
    link.symlink_to(sandbox.outside, target_is_directory=True)
    path = made.write_zip(sandbox, _members())
    sandbox.refused(lambda: _prepare(sandbox, path), "ade20k")


@pytest.mark.parametrize("inside", [".folder.lock", "record.json", "tmp"])
def test_a_linked_file_is_not_written(inside: str, sandbox: Sandbox) -> None:
    link = sandbox.files / "data" / "ade20k" / ".prepare" / inside
    link.parent.mkdir(parents=True)
    link.symlink_to(sandbox.outside / "secret.txt")
    path = made.write_zip(sandbox, _members())
    sandbox.refused(lambda: _prepare(sandbox, path), inside)
    link.unlink()
    link.symlink_to(sandbox.outside / "not_there")
    sandbox.refused(lambda: _prepare(sandbox, path), inside)


CACHES = [
    "", "[]", "null", '"root"', "[" * 200_000 + "]" * 200_000, '{"root": 5}', '{"root": ["a"]}',
    '{"root": "/"}', '{"root": "../../.."}', '{"root": "\\u0000"}', b"\xff",
    '{"root": "{outside}"}',
]  # fmt: skip


def test_indexes_of_caches(data_set: Path, sandbox: Sandbox, subtests: Any) -> None:
    cache = sandbox.files / "cache"
    cache.mkdir()
    source = data_set / "images" / "a.png"
    for text in CACHES:
        sandbox.write("cache/cache.json", sandbox.fill(text))
        with subtests.test(text=text[:80]):
            done = sandbox.harmless(lambda: find_pixels(str(source), str(cache)), "cache")
            assert done.value is None


def test_entries_of_caches(data_set: Path, sandbox: Sandbox, subtests: Any) -> None:
    source = data_set / "images" / "a.png"
    for head in (
        b"", b"mmsegraw", bytes(64), b"mmsegraw" + b"\1\0\0\0" + b"\xff" * 52,
        b"mmsegraw" + b"\1\0\0\0" + bytes(52), b"\x80\x04.",
    ):  # fmt: skip
        entry = sandbox.write("a.raw", head)
        with subtests.test(head=head):
            assert sandbox.harmless(lambda entry=entry: read_entry(entry, source)).value is None
