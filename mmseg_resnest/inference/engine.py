# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Another runtime behind a model that segments images."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch

from ..datasets.reader import ImageInput
from ..engine.resume_changes import Note
from ..errors import UserError
from ..models import EncoderDecoder, windows_of
from ..runtimes import Choice, use_engine
from ..runtimes.samples import drawn_picture
from .runtimes import ExportedNetwork
from .segmentor import Segmentor

__all__ = ["choose_engine", "prepare_engine"]


def choose_engine(
    model: Segmentor, choice: Choice, tell: Callable[[str], object] | None = None
) -> Segmentor:
    """Let an engine compute a model's network from the next image on; returns the same model.

    Args:
        model: The model, not folded.
        choice: The engine.
        tell: Gets lines on what takes long; None logs them as warnings.

    Raises:
        UserError: As :func:`~mmseg_resnest.runtimes.use_engine`; or it is an exported model.
    """
    if not choice.is_plain and isinstance(model.model, ExportedNetwork):
        said = "an exported file says itself what computes it; name the model's checkpoint"
        raise UserError("config-conflict", f"engine {choice.engine}", said)
    more = {} if tell is None else {"tell": tell}
    model.engine = use_engine(model.model, model.cfg, choice, **more)
    return model


def prepare_engine(model: Segmentor, image: ImageInput | None = None) -> list[Note]:
    """Prepare a model's engine now, on an image, and not at the first one that is segmented.

    None draws a picture. Returns rows for the header of a command. Raises UserError where the
    image cannot be read, or as :meth:`~mmseg_resnest.runtimes.Engine.prepare`.
    """
    if model.engine is None:
        return []
    if image is None and model.reader.eight_bit and model.channels in (None, 3):
        image = drawn_picture(512, 640)
    if image is None:
        inputs = torch.randn(1, model.channels or 3, 512, 512, device=model.device)
    else:
        inputs = model.network_inputs(image)
    return model.engine.prepare(windows_of(cast(EncoderDecoder, model.model), inputs))
