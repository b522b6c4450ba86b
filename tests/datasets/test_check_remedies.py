# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the check advises is done: then the problem is gone, and training learns from the labels."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from check_sets import (
    CLASSES,
    check,
    clean,
    config,
    data,
    first,
)
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from PIL import Image, ImageOps
from test_check import FAULTS

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
        num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,),
    ),
    decode_head=dict(
        type="FCNHead", in_channels=4, channels=8, num_convs=1, concat_input=False,
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
    "two pages": edited(lambda image: image.copy()),
    "two pages of labels": edited(lambda label: label.copy()),
    "rotated by EXIF": upright, "upside down by EXIF": upright,
    "bomb": remove, "bomb as a label": restore, "tiny image": remove,
    "duplicate": remove, "duplicate, other label": keep_the_first_label, "leak": remove,
    "undecodable name": rename, "line break in a name": rename, "other suffix": rename_suffix,
}  # fmt: skip
# What the command of the remedy, or a key of the config, fixes: below.
OTHERWISE = {"colour mask", "palette in other order"}


@pytest.mark.parametrize("fault", FIXES)
def test_files(fault: str, data: Path, clean: Path) -> None:
    rule, plant, _ = FAULTS[fault]
    culprit = plant(data)
    (problem,) = check(config(data)).by_rule[rule]
    FIXES[fault](data, clean, Path(culprit))
    assert rule not in check(config(data)).by_rule, problem.remedy
    assert learns(config(data))


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
