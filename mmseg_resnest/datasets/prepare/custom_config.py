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
from ...io.text import printable
from ...weights import catalogue
from ..class_names import CLASSES_FILE
from ..pipelines import loads_labels, split_loading, step_name
from .bands import BAND_SUFFIXES, BandStatistics
from .custom_options import CustomOptions

# Steps of a base's pipeline that are for photos of 8 bits.
_COLOUR_STEPS = frozenset(
    ("PhotoMetricDistortion", "CLAHE", "AdjustGamma", "RandomGrayscale", "RGB2Gray", "Rerange")
)
_LOSSES = """\
losses = [
    dict(type="CrossEntropyLoss", use_sigmoid=True, avg_non_ignore=True),
    dict(type="DiceLoss"),
]
"""


def config_text(
    options: CustomOptions,
    root: Path,
    num_classes: int,
    num_train: int,
    num_val: int,
    config: Path,
    parent: Config,
    epochs: int,
    base_name: str | None = None,
    bands: BandStatistics | None = None,
    suffixes: Sequence[str] = (),
) -> str:
    """The text of a config that inherits from ``parent`` and trains on the data set.

    ``config`` is where it will be; the data set's name has only letters, digits and ``_``.
    ``num_classes`` are those that its ``label_map`` leaves. ``base_name`` is what it calls the
    parent, None: the path from the config to the parent's file. ``bands`` are those of images of
    bands, and ``suffixes`` their names' ends.

    Raises:
        UserError: The parent lacks what the config needs, or MMEngine cannot read its path.
    """
    base = Path(parent.filename)
    for variable in ("train_pipeline", "test_pipeline"):
        if variable not in parent:
            message = f"has no {variable}; take one of the configs in configs/"
            raise UserError("config-key", f"--base {base}", message)
    own = options.multilabel or bands is not None  # pipelines
    pipelines = "" if own else "_base_."
    batch = int(parent.get("total_batch_size") or parent.train_dataloader["batch_size"])
    per_epoch = max(1, math.ceil(num_train / batch))
    max_iters = epochs * per_epoch
    interval = max(1, max_iters // 10)
    warm = [s for s in parent.get("param_scheduler", []) if s.get("type") == "LinearLR"]
    warmup = min(int(warm[0]["end"]), max_iters // 10) if warm else 0
    warmup = warmup if warmup > 1 else 0  # in one step, LinearLR stays where it begins
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
# {options.name}: {num_train} / {num_val} images, {num_classes} classes.
# Written by mmseg-resnest prepare-data custom.
_base_ = {text_literal(named) if base_name is None else '"' + base_name + '"'}
{_size_line(parent)}# To start from published weights (mmseg-resnest weights list), or from a file:
# load_from = "{_published_weights(base)}"
root = "{{{{$MMSEG_RESNEST_DATA:unset}}}}"
root = {text_literal(root.as_posix())} if root == "unset" else root
num_classes = {num_classes}
{_LOSSES if options.multilabel else ""}{_model_text(base, parent, bands, options.multilabel)}

dataset = dict(
    _delete_=True,
    type="CustomDataset",
    data_root=root + "/{options.name}",
    data_prefix=dict(img_path="images", seg_map_path="annotations"),
    classes_file="{CLASSES_FILE}",  # names and colours, in data_root
{suffix_line(suffixes) if bands else ""}{label_map_line(options.label_map)})
{_pipelines_text(parent, bands, options.multilabel) if own else ""}train_dataloader = dict(
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


def _model_text(base: Path, parent: Config, bands: BandStatistics | None, multilabel: bool) -> str:
    """The model's heads with the data set's number of classes, and its input of bands."""
    lines = []
    if bands is not None:
        own = parent.model.get("data_preprocessor")
        kind = "" if own else 'type="SegDataPreProcessor", '
        lines += [
            f"    data_preprocessor=dict({kind}mean={list(bands.mean)}, std={list(bands.std)},",
            "        bgr_to_rgb=False),",
            f"    backbone=dict(in_channels={len(bands.mean)}),",
        ]
    for key in ("decode_head", "auxiliary_head"):
        head: Any = parent.model.get(key)
        if not head:
            continue
        if not isinstance(head, dict) or "num_classes" not in head:
            message = f"model.{key} has no num_classes; take another config"
            raise UserError("config-key", f"--base {base}", message)
        loss, extra = head.get("loss_decode"), ""
        if multilabel:
            extra = ", loss_decode=losses"
        elif isinstance(loss, dict) and loss.get("class_weight") is not None:
            # The base's class weights are of its own classes.
            extra = ", loss_decode=dict(class_weight=None, avg_non_ignore=True)"
        lines.append(f"    {key}=dict(num_classes=num_classes{extra}),")
    if multilabel:
        lines.insert(0, "    multilabel=True,  # a pixel can be of several classes, or of none")
        lines.append("    test_cfg=dict(thresholds=0.5),  # or one for each class")
    return "\n".join(["model = dict(", *lines, ")"])


def _pipelines_text(parent: Config, bands: BandStatistics | None, multilabel: bool) -> str:
    """The pipelines, whose steps are the base's by their places, but for what loads.

    Of classes that overlap also the metric and the test-time augmentation.
    """
    text = f"load_bands = {loader_text(bands)}\n" if bands else ""
    if multilabel:
        text += 'load_labels = dict(type="LoadMultilabel", num_classes=num_classes)\n'
    views = ""
    for name in ("train_pipeline", "test_pipeline"):
        steps = parent[name]
        first = len(split_loading(steps)[0]) if bands else 0
        lines = ["load_bands,"] if bands else []
        number = len(lines)  # of the steps, without comments
        for place, step in enumerate(steps[first:], first):
            kind, own = printable(step_name(step)), f"_base_.{name}[{place}]"
            if bands and kind in _COLOUR_STEPS:
                lines.append(f"# {own}, {kind}, is for photos of 8 bits")
                continue
            if multilabel and loads_labels(kind):
                lines.append("load_labels,")
            else:
                lines.append(f"{_for_bands(own, step) if bands else own},  # {kind}")
                if name == "test_pipeline" and not kind.startswith(("Load", "Pack")):
                    views += f"            [test_pipeline[{number}]],\n"
            number += 1
        text += f"{name} = [\n{''.join(f'    {line}{chr(10)}' for line in lines)}]\n"
    return text + _overlap_text(views) if multilabel else text


def _for_bands(own: str, step: Mapping[str, Any]) -> str:
    """A step of the base, as Python, with what bands need in place of its options."""
    changes = ""
    if step.get("backend") == "pillow":  # which takes 8 bits alone
        changes += ', backend="cv2"'
    if step_name(step) == "Pad" and isinstance(step.get("pad_val"), Mapping):
        # The means, which are 0 once normalised; 0 may be many deviations from any value.
        changes += f', pad_val=dict({own}["pad_val"], img=load_bands["fill"])'
    return f"dict({own}{changes})" if changes else own


def _overlap_text(views: str) -> str:
    return f"""\
val_evaluator = dict(_delete_=True, type="MultilabelMetric")
test_evaluator = val_evaluator
tta_model = dict(_delete_=True, type="SegTTAModel")
tta_pipeline = [
    test_pipeline[0],
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
{views}            [load_labels],
            [dict(type="PackSegInputs")],
        ],
    ),
]
"""


def loader_text(statistics: BandStatistics) -> str:
    """The loader of a config, as Python."""
    bands, layout, nodata, _ = statistics.options
    nothing = "" if nodata is None else f" nodata={nodata!r},"
    return f"""\
dict(
    type="LoadBands", bands={None if bands is None else list(bands)}, layout="{layout}",{nothing}
    fill={list(statistics.mean)},
)"""


def suffix_line(suffixes: Sequence[str]) -> str:
    """The option of a data set that says how names of images of bands end."""
    return f"    img_suffix={[s for s in BAND_SUFFIXES if s in suffixes]!r},\n"


def text_literal(text: str) -> str:
    """A Python literal of a text that is safe wherever MMEngine reads a config.

    Every character but letters, digits and ``_ . / -`` and the space is an escape sequence, also
    lone surrogates, which paths have for bytes that are not UTF-8.
    """
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character.isalnum() or character in "_./- ":
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
