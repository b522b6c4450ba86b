# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Writing a model as ONNX, OpenVINO, torch.export or TorchScript."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..engine.logs import only_errors
from ..errors import UserError
from ..inference import Segmentor
from ..inference.runtimes import SUFFIXES
from ..io.packages import needs_extra
from .metadata import make_metadata
from .network import AlignedCorners, ExportNetwork, output_of

__all__ = ["DEFAULT_OPSET", "export_model", "export_onnx", "atomic_path"]

OPSETS = (11, 20)  # what the exporter writes
DEFAULT_OPSET = 17
_AXES: dict[str, dict[int, str | None]] = {
    "float32": {0: "batch", 2: "height", 3: "width"},
    "logits": {0: "batch", 1: None, 2: "height", 3: "width"},
    "uint8": {0: "batch", 1: "height", 2: "width"},
    "labels": {0: "batch", 1: "height", 2: "width"},
    "masks": {0: "batch", 1: None, 2: "height", 3: "width"},
}


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, which is moved to ``target`` when the block ends without an error.

    Other files that are written beside it (OpenVINO's ``.bin``) are moved along. A UserError says
    that the folder cannot be written.
    """
    path = Path(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem[:50]}.") as folder:
            yield Path(folder) / path.name
            # ``target`` last: when it is there, so is all that it needs.
            for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
                os.replace(file, path.parent / file.name)
    except OSError as error:
        raise UserError(
            "not-writable", path, f"cannot be written ({error.strerror or error})"
        ) from error


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
    """Write a model as ONNX; see :func:`export_model`.

    By tracing. PyTorch's other exporter (``dynamo=True``) gives the same outputs with sizes just as
    free, and took 81 s instead of 5 s for PSPNet on ResNeSt-50.
    """
    with needs_extra("deploy"):
        import onnx
    version = DEFAULT_OPSET if opset is None else opset
    low, high = OPSETS
    if not low <= version <= high:
        raise UserError("argument", "option --opset", f"{version} must be from {low} to {high}")
    network = ExportNetwork(model, processing)
    about = make_metadata(model, processing)
    given, got = "uint8" if processing else "float32", output_of(model, processing)
    axes = [{a: n for a, n in _AXES[kind].items() if n} for kind in (given, got)]
    quiet = only_errors(logging.getLogger("torch.onnx"))
    with atomic_path(path) as part, torch.no_grad(), warnings.catch_warnings(), quiet:
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (network.sample(),), os.fspath(part), dynamo=False, opset_version=version,
            input_names=["images"], output_names=[got], autograd_inlining=False,
            dynamic_axes={"images": axes[0], got: axes[1]},
        )  # fmt: skip
        graph = onnx.load(part)
        _name_sizes(graph.graph.input[0], _AXES[given])
        _name_sizes(graph.graph.output[0], _AXES[got], network.net.out_channels)
        del graph.metadata_props[:]
        onnx.helper.set_model_props(graph, about)
        graph.doc_string = ""
        onnx.checker.check_model(graph)
        onnx.save(graph, part)
    return Path(path)


def _name_sizes(value: Any, axes: dict[int, str | None], channels: int | None = None) -> None:
    """Give the free sizes of a graph's input or output names that say what they are."""
    for axis, name in axes.items():
        size = value.type.tensor_type.shape.dim[axis]
        size.Clear()
        if name is None:
            size.dim_value = channels
        else:
            size.dim_param = name


def _export_openvino(model: Segmentor, path: Path, processing: bool) -> Path:
    with needs_extra("openvino"):
        import openvino
    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as part:
        source = export_onnx(model, Path(folder) / "model.onnx", processing)
        network = openvino.convert_model(source)
        for key, value in make_metadata(model, processing).items():
            network.set_rt_info(value, key)
        openvino.save_model(network, part, compress_to_fp16=False)
    return path
