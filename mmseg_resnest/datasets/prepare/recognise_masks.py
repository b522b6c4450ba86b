# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Which masks a folder holds: of colours, of label numbers, or one a class."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...errors import UserError
from ...io.image_files import IMAGE_SUFFIXES
from ...io.parallel import in_parallel
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
from .lists import found_lists
from .masks import images_in
from .notes import notes_on_numbers, notes_on_objects
from .places import Place
from .samples import IGNORED, common_end, composed
from .tables import IGNORED_NAME, Colour, read_table

_SUFFIXES = (
    *("_mask", "-mask", ".mask", "_masks", "_label", "-label", "_labels", "_seg", "_gt"),
    *("_annotation", "_annot", "_L", "_segmentation", "_gtFine_labelTrainIds", "_gtFine_labelIds"),
)  # of masks among the images
_SAMPLED = 12  # masks that are looked at to tell colours from label numbers
_RARE, _FEW_GREYS = 1e-3, 3  # share of the pixels; greys that may be classes
_SMALL_GREY = 32
_BLACK = ("background", "bg")  # whatever place a list gives them
_SOFT = 128  # a value of the soft edges of a mask of 0 and 255
_MOST_COLOURS = 64  # in all masks, without a table: more come from JPEG or from resizing


@dataclass(frozen=True)
class Pair:
    """Folders of masks and of their images.

    Attributes:
        source: That of the masks.
        images: That of the images.
        end: What masks' names have after that of their image; None where there is one mask a class.
        image_end: What all images' names end in, and masks' do not.
        kinds: Ends of the names of several masks of an image, if each has several.
    """

    source: Path
    images: Path
    end: str | None
    image_end: str = ""
    kinds: tuple[str, ...] = ()


def mask_pairs(
    places: Sequence[Place],
    pictures: Sequence[Place] | None = None,
    label_end: str = "",
    image_end: str = "",
) -> dict[str, Pair]:
    """Folders of masks and of images, by part; nothing where no mask has an image.

    Args:
        places: All files, or with ``pictures`` those among which the masks are.
        pictures: The files among which the images are, if those are known.
        label_end: What masks' names end in, if that is known.
        image_end: The same of images.
    """
    parts: dict[str, dict[str | None, list[Place]]] = defaultdict(lambda: defaultdict(list))
    everything = [*places, *(pictures or ())]
    photos = {place.file.with_suffix("") for place in everything if is_image(place, IMAGE_SUFFIXES)}
    stems = {composed(place.file.stem) for place in filter(is_image, everything)}
    for number, place in enumerate(everything):
        if not is_image(place):
            continue
        if place.file.suffix.lower() == ".npy" and place.file.with_suffix("") in photos:
            continue  # something else about a photo
        split, role = split_and_role(place.name)
        if role == "labels" and composed(place.file.parent.name) in stems:  # NAME/CLASS.png
            outer = split_and_role(str(PurePosixPath(place.name).parent))
            split = outer[0] if outer[1] == "labels" else split
        if pictures is not None:
            role = "labels" if number < len(places) else "images"
        if role != "instances":
            parts[split][role].append(place)
    found = {}
    for split, roles in parts.items():
        if pair := _pair(roles, label_end, image_end):
            found[split] = pair
    return found


def _pair(roles: Mapping[str | None, list[Place]], label_end: str, image_end: str) -> Pair | None:
    masks = [one for one in roles.get("labels") or () if one.file.stem.endswith(label_end)]
    files = [place for place in masks if place.file.suffix.lower() != ".npy"]
    masks = files or masks  # LabelMe's converter writes both
    pictures = roles.get("images") or roles.get(None) or []
    if masks and pictures:
        source, images = common_folder(masks), common_folder(pictures)
        pair = _by_names(masks, pictures, source, images, label_end, image_end)
        if pair is None and _have_classes(masks, pictures, source):
            return Pair(source, images, None)
        if pair is None and source != images:
            return Pair(source, images, label_end, image_end)
        return pair
    among = [place for some in roles.values() for place in some]
    folder = common_folder(among)
    found = []
    for end in [label_end] if label_end else sorted({one for p in among if (one := _known_end(p))}):
        masks = [place for place in among if place.file.stem.endswith(end)]
        pictures = [place for place in among if not place.file.stem.endswith(end)]
        if pair := _by_names(masks, pictures, folder, folder, end, image_end):
            found.append((len(masks), pair))
    return max(found, key=lambda one: one[0])[1] if found else None


def _known_end(place: Place) -> str:
    """What the name of a mask among images ends in, as it is spelled; empty for others."""
    stem = place.file.stem
    ends = [stem[-len(end) :] for end in _SUFFIXES if stem.lower().endswith(end.lower())]
    return max(ends, key=len, default="")


def _by_names(
    masks: Sequence[Place],
    pictures: Sequence[Place],
    source: Path,
    images: Path,
    label_end: str,
    image_end: str,
) -> Pair | None:
    """Masks and images whose names belong together; None if no two do.

    Masks' names may have more behind those of the images, after one of ``_-.`` or a space; so may
    images' names, if all have the same.
    """
    stems = [_stem(place, source) for place in masks]
    named = {_stem(place, images) for place in pictures}
    shared = common_end([PurePosixPath(stem).name for stem in named])
    ends = [image_end] if image_end else ["", *(shared[cut:] for cut in _cuts(shared)[::-1])]
    for end in ends:
        names = {stem.removesuffix(end) for stem in named if stem.endswith(end)}
        counts = Counter[str]()
        for stem in stems:
            cuts = [len(stem) - len(label_end)] if label_end else [len(stem), *_cuts(stem)[::-1]]
            if (cut := next((cut for cut in cuts if stem[:cut] in names), None)) is not None:
                counts[stem[cut:]] += 1
        if counts:
            most = max(counts, key=lambda one: (counts[one], one))
            kinds = sorted(one for one in counts if 2 * counts[one] > counts[most])
            return Pair(source, images, most, end, tuple(kinds) if len(kinds) > 1 else ())
    return None


def _cuts(name: str) -> list[int]:
    """Where the parts of a name begin that are divided by ``_``, ``-``, ``.`` or spaces."""
    return [match.start() for match in re.finditer(r"[-_. ]", name)]


def _stem(place: Place, folder: Path) -> str:
    stem = place.file.relative_to(folder).with_suffix("").as_posix()
    return composed(stem)


def _have_classes(masks: Sequence[Place], pictures: Sequence[Place], source: Path) -> bool:
    """Whether masks lie as ``CLASS/NAME`` or ``NAME/CLASS``."""
    names = {composed(place.file.stem) for place in pictures}
    return any(
        composed(name) in names
        for place in masks
        if place.file.parent != source
        for name in (place.file.stem, place.file.parent.name)
    )


def _as_class_masks(pair: Pair) -> Pair:
    """Folders of masks whose classes may overlap, of which a single class may have one alone."""
    told = role_of(pair.source.name) or any(
        re.fullmatch(pattern, pair.source.name, re.I) for pattern in SPLITS.values()
    )
    return Pair(pair.source.parent, pair.images, None) if pair.end == "" and not told else pair


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
    for pair in pairs.values():
        source, images, end = pair.source, pair.images, pair.end
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
        _check_kinds(pair, places)
    parts = {split_and_role(place.name)[0] for place in places if is_image(place)}
    notes += [f"left out: the part {one!r}, without masks" for one in sorted(parts - set(pairs))]
    classed = {part: _as_class_masks(pair) if multilabel else pair for part, pair in pairs.items()}
    of_classes = form in (None, "masks") and all(pair.end is None for pair in classed.values())
    pairs = classed if of_classes else pairs
    train, val = choose_splits(pairs, notes, folder)
    source, images = pairs[train].source, pairs[train].images
    found: dict[str, Any] = {}
    if val is not None:
        found = {"val_sources": (pairs[val].source,), "val_images": pairs[val].images}
    if of_classes:
        number = sum(1 for place in places if source in place.file.parents and is_image(place))
        notes.insert(0, f"labels: {FORM_NAMES['masks']} ({number:,})")
        return Found("masks", (source,), images, classes=table, notes=tuple(notes), **found)
    ends = {part: (pair.end or "", pair.image_end) for part, pair in pairs.items()}
    masks: list[Place] = []
    for part in filter(None, (train, val)):
        masks += images_in(pairs[part].source, ends[part][0]).values()
    if not masks:
        message = "holds masks as .npy files, which are read as images alone; save them as PNG"
        raise UserError("dataset", source, message)
    rows = read_table(table) if table else []
    form = form or _form_of_masks(masks, rows, processes)
    made: list[Colour] = []
    if form == "index" and not rows:
        of_masks = list(in_parallel(_used, masks, processes, "count labels"))
        used = set().union(*of_masks) - {IGNORED}
        largest = max(used, default=0)
        if largest > IGNORED:
            message = f"its masks hold label {largest:,}, and those of classes are 0 to 254; save"
            message += " ignored pixels as 255"
            raise UserError("label", source, message)
        names = [f"class_{n}" if n in used else IGNORED_NAME for n in range(largest + 1)]
        made = [Colour(name, None) for name in names]
        notes += notes_on_numbers(used, names.__getitem__) + notes_on_objects(of_masks)
    elif form == "colour" and not any(row.rgb for row in rows):
        made = _colour_rows(masks, rows, processes, notes)
    if made and rows and not {row.name for row in rows} <= {row.name for row in made}:
        notes[:] = [note for note in notes if note != f"classes: those of {table}"]
        notes.append(f"{table} is not used: it lists {len(rows)} classes, and the masks hold two")
    if named := [row.name for row in made if row.name != IGNORED_NAME]:
        notes.append(f"classes: {len(named)}, from the masks: {', '.join(named[:9])}")
    notes.insert(0, f"labels: {FORM_NAMES[form]} ({len(masks):,})")
    if val is not None:
        if ends[val] != ends[train]:
            one, other = (" and images in ".join(map(repr, ends[part])) for part in (val, train))
            message = f"masks' names end in {one} there, and in {other} in {source}; rename them"
            raise UserError("dataset", pairs[val].source, message)
    else:
        end, image_end = ends[train]
        labelled = {_stem(mask, source).removesuffix(end) + image_end for mask in masks}
        found = found_lists(places, images, labelled, notes)
    return Found(
        form,
        (source,),
        images,
        classes=None if made else table,
        label_suffix=ends[train][0],
        image_suffix=ends[train][1],
        rows=tuple(made),
        notes=tuple(notes),
        **found,
    )


def _check_kinds(pair: Pair, places: Sequence[Place]) -> None:
    """Refuse several kinds of labels of the same images, such as label numbers and colours.

    They differ in the ends of their names, or lie in a folder each: other than the masks of one
    class these have more than two values.
    """
    if pair.kinds:
        ends = ", ".join(repr(end) for end in pair.kinds)
        message = f"holds several masks of each image, whose names end in {ends}; choose one kind"
        message += " with --label-suffix END, or move the others elsewhere"
        raise UserError("dataset", pair.source, message)
    if pair.end is not None:
        return
    first: dict[str, Place] = {}
    names = {composed(p.file.stem) for p in places if pair.images in p.file.parents}
    for place in filter(is_image, places):
        if pair.source in place.file.parents and place.file.parent != pair.source:
            folder = place.file.relative_to(pair.source).parts[0]
            if composed(folder) not in names:  # or it is NAME/CLASS.png
                first.setdefault(folder, place)
    some = dict(sorted(first.items())[:_SAMPLED])
    values = {name: _values([place]) for name, place in some.items()}
    if len(some) > 1 and any(used is None or _are_classes(used) for used in values.values()):
        chosen = next((name for name, used in values.items() if used is not None), min(some))
        message = f"holds several kinds of labels of the same images, {', '.join(some)}; choose"
        message += f" one with prepare-data custom --source {pair.source / chosen} --images IMAGES,"
        message += " or move the others elsewhere"
        raise UserError("dataset", pair.source, message)


def _are_classes(values: set[int]) -> bool:
    """Whether the values of a mask are label numbers, and not what is of one class or not."""
    used = values - {IGNORED}
    return len(used) > 2 and max(used) < _SOFT


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
        given.sort(key=lambda name: name.casefold().strip("_ ") not in _BLACK)
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
    if len(greys) >= len(colours) - 2 and not smooth:
        notes += notes_on_numbers({r for r, _, _ in colours}, lambda n: f"colour_{3 * f'{n:02x}'}")
    return [Colour(f"colour_{r:02x}{g:02x}{b:02x}", (r, g, b)) for r, g, b in colours]


def _used(mask: Place) -> set[int]:
    return set(np.unique(indices(mask.read(), mask)).tolist())
