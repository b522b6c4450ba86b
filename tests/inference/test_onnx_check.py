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
from user_errors import raises_user_error

from mmseg_resnest.inference.onnx_check import check_onnx

ADD = helper.make_node("Add", ["x", "w"], ["y"])


def tensor(name: str, values: Any) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)


def write(
    path: Path, nodes: list[Any], tensors: Sequence[TensorProto] = (), domain: str = ""
) -> Path:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], tensors)
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    path.write_bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString())
    return path


def check_refused(path: Path) -> None:
    with raises_user_error("format", path) as caught:
        check_onnx(path)
    assert caught.value.message.startswith("refused: ")


@pytest.mark.parametrize("location", ["data.bin", "../data.bin", "/etc/passwd"])
@pytest.mark.parametrize("place", ["initializer", "constant", "sparse"])
def test_tensors_in_other_files_are_refused(location: str, place: str, tmp_path: Path) -> None:
    np.ones(4, np.float32).tofile(tmp_path / "data.bin")
    value = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value=location)
    nodes = []
    if place == "constant":
        nodes = [helper.make_node("Constant", [], ["w"], value=value)]
    elif place == "sparse":
        sparse = onnx.SparseTensorProto(values=value, indices=tensor("i", [0, 1, 2, 3]))
        sparse.dims.extend([4])
        nodes = [helper.make_node("Constant", [], ["w"], sparse_value=sparse)]
    check_refused(write(tmp_path / "a.onnx", [*nodes, ADD], [] if nodes else [value]))


OF_SHAPE = helper.make_node("ConstantOfShape", ["s"], ["w"])
LARGE_RESULTS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "shape": ([OF_SHAPE], {"s": [10**12]}),
    "constant": (
        [helper.make_node("Constant", [], ["s"], value=tensor("s", [10**6, 10**6])), OF_SHAPE],
        {},
    ),
    "list": ([helper.make_node("Constant", [], ["s"], value_ints=[10**6, 10**6]), OF_SHAPE], {}),
    "computed": ([helper.make_node("Mul", ["a", "a"], ["s"]), OF_SHAPE], {"a": [10**6]}),
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


@pytest.mark.parametrize("kind", LARGE_RESULTS)
def test_results_far_larger_than_the_file_are_refused(kind: str, tmp_path: Path) -> None:
    nodes, tensors = LARGE_RESULTS[kind]
    values = [tensor(name, value) for name, value in tensors.items()]
    check_refused(write(tmp_path / "a.onnx", [*nodes, ADD], values))


@pytest.mark.parametrize("dims", [[10**12], [10**6, 10**6], [-1], [1 << 62, 4]])
@pytest.mark.parametrize("data", [b"\0" * 16, b""])
def test_tensors_larger_than_their_data_are_refused(
    dims: list[int], data: bytes, tmp_path: Path
) -> None:
    value = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=data)
    check_refused(write(tmp_path / "a.onnx", [ADD], [value]))


def test_only_plain_graphs_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    relu = helper.make_node("Relu", ["x"], ["y"])
    check_onnx(write(path, [relu]))
    body = helper.make_graph([], "body", [], [])
    for name in ("If", "Loop", "Scan"):
        check_refused(write(path, [helper.make_node(name, ["x"], ["y"], body=body)]))
    check_refused(write(path, [helper.make_node("Run", ["x"], ["y"], domain="evil")], (), "evil"))
    model = onnx.load(write(path, [relu]))
    model.functions.append(helper.make_function("", "Own", ["x"], ["y"], [relu], []))
    onnx.save(model, path)
    check_refused(path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"{}", b"PK\x03\x04", b"\x08\x07"])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with raises_user_error("format", path):
        check_onnx(path)


def test_files_of_two_gib_are_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.onnx", "wb") as file:
        file.truncate(1 << 40)
    with raises_user_error("too-large", "a.onnx"):
        check_onnx(tmp_path / "a.onnx")
