# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a test predicts is what every other way to give an image predicts, pixel by pixel.

A table of the stack's loaders, with files that only they read right, through each tool.
"""

from __future__ import annotations

import base64
import copy
import functools
import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mmcv.transforms
import mmseg.datasets.transforms.loading as stack_loading
import numpy as np
import pytest
import tifffile
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmseg.datasets import BaseSegDataset
from own_loader import ReadHalf
from PIL import Image
from small_models import blobs, small_config
from starlette.testclient import TestClient
from user_errors import raises_user_error

from mmseg_resnest.apps import demo, serving
from mmseg_resnest.datasets import LoadImageFromFile
from mmseg_resnest.datasets.check import check_data
from mmseg_resnest.datasets.file_loading import decoded_by, received
from mmseg_resnest.datasets.reader import ImageReader
from mmseg_resnest.engine.benchmark import benchmark
from mmseg_resnest.engine.browse import browse, draw_sample
from mmseg_resnest.engine.testing import evaluate
from mmseg_resnest.export import compare, export_model
from mmseg_resnest.export.publish import check_loads_back, publish
from mmseg_resnest.inference import Segmentor, load_segmentor
from mmseg_resnest.inference.files import FileJob
from mmseg_resnest.io import decode_worker
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


def _deep_colours(path: Path, pixels: np.ndarray) -> None:
    values = pixels.astype(np.uint16) * 256 + pixels[:, :, ::-1]
    assert mmcv.imwrite(values, str(path))


def _alpha(path: Path, pixels: np.ndarray) -> None:
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
    "16-bit colours": Case(dict(type=FILE, color_type="unchanged", to_float32=True), _deep_colours,
                           mean=[30000.0] * 3, std=[15000.0] * 3),
    "four channels": Case(dict(type=FILE, color_type="unchanged"), _alpha, channels=4,
                          mean=[120.0], std=[60.0],
                          steps=[dict(type="Pad", size_divisor=32, pad_val=0)]),
    "four channels pillow": Case(
        dict(type=FILE, color_type="unchanged", imdecode_backend="pillow"), _alpha, channels=4,
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
    "own": Case(dict(type="ReadHalf"), own=True),
}  # fmt: skip


class _Gdal(SimpleNamespace):
    """Reads what GDAL would: bands first."""

    @staticmethod
    def Open(path: str) -> Any:
        return SimpleNamespace(ReadAsArray=lambda: np.moveaxis(tifffile.imread(path), 2, 0))


@pytest.fixture(autouse=True)
def gdal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_loading, "gdal", _Gdal(), raising=False)


def _config(case: Case, folder: Path) -> Config:
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


def _samples(cfg: Config) -> list[tuple[str, dict[str, Any]]]:
    """The images of the config's data set, and what its pipeline makes of them."""
    with building("mmseg_resnest"):
        dataset: Any = DATASETS.build(cfg.test_dataloader.dataset)
    return [(dataset.get_data_info(i)["img_path"], dataset[i]) for i in range(len(dataset))]


def _tested(model: Segmentor, cfg: Config) -> dict[str, np.ndarray]:
    """Labels by path, as testing makes them."""
    labels = {}
    for path, sample in _samples(cfg):
        with torch.inference_mode():
            done = model.model.test_step(pseudo_collate([sample]))
        labels[path] = done[0].pred_sem_seg.data[0].numpy()
    return labels


def _make_weights(model: Segmentor, cfg: Config) -> None:
    """Weights with which every class occurs; statistics of normalisation are those of images."""
    torch.manual_seed(0)
    data = pseudo_collate([_samples(cfg)[0][1]])
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


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    @functools.cache
    def made(name: str) -> World:
        case, folder = CASES[name], tmp_path_factory.mktemp("data")
        for part in ("images", "labels"):
            (folder / part).mkdir()
        cfg = _config(case, folder)
        model = load_segmentor(cfg, None, "cpu")
        for i, size in enumerate([(40, 56), (40, 56), (48, 56)]):
            path = folder / "images" / f"{i}{case.suffix}"
            case.write(path, blobs(*size, seed=i))
            size = model.reader.read(path).size
            Image.new("L", size[::-1]).save(folder / "labels" / f"{i}.png")
        _make_weights(model, cfg)
        labels = _tested(model, cfg)
        assert all(len(np.unique(one)) > 1 for one in labels.values())
        return World(case, cfg, model, labels)

    return made


@pytest.fixture(params=CASES)
def tested(request: pytest.FixtureRequest, world: Callable[[str], World]) -> World:
    return world(request.param)


def _labels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_files_bytes_and_arrays(tested: World, tmp_path: Path) -> None:
    model, case = tested.model, tested.case
    assert len(tested.labels) == 3
    for path, expected in tested.labels.items():
        assert np.array_equal(model(path).labels, expected)
        found = model.reader.decode(Path(path).read_bytes(), f"http://host/a{case.suffix}")
        assert np.array_equal(model(found).labels, expected)
        assert model(path).image.shape == (*expected.shape, 3)
        assert np.array_equal(model(path).scores().argmax(0), expected)
        if case.arrays:
            loaded = model.reader.read(path).pixels
            colours = loaded.ndim == 3 and loaded.shape[2] == 3 and not model.reader.rgb
            array = loaded[:, :, ::-1].copy() if colours else loaded
            assert np.array_equal(model(array).labels, expected)
            three = array[:, :, None] if array.ndim == 2 else array
            assert np.array_equal(model(three).labels, expected)
            if array.dtype != np.float32 or not model.reader.eight_bit:
                tensor = torch.from_numpy(three.copy()).permute(2, 0, 1)
                assert np.array_equal(model(tensor).labels, expected)
                assert np.array_equal(model(tensor[None])[0].labels, expected)
    job = FileJob(model, list(tested.labels), tmp_path, ["labels", "overlay", "side"])
    assert (job.run().done, len(list(tmp_path.rglob("*.*")))) == (3, 10)
    for path, expected in tested.labels.items():
        assert np.array_equal(_labels_of(tmp_path / f"{Path(path).stem}.png"), expected)


def _halves(dataset: Any) -> list[Any]:
    """Two data sets with one image and two images of a data set."""
    folder = Path(dataset.data_prefix.img_path).parent
    (folder / "first.txt").write_text("1\n")
    (folder / "others.txt").write_text("0\n2\n")
    return [dict(dataset, ann_file=str(folder / name)) for name in ("first.txt", "others.txt")]


def _split_pipeline(dataset: Any) -> Any:
    """A wrapper that goes on where its data set's pipeline ends."""
    inner = dict(dataset, pipeline=dataset.pipeline[:1])
    return dict(type="MultiImageMixDataset", dataset=inner, pipeline=dataset.pipeline[1:])


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "concat": lambda d: dict(type="ConcatDataset", datasets=_halves(d)),
    "repeat": lambda d: dict(type="RepeatDataset", times=1, dataset=d),
    "balanced": lambda d: dict(type="ClassBalancedDataset", oversample_thr=0.5, dataset=d),
    "mix": _split_pipeline,
    "nested": lambda d: dict(
        type="RepeatDataset", times=2,
        dataset=dict(type="ConcatDataset", datasets=[
            dict(type="ClassBalancedDataset", oversample_thr=2.0, dataset=_halves(d)[0]),
            dict(type="RepeatDataset", times=1, dataset=_split_pipeline(Config(_halves(d)[1]))),
        ]),
    ),
    "parts in other words": lambda d: dict(type="ConcatDataset", datasets=[
        _halves(d)[0],
        {**_halves(d)[1], "pipeline": [
            {**step, "type": f"mmseg.{step['type']}"} for step in d.pipeline
        ]},
    ]),
}  # fmt: skip


#: Loaders whose names mmseg has.
IN_MMSEG = [name for name, case in CASES.items()
            if isinstance(case.loader["type"], str) and case.loader["type"] != "LoadBands"
            and not case.own and case.suffix != ".npy"]  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_loader_in_every_wrapper(world: Callable[[str], World], wrapper: str) -> None:
    """What the network is given is the same, and so are labels: no network runs here."""
    for name in IN_MMSEG if wrapper == "parts in other words" else CASES:
        tested = world(name)
        cfg = copy.deepcopy(tested.cfg)
        cfg.test_dataloader.dataset = WRAPPERS[wrapper](cfg.test_dataloader.dataset)
        with building("mmseg_resnest"):
            reader = ImageReader.of(cfg.test_dataloader.dataset, "test_dataloader.dataset")
        seen = set()
        for path, sample in _samples(cfg):
            seen.add(path)
            single = reader.prepare(reader.read(path))["inputs"]
            plain = tested.model.reader.prepare(tested.model.reader.read(path))["inputs"]
            assert torch.equal(single, sample["inputs"]), (name, path)
            assert torch.equal(single, plain), (name, path)
        assert seen == set(tested.labels), name


#: Each wrapper with another loader, through the tools: a covering of the product above.
COVERED = {
    "concat": "grey", "repeat": "npy", "balanced": "bands", "mix": "own",
    "nested": "16-bit colours",
}  # fmt: skip


@pytest.mark.parametrize("wrapper", [
    pytest.param(name, marks=pytest.mark.long if name == "nested" else ()) for name in COVERED
])  # fmt: skip
def test_tools_take_wrapped_data_sets(
    world: Callable[[str], World], wrapper: str, tmp_path: Path
) -> None:
    tested = world(COVERED[wrapper])
    cfg = copy.deepcopy(tested.cfg)
    cfg.test_dataloader.dataset = WRAPPERS[wrapper](cfg.test_dataloader.dataset)
    wrapped = World(tested.case, cfg, load_segmentor(cfg, None, "cpu"), tested.labels)
    wrapped.model.model.load_state_dict(tested.model.model.state_dict())
    evaluated = _evaluated(wrapped, tmp_path)
    publish(wrapped.model, tmp_path / "published")
    published = load_segmentor(tmp_path / "published", device="cpu")
    function = decoded_by(wrapped.model.reader)
    for path, expected in tested.labels.items():
        assert np.array_equal(evaluated[path], expected)
        assert np.array_equal(wrapped.model(path).labels, expected)
        sent = received(wrapped.model.reader, function(Path(path).read_bytes()))
        assert np.array_equal(wrapped.model(sent).labels, expected)
        loaded = path if wrapper != "mix" else wrapped.model.reader.read(path)  # its own loader
        assert np.array_equal(published(loaded).labels, expected)
    assert browse(cfg, tmp_path / "sheets", "test", images=3, draws=1)["images"] == 3
    report = check_data(cfg, ["test"], workers=1, progress=False)
    assert {problem.rule for problem in report.problems} <= {"class_never", "rotated_image"}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_data_sets(world: Callable[[str], World], wrapper: str) -> None:
    tested = world("12 bits")
    cfg = tested.cfg.copy()
    cfg.test_dataloader = dict(dataset=WRAPPERS[wrapper](tested.cfg.test_dataloader.dataset))
    model = load_segmentor(cfg, None, "cpu")
    model.model.load_state_dict(tested.model.model.state_dict())
    assert model.classes == tested.model.classes
    labels = _tested(model, cfg)
    assert set(labels) == set(tested.labels)
    for path, expected in tested.labels.items():
        assert np.array_equal(labels[path], expected)
        assert np.array_equal(model(path).labels, expected)


def test_pipelines_that_no_single_image_can_go_through(world: Callable[[str], World]) -> None:
    def refused(code: str, change: Callable[[Any], Any], subject: str = "pipeline") -> None:
        cfg = world("default").cfg.copy()
        cfg.test_dataloader = dict(dataset=change(cfg.test_dataloader.dataset))
        with raises_user_error(code, subject):
            load_segmentor(cfg, None, "cpu")

    def steps(*new: Any) -> Callable[[Any], Any]:
        return lambda d: dict(d, pipeline=[*new, dict(type="PackSegInputs")])

    refused("config-value", lambda d: dict(d, pipeline=[dict(type="LoadImageFromFile")]))
    refused("config-value", steps(dict(type="LoadMultipleRSImageFromFile")))
    refused("config-value", steps(dict(type=FILE, color_type="bgr")))
    refused("config-value", steps(dict(type=FILE, imdecode_backend="turbojpeg")))
    refused("config-value", steps(dict(type=FILE), dict(type="Pad")))
    mosaic = dict(type="RandomMosaic", prob=1.0, img_scale=(32, 32))
    refused("config-value", lambda d: dict(
        type="MultiImageMixDataset", dataset=dict(d, pipeline=d.pipeline[:1]),
        pipeline=[mosaic, *d.pipeline[1:]],
    ))  # fmt: skip
    other = [dict(type=FILE, to_float32=True), dict(type="PackSegInputs")]
    refused("config-conflict", lambda d: dict(
        type="ConcatDataset", datasets=[d, dict(d, pipeline=other)],
    ), "test_dataloader.dataset")  # fmt: skip


def test_channels_that_the_model_does_not_take(
    world: Callable[[str], World], tmp_path: Path
) -> None:
    colours = {"test_dataloader.dataset.pipeline": [
        dict(type=FILE), dict(type="LoadAnnotations"), dict(type="PackSegInputs"),
    ]}  # fmt: skip
    with raises_user_error("config-conflict", "model.backbone.in_channels"):
        _evaluated(world("12 bits"), tmp_path, cfg=colours)
    cfg = world("12 bits").cfg.copy()
    cfg.merge_from_dict(colours)
    with raises_user_error("config-conflict", "model.backbone.in_channels"):
        load_segmentor(cfg, None, "cpu")
    tested = world("float")
    shutil.copytree(Path(next(iter(tested.labels))).parent, tmp_path / "images")
    _alpha(tmp_path / "images" / "2.png", blobs(48, 56))
    mixed = copy.deepcopy(tested.cfg.test_dataloader.dataset)
    mixed.data_prefix.img_path = str(tmp_path / "images")
    mixed.pipeline[0].color_type = "unchanged"
    with raises_user_error("image", "2.png") as caught:  # not of all images
        _evaluated(tested, tmp_path, cfg={"test_dataloader.dataset": mixed})
    assert "data_preprocessor.mean" in caught.value.message
    model = load_segmentor(
        Config(dict(tested.cfg, test_dataloader=dict(dataset=mixed))), None, "cpu"
    )
    with raises_user_error("image", "2.png"):
        model(tmp_path / "images" / "2.png")


def test_without_gdal(world: Callable[[str], World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_loading, "gdal", None)
    with raises_user_error("missing-package", "test_dataloader.dataset.pipeline"):
        load_segmentor(world("remote sensing").cfg, None, "cpu")
    with raises_user_error("missing-package", "test_dataloader.dataset.pipeline"):
        browse(world("remote sensing").cfg, "unused", "test")


def test_arrays_that_the_loader_does_not_give(world: Callable[[str], World]) -> None:
    grey, deep = world("grey").model, world("12 bits").model
    colours, shape = blobs(40, 56), (40, 56)
    with raises_user_error("input", "image array"):
        grey(np.zeros(shape, np.uint16))
    with raises_user_error("image", "an image"):
        deep(colours)
    with raises_user_error("input", "image array"):
        deep(np.zeros(shape, bool))
    data = io.BytesIO()
    Image.fromarray(colours).save(data, "PNG")
    expected = grey(grey.reader.decode(data.getvalue(), "a.png")).labels
    for image in (colours, np.dstack([colours, colours[:, :, :1]]), Image.fromarray(colours)):
        assert np.array_equal(grey(image).labels, expected)


def test_pil_images(tested: World) -> None:
    # Pillow decodes JPEG to other greys than OpenCV, and 8 of 16 bits of a colour.
    if (
        tested.case.suffix == ".png"
        and not tested.case.own
        and tested.case.write is not _deep_colours
    ):
        for path, expected in tested.labels.items():
            with Image.open(path) as image:
                if image.mode != "RGBA":
                    assert np.array_equal(tested.model(image).labels, expected)


def test_published_and_exported(tested: World, tmp_path: Path) -> None:
    model, case = tested.model, tested.case
    if not case.published:  # another step is of somebody's own
        with raises_user_error("export", "test_dataloader.dataset.pipeline"):
            publish(model, tmp_path / "published")
        with raises_user_error("export", "test_dataloader.dataset.pipeline"):
            export_model(model, tmp_path / "model.torchscript")
        return
    publish(model, tmp_path / "published")
    check_loads_back(model, tmp_path / "published")
    export_model(model, tmp_path / "model.torchscript")
    others = [
        load_segmentor(tmp_path / "published", device="cpu"),
        load_segmentor(tmp_path / "model.torchscript", trust=True),
    ]
    resized = [step for step in case.steps if step != PILLOW]
    one_for_three = case is CASES["grey for three means"]
    if model.reader.eight_bit and not resized and not one_for_three:
        export_model(model, tmp_path / "whole.torchscript", processing=True)
        others.append(load_segmentor(tmp_path / "whole.torchscript", trust=True))
    else:
        with raises_user_error("export", "test_dataloader.dataset.pipeline"):
            export_model(model, tmp_path / "whole.torchscript", processing=True)
    for other in others:
        if case.own:
            path, expected = next(iter(tested.labels.items()))
            pixels = model.reader.read(path).pixels
            assert np.array_equal(other(pixels[:, :, ::-1]).labels, expected)
            with raises_user_error("input", path):
                other(path)
            with raises_user_error("config-value"):
                serving.create_app(other)
            continue
        assert compare(model, other, list(tested.labels)[:1]).good
        # A file that resizes as well rounds scores in another order.
        allowed = 1e-3 if case.steps and getattr(other.model, "gives_labels", False) else 0
        for path, expected in tested.labels.items():
            assert (other(path).labels != expected).mean() <= allowed
    publish(others[0], tmp_path / "again")  # carries the loader on


@pytest.mark.parametrize("name", ["12 bits", "chosen bands"])
def test_onnx(world: Callable[[str], World], name: str, tmp_path: Path) -> None:
    tested = world(name)
    export_model(tested.model, tmp_path / "model.onnx")
    other = load_segmentor(tmp_path / "model.onnx")
    for path, expected in tested.labels.items():
        assert np.array_equal(other(path).labels, expected)


@pytest.mark.parametrize("name", ["grey", "12 bits", "bands", "chosen bands"])
def test_served(world: Callable[[str], World], name: str) -> None:
    tested = world(name)
    with TestClient(serving.create_app(tested.model)) as client:
        for path, expected in tested.labels.items():
            answer = client.post("/predict", content=Path(path).read_bytes())
            assert answer.status_code == 200, answer.text
            with Image.open(io.BytesIO(answer.content)) as labels:
                assert np.array_equal(np.asarray(labels), expected)
            overlay = client.post("/predict?output=overlay", content=Path(path).read_bytes())
            assert overlay.status_code == 200


def test_shown_on_the_page(world: Callable[[str], World]) -> None:
    names = ("12 bits", "grey", "default")
    choices = [demo.Choice(name, lambda name=name: world(name).model) for name in names]
    with TestClient(demo.create_app(choices)) as client:
        for name in names:  # each reads in its way
            for path, expected in world(name).labels.items():
                data = Path(path).read_bytes()
                answer = client.post("/segment", params={"model": name}, content=data).json()
                picture = base64.b64decode(answer["labels"].partition(",")[2])
                with Image.open(io.BytesIO(picture)) as labels:
                    assert np.array_equal(np.asarray(labels)[:, :, 0], expected)


@pytest.mark.parametrize("steps", [
    [dict(type="LoadBiomedicalImageFromFile", decode_backend="pickle"), dict(type="MiddleSlice")],
    [dict(type="ReadHalf", said=lambda: "no text")],
    [dict(type="LoadHere")],
])  # fmt: skip
def test_loaders_that_no_service_can_run(
    world: Callable[[str], World], steps: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReadHalf, "__module__", "own_loader")
    here = type("LoadHere", (ReadHalf,), {"__module__": "__main__"})
    TRANSFORMS.register_module(name="LoadHere", module=here, force=True)
    cfg = copy.deepcopy(world("own").cfg)
    cfg.test_dataloader.dataset.pipeline = [*steps, dict(type="PackSegInputs")]
    with raises_user_error("config-value", "test_dataloader.dataset.pipeline"):
        serving.create_app(load_segmentor(cfg, None, "cpu"))


@pytest.mark.parametrize("name", ["npy", "remote sensing", "volume", "own"])
def test_bytes_for_a_loader_in_another_process(
    world: Callable[[str], World], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What that process does, here; paths of modules are those that it was sent."""
    tested = world(name)
    flag, kind = decoded_by(tested.model.reader).as_bytes()
    assert kind == b"pickle"
    monkeypatch.setattr(sys, "path", [])
    function = decode_worker._function(flag.decode())
    for path, expected in tested.labels.items():
        pixels, facts = function(Path(path).read_bytes())
        image = received(tested.model.reader, (pixels, json.loads(json.dumps(facts))))
        assert np.array_equal(tested.model(image).labels, expected)
    assert facts.get("said") == ("half" if name == "own" else None)


@pytest.mark.long
def test_a_loader_that_reads_files_is_served(world: Callable[[str], World]) -> None:
    tested, program = world("own"), io.BytesIO()
    np.save(program, np.array([print], object))
    with TestClient(serving.create_app(tested.model)) as client:
        for path, expected in tested.labels.items():
            answer = client.post("/predict", content=Path(path).read_bytes())
            with Image.open(io.BytesIO(answer.content)) as labels:
                assert np.array_equal(np.asarray(labels), expected)
        for data in (program.getvalue(), b"no image", b""):
            answer = client.post("/predict", content=data)
            assert answer.status_code == 400, answer.text
            assert "/" not in answer.json()["detail"]  # no names of this machine
        assert "program" in client.post("/predict", content=program.getvalue()).text
        assert not [*Path("/dev/shm").glob("decode_*/*/*")]


def _evaluated(tested: World, folder: Path, **changes: Any) -> dict[str, np.ndarray]:
    """Labels by path, as the tool ``test`` writes them, with pictures beside them."""
    cfg = tested.cfg.copy()
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
    return {path: _labels_of(out / f"{Path(path).stem}.png") for path in tested.labels}


@pytest.mark.parametrize("name", ["chosen bands", "grey", "arrays", "tifffile colours", "own"])
def test_the_tool_test_and_its_pictures(
    world: Callable[[str], World], name: str, tmp_path: Path
) -> None:
    tested = world(name)
    labels = _evaluated(tested, tmp_path)
    for path, expected in tested.labels.items():
        assert np.array_equal(labels[path], expected)
    with building("mmseg_resnest"):
        picture = ImageReader.pictures(DATASETS.build(tested.cfg.test_dataloader.dataset))
    for path in labels:
        assert np.array_equal(picture(path), tested.model(path).image)
    if name == "tifffile colours":
        assert np.array_equal(picture(path), tifffile.imread(path))


def test_outputs_are_named_by_a_path(world: Callable[[str], World], tmp_path: Path) -> None:
    steps = copy.deepcopy(world("grey").cfg.test_dataloader.dataset.pipeline)
    steps[-1] = dict(type="PackSegInputs", meta_keys=("ori_shape", "img_shape"))
    with raises_user_error("config-value", "test_dataloader.dataset.pipeline"):
        _evaluated(world("grey"), tmp_path, cfg={"test_dataloader.dataset.pipeline": steps})


@pytest.mark.parametrize("name", ["12 bits", "four channels", "grey"])
def test_tiles_of_files(world: Callable[[str], World], name: str, tmp_path: Path) -> None:
    tested = world(name)
    path = tmp_path / "large.png"
    tested.case.write(path, blobs(150, 130, seed=7))
    expected = tested.model(path, tile=64)
    assert len(np.unique(expected.labels)) > 1
    FileJob(tested.model, [str(path)], tmp_path / "out", ["labels", "side"], tile=64).run()
    assert np.array_equal(_labels_of(tmp_path / "out" / "large.png"), expected.labels)


def test_tta_reads_as_the_test_does(world: Callable[[str], World], tmp_path: Path) -> None:
    tested = world("12 bits, integers")
    plain = [dict(type=FILE), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
    tta = dict(tta_model=dict(type="MultiScaleGridTTA", scales=(1.0,), flip=False, base_size=56,
                              crop_size=64), tta_pipeline=plain)  # fmt: skip
    labels = _evaluated(tested, tmp_path, tta=True, cfg=tta)
    cfg = tested.cfg.copy()
    cfg.model.test_cfg = dict(mode="multi_scale_grid", scales=(1.0,), flip=False, base_size=56,
                              crop_size=64)  # fmt: skip
    model = load_segmentor(cfg, None, "cpu")
    model.model.load_state_dict(tested.model.model.state_dict())
    for path in tested.labels:
        assert np.array_equal(labels[path], model(path).labels)
    plain[0] = dict(type=FILE, color_type="grayscale")
    with raises_user_error("config-conflict", "tta_pipeline"):
        _evaluated(tested, tmp_path, tta=True, cfg=tta)


def test_browsed(tested: World, tmp_path: Path) -> None:
    done = browse(tested.cfg, tmp_path, "test", images=2, draws=1, steps=True)
    assert done["images"] == len(list(tmp_path.iterdir())) == 2
    with building("mmseg_resnest"):
        dataset: Any = DATASETS.build(tested.cfg.test_dataloader.dataset)
    path = dataset.get_data_info(0)["img_path"]
    if tested.case.steps != [dict(type="MiddleSlice")]:
        first = draw_sample(dataset, 0, 0)[0]
        assert np.array_equal(first.image, tested.model(path).image)


#: What a loader makes of images that check-data warns of, by the name of a case.
WARNINGS = {
    "default": {"rotated_image"}, "stock class": {"rotated_image"}, "grey": {"rotated_image"},
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("volume", "arrays")])
def test_checked(world: Callable[[str], World], name: str) -> None:
    report = check_data(world(name).cfg, ["test"], workers=1, progress=False)
    found = {problem.rule for problem in report.problems}
    assert found - {"class_never"} == WARNINGS.get(name, set())


def test_checked_as_it_is_read(world: Callable[[str], World]) -> None:
    for name, rules in (
        ("12 bits", {"deep_image", "grey_image", "channels"}),
        ("four channels", {"alpha_image", "channels"}),
    ):
        cfg = world(name).cfg.copy()
        cfg.test_dataloader.dataset.pipeline[0] = dict(type=FILE)
        report = check_data(cfg, ["test"], workers=1, progress=False)
        assert {problem.rule for problem in report.problems} - {"class_never"} == rules


@pytest.mark.parametrize("name", ["grey", "four channels", "bands"])
def test_measured(world: Callable[[str], World], name: str) -> None:
    result = benchmark(world(name).cfg, (64, 64), device="cpu", seconds=0)
    assert result["flops"] > 0
    assert result["testing"]["images_per_second"] > 0
