# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Loading a folder that ``mmseg-resnest publish-model`` wrote, here or on a hub.

``config.json`` says what to build and ``model.safetensors`` holds the weights. Neither can run
code: the JSON may name the parts and arguments of :mod:`mmseg_resnest.inference.record` only, and
no memory is used before the weights are known to fill the network. No other file is read.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from safetensors import safe_open

from ..engine.model import build_model
from ..errors import UserError
from ..weights.hashes import AGAIN, difference
from ..weights.hub import CONFIG_FILE, MAX_BYTES, WEIGHTS_FILE, hub_folder, is_hub
from .record import read_published, record_config
from .segmentor import BATCH_PIXELS, Segmentor, load_config_model

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "is_published", "load_published"]

#: A sparse file is small on a disk, not in memory.
MAX_WEIGHTS_BYTES = MAX_BYTES[WEIGHTS_FILE]


def is_published(path: object) -> bool:
    """Whether a path is a folder with a published model, or the name of one on a hub."""
    if is_hub(path):
        return True
    return isinstance(path, str | os.PathLike) and os.path.isfile(os.path.join(path, CONFIG_FILE))


def load_published(
    folder: str | os.PathLike[str],
    device: str | torch.device | None = None,
    batch_pixels: int = BATCH_PIXELS,
) -> Segmentor:
    """Load a published folder, or one of a hub by its name (:mod:`mmseg_resnest.weights.hub`).

    ``device`` and ``batch_pixels`` are as :func:`load_segmentor` has them.

    Raises:
        UserError: A file is missing or broken, holds what a published model may not, or is not the
            one that ``config.json`` was written for; or it cannot be fetched.
    """
    if on_hub := isinstance(folder, str) and is_hub(folder):
        folder = hub_folder(folder)
    file, weights = Path(folder, CONFIG_FILE), Path(folder, WEIGHTS_FILE)
    if not file.is_file():
        raise UserError("not-found", file, "no such file, or not a regular one")
    record, checked = read_published(file)
    if not re.fullmatch("[0-9a-f]{64}", checked["sha256"]):
        raise UserError("format", file, "key sha256 is not 64 hexadecimal digits")
    if not weights.is_file():
        raise UserError("not-found", weights, "copy the published folder completely")
    if weights.stat().st_size > MAX_WEIGHTS_BYTES:
        raise UserError("too-large", weights, f"has more than {MAX_WEIGHTS_BYTES:,} bytes")
    if not on_hub:  # whose file has just been compared with this hash
        with open(weights, "rb") as opened:
            wrong = difference(opened, checked["sha256"], "sha256")
        if wrong:
            raise UserError("corrupt", weights, f"not the file of {CONFIG_FILE}: {wrong}: {AGAIN}")

    model = load_config_model(
        record_config(checked, checked["model"], file),
        weights,
        device,
        batch_pixels,
        check=lambda cfg: _check_weights(cfg, weights, file),
    )
    # From here on with the names of its parts, for people and for publishing it again.
    model.cfg = record_config(record, record["model"], file)
    return model


def _check_weights(cfg: Config, weights: Path, file: Path) -> None:
    """Compare the network of a record, built without memory, with the tensors of the weights."""
    try:
        with torch.device("meta"):
            network = build_model(cfg)
    except UserError as error:
        raise UserError("format", file, error.text) from error
    except Exception as error:  # whatever arguments that do not fit each other lead to
        reason = f"{type(error).__name__}: {error}"
        raise UserError("format", file, f"key model cannot be built ({reason})") from error
    try:
        with safe_open(weights, "pt") as opened:
            found = {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except Exception as error:  # its own kind, and those of memory mapping
        said = f"not a .safetensors file ({error}): {AGAIN}"
        raise UserError("corrupt", weights, said) from error
    wanted: dict[str, Any] = {name: list(t.shape) for name, t in network.state_dict().items()}
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            shapes = f"{found.get(name)} in the file and {wanted.get(name)} in the model"
            said = f"does not hold the model of {CONFIG_FILE}: {name[:200]!r} has shape {shapes}"
            raise UserError("checkpoint", weights, said)
