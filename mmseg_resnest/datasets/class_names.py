# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Names and colours of classes in a data file, so that no name enters a config's code.

``classes.json`` is a list of ``{"name": "road", "color": [128, 64, 128]}``, in the order of the
labels. Configs name it with ``classes_file``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ..errors import UserError
from ..io.json_files import read_json

CLASSES_FILE = "classes.json"
LONGEST_NAME = 200  # characters
_MOST_BYTES = 1 << 24


def check_class_name(name: object, where: str) -> str:
    """The name of a class as it is; any text that is not refused may be one.

    Raises:
        UserError: It is not text, is blank, holds a null character or half of a surrogate pair
            (which UTF-8 cannot hold), or is longer than 200 characters; ``where`` is the subject.
    """
    wrong = ""
    if not isinstance(name, str):
        wrong = "is not text; write it as text"
    elif not name.strip():
        wrong = "is empty; give the class a name"
    elif len(name) > LONGEST_NAME:
        wrong = f"is longer than {LONGEST_NAME} characters; rename the class"
    elif "\0" in name:
        wrong = "holds a null character; rename the class"
    elif any("\ud800" <= character <= "\udfff" for character in name):
        wrong = "holds half of a surrogate pair, which UTF-8 cannot encode; rename the class"
    if wrong:
        raise UserError("classes", where, f"the class name {name!r:.80} {wrong}")
    return cast(str, name)


def classes_json(palette: Sequence[tuple[str, tuple[int, int, int]]]) -> bytes:
    """``classes.json`` for the name and colour (r, g, b; 0..255) of each class, in order."""
    lines = [
        json.dumps({"name": name, "color": list(colour)}, ensure_ascii=False)
        for name, colour in palette
    ]
    return ("[\n" + ",\n".join(lines) + "\n]\n").encode()


def read_classes(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Names (``classes``) and ``[r, g, b]`` (``palette``) of the classes in ``classes.json``.

    Raises:
        UserError: It cannot be read, is not such a list, or a name is not allowed or occurs twice.
    """
    where = f"classes file {os.fspath(path)}"
    if not os.path.isfile(path):
        reason = "does not exist; copy it there, or set classes_file of the data set's config"
        raise UserError("not-found", where, reason)
    rows = read_json(path, where, _MOST_BYTES)
    entry = '{"name": ..., "color": [r, g, b]}'
    if not isinstance(rows, list) or not rows:
        raise UserError("classes", where, f"is not a list of {entry}")
    classes: list[str] = []
    palette: list[list[int]] = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or set(row) != {"name", "color"}:
            raise UserError("classes", where, f"entry {number} is not {entry}")
        colour = row["color"]
        if (
            not isinstance(colour, list)
            or len(colour) != 3
            or not all(type(value) is int and 0 <= value <= 255 for value in colour)
        ):
            reason = f"entry {number}: color is not three numbers of 0 to 255"
            raise UserError("classes", where, reason)
        name = check_class_name(row["name"], where)
        if name in classes:
            raise UserError("classes", where, f"names the class {name!r} twice; rename one of them")
        classes.append(name)
        palette.append(colour)
    return {"classes": classes, "palette": palette}


def read_classes_of(
    classes_file: str | os.PathLike[str] | None,
    data_root: str | os.PathLike[str] | None,
    metainfo: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The ``metainfo`` of a data set's config, with what its classes file says.

    ``classes_file`` is absolute or relative to ``data_root``; None reads none.

    Raises:
        UserError: As :func:`read_classes`; or the config names the classes in both.
    """
    given = dict(metainfo or {})
    if classes_file is None:
        return given
    if not isinstance(classes_file, str | os.PathLike) or not os.fspath(classes_file):
        raise UserError(
            "config-value", "config key classes_file", f"{classes_file!r} is not a file name"
        )
    path = os.path.join(data_root or "", classes_file)
    if "classes" in given or "palette" in given:
        reason = "the classes are also in metainfo; give one of them, e.g. classes_file=None"
        raise UserError("config-conflict", f"config key classes_file ({path})", reason)
    return {**read_classes(path), **given}
