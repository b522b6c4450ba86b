# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Files of ONNX Runtime and OpenVINO, opened to compute."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from ..io.cancel import Cancelled, end_when_cancelled, raise_if_cancelled
from ..io.memory import ran_out_of_memory
from ..io.packages import needs_extra
from ..io.text import error_words

__all__ = ["RECORD_KEY", "Run", "Session", "guarded", "open_onnx", "open_openvino", "seconds_of"]

Run = Callable[[Tensor], Tensor]
#: The name of the record of an exported model among a file's metadata.
RECORD_KEY = "mmseg_resnest"
# Of each engine: one call to warm up, then this many, as long as the time is not over.
_TURNS, _SECONDS = 3, 5.0
#: The runtimes' names of types.
_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "f32": "float32", "u8": "uint8"}


class Session(NamedTuple):
    """An open file: ``run``, which threads may call, its record, and the types of its inputs."""

    run: Run
    record: str | None
    inputs: list[str]


def open_onnx(file: Path, device: torch.device) -> Session:
    """Open an ONNX file in ONNX Runtime, with as many threads as torch.

    Raises:
        UserError: The runtime is not installed, does not have the device, or refuses the file.
    """
    with needs_extra("deploy"):
        import onnxruntime
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            said = "ONNX Runtime has no CUDA here; install onnxruntime-gpu"
            raise UserError("device", str(device), said)
        # TensorFloat-32 has 10 bits, too few for float32's labels.
        about = {"device_id": device.index or 0, "use_tf32": "0"}
        providers.insert(0, ("CUDAExecutionProvider", about))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what ends the process: errors are raised
    try:
        session = onnxruntime.InferenceSession(os.fspath(file), options, providers=providers)
    except Exception as error:  # its own kinds, which have no public names
        raise UserError("format", file, f"ONNX Runtime cannot load it ({error})") from error
    if device.type == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        said = "ONNX Runtime cannot load its CUDA libraries; use device cpu"
        raise UserError("device", str(device), said)  # it would compute on the CPU
    declared = session.get_inputs()
    if not declared:
        raise UserError("format", file, "takes no image, so it is not an exported model")

    def run(inputs: Tensor) -> Tensor:
        this_run = onnxruntime.RunOptions()
        with end_when_cancelled(lambda: setattr(this_run, "terminate", True)):
            output = session.run(None, {declared[0].name: inputs.cpu().numpy()}, this_run)[0]
        return torch.from_numpy(output).to(device)

    record = session.get_modelmeta().custom_metadata_map.get(RECORD_KEY)
    return Session(run, record, [_TYPES.get(entry.type, str(entry.type)) for entry in declared])


def open_openvino(file: Path, device: torch.device, precision: str = "f32") -> Session:
    """Open a file of OpenVINO, with as many threads as torch.

    Args:
        file: ``.xml``, with its ``.bin`` beside it.
        device: The CPU.
        precision: ``f32`` or ``bf16``: in which it computes what is float32 in the file. It has to
            be said: otherwise it takes bfloat16 where the processor has that.

    Raises:
        UserError: OpenVINO is not installed, does not have the device, or refuses the file.
    """
    with needs_extra("openvino"):
        import openvino
    if device.type != "cpu":
        raise UserError("device", str(device), "OpenVINO files run on the CPU; use device cpu")
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
    }
    try:
        network = openvino.Core().read_model(file)
        compiled = openvino.compile_model(network, "CPU", options)
    except RuntimeError as error:
        raise UserError("format", file, f"OpenVINO cannot load it ({error})") from error
    per_thread = threading.local()  # a request belongs to one thread at a time

    def run(inputs: Tensor) -> Tensor:
        if not hasattr(per_thread, "request"):
            per_thread.request = compiled.create_infer_request()
        # A copy: the request's next call overwrites its output.
        return torch.from_numpy(per_thread.request.infer([inputs.numpy()])[0].copy())

    record = network.get_rt_info(RECORD_KEY).astype(str) if RECORD_KEY in network.rt_info else None
    names = [entry.get_element_type().get_type_name() for entry in compiled.inputs]
    return Session(run, record, [_TYPES.get(name, name) for name in names])


def guarded(run: Run, subject: str, channels: int) -> Run:
    """``run`` with its errors as UserErrors, and its output checked."""

    def call(images: Tensor) -> Tensor:
        try:
            scores = run(images)
        except (UserError, Cancelled):
            raise
        except Exception as error:
            raise_if_cancelled()  # the runtime was asked to end
            if ran_out_of_memory(error) or subject in ("engine torch", "engine compile"):
                raise
            size = f"{images.shape[3]}x{images.shape[2]}"
            said = f"cannot compute images of {size} ({error_words(error)}); use engine torch"
            raise UserError("model", subject, said) from error
        # OpenVINO gives maps of no pixels for images of one row.
        if tuple(scores.shape[:2]) != (len(images), channels) or not scores.numel():
            said = f"gave {tuple(scores.shape)} for {len(images)} images; use engine torch"
            raise UserError("model", subject, said)
        return scores

    return call


def seconds_of(run: Run, images: Tensor) -> float:
    """The least time of a few calls, after one; bounded by some seconds and a call."""
    run(images)
    times: list[float] = []
    while len(times) < _TURNS and sum(times) < _SECONDS:
        begin = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - begin)
    return min(times)
