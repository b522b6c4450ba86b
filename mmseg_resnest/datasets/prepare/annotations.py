# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The forms in which people keep labels of their own: LabelMe, COCO, colours, label numbers.

Each reader lists the samples of a source without decoding a pixel; a sample renders its label map
when it is asked, in any process.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import UserError
from .labels import Labels, colours_to_labels, indices, open_image
from .shapes import Mask, decode_rle, fill_circle, fill_polygon
from .sources import Place, file_stamp, list_folder

FORMATS = ("labelme", "coco", "colour", "index")
IGNORED = 255
IGNORED_NAME = "__ignore__"  # as LabelMe's own converter calls it
_LINE_SHAPES = ("line", "linestrip", "point", "points")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

# Renders a label map (H, W) from the label of each class name.
Render = Callable[[Mapping[str, int], int], Labels]


@dataclass(frozen=True)
class Sample:
    """One image and how its labels are made.

    Attributes:
        name: Path without suffix, with forward slashes.
        image: The image file, or its content.
        key: Changes when the image or its labels change.
        render: Returns the label map (H, W), given the label of each name and the label of
            pixels that no shape covers.
        names: The class names that occur, where the form tells without decoding pixels.
    """

    name: str
    image: Path | bytes
    key: str
    render: Render
    names: frozenset[str]
    suffix: str


@dataclass(frozen=True)
class Colour:
    """A line of a colour table or class list."""

    name: str
    rgb: tuple[int, int, int] | None


# ------------------------------------------------------------------------------------------------
# Class lists and colour tables


def read_table(file: Path) -> list[Colour]:
    """Reads a class list or a colour table.

    As text or CSV: a name a line, or a name and its colour in either order, the parts separated by
    commas, colons, semicolons, tabs or spaces: ``road 128 64 128``, ``128,64,128,road``,
    ``road:128,64,128::`` (CVAT), ``road #804080``. Lines that start with ``#`` and a heading
    such as ``name,r,g,b`` are left out. As JSON: a list of names,
    ``{"road": [128, 64, 128]}``, or ``[{"name": "road", "color": [128, 64, 128]}]``.

    Returns:
        The lines in order; a name may have several colours.

    Raises:
        UserError: The file cannot be read so, or a colour has two names.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as a list of classes ({error})") from error
    rows = _json_rows(file, text) if file.suffix.lower() == ".json" else _text_rows(text)
    rows = [row for row in rows if row.name]
    if not rows:
        raise UserError(f"{file}: holds no class; write one name a line, or `name red green blue`")
    by_colour: dict[tuple[int, int, int], str] = {}
    for row in rows:
        if row.rgb is not None:
            if not all(0 <= value <= 255 for value in row.rgb):
                raise UserError(f"{file}: the colour {row.rgb} of {row.name!r} is not in 0..255")
            if by_colour.setdefault(row.rgb, row.name) != row.name:
                raise UserError(
                    f"{file}: the colour {row.rgb} is given to {by_colour[row.rgb]!r} and to"
                    f" {row.name!r}; give each its own"
                )
    return rows


def _colour(value: Any) -> tuple[int, int, int] | None:
    if value is None:
        return None
    if isinstance(value, str):
        match = re.fullmatch(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", value.strip())
        if match is None:
            raise ValueError(f"{value!r} is no colour")
        return int(match[1], 16), int(match[2], 16), int(match[3], 16)
    red, green, blue = (int(part) for part in list(value)[:3])
    return red, green, blue


def _json_rows(file: Path, text: str) -> list[Colour]:
    try:
        data = json.loads(text)
        if isinstance(data, dict):
            return [Colour(str(name), _colour(value)) for name, value in data.items()]
        rows = []
        for entry in data:
            if isinstance(entry, str):
                rows.append(Colour(entry, None))
            else:
                colour = entry.get("color", entry.get("colour", entry.get("rgb")))
                rows.append(Colour(str(entry["name"]), _colour(colour)))
        return rows
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: is not a JSON list of classes ({error})") from error


def _text_rows(text: str) -> list[Colour]:
    rows = []
    first = ""
    for line in text.splitlines():
        line = line.strip()
        first = first or line
        if not line or (line.startswith("#") and not re.match(r"#[0-9a-fA-F]{6}\b", line)):
            continue
        after = re.fullmatch(r"(.+?)[\s,;:]+\(?(\d+)[\s,;]+(\d+)[\s,;]+(\d+)\)?(?::.*)?", line)
        before = re.fullmatch(r"(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;:]+(\S.*)", line)
        code = re.fullmatch(r"(.+?)[\s,;:]+(#[0-9a-fA-F]{6})", line)
        if before:
            red, green, blue = (int(before[i]) for i in (1, 2, 3))
            rows.append(Colour(before[4].strip(" ,;:\"'"), (red, green, blue)))
        elif after:
            red, green, blue = (int(after[i]) for i in (2, 3, 4))
            rows.append(Colour(after[1].strip(" ,;:\"'"), (red, green, blue)))
        elif code:
            rows.append(Colour(code[1].strip(" \"'"), _colour(code[2])))
        else:
            rows.append(Colour(next(csv.reader([line]))[0].strip(), None))
    heading = r"\b(?:r|red)\b.*\b(?:g|green)\b.*\b(?:b|blue)\b"
    if any(row.rgb for row in rows) and rows[0].rgb is None and re.search(heading, first, re.I):
        rows = rows[1:]
    return rows


# ------------------------------------------------------------------------------------------------
# Readers


def read_samples(
    form: str,
    sources: Sequence[Path],
    images: Path | None = None,
    colours: Sequence[Colour] = (),
    classes: Sequence[str] = (),
    label_suffix: str = "",
) -> list[Sample]:
    """The samples of a source.

    Args:
        form: One of ``FORMATS``.
        sources: LabelMe: folders of JSON files; COCO: JSON files, or folders of them; colours and
            label numbers: folders of masks.
        images: Folder of the images; None where the labels say where they are, or beside them.
        colours: The colour table, for ``colour``.
        classes: Names by label number, for ``index``.
        label_suffix: What a mask's name has after its image's, e.g. ``_mask``.

    Returns:
        The samples, in order of their names.

    Raises:
        UserError: A file is missing or not of that form; names it.
    """
    for source in sources:
        if not source.exists():
            raise UserError(f"--source {source}: does not exist")
    if images is not None and not images.is_dir():
        raise UserError(f"--images {images}: is no folder")
    samples: list[Sample] = []
    for source in sources:
        if form == "labelme":
            samples += _labelme(source, images)
        elif form == "coco":
            samples += _coco(source, images)
        else:
            samples += _masks(form, source, images, colours, classes, label_suffix)
    if not samples:
        what = "JSON files" if form in ("labelme", "coco") else "masks (PNG)"
        raise UserError(f"{', '.join(map(str, sources))}: holds no {what} with samples")
    names: dict[str, Sample] = {}
    for sample in samples:
        _check_name(sample)
        if sample.name in names:
            raise UserError(
                f"{sample.name}: is the name of two images ({_where(names[sample.name])},"
                f" {_where(sample)}); rename one of them"
            )
        names[sample.name] = sample
    return sorted(samples, key=lambda sample: sample.name)


def _check_name(sample: Sample) -> None:
    """Makes sure that a list can name the image, one a line, in UTF-8."""
    name = sample.name
    try:
        name.encode()
        fits = len(name.splitlines()) == 1
    except UnicodeEncodeError:
        fits = False
    if not fits:
        shown = name.encode("utf-8", "backslashreplace").decode().encode("unicode_escape").decode()
        raise UserError(
            f"{shown}: no list of images can hold this name (it has a line break or is not"
            " UTF-8); rename the image and its labels"
        )


def _where(sample: Sample) -> str:
    return str(sample.image) if isinstance(sample.image, Path) else "in its JSON file"


def image_size(image: Path | bytes, name: object) -> tuple[int, int]:
    """Height and width as training sees them: after the rotation that the file's EXIF asks for."""
    try:
        opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
        width, height = opened.size
        turned = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception as error:  # Pillow's decoders raise whatever they please
        raise UserError(
            f"{name}: is no image or is damaged ({error}); mend or remove it"
        ) from error
    return (width, height) if turned else (height, width)


def _json_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    return [place.file for place in list_folder(source) if place.name.lower().endswith(".json")]


def _load_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: is no JSON file ({error}); mend or remove it") from error


def _find_image(candidates: Iterable[Path]) -> Path | None:
    for candidate in candidates:
        if candidate.is_file():
            return candidate
        if candidate.suffix.lower() not in IMAGE_SUFFIXES:
            for suffix in (*IMAGE_SUFFIXES, *(s.upper() for s in IMAGE_SUFFIXES)):
                other = candidate.with_name(candidate.name + suffix)
                if other.is_file():
                    return other
    return None


def _labelme(source: Path, images: Path | None) -> list[Sample]:
    samples = []
    top = source.parent if source.is_file() else source
    for file in _json_files(source):
        data = _load_json(file)
        if not isinstance(data, dict) or not isinstance(data.get("shapes"), list):
            raise UserError(f"{file}: is no LabelMe file (it has no list `shapes`)")
        relative = file.relative_to(top).with_suffix("")
        path = str(data.get("imagePath") or "").replace("\\", "/")
        candidates = [file.parent / path] if path else []
        candidates.append(file.with_suffix(""))
        if images is not None:
            candidates = [images / relative, images / path, images / Path(path).name]
        image: Path | bytes | None = _find_image(c for c in candidates if c.name)
        stamp = file_stamp(file)
        suffix = ""
        if image is None and data.get("imageData"):
            try:
                image = base64.b64decode(data["imageData"])
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{file}: imageData is not base64 ({error}); label it anew"
                ) from error
            opened = open_image(image, f"{file}: imageData")
            suffix = {"JPEG": ".jpg", "PNG": ".png"}.get(opened.format or "", "")
            if not suffix:
                raise UserError(f"{file}: imageData is neither JPEG nor PNG; save the image beside")
        if image is None:
            raise UserError(f"{file}: its image {path or relative} is not there; see --images")
        names = set()
        for number, shape in enumerate(data["shapes"]):
            label = (
                str(shape["label"] or "") if isinstance(shape, dict) and "label" in shape else ""
            )
            if not label.strip() or not isinstance(shape.get("points"), list):
                raise UserError(
                    f"{file}: shape {number} has no label or no points; mend or remove it"
                )
            kind = shape.get("shape_type") or "polygon"
            if kind not in _LABELME_SHAPES:
                why = "which has no area" if kind in _LINE_SHAPES else "which is not known here"
                raise UserError(
                    f"{file}: shape {number} ({label!r}) is a {kind}, {why}; make it a polygon or"
                    " remove it"
                )
            names.add(label)
        samples.append(
            Sample(
                relative.as_posix(),
                image,
                f"{stamp} {file_stamp(image) if isinstance(image, Path) else ''}",
                partial(_render_labelme, file, image),
                frozenset(names),
                suffix or _suffix(image),
            )
        )
    return samples


def _suffix(image: Path | bytes) -> str:
    assert isinstance(image, Path)
    return image.suffix


def _polygon(shape: Mapping[str, Any], height: int, width: int) -> Mask:
    if len(shape["points"]) < 3:
        raise ValueError("a polygon needs three points")
    return fill_polygon(shape["points"], height, width)


def _rectangle(shape: Mapping[str, Any], height: int, width: int) -> Mask:
    (x0, y0), (x1, y1) = shape["points"][:2]
    return fill_polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], height, width)


def _circle(shape: Mapping[str, Any], height: int, width: int) -> Mask:
    return fill_circle(shape["points"][0], shape["points"][1], height, width)


def _bitmap(shape: Mapping[str, Any], height: int, width: int) -> Mask:
    """LabelMe's ``mask``: a small picture whose upper left corner is the first point."""
    small = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))) != 0
    x, y = (round(value) for value in shape["points"][0])
    mask = np.zeros((height, width), dtype=np.bool_)
    if x < 0 or y < 0 or y + small.shape[0] > height or x + small.shape[1] > width:
        raise ValueError("its mask leaves the image")
    mask[y : y + small.shape[0], x : x + small.shape[1]] = small
    return mask


_LABELME_SHAPES: dict[str, Callable[[Mapping[str, Any], int, int], Mask]] = {
    "polygon": _polygon,
    "rectangle": _rectangle,
    "circle": _circle,
    "mask": _bitmap,
}


def _render_labelme(
    file: Path, image: Path | bytes, table: Mapping[str, int], uncovered: int
) -> Labels:
    data = _load_json(file)
    height, width = image_size(image, file if isinstance(image, bytes) else image)
    given = data.get("imageHeight"), data.get("imageWidth")
    if None not in given and given != (height, width):
        raise UserError(
            f"{file}: says that its image is {given[1]}x{given[0]}, but it is {width}x{height};"
            " label the image as it is now"
        )
    labels = np.full((height, width), uncovered, dtype=np.uint8)
    for number, shape in enumerate(data["shapes"]):
        try:
            mask = _LABELME_SHAPES[shape.get("shape_type") or "polygon"](shape, height, width)
        except Exception as error:
            raise UserError(
                f"{file}: shape {number} ({shape['label']!r}) cannot be drawn ({error})"
            ) from error
        labels[mask] = table[str(shape["label"])]
    return labels


def _coco(source: Path, images: Path | None) -> list[Sample]:
    samples = []
    for file in _json_files(source):
        data = _load_json(file)
        try:
            categories = {entry["id"]: str(entry["name"]) for entry in data["categories"]}
            areas = defaultdict(list)
            for entry in data["annotations"]:
                areas[entry["image_id"]].append(
                    (categories[entry["category_id"]], entry["segmentation"], entry.get("id"))
                )
            listed = [(entry["id"], str(entry["file_name"])) for entry in data["images"]]
            sizes = {e["id"]: (e.get("height"), e.get("width")) for e in data["images"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file}: is no COCO file of `images`, `annotations` with `segmentation`, and"
                f" `categories` (at {error})"
            ) from error
        stamp = file_stamp(file)
        for image_id, file_name in listed:
            relative = Path(file_name.replace("\\", "/"))
            if relative.is_absolute() or ".." in relative.parts:
                raise UserError(f"{file}: the file name {file_name!r} is unsafe; make it relative")
            folders = [images] if images else [file.parent, file.parent / "images"]
            image = _find_image(
                candidate for folder in folders
                for candidate in (folder / relative, folder / relative.name)
            )  # fmt: skip
            if image is None:
                raise UserError(f"{file}: its image {file_name} is not there; see --images")
            samples.append(
                Sample(
                    relative.with_suffix("").as_posix(),
                    image,
                    f"{stamp} {file_stamp(image)}",
                    partial(_render_coco, file, image, areas[image_id], sizes[image_id]),
                    frozenset(name for name, _, _ in areas[image_id]),
                    image.suffix,
                )
            )
    return samples


def _render_coco(
    file: Path,
    image: Path,
    areas: list[tuple[str, Any, Any]],
    given: tuple[int | None, int | None],
    table: Mapping[str, int],
    uncovered: int,
) -> Labels:
    height, width = image_size(image, image)
    if None not in given and given != (height, width):
        raise UserError(
            f"{file}: says that {image.name} is {given[1]}x{given[0]}, but it is {width}x{height}"
        )
    labels = np.full((height, width), uncovered, dtype=np.uint8)
    for name, segmentation, number in areas:
        try:
            if isinstance(segmentation, dict):
                if list(segmentation["size"]) != [height, width]:
                    raise ValueError(f"its size is {segmentation['size']}, not {[height, width]}")
                mask = decode_rle(segmentation["counts"], height, width)
            elif not segmentation:
                raise ValueError("it has no outline, only a box")
            else:
                mask = np.zeros((height, width), dtype=np.bool_)
                for polygon in segmentation:
                    if len(polygon) < 6 or len(polygon) % 2:
                        raise ValueError(f"a polygon has {len(polygon)} numbers")
                    mask |= fill_polygon(polygon, height, width)
        except Exception as error:
            raise UserError(
                f"{file}: annotation {number} of {image.name} cannot be drawn ({error})"
            ) from error
        labels[mask] = table[name]
    return labels


def _masks(
    form: str,
    source: Path,
    images: Path | None,
    colours: Sequence[Colour],
    classes: Sequence[str],
    label_suffix: str,
) -> list[Sample]:
    if not source.is_dir():
        raise UserError(f"--source {source}: is no folder of masks")
    if images is None:
        raise UserError(f"--format {form}: give the folder of the images with --images")
    if form == "colour" and not any(colour.rgb for colour in colours):
        raise UserError("--format colour: give the table of names and colours with --classes FILE")
    if form == "index" and not classes:
        raise UserError("--format index: give the names of labels 0, 1, ... with --classes FILE")
    names = frozenset(classes) or frozenset(colour.name for colour in colours)
    masks: dict[str, Place] = {}
    for place in list_folder(source):
        path = Path(place.name)
        if path.suffix.lower() in IMAGE_SUFFIXES and path.stem.endswith(label_suffix):
            _only_one(masks, path.with_suffix("").as_posix(), place)
    own = {place.file.resolve() for place in masks.values()}  # masks may lie among the images
    pictures: dict[str, Place] = {}
    for place in list_folder(images):
        path = Path(place.name)
        if path.suffix.lower() in IMAGE_SUFFIXES and place.file.resolve() not in own:
            _only_one(pictures, path.with_suffix("").as_posix(), place)
    samples = []
    for stem, place in masks.items():
        stem = stem.removesuffix(label_suffix)
        if stem not in pictures:
            raise UserError(
                f"{place.file}: there is no image {stem} in {images}; see --label-suffix"
            )
        image = pictures.pop(stem)
        render = (
            partial(_render_colours, place, image.file, tuple(colours))
            if form == "colour"
            else partial(_render_indices, place, image.file, tuple(classes))
        )
        samples.append(
            Sample(
                stem, image.file, f"{place.stamp} {image.stamp}", render, names, image.file.suffix
            )
        )
    if pictures:
        first = next(iter(pictures.values()))
        raise UserError(
            f"{first.file}: has no mask in {source} ({len(pictures)} images have none); add them or"
            " take these images out of the folder"
        )
    return samples


def _only_one(places: dict[str, Place], stem: str, place: Place) -> None:
    if stem in places:
        raise UserError(f"{place.file} and {places[stem].file} share a name; remove one of them")
    places[stem] = place


def _check_size(labels: npt.NDArray[Any], place: Place, image: Path) -> None:
    height, width = image_size(image, image)
    if labels.shape[:2] != (height, width):
        raise UserError(
            f"{place}: is {labels.shape[1]}x{labels.shape[0]}, but its image {image} is"
            f" {width}x{height}; get the mask of that size"
        )


def _render_colours(
    place: Place,
    image: Path,
    colours: Sequence[Colour],
    table: Mapping[str, int],
    uncovered: int,
) -> Labels:
    mask = open_image(place.read(), place)
    if mask.mode in ("RGBA", "LA", "PA") or "transparency" in mask.info:
        mask = mask.convert("RGBA")
        if mask.getchannel("A").getextrema() != (255, 255):
            raise UserError(f"{place}: has transparent pixels; save it without an alpha channel")
    rgb = np.asarray(mask.convert("RGB"))
    _check_size(rgb, place, image)
    known = {colour.rgb: table[colour.name] for colour in colours if colour.rgb is not None}
    return colours_to_labels(rgb, known, place)


def _render_indices(
    place: Place, image: Path, classes: Sequence[str], table: Mapping[str, int], uncovered: int
) -> Labels:
    values = indices(place.read(), place)
    _check_size(values, place, image)
    largest = int(values.max()) if values.size else 0
    found = np.unique(values)
    bad = [int(v) for v in found if int(v) >= len(classes) and int(v) != IGNORED]
    if bad:
        raise UserError(
            f"{place}: holds label {bad[0]}, but the list of classes has {len(classes)} names (0 to"
            f" {len(classes) - 1}; {IGNORED} is ignored); add the name, or `{IGNORED_NAME}`"
        )
    lut = np.full(max(largest, IGNORED) + 1, IGNORED, dtype=np.uint8)
    lut[: len(classes)] = [table[name] for name in classes]
    result: Labels = lut[values]
    return result
