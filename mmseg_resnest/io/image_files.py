# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Image files: names that do not collide, pictures of what was read, atomic writes."""

from __future__ import annotations

import base64
import io
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import mmcv
import numpy as np
from mmcv.image.io import imread_flags
from numpy.typing import NDArray
from PIL import Image

from .atomic import atomic_open
from .bands import BandOptions, decode_bands
from .tiled_tiff import readable

#: Of image files, in lower case; where several files share a stem, the first of these counts.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"),
    *(".jp2", ".pgm", ".ppm", ".jfif"),
)

#: The longest edge of a JPEG file that libjpeg writes, in pixels.
JPEG_EDGE = 65500


class Decoding(NamedTuple):
    """How a file's bytes become pixels: ``flag`` and ``backend`` of ``mmcv.imfrombytes``.

    Backend ``bands`` stands for :func:`.decode_bands`, and the flag for its options.
    """

    flag: str | int = "color"
    backend: str = "cv2"

    def __call__(self, data: bytes) -> Any:
        """The pixels; None, or whatever the backend raises, where it cannot decode them."""
        if self.backend == "bands":
            return decode_bands(data, BandOptions.of_text(str(self.flag)))
        if self.backend == "cv2" and self.eight_bit and self.turns:
            data = readable(data)
        with _quiet_opencv():
            return mmcv.imfrombytes(data, flag=self.flag, backend=self.backend)

    @property
    def eight_bit(self) -> bool:
        """Whether it gives uint8, with one or three channels, whatever is in the file."""
        deep = self.flag & 2 or self.flag < 0 if isinstance(self.flag, int) else False
        return self.backend not in ("tifffile", "bands") and self.flag != "unchanged" and not deep

    @property
    def first_page(self) -> bool:
        """Whether it reads the first page of a TIFF alone."""
        return self.backend not in ("tifffile", "bands")

    @property
    def turns(self) -> bool:
        """Whether images are turned as their EXIF orientation says."""
        if isinstance(self.flag, int):
            return self.backend == "cv2" and self.flag >= 0 and not self.flag & 128
        return self.backend in ("cv2", "pillow") and self.flag in ("color", "grayscale")

    @property
    def colours(self) -> bool:
        """Whether 8-bit images have three channels rather than one."""
        return bool(self.flag & 1) if isinstance(self.flag, int) else self.flag[:5] == "color"

    @property
    def reader(self) -> str:
        """What decodes, for errors."""
        return {"cv2": "OpenCV", "pillow": "Pillow", "bands": "LoadBands"}.get(
            self.backend, self.backend
        )

    def as_bytes(self) -> tuple[bytes, bytes]:
        """Flag and backend; the flag of OpenCV is a number."""
        named = self.backend == "cv2" and isinstance(self.flag, str)
        flag = imread_flags[self.flag] if named else self.flag
        return str(flag).encode(), self.backend.encode()


def as_picture(pixels: NDArray[Any], rgb: bool | tuple[int, ...] = False) -> NDArray[np.uint8]:
    """Pixels of any kind as a picture to look at.

    Args:
        pixels: (H, W), (H, W, C), or volumes (N, D, H, W), of which the middle of the first is
            shown. Values outside of 0..255, and those that all lie in [0, 1],
            are stretched over the range of grey levels.
        rgb: The first three channels are red, green and blue; otherwise blue, green and red. Or
            the channels, from 0, that are shown as red, green and blue.

    Returns:
        (H, W, 3) RGB, uint8; of one or two channels the first one, in grey.
    """
    if pixels.ndim == 4:
        pixels = pixels[0, pixels.shape[1] // 2]
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if isinstance(rgb, tuple):
        pixels = pixels[:, :, list(rgb)]
    elif pixels.shape[2] >= 3:
        pixels = pixels[:, :, :3] if rgb else pixels[:, :, 2::-1]
    else:
        pixels = np.repeat(pixels[:, :, :1], 3, axis=2)
    if pixels.dtype == np.uint8:
        return pixels
    values = np.nan_to_num(pixels.astype(np.float32), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 255 or high <= 1:
        values = (values - low) * (255 / max(high - low, 1e-12))
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


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
    paths: Sequence[str | os.PathLike[str]],
    endings: Sequence[str] = (),
    root: str | os.PathLike[str] | None = None,
) -> dict[str, str]:
    """A name for the outputs of each image, nested as the images are below their common folder.

    ``root`` is a folder that all are in, and counts in its place: so names stay when more come.

    The name is the image's without its suffix. Images that differ in the suffix only, such as
    ``a.jpg`` and ``a.png``, keep it, and so does an image whose name looks like a further output
    of another one: its name and one of ``endings``, such as ``_overlay``.

    Returns ``{path as given: relative name}``, every name different.
    """
    ends = [ending.lower() for ending in endings]
    # A list of names may have one twice.
    texts = list(dict.fromkeys(os.fspath(path) for path in paths))
    folders = [os.path.dirname(os.path.abspath(text)) for text in texts]
    top = os.path.commonpath(folders) if folders else ""
    top = top if root is None else os.path.abspath(root)
    relative = {text: os.path.relpath(os.path.abspath(text), top) for text in texts}
    bare = {text: os.path.splitext(name)[0] for text, name in relative.items()}
    with_suffix: set[str] = set()
    while True:
        names = {t: relative[t] if t in with_suffix else bare[t] for t in texts}
        # Compared without case, for file systems that do not tell cases apart.
        seen = Counter(name.lower() for name in names.values())
        more = {t for t in texts if t not in with_suffix and _clashes(names[t].lower(), seen, ends)}
        if not more:
            return names
        with_suffix |= more  # as which they may have the name of another one: a.jpg and a.jpg.png


def _clashes(name: str, seen: Mapping[str, int], endings: Sequence[str]) -> bool:
    """Whether several have a name, or it is that of another one and an ending."""
    return seen[name] > 1 or any(
        name.endswith(end) and name.removesuffix(end) in seen for end in endings
    )


def data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    """A picture as an address that holds it; ``kind`` and options are those of Pillow."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


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
