# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Which numbered images are frames of one video, measured on small copies."""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...io.parallel import in_parallel
from .labels import IMAGE_FORMATS
from .samples import Sample, common_end

# The frames of one video share a name but for the number at its end: 0001TP_006690, seq-f00930.
NUMBERED = r"(.*?)(?:[^/A-Za-z0-9]+[A-Za-z]?)?\d+"

_SIZE = (32, 24)  # of a copy, columns and rows
_MOST_PAIRS = 24  # neighbours that are compared in one group
_FEWEST = 6  # images: fewer say too little about images that are no neighbours
# Median correlation of neighbours, and how often an image is more like a neighbour than like
# another image. Measured on CamVid, one frame a second: medians 0.79 to 0.94, and 0.70 to 0.99 of
# the cases; the same images in random order reach 0.65.
_ALIKE, _NEARLY_EQUAL, _MORE_OFTEN = 0.6, 0.9, 0.67


def numbered_groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Groups of names that differ in the number at their end only, each in order of the number.

    What all names end in does not count: ``a_0019_leftImg8bit``.
    """
    shared = common_end(names) if len(names) > 1 else ""
    end = re.search(r"[^A-Za-z0-9][A-Za-z]([^/]*[A-Za-z])?$", shared)
    rest = len(end.group()) if end else 0
    groups = defaultdict(list)
    for name in names:
        match = re.fullmatch(NUMBERED, name[: len(name) - rest])
        groups[match.group(1) if match else name].append(name)
    return {
        group: sorted(members, key=lambda name: _number(name[: len(name) - rest]))
        for group, members in groups.items()
    }


def video_groups(
    groups: Mapping[str, Sequence[str]], samples: Mapping[str, Sample], processes: int
) -> set[str]:
    """The groups whose images look like frames of one video.

    Neighbours in a video are more alike than other pairs of its images; neighbours among photos
    are not. Compares the correlation of grey copies of at most 48 images a group.

    Args:
        groups: Names of images in order, by group.
        samples: The images by name.
        processes: How many to read with.

    Raises:
        UserError: A process died.
    """
    chosen = {
        group: _neighbours(len(members)) for group, members in groups.items() if len(members) > 1
    }
    jobs = [
        (group, position, samples[groups[group][position]].image)
        for group, positions in chosen.items()
        for position in positions
    ]
    copies: dict[str, dict[int, npt.NDArray[np.float64]]] = defaultdict(dict)
    for group, position, copy in in_parallel(_small, jobs, processes, "compare neighbours"):
        copies[group][position] = copy
    return {group for group, found in copies.items() if looks_like_video(found)}


def looks_like_video(copies: Mapping[int, npt.NDArray[np.float64]]) -> bool:
    """Whether small copies (see :func:`small_copy`), by their position, are those of a video."""
    positions = sorted(copies)
    vectors = np.stack([copies[position] for position in positions])
    correlation = vectors @ vectors.T
    distance = np.abs(np.subtract.outer(positions, positions))
    near, far = distance == 1, distance > 2
    alike = float(np.median(correlation[near]))
    if alike >= _NEARLY_EQUAL or len(positions) < _FEWEST:
        return alike >= _ALIKE
    more = [
        np.mean(row[near_row, None] > row[far_row])
        for row, near_row, far_row in zip(correlation, near, far, strict=True)
    ]
    return alike >= _ALIKE and float(np.mean(more)) >= _MORE_OFTEN


def small_copy(image: Image.Image) -> npt.NDArray[np.float64]:
    """A grey copy of 32 x 24 pixels as a vector (768,) of mean 0 and length 1."""
    copy = np.asarray(image.convert("L").resize(_SIZE, Image.Resampling.BOX), np.float64).ravel()
    copy = copy - copy.mean()
    length = float(np.linalg.norm(copy))
    return copy / length if length else copy


def _number(name: str) -> tuple[int, str]:
    match = re.search(r"\d+$", name)
    return int(match.group()) if match else 0, name


def _neighbours(count: int) -> list[int]:
    """Positions of pairs of neighbours, spread evenly over ``count`` images."""
    pairs = min(_MOST_PAIRS, count - 1)
    starts = np.linspace(0, count - 2, pairs).round().astype(int).tolist()
    return sorted({position for start in starts for position in (start, start + 1)})


def _small(job: tuple[str, int, object]) -> tuple[str, int, npt.NDArray[np.float64]]:
    group, position, source = job
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(stream, formats=IMAGE_FORMATS) as image:  # type: ignore[arg-type]
            image.draft("L", (_SIZE[0] * 2, _SIZE[1] * 2))
            return group, position, small_copy(image)
    except Exception:  # damaged: reported where it is prepared, with its name
        return group, position, np.zeros(_SIZE[0] * _SIZE[1])
