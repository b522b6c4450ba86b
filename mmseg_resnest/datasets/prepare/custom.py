# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A data set of one's own: to index PNGs, a class list, a split by groups and a config.

Layout below ``root/NAME``: ``images/*``, ``annotations/*.png`` (8-bit, 0..K-1 = class, 255 =
ignored), ``classes.json`` (names and colours) and ``splits/{train,val}.txt``. The config, whose
text holds nothing but numbers and escaped paths (``custom_config``), names that file.
"""

from __future__ import annotations

import hashlib
import keyword
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from ...errors import UserError
from ...io.atomic import atomic_write
from ...io.parallel import in_parallel
from ...io.processes import cpu_count
from ...io.text import printable
from ..class_names import CLASSES_FILE, check_class_name, classes_json
from .annotations import read_samples
from .custom_config import config_text
from .dataset import VERSION, Plan
from .labels import bit_palette, indices, png
from .samples import IGNORED, IGNORED_NAME, Sample, check_image
from .sources import Place
from .tables import Colour, read_table
from .work import Workspace

# The frames of one video share a name but for the number at its end: 0001TP_006690, seq-f00930.
GROUP_PATTERN = r"(.*?)(?:[^/A-Za-z0-9]+[A-Za-z]?)?\d+"
_MOST_CLASSES = 255  # 255 itself means ignored


@dataclass(frozen=True)
class CustomOptions:
    """What a person may say about a data set of theirs.

    Attributes:
        name: Folder below the data root and name of the config.
        form: One of ``annotations.FORMATS``.
        sources: Where the labels are.
        val_sources: Where the labels of the validation images are, if they are apart.
        images: Folder of the images.
        val_images: Folder of the validation images; None is ``images``.
        classes: Class list or colour table; None takes the names that occur, sorted.
        ignore: Names whose pixels are ignored; ``__ignore__`` always is.
        background: The name of pixels that no shape covers; None ignores them.
        label_suffix: What a mask's name has after its image's.
        val_fraction: Share of the images to validate on.
        val_list: File with the names of the images to validate on, instead of a share.
        group_pattern: The first group of this pattern, matched with the whole name, is the group.
        seed: Of the split.
    """

    name: str
    form: str
    sources: tuple[Path, ...]
    val_sources: tuple[Path, ...] = ()
    images: Path | None = None
    val_images: Path | None = None
    classes: Path | None = None
    ignore: tuple[str, ...] = ()
    background: str | None = None
    label_suffix: str = ""
    val_fraction: float = 0.2
    val_list: Path | None = None
    group_pattern: str = GROUP_PATTERN
    seed: int = 0


@dataclass
class CustomReport:
    """What was found and done.

    Attributes:
        folder: The data set's folder.
        config: The config file.
        classes: Names, colours and how many pixels of the training and validation images are each.
        splits: Names of the images of each split.
        groups: How many groups each split has.
        done: Files made, linked, copied and kept.
        notes: What the user should know.
        unchanged: Whether nothing was to be done.
    """

    folder: Path
    config: Path
    classes: list[tuple[str, tuple[int, int, int], int, int]]
    splits: dict[str, list[str]]
    groups: dict[str, int]
    done: dict[str, int]
    notes: list[str] = field(default_factory=list)
    unchanged: bool = False


# ------------------------------------------------------------------------------------------------
# Classes


def class_list(
    options: CustomOptions, rows: Sequence[Colour], samples: Sequence[Sample]
) -> tuple[list[tuple[str, tuple[int, int, int]]], dict[str, int]]:
    """Names and colours of the classes, and the label of every name that occurs.

    Raises:
        UserError: A name occurs that the list does not have, an option names none of them, or
            there are too many.
    """
    if options.background is not None:
        check_class_name(options.background, "--background")
    ignored = {IGNORED_NAME, *options.ignore}
    occurring = set().union(*(sample.names for sample in samples))
    if rows:
        names = list(dict.fromkeys(row.name for row in rows))
    else:
        names = sorted(occurring)
        if options.background is not None and options.background not in names:
            names.insert(0, options.background)
    if options.background is not None and options.background not in names:
        raise UserError(
            "classes", f"--background {options.background!r}", f"is not in {options.classes}"
        )
    unknown = sorted(occurring - set(names) - ignored)
    if unknown:
        where = next(sample for sample in samples if unknown[0] in sample.names)
        raise UserError(
            "classes",
            where.name,
            f"has the label {unknown[0]!r}, which {options.classes} does not list;"
            f" add it there, or ignore it with --ignore {unknown[0]!r}",
        )
    for name in options.ignore:
        if name not in names and name not in occurring:
            raise UserError(
                "argument",
                f"--ignore {name!r}",
                f"no class has that name; there are {_shown(names)}",
            )
    classes = [name for name in names if name not in ignored]
    if not 1 < len(classes) <= _MOST_CLASSES:
        raise UserError(
            "classes",
            options.name,
            f"has {len(classes)} classes ({_shown(classes[:5])}), and there can"
            f" be 2 to {_MOST_CLASSES}; for one class against the rest, name the rest with"
            " --background",
        )
    given = {row.name: row.rgb for row in reversed(rows) if row.rgb is not None}
    spare = (tuple(int(v) for v in colour) for colour in bit_palette()[1:])
    free = (colour for colour in spare if colour not in given.values())
    palette: list[tuple[str, tuple[int, int, int]]] = []
    for name in classes:
        red, green, blue = given[name] if name in given else next(free)
        palette.append((name, (red, green, blue)))
    table = dict.fromkeys(occurring | ignored | set(names), IGNORED)
    table.update({name: label for label, name in enumerate(classes)})
    return palette, table


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names))


# ------------------------------------------------------------------------------------------------
# The split


def group_of(name: str, pattern: re.Pattern[str]) -> str:
    """What an image's name shares with the others of its group; the name itself if nothing."""
    match = pattern.fullmatch(name)
    return match.group(1) if match else name


def split_by_groups(
    names: Sequence[str], pattern: str, val_fraction: float, seed: int
) -> tuple[list[str], list[str], dict[str, int]]:
    """Splits images so that no group is in both parts.

    Groups are taken in an order that only their names and the seed decide, each as long as it
    brings the validation part nearer to its share.

    Args:
        names: Of the images.
        pattern: See ``CustomOptions.group_pattern``.
        val_fraction: The share to reach, between 0 and 1.
        seed: Another seed gives another split.

    Returns:
        Training names, validation names, and the number of groups of each.

    Raises:
        UserError: The pattern is none, or there is only one group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(
            "argument", f"--group-pattern {pattern}", f"is no regular expression ({error})"
        ) from error
    if compiled.groups < 1:
        raise UserError(
            "argument", f"--group-pattern {pattern}", "has no group; put ( ) around the shared part"
        )
    if not 0 < val_fraction < 1:
        raise UserError("argument", f"--val-fraction {val_fraction}", "must lie between 0 and 1")
    groups = defaultdict(list)
    for name in names:
        groups[group_of(name, compiled)].append(name)
    if len(groups) < 2:
        raise UserError(
            "dataset",
            "",
            f"all {len(names)} images are one group, {next(iter(groups))!r}, as frames of one video"
            " would be, and cannot be split without a leak; tell the groups apart with"
            " --group-pattern, e.g. '(.*)' if every image stands alone, or name the validation"
            " images with --val-list FILE",
        )

    def place(group: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{group}".encode()).digest()

    target = val_fraction * len(names)
    val: list[str] = []
    chosen: set[str] = set()
    order = sorted(groups, key=place)
    for group in order:
        after = len(val) + len(groups[group])
        if len(chosen) < len(groups) - 1 and abs(after - target) < abs(len(val) - target):
            val += groups[group]
            chosen.add(group)
    if not chosen:  # every group is larger than twice the share: the smallest is the nearest
        smallest = min(order, key=lambda group: len(groups[group]))
        val += groups[smallest]
        chosen.add(smallest)
    held_out = set(val)
    train = [name for name in names if name not in held_out]
    return sorted(train), sorted(val), {"train": len(groups) - len(chosen), "val": len(chosen)}


def _listed(file: Path, names: Sequence[str]) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("unreadable", f"--val-list {file}", f"cannot be read ({error})") from error
    known = set(names)
    chosen = []
    for line in filter(None, lines):
        line = line.replace("\\", "/")
        name = line if line in known else os.path.splitext(line)[0]
        if name not in known:
            raise UserError(
                "argument", f"--val-list {file}", f"names {line}, and there is no such image"
            )
        chosen.append(name)
    if not chosen or len(set(chosen)) == len(names):
        raise UserError(
            "argument", f"--val-list {file}", "must name some of the images, and not all"
        )
    return sorted(set(chosen))


# ------------------------------------------------------------------------------------------------
# The whole


def prepare_custom(
    options: CustomOptions,
    root: str | os.PathLike[str],
    config_dir: str | os.PathLike[str],
    base: Config,
    epochs: int = 80,
    jobs: int | None = None,
    link: str = "auto",
    force: bool = False,
) -> CustomReport:
    """Prepares a data set of one's own and writes its config.

    It can be killed and called again at any moment, and a call that finds everything done changes
    nothing. The sources are only read.

    Args:
        options: What to prepare.
        root: The data root.
        config_dir: Folder of the config.
        base: The config that it inherits from, as read from its file.
        epochs: Length of the training that the config asks for.
        jobs: Processes; None is one a core.
        link: How to put the images: one of ``work.LINKS``.
        force: Replace a config that was changed by hand.

    Returns:
        What was found and done.

    Raises:
        UserError: Names the file or option that is wrong.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", options.name) or keyword.iskeyword(options.name):
        raise UserError(
            "argument", f"--name {options.name}", "must be letters, digits and _, a letter first"
        )
    if epochs < 1:
        raise UserError("argument", f"--epochs {epochs}", "must be at least 1")
    processes = cpu_count() if jobs is None else jobs
    root = Path(root)
    rows = read_table(options.classes) if options.classes is not None else []
    names = list(dict.fromkeys(row.name for row in rows))
    if options.form == "index" and len(names) != len(rows):
        raise UserError("classes", options.classes, "names a class twice")

    def read(sources: Sequence[Path], images: Path | None) -> list[Sample]:
        return read_samples(options.form, sources, images, rows, names, options.label_suffix)

    samples = read(options.sources, options.images)
    val_samples: list[Sample] = []
    if options.val_sources:
        val_samples = read(options.val_sources, options.val_images or options.images)
        shared = {s.name for s in samples} & {s.name for s in val_samples}
        if shared:
            raise UserError(
                "dataset", min(shared), "is in --source and in --val-source; rename one of them"
            )
    all_samples = samples + val_samples
    palette, table = class_list(options, rows, all_samples)
    uncovered = table[options.background] if options.background is not None else IGNORED
    train, val, groups = _split(options, samples, val_samples)

    plan = Plan()
    # One key for the table: another order of the classes makes every label map anew.
    table_key = hashlib.sha1(repr((sorted(table.items()), uncovered)).encode()).hexdigest()[:12]
    for sample in all_samples:
        target = f"images/{sample.name}{sample.suffix.lower()}"
        if isinstance(sample.image, Path):
            size = sample.image.stat().st_size
            stamp = f"{size}-{sample.image.stat().st_mtime_ns}"
            plan.take(target, Place(sample.name, size, stamp, sample.image), check_image)
        else:
            plan.make(target, sample.key, partial(bytes, sample.image))
        plan.make(
            f"annotations/{sample.name}.png",
            f"{sample.key} {table_key}",
            partial(_render, sample, table, uncovered),
        )
    plan.put(CLASSES_FILE, classes_json(palette))
    plan.write("splits/train.txt", train)
    plan.write("splits/val.txt", val)

    config = Path(config_dir) / f"{options.name}.py"
    text = config_text(
        options.name, root, len(palette), len(train), len(val), config, base, epochs
    ).encode()
    old = config.read_bytes() if config.is_file() else None
    folder = root / options.name
    with Workspace(folder) as work:
        record = work.record()
        if record and record.get("facts", {}).get("data_set") != "custom":
            raise UserError(
                "argument",
                f"--name {options.name}",
                f"{folder} is the folder of another data set; choose another name",
            )
        written = record["report"].get("config") if record else None
        counted = _counted(record, len(palette))
        if old is not None and old != text and not force and _sha(old) != written:
            raise UserError(
                "output-exists",
                config,
                "is there already and was changed or made by hand; move it away, or"
                " replace it with --force",
            )
        done = work.run(plan.items, processes, link, options.name)
        unchanged = done["kept"] == len(plan.items) and counted is not None and old == text
        if unchanged and counted is not None:
            pixels, unlabelled = counted
        else:
            pixels, unlabelled = {}, []
            for split, chosen in (("train", train), ("val", val)):
                pixels[split], nothing = _count_pixels(
                    folder, chosen, len(palette), processes, split
                )
                unlabelled += nothing
            atomic_write(config, text)
            facts = {"data_set": "custom", "version": VERSION, "name": options.name}
            found = {"config": _sha(text), "pixels": pixels, "unlabelled": unlabelled}
            work.finish(facts, plan.items, found)
    report = CustomReport(
        folder,
        config,
        [
            (name, colour, pixels["train"][label], pixels["val"][label])
            for label, (name, colour) in enumerate(palette)
        ],
        {"train": train, "val": val},
        groups,
        dict(done),
        unchanged=unchanged,
    )
    for name, _, in_train, in_val in report.classes:
        if not in_train or not in_val:
            where = " and ".join(
                split for split, count in (("train", in_train), ("val", in_val)) if not count
            )
            report.notes.append(f"class {name!r} has no pixel in {where}")
    if unlabelled:
        report.notes.append(
            f"{len(unlabelled):,} images have no labelled pixel, e.g. {min(unlabelled)}: training"
            " learns nothing from them"
        )
    return report


def _counted(
    record: dict[str, Any] | None, classes: int
) -> tuple[dict[str, list[int]], list[str]] | None:
    """What an earlier run counted, see :func:`_count_pixels`; None where it is not there."""
    report = record["report"] if record else {}
    pixels, unlabelled = report.get("pixels"), report.get("unlabelled", [])
    if not isinstance(pixels, dict) or not isinstance(unlabelled, list):
        return None
    for split in ("train", "val"):
        counts = pixels.get(split)
        if not isinstance(counts, list) or [type(n) for n in counts] != [int] * classes:
            return None
    return pixels, list(map(str, unlabelled))


def _sha(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _split(
    options: CustomOptions, samples: Sequence[Sample], val_samples: Sequence[Sample]
) -> tuple[list[str], list[str], dict[str, int]]:
    names = [sample.name for sample in samples]
    if not val_samples and options.val_list is None:
        return split_by_groups(names, options.group_pattern, options.val_fraction, options.seed)
    if val_samples:
        val = sorted(sample.name for sample in val_samples)
        return sorted(names), val, {}
    assert options.val_list is not None
    val = _listed(options.val_list, names)
    return sorted(set(names) - set(val)), val, {}


def _render(sample: Sample, table: dict[str, int], uncovered: int) -> bytes:
    return png(sample.render(table, uncovered))


def _count_pixels(
    folder: Path, names: Sequence[str], classes: int, processes: int, split: str
) -> tuple[list[int], list[str]]:
    """Pixels of each class, and the names of images that have none of any."""
    total: Counter[int] = Counter()
    unlabelled = []
    work = partial(_histogram, folder / "annotations")
    for name, counts in in_parallel(work, names, processes, f"count {split}"):
        total.update(counts)
        if set(counts) <= {IGNORED}:
            unlabelled.append(name)
    return [total[label] for label in range(classes)], sorted(unlabelled)


def _histogram(folder: Path, name: str) -> tuple[str, dict[int, int]]:
    file = folder / f"{name}.png"
    counts = np.bincount(indices(file.read_bytes(), file).reshape(-1), minlength=256)
    return name, {int(label): int(counts[label]) for label in np.flatnonzero(counts)}
