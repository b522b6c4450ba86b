# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Decodes images in a process of its own; started by decoding.py, as a script.

Imports OpenCV and NumPy only. Reads from standard input: seconds of processor time (float64),
length (uint64), the file. Writes to standard output: height, width (uint32), rows of RGB; 0, 0 if
OpenCV cannot decode it. Ends when the input ends.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import struct
import sys
import time
from typing import Any

sys.path.pop(0)  # the folder of this file: its names are not those of other packages

import cv2
import numpy as np

try:
    import resource
except ImportError:  # Windows
    resource: Any = None  # type: ignore[no-redef]

_MEMORY = 4 << 30  # address space; the largest images that the services take need a quarter


def main() -> None:
    """Decode until the input ends."""
    for name in ("SIGINT", "SIGTERM"):  # whoever stops the service lets it finish its requests
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    source, target = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is not an answer
    cv2.setNumThreads(1)
    if resource is not None and sys.platform == "linux":
        with contextlib.suppress(ValueError, OSError):  # a lower limit holds already
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.RLIM_INFINITY))
    while len(head := source.read(16)) == 16:
        seconds, length = struct.unpack("<dQ", head)
        data = source.read(length)
        if len(data) < length:
            return
        if resource is not None:
            # The kernel ends this process when it has computed for longer.
            most = math.ceil(time.process_time() + seconds)
            resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))
        image = None
        with contextlib.suppress(cv2.error, MemoryError):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            target.write(struct.pack("<II", 0, 0))
        else:
            cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)
            target.write(struct.pack("<II", *image.shape[:2]))
            target.write(image.data)
        target.flush()
        del data, image


if __name__ == "__main__":
    main()
