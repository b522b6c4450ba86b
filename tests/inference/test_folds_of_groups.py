# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Images that are nearly the same are in one fold, so that no model has seen what it judges."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from advice import advises
from PIL import Image
from user_errors import raises_user_error

from mmseg_resnest.inference.label_errors.folds import assign_folds, group_samples
from mmseg_resnest.inference.label_errors.samples import LabelledSample


def samples_of(files: Sequence[Path]) -> list[LabelledSample]:
    return [
        LabelledSample(str(file), f"{file}.png", {}, (0, n), ()) for n, file in enumerate(files)
    ]


def photos(folder: Path, names: Sequence[str]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = np.random.default_rng([*name.encode()]).integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return [folder / name for name in names]


def video(folder: Path, name: str, length: int) -> list[Path]:
    """Frames that differ in a row."""
    files = photos(folder, [f"{name}_{n:03d}.png" for n in range(length)])
    for n, file in enumerate(files):
        pixels = np.array(Image.open(files[0]))
        pixels[n, :8] = n
        Image.fromarray(pixels).save(file)
    return files


def folds_of(files: Sequence[Path], number: int, **options: object) -> dict[str, int]:
    samples = samples_of(files)
    groups, _ = group_samples(samples, **options)  # type: ignore[arg-type]
    found = assign_folds(samples, number, groups)
    return {file.name: fold for file, fold in zip(files, found, strict=True)}


def test_frames_copies_and_versions_are_in_one_fold(tmp_path: Path) -> None:
    films = [video(tmp_path / "images", name, 8) for name in ("a", "b", "c")]
    single = photos(tmp_path / "images", [f"IMG_{n}.png" for n in range(20, 32)])
    copy = Path(shutil.copy(single[0], tmp_path / "images/other.png"))
    versions = photos(tmp_path / "images", [f"x_jpg.rf.{n:031x}a.png" for n in range(4)])
    fold_of = folds_of([*films[0], *films[1], *films[2], *single, copy, *versions], 3)
    for together in (*films, [single[0], copy], versions):
        assert len({fold_of[file.name] for file in together}) == 1
    assert len({fold_of[film[0].name] for film in films}) == 3
    assert len({fold_of[file.name] for file in single}) > 1
    sizes = np.bincount(list(fold_of.values()))
    assert sizes.max() - sizes.min() <= 1
    assert len(set(folds_of(films[0] + films[1], 2, frames=False).values())) == 2


def test_groups_by_a_pattern(tmp_path: Path) -> None:
    """Below the folder of all images, as the names of a split are."""
    files = [
        file for part in ("one", "two", "six")
        for file in photos(tmp_path / part, [f"{part[0]}{n}x.png" for n in range(4)])
    ]  # fmt: skip
    fold_of = folds_of(files, 3, pattern="([a-z]+)/.*")
    assert sorted(fold_of.values()) == [0] * 4 + [1] * 4 + [2] * 4
    assert len({(name[0], fold) for name, fold in fold_of.items()}) == 3
    with raises_user_error("argument", "--group-pattern"):
        group_samples(samples_of(files), "(")


@pytest.mark.parametrize("length", [4, 8])
def test_fewer_videos_than_folds_are_cut(tmp_path: Path, length: int) -> None:
    """Into neighbours, and no fold is empty."""
    fold_of = folds_of(video(tmp_path, "a", length), 3)
    order = [fold_of[name] for name in sorted(fold_of)]
    assert set(order) == {0, 1, 2}
    assert sum(one != other for one, other in itertools.pairwise(order)) == 2


def test_a_data_set_of_one_video(tmp_path: Path) -> None:
    samples = [
        LabelledSample(str(file), "", {}, (part, n), ())
        for part, name in enumerate("ab")
        for n, file in enumerate(video(tmp_path / name, name, 6))
    ]
    with advises("inference/label_errors/folds.py:assign_folds", "--no-frames"):
        assign_folds(samples, 2, group_samples(samples)[0])
    found = assign_folds(samples, 2, group_samples(samples, frames=False)[0])
    assert {found[n] for n in range(6)} == {found[n] for n in range(6, 12)} == {0, 1}


def test_photos_are_spread_as_before() -> None:
    samples = samples_of([Path(f"{n}.png") for n in range(7)])
    order = np.random.default_rng(0).permutation(7)
    expected = np.empty(7, int)
    expected[order] = np.arange(7) % 3
    assert assign_folds(samples, 3) == expected.tolist()
