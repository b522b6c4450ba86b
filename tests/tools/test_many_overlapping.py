# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""More classes that overlap than a number of 16 bits holds, from masks to predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from in_process import run
from PIL import Image

from mmseg_resnest import load_segmentor

CLASSES, HEIGHT, WIDTH = 18, 48, 64
SMALL = [
    "model.backbone.arch={blocks: [1,1,1,1], base_width: 4, stem_width: 4}",
    "model.decode_head.channels=8", "model.auxiliary_head=None", "train_dataloader.batch_size=2",
    *(f"{split}_dataloader.num_workers=0" for split in ("train", "val", "test")),
]  # fmt: skip


def planes_of(file: Path) -> np.ndarray:
    """(C, H, W) of a file of two maps of 15 classes and of 3."""
    wide = np.asarray(Image.open(file))
    assert wide.shape == (HEIGHT, 2 * WIDTH)
    return np.stack([np.split(wide, 2, axis=1)[c // 15] >> c % 15 & 1 for c in range(CLASSES)])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A folder with six photos and the data set ``mine``, and their masks (6, C, H, W)."""
    folder, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    masks = rng.integers(0, 2, (6, CLASSES, HEIGHT // 8, WIDTH // 8), np.uint8)
    masks = masks.repeat(8, 2).repeat(8, 3)
    (folder / "photos").mkdir()
    for n, planes in enumerate(masks):
        image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(image).save(folder / f"photos/p{n}x.png")
        for c, plane in enumerate(planes):
            (folder / f"masks/c{c:02d}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(plane * 255).save(folder / f"masks/c{c:02d}/p{n}x.png")
    run(
        "prepare-data", "custom", "--name", "mine", "--multilabel", "--format", "masks",
        "--source", folder / "masks", "--images", folder / "photos", "--jobs", 1,
        "--root", folder / "data", "--config-dir", folder, "--epochs", 2,
        "--base", "configs/fcn_resnest14_scenes.py",
    )  # fmt: skip
    return folder, masks


def test_prepared_checked_and_browsed(world: tuple[Path, np.ndarray]) -> None:
    folder, masks = world
    for n, planes in enumerate(masks):
        assert np.array_equal(planes_of(folder / f"data/mine/annotations/p{n}x.png"), planes)
    words = [folder / "mine.py", "--data-root", folder / "data"]
    said = run("check-data", *words, "--report", folder / "page.html")
    assert f"{CLASSES} of {CLASSES} classes occur, 0.0% ignored" in said
    run("browse-data", *words, "--out", folder / "sheets", "--images", 1, "--draws", 1)
    assert len(list((folder / "sheets").iterdir())) == 1


@pytest.mark.long
def test_trained_and_tested(world: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, _ = world
    words = ["--data-root", folder / "data", "--work-dir", tmp_path / "run", "--cfg-options"]
    run("train", folder / "mine.py", *words, *SMALL)
    run("test", tmp_path / "run", "--out", tmp_path / "out", "--show-dir", tmp_path / "show")
    model = load_segmentor(tmp_path / "run", device="cpu")
    files = sorted((tmp_path / "out").glob("*.png"))
    assert files
    for file in files:
        result = model(folder / f"photos/{file.name}")
        assert np.array_equal(planes_of(file) == 1, result.masks)
