# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Makes hostile published folders and exported files from valid ones."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hostile_checkpoints import Call
from sandbox import Sandbox
from torch import nn

Record = dict[str, Any]
Change = Callable[[Record], Any]

#: Where a record of a published folder has a mapping that is built or read as options.
PLACES: list[tuple[Any, ...]] = [
    ("model",),
    ("model", "data_preprocessor"),
    ("model", "backbone"),
    ("model", "backbone", "norm_cfg"),
    ("model", "decode_head"),
    ("model", "decode_head", "norm_cfg"),
    ("model", "test_cfg"),
    ("pipeline", 0),
]


def at(record: Any, place: tuple[Any, ...]) -> Any:
    """The part of a record at a place."""
    for key in place:
        record = record[key]
    return record


def every_place(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in a record."""
    yield place
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from every_place(item, (*place, key))


#: Keys that make MMEngine or a part import, fetch or read something; see Sandbox.fill.
KEYS: list[tuple[str, Any]] = [
    ("_scope_", "{package}"),
    ("_delete_", True),
    ("_base_", "{module}.py"),
    ("__class__", "os.system"),
    ("custom_imports", {"imports": ["{module}"]}),
    ("init_cfg", {"type": "Pretrained", "checkpoint": "{outside}/weights.pth"}),
    ("init_cfg", {"type": "Pretrained", "checkpoint": "http://127.0.0.1:9/x.pth"}),
    ("init_cfg", {"type": "{module}.Thing"}),
    ("pretrained", "{outside}/weights.pth"),
    ("pretrained", "open-mmlab://resnet18_v1c"),
    ("checkpoint", "{outside}/weights.pth"),
    ("load_from", "{outside}/weights.pth"),
    ("loss_decode", {"type": "CrossEntropyLoss", "class_weight": "{outside}/weights.pth"}),
    ("plugins", [{"cfg": {"type": "{module}.Thing"}, "stages": [True] * 4}]),
    ("file_client_args", {"backend": "{module}.Thing"}),
    ("backend_args", {"backend": "local", "_scope_": "{package}"}),
]
#: Names of types that no published folder needs.
TYPES = [
    "os.system", "subprocess.Popen", "builtins.exec", "{module}.Thing", "{package}.Thing",
    "mmseg.EncoderDecoder", "mmengine.Sequential", "mmseg_resnest.EncoderDecoder",
    "mmpretrain.VisionTransformer", "torch.nn.Linear", "TIMMBackbone", "BEiT", "CLIPTextEncoder",
    "VPD", "MultimodalEncoderDecoder", "SideAdapterCLIPHead", "Pretrained", "PretrainedInit",
    "LoadImageFromFile", "LoadImageFromNDArray", "LoadAnnotations", "LoadBiomedicalData",
    "InferencerLoader", "Sequential", "ModuleList", "", "__import__", "a" * 100_000,
]  # fmt: skip
#: Values of every JSON type, from nothing to far too much.
VALUES: list[Any] = [
    None, True, -1, 0, 2**31, 10**12, 10**400, 1.5, math.nan, math.inf, "text", "", "1e9",
    [], {}, [[[]]], [2**31] * 4, {"type": "BN"}, ["os.system"], [None] * 3,
]  # fmt: skip


def _deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def _step_in_steps(levels: int) -> Record:
    step: Record = {"type": "{module}.Thing"}
    for _ in range(levels):
        step = {"type": "Compose", "transforms": [step]}
    return step


_PACK = {"type": "PackSegInputs"}
_HEAD, _BACKBONE = ("model", "decode_head"), ("model", "backbone")
_PREPROCESSOR = ("model", "data_preprocessor")
#: Values of ``config.json``, by what they do: their place and the value.
CONFIGS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "channels of a gigabyte": ((*_HEAD, "channels"), 2**31),
    "wide backbone": ((*_BACKBONE, "base_channels"), 2**28),
    "deep head": ((*_HEAD, "num_convs"), 10**7),
    "padding of an image": ((*_PREPROCESSOR, "size_divisor"), 2**31),
    "window of a pixel": (
        ("model", "test_cfg"), {"mode": "slide", "crop_size": [1, 1], "stride": [1, 1]},
    ),
    "stride of nothing": (
        ("model", "test_cfg"), {"mode": "slide", "crop_size": [64, 64], "stride": [0, 0]},
    ),
    "image of a million": (("pipeline",), [{"type": "Resize", "scale": [10**6] * 2}, _PACK]),
    "steps in steps": (("pipeline",), [_step_in_steps(20), _PACK]),
    "step that reads labels": (
        ("pipeline",), [{"type": "LoadAnnotations", "seg_map_path": "{outside}"}, _PACK],
    ),
    "nested 150 deep": ((*_BACKBONE, "extra"), _deep(150)),
    "10^5 classes": (("classes",), [f"c{i}" for i in range(10**5)]),
    "escapes in class names": (
        ("classes",), ["\x1b]0;owned\x07", "<script>alert(1)</script>", "a\nb", "{{$HOME:x}}"],
    ),
    "hash of a list": (("sha256",), ["0"] * 64),
    "model is a list": (("model",), []),
    "type is a list": ((*_BACKBONE, "type"), ["ResNetV1c"]),
}  # fmt: skip


def folder_with(box: Sandbox, published: Path, change: Change = lambda record: None) -> Path:
    """A copy of a published folder with another ``config.json`` and code beside it."""
    folder = box.files / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(published, folder)
    for name in ("config.py", "training_config.py", "registry.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(box.code + "\n")
    record = json.loads((folder / "config.json").read_text())
    change(record)
    (folder / "config.json").write_text(json.dumps(box.fill(record)))
    return folder


#: Texts of a whole ``config.json``.
TEXTS: dict[str, bytes] = {
    "empty": b"",
    "a list": b"[]",
    "no UTF-8": b'{"format": "\xff\xfe"}',
    "nested 200,000 deep": b'{"model":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "nested 5,000 deep": b'{"model":' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
    "a number of 100,000 digits": b'{"format": ' + b"9" * 100_000 + b"}",
    "a pickle": pickle.dumps({"format": 1}),
    "only a format": b'{"format": 1}',
    "a zip": b"PK\3\4" + bytes(100),
}


# --- exported files --------------------------------------------------------------------------


def record_of(file: Path) -> Record:
    """The record of an ONNX file."""
    import onnx

    (found,) = (p.value for p in onnx.load(file).metadata_props if p.key == "mmseg_resnest")
    record: Record = json.loads(found)
    return record


def onnx_with(box: Sandbox, exported: Path, record: Record | str) -> Path:
    """A copy of an ONNX file with another record."""
    import onnx

    graph = onnx.load(exported)
    del graph.metadata_props[:]
    text = record if isinstance(record, str) else json.dumps(box.fill(record))
    onnx.helper.set_model_props(graph, {"mmseg_resnest": text})
    return box.write("evil.onnx", graph.SerializeToString())


def onnx_external_data(box: Sandbox, exported: Path, location: str) -> Path:
    """An ONNX file whose weights lie in another file."""
    import onnx

    graph = onnx.load(exported)
    weights = max(graph.graph.initializer, key=lambda w: len(w.raw_data))
    size = len(weights.raw_data)
    (box.outside / "raw.bin").write_bytes(bytes(size))
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    return box.write("evil.onnx", graph.SerializeToString())


class Writes(nn.Module):
    """A TorchScript program that writes a file when it is loaded and when it is called."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self):
        # type: () -> Tuple[str, bool]
        return (self.path, self.training)

    @torch.jit.export
    def __setstate__(self, state):
        # type: (Tuple[str, bool]) -> None
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.ones(1), state[0])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        torch.save(images, self.path)
        return images


def torchscript_bytes(box: Sandbox, record: Record | None) -> bytes:
    """A TorchScript program that writes the canary when it is loaded."""
    buffer = io.BytesIO()
    extra = {} if record is None else {"mmseg_resnest": json.dumps(record)}
    torch.jit.save(torch.jit.script(Writes(str(box.canary))), buffer, _extra_files=extra)
    assert not box.canary.exists()
    return buffer.getvalue()


def write_torchscript(box: Sandbox, record: Record) -> Path:
    """A TorchScript file that writes the canary when it is loaded."""
    return box.write("evil.torchscript", torchscript_bytes(box, record))


def write_pt2(box: Sandbox, record: Record) -> Path:
    """A file of torch.export with a program in place of each pickle among its members."""
    program = torch.export.export(nn.ReLU(), (torch.ones(1, 3, 8, 8),))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"mmseg_resnest": json.dumps(record)})
    evil = pickle.dumps({"a": Call(os.system, f"touch '{box.canary}'")}, protocol=2)
    path = box.files / "evil.pt2"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            replaced = entry.filename.endswith(".pt") or data[:2] in (b"\x80\x02", b"\x80\x04")
            new.writestr(entry.filename, evil if replaced else data)
    return path
