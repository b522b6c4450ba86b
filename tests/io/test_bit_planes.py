# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Classes that overlap as bits: there and back, also as labels that transforms move."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_resnest.io.bit_planes import (
    from_file,
    from_labels,
    index_sets,
    join,
    pack,
    part_sizes,
    split,
    to_file,
    to_labels,
    unpack,
)


@given(st.integers(1, 63), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_there_and_back(classes: int, seed: int, ignored: bool) -> None:
    rng = np.random.default_rng(seed)
    planes = rng.integers(0, 2, (classes, 3, 5)).astype(np.uint8)
    if ignored:
        planes[:, rng.random((3, 5)) < 0.3] = 255
    bits = pack(planes)
    assert bits.dtype.itemsize == next(n for n in (1, 2, 4, 8) if classes < 8 * n)
    assert np.array_equal(unpack(bits, classes), planes)
    pixels = to_file(bits, classes)
    assert pixels.dtype == (np.uint8 if classes <= 7 else np.uint16)
    assert pixels.shape == (3, 5 * -(-classes // 15))
    assert np.array_equal(from_file(pixels, classes), bits)
    back = []
    for part, size in zip(split(bits, classes), part_sizes(classes), strict=True):
        labels = to_labels(part, size)
        assert np.array_equal(labels == 255, (planes == 255).all(axis=0))
        back.append(from_labels(labels, size))
    assert np.array_equal(join(back, classes), bits)


@pytest.mark.parametrize("part", [0, 1])
def test_a_pixel_that_is_ignored_in_one_part_is_ignored(part: int) -> None:
    labels = [to_labels(one, 2) for one in split(np.zeros((1, 2), np.uint32), 17)]
    labels[part][0, 0] = 255
    planes = unpack(join([from_labels(labels[0], 15), from_labels(labels[1], 2)], 17), 17)
    assert planes[:, 0].T.tolist() == [[255] * 17, [0] * 17]


def test_a_full_file_has_no_ignored_pixels() -> None:
    bits = np.array([[0, 254, 255]], np.uint8)
    labels = to_labels(bits, 8)
    assert labels.tolist() == [[0, 254, 256]]
    planes = unpack(from_labels(labels, 8), 8)
    assert planes[:, 0].T.tolist() == [[0] * 8, [0] + [1] * 7, [1] * 8]


@pytest.mark.parametrize("wide", [False, True])
def test_8_bits_of_few_classes_in_either_size_of_file(wide: bool) -> None:
    kind = np.uint16 if wide else np.uint8
    bits = np.array([[5, 0, np.iinfo(kind).max]], kind)
    planes = unpack(from_labels(to_labels(bits, 3), 3), 3)
    assert planes[:, 0].T.tolist() == [[1, 0, 1], [0, 0, 0], [255] * 3]


def test_sets_have_names_and_mixed_colours() -> None:
    bits = [np.array([[0, 1, 3]], np.uint8), np.array([[3, 2, 255]], np.uint8)]
    maps, names, colours = index_sets(bits, ["a", "b"], [[0, 0, 0], [100, 200, 40]])
    assert names == ["no class", "a", "b", "a + b"]
    assert colours == [[128] * 3, [0] * 3, [100, 200, 40], [50, 100, 20]]
    assert [one.tolist() for one in maps] == [[[0, 1, 3]], [[3, 2, 255]]]


def test_the_rarest_of_many_sets_are_one() -> None:
    bits = np.repeat(np.arange(300, dtype=np.uint16), 2)[None]
    bits[0, :40] = 299
    (indices,), names, _ = index_sets([bits], [str(c) for c in range(9)], [[0, 0, 0]] * 9)
    assert len(names) == 255
    assert names[-1] == "other sets"
    assert names[indices[0, 0]] == "0 + 1 + 3 + 5 + 8"
    assert indices.max() == 254
