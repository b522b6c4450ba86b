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
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...errors import UserError
from ...io.atomic import atomic_write
from ...io.bit_planes import MOST_CLASSES as MOST_OVERLAPPING
from ...io.bit_planes import to_file
from ...io.processes import cpu_count
from ...io.text import printable
from ...io.up_to_date import file_state
from ..class_names import CLASSES_FILE, check_class_name, classes_json
from ..label_map import MergedClasses, merge_classes
from .bands import (
    BandStatistics,
    band_options,
    keep_statistics,
    known_statistics,
    measure_bands,
)
from .coco import Faults, read_coco
from .colours import count_colours, describe, write_draft
from .copies import note_on_leaks
from .counts import count_pixels
from .custom_config import config_text
from .custom_options import CustomOptions
from .dataset import Plan
from .labelme import read_labelme
from .labels import bit_palette, png
from .masks import check_effects, check_palettes, images_in, read_masks
from .notes import (
    note_on_images,
    notes_on_ignored,
    notes_on_names,
    notes_on_pixels,
    notes_on_samples,
)
from .outputs import Outputs, check_apart
from .places import Place
from .planes import BitTable, Table, check_overlap, read_class_masks
from .samples import IGNORED, Sample, check_image, composed, speller
from .split import keep_together, split_by_groups, split_by_list
from .tables import BACKGROUND_NAME, IGNORED_NAME, Colour, read_table

FORMATS = ("labelme", "coco", "colour", "index", "masks")
_MOST_CLASSES = 255  # 255 itself means ignored

Palette = list[tuple[str, tuple[int, int, int]]]


@dataclass
class CustomReport:
    """What was found and done.

    ``classes`` holds name, colour and number of pixels in training and validation of each class;
    ``config`` is None where none was asked for;
    ``splits`` the names of images and ``groups`` the number of groups by split; ``done`` how many
    files were made, linked, copied and kept; ``unchanged`` says that nothing was to be done;
    ``bands`` are the statistics of images of bands, and ``suffixes`` the ends of images' names.
    """

    folder: Path
    config: Path | None
    classes: list[tuple[str, tuple[int, int, int], int, int]]
    splits: dict[str, list[str]]
    groups: dict[str, int]
    done: dict[str, int]
    notes: list[str] = field(default_factory=list)
    unchanged: bool = False
    bands: BandStatistics | None = None
    suffixes: tuple[str, ...] = ()


def _read_samples(
    options: CustomOptions,
    sources: Sequence[Path],
    images: Path | None,
    rows: Sequence[Colour],
    notes: list[str],
) -> list[Sample]:
    """The samples of the sources, in order of their names; ``notes`` takes what is left out."""
    form = options.form
    if options.allow_incomplete and form not in ("coco", "colour", "index"):
        raise UserError("argument", "--allow-incomplete", "is for COCO's files and masks")
    faults = Faults()
    for source in sources:
        if not source.exists():
            raise UserError("not-found", f"--source {source}", "does not exist")
    if images is not None and not images.is_dir():
        raise UserError("not-found", f"--images {images}", "is not a folder")
    samples: list[Sample] = []
    for source in sources:
        if form == "labelme":
            samples += read_labelme(source, images, notes)
        elif form == "coco":
            samples += read_coco(source, images, faults)
        elif form == "masks":
            known = [*(row.name for row in rows), *options.ignore]
            samples += read_class_masks(source, images, known)
        else:
            samples += read_masks(options, source, images, rows, notes)
    error = faults.error()
    if error is not None and not options.allow_incomplete:
        raise error
    notes += [f"left out of {file}: {text}" for file, text in faults.texts().items()]
    if not samples:
        what = "JSON files" if form in ("labelme", "coco") else "masks (PNG)"
        raise UserError("empty", ", ".join(map(str, sources)), f"holds no {what} with samples")
    seen: dict[str | Path, Sample] = {}
    for sample in samples:
        _check_name(sample.name)
        other = seen.setdefault(sample.name, sample)
        if other is not sample:
            message = "names two images; rename one of them"
            if other.image == sample.image:
                message = "has labels in two files; write them into one, or name one with --source"
            raise UserError("dataset", sample.name, message)
        key = sample.image if isinstance(sample.image, Path) else sample.name
        if (other := seen.setdefault(key, sample)) is not sample:
            message = f"is the image of two labels, {other.name} and {sample.name}; correct the"
            message += " name of the image in one of them, or remove it"
            raise UserError("dataset", key, message)
    return sorted(samples, key=lambda sample: sample.name)


def _check_name(name: str) -> None:
    """Makes sure that a list can name the image, one a line, in UTF-8."""
    try:
        name.encode()
        fits = len(name.splitlines()) == 1
    except UnicodeEncodeError:
        fits = False
    if not fits:
        shown = name.encode("utf-8", "backslashreplace").decode().encode("unicode_escape").decode()
        message = "has a line break or is not UTF-8; rename the image and its labels"
        raise UserError("dataset", shown, message)


def class_list(
    options: CustomOptions, rows: Sequence[Colour], samples: Sequence[Sample]
) -> tuple[Palette, dict[str, int]]:
    """Names and colours of the classes, and the label of every name that occurs.

    Names that differ in how they spell accents are one (:func:`.samples.speller`).

    Raises:
        UserError: A name occurs that the list does not have, an option names none of them, or
            there are too many.
    """
    background = options.background
    if background is not None:
        check_class_name(background, "--background")
    ignored = {IGNORED_NAME, *options.ignore}
    occurring = set().union(*(sample.names for sample in samples))
    spelled = {composed(name): name for name in sorted(occurring)}
    names = list(dict.fromkeys(row.name for row in rows)) or sorted(spelled.values())
    if not rows and background is not None and background not in names:
        names.insert(0, background)
    if background is not None and background not in names:
        raise UserError("classes", f"--background {background!r}", f"is not in {options.classes}")
    known = {*names, *ignored}
    spell = speller(known)
    unknown = sorted(name for name in occurring if spell(name) not in known)
    if unknown:
        where = next(sample for sample in samples if unknown[0] in sample.names)
        message = f"has the label {unknown[0]!r}, which is not in {options.classes}; add it there"
        raise UserError("classes", where.name, f"{message}, or give --ignore {unknown[0]!r}")
    for name in options.ignore:
        if name not in names and name not in occurring:
            message = f"no class has that name; there are {_shown(names)}"
            raise UserError("argument", f"--ignore {name!r}", message)
    classes = [name for name in names if name not in ignored]
    subject = ", ".join(map(str, options.sources))
    if not names:
        raise UserError("classes", subject, "its labels name no class; label some of the images")
    if options.classes is not None:
        subject = str(options.classes)
    if options.multilabel and not 0 < len(classes) <= MOST_OVERLAPPING:
        message = (
            f"has {len(classes)} classes, and there can be 1 to {MOST_OVERLAPPING} that"
            " overlap; see --ignore"
        )
        raise UserError("classes", subject, message)
    if not options.multilabel and not 1 < len(classes) <= _MOST_CLASSES:
        message = (
            f"has {len(classes)} classes ({_shown(classes[:5])}), and there can be 2 to"
            f" {_MOST_CLASSES}; for one class against the rest, name the rest with --background"
            " (shapes) or as a class of --classes (masks)"
        )
        raise UserError("classes", subject, message)
    given = {row.name: row.rgb for row in reversed(rows) if row.rgb is not None}
    spare = map(tuple, bit_palette()[1:].tolist())
    free = (colour for colour in spare if colour not in given.values())
    palette = [(name, given[name] if name in given else next(free)) for name in classes]
    table = dict.fromkeys(ignored | set(names), IGNORED)
    table.update({name: label for label, name in enumerate(classes)})
    return palette, table | {name: table[spell(name)] for name in occurring}


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names))


def prepare_custom(
    options: CustomOptions,
    root: str | os.PathLike[str],
    config_dir: str | os.PathLike[str] | None = None,
    base: Config | None = None,
    epochs: int = 80,
    jobs: int | None = None,
    link: str = "auto",
    force: bool = False,
    base_name: str | None = None,
) -> CustomReport:
    """Prepares a data set of one's own and, unless ``config_dir`` is None, writes its config.

    It can be killed and called again at any moment, and a call that finds everything done changes
    nothing. The sources are only read.

    Args:
        options: What to prepare.
        root: The data root.
        config_dir: Folder of the config; None writes none.
        base: The config that it inherits from, as read from its file; needed for a config.
        epochs: Length of the training that the config asks for.
        jobs: Processes; None is one a core.
        link: How to put the images: one of ``io.linking.LINKS``.
        force: Replace a config that was changed by hand.
        base_name: What the config calls its base; None: the path of the base's file.

    Raises:
        UserError: Names the file or option that is wrong.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", options.name) or keyword.iskeyword(options.name):
        message = "must be letters, digits and _, a letter first"
        raise UserError("argument", f"--name {options.name}", message)
    if epochs < 1:
        raise UserError("argument", f"--epochs {epochs}", "must be at least 1")
    check_overlap(options)
    check_effects(options)
    processes = cpu_count() if jobs is None else jobs
    root = Path(root)
    folder = root / options.name
    config = None if config_dir is None else Path(config_dir) / f"{options.name}.py"
    given = *options.sources, *options.val_sources, options.images, options.val_images
    check_apart(folder, given, options.name)
    rows = read_table(options.classes) if options.classes is not None else []
    if options.form == "index" and [r.name for r in rows[:2]] == [IGNORED_NAME, BACKGROUND_NAME]:
        rows = rows[1:]  # whose masks have 0 for the second
    named = [row.name for row in rows if row.name != IGNORED_NAME]
    if options.form == "index" and len(set(named)) != len(named):
        twice = next(name for name in named if named.count(name) > 1)
        message = f"names the class {printable(twice)!r} twice; rename or remove one of them"
        raise UserError("classes", options.classes, message)
    draft = root / f"{options.name}_colours.txt"
    folders = all(source.is_dir() for source in (*options.sources, *options.val_sources))
    if options.form == "colour" and folders and len({row.rgb for row in rows} - {None}) < 2:
        sources = ", ".join(map(str, options.sources))
        raise _unknown_colours(options, rows, draft, processes, sources)
    if options.form == "index" and folders:
        check_palettes(_masks(options), processes, rows)
    samples, splits, groups, notes = _samples(options, rows, processes)
    if options.form in ("labelme", "coco"):
        given = options.images, options.val_images
        searched = [folder for folder in given if folder is not None] or [
            source if source.is_dir() else source.parent
            for source in (*options.sources, *options.val_sources)
        ]
        notes += note_on_images(samples, searched)
    notes += notes_on_samples(samples, options)
    palette, table = class_list(options, rows, samples)
    uncovered = table[options.background] if options.background is not None else IGNORED
    drawn = BitTable.of(table, len(palette)) if options.multilabel else table
    plan = _plan(samples, splits, palette, drawn, uncovered)
    merged = _merged(options.label_map, palette)
    sources = ", ".join(map(str, options.sources))
    bands = band_options(samples, options.bands, str(options.images or sources))
    suffixes = tuple(sorted({sample.suffix.lower() for sample in samples}))
    planes = len(palette) if options.multilabel else None

    def text_of(statistics: BandStatistics | None) -> bytes | None:
        if config is None or base is None or (bands is not None and statistics is None):
            return None
        sizes = len(merged.classes), len(splits["train"]), len(splits["val"])
        return config_text(
            options, root, *sizes, config, base, epochs, base_name, statistics, suffixes
        ).encode()

    old = config.read_bytes() if config is not None and config.is_file() else None
    with Outputs(folder) as outputs:
        about = outputs.record.about
        statistics = known_statistics(about, bands, splits["train"])
        text = text_of(statistics)
        if about and about.get("data_set") != "custom":
            message = f"{folder} is the folder of another data set; choose another name"
            raise UserError("output-exists", f"--name {options.name}", message)
        if old is not None and old != text and not force and _sha(old) != about.get("config"):
            message = "was changed or made by hand; move it, or replace it with --force"
            raise UserError("output-exists", config, message)
        about |= {"data_set": "custom", "name": options.name}
        try:
            done = outputs.run(plan.items, processes, link, options.name)
        except UserError as error:
            if options.form == "colour" and error.code == "label":
                raise _unknown_colours(options, rows, draft, processes, error.subject) from error
            raise
        counted = outputs.finished("pixels", "unlabelled", "ignored", "held")
        known = counted is not None and (bands is None or statistics is not None)
        unchanged = known and done["kept"] == len(plan.items) and old == text
        if not unchanged or counted is None:
            counted = {"pixels": {}, "unlabelled": [], "ignored": 0, "held": Counter()}
            for split, names in splits.items():
                total, unlabelled, held = count_pixels(folder, names, processes, split, planes)
                counted["pixels"][split] = [total[label] for label in range(len(palette))]
                counted["unlabelled"] += unlabelled
                counted["ignored"] += total[IGNORED]
                counted["held"] += held
            if options.form == "index" and counted["ignored"]:
                _check_two_values(options, rows, counted["pixels"], draft)
            if bands is not None:
                training = set(splits["train"])
                chosen = [sample for sample in samples if sample.name in training]
                statistics = measure_bands(folder, chosen, bands, processes, planes)
                keep_statistics(about, statistics, splits["train"])
                outputs.record.save()  # before the config, which holds them
                text = text_of(statistics)
            if config is not None and text is not None:
                atomic_write(config, text)
                about["config"] = _sha(text)
            outputs.finish({}, plan.items, counted)
    pixels = {split: Counter[int]() for split in ("train", "val")}
    for split, total in pixels.items():
        for label, count in enumerate(counted["pixels"][split]):
            total[merged.labels.get(label, label)] += count
    classes = [
        (name, tuple(colour), pixels["train"][label], pixels["val"][label])
        for label, (name, colour) in enumerate(zip(merged.classes, merged.palette, strict=True))
    ]
    notes += notes_on_names(merged.classes)
    notes += notes_on_pixels(classes, counted["unlabelled"])
    zero = bool(rows) and rows[0].name == IGNORED_NAME
    notes += notes_on_ignored(options, counted, zero)
    return CustomReport(
        folder, config, classes, splits, groups, dict(done), notes, unchanged, statistics, suffixes
    )


def _samples(
    options: CustomOptions, rows: Sequence[Colour], processes: int
) -> tuple[list[Sample], dict[str, list[str]], dict[str, int], list[str]]:
    """The samples, the names in each split, how many groups each split has, and notes."""
    notes: list[str] = []
    samples = _read_samples(options, options.sources, options.images, rows, notes)
    names = [sample.name for sample in samples]
    if options.val_sources:
        val_images = options.val_images or options.images
        apart = _read_samples(options, options.val_sources, val_images, rows, notes)
        held_out = [sample.name for sample in apart]
        if set(names) & set(held_out):  # then the name of the part comes before both
            samples = [replace(sample, name=f"train/{sample.name}") for sample in samples]
            apart = [replace(sample, name=f"val/{sample.name}") for sample in apart]
            names = [sample.name for sample in samples]
            held_out = [sample.name for sample in apart]
        samples += apart
        notes += note_on_leaks(samples, set(held_out))
        return samples, {"train": sorted(names), "val": sorted(held_out)}, {}, notes
    if options.val_list is not None:
        source = options.sources[0]
        folder = options.images or (source if source.is_dir() else source.parent)
        train, val = split_by_list(
            names, options.val_list, folder, options.test_list, options.allow_incomplete
        )
        if left := len(names) - len(train) - len(val):
            notes.append(f"left out: {left:,} images that {options.test_list} lists")
            kept = {*train, *val}
            samples = [sample for sample in samples if sample.name in kept]
        notes += note_on_leaks(samples, set(val))
        return samples, {"train": train, "val": val}, {}, notes
    groups, more = keep_together(samples, options.group_pattern, options.frames, processes)
    notes += more
    train, val, counts = split_by_groups(groups, options.val_fraction, options.seed)
    if len(groups) == 1:
        notes.append(
            f"all {len(names):,} images are one group: the last {len(val):,} are for validation,"
            " and look better than new images will; --val-source or --val-list names others"
        )
    return samples, {"train": train, "val": val}, counts, notes


def _plan(
    samples: Sequence[Sample],
    splits: Mapping[str, Sequence[str]],
    palette: Palette,
    table: Table,
    uncovered: int,
) -> Plan:
    """The files of the data set."""
    plan = Plan()
    for sample in samples:
        target = f"images/{sample.name}{sample.suffix.lower()}"
        if isinstance(sample.image, Path):
            image, size = sample.image, sample.image.stat().st_size
            plan.take(target, Place(sample.name, size, file_state(image), image), check_image)
        else:
            plan.make(target, bytes, sample.image)
        labels = f"annotations/{sample.name}.png"
        plan.make(labels, _render, sample.image, sample.render, table, uncovered)
    plan.make(CLASSES_FILE, bytes, classes_json(palette))
    for split, names in splits.items():
        plan.write(f"splits/{split}.txt", names)
    return plan


def _merged(label_map: Mapping[str, str], palette: Palette) -> MergedClasses:
    """The classes that the config's ``label_map`` leaves."""
    names, colours = [name for name, _ in palette], [colour for _, colour in palette]
    try:
        merged = merge_classes(label_map, names, colours)
    except UserError as error:
        raise UserError(error.code, "--label-map", error.message) from error
    if label_map and len(merged.classes) < 2:
        message = f"leaves {printable(merged.classes[0])} alone, and nothing to tell it from"
        raise UserError("classes", "--label-map", message)
    return merged


def _masks(options: CustomOptions) -> list[Place]:
    """The masks of all sources, which are folders."""
    folders = *options.sources, *options.val_sources
    return [p for folder in folders for p in images_in(folder, options.label_suffix).values()]


def _unknown_colours(
    options: CustomOptions, rows: Sequence[Colour], draft: Path, processes: int, subject: str
) -> UserError:
    """The error for colours without a name, all at once; writes a draft of the table."""
    masks = _masks(options)
    found = count_colours(masks, processes, strict=True)
    unknown = Counter({rgb: found[rgb] for rgb in set(found) - {row.rgb for row in rows}})
    if not unknown:
        message = f"the masks hold one colour alone: {describe(found)}; label a second class"
        return UserError("classes", subject, message)
    write_draft(draft, rows, unknown)
    lossy = (
        "; so many come from resizing or JPEG: get the masks from before it"
        if len(unknown) > _MOST_CLASSES
        else ""
    )
    message = (
        f"{len(unknown):,} colours of {len(masks):,} masks have no name, with pixels:"
        f" {describe(unknown)}{lossy}. {draft} lists them: name them there, then the same command"
        f" with --classes {shlex.quote(str(draft))}"
    )
    return UserError("label", subject, message)


def _check_two_values(
    options: CustomOptions, rows: Sequence[Colour], pixels: Mapping[str, list[int]], draft: Path
) -> None:
    """Refuses masks of 0 and 255 that were meant as two classes: 255 would be ignored."""
    used = {label for counts in pixels.values() for label, count in enumerate(counts) if count}
    if used != {0} or len(rows) < 2:
        return
    names = [row.name for row in rows[:2]]
    table = [Colour(names[0], (0, 0, 0)), Colour(names[1], (255, 255, 255))]
    write_draft(draft, table, Counter())
    message = (
        f"the masks hold 0 and 255 alone, and 255 is ignored; if it means {printable(names[1])!r},"
        f" run the same command with --format colour --classes {shlex.quote(str(draft))}"
    )
    raise UserError("label", ", ".join(map(str, options.sources)), message)


def _sha(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def _render(image: object, render: Any, table: Table, uncovered: int) -> bytes:
    """The label map; the image is an argument because its size decides it."""
    labels = render(table, uncovered)
    return png(to_file(labels, table.classes) if isinstance(table, BitTable) else labels)
