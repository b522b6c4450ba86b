# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
r"""Evaluate a checkpoint on the config's test split.

mmseg-resnest test work_dirs/my_run                         (its best checkpoint)
mmseg-resnest test CONFIG CHECKPOINT
mmseg-resnest test CONFIG CHECKPOINT --tta                  (the published protocol)
mmseg-resnest test CONFIG CHECKPOINT --out labels --show-dir pictures
mmseg-resnest test CONFIG CHECKPOINT --official             (Cityscapes' own evaluation as well)
mmseg-resnest test CONFIG CHECKPOINT --format ade20k --out submission \
    --cfg-options test_dataloader.dataset.data_prefix.img_path=images/testing
mmseg-resnest test CONFIG CHECKPOINT --engine auto          (the fastest runtime here)
mmseg-resnest dist-test CONFIG CHECKPOINT 8
"""

from __future__ import annotations

import argparse
import os
import shlex
from functools import partial
from typing import Any

from .console import print_next
from .named_models import add_model, name_model, words
from .options import (
    add_config_options,
    add_engine_options,
    add_launcher_option,
    add_testing_options,
    engine_choice,
)

_NO_SPLIT = (
    "holds a model without a test split; name the config that has one and the weights: "
    "mmseg-resnest test CONFIG CHECKPOINT (of a published folder its model.safetensors; an "
    "exported file is compared with its model when it is written)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model(parser)
    parser.add_argument(
        "--work-dir",
        metavar="DIR",
        help="for results.json and the log (default: test in the folder of the checkpoint's run)",
    )
    add_testing_options(parser)
    add_engine_options(parser)
    parser.add_argument("--out", metavar="DIR", help="write label maps (PNG, class indices) here")
    parser.add_argument(
        "--show-dir", metavar="DIR", help="write image, label and prediction side by side here"
    )
    add_config_options(parser)
    add_launcher_option(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmengine.dist import is_main_process

    from mmseg_resnest.engine.config import require_segmentation
    from mmseg_resnest.engine.logs import display_path
    from mmseg_resnest.engine.same_run import failing_together
    from mmseg_resnest.engine.testing import evaluate
    from mmseg_resnest.runtimes import use_engine

    with failing_together(args.launcher):
        choice = engine_choice(args)
        cfg, checkpoint = name_model(args, _NO_SPLIT)[:2]  # not the weights, for hours
        require_segmentation(cfg, "test")
        assert checkpoint is not None
    result = evaluate(
        cfg,
        checkpoint,
        work_dir=args.work_dir,
        tta=args.tta,
        out_dir=args.out,
        show_dir=args.show_dir,
        launcher=args.launcher,
        submission=args.format,
        official=args.official,
        use_engine=partial(use_engine, choice=choice),
    )
    if is_main_process():
        print_test_summary(result, args.out, args.show_dir)
        if args.format is None:
            folder = shlex.quote(display_path(result["work_dir"]))
            print_next(
                f"mmseg-resnest report {folder} --out report.html",
                f"mmseg-resnest predict {words(args)} IMAGE_OR_FOLDER --out predictions",
            )
    return 0


def print_test_summary(
    result: dict[str, Any],
    out_dir: str | os.PathLike[str] | None = None,
    show_dir: str | os.PathLike[str] | None = None,
) -> None:
    """Print the scores of an evaluation (what ``evaluate`` returned) and where things are."""
    from mmseg_resnest.engine.hooks import duration, print_header
    from mmseg_resnest.engine.logs import display_path
    from mmseg_resnest.evaluation import class_table, official_table, score_text

    if "classes" in result:
        print(class_table(result) + "\n")
    if result.get("official"):
        print(official_table(result["official"]) + "\n")
    scores = score_text(result)
    images = result.get("images")
    speed = f", {images / result['seconds']:.1f} images/s" if images else ""
    rows = [("scores", scores)] if scores else []
    rows.append(("results", display_path(os.path.join(result["work_dir"], "results.json"))))
    if result.get("archive"):
        rows.append(
            ("to submit", f"{display_path(result['archive'])} ({images:,} predictions, checked)")
        )
    if out_dir is not None:
        rows.append(("label maps", display_path(out_dir)))
    if show_dir is not None:
        rows.append(("pictures", display_path(show_dir)))
    rows.append(("took", duration(result["seconds"]) + speed))
    print_header(rows)
