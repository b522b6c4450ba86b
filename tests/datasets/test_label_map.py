# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Classes merged and left out by ``label_map``: the samples, the check and the class list agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmseg.datasets
import numpy as np
import pytest
from advice import advises
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from user_errors import raises_user_error

from mmseg_resnest.datasets import CityscapesDataset, ScenesDataset
from mmseg_resnest.datasets.check import check_data, numbers_of_classes
from mmseg_resnest.datasets.label_map import dataset_metainfo, merge_classes
from mmseg_resnest.registry import DATASETS

NAMES = ["road", "car", "bus", "pole", "sky"]
COLOURS = [[10, 0, 0], [20, 0, 0], [30, 0, 0], [40, 0, 0], [50, 0, 0]]
PIPELINE = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")]


@pytest.fixture(autouse=True)
def scope() -> Iterator[None]:
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        yield


def written_out(label_map: dict[Any, Any], label: int) -> str | None:
    """The class that a label is read as; None where it is ignored."""
    value = NAMES[label] if label < len(NAMES) else None
    if label in label_map:
        value = label_map[label]
    elif label < len(NAMES) and NAMES[label] in label_map:
        value = label_map[NAMES[label]]
    if value in ("ignore", 255):
        return None
    return NAMES[value] if isinstance(value, int) else value


TARGETS = st.sampled_from([*range(5), *NAMES, "ignore", 255, "vehicle", "thing"])


@given(targets=st.dictionaries(st.integers(0, 7), TARGETS, max_size=7), named=st.booleans())
def test_merged_classes_are_those_of_the_written_out_map(
    targets: dict[int, Any], named: bool
) -> None:
    label_map: dict[Any, Any] = {
        NAMES[label] if named and label < len(NAMES) else label: value
        for label, value in targets.items()
    }
    known = [label for label in range(8) if label < len(NAMES) or label in targets]
    read = {label: written_out(label_map, label) for label in known}
    # Old classes keep their order; a new one stands where its first label is.
    expected: list[str] = []
    for label in known:
        if label < len(NAMES) and NAMES[label] in read.values():
            expected.append(NAMES[label])
        name = read[label]
        if name is not None and name not in [*NAMES, *expected]:
            expected.append(name)
    if not expected:
        with raises_user_error("config-value", "config key label_map"):
            merge_classes(label_map, NAMES, COLOURS)
        return
    merged = merge_classes(label_map, NAMES, COLOURS)
    assert merged.classes == expected
    for label in known:
        new = merged.labels.get(label, label)
        assert (None if new == 255 else expected[new]) == read[label]
    for name, colour in zip(merged.classes, merged.palette, strict=True):
        if name in NAMES:
            assert colour == COLOURS[NAMES.index(name)]
    as_json = json.loads(json.dumps(label_map))  # keys are texts
    assert merge_classes(as_json, NAMES, COLOURS) == merged


def write(root: Path, stem: str, labels: np.ndarray) -> None:
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(stem)).integers(0, 256, (*labels.shape, 3), np.uint8)
    Image.fromarray(noise).save(root / "images" / f"{stem}.png")
    Image.fromarray(labels.astype(np.uint8)).save(root / "labels" / f"{stem}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, whose labels are 0 to 4, 7 (void) and 255."""
    root = tmp_path_factory.mktemp("data")
    values = np.array([0, 1, 2, 3, 4, 7, 255])
    write(root, "a", np.repeat(values, 16).reshape(14, 8))
    write(root, "bb", np.repeat(values[::-1], 16).reshape(14, 8))
    rows = [{"name": n, "color": c} for n, c in zip(NAMES, COLOURS, strict=True)]
    (root / "classes.json").write_text(json.dumps(rows))
    return root


def dataset_cfg(root: Path, label_map: Any, **options: Any) -> dict[str, Any]:
    return dict(
        type="CustomDataset",
        data_root=str(root),
        data_prefix=dict(img_path="images", seg_map_path="labels"),
        classes_file="classes.json",
        label_map=label_map,
        pipeline=PIPELINE,
        **options,
    )


VEHICLES = {"car": "vehicle", "bus": "vehicle", "pole": "ignore", 7: 4}


def test_samples_and_metainfo(folder: Path) -> None:
    cfg = dataset_cfg(folder, VEHICLES)
    dataset = DATASETS.build(cfg)
    assert list(dataset.metainfo["classes"]) == ["road", "vehicle", "sky"]
    assert dataset.metainfo["palette"] == [COLOURS[0], COLOURS[1], COLOURS[4]]
    labels = dataset[0]["gt_seg_map"].reshape(-1)[::16]
    np.testing.assert_array_equal(labels, [0, 1, 1, 255, 2, 2, 255])
    # The same without building it.
    info = dataset_metainfo(cfg)
    assert list(info["classes"]) == ["road", "vehicle", "sky"]
    assert info["palette"] == dataset.metainfo["palette"]
    assert numbers_of_classes(dict(type="RepeatDataset", times=2, dataset=cfg)) == (3,)


def test_the_check_counts_merged_classes(folder: Path) -> None:
    cfg = Config(
        dict(
            default_scope="mmseg_resnest",
            model=dict(decode_head=dict(num_classes=3)),
            train_dataloader=dict(batch_size=1, dataset=dataset_cfg(folder, VEHICLES)),
        )
    )
    report = check_data(cfg, ("train",), workers=1, progress=False)
    counted = report.as_dict()["splits"]["train"]["classes"]
    pixels = {name: entry["pixels"] for name, entry in counted.items()}
    assert pixels == {"road": 32, "vehicle": 64, "sky": 64}
    assert not {"label_out_of_range", "num_classes", "class_never"} & report.by_rule.keys()


@pytest.mark.parametrize(
    ("label_map", "code", "said"),
    [
        ({"bike": "car"}, "config-value", "bike"),
        ({"bu": "car"}, "config-value", "did you mean 'bus'"),
        ({1: "bus", "car": "sky"}, "config-value", "twice"),
        ({256: 0}, "config-value", "256"),
        ({True: 0}, "config-value", "True"),
        ({0: 5}, "config-value", "5"),
        ({0: None}, "config-value", "None"),
        ({0: " "}, "classes", "empty"),
        ([0, 1], "config-value", "dictionary"),
        (dict.fromkeys(range(5), "ignore"), "config-value", "leaves no class"),
    ],
)
def test_other_maps_are_refused(folder: Path, label_map: Any, code: str, said: str) -> None:
    for refuse in (DATASETS.build, dataset_metainfo):
        with raises_user_error(code, "config key label_map") as caught:
            refuse(dataset_cfg(folder, label_map))
        assert said in caught.value.message


def test_one_way_to_choose_classes(tmp_path: Path) -> None:
    """The stack's own way, ``metainfo.classes`` of a data set that has classes, excludes it."""
    chosen = dict(classes=("Sky", "Car"))
    cfg = dict(type="CamVidDataset", metainfo=chosen, label_map={"Sky": "ignore"}, lazy_init=True)
    for refuse in (DATASETS.build, dataset_metainfo):
        with advises("datasets/label_map.py:_refuse_two_ways", "take it away") as told:
            refuse(cfg)
        assert told.value.code == "config-conflict"
        assert "Sky" not in dataset_metainfo({**cfg, "metainfo": None})["classes"]


def test_data_sets_with_classes_of_their_own(tmp_path: Path) -> None:
    """Numbers are those of the classes; CamVid's void stays ignored."""
    camvid = DATASETS.build(
        dict(type="CamVidDataset", label_map={"Pavement": "Road", 0: "ignore"}, lazy_init=True)
    )
    assert "Pavement" not in camvid.metainfo["classes"] and len(camvid.metainfo["classes"]) == 9
    assert camvid.label_map[11] == 255 and camvid.label_map[0] == 255
    assert camvid.metainfo["classes"][camvid.label_map[4]] == "Road"

    # In the files of the scenes 1 is the first class, sky.
    write(tmp_path, "a", np.arange(14).repeat(8).reshape(14, 8) % 13)
    cfg = dict(
        type="ScenesDataset",
        data_root=str(tmp_path),
        data_prefix=dict(img_path="images", seg_map_path="labels"),
        label_map={"sky": "nothing", 1: "nothing"},
        pipeline=PIPELINE,
    )
    scenes = DATASETS.build(cfg)
    assert isinstance(scenes, ScenesDataset)
    expected = np.array([255, 0, *range(11), 255])
    expected[2:13] = [0, *range(1, 11)]
    np.testing.assert_array_equal(scenes[0]["gt_seg_map"][:, 0], expected)
    assert scenes.metainfo["classes"][:2] == ("nothing", "road")


def test_the_stacks_data_sets(tmp_path: Path) -> None:
    cfg = dict(type="CityscapesDataset", lazy_init=True)
    plain = DATASETS.build(cfg)
    assert isinstance(plain, CityscapesDataset)
    assert plain.label_map is None
    assert plain.metainfo["classes"] == mmseg.datasets.CityscapesDataset.METAINFO["classes"]
    merged = DATASETS.build(dict(cfg, label_map={"bus": "truck"}))
    assert len(merged.metainfo["classes"]) == len(merged.metainfo["palette"]) == 18
    assert merged.img_suffix == "_leftImg8bit.png"
