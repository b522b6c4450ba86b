# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Train and evaluate detectors: COCO, the drawn shapes, or data of your own in COCO's form.

    mmseg-resnest prepare-data shapes
    mmseg-resnest detect train configs/detection/faster_rcnn_resnest14_shapes.py
    mmseg-resnest detect train configs/detection/faster_rcnn_resnest50_coco.py --resume
    mmseg-resnest detect test CONFIG CHECKPOINT

Needs the extra detect and mmcv's compiled operators (docs/detection.md). In Python, MMDetection's
own init_detector and inference_detector take these configs and checkpoints.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from . import train as segmentation
from .console import print_next
from .options import add_config_options, add_launcher_option
from .startup import use_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    jobs = parser.add_subparsers(dest="job", required=True, metavar="train|test")
    segmentation.add_arguments(jobs.add_parser("train", help="train a detector"))
    test = jobs.add_parser("test", help="COCO's average precision on the test split")
    test.add_argument("config", help="config file of the detector")
    test.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="its weights: a file, the work folder of a run, a name of mmseg-resnest weights list",
    )
    test.add_argument(
        "--work-dir", metavar="DIR", help="for results.json and the log (default: test in the run)"
    )
    add_config_options(test)
    add_launcher_option(test)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    return run_training(args) if args.job == "train" else run_test(args)


def _load(args: argparse.Namespace) -> Any:
    """The config, if it is a detector's."""
    from mmseg_resnest.engine.config import load_config
    from mmseg_resnest.engine.same_run import failing_together
    from mmseg_resnest.errors import UserError

    with failing_together(args.launcher):
        cfg = load_config(args.config, args.cfg_options, args.data_root)
        if not str((cfg.get("model") or {}).get("type")).startswith("mmdet."):
            message = "is not the config of a detector; those are in configs/detection/"
            raise UserError("config-key", f"config {args.config}", message)
    return cfg


def run_training(args: argparse.Namespace) -> int:
    """``detect train``."""
    import torch
    from mmengine.dist import is_main_process

    from mmseg_resnest.engine.config import command_name
    from mmseg_resnest.engine.hooks import duration, print_header
    from mmseg_resnest.engine.logs import display_path
    from mmseg_resnest.errors import UserError
    from mmseg_resnest.evaluation import score_text

    if args.teacher is not None:
        raise UserError("argument", "--teacher", "is for segmentation only")
    use_device(args.device, args.launcher)
    if args.amp and not torch.cuda.is_available():
        message = (
            "needs a GPU: a CPU trains in bfloat16, which mmcv's NMS does not take; leave --amp out"
        )
        raise UserError("argument", "--amp", message)
    summary = segmentation.train_config(args, _load(args))
    if not is_main_process():
        return 0
    folder = Path(display_path(summary["work_dir"]))
    rows = []
    if scores := score_text(summary):
        rows.append(("best", f"{scores} at iteration {summary['iteration']:,}"))
    checkpoint = summary.get("best_checkpoint") or summary.get("last_checkpoint")
    if checkpoint:
        rows.append(("checkpoint", str(folder / checkpoint)))
    print_header([*rows, ("took", duration(summary["seconds"]))])
    if checkpoint:
        model = shlex.join([command_name(args.config), str(folder / checkpoint)])
        root = f" --data-root {shlex.quote(args.data_root)}" if args.data_root else ""
        print_next(f"mmseg-resnest detect test {model}{root}")
    return 0


def run_test(args: argparse.Namespace) -> int:
    """``detect test``."""
    from mmengine.dist import is_main_process

    from mmseg_resnest.engine.detection import check_trained_classes
    from mmseg_resnest.engine.same_run import failing_together
    from mmseg_resnest.engine.testing import evaluate
    from mmseg_resnest.inference.load import checkpoint_file

    from .test import print_test_summary

    cfg = _load(args)
    with failing_together(args.launcher):
        checkpoint = checkpoint_file(args.checkpoint)
        check_trained_classes(cfg, checkpoint)
    result = evaluate(cfg, checkpoint, work_dir=args.work_dir, launcher=args.launcher)
    if is_main_process():
        print_test_summary(result)
    return 0
