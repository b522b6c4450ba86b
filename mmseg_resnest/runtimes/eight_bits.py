# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The file of a network in 8 bits, calibrated on a few images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from numpy.typing import NDArray

from ..datasets.reader import ImageReader
from ..errors import UserError
from ..io.up_to_date import fingerprint
from ..models import EncoderDecoder, windows_of
from ..registry import building
from .files import quantise_onnx
from .samples import calibration_images, spread
from .store import Entry

__all__ = ["in_8_bits"]

_CALIBRATION = 32


def in_8_bits(
    entry: Entry,
    source: Path,
    model: EncoderDecoder,
    cfg: Config,
    images: Sequence[str],
    tell: Callable[[str], object],
) -> Path:
    """A network in 8 bits, which is kept for the last images that it was calibrated on.

    Args:
        entry: Where it is kept.
        source: The network in float32.
        model: The model.
        cfg: Its config.
        images: To see the ranges of values on; none: those of the config's training split.
        tell: Gets lines on what takes long.

    Raises:
        UserError: There are no images, or none that can be read.
    """
    files = spread(images, _CALIBRATION) or calibration_images(cfg, _CALIBRATION)
    if not files:
        said = "needs images to see the ranges of values on, and the config's data are not "
        said += "there; name a config whose images are (--data-root), or predict with it"
        raise UserError("dataset", "precision int8", said)

    def quantise(part: Path) -> None:
        tell(f"calibrating 8 bits on {len(files)} images, once for this checkpoint")
        quantise_onnx(source, part, _inputs(model, cfg, files))

    known = [Path(file) if os.path.isfile(file) else file for file in files]  # or an address
    name = f"int8-{fingerprint(known)[:12]}.onnx"
    if not entry.has(name):
        entry.remove("int8-")  # of other images
    return entry.file(name, quantise)


def _inputs(model: EncoderDecoder, cfg: Config, files: Sequence[str]) -> Iterator[NDArray]:
    """The network's input of each image that can be read; UserError if none can."""
    with building(cfg.get("default_scope", "mmseg")):
        reader = ImageReader.of(cfg.test_dataloader.dataset, "test_dataloader.dataset")
    errors: list[UserError] = []
    for file in files:
        try:
            batch = pseudo_collate([reader.prepare(reader.read(file))])
        except UserError as error:  # it comes again when the image is segmented
            errors.append(error)
            if len(errors) == len(files):
                raise
            continue
        yield windows_of(model, model.data_preprocessor(batch, False)["inputs"]).cpu().numpy()
