# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Train, evaluate and use image classifiers: ImageNet, or images of your own.

    mmseg-resnest classify train configs/classification/resnest50_imagenet.py
    mmseg-resnest classify train configs/classification/resnest50_imagenet.py --images my_images
    mmseg-resnest classify train configs/classification/resnest50_imagenet.py --resume
    mmseg-resnest classify test CONFIG CHECKPOINT --images my_images
    mmseg-resnest classify predict CONFIG CHECKPOINT photo.jpg --out classes.json
    mmseg-resnest classify crops configs/fcn_resnest14_scenes.py --out my_images

The folder of images has a folder for each class: train/CLASS/*.JPEG and val/CLASS/*.JPEG. Needs the
extra classify: pip install 'mmseg-resnest[classify]'.
"""

from __future__ import annotations

import argparse
import os
import shlex
from typing import Any

from .console import print_next
from .options import (
    add_config_options,
    add_device_option,
    add_launcher_option,
    add_training_options,
    number,
    whole,
)
from .startup import use_device
from .train import train_config

_IMAGES = "folder of train/CLASS/* and val/CLASS/* for the config's; the model gets its classes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    jobs = parser.add_subparsers(dest="job", required=True, metavar="train|test|predict|crops")
    train = jobs.add_parser("train", help="train a classifier")
    train.add_argument("config", help="config file")
    train.add_argument("--images", metavar="DIR", help=_IMAGES)
    train.add_argument(
        "--work-dir",
        metavar="DIR",
        help="default: work_dirs/<config name>, with -2, -3, ... where that holds a run",
    )
    add_training_options(train)
    test = jobs.add_parser("test", help="top-1 and top-5 on the test split")
    _add_model(test)
    test.add_argument("--images", metavar="DIR", help=_IMAGES)
    test.add_argument(
        "--work-dir", metavar="DIR", help="for results.json and the log (default: test in the run)"
    )
    predict = jobs.add_parser("predict", help="classes of images")
    _add_model(predict)
    predict.add_argument("source", metavar="INPUT", help="an image, a folder, a pattern in quotes")
    predict.add_argument("--out", metavar="FILE", help="write the classes as JSON")
    predict.add_argument(
        "--top", type=whole(1), default=5, metavar="N", help="classes of an image (default: 5)"
    )
    add_device_option(predict)
    for sub in (train, test, predict):
        add_config_options(sub)
    add_device_option(train)
    for sub in (train, test):
        add_launcher_option(sub)
    crops = jobs.add_parser(
        "crops", help="cut images of one class each from the label maps of a segmentation config"
    )
    crops.add_argument("config", help="config file of a segmentation")
    crops.add_argument("--out", metavar="DIR", required=True, help="a new folder to write")
    crops.add_argument(
        "--size",
        type=whole(1, 65536),
        default=64,
        metavar="PIXELS",
        help="edge of a crop (default: 64)",
    )
    crops.add_argument(
        "--share",
        type=number(0, 1),
        default=0.5,
        metavar="X",
        help="of the pixels of a crop that its class must have (default: 0.5)",
    )
    add_config_options(crops)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="config file of the classifier")
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="its weights: a file, the work folder of a run, a name of mmseg-resnest weights list",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    jobs = {"train": run_training, "test": run_test, "predict": run_prediction, "crops": run_crops}
    return jobs[args.job](args)


def run_training(args: argparse.Namespace) -> int:
    """``classify train``."""
    from mmengine.dist import is_main_process

    from mmseg_resnest.engine.classification import load_classification
    from mmseg_resnest.engine.config import command_name
    from mmseg_resnest.engine.hooks import duration, print_header
    from mmseg_resnest.engine.logs import display_path
    from mmseg_resnest.engine.same_run import failing_together
    from mmseg_resnest.errors import UserError
    from mmseg_resnest.evaluation import score_text

    if args.teacher is not None:
        raise UserError("argument", "--teacher", "is for segmentation only")

    use_device(args.device, args.launcher)
    with failing_together(args.launcher):
        cfg = load_classification(args.config, args.cfg_options, args.data_root, args.images)
    summary = train_config(args, cfg)
    if not is_main_process():
        return 0
    checkpoint = summary.get("best_checkpoint") or summary.get("last_checkpoint")
    if scores := score_text(summary):
        print(f"best        {scores} at iteration {summary['iteration']:,}")
    path = display_path(os.path.join(summary["work_dir"], checkpoint or ""))
    print_header([("checkpoint", path), ("took", duration(summary["seconds"]))])
    model = shlex.join([command_name(args.config), path])
    images = f" --images {shlex.quote(args.images)}" if args.images else ""
    print_next(
        f"mmseg-resnest classify test {model}{images}",
        f"mmseg-resnest classify predict {model} IMAGE_OR_FOLDER --out classes.json",
        "mmseg-resnest train SEGMENTATION_CONFIG --cfg-options "
        + shlex.quote(f"model.backbone.init_cfg=dict(type='Pretrained', checkpoint={path!r})"),
    )
    return 0


def run_test(args: argparse.Namespace) -> int:
    """``classify test``."""
    from mmengine.dist import is_main_process

    from mmseg_resnest.engine.classification import check_classes, load_classification
    from mmseg_resnest.engine.same_run import failing_together
    from mmseg_resnest.engine.testing import evaluate
    from mmseg_resnest.inference.load import checkpoint_file

    from .test import print_test_summary

    with failing_together(args.launcher):
        checkpoint = checkpoint_file(args.checkpoint)
        cfg = load_classification(
            args.config, args.cfg_options, args.data_root, args.images, splits=("test",)
        )
        check_classes(cfg, checkpoint)
    result = evaluate(cfg, checkpoint, work_dir=args.work_dir, launcher=args.launcher)
    if is_main_process():
        print_test_summary(result)
    return 0


def run_prediction(args: argparse.Namespace) -> int:
    """``classify predict``."""
    from mmseg_resnest.engine.classification import load_classification
    from mmseg_resnest.engine.hooks import print_header
    from mmseg_resnest.errors import UserError
    from mmseg_resnest.inference.classifier import Classifier, classify_files
    from mmseg_resnest.inference.images import find_inputs
    from mmseg_resnest.inference.load import checkpoint_file
    from mmseg_resnest.io.text import printable

    if args.top < 1:
        raise UserError("argument", "--top", f"must be at least 1, not {args.top}")
    checkpoint = checkpoint_file(args.checkpoint)
    cfg = load_classification(args.config, args.cfg_options, args.data_root, splits=())
    model = Classifier(cfg, checkpoint, args.device)
    images, _ = find_inputs(args.source, None, model.reader.suffixes)
    rows = [("config", args.config), ("checkpoint", os.fspath(checkpoint))]
    print_header([("classifying", f"{len(images)} images"), *rows, ("device", str(model.device))])
    failed: list[UserError] = []
    for path, found in classify_files(model, images, args.top, args.out):
        if isinstance(found, UserError):
            failed.append(found)
            continue
        names = ", ".join(f"{printable(one['class'])} {one['score']:.3f}" for one in found)
        print(f"{printable(path)}  {names}")
    if args.out:
        print(f"written     {args.out}")
    if failed:
        number = f"; {len(failed)} of {len(images)} images failed" if len(images) > 1 else ""
        raise UserError(failed[0].code, failed[0].subject, f"{failed[0].message}{number}")
    return 0


def run_crops(args: argparse.Namespace) -> int:
    """``classify crops``."""
    from mmseg_resnest.datasets.class_crops import write_class_crops
    from mmseg_resnest.engine.config import load_config
    from mmseg_resnest.engine.hooks import print_header

    cfg = load_config(args.config, args.cfg_options, args.data_root)
    counts: dict[str, Any] = write_class_crops(cfg, args.out, args.size, args.share)
    rows = [(split, f"{n:,} images of {c} classes") for split, (n, c) in counts.items()]
    print_header([("written", args.out), *rows])
    folder = shlex.quote(args.out)
    print_next(
        "mmseg-resnest classify train configs/classification/resnest14_scenes_crops.py "
        f"--images {folder}"
    )
    return 0
