# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Evaluate published weights by their published protocol, beside the published numbers.

    mmseg-resnest reproduce deeplab_resnest50_ade
    mmseg-resnest reproduce openmmlab/fcn_resnest101_cityscapes --data-root /path/to/data
    mmseg-resnest reproduce resnest50 --data-root /path/to/imagenet
    torchrun --nproc-per-node 8 mmseg-resnest reproduce fcn_resnest50_ade --launcher pytorch

NAME is a segmentation model or an ImageNet classifier of the catalogue (mmseg-resnest weights list;
docs/model_zoo.md). Weights are fetched once into the cache folder. A run that was interrupted keeps
the protocols that it had finished, on ImageNet the images.
"""

from __future__ import annotations

import argparse

from .options import add_config_options, add_launcher_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="a model of the catalogue")
    parser.add_argument(
        "--work-dir",
        metavar="DIR",
        help="for results, logs and the report (default: work_dirs/reproduce/NAME)",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the report here (default: reproduction.json in the work folder)",
    )
    parser.add_argument(
        "--any-images",
        action="store_true",
        help="evaluate although the number of images is not the published one",
    )
    parser.add_argument(
        "--again", action="store_true", help="evaluate also what the report holds already"
    )
    add_config_options(parser)
    add_launcher_option(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmengine.dist import is_main_process

    from mmseg_resnest.engine.reproduce import print_reproduction, reproduce

    report = reproduce(
        args.name,
        data_root=args.data_root,
        work_dir=args.work_dir,
        json_file=args.json,
        cfg_options=args.cfg_options,
        any_images=args.any_images,
        again=args.again,
        launcher=args.launcher,
    )
    if is_main_process():
        print_reproduction(report)
    return 0
