# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Label files of classes that may overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mmcv
import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...io.bit_planes import MOST_CLASSES, from_labels, join, part_sizes, to_labels, unpack
from ...registry import TRANSFORMS
from ..decode import read_bytes
from .loading import LoadAnnotations

#: The key of a sample that says how many classes the bits of its ``gt_seg_map`` are.
PLANES = "label_planes"


def bits_keys(classes: int) -> list[str]:
    """The keys of a sample's label maps of so many classes, one for each part of their bits."""
    more = range(2, len(part_sizes(classes)) + 1)
    return ["gt_seg_map", *(f"gt_seg_map_{n}" for n in more)]


def label_bits(results: Mapping[str, Any]) -> NDArray[Any]:
    """(H, W), the bits (:mod:`mmseg_resnest.io.bit_planes`) of what ``LoadMultilabel`` loaded."""
    classes = results[PLANES]
    found = zip(bits_keys(classes), part_sizes(classes), strict=True)
    return join([from_labels(np.asarray(results[key]), size) for key, size in found], classes)


def label_planes(results: Mapping[str, Any]) -> NDArray[np.uint8]:
    """(C, H, W) of 0, 1 and 255 (ignored) of what ``LoadMultilabel`` loaded."""
    return unpack(label_bits(results), results[PLANES])


@TRANSFORMS.register_module()
class LoadMultilabel(LoadAnnotations):
    """Loads bit planes: bit c of a pixel says whether it is of class c.

    Files are grey images of 8 or 16 bits a pixel; the value with all bits set (255 or 65535) is
    ignored for all classes where the file has more bits than there are classes. The bits of more
    than 15 classes are side by side in an image of 16 bits that is as many times as wide: classes
    0 to 14, 15 to 29, and so on.

    In the pipeline ``gt_seg_map`` holds one label for each set of classes
    (:mod:`mmseg_resnest.io.bit_planes`), ``gt_seg_map_2`` those of classes 15 to 29, and so on, so
    that every transform of label maps moves all classes alike and fills with ignored pixels;
    ``PackSegInputs`` makes ``gt_sem_seg`` (C, H, W), uint8, of 0, 1 and 255 (ignored).

    Args:
        num_classes: Number of classes C, 1 to 63.
        backend_args: As of ``LoadAnnotations``.

    Raises:
        UserError: The number of classes is not accepted; the file is missing, damaged, of colours,
            of another size than its image, or has a bit of no class; or the data set has a
            ``label_map`` or ``reduce_zero_label``, which are for classes that exclude each other.
    """

    def __init__(self, num_classes: int, backend_args: dict | None = None) -> None:
        super().__init__(backend_args=backend_args)
        if not (type(num_classes) is int and 1 <= num_classes <= MOST_CLASSES):
            said = f"must be a whole number from 1 to {MOST_CLASSES}, not {num_classes!r}"
            raise UserError("config-value", "LoadMultilabel, num_classes", said)
        self.planes = num_classes

    def load(self, results: dict) -> dict:
        """As :meth:`transform`, with the errors of the library that decodes."""
        for key in ("label_map", "reduce_zero_label"):
            if results.get(key):
                said = "is for classes that exclude each other; remove it where LoadMultilabel is"
                raise UserError("config-conflict", f"config key {key} of the data set", said)
        path = results["seg_map_path"]
        data = read_bytes(path, self.backend_args)
        values = mmcv.imfrombytes(data, flag="unchanged", backend="pillow")
        width = results["ori_shape"][1] if "ori_shape" in results else None
        maps = self._labels(values, path, width)
        for key, labels in zip(bits_keys(self.planes), maps, strict=True):
            results[key] = labels
            results["seg_fields"].append(key)
        results[PLANES] = self.planes
        return results

    def _labels(self, values: NDArray, path: str, width: int | None) -> list[NDArray]:
        """The label map of each part; ``width`` is that of the image."""
        if values.dtype == np.int32 and values.ndim == 2:  # 16 bits in some versions of Pillow
            values = values.astype(np.uint16)
        if values.ndim != 2 or values.dtype not in (np.uint8, np.uint16):
            said = (
                f"is an array {values.shape} of {values.dtype}; bit planes are a grey image of "
                "8 or 16 bits a pixel"
            )
            raise UserError("label", path, said)
        full, sizes = np.iinfo(values.dtype).max, part_sizes(self.planes)
        across, rest = divmod(values.shape[1], len(sizes))
        if len(sizes) > 1 and (rest or width not in (None, across) or full < 1 << 15):
            said = f"is {values.shape[1]} pixels wide, of {full.bit_length()} bits; {self.planes} "
            said += f"classes take {len(sizes)} maps of 16 bits side by side, of 15 classes each"
            raise UserError("label", path, said)
        parts = np.split(values, len(sizes), axis=1)
        for n, (part, size) in enumerate(zip(parts, sizes, strict=True)):
            wrong = part[(part >> size > 0) & (part != full)]
            if wrong.size:
                bit = int(wrong[0]).bit_length() - 1
                where = "" if len(sizes) == 1 else f" in its map {n + 1} of {len(sizes)}"
                said = (
                    f"holds {int(wrong[0])}{where}, whose bit {bit} is not a class (0..{size - 1})"
                )
                raise UserError("label", path, f"{said}; and {full} alone is ignored")
        return [to_labels(part, size) for part, size in zip(parts, sizes, strict=True)]
