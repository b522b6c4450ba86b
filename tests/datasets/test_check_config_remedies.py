# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the check of a config advises is done: then the problem is gone, and training learns."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_sets import (
    CLASSES,
    base_config,
    check,
    clean,
    config,
    data,
    datasets_of,
    first,
    put_palettes,
    relabel,
    set_pixel,
    with_data,
)
from mmengine.config import Config
from PIL import Image
from test_check import FAULTS
from test_check_remedies import FIXES, MODEL, OTHERWISE, learns, train_step, validate

from mmseg_resnest.datasets import CamVidDataset
from mmseg_resnest.datasets.check import RULES

__all__ = ["clean", "data"]  # fixtures


Make = Callable[[Path], Config]


def said(remedy: str) -> dict[str, Any]:
    """What a remedy says to set, by name."""
    pairs = re.findall(r"\b([a-z_]+)=(\{[^}]*\}|True|False|None|\d+)", remedy)
    return {name: ast.literal_eval(value) for name, value in pairs}


def set_all(cfg: Config, remedy: str, *names: str, classes: list[str] | None = None) -> Config:
    """Do what a remedy says of these names, and give the data sets these classes."""
    advised = said(remedy)
    assert set(names) <= set(advised), remedy
    of_data = set(names) & {"reduce_zero_label", "label_map", "ignore_index"}
    with_data(cfg, **{name: advised[name] for name in of_data})
    if "label_map" in names:
        with_data(cfg, type="CustomDataset")
    if classes is not None:
        set_palette(cfg, np.array([[k, k, k] for k in range(len(classes))]), classes)
    for name in set(names) & {"num_classes", "out_channels"}:
        cfg.model.decode_head[name] = advised[name]
    if "use_sigmoid" in names:
        loss = dict(type="CrossEntropyLoss", use_sigmoid=advised["use_sigmoid"])
        cfg.model.decode_head.loss_decode = loss
    return cfg


def two_values(low: int, high: int, classes: int = 2, **dataset: Any) -> Make:
    def make(root: Path) -> Config:
        relabel(root, {k: high if k > 3 else low for k in range(12)})
        return base_config(root, classes, **dataset)

    return make


def shifted(low: int = 0) -> Make:
    def make(root: Path) -> Config:
        relabel(root, {**{k: k + 1 for k in range(11)}, 11: 0 if low == 0 else 255})
        return base_config(root)

    return make


def void(root: Path) -> Config:
    relabel(root, {11: 200})
    return base_config(root)


def three_values(root: Path) -> Config:
    relabel(root, {k: k % 3 for k in range(12)})
    return base_config(root, 2)


def needless(root: Path) -> Config:
    relabel(root, {11: 255})
    return base_config(root, reduce_zero_label=True)


def contradicts_class(root: Path) -> Config:
    relabel(root, {**{k: k + 1 for k in range(11)}, 11: 0})
    cfg = base_config(root, 150, reduce_zero_label=False, type="ADE20KDataset")
    for dataset in datasets_of(cfg):
        del dataset["metainfo"]
    return cfg


def wrong_head(root: Path) -> Config:
    cfg = config(root)
    cfg.model.decode_head.num_classes = 10
    return cfg


def metric_ignores_other(root: Path) -> Config:
    cfg = config(root)
    cfg.val_evaluator.ignore_index = 200
    return cfg


def ignores_a_class(root: Path) -> Config:
    cfg = config(root)
    for node in (cfg.model.decode_head, cfg.val_evaluator):
        node.ignore_index = 3
    return with_data(cfg, ignore_index=3)


def pads_with_other(root: Path) -> Config:
    cfg = config(root)
    cfg.model.data_preprocessor = dict(type="SegDataPreProcessor", size=(64, 64), seg_pad_val=200)
    return cfg


def never(label: int) -> Make:
    def make(root: Path) -> Config:
        relabel(root, {label: 0, 11: 255})
        return base_config(root, type="CustomDataset")

    return make


def only_val(root: Path) -> Config:
    relabel(root, {8: 0}, ("train",))
    set_pixel(first(root, "valannot"), 8)
    return config(root)


def mixed_sizes(root: Path) -> Config:
    for folder, suffix in (("val", "jpg"), ("valannot", "png")):
        path = root / folder / f"2.{suffix}"
        Image.open(path).crop((0, 0, 80, 64)).save(path)
    cfg = config(root)
    cfg.model.data_preprocessor = dict(type="SegDataPreProcessor", size=(64, 64))
    cfg.val_dataloader.batch_size = 3
    with pytest.raises(AssertionError):
        validate(cfg)
    return cfg


def a_model_with(preparation: dict[str, Any], channels: int) -> Make:
    def make(root: Path) -> Config:
        cfg = config(root)
        model = copy.deepcopy(MODEL)
        model["data_preprocessor"].update(preparation)
        model["backbone"]["in_channels"] = channels
        cfg.merge_from_dict(dict(model=model))
        return cfg

    return make


def read_grey(cfg: Config, remedy: str) -> Config:
    for dataset in datasets_of(cfg):
        dataset.pipeline[0].color_type = "grayscale"
    return cfg


def measured(cfg: Config, remedy: str) -> Config:
    for name, text in re.findall(r"\b(mean|std)=(\[[^]]*\])", remedy):
        cfg.model.data_preprocessor[name] = ast.literal_eval(text)
    return cfg


def wrong_suffix(root: Path) -> Config:
    relabel(root, {11: 255})
    return base_config(root, img_suffix=".png")


def without(cfg: Config, label: int) -> Config:
    """Without a class."""
    cfg.model.decode_head.num_classes = 10
    return with_data(cfg, label_map={CLASSES[label]: "ignore"})


def set_key(key: str, value: Any) -> Callable[[Config, str], Config]:
    def fix(cfg: Config, remedy: str) -> Config:
        cfg.merge_from_dict({key: value})
        return cfg

    return fix


def set_said(*names: str, **more: Any) -> Callable[[Config, str], Config]:
    return lambda cfg, remedy: set_all(cfg, remedy, *names, **more)


def unset_reduce(cfg: Config, remedy: str) -> Config:
    for dataset in datasets_of(cfg):
        del dataset["reduce_zero_label"]
    return cfg


def set_255_everywhere(cfg: Config, remedy: str) -> Config:
    for node in (cfg.model.decode_head, cfg.val_evaluator):
        node.ignore_index = 255
    return with_data(cfg, ignore_index=255)


def move_to_train(cfg: Config, remedy: str) -> Config:
    root = Path(cfg.train_dataloader.dataset.data_root)
    label = first(root, "valannot")
    for folder, name in (("", f"{label.stem}.jpg"), ("annot", label.name)):
        (root / f"val{folder}" / name).rename(root / f"train{folder}" / f"moved{name[-4:]}")
    return cfg


def other_palette(root: Path) -> Config:
    """All label maps have a palette of another order of the classes."""
    relabel(root, {11: 255})
    palette = np.array(CamVidDataset.METAINFO["palette"], np.uint8)
    put_palettes(root, np.roll(palette, 1, axis=0).tobytes() + bytes(245 * 3))
    return set_palette(base_config(root), palette, CLASSES)


def set_palette(cfg: Config, palette: np.ndarray, classes: list[str]) -> Config:
    return with_data(cfg, metainfo=dict(classes=classes, palette=palette.tolist()))


def palette_order(cfg: Config, remedy: str) -> Config:
    palette = np.roll(np.array(CamVidDataset.METAINFO["palette"]), 1, axis=0)
    return set_palette(cfg, palette, [CLASSES[-1], *CLASSES[:-1]])


def palette_as_colours(root: Path) -> Config:
    """Another decoder, which reads colours from palette files."""
    put_palettes(root, np.array(CamVidDataset.METAINFO["palette"], np.uint8).tobytes())
    cfg = config(root)
    for dataset in datasets_of(cfg):
        dataset.pipeline[1].imdecode_backend = "cv2"
    return cfg


def default_decoder(cfg: Config, remedy: str) -> Config:
    for dataset in datasets_of(cfg):
        del dataset.pipeline[1]["imdecode_backend"]
    return cfg


GREY = dict(mean=[120.0], std=[60.0])
UNIT = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], bgr_to_rgb=True)
TWO = ["background", "thing"]
ONE_CLASS = set_said("num_classes", classes=TWO)
SIGMOID = set_said("num_classes", "out_channels", "use_sigmoid", classes=TWO)
CONFIGS_AT_FAULT: dict[str, list[tuple[str, Make, Callable[[Config, str], Config]]]] = {
    "empty_split": [
        ("another suffix", wrong_suffix, lambda cfg, remedy: with_data(cfg, img_suffix=".jpg"))
    ],
    "num_classes": [
        ("head", wrong_head, set_key("model.decode_head.num_classes", 11)),
        ("one class", two_values(0, 1, 1), ONE_CLASS),
        ("one class, sigmoid", two_values(0, 1, 1), SIGMOID),
        (
            "one class, reduced",
            two_values(0, 1, 1, reduce_zero_label=True),
            set_said("num_classes", "reduce_zero_label", classes=TWO),
        ),
        (
            "one class, black and white",
            two_values(0, 255, 1),
            set_said("num_classes", "label_map", classes=TWO),
        ),
    ],
    "reduce_zero_label": [
        ("from 0", shifted(), set_said("reduce_zero_label")),
        ("from 1", shifted(1), set_said("reduce_zero_label")),
        ("background", three_values, set_said("num_classes", classes=["a", "b", "c"])),
        ("reduced to two", three_values, set_said("reduce_zero_label")),
        ("void", three_values, set_said("label_map")),
        ("needless", needless, set_said("reduce_zero_label")),
        ("of the data set's class", contradicts_class, unset_reduce),
    ],
    "ignore_index": [
        ("void", void, set_said("label_map")),
        ("black and white", two_values(0, 255), set_said("label_map")),
        ("two values", two_values(0, 2), set_said("label_map")),
        ("neither value a class", two_values(50, 100), set_said("label_map")),
        ("metric", metric_ignores_other, set_key("val_evaluator.ignore_index", 255)),
        ("a class", ignores_a_class, set_255_everywhere),
        ("padding", pads_with_other, set_key("model.data_preprocessor.seg_pad_val", 255)),
    ],
    "palette_label": [
        ("order", other_palette, palette_order),
        ("decoder", palette_as_colours, default_decoder),
    ],
    "channels": [
        ("loader", a_model_with(GREY, 1), read_grey),
        ("backbone", a_model_with(GREY, 1), set_key("model.backbone.in_channels", 3)),
    ],
    "values": [("measured", a_model_with(UNIT, 3), measured)],
    "mixed_sizes": [("batch", mixed_sizes, set_key("val_dataloader.batch_size", 1))],
    "class_never": [
        ("removed", never(8), lambda cfg, remedy: without(cfg, 8)),
        ("the last one", never(10), lambda cfg, remedy: without(cfg, 10)),
    ],
    "class_only_val": [
        ("moved", only_val, move_to_train),
        ("removed", only_val, lambda cfg, remedy: without(cfg, 8)),
    ],
}
CASES = [
    pytest.param(rule, make, fix, id=f"{rule}-{name}".replace(" ", "_"))
    for rule, cases in CONFIGS_AT_FAULT.items()
    for name, make, fix in cases
]


@pytest.mark.parametrize(("rule", "make", "fix"), CASES)
def test_configs(rule: str, make: Make, fix: Callable[[Config, str], Config], data: Path) -> None:
    cfg = make(data)
    problem = check(cfg).by_rule[rule][0]
    fixed = fix(cfg, problem.remedy)
    report = check(fixed)
    assert [p.message for p in report.problems if p.severity == "error"] == []
    assert rule not in report.by_rule
    assert learns(fixed)
    assert validate(fixed) == len(list((data / "val").iterdir()))


@pytest.mark.parametrize("reduce", [False, True])
def test_one_class_has_nothing_to_learn(reduce: bool, data: Path) -> None:
    """What it is refused for, when the labels are in range."""
    cfg = two_values(int(reduce), int(reduce), 1, reduce_zero_label=reduce)(data)
    assert list(check(cfg).by_rule) == ["num_classes"]
    assert train_step(cfg)[1] == 1


def test_each_fault_and_each_rule_has_its_remedy() -> None:
    assert set(FIXES) | OTHERWISE == set(FAULTS)
    executed = {FAULTS[fault][0] for fault in FIXES} | set(CONFIGS_AT_FAULT)
    assert executed | {"colour_label"} == set(RULES)
