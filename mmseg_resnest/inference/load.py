# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Loading a model of any kind: a run, a config with weights, a published one, an exported file."""

from __future__ import annotations

import os
from pathlib import Path
from types import EllipsisType
from typing import cast

import torch
from mmengine.config import Config

from ..engine.config import find_config, load_config, named_types
from ..engine.preflight import check_device
from ..engine.reproduce import config_of
from ..engine.trained import checkpoint_in, is_trained, load_trained
from ..errors import UserError
from ..runtimes import Choice
from ..weights import catalogue, find
from .engine import choose_engine
from .published import is_published, load_published
from .runtimes import is_exported, load_exported
from .segmentor import BATCH_PIXELS, Segmentor, load_config_model

__all__ = ["checkpoint_file", "load_segmentor", "published_config"]


def published_config(name: str) -> Path:
    """The config file of a published segmentation model; UserError: none, or another model."""
    entry = find(name)
    if entry.task == "detection":
        use = f"init_cfg=dict(type='Pretrained', checkpoint={name!r})"
        said = "is a detector, for MMDetection; train a segmentation model from its backbone with "
        said += use
        raise UserError("model", name, said)
    if entry.config is None:
        use = f"init_cfg=dict(type='Pretrained', checkpoint={name!r})"
        said = f"an ImageNet backbone without a head cannot segment; train from it with {use}"
        raise UserError("model", name, said)
    return config_of(entry)


def checkpoint_file(named: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The checkpoint that is named behind a config: a file, or one in the folder that is named.

    Raises:
        UserError: It is an exported model, or a folder without a checkpoint.
    """
    if is_exported(named) and not is_published(named):
        said = "is an exported model, which holds all that its config says; name it alone"
        raise UserError("argument", named, said)
    return checkpoint_in(named) if os.path.isdir(named) else named


def load_segmentor(
    config: str | os.PathLike[str] | Config,
    weights: str | os.PathLike[str] | EllipsisType | None = ...,
    device: str | torch.device | None = None,
    batch_pixels: int = BATCH_PIXELS,
    trust: bool = False,
    engine: str = "torch",
    precision: str = "float32",
) -> Segmentor:
    """Load a model to segment images with.

    A Python config runs as a program. Runs, checkpoints, published models and folders, ``.onnx``
    and ``.xml`` files are data: nothing in them runs. Threads may load models while others
    predict; the process, MMEngine's default scope included, is left as it was.

    Args:
        config: A config file, or a loaded config; or, without weights, the work folder of a
            run (its best checkpoint, or else its newest), a checkpoint of a run (the config is in
            it), the name of a published segmentation model (``mmseg-resnest weights list``), an
            exported model (``.onnx``, ``.xml``, and with ``trust`` ``.pt2``, ``.torchscript``), a
            folder that ``mmseg-resnest publish-model`` wrote, or one on a hub:
            ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``.
        weights: Weights of the whole model, in any known layout: a path, an address, a name of
            the catalogue, the work folder of a run, or a published folder. None leaves a config
            untrained, to measure speed; its labels mean nothing.
        device: E.g. ``cpu`` or ``cuda:1``; None is the GPU if there is one.
        batch_pixels: The most pixels of images that go through the network together, which
            bounds the memory. A larger image goes alone.
        trust: Load ``.pt2`` and ``.torchscript`` files, which are programs that run with your
            rights: only files whose makers' programs you would run.
        engine: What computes the network: ``torch``, ``compile`` (``torch.compile``),
            ``onnxruntime``, ``openvino``, or ``auto``, the fastest of torch, ONNX Runtime and
            OpenVINO here. The first image exports it, once for each content, and compares the
            labels with torch's (docs/performance.md).
        precision: ``float32``, or ``bf16`` or ``int8`` where the processor has units for it.

    Returns:
        The model; call it with an image.

    Raises:
        UserError: The config, the weights or the device is missing or does not fit, the file is a
            program and ``trust`` is False, or the engine or its precision cannot be used.
    """
    choice = Choice(engine, precision)
    found = _load(config, weights, device, batch_pixels, trust)
    return found if choice.is_plain else choose_engine(found, choice)


def _load(
    config: str | os.PathLike[str] | Config,
    weights: str | os.PathLike[str] | EllipsisType | None,
    device: str | torch.device | None,
    batch_pixels: int,
    trust: bool,
) -> Segmentor:
    checkpoint = None if isinstance(weights, EllipsisType) else weights
    if checkpoint is None and not isinstance(config, Config):
        if is_published(config):
            return load_published(config, device, batch_pixels)
        if is_exported(config):
            return load_exported(config, device, batch_pixels, trust)
    chosen = check_device(device)
    if checkpoint is None and is_trained(config):
        found = load_trained(cast(str, config))
        return load_config_model(
            found.cfg, found.checkpoint, chosen, batch_pixels, weights=found.weights
        )
    if checkpoint is not None:
        checkpoint = checkpoint_file(checkpoint)
    if checkpoint is None and isinstance(config, str) and _may_be_published(config):
        config, checkpoint = published_config(config), config
    cfg = named_types(config) if isinstance(config, Config) else load_config(config)
    if checkpoint is None and weights is ...:
        said = "has no weights, and would predict nonsense: name a checkpoint behind it, or in its "
        said += "place the work folder of a run; weights=None leaves it untrained"
        raise UserError("argument-missing", f"config {cfg.filename or ''}".strip(), said)
    return load_config_model(cfg, checkpoint, chosen, batch_pixels)


def _may_be_published(name: str) -> bool:
    """Whether it names published weights, or nothing that could be a config."""
    return name in catalogue() or not (Path(name).suffix or find_config(name).is_file())
