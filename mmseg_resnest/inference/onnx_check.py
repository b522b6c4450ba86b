# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""An ONNX file of unknown origin is checked before ONNX Runtime opens it.

The runtime computes constants while it loads a file, reads tensors that lie in other files, and
runs loops for as long as the file says. What :mod:`mmseg_resnest.export` writes needs none of it: a
graph of standard operations without branches and loops, all of whose tensors are in the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError

__all__ = ["check_onnx"]

#: Protobuf's limit, and the runtime's.
MAX_FILE_BYTES = 2 << 30
MAX_NODES = 100_000
#: Values of a tensor whose size follows from constants in the file.
MAX_CONSTANT = 1 << 28
_DOMAINS = ("", "ai.onnx")
# Inputs that say how large an output is.
_SIZE_INPUTS = {
    "ConstantOfShape": (0,), "Expand": (1,), "Tile": (1,), "Range": (0, 1, 2), "Pad": (1,),
    "Resize": (2, 3), "Upsample": (1,), "OneHot": (1,),
}  # fmt: skip
# Those whose inputs are sizes, or factors of them, one for each axis.
_PRODUCTS = ("ConstantOfShape", "Expand", "Tile", "Resize")
# Tensors up to this size can be sizes of others.
_SHAPE_BYTES = 1024


def check_onnx(path: Path) -> None:
    """Check that an ONNX file is a plain graph which holds its own tensors.

    Args:
        path: The file.

    Raises:
        UserError: It is damaged, or has operations of other packages, branches, loops or functions,
            tensors in other files, or tensors that are larger than what the file holds of them.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError(
            "missing-package", path, "needs the package onnx: pip install onnx"
        ) from error
    if path.stat().st_size >= MAX_FILE_BYTES:
        raise UserError("input", path, "ONNX Runtime cannot load it, it has 2 GiB or more")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's own kind
        raise UserError("input", path, "ONNX Runtime cannot load it, it is no ONNX file") from error
    graph = model.graph
    if not len(graph.node):
        raise UserError("input", path, "ONNX Runtime cannot load it, it is no ONNX file")
    if len(graph.node) > MAX_NODES:
        raise UserError("input", path, f"refused, it has {len(graph.node):,} operations")
    if len(model.functions):
        raise UserError(
            "input", path, "refused, it defines functions, which exported models do not"
        )
    for node in graph.node:
        if node.domain not in _DOMAINS:
            raise UserError(
                "input",
                path,
                f"refused, operation {node.op_type[:80]!r} is of {node.domain[:80]!r}, not "
                "of the ONNX standard",
            )
        if any(a.HasField("g") or len(a.graphs) for a in node.attribute):
            raise UserError(
                "input",
                path,
                f"refused, operation {node.op_type[:80]!r} is a branch or a loop, which "
                "exported models do not have",
            )
    for tensor in _tensors(graph):
        _check_tensor(tensor, path)
    _check_constant_sizes(onnx, model, path)


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    sparse = list(graph.sparse_initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                sparse.append(attribute.sparse_tensor)
            sparse.extend(attribute.sparse_tensors)
    for tensor in sparse:
        if _product(tensor.dims) > MAX_CONSTANT:
            yield tensor  # refused for its size
        yield from (tensor.values, tensor.indices)


def _product(dims: Iterable[int]) -> float:
    sizes = list(dims)
    return math.inf if any(size < 0 for size in sizes) else math.prod(sizes)


def _check_tensor(tensor: Any, path: Path) -> None:
    name = getattr(tensor, "name", "")[:80]
    external = getattr(tensor, "data_location", 0) or len(getattr(tensor, "external_data", ()))
    if external:
        raise UserError(
            "input",
            path,
            f"refused, tensor {name!r} lies in another file; exported models hold theirs",
        )
    # Half a byte for a value is the least that a type takes.
    if _product(tensor.dims) > 2 * tensor.ByteSize():
        raise UserError(
            "input",
            path,
            f"refused, tensor {name!r} has {list(tensor.dims)[:8]} values, which are not "
            "in the file",
        )


def _values_product(onnx: Any, tensor: Any, path: Path) -> int:
    """The product of the whole numbers in a tensor; 1 of what is no list of sizes."""
    if tensor is None or tensor.data_type != onnx.TensorProto.INT64 or len(tensor.dims) > 1:
        return 1
    if tensor.ByteSize() > _SHAPE_BYTES:
        return MAX_CONSTANT + 1  # no tensor has so many axes
    try:
        sizes = onnx.numpy_helper.to_array(tensor).ravel().tolist()
    except Exception as error:  # its values and its shape do not fit
        raise UserError(
            "corrupt", path, "ONNX Runtime cannot load it, a tensor is damaged"
        ) from error
    return math.prod(max(1, size) for size in sizes)


def _check_constant_sizes(onnx: Any, model: Any, path: Path) -> None:
    """Raise if constants alone make a tensor that is far larger than an image's features."""
    graph = model.graph
    given = {tensor.name: tensor for tensor in graph.initializer}
    made: set[str] = set()  # from constants alone, which the runtime computes when it loads
    for node in graph.node:
        inputs = [name for name in node.input if name]
        value = next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)
        if node.op_type == "Constant" and value is not None:
            given.update((name, value) for name in node.output)
        elif all(name in given or name in made for name in inputs):
            made.update(node.output)
        sizes = [node.input[i] for i in _SIZE_INPUTS.get(node.op_type, ()) if i < len(node.input)]
        if any(name in made for name in sizes):
            raise UserError(
                "size-mismatch",
                path,
                f"refused, operation {node.op_type} has a size that is computed from "
                "constants; in exported models it is a constant or follows from the image",
            )
        for name in sizes if node.op_type in _PRODUCTS else ():
            product = _values_product(onnx, given.get(name), path)
            if product > MAX_CONSTANT:
                raise UserError(
                    "input", path, f"refused, operation {node.op_type} makes {product:,} values"
                )
    # The sizes of tensors are enough to follow the graph, but for those that are sizes themselves.
    for tensor in _tensors(graph):
        if tensor.ByteSize() > _SHAPE_BYTES and tensor.HasField("raw_data"):
            tensor.raw_data = b""
    try:
        # Without data_prop, which computes the values of constants of any size.
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError("input", path, f"ONNX Runtime cannot load it ({reason})") from error
    for value in [*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input]:
        dims = value.type.tensor_type.shape.dim
        product = math.prod(d.dim_value for d in dims if d.HasField("dim_value"))
        if product > MAX_CONSTANT:
            raise UserError(
                "input",
                path,
                f"refused, its tensor {value.name[:80]!r} would have {product:,} values",
            )
