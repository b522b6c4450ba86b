# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Parameters, FLOPs, memory and images a second of a config's model.

    mmseg-resnest benchmark configs/fcn_resnest50_ade20k.py
    mmseg-resnest benchmark work_dirs/my_run --shape 480 640           (or a checkpoint of a run)
    mmseg-resnest benchmark configs/fcn_resnest14_camvid.py --shape 360 480 --train --batch-size 4

Images are random and in memory, and weights are random unless given: neither changes the times.
With --shape 512 512 the measurement of a config of the package is kept for mmseg-resnest models.
"""

from __future__ import annotations

import argparse

from .named_models import add_model, name_model
from .options import add_config_options, number, whole
from .package import list_configs

_OF_TORCH = (
    "benchmark measures models of PyTorch with their config, and this holds none; name the config "
    "or the run that it was made from"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model(parser)
    parser.add_argument(
        "--shape",
        type=whole(32, 65536),
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the images (default: the config's training crop)",
    )
    parser.add_argument(
        "--batch-size", type=whole(1), default=1, metavar="N", help="images in a batch (default: 1)"
    )
    parser.add_argument("--train", action="store_true", help="measure training steps too")
    parser.add_argument("--amp", action="store_true", help="train in mixed precision")
    parser.add_argument("--device", help="e.g. cpu or cuda:1 (default: the GPU if there is one)")
    parser.add_argument(
        "--seconds",
        type=number(0),
        default=10,
        metavar="S",
        help="how long to measure (default: 10)",
    )
    parser.add_argument("--out", metavar="FILE.json", help="write the numbers there as well")
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmseg_resnest.engine.benchmark import benchmark, print_benchmark
    from mmseg_resnest.engine.logs import display_path
    from mmseg_resnest.engine.model_costs import keep_benchmark
    from mmseg_resnest.engine.preflight import check_output_file
    from mmseg_resnest.evaluation import write_result

    cfg, checkpoint = name_model(args, _OF_TORCH, weights=False)[:2]  # not the weights: memory
    if args.out:
        check_output_file(args.out, "--out")
    result = benchmark(
        cfg,
        shape=args.shape and tuple(args.shape),
        batch_size=args.batch_size,
        device=args.device,
        amp=args.amp,
        training=args.train,
        seconds=args.seconds,
        checkpoint=None if checkpoint is None else str(checkpoint),
    )
    print_benchmark(result)
    name = args.config.removesuffix(".py").removeprefix("configs/")
    if name in list_configs() and not args.cfg_options and not args.amp:
        kept = keep_benchmark(name, result)
        if kept is not None:
            print(f"kept in     {display_path(kept)}; mmseg-resnest models shows it")
    if args.out:
        write_result(result, args.out)
        print(f"written to  {display_path(args.out)}")
    return 0
