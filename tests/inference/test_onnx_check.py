# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""ONNX files of strangers: no other files, no loops, no constants beyond what the file holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmseg_resnest import UserError
from mmseg_resnest.inference.onnx_check import check_onnx

ADD = helper.make_node("Add", ["x", "w"], ["y"])


def tensor(name: str, values: Any) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)


def write(
    path: Path,
    nodes: list[Any],
    tensors: Sequence[TensorProto] = (),
    domain: str = "",
) -> Path:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], tensors)
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    path.write_bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString())
    return path


def outside(**entries: object) -> TensorProto:
    value = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    value.data_location = TensorProto.EXTERNAL
    for key, text in entries.items():
        value.external_data.add(key=key, value=str(text))
    return value


@pytest.mark.parametrize(
    "location", ["data.bin", "../data.bin", "/etc/passwd", "data.bin/../../../etc/passwd"]
)
@pytest.mark.parametrize("place", ["initializer", "constant", "sparse"])
def test_tensors_lie_in_the_file(location: str, place: str, tmp_path: Path) -> None:
    np.ones(4, np.float32).tofile(tmp_path / "data.bin")
    value = outside(location=location)
    if place == "initializer":
        path = write(tmp_path / "a.onnx", [ADD], [value])
    else:
        if place == "sparse":
            sparse = onnx.SparseTensorProto(values=value, indices=tensor("i", [0, 1, 2, 3]))
            sparse.dims.extend([4])
            node = helper.make_node("Constant", [], ["w"], sparse_value=sparse)
        else:
            node = helper.make_node("Constant", [], ["w"], value=value)
        path = write(tmp_path / "a.onnx", [node, ADD])
    with pytest.raises(UserError, match=r"a\.onnx: refused, tensor 'w' lies in another file"):
        check_onnx(path)


BOMBS = {
    "shape": ([helper.make_node("ConstantOfShape", ["s"], ["w"])], {"s": [10**12]}),
    "constant": (
        [
            helper.make_node("Constant", [], ["s"], value=tensor("s", [10**6, 10**6])),
            helper.make_node("ConstantOfShape", ["s"], ["w"]),
        ],
        {},
    ),
    "listed": (
        [
            helper.make_node("Constant", [], ["s"], value_ints=[10**6, 10**6]),
            helper.make_node("ConstantOfShape", ["s"], ["w"]),
        ],
        {},
    ),
    "computed": (
        [
            helper.make_node("Mul", ["a", "a"], ["s"]),
            helper.make_node("ConstantOfShape", ["s"], ["w"]),
        ],
        {"a": [10**6]},
    ),
    "joined": (
        [
            helper.make_node("Concat", ["a", "a"], ["b"], axis=0),
            helper.make_node("Identity", ["b"], ["s"]),
            helper.make_node("Expand", ["x", "s"], ["w"]),
        ],
        {"a": [10**6]},
    ),
    "expand": ([helper.make_node("Expand", ["x", "s"], ["w"])], {"s": [10**6, 10**6]}),
    "range": (
        [helper.make_node("Range", ["a", "s", "d"], ["w"])],
        {"a": np.float32(0), "s": np.float32(1e12), "d": np.float32(1)},
    ),
    "broadcast": (
        [helper.make_node("Add", ["a", "s"], ["w"])],
        {"a": np.ones((1, 20000), np.float32), "s": np.ones((20000, 1), np.float32)},
    ),
    "random": ([helper.make_node("RandomNormal", [], ["w"], shape=[10**6, 10**6])], {}),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_constants_are_not_larger_than_the_file(kind: str, tmp_path: Path) -> None:
    nodes, tensors = BOMBS[kind]
    values = [tensor(name, value) for name, value in tensors.items()]
    path = write(tmp_path / "a.onnx", [*nodes, ADD], values)
    with pytest.raises(UserError, match=r"a\.onnx: refused"):
        check_onnx(path)


@pytest.mark.parametrize("dims", [[10**12], [10**6, 10**6], [-1], [1 << 62, 4]])
def test_tensors_are_as_large_as_they_say(dims: list[int], tmp_path: Path) -> None:
    for data in (b"\0" * 16, b""):
        value = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=data)
        with pytest.raises(UserError, match="not in the file"):
            check_onnx(write(tmp_path / "a.onnx", [ADD], [value]))


def test_graphs_are_plain(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    body = helper.make_graph([], "body", [], [])
    for name in ("If", "Loop", "Scan"):
        with pytest.raises(UserError, match=f"'{name}' is a branch or a loop"):
            check_onnx(write(path, [helper.make_node(name, ["x"], ["y"], body=body)]))
    node = helper.make_node("Run", ["x"], ["y"], domain="evil")
    with pytest.raises(UserError, match="'evil'"):
        check_onnx(write(path, [node], domain="evil"))
    function = helper.make_function(
        "", "Own", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [],
    )  # fmt: skip
    model = onnx.load(write(path, [helper.make_node("Relu", ["x"], ["y"])]))
    check_onnx(path)
    model.functions.append(function)
    onnx.save(model, path)
    with pytest.raises(UserError, match="functions"):
        check_onnx(path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"{}", b"PK\x03\x04", b"\x08\x07"])
def test_damaged_files_are_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.onnx"):
        check_onnx(path)


def test_files_of_two_gib_are_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.onnx", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="2 GiB"):
        check_onnx(tmp_path / "a.onnx")
