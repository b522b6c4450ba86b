# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
import hashlib
import io
import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from mmseg_resnest.datasets import scenes
from mmseg_resnest.datasets.scene_painter import Dice
from mmseg_resnest.datasets.scenes import ScenesDataset, draw_scene, png_bytes, write_scenes
from mmseg_resnest.errors import UserError
from mmseg_resnest.registry import DATASETS

FORK = multiprocessing.get_context("fork")  # no second import of the package
CLASSES = ScenesDataset.METAINFO["classes"]

# (seed, index, split): SHA-256 of the pixels (image, then labels) and of the two PNG files.
HASHES = {
    (0, 0, "training"): (
        "16aea44dc87361b875564750d168a599896a726c69d158dc72d502bc248ce0f4",
        "22656cc30bbce9447cd98d7256612e05538fb312813ad2e5a61cd81bae7e650f",
    ),
    (0, 1, "training"): (
        "cc2e777349c3bba44df56b6fd5330f497902394dc7064cce9ed99909098c8dec",
        "a22ec9d8a815bd31a55bc5bf96656e77b85ca8aff019ca86535e44cf37ace3c4",
    ),
    (0, 2, "training"): (
        "7dc2deb781159f4bec47aba0220e439df8eaeec5bc0bb27719202ade9476c44c",
        "0f9c20334ca395a362006b9735b305e3744b86f80d918bd52c0085f32c993df8",
    ),
    (0, 0, "validation"): (
        "b163d5e6d5d000dcff922433ef92f726fbc7489992c2ad90a3789af9f25636dd",
        "97e7aba58c40d06a31579a468e23079c91f5263729de9589a30abe3107bd9643",
    ),
    (0, 4, "validation"): (
        "12e1cdfac587294e2a5a8d1bd0a57792ff217c8dff62111f7c61708f3b760353",
        "bb2e6c3e9e02e7da6093604c2767431f60df3110e34ad04cba1d28ae82cb7406",
    ),
    (7, 123456, "training"): (
        "ba6b71f6235c71559fe3ce26bce0586638957a1135510367037dd3a297e7b47e",
        "1deab53bea406f23dfb8aa8dcbba4468b62839b5309f82176a504d2e067396a2",
    ),
    (18446744073709551615, 4294967295, "validation"): (
        "d1b74d4fbecd5f6ea611f1ee09af2c6d7f28d4e07bea3355bc0f17ef0b9efc05",
        "d291bf78be18e10ae5b4b0462d5a802ff25f36062a54e2c6da58019239c4c2b1",
    ),
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
def test_same_bytes_on_every_machine(key):
    image, label = draw_scene(*key)
    pixels = _sha256(image.tobytes(), label.tobytes())
    files = _sha256(png_bytes(image), png_bytes(label))
    assert (pixels, files) == HASHES[key]


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


def _mean_iou(predicted: np.ndarray, label: np.ndarray) -> float:
    count = len(CLASSES)
    matrix = np.bincount(label * count + predicted, minlength=count**2).reshape(count, count)
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return float(np.mean(np.diag(matrix) / np.maximum(union, 1)) * 100)


def test_colour_alone_scores_badly(samples):
    def flat(split: str) -> tuple[np.ndarray, np.ndarray]:
        colour = np.concatenate([image.reshape(-1, 3) for image, _ in samples[split]])
        label = np.concatenate([label.ravel() for _, label in samples[split]])
        return colour[label > 0].astype(np.int64), label[label > 0].astype(np.int64) - 1

    (colour, label), (val_colour, val_label) = flat("training"), flat("validation")
    means = np.stack([colour[label == value].mean(axis=0) for value in range(len(CLASSES))])
    # |c - m|^2 without its common term |c|^2
    distance = (means**2).sum(axis=1) - 2 * val_colour @ means.T
    assert _mean_iou(distance.argmin(axis=1), val_label) < 30

    def bins(values: np.ndarray) -> np.ndarray:
        return (values // 16) @ np.array([256, 16, 1])

    table = np.bincount(bins(colour) * len(CLASSES) + label, minlength=4096 * len(CLASSES))
    table = table.reshape(4096, len(CLASSES))
    for weights in (table, table / table.sum(axis=0)):  # likeliest label; classes on a par
        assert _mean_iou(weights[bins(val_colour)].argmax(axis=1), val_label) < 30


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        np.uint8,
        st.one_of(
            st.tuples(st.integers(1, 300), st.integers(1, 300)),
            st.tuples(st.integers(1, 200), st.integers(1, 200), st.just(3)),
        ),
        elements=st.integers(0, 255),
        fill=st.integers(0, 255),
    )
)
def test_png_holds_the_pixels(pixels):
    with Image.open(io.BytesIO(png_bytes(pixels))) as image:
        image.load()
        assert image.mode == ("L" if pixels.ndim == 2 else "RGB")
        np.testing.assert_array_equal(np.asarray(image), pixels)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2**64 - 1),
    low=st.integers(-1000, 1000),
    span=st.integers(0, 300),
)
def test_dice_stay_in_range(seed, stream, low, span):
    dice = Dice(seed, stream)
    rolls = [dice.roll(low, low + span) for _ in range(100)]
    assert min(rolls) >= low
    assert max(rolls) <= low + span
    assert rolls == [Dice(seed, stream).roll(low, low + span) for _ in range(1)] + rolls[1:]
    noise = dice.noise(17, 9, 4)
    assert noise.shape == (17, 9)
    assert noise.min() >= 0
    assert noise.max() <= 255


def test_dice_reach_both_ends():
    dice = Dice(1, 2)
    assert {dice.roll(3, 6) for _ in range(200)} == {3, 4, 5, 6}
    assert {dice.pick("abc") for _ in range(100)} == set("abc")


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
            assert (root / "images" / name).read_bytes() == png_bytes(image)
            assert (root / "annotations" / name).read_bytes() == png_bytes(label)
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
    with pytest.raises(UserError, match=r"seed 0 instead of 3"):
        write_scenes(root, num_train=1, num_val=1, seed=3)
    with pytest.raises(UserError, match=r"num_train 1 instead of 2"):
        write_scenes(root, num_train=2, num_val=1)
    assert _tree(root) == before

    next((root / "images/training").iterdir()).unlink()
    with pytest.raises(UserError, match=r"images/training holds 0 files instead of 1"):
        write_scenes(root, num_train=1, num_val=1)

    for text in ("[1]", "not JSON", None):
        other = tmp_path / f"other{text}"
        other.mkdir()
        (other / "thesis.txt").write_text("mine")
        if text is not None:
            (other / "scenes.json").write_text(text)
        with pytest.raises(UserError, match="remove it or choose another folder"):
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
    with pytest.raises(UserError, match=next(iter(arguments))):
        write_scenes(tmp_path / "scenes", **arguments)
    assert not list(tmp_path.iterdir())


def test_draw_scene_arguments_out_of_range():
    with pytest.raises(UserError, match="split"):
        draw_scene(0, 0, "test")
    with pytest.raises(UserError, match="seed"):
        draw_scene(-1, 0)
    with pytest.raises(UserError, match="index"):
        draw_scene(0, 2**32)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write the scenes to .*file/scenes"):
        write_scenes(tmp_path / "file" / "scenes", num_train=1, num_val=1)


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scenes, "png_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_scenes(tmp_path / "scenes", num_train=1, num_val=1)
    assert not list(tmp_path.iterdir())


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

    removed = next(Path(tmp_path / "scenes/annotations/training").iterdir())
    os.remove(removed)
    with pytest.raises(UserError, match=removed.name):
        DATASETS.build(cfg)
    cfg["data_root"] = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"nowhere/images/training does not exist.*data/README"):
        DATASETS.build(cfg)
