# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the check advises is done: then the problem is gone, and training learns from the labels."""

from __future__ import annotations

import ast
import copy
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from PIL import Image, ImageOps
from test_check import (
    CLASSES,
    FAULTS,
    base_config,
    check,
    clean,
    config,
    data,
    first,
    relabel,
    set_pixel,
)

from mmseg_resnest.datasets import CamVidDataset
from mmseg_resnest.datasets.check import RULES, guard_labels, numbers_of_classes
from mmseg_resnest.datasets.check.config import loss_ignore_index
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.registry import DATASETS, MODELS
from mmseg_resnest_cli import main

__all__ = ["clean", "data"]  # fixtures

NORM = dict(type="BN", requires_grad=True)
MODEL = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", size=(64, 64), seg_pad_val=255),
    backbone=dict(
        type="ResNetV1c", depth=18, base_channels=4, stem_channels=4, norm_cfg=NORM,
        strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1),
    ),
    decode_head=dict(
        type="FCNHead", in_channels=32, channels=8, num_convs=1, concat_input=False,
        norm_cfg=NORM, align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", avg_non_ignore=True),
    ),
)  # fmt: skip


def build(cfg: Config, split: str, *steps: dict[str, Any]) -> tuple[Any, Any]:
    """A small model, and a data set that refuses the labels that training refuses."""
    dataset_cfg = copy.deepcopy(cfg[f"{split}_dataloader"].dataset)
    dataset_cfg.pipeline[-1:-1] = steps
    guard_labels(dataset_cfg, numbers_of_classes(dataset_cfg), loss_ignore_index(cfg))
    model_cfg = Config(dict(model=MODEL))
    model_cfg.merge_from_dict(dict(model=cfg.model.to_dict()))
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        return MODELS.build(model_cfg.model), DATASETS.build(dataset_cfg)


def train_step(cfg: Config) -> tuple[float, int]:
    """The loss of all training images, and how many classes count."""
    ignored = loss_ignore_index(cfg)
    model, dataset = build(cfg, "train", dict(type="RandomCrop", crop_size=(64, 64)))
    batch = pseudo_collate([dataset[i] for i in range(len(dataset))])
    batch = model.data_preprocessor(batch, True)
    loss, _ = model.parse_losses(model.loss(**batch))
    labels = np.stack([np.asarray(s.gt_sem_seg.data) for s in batch["data_samples"]])
    loss.backward()
    return loss.item(), len(np.unique(labels[labels != ignored]))


def learns(cfg: Config) -> bool:
    loss, classes = train_step(cfg)
    return np.isfinite(loss) and loss > 1e-3 and classes > 1


def validate(cfg: Config) -> int:
    """How many images are segmented in the batches of the validation."""
    model, dataset = build(cfg, "val")
    size = cfg.val_dataloader.batch_size
    samples = [dataset[i] for i in range(len(dataset))]
    batches = [pseudo_collate(samples[i : i + size]) for i in range(0, len(samples), size)]
    return sum(len(model.eval().val_step(batch)) for batch in batches)


# --- files ----------------------------------------------------------------------------------

Fix = Callable[[Path, Path, Path], Any]  # of the data, the clean data, and the file that is wrong


def restore(root: Path, clean: Path, file: Path) -> None:
    if file.is_dir():
        file.rmdir()
    file.unlink(missing_ok=True)
    shutil.copy(clean / file.relative_to(root), file)


def remove(root: Path, clean: Path, file: Path) -> None:
    """The file with its partner."""
    for path in [*root.glob(f"*/{file.stem}.*")]:
        if path.parent.name.removesuffix("annot") == file.parent.name.removesuffix("annot"):
            path.unlink()
    os.path.lexists(file) and file.unlink()


def edited(change: Callable[[Image.Image], Image.Image], suffix: str = "") -> Fix:
    def fix(root: Path, clean: Path, file: Path) -> None:
        with Image.open(file) as image:
            image.load()
            changed = change(image)
        file.unlink()
        changed.save(file.with_suffix(suffix or file.suffix))

    return fix


def resize_label(root: Path, clean: Path, file: Path) -> None:
    (image,) = (root / "train").glob(f"{file.stem}.*")
    edited(lambda label: label.resize(Image.open(image).size, Image.Resampling.NEAREST))(
        root, clean, file
    )


def as_rgb_on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def to_eight_bits(root: Path, clean: Path, file: Path) -> None:
    cv2.imwrite(str(file), (cv2.imread(str(file), cv2.IMREAD_UNCHANGED) >> 8).astype(np.uint8))


def labels_to_eight_bits(root: Path, clean: Path, file: Path) -> None:
    values = np.array(Image.open(file))
    Image.fromarray((values // 257 if values.max() > 255 else values).astype(np.uint8)).save(file)


def rename(root: Path, clean: Path, file: Path) -> None:
    for folder, suffix in (("train", ".jpg"), ("trainannot", ".png")):
        old = os.fsencode(root / folder) + b"/" + os.fsencode(file.stem + suffix)
        os.rename(old, root / folder / f"renamed{suffix}")


def rename_suffix(root: Path, clean: Path, file: Path) -> None:
    renamed = file.rename(file.with_suffix(".jpg"))
    label = root / "trainannot" / f"{renamed.stem}.png"
    shutil.copy(clean / label.relative_to(root), label)


def keep_the_first_label(root: Path, clean: Path, file: Path) -> None:
    shutil.copy(first(root, "trainannot"), file)


def upright(root: Path, clean: Path, file: Path) -> None:
    """Rotate the pixels, and check the label map: it is turned the same way."""
    image = ImageOps.exif_transpose(Image.open(file))
    image.save(file, quality=95)
    label = root / "trainannot" / f"{file.stem}.png"
    labels = Image.open(label)
    if labels.size != image.size:
        labels.rotate(270, expand=True).save(label)


FIXES: dict[str, Fix] = {
    "missing label": restore, "dangling link": restore, "missing image": remove,
    "empty image": restore, "empty label": restore, "truncated image": restore,
    "truncated label": restore, "damaged image": restore, "damaged label": restore,
    "text for an image": restore, "folder for an image": restore,
    "other extension": edited(lambda image: image),
    "sizes differ": resize_label,
    "label out of range": edited(lambda label: label.point(lambda v: 11 if v == 77 else v)),
    "JPEG mask": restore,
    "16-bit mask": labels_to_eight_bits, "16-bit mask that fits": labels_to_eight_bits,
    "grey image": restore, "CMYK image": edited(lambda image: image.convert("RGB")),
    "alpha": edited(as_rgb_on_white), "16-bit image": to_eight_bits,
    "rotated by EXIF": upright, "upside down by EXIF": upright,
    "bomb": remove, "bomb as a label": restore, "tiny image": remove,
    "duplicate": remove, "duplicate, other label": keep_the_first_label, "leak": remove,
    "undecodable name": rename, "line break in a name": rename, "other suffix": rename_suffix,
}  # fmt: skip
# What the command of the remedy, or a key of the config, mends: below.
OTHERWISE = {"colour mask", "palette in other order"}


@pytest.mark.parametrize("fault", FIXES)
def test_files(fault: str, data: Path, clean: Path) -> None:
    rule, plant, _ = FAULTS[fault]
    culprit = plant(data)
    (problem,) = check(config(data)).by_rule[rule]
    FIXES[fault](data, clean, Path(culprit))
    assert rule not in check(config(data)).by_rule, problem.remedy
    assert learns(config(data))


def test_each_fault_and_each_rule_has_its_remedy() -> None:
    assert set(FIXES) | OTHERWISE == set(FAULTS)
    executed = {FAULTS[fault][0] for fault in FIXES} | set(CONFIGS_AT_FAULT)
    assert executed | {"colour_label"} == set(RULES)


@pytest.mark.parametrize("fault", sorted(OTHERWISE))
def test_colours_become_indices(fault: str, data: Path, clean: Path, tmp_path: Path) -> None:
    """The command of the remedy, on the whole data set, whose label maps are all of that kind."""
    rule, plant, _ = FAULTS[fault]
    plant(data)
    (problem,) = check(config(data)).by_rule[rule]
    colours = np.array([*CamVidDataset.METAINFO["palette"], [0, 0, 0]], np.uint8)
    wanted = {}
    for file in [*clean.glob("*annot/*.png")]:
        place = data / file.relative_to(clean)
        labels = np.array(Image.open(file))
        masks = Image.fromarray(colours[labels])
        (masks if rule == "colour_label" else masks.quantize(12)).save(place)
        wanted[f"{place.parent.name}_{file.name}"] = np.where(labels == 11, 255, labels)
    for file in [*data.glob("*/*")]:  # names in both splits must differ
        file.rename(file.with_name(f"{file.parent.name.removesuffix('annot')}annot_{file.name}"))
    names = [*CLASSES, "__ignore__"]
    rows = [" ".join(map(str, (n, *c))) for n, c in zip(names, colours.tolist(), strict=True)]
    (tmp_path / "colours.txt").write_text("\n".join(rows), encoding="utf-8")
    command = "prepare-data custom --format colour"
    assert command in RULES["colour_label"].remedy
    with pytest.raises(SystemExit) as ended:
        main(
            "prepare-data",
            [
                *command.split()[1:],
                *("--images", str(data / "train"), "--source", str(data / "trainannot")),
                *("--val-images", str(data / "val"), "--val-source", str(data / "valannot")),
                *("--classes", str(tmp_path / "colours.txt"), "--name", "mine"),
                *("--root", str(tmp_path / "root"), "--config-dir", str(tmp_path / "configs")),
            ],
        )
    assert not ended.value.code, problem.remedy
    made = load_config(tmp_path / "configs" / "mine.py", data_root=tmp_path / "root")
    cfg = config(data)
    for name in ("train_dataloader", "val_dataloader"):
        pipeline = cfg[name].dataset.pipeline
        cfg[name].dataset = dict(made[name].dataset, pipeline=pipeline)
    assert check(cfg).problems == []
    assert learns(cfg)
    made_maps = {f.name: f for f in (tmp_path / "root" / "mine" / "annotations").rglob("*.png")}
    assert made_maps.keys() == wanted.keys()
    assert all(np.array_equal(np.array(Image.open(f)), wanted[n]) for n, f in made_maps.items())


# --- configs --------------------------------------------------------------------------------

Make = Callable[[Path], Config]


def said(remedy: str) -> dict[str, Any]:
    """What a remedy says to set, by name."""
    pairs = re.findall(r"\b([a-z_]+)=(\{[^}]*\}|True|False|None|\d+)", remedy)
    return {name: ast.literal_eval(value) for name, value in pairs}


def set_all(cfg: Config, remedy: str, *names: str, classes: list[str] | None = None) -> Config:
    """Do what a remedy says of these names, and give the data sets these classes."""
    advised = said(remedy)
    assert set(names) <= set(advised), remedy
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        for name in set(names) & {"reduce_zero_label", "label_map", "ignore_index"}:
            loader.dataset[name] = advised[name]
        if "label_map" in names:
            loader.dataset.type = "CustomDataset"
        if classes is not None:
            palette = [[k, k, k] for k in range(len(classes))]
            loader.dataset.metainfo = dict(classes=classes, palette=palette)
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
    cfg = base_config(root, 150, reduce_zero_label=False)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.update(type="ADE20KDataset")
        del loader.dataset["metainfo"]
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
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.ignore_index = 3
    return cfg


def pads_with_other(root: Path) -> Config:
    cfg = config(root)
    cfg.model.data_preprocessor = dict(type="SegDataPreProcessor", size=(64, 64), seg_pad_val=200)
    return cfg


def never(label: int) -> Make:
    def make(root: Path) -> Config:
        relabel(root, {label: 0, 11: 255})
        cfg = base_config(root)
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.dataset.type = "CustomDataset"
        return cfg

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
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.pipeline[0].color_type = "grayscale"
    return cfg


def measured(cfg: Config, remedy: str) -> Config:
    for name, text in re.findall(r"\b(mean|std)=(\[[^]]*\])", remedy):
        cfg.model.data_preprocessor[name] = ast.literal_eval(text)
    return cfg


def wrong_suffix(root: Path) -> Config:
    cfg = base_config(root)
    relabel(root, {11: 255})
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.img_suffix = ".png"
    return cfg


def without(cfg: Config, label: int) -> Config:
    """Without a class."""
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.label_map = {CLASSES[label]: "ignore"}
    cfg.model.decode_head.num_classes = 10
    return cfg


def set_key(key: str, value: Any) -> Callable[[Config, str], Config]:
    def fix(cfg: Config, remedy: str) -> Config:
        cfg.merge_from_dict({key: value})
        return cfg

    return fix


def set_said(*names: str, **more: Any) -> Callable[[Config, str], Config]:
    return lambda cfg, remedy: set_all(cfg, remedy, *names, **more)


def unset_reduce(cfg: Config, remedy: str) -> Config:
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        del loader.dataset["reduce_zero_label"]
    return cfg


def set_255_everywhere(cfg: Config, remedy: str) -> Config:
    for node in (cfg.model.decode_head, cfg.val_evaluator):
        node.ignore_index = 255
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.ignore_index = 255
    return cfg


def move_to_train(cfg: Config, remedy: str) -> Config:
    root = Path(cfg.train_dataloader.dataset.data_root)
    label = first(root, "valannot")
    for folder, name in (("", f"{label.stem}.jpg"), ("annot", label.name)):
        (root / f"val{folder}" / name).rename(root / f"train{folder}" / f"moved{name[-4:]}")
    return cfg


def jpg_suffix(cfg: Config, remedy: str) -> Config:
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.img_suffix = ".jpg"
    return cfg


def other_palette(root: Path) -> Config:
    """All label maps have a palette of another order of the classes."""
    relabel(root, {11: 255})
    palette = np.array(CamVidDataset.METAINFO["palette"], np.uint8)
    for file in root.glob("*annot/*.png"):
        image = Image.open(file)
        image.load()
        image.putpalette(np.roll(palette, 1, axis=0).tobytes() + bytes(245 * 3))
        image.save(file)
    return set_palette(base_config(root), palette, CLASSES)


def set_palette(cfg: Config, palette: np.ndarray, classes: list[str]) -> Config:
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.metainfo = dict(classes=classes, palette=palette.tolist())
    return cfg


def palette_order(cfg: Config, remedy: str) -> Config:
    palette = np.roll(np.array(CamVidDataset.METAINFO["palette"]), 1, axis=0)
    return set_palette(cfg, palette, [CLASSES[-1], *CLASSES[:-1]])


def palette_as_colours(root: Path) -> Config:
    """Another decoder, which reads colours from palette files."""
    for file in root.glob("*annot/*.png"):
        image = Image.open(file)
        image.load()
        image.putpalette(np.array(CamVidDataset.METAINFO["palette"], np.uint8).tobytes())
        image.save(file)
    cfg = config(root)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.pipeline[1].imdecode_backend = "cv2"
    return cfg


def default_decoder(cfg: Config, remedy: str) -> Config:
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        del loader.dataset.pipeline[1]["imdecode_backend"]
    return cfg


GREY = dict(mean=[120.0], std=[60.0])
UNIT = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], bgr_to_rgb=True)
TWO = ["background", "thing"]
ONE_CLASS = set_said("num_classes", classes=TWO)
SIGMOID = set_said("num_classes", "out_channels", "use_sigmoid", classes=TWO)
CONFIGS_AT_FAULT: dict[str, list[tuple[str, Make, Callable[[Config, str], Config]]]] = {
    "empty_split": [("another suffix", wrong_suffix, jpg_suffix)],
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
