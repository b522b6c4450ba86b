# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Exported models (ONNX, OpenVINO, torch.export, TorchScript) behind the Python API.

An exported file holds the network and, as JSON, a record of what stands around it: classes,
colours, how images are prepared, how scores become labels. :func:`load_exported` puts a stand-in
for the network into the same :class:`~mmseg_resnest.inference.Segmentor` that holds a PyTorch
model, so that tiles, batches, sliding windows and multi-scale evaluation are the same code.

ONNX and OpenVINO files are graphs of known operations. torch.export and TorchScript files are
programs: the first holds a pickle, the second code of its own, which run with the rights of whoever
loads them. Those are loaded only where the caller says so.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.structures import PixelData
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.models.segmentors import BaseSegmentor
from mmseg.structures import SegDataSample
from numpy.typing import NDArray
from torch import Tensor, nn

from ..datasets.transforms.photometric import PackSegInputs
from ..engine.preflight import check_device
from ..errors import UserError
from ..io.cancel import Cancelled, end_when_cancelled, raise_if_cancelled
from ..io.text import printable
from ..models.segmentor import EncoderDecoder
from ..registry import building
from .onnx_check import check_onnx
from .record import read_exported
from .segmentor import BATCH_PIXELS, Segmentor

__all__ = ["PROGRAMS", "RECORD_KEY", "SUFFIXES", "ExportedNetwork", "is_exported", "load_exported"]

#: The name of the record among a file's metadata.
RECORD_KEY = "mmseg_resnest"
#: Suffix -> what runs such a file.
SUFFIXES = {
    ".onnx": "ONNX Runtime",
    ".xml": "OpenVINO",
    ".pt2": "torch.export",
    ".torchscript": "TorchScript",
}
#: Suffixes of files that are programs.
PROGRAMS = (".pt2", ".torchscript")

Run = Callable[[Tensor], Tensor]
#: What runs a file, the text of its record, and the types of its inputs where it declares them.
Opened = tuple[Run, str | None, list[str] | None]
#: ONNX Runtime's names of the types that a record knows.
_ONNX_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}
_OPENVINO_TYPES = {"f32": "float32", "u8": "uint8"}


def is_exported(path: object) -> bool:
    """Whether a path names an exported model, by its suffix."""
    return isinstance(path, str | os.PathLike) and Path(path).suffix.lower() in SUFFIXES


class _Head(nn.Module):
    """What the code around a network asks its head for."""

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__()
        self.num_classes = len(record["classes"])
        self.out_channels = int(record["out_channels"])
        self.threshold = record["threshold"]
        self.align_corners = bool(record["align_corners"])


class ExportedNetwork(EncoderDecoder):
    """A segmentor whose backbone and head are an exported file.

    Args:
        run: The file: inputs to outputs. Called from several threads.
        record: Its record.
    """

    def __init__(self, run: Run, record: dict[str, Any]) -> None:
        # Past the constructor that would build a backbone and a head.
        options = {k: v for k, v in record["data_preprocessor"].items() if v is not None}
        self.takes_pixels = record["input"] == "uint8"
        self.gives_labels = record["output"] == "labels"
        if self.takes_pixels:
            options = {"bgr_to_rgb": True}  # the rest is in the file
        super(BaseSegmentor, self).__init__(data_preprocessor=SegDataPreProcessor(**options))
        self.run = run
        self.record = record
        self.test_cfg = ConfigDict(record["test_cfg"])
        self.decode_head = _Head(record)
        self.align_corners = self.decode_head.align_corners
        self.num_classes = self.decode_head.num_classes
        self.out_channels = self.decode_head.out_channels

    def encode_decode(self, inputs: Tensor, batch_img_metas: Sequence[dict]) -> Tensor:
        """Scores (N, C, H, W) of normalised images (N, 3, H, W)."""
        raise_if_cancelled()
        return self.run(inputs.contiguous())

    def predict(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """As the stack's; of a file that gives labels, they come without scores."""
        if self.gives_labels:
            return self.predict_labels(inputs, data_samples)
        return super().predict(inputs, data_samples)

    def predict_labels(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """See the base class; inputs are RGB images 0..255 where the file takes pixels."""
        if not self.gives_labels:
            return super().predict_labels(inputs, data_samples)
        pixels = inputs.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        labels = self.run(pixels)
        samples = data_samples or [SegDataSample() for _ in labels]
        for sample, label in zip(samples, labels, strict=True):
            sample.set_data({"pred_sem_seg": PixelData(data=label[None].long())})
        return samples


class _LabelSegmentor(Segmentor):
    """A model that says which class a pixel has and not how sure it is."""

    def _probabilities(self, samples: Sequence[dict[str, Any]]) -> Iterator[Tensor]:
        raise UserError(
            "input",
            "scores",
            "this exported model gives labels only; export it without --processing to have scores",
        )

    def tile_votes(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(C, h, w): 1 for the class of a pixel, 0 for the others."""
        label = self._labels([self._prepare(pixels, None, tile=True)])[0]
        classes = np.arange(len(self.classes))[:, None, None]
        return (label[None] == classes).astype(np.float32)


def load_exported(
    path: str | os.PathLike[str],
    device: str | torch.device | None = None,
    batch_pixels: int = BATCH_PIXELS,
    trust: bool = False,
) -> Segmentor:
    """Load an exported model.

    Args:
        path: ``.onnx`` (ONNX Runtime), ``.xml`` (OpenVINO), ``.pt2`` (torch.export) or
            ``.torchscript``, as ``mmseg-resnest export-onnx`` writes them.
        device: Where it computes: ``cpu``, or ``cuda`` where the runtime has it (ONNX Runtime,
            TorchScript); None is the CPU.
        batch_pixels: See :func:`load_segmentor`.
        trust: Whether to load ``.pt2`` and ``.torchscript`` files, which are programs.

    Returns:
        The model; call it with an image.

    Raises:
        UserError: The file cannot be read, is a program and ``trust`` is False, holds no record or
            one that is not allowed, or the runtime is not installed.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError("input", file, f"is no exported model; known are {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise UserError("not-found", file, "does not exist, or is not a regular file")
    if suffix not in PROGRAMS:
        _check_no_archive(file)
    elif not trust:
        raise UserError(
            "input",
            file,
            f"a {SUFFIXES[suffix]} file is a program that would run with your rights: load "
            "it with trust=True (--trust) if you made it or trust who did; .onnx files and "
            "published folders are data and need no trust",
        )
    chosen = check_device(device or "cpu")
    open_file = {
        ".onnx": _open_onnx,
        ".xml": _open_openvino,
        ".pt2": _open_pt2,
        ".torchscript": _open_torchscript,
    }[suffix]
    run, text, inputs = open_file(file, chosen)
    if not text:
        raise UserError(
            "corrupt",
            file,
            "has no record of classes and preparation; it was not written by "
            "mmseg-resnest export-onnx",
        )
    record = read_exported(text, os.fspath(file))
    if inputs is not None and inputs != [record["input"]]:
        found = ", ".join(map(printable, inputs))
        raise UserError("input", file, f"takes {found} where its record says {record['input']}")
    with building("mmseg_resnest"):
        network = ExportedNetwork(_checked(run, record, file), record)
        kind = _LabelSegmentor if network.gives_labels else Segmentor
        return kind(network, _config(record, file), chosen, batch_pixels)


def _check_no_archive(file: Path) -> None:
    """Raise if the content is that of a torch.export or a TorchScript file, whatever the name."""
    with file.open("rb") as opened:
        if opened.read(4) == b"PK\x03\x04":
            raise UserError(
                "input",
                file,
                f"holds an archive such as torch.export and TorchScript write, not "
                f"{SUFFIXES[file.suffix.lower()]}'s format",
            )


def _checked(run: Run, record: dict[str, Any], file: Path) -> Run:
    """The network of a file, whose outputs are checked against its record.

    An error of the runtime, of whatever kind, becomes a UserError that names the file.
    """
    classes, outputs = len(record["classes"]), record["out_channels"]
    labels = record["output"] == "labels"

    def checked(inputs: Tensor) -> Tensor:
        try:
            output = run(inputs)
        except (UserError, Cancelled, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise_if_cancelled()  # the runtime was told to end
            if "CUDA out of memory" in str(error):
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split()):.500}"
            runtime = SUFFIXES[file.suffix.lower()]
            raise UserError("input", file, f"{runtime} cannot compute it ({reason})") from error
        size = inputs.shape[1:3] if record["input"] == "uint8" else inputs.shape[2:]
        shape = (len(inputs), *size) if labels else (len(inputs), outputs, *size)
        if tuple(output.shape) != shape or output.is_floating_point() == labels:
            raise UserError(
                "size-mismatch",
                file,
                f"gave {tuple(output.shape)} {output.dtype} where its record promises "
                f"{shape} {record['output']}",
            )
        if labels and output.numel() and not 0 <= int(output.min()) <= int(output.max()) < classes:
            raise UserError("classes", file, f"gave a label that is none of its {classes} classes")
        return output

    return checked


def _config(record: dict[str, Any], file: Path) -> Config:
    """What :class:`Segmentor` asks a config for."""
    metainfo = {"classes": list(record["classes"]), "palette": list(record["palette"])}
    pipeline: Any = record["pipeline"]
    if record["input"] == "uint8":
        pipeline = [step for step in pipeline if step["type"] is PackSegInputs]
    dataset = dict(type="BaseSegDataset", metainfo=metainfo, pipeline=list(pipeline))
    return Config(
        dict(
            default_scope="mmseg_resnest",
            model=dict(type=SUFFIXES[file.suffix.lower()], test_cfg=record["test_cfg"]),
            test_dataloader=dict(dataset=dataset),
        )
    )


def _open_onnx(file: Path, device: torch.device) -> Opened:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "missing-package", file, "needs ONNX Runtime: pip install 'mmseg-resnest[deploy]'"
        ) from error
    onnxruntime.set_default_logger_severity(3)
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise UserError(
                "device",
                f"device {device}",
                "this ONNX Runtime computes on the CPU only; install "
                "onnxruntime-gpu, or use device cpu",
            )
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    check_onnx(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(os.fspath(file), options, providers=providers)
    except Exception as error:  # its own kinds, which are no public names
        raise UserError("input", file, f"ONNX Runtime cannot load it ({error})") from error
    declared = session.get_inputs()
    inputs = [_ONNX_TYPES.get(entry.type, str(entry.type)) for entry in declared]
    if not declared:
        raise UserError("input", file, "takes no image, it is not an exported model")
    name = declared[0].name
    record = session.get_modelmeta().custom_metadata_map.get(RECORD_KEY)

    def run(inputs: Tensor) -> Tensor:
        this_run = onnxruntime.RunOptions()
        with end_when_cancelled(lambda: setattr(this_run, "terminate", True)):
            output = session.run(None, {name: inputs.cpu().numpy()}, this_run)[0]
        return torch.from_numpy(output).to(device)

    return run, record, inputs


def _open_openvino(file: Path, device: torch.device) -> Opened:
    try:
        import openvino
    except ImportError as error:
        raise UserError(
            "missing-package", file, "needs OpenVINO: pip install 'mmseg-resnest[openvino]'"
        ) from error
    if device.type != "cpu":
        raise UserError(
            "device", f"device {device}", "OpenVINO files run on the CPU here; use device cpu"
        )
    with file.open("rb") as opened:
        if not opened.read(64).lstrip().startswith((b"<?xml", b"<net")):
            raise UserError("input", file, "OpenVINO cannot load it, it is no XML")
    try:
        network = openvino.Core().read_model(file)
        # Without being told, it computes in bfloat16 where the processor has that.
        compiled = openvino.compile_model(
            network,
            "CPU",
            {
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "INFERENCE_PRECISION_HINT": "f32",
            },
        )
    except RuntimeError as error:
        raise UserError("input", file, f"OpenVINO cannot load it ({error})") from error
    found = network.get_rt_info(RECORD_KEY).astype(str) if RECORD_KEY in network.rt_info else None
    names = [entry.get_element_type().get_type_name() for entry in compiled.inputs]
    own = threading.local()  # a request is for one thread at a time

    def run(inputs: Tensor) -> Tensor:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        # A copy: the request's output is overwritten by its next call.
        return torch.from_numpy(own.request.infer([inputs.numpy()])[0].copy())

    return run, found, [_OPENVINO_TYPES.get(name, name) for name in names]


def _open_pt2(file: Path, device: torch.device) -> Opened:
    extra = {RECORD_KEY: ""}
    try:
        program = torch.export.load(file, extra_files=extra)
    except Exception as error:  # whatever a broken archive raises
        raise UserError("input", file, f"torch.export cannot load it ({error})") from error
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    module = program.module()
    # Behind a function: such a module refuses train() and eval().
    return (lambda inputs: module(inputs)), extra[RECORD_KEY] or None, None


def _open_torchscript(file: Path, device: torch.device) -> Opened:
    extra = {RECORD_KEY: ""}
    try:
        module = torch.jit.load(file, map_location=device, _extra_files=extra)
    except RuntimeError as error:
        raise UserError("input", file, f"TorchScript cannot load it ({error})") from error
    text = extra[RECORD_KEY]
    return module, (text.decode() if isinstance(text, bytes) else text) or None, None
