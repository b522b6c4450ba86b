# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Makes hostile published folders and exported files from valid ones."""

from __future__ import annotations

import copy
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
from sandbox import Sandbox
from torch import nn

Record = dict[str, Any]
Change = Callable[[Record, Sandbox], None]

#: Where a record of a published folder has a mapping that is built or read as options.
PLACES = [
    ("model",),
    ("model", "data_preprocessor"),
    ("model", "backbone"),
    ("model", "backbone", "norm_cfg"),
    ("model", "decode_head"),
    ("model", "decode_head", "norm_cfg"),
    ("model", "test_cfg"),
    ("pipeline", 0),
]


def at(record: Record, place: tuple[Any, ...]) -> Any:
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


# --- keys and types that have a meaning for the libraries behind --------------------------------


def keys(box: Sandbox) -> dict[str, Any]:
    """Keys that make MMEngine or a part import, fetch or read something."""
    secret = str(box.outside / "weights.pth")
    return {
        "_scope_": box.package,
        "_delete_": True,
        "_base_": f"{box.module}.py",
        "__class__": "os.system",
        "custom_imports": {"imports": [box.module]},
        "init_cfg": {"type": "Pretrained", "checkpoint": secret},
        "init_cfg of an address": {"type": "Pretrained", "checkpoint": "http://127.0.0.1:9/x.pth"},
        "init_cfg by type": {"type": f"{box.module}.Thing"},
        "pretrained": secret,
        "pretrained of a list": "open-mmlab://resnet18_v1c",
        "checkpoint": secret,
        "load_from": secret,
        "loss_decode": {"type": "CrossEntropyLoss", "class_weight": secret},
        "plugins": [{"cfg": {"type": f"{box.module}.Thing"}, "stages": [True] * 4}],
        "file_client_args": {"backend": f"{box.module}.Thing"},
        "backend_args": {"backend": "local", "_scope_": box.package},
    }


KEYS = [
    "_scope_", "_delete_", "_base_", "__class__", "custom_imports", "init_cfg",
    "init_cfg of an address", "init_cfg by type", "pretrained", "pretrained of a list",
    "checkpoint", "load_from", "loss_decode", "plugins", "file_client_args", "backend_args",
]  # fmt: skip


def types(box: Sandbox) -> list[str]:
    """Names of types that no published folder needs."""
    return [
        "os.system",
        "subprocess.Popen",
        "builtins.exec",
        f"{box.module}.Thing",
        f"{box.package}.Thing",
        "mmseg.EncoderDecoder",
        "mmengine.Sequential",
        "mmseg_resnest.EncoderDecoder",
        "mmpretrain.VisionTransformer",
        "torch.nn.Linear",
        "TIMMBackbone",
        "BEiT",
        "CLIPTextEncoder",
        "VPD",
        "MultimodalEncoderDecoder",
        "SideAdapterCLIPHead",
        "Pretrained",
        "PretrainedInit",
        "LoadImageFromFile",
        "LoadImageFromNDArray",
        "LoadAnnotations",
        "LoadBiomedicalData",
        "InferencerLoader",
        "Sequential",
        "ModuleList",
        "",
        "__import__",
        "a" * 100_000,
    ]


TYPES = 28


# --- values that ask for too much, or are of the wrong type -------------------------------------

_FINITE: list[Any] = [
    None, True, -1, 0, 2**31, 10**12, 10**400, 1.5, math.nan, math.inf, "text", "", "1e9",
    [], {}, [[[]]], [2**31] * 4, {"type": "BN"}, ["os.system"], [None] * 3,
]  # fmt: skip


def wrong_values() -> list[Any]:
    """Values of every JSON type, from nothing to far too much."""
    return copy.deepcopy(_FINITE)


def _deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def _set(*place_and_value: Any) -> Change:
    *place, key, value = place_and_value

    def change(record: Record, box: Sandbox) -> None:
        at(record, tuple(place))[key] = copy.deepcopy(value)

    return change


def _nested_deep(record: Record, box: Sandbox) -> None:
    record["model"]["backbone"]["extra"] = _deep(5_000)  # too deep for copy.deepcopy


def _nested_steps(record: Record, box: Sandbox) -> None:
    step: Record = {"type": f"{box.module}.Thing"}
    for _ in range(20):
        step = {"type": "Compose", "transforms": [step]}
    record["pipeline"].insert(0, step)


def _type_beside_a_registered_one(record: Record, box: Sandbox) -> None:
    step = {"type": f"{box.module}.Thing"}
    record["pipeline"].insert(0, {"type": "RandomChoice", "transforms": [[step]]})


def _registered_reader(record: Record, box: Sandbox) -> None:
    record["pipeline"].insert(
        0, {"type": "LoadImageFromFile", "imdecode_backend": "cv2", "to_float32": True}
    )


def _photo_of_the_user(record: Record, box: Sandbox) -> None:
    """A step that blends in another image of the user."""
    record["pipeline"].insert(0, {"type": "LoadAnnotations", "seg_map_path": str(box.outside)})


def _million_classes(record: Record, box: Sandbox) -> None:
    record["classes"] = [f"c{i}" for i in range(1_000_000)]
    record["palette"] = [[0, 0, 0]] * 1_000_000


def _escapes_in_classes(record: Record, box: Sandbox) -> None:
    record["classes"] = ["\x1b]0;owned\x07", "<script>alert(1)</script>", "a\nb", "{{$HOME:x}}"]


#: Changes of ``config.json``, by what they do.
CONFIGS: dict[str, Change] = {
    "channels of a gigabyte": _set("model", "decode_head", "channels", 2**31),
    "million million classes": _set("model", "decode_head", "num_classes", 10**12),
    "wide backbone": _set("model", "backbone", "base_channels", 2**28),
    "wide stem": _set("model", "backbone", "stem_channels", 2**28),
    "deep head": _set("model", "decode_head", "num_convs", 10**7),
    "kernel of a million": _set("model", "decode_head", "kernel_size", 10**6),
    "dilation of a million": _set("model", "backbone", "dilations", [10**6] * 4),
    "input channels": _set("model", "backbone", "in_channels", 2**30),
    "padding of an image": _set("model", "data_preprocessor", "size_divisor", 2**31),
    "size of an image": _set("model", "data_preprocessor", "test_cfg", {"size": [10**6, 10**6]}),
    "mean of a million": _set("model", "data_preprocessor", "mean", [0.0] * 10**6),
    "window of a pixel": _set(
        "model", "test_cfg", {"mode": "slide", "crop_size": [1, 1], "stride": [1, 1]}
    ),
    "stride of nothing": _set(
        "model", "test_cfg", {"mode": "slide", "crop_size": [64, 64], "stride": [0, 0]}
    ),
    "batch of windows": _set(
        "model",
        "test_cfg",
        {"mode": "slide", "crop_size": [10**6] * 2, "stride": [1] * 2, "window_batch_size": 10**9},
    ),
    "image of a million": _set(
        "pipeline", [{"type": "Resize", "scale": [10**6, 10**6]}, {"type": "PackSegInputs"}]
    ),
    "scale factor": _set(
        "pipeline", [{"type": "Resize", "scale_factor": 10**6}, {"type": "PackSegInputs"}]
    ),
    "padded image": _set(
        "pipeline", [{"type": "Pad", "size": [10**6, 10**6]}, {"type": "PackSegInputs"}]
    ),
    "no pipeline": _set("pipeline", []),
    "a million steps": _set("pipeline", [{"type": "PackSegInputs"}] * 1_000_000),
    "steps in steps": _nested_steps,
    "types in lists": _type_beside_a_registered_one,
    "step that reads an image": _registered_reader,
    "step that reads labels": _photo_of_the_user,
    "meta keys": _set("pipeline", [{"type": "PackSegInputs", "meta_keys": ["__class__"] * 10**5}]),
    "nested 150 deep": _set("model", "backbone", "extra", _deep(150)),
    "nested 5,000 deep": _nested_deep,
    "NaN": _set("model", "data_preprocessor", "mean", [math.nan, math.inf, -math.inf]),
    "a million classes": _million_classes,
    "escapes in class names": _escapes_in_classes,
    "class names that are no text": _set("classes", [1, None, [2], {"a": 3}]),
    "fewer colours": _set("palette", [[1, 2, 3]]),
    "colours out of range": _set("palette", [[10**9, -1, 1.5]] * 4),
    "colours that are text": _set("palette", ["#ff0000"] * 4),
    "format of text": _set("format", "1"),
    "format of truth": _set("format", True),
    "hash of a list": _set("sha256", ["0"] * 64),
    "hash of nothing": _set("sha256", ""),
    "hash of null": _set("sha256", None),
    "model is a list": _set("model", []),
    "model is text": _set("model", "EncoderDecoder"),
    "pipeline is a mapping": _set("pipeline", {"type": "PackSegInputs"}),
    "type is a list": _set("model", "backbone", "type", ["ResNetV1c"]),
    "type is a number": _set("model", "type", 1),
    "type is null": _set("model", "decode_head", "type", None),
}


def folder_with(box: Sandbox, published: Path, change: Change | None = None) -> Path:
    """A copy of a published folder with another ``config.json`` and code beside it."""
    folder = box.files / "model"
    shutil.copytree(published, folder)
    for name in ("config.py", "training_config.py", "registry.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(box.code + "\n")
    if change is not None:
        record = json.loads((folder / "config.json").read_text())
        change(record, box)
        (folder / "config.json").write_text(dumps(record))
    return folder


def dumps(record: Any) -> str:
    """JSON of a record, which may be nested deeper than Python's encoder goes in one call."""
    import sys

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        return json.dumps(record)
    finally:
        sys.setrecursionlimit(limit)


#: Texts of a whole ``config.json``.
TEXTS: dict[str, bytes] = {
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "no UTF-8": b'{"format": "\xff\xfe"}',
    "nested 200,000 deep": b'{"model":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "objects nested 200,000 deep": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "a number of 100,000 digits": b'{"format": ' + b"9" * 100_000 + b"}",
    "NUL bytes": b"\0" * 1000,
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


def onnx_with(box: Sandbox, exported: Path, record: Record | bytes | str) -> Path:
    """A copy of an ONNX file with another record."""
    import onnx

    graph = onnx.load(exported)
    del graph.metadata_props[:]
    text = record if isinstance(record, bytes | str) else dumps(record)
    onnx.helper.set_model_props(graph, {"mmseg_resnest": text})
    onnx.save(graph, box.files / "evil.onnx")
    return box.files / "evil.onnx"


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
    (box.files / "evil.onnx").write_bytes(graph.SerializeToString())
    return box.files / "evil.onnx"


def onnx_large_constant(box: Sandbox, exported: Path) -> Path:
    """An ONNX file whose network makes a tensor of a terabyte when it runs."""
    import onnx
    from onnx import TensorProto, helper

    graph = onnx.load(exported)
    output = graph.graph.output[0].name
    for node in graph.graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
    shape = helper.make_tensor("evil_shape", TensorProto.INT64, [2], [1 << 20, 1 << 18])
    zero = helper.make_tensor("evil_value", TensorProto.FLOAT, [1], [0.0])
    graph.graph.initializer.append(shape)
    graph.graph.node.extend([
        helper.make_node("ConstantOfShape", ["evil_shape"], ["evil"], value=zero),
        helper.make_node("ReduceMax", ["evil"], ["evil_sum"], keepdims=0),
        helper.make_node("Add", ["before", "evil_sum"], [output]),
    ])  # fmt: skip
    (box.files / "evil.onnx").write_bytes(graph.SerializeToString())
    return box.files / "evil.onnx"


def onnx_announced_weights(box: Sandbox, exported: Path) -> Path:
    """An ONNX file that announces weights of a terabyte and holds none."""
    import onnx

    graph = onnx.load(exported)
    weights = graph.graph.initializer[0]
    weights.dims[:] = [1 << 20, 1 << 18]
    (box.files / "evil.onnx").write_bytes(graph.SerializeToString())
    return box.files / "evil.onnx"


def onnx_custom_operator(box: Sandbox, exported: Path) -> Path:
    """An ONNX file with an operator of a library that is not part of ONNX Runtime."""
    import onnx

    graph = onnx.load(exported)
    graph.graph.node[0].domain = "com.evil"
    entry = graph.opset_import.add()
    entry.domain, entry.version = "com.evil", 1
    (box.files / "evil.onnx").write_bytes(graph.SerializeToString())
    return box.files / "evil.onnx"


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


def write_torchscript(box: Sandbox, path: Path, record: Record | None) -> Path:
    """A TorchScript file that writes the canary."""
    module = torch.jit.script(Writes(str(box.canary)))
    extra = {} if record is None else {"mmseg_resnest": json.dumps(record)}
    torch.jit.save(module, path, _extra_files=extra)
    assert not box.canary.exists()
    return path


class _Call:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def write_pt2(box: Sandbox, path: Path, record: Record) -> Path:
    """A file of torch.export with a program in place of each pickle among its members."""
    program = torch.export.export(nn.ReLU(), (torch.ones(1, 3, 8, 8),))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"mmseg_resnest": json.dumps(record)})
    evil = pickle.dumps({"a": _Call(f"touch '{box.canary}'")}, protocol=2)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            replaced = entry.filename.endswith(".pt") or data[:2] in (b"\x80\x02", b"\x80\x04")
            new.writestr(entry.filename, evil if replaced else data)
    return path
