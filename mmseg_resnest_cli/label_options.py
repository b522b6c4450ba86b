# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The arguments of the commands that prepare labels of one's own: what they are, how they are read.

Of ``prepare-data custom`` and of ``fit``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import UsageError, band_numbers, number, whole

if TYPE_CHECKING:
    from mmseg_resnest.io.bands import BandOptions

__all__ = ["FORMATS", "add_group_options", "add_jobs_option", "add_label_options"]
__all__ += ["check_groups", "check_split", "label_form", "label_options"]

# As in mmseg_resnest.datasets.prepare, whose import takes seconds; a test compares them.
FORMATS = ("labelme", "coco", "colour", "index", "masks")
_VAL_FRACTION = 0.2


def add_label_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the arguments that :func:`label_options` reads, but for the folders and the name."""
    add: Any = parser.add_argument
    add(
        "--format",
        choices=("auto", *FORMATS),
        type=label_form,
        default="auto",
        help="the form of the labels (default: told from the files)",
    )
    add(
        "--classes",
        type=_file_or_auto,
        metavar="FILE",
        help="class list or colour table, text, CSV, JSON or YAML: a name a line, or name and"
        " colour (default: auto, a list in the folder, or the names that occur)",
    )
    add("--ignore", nargs="+", default=[], metavar="NAME", help="classes whose pixels are ignored")
    add(
        "--label-map",
        nargs="+",
        default=[],
        metavar="NAME=NAME",
        help="classes that the config merges (bus=vehicle) or leaves out (pole=ignore); the files"
        " keep them",
    )
    add(
        "--bands",
        type=_bands,
        metavar="N,N,...",
        help="bands to take of TIFF and .npy files, from 1, or all (default: all, where they are no"
        " photos)",
    )
    add("--layout", choices=("HWC", "CHW"), help="axes of .npy files (default: HWC)")
    add("--nodata", type=float, metavar="X", help="the value of bands that stands for no data")
    add("--background", metavar="NAME", help="the class of pixels that no shape covers")
    add(
        "--multilabel",
        action="store_true",
        help="keep classes that overlap, as bit planes (labelme, coco, and masks: one mask a class,"
        " CLASS/NAME.png or NAME/CLASS.png)",
    )
    add(
        "--label-suffix", default="", metavar="END", help="what masks' names have after the images'"
    )
    add(
        "--image-suffix", default="", metavar="END", help="what images' names have after the masks'"
    )
    what = f"default: {_VAL_FRACTION}"
    add("--val-fraction", type=number(0, 1), default=_VAL_FRACTION, metavar="F", help=what)
    add("--val-list", type=Path, metavar="FILE", help="names of the validation images, one a line")
    add_group_options(parser)
    what = "leave out COCO's annotations that cannot be drawn, such as boxes alone (they are"
    what += " ignored), images that are not there, and images without a mask; they are counted"
    add("--allow-incomplete", action="store_true", help=what)


def add_group_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add ``--group-pattern`` and ``--frames``."""
    add: Any = parser.add_argument
    add(
        "--group-pattern",
        metavar="REGEX",
        help="its first group is what images of one group share (default: the name without the"
        " number at its end, where neighbours look like frames of a video)",
    )
    add(
        "--frames",
        action=argparse.BooleanOptionalAction,
        help="numbered images are frames of videos, or are not (default: measured)",
    )


def add_jobs_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add ``--jobs``."""
    parser.add_argument(
        "--jobs", type=whole(1), metavar="N", help="processes (default: one a core)"
    )


def check_split(args: argparse.Namespace, seed: bool) -> None:
    """Refuse options of the split that others replace; ``seed``: also the seed, which is its own.

    Raises:
        UsageError: One would have no effect.
    """
    val_source = getattr(args, "val_source", None)
    chosen = "--val-source" if val_source else "--val-list" if args.val_list else ""
    given = {
        "--group-pattern": args.group_pattern is not None,
        "--frames or --no-frames": args.frames is not None,
        "--val-fraction": args.val_fraction != _VAL_FRACTION,
        "--seed": seed and args.seed != 0,
    }
    for option in (option for option, is_given in given.items() if chosen and is_given):
        message = f"has no effect with {chosen}, which says which images are for validation"
        raise UsageError(f"{option}: {message}; leave one of them out")
    check_groups(args)


def check_groups(args: argparse.Namespace) -> None:
    """Refuse ``--frames`` beside ``--group-pattern``, which replaces it; raises UsageError."""
    if args.group_pattern is not None and args.frames is not None:
        message = "has no effect with --group-pattern; leave one of them out"
        raise UsageError(f"--frames or --no-frames: {message}")


def label_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of :class:`.prepare.CustomOptions`, but for the folders and the name."""
    same = ["background", "label_suffix", "image_suffix", "val_fraction", "group_pattern", "frames"]
    same += ["seed", "classes", "val_list", "allow_incomplete", "multilabel"]
    return {
        "form": args.format,
        "ignore": tuple(args.ignore),
        "label_map": _label_map(args.label_map),
        "bands": _band_options(args),
        **{name: getattr(args, name) for name in same},
    }


def label_form(text: str) -> str:
    """The name of a form of labels, also as it is spelled elsewhere."""
    return "colour" if text == "color" else text


def _file_or_auto(text: str) -> Path | None:
    return None if text == "auto" else Path(text)


def _bands(text: str) -> tuple[int, ...]:
    return () if text == "all" else band_numbers(text)


def _band_options(args: argparse.Namespace) -> BandOptions | None:
    from mmseg_resnest.io.bands import BandOptions

    if args.bands is None and args.layout is None and args.nodata is None:
        return None
    if args.nodata is not None and not abs(args.nodata) < 1e39:  # also of one that is no number
        message = "must be a finite number; values that are not finite count as without data anyway"
        raise UsageError(f"--nodata {args.nodata}: {message}")
    return BandOptions(args.bands or None, args.layout or "HWC", args.nodata)


def _label_map(pairs: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in pairs:
        old, sign, new = text.partition("=")
        if not (old and sign and new):
            message = "must be NAME=NAME, e.g. bus=vehicle or pole=ignore"
            raise UsageError(f"--label-map {text}: {message}")
        if old in found:
            raise UsageError(f"--label-map {text}: {old}={found[old]} is given already")
        found[old] = new
    return found
