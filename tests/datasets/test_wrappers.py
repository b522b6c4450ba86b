# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Wrappers of data sets: classes of label maps are found once, and images of rare ones repeated."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.dataset import BaseDataset
from mmengine.registry import DefaultScope
from PIL import Image
from user_errors import raises_user_error

from mmseg_resnest.datasets import inside, wrappers
from mmseg_resnest.errors import UserError
from mmseg_resnest.io.up_to_date import Record
from mmseg_resnest.registry import DATASETS

#: The values that each label file holds; 255 and what a data set maps to it do not count.
VALUES = ((0, 1), (0,), (0, 255), (0, 2), (0, 1, 2), (0,), (255,), (0, 1, 3))
STEPS = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i, values in enumerate(VALUES):
        labels = np.resize(np.array(values, np.uint8), (20, 24))
        for kind, array in (("images", np.full((20, 24, 3), 9 * i, np.uint8)), ("labels", labels)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / kind / f"{i}.png")
    return tmp_path


def config(root: Path, kind: str = "CustomDataset", **more: Any) -> dict[str, Any]:
    own = dict(metainfo=dict(classes=("a", "b", "c", "d"))) if kind == "CustomDataset" else {}
    prefix = dict(img_path="images", seg_map_path="labels")
    return dict(
        type=kind, data_root=str(root), **{"data_prefix": prefix, "pipeline": STEPS, **own, **more}
    )


def build(cfg: dict[str, Any]) -> Any:
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        dataset = DATASETS.build(cfg)
        dataset.full_init()
    return dataset


def balanced(inner: dict[str, Any], thr: float = 0.5) -> Any:
    return build(dict(type="ClassBalancedDataset", dataset=inner, oversample_thr=thr))


def names(dataset: Any) -> list[str]:
    return [Path(dataset.get_data_info(i)["img_path"]).stem for i in range(len(dataset))]


def numbers(mapping: dict[int, int]) -> list[tuple[int, ...]]:
    return [tuple(sorted({mapping[v] for v in values if v in mapping})) for values in VALUES]


PLAIN = {0: 0, 1: 1, 2: 2, 3: 3}
#: Data sets of ours and of the stack, and the class of each value of a file.
KINDS: dict[str, tuple[dict[str, Any], dict[int, int]]] = {
    "CustomDataset": ({}, PLAIN),
    "CustomDataset with fewer classes": (
        dict(metainfo=dict(classes=("a", "b"))),
        {0: 0, 1: 1},
    ),
    "CustomDataset without the first": (dict(reduce_zero_label=True), {1: 0, 2: 1, 3: 2}),
    "CamVidDataset": ({}, PLAIN),
    "CamVidDataset of two classes": (
        dict(metainfo=dict(classes=("Pole", "Sky"))),
        {0: 1, 2: 0},
    ),
    "ScenesDataset": ({}, {1: 0, 2: 1, 3: 2}),
    "ADE20KDataset": (dict(img_suffix=".png"), {1: 0, 2: 1, 3: 2}),
    "CityscapesDataset": (dict(img_suffix=".png", seg_map_suffix=".png"), PLAIN),
    "PascalVOCDataset": (dict(ann_file="list.txt", img_suffix=".png"), PLAIN),
    "BaseSegDataset": (
        dict(img_suffix=".png", metainfo=dict(classes=("a", "b", "c"))),
        {0: 0, 1: 1, 2: 2},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_those_after_loading(root: Path, kind: str) -> None:
    options, mapping = KINDS[kind]
    (root / "list.txt").write_text("".join(f"{i}\n" for i in range(len(VALUES))))
    inner = config(root, kind.partition(" ")[0], **options)
    dataset = balanced(inner, thr=1e-9)
    assert len(dataset) == len(VALUES)
    assert [tuple(dataset.get_cat_ids(i)) for i in range(len(VALUES))] == numbers(mapping)


def expected(thr: float, classes: list[tuple[int, ...]]) -> list[int]:
    """The indices, by the formula as it is in the paper (LVIS, appendix B)."""
    found: list[int] = []
    for i, mine in enumerate(classes):
        factor = 1.0
        for k in mine:
            share = sum(k in others for others in classes) / len(classes)
            factor = max(factor, math.sqrt(thr / share))
        found += [i] * math.ceil(factor)
    return found


@pytest.mark.parametrize("thr", [0.1, 0.3, 0.5, 0.9, 2])
def test_images_of_rare_classes_are_repeated(root: Path, thr: float) -> None:
    indices = expected(thr, numbers(PLAIN))
    dataset = balanced(config(root), thr)
    assert names(dataset) == [str(i) for i in indices]
    last = dataset[len(dataset) - 1]["data_samples"]
    assert last.img_path.endswith(f"{indices[-1]}.png")
    if thr == 0.5:  # by hand: class 3 is in one of 8 images, class 2 in two, class 1 in three
        assert indices == [0, 0, 1, 2, 3, 3, 4, 4, 5, 6, 7, 7]


def test_wrappers_in_wrappers(root: Path, tmp_path: Path) -> None:
    plain, once = config(root), numbers(PLAIN)
    sets = [plain, config(root, reduce_zero_label=True)]
    two = dict(type="ConcatDataset", datasets=sets, ignore_keys="reduce_zero_label")
    classes = once + numbers({1: 0, 2: 1, 3: 2})
    assert names(balanced(two)) == [str(i % len(VALUES)) for i in expected(0.5, classes)]
    mix = dict(type="MultiImageMixDataset", dataset=plain, pipeline=[])
    assert names(balanced(mix)) == [str(i) for i in expected(0.5, once)]
    first = expected(0.5, once)
    inner = dict(type="ClassBalancedDataset", dataset=plain, oversample_thr=0.5)
    assert names(build(dict(type="RepeatDataset", dataset=inner, times=2))) == 2 * names(
        balanced(plain)
    )
    joined = balanced(
        dict(
            type="ConcatDataset",
            datasets=[inner, dict(type="RepeatDataset", dataset=plain, times=2)],
        )
    )
    of_all = [*first, *range(8), *range(8)]
    assert names(joined) == [str(of_all[i]) for i in expected(0.5, [once[k] for k in of_all])]
    again = expected(0.9, [once[i] for i in first])
    assert names(balanced(inner, 0.9)) == [str(first[i]) for i in again]
    thrice = balanced(dict(type="RepeatDataset", dataset=two, times=3), 0.9)
    repeated = expected(0.9, 3 * classes)
    assert names(thrice) == [str(i % len(VALUES)) for i in repeated]
    for index in range(0, len(thrice), 5):
        leaf, place = inside(thrice, index)
        assert leaf.get_data_info(place) == {**thrice.get_data_info(index), "sample_idx": place}
        assert leaf.reduce_zero_label == (repeated[index] // len(VALUES) % 2 == 1)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The label maps that were read."""
    read: list[str] = []
    real = wrappers.in_parallel

    def in_parallel(function: Any, jobs: Any, *rest: Any) -> Any:
        read.extend(name for name, _ in jobs)
        return real(function, jobs, *rest)

    monkeypatch.setattr(wrappers, "in_parallel", in_parallel)
    return read


def test_they_are_found_once(root: Path, counted: list[str]) -> None:
    before = names(balanced(config(root)))
    assert len(counted) == len(VALUES)
    counted.clear()
    assert names(balanced(config(root))) == before and not counted
    # Guarded as training guards it: it reads the same labels.
    guarded = [STEPS[0], dict(type="LoadAnnotations", num_classes=4), STEPS[2]]
    balanced(config(root, pipeline=guarded))
    assert not counted
    # What changes labels is counted anew, and both stay known.
    balanced(config(root, reduce_zero_label=True))
    assert len(counted) == len(VALUES)
    balanced(config(root))
    assert len(counted) == len(VALUES)
    counted.clear()
    Image.fromarray(np.full((20, 24), 3, np.uint8)).save(root / "labels" / "1.png")
    changed = [*numbers(PLAIN)]
    changed[1] = (3,)
    assert names(balanced(config(root))) == [str(i) for i in expected(0.5, changed)]
    assert counted == ["labels/1.png"]


def test_a_record_that_cannot_be_written(
    root: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(self: Record) -> None:
        raise UserError("not-writable", self.file, "")

    monkeypatch.setattr(Record, "save", save)
    for _ in range(2):
        assert names(balanced(config(root))) == [str(i) for i in expected(0.5, numbers(PLAIN))]
    assert len(counted) == len(VALUES)  # remembered by the process
    assert not list(root.glob(".mmseg_classes*"))


def test_a_damaged_record_is_made_anew(root: Path, counted: list[str]) -> None:
    balanced(config(root))
    (file,) = root.glob(".mmseg_classes*")
    file.write_text("{")
    counted.clear()
    balanced(config(root))
    assert len(counted) == len(VALUES)


def test_classes_that_a_data_set_knows_itself(root: Path) -> None:
    @DATASETS.register_module(force=True)
    class KnowsItsClasses(BaseDataset):
        METAINFO = dict(classes=("a",))

        def load_data_list(self) -> list[dict]:
            return [dict(img_path=f"{i}.png") for i in range(8)]

        def get_cat_ids(self, idx: int) -> list[int]:
            return [0, 9] if idx == 5 else [0, 0]

    dataset = balanced(dict(type="KnowsItsClasses"))
    assert names(dataset) == ["0", "1", "2", "3", "4", "5", "5", "6", "7"]


def test_mistakes(root: Path) -> None:
    for thr in (0, -1, "0.5", True, math.inf, math.nan):
        with raises_user_error("config-value", "ClassBalancedDataset oversample_thr"):
            balanced(config(root), thr)  # type: ignore[arg-type]
    images = config(root, data_prefix=dict(img_path="images"))
    with raises_user_error("dataset", "CustomDataset"):
        balanced(images)
    (root / "labels" / "3.png").write_bytes(b"no image")
    with raises_user_error("label", root / "labels" / "3.png"):
        balanced(config(root))
