# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Class lists and colour tables, as text, CSV or JSON."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...io.json_files import parse_json
from ..class_names import check_class_name

IGNORED_NAME = "__ignore__"  # as LabelMe's own converter calls it
_MOST_BYTES = 1 << 24
_LONGEST_LINE = 1000  # characters: a name and a colour, and what tools write behind them


@dataclass(frozen=True)
class Colour:
    """A line of a colour table or class list."""

    name: str
    rgb: tuple[int, int, int] | None


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
        UserError: The file cannot be read so, a name cannot be one, or a colour has two names.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError("not-found", file, "does not exist; it is a list of classes") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("unreadable", file, f"is not a list of classes ({error})") from error
    if len(data) > _MOST_BYTES:
        message = f"is larger than a list of classes ({_MOST_BYTES:,} bytes)"
        raise UserError("too-large", file, message)
    rows = _json_rows(file, text) if file.suffix.lower() == ".json" else _text_rows(file, text)
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


def _json_rows(file: Path, text: str) -> list[Colour]:
    data = parse_json(text, str(file))
    try:
        if isinstance(data, dict):
            return [Colour(name, _colour(value)) for name, value in data.items()]
        rows = []
        for entry in data:
            if isinstance(entry, str):
                rows.append(Colour(entry, None))
            else:
                colour = entry.get("color", entry.get("colour", entry.get("rgb")))
                rows.append(Colour(entry["name"], _colour(colour)))
        return rows
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        message = f"is not a JSON list of classes ({error!s:.300})"
        raise UserError("classes", file, message) from error


def _text_rows(file: Path, text: str) -> list[Colour]:
    rows = []
    first = ""
    for line in text.splitlines():
        line = line.strip()
        if len(line) > _LONGEST_LINE:
            message = f"the line {line[:40]!r}... is longer than {_LONGEST_LINE} characters"
            raise UserError("classes", file, message)
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
    if re.fullmatch(r"pixel value\s*,\s*class", first, re.I):  # Roboflow's _classes.csv
        return _numbered_rows(text)
    heading = r"\b(?:r|red)\b.*\b(?:g|green)\b.*\b(?:b|blue)\b"
    if any(row.rgb for row in rows) and rows[0].rgb is None and re.search(heading, first, re.I):
        rows = rows[1:]
    return [row for row in rows if row.name]


def _numbered_rows(text: str) -> list[Colour]:
    """Names in order of their numbers, of lines ``number, name``; numbers left out are ignored."""
    names: dict[int, str] = {}
    for number, name in (line.split(",", 1) for line in text.splitlines()[1:] if "," in line):
        if number.strip().isdecimal():
            names[int(number)] = name.strip()
    if max(names, default=0) > 255:
        return []
    return [Colour(names.get(n, IGNORED_NAME), None) for n in range(max(names, default=-1) + 1)]
