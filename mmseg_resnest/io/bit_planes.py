# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Classes that may overlap as bits of one number a pixel.

Bit c of a pixel says whether it is of class c. Up to 7 classes take 8 bits and up to 15 take 16, so
that one value, all bits set, is left for pixels that are ignored (255, 65535). Transforms of label
maps move such numbers as they move any label; they fill with 255, which therefore stands for
ignored there in either case: :func:`to_labels` makes room for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "IGNORED", "MOST_CLASSES", "bits_type", "from_labels", "index_sets", "pack", "sets_of",
    "to_labels", "unpack",
]  # fmt: skip

IGNORED = 255
#: One bit of the 16 is left, so that a pixel can be ignored.
MOST_CLASSES = 15

Bits = NDArray[Any]  # uint8 or uint16
Planes = NDArray[np.uint8]


def bits_type(classes: int) -> type[np.uint8] | type[np.uint16]:
    """The type of the numbers for so many classes."""
    return np.uint8 if classes <= 7 else np.uint16


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
    shifts = np.arange(classes, dtype=bits.dtype).reshape(-1, 1, 1)
    planes = (bits[None] >> shifts & bits.dtype.type(1)).astype(np.uint8)
    full = np.iinfo(bits.dtype).max
    if classes < full.bit_length():
        planes[:, bits == full] = IGNORED
    return planes


def to_labels(bits: Bits, classes: int) -> Bits:
    """The numbers as labels of which 255 alone is ignored; larger ones move up by one."""
    full = np.iinfo(bits.dtype).max
    if bits.dtype == np.uint8 and classes < 8:
        return bits
    wide = bits.astype(np.uint16)
    labels = wide + (wide >= IGNORED)
    if classes < full.bit_length():
        labels[bits == full] = IGNORED
    return labels


def from_labels(labels: Bits, classes: int) -> Bits:
    """The numbers that :func:`to_labels` made these labels of."""
    kind = bits_type(classes)
    if labels.dtype == np.uint8:
        return labels.astype(kind) if kind is np.uint8 else _widened(labels)
    bits = (labels - (labels > IGNORED)).astype(kind)
    bits[labels == IGNORED] = np.iinfo(kind).max
    return bits


def _widened(labels: Bits) -> Bits:
    bits = labels.astype(np.uint16)
    bits[labels == IGNORED] = np.iinfo(np.uint16).max
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
    counts = np.zeros(full + 1, np.int64)
    for one in maps:
        counts += np.bincount(one.reshape(-1), minlength=full + 1)
    if len(classes) < full.bit_length():
        counts[full] = 0
    counts[0] = 0
    common = np.argsort(-counts, kind="stable")[:253]
    chosen = [0, *sorted(int(n) for n in common if counts[n])]
    names, colours = sets_of(chosen, classes, palette)
    table = np.full(full + 1, len(chosen), np.uint8)
    table[chosen] = np.arange(len(chosen))
    if np.count_nonzero(counts) > len(chosen) - 1:
        names, colours = [*names, "other sets"], [*colours, [200, 200, 200]]
    if len(classes) < full.bit_length():
        table[full] = IGNORED
    return [table[one] for one in maps], names, colours
