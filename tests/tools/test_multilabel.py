# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""One class by a sigmoid, and classes that overlap, through every tool: the same labels come out.

What they are compared with is computed here, from the network's layers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from advice import refused
from in_process import run
from numpy.typing import NDArray
from overlapping import ONE, SEVERAL, bits, shapes_config, write_shapes
from PIL import Image
from starlette.testclient import TestClient
from user_errors import raises_user_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.apps import demo, serving
from mmseg_resnest.engine.launch import Machine
from mmseg_resnest.engine.resolve import TrainingOptions, resolve
from mmseg_resnest.evaluation.results_file import read_examples
from mmseg_resnest.inference import MultilabelSegmentation


@dataclass
class World:
    """A trained model in a folder of its own, and what it says of the images to validate on."""

    folder: Path
    several: bool
    config: Path
    checkpoint: Path
    expected: dict[str, NDArray[np.integer]]

    @property
    def images(self) -> list[Path]:
        return sorted((self.folder / "data" / "images" / "val").iterdir())

    def run(self, tool: str, *words: object) -> str:
        return run(tool, self.config, self.checkpoint, *words)

    def run_wrong(self, tool: str, *words: object) -> str:
        return run(tool, self.config, self.checkpoint, *words, codes=(2,))


def _chances(model: Any, path: Path) -> NDArray[np.float32]:
    """(C, H, W) sigmoids of what the layers give for an image."""
    pixels = torch.from_numpy(np.asarray(Image.open(path)).astype(np.float32)).permute(2, 0, 1)
    net, pre = model.model, model.model.data_preprocessor
    with torch.no_grad():
        scores = net.decode_head.forward(net.backbone(((pixels - pre.mean) / pre.std)[None]))
        resize = torch.nn.functional.interpolate
        scores = resize(scores, pixels.shape[1:], mode="bilinear", align_corners=False)
    return scores[0].sigmoid().numpy()


def _gap(values: NDArray[np.float32]) -> float:
    """A threshold that a third of the values is above and none is near."""
    some = np.sort(values.reshape(-1))
    some = some[int(0.5 * len(some)) : int(0.8 * len(some))]
    widest = int(np.diff(some).argmax())
    return float(some[widest : widest + 2].mean())


def _made(folder: Path, several: bool) -> World:
    cfg = shapes_config(write_shapes(folder / "data", several), several)
    config = folder / "shapes.py"
    cfg.dump(str(config))
    if several:
        said = run("train", config, "--work-dir", folder / "run")
        assert "recall" in said
        checkpoint = next((folder / "run").glob("best_mIoU_*.pth"))
        model = load_segmentor(config, checkpoint, "cpu")
    else:
        torch.manual_seed(0)
        model = load_segmentor(config, None, "cpu")
        checkpoint = folder / "weights.pth"
        torch.save({"state_dict": model.model.state_dict()}, checkpoint)
    images = sorted((folder / "data" / "images" / "val").iterdir())
    chances = {path.stem: _chances(model, path) for path in images}
    limits = [_gap(np.stack([c[i] for c in chances.values()])) for i in range(len(chances["val0"]))]
    if several:
        cfg.model.test_cfg.thresholds = limits
    else:
        cfg.model.decode_head.threshold = limits[0]
    cfg.dump(str(config))
    masks = {name: c > np.array(limits)[:, None, None] for name, c in chances.items()}
    expected = {name: bits(m) if several else m[0].astype(np.uint8) for name, m in masks.items()}
    assert all(len(np.unique(one)) > 1 for one in expected.values())
    return World(folder, several, config, checkpoint, expected)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> World:
    return _made(tmp_path_factory.mktemp("one"), several=False)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> World:
    return _made(tmp_path_factory.mktemp("several"), several=True)


@pytest.fixture(params=["one", "several"])
def world(request: pytest.FixtureRequest) -> World:
    return request.getfixturevalue(request.param)


def _same(world: World, folder: Path) -> None:
    for name, expected in world.expected.items():
        picture = Image.open(folder / f"{name}.png")
        assert picture.mode == ("L" if world.several else "P")
        assert np.array_equal(np.asarray(picture), expected)


def test_tested_and_reported(world: World, tmp_path: Path) -> None:
    out, show, work = tmp_path / "out", tmp_path / "show", tmp_path / "work"
    said = world.run("test", "--out", out, "--show-dir", show, "--work-dir", work)
    _same(world, out)
    assert len(list(show.iterdir())) == 3
    result = json.loads((work / "results.json").read_text())
    assert [row["name"] for row in result["classes"]] == list(SEVERAL if world.several else ONE)
    examples = read_examples(work / "examples" / "examples.json")
    assert len(examples["images"]) == 3
    if world.several:
        assert {"mIoU", "mF1", "mAP"} <= set(result["scores"])
        assert f"mAP {result['mAP']:.2f}" in said
        assert "disc + square" in examples["classes"]
        _scores_of(world, result)
    said = run("report", work, "--out", tmp_path / "report.html")
    assert "examples    3" in said
    published = tmp_path / "published"
    world.run("publish-model", published, "--results", work / "results.json")
    model = load_segmentor(published, device="cpu")
    for path in world.images:
        assert np.array_equal(model(path).labels, world.expected[path.stem])


def _scores_of(world: World, result: dict[str, Any]) -> None:
    """IoU of the written label maps."""
    found, truth = [], []
    for path in world.images:
        labels = np.asarray(Image.open(world.folder / "data" / "annotations" / "val" / path.name))
        known = labels != 255
        for where, one in ((truth, labels), (found, world.expected[path.stem])):
            where.append([(one >> c & 1)[known] for c in range(3)])
    for c, row in enumerate(result["classes"]):
        a, b = (np.concatenate([x[c] for x in some]) == 1 for some in (found, truth))
        assert row["IoU"] == pytest.approx(100 * (a & b).sum() / (a | b).sum())


def test_predicted(world: World, tmp_path: Path) -> None:
    kinds = ["labels", "overlay", "side", "geojson", "coco"]
    folder = world.folder / "data" / "images" / "val"
    world.run("predict", folder, "--out", tmp_path / "out", "--save", *kinds)
    _same(world, tmp_path / "out")
    outlines = json.loads((tmp_path / "out" / "val0.geojson").read_text())["features"]
    areas = dict.fromkeys(SEVERAL if world.several else ONE, 0)
    for feature in outlines:
        areas[feature["properties"]["name"]] += feature["properties"]["area"]
    model = load_segmentor(world.config, world.checkpoint, "cpu")
    result = model(world.images[0])
    assert areas == {name: area.pixels for name, area in result.areas().items()}
    if world.several:
        assert isinstance(result, MultilabelSegmentation)
        expected = [(world.expected["val0"] >> c & 1) == 1 for c in range(3)]
        assert np.array_equal(result.masks, expected)
        assert np.array_equal(result.mask("square"), expected[1])
        chances = result.scores()
        assert np.array_equal(chances > np.array(model.cfg.model.test_cfg.thresholds).reshape(
            3, 1, 1), expected)  # fmt: skip
        only = np.asarray(result.overlay(1.0, "disc"))
        assert not np.array_equal(only, np.asarray(result.overlay(1.0)))


def test_in_tiles(world: World, tmp_path: Path) -> None:
    image = np.tile(np.asarray(Image.open(world.images[0])), (3, 3, 1))
    Image.fromarray(image).save(tmp_path / "large.png")
    kinds = ["labels", "overlay", "coco"]
    out = tmp_path / "out"
    world.run("predict", tmp_path / "large.png", "--out", out, "--tile", 96, "--save", *kinds)
    model = load_segmentor(world.config, world.checkpoint, "cpu")
    result = model(image, tile=96)
    picture = Image.open(out / "large.png")
    assert np.array_equal(np.asarray(picture), result.labels)
    assert picture.mode == ("L" if world.several else "P")
    (whole,) = (model(image, tile=0),)
    assert (result.labels == whole.labels).mean() > 0.8
    joined = json.loads((out / "coco.json").read_text())
    assert sum(entry["area"] for entry in joined["annotations"]) == sum(
        area.pixels for area in result.areas().values()
    )


@pytest.mark.parametrize(
    ("name", "processing"), [("one", True), ("several", False), ("several", True)]
)
def test_exported(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, processing: bool
) -> None:
    world = request.getfixturevalue(name)
    file = tmp_path / "model.onnx"
    world.run("export-onnx", file, *(["--processing"] if processing else []))
    model = load_segmentor(file)
    for path in world.images:
        result = model(path)
        assert np.array_equal(result.labels, world.expected[path.stem])
    if world.several and processing:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file))
        (masks,) = session.run(["masks"], {"images": np.asarray(Image.open(path))[None]})
        assert masks.dtype == np.uint8
        assert np.array_equal(masks[0] == 1, result.masks)
        image = np.tile(np.asarray(Image.open(path)), (3, 3, 1))
        assert model(image, tile=96).labels.shape == (144, 192)


def test_served(world: World) -> None:
    model = load_segmentor(world.config, world.checkpoint, "cpu")
    path = world.images[0]
    with TestClient(serving.create_app(model)) as client:
        assert client.get("/model").json()["multilabel"] is world.several
        answer = client.post("/predict", content=path.read_bytes())
        (Path(world.folder) / "answer.png").write_bytes(answer.content)
        areas = client.post("/predict?output=areas", content=path.read_bytes()).json()["areas"]
        assert client.post("/predict?output=overlay", content=path.read_bytes()).status_code == 200
    found = np.asarray(Image.open(world.folder / "answer.png"))
    assert np.array_equal(found, world.expected[path.stem])
    expected = {name: area.pixels for name, area in model(path).areas().items() if area.pixels}
    assert {area["name"]: area["pixels"] for area in areas} == expected
    with TestClient(demo.create_app([demo.Choice("shapes", lambda: model)])) as client:
        answer = client.post("/segment?model=shapes", content=path.read_bytes())
    shown = answer.json()["areas"]
    assert sum(area["pixels"] for area in shown) == 48 * 64


def test_checked_and_browsed(several: World, tmp_path: Path) -> None:
    said = run("check-data", several.config, "--report", tmp_path / "page.html")
    assert "no problem" in said
    assert "3 of 3 classes occur, 1.3% ignored" in said
    run("browse-data", several.config, "--out", tmp_path / "sheets", "--images", 2, "--steps")
    assert len(list((tmp_path / "sheets").iterdir())) == 2


def test_files_that_check_data_names(several: World, tmp_path: Path) -> None:
    shutil.copytree(several.folder / "data", tmp_path / "data")
    wrong = np.full((48, 64), 9, np.uint8)
    Image.fromarray(wrong).save(tmp_path / "data" / "annotations" / "train" / "train3.png")
    root = "train_dataloader.dataset.data_root=" + str(tmp_path / "data")
    said = run("check-data", several.config, "--split", "train", "--cfg-options", root, codes=(1,))
    assert "label_out_of_range" in said
    assert "bit 3 is not a class" in said


@pytest.fixture
def resolved() -> Callable[[Any], Any]:
    machine = Machine.here("none")
    return lambda cfg: resolve(cfg, TrainingOptions(work_dir="work"), machine)


WRONG: list[tuple[str, str, dict[str, Any]]] = [
    ("config-conflict", "train_dataloader.dataset.pipeline", {"model.multilabel": False}),
    ("config-conflict", "val_evaluator", {"val_evaluator.type": "SegmentationMetric"}),
    ("config-conflict", "test_evaluator", {"test_evaluator.type": "IoUMetric"}),
    ("config-conflict", "train_dataloader.dataset.pipeline",
     {"train_dataloader.dataset.pipeline.1.num_classes": 4}),
    ("config-conflict", "val_dataloader.dataset.pipeline",
     {"val_dataloader.dataset.pipeline.1": dict(type="LoadAnnotations")}),
    ("config-value", "model.decode_head.ignore_index", {"model.decode_head.ignore_index": 0}),
    ("config-value", "model.data_preprocessor.seg_pad_val",
     {"model.data_preprocessor.seg_pad_val": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("code", "subject", "change"), WRONG, ids=[key for _, key, _ in WRONG])
def test_parts_that_contradict_each_other(
    resolved: Any, tmp_path: Path, code: str, subject: str, change: dict[str, Any]
) -> None:
    cfg = shapes_config(tmp_path, True)
    cfg.merge_from_dict(change)
    with raises_user_error(code, subject):
        resolved(cfg)


def test_tools_that_refuse(several: World, tmp_path: Path) -> None:
    said = several.run_wrong("test", "--format", "voc", "--out", tmp_path / "out")
    assert "model.multilabel is True" in said
    export = ("export-onnx", several.config, several.checkpoint, tmp_path / "m.onnx")
    refused("export/int8.py:require_one_class", "model.multilabel is True", "export without it",
            command=[*export, "--int8", several.images[0]])  # fmt: skip
    assert not (tmp_path / "m.onnx").exists()
