# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A data set of bands, from a folder of files to labels, by commands."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile
from in_process import run
from PIL import Image

from mmseg_resnest.engine.config import load_config
from mmseg_resnest.inference import load_segmentor

SMALL = [
    "--cfg-options", "model.decode_head.channels=8",
    "model.backbone.arch={blocks: [1,1,1,1], base_width: 4, stem_width: 4}",
    "model.auxiliary_head=None", "train_dataloader.batch_size=2", "train_dataloader.num_workers=0",
    "val_dataloader.num_workers=0", "test_dataloader.num_workers=0", "train_cfg.max_iters=2",
    "train_cfg.val_interval=2", "default_hooks.checkpoint.interval=2",
]  # fmt: skip
CLASSES = ["ground", "water", "roof"]


def write_image(folder: Path, number: int, npy: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Five bands of 16 bits, some without data, and their labels."""
    rng = np.random.default_rng(number)
    labels = np.kron(rng.integers(0, 4, (6, 8)), np.ones((16, 16), int)).astype(np.uint8)
    labels[labels == 3] = 255
    means = np.array([100, 900, 3000, 5000, 20])
    bands = means + labels[:, :, None] * 7 + rng.normal(0, means / 9, (96, 128, 5))
    bands = bands.clip(1).astype(np.uint16)
    bands[:3, :5, 1] = 0
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    name = f"place{number:02d}x"
    if npy:
        np.save(folder / f"images/{name}.npy", np.moveaxis(bands, 2, 0))
    else:
        path = folder / f"images/{name}.tif"
        tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="contig")
    Image.fromarray(labels).save(folder / f"labels/{name}.png")
    return bands, labels


@dataclass
class World:
    """Files, the data set made of them, and a run."""

    folder: Path
    config: Path
    images: dict[str, tuple[np.ndarray, np.ndarray]]

    @property
    def root(self) -> list[str]:
        return ["--data-root", str(self.folder / "data")]


def prepare(folder: Path, *options: str, codes: tuple[int, ...] = (0,)) -> str:
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    return run(
        "prepare-data", "custom", "--name", "mine", "--format", "index", "--jobs", 1,
        "--source", folder / "labels", "--images", folder / "images",
        "--classes", folder / "classes.txt", "--root", folder / "data",
        "--config-dir", folder / "configs", "--base", "configs/fcn_resnest14_scenes.py",
        "--epochs", 2, *options, codes=codes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("bands")
    images = {f"place{i:02d}x": write_image(folder, i) for i in range(6)}
    options = ("--layout", "CHW", "--nodata", "0", "--bands", "4,2,1,5")
    assert "place" not in prepare(folder, *options, "--label-map", "roof=ground")
    return World(folder, folder / "configs/mine.py", images)


def test_the_config_has_the_bands_and_their_statistics(world: World) -> None:
    cfg = load_config(world.config, data_root=world.folder / "data")
    names = (world.folder / "data/mine/splits/train.txt").read_text().split()
    assert 0 < len(names) < 6
    for channel, band in enumerate((4, 2, 1, 5)):
        values = np.concatenate(
            [bands[:, :, band - 1][labels != 255] for bands, labels in map(world.images.get, names)]
        ).astype(np.float64)
        values = values[values != 0]  # no data
        preprocessor = cfg.model.data_preprocessor
        np.testing.assert_allclose(preprocessor.mean[channel], values.mean(), rtol=1e-5)
        np.testing.assert_allclose(preprocessor.std[channel], values.std(), rtol=1e-5)
    assert not preprocessor.bgr_to_rgb
    assert cfg.model.backbone.in_channels == 4
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        step = loader.dataset.pipeline[0]
        assert (step.type, step.bands, step.layout, step.nodata) == (
            "LoadBands", [4, 2, 1, 5], "CHW", 0,
        )  # fmt: skip
        assert step.fill == preprocessor.mean
    # A repetition measures nothing anew and changes nothing.
    before = world.config.read_bytes(), world.config.stat().st_mtime_ns
    options = ("--layout", "CHW", "--nodata", "0", "--bands", "4,2,1,5")
    said = prepare(world.folder, *options, "--label-map", "roof=ground")
    assert "has not changed" in said
    assert (world.config.read_bytes(), world.config.stat().st_mtime_ns) == before


def labels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_every_command_gives_the_labels_of_the_test(world: World) -> None:
    config, work = world.config, world.folder / "run"
    run("check-data", config, *world.root, codes=(0, 1))
    run("browse-data", config, *world.root, "--bands", "1,2,4", "--images", 1,
        "--out", world.folder / "sheets")  # fmt: skip
    assert len(list((world.folder / "sheets").rglob("*.png"))) == 1
    run("train", config, "--work-dir", work, "--device", "cpu", *world.root, *SMALL)
    checkpoint = next(iter(work.rglob("iter_2.pth")))
    tested = world.folder / "tested"
    run("test", config, checkpoint, "--out", tested, "--work-dir", world.folder / "test",
        *world.root, *SMALL)  # fmt: skip
    expected = {path.stem: labels_of(path) for path in tested.rglob("*.png")}
    assert expected and {int(v) for one in expected.values() for v in np.unique(one)} <= {0, 1}
    found = world.folder / "found"
    run("predict", config, checkpoint, world.folder / "images/*.npy", "--out", found,
        "--save", "labels", "--device", "cpu", *world.root, *SMALL)  # fmt: skip
    judged = world.folder / "judged"
    run("label-errors", config, checkpoint, "--out", judged, "--device", "cpu", *world.root, *SMALL)
    for entry in json.loads((judged / "label_errors.json").read_text())["images"]:
        _, labels = world.images[Path(entry["image"]).stem]
        assert entry["labelled_pixels"] == (labels != 255).sum()
    published = world.folder / "published"
    run("publish-model", config, checkpoint, published, *world.root, *SMALL)
    model = load_segmentor(published, device="cpu")
    assert model.classes == ["ground", "water"]
    for name, labels in expected.items():
        assert np.array_equal(labels_of(found / f"{name}.png"), labels)
        assert np.array_equal(model(world.folder / f"images/{name}.npy").labels, labels)


def test_what_cannot_be_prepared(tmp_path: Path) -> None:
    def refused(said: str, *options: str) -> None:
        assert said in prepare(tmp_path, *options, codes=(2,))
        assert not (tmp_path / "configs/mine.py").exists()

    write_image(tmp_path, 0)
    write_image(tmp_path, 1)
    refused("no band 6", "--layout", "CHW", "--bands", "6")
    refused("numbered from 1", "--bands", "0")
    refused("finite", "--nodata", "nan")
    refused("[size-mismatch]")  # HWC
    os.remove(tmp_path / "images/place01x.npy")
    Image.new("RGB", (128, 96)).save(tmp_path / "images/place01x.png")
    refused("[dataset]", "--layout", "CHW")
    os.remove(tmp_path / "images/place00x.npy")
    Image.new("RGB", (128, 96)).save(tmp_path / "images/place00x.png")
    refused("photos", "--bands", "1")


@pytest.mark.parametrize("kind", ["samples", "another number"])
def test_tiff(kind: str, tmp_path: Path) -> None:
    for number in range(3):
        bands, _ = write_image(tmp_path, number, npy=False)
    if kind == "another number":
        path = tmp_path / "images/place01x.tif"
        tifffile.imwrite(path, bands[:, :, :3], photometric="rgb")
        assert "choose those that all have" in prepare(tmp_path, codes=(2,))
        prepare(tmp_path, "--bands", "3,2,1")
        bands = bands[:, :, 2::-1]
    else:
        prepare(tmp_path)
    cfg = load_config(tmp_path / "configs/mine.py", data_root=tmp_path / "data")
    assert cfg.model.backbone.in_channels == bands.shape[2]
    assert len(cfg.model.data_preprocessor.mean) == bands.shape[2]
