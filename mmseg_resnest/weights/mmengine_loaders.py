# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What MMEngine reads checkpoints with, in a safe form.

MMEngine reads files with unrestricted unpickling where the restricted one fails, and those that
it downloads without trying the restricted one. :class:`mmseg_resnest.models.Pretrained` and this
package's runner read through :func:`read_any`; the application registers the loaders for its
process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from mmengine.runner.checkpoint import CheckpointLoader

from ..errors import UserError
from ..io.text import printable
from .load import load_record
from .state_dict import as_tensor, check_names

# The prefixes (regular expressions) that MMEngine registers.
_OURS = (
    *("", "http://", "https://", "open-mmlab://", "openmmlab://"),
    *("mmcls://", "torchvision://", "modelzoo://", "hf://"),
)
_REFUSED = ("pavi://", r"(\S+\:)?s3://", r"(\S+\:)?petrel://")


def load_from_mmseg_resnest(filename: str, map_location: Any = None) -> dict[str, Any]:
    """What MMEngine calls to read a checkpoint: the record of a path, an address or a name.

    It is on the CPU whatever ``map_location`` says: a model copies it to where it is.

    Raises:
        UserError: The file cannot be fetched or read, holds more than tensors and plain data, or
            its keys are not names.
    """
    record, label = load_record(filename), printable(filename)
    check_names(record, label)
    # where MMEngine and the backbones of the stack look for the state dict
    if "state_dict" in record:
        check_names(record["state_dict"], label)
    elif isinstance(record.get("model"), Mapping):
        check_names(record["model"], label)
    return {
        key: as_tensor(key, value) if isinstance(value, np.ndarray) else value
        for key, value in record.items()
    }


def refuse(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Stands for MMEngine's loaders of storage services, which unpickle what they get."""
    message = "files of storage services are not read; fetch it yourself and give its path, or "
    message += "give an https:// address"
    raise UserError("argument", f"checkpoint {filename}", message)


def read_any(filename: str) -> dict[str, Any]:
    """Read a checkpoint by path, address or name, or refuse its scheme, as the loaders do."""
    read = refuse if any(re.match(start, filename) for start in _REFUSED) else None
    return (read or load_from_mmseg_resnest)(filename)


def use_safe_loaders() -> None:
    """Make MMEngine read every checkpoint as tensors and plain data, for the whole process."""
    CheckpointLoader.register_scheme(_OURS, load_from_mmseg_resnest, force=True)
    CheckpointLoader.register_scheme(_REFUSED, refuse, force=True)
