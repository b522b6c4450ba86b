# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Loading a model of any kind: a config with weights, a published one, an exported file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from mmengine.config import Config

from ..engine.config import load_config
from ..engine.preflight import check_device
from ..engine.reproduce import config_of
from ..errors import UserError
from ..weights import find
from .published import is_published, load_published
from .runtimes import is_exported, load_exported
from .segmentor import BATCH_PIXELS, Segmentor, load_config_model

__all__ = ["load_segmentor"]


def load_segmentor(
    config: str | os.PathLike[str] | Config,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    batch_pixels: int = BATCH_PIXELS,
    trust: bool = False,
) -> Segmentor:
    """Load a model to segment images with.

    A config that is Python runs, as any program. Published models, published folders, ``.onnx``
    and ``.xml`` are data, of which nothing runs.

    Several threads may load models at the same time, while others predict: configs are read and
    networks are built by one thread after the other, files are read and images are segmented
    side by side. Nothing of the process is changed: the default scope of MMEngine is put back.

    Args:
        config: A config file, or a config that was loaded; or, alone, the name of a published
            segmentation model (``mmseg-resnest weights list``), for its config and its weights,
            an exported model (``.onnx``, ``.xml``, and with ``trust`` ``.pt2``,
            ``.torchscript``), or a folder that ``mmseg-resnest publish-model`` wrote.
        checkpoint: Weights of the whole model, in any known layout: a path, an address, or a name
            of the catalogue. None leaves the weights untrained, which is of use only to measure
            speed.
        device: E.g. ``cpu`` or ``cuda:1``; None is the GPU if there is one.
        batch_pixels: The most pixels of images that go through the network together, which
            bounds the memory that several images take. A larger image goes alone.
        trust: Whether to load ``.pt2`` and ``.torchscript`` files. They are programs, which run
            with your rights: only files of your own, or of people whose programs you would run.

    Returns:
        The model; call it with an image.

    Raises:
        UserError: The config, the checkpoint or the device is missing or does not fit, or the file
            is a program and ``trust`` is False.
    """
    if checkpoint is None and not isinstance(config, Config):
        if is_exported(config):
            return load_exported(config, device, batch_pixels, trust)
        if is_published(config):
            return load_published(config, device, batch_pixels)
    chosen = check_device(device)
    if isinstance(config, str) and checkpoint is None and not Path(config).suffix:
        config, checkpoint = _published(config)
    cfg = config if isinstance(config, Config) else load_config(config)
    return load_config_model(cfg, checkpoint, chosen, batch_pixels)


def _published(name: str) -> tuple[Path, str]:
    """The config of a published model, and the name of its weights."""
    entry = find(name)
    if entry.config is None:
        raise UserError(
            "input",
            name,
            f"an ImageNet backbone without a head, which cannot segment; train from it "
            f"with init_cfg=dict(type='Pretrained', checkpoint={name!r})",
        )
    return config_of(entry), name
