# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
r"""Evaluate a checkpoint on the config's test split.

python tools/test.py CONFIG CHECKPOINT
python tools/test.py CONFIG CHECKPOINT --tta                  (the published protocol)
python tools/test.py CONFIG CHECKPOINT --out labels --show-dir pictures
python tools/test.py CONFIG CHECKPOINT --official             (Cityscapes' own evaluation as well)
python tools/test.py CONFIG CHECKPOINT --format ade20k --out submission \
    --cfg-options test_dataloader.dataset.data_prefix.img_path=images/testing
bash tools/dist_test.sh CONFIG CHECKPOINT 8
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import _checkout  # noqa: F401

from mmseg_resnest.engine.cli import (
    ArgumentParser,
    add_config_options,
    add_launcher_option,
    print_next,
    run_tool,
)
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.launch import is_main_process
from mmseg_resnest.engine.logs import shown
from mmseg_resnest.engine.same_run import failing_together
from mmseg_resnest.engine.testing import add_official_metric, evaluate, print_test_summary


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = ArgumentParser(prog="test.py", description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "checkpoint",
        help="weights of the whole model, in any known layout: a file, an address, or a name of "
        "tools/weights.py list",
    )
    parser.add_argument(
        "--work-dir",
        metavar="DIR",
        help="for results.json and the log (default: work_dirs/<config name>/test)",
    )
    parser.add_argument(
        "--tta", action="store_true", help="with the config's test-time augmentation"
    )
    parser.add_argument("--out", metavar="DIR", help="write label maps (PNG, class indices) here")
    parser.add_argument(
        "--show-dir", metavar="DIR", help="write image, label and prediction side by side here"
    )
    parser.add_argument(
        "--format",
        choices=["cityscapes", "ade20k", "voc"],
        help="write into --out what this benchmark's server takes, check it and zip it; nothing "
        "is scored, so the images need no labels",
    )
    parser.add_argument(
        "--official",
        action="store_true",
        help="Cityscapes: run the official evaluation as well (IoU and iIoU)",
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="on a CPU: neither fold the model nor make labels by compiled loops (results differ "
        "by rounding only)",
    )
    add_config_options(parser)
    add_launcher_option(parser)
    args = parser.parse_args(argv)

    with failing_together(args.launcher):
        cfg = load_config(args.config, args.cfg_options, args.data_root)
        if args.official:
            add_official_metric(cfg)
    result = evaluate(
        cfg,
        args.checkpoint,
        work_dir=args.work_dir,
        tta=args.tta,
        out_dir=args.out,
        show_dir=args.show_dir,
        launcher=args.launcher,
        submission=args.format,
        plain=args.plain,
    )
    if is_main_process():
        print_test_summary(result, args.out, args.show_dir)
        if args.format is None:
            model = shlex.join([args.config, args.checkpoint])
            folder = shlex.quote(shown(result["work_dir"]))
            print_next(
                f"python tools/report.py {folder} --out report.html",
                f"python tools/predict.py {model} IMAGE_OR_FOLDER --out predictions",
            )
    return 0


if __name__ == "__main__":
    run_tool(main)
