# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""An ONNX file of unknown origin is checked before ONNX Runtime opens it.

While it loads a file, the runtime computes constants, reads tensors from other files, and
runs loops for as long as the file says. :mod:`mmseg_resnest.export` writes none of that: its graphs
have standard operations, no branches and loops, and all of their tensors are in the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from ..errors import UserError
from ..io.packages import needs_extra

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


class _Refused(Exception):
    """The graph has something that exported models do not have."""


def check_onnx(path: Path) -> None:
    """Check that an ONNX file is a plain graph which holds its own tensors.

    Raises:
        UserError: It is damaged, or has operations of other packages, branches, loops or functions,
            tensors in other files, or tensors that are larger than what the file holds of them.
    """
    with needs_extra("deploy"):
        import onnx
    if path.stat().st_size >= MAX_FILE_BYTES:
        raise UserError("too-large", path, "has 2 GiB or more, which ONNX Runtime cannot load")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's own kind
        raise UserError("format", path, "not an ONNX file") from error
    if not len(model.graph.node):
        raise UserError("format", path, "not an ONNX file, or one without operations")
    try:
        _check_nodes(model)
        for tensor in _tensors(model.graph):
            _check_tensor(tensor)
        _check_constant_sizes(onnx, model.graph)
        _check_inferred_sizes(onnx, model)
    except _Refused as error:
        raise UserError("format", path, f"refused: {error}") from error
    except Exception as error:  # tensors whose values and shapes do not fit, types that do not
        reason = str(error).partition("\n")[0][:200]
        raise UserError("corrupt", path, f"ONNX cannot read it ({reason})") from error


def _check_nodes(model: Any) -> None:
    nodes = model.graph.node
    if len(nodes) > MAX_NODES:
        raise _Refused(f"it has {len(nodes):,} operations")
    if len(model.functions):
        raise _Refused("it defines functions")
    for node in nodes:
        name = repr(node.op_type[:80])
        if node.domain not in _DOMAINS:
            raise _Refused(f"operation {name} of {node.domain[:80]!r} is not in the standard")
        if any(a.HasField("g") or len(a.graphs) for a in node.attribute):
            raise _Refused(f"operation {name} is a branch or a loop")


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
            _refuse_size("a sparse tensor", tensor.dims)
        yield from (tensor.values, tensor.indices)


def _product(dims: Iterable[int]) -> float:
    sizes = list(dims)
    return math.inf if any(size < 0 for size in sizes) else math.prod(sizes)


def _refuse_size(what: str, dims: Iterable[int]) -> NoReturn:
    raise _Refused(f"{what} would have {list(dims)[:8]} values")


def _check_tensor(tensor: Any) -> None:
    name = getattr(tensor, "name", "")[:80]
    if getattr(tensor, "data_location", 0) or len(getattr(tensor, "external_data", ())):
        raise _Refused(f"tensor {name!r} lies in another file")
    # The smallest type takes half a byte for a value.
    if _product(tensor.dims) > 2 * tensor.ByteSize():
        raise _Refused(f"tensor {name!r} has {list(tensor.dims)[:8]} values, not all in the file")


def _check_constant_sizes(onnx: Any, graph: Any) -> None:
    """Raise if constants alone make a tensor that is far larger than an image's features."""
    given = {tensor.name: tensor for tensor in graph.initializer}
    computed: set[str] = set()  # from constants alone, when the runtime loads the file
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)
        if node.op_type == "Constant" and value is not None:
            given.update((name, value) for name in node.output)
        elif all(name in given or name in computed for name in node.input if name):
            computed.update(node.output)
        sizes = [node.input[i] for i in _SIZE_INPUTS.get(node.op_type, ()) if i < len(node.input)]
        if any(name in computed for name in sizes):
            raise _Refused(f"operation {node.op_type} has a size that is computed from constants")
        for name in sizes if node.op_type in _PRODUCTS else ():
            dims = _sizes_in(onnx, given.get(name))
            if math.prod(dims) > MAX_CONSTANT:
                _refuse_size(f"operation {node.op_type}", dims)


def _sizes_in(onnx: Any, tensor: Any) -> list[int]:
    """The sizes that a constant says; none if it is not a list of sizes."""
    if tensor is None or tensor.data_type != onnx.TensorProto.INT64 or len(tensor.dims) > 1:
        return []
    if tensor.ByteSize() > _SHAPE_BYTES:
        return [MAX_CONSTANT + 1]  # no tensor has so many axes
    return [max(1, size) for size in onnx.numpy_helper.to_array(tensor).ravel().tolist()]


def _check_inferred_sizes(onnx: Any, model: Any) -> None:
    # Sizes are enough to follow the graph, so the values of large tensors are dropped.
    for tensor in _tensors(model.graph):
        if tensor.ByteSize() > _SHAPE_BYTES and tensor.HasField("raw_data"):
            tensor.raw_data = b""
    # Without data_prop, which computes the values of constants of any size.
    graph = onnx.shape_inference.infer_shapes(model).graph
    for value in [*graph.value_info, *graph.output, *graph.input]:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim if d.HasField("dim_value")]
        if math.prod(dims) > MAX_CONSTANT:
            _refuse_size(f"tensor {value.name[:80]!r}", dims)
