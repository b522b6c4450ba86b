# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Turn a ResNeSt checkpoint of any known layout into another one.

    mmseg-resnest convert-checkpoint deeplab_resnest50_ade-2225f09d.zip deeplab.pth
    mmseg-resnest convert-checkpoint resnest50-bcfefe1d.params resnest50.safetensors
    mmseg-resnest convert-checkpoint work_dirs/run/iter_40000.pth model.pth --layout published

    mmseg-resnest convert-checkpoint faster_rcnn_resnest50_coco detector.pth

SRC is a name of published weights, or a .pth, .pt, .zip, .safetensors or .params file of the
published code, timm, MMSegmentation, MMDetection, detectron2, MMPretrain, GluonCV or this project;
nothing in it is run. DST ends in .pth or .safetensors and holds tensors only.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("src", metavar="SRC", help="the checkpoint to read")
    parser.add_argument("dst", metavar="DST", help="the file to write: .pth or .safetensors")
    parser.add_argument(
        "--layout",
        choices=["published", "timm", "openmmlab", "detectron2", "mmseg-resnest"],
        default="mmseg-resnest",
        help="the names to write (default: this project's)",
    )
    parser.add_argument("--force", action="store_true", help="replace DST if it exists")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmseg_resnest.weights import analyse, export_state_dict, load_checkpoint, save_state_dict
    from mmseg_resnest.weights.save import check_target
    from mmseg_resnest.weights.state_dict import list_keys

    check_target(args.dst, args.force)  # before the long part
    source = load_checkpoint(args.src)
    found = analyse(source, args.src)
    result = export_state_dict(found.state_dict, args.layout)
    target = save_state_dict(result, args.dst, args.force)

    print(f"{args.src}: {found.kind} in layout {found.layout}, {len(source)} tensors")
    if found.left_out:
        what = "ImageNet classifier" if found.layout != "detectron2" else "constants of the config"
        print(f"left out ({what}): {list_keys(found.left_out)}")
    if found.added:
        print(f"added: {len(found.added)} batch norm counters, zero, which the file does not have")
    print(f"{target}: {len(result)} tensors in layout {args.layout}")
    return 0
