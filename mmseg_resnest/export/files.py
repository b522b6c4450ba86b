# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Writing a model as ONNX, OpenVINO, torch.export or TorchScript."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

import torch

from ..errors import UserError
from ..inference import Segmentor
from ..inference.runtimes import SUFFIXES
from ..io.atomic import atomic_path
from ..io.packages import needs_extra
from ..runtimes.files import DEFAULT_OPSET, write_onnx, write_openvino
from .metadata import make_metadata
from .network import AlignedCorners, ExportNetwork, output_of

__all__ = ["DEFAULT_OPSET", "export_model", "export_onnx"]

_AXES: dict[str, dict[int, str | None]] = {
    "float32": {0: "batch", 2: "height", 3: "width"},
    "logits": {0: "batch", 1: None, 2: "height", 3: "width"},
    "uint8": {0: "batch", 1: "height", 2: "width"},
    "labels": {0: "batch", 1: "height", 2: "width"},
    "masks": {0: "batch", 1: None, 2: "height", 3: "width"},
}


def export_model(
    model: Segmentor,
    path: str | os.PathLike[str],
    processing: bool = False,
    opset: int | None = None,
) -> Path:
    """Write a model in the format of the file's suffix; :func:`load_segmentor` loads it.

    Batch, height and width of the input stay free. Returns the path.

    Args:
        model: The model.
        path: ``.onnx``, ``.xml`` (OpenVINO), ``.pt2`` (torch.export) or ``.torchscript``.
        processing: Images in, labels out, see :class:`ExportNetwork`.
        opset: Of ONNX, 11 to 20; None is 17.

    Raises:
        UserError: The model, the suffix or the opset does not fit, or the file cannot be written.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError("argument", target, f"the name must end in {', '.join(SUFFIXES)}")
    if suffix == ".onnx":
        return export_onnx(model, target, processing, opset)
    if suffix == ".xml":
        return _export_openvino(model, target, processing)
    network = ExportNetwork(model, processing)
    if suffix == ".pt2" and network.resize is not None:
        raise UserError(
            "export", "option --processing",
            "torch.export cannot follow the test pipeline's Resize; export .pt2 without it",
        )  # fmt: skip
    about = make_metadata(model, processing)
    sample = (network.sample(),)
    with atomic_path(target) as part, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tracing will go, and what it could not know
        if suffix == ".torchscript":
            # Its own check would trace once more; compare() checks the files against the model.
            traced = torch.jit.trace(network, sample, check_trace=False)
            torch.jit.save(traced, part, _extra_files=about)
        else:
            axes = (0, 1, 2) if processing else (0, 2, 3)
            shapes = {"images": dict.fromkeys(axes, torch.export.Dim.DYNAMIC)}
            with AlignedCorners(network.net):
                program = torch.export.export(network, sample, dynamic_shapes=shapes, strict=False)
            torch.export.save(program, part, extra_files=about)
    return target


def export_onnx(
    model: Segmentor,
    path: str | os.PathLike[str],
    processing: bool = False,
    opset: int | None = None,
) -> Path:
    """Write a model as ONNX; see :func:`export_model`."""
    network = ExportNetwork(model, processing)
    about = make_metadata(model, processing)
    given, got = "uint8" if processing else "float32", output_of(model, processing)
    with atomic_path(path) as part:
        write_onnx(
            network, network.sample(), part, _AXES[given], (got, _AXES[got]), about,
            network.net.out_channels, DEFAULT_OPSET if opset is None else opset,
        )  # fmt: skip
    return Path(path)


def _export_openvino(model: Segmentor, path: Path, processing: bool) -> Path:
    with needs_extra("openvino"):
        import openvino  # noqa: F401
    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as part:
        source = export_onnx(model, Path(folder) / "model.onnx", processing)
        write_openvino(source, part, make_metadata(model, processing))
    return path
