# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Segment images, videos and streams: a label map and an overlay for each.

    mmseg-resnest predict work_dirs/my_run photo.jpg --out predictions
    mmseg-resnest predict CONFIG CHECKPOINT photo.jpg --out predictions
    mmseg-resnest predict model.onnx folder/ --out predictions   (or a published folder or name)
    mmseg-resnest predict CONFIG CHECKPOINT folder/ --out predictions --opacity 0.7
    mmseg-resnest predict CONFIG CHECKPOINT 'photos/*.jpg' --out predictions --save overlay coco
    mmseg-resnest predict CONFIG CHECKPOINT folder/ --out predictions --engine auto
    mmseg-resnest predict CONFIG CHECKPOINT drive.mp4 --out predictions
    mmseg-resnest predict CONFIG CHECKPOINT 0 --out predictions         (a camera, until Ctrl-C)

Writes NAME.png, a palette PNG whose pixels are class indices, and NAME_overlay.jpg (.png for
images in a lossless format) for each image; folders inside the folder are followed and kept. The
same command goes on where it was stopped. Large images are segmented in tiles.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from .console import print_next
from .named_models import add_model, model_rows, open_model, words
from .options import (
    add_config_options,
    add_device_option,
    add_engine_options,
    add_trust_option,
    engine_choice,
    number,
    whole,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model(parser)
    parser.add_argument(
        "source",
        metavar="INPUT",
        help="an image, a folder, a pattern in quotes, an address, a video, the address of a "
        "stream (rtsp://...) or the number of a camera",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write to")
    add_trust_option(parser)
    add_device_option(parser)
    add_engine_options(parser)
    parser.add_argument(
        "--save",
        nargs="+",
        choices=["labels", "overlay", "side", "uncertainty", "geojson", "coco"],
        default=["labels", "overlay"],
        metavar="OUTPUT",
        help="what to write: labels, overlay, side (image and prediction side by side), "
        "uncertainty (entropy, a grey PNG whose value / 255 is its share of the largest), geojson, "
        "coco (the exact outlines of all regions); default: labels overlay",
    )
    parser.add_argument(
        "--opacity",
        type=number(0, 1),
        default=0.5,
        metavar="X",
        help="of the colours in the overlay, 0 to 1 (default: 0.5)",
    )
    parser.add_argument(
        "--tile",
        type=_tile,
        metavar="PIXELS",
        help="cut images that are larger than this into tiles of this edge; 0 never does (default: "
        "1024, for images of more than 16.8 million pixels; frames are whole)",
    )
    parser.add_argument(
        "--max-frames", type=whole(1), metavar="N", help="stop a video after N frames"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="do images again whose outputs are there"
    )
    add_config_options(parser)


def _tile(text: str) -> int:
    edge = whole(0)(text)
    if 0 < edge < 64:
        raise argparse.ArgumentTypeError(f"must be 0 or at least 64 pixels, not {edge}")
    return edge


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmseg_resnest.engine.hooks import describe_model, duration, print_header
    from mmseg_resnest.engine.logs import display_path
    from mmseg_resnest.engine.preflight import check_outputs, check_writable
    from mmseg_resnest.errors import UserError
    from mmseg_resnest.inference.engine import choose_engine, prepare_engine
    from mmseg_resnest.inference.files import FileJob, plan_outputs
    from mmseg_resnest.inference.images import find_inputs
    from mmseg_resnest.inference.segmentor import FOLD_FROM
    from mmseg_resnest.inference.video import is_stream, is_video, predict_video
    from mmseg_resnest.io.text import printable

    if not 0 <= args.opacity <= 1:
        raise UserError("argument", "--opacity", f"must lie between 0 and 1, not {args.opacity}")
    if args.max_frames is not None and args.max_frames < 1:
        raise UserError("argument", "--max-frames", f"must be at least 1, not {args.max_frames}")

    out = Path(args.out)
    folder = Path(args.source).is_dir()
    film = not folder and (is_stream(args.source) or is_video(args.source))
    images: list[str] = []
    others: list[Path] = []
    if not film and not folder:
        images, others = find_inputs(args.source, out)
        plan_outputs(images, out, args.save)
    elif (
        film
        and is_video(args.source)
        and "://" not in args.source
        and not Path(args.source).is_file()
    ):
        raise UserError("not-found", args.source, "no such video")
    engine_choice(args)  # before a model is loaded
    model = open_model(args, args.device)
    if folder:  # of which files are images the model says
        images, others = find_inputs(args.source, out, model.reader.suffixes)
        plan_outputs(images, out, args.save, args.source)
    check_outputs(model.cfg, {"--out": out})
    check_writable(out, "--out")
    choose_engine(model, engine_choice(args, images), partial(print, flush=True))
    # Of the precision as well, and of the weights as they were loaded, however many images.
    model.fingerprint  # noqa: B018
    engine = prepare_engine(model, images, args.tile)
    what = args.source if film else f"{len(images)} image{'s' if len(images) != 1 else ''}"
    print_header(
        [
            ("predicting", what),
            *model_rows(args),
            ("model", describe_model(model.model, model.cfg, len(model.classes))),
            ("device", str(model.device)),
            *engine,
        ]
    )
    if film or len(images) >= FOLD_FROM:
        model.fold()
    if film:
        if is_stream(args.source):
            print("stop with Ctrl-C; what was written by then is kept", flush=True)
        options = args.save, args.opacity, args.max_frames, args.overwrite, args.tile or 0
        done = predict_video(model, args.source, out, *options)
        if done["skipped"]:
            print(f"skipped     {args.source}: is done already (--overwrite does it again)")
            return 0
        rate = done["frames"] / max(done["seconds"], 1e-9)
        print(
            f"written     {done['frames']} frames in {duration(done['seconds'])} "
            f"({rate:.1f} frames/s): {', '.join(display_path(f) for f in done['files'])}"
        )
        return 0

    if others:
        names = ", ".join(printable(display_path(file)) for file in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        files = "1 file that is not an image"
        files = files if len(others) == 1 else f"{len(others)} files that are not images"
        print(f"skipped     {files}: {names}{more}")
    options = args.save, args.opacity, args.tile, None, args.overwrite
    job = FileJob(model, images, out, *options, root=args.source if folder else None)
    try:
        summary = job.run()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from here") from None
    if summary.skipped:
        print(f"skipped     {summary.skipped} images that are done (--overwrite does them again)")
    print(f"written     {' + '.join(args.save)} of {summary.done} images in {display_path(out)}")
    if summary.georeferenced:
        what = "the outputs have the same pixels but carry no place"
        print(f"note        {summary.georeferenced} of them are GeoTIFFs: {what}")
    if summary.several:
        what = "the first one was segmented; save the others as files of their own"
        print(f"note        {summary.several} of them have several pages or frames: {what}")
    if summary.failed:
        number, first = len(summary.failed), summary.failed[0]
        for error in summary.failed if number > 1 else ():
            print(f"failed      {printable(error.text)}")
        more = f" (and {number - 1} more errors)" if number > 1 else ""
        others_done = f"{len(images) - number} of {len(images)} images are done"
        raise UserError(first.code, first.subject, f"{first.message}{more}; {others_done}")
    if summary.done:
        print()
        print_next(f"mmseg-resnest demo-app {words(args)}")
    return 0
