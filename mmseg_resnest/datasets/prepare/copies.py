# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Images that are copies of each other: in two parts they would make the validation look better."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from .samples import Sample

_READ = 1 << 16  # bytes in the middle, which tell files of one size apart


def join_copies(
    groups: Mapping[str, Sequence[str]], samples: Iterable[Sample]
) -> tuple[dict[str, list[str]], list[str]]:
    """Joins groups of images that have copies of one another.

    Args:
        groups: Names by group.
        samples: The images.

    Returns:
        Names by group, and a note if there are copies.
    """
    group_of = {name: group for group, names in groups.items() for name in names}
    joined = {group: list(names) for group, names in groups.items()}
    copies = [*equal_images(samples)]
    for first, *others in copies:
        target = group_of[first]
        for other in sorted({group_of[name] for name in others} - {target}):
            for name in joined[other]:
                group_of[name] = target
            joined[target] += joined.pop(other)
    if not copies:
        return joined, []
    count = sum(len(names) - 1 for names in copies)
    first, other, *_ = copies[0]
    note = f"{count:,} images are copies of others (e.g. {other} of {first}) and stay in their part"
    return joined, [note]


def note_on_leaks(samples: Sequence[Sample], held_out: Collection[str]) -> list[str]:
    """A note on images to validate on (``held_out`` are their names) that are trained on, too."""
    parts = ((names, {name in held_out for name in names}) for names in equal_images(samples))
    leaks = [names for names, kinds in parts if len(kinds) > 1]
    if not leaks:
        return []
    first = next(name for name in leaks[0] if name in held_out)
    other = next(name for name in leaks[0] if name not in held_out)
    return [
        f"{len(leaks):,} images are in both parts (e.g. {first} is a copy of {other}), and scores"
        " will be too good: remove them from one"
    ]


def equal_images(samples: Iterable[Sample]) -> Iterator[list[str]]:
    """Names of images whose files have the same bytes, each time two or more."""
    of_size: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        image = sample.image
        of_size[image.stat().st_size if isinstance(image, Path) else len(image)].append(sample)
    for size, some in of_size.items():
        of_part: dict[bytes, list[Sample]] = defaultdict(list)
        for sample in some if len(some) > 1 else ():
            of_part[_part(sample.image, size // 2, _READ)].append(sample)
        for alike in of_part.values():
            same: dict[bytes, list[str]] = defaultdict(list)
            for sample in alike if len(alike) > 1 else ():
                digest = hashlib.sha256(_part(sample.image, 0, size)).digest()
                same[digest].append(sample.name)
            yield from (names for names in same.values() if len(names) > 1)


def _part(image: Path | bytes, start: int, length: int) -> bytes:
    if isinstance(image, bytes):
        return image[start : start + length]
    with image.open("rb") as file:
        file.seek(start)
        return file.read(length)
