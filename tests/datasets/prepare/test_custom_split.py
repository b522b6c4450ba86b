# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Tables of colours, and the split of images that must not be separated."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from real_data import DATA, needs
from user_errors import raises_user_error

from mmseg_resnest.datasets.prepare.frames import (
    NUMBERED,
    looks_like_video,
    numbered_groups,
    small_copy,
)
from mmseg_resnest.datasets.prepare.samples import Sample
from mmseg_resnest.datasets.prepare.split import group_images, split_by_groups
from mmseg_resnest.datasets.prepare.tables import Colour, read_table

TABLES = {
    "after.txt": "road 1 2 3\ntraffic light 4 5 6\n",
    "before.csv": "1,2,3,road\n4,5,6,traffic light\n",
    "cvat.txt": "# label:color_rgb:parts:actions\nroad:1,2,3::\ntraffic light:4,5,6::\n",
    "heading.csv": "name,r,g,b\nroad,1,2,3\ntraffic light,4,5,6\n",
    "hex.txt": "road #010203\ntraffic light #040506\n",
    "tabs.txt": "1 2 3\t\troad\n4 5 6\t\ttraffic light\n",
    "map.json": '{"road": [1, 2, 3], "traffic light": "#040506"}',
    "list.json": '[{"name": "road", "color": [1,2,3]}, {"name": "traffic light", "rgb": [4,5,6]}]',
}


@pytest.mark.parametrize("name", TABLES)
def test_colour_tables(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TABLES[name])
    assert read_table(tmp_path / name) == [
        Colour("road", (1, 2, 3)),
        Colour("traffic light", (4, 5, 6)),
    ]


def test_class_lists_without_colours(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("# mine\nroad\ntraffic light\n\n")
    (tmp_path / "b.json").write_text('["road", "traffic light"]')
    for name in ("a.txt", "b.json"):
        assert [row.name for row in read_table(tmp_path / name)] == ["road", "traffic light"]
    (tmp_path / "c.txt").write_text("a 1 2 3\nb 1 2 3\n")
    with raises_user_error("classes", "c.txt"):
        read_table(tmp_path / "c.txt")
    (tmp_path / "d.json").write_text("{")
    with raises_user_error("format", "d.json"):
        read_table(tmp_path / "d.json")


def test_split_keeps_groups_together() -> None:
    names = [
        f"video{v}_{n:05d}" for v, size in enumerate((50, 20, 20, 30, 10)) for n in range(size)
    ]
    train, val, groups = split_by_groups(numbered_groups(names), 0.25, seed=0)
    assert sorted(train + val) == sorted(names)
    videos = [{name.split("_")[0] for name in part} for part in (train, val)]
    assert not videos[0] & videos[1]
    assert groups == {"train": len(videos[0]), "val": len(videos[1])}
    assert 10 <= len(val) <= 60
    again = split_by_groups(numbered_groups(names[::-1]), 0.25, seed=0)
    assert (again[0], again[1]) == (train, val)  # the order of the files does not matter
    grouped = numbered_groups(names)
    assert any(split_by_groups(grouped, 0.25, seed)[1] != val for seed in range(1, 5))


def test_group_pattern() -> None:
    pattern = re.compile(NUMBERED)
    for name, group in {
        "0001TP_006690": "0001TP",
        "0006R0_f00930": "0006R0",
        "Seq05VD_f00210": "Seq05VD",
        "clip/frame12": "clip/frame",
        "aachen_000001_000019": "aachen_000001",
    }.items():
        match = pattern.fullmatch(name)
        assert match is not None and match.group(1) == group
    assert pattern.fullmatch("holiday") is None


def test_one_video_is_cut_at_its_end() -> None:
    names = [f"img_{n}" for n in range(12)]
    train, val, groups = split_by_groups(numbered_groups(names[::-1]), 0.2, 0)
    assert val == ["img_10", "img_11"] and sorted(train + val) == sorted(names)
    assert groups == {"train": 1, "val": 1}
    with raises_user_error("dataset", "a"):
        split_by_groups({"a": ["a"]}, 0.2, 0)


def _film(length: int, step: int, seed: int) -> list[Image.Image]:
    """Frames of a camera that moves over a picture of soft spots."""
    noise = np.random.default_rng(seed).random((60, 40 + step * length))
    soft = cv2.GaussianBlur(noise, (0, 0), 6)
    soft = 255 * (soft - soft.min()) / np.ptp(soft)
    return [
        Image.fromarray(soft[:, n * step : n * step + 40].astype(np.uint8)) for n in range(length)
    ]


def test_frames_of_a_video_are_told_from_photos(tmp_path: Path) -> None:
    samples = []
    for name, images in {
        "clip": _film(20, 3, seed=1),
        "IMG": [_film(1, 0, seed=n + 10)[0] for n in range(20)],
    }.items():
        for n, image in enumerate(images):
            image.save(tmp_path / f"{name}_{n}.png")
            samples.append(
                Sample(f"{name}_{n}", tmp_path / f"{name}_{n}.png", bytes, frozenset(), ".png")
            )
    groups, notes = group_images(samples, None, None, 1)
    assert groups["clip"] == [f"clip_{n}" for n in range(20)]
    assert len(groups) == 21 and groups["IMG_7"] == ["IMG_7"] and len(notes) == 2
    assert len(group_images(samples, None, True, 1)[0]) == 2
    assert len(group_images(samples, None, False, 1)[0]) == 40
    assert set(group_images(samples, "(.).*", None, 1)[0]) == {"c", "I"}
    for pattern in ("(", "a"):
        with raises_user_error("argument", "--group-pattern"):
            group_images(samples, pattern, None, 1)


@pytest.mark.parametrize("frames", [None, True, False])
def test_versions_by_roboflow_stay_together(tmp_path: Path, frames: bool | None) -> None:
    """It writes a photo several times, turned or darker, each under a name of its own."""
    samples = []
    for n in range(8):
        pixels = np.random.default_rng(n).integers(0, 256, (24, 32), np.uint8)
        for turn in range(3):
            name = f"IMG_{n}_jpg.rf.{n + 1:031x}{'123abc'[turn + n % 4]}"
            Image.fromarray(np.rot90(pixels, turn)).save(tmp_path / f"{name}.png")
            samples.append(Sample(name, tmp_path / f"{name}.png", bytes, frozenset(), ".png"))
    groups, notes = group_images(samples, None, frames, 1)
    assert sorted(map(len, groups.values())) == ([24] if frames else [3] * 8)
    assert all(len({name[:5] for name in some}) == 1 for some in groups.values()) or frames
    assert any(note.startswith("16 images are Roboflow's") for note in notes)
    film = [f"clip_{n}_jpg.rf.{n:031x}a" for n in range(20)]  # its frames are numbered, too
    for name, frame in zip(film, _film(20, 3, seed=1), strict=True):
        frame.save(tmp_path / f"{name}.png")
    samples = [Sample(name, tmp_path / f"{name}.png", bytes, frozenset(), ".png") for name in film]
    assert len(group_images(samples, None, frames, 1)[0]) == (20 if frames is False else 1)


@needs("camvid")
def test_camvid_is_three_videos() -> None:
    files = {path.stem: path for path in (DATA / "camvid" / "train").iterdir()}
    for members in numbered_groups(list(files)).values():
        copies = [small_copy(Image.open(files[name])) for name in members[:40]]
        assert looks_like_video(dict(enumerate(copies)))
