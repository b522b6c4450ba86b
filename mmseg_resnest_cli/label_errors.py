# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
r"""Rank images and regions by how likely their labels are wrong.

    mmseg-resnest label-errors work_dirs/my_run                      (its validation images)
    mmseg-resnest label-errors work_dirs/my_run --folds 5            (its training images)
    mmseg-resnest label-errors CONFIG --folds 5
    mmseg-resnest label-errors CONFIG CHECKPOINT --split train

Writes into --out: label_errors.html, each region with image, label, prediction and error;
label_errors.json; cvat.xml and cvat_labels.json, and labelme/NAME.json, with the regions to
correct. A model that learnt a wrong label may repeat it: --folds K judges each training image by
one of K models, which are trained on the other images by the run's config. The same command goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from .label_options import add_group_options, check_groups
from .named_models import add_model, model_rows, name_model
from .options import UsageError, add_config_options, add_device_option, whole
from .startup import use_device

_NO_DATA = (
    "holds a model without a data set; name the config that has one and the weights: "
    "mmseg-resnest label-errors CONFIG CHECKPOINT (of a published folder its model.safetensors)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model(parser)
    parser.add_argument(
        "--split",
        choices=["train", "val"],
        help="whose labels (default: val; with --folds train)",
    )
    parser.add_argument(
        "--folds", type=whole(2), metavar="K", help="train K models, each on the other folds"
    )
    add_group_options(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="default: label_errors/val, /train or /foldsK in the folder of the checkpoint's run",
    )
    parser.add_argument(
        "--top",
        type=whole(1),
        default=100,
        metavar="N",
        help="regions on the page and in the tasks (default: 100)",
    )
    parser.add_argument(
        "--min-area",
        type=whole(1),
        default=16,
        metavar="PIXELS",
        help="leave out regions of fewer pixels (default: 16)",
    )
    add_device_option(parser)
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmseg_resnest.engine.hooks import print_header
    from mmseg_resnest.engine.logs import display_path
    from mmseg_resnest.engine.preemption import Preempted
    from mmseg_resnest.engine.resolve import default_work_dir
    from mmseg_resnest.engine.run_folders import evaluation_folder
    from mmseg_resnest.inference.label_errors import find_label_errors

    check_groups(args)
    for option, value in (("--group-pattern", args.group_pattern), ("--frames", args.frames)):
        if args.folds is None and value is not None:
            raise UsageError(f"{option}: says which images are in one fold; give --folds, too")
    if args.folds is not None:
        use_device(args.device)
    named = name_model(args, _NO_DATA, weights=args.folds is None)
    split = args.split or ("val" if args.folds is None else "train")
    out = Path(args.out) if args.out else None
    if out is None:
        if named.checkpoint is None:
            folder = Path(default_work_dir(named.cfg))
        else:
            folder = Path(evaluation_folder(named.cfg, named.checkpoint, None, False)).parent
        out = folder / "label_errors" / (f"folds{args.folds}" if args.folds else split)
    rows = [("labels of", f"the {split} images"), *model_rows(args), ("out", display_path(out))]
    print_header(rows)
    try:
        found = find_label_errors(
            named.cfg,
            named.checkpoint,
            out,
            split,
            args.folds,
            args.top,
            args.min_area,
            args.device,
            named.weights,
            args.group_pattern,
            args.frames,
        )
    except Preempted as stopped:
        raise Preempted(str(stopped).replace("with --resume ", "")) from stopped
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from here") from None
    _print(found, args.top)
    return 0


def _print(found: Any, top: int) -> None:
    from mmseg_resnest.engine.hooks import print_header
    from mmseg_resnest.engine.logs import display_path
    from mmseg_resnest.io.text import printable

    from .console import print_table

    if found.scored < len(found.images):
        print(f"skipped     {len(found.images) - found.scored:,} images that are scored")
    lines = [("score", "given", "predicted", "pixels", "image")]
    for region in found.regions[:10]:
        words = (printable(region["given"]), printable(region["predicted"]))
        name = printable(os.path.basename(region["image"]))
        lines.append((f"{region['score']:.4f}", *words, f"{region['area']:,}", name))
    if found.regions:
        print_table(lines)
    page = found.out / "label_errors.html"
    tasks = ", ".join(display_path(found.out / name) for name in ("cvat.xml", "labelme"))
    shown = min(top, len(found.regions))
    print_header(
        [
            ("found", f"{len(found.regions):,} regions in {len(found.images):,} images"),
            ("page", f"{display_path(page)}, {shown:,} regions"),
            ("numbers", display_path(found.out / "label_errors.json")),
            ("tasks", tasks),
            ("files", "written" if found.written else "up to date"),
            ("open", page.resolve().as_uri()),
        ]
    )
