# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Decodes images in a process of its own; started by decoding.py, as a script.

Imports OpenCV and NumPy only, until another decoder is asked for. Reads from standard input:
seconds of processor time (float64), the lengths of file (uint64), flag and backend (uint32), then
flag and backend of :class:`Decoding` (OpenCV's flag is a number) and the file. Writes to standard
output: type (8 bytes), number of axes (uint32), length of each (uint32), the values; no type and no
axes if it cannot be decoded.

For the backend ``pickle`` the flag is a function of a file's bytes, made by the process that
started this one and alone writes to it. After what it gives, or in its place, comes a text behind
its length (uint32): JSON of what else it says of an image, or what is wrong.

Ends when the input ends.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib.util
import json
import math
import os
import pickle
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file: its names are not those of other packages

import cv2
import numpy as np

try:
    import resource
except ImportError:  # Windows
    resource: Any = None  # type: ignore[no-redef]

_MEMORY = 4 << 30  # address space; the largest images that the services take need a quarter
_STACK = 8 << 30  # what the libraries of other decoders reserve, and do not use


def _limit_memory(size: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # a lower limit holds already
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


def _limit_time(seconds: float) -> None:
    """The kernel ends this process when it has computed for so long in all."""
    if resource is not None:
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        most = resource.RLIM_INFINITY if math.isinf(seconds) else math.ceil(seconds)
        with contextlib.suppress(ValueError, OSError):  # a lower limit holds already
            resource.setrlimit(resource.RLIMIT_CPU, (most, hard))


@functools.cache
def _module(name: str) -> Any:
    """A module beside this one, by its path: importing its package takes seconds."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"mmseg_resnest_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


@functools.lru_cache(8)
def _function(flag: str) -> Callable[[bytes], Any]:
    """The function that the process which started this one has sent."""
    paths, function = pickle.loads(base64.b64decode(flag))
    sys.path[:] = paths
    made = pickle.loads(function)
    made.prepare()
    return made


def _decoder(flag: str, backend: str) -> Callable[[bytes], Any]:
    """What decodes files so. Its imports are not within the limit on time of an image."""
    if backend == "cv2":
        code = int(flag)
        readable = _module("tiled_tiff").readable if code in (0, 1) else bytes
        return lambda data: cv2.imdecode(np.frombuffer(readable(data), np.uint8), code)
    if backend == "bands":
        bands = _module("bands")
        options = bands.BandOptions.of_text(flag)
        return lambda data: bands.decode_bands(data, options)
    if backend == "pickle":
        if resource is not None and sys.platform == "linux":
            _limit_memory(_MEMORY + _STACK)
        return _function(flag)
    if "mmcv.image" not in sys.modules and resource is not None and sys.platform == "linux":
        _limit_memory(_MEMORY + _STACK)
    import mmcv.image

    return lambda data: mmcv.image.imfrombytes(data, flag=flag, backend=backend)


def main() -> None:
    """Decode until the input ends."""
    for name in ("SIGINT", "SIGTERM"):  # whoever stops the service lets it finish its requests
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    source, target = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is not an answer
    cv2.setNumThreads(1)
    if resource is not None and sys.platform == "linux":
        _limit_memory(_MEMORY)
    while len(head := source.read(24)) == 24:
        seconds, length, *sizes = struct.unpack("<dQII", head)
        flag, backend = (source.read(size).decode() for size in sizes)
        data = source.read(length)
        if len(data) < length:
            return
        _limit_time(math.inf)
        image, facts, said = None, None, ""
        try:
            decode = _decoder(flag, backend)
            _limit_time(time.process_time() + seconds)
            image = decode(data)
            if backend == "pickle":
                image, facts = image
                said = json.dumps(facts)
        except Exception as error:  # each decoder has its own kinds
            image, said = None, getattr(error, "message", f"{type(error).__name__}: {error}")
        if image is None:
            target.write(struct.pack("<8sI", b"", 0))
        else:
            image = np.ascontiguousarray(image)
            kind = image.dtype.str.encode()
            target.write(struct.pack(f"<8sI{image.ndim}I", kind, image.ndim, *image.shape))
            target.write(image.data)
        if backend == "pickle":
            text = said.encode("utf-8", "replace")
            target.write(struct.pack("<I", len(text)) + text)
        target.flush()
        del data, image


if __name__ == "__main__":
    main()
