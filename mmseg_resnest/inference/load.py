# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Loading a model of any kind: a config with weights, a published one, an exported file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from mmengine.config import Config

from ..engine.config import load_config, named_types
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

    A Python config runs as a program. Published models, published folders, ``.onnx`` and ``.xml``
    files are data: nothing in them runs. Threads may load models while others predict; the
    process, MMEngine's default scope included, is left as it was.

    Args:
        config: A config file, or a loaded config; or, without a checkpoint, the name of a
            published segmentation model (``mmseg-resnest weights list``), an exported model
            (``.onnx``, ``.xml``, and with ``trust`` ``.pt2``, ``.torchscript``), or a folder that
            ``mmseg-resnest publish-model`` wrote.
        checkpoint: Weights of the whole model, in any known layout: a path, an address, or a name
            of the catalogue. None leaves the weights untrained, to measure speed.
        device: E.g. ``cpu`` or ``cuda:1``; None is the GPU if there is one.
        batch_pixels: The most pixels of images that go through the network together, which
            bounds the memory. A larger image goes alone.
        trust: Load ``.pt2`` and ``.torchscript`` files, which are programs that run with your
            rights: only files whose makers' programs you would run.

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
        entry = find(config)
        if entry.config is None:
            use = f"init_cfg=dict(type='Pretrained', checkpoint={config!r})"
            said = f"an ImageNet backbone without a head cannot segment; train from it with {use}"
            raise UserError("model", config, said)
        config, checkpoint = config_of(entry), config
    cfg = named_types(config) if isinstance(config, Config) else load_config(config)
    return load_config_model(cfg, checkpoint, chosen, batch_pixels)
