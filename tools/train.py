# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Train a model.

    python tools/train.py configs/fcn_resnest14_scenes.py
    python tools/train.py configs/fcn_resnest14_camvid.py --data-root /data --amp
    python tools/train.py configs/fcn_resnest14_camvid.py --resume
    python tools/train.py configs/fcn_resnest14_camvid.py --log-to tensorboard wandb
    bash tools/dist_train.sh configs/deeplabv3_resnest101_ade20k.py 8

The config's batch is the total one: it is shared out over the processes.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import _checkout  # noqa: F401

from mmseg_resnest.engine.cli import (
    ArgumentParser,
    add_config_options,
    add_launcher_option,
    run_tool,
)
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.launch import is_main_process
from mmseg_resnest.engine.same_run import failing_together
from mmseg_resnest.engine.tracking import SERVICES, log_to
from mmseg_resnest.engine.training import print_training_summary, train


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = ArgumentParser(prog="train.py", description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", metavar="DIR", help="default: work_dirs/<config name>")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="continue from a checkpoint; without one, or with auto, from the newest in the "
        "work dir (put the option after the config)",
    )
    parser.add_argument("--amp", action="store_true", help="train in mixed precision")
    parser.add_argument(
        "--auto-scale-lr", action="store_true", help="scale the learning rate with the total batch"
    )
    parser.add_argument("--seed", type=int, help="random seed (default: the config's)")
    parser.add_argument(
        "--log-to",
        nargs="+",
        default=[],
        choices=SERVICES,
        metavar="SERVICE",
        help="show the curves there as well, while training: tensorboard, wandb, mlflow (put the "
        "option after the config)",
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="on a CPU neither lay the model channels last nor use matrix products, and everywhere "
        "neither merge the pipeline's steps nor use compiled loops: slower, for comparisons "
        "(results differ by rounding, interpolation and the places of dropout)",
    )
    add_config_options(parser)
    add_launcher_option(parser)
    args = parser.parse_args(argv)

    with failing_together(args.launcher):
        cfg = load_config(args.config, args.cfg_options, args.data_root)
        log_to(cfg, args.log_to)
    summary = train(
        cfg,
        work_dir=args.work_dir,
        resume=args.resume,
        amp=args.amp,
        auto_scale_lr=args.auto_scale_lr,
        seed=args.seed,
        launcher=args.launcher,
        plain=args.plain,
    )
    if is_main_process():
        root = f"--data-root {shlex.quote(args.data_root)}" if args.data_root else ""
        print_training_summary(summary, root)
    return 0


if __name__ == "__main__":
    run_tool(main)
