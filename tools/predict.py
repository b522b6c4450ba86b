# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Segment images: a label map and an overlay for each.

    python tools/predict.py CONFIG CHECKPOINT photo.jpg --out predictions
    python tools/predict.py CONFIG CHECKPOINT folder/ --out predictions --opacity 0.7

Writes NAME.png, a palette PNG whose pixels are class indices, and NAME_overlay.jpg (.png for
images in a lossless format) for each image; folders inside the folder are followed and kept.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import _checkout  # noqa: F401
from tqdm import tqdm

from mmseg_resnest.engine.cli import ArgumentParser, add_config_options, run_tool
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.hooks import describe_model, print_header
from mmseg_resnest.engine.logs import shown
from mmseg_resnest.engine.outputs import IMAGE_SUFFIXES, save_image, unique_stems
from mmseg_resnest.engine.preflight import check_writable
from mmseg_resnest.errors import UserError
from mmseg_resnest.inference import load_segmentor

_LOSSY = {".jpg", ".jpeg", ".webp"}


def find_images(source: Path, out: Path) -> tuple[list[Path], list[Path]]:
    """The images to segment, and the files of the folder that are none.

    Args:
        source: An image file, or a folder that is searched with its subfolders.
        out: The folder to write to; left out of the search.

    Raises:
        UserError: ``source`` does not exist, or holds no image.
    """
    if source.is_file():
        return [source], []
    if not source.is_dir():
        raise UserError(f"image {source}: does not exist; name an image file or a folder of images")
    images, others = [], []
    for folder, folders, names in os.walk(source):
        # In place, so that walk leaves them out: hidden ones (.git, .thumbnails, ...) and ours.
        folders[:] = sorted(
            f for f in folders if f[0] != "." and Path(folder, f).resolve() != out.resolve()
        )
        for name in sorted(n for n in names if n[0] != "."):
            file = Path(folder, name)
            (images if file.suffix.lower() in IMAGE_SUFFIXES else others).append(file)
    if not images:
        raise UserError(f"folder {source}: holds no image (.jpg, .png, .tif, .webp, .bmp, ...)")
    return images, others


def plan_outputs(images: Sequence[Path], out: Path) -> dict[Path, tuple[Path, Path]]:
    """Where the label map and the overlay of each image go.

    Raises:
        UserError: One of them would overwrite an image.
    """
    stems = unique_stems(images, endings=("_overlay",))
    inputs = {image.resolve() for image in images}
    plan = {}
    for image in images:
        stem = stems[str(image)]
        suffix = ".jpg" if image.suffix.lower() in _LOSSY else ".png"
        plan[image] = (out / f"{stem}.png", out / f"{stem}_overlay{suffix}")
        for target in plan[image]:
            if target.resolve() in inputs:
                raise UserError(
                    f"--out {out}: {target} would overwrite an image; use another folder"
                )
    return plan


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = ArgumentParser(prog="predict.py", description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "checkpoint",
        help="weights of the whole model, in any known layout: a file, an address, or a name of "
        "tools/weights.py list",
    )
    parser.add_argument("source", metavar="IMAGE|FOLDER", help="an image, or a folder of images")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write to")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU if there is one)")
    parser.add_argument(
        "--opacity", type=float, default=0.5, help="of the colours in the overlay (default: 0.5)"
    )
    add_config_options(parser)
    args = parser.parse_args(argv)
    if not 0 <= args.opacity <= 1:
        raise UserError(f"--opacity {args.opacity}: must lie between 0 and 1")

    out = Path(args.out)
    images, others = find_images(Path(args.source), out)
    plan = plan_outputs(images, out)
    model = load_segmentor(
        load_config(args.config, args.cfg_options, args.data_root), args.checkpoint, args.device
    )
    check_writable(out, "--out")
    print_header(
        [
            ("predicting", f"{len(images)} image{'s' if len(images) != 1 else ''}"),
            ("config", args.config),
            ("checkpoint", args.checkpoint),
            ("model", describe_model(model.model, model.cfg, len(model.classes))),
            ("device", str(model.device)),
        ]
    )
    if others:
        names = ", ".join(shown(file) for file in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        print(f"skipped     {len(others)} files that are no images: {names}{more}")

    failed = []
    for image in tqdm(images, desc="images", disable=None, leave=False):
        try:
            result = model(image)
        except UserError as error:
            if len(images) == 1:
                raise
            failed.append(str(error))
            continue
        label_map, picture = plan[image]
        result.save(label_map)
        save_image(result.overlay(args.opacity), picture)
    done = len(images) - len(failed)
    print(f"written     {done} label map{'s' if done != 1 else ''} and overlays in {shown(out)}")
    if failed:
        more = f" (and {len(failed) - 1} more like it)" if len(failed) > 1 else ""
        raise UserError(f"{failed[0]}{more}; {done} of {len(images)} images were segmented")
    return 0


if __name__ == "__main__":
    run_tool(main)
