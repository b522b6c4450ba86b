# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Loading a folder that ``tools/publish_model.py`` wrote, or that was fetched from a hub.

``config.json`` says what to build and ``model.safetensors`` holds the weights. Neither can run
code: the JSON may name registered parts only, and nothing in it that would read another file is
taken over. A ``config.py`` beside them is for training and is not read here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import Registry

from .. import registry as registries
from ..errors import UserError
from ..weights.hashes import AGAIN, difference
from .segmentor import BATCH_PIXELS, Segmentor, load_segmentor

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "is_published", "load_published", "plain_config"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = 1
# Parts that matter to training alone, or that name files and addresses to load from.
_TRAINING = ("init_cfg", "pretrained", "train_cfg", "sampler", "auxiliary_head")


def is_published(path: object) -> bool:
    """Whether a path is a folder with a published model."""
    return isinstance(path, str | os.PathLike) and os.path.isfile(os.path.join(path, CONFIG_FILE))


def plain_config(value: Any) -> Any:
    """A part of a config without what only training needs."""
    if isinstance(value, dict):
        return {
            key: plain_config(item)
            for key, item in value.items()
            if key not in _TRAINING and not str(key).startswith("loss_")
        }
    if isinstance(value, list | tuple):
        return [plain_config(item) for item in value]
    return value


def load_published(
    folder: str | os.PathLike[str],
    device: str | torch.device | None = None,
    batch_pixels: int = BATCH_PIXELS,
) -> Segmentor:
    """Load a published folder.

    Args:
        folder: With ``config.json`` and ``model.safetensors``.
        device: See :func:`~mmseg_resnest.load_segmentor`.
        batch_pixels: See :func:`~mmseg_resnest.load_segmentor`.

    Raises:
        UserError: A file is missing, broken, or not the one that ``config.json`` was written for.
    """
    root = Path(folder)
    file, weights = root / CONFIG_FILE, root / WEIGHTS_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise UserError(f"{file}: is of format {record['format']}; this version reads {FORMAT}")
        classes, palette = list(record["classes"]), list(record["palette"])
        model, pipeline = plain_config(record["model"]), plain_config(record["pipeline"])
        for kind in _types([model, pipeline]):
            if not _is_registered(kind):
                raise ValueError(f"{kind!r} is no known part")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is no config of a published model ({error})") from error
    if not weights.is_file():
        raise UserError(f"{weights}: does not exist; the folder was not copied completely")
    with open(weights, "rb") as opened:
        wrong = difference(opened, str(record.get("sha256")), "sha256")
    if wrong:
        raise UserError(f"{weights}: is not the file that {CONFIG_FILE} names: {wrong}: {AGAIN}")
    dataset = dict(
        type="BaseSegDataset",
        metainfo=dict(classes=classes, palette=palette),
        pipeline=_tuples(pipeline),
    )
    cfg = Config(
        dict(
            default_scope="mmseg_resnest",
            model=_tuples(model),
            test_dataloader=dict(dataset=dataset),
        ),
        filename=os.fspath(file),
    )
    return load_segmentor(cfg, weights, device, batch_pixels)


def _types(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        if "type" in value:
            yield value["type"]
        for item in value.values():
            yield from _types(item)
    elif isinstance(value, list):
        for item in value:
            yield from _types(item)


def _is_registered(kind: Any) -> bool:
    """Whether a name is that of a registered part; the registry would import any other."""
    if not isinstance(kind, str):
        return False
    name = kind.removeprefix("mmseg_resnest.").removeprefix("mmseg.").removeprefix("mmengine.")
    for start in (registries.MODELS, registries.TRANSFORMS):
        registry: Registry | None = start
        while registry is not None:
            if name in registry.module_dict:
                return True
            registry = registry.parent
    return False


def _tuples(value: Any) -> Any:
    """Tuples where JSON has lists of plain values; configs are written so and parts insist."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [_tuples(item) for item in value]
        return items if any(isinstance(item, dict) for item in items) else tuple(items)
    return value
