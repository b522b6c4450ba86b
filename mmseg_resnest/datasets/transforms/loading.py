# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The stack's loading transforms, with the fast cache and errors that name the file.

They load the same pixels, and have the stack's names, so that every config has them. A file that
breaks after hours is reported as ``mmseg-resnest check-data`` reports it, instead of as an
assertion or an error of a library.
"""

from __future__ import annotations

from typing import Any, NoReturn

import mmcv.transforms
import mmseg.datasets.transforms
import numpy as np
from mmengine import fileio

from ...errors import UserError
from ...registry import TRANSFORMS
from ..cache import ImageFromCache, LabelsFromCache, relabelled
from ..decode import decode_label, read_local

__all__ = ["LoadAnnotations", "LoadImageFromFile"]

_HINT = "mmseg-resnest check-data CONFIG finds every such file"


def _refuse(results: dict, image: Any, label: Any, error: Exception | None, key: str) -> NoReturn:
    """Raise what the check of the data set says of a sample's files."""
    from ..check.files import check_sample, make_plan

    loader = label or image
    if not (getattr(loader, "backend_args", None) or getattr(loader, "file_client_args", None)):
        num_classes = getattr(label, "num_classes", None) or 256
        plan = make_plan(
            [],
            results.get("label_map"),
            bool(results.get("reduce_zero_label")),
            num_classes,
            getattr(label, "ignore_index", 255),
            loaders=(image, label),
        )
        for problem in check_sample(results, plan).problems:
            if problem.severity == "error":
                raise UserError("dataset", "", f"{problem.message} ({_HINT})") from None
    reason = (str(error) or type(error).__name__).splitlines()[0]
    raise UserError("dataset", results.get(key), f"cannot be loaded ({reason}); {_HINT}") from error


@TRANSFORMS.register_module()
class LoadImageFromFile(ImageFromCache, mmcv.transforms.LoadImageFromFile):
    """``mmcv.transforms.LoadImageFromFile`` with the fast cache and an error that names the file.

    Args: as :class:`~mmseg_resnest.datasets.cache.ImageFromCache`.

    Raises:
        UserError: The image is missing, truncated, damaged or no image.
    """

    explains = True  # False: the errors of the library as they are

    def transform(self, results: dict) -> dict | None:
        """Load ``results['img_path']`` into ``results['img']``, (H, W, 3) BGR."""
        if not self.explains:
            return super().transform(results)
        try:
            return super().transform(results)
        except (MemoryError, UserError):
            raise
        except Exception as error:
            _refuse(results, self, None, error, "img_path")


@TRANSFORMS.register_module()
class LoadAnnotations(LabelsFromCache, mmseg.datasets.transforms.LoadAnnotations):
    """``mmseg``'s ``LoadAnnotations`` with the fast cache and an error that names the file.

    Args:
        num_classes: Refuse labels that are neither a class nor ``ignore_index`` once loaded;
            None takes any. Training sets it to the number of the data set's classes.
        ignore_index: The label that the loss leaves out.
        **kwargs: As :class:`~mmseg_resnest.datasets.cache.LabelsFromCache`.

    Raises:
        UserError: The label map is missing, broken, in colour, of another size than its image or
            holds a label out of range.
    """

    explains = True

    def __init__(
        self, num_classes: int | None = None, ignore_index: int = 255, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def _load_seg_map(self, results: dict) -> None:
        """Read the file; as the stack does, with fewer passes over the pixels."""
        if self.imdecode_backend != "pillow":
            super()._load_seg_map(results)
            return
        if self.reduce_zero_label is None:
            self.reduce_zero_label = results["reduce_zero_label"]
        if self.reduce_zero_label != results["reduce_zero_label"]:
            super()._load_seg_map(results)  # the stack's words about that
        path = results["seg_map_path"]
        data = None if self.backend_args else read_local(path)
        if data is None:
            data = fileio.get(path, backend_args=self.backend_args)
        pixels = decode_label(data)
        results["gt_seg_map"] = relabelled(pixels, self.reduce_zero_label, results.get("label_map"))
        results["seg_fields"].append("gt_seg_map")

    def transform(self, results: dict) -> dict:
        """Load ``results['seg_map_path']`` into ``results['gt_seg_map']``, (H, W) uint8."""
        if not self.explains:
            return super().transform(results)
        try:
            loaded: dict = super().transform(results)
        except (MemoryError, UserError):
            raise
        except Exception as error:
            _refuse(results, None, self, error, "seg_map_path")
        labels = loaded["gt_seg_map"]
        expected = loaded.get("ori_shape", labels.shape)
        if labels.ndim != 2 or tuple(labels.shape) != tuple(expected[:2]) or self._bad(labels):
            _refuse(results, None, self, ValueError(f"labels of shape {labels.shape}"),
                    "seg_map_path")  # fmt: skip
        return loaded

    def _bad(self, labels: np.ndarray) -> bool:
        if self.num_classes is None or int(labels.max()) < self.num_classes:
            return False
        return bool(((labels >= self.num_classes) & (labels != self.ignore_index)).any())
