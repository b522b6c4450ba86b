# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Which images to train on and which to validate on, without a leak between the two."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..layout import listed_names
from .copies import join_copies
from .frames import numbered_groups, video_groups
from .samples import Sample, find_image, speller


def similar_images(
    images: Mapping[str, Path], pattern: str | None, frames: bool | None, processes: int
) -> tuple[dict[str, list[str]], list[str]]:
    """The groups of :func:`keep_together` of image files, given by their names."""
    labels: Any = bytes  # which nobody renders
    samples = [Sample(n, file, labels, frozenset(), file.suffix) for n, file in images.items()]
    return keep_together(samples, pattern, frames, processes)


def keep_together(
    samples: Sequence[Sample], pattern: str | None, frames: bool | None, processes: int
) -> tuple[dict[str, list[str]], list[str]]:
    """As :func:`group_images`, with copies of one file in one group, too."""
    groups, notes = group_images(samples, pattern, frames, processes)
    groups, copies = join_copies(groups, samples)
    return groups, notes + copies


def group_images(
    samples: Sequence[Sample], pattern: str | None, frames: bool | None, processes: int
) -> tuple[dict[str, list[str]], list[str]]:
    """Puts images that must not be separated into groups; others stand alone.

    Roboflow's versions of an image are a group, which the name before its ending tells.

    Args:
        samples: The images.
        pattern: Images whose whole names match it with an equal first group are a group; None
            goes by the numbers at the end of their names.
        frames: Whether numbered images are frames of videos; None measures it
            (:func:`.frames.video_groups`). Of no effect with a pattern.
        processes: How many to measure with.

    Returns:
        Names by group, in order of the frames, and notes for the user.

    Raises:
        UserError: The pattern cannot be used.
    """
    if pattern is not None:
        return _matching([sample.name for sample in samples], pattern), []
    versions: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        versions[_original(sample.name)].append(sample)
    groups, notes = _group_originals(
        {name: some[0] for name, some in versions.items()}, frames, processes
    )
    if len(versions) < len(samples):
        first, other, *_ = next(some for some in versions.values() if len(some) > 1)
        notes.append(
            f"{len(samples) - len(versions):,} images are Roboflow's versions of others (e.g."
            f" {other.name} of {first.name}) and stay in their part"
        )
    return {
        group: [one.name for name in names for one in versions[name]]
        for group, names in groups.items()
    }, notes


def _original(name: str) -> str:
    """The name that an image had before Roboflow: ``a_jpg.rf.0c1d`` was ``a``."""
    return re.sub(r"(?:_(?:jpe?g|png|bmp|webp|tiff?))?\.rf\.[0-9a-z]+$", "", name, flags=re.I)


def _group_originals(
    samples: Mapping[str, Sample], frames: bool | None, processes: int
) -> tuple[dict[str, list[str]], list[str]]:
    """As :func:`group_images`, of one image of each name."""
    if frames is False:
        return {name: [name] for name in samples}, []
    numbered = numbered_groups(list(samples))
    if frames:
        return numbered, []
    several = {group: members for group, members in numbered.items() if len(members) > 1}
    videos = video_groups(several, samples, processes)
    groups = {}
    for group, members in numbered.items():
        groups.update(
            {group: members} if group in videos else {member: [member] for member in members}
        )
    photos = [group for group in several if group not in videos]
    notes = []
    for kind, some, option in (
        ("frames of a video and stay in one part", sorted(videos), "--no-frames"),
        ("single photos and are split one by one", sorted(photos), "--frames"),
    ):
        if some:
            count = sum(len(several[group]) for group in some)
            first = several[some[0]]
            notes.append(
                f"{count:,} numbered images (e.g. {first[0]} to {first[-1]}) look like {kind};"
                f" {option} decides otherwise"
            )
    return groups, notes


def _matching(names: Sequence[str], pattern: str) -> dict[str, list[str]]:
    option = f"--group-pattern {pattern}"
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError("argument", option, f"is not a regular expression ({error})") from error
    if compiled.groups < 1:
        raise UserError("argument", option, "has no group; put ( ) around the shared part")
    groups = defaultdict(list)
    for name in names:
        match = compiled.fullmatch(name)
        groups[match.group(1) if match else name].append(name)
    return dict(groups)


def split_by_groups(
    groups: Mapping[str, Sequence[str]], val_fraction: float, seed: int
) -> tuple[list[str], list[str], dict[str, int]]:
    """Splits images so that no group is in both parts.

    Groups are taken in an order that only their names and the seed decide, each as long as it
    brings the validation part nearer to its share. One group alone is cut: its last images are
    for validation.

    Returns:
        Training names, validation names, and the number of groups of each.

    Raises:
        UserError: The fraction cannot be used, or there is only one image.
    """
    if not 0 < val_fraction < 1:
        raise UserError("argument", f"--val-fraction {val_fraction}", "must lie between 0 and 1")
    names = [name for members in groups.values() for name in members]
    target = val_fraction * len(names)
    if len(names) < 2:
        message = "is the only image, which cannot be split; add images, or give --val-source"
        raise UserError("dataset", ", ".join(names), message)
    if len(groups) < 2:
        count = min(len(names) - 1, max(1, round(target)))
        return sorted(names[:-count]), sorted(names[-count:]), {"train": 1, "val": 1}
    val: list[str] = []
    chosen: set[str] = set()
    order = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}\0{group}".encode()).digest())
    for group in order:
        after = len(val) + len(groups[group])
        if len(chosen) < len(groups) - 1 and abs(after - target) < abs(len(val) - target):
            val += groups[group]
            chosen.add(group)
    if not chosen:  # every group is larger than twice the share: the smallest is the nearest
        smallest = min(order, key=lambda group: len(groups[group]))
        val += groups[smallest]
        chosen.add(smallest)
    train = sorted(set(names) - set(val))
    return train, sorted(val), {"train": len(groups) - len(chosen), "val": len(chosen)}


def split_by_list(
    names: Sequence[str], file: Path, folder: Path, test: Path | None, incomplete: bool
) -> tuple[list[str], list[str]]:
    """Splits images by a file that names those to validate on, one a line.

    ``folder`` is that of the images; see :func:`.listed_names` for what a line may be. Other images
    that the file ``test`` names are in neither part; it may name some without labels, and with
    ``incomplete`` both may.

    Raises:
        UserError: The file cannot be read, or names none, all, or an image that is not there.
    """
    option = f"--val-list {file}"
    known = set(names)
    spell = speller(known)
    ends = (".json", ".png")

    def is_known(name: str) -> bool:
        return spell(name) in known or (incomplete and find_image([folder / name]) is not None)

    try:
        listed = listed_names(file, folder, file.parent, ends, is_known, file != test)
        tested = listed_names(test, folder, test.parent, ends, is_known, False) if test else []
    except UserError as error:
        code = error.code if error.code == "unreadable" else "argument"
        raise UserError(code, f"--val-list {error.subject}", error.message) from error
    val = known & set(map(spell, listed))
    train = known - val - set(map(spell, tested))
    if not train or not val:
        raise UserError("argument", option, "must name some of the images, and not all")
    return sorted(train), sorted(val)
