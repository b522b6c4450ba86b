# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A table of the stack's loaders, with files that only they read right, and models for them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mmcv.transforms
import numpy as np
import tifffile
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmseg.datasets import BaseSegDataset
from own_loader import ReadHalf
from PIL import Image
from small_models import blobs, small_config

from mmseg_resnest import load_segmentor
from mmseg_resnest.datasets import LoadImageFromFile
from mmseg_resnest.engine.testing import evaluate
from mmseg_resnest.inference import Segmentor
from mmseg_resnest.registry import DATASETS, TRANSFORMS, building


@TRANSFORMS.register_module(force=True)
class MiddleSlice(BaseTransform):
    """A slice of a volume (N, Z, Y, X)."""

    def transform(self, results: dict) -> dict:
        results["img"] = np.moveaxis(results["img"][:, results["img"].shape[1] // 2], 0, 2)
        results["img_shape"] = results["ori_shape"] = results["img"].shape[:2]
        return results


@DATASETS.register_module(force=True)
class ArraysDataset(BaseSegDataset):
    """A data set that has its images in memory, as OpenCV reads them."""

    def get_data_info(self, idx: int) -> dict:
        sample = super().get_data_info(idx)
        return {**sample, "img": mmcv.imread(sample["img_path"])}


def _turned(path: Path, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)


def _twelve_bits(path: Path, pixels: np.ndarray) -> None:
    values = pixels[:, :, 0].astype(np.uint16) * 16 + pixels[:, :, 1] % 16
    Image.fromarray(values).save(path)


def write_deep_colours(path: Path, pixels: np.ndarray) -> None:
    values = pixels.astype(np.uint16) * 256 + pixels[:, :, ::-1]
    assert mmcv.imwrite(values, str(path))


def write_alpha(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(np.dstack([pixels, pixels[::-1, :, 0]])).save(path)


def _bands(path: Path, pixels: np.ndarray) -> None:
    bands = np.dstack([pixels, pixels[:, ::-1, :2]]).astype(np.float32) / 100
    tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="contig")


def _array(path: Path, pixels: np.ndarray) -> None:
    np.save(path, pixels.astype(np.float32)[:, :, :2])


def _planes(path: Path, pixels: np.ndarray) -> None:
    np.save(path, np.moveaxis(pixels.astype(np.uint16)[:, :, :2], 2, 0))


def _volume(path: Path, pixels: np.ndarray) -> None:
    np.save(path, np.moveaxis(np.stack([pixels[:, :, 0]] * 3), 0, 0)[None].astype(np.float32))


def _plain(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


@dataclass
class Case:
    """A loader, the files that it reads, and the network that takes its images."""

    loader: dict[str, Any]
    write: Callable[[Path, np.ndarray], None] = _plain
    suffix: str = ".png"
    channels: int = 3
    mean: list[float] | None = field(default_factory=lambda: [123.675, 116.28, 103.53])
    std: list[float] | None = field(default_factory=lambda: [58.395, 57.12, 57.375])
    steps: list[Any] = field(default_factory=list)
    dataset: str = "BaseSegDataset"
    arrays: bool = True  # whether an array can stand for a file
    published: bool = True
    own: bool = False  # whether the loader is in no file: arrays are given


GREY = dict(channels=1, mean=[120.0], std=[60.0])
FILE = "LoadImageFromFile"
RESIZE = dict(type="Resize", scale=(70, 44), keep_ratio=False)
PILLOW = dict(RESIZE, keep_ratio=True, backend="pillow")
CASES = {
    "default": Case(dict(type=FILE), _turned),
    "jpeg": Case(dict(type=FILE), suffix=".jpg", steps=[PILLOW]),
    "class": Case(dict(type=LoadImageFromFile, color_type="grayscale"), **GREY),
    "stock class": Case(dict(type=mmcv.transforms.LoadImageFromFile, imdecode_backend="pillow"),
                        _turned),
    "float": Case(dict(type=FILE, to_float32=True), steps=[dict(type="Resize", scale_factor=1.5)]),
    "grey": Case(dict(type=FILE, color_type="grayscale"), _turned, ".jpg", **GREY),
    "grey for three means": Case(dict(type=FILE, color_type="grayscale")),
    "grey pillow": Case(
        dict(type=FILE, color_type="grayscale", imdecode_backend="pillow", to_float32=True), **GREY
    ),
    "ignore orientation": Case(dict(type=FILE, color_type="color_ignore_orientation"), _turned),
    "flag": Case(dict(type=FILE, color_type=2), _twelve_bits, channels=1, mean=[2048.0],
                 std=[900.0]),
    "12 bits": Case(dict(type=FILE, color_type="unchanged", to_float32=True), _twelve_bits,
                    channels=1, mean=[2048.0], std=[900.0], steps=[RESIZE]),
    "12 bits, integers": Case(dict(type=FILE, color_type="unchanged"), _twelve_bits,
                              channels=1, mean=[2048.0], std=[900.0]),
    "16-bit colours": Case(dict(type=FILE, color_type="unchanged", to_float32=True),
                           write_deep_colours, mean=[30000.0] * 3, std=[15000.0] * 3),
    "four channels": Case(dict(type=FILE, color_type="unchanged"), write_alpha, channels=4,
                          mean=[120.0], std=[60.0],
                          steps=[dict(type="Pad", size_divisor=32, pad_val=0)]),
    "four channels pillow": Case(
        dict(type=FILE, color_type="unchanged", imdecode_backend="pillow"), write_alpha, channels=4,
        mean=None, std=None, steps=[dict(type="Normalize", mean=[9.0] * 4, std=[60.0] * 4,
                                         to_rgb=False)],
    ),
    "bands": Case(dict(type=FILE, color_type="unchanged", imdecode_backend="tifffile"), _bands,
                  ".tif", 5, [1.2], [0.6]),
    "tifffile colours": Case(dict(type=FILE, imdecode_backend="tifffile"),
                             lambda p, x: tifffile.imwrite(p, x, photometric="rgb"), ".tif"),
    "arrays": Case(dict(type="LoadImageFromNDArray", to_float32=True), dataset="ArraysDataset"),
    "chosen bands": Case(
        dict(type="LoadBands", bands=[5, 1, 2, 3], nodata=0, fill=[1, 1, 2, 1], picture=[3, 2, 1]),
        _bands, ".tif", 4, [1.2, 1.1, 1, 1.3], [0.6, 0.5, 0.6, 0.7], [RESIZE],
    ),
    "channels first": Case(dict(type="LoadBands", layout="CHW"), _planes, ".npy", 2, [120.0, 90.0],
                           [60.0, 50.0]),
    "npy": Case(dict(type="LoadImageFromNpyFile"), _array, ".npy", 2, [120.0], [60.0]),
    "remote sensing": Case(dict(type="LoadSingleRSImageFromFile"), _bands, ".tif", 5, [1.2], [0.6]),
    "volume": Case(dict(type="LoadBiomedicalImageFromFile", decode_backend="numpy"), _volume,
                   ".npy", 1, [120.0], [60.0], [dict(type="MiddleSlice")], arrays=False,
                   published=False),
    "own": Case(dict(type=ReadHalf.__name__), own=True),
}  # fmt: skip


class Gdal(SimpleNamespace):
    """Reads what GDAL would: bands first."""

    @staticmethod
    def Open(path: str) -> Any:
        return SimpleNamespace(ReadAsArray=lambda: np.moveaxis(tifffile.imread(path), 2, 0))


def config_of(case: Case, folder: Path) -> Config:
    cfg = small_config(classes=4)
    cfg.model.data_preprocessor.update(mean=case.mean, std=case.std)
    cfg.model.backbone.in_channels = case.channels
    cfg.test_dataloader.dataset.update(
        type=case.dataset, img_suffix=case.suffix, seg_map_suffix=".png",
        data_prefix=dict(img_path=str(folder / "images"), seg_map_path=str(folder / "labels")),
        pipeline=[
            dict(case.loader), *case.steps, dict(type="LoadAnnotations"),
            dict(type="PackSegInputs"),
        ],
    )  # fmt: skip
    return cfg


@dataclass
class World:
    """A model, and what a test predicts of its images, by their paths."""

    case: Case
    cfg: Config
    model: Segmentor
    labels: dict[str, np.ndarray]


def samples_of(cfg: Config) -> list[tuple[str, dict[str, Any]]]:
    """The images of the config's data set, and what its pipeline makes of them."""
    with building("mmseg_resnest"):
        dataset: Any = DATASETS.build(cfg.test_dataloader.dataset)
    return [(dataset.get_data_info(i)["img_path"], dataset[i]) for i in range(len(dataset))]


def labels_of_test(model: Segmentor, cfg: Config) -> dict[str, np.ndarray]:
    """Labels by path, as testing makes them."""
    labels = {}
    for path, sample in samples_of(cfg):
        with torch.inference_mode():
            done = model.model.test_step(pseudo_collate([sample]))
        labels[path] = done[0].pred_sem_seg.data[0].numpy()
    return labels


def make_weights(model: Segmentor, cfg: Config) -> None:
    """Weights with which every class occurs; statistics of normalisation are those of images."""
    torch.manual_seed(0)
    data = pseudo_collate([samples_of(cfg)[0][1]])
    net: Any = model.model
    last = net.decode_head.conv_seg
    torch.nn.init.normal_(last.weight)
    with torch.no_grad():
        inputs = net.data_preprocessor(data, False)["inputs"]
        net.train()
        for _ in range(30):
            net.extract_feat(inputs)
        net.eval()
        logits = net.decode_head(net.extract_feat(inputs))
        spread, mean = logits.std((0, 2, 3)), logits.mean((0, 2, 3))
        last.weight /= spread[:, None, None, None]
        last.bias -= mean / spread


def make_world(case: Case, folder: Path) -> World:
    """The model of a case, with three images."""
    for part in ("images", "labels"):
        (folder / part).mkdir()
    cfg = config_of(case, folder)
    model = load_segmentor(cfg, None, "cpu")
    for i, size in enumerate([(40, 56), (40, 56), (48, 56)]):
        path = folder / "images" / f"{i}{case.suffix}"
        case.write(path, blobs(*size, seed=i))
        size = model.reader.read(path).size
        Image.new("L", size[::-1]).save(folder / "labels" / f"{i}.png")
    make_weights(model, cfg)
    labels = labels_of_test(model, cfg)
    assert all(len(np.unique(one)) > 1 for one in labels.values())
    return World(case, cfg, model, labels)


def labels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def evaluated(tested: World, folder: Path, **changes: Any) -> dict[str, np.ndarray]:
    """Labels by path, as the tool ``test`` writes them, with pictures beside them."""
    cfg = copy.deepcopy(tested.cfg)
    cfg.test_dataloader.update(
        batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False)
    )
    cfg.update(test_evaluator=dict(type="SegmentationMetric"), test_cfg=dict(type="TestLoop"))
    cfg.merge_from_dict(changes.pop("cfg", {}))
    torch.save({"state_dict": tested.model.model.state_dict()}, folder / "weights.pth")
    out, show = folder / "out", folder / "show"
    evaluate(cfg, folder / "weights.pth", folder / "run", out_dir=out, show_dir=show, **changes)
    assert len(list(show.iterdir())) == len(list(out.iterdir())) == 3
    assert len(list((folder / "run" / "examples").glob("*.jpg"))) == 3
    return {path: labels_of(out / f"{Path(path).stem}.png") for path in tested.labels}
