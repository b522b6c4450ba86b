# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Pack a trained model into a folder that can be uploaded to a hub.

    mmseg-resnest publish-model work_dirs/my_run FOLDER          (its best checkpoint)
    mmseg-resnest publish-model CONFIG CHECKPOINT FOLDER
    mmseg-resnest publish-model CONFIG CHECKPOINT FOLDER --results work_dirs/run/test/results.json

Writes model.safetensors (what segmenting needs), config.json (what to build, classes, colours,
metrics, the weights' SHA-256), README.md (the model card, with the front matter that hubs read) and
training_config.py. load_segmentor("FOLDER") loads it; nothing in it is run.
"""

from __future__ import annotations

import argparse
import shlex

from .console import print_next
from .models import add_model, model_rows, open_model, weights_file
from .options import add_config_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model(parser)
    parser.add_argument("folder", metavar="FOLDER", help="folder to write")
    parser.add_argument("--name", help="of the model, in the card (default: the folder's name)")
    parser.add_argument(
        "--license",
        default="other",
        metavar="ID",
        help="of the weights, as hubs name it, e.g. apache-2.0, cc-by-nc-4.0 (default: other)",
    )
    parser.add_argument(
        "--results",
        metavar="FILE",
        help="results.json of mmseg-resnest test, for the card's scores",
    )
    parser.add_argument("--force", action="store_true", help="replace a folder of this tool")
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmseg_resnest.engine.hooks import describe_model, print_header
    from mmseg_resnest.engine.logs import display_path
    from mmseg_resnest.errors import UserError
    from mmseg_resnest.export.publish import check_loads_back, publish, read_results
    from mmseg_resnest.inference.runtimes import is_exported

    if is_exported(args.config) and args.checkpoint is None:
        said = "is an exported file, whose weights have no names to publish; name what it was "
        said += "exported from: the run or the checkpoint"
        raise UserError("argument", args.config, said)
    results = None if args.results is None else read_results(args.results, weights_file(args))
    model = open_model(args, "cpu")
    print_header(
        [
            ("publishing", args.folder),
            *model_rows(args),
            ("model", describe_model(model.model, model.cfg, len(model.classes))),
        ]
    )
    done = publish(model, args.folder, args.name, args.license, results, args.force)
    check_loads_back(model, done["folder"])
    for name, size in done["files"].items():
        print(f"written     {display_path(done['folder'] / name)} ({size:,} bytes)")
    print(f"sha256      {done['sha256']} (model.safetensors)")
    if results is None:
        print("note        the card has no scores: give --results FILE of mmseg-resnest test")
    print(f"use         load_segmentor({args.folder!r})")
    print()
    print_next(f"mmseg-resnest serve {shlex.quote(args.folder)}")
    return 0
