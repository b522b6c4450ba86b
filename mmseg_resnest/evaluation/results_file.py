# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Files of an evaluation as a stranger may have written them: read, and checked key by key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..io.checks import (
    Check,
    NotAllowed,
    fields,
    flag,
    number,
    one_of,
    optional,
    several,
    text,
    whole,
)
from ..io.contained import contained
from ..io.json_files import read_json
from ..io.text import printable

__all__ = [
    "EXAMPLE_KINDS",
    "NOT_SCORES",
    "RESULTS_FILE",
    "own_file",
    "read_examples",
    "read_results_file",
]

RESULTS_FILE = "results.json"  # in a work folder
#: Kinds of example images, the first ones first.
EXAMPLE_KINDS = ("worst", "best", "random", "confusion")
#: A larger file is refused unread; the confusion matrix of 2048 classes takes half of it.
MAX_BYTES = 64 << 20
MAX_CLASSES = 4096
_HINT = "evaluate the run again"

_COUNT = whole(0, 1 << 60)
_ITERATION = whole(0, 1 << 53)  # whole numbers that a browser holds
_SCORE = optional(number(0.0, 100.0 + 1e-6))  # percent; null where there is nothing to score
_PLAIN_TEXT = text(1024)


def _line(value: Any, key: str) -> str:
    """A path or a name, of which a person is shown one line."""
    if type(value) is not str or len(value) > 8192:
        raise NotAllowed(key, f"{value!a:.80} is not a text of at most 8192 characters")
    return printable(value)


_SCORES: dict[str, Check] = {"mIoU": _SCORE, "pixAcc": _SCORE, "mAcc": _SCORE}
_CLASS: dict[str, Check] = {
    "name": _PLAIN_TEXT,
    **dict.fromkeys(("IoU", "Acc", "precision", "recall", "F1", "AP", "boundary_IoU"), _SCORE),
    "label": optional(number(0, 1 << 60)),
}


def _named_scores(value: Any, key: str) -> dict[str, float | None]:
    """Scores of any metric by name."""
    if type(value) is not dict or len(value) > MAX_CLASSES:
        raise NotAllowed(key, f"is not an object of at most {MAX_CLASSES} scores")
    check = optional(number(-1e300, 1e300))
    return {_PLAIN_TEXT(name, key): check(one, f"{key}.{name}") for name, one in value.items()}


_KEYS: dict[str, Check] = {
    "task": optional(_PLAIN_TEXT),
    "run_id": optional(_PLAIN_TEXT),
    "tta": optional(flag),
    "config": optional(_line),
    "checkpoint": optional(_line),
    "iteration": optional(_ITERATION),
    "images": optional(_COUNT),
    "seconds": optional(number(0.0, 1e12)),
    "labelled_pixels": optional(_COUNT),
    "mIoU_interval": optional(several(_SCORE, 2, 2)),
    "scores": optional(_named_scores),
    "classes": several(fields(_CLASS, ("name", "IoU"), others=True), 0, MAX_CLASSES),
    "confusion_matrix": optional(several(several(_COUNT, 0, MAX_CLASSES), 0, MAX_CLASSES)),
    "history": optional(
        several(
            fields({**_SCORES, "iteration": _ITERATION}, ("iteration",), others=True), 0, 1_000_000
        )
    ),
}
#: Keys that a score of the same name must not take.
NOT_SCORES = frozenset(_KEYS)
# Of some metrics; one of a user's may give another number under the same name.
_MEANS = ("mF1", "mAP", "precision", "recall", "F1", "boundary_IoU")
_OF_SOME = {"multilabel": optional(flag), **dict.fromkeys(_MEANS, optional(number(-1e300, 1e300)))}
_RESULTS = fields({**_SCORES, **_KEYS, **_OF_SOME}, others=True)
_INDEX = whole(0, MAX_CLASSES - 1)


def _pair(value: Any, key: str) -> tuple[int, int, int]:
    """Label, prediction and number of pixels."""
    label, prediction, pixels = several(_COUNT, 3, 3)(value, key)
    return _INDEX(label, key), _INDEX(prediction, key), pixels


def _file(value: Any, key: str) -> str:
    try:
        return str(contained(value, key, hint=_HINT))
    except UserError as error:
        reason = error.text.removeprefix(f"{key}: ").removesuffix(f"; {_HINT}")
        raise NotAllowed(key, reason) from error


_EXAMPLE: dict[str, Check] = {
    "file": _file,
    "name": _line,
    "mIoU": _SCORE,
    "pixAcc": _SCORE,
    "pairs": several(_pair, 0, 1000),
    "kinds": several(one_of(*EXAMPLE_KINDS), 1, 1000),
}
_EXAMPLES = fields(
    {
        "classes": several(_PLAIN_TEXT, 0, MAX_CLASSES),
        "palette": several(several(whole(0, 255), 3, 3), 0, MAX_CLASSES),
        "images": several(fields(_EXAMPLE, tuple(_EXAMPLE), others=True), 0, 10_000),
    },
    ("classes", "palette", "images"),
    others=True,
)


def own_file(root: str | os.PathLike[str], path: Path) -> Path:
    """``path``, a regular file below ``root``, which no link leads out of; else UserError."""
    try:
        inside = path.resolve().is_relative_to(Path(root).resolve())
    except (OSError, RuntimeError) as error:  # links in a circle
        raise UserError("unreadable", path, f"cannot be read ({error})") from error
    if not inside:
        raise UserError("unsafe-path", path, f"a link in the path leads out of {root}")
    if not path.is_file():
        raise UserError("not-found", path, f"does not exist, or is not a regular file; {_HINT}")
    return path


def read_results_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the ``results.json`` of a training or an evaluation.

    Returns:
        Those of its keys that this package uses, with the types and ranges that
        :func:`~mmseg_resnest.evaluation.write_result` writes; tuples in place of lists.

    Raises:
        UserError: It cannot be read, or has a value that no results have; names the key.
    """
    try:
        results: dict[str, Any] = _RESULTS(read_json(path, f"results {path}", MAX_BYTES), "")
        classes, matrix = results.get("classes", ()), results.get("confusion_matrix")
        if matrix is not None and {len(classes)} != {len(matrix), *map(len, matrix)}:
            raise NotAllowed("confusion_matrix", f"does not fit {len(classes)} classes")
    except NotAllowed as error:
        raise UserError("format", path, f"is not a results.json: {error}; {_HINT}") from error
    return results


def read_examples(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the ``examples.json`` beside the example images of an evaluation.

    Returns:
        ``classes``, ``palette`` and ``images``, each with ``file``, ``name``, ``mIoU``,
        ``pixAcc``, ``pairs`` (label, prediction, pixels) and ``kinds``.

    Raises:
        UserError: It cannot be read, or has a value that no list of examples has, such as a name
            that leads out of the folder.
    """
    try:
        examples: dict[str, Any] = _EXAMPLES(read_json(path, str(path), MAX_BYTES), "")
        number_of_classes = len(examples["classes"])
        if len(examples["palette"]) != number_of_classes:
            raise NotAllowed("palette", f"does not fit {number_of_classes} classes")
        for i, image in enumerate(examples["images"]):
            if any(max(pair[:2]) >= number_of_classes for pair in image["pairs"]):
                raise NotAllowed(f"images[{i}].pairs", f"do not fit {number_of_classes} classes")
    except NotAllowed as error:
        message = f"is not a list of example images: {error}; {_HINT}"
        raise UserError("format", path, message) from error
    return examples
