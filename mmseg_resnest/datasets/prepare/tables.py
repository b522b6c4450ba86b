# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Class lists and colour tables, as text, CSV, JSON or YAML."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...errors import UserError
from ...io.json_files import parse_json
from ..class_names import check_class_name
from ..layout import decode_text

# As LabelMe's own converter calls them; its masks have 255 for the first and 0 for the second.
IGNORED_NAME, BACKGROUND_NAME = "__ignore__", "_background_"
_MOST_BYTES = 1 << 24
_LONGEST_LINE = 1000  # characters: a name and a colour, and what tools write behind them
_LARGEST = 255
_LISTS = ("names", "classes", "categories", "labels")
_SEPARATED = re.compile(r"(?P<number>\d+)\s*[,;:\t]\s*(?P<name>\S.*)")
_BEHIND = re.compile(r"(?P<name>\S.*?)\s*[,;\t]\s*(?P<number>\d+)")
# Headings of columns.
_NAME = frozenset(("name", "names", "class", "classes", "class_name", "label", "category"))
_ANY_COLOUR = frozenset(("color", "colour", "class_color", "rgb", "hex"))
_NUMBERS = frozenset(("id", "ids", "idx", "index", "number", "class_id", "label_id"))
_COLOURS = (("r", "red"), ("g", "green"), ("b", "blue"))
_COUNTED = re.compile(r"(?P<number>\d+)[.)]?\s+(?P<name>\S.*)")


@dataclass(frozen=True)
class Colour:
    """A line of a colour table or class list."""

    name: str
    rgb: tuple[int, int, int] | None


def read_table(file: Path) -> list[Colour]:
    """Reads a class list or a colour table, in UTF-8 or UTF-16.

    As text or CSV: a name a line, or a name and its colour in either order, the parts separated by
    commas, colons, semicolons, tabs or spaces: ``road 128 64 128``, ``128,64,128,road``,
    ``road:128,64,128::`` (CVAT), ``road #804080``. Lines that start with ``#`` are left out. A
    heading such as ``id,name,r,g,b`` may name the columns. As JSON or YAML: a list of names,
    ``{"road": [128, 64, 128]}``, or ``[{"name": "road", "color": [128, 64, 128]}]``, also below
    ``names``, ``classes``, ``categories`` or ``labels``.

    Names may have the numbers of their labels: ``3,road`` or ``road,3`` a line, ``3,road,1,2,3``, a
    column ``id``, ``0 sky`` where the lines count from 0 or 1, ``{"3": "road"}``, ``{"road": 3}``
    or ``{"id": 3, "name": "road"}``.

    Returns:
        The lines in order; a name may have several colours. With numbers, by number, and those
        that are left out are ``__ignore__``.

    Raises:
        UserError: The file cannot be read so, a name cannot be one, or a colour has two names.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
        text = decode_text(data)
    except FileNotFoundError as error:
        raise UserError("not-found", file, "does not exist; it is a list of classes") from error
    except UnicodeDecodeError as error:
        raise UserError("unreadable", file, "is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise UserError("unreadable", file, f"is not a list of classes ({error})") from error
    if len(data) > _MOST_BYTES:
        message = f"is larger than a list of classes ({_MOST_BYTES:,} bytes)"
        raise UserError("too-large", file, message)
    suffix = file.suffix.lower()
    if suffix == ".json":
        rows = _structured_rows(file, parse_json(text, str(file)))
    elif suffix in (".yaml", ".yml"):
        rows = _structured_rows(file, _parse_yaml(file, text))
    else:
        rows = _text_rows(file, text)
    for row in rows:
        check_class_name(row.name, str(file))
    if not rows:
        message = "holds no class; write one name a line, or `name red green blue`"
        raise UserError("classes", file, message)
    by_colour: dict[tuple[int, int, int], str] = {}
    for row in rows:
        if row.rgb is not None:
            if not all(0 <= value <= 255 for value in row.rgb):
                message = f"the colour {row.rgb} of {row.name!r} is not in 0..255"
                raise UserError("classes", file, message)
            if by_colour.setdefault(row.rgb, row.name) != row.name:
                names = f"{by_colour[row.rgb]!r} and {row.name!r}"
                message = f"{names} have the colour {row.rgb}; give each its own"
                raise UserError("classes", file, message)
    return rows


def _colour(value: Any) -> tuple[int, int, int] | None:
    if value is None:
        return None
    if isinstance(value, str):
        match = re.fullmatch(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", value.strip())
        if match is None:
            raise ValueError(f"{value!r} is not a colour")
        return int(match[1], 16), int(match[2], 16), int(match[3], 16)
    red, green, blue = (int(part) for part in list(value)[:3])
    return red, green, blue


def _parse_yaml(file: Path, text: str) -> Any:
    """All scalars as texts: ``no``, ``null`` and ``1`` are names, too."""
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # of "\\UFFFFFFFF"
        raise UserError("classes", file, f"is not YAML ({error!s:.300})") from error


def _structured_rows(file: Path, data: Any) -> list[Colour]:
    try:
        if isinstance(data, dict):
            for key in _LISTS:
                value = data.get(key)
                if isinstance(value, dict) or (isinstance(value, list) and not _is_colour(value)):
                    return _structured_rows(file, value)
            of_names = {name: _number(value) for name, value in data.items()}
            if data and None not in of_names.values():
                return _by_number(file, [(number, name) for name, number in of_names.items()])
            of_keys = [(_number(key), name) for key, name in data.items()]
            named = all(isinstance(n, str) and not _is_hex(n) for n in data.values())
            if data and named and None not in dict(of_keys):
                return _by_number(file, of_keys)
            return [Colour(name, _colour(value)) for name, value in data.items()]
        if not isinstance(data, list):
            raise TypeError("it holds neither a list nor a mapping")
        rows, ids = [], []
        for entry in data:
            if isinstance(entry, str):
                rows.append(Colour(entry, None))
            else:
                colour = entry.get("color", entry.get("colour", entry.get("rgb")))
                rows.append(Colour(entry["name"], _colour(colour)))
                ids.append(_number(entry.get("id")))
        return _in_order(rows, ids)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        message = f"is not a list of classes ({error!s:.300})"
        raise UserError("classes", file, message) from error


def _in_order(rows: list[Colour], ids: Sequence[int | None]) -> list[Colour]:
    """Rows by the numbers of their labels, if all have one of their own; others are ignored."""
    few = [number for number in ids if number is not None and number <= _LARGEST]
    if not rows or len(set(few)) != len(rows):
        return rows
    by_id = dict(zip(few, rows, strict=True))
    return [by_id.get(n, Colour(IGNORED_NAME, None)) for n in range(max(few) + 1)]


def _is_colour(value: Sequence[Any]) -> bool:
    return len(value) == 3 and all(_number(part) is not None for part in value)


def _is_hex(text: str) -> bool:
    return re.fullmatch(r"#?[0-9a-fA-F]{6}", text.strip()) is not None


def _number(value: Any) -> int | None:
    """A label number, as number or text."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    return value if type(value) is int and value >= 0 else None


def _by_number(file: Path, pairs: Sequence[tuple[int | None, str]]) -> list[Colour]:
    """Names in order of their numbers; numbers that are left out are ignored."""
    names: dict[int, str] = {}
    for number, name in pairs:
        assert number is not None
        if number > _LARGEST:
            message = f"the label {number} of {name!r:.80} is more than {_LARGEST}"
            raise UserError("classes", file, message)
        if names.setdefault(number, name) != name:
            message = f"the label {number} has two names, {names[number]!r:.80} and {name!r:.80}"
            raise UserError("classes", file, message)
    return [Colour(names.get(n, IGNORED_NAME), None) for n in range(max(names) + 1)]


def _text_rows(file: Path, text: str) -> list[Colour]:
    lines = [line.strip() for line in text.splitlines()]
    lines = [
        line for line in lines
        if line and (not line.startswith("#") or re.match(r"#[0-9a-fA-F]{6}\b", line))
    ]  # fmt: skip
    for line in lines:
        if len(line) > _LONGEST_LINE:
            message = f"the line {line[:40]!r}... is longer than {_LONGEST_LINE} characters"
            raise UserError("classes", file, message)
    if found := _by_heading(lines):
        return found
    if file.suffix.lower() == ".csv" and len(lines) > 1 and lines[0].strip(" \"'").lower() in _NAME:
        lines = lines[1:]
    rows = [_coloured(line) for line in lines]
    if not any(rows):
        return _numbered(file, lines) or [Colour(_only_name(file, line), None) for line in lines]
    heading = r"\b(?:r|red)\b.*\b(?:g|green)\b.*\b(?:b|blue)\b"
    words = set(re.split(r"[\s,;:\"']+", lines[0].lower())) - {""}
    heads = words <= _NAME | _ANY_COLOUR | _NUMBERS or re.search(heading, lines[0], re.I)
    if rows[0] is None and heads:
        rows, lines = rows[1:], lines[1:]
    found = [
        row or Colour(_only_name(file, line), None) for row, line in zip(rows, lines, strict=True)
    ]
    found = [row for row in found if row.name]
    numbered = [match for row in found if (match := _SEPARATED.fullmatch(row.name))]
    if len(numbered) < len(found):
        return found
    found = [Colour(m["name"], row.rgb) for m, row in zip(numbered, found, strict=True)]
    return _in_order(found, [_number(match["number"]) for match in numbered])


def _by_heading(lines: Sequence[str]) -> list[Colour]:
    """The rows of a table with more columns than name and colour, which its first line names."""
    for sign in ",;\t":
        cells = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=sign)]
        head = [cell.lower() for cell in cells[0]] if cells else []
        places = [
            next((place for place, cell in enumerate(head) if cell in some), None)
            for some in (_NAME, *_COLOURS)
        ]
        if len(head) < 5 or None in places:
            continue
        try:
            rows = [[row[place] for place in places if place is not None] for row in cells[1:]]
            found = [Colour(name, (int(r), int(g), int(b))) for name, r, g, b in rows]
            number = next((place for place, cell in enumerate(head) if cell in _NUMBERS), None)
            ids = [None if number is None else _number(row[number]) for row in cells[1:]]
            return _in_order(found, ids)
        except (IndexError, ValueError):
            continue
    return []


def _coloured(line: str) -> Colour | None:
    """A name and its colour, in either order; None if a line is something else."""
    after = re.fullmatch(r"(.+?)[\s,;:]+\(?(\d+)[\s,;]+(\d+)[\s,;]+(\d+)\)?(?::.*)?", line)
    before = re.fullmatch(r"(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;:]+(\S.*)", line)
    code = re.fullmatch(r"(.+?)[\s,;:]+(#[0-9a-fA-F]{6})", line)
    if before:
        red, green, blue = (int(before[i]) for i in (1, 2, 3))
        return Colour(before[4].strip(" ,;:\"'"), (red, green, blue))
    if after:
        red, green, blue = (int(after[i]) for i in (2, 3, 4))
        return Colour(after[1].strip(" ,;:\"'"), (red, green, blue))
    return Colour(code[1].strip(" \"'"), _colour(code[2])) if code else None


def _only_name(file: Path, line: str) -> str:
    name, *more = next(csv.reader([line]))
    if any(map(str.strip, more)):
        message = (
            f"the line {line!r:.80} is not one name; write a name a line, in quotes if it has"
            " commas"
        )
        raise UserError("classes", file, message)
    return name.strip()


def _numbered(file: Path, lines: Sequence[str]) -> list[Colour] | None:
    """Lines that are all a name and its label's number, perhaps with a heading; None of others."""
    for pattern in (_SEPARATED, _BEHIND):
        for first in (0, 1):
            found = [pattern.fullmatch(line) for line in lines[first:]]
            if found and all(found) and (not first or not any(map(str.isdigit, lines[0]))):
                pairs = [(int(m["number"]), m["name"].strip(" \"'")) for m in found if m]
                return _by_number(file, pairs)
    counted = [_COUNTED.fullmatch(line) for line in lines]
    pairs = [(int(match["number"]), match["name"]) for match in counted if match]
    numbers = [number for number, _ in pairs]
    if len(pairs) == len(lines) and numbers and numbers[0] in (0, 1) and (
        numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    ):  # fmt: skip
        return _by_number(file, pairs)
    return None
