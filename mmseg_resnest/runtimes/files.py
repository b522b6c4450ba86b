# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Networks as files of ONNX and OpenVINO, and an ONNX file in 8 bits."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .._stack import print_no_graphs
from ..engine.logs import only_errors
from ..errors import UserError
from ..io.memory import ran_out_of_memory
from ..io.packages import needs_extra
from ..io.processes import has_int8
from ..io.text import error_words

__all__ = ["DEFAULT_OPSET", "exporting", "quantise_onnx", "write_onnx", "write_openvino"]

OPSETS = (11, 20)  # what the exporter writes
DEFAULT_OPSET = 17
#: Axes of a tensor with the names of those that are free; None: as many as the network has outputs.
Axes = Mapping[int, str | None]
# The pixels' weighted sums, which take the time. What joins them (attention, sums, resizing) stays
# in float32: it is cheap and loses most.
_OPERATIONS = ["Conv"]
_GRAPH = 8 << 20  # bytes: OpenVINO's text of a graph is longer than that of ONNX


@contextlib.contextmanager
def exporting(subject: str) -> Iterator[None]:
    """What exporters raise, which have errors of many kinds, as a UserError about ``subject``."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        said = f"the network cannot be exported ({error_words(error)}); use engine torch"
        raise UserError("export", subject, said) from error


def write_onnx(
    network: nn.Module,
    sample: Tensor,
    path: str | os.PathLike[str],
    given: Axes,
    got: tuple[str, Axes],
    about: Mapping[str, str],
    channels: int,
    opset: int = DEFAULT_OPSET,
) -> None:
    """Write a network as ONNX; its input is called ``images``.

    By tracing. PyTorch's other exporter (``dynamo=True``) gives the same outputs with sizes just as
    free, and took 81 s instead of 5 s for PSPNet on ResNeSt-50.

    Args:
        network: In evaluation mode; takes one tensor and gives one.
        sample: An input to follow.
        path: The file; not atomic.
        given: The input's free axes.
        got: Name of the output, and its axes.
        about: The file's metadata.
        channels: Outputs of the network.
        opset: 11 to 20.

    Raises:
        UserError: A package is missing, or the opset does not fit.
    """
    with needs_extra("deploy"):
        import onnx
    low, high = OPSETS
    if not low <= opset <= high:
        raise UserError("argument", "option --opset", f"{opset} must be from {low} to {high}")
    name, axes = got
    free = {"images": _named(given), name: _named(axes)}
    quiet = only_errors(logging.getLogger("torch.onnx"))
    hook = network.register_forward_pre_hook(lambda *_: print_no_graphs())
    try:
        with torch.no_grad(), warnings.catch_warnings(), quiet:
            warnings.simplefilter("ignore")  # that tracing will go, and what it could not know
            torch.onnx.export(
                network, (sample,), os.fspath(path), dynamo=False, opset_version=opset,
                input_names=["images"], output_names=[name], autograd_inlining=False,
                dynamic_axes=free,
            )  # fmt: skip
    finally:
        hook.remove()
    graph = onnx.load(path)
    _name_sizes(graph.graph.input[0], given)
    _name_sizes(graph.graph.output[0], axes, channels)
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, dict(about))
    graph.doc_string = ""
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def _named(axes: Axes) -> dict[int, str]:
    return {axis: name for axis, name in axes.items() if name}


def _name_sizes(value: Any, axes: Axes, channels: int | None = None) -> None:
    """Give the free sizes of a graph's input or output names that say what they are."""
    for axis, name in axes.items():
        size = value.type.tensor_type.shape.dim[axis]
        size.Clear()
        if name is None:
            size.dim_value = channels
        else:
            size.dim_param = name


def write_openvino(source: Path, path: Path, about: Mapping[str, str]) -> None:
    """Write an ONNX file as one of OpenVINO (``.xml``, and ``.bin`` beside it), in its precision.

    Raises:
        UserError: OpenVINO is not installed.
        OSError: The files cannot be written.
    """
    with needs_extra("openvino"):
        import openvino
    network = openvino.convert_model(source)
    for key, value in about.items():
        network.set_rt_info(value, key)
    try:
        openvino.save_model(network, path, compress_to_fp16=False)
    except RuntimeError:  # which does not say why
        _try_to_write(path.with_suffix(".tried"), source.stat().st_size + _GRAPH)
        raise


def _try_to_write(path: Path, size: int) -> None:
    """Write a file of so many bytes, and remove it; the OSError says why that cannot be."""
    block = bytes(1 << 20)
    try:
        with path.open("wb", buffering=0) as file:
            while (left := size - file.tell()) > 0:
                file.write(block[:left])
    finally:
        path.unlink(missing_ok=True)


class _Inputs:
    """The network's inputs, as ONNX Runtime's calibration asks for them."""

    def __init__(self, name: str, inputs: Iterator[NDArray]) -> None:
        self._name, self._inputs = name, inputs

    def get_next(self) -> dict[str, NDArray] | None:
        """The next input by name; None after the last."""
        value = next(self._inputs, None)
        return None if value is None else {self._name: value}


def quantise_onnx(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    inputs: Iterator[NDArray],
    skip_last: bool = True,
) -> None:
    """Quantise an ONNX file to 8 bits: static, with the ranges that ``inputs`` show.

    Convolutions get signed weights, with a scale for each output channel, and unsigned inputs;
    written as QuantizeLinear and DequantizeLinear (QDQ). Not atomic. Without units for products of
    8-bit numbers a processor adds two products in 16 bits, which overflow: there the weights get 7
    bits (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).

    Args:
        source: In float32.
        target: To write.
        inputs: Of the network, as it is fed.
        skip_last: Leave the last convolution, the classifier, in float32.

    Raises:
        UserError: A package is missing.
    """
    with needs_extra("deploy"):
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    # It advises pre-processing, which is done here.
    quiet = only_errors(logging.getLogger())
    with tempfile.TemporaryDirectory(dir=Path(target).parent) as folder, quiet:
        prepared = os.path.join(folder, "prepared.onnx")
        # Its symbolic shape inference fails on free sizes and is not needed for convolutions.
        quant_pre_process(os.fspath(source), prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared)
        last = [n.name for n in graph.graph.node if n.op_type == "Conv"][-1:]
        quantization.quantize_static(
            prepared,
            os.fspath(target),
            cast(Any, _Inputs(graph.graph.input[0].name, inputs)),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_OPERATIONS,
            nodes_to_exclude=last if skip_last else [],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=has_int8() is False,
            extra_options={"ActivationSymmetric": False},
        )
        written = onnx.load(target)
        about = {p.key: p.value for p in onnx.load(source).metadata_props}
        del written.metadata_props[:]
        onnx.helper.set_model_props(written, about)
        onnx.save(written, target)
