# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The stack's transforms that move pixels, where its own leave labels behind or make new ones.

Each keeps the set of labels: they are moved by nearest neighbour, all keys of ``seg_fields`` alike,
and pixels that come from nowhere are ignored. The same numbers are drawn as by the stack's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import mmcv
import mmcv.transforms
import mmseg.datasets.transforms as stack
import numpy as np
import numpy.typing as npt
from mmcv.transforms.utils import cache_randomness

from ...errors import UserError
from ...registry import TRANSFORMS, type_name

IGNORED = 255  # the stack's default of ``ignore_index`` everywhere

Pixels = npt.NDArray[Any]
Fill = float | Sequence[float]


def label_keys(results: Mapping[str, Any]) -> list[str]:
    """The keys of a sample's label maps (H, W)."""
    keys: Iterable[str] = dict.fromkeys([*results.get("seg_fields", ()), "gt_seg_map"])
    return [key for key in keys if results.get(key) is not None]


def as_tuples(value: Any) -> Any:
    """Tuples for lists of numbers, also inside a list: JSON and YAML have no tuples."""
    if not isinstance(value, list):
        return value
    return (
        [as_tuples(v) for v in value]
        if any(isinstance(v, list | tuple) for v in value)
        else tuple(value)
    )


class TakesLists:
    """Mixin for a transform, before it: its arguments may be lists, as JSON and YAML have them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for key in set(kwargs):  # in place: check_config looks for what is handed on
            kwargs[key] = as_tuples(kwargs[key])
        super().__init__(*map(as_tuples, args), **kwargs)


def _fill_of(fill: Fill, pixels: Pixels, name: str) -> Any:
    """A value of the pixels' type, or one for each channel."""
    values = np.asarray(fill)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if values.ndim and (values == values.flat[0]).all():
        values = values.flat[0]
    elif values.ndim and len(values) != channels:
        message = f"fills with {len(values)} values, but the image has {channels} channels"
        raise UserError("config-value", f"transform {name}", f"{message}; give one or as many")
    if pixels.dtype.kind in "iu":
        limits = np.iinfo(pixels.dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values


def rotated(
    pixels: Pixels, angle: float, fill: Fill, nearest: bool, name: str, **options: Any
) -> Pixels:
    """An image (H, W[, C]) or a label map rotated by mmcv; every channel is filled.

    Args:
        pixels: Of any number of channels.
        angle: Clockwise, degrees.
        fill: Of the pixels that come from nowhere.
        nearest: Nearest neighbour instead of bilinear.
        name: Of the transform, for errors.
        **options: As of ``mmcv.imrotate``.
    """
    options["interpolation"] = "nearest" if nearest else "bilinear"
    planes = pixels[:, :, None] if pixels.ndim == 2 else pixels
    fills = np.broadcast_to(_fill_of(fill, planes, name), planes.shape[2]).tolist()
    parts = []
    for first in range(0, len(fills), 4):  # OpenCV takes four values to fill with
        values = (*fills[first : first + 4], 0, 0, 0)[:4]
        part = np.ascontiguousarray(planes[:, :, first : first + 4])
        part = mmcv.imrotate(part, angle, border_value=values, **options)
        parts.append(part[:, :, None] if part.ndim == 2 else part)
    out = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
    return out[:, :, 0] if pixels.ndim == 2 else out


@TRANSFORMS.register_module()
class RandomRotate(stack.RandomRotate):
    """mmseg's ``RandomRotate``; ``pad_val`` fills every channel, and ``img_shape`` follows."""

    def transform(self, results: dict) -> dict:
        """Rotates ``img`` (H, W[, C]) and the label maps."""
        rotate, degree = self.generate_degree()
        if rotate:
            name = type(self).__name__
            center = None if self.center is None else tuple(self.center)
            options = {"center": center, "auto_bound": self.auto_bound}
            results["img"] = rotated(results["img"], degree, self.pal_val, False, name, **options)
            for key in label_keys(results):
                fill = self.seg_pad_val
                results[key] = rotated(results[key], degree, fill, True, name, **options)
            results["img_shape"] = results["img"].shape[:2]
        return results


@TRANSFORMS.register_module()
class RandomRotFlip(stack.RandomRotFlip):
    """mmseg's ``RandomRotFlip``, whose labels stay labels: mmseg's interpolates them.

    The first arguments are mmseg's; ``pad_val`` is of the pixels of ``img`` that come from nowhere,
    ``seg_pad_val`` their label.
    """

    def __init__(
        self,
        rotate_prob: float = 0.5,
        flip_prob: float = 0.5,
        degree: float | Sequence[float] = (-20, 20),
        pad_val: Fill = 0,
        seg_pad_val: int = IGNORED,
    ) -> None:
        super().__init__(rotate_prob, flip_prob, degree)
        self.pad_val = pad_val
        self.seg_pad_val = seg_pad_val

    @cache_randomness
    def _draw(self) -> tuple[float | None, tuple[int, int] | None]:
        """The angle; or the quarter turns and the axis to mirror; or neither."""
        angle = turn = None
        if np.random.random() < self.rotate_prob:
            angle = np.random.uniform(min(*self.degree), max(*self.degree))
        if np.random.random() < self.flip_prob and angle is None:
            turn = np.random.randint(0, 4), np.random.randint(0, 2)
        return angle, turn

    def transform(self, results: dict) -> dict:
        """Rotates by an angle, or turns and mirrors, ``img`` (H, W[, C]) and the label maps."""
        angle, turn = self._draw()
        for key in ("img", *label_keys(results)):
            pixels, is_image = results[key], key == "img"
            if angle is not None:
                fill = self.pad_val if is_image else self.seg_pad_val
                pixels = rotated(pixels, angle, fill, not is_image, type(self).__name__)
            elif turn is not None:
                pixels = np.ascontiguousarray(np.flip(np.rot90(pixels, turn[0]), turn[1]))
            results[key] = pixels
        results["img_shape"] = results["img"].shape[:2]
        return results


@TRANSFORMS.register_module()
class Pad(TakesLists, mmcv.transforms.Pad):
    """mmcv's ``Pad`` for all label maps and any number of channels.

    Arguments are mmcv's: ``size`` is (width, height). ``pad_val`` is of ``img``, one number or one
    a channel, or of ``img`` and ``seg``; labels are ignored where it does not say.
    """

    def __init__(
        self, *args: Any, pad_val: Fill | Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if not isinstance(pad_val, Mapping):
            pad_val = {"img": 0 if pad_val is None else pad_val}
        pad_val = {"img": 0, "seg": IGNORED, **pad_val}
        super().__init__(*args, pad_val=pad_val, **kwargs)

    def transform(self, results: dict) -> dict:
        """Pads ``img`` (H, W[, C]) and the label maps at the bottom and at the right."""
        height, width = results["img"].shape[:2]
        down, across = height, width
        if self.pad_to_square:
            down = across = max(height, width)
        if self.size is not None:
            across, down = max(self.size[0], width), max(self.size[1], height)
        if self.size_divisor is not None:
            down, across = (-(-n // self.size_divisor) * self.size_divisor for n in (down, across))
        missing = (down - height, across - width)
        for key in ("img", *label_keys(results)):
            fill = self.pad_val["img" if key == "img" else "seg"]
            fill = _fill_of(fill, results[key], type(self).__name__)
            results[key] = padded(results[key], missing, fill, self.padding_mode)
        results["pad_shape"] = results["img"].shape
        results["pad_fixed_size"] = self.size
        results["pad_size_divisor"] = self.size_divisor
        results["img_shape"] = results["img"].shape[:2]
        return results


def padded(pixels: Pixels, missing: tuple[int, int], fill: Any, mode: str = "constant") -> Pixels:
    """Rows added at the bottom and columns at the right of an image or a label map."""
    if not any(missing):
        return pixels
    height, width = pixels.shape[:2]
    if mode != "constant":
        added = [(0, missing[0]), (0, missing[1]), (0, 0)][: pixels.ndim]
        return np.pad(pixels, added, mode=mode)  # type: ignore[call-overload]
    out = np.full((height + missing[0], width + missing[1], *pixels.shape[2:]), fill, pixels.dtype)
    out[:height, :width] = pixels
    return out


@TRANSFORMS.register_module()
class CenterCrop(TakesLists, mmcv.transforms.CenterCrop):
    """mmcv's ``CenterCrop`` for all label maps; ``auto_pad`` pads by this package's ``Pad``."""

    def __init__(self, *args: Any, pad_cfg: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        pad = dict(pad_cfg or {"type": "Pad"})
        if type_name(pad["type"]) == "Pad":  # whatever the default scope is when it is built
            pad["type"] = Pad
        super().__init__(*args, pad_cfg=pad, **kwargs)

    def _crop_seg_map(self, results: dict, bboxes: npt.NDArray[Any]) -> None:
        for key in label_keys(results):
            results[key] = mmcv.imcrop(results[key], bboxes=bboxes)


@TRANSFORMS.register_module()
class RandomCutOut(TakesLists, stack.RandomCutOut):
    """mmseg's ``RandomCutOut``; what is cut out is ignored.

    Arguments are those of mmseg's: ``fill_in`` is one number, or one a channel; ``seg_fill_in`` is
    the label of the holes, and None, mmseg's default, leaves the labels as they are.
    """

    def __init__(self, *args: Any, seg_fill_in: int | None = IGNORED, **kwargs: Any) -> None:
        super().__init__(*args, seg_fill_in=seg_fill_in, **kwargs)

    def transform(self, results: dict) -> dict:
        """Cuts holes into ``img`` (H, W[, C]) and the label maps."""
        image = results["img"]
        drawn = self.generate_patches({"img": image[:, :, None] if image.ndim == 2 else image})
        fill = _fill_of(self.fill_in, image, type(self).__name__)
        height, width = image.shape[:2]
        for left, top, chosen in zip(*drawn[2:], strict=True):
            across, down = self.candidates[chosen]
            if self.with_ratio:
                across, down = int(across * width), int(down * height)
            hole = slice(top, top + down), slice(left, left + across)
            image[hole] = fill
            for key in label_keys(results) if self.seg_fill_in is not None else ():
                results[key][hole] = self.seg_fill_in
        return results


@TRANSFORMS.register_module()
class RandomMosaic(TakesLists, stack.RandomMosaic):
    """mmseg's ``RandomMosaic`` for any number of channels, without copies of what is not shown.

    It stands in the pipeline of a ``MultiImageMixDataset`` whose ``dataset`` loads images and
    labels and does not pack them.
    """

    def transform(self, results: dict) -> dict:
        """Puts four images around a point of an image of twice ``img_scale`` (height, width)."""
        if not self.do_mosaic():
            return results
        center = self.generate_mosaic_center()
        samples = [results, *results["mix_results"]]
        for key in ("img", *label_keys(results)):
            parts = [_flat(sample.get(key), key) for sample in samples]
            results[key] = self._join(parts, key == "img", center)
        results["img_shape"] = results["ori_shape"] = results["img"].shape[:2]
        return results

    def _join(self, parts: Sequence[Pixels], is_image: bool, center: tuple[int, int]) -> Pixels:
        """The parts top left, top right, bottom left and bottom right of ``center`` (x, y)."""
        rows, columns = 2 * self.img_scale[0], 2 * self.img_scale[1]
        fill = _fill_of(self.pad_val if is_image else self.seg_pad_val, parts[0], "RandomMosaic")
        out = np.full((rows, columns, *parts[0].shape[2:]), fill, parts[0].dtype)
        x, y = center
        for part, (below, right) in zip(parts, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True):
            height, width = part.shape[:2]
            scale = min(self.img_scale[0] / height, self.img_scale[1] / width)
            size = max(int(width * scale), 1), max(int(height * scale), 1)
            part = mmcv.imresize(part, size, interpolation="bilinear" if is_image else "nearest")
            # Of a part above or left of the point its end is shown, of the others their beginning.
            down = min(size[1], rows - y if below else y)
            across = min(size[0], columns - x if right else x)
            source = part[:down] if below else part[size[1] - down :]
            source = source[:, :across] if right else source[:, size[0] - across :]
            top, left = (y if below else y - down), (x if right else x - across)
            out[top : top + down, left : left + across] = source
        return out


def _flat(pixels: Pixels | None, key: str) -> Pixels:
    """An image of one channel without the last axis, which OpenCV drops."""
    if pixels is None:
        message = f"needs {key} of each sample; load images and labels in the inner data set, and "
        message += "pack in the pipeline of MultiImageMixDataset"
        raise UserError("config-value", "transform RandomMosaic", message)
    return pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


@TRANSFORMS.register_module()
class BioMedical3DPad(TakesLists, stack.BioMedical3DPad):
    """mmseg's ``BioMedical3DPad``; labels are padded with ``seg_pad_val`` where mmseg's loses them.

    ``pad_shape`` is depth, height and width to pad to.
    """

    def __init__(self, *args: Any, seg_pad_val: int = IGNORED, **kwargs: Any) -> None:
        super().__init__(*args, seg_pad_val=seg_pad_val, **kwargs)

    def transform(self, results: dict) -> dict:
        """Pads ``img`` (C, Z, Y, X) and the label maps (Z, Y, X) on all sides alike."""
        for key in ("img", *label_keys(results)):
            volume = results[key]
            missing = [
                max(w - n, 0) for w, n in zip(self.pad_shape, volume.shape[-3:], strict=True)
            ]
            widths = [(0, 0)] * (volume.ndim - 3) + [(n // 2, n - n // 2) for n in missing]
            fill = self.pad_val if key == "img" else self.seg_pad_val
            results[key] = np.pad(volume, widths, constant_values=fill)
        results["img_shape"] = results["pad_shape"] = results["img"].shape[1:]
        return results
