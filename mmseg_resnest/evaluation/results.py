# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What is written of an evaluation: the table of classes, the JSON, the confusion matrix."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prettytable import PrettyTable

from ..errors import UserError
from ..io.atomic import atomic_write
from ..io.text import printable

__all__ = [
    "SCORES",
    "class_table",
    "make_parent",
    "other_scores",
    "score",
    "score_text",
    "write_confusion",
    "write_result",
]

#: The scores in percent that every table and curve shows.
SCORES = ("mIoU", "pixAcc", "mAcc")
_OF_CLASSES = ("precision", "recall", "F1", "boundary_IoU")
_OF_ALL = ("fwIoU", "image_mIoU", "ECE", "MCE")


def new_table(*columns: str) -> PrettyTable:
    """A table whose first column is on the left, the others on the right."""
    table = PrettyTable(columns)
    table.align = "r"
    table.align[columns[0]] = "l"
    return table


def number(value: float | None, form: str = ".2f") -> str:
    """A score as text, ``-`` for a missing one."""
    return "-" if value is None or math.isnan(value) else format(value, form)


def class_table(result: Mapping[str, Any]) -> str:
    """``SegmentationMetric.last_result`` as a table of the classes and means, in percent.

    ``MultilabelMetric.last_result`` as well. A class that cannot be scored has ``-``.
    """
    if result.get("multilabel"):
        return _multilabel_table(result)
    first = result["classes"][0] if result["classes"] else {}
    more = [name for name in _OF_CLASSES if name in first]
    table = new_table("class", "IoU", "Acc", "% of pixels", *more)
    for row in result["classes"]:
        share = number(100 * row["label"] / result["labelled_pixels"])
        extra = [number(row[name]) for name in more]
        name = printable(str(row["name"]))
        table.add_row([name, number(row["IoU"]), number(row["Acc"]), share, *extra])
    table.add_divider()
    means = [number(result.get(name)) for name in more]
    table.add_row(["mean", number(result["mIoU"]), number(result["mAcc"]), "", *means])
    blank = [""] * len(more)
    table.add_row(["all pixels (pixAcc)", "", number(result["pixAcc"]), "100.00", *blank])
    lines = [table.get_string()]
    single = [name for name in _OF_ALL if name in result]
    if single:
        lines.append(", ".join(f"{name} {number(result[name])}" for name in single))
    if "mIoU_interval" in result:
        low, high = result["mIoU_interval"]
        lines.append(f"mIoU {number(low)} to {number(high)} with 95% confidence over the images")
    return "\n".join(lines)


def _multilabel_table(result: Mapping[str, Any]) -> str:
    scores = ("IoU", "F1", "precision", "Acc", "AP")
    table = new_table("class", *scores[:3], "recall", "AP", "% of pixels")
    for row in result["classes"]:
        share = number(100 * row["label"] / result["labelled_pixels"])
        numbers = [number(row.get(name)) for name in scores]
        table.add_row([printable(str(row["name"])), *numbers, share])
    table.add_divider()
    means = {name: number(result.get(f"m{name}")) for name in ("IoU", "F1", "AP")}
    table.add_row(["mean", means["IoU"], means["F1"], "", "", means["AP"], ""])
    return table.get_string()


def score_text(result: Mapping[str, Any]) -> str:
    """The scores of a result in a line, but for those that only its :func:`class_table` shows."""
    shown = [f"{name} {number(result[name])}" for name in SCORES if name in result]
    shown += [f"{printable(name)} {score(value)}" for name, value in other_scores(result).items()]
    return ", ".join(shown)


def other_scores(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The scores of a result that are neither :data:`SCORES` nor in its :func:`class_table`."""
    of_table = (*_OF_CLASSES, *_OF_ALL, "mIoU_low", "mIoU_high") if "classes" in result else ()
    return {
        name: value
        for name, value in (result.get("scores") or {}).items()
        if name.rsplit("/", 1)[-1] not in (*SCORES, *of_table)
    }


def score(value: float | None) -> str:
    """A score of any metric as text: in percent, or a small number."""
    return number(value, ".2f" if value is None or not 0 < abs(value) < 1 else ".4g")


def write_confusion(
    names: Sequence[str], matrix: Sequence[Sequence[int]], path: str | os.PathLike[str]
) -> None:
    """Write a confusion matrix as CSV: names first, rows are labels, columns predictions."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["label \\ predicted", *names])
    for name, row in zip(names, matrix, strict=True):
        writer.writerow([name, *row])
    atomic_write(path, buffer.getvalue())


def write_result(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a result as strict JSON: NaN and infinity become null, each list has lines of its own.

    Raises:
        UserError: It cannot be written.
    """
    lines = []
    for key, value in _finite(result).items():
        if isinstance(value, list) and value:
            rows = ",\n    ".join(_dump(entry) for entry in value)
            lines.append(f"  {_dump(key)}: [\n    {rows}\n  ]")
        else:
            lines.append(f"  {_dump(key)}: {_dump(value)}")
    atomic_write(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def make_parent(path: Path) -> None:
    """Makes the folder of a file that will be written after the evaluation."""
    if path.is_dir():
        raise UserError("wrong-path-type", path, "is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"its folder cannot be made ({error.strerror}); choose another place"
        raise UserError("not-writable", path, message) from error
    if not os.access(path.parent, os.W_OK):
        raise UserError("not-writable", path, "its folder cannot be written; choose another place")
