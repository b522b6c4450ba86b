# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""See what a model is trained on: images and labels after the config's augmentation.

    python tools/browse_data.py configs/fcn_resnest14_scenes.py
    python tools/browse_data.py configs/fcn_resnest50_ade20k.py --images 20 --steps --out sheets

A sheet for each image shows it as it is and as the pipeline makes it, several times, with its
labels; with --steps after each step of the pipeline. The same seed makes the same sheets.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import _checkout  # noqa: F401

from mmseg_resnest.engine.browse import browse
from mmseg_resnest.engine.cli import ArgumentParser, add_config_options, print_next, run_tool
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.hooks import print_header
from mmseg_resnest.engine.logs import shown


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = ArgumentParser(prog="browse_data.py", description=__doc__)
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
        "--images", type=int, default=8, metavar="N", help="number of sheets (default: 8)"
    )
    parser.add_argument(
        "--draws",
        type=int,
        default=3,
        metavar="N",
        help="how often each image is augmented (default: 3)",
    )
    parser.add_argument("--steps", action="store_true", help="show each step of the pipeline")
    parser.add_argument(
        "--shuffle", action="store_true", help="images drawn at random, not the first"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--opacity",
        type=float,
        default=0.5,
        metavar="X",
        help="of the labels, 0 to 1 (default: 0.5)",
    )
    add_config_options(parser)
    args = parser.parse_args(argv)

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
    )
    print_header(
        [
            ("pipeline", " -> ".join(done["pipeline"])),
            ("sheets", f"{done['images']} in {shown(done['out'])}"),
        ]
    )
    print_next(f"python tools/train.py {shlex.quote(args.config)}")
    return 0


if __name__ == "__main__":
    run_tool(main)
