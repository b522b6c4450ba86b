# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Train a model.

    mmseg-resnest train configs/fcn_resnest14_scenes.py
    mmseg-resnest train configs/fcn_resnest14_camvid.py --data-root /data --amp
    mmseg-resnest train configs/fcn_resnest14_camvid.py --resume
    mmseg-resnest train configs/fcn_resnest14_camvid.py --epochs 20 --batch-size 4 --lr 0.001
    mmseg-resnest train configs/fcn_resnest14_camvid.py --teacher work_dirs/large
    mmseg-resnest train configs/fcn_resnest14_camvid.py --log-to tensorboard wandb
    mmseg-resnest dist-train configs/deeplabv3_resnest101_ade20k.py 8

The config's batch is the total one: it is shared out over the processes.
"""

from __future__ import annotations

import argparse
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from .console import print_next
from .options import (
    add_config_options,
    add_device_option,
    add_launcher_option,
    add_training_options,
    run_options,
)
from .startup import use_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--work-dir",
        metavar="DIR",
        help="default: work_dirs/<config name>, with -2, -3, ... where that holds a run",
    )
    add_training_options(parser)
    add_config_options(parser)
    add_device_option(parser)
    add_launcher_option(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmengine.dist import is_main_process

    from mmseg_resnest.engine.config import load_config, require_segmentation
    from mmseg_resnest.engine.same_run import failing_together

    use_device(args.device, args.launcher)
    with failing_together(args.launcher):
        cfg = load_config(args.config, args.cfg_options, args.data_root)
        require_segmentation(cfg, "train")
    summary = train_config(args, cfg)
    if is_main_process():
        root = f"--data-root {shlex.quote(args.data_root)}" if args.data_root else ""
        print_training_summary(summary, root)
    return 0


def train_config(args: argparse.Namespace, cfg: Any) -> dict[str, Any]:
    """Train a config that was read, as the arguments say; returns what ``train`` does."""
    from mmseg_resnest.engine.training import train
    from mmseg_resnest.inference import load_segmentor

    return train(
        cfg,
        work_dir=args.work_dir,
        resume=args.resume,
        amp=args.amp,
        compiled=args.compile,
        auto_scale_lr=args.auto_scale_lr,
        seed=args.seed,
        launcher=args.launcher,
        log_to=args.log_to,
        allow_changes=args.allow_changes,
        run=run_options(args),
        teacher=args.teacher,
        open_model=partial(load_segmentor, device="cpu"),
    )


def print_training_summary(summary: dict[str, Any], options: str = "") -> None:
    """Print the results of a run (what ``train`` returned), where they are and what to do next.

    ``options`` are arguments to repeat in the commands to run next, e.g. ``--data-root DIR``.
    """
    from mmseg_resnest.engine.config import command_name
    from mmseg_resnest.engine.hooks import duration, print_header
    from mmseg_resnest.engine.logs import display_path
    from mmseg_resnest.evaluation import class_table, score_text

    folder = Path(display_path(summary["work_dir"]))
    rows = []
    if "classes" in summary:
        print(f"best validation, at iteration {summary['iteration']:,}")
        print(class_table(summary) + "\n")
    scores = score_text(summary)
    if scores:
        rows.append(("best", f"{scores} at iteration {summary['iteration']:,}"))
    checkpoint = summary.get("best_checkpoint") or summary.get("last_checkpoint")
    if checkpoint:
        rows.append(("checkpoint", str(folder / checkpoint)))
    if scores:
        rows.append(("results", str(folder / "results.json")))
    if summary.get("curves"):
        rows.append(("curves", display_path(summary["curves"])))
    rows.append(("took", duration(summary["seconds"])))
    print_header(rows)
    if checkpoint:
        model = shlex.join([command_name(summary["config"]), str(folder / checkpoint)])
        pictures = shlex.quote(str(folder / "pictures"))
        predictions = shlex.quote(str(folder / "predictions"))
        more = f" {options}" if options else ""
        print_next(
            f"mmseg-resnest test {model} --show-dir {pictures}{more}",
            f"mmseg-resnest predict {model} IMAGE_OR_FOLDER --out {predictions}",
        )
