# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Image files: names that do not collide, reading as training reads, atomic writes."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError
from .atomic import atomic_open
from .memory import ran_out_of_memory

#: Of image files, in lower case; where several files share a stem, the first of these counts.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"),
    *(".jp2", ".pgm", ".ppm"),
)

#: The longest edge of a JPEG file that libjpeg writes, in pixels.
JPEG_EDGE = 65500


def read_rgb(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read an image with the decoder that training uses.

    Args:
        path: An image file; grey, 16-bit and transparent ones become 8-bit RGB.

    Returns:
        (H, W, 3) RGB, uint8, turned as its EXIF orientation says.

    Raises:
        UserError: The file is missing, cannot be read or is not an image.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        code = "not-found" if isinstance(error, FileNotFoundError) else "unreadable"
        raise UserError(code, path, f"the image cannot be read ({error.strerror})") from error
    return decode_rgb(data, os.fspath(path))


def decode_rgb(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode an image file that was read into memory; see :func:`read_rgb`."""
    if not data:
        raise UserError("empty", name, "the file is empty; copy it again")
    try:
        with _quiet_opencv():
            image = mmcv.imfrombytes(data, flag="color", channel_order="rgb", backend="cv2")
    except (cv2.error, MemoryError) as error:
        if ran_out_of_memory(error):
            raise UserError("memory", name, "memory ran out while it was decoded") from error
        image = None
    if image is None:
        message = "corrupt, or not an image that OpenCV reads (JPEG, PNG, WebP, TIFF, BMP, ...)"
        raise UserError("image", name, message)
    return image


class _Quiet:
    """OpenCV's log level is one for all threads: the first silences it, the last restores it."""

    lock = threading.Lock()
    users = 0
    level = 0


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Without OpenCV's own messages about a corrupt file."""
    log = cv2.utils.logging
    with _Quiet.lock:
        if _Quiet.users == 0:
            _Quiet.level = log.setLogLevel(log.LOG_LEVEL_SILENT)
        _Quiet.users += 1
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.users -= 1
            if _Quiet.users == 0:
                log.setLogLevel(_Quiet.level)


def unique_stems(
    paths: Sequence[str | os.PathLike[str]], endings: Sequence[str] = ()
) -> dict[str, str]:
    """A name for the outputs of each image, nested as the images are below their common folder.

    The name is the image's without its suffix. Images that differ in the suffix only, such as
    ``a.jpg`` and ``a.png``, keep it, and so does an image whose name looks like a further output
    of another one: its name and one of ``endings``, such as ``_overlay``.

    Returns ``{path as given: relative name}``, every name different.
    """
    # A list of names may have one twice.
    texts = list(dict.fromkeys(os.fspath(path) for path in paths))
    folders = [os.path.dirname(os.path.abspath(text)) for text in texts]
    root = os.path.commonpath(folders) if folders else ""
    relative = {text: os.path.relpath(os.path.abspath(text), root) for text in texts}
    bare = {text: os.path.splitext(name)[0] for text, name in relative.items()}
    # Compared without case, for file systems that do not tell cases apart.
    seen = Counter(name.lower() for name in bare.values())

    def clashes(name: str) -> bool:
        return seen[name] > 1 or any(
            name.endswith(end.lower()) and name[: -len(end)] in seen for end in endings
        )

    return {t: relative[t] if clashes(bare[t].lower()) else bare[t] for t in texts}


def save_image(
    image: Image.Image | NDArray[np.uint8],
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a picture, a PIL image or (H, W, 3) RGB of uint8, atomically; its folder is made.

    The suffix says the format; ``metadata`` are more options of Pillow. Returns the path.

    Raises:
        UserError: It cannot be written; nothing is left behind.
    """
    target = Path(path)
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    options: dict[str, Any] = dict(metadata or {})
    if target.suffix.lower() in (".jpg", ".jpeg"):
        options["quality"] = 92
    with atomic_open(target) as file:
        picture.save(file, format=Image.registered_extensions()[target.suffix.lower()], **options)
    return target
