# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Which form of labels a folder holds, and where its images, masks, classes and parts are.

Knows the layouts of LabelMe, of COCO files (Roboflow's, CVAT's, one file a part), and of masks: in
a folder beside the images, among the images with a suffix (Roboflow), in VOC's folders (CVAT), or
in folders such as ``train`` and ``trainannot``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import UserError
from ...io.json_files import read_json
from . import coco
from .colours import write_table
from .custom_options import CustomOptions
from .layouts import (
    FORM_NAMES,
    SPLITS,
    Found,
    choose_splits,
    common_folder,
    is_image,
    named_split_and_role,
    split_and_role,
)
from .lists import found_lists
from .other_forms import other_forms
from .places import Place, list_folder
from .recognise_masks import found_masks, mask_pairs
from .samples import composed
from .tables import BACKGROUND_NAME, read_table

_TABLES = (
    *("_classes.csv", "labelmap.txt", "classes.txt", "classes.csv", "classes.json"),
    *("label_names.txt", "labels.txt", "class_dict.csv", "obj.names", "class_names.txt"),
    *("label_colors.txt", "class_mapping.csv"),  # of CVAT and V7
)
# COCO's own folder, and Datumaro's, have more files of the same images, in the form of instances.
_BESIDE_INSTANCES = re.compile(r"(?:person_keypoints|captions|labels|stuff|panoptic)[_.].*", re.I)


def recognise(
    folder: Path,
    form: str | None = None,
    classes: Path | None = None,
    processes: int = 1,
    multilabel: bool = False,
    images: Path | None = None,
    label_end: str = "",
    image_end: str = "",
) -> Found:
    """Find out what a folder holds.

    Args:
        folder: It and what is below it is only read; a JSON file of labels stands for itself.
        form: One of ``FORM_NAMES``; None tells it from the files.
        classes: A class list or colour table; None looks for one in the folder.
        processes: How many to read masks with.
        multilabel: Whether classes may overlap, so that masks may be those of one class.
        images: The folder of the images, if that is known.
        label_end: What masks' names have after that of their image, if that is known.
        image_end: What images' names have after that of their mask, if that is known.

    Raises:
        UserError: There are no labels, or labels of two forms, or a file cannot be read.
    """
    if folder.suffix.lower() == ".json" and folder.is_file():
        told = _form_of(folder)[0]
        if told is not None and form in (None, told):
            return Found(told, (folder,), images, classes=classes)
    if not folder.is_dir():
        code = "wrong-path-type" if folder.exists() else "not-found"
        raise UserError(code, folder, "is not a folder; give the one with the images and labels")
    if images is not None and not images.is_dir():
        raise UserError("not-found", f"--images {images}", "is not a folder")
    labels, pictures = list(list_folder(folder)), None
    if images is not None and images.resolve() != folder.resolve():  # one may lie in the other
        labels = _outside(labels, folder, images)
        pictures = _outside(list_folder(images), images, folder)
    places = [*labels, *(pictures or ())]
    documents = _documents(labels)
    pairs = mask_pairs(labels, pictures, label_end, image_end)
    forms = sorted(documents) + (["masks"] if pairs else [])
    held = " and ".join("masks" if name == "masks" else FORM_NAMES[name] for name in forms)
    if form is not None:
        wanted = "masks" if form in ("colour", "index") else form
        forms = [name for name in forms if name == wanted]
    if not forms and held:
        message = f"holds {held}, and none of --format {form}; leave that out"
        raise UserError("dataset", folder, message)
    if not forms:
        what = FORM_NAMES[form] if form else "labels: JSON files of LabelMe or COCO, or masks"
        number = sum(is_image(place) for place in places)
        message = f"holds no {what} that belong to its images ({number:,} image files)"
        if there := other_forms(places, _TABLES):
            raise UserError("empty", folder, f"{message}, {there}")
        message += "; name their folders with prepare-data custom --source LABELS --images IMAGES"
        raise UserError("empty", folder, message)
    if len(forms) > 1:
        choices = ", ".join(name for name in (*sorted(documents), "colour", "index"))
        message = f"holds labels of two forms, {held}; choose one with --format ({choices})"
        raise UserError("dataset", folder, message)
    table = classes or _table(places)
    notes = [] if classes or table is None else [f"classes: those of {table}"]
    if forms[0] == "masks":
        return found_masks(folder, pairs, places, form, table, notes, processes, multilabel)
    found = _found_documents(forms[0], documents[forms[0]], labels, table, notes, folder)
    return found if images is None else replace(found, images=images, val_images=None)


def _outside(places: Iterable[Place], top: Path, folder: Path) -> list[Place]:
    """The files of ``top`` that do not lie in a folder below it."""
    top, folder = top.resolve(), folder.resolve()
    below = f"{folder.relative_to(top)}/" if folder.is_relative_to(top) else None
    return [place for place in places if below is None or not place.name.startswith(below)]


def recognise_options(
    options: CustomOptions, root: Path, processes: int
) -> tuple[CustomOptions, tuple[str, ...]]:
    """Fill in what options with one folder as their source, and one of images, leave open.

    Names of classes that no file lists are written to ``root/NAME_classes.txt``.

    With ``multilabel`` and a folder of images, sources without JSON files hold one mask a class.

    Returns:
        The options, and notes on what was decided.

    Raises:
        UserError: As :func:`recognise`; or there are several sources, or two folders of images.
    """
    if options.form == "auto" and options.multilabel and options.images is not None:
        sources = (*options.sources, *options.val_sources)
        if not any(map(_has_json, sources)):
            return replace(options, form="masks"), ("labels: one mask a class",)
    if len(options.sources) != 1 or options.val_sources or options.val_images:
        message = "tells the form of one folder, or of one and that of its images; with more, name"
        message += " the form: " + ", ".join(FORM_NAMES)
        raise UserError("argument", "--format auto", message)
    form = None if options.form == "auto" else options.form
    found = recognise(
        options.sources[0], form, options.classes, processes, options.multilabel, options.images,
        options.label_suffix, options.image_suffix,
    )  # fmt: skip
    classes = found.classes
    if found.rows:
        classes = root / f"{options.name}_classes.txt"
        write_table(classes, found.rows)
    background, notes = options.background, found.notes
    asks = found.form == "labelme" and not options.multilabel and background is None
    if asks and classes and any(row.name == BACKGROUND_NAME for row in read_table(classes)):
        background = BACKGROUND_NAME
        notes += (f"background: {BACKGROUND_NAME} of {classes}, as LabelMe's converter has it",)
    filled = replace(
        options,
        form=found.form,
        background=background,
        sources=found.sources,
        images=found.images,
        val_images=None if options.val_list else found.val_images,
        classes=classes,
        label_suffix=options.label_suffix or found.label_suffix,
        image_suffix=options.image_suffix or found.image_suffix,
        val_sources=() if options.val_list else found.val_sources,
        val_list=options.val_list or found.val_list,
        test_list=found.test_list,
    )
    return filled, notes


def _has_json(source: Path) -> bool:
    return any(file.suffix.lower() == ".json" for file in (source, *source.rglob("*")))


def _table(places: Sequence[Place]) -> Path | None:
    """The list of classes in the folder, the one nearest to its top; each part may have one.

    Raises:
        UserError: Lists of parts differ.
    """
    tables = [place for place in places if Path(place.name).name.lower() in _TABLES]
    tables.sort(key=lambda p: (p.name.count("/"), split_and_role(p.name)[0] != "train", p.name))
    for other in tables[1:]:
        first = tables[0]
        alike = Path(other.name).name == Path(first.name).name
        parts = split_and_role(first.name)[0] != split_and_role(other.name)[0]
        if alike and parts and read_table(first.file) != read_table(other.file):
            message = (
                f"differs from {other}, and labels have one meaning; give one list with --classes"
            )
            raise UserError("classes", first, message)
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
        if not place.name.lower().endswith(".json") or place.file.name.lower() in _TABLES:
            continue
        folder, split = place.file.parent, _split_of_document(place) or "train"
        names: tuple[PurePosixPath, ...] = ()
        if known.get(folder) != "labelme" or split not in forms["labelme"]:
            known[folder], names = _form_of(place.file)
        if form := known[folder]:
            forms[form][split].append(_Document(place, names))
    return forms


def _form_of(file: Path) -> tuple[str | None, tuple[PurePosixPath, ...]]:
    """The form of a JSON file, and where its first image may be; none where it holds that."""
    try:
        data = read_json(file, str(file), coco.MAX_BYTES)
    except UserError as error:
        message = f"{error.message}; correct it, or move it out of the folder"
        raise UserError(error.code, error.subject, message) from error
    if not isinstance(data, dict):
        return None, ()
    names: list[Any] = []
    if isinstance(data.get("shapes"), list):
        form = "labelme"
        if not data.get("imageData"):
            names = [data.get("imagePath"), file.stem]
    elif {"images", "annotations", "categories"} <= set(data):
        form = "coco"
        images = data["images"]
        first = images[0] if isinstance(images, list) and images else None
        names = [first.get("file_name")] if isinstance(first, dict) else []
    else:
        return None, ()
    texts = [name.replace("\\", "/") for name in names if name and isinstance(name, str)]
    return form, tuple(map(PurePosixPath, texts))


def _split_of_document(place: Place) -> str | None:
    """The part of a JSON file, by its folders or its name (``instances_val.json``), if they say."""
    split = named_split_and_role(place.name)[0]
    words = re.split(r"[^a-z]+", Path(place.name).stem.lower())
    for part, pattern in SPLITS.items():
        if any(re.fullmatch(pattern, word) for word in words):
            split = part
    return split


def _found_documents(
    form: str,
    parts: Mapping[str, list[_Document]],
    places: Sequence[Place],
    table: Path | None,
    notes: list[str],
    folder: Path,
) -> Found:
    number = sum(map(len, parts.values()))
    notes.insert(0, f"labels: {FORM_NAMES[form]} ({number:,})")
    if form == "coco":
        parts = {part: _of_instances(some, notes) for part, some in parts.items()}
    train, val = choose_splits(parts, notes, folder)
    found: dict[str, Any] = {}
    for prefix, part in (("", train), ("val_", val)):
        if part is None:
            continue
        files = [document.place for document in parts[part]]
        top = common_folder(files)
        others = [one.place for name, some in parts.items() if name != part for one in some]
        apart = not any(top in place.file.parents for place in others)
        whole = form == "labelme" and apart  # or else names would have the folder of the part
        found[f"{prefix}sources"] = (top,) if whole else tuple(place.file for place in files)
        found[f"{prefix}images"] = _images_of(parts[part][0], part, places)
    if val is None:
        images = found["images"] or common_folder([one.place for one in parts[train]])
        names = {Path(place.name).stem for place in filter(is_image, places)}
        found |= found_lists(places, images, names, notes)
    if form == "coco":
        table = None if table and table.name == "_classes.csv" else table
    return Found(form, classes=table, notes=tuple(notes), **found)


def _of_instances(documents: list[_Document], notes: list[str]) -> list[_Document]:
    """Those of a part without others that are beside a file of instances of the same images."""
    folders = {
        one.place.file.parent for one in documents
        if one.place.file.name.lower().startswith("instances")
    }  # fmt: skip
    left = [
        one.place for one in documents
        if one.place.file.parent in folders and _BESIDE_INSTANCES.fullmatch(one.place.file.name)
    ]  # fmt: skip
    if left:
        notes.append(f"left out, beside instances: {', '.join(place.name for place in left)}")
    return [one for one in documents if one.place not in left]


def _images_of(document: _Document, part: str, places: Sequence[Place]) -> Path | None:
    """The folder of a document's images, unless they lie where they are looked for anyway.

    Images of its part come first: those of another one may have the same names. Where nothing says
    its part, those of no part do.

    Raises:
        UserError: Several folders have its first image.
    """
    if any((document.place.file.parent / name).is_file() for name in document.names):
        return None
    told = _split_of_document(document.place) is not None
    for name in (PurePosixPath(composed(str(name))) for name in document.names):
        found: dict[tuple[bool, ...], set[Path]] = defaultdict(set)
        for place in filter(is_image, places):
            path = PurePosixPath(composed(place.name))
            if name.name in (path.name, path.stem):
                below = path.parts[-len(name.parts) :] == name.parts
                split, role = named_split_and_role(place.name)
                apart = (split or "train") != part if told else split is not None
                rank = (not below, role in ("labels", "instances"), apart, role is None)
                found[rank].add(place.file.parents[len(name.parts) - 1 if below else 0])
        if found:
            first, *others = sorted(found[min(found)])
            if others:
                message = f"{name.name} lies in {first} and in {others[0]}; move one out of the"
                message += " folder, or name that of the images: prepare-data custom --images"
                raise UserError("dataset", document.place, message)
            return first
    return None
