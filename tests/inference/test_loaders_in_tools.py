# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Each loader in the tools: they read images, and show them, as a test does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from advice import advises
from loader_cases import CASES, FILE, World, evaluated, labels_of_test, make_weights
from PIL import Image
from small_models import blobs, small_config
from user_errors import raises_user_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.datasets.check import check_data
from mmseg_resnest.datasets.reader import ImageReader
from mmseg_resnest.engine.benchmark import benchmark
from mmseg_resnest.engine.browse import browse, draw_sample
from mmseg_resnest.engine.model import build_model
from mmseg_resnest.registry import DATASETS, building


@pytest.mark.parametrize("name", ["chosen bands", "arrays", "tifffile colours"])
def test_the_tool_test_and_its_pictures(
    world: Callable[[str], World], name: str, tmp_path: Path
) -> None:
    tested = world(name)
    labels = evaluated(tested, tmp_path)
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
        evaluated(world("grey"), tmp_path, cfg={"test_dataloader.dataset.pipeline": steps})


def test_tta_reads_as_the_test_does(world: Callable[[str], World], tmp_path: Path) -> None:
    tested = world("12 bits, integers")
    plain = [dict(type=FILE), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
    tta = dict(tta_model=dict(type="MultiScaleGridTTA", scales=(1.0,), flip=False, base_size=56,
                              crop_size=64), tta_pipeline=plain)  # fmt: skip
    labels = evaluated(tested, tmp_path, tta=True, cfg=tta)
    cfg = copy.deepcopy(tested.cfg)
    cfg.model.test_cfg = dict(mode="multi_scale_grid", scales=(1.0,), flip=False, base_size=56,
                              crop_size=64)  # fmt: skip
    model = load_segmentor(cfg, None, "cpu")
    model.model.load_state_dict(tested.model.model.state_dict())
    for path in tested.labels:
        assert np.array_equal(labels[path], model(path).labels)
    plain[0] = dict(type=FILE, color_type="grayscale")
    with raises_user_error("config-conflict", "tta_pipeline"):
        evaluated(tested, tmp_path, tta=True, cfg=tta)


def test_pairs_of_images(gdal: None, tmp_path: Path) -> None:
    for i, folder in enumerate(("a", "b", "labels")):
        (tmp_path / folder).mkdir()
        for n in range(3):
            pixels = blobs(40, 56, seed=3 * i + n)
            if folder == "labels":
                Image.fromarray(pixels[:, :, 0] // 128).save(tmp_path / f"labels/{n}.png")
            else:
                tifffile.imwrite(tmp_path / folder / f"{n}.tif", pixels, photometric="rgb")
    cfg = small_config(classes=2)
    cfg.model.backbone.in_channels = 6
    cfg.model.data_preprocessor.update(mean=[120.0] * 6, std=[60.0] * 6)
    names = dict(img_path="a", img_path2="b", seg_map_path="labels")
    steps = ("LoadMultipleRSImageFromFile", "LoadAnnotations", "ConcatCDInput", "PackSegInputs")
    cfg.test_dataloader.dataset.update(
        type="BaseCDDataset", data_prefix={k: str(tmp_path / v) for k, v in names.items()},
        img_suffix=".tif", img_suffix2=".tif", pipeline=[dict(type=step) for step in steps],
    )  # fmt: skip
    with advises("datasets/reader.py:of", "mmseg-resnest test --out DIR"):
        load_segmentor(cfg, None, "cpu")
    world: Any = SimpleNamespace(cfg=cfg, model=SimpleNamespace(model=build_model(cfg)))
    make_weights(world.model, cfg)
    world.labels = labels_of_test(world.model, cfg)
    for path, found in evaluated(world, tmp_path).items():
        assert np.array_equal(found, world.labels[path])
    with advises("datasets/check/parts.py:build_part", "browse-data shows"):
        check_data(cfg, ["test"], workers=1, progress=False)
    assert browse(cfg, tmp_path / "sheets", "test", images=3, draws=1)["images"] == 3


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
        cfg = copy.deepcopy(world(name).cfg)
        cfg.test_dataloader.dataset.pipeline[0] = dict(type=FILE)
        report = check_data(cfg, ["test"], workers=1, progress=False)
        assert {problem.rule for problem in report.problems} - {"class_never"} == rules


@pytest.mark.parametrize("name", ["grey", "four channels", "bands"])
def test_measured(world: Callable[[str], World], name: str) -> None:
    result = benchmark(world(name).cfg, (64, 64), device="cpu", seconds=0)
    assert result["flops"] > 0
    assert result["testing"]["images_per_second"] > 0
