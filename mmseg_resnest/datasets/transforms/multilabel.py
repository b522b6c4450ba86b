# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Label files of classes that may overlap."""

from __future__ import annotations

import mmcv
import numpy as np
from mmengine import fileio
from numpy.typing import NDArray

from ...errors import UserError
from ...io.bit_planes import MOST_CLASSES, to_labels
from ...registry import TRANSFORMS
from ..decode import read_local
from .loading import LoadAnnotations

#: The key of a sample that says how many classes the bits of its ``gt_seg_map`` are.
PLANES = "label_planes"


@TRANSFORMS.register_module()
class LoadMultilabel(LoadAnnotations):
    """Loads bit planes: bit c of a pixel says whether it is of class c.

    Files are grey images of 8 or 16 bits a pixel; the value with all bits set (255 or 65535) is
    ignored for all classes where the file has more bits than there are classes. In the pipeline
    ``gt_seg_map`` holds one label for each set of classes (:mod:`mmseg_resnest.io.bit_planes`), so
    that every transform of label maps moves all classes alike and fills with ignored pixels;
    ``PackSegInputs`` makes ``gt_sem_seg`` (C, H, W), uint8, of 0, 1 and 255 (ignored).

    Args:
        num_classes: Number of classes C, 1 to 15.
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
        data = None if self.backend_args else read_local(path)
        if data is None:
            data = fileio.get(path, backend_args=self.backend_args)
        values = mmcv.imfrombytes(data, flag="unchanged", backend="pillow")
        results["gt_seg_map"] = self._labels(values, path)
        results["seg_fields"].append("gt_seg_map")
        results[PLANES] = self.planes
        return results

    def _labels(self, values: NDArray, path: str) -> NDArray:
        if values.dtype == np.int32 and values.ndim == 2:  # 16 bits in some versions of Pillow
            values = values.astype(np.uint16)
        if values.ndim != 2 or values.dtype not in (np.uint8, np.uint16):
            said = f"is an array {values.shape} of {values.dtype}; bit planes are a grey image of "
            raise UserError("label", path, f"{said}8 or 16 bits a pixel")
        full = np.iinfo(values.dtype).max
        wrong = values[(values >> min(self.planes, 15) > 0) & (values != full)]
        if self.planes < full.bit_length() and wrong.size:
            bit = int(wrong[0]).bit_length() - 1
            said = f"holds {int(wrong[0])}, whose bit {bit} is no class (0..{self.planes - 1}); "
            raise UserError("label", path, f"{said}and {full} alone is ignored")
        return to_labels(values, self.planes)
