# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The stack's transforms of colours, where its own wrap, cut off or mix values without a word."""

from __future__ import annotations

import copy
from typing import Any

import mmcv.transforms
import mmseg.datasets.transforms as stack
import numpy as np
import numpy.typing as npt

from ...errors import UserError
from ...registry import TRANSFORMS


def require_bytes(image: npt.NDArray[Any], transform: object, channels: int | None = None) -> None:
    """Refuse an image (H, W[, C]) that a transform of 8-bit values would spoil.

    Raises:
        UserError: It is not uint8, or has not this number of channels.
    """
    name = f"transform {type(transform).__name__}"
    if image.dtype != np.uint8:
        message = f"works on 8-bit values, and the image holds {image.dtype}; remove this step, or "
        raise UserError("image", name, message + "load 8-bit images")
    found = image.shape[2] if image.ndim == 3 else 1
    if channels is not None and found != channels:
        message = f"works on {channels} channels, and the image has {found}; remove this step"
        raise UserError("image", name, message)


@TRANSFORMS.register_module()
class CLAHE(stack.CLAHE):
    """mmseg's ``CLAHE``; it takes grey images, and refuses what is not 8-bit."""

    def transform(self, results: dict) -> dict:
        """Equalises each channel of ``img`` (H, W[, C]) uint8."""
        image = results["img"]
        require_bytes(image, self)
        planes = super().transform({"img": image.reshape(*image.shape[:2], -1).copy()})
        results["img"] = planes["img"].reshape(image.shape)
        return results


@TRANSFORMS.register_module()
class AdjustGamma(stack.AdjustGamma):
    """mmseg's ``AdjustGamma``; it refuses what is not 8-bit."""

    def transform(self, results: dict) -> dict:
        """Changes ``img`` (H, W[, C]) uint8."""
        require_bytes(results["img"], self)
        return super().transform(results)


@TRANSFORMS.register_module()
class RandomGrayscale(mmcv.transforms.RandomGrayscale):
    """mmcv's ``RandomGrayscale``; it refuses what is not 8-bit."""

    def transform(self, results: dict) -> dict:
        """Changes ``img`` (H, W[, C]) uint8 at random."""
        image = results["img"]
        grey = image.ndim == 2 or image.shape[2] == 1
        require_bytes(image, self, None if grey else len(self.channel_weights))
        return super().transform(results)


@TRANSFORMS.register_module()
class RGB2Gray(stack.RGB2Gray):
    """mmseg's ``RGB2Gray``; ``img_shape`` stays (height, width)."""

    def transform(self, results: dict) -> dict:
        """Makes ``img`` (H, W, C) the weighted mean of its channels."""
        image = results["img"]
        if image.ndim != 3 or image.shape[2] != len(self.weights):
            found = image.shape[2] if image.ndim == 3 else 1
            message = f"has {len(self.weights)} weights, and the image {found} channels"
            raise UserError("config-value", "transform RGB2Gray", f"{message}; give one for each")
        changed: dict = super().transform(results)
        changed["img_shape"] = changed["img"].shape[:2]
        return changed


@TRANSFORMS.register_module()
class Rerange(stack.Rerange):
    """mmseg's ``Rerange``; an image of one value alone becomes ``min_value``."""

    def transform(self, results: dict) -> dict:
        """Stretches the values of ``img``."""
        image = results["img"]
        if image.min() == image.max():
            results["img"] = np.full(image.shape, float(self.min_value))
            return results
        return super().transform(results)


class _ChannelsLast:
    """Mixin for mmseg's biomedical transforms, which take volumes, for images (H, W[, C]) too.

    They compute in float32; values are rounded and cut off at the ends of an integer type.
    """

    def transform(self, results: dict) -> dict:
        """Changes ``img`` (H, W[, C]) or (C, Z, Y, X)."""
        image = results["img"]
        planes = image.astype(np.float32)
        if image.ndim < 4:
            planes = np.moveaxis(planes.reshape(*image.shape[:2], -1), 2, 0)
        changed = super().transform({"img": planes})["img"]  # type: ignore[misc]
        if image.ndim < 4:
            changed = np.moveaxis(changed, 0, 2).reshape(image.shape)
        if image.dtype.kind in "iu":
            limits = np.iinfo(image.dtype)
            changed = np.clip(np.rint(changed), limits.min, limits.max)
        results["img"] = changed.astype(image.dtype)
        return results


@TRANSFORMS.register_module()
class BioMedicalGaussianNoise(_ChannelsLast, stack.BioMedicalGaussianNoise):
    """mmseg's ``BioMedicalGaussianNoise`` for images (H, W[, C]) and volumes of any type."""


@TRANSFORMS.register_module()
class BioMedicalGaussianBlur(_ChannelsLast, stack.BioMedicalGaussianBlur):
    """mmseg's ``BioMedicalGaussianBlur`` for images (H, W[, C]) and volumes of any type."""


@TRANSFORMS.register_module()
class BioMedicalRandomGamma(_ChannelsLast, stack.BioMedicalRandomGamma):
    """mmseg's ``BioMedicalRandomGamma`` for images (H, W[, C]) and volumes of any type."""

    def _adjust_gamma(self, img: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """As mmseg's, also with ``per_channel``, with which its own fails; ``img`` is (C, H, W)."""
        if self.per_channel:
            one = copy.copy(self)
            one.per_channel = False
            return np.stack([one._adjust_gamma(plane) for plane in img])
        return super()._adjust_gamma(img)
