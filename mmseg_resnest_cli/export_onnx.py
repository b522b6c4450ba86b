# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Export a model to ONNX, OpenVINO, torch.export or TorchScript, checked against PyTorch.

    mmseg-resnest export-onnx work_dirs/my_run model.onnx        (its best checkpoint)
    mmseg-resnest export-onnx CONFIG CHECKPOINT model.onnx
    mmseg-resnest export-onnx CONFIG CHECKPOINT model.onnx --processing
    mmseg-resnest export-onnx CONFIG CHECKPOINT model.onnx --images photos --opset 20
    mmseg-resnest export-onnx CONFIG CHECKPOINT small.onnx --int8 calibration_images
    mmseg-resnest export-onnx CONFIG CHECKPOINT model.xml             (also .pt2, .torchscript)

Batch, height and width stay free. Without --processing the file takes normalised images
(N, 3, H, W), float32, and gives scores (N, C, H, W); with it, images as they are, (N, H, W, 3) RGB
of uint8, and gives label maps (N, H, W). The file is written when it agrees with PyTorch on real
images: 99.99% of the labels, probabilities within 1e-3. load_segmentor("model.onnx") loads it.
.onnx is data; .pt2 and .torchscript are programs, which load with trust=True only.
--int8 also quantises it to 8 bits, with the ranges of values that it sees on the calibration
images, and prints what that costs in mIoU on the config's test split.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from .console import print_next
from .named_models import add_model, model_rows, open_model
from .options import add_config_options, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model(parser)
    parser.add_argument("out", metavar="OUT", help="file: .onnx, .xml, .pt2 or .torchscript")
    parser.add_argument(
        "--processing",
        action="store_true",
        help="put preparation and labels into the file: uint8 images in, label maps out",
    )
    parser.add_argument(
        "--opset", type=whole(11, 20), metavar="N", help="of ONNX, 11 to 20 (default: 17)"
    )
    parser.add_argument(
        "--images",
        metavar="PATH",
        help="images to check on: a file, a folder or a pattern (default: the config's test split)",
    )
    parser.add_argument(
        "--num-images", type=whole(1), default=4, metavar="N", help="how many of them (default: 4)"
    )
    parser.add_argument(
        "--int8",
        metavar="PATH",
        help="quantise to 8 bits (.onnx): images to calibrate on, a file, a folder or a pattern; "
        "like those that will be segmented, e.g. the training images",
    )
    parser.add_argument(
        "--num-calibration",
        type=whole(1),
        default=100,
        metavar="N",
        help="how many of them, spread evenly (default: 100)",
    )
    parser.add_argument(
        "--num-test",
        type=whole(0),
        default=0,
        metavar="N",
        help="images of the test split to measure the loss of --int8 on (default: all)",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmseg_resnest.engine.hooks import describe_model, print_header
    from mmseg_resnest.engine.logs import display_path
    from mmseg_resnest.errors import UserError
    from mmseg_resnest.export import compare, export_model
    from mmseg_resnest.export.check import check_images, images_of_test, require_agreement
    from mmseg_resnest.export.int8 import quantise, require_one_class, score
    from mmseg_resnest.inference import load_segmentor
    from mmseg_resnest.inference.runtimes import PROGRAMS, SUFFIXES, is_exported
    from mmseg_resnest.io.atomic import atomic_path

    out = Path(args.out)
    if out.suffix.lower() not in SUFFIXES:
        raise UserError("argument", out, f"the name must end in {', '.join(SUFFIXES)}")
    if out.exists() and not args.force:
        said = "already exists; give another name, or --force to replace it"
        raise UserError("output-exists", out, said)
    if args.int8 is not None and out.suffix.lower() != ".onnx":
        said = f"only ONNX files are quantised; {out} must end in .onnx"
        raise UserError("argument", "option --int8", said)
    if is_exported(args.config) and args.checkpoint is None:
        said = "is an exported file, which holds a network without its parts; name what it was "
        said += "exported from: the run, the checkpoint or the published folder"
        raise UserError("argument", args.config, said)
    model = open_model(args, "cpu")
    if args.int8 is not None:
        require_one_class(model)
    cfg = model.cfg
    images = check_images(cfg, args.images, args.num_images)
    calibration: list[str] = []
    if args.int8 is not None:
        images_of_test(cfg, labelled=True)
        calibration = check_images(cfg, args.int8, args.num_calibration)
    rows = [
        ("exporting", out.name),
        *model_rows(args),
        ("model", describe_model(model.model, model.cfg, len(model.classes))),
        ("format", _describe(out, args)),
    ]
    print_header(rows)
    with atomic_path(out) as part:
        export_model(model, part, args.processing, args.opset)
        # Trusted, since it was written here just now.
        agreement = compare(model, load_segmentor(part, trust=True), images)
        require_agreement(agreement, str(out))
        print(f"checked     {agreement}")
        if args.int8 is not None:
            full = load_segmentor(part)
            size = part.stat().st_size
            quantise(part, part, calibration)
            sizes = f"{size / 2**20:.1f} MiB became {part.stat().st_size / 2**20:.1f} MiB"
            print(f"quantised   on {len(calibration)} images: {sizes}")
            scores = score([full, load_segmentor(part)], cfg, args.num_test)
            before, after = (100 * found.mean_iou for found in scores)
            print(
                f"mIoU        {before:.2f} in float32, {after:.2f} in 8 bits: {after - before:+.2f}"
            )
    print(f"written     {display_path(out)} ({out.stat().st_size / 2**20:.1f} MiB)")
    program = out.suffix.lower() in PROGRAMS
    print(f"use         load_segmentor({str(out)!r}{', trust=True' if program else ''})")
    if program:
        print("note        this file is a program: others should not load it unless they trust you")
    print()
    print_next(f"mmseg-resnest serve {shlex.quote(args.out)}{' --trust' if program else ''}")
    return 0


def _describe(out: Path, args: Any) -> str:
    from mmseg_resnest.export.files import DEFAULT_OPSET
    from mmseg_resnest.inference.runtimes import SUFFIXES

    kind = SUFFIXES[out.suffix.lower()]
    if out.suffix.lower() == ".onnx":
        kind = f"ONNX, opset {args.opset or DEFAULT_OPSET}"
    what = "uint8 images in, labels out" if args.processing else "normalised images in, scores out"
    return f"{kind}; {what}"
