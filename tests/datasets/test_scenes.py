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
from user_errors import raises_user_error

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
        "7dda30301833ce285605597800a16e183369c6c468bca78369b30fffbf01ae17",
        "aace9f2d1d80decfd6b09b1defebc1a8960f8f70f0317a4c23284332748e5961",
    ),
    (0, 1, "training"): (
        "b290414d27cdb00da08dfa01143b52334419d305114d49330900ff78685f0c7e",
        "f926cea2f63981925bfcd0e08f8d845616bd29df2f46eb2589237e8a6a03d159",
    ),
    (0, 2, "training"): (
        "feb0db17f4758e0c2f48b6d789e60e28b6ada40a5b5b834f228a0b1ec2f53eb7",
        "ec69a9a9ae31aced025fbc23d9a6752ef50c3fe4fb3164f3aefccb29424d25f8",
    ),
    (0, 0, "validation"): (
        "026e770d9f7bb394d6e7e1b122bf011f094639a9769459a15fc2189c10fa6a7b",
        "aff406fca889a90d2f1553422ddd296808626ebb393432a888ddf5f172f1b0f3",
    ),
    (0, 4, "validation"): (
        "83a5d5968203e186c24bf4d522328d6cc5c49cf675ecd23695e621395e86b199",
        "d36d20499c397cc355c678ac6c00c2bb9b6b0d1a6b04c8048abbda03aa5e4165",
    ),
    (7, 123456, "training"): (
        "0a92853b1e1c817eb42a66916b46f145526be5a5b50cc996c43851209959f8b5",
        "0867f5ac61ed5e6ea4c9a9724dbd8de73b0e542beb8c510796d0c84802aff677",
    ),
    (18446744073709551615, 4294967295, "validation"): (
        "579c5cac77e3d02fea7a2d4bae6d2abc0066795d559c1b5aaf7385dd5ad12997",
        "c67111ad9facf07a23e29224207d901bc0e754b1884608dddabc5b36700b678a",
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
    assert _mean_iou(distance.argmin(axis=1), val_label) < 20

    def bins(values: np.ndarray) -> np.ndarray:
        return (values // 16) @ np.array([256, 16, 1])

    table = np.bincount(bins(colour) * len(CLASSES) + label, minlength=4096 * len(CLASSES))
    table = table.reshape(4096, len(CLASSES))
    for weights in (table, table / table.sum(axis=0)):  # likeliest label; classes on a par
        assert _mean_iou(weights[bins(val_colour)].argmax(axis=1), val_label) < 20


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
    with raises_user_error("not-found", "nowhere/images/training"):
        DATASETS.build(cfg)
