# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""See what a model is trained on: images and labels after the config's augmentation.

    mmseg-resnest browse-data configs/fcn_resnest14_scenes.py
    mmseg-resnest browse-data configs/fcn_resnest50_ade20k.py --images 20 --steps --out sheets

A sheet for each image shows it as it is and as the pipeline makes it, several times, with its
labels; with --steps after each step of the pipeline. The same seed makes the same sheets.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from .console import print_next
from .options import add_config_options, band_numbers, number, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder of the sheets (default: work_dirs/<config name>/browse)",
    )
    parser.add_argument(
        "--split", choices=["train", "val", "test"], default="train", help="default: train"
    )
    parser.add_argument(
        "--images", type=whole(1), default=8, metavar="N", help="number of sheets (default: 8)"
    )
    parser.add_argument(
        "--draws",
        type=whole(1, 1000),
        default=3,
        metavar="N",
        help="how often each image is augmented (default: 3)",
    )
    parser.add_argument("--steps", action="store_true", help="show each step of the pipeline")
    parser.add_argument(
        "--shuffle", action="store_true", help="images drawn at random, not the first"
    )
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--opacity",
        type=number(0, 1),
        default=0.5,
        metavar="X",
        help="of the labels, 0 to 1 (default: 0.5)",
    )
    parser.add_argument(
        "--bands",
        type=_three_bands,
        metavar="R,G,B",
        help="three bands to show, of images that LoadBands loads, e.g. 3,2,1",
    )
    add_config_options(parser)


def _three_bands(text: str) -> tuple[int, ...]:
    numbers = band_numbers(text)
    if len(numbers) != 3:
        raise argparse.ArgumentTypeError("give three numbers of bands, e.g. 3,2,1")
    return numbers


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmseg_resnest.engine.browse import browse
    from mmseg_resnest.engine.config import load_config
    from mmseg_resnest.engine.hooks import print_header
    from mmseg_resnest.engine.logs import display_path

    cfg = load_config(args.config, args.cfg_options, args.data_root)
    out = args.out or Path("work_dirs") / Path(args.config).stem / "browse"
    done = browse(
        cfg,
        out,
        split=args.split,
        images=args.images,
        draws=args.draws,
        steps=args.steps,
        shuffle=args.shuffle,
        seed=args.seed,
        opacity=args.opacity,
        bands=args.bands,
    )
    print_header(
        [
            ("pipeline", " -> ".join(done["pipeline"])),
            ("sheets", f"{done['images']} in {display_path(done['out'])}"),
        ]
    )
    print_next(f"mmseg-resnest train {shlex.quote(args.config)}")
    return 0
