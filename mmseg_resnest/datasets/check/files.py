# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""One sample: its image and its label map, read by the transforms that training reads them with.

Headers are read first, so that a file that claims an absurd size is never decoded. Everything else
is decoded in full: a reduced decoding would be faster, but would miss damage in what it skips.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmseg.datasets.transforms import LoadAnnotations
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ...io.image_header import open_any_size
from ...registry import TRANSFORMS
from ..transforms.loading import LoadAnnotations as OurLoadAnnotations
from .problems import Problem

__all__ = ["MAX_PIXELS", "MIN_SIDE", "ReadPlan", "SampleFacts", "check_sample", "make_plan"]

MIN_SIDE = 16
# Pillow's own bound, above which it warns of a decompression bomb (it refuses twice as many).
MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3

_DAMAGE = re.compile(r"corrupt|premature|bogus|truncat|incomplete|\berror\b|invalid", re.I)
_HARMLESS = re.compile(r"libpng warning|iCCP|sRGB", re.I)
_LOSSY = ("JPEG", "MPO", "JPEG2000")
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "mirrored upside down",
    5: "transposed",
    6: "turned by 90 degrees",
    7: "transposed",
    8: "turned by 90 degrees",
}


@dataclass
class ReadPlan:
    """How a data set's samples are read, and what their labels may be.

    Attributes:
        image: The pipeline's transform that loads images.
        label: The one that loads label maps; None: the samples have none.
        raw: ``label`` without any mapping; None where the transform is not MMSegmentation's.
        table: (256,) uint8, the label that training sees for each value of a file.
        num_classes: Number of classes C of the data set.
        ignore_index: The label that the loss leaves out.
        palette: ``[r, g, b]`` for each class, or empty where the data set does not define one.
        with_pixels: Whether to hash the pixels (to find duplicates).
    """

    image: Any
    label: Any
    raw: Any
    table: NDArray[np.uint8]
    num_classes: int
    ignore_index: int
    palette: Sequence[Sequence[int]] = ()
    with_pixels: bool = True

    @property
    def maps_zero_away(self) -> bool:
        """Whether 0 in the files is ignored."""
        return bool(self.table[0] == 255 and self.table[1] == 0)


@dataclass
class SampleFacts:
    """What one sample turned out to be.

    Attributes:
        problems: What is wrong with it.
        size: (width, height) of the image as training sees it.
        raw_counts: (256,) pixels of each value of the label file.
        image_hash: Digest of the decoded image.
        label_hash: Digest of the label map.
    """

    problems: list[Problem] = field(default_factory=list)
    size: tuple[int, int] | None = None
    raw_counts: NDArray[np.int64] | None = None
    image_hash: bytes | None = None
    label_hash: bytes | None = None


def make_plan(
    pipeline: Sequence[Any],
    label_map: Mapping[int, int] | None,
    reduce_zero_label: bool,
    num_classes: int,
    ignore_index: int = 255,
    palette: Sequence[Sequence[int]] = (),
    with_labels: bool = True,
    loaders: tuple[Any, Any] | None = None,
) -> ReadPlan:
    """Take the loading transforms out of a pipeline.

    Args:
        pipeline: A config's pipeline.
        label_map: The data set's, see ``BaseSegDataset``.
        reduce_zero_label: The data set's.
        num_classes: Number of its classes.
        ignore_index: The label that the loss leaves out.
        palette: Colours of the classes.
        with_labels: False for a data set without label maps.
        loaders: The transforms of image and label map themselves, instead of ``pipeline``; None
            for the image is OpenCV's loader, for the label map none.
    """
    image, label = loaders if loaders is not None else (None, None)
    image, label = _silent(image), _silent(label)
    for step in pipeline:
        if not isinstance(step, Mapping):
            continue
        kind = step["type"]
        kind = TRANSFORMS.get(kind) if isinstance(kind, str) else kind
        if not isinstance(kind, type):
            continue
        if issubclass(kind, LoadAnnotations) and with_labels:
            label = _silent(TRANSFORMS.build(dict(step)))
        elif kind.__name__.startswith("Load") and not issubclass(kind, LoadAnnotations):
            image = _silent(TRANSFORMS.build(dict(step)))
    image = image or LoadImageFromFile()
    raw: Any = None
    known = (LoadAnnotations._load_seg_map, OurLoadAnnotations._load_seg_map)
    if label is not None and type(label)._load_seg_map in known:
        raw = copy.copy(label)
        raw.reduce_zero_label = None
    table = np.arange(256, dtype=np.uint8)
    if label is not None and raw is not None:
        table = _table(label, label_map, reduce_zero_label)
    return ReadPlan(image, label, raw, table, num_classes, ignore_index, palette)


def _silent(loader: Any) -> Any:
    """A loader of the package's own without its explanations, which come from here."""
    if getattr(loader, "explains", False):
        loader = copy.copy(loader)
        loader.explains = False
    return loader


def _table(
    label: Any, label_map: Mapping[int, int] | None, reduce_zero_label: bool
) -> NDArray[np.uint8]:
    """What the transform makes of each of the 256 values: it is asked, with a file that has all."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "values.png")
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path)
        results: dict[str, Any] = {
            "seg_map_path": path,
            "label_map": label_map,
            "reduce_zero_label": reduce_zero_label,
            "seg_fields": [],
        }
        return np.asarray(label(results)["gt_seg_map"], np.uint8).reshape(-1)


def check_sample(sample: Mapping[str, Any], plan: ReadPlan, split: str = "") -> SampleFacts:
    """Read one sample as training would and say what is wrong with it.

    Args:
        sample: What ``BaseSegDataset.load_data_list`` lists for it.
        plan: How to read it.
        split: For the problems.
    """
    facts = SampleFacts()
    found = _Finder(facts.problems, split)
    _check_name(sample["img_path"], found)
    image, header = _read_image(sample, plan, facts, found)
    label = None
    if plan.label is not None and sample.get("seg_map_path") is not None:
        label = _read_label(sample, plan, facts, found)
    if image is not None and header is not None and header.orientation != 1:
        fits = label is None or image == label
        found(
            "rotated_image",
            sample["img_path"],
            f"its EXIF data say that it is to be shown {_TURNS[header.orientation]}",
            "training turns it, but never its label map"
            + ("" if fits else ", whose size does not fit then"),
            "turn the pixels and remove the tag (e.g. mogrify -auto-orient), and see that the "
            "label map fits the turned image",
            # The label map may have been drawn on the image as it is shown.
            "warning" if fits else "error",
        )
    elif image is not None and label is not None and image != label:
        found(
            "size_mismatch",
            sample["seg_map_path"],
            f"the label map has {label[0]}x{label[1]} pixels, its image {sample['img_path']} "
            f"{image[0]}x{image[1]} (width x height)",
            "training stops at the crop, or labels the wrong pixels",
            "scale the label map with nearest-neighbour sampling, or find its right partner",
        )
    return facts


class _Finder:
    """Appends problems, with the split filled in."""

    def __init__(self, problems: list[Problem], split: str) -> None:
        self.problems = problems
        self.split = split

    def __call__(
        self, kind: str, file: str, what: str, effect: str, fix: str, severity: str = ""
    ) -> None:
        self.problems.append(Problem(kind, file, what, effect, fix, self.split, severity))


def _check_name(path: str, found: _Finder) -> None:
    name = os.path.basename(path)
    try:
        name.encode("utf-8")
        bad = [c for c in name if not c.isprintable()]
        what = f"its name holds the character {bad[0]!r}" if bad else ""
    except UnicodeEncodeError:
        what = "its name is not UTF-8"
    if what:
        found(
            "unreadable_name",
            path,
            what,
            "training reads it, but logs, file lists and results that name it fail to be written",
            "rename the image and its label map",
        )


def _contents(path: str, what: str, found: _Finder) -> bytes | None:
    """The bytes of a file; None, and a problem, when there are none."""
    kind = "missing_image" if what == "image" else "missing_label"
    other = "label map" if what == "image" else "image"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise IsADirectoryError(None, "it is no file")
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        link = " (it is a link to nothing)" if os.path.islink(path) else ""
        found(
            kind,
            path,
            f"this {what} is missing{link}",
            "training stops when it comes to it",
            f"add it, or take its {other} out of the data set",
        )
        return None
    except OSError as error:
        found(
            "broken_file",
            path,
            f"cannot be read ({error.strerror})",
            "training stops when it comes to it",
            "check its permissions and the disk",
        )
        return None
    if not data:
        found(
            "empty_file",
            path,
            f"this {what} is an empty file",
            "training stops when it comes to it",
            "copy or download it again",
        )
        return None
    return data


@dataclass
class _Header:
    kind: str
    size: tuple[int, int]
    mode: str
    bits: int
    transparent: bool
    orientation: int
    palette: list[int] | None


def _read_header(data: bytes) -> _Header | None:
    """What a file says of itself, or None where Pillow does not know its format."""
    try:
        with open_any_size(io.BytesIO(data)) as image:
            kind = image.format or ""
            bits = data[24] if kind == "PNG" else (16 if image.mode.startswith("I;16") else 8)
            if image.mode in ("I", "F"):
                bits = max(bits, 16 if kind == "PNG" else 32)
            # Pillow decodes the whole of a PNG before it says whether there is EXIF data.
            exif = kind != "PNG" or b"eXIf" in data
            orientation = 1
            if exif and image.size[0] * image.size[1] <= MAX_PIXELS:
                with contextlib.suppress(Exception):  # broken EXIF data: no rotation either
                    orientation = int(image.getexif().get(_EXIF_ORIENTATION, 1))
            return _Header(
                kind,
                image.size,
                image.mode,
                bits,
                "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"),
                orientation if orientation in _TURNS else 1,
                image.getpalette() if image.mode == "P" else None,
            )
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
    ):
        return None


def _check_header(
    path: str, what: str, header: _Header | None, found: _Finder
) -> tuple[bool, _Header | None]:
    """Checks that hold for both files; says whether to decode."""
    if header is None:
        return True, None
    width, height = header.size
    suffix = os.path.splitext(path)[1].lower()
    # The usual endings are there; for the others Pillow imports forty modules.
    named = Image.EXTENSION.get(suffix) or Image.registered_extensions().get(suffix)
    same = named is None or named == header.kind or {named, header.kind} <= {"JPEG", "MPO"}
    if not same and not (what == "label map" and header.kind in _LOSSY):
        found(
            "wrong_extension",
            path,
            f"is named {suffix} but holds {header.kind}",
            "training reads it by its contents, other programs go by the name",
            f"rename it and set the data set's suffix, or save it as {named}",
        )
    if width * height > MAX_PIXELS:
        found(
            "absurd_size",
            path,
            f"claims {width}x{height} pixels; it was not decoded",
            "training runs out of memory or refuses it as a decompression bomb",
            "make it smaller, or remove it if it is not one of yours",
        )
        return False, header
    if min(width, height) < MIN_SIDE and what == "image":
        found(
            "absurd_size",
            path,
            f"has only {width}x{height} pixels",
            "training sees padding and a few pixels blown up",
            "remove it or find the full-size image",
        )
    return True, header


@contextlib.contextmanager
def _decoder_says(said: list[str]) -> Iterator[None]:
    """Collects what C libraries write to standard error: damage that they read over."""
    descriptor = os.memfd_create("decoder") if hasattr(os, "memfd_create") else None
    if descriptor is None:
        yield
        return
    before = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        length = os.fstat(descriptor).st_size
        if length:
            text = os.pread(descriptor, min(length, 4096), 0).decode("utf-8", "replace")
            said.extend(text.splitlines())
        os.close(descriptor)


def _decode(
    load: Callable[[], Any], path: str, what: str, header: _Header | None, found: _Finder
) -> Any:
    """What ``load`` returns, or None and a problem."""
    said: list[str] = []
    reason = ""
    result = None
    try:
        with _decoder_says(said):
            result = load()
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    damage = [s for s in said if _DAMAGE.search(s) and not _HARMLESS.search(s)]
    if result is not None and not damage:
        return result
    if result is None:
        kind = f"a truncated or damaged {header.kind}" if header else "no image in a known format"
        detail = damage[0].strip() if damage else reason
        if "failed to load image" in detail:
            detail = ""
        told = f" ({detail.rsplit('] ', 1)[-1]})" if detail else ""
        effect = "training stops when it comes to it"
        found(
            "broken_file",
            path,
            f"this {what} is {kind}{told}",
            effect,
            "copy or download it again",
        )
        return None
    found(
        "broken_file",
        path,
        f"this {what} is damaged ({damage[0].strip()})",
        "training reads it with the damaged part as noise",
        "copy or download it again",
    )
    return result


def _digest(array: NDArray[Any]) -> bytes:
    # No secret to keep: SHA-1 is the fastest here, in hardware on most processors.
    digest = hashlib.sha1(str(array.shape).encode(), usedforsecurity=False)
    digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _read_image(
    sample: Mapping[str, Any], plan: ReadPlan, facts: SampleFacts, found: _Finder
) -> tuple[tuple[int, int] | None, _Header | None]:
    """Checks the image; returns (width, height) as training sees it, and its header."""
    path = sample["img_path"]
    data = _contents(path, "image", found)
    if data is None:
        return None, None
    decode, header = _check_header(path, "image", _read_header(data), found)
    if not decode:
        return None, header
    results = _decode(lambda: plan.image(dict(sample)), path, "image", header, found)
    if results is None:
        return None, header
    pixels = results["img"]
    if header is not None:
        _check_colours(path, header, found)
    facts.size = (int(pixels.shape[1]), int(pixels.shape[0]))
    if plan.with_pixels:
        facts.image_hash = _digest(pixels)
    return facts.size, header


def _check_colours(path: str, header: _Header, found: _Finder) -> None:
    if header.mode in ("1", "L", "LA", "La", "I", "F") or header.mode.startswith("I;16"):
        found(
            "grey_image",
            path,
            "is a grey image",
            "training reads its grey as three equal colours",
            "nothing to do if it is meant; otherwise find the image in colour",
        )
    if header.mode == "CMYK":
        found(
            "cmyk_image",
            path,
            "has the colours of print (CMYK)",
            "training reads other colours than a viewer shows",
            "convert it to RGB with its colour profile",
        )
    if header.transparent:
        found(
            "alpha_image",
            path,
            "has transparency",
            "training sees the colours that lie under the transparent parts",
            "lay it on a background and save it as RGB",
        )
    if header.bits > 8:
        found(
            "deep_image",
            path,
            f"has {header.bits} bits a channel",
            "training keeps the upper 8, which may be nearly black",
            "scale it to 8 bits",
        )


def _read_label(
    sample: Mapping[str, Any], plan: ReadPlan, facts: SampleFacts, found: _Finder
) -> tuple[int, int] | None:
    """Checks the label map; returns its (width, height)."""
    path = sample["seg_map_path"]
    data = _contents(path, "label map", found)
    if data is None:
        return None
    decode, header = _check_header(path, "label map", _read_header(data), found)
    if not decode:
        return None
    if header is not None and header.kind in _LOSSY:
        found(
            "jpeg_label",
            path,
            f"is a {header.kind}, which changes labels near every border",
            "training sees classes that nobody drew, or stops at a label out of range",
            "save the original label map as PNG; the JPEG cannot be mended",
        )
        return None
    if header is not None and header.bits > 8:
        _check_depth(path, data, plan, header, found)
    loader = plan.raw if plan.raw is not None else plan.label
    asked: dict[str, Any] = {**sample, "seg_fields": []}
    if plan.raw is not None:
        asked.update(label_map=None, reduce_zero_label=False)
    results = _decode(lambda: loader(asked), path, "label map", header, found)
    if results is None:
        return None
    labels = results["gt_seg_map"]
    if labels.ndim != 2:
        _report_colours(path, header, labels, found)
        return (int(labels.shape[1]), int(labels.shape[0])) if labels.ndim == 3 else None
    counts = np.bincount(labels.reshape(-1), minlength=256)
    facts.raw_counts = counts
    facts.label_hash = _digest(labels) if plan.with_pixels else None
    _check_range(path, counts, plan, found)
    if header is not None and header.palette:
        _check_palette(path, header.palette, counts, plan, found)
    return int(labels.shape[1]), int(labels.shape[0])


def _check_depth(path: str, data: bytes, plan: ReadPlan, header: _Header, found: _Finder) -> None:
    backend = getattr(plan.label, "imdecode_backend", "pillow")
    try:
        values = np.asarray(mmcv.imfrombytes(data, flag="unchanged", backend=backend))
    except Exception:
        return  # told when it is read
    top = float(values.max()) if values.size else 0.0
    if top > 255:
        found(
            "label_16bit",
            path,
            f"has {header.bits} bits and holds {top:g}",
            f"training keeps the lower 8 bits: {top:g} becomes {int(top) % 256}",
            "save the classes as 8-bit PNG",
        )
    else:
        found(
            "label_16bit",
            path,
            f"has {header.bits} bits a pixel, though its labels fit into 8",
            "training reads it right, other programs may scale it to black",
            "save it as 8-bit PNG",
            "warning",
        )


def _report_colours(
    path: str, header: _Header | None, labels: NDArray[Any], found: _Finder
) -> None:
    if header is not None and header.mode == "P":
        found(
            "palette_label",
            path,
            "is a palette PNG, which this config's LoadAnnotations reads as colours",
            "training stops: a label map has one number a pixel",
            "take imdecode_backend='cv2' out of LoadAnnotations (Pillow reads the indices)",
        )
        return
    channels = labels.shape[2] if labels.ndim == 3 else labels.shape
    found(
        "colour_label",
        path,
        f"has {channels} channels: it holds colours, not classes",
        "training stops: a label map has one number a pixel",
        "convert the colours to class indices",
    )


def out_of_range(counts: NDArray[np.int64], plan: ReadPlan) -> list[int]:
    """The values of label files that are neither a class nor ignored after loading."""
    values = np.flatnonzero(counts)
    seen = plan.table[values].astype(int)
    wrong = (seen >= plan.num_classes) & (seen != plan.ignore_index)
    return [int(v) for v in values[wrong]]


def _check_range(path: str, counts: NDArray[np.int64], plan: ReadPlan, found: _Finder) -> None:
    wrong = out_of_range(counts, plan)
    if not wrong:
        return
    shown = ", ".join(f"{v} ({counts[v]:,} pixels)" for v in wrong[:5])
    more = f" and {len(wrong) - 5} more values" if len(wrong) > 5 else ""
    low = 1 if plan.maps_zero_away else 0
    zero = ", 0 (reduce_zero_label)" if low else ""
    found(
        "label_out_of_range",
        path,
        f"holds {shown}{more}, which is neither a class ({low}..{plan.num_classes - 1 + low}) nor "
        f"ignored ({plan.ignore_index}{zero})",
        "training stops with an index error or a CUDA assert",
        "correct the label map, or the data set's classes, reduce_zero_label or label_map",
    )


def _check_palette(
    path: str, flat: list[int], counts: NDArray[np.int64], plan: ReadPlan, found: _Finder
) -> None:
    """Whether a palette PNG's colours say other classes than its indices."""
    colours = [tuple(flat[i : i + 3]) for i in range(0, len(flat) - 2, 3)]
    classes = [tuple(int(c) for c in colour) for colour in plan.palette]
    owner = {colour: k for k, colour in enumerate(classes) if classes.count(colour) == 1}
    right, wrong = 0, []
    for value in np.flatnonzero(counts):
        label = int(plan.table[value])
        if value >= len(colours) or label >= plan.num_classes:
            continue
        named = owner.get(colours[value])
        if named == label:
            right += 1
        elif named is not None:
            wrong.append((int(value), named))
    if len(wrong) > right:
        index, named = wrong[0]
        label = int(plan.table[index])
        found(
            "palette_label",
            path,
            f"its index {index} stands for class {label}, but has the colour of class {named}",
            f"training learns class {named} as class {label}",
            "convert its colours to class indices, or rename the data set's classes",
        )
