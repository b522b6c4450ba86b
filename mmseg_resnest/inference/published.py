# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Loading a folder that ``mmseg-resnest publish-model`` wrote, or that was fetched from a hub.

``config.json`` says what to build and ``model.safetensors`` holds the weights. Neither can run
code: the JSON may name the parts and arguments of :mod:`mmseg_resnest.inference.record` only, and
no memory is asked for before the weights are known to fill the network. Every other file in the
folder is left alone.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from ..engine.runner import build_model
from ..errors import UserError
from ..weights.hashes import AGAIN, difference
from .record import read_published
from .segmentor import BATCH_PIXELS, Segmentor, load_config_model

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "is_published", "load_published"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
#: Eight times the largest published model; a sparse file is small on a disk and not in memory.
MAX_WEIGHTS_BYTES = 4 << 30


def is_published(path: object) -> bool:
    """Whether a path is a folder with a published model."""
    return isinstance(path, str | os.PathLike) and os.path.isfile(os.path.join(path, CONFIG_FILE))


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
        UserError: A file is missing or broken, holds what a published model may not, or is not the
            one that ``config.json`` was written for.
    """
    root = Path(folder)
    file, weights = root / CONFIG_FILE, root / WEIGHTS_FILE
    if not file.is_file():
        raise UserError("not-found", file, "does not exist, or is not a regular file")
    record, checked = read_published(file)
    if not re.fullmatch("[0-9a-f]{64}", checked["sha256"]):
        raise UserError("corrupt", file, "key sha256: not a SHA-256 of 64 hexadecimal digits")
    if not weights.is_file():
        raise UserError(
            "not-found", weights, "does not exist; the folder was not copied completely"
        )
    if weights.stat().st_size > MAX_WEIGHTS_BYTES:
        raise UserError(
            "too-large", weights, f"larger than {MAX_WEIGHTS_BYTES:,} bytes, the limit here"
        )
    with open(weights, "rb") as opened:
        wrong = difference(opened, checked["sha256"], "sha256")
    if wrong:
        raise UserError(
            "input", weights, f"is not the file that {CONFIG_FILE} names: {wrong}: {AGAIN}"
        )

    def fits(cfg: Config) -> None:
        _check_weights(cfg, weights, file)

    cfg = _config(checked, checked["model"], checked["pipeline"], file)
    model = load_config_model(cfg, weights, device, batch_pixels, fits)
    # From here on with the names of its parts, for people and for publishing it again.
    model.cfg = _config(checked, record["model"], record["pipeline"], file)
    return model


def _config(record: dict[str, Any], model: Any, pipeline: Any, file: Path) -> Config:
    dataset = dict(
        type="BaseSegDataset",
        metainfo=dict(classes=list(record["classes"]), palette=list(record["palette"])),
        pipeline=list(pipeline),
    )
    return Config(
        dict(
            default_scope="mmseg_resnest",
            model=model,
            test_dataloader=dict(dataset=dataset),
        ),
        filename=os.fspath(file),
    )


def _check_weights(cfg: Config, weights: Path, file: Path) -> None:
    """Compare the network that a record asks for with the tensors that the weights have.

    It is built without memory for its tensors. Afterwards it takes as much as the file is large.

    Raises:
        UserError: It cannot be built, or differs in a name or a shape.
    """
    try:
        with torch.device("meta"):
            network = build_model(cfg)
    except UserError as error:
        raise UserError("input", file, f"{error.text}") from error
    except Exception as error:  # whatever arguments that do not fit each other lead to
        reason = f"{type(error).__name__}: {error}"
        raise UserError("input", file, f"key model: cannot be built ({reason})") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = _shapes(weights)
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            raise UserError(
                "size-mismatch",
                weights,
                f"does not hold the model of {CONFIG_FILE}: {name[:200]!r} is "
                f"{_size(found.get(name))} in the file and {_size(wanted.get(name))} in the model",
            )


def _size(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _shapes(weights: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, from its header."""
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise UserError(
            "missing-package", weights, "needs safetensors: pip install safetensors"
        ) from error
    try:
        with safe_open(weights, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # its own kind, and those of memory mapping
        raise UserError(
            "input", weights, f"not a usable .safetensors file ({error}): {AGAIN}"
        ) from error
