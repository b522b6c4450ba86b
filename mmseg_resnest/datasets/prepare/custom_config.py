# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The config of a data set of one's own.

A config is Python, and MMEngine replaces ``{{...}}`` in its text before that runs. So nothing that
people name enters it: names of classes are in the data set's ``classes.json``, and paths are
written with all but letters, digits and ``_ . / - space`` escaped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...errors import UserError
from ...weights import catalogue
from ..class_names import CLASSES_FILE
from .bands import BandStatistics, band_lines, band_steps
from .config_text import text_literal
from .planes import multilabel_lines


def config_text(
    name: str,
    root: Path,
    num_classes: int,
    num_train: int,
    num_val: int,
    config: Path,
    parent: Config,
    epochs: int,
    label_map: Mapping[str, str],
    base_name: str | None = None,
    multilabel: bool = False,
    bands: BandStatistics | None = None,
    suffixes: Sequence[str] = (),
) -> str:
    """The text of a config that inherits from ``parent`` and trains on the data set.

    ``config`` is where it will be; ``name`` has only letters, digits and ``_``. ``num_classes`` are
    those that ``label_map`` leaves. ``base_name`` is what it calls the parent, None: the path from
    the config to the parent's file. ``multilabel`` says that the classes may overlap. ``bands``
    are those of images of bands, and ``suffixes`` their names' ends.

    Raises:
        UserError: The parent lacks what the config needs, or MMEngine cannot read its path.
    """
    base = Path(parent.filename)
    for variable in ("train_pipeline", "test_pipeline"):
        if variable not in parent:
            message = f"has no {variable}; take one of the configs in configs/"
            raise UserError("config-key", f"--base {base}", message)
    lines = _head_lines(base, parent)
    of_model: list[str] = []
    option, more, pipelines = "", "", "_base_."
    if bands is not None:
        of_model, option, more = band_lines(bands, parent, suffixes, multilabel)
        pipelines = ""
    model = "model = dict(\n" + "\n".join([*of_model, *lines]) + "\n)"
    if multilabel:
        steps = {name: parent[name] for name in ("train_pipeline", "test_pipeline")}
        if bands is not None:
            steps = {name: band_steps(some) for name, some in steps.items()}
        model, of_labels = multilabel_lines(parent, base, steps, of_model)
        more, pipelines = more + of_labels, ""
    batch = int(parent.get("total_batch_size") or parent.train_dataloader["batch_size"])
    per_epoch = max(1, math.ceil(num_train / batch))
    max_iters = epochs * per_epoch
    interval = max(1, max_iters // 10)
    warm = [s for s in parent.get("param_scheduler", []) if s.get("type") == "LinearLR"]
    warmup = min(int(warm[0]["end"]), max_iters // 10) if warm else 0
    schedule = []
    if warmup:
        factor = float(warm[0].get("start_factor", 1 / 3))
        schedule.append(
            f'    dict(type="LinearLR", start_factor={factor!r}, begin=0, end={warmup},'
            " by_epoch=False),"
        )
    schedule.append(
        f'    dict(type="PolyLR", power=0.9, eta_min=0.0, begin={warmup}, end=max_iters + 1,'
        " by_epoch=False),"
    )
    named = base_name or Path(os.path.relpath(base.resolve(), config.resolve().parent)).as_posix()
    if base_name is None and "::" in named:
        message = (
            f"MMEngine takes '::' in the path from {config.parent} for the name of a package; move"
            " or rename the folder"
        )
        raise UserError("argument", f"--base {base}", message)
    newline = "\n"
    return f"""\
# {name}: {num_train} / {num_val} images, {num_classes} classes.
# Written by mmseg-resnest prepare-data custom.
_base_ = {text_literal(named) if base_name is None else '"' + base_name + '"'}
{_size_line(parent)}# To start from published weights (mmseg-resnest weights list), or from a file:
# load_from = "{_published_weights(base)}"
root = "{{{{$MMSEG_RESNEST_DATA:unset}}}}"
root = {text_literal(root.as_posix())} if root == "unset" else root
num_classes = {num_classes}
{model}

dataset = dict(
    _delete_=True,
    type="CustomDataset",
    data_root=root + "/{name}",
    data_prefix=dict(img_path="images", seg_map_path="annotations"),
    classes_file="{CLASSES_FILE}",  # names and colours, in data_root
{option}{label_map_line(label_map)})
{more}train_dataloader = dict(
    dataset=dict(ann_file="splits/train.txt", pipeline={pipelines}train_pipeline, **dataset)
)
val_dataloader = dict(
    dataset=dict(ann_file="splits/val.txt", pipeline={pipelines}test_pipeline, **dataset)
)
test_dataloader = val_dataloader

# {epochs} epochs of {per_epoch} batches of {batch}
max_iters, val_interval = {max_iters}, {interval}
train_cfg = dict(max_iters=max_iters, val_interval=val_interval)
param_scheduler = [
{newline.join(schedule)}
]
default_hooks = dict(checkpoint=dict(interval=val_interval))
"""


def _size_line(parent: Config) -> str:
    """A comment with the size of the training images, where they are cropped."""
    crops = [step["crop_size"] for step in parent.train_pipeline if "crop_size" in step]
    if not crops:
        return ""
    height, width = (crops[0], crops[0]) if isinstance(crops[0], int) else crops[0]
    said = f"# Training images: crops of {width}x{height}"
    return f"{said} (mmseg-resnest train --image-size WIDTHxHEIGHT: others).\n"


def _published_weights(base: Path) -> str:
    """The name of published weights of a config, or a name to replace."""
    for name, entry in catalogue().items():
        if entry.task == "segmentation" and Path(entry.config or "").stem == base.stem:
            return name
    return "weights.pth"


def label_map_line(label_map: Mapping[str, str]) -> str:
    """The option of a data set that merges classes; empty without any."""
    if not label_map:
        return ""
    pairs = (f"{text_literal(old)}: {text_literal(new)}" for old, new in label_map.items())
    return f"    label_map={{{', '.join(pairs)}}},\n"


def _head_lines(base: Path, parent: Config) -> list[str]:
    """A line for each head, with the data set's number of classes."""
    lines = []
    for key in ("decode_head", "auxiliary_head"):
        head: Any = parent.model.get(key)
        if not head:
            continue
        if not isinstance(head, dict) or "num_classes" not in head:
            message = f"model.{key} has no num_classes; take another config"
            raise UserError("config-key", f"--base {base}", message)
        loss = head.get("loss_decode")
        weights = isinstance(loss, dict) and loss.get("class_weight") is not None
        # The base's class weights are of its own classes.
        extra = ", loss_decode=dict(class_weight=None, avg_non_ignore=True)" if weights else ""
        lines.append(f"    {key}=dict(num_classes=num_classes{extra}),")
    return lines
