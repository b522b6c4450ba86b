# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""One sample: its image and its label map, read by the transforms that training reads them with.

Headers are read first, so that a file that claims an absurd size is never decoded. Everything else
is decoded in full: a reduced decoding would be faster, but would miss damage in what it skips.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import mmcv
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import UserError
from ...io.bit_planes import IGNORED
from ...io.image_header import count_pages, open_any_size
from ..transforms.multilabel import label_planes
from .plan import ReadPlan, load
from .rules import Problem

_MIN_SIDE = 16
# Pillow's own bound, above which it warns of a decompression bomb (it refuses twice as many).
MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3

_DAMAGE = re.compile(r"corrupt|premature|bogus|truncat|incomplete|\berror\b|invalid", re.I)
# Bytes between the last pixel and the end of a JPEG are of no image; some cameras write them.
_HARMLESS = re.compile(r"libpng warning|iCCP|sRGB|extraneous bytes before marker 0xd9", re.I)
_LOSSY = ("JPEG", "MPO", "JPEG2000")
_EXIF_ORIENTATION = 0x0112
_ROTATIONS = dict.fromkeys((5, 7), "transposed") | dict.fromkeys((6, 8), "rotated by 90 degrees")
_ROTATIONS |= {2: "mirrored", 3: "rotated by 180 degrees", 4: "mirrored upside down"}


@dataclass
class SampleFacts:
    """What the check found out about one sample.

    ``size`` is (width, height) of the image as training sees it, ``channels`` how many its loader
    gives, ``values`` (2, C) means and means of squares of some pixels, ``raw_counts`` (256,) the
    pixels of each value of the label file; the hashes are those of the decoded arrays.
    """

    split: str = ""
    problems: list[Problem] = field(default_factory=list)
    size: tuple[int, int] | None = None
    channels: int | None = None
    values: NDArray[np.float64] | None = None
    raw_counts: NDArray[np.int64] | None = None
    image_hash: bytes | None = None
    label_hash: bytes | None = None

    def found(self, rule: str, file: str, what: str, severity: str = "", remedy: str = "") -> None:
        """Add a problem."""
        self.problems.append(Problem(rule, file, what, self.split, severity, remedy))


def check_sample(sample: Mapping[str, Any], plan: ReadPlan, split: str = "") -> SampleFacts:
    """Read one sample, as ``load_data_list`` lists it, as training would; say what is wrong."""
    facts = SampleFacts(split)
    _check_name(sample["img_path"], facts)
    rotation = _read_image(sample, plan, facts)
    label_size = None
    if plan.label is not None and sample.get("seg_map_path") is not None:
        label_size = _read_label(sample, plan, facts)
    fits = label_size is None or label_size == facts.size
    if facts.size is not None and rotation is not None:
        what = f"its EXIF data say that it is shown {rotation}"
        what += "" if fits else "; the label map does not fit the rotated image"
        # Where it fits, the label map may have been drawn on the image as it is shown.
        facts.found("rotated_image", sample["img_path"], what, "" if fits else "error")
    elif facts.size is not None and label_size is not None and not fits:
        ours, image = ("{}x{}".format(*size) for size in (label_size, facts.size))
        what = f"has {ours} pixels, its image {sample['img_path']} {image} (width x height)"
        facts.found("size_mismatch", sample["seg_map_path"], what)
    return facts


def _check_name(path: str, facts: SampleFacts) -> None:
    name = os.path.basename(path)
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        facts.found("unreadable_name", path, "its name is not UTF-8")
        return
    for character in name:
        if not character.isprintable():
            facts.found("unreadable_name", path, f"its name holds the character {character!r}")
            return


def _contents(path: str, what: str, facts: SampleFacts) -> bytes | None:
    """The bytes of a file; None, and a problem, when there are none."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            facts.found("broken_file", path, "is a folder or a device, not a file")
            return None
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        link = " (it is a link to a file that does not exist)" if os.path.islink(path) else ""
        rule = "missing_image" if what == "image" else "missing_label"
        facts.found(rule, path, f"this {what} is missing{link}")
        return None
    except OSError as error:
        facts.found("broken_file", path, f"cannot be read ({error.strerror})")
        return None
    if not data:
        facts.found("empty_file", path, f"this {what} is an empty file")
    return data or None


# --- headers --------------------------------------------------------------------------------


@dataclass
class _Header:
    format: str
    size: tuple[int, int]
    mode: str
    bits: int
    transparent: bool
    rotation: str | None
    palette: list[int] | None


def _read_header(data: bytes) -> _Header | None:
    """What a file says of itself, or None where Pillow does not know its format."""
    try:
        with open_any_size(io.BytesIO(data)) as image:
            kind = image.format or ""
            bits = data[24] if kind == "PNG" else (16 if image.mode.startswith("I;16") else 8)
            if image.mode in ("I", "F"):
                bits = max(bits, 16 if kind == "PNG" else 32)
            rotation = None
            # Pillow decodes the whole of a PNG before it says whether there is EXIF data.
            exif = kind != "PNG" or b"eXIf" in data
            if exif and image.size[0] * image.size[1] <= MAX_PIXELS:
                with contextlib.suppress(Exception):  # broken EXIF data: no rotation either
                    rotation = _ROTATIONS.get(int(image.getexif().get(_EXIF_ORIENTATION, 1)))
            alpha = image.mode in ("LA", "PA", "RGBA", "La", "RGBa")
            transparent = alpha or "transparency" in image.info
            palette = image.getpalette() if image.mode == "P" else None
            return _Header(kind, image.size, image.mode, bits, transparent, rotation, palette)
    # Pillow's UnidentifiedImageError is an OSError.
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError):
        return None


def _may_decode(path: str, what: str, header: _Header | None, facts: SampleFacts) -> bool:
    """Checks of the header that hold for images and label maps; whether to decode the file."""
    if header is None:
        return True
    width, height = header.size
    suffix = os.path.splitext(path)[1].lower()
    # The usual suffixes are there; for others Pillow imports forty modules.
    named = Image.EXTENSION.get(suffix) or Image.registered_extensions().get(suffix)
    same = named in (None, header.format) or {named, header.format} <= {"JPEG", "MPO"}
    if not same and not (what == "label map" and header.format in _LOSSY):
        facts.found("wrong_extension", path, f"is named {suffix} but holds {header.format}")
    if width * height > MAX_PIXELS:
        facts.found("absurd_size", path, f"claims {width}x{height} pixels; it was not decoded")
        return False
    if min(width, height) < _MIN_SIDE and what == "image":
        facts.found("absurd_size", path, f"has only {width}x{height} pixels")
    return True


def _check_pages(path: str, data: bytes, facts: SampleFacts) -> None:
    pages = count_pages(io.BytesIO(data))
    if pages > 1:
        facts.found("several_pages", path, f"is a TIFF of {pages} pages")


# --- decoding -------------------------------------------------------------------------------


@contextlib.contextmanager
def _decoder_messages(messages: list[str]) -> Iterator[None]:
    """Collect what C libraries write to standard error: damage that they read over."""
    if not hasattr(os, "memfd_create"):
        yield
        return
    descriptor, before = os.memfd_create("decoder"), os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        text = os.pread(descriptor, 4096, 0).decode("utf-8", "replace")
        messages.extend(text.splitlines())
        os.close(descriptor)


def _decode(
    read: Callable[[], Any], path: str, what: str, header: _Header | None, facts: SampleFacts
) -> Any:
    """What ``read`` returns, or None and a problem."""
    messages: list[str] = []
    reason, result = "", None
    try:
        with _decoder_messages(messages):
            result = read()
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    damage = [m.strip() for m in messages if _DAMAGE.search(m) and not _HARMLESS.search(m)]
    if result is None:
        kind = (
            f"a truncated or damaged {header.format}" if header else "not in a known image format"
        )
        detail = damage[0] if damage else reason
        detail = "" if "failed to load image" in detail else detail.rsplit("] ", 1)[-1]
        note = f" ({detail})" if detail else ""
        facts.found("broken_file", path, f"this {what} is {kind}{note}")
    elif damage:
        facts.found("broken_file", path, f"this {what} is damaged ({damage[0]})")
    return result


def _digest(array: NDArray[Any]) -> bytes:
    # Nothing secret: SHA-1 is the fastest here, in hardware on most processors.
    digest = hashlib.sha1(str(array.shape).encode(), usedforsecurity=False)
    digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _values(pixels: NDArray[Any], channels: int) -> NDArray[np.float64]:
    """(2, C) means and means of squares, of about ten thousand pixels."""
    step = max(1, int((pixels.shape[0] * pixels.shape[1] / 1e4) ** 0.5))
    some = pixels[::step, ::step].reshape(-1, channels).astype(np.float64)
    return np.stack([some.mean(0), (some**2).mean(0)])


def _read_image(sample: Mapping[str, Any], plan: ReadPlan, facts: SampleFacts) -> str | None:
    """Checks the image; returns how its EXIF data rotate it."""
    path = sample["img_path"]
    data = _contents(path, "image", facts)
    header = _read_header(data) if data is not None else None
    if data is None or not _may_decode(path, "image", header, facts):
        return None
    reader = plan.reader
    results = _decode(lambda: load(reader.loader, dict(sample)), path, "image", header, facts)
    if results is None:
        return None
    pixels = results["img"]
    facts.size = (int(pixels.shape[1]), int(pixels.shape[0]))
    colours = pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.ndim in (2, 3):
        facts.channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if plan.with_pixels:
        facts.image_hash = _digest(pixels)
        facts.values = None if facts.channels is None else _values(pixels, facts.channels)
    if header is None:
        return None
    grey = header.mode in ("1", "L", "LA", "La", "I", "F") or header.mode.startswith("I;16")
    if grey and colours:
        facts.found("grey_image", path, "is a grey image")
    if header.mode == "CMYK" and colours:
        facts.found("cmyk_image", path, "has the colours of print (CMYK)")
    if header.transparent and (colours or pixels.ndim == 2):
        facts.found("alpha_image", path, "has transparency")
    if reader.decoding is not None and reader.decoding.first_page:
        _check_pages(path, data, facts)
    if header.bits > 8 and reader.eight_bit:
        facts.found("deep_image", path, f"has {header.bits} bits a channel")
    return header.rotation if reader.decoding is not None and reader.decoding.turns else None


# --- label maps -----------------------------------------------------------------------------


def _read_label(
    sample: Mapping[str, Any], plan: ReadPlan, facts: SampleFacts
) -> tuple[int, int] | None:
    """Checks the label map; returns its (width, height)."""
    path = sample["seg_map_path"]
    data = _contents(path, "label map", facts)
    header = _read_header(data) if data is not None else None
    if data is None or not _may_decode(path, "label map", header, facts):
        return None
    if header is not None and header.format in _LOSSY:
        facts.found("jpeg_label", path, f"is a {header.format}, which changes labels at borders")
        return None
    if plan.planes is not None:
        return _read_planes(sample, plan, facts, header)
    if header is not None and header.bits > 8:
        _check_depth(path, data, plan, header, facts)
    _check_pages(path, data, facts)
    asked: dict[str, Any] = {**sample, "seg_fields": []}
    if plan.raw is not None:
        asked.update(label_map=None, reduce_zero_label=False)
    loader = plan.raw or plan.label
    results = _decode(lambda: load(loader, asked), path, "label map", header, facts)
    if results is None:
        return None
    labels = results["gt_seg_map"]
    if labels.ndim != 2:
        _report_colours(path, header, labels, facts)
        return (int(labels.shape[1]), int(labels.shape[0])) if labels.ndim == 3 else None
    counts = np.bincount(labels.reshape(-1), minlength=256)
    facts.raw_counts = counts
    facts.label_hash = _digest(labels) if plan.with_pixels else None
    _check_range(path, counts, plan, facts)
    if header is not None and header.palette:
        _check_palette(path, header.palette, counts, plan, facts)
    return int(labels.shape[1]), int(labels.shape[0])


def _read_planes(
    sample: Mapping[str, Any], plan: ReadPlan, facts: SampleFacts, header: _Header | None
) -> tuple[int, int] | None:
    """As :func:`_read_label`, of classes that may overlap."""
    path = sample["seg_map_path"]

    def read() -> Any:
        try:
            return load(plan.label, {**sample, "seg_fields": []})
        except UserError as error:
            return error

    results = _decode(read, path, "label map", header, facts)
    if isinstance(results, UserError):
        facts.found("label_out_of_range", path, results.message)
        return None
    if results is None:
        return None
    planes = label_planes(results)
    counts = np.zeros(256, np.int64)
    counts[: len(planes)] = (planes == 1).sum(axis=(1, 2))
    counts[IGNORED] = int((planes[0] == IGNORED).sum())
    facts.raw_counts = counts
    facts.label_hash = _digest(planes) if plan.with_pixels else None
    return int(planes.shape[2]), int(planes.shape[1])


def _check_depth(
    path: str, data: bytes, plan: ReadPlan, header: _Header, facts: SampleFacts
) -> None:
    backend = getattr(plan.label, "imdecode_backend", "pillow")
    try:
        values = np.asarray(mmcv.imfrombytes(data, flag="unchanged", backend=backend))
    except Exception:
        return  # reported when it is read
    top = float(values.max()) if values.size else 0.0
    if top > 255:
        what = f"has {header.bits} bits; training reads {top:g} as {int(top) % 256}"
        facts.found("label_16bit", path, what)
    else:
        what = f"has {header.bits} bits a pixel, though its labels fit into 8"
        facts.found("label_16bit", path, what, "warning")


def _report_colours(
    path: str, header: _Header | None, labels: NDArray[Any], facts: SampleFacts
) -> None:
    if header is not None and header.mode == "P":
        facts.found(
            "palette_label",
            path,
            "is a palette PNG, which this config's LoadAnnotations reads as colours",
            remedy="remove imdecode_backend='cv2' from LoadAnnotations: Pillow reads the indices",
        )
    else:
        channels = labels.shape[2] if labels.ndim == 3 else labels.shape
        what = f"has {channels} channels: it holds colours, not classes"
        facts.found("colour_label", path, what)


def _check_range(path: str, counts: NDArray[np.int64], plan: ReadPlan, facts: SampleFacts) -> None:
    wrong = plan.out_of_range(counts)
    if not wrong:
        return
    examples = ", ".join(f"{v} ({counts[v]:,} pixels)" for v in wrong[:5])
    more = f" and {len(wrong) - 5} more values" if len(wrong) > 5 else ""
    low, zero = (1, ", 0 (reduce_zero_label)") if plan.maps_zero_away else (0, "")
    facts.found(
        "label_out_of_range",
        path,
        f"holds {examples}{more}, which is neither a class ({low}..{plan.num_classes - 1 + low}) "
        f"nor ignored ({plan.ignore_index}{zero})",
    )


def _check_palette(
    path: str, flat: list[int], counts: NDArray[np.int64], plan: ReadPlan, facts: SampleFacts
) -> None:
    """Whether a palette PNG's colours are those of other classes than its indices."""
    colours = [tuple(flat[i : i + 3]) for i in range(0, len(flat) - 2, 3)]
    classes = [tuple(int(c) for c in colour) for colour in plan.palette]
    owner = {colour: k for k, colour in enumerate(classes) if classes.count(colour) == 1}
    right, wrong = 0, []
    for value in np.flatnonzero(counts).tolist():
        label = int(plan.table[value])
        named = owner.get(colours[value]) if value < len(colours) else None
        if label >= plan.num_classes or named is None:
            continue
        if named == label:
            right += 1
        else:
            wrong.append((value, label, named))
    if len(wrong) > right:
        value, label, named = wrong[0]
        what = f"its index {value} stands for class {label}, but has the colour of class {named}"
        facts.found("palette_label", path, what)
