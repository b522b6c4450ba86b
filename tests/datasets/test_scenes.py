# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
import hashlib
import json
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
from advice import advises
from PIL import Image
from user_errors import raises_user_error

from mmseg_resnest.datasets import scenes
from mmseg_resnest.datasets.scenes import ScenesDataset, draw_scene, write_scenes
from mmseg_resnest.registry import DATASETS

FORK = multiprocessing.get_context("fork")  # no second import of the package
CLASSES = ScenesDataset.METAINFO["classes"]

# SHA-256 of the pixels (image, then labels) of scenes: seed, index, split.
HASHES = {
    (0, 0, "training"): "06615ac904003b9e8d4c671627c0331a0d8063d478890d94609a8a83a0b8469b",
    (0, 1, "training"): "e4adde1c6917459ee6f0192c1f1677994a5ff1762d7034a37c00706426672f4e",
    (0, 4, "validation"): "1fe933c3193e0bdcae09682d815acf6433ee963142e616416f8dd60a5bdb4b78",
    (7, 123456, "training"): "f5dd419b09ea9cea1aa63e16f9f7f1920ae87dd6790c29844068c2c30ed07467",
    (
        18446744073709551615,
        4294967295,
        "validation",
    ): "6f06c811fe9bd23b89744d98d85f8f0e123ae4268bfb4e71bfc04e0c94f6fee5",
}


def _sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.fixture(scope="module")
def samples() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    counts = {"training": 48, "validation": 20}
    return {
        split: [draw_scene(0, index, split) for index in range(count)]
        for split, count in counts.items()
    }


@pytest.mark.parametrize("key", HASHES, ids=str)
def test_same_pixels_on_every_machine(key):
    image, label = draw_scene(*key)
    assert _sha256(image.tobytes(), label.tobytes()) == HASHES[key]


def test_shape_labels_and_share_of_unlabelled(samples):
    share = []
    for split in samples.values():
        for image, label in split:
            assert image.shape == (128, 160, 3)
            assert label.shape == (128, 160)
            assert image.dtype == label.dtype == np.uint8
            assert label.max() <= len(CLASSES)
            share.append((label == 0).mean())
    assert 0.005 < np.mean(share) < 0.06
    assert max(share) < 0.2


def test_every_class_is_met_and_small_ones_are_rare(samples):
    for split, least in (("training", 8), ("validation", 3)):
        labels = [label for _, label in samples[split]]
        for value, name in enumerate(CLASSES, start=1):
            assert sum((label == value).any() for label in labels) >= least, name
    pixels = np.concatenate([label.ravel() for _, label in samples["training"]])
    ratio = dict(zip(CLASSES, np.bincount(pixels, minlength=13)[1:] / pixels.size, strict=True))
    assert max(ratio["lamp"], ratio["sign"], ratio["person"]) < 0.03
    assert min(ratio.values()) > 0.004


def test_scenes_differ_by_index_split_and_seed():
    pictures = [
        draw_scene(seed, index, split)[0].tobytes()
        for seed in (0, 1)
        for index in (0, 1, 2)
        for split in scenes.SPLITS
    ]
    assert len(set(pictures)) == len(pictures)


def _tree(root: Path) -> dict[str, tuple[str, int]]:
    return {
        str(file.relative_to(root)): (_sha256(file.read_bytes()), file.stat().st_mtime_ns)
        for file in sorted(root.rglob("*"))
        if file.is_file()
    }


def test_written_once_in_the_layout_of_ade20k(tmp_path):
    root = write_scenes(tmp_path / "deep" / "scenes", num_train=4, num_val=2, seed=5)
    before = _tree(root)
    assert len(before) == 2 * 6 + 2
    for split, short, count in (("training", "train", 4), ("validation", "val", 2)):
        for index in range(count):
            image, label = draw_scene(5, index, split)
            name = f"{split}/scenes_{short}_{index + 1:08d}.png"
            np.testing.assert_array_equal(np.asarray(Image.open(root / "images" / name)), image)
            np.testing.assert_array_equal(
                np.asarray(Image.open(root / "annotations" / name)), label
            )
    assert [path.name for path in root.parent.iterdir()] == ["scenes"]
    facts = json.loads((root / "scenes.json").read_text())
    assert (facts["seed"], facts["num_train"], facts["num_val"]) == (5, 4, 2)

    lines = (root / "objectInfo12.txt").read_text().splitlines()
    assert lines[0].split("\t") == ["Idx", "Ratio", "Train", "Val", "Stuff", "Name"]
    assert [line.split("\t")[-1] for line in lines[1:]] == list(CLASSES)
    pixels = np.concatenate([draw_scene(5, i)[1].ravel() for i in range(4)])
    assert [int(line.split("\t")[2]) for line in lines[1:]] == [
        sum(bool((part == value).any()) for part in pixels.reshape(4, -1)) for value in range(1, 13)
    ]

    assert write_scenes(root, num_train=4, num_val=2, seed=5) == root
    assert _tree(root) == before


def test_other_content_or_parameters_are_not_overwritten(tmp_path):
    root = write_scenes(tmp_path / "scenes", num_train=1, num_val=1)
    before = _tree(root)
    for arguments in (dict(num_train=1, seed=3), dict(num_train=2)):
        with advises("datasets/drawn.py:is_written", "remove it or choose another folder") as told:
            write_scenes(root, num_val=1, **arguments)
        assert told.value.code == "output-exists"
    assert _tree(root) == before
    write_scenes(tmp_path / "another", num_train=1, num_val=1)

    next((root / "images/training").iterdir()).unlink()
    with raises_user_error("output-exists", root):
        write_scenes(root, num_train=1, num_val=1)

    for text in ("[1]", "not JSON", None):
        other = tmp_path / f"other{text}"
        other.mkdir()
        (other / "thesis.txt").write_text("mine")
        if text is not None:
            (other / "scenes.json").write_text(text)
        with raises_user_error("output-exists", other):
            write_scenes(other, num_train=1, num_val=1)
        assert (other / "thesis.txt").read_text() == "mine"


def test_empty_folder_and_link_are_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    write_scenes(tmp_path / "empty", num_train=1, num_val=1)
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    write_scenes(tmp_path / "link", num_train=1, num_val=1)
    assert (tmp_path / "link").is_symlink()
    names = [set(_tree(tmp_path / name)) for name in ("empty", "disk")]
    assert names[0] == names[1]
    assert len(names[0]) == 6


@pytest.mark.parametrize(
    "arguments", [dict(num_train=0), dict(num_val=-1), dict(seed=-1), dict(seed=2**64)]
)
def test_arguments_out_of_range(tmp_path, arguments):
    with raises_user_error("argument", next(iter(arguments))):
        write_scenes(tmp_path / "scenes", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "name"), [((0, 0, "test"), "split"), ((-1, 0), "seed"), ((0, 2**32), "index")]
)
def test_draw_scene_arguments_out_of_range(arguments, name):
    with raises_user_error("argument", name):
        draw_scene(*arguments)


def test_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with advises("datasets/drawn.py:write_once", "choose another folder") as told:
        write_scenes(tmp_path / "file" / "scenes", num_train=1, num_val=1)
    assert told.value.code == "not-writable"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scenes.Image.Image, "save", full)
    with raises_user_error("not-writable", tmp_path / "scenes"):
        write_scenes(tmp_path / "scenes", num_train=1, num_val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_killed_call_leaves_no_half_data_set(tmp_path):
    root = tmp_path / "scenes"
    process = FORK.Process(target=write_scenes, args=(root, 100000, 1), kwargs=dict(progress=False))
    process.start()
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".scenes.partial-*/images/training/*.png")):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.join()
    assert not root.exists()
    # The next call clears what the killed one left behind.
    write_scenes(root, num_train=2, num_val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def _write_at_once(root: str) -> None:
    write_scenes(root, num_train=3, num_val=2)


@pytest.mark.parametrize("locks", [True, False])
def test_concurrent_calls(tmp_path, monkeypatch, locks):
    if not locks:  # as on a file system without locks

        def refuse(*_):
            raise OSError(9, "Bad file descriptor")

        monkeypatch.setattr("fcntl.flock", refuse)
    root = tmp_path / "scenes"
    workers = [FORK.Process(target=_write_at_once, args=(str(root),)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]
    assert len(_tree(root)) == 2 * 5 + 2


def test_data_set_of_the_written_scenes(tmp_path):
    write_scenes(tmp_path / "scenes", num_train=2, num_val=1, seed=9)
    cfg = dict(
        type="ScenesDataset",
        data_root=str(tmp_path / "scenes"),
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=[dict(type="mmseg.LoadImageFromFile"), dict(type="mmseg.LoadAnnotations")],
    )
    dataset = DATASETS.build(cfg)
    assert len(dataset) == 2
    for index in range(2):
        image, label = draw_scene(9, index)
        np.testing.assert_array_equal(dataset[index]["img"], image[..., ::-1])
        expected = np.where(label == 0, 255, label.astype(np.int64) - 1)
        np.testing.assert_array_equal(dataset[index]["gt_seg_map"], expected)
    assert len(dataset.metainfo["palette"]) == len(dataset.metainfo["classes"]) == 12
