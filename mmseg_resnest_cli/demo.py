# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The main job on the built-in data: draw it, train on it, evaluate, and show the results.

    mmseg-resnest demo            (what `make demo` runs; some minutes on two cores)

Starts over each time. Exit code 1 when the model ends below an mIoU of 60: then something is wrong.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import print_next
from .options import add_config_options
from .package import config_folder
from .test import print_test_summary

if TYPE_CHECKING:
    from mmengine.config import Config
    from PIL import Image

    from mmseg_resnest.inference import Segmentor

GOOD_ENOUGH = 60.0  # mIoU in percent
NUM_PICTURES = 8
_LEFTOVERS = {"results.json", "last_checkpoint", "fcn_resnest14_scenes.py", "overlays"}

Row = tuple[Any, Any, Any]
"""Image, its label as an overlay, its prediction as an overlay; (H, W, 3) of uint8 each."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--work-dir", metavar="DIR", default="work_dirs/demo")
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmseg_resnest.datasets import write_scenes
    from mmseg_resnest.engine.config import command_name, load_config
    from mmseg_resnest.engine.hooks import duration, print_header
    from mmseg_resnest.engine.logs import display_path
    from mmseg_resnest.engine.preemption import Preempted
    from mmseg_resnest.engine.preflight import check_writable
    from mmseg_resnest.engine.testing import evaluate
    from mmseg_resnest.engine.training import train
    from mmseg_resnest.inference import load_segmentor
    from mmseg_resnest.io.image_files import save_image
    from mmseg_resnest.io.json_files import read_json

    config_file = config_folder() / "fcn_resnest14_scenes.py"
    begin = time.monotonic()
    work_dir = Path(args.work_dir)

    cfg = load_config(config_file, args.cfg_options, args.data_root)
    scenes = Path(cfg.train_dataloader.dataset.data_root)
    sizes: dict[str, Any] = {}
    if (scenes / "scenes.json").is_file():  # of any number, but drawn by this version
        found = read_json(scenes / "scenes.json", str(scenes / "scenes.json"))
        names = ("num_train", "num_val", "seed")
        sizes = {name: found[name] for name in names if type(found.get(name)) is int}
    else:
        print_header([("drawing", f"the built-in scenes, once, in {display_path(scenes)}")])
    write_scenes(scenes, **sizes)
    start_over(work_dir)
    check_writable(work_dir, "--work-dir")
    try:
        summary = train(cfg, work_dir=work_dir)
    except Preempted as stopped:  # the demo itself starts over
        words = [command_name(config_file), "--work-dir", args.work_dir, "--resume"]
        words += ["--data-root", args.data_root] if args.data_root else []
        words += ["--cfg-options", *args.cfg_options] if args.cfg_options else []
        command = f"mmseg-resnest train {shlex.join(words)}"
        text = str(stopped).replace("the same command with --resume", command)
        raise Preempted(text) from stopped
    best = summary.get("best_checkpoint") or summary["last_checkpoint"]

    cfg = load_config(config_file, args.cfg_options, args.data_root)
    result = evaluate(cfg, work_dir / best, work_dir=work_dir / "test")
    print_test_summary(result)
    model = load_segmentor(
        load_config(config_file, args.cfg_options, args.data_root), work_dir / best, "cpu"
    )
    pictures = draw_pictures(model, model.cfg, work_dir / "overlays")
    title = f"fcn_resnest14 on the demo scenes: mIoU {result['mIoU']:.1f} on held-out images"
    sheet = save_image(contact_sheet(pictures, model, title), work_dir / "overlays.png")

    rows = [("demo", f"mIoU {result['mIoU']:.2f}, in {duration(time.monotonic() - begin)}")]
    if summary["curves"]:
        rows.append(("curves", display_path(summary["curves"])))
    rows += [
        (
            "overlays",
            f"{display_path(sheet)}, one by one in {display_path(work_dir / 'overlays')}{os.sep}",
        ),
        ("table", display_path(work_dir / "test" / "results.json")),
        ("checkpoint", display_path(work_dir / best)),
    ]
    print_header(rows)
    config = command_name(config_file)
    model_here = f"{config} {display_path(work_dir / best)}"
    print_next(
        f"mmseg-resnest predict {model_here} YOUR_IMAGE --out predictions",
        "mmseg-resnest train configs/fcn_resnest14_camvid.py --data-root DIR   (real images)",
        f"mmseg-resnest train {config} --cfg-options train_cfg.max_iters=2000 "
        "param_scheduler.1.end=2001",
    )
    if not result["mIoU"] >= GOOD_ENOUGH:
        print(f"\nmIoU is below {GOOD_ENOUGH:.0f}: that is not what this demo should end with")
        return 1
    return 0


def start_over(work_dir: Path) -> None:
    """Remove what an earlier demo left, and nothing else.

    Raises:
        UserError: The folder holds something that no demo wrote.
    """
    from mmseg_resnest.errors import UserError
    from mmseg_resnest.io.folder_lock import LOCK_FILE, FolderLock

    if not work_dir.exists():
        return
    if not work_dir.is_dir():
        raise UserError(
            "argument", f"--work-dir {work_dir}", "is a file; remove it or choose another folder"
        )
    names = {path.name for path in work_dir.iterdir()} - {LOCK_FILE}
    started = any((path / "vis_data").is_dir() for path in work_dir.iterdir() if path.is_dir())
    if names and not started and not names & _LEFTOVERS:
        raise UserError(
            "argument",
            f"--work-dir {work_dir}",
            "is not empty and no demo wrote it; choose another folder",
        )
    with FolderLock(work_dir, f"--work-dir {work_dir}"):  # not under a run that goes on
        shutil.rmtree(work_dir)


def draw_pictures(model: Segmentor, cfg: Config, folder: Path) -> list[Row]:
    """Segment some validation images and write their overlays.

    Args:
        model: The trained model.
        cfg: Its config.
        folder: Where the pictures go: image, label and prediction side by side.

    Returns:
        The parts of each picture.
    """
    import numpy as np
    from mmengine.registry import DefaultScope

    from mmseg_resnest.evaluation import overlay
    from mmseg_resnest.io.image_files import save_image
    from mmseg_resnest.registry import DATASETS

    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
    rows = []
    for i in np.linspace(0, len(dataset) - 1, min(NUM_PICTURES, len(dataset))).astype(int):
        sample = dataset[int(i)]["data_samples"]
        truth = sample.gt_sem_seg.data[0].numpy()
        result = model(sample.img_path)
        row = (
            result.image,
            overlay(result.image, truth, model.palette, 0.8),
            overlay(result.image, result.labels, model.palette, 0.8),
        )
        gap = np.full((row[0].shape[0], 4, 3), 255, np.uint8)
        picture = np.concatenate([row[0], gap, row[1], gap, row[2]], axis=1)
        save_image(picture, folder / f"{Path(sample.img_path).stem}.png")
        rows.append(row)
    return rows


def contact_sheet(rows: Sequence[Row], model: Segmentor, title: str) -> Image.Image:
    """All pictures on one, two beside each other, with the colours of the classes below."""
    from PIL import Image, ImageDraw, ImageFont

    from mmseg_resnest.evaluation import legend

    height, width = rows[0][0].shape[:2]
    scale = 240 / width
    size = (240, round(height * scale))
    gap, margin, head = 6, 18, 58
    block = 3 * size[0] + 2 * gap
    columns = 2 if len(rows) > 1 else 1
    lines = -(-len(rows) // columns)
    inner = columns * block + (columns - 1) * 3 * gap
    key = legend(model.classes, model.palette, width=inner)
    body = lines * (size[1] + gap)
    sheet = Image.new("RGB", (inner + 2 * margin, head + body + gap + len(key) + margin), "white")
    draw = ImageDraw.Draw(sheet)
    ink = (32, 33, 36)
    draw.text((margin, 8), title, font=ImageFont.load_default(19), fill=ink)
    for column in range(columns):
        for part, name in enumerate(("image", "label", "prediction")):
            x = margin + column * (block + 3 * gap) + part * (size[0] + gap)
            draw.text((x, 36), name, font=ImageFont.load_default(14), fill=ink)
    for n, row in enumerate(rows):
        x = margin + n % columns * (block + 3 * gap)
        y = head + n // columns * (size[1] + gap)
        for part, pixels in enumerate(row):
            small = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
            sheet.paste(small, (x + part * (size[0] + gap), y))
    sheet.paste(Image.fromarray(key), (margin, head + body + gap))
    return sheet
