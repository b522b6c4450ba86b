# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Which masks a folder holds: of colours, of label numbers, or one a class."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...errors import UserError
from ...io.image_files import IMAGE_SUFFIXES
from ...io.parallel import in_parallel
from ..layout import listed_names
from .colours import count_colours, read_palettes
from .labels import indices, is_lossy, numbers_in, open_image
from .layouts import (
    FORM_NAMES,
    SPLITS,
    Found,
    choose_splits,
    common_folder,
    is_image,
    named_split_and_role,
    role_of,
    split_and_role,
)
from .masks import images_in
from .places import Place
from .samples import IGNORED, composed
from .tables import IGNORED_NAME, Colour, read_table

_SUFFIXES = (
    *("_mask", "-mask", ".mask", "_masks", "_label", "-label", "_labels", "_seg", "_gt"),
    *("_annotation", "_annot", "_L", "_gtFine_labelTrainIds", "_gtFine_labelIds"),
)
_LISTS = {
    "val": ("imagesets/segmentation/val.txt", "splits/val.txt", "val.txt", "valid.txt"),
    "test": ("imagesets/segmentation/test.txt", "splits/test.txt", "test.txt"),
}
_SAMPLED = 12  # masks that are looked at to tell colours from label numbers
_RARE, _FEW_GREYS = 1e-3, 3  # share of the pixels; greys that may be classes
_SMALL_GREY = 32
_MOST_COLOURS = 64  # in all masks, without a table: more come from JPEG or from resizing
# Folders of masks and images, and the suffix of masks; None where there is one mask a class.
Pair = tuple[Path, Path, str | None]


def mask_pairs(places: Sequence[Place]) -> dict[str, Pair]:
    """Folders of masks and of images, by part; nothing where no mask has an image."""
    parts: dict[str, dict[str | None, list[Place]]] = defaultdict(lambda: defaultdict(list))
    photos = {place.file.with_suffix("") for place in places if is_image(place, IMAGE_SUFFIXES)}
    stems = {composed(place.file.stem) for place in filter(is_image, places)}
    for place in filter(is_image, places):
        if place.file.suffix.lower() == ".npy" and place.file.with_suffix("") in photos:
            continue  # something else about a photo
        split, role = split_and_role(place.name)
        if role == "labels" and composed(place.file.parent.name) in stems:  # NAME/CLASS.png
            outer = split_and_role(str(PurePosixPath(place.name).parent))
            split = outer[0] if outer[1] == "labels" else split
        if role != "instances":
            parts[split][role].append(place)
    found = {}
    for split, roles in parts.items():
        if pair := _pair(roles):
            found[split] = pair
    return found


def _pair(roles: Mapping[str | None, list[Place]]) -> Pair | None:
    masks = roles.get("labels") or []
    files = [place for place in masks if place.file.suffix.lower() != ".npy"]
    masks = files or masks  # LabelMe's converter writes both
    pictures = roles.get("images") or roles.get(None) or []
    if masks and pictures:
        source, images = common_folder(masks), common_folder(pictures)
        suffix = _suffix(masks, pictures, source, images)
        return (
            source,
            images,
            None if _have_classes(masks, pictures, source, suffix) else suffix or "",
        )
    among = [place for some in roles.values() for place in some]
    folder = common_folder(among)
    suffix = _suffix(among, among, folder, folder)
    return (folder, folder, suffix) if suffix else None


def _suffix(
    masks: Sequence[Place], pictures: Sequence[Place], source: Path, images: Path
) -> str | None:
    """What most masks' names have after their image's; None if no two names belong together."""
    names = {_stem(place, images) for place in pictures}
    stems = [_stem(place, source) for place in masks]
    counts = Counter[str]()
    for stem in stems:
        if stem in names and masks is not pictures:
            counts[""] += 1
        for suffix in (*_SUFFIXES, *(IMAGE_SUFFIXES if masks is not pictures else ())):
            name, end = stem[: -len(suffix)], stem[-len(suffix) :]
            if end.lower() == suffix.lower() and name in names:
                counts[end] += 1
    return max(counts, key=lambda suffix: (counts[suffix], suffix)) if counts else None


def _stem(place: Place, folder: Path) -> str:
    stem = place.file.relative_to(folder).with_suffix("").as_posix()
    return composed(stem)


def _have_classes(
    masks: Sequence[Place], pictures: Sequence[Place], source: Path, suffix: str | None
) -> bool:
    """Whether masks are named as no image, but lie as ``CLASS/NAME`` or ``NAME/CLASS``."""
    names = {composed(place.file.stem) for place in pictures}
    return suffix is None and any(
        composed(name) in names
        for place in masks
        if place.file.parent != source
        for name in (place.file.stem, place.file.parent.name)
    )


def _as_class_masks(pair: Pair) -> Pair:
    """Folders of masks whose classes may overlap, of which a single class may have one alone."""
    source, images, end = pair
    told = role_of(source.name) or any(
        re.fullmatch(pattern, source.name, re.I) for pattern in SPLITS.values()
    )
    return (source.parent, images, None) if end == "" and not told else pair


def found_masks(
    folder: Path,
    pairs: Mapping[str, Pair],
    places: Sequence[Place],
    form: str | None,
    table: Path | None,
    notes: list[str],
    processes: int,
    multilabel: bool,
) -> Found:
    """What a folder of masks was taken for.

    Args:
        folder: That was looked through.
        pairs: What :func:`mask_pairs` found.
        places: All files of the folder.
        form: ``colour``, ``index`` or ``masks``; None tells it from the files.
        table: A class list or colour table.
        notes: On what was decided so far.
        processes: How many to read masks with.
        multilabel: Whether classes may overlap.

    Raises:
        UserError: The masks' names or colours do not agree, or a file cannot be read.
    """
    for source, images, end in pairs.values():
        if end is None and source == images:
            message = (
                "has folders of masks and of images in each of several folders; move them into one"
                " folder `masks` and one folder `images`, with the same folders below both"
            )
            raise UserError("dataset", source, message)
        tops = {
            top for place in filter(is_image, places) for top in place.file.parents
            if source in top.parents and role_of(top.name) == "labels"
        }  # fmt: skip
        if source != images and len(tops) > 1:
            first, second, *_ = sorted(tops)
            message = f"and {second} both hold masks of {images}; move one of them elsewhere"
            raise UserError("dataset", first, message)
        _check_parts(source, images, end or "", places)
    parts = {split_and_role(place.name)[0] for place in places if is_image(place)}
    notes += [f"left out: the part {one!r}, without masks" for one in sorted(parts - set(pairs))]
    classed = {part: _as_class_masks(pair) if multilabel else pair for part, pair in pairs.items()}
    of_classes = form in (None, "masks") and all(end is None for *_, end in classed.values())
    pairs = classed if of_classes else pairs
    train, val = choose_splits(pairs, notes, folder)
    source, images, _ = pairs[train]
    found: dict[str, Any] = {}
    if val is not None:
        found = {"val_sources": (pairs[val][0],), "val_images": pairs[val][1]}
    if of_classes:
        number = sum(1 for place in places if source in place.file.parents and is_image(place))
        notes.insert(0, f"labels: {FORM_NAMES['masks']} ({number:,})")
        return Found("masks", (source,), images, classes=table, notes=tuple(notes), **found)
    ends = {part: end or "" for part, (*_, end) in pairs.items()}
    masks: list[Place] = []
    for part in filter(None, (train, val)):
        masks += images_in(pairs[part][0], ends[part]).values()
    if not masks:
        message = "holds masks as .npy files, which are read as images alone; save them as PNG"
        raise UserError("dataset", source, message)
    rows = read_table(table) if table else []
    form = form or _form_of_masks(masks, rows, processes)
    made: list[Colour] = []
    if form == "index" and not rows:
        used = set().union(*in_parallel(_used, masks, processes, "count labels")) - {IGNORED}
        largest = max(used, default=0)
        if largest > IGNORED:
            message = f"its masks hold label {largest:,}, and those of classes are 0 to 254; save"
            message += " ignored pixels as 255"
            raise UserError("label", source, message)
        names = [f"class_{n}" if n in used else IGNORED_NAME for n in range(largest + 1)]
        made = [Colour(name, None) for name in names]
    elif form == "colour" and not any(row.rgb for row in rows):
        made = _colour_rows(masks, rows, processes, notes)
    if named := [row.name for row in made if row.name != IGNORED_NAME]:
        notes.append(f"classes: {len(named)}, from the masks: {', '.join(named[:9])}")
    notes.insert(0, f"labels: {FORM_NAMES[form]} ({len(masks):,})")
    if val is not None:
        if ends[val] != ends[train]:
            message = f"masks end in {ends[val]!r} there and in {ends[train]!r} in {source}; rename"
            raise UserError("dataset", pairs[val][0], message)
    else:
        labelled = {_stem(mask, source).removesuffix(ends[train]) for mask in masks}
        found = found_lists(places, images, labelled, notes)
    return Found(
        form,
        (source,),
        images,
        classes=None if made else table,
        label_suffix=ends[train],
        rows=tuple(made),
        notes=tuple(notes),
        **found,
    )


def _check_parts(source: Path, images: Path, end: str, places: Sequence[Place]) -> None:
    """Refuse masks of no part, as of MVTec, whose images may be those of one part or another."""
    masks: dict[str, Place] = {}
    pictures: dict[str, list[Place]] = defaultdict(list)
    for place in filter(is_image, places):
        split, role = named_split_and_role(place.name)
        stem = composed(place.file.stem)
        if source in place.file.parents and role == "labels" and split is None:
            masks[stem.removesuffix(end)] = place
        elif role not in ("labels", "instances") and split is not None:
            pictures[stem].append(place)
    for stem in sorted(masks.keys() & pictures.keys()):
        ours = [place for place in pictures[stem] if images in place.file.parents]
        others = [place for place in pictures[stem] if images not in place.file.parents]
        if ours and others:
            message = f"may be the mask of {ours[0]} or of {others[0]}; name the folders that"
            message += " belong together with prepare-data custom --source LABELS --images IMAGES"
            raise UserError("dataset", masks[stem], message)


def found_lists(
    places: Sequence[Place], images: Path, names: Collection[str], notes: list[str]
) -> dict[str, Path]:
    """The lists of images to validate on and to leave out; ``names`` are those with labels.

    As with folders, those to test on are for validation where there is no list of others.
    """
    found: dict[str, Path] = {}
    for part, ends in _LISTS.items():
        for end in ends:
            files = [one.file for one in places if f"/{one.name.lower()}".endswith(f"/{end}")]
            if files:
                found.setdefault(f"{part}_list", files[0])
    test = found.get("test_list")
    if test and listed_names(test, images, test.parent, (), names.__contains__, strict=False):
        found.setdefault("val_list", test)
    if val := found.get("val_list"):
        notes.append(f"validation: the images that {val} lists")
    return found


def _values(masks: Sequence[Place]) -> set[int] | None:
    """The values of some grey or palette masks; None if one has colours."""
    chosen = np.linspace(0, len(masks) - 1, min(_SAMPLED, len(masks))).round().astype(int)
    found: set[int] = set()
    for position in sorted(set(chosen.tolist())):
        data = masks[position].read()
        image = open_image(data, masks[position])
        if is_lossy(image, data) or (image.mode != "1" and numbers_in(image) is None):
            return None
        found.update(np.unique(indices(data, masks[position])).tolist())
    return found


def _form_of_masks(masks: Sequence[Place], rows: Sequence[Colour], processes: int) -> str:
    """Label numbers are dense from 0 on, or have colours in one palette of all masks.

    Grey values that are not dense are colours, and so are numbers of a palette of greys.
    """
    values, palettes = _values(masks), read_palettes(masks, processes)
    if values is None or palettes.conflict:
        return "colour"
    coloured = {row.rgb for row in rows if row.rgb is not None}
    if coloured:  # as CVAT's: the palette of the masks, or their numbers, may be meant
        some = count_colours(masks[:_SAMPLED], 1)
        if set(some) <= coloured or palettes.disagreement(rows):
            return "colour"
    used = values - {IGNORED}
    grey = all(len(set(rgb)) == 1 for rgb in palettes.colours.values())
    if grey and any(palettes.colours.get(n, (n,))[0] != n for n in values):
        return "colour"
    names = len({row.name for row in rows})
    largest = max(used, default=0)
    dense = largest < max(len(rows), 2 * len(used) + 10) or largest > 255  # no grey value is
    dense = dense or not (rows or grey)
    several = len(used) > 1 or (names > 1 and IGNORED not in values)
    return "index" if dense and several else "colour"


def _colour_rows(
    masks: Sequence[Place], rows: Sequence[Colour], processes: int, notes: list[str]
) -> list[Colour]:
    """A name for each colour of the masks: those of a list without colours, or made up.

    Empty where such a list does not say which name is of which colour. ``notes`` takes colours
    that may be of no class.
    """
    found = count_colours(masks, processes, strict=True)
    if len(found) > _MOST_COLOURS:
        message = (
            f"and its like hold {len(found):,} colours, which come from resizing or from JPEG, or"
            " tell instances apart; get the masks from before that, or give the colours that count"
            " with --classes"
        )
        raise UserError("label", masks[0], message)
    colours = sorted(found)
    if colours == [(0, 0, 0), (255, 255, 255)]:
        given = [row.name for row in rows if row.name != IGNORED_NAME]
        names = {1: ["background", *given], 2: given}.get(len(given), ["background", "object"])
        return [Colour(name, rgb) for name, rgb in zip(names, colours, strict=True)]
    if rows:
        return []
    two = {(0, 0, 0), (255, 255, 255)}
    greys = [rgb for rgb in colours if len(set(rgb)) == 1 and rgb not in two]
    small = [rgb for rgb in greys if rgb[0] < _SMALL_GREY]
    if small and any(len(set(rgb)) > 1 for rgb in colours):
        notes.append(
            f"{len(small)} colours (e.g. {small[0]}) are greys as dark as label numbers: do some"
            " masks hold colours and others numbers? Then save all of them in one way"
        )
    smooth = two < set(colours) and len(greys) == len(colours) - 2 > _FEW_GREYS
    doubtful = [rgb for rgb in colours if found[rgb] < _RARE * found.total()]
    if doubtful := greys if smooth else doubtful:
        what = "lie between black and white" if smooth else "have almost no pixels"
        notes.append(
            f"{len(doubtful)} colours (e.g. {doubtful[0]}) {what}, as resizing and smoothing leave"
            " them; in a table (--classes) several colours of one name are one class"
        )
    return [Colour(f"colour_{r:02x}{g:02x}{b:02x}", (r, g, b)) for r, g, b in colours]


def _used(mask: Place) -> set[int]:
    return set(np.unique(indices(mask.read(), mask)).tolist())
