# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Pack a trained model into a folder that can be uploaded to a hub.

    mmseg-resnest publish-model work_dirs/my_run FOLDER          (its best checkpoint)
    mmseg-resnest publish-model CONFIG CHECKPOINT FOLDER
    mmseg-resnest publish-model CONFIG CHECKPOINT FOLDER --results work_dirs/run/test/results.json
    mmseg-resnest publish-model work_dirs/my_run --push OWNER/NAME
    mmseg-resnest publish-model FOLDER --push OWNER/NAME     (a folder that was written before)

Writes model.safetensors (what segmenting needs), config.json (what to build, classes, colours,
metrics, the weights' SHA-256), README.md (the model card, with the front matter that hubs read),
training_config.py and SHA256SUMS. load_segmentor("FOLDER") loads it; nothing in it is run. --push
puts the same files into a model repository of a Hugging Face hub, with or without a FOLDER here:
load_segmentor("hf://OWNER/NAME").
"""

from __future__ import annotations

import argparse
import os
import shlex
import tempfile

from .console import print_next
from .named_models import add_model, model_rows, open_model, weights_file
from .options import add_config_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model(parser)
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        help="folder to write; may be left out with --push",
    )
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
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="put it into this model repository of a Hugging Face hub, created if it does not "
        "exist (pip install 'mmseg-resnest[hub]'; the token: HF_TOKEN, or hf auth login)",
    )
    parser.add_argument("--private", action="store_true", help="make a private repository")
    parser.add_argument("--revision", metavar="BRANCH", help="of the repository (default: main)")
    parser.add_argument("--force", action="store_true", help="replace a folder of this tool")
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmseg_resnest.errors import UserError
    from mmseg_resnest.export.push import check_push, push
    from mmseg_resnest.inference.published import is_published
    from mmseg_resnest.inference.runtimes import is_exported

    _sort_out(args)
    if is_exported(args.config) and args.checkpoint is None:
        said = "is an exported file, whose weights have no names to publish; name what it was "
        said += "exported from: the run or the checkpoint"
        raise UserError("argument", args.config, said)
    if args.push is not None:
        check_push(args.push, args.revision)
    with tempfile.TemporaryDirectory(prefix="mmseg-resnest-") as temporary:
        folder = args.folder or os.path.join(temporary, (args.push or "").rsplit("/", 1)[-1])
        if args.folder is None and os.path.isdir(args.config) and is_published(args.config):
            folder = args.config
            open_model(args, "cpu")  # so that only what loads is pushed
        else:
            _publish(args, folder)
        if args.push is not None:
            try:
                pushed = push(folder, args.push, args.private, args.revision)
            except UserError as error:
                if args.folder is None:
                    raise
                again = ["mmseg-resnest", "publish-model", args.folder, "--push", args.push]
                again += ["--private"] if args.private else []
                again += ["--revision", args.revision] if args.revision else []
                message = f"{error.message}. {args.folder} is written; put it there by "
                message += shlex.join(again)
                raise UserError(error.code, error.subject, message) from error
            print(f"pushed      {pushed}")
            print(f"use         load_segmentor({pushed!r})")
    print()
    print_next(f"mmseg-resnest serve {shlex.quote(args.folder or pushed)}")
    return 0


def _sort_out(args: argparse.Namespace) -> None:
    """Tell a checkpoint from a folder where one of them is left out."""
    from mmseg_resnest.engine.trained import is_trained
    from mmseg_resnest.errors import UserError
    from mmseg_resnest.inference.published import is_published
    from mmseg_resnest.weights import catalogue

    if args.push is None and (args.private or args.revision):
        option = "--private" if args.private else "--revision"
        raise UserError("argument-missing", option, "is of the repository that --push names")
    if args.folder is None and args.checkpoint is not None:
        alone = is_published(args.config) or is_trained(args.config) or args.config in catalogue()
        if args.push is None or alone:
            args.checkpoint, args.folder = None, args.checkpoint
    if args.folder is None and args.push is None:
        raise UserError("argument-missing", "FOLDER", "name the folder to write, or --push")


def _publish(args: argparse.Namespace, folder: str) -> None:
    from mmseg_resnest.engine.hooks import describe_model, print_header
    from mmseg_resnest.engine.logs import display_path
    from mmseg_resnest.export.publish import check_loads_back, publish, read_results
    from mmseg_resnest.weights.hub import SCHEME

    results = None if args.results is None else read_results(args.results, weights_file(args))
    model = open_model(args, "cpu")
    print_header(
        [
            ("publishing", args.folder or args.push),
            *model_rows(args),
            ("model", describe_model(model.model, model.cfg, len(model.classes))),
        ]
    )
    use = None if args.push is None else f"{SCHEME}{args.push.removeprefix(SCHEME)}"
    done = publish(model, folder, args.name, args.license, results, args.force, use)
    check_loads_back(model, done["folder"])
    for name, size in done["files"].items():
        path = display_path(done["folder"] / name) if args.folder else name
        print(f"written     {path} ({size:,} bytes)")
    print(f"sha256      {done['sha256']} (model.safetensors)")
    if results is None:
        print("note        the card has no scores: give --results FILE of mmseg-resnest test")
    if args.folder:
        print(f"use         load_segmentor({args.folder!r})")
