# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Exported models (ONNX, OpenVINO, torch.export, TorchScript) behind the Python API.

An exported file holds the network and, as JSON, a record of what stands around it: classes,
colours, how images are prepared, how scores become labels. :class:`ExportedNetwork` stands in for
the network inside the same :class:`~mmseg_resnest.inference.Segmentor` that holds a PyTorch model,
so tiles, batches, sliding windows and multi-scale evaluation are the same code.

ONNX and OpenVINO files are graphs of known operations. torch.export files hold pickles and
TorchScript files code: both are programs, loaded only where the caller trusts them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.structures import SegDataSample
from numpy.typing import NDArray
from torch import Tensor

from ..datasets.transforms import PackSegInputs
from ..engine.preflight import check_device
from ..errors import UserError
from ..io.bit_planes import unpack
from ..io.cancel import Cancelled, raise_if_cancelled
from ..io.text import error_words, printable
from ..models import EncoderDecoder, SegDataPreProcessor
from ..registry import building
from ..runtimes.sessions import RECORD_KEY, Run, Session, open_onnx, open_openvino
from .onnx_check import check_onnx
from .record import read_exported, record_config
from .segmentor import BATCH_PIXELS, Segmentor

__all__ = ["PROGRAMS", "RECORD_KEY", "SUFFIXES", "ExportedNetwork", "is_exported", "load_exported"]

#: Suffix -> what runs such a file.
SUFFIXES = {
    ".onnx": "ONNX Runtime",
    ".xml": "OpenVINO",
    ".pt2": "torch.export",
    ".torchscript": "TorchScript",
}
#: Suffixes of files that are programs.
PROGRAMS = (".pt2", ".torchscript")

#: What runs a file, the text of its record, and the types of its inputs where it declares them.
Opened = tuple[Run, str | None, list[str] | None]
_UNTRUSTED = (
    "a {} file is a program that runs with your rights; load it with trust=True (--trust) if you "
    "made it or trust who did, or use .onnx or a published folder, which are data"
)
_STARTS = {".xml": (b"<?xml", b"<net")}


def is_exported(path: object) -> bool:
    """Whether a path names an exported model, by its suffix."""
    return isinstance(path, str | os.PathLike) and Path(path).suffix.lower() in SUFFIXES


class ExportedNetwork(EncoderDecoder):
    """A segmentor whose backbone and head are an exported file: ``run``, called by threads."""

    def __init__(self, run: Run, record: dict[str, Any]) -> None:
        options = {k: v for k, v in record["data_preprocessor"].items() if v is not None}
        if record["input"] == "uint8":
            options = {"bgr_to_rgb": True}  # the rest is in the file
        # Past the constructor that would build a backbone and a head.
        super(BaseSegmentor, self).__init__(data_preprocessor=SegDataPreProcessor(**options))
        self.run = run
        self.record = record
        self.gives_labels = record["output"] != "logits"
        self.multilabel = record.get("multilabel", False)
        self.test_cfg = ConfigDict(record["test_cfg"])
        self.decode_head = SimpleNamespace(
            num_classes=len(record["classes"]),
            **{key: record[key] for key in ("out_channels", "threshold", "align_corners")},
        )
        self.align_corners = self.decode_head.align_corners
        self.num_classes = self.decode_head.num_classes
        self.out_channels = self.decode_head.out_channels
        self.in_channels = int(record.get("in_channels", 3))

    def encode_decode(self, inputs: Tensor, batch_img_metas: Sequence[dict]) -> Tensor:
        """Scores (N, C, H, W) of normalised images (N, channels, H, W)."""
        raise_if_cancelled()
        return self.run(inputs.contiguous())

    def predict(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """As the base class; a file that gives labels has no scores."""
        if self.gives_labels:
            return self.predict_labels(inputs, data_samples)
        return super().predict(inputs, data_samples)

    def predict_labels(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """As the base class; a file that gives labels takes RGB images 0..255."""
        if not self.gives_labels:
            return super().predict_labels(inputs, data_samples)
        pixels = inputs.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        labels = self.run(pixels)
        samples = data_samples or [SegDataSample() for _ in labels]
        for sample, label in zip(samples, labels, strict=True):
            data = label if self.multilabel else label[None].long()
            sample.set_data({"pred_sem_seg": PixelData(data=data)})
        return samples


class _LabelSegmentor(Segmentor):
    """A model that gives labels and no scores."""

    def _probabilities(self, samples: Sequence[dict[str, Any]]) -> Iterator[Tensor]:
        self.require_scores()
        yield from ()

    def require_scores(self) -> None:
        """Raise UserError: there are none."""
        said = "this exported model gives labels only; export it without --processing for scores"
        raise UserError("model", "scores", said)

    def tile_votes(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """(C, h, w): 1 for the class, or the classes, of a pixel, 0 for the others."""
        label = self._labels([self._prepare(self.reader.loaded(pixels), tile=True)])[0]
        if self.multilabel:
            return unpack(label, len(self.classes)).astype(np.float32)
        classes = np.arange(len(self.classes))[:, None, None]
        return (label[None] == classes).astype(np.float32)

    def _tile_limits(self) -> NDArray[np.float32]:
        return np.full(len(self.classes), 0.5, np.float32)  # most of the votes


def load_exported(
    path: str | os.PathLike[str],
    device: str | torch.device | None = None,
    batch_pixels: int = BATCH_PIXELS,
    trust: bool = False,
) -> Segmentor:
    """Load an exported model; arguments as :func:`load_segmentor` has them.

    Here the device None is the CPU; ``cuda`` needs a runtime that has it (OpenVINO does not).

    Raises:
        UserError: The file cannot be read, is a program and ``trust`` is False, holds no record or
            one that is not allowed, or the runtime is not installed.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError("format", file, f"an exported model ends in {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise UserError("not-found", file, "no such file, or not a regular one")
    if suffix in PROGRAMS and not trust:
        raise UserError("untrusted", file, _UNTRUSTED.format(SUFFIXES[suffix]))
    with file.open("rb") as opened:
        head = opened.read(64).lstrip()
    # Programs are archives, whatever their name.
    if suffix not in PROGRAMS and (
        head.startswith(b"PK") or not head.startswith(_STARTS.get(suffix, b""))
    ):
        raise UserError("format", file, f"not a file of {SUFFIXES[suffix]}")
    chosen = check_device(device or "cpu")
    run, text, inputs = _OPENERS[suffix](file, chosen)
    if not text:
        said = "has no record of its classes; mmseg-resnest export-onnx writes one"
        raise UserError("format", file, said)
    record = read_exported(text, os.fspath(file))
    if inputs is not None and inputs != [record["input"]]:
        found = ", ".join(map(printable, inputs))
        raise UserError("format", file, f"takes {found}, but its record says {record['input']}")
    if record["input"] == "uint8":  # resizing is in the file
        steps = [step for step in record["pipeline"] if step["type"] is PackSegInputs]
        record = {**record, "pipeline": steps}
    model = dict(type=SUFFIXES[suffix], test_cfg=record["test_cfg"])
    with building("mmseg_resnest"):
        network = ExportedNetwork(_checked(run, record, file), record)
        kind = _LabelSegmentor if network.gives_labels else Segmentor
        made = kind(network, record_config(record, model), chosen, batch_pixels)
    made.files = (file, *file.parent.glob(f"{file.stem}.bin"))  # OpenVINO's weights lie beside it
    return made


def _checked(run: Run, record: dict[str, Any], file: Path) -> Run:
    """``run`` with outputs checked against the record; its errors become UserErrors."""
    classes, outputs = len(record["classes"]), record["out_channels"]
    labels, masks = record["output"] != "logits", record["output"] == "masks"
    most = 1 if masks else classes - 1
    runtime = SUFFIXES[file.suffix.lower()]

    def checked(inputs: Tensor) -> Tensor:
        try:
            output = run(inputs)
        except (UserError, Cancelled, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise_if_cancelled()  # the runtime was asked to end
            if "CUDA out of memory" in str(error):
                raise
            said = f"{runtime} cannot compute it ({error_words(error, 500)})"
            raise UserError("model", file, said) from error
        size = inputs.shape[1:3] if record["input"] == "uint8" else inputs.shape[2:]
        planes = masks or not labels
        shape = (len(inputs), outputs, *size) if planes else (len(inputs), *size)
        if tuple(output.shape) != shape or output.is_floating_point() == labels:
            given = f"{tuple(output.shape)} {output.dtype}"
            said = f"gave {given}, but its record says {shape} {record['output']}"
            raise UserError("model-output", file, said)
        if labels and output.numel() and not 0 <= int(output.min()) <= int(output.max()) <= most:
            raise UserError("model-output", file, f"gave a label outside 0..{most}")
        return output

    return checked


def _open_onnx(file: Path, device: torch.device) -> Opened:
    check_onnx(file)
    return _of_session(open_onnx(file, device))


def _open_openvino(file: Path, device: torch.device) -> Opened:
    return _of_session(open_openvino(file, device))


def _of_session(session: Session) -> Opened:
    return session.run, session.record, session.inputs


def _open_pt2(file: Path, device: torch.device) -> Opened:
    extra = {RECORD_KEY: ""}
    try:
        program = torch.export.load(file, extra_files=extra)
    except Exception as error:  # whatever a broken archive raises
        raise UserError("format", file, f"torch.export cannot load it ({error})") from error
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    module = program.module()
    # Behind a function: such a module refuses train() and eval().
    return (lambda inputs: module(inputs)), extra[RECORD_KEY], None


def _open_torchscript(file: Path, device: torch.device) -> Opened:
    extra: dict[str, Any] = {RECORD_KEY: ""}
    try:
        module = torch.jit.load(file, map_location=device, _extra_files=extra)
    except RuntimeError as error:
        raise UserError("format", file, f"TorchScript cannot load it ({error})") from error
    text = extra[RECORD_KEY]
    return module, text.decode() if isinstance(text, bytes) else text, None


_OPENERS: dict[str, Callable[[Path, torch.device], Opened]] = {
    ".onnx": _open_onnx,
    ".xml": _open_openvino,
    ".pt2": _open_pt2,
    ".torchscript": _open_torchscript,
}
