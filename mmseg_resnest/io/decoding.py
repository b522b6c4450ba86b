# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Images of strangers are decoded in processes of their own, which can be ended.

A thread inside a decoder cannot be stopped, and a file of some kilobytes can keep a decoder busy
for minutes. A process has a limit on its processor time and on its memory, kept by the kernel, and
is killed when nobody waits for its image any more; the next image starts another one.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import queue
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .image_files import Decoding
from .image_header import ImageHeader, check_structure, count_pages, read_header
from .text import printable

Image = NDArray[Any]

_WORKER = Path(__file__).with_name("decode_worker.py")
# Seconds of processor time: JPEG 2000, the slowest, takes 0.1 s a million pixels.
_SECONDS = 1.0
_SECONDS_A_PIXEL = 4e-7
#: Images of more pixels have processes of their own, so that small ones do not wait for them.
_LARGE = 1 << 21
#: Bytes of a pixel: 16 channels of 16 bits.
_MOST_BYTES = 32
_WAIT = 60.0  # seconds of the clock on top, for systems without limits on processor time


#: Of a text that a process answers with.
_MOST_TEXT = 1 << 20

_DEFAULT = Decoding()


class Decoder(Protocol):
    """What makes an image of a file's bytes: :class:`Decoding`, or something that can be pickled.

    The latter has ``prepare()`` and returns pixels and what else it says of them.
    """

    @property
    def reader(self) -> str:
        """What decodes, for errors."""

    def as_bytes(self) -> tuple[bytes, bytes]:
        """Itself, and of which kind it is, for ``decode_worker.py``."""


class ImageTooLarge(UserError):
    """The image has more pixels than are taken."""


class _Ended(Exception):
    """The process ended before it answered."""


class _Decoder:
    """One process. One thread at a time decodes; any thread may kill."""

    def __init__(self, max_pixels: int) -> None:
        self._environment = {
            **os.environ,
            "OPENCV_IO_MAX_IMAGE_PIXELS": str(max_pixels),  # whatever the header told us
            "OPENCV_LOG_LEVEL": "SILENT",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self._max_pixels = max_pixels
        self._folder = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._lock = threading.Lock()  # the process is not killed while it is being replaced

    def decode(
        self, process: subprocess.Popen[bytes], data: bytes, seconds: float, how: Decoder
    ) -> Any:
        """(H, W) or (H, W, C), or None if it cannot be decoded; _Ended if it was killed.

        Of another decoder than :class:`Decoding` this with what else it says, by name; and a
        UserError without a subject where it cannot decode.
        """
        timer = threading.Timer(seconds + _WAIT, self.kill)
        timer.daemon = True
        timer.start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            names = how.as_bytes()
            head = struct.pack("<dQII", seconds, len(data), *map(len, names))
            process.stdin.write(head + b"".join(names))
            process.stdin.write(data)
            process.stdin.flush()
            head = process.stdout.read(12)
            if len(head) < 12:
                raise _Ended
            kind, axes = struct.unpack("<8sI", head)
            if not axes:
                return None if isinstance(how, Decoding) else self._said(process)
            shape = struct.unpack(f"<{axes}I", process.stdout.read(4 * axes))
            dtype = np.dtype(kind.rstrip(b"\0").decode())
            size = math.prod(shape) * dtype.itemsize
            if (
                not 0 < size <= self._max_pixels * _MOST_BYTES
                or axes > 4
                or dtype.kind not in "buif"
            ):
                raise _Ended
            if math.prod(shape[:2]) > self._max_pixels:
                raise _Ended
            image = np.empty(shape, dtype)
            if process.stdout.readinto(image.data.cast("B")) < image.nbytes:  # type: ignore[attr-defined]
                raise _Ended
            return image if isinstance(how, Decoding) else (image, self._facts(process))
        except OSError as error:
            raise _Ended from error
        finally:
            timer.cancel()

    @staticmethod
    def _text(process: subprocess.Popen[bytes]) -> str:
        assert process.stdout is not None
        size = process.stdout.read(4)
        length = struct.unpack("<I", size)[0] if len(size) == 4 else _MOST_TEXT + 1
        text = process.stdout.read(length) if length <= _MOST_TEXT else b""
        if len(text) < length:
            raise _Ended
        return text.decode("utf-8", "replace")

    def _said(self, process: subprocess.Popen[bytes]) -> UserError:
        return UserError("image", "", printable(self._text(process)))

    def _facts(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        try:
            facts = json.loads(self._text(process))
        except ValueError as error:
            raise _Ended from error
        return facts if isinstance(facts, dict) else {}

    def start(self) -> subprocess.Popen[bytes]:
        """The process; another one where it has ended."""
        with self._lock:
            if self._process is None or self._killed or self._process.poll() is not None:
                self._close()
                self._killed = False
                # For loaders that read files by name; whatever a killed process leaves there goes.
                self._folder = tempfile.mkdtemp(prefix="decode_", dir=_temporary_folder())
                self._environment["TMPDIR"] = self._folder
                self._process = subprocess.Popen(
                    [sys.executable, os.fspath(_WORKER)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=self._environment,
                )
            return self._process

    def kill(self) -> None:
        """End the process, whatever it does."""
        with self._lock:
            if self._process is not None:
                self._killed = True
                self._process.kill()

    def close(self) -> None:
        """End the process and wait for it."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # what was not written yet
                    if stream is not None:
                        stream.close()
            process.wait()
            shutil.rmtree(self._folder, ignore_errors=True)


def _temporary_folder() -> str | None:
    """In memory where the system has that: nothing that is sent is written to a disk."""
    place = "/dev/shm"
    return place if os.path.isdir(place) and os.access(place, os.W_OK) else None


class _Lane:
    """Threads, each with a process."""

    def __init__(self, max_pixels: int, processes: int) -> None:
        self.threads = ThreadPoolExecutor(processes, "decode")
        self.idle: queue.LifoQueue[_Decoder] = queue.LifoQueue()
        self.decoders = [_Decoder(max_pixels) for _ in range(processes)]
        for decoder in self.decoders:
            self.idle.put(decoder)

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        for decoder in self.decoders:
            decoder.kill()
        self.threads.shutdown()
        for decoder in self.decoders:
            decoder.close()


class DecodePool:
    """Decodes images in processes that start when they are first needed.

    Args:
        max_pixels: Of an image.
        processes: For images up to two million pixels; as many again for larger ones.
    """

    def __init__(self, max_pixels: int, processes: int = 2) -> None:
        self._max_pixels = max_pixels
        self._lanes = (_Lane(max_pixels, processes), _Lane(max_pixels, processes))
        self._running: dict[Future[Any], _Decoder] = {}
        self._given_up: set[Future[Any]] = set()
        self._lock = threading.Lock()

    def start(self, how: Decoder = _DEFAULT) -> None:
        """Start the processes for small images, so that the first ones do not wait for that.

        Args:
            how: Is prepared, as well.

        Raises:
            RuntimeError: They cannot decode.
        """
        for decoder in self._lanes[0].decoders:
            try:
                if decoder.decode(decoder.start(), b"P5 1 1 255\n\0", _WAIT, _DEFAULT) is None:
                    raise RuntimeError("OpenCV decodes no image in a process of its own")
                if not isinstance(how, Decoding):
                    decoder.decode(decoder.start(), b"", _WAIT, how)
            except _Ended:
                raise RuntimeError(
                    "the processes that decode images end at once; try: "
                    f"{sys.executable} -c 'import cv2, numpy'"
                ) from None

    def check(self, data: bytes, name: str, how: Decoder = _DEFAULT) -> ImageHeader:
        """Read the header and refuse what will not be decoded; takes milliseconds at most.

        Args:
            data: The file.
            name: What to call it in errors.
            how: Of another decoder than :class:`Decoding` the format may be any: a byte then counts
                as a pixel.

        Raises:
            ImageTooLarge: It has too many pixels.
            UserError: It is not an image, or is built to keep a decoder busy.
        """
        header = read_header(data, name)
        if header is None and not isinstance(how, Decoding):
            return ImageHeader("", max(1, len(data)), 1)
        if header is None:
            message = "damaged, or not in a known format "
            message += "(JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, PGM, JPEG 2000)"
            raise UserError("image", f"image {name}", message)
        if header.width * header.height > self._max_pixels:
            message = f"{header.width} x {header.height} pixels are more than {self._max_pixels:,}"
            raise ImageTooLarge("too-large", f"image {name}", message)
        check_structure(data, header, name)
        if isinstance(how, Decoding) and how.first_page:
            pages = count_pages(io.BytesIO(data))
            if pages > 1:
                message = f"a TIFF of {pages} pages; send each page as a file of its own"
                raise UserError("image", f"image {name}", message)
        return header

    def submit(
        self, data: bytes, header: ImageHeader, name: str, how: Decoder = _DEFAULT
    ) -> Future[Any]:
        """Decode an image that was checked.

        Returns:
            What ``how(data)`` would return here; or UserError, if it is broken or takes longer than
            images of its size do.
        """
        pixels = header.width * header.height
        lane = self._lanes[pixels > _LARGE]
        seconds = _SECONDS + _SECONDS_A_PIXEL * pixels
        future: Future[Any] = Future()
        lane.threads.submit(self._decode, lane, future, data, seconds, name, how)
        return future

    def give_up(self, future: Future[Image]) -> None:
        """Nobody waits for this image: it is not decoded, or its process is ended."""
        if not future.cancel():
            with self._lock:
                decoder = self._running.get(future)
                if decoder is not None:
                    self._given_up.add(future)
                    decoder.kill()

    def close(self) -> None:
        """End all processes."""
        for lane in self._lanes:
            lane.close()

    def _decode(
        self,
        lane: _Lane,
        future: Future[Any],
        data: bytes,
        seconds: float,
        name: str,
        how: Decoder,
    ) -> None:
        with self._lock:
            if not future.set_running_or_notify_cancel():
                return
            decoder = lane.idle.get_nowait()  # there are as many as threads
            self._running[future] = decoder
        try:
            process = decoder.start()
            if future in self._given_up:  # before this process was there to be killed
                raise _Ended
            image = decoder.decode(process, data, seconds, how)
            fault: Exception | None = None
            if isinstance(image, UserError):
                fault, image = UserError(image.code, f"image {name}", image.message), None
            elif image is None:
                fault = UserError(
                    "image", f"image {name}", f"damaged, or {how.reader} cannot read it"
                )
        except _Ended:
            decoder.kill()  # its pipes close before the system calls it ended
            message = "took longer to decode, or more memory, than images of its size do"
            fault = UserError("too-large", f"image {name}", message)
        except Exception as error:  # a fault of this machine; the caller must hear of it
            fault = error
        finally:
            with self._lock:
                del self._running[future]
                self._given_up.discard(future)
            lane.idle.put(decoder)
        if fault is not None:
            future.set_exception(fault)
        elif image is not None:
            future.set_result(image)
