# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Writes a state dict to a file, atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..io.atomic import atomic_open

SUFFIXES = (".pth", ".safetensors")


def check_target(path: str | Path, force: bool = False) -> Path:
    """The path to write a checkpoint to; raises UserError if it cannot be that."""
    target = Path(path).expanduser()
    if target.suffix not in SUFFIXES:
        raise UserError("argument", target, f"the name must end in {' or '.join(SUFFIXES)}")
    if not target.parent.is_dir():
        raise UserError("not-found", target, f"the folder {target.parent} does not exist")
    if target.is_dir():
        raise UserError("wrong-path-type", target, "is a folder")
    if target.exists() and not force:
        raise UserError("output-exists", target, "exists; choose another name, or add --force")
    return target


def save_state_dict(
    state_dict: Mapping[str, Tensor], path: str | Path, force: bool = False
) -> Path:
    """Writes tensors and nothing else, as a plain mapping.

    The write is atomic: when it fails, what was there before stays.

    Args:
        state_dict: Names to tensors.
        path: Ends in ``.pth`` (``torch.save``) or ``.safetensors``; returned.
        force: Replace a file that is there.

    Raises:
        UserError: The suffix is unknown, the folder does not exist or cannot be written, or there
            is a file already.
    """
    target = check_target(path, force)
    # a tensor of its own, so that no file carries the rest of a storage of which it was a view
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state_dict.items()}
    with atomic_open(target, sync=True) as file:
        if target.suffix == ".safetensors":
            file.write(_safetensors_bytes(tensors, target))
        else:
            torch.save(tensors, file)
    return target


def _safetensors_bytes(tensors: dict[str, Tensor], target: Path) -> bytes:
    try:
        import safetensors.torch
    except ImportError as error:
        message = "writing .safetensors needs a package: pip install safetensors"
        raise UserError("missing-package", target, message) from error
    return safetensors.torch.save(tensors, metadata={"format": "pt"})
