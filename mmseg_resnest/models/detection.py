# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""MMDetection's parts for configs: the extra ``detect``, and mmcv's compiled operators.

Importing this module imports MMDetection and says what is missing for it; configs in
``configs/detection/`` name it in ``custom_imports``. The backbone of a detector is
:class:`mmseg_resnest.models.ResNeSt` at output stride 32; nothing else here is ours.
"""

from __future__ import annotations

import importlib

from .._stack import quietly
from ..errors import UserError
from ..io.packages import needs_extra

__all__: list[str] = []

_BUILD = (
    "MMCV_WITH_OPS=1 pip install --force-reinstall --no-cache-dir --no-build-isolation --no-deps "
    "--no-binary onedl-mmcv onedl-mmcv==2.3.6"
)


def _import_operators() -> None:
    """Import mmcv's compiled operators: MMDetection fails in many ways without them."""
    try:
        importlib.import_module("mmcv._ext")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        said = "mmcv was installed without them" if missing else f"they cannot be loaded ({error})"
        message = f"{said}; detectors need them: docs/detection.md, or, beside PyTorch and a C++ "
        message += f"compiler, {_BUILD}, which takes three quarters of an hour"
        raise UserError("missing-package", "mmcv's compiled operators", message) from error


with needs_extra("detect"), quietly():
    for _module in ("terminaltables", "shapely", "pycocotools", "mmdet"):
        importlib.import_module(_module)
_import_operators()
with needs_extra("detect"), quietly():
    for _module in ("mmdet.datasets", "mmdet.engine", "mmdet.evaluation", "mmdet.models"):
        importlib.import_module(_module)
    importlib.import_module("mmdet.visualization")
