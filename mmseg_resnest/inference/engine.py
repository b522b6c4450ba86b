# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Another runtime behind a model that segments images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from ..datasets.reader import ImageInput, ImageReader, LoadedImage
from ..engine.resume_changes import Note
from ..errors import UserError
from ..models import EncoderDecoder, windows_of
from ..runtimes import Choice, Engine, use_engine
from ..runtimes.samples import drawn_picture
from .faults import NOT_OF_AN_IMAGE

__all__ = ["choose_engine", "prepare_engine", "preparing"]


class _Model(Protocol):
    """What is used of a :class:`.segmentor.Segmentor`, which stands above this file."""

    model: Any
    cfg: Any
    reader: ImageReader
    engine: Engine | None

    @property
    def channels(self) -> int | None: ...

    @property
    def device(self) -> torch.device: ...

    def tiling(self, size: tuple[int, int], tile: int | None) -> Any: ...

    def network_inputs(self, image: ImageInput, tile: bool = False) -> Tensor: ...


_M = TypeVar("_M", bound=_Model)


def choose_engine(model: _M, choice: Choice, tell: Callable[[str], object] | None = None) -> _M:
    """Let an engine compute a model's network from the next image on; returns the same model.

    Args:
        model: The model, not folded.
        choice: The engine.
        tell: Gets lines on what takes long; None logs them as warnings.

    Raises:
        UserError: As :func:`~mmseg_resnest.runtimes.use_engine`; or it is an exported model.
    """
    if not choice.is_plain and hasattr(model.model, "record"):
        said = "an exported file says itself what computes it; name the model's checkpoint"
        raise UserError("config-conflict", f"engine {choice.engine}", said)
    more = {} if tell is None else {"tell": tell}
    model.engine = use_engine(model.model, model.cfg, choice, **more)
    return model


def prepare_engine(
    model: _Model, images: Sequence[ImageInput] = (), tile: int | None = None
) -> list[Note]:
    """Prepare a model's engine now, and not at the first image that is segmented.

    Args:
        model: The model.
        images: Those that will be segmented, of which the first one is taken that can be read and
            that the network takes; without any a picture is drawn, and those that come may have
            any size.
        tile: Edge of their tiles, see :class:`.segmentor.Segmentor`.

    Returns:
        Rows for the header of a command; none where no image can be segmented.

    Raises:
        UserError: ``tile`` is wrong, or as :meth:`~mmseg_resnest.runtimes.Engine.prepare`.
    """
    if model.engine is None:
        return []
    model.tiling((1, 1), tile)  # a wrong edge is no fault of an image
    any_size = not images
    if any_size and model.reader.eight_bit and model.channels in (None, 3):
        images = [drawn_picture(512, 640)]
    if not images:
        inputs = torch.randn(1, model.channels or 3, 512, 512, device=model.device)
        inputs = windows_of(cast(EncoderDecoder, model.model), inputs)
        return model.engine.prepare(inputs, any_size=True)
    for image in images:
        found = _first_inputs(model, image, tile)
        if found and (rows := _prepared(model.engine, found[1], any_size)) is not None:
            return rows
    return []


def preparing(
    model: _Model, images: Iterable[ImageInput], tile: int | None = None
) -> Iterator[ImageInput]:
    """The images, of which the first one that has no error prepares a model's engine, if any.

    So an engine that cannot compute is no fault of an image.
    """
    waiting = iter(images)
    for image in waiting if model.engine is not None and not model.engine.ready else ():
        found = _first_inputs(model, image, tile)
        if found is None:
            yield image
            continue
        loaded, inputs = found
        assert model.engine is not None
        done = _prepared(model.engine, inputs) is not None
        # An open file cannot be read again; a path names the image in errors.
        yield image if isinstance(image, str | os.PathLike) else loaded
        if done:
            break
    yield from waiting


def _prepared(engine: Engine, inputs: Tensor, any_size: bool = False) -> list[Note] | None:
    """The engine's rows; None where the network itself, and not the engine, fails on an image."""
    try:
        return engine.prepare(inputs, any_size=any_size)
    except (UserError, *NOT_OF_AN_IMAGE):
        raise
    except Exception:  # it comes again when the image is segmented
        return None


def _first_inputs(
    model: _Model, image: ImageInput, tile: int | None
) -> tuple[LoadedImage, Tensor] | None:
    """An image, and it or its first tile as the network gets it; None where it has an error."""
    try:
        loaded = model.reader.read(image)
        tiling = model.tiling(loaded.size, tile)
        edge = max(loaded.size) if tiling is None else tiling.tile
        part = model.reader.loaded(loaded.pixels[:edge, :edge])
        inputs = model.network_inputs(part, tile=tiling is not None)
        return loaded, windows_of(cast(EncoderDecoder, model.model), inputs)
    except Exception:  # it comes again when the image is segmented
        return None
