# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Length, batch, learning rate and image size of a training, with what belongs to each of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from ..errors import UserError
from ..registry import type_name
from .config.kinds import DATALOADERS
from .facts import mappings
from .resume_changes import Note
from .run_length import (
    WARM_UPS,
    RunLength,
    batch_holder,
    move_with_length,
    schedules_of,
    set_epochs,
)

#: Options of transforms, of the model's testing and of its augmentation that are sizes in pixels.
_SIZES = frozenset({"crop_size", "scale", "img_scale", "size", "base_size", "stride"})
_SIZED = (*DATALOADERS, "tta_pipeline", "tta_model")

_MOST_EPOCHS = 1_000_000


@dataclass(frozen=True)
class RunOptions:
    """What the command line says of a training in place of the config; None leaves it.

    Attributes:
        epochs: Length, in passes over the training images.
        batch_size: Images of a step, over all processes.
        lr: Learning rate.
        image_size: Width and height of the training crops, in pixels.
        images: How many training images there are; needed where :func:`counts_images` says so.
    """

    epochs: float | None = None
    batch_size: int | None = None
    lr: float | None = None
    image_size: tuple[int, int] | None = None
    images: int | None = None


def set_run_options(
    cfg: Config, options: RunOptions, scales_lr: bool, memory: int | None = None
) -> list[Note]:
    """Change a config, in place, and return rows for the header of the run.

    ``scales_lr`` says that the learning rate is scaled with the batch afterwards; ``memory`` are
    the bytes that are free, None if that is not known.

    Raises:
        UserError: A value is not accepted, or the config has nothing that it could change.
    """
    check_run_options(options, memory)
    notes: list[Note] = []
    images = options.images or 0
    before = RunLength.of(cfg, images)
    if options.batch_size is not None:
        notes += _set_batch(cfg, options.batch_size, options.lr is not None or scales_lr)
    if options.epochs is not None:
        set_epochs(cfg, options.epochs, images)
    notes += _move_with_length(cfg, before, RunLength.of(cfg, images))
    if options.lr is not None:
        _set_rate(cfg, options.lr)
    if options.image_size is not None:
        notes += _set_image_size(cfg, *options.image_size)
    return notes


def check_run_options(options: RunOptions, memory: int | None = None) -> None:
    """Raise UserError if a number is not possible, whatever the config; ``memory`` as above."""
    for name, value in (("--epochs", options.epochs), ("--lr", options.lr)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError("argument", name, f"must be above 0, not {value}")
    if options.epochs is not None and options.epochs > _MOST_EPOCHS:
        message = f"must be at most {_MOST_EPOCHS:,}, not {options.epochs:g}"
        raise UserError("argument", "--epochs", message)
    if options.batch_size is not None and options.batch_size < 1:
        raise UserError("argument", "--batch-size", f"must be at least 1, not {options.batch_size}")
    if options.image_size is not None:
        _check_crop(*options.image_size, memory)


def counts_images(cfg: Config, options: RunOptions) -> bool:
    """Whether it has to be known how many training images there are, to set these options."""
    by_epoch = cfg.train_cfg.get("max_iters") is None
    converted = any(one.get("convert_to_iter_based") for one in schedules_of(cfg))
    new_batch = options.batch_size is not None and (by_epoch or converted)
    return options.epochs is not None or new_batch


def schedule_note(cfg: Config) -> Note | None:
    """That the learning rate's schedules are of another length than the run, if they are."""
    unit = "max_epochs" if "max_epochs" in cfg.train_cfg else "max_iters"
    length = cfg.train_cfg.get(unit)
    by_epoch = unit == "max_epochs"
    alike = [one for one in schedules_of(cfg) if bool(one.get("by_epoch", True)) == by_epoch]
    last: Any = max(alike, key=lambda one: one.get("end") or math.inf, default={})
    end = last.get("end")
    if not isinstance(length, int) or not isinstance(end, int):
        return None
    if end > length + max(1, length // 100):
        said = (
            f"goes on to {end:,}, after the end of the run at {length:,}: the learning rate "
            "does not come down to its end"
        )
        return "schedule", said
    if end < length and not type_name(last.get("type")).startswith(WARM_UPS):
        said = f"ends at {end:,}, before the run at {length:,}: the learning rate stays there"
        return "schedule", said
    return None


def _set_batch(cfg: Config, batch: int, rate_is_said: bool) -> list[Note]:
    holder = batch_holder(cfg)
    before, holder["batch_size"] = holder.get("batch_size"), batch
    if rate_is_said or before == batch:
        return []
    text = f"as for a batch of {before}; --lr sets another, --auto-scale-lr scales it"
    return [("learning rate", text)]


def _move_with_length(cfg: Config, before: RunLength, after: RunLength) -> list[Note]:
    if after == before:
        return []
    move_with_length(cfg, before, after)
    unit = "iterations" if "max_iters" in cfg.train_cfg else "epochs"
    new, old = (getattr(one, unit) for one in (after, before))
    if new == old:  # with another batch, an epoch has another number of iterations
        return []
    text = f"{int(new):,} {unit} for {int(old):,}; schedules and intervals move with it"
    return [("length", text)]


def _set_rate(cfg: Config, rate: float) -> None:
    """Set the learning rate, and the lowest ones of schedules in proportion."""
    optimizer: Any = cfg.optim_wrapper.get("optimizer")
    if not isinstance(optimizer, Mapping) or "lr" not in optimizer:
        message = "the config's optimizer has no lr; change it with --cfg-options"
        raise UserError("config-conflict", "--lr", message)
    factor = rate / optimizer["lr"] if optimizer["lr"] else 1.0
    cfg.optim_wrapper.optimizer.lr = rate
    scale_rates(schedules_of(cfg), factor)


def scale_rates(schedules: Iterable[Any], factor: float) -> None:
    """Multiply, in place, the learning rates that the configs of schedules name."""
    for schedule in schedules:
        kind = type_name(schedule.get("type"))
        if not kind.endswith("LR") and schedule.get("param_name") != "lr":
            continue  # of the momentum or the weight decay
        for key in ("eta_min", "eta_max", "min_value"):
            if isinstance(schedule.get(key), list | tuple):
                schedule[key] = [one * factor for one in schedule[key]]
            elif schedule.get(key):
                schedule[key] *= factor


def _check_crop(width: int, height: int, free: int | None) -> None:
    """Raise UserError for a size of crops that no network takes, or that no memory holds."""
    if min(width, height) < 32:
        message = f"must be at least 32 pixels, not {width}x{height}"
        raise UserError("argument", "--image-size", message)
    needed = 12 * width * height  # three channels of float32
    if free is not None and 2 * needed > free:  # where it is loaded, and where it is used
        message = (
            f"an image of {width}x{height} takes {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB"
            " of memory are free; give a smaller size"
        )
        raise UserError("argument", "--image-size", message)


def _set_image_size(cfg: Config, width: int, height: int) -> list[Note]:
    """Set the crop of the training, and stretch the other sizes by the same factors."""
    before = _crop(cfg.train_dataloader)
    if before is None:
        message = "the training pipeline of the config has no RandomCrop; change its transforms"
        raise UserError("config-conflict", "--image-size", message)
    factors = width / before[0], height / before[1]
    nodes = [cfg.get(name) for name in _SIZED]
    nodes += [cfg.model.get("test_cfg"), cfg.model.get("data_preprocessor")]
    for node in nodes:
        _stretch_sizes(node, factors)
    return [("image size", f"{width}x{height} for {before[0]}x{before[1]}; resizing moves with it")]


def _crop(loader: Any) -> tuple[int, int] | None:
    """Width and height of the first crop of a pipeline."""
    for _, node in mappings(loader):
        area = "crop_ratio_range" in node  # a crop of a random size, resized to a scale
        crop = node.get("scale" if area else "crop_size")
        if "type" in node and crop is not None:
            return (crop, crop) if isinstance(crop, int) else (int(crop[1]), int(crop[0]))
    return None


def _stretch_sizes(node: Any, factors: tuple[float, float]) -> None:
    """Multiply the sizes of transforms; ``factors`` are those of width and height."""
    if isinstance(node, list | tuple):
        for one in node:
            _stretch_sizes(one, factors)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in _SIZES and value is not None:
                # (width, height) in a scale and in the size of Pad and CenterCrop.
                wide_first = key in ("scale", "img_scale", "size") and "type" in node
                wide_first = wide_first and node["type"] != "SegDataPreProcessor"
                node[key] = _stretched(value, factors if wide_first else factors[::-1])
            else:
                _stretch_sizes(value, factors)


def _stretched(value: Any, factors: tuple[float, float]) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | list | tuple):
        return value
    if isinstance(value, int):
        return max(1, round(value * math.sqrt(factors[0] * factors[1])))
    if len(value) == 2 and all(isinstance(one, int) for one in value):
        sides = zip(value, factors, strict=True)
        return tuple(one if one < 1 else max(1, round(one * by)) for one, by in sides)
    return type(value)(_stretched(one, factors) for one in value)
