# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Classes that may overlap as bits of one number a pixel.

Bit c of a pixel says whether it is of class c. Numbers have 8, 16, 32 or 64 bits, one more than
there are classes at least, so that one value, all bits set, is left for pixels that are ignored.

Files and transforms of label maps take 16 bits. There, the numbers of more than 15 classes are
parts of 15 classes each, and a pixel that is ignored has all bits set in each of them.

Transforms of label maps move such numbers as they move any label; they fill with 255, which
therefore stands for ignored there whatever the bits are: :func:`to_labels` makes room for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "IGNORED", "MOST_CLASSES", "bits_type", "file_type", "from_file", "from_labels", "index_sets",
    "join", "pack", "part_sizes", "sets_of", "split", "to_file", "to_labels", "unpack",
]  # fmt: skip

IGNORED = 255
#: One bit of the 64 is left, so that a pixel can be ignored.
MOST_CLASSES = 63
_PART = 15  # classes

Bits = NDArray[Any]  # uint8, uint16, uint32 or uint64
Planes = NDArray[np.uint8]


def bits_type(classes: int) -> type[np.unsignedinteger[Any]]:
    """The type of the numbers for so many classes."""
    kinds = (np.uint8, np.uint16, np.uint32, np.uint64)
    return next(kind for kind in kinds if classes < np.iinfo(kind).bits)


def pack(planes: NDArray[Any]) -> Bits:
    """Numbers (H, W) of planes (C, H, W) of 0, 1 and 255; a pixel with a 255 is ignored."""
    kind = bits_type(len(planes))
    bits = np.zeros(planes.shape[1:], kind)
    for c, plane in enumerate(planes):
        bits |= (plane == 1).astype(kind) << kind(c)
    if planes.dtype != np.bool_:
        bits[(planes == IGNORED).any(axis=0)] = np.iinfo(kind).max
    return bits


def unpack(bits: Bits, classes: int) -> Planes:
    """Planes (C, H, W), uint8, of 0 and 1, and of 255 where a pixel is ignored."""
    planes = np.empty((classes, *bits.shape), np.uint8)
    for c in range(classes):
        planes[c] = bits >> bits.dtype.type(c) & bits.dtype.type(1)
    full = np.iinfo(bits.dtype).max
    if classes < full.bit_length():
        planes[:, bits == full] = IGNORED
    return planes


def part_sizes(classes: int) -> list[int]:
    """How many classes each part of the numbers holds."""
    return [min(_PART, classes - first) for first in range(0, classes, _PART)]


def split(bits: Bits, classes: int) -> list[Bits]:
    """The parts (H, W) of numbers: themselves for up to 15 classes, else uint16."""
    if classes <= _PART:
        return [bits]
    ignored = bits == np.iinfo(bits.dtype).max
    firsts = range(0, classes, _PART)
    parts = [(bits >> first & (1 << _PART) - 1).astype(np.uint16) for first in firsts]
    for part in parts:
        part[ignored] = np.iinfo(np.uint16).max
    return parts


def join(parts: Sequence[Bits], classes: int) -> Bits:
    """The numbers that :func:`split` made these parts of; a pixel ignored in one is ignored."""
    if classes <= _PART:
        return parts[0]
    kind = bits_type(classes)
    bits = np.zeros(parts[0].shape, kind)
    for n, part in enumerate(parts):
        bits |= part.astype(kind) << kind(_PART * n)
    bits[np.any([part == np.iinfo(part.dtype).max for part in parts], axis=0)] = np.iinfo(kind).max
    return bits


def file_type(classes: int) -> type[np.unsignedinteger[Any]]:
    """The type of the pixels of a file."""
    return np.uint8 if classes < 8 else np.uint16


def to_file(bits: Bits, classes: int) -> Bits:
    """The pixels of a grey image file: the parts of numbers (H, W), side by side."""
    parts = split(bits, classes)
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def from_file(pixels: Bits, classes: int) -> Bits:
    """The numbers that :func:`to_file` made these pixels of."""
    return join(np.split(pixels, len(part_sizes(classes)), axis=1), classes)


def to_labels(bits: Bits, classes: int) -> Bits:
    """Numbers of up to 15 classes as labels of which 255 alone is ignored; larger ones go up."""
    full = np.iinfo(bits.dtype).max
    if bits.dtype == np.uint8 and classes < 8:
        return bits
    wide = bits.astype(np.uint16)
    labels = wide + (wide >= IGNORED)
    if classes < full.bit_length():
        labels[bits == full] = IGNORED
    return labels


def from_labels(labels: Bits, classes: int) -> Bits:
    """The numbers, of the type for a file, that :func:`to_labels` made these labels of."""
    kind = file_type(classes)
    bits = (labels - (labels > IGNORED)).astype(kind)
    bits[labels == IGNORED] = np.iinfo(kind).max
    return bits


def sets_of(
    numbers: Sequence[int], classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> tuple[list[str], list[list[int]]]:
    """Names and colours of sets of classes, given as bits: ``a + b``, the mean of their colours."""
    names, colours = [], []
    for number in numbers:
        members = [c for c in range(len(classes)) if number >> c & 1]
        names.append(" + ".join(classes[c] for c in members) or "no class")
        mean = np.mean([palette[c] for c in members], axis=0) if members else np.full(3, 128)
        colours.append([int(value) for value in np.rint(mean)])
    return names, colours


def index_sets(
    maps: Sequence[Bits], classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> tuple[list[Planes], list[str], list[list[int]]]:
    """Maps of bits as label maps of the sets of classes that occur, for pictures.

    Returns:
        The maps, uint8: an index of the sets, of which 0 is no class, and 255 where all bits are
        set and not all are classes (ignored); names and colours of the sets. Of more than 253
        sets the rarest have one index, ``other sets``.
    """
    full = np.iinfo(maps[0].dtype).max
    flat = np.concatenate([one.ravel() for one in maps])
    # Neighbours are mostly equal: only where a value changes it is sorted.
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=flat.size)
    values, runs = np.unique(flat[starts], return_inverse=True)
    counts = np.bincount(runs, lengths, len(values))
    every = values
    sets = (values > 0) & ((values < full) | (len(classes) == full.bit_length()))
    values, counts = values[sets], counts[sets]
    common = values[np.argsort(-counts, kind="stable")[:253]]
    chosen = np.array([0, *np.sort(common).tolist()], maps[0].dtype)
    names, colours = sets_of(chosen.tolist(), classes, palette)
    if len(values) >= len(chosen):
        names, colours = [*names, "other sets"], [*colours, [200, 200, 200]]
    place = np.searchsorted(chosen, every)
    known = chosen[np.minimum(place, len(chosen) - 1)] == every
    table = np.where(known, place, len(chosen)).astype(np.uint8)
    if len(classes) < full.bit_length():
        table[every == full] = IGNORED
    labels = np.repeat(table[runs], lengths)
    ends = np.cumsum([one.size for one in maps])[:-1]
    parts = zip(np.split(labels, ends), maps, strict=True)
    return [part.reshape(one.shape) for part, one in parts], names, colours
