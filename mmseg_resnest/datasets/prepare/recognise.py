# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Which form of labels a folder holds, and where its images, masks, classes and parts are.

Knows the layouts of LabelMe, of COCO files (Roboflow's, CVAT's, one file a part), and of masks: in
a folder beside the images, among the images with a suffix (Roboflow), in VOC's folders (CVAT), or
in folders such as ``train`` and ``trainannot``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...errors import UserError
from ...io.image_files import IMAGE_SUFFIXES
from ...io.json_files import read_json
from ...io.parallel import in_parallel
from . import coco
from .colours import count_colours, write_table
from .custom import CustomOptions
from .labels import indices, open_image
from .masks import images_in
from .places import Place, list_folder
from .samples import PICTURE_SUFFIXES
from .tables import Colour, read_table

FORM_NAMES = {
    "labelme": "LabelMe's JSON files",
    "coco": "COCO's JSON files",
    "colour": "masks of colours",
    "index": "masks of label numbers",
}

_SPLITS = {"train": r"train(?:ing)?", "val": r"val(?:id(?:ation)?)?|dev", "test": r"test(?:ing)?"}
_LABELS = r"annot(?:ation)?s?|labels?|masks?|gt|gtfine|ground[_ -]?truth|seg(?:mentation)?s?"
_LABELS += r"|segmentation[_ ]?(?:class(?:aug|raw)?|masks?)|label[_ ]?maps?"
_IMAGES = r"images?|imgs?|jpegimages|photos?|pictures?|rgb|inputs?|leftimg8bit|data"
_INSTANCES = r"segmentationobject|instances?"
_ROLES = {"labels": _LABELS, "images": _IMAGES, "instances": _INSTANCES}
_SUFFIXES = (
    *("_mask", "-mask", ".mask", "_masks", "_label", "-label", "_labels", "_seg", "_gt"),
    *("_annotation", "_annot", "_L", "_gtFine_labelTrainIds", "_gtFine_labelIds"),
)
_TABLES = (
    *("_classes.csv", "labelmap.txt", "classes.txt", "classes.csv", "classes.json"),
    *("label_names.txt", "labels.txt", "class_dict.csv", "obj.names"),
)
_LISTS = ("imagesets/segmentation/val.txt", "splits/val.txt", "val.txt", "valid.txt")
_SAMPLED = 12  # masks that are looked at to tell colours from label numbers
_MOST_COLOURS = 64  # in all masks, without a table: more come from JPEG or from resizing


@dataclass(frozen=True)
class Found:
    """What a folder was taken for: the values of :class:`.custom.CustomOptions` of those names.

    ``rows`` are classes that no file lists, for a table to be written; ``notes`` say what was
    decided, and why.
    """

    form: str
    sources: tuple[Path, ...]
    images: Path | None = None
    val_sources: tuple[Path, ...] = ()
    val_images: Path | None = None
    val_list: Path | None = None
    classes: Path | None = None
    label_suffix: str = ""
    rows: tuple[Colour, ...] = ()
    notes: tuple[str, ...] = ()


def recognise(
    folder: Path, form: str | None = None, classes: Path | None = None, processes: int = 1
) -> Found:
    """Find out what a folder holds.

    Args:
        folder: It and what is below it is only read.
        form: One of ``FORM_NAMES``; None tells it from the files.
        classes: A class list or colour table; None looks for one in the folder.
        processes: How many to read masks with.

    Raises:
        UserError: There are no labels, or labels of two forms, or a file cannot be read.
    """
    if not folder.is_dir():
        code = "wrong-path-type" if folder.exists() else "not-found"
        raise UserError(code, folder, "is not a folder; give the one with the images and labels")
    places = list(list_folder(folder))
    documents = _documents(places)
    pairs = _mask_pairs(folder, places)
    forms = sorted(documents) + (["masks"] if pairs else [])
    if form is not None:
        wanted = "masks" if form in ("colour", "index") else form
        forms = [name for name in forms if name == wanted]
    if not forms:
        what = FORM_NAMES[form] if form else "labels: JSON files of LabelMe or COCO, or masks"
        pictures = sum(_is_image(place) for place in places)
        message = (
            f"holds no {what} that belong to its images ({pictures:,} image files); name their"
            " folders with prepare-data custom --source LABELS --images IMAGES"
        )
        raise UserError("empty", folder, message)
    if len(forms) > 1:
        both = " and ".join("masks" if name == "masks" else FORM_NAMES[name] for name in forms)
        choices = ", ".join(name for name in (*sorted(documents), "colour", "index"))
        message = f"holds labels of two forms, {both}; choose one with --format ({choices})"
        raise UserError("dataset", folder, message)
    table = classes or _table(places)
    notes = [] if classes or table is None else [f"classes: those of {table}"]
    if forms[0] == "masks":
        return _found_masks(pairs, places, form, table, notes, processes)
    return _found_documents(forms[0], documents[forms[0]], places, table, notes)


def recognise_options(
    options: CustomOptions, root: Path, processes: int
) -> tuple[CustomOptions, tuple[str, ...]]:
    """Fill in what options with one folder as their source leave open.

    Names of classes that no file lists are written to ``root/NAME_classes.txt``.

    With ``multilabel`` and a folder of images, sources without JSON files hold one mask a class.

    Returns:
        The options, and notes on what was decided.

    Raises:
        UserError: As :func:`recognise`; or there are several sources, or folders of images.
    """
    if options.form == "auto" and options.multilabel and options.images is not None:
        sources = (*options.sources, *options.val_sources)
        if not any(map(_has_json, sources)):
            return replace(options, form="masks"), ("labels: one mask a class",)
    if len(options.sources) != 1 or options.val_sources or options.images or options.val_images:
        message = "tells the form of one folder; with other folders, name the form: " + ", ".join(
            FORM_NAMES
        )
        raise UserError("argument", "--format auto", message)
    form = None if options.form == "auto" else options.form
    found = recognise(options.sources[0], form, options.classes, processes)
    classes = found.classes
    if found.rows:
        classes = root / f"{options.name}_classes.txt"
        write_table(classes, found.rows)
    filled = replace(
        options,
        form=found.form,
        sources=found.sources,
        images=found.images,
        val_images=None if options.val_list else found.val_images,
        classes=classes,
        label_suffix=options.label_suffix or found.label_suffix,
        val_sources=() if options.val_list else found.val_sources,
        val_list=options.val_list or found.val_list,
    )
    return filled, found.notes


def _has_json(source: Path) -> bool:
    return any(file.suffix.lower() == ".json" for file in (source, *source.rglob("*")))


# --- names ------------------------------------------------------------------------------------


def _is_image(place: Place, suffixes: Sequence[str] = PICTURE_SUFFIXES) -> bool:
    return Path(place.name).suffix.lower() in suffixes


def _split_and_role(name: str) -> tuple[str, str | None]:
    """The part and the role that the folders of a file name: ``val/masks`` is (val, labels)."""
    split, role = "train", None
    for folder in PurePosixPath(name).parent.parts:
        for part, pattern in _SPLITS.items():
            if match := re.fullmatch(rf"(?:{pattern})[_ -]?(?P<rest>.*)", folder, re.I):
                rest = match["rest"]
                if not rest or _role(rest) or re.fullmatch(r"\d{4}", rest):
                    split, folder = part, rest
                    break
        role = _role(folder) or role
    return split, role


def _role(folder: str) -> str | None:
    for role, pattern in _ROLES.items():
        if re.fullmatch(pattern, folder, re.I):
            return role
    return None


def _common_folder(places: Iterable[Place]) -> Path:
    """The deepest folder that all files are below."""
    parents = [place.file.parent.parts for place in places]
    shared = 0
    while all(len(parts) > shared and parts[shared] == parents[0][shared] for parts in parents):
        shared += 1
    return Path(*parents[0][:shared])


def _choose_splits(found: Mapping[str, Any], notes: list[str]) -> tuple[str, str | None]:
    """The parts to train and to validate on."""
    names = set(found)
    train = "train" if "train" in names else min(names)
    val = next((name for name in ("val", "test") if name in names - {train}), None)
    if val is not None:
        more = "" if val == "val" else ", as there is no other"
        notes.append(f"validation: the images of the part {val!r}{more}")
    if left := names - {train, val}:
        notes.append(f"left out: the part {', '.join(sorted(left))!r}")
    return train, val


def _table(places: Sequence[Place]) -> Path | None:
    """The list of classes in the folder, the one nearest to its top."""
    tables = [place for place in places if Path(place.name).name.lower() in _TABLES]
    tables.sort(key=lambda place: (place.name.count("/"), place.name))
    return tables[0].file if tables else None


# --- JSON files -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Document:
    """A JSON file of labels; ``names`` are where its first image may be, if it was opened."""

    place: Place
    names: tuple[PurePosixPath, ...] = ()


def _documents(places: Sequence[Place]) -> dict[str, dict[str, list[_Document]]]:
    """JSON files by form and part; of LabelMe's, one of each folder and part is opened to tell."""
    forms: dict[str, dict[str, list[_Document]]] = defaultdict(lambda: defaultdict(list))
    known: dict[Path, str | None] = {}
    for place in places:
        if not place.name.lower().endswith(".json"):
            continue
        folder, split = place.file.parent, _split_of_document(place)
        names: tuple[PurePosixPath, ...] = ()
        if known.get(folder) != "labelme" or split not in forms["labelme"]:
            known[folder], names = _form_of(place)
        if form := known[folder]:
            forms[form][split].append(_Document(place, names))
    return forms


def _form_of(place: Place) -> tuple[str | None, tuple[PurePosixPath, ...]]:
    """The form of a JSON file, and where its first image may be; none where it holds that."""
    data = read_json(place.file, str(place.file), coco.MAX_BYTES)
    if not isinstance(data, dict):
        return None, ()
    names: list[Any] = []
    if isinstance(data.get("shapes"), list):
        form = "labelme"
        if not data.get("imageData"):
            names = [data.get("imagePath"), place.file.stem]
    elif {"images", "annotations", "categories"} <= set(data):
        form = "coco"
        images = data["images"]
        first = images[0] if isinstance(images, list) and images else None
        names = [first.get("file_name")] if isinstance(first, dict) else []
    else:
        return None, ()
    texts = [name.replace("\\", "/") for name in names if name and isinstance(name, str)]
    return form, tuple(map(PurePosixPath, texts))


def _split_of_document(place: Place) -> str:
    """The part of a JSON file, by its folders or by its name: ``instances_val.json``."""
    split = _split_and_role(place.name)[0]
    words = re.split(r"[^a-z]+", Path(place.name).stem.lower())
    for part, pattern in _SPLITS.items():
        if any(re.fullmatch(pattern, word) for word in words):
            split = part
    return split


def _found_documents(
    form: str,
    parts: Mapping[str, list[_Document]],
    places: Sequence[Place],
    table: Path | None,
    notes: list[str],
) -> Found:
    number = sum(map(len, parts.values()))
    notes.insert(0, f"labels: {FORM_NAMES[form]} ({number:,})")
    train, val = _choose_splits(parts, notes)
    found: dict[str, Any] = {}
    for prefix, part in (("", train), ("val_", val)):
        if part is None:
            continue
        files = [document.place for document in parts[part]]
        top = _common_folder(files)
        others = [one.place for name, some in parts.items() if name != part for one in some]
        apart = not any(top in place.file.parents for place in others)
        whole = form == "labelme" and apart  # or else names would have the folder of the part
        found[f"{prefix}sources"] = (top,) if whole else tuple(place.file for place in files)
        found[f"{prefix}images"] = _images_of(parts[part][0], places)
    if form == "coco":
        table = None if table and table.name == "_classes.csv" else table
    return Found(form, classes=table, notes=tuple(notes), **found)


def _images_of(document: _Document, places: Sequence[Place]) -> Path | None:
    """The folder of a document's images, unless they lie where they are looked for anyway."""
    if any((document.place.file.parent / name).is_file() for name in document.names):
        return None
    for name in document.names:
        for place in filter(_is_image, places):
            path = PurePosixPath(place.name)
            if path.name == name.name or path.stem == name.name:
                below = path.parts[-len(name.parts) :] == name.parts
                return place.file.parents[len(name.parts) - 1 if below else 0]
    return None


# --- masks ------------------------------------------------------------------------------------

_Pair = tuple[Path, Path, str]  # folders of masks and images, and the suffix of masks


def _mask_pairs(folder: Path, places: Sequence[Place]) -> dict[str, _Pair]:
    """Folders of masks and of images, by part; nothing where no mask has an image."""
    parts: dict[str, dict[str | None, list[Place]]] = defaultdict(lambda: defaultdict(list))
    photos = {place.file.with_suffix("") for place in places if _is_image(place, IMAGE_SUFFIXES)}
    for place in filter(_is_image, places):
        if place.file.suffix.lower() == ".npy" and place.file.with_suffix("") in photos:
            continue  # something else about a photo
        split, role = _split_and_role(place.name)
        if role != "instances":
            parts[split][role].append(place)
    found = {}
    for split, roles in parts.items():
        if pair := _pair(roles):
            found[split] = pair
    return found


def _pair(roles: Mapping[str | None, list[Place]]) -> _Pair | None:
    masks = roles.get("labels") or []
    pictures = roles.get("images") or roles.get(None) or []
    if masks and pictures:
        source, images = _common_folder(masks), _common_folder(pictures)
        return (source, images, _suffix(masks, pictures, source, images) or "")
    among = [place for some in roles.values() for place in some]
    folder = _common_folder(among)
    suffix = _suffix(among, among, folder, folder)
    return (folder, folder, suffix) if suffix else None


def _suffix(
    masks: Sequence[Place], pictures: Sequence[Place], source: Path, images: Path
) -> str | None:
    """What most masks' names have after their image's; None if no two names belong together."""
    names = {place.file.relative_to(images).with_suffix("").as_posix() for place in pictures}
    stems = [place.file.relative_to(source).with_suffix("").as_posix() for place in masks]
    counts = Counter[str]()
    for stem in stems:
        if stem in names and masks is not pictures:
            counts[""] += 1
        for suffix in _SUFFIXES:
            if stem.endswith(suffix) and stem.removesuffix(suffix) in names:
                counts[suffix] += 1
    return max(counts, key=lambda suffix: (counts[suffix], suffix)) if counts else None


def _found_masks(
    pairs: Mapping[str, _Pair],
    places: Sequence[Place],
    form: str | None,
    table: Path | None,
    notes: list[str],
    processes: int,
) -> Found:
    train, val = _choose_splits(pairs, notes)
    masks: list[Place] = []
    for part in filter(None, (train, val)):
        source, _, suffix = pairs[part]
        masks += images_in(source, suffix).values()
    rows = read_table(table) if table else []
    values = _values(masks)
    form = form or _form_of_masks(masks, values, rows)
    made: list[Colour] = []
    if form == "index" and not rows:
        largest = max(in_parallel(_largest, masks, processes, "count labels"), default=0)
        made = [Colour(f"class_{n}", None) for n in range(largest + 1)]
    elif form == "colour" and not any(row.rgb for row in rows):
        made = _colour_rows(masks, rows, processes)
    if made:
        notes.append(f"classes: {len(made)}, from the masks: {', '.join(r.name for r in made[:9])}")
    notes.insert(0, f"labels: {FORM_NAMES[form]} ({len(masks):,})")
    source, images, suffix = pairs[train]
    found: dict[str, Any] = {}
    if val is not None:
        found = {"val_sources": (pairs[val][0],), "val_images": pairs[val][1]}
        if pairs[val][2] != suffix:
            message = f"masks end in {pairs[val][2]!r} there and in {suffix!r} in {source}; rename"
            raise UserError("dataset", pairs[val][0], message)
    else:
        lists = [p for p in places if p.name.lower().endswith(_LISTS)]
        if lists:
            found = {"val_list": lists[0].file}
            notes.append(f"validation: the images that {lists[0].file} lists")
    return Found(
        form,
        (source,),
        images,
        classes=None if made else table,
        label_suffix=suffix,
        rows=tuple(made),
        notes=tuple(notes),
        **found,
    )


def _values(masks: Sequence[Place]) -> set[int] | None:
    """The values of some grey or palette masks; None if one has colours."""
    chosen = np.linspace(0, len(masks) - 1, min(_SAMPLED, len(masks))).round().astype(int)
    found: set[int] = set()
    for position in sorted(set(chosen.tolist())):
        data = masks[position].read()
        image = open_image(data, masks[position])
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B") or image.format == "JPEG":
            return None
        found.update(np.unique(indices(data, masks[position])).tolist())
    return found


def _form_of_masks(masks: Sequence[Place], values: set[int] | None, rows: Sequence[Colour]) -> str:
    """Label numbers are dense from 0 on; grey values that are not are colours."""
    if values is None:
        return "colour"
    coloured = {row.rgb for row in rows if row.rgb is not None}
    if coloured:  # as CVAT's: the palette of the masks, or their numbers, may be meant
        some = count_colours(masks[:_SAMPLED], 1)
        if set(some) <= coloured:
            return "colour"
    used = values - {255}
    names = len({row.name for row in rows})
    dense = max(used, default=0) < (names or 2 * len(used) + 10)
    several = len(used) > 1 or (names > 1 and 255 not in values)
    return "index" if dense and several else "colour"


def _colour_rows(masks: Sequence[Place], rows: Sequence[Colour], processes: int) -> list[Colour]:
    """A name for each colour of the masks: those of a list without colours, or made up."""
    found = count_colours(masks, processes)
    if len(found) > _MOST_COLOURS:
        message = (
            f"and its like hold {len(found):,} colours, which come from JPEG or from resizing; get"
            " the masks from before that, or give the colours that count with --classes"
        )
        raise UserError("label", masks[0], message)
    colours = sorted(found)
    if colours == [(0, 0, 0), (255, 255, 255)]:
        names = [row.name for row in rows] if len(rows) == 2 else ["background", "object"]
        return [Colour(name, rgb) for name, rgb in zip(names, colours, strict=True)]
    return [Colour(f"colour_{r:02x}{g:02x}{b:02x}", (r, g, b)) for r, g, b in colours]


def _largest(mask: Place) -> int:
    values = indices(mask.read(), mask)
    used = values[values != 255]
    return int(used.max()) if used.size else 0
