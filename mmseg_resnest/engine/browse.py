# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Pictures of what a config's data pipeline makes of images: what a network is trained on."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DefaultScope
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from mmseg_resnest.engine.config import require
from mmseg_resnest.engine.preflight import check_data
from mmseg_resnest.errors import UserError
from mmseg_resnest.evaluation import legend, overlay
from mmseg_resnest.io.image_files import save_image, unique_stems
from mmseg_resnest.registry import DATASETS

__all__ = ["Step", "browse", "draw_sample"]

_EDGE = 288  # pixels of the longer edge of a picture of a sheet
_MARGIN, _GAP, _LINE = 16, 12, 22


class Step:
    """What a pipeline has made of an image and its labels up to some step.

    Attributes:
        name: Of the step.
        image: (H, W, 3) RGB, uint8.
        labels: (H, W), or None before they are loaded.
        text: Size, and what was done so far, e.g. ``480 x 480, mirrored, scaled 1.32``.
    """

    def __init__(self, name: str, sample: dict[str, Any]) -> None:
        self.name = name
        image = np.asarray(sample["img"])
        if image.ndim == 2:
            image = np.repeat(image[:, :, None], 3, axis=2)
        self.image = np.clip(np.rint(image[:, :, ::-1]), 0, 255).astype(np.uint8)
        labels = sample.get("gt_seg_map")
        self.labels = None if labels is None else np.array(labels)
        height, width = image.shape[:2]
        parts = [f"{width} x {height}"]
        if sample.get("flip"):
            parts.append("mirrored")
        scale = sample.get("scale_factor")
        if scale is not None and not np.allclose(scale, 1):
            parts.append(f"scaled {float(np.mean(scale)):.2f}")
        self.text = ", ".join(parts)


def draw_sample(dataset: Any, index: int, seed: int) -> list[Step]:
    """Run a data set's pipeline on an image, step by step.

    Args:
        dataset: A data set of MMSegmentation's kind.
        index: Of the image.
        seed: Of what the pipeline draws at random.

    Returns:
        What each step that left an image made of it; the first is the image as it was loaded.

    Raises:
        UserError: The pipeline loads no image.
    """
    random.seed(seed)
    np.random.seed(seed)
    sample = dataset.get_data_info(index)
    steps: list[Step] = []
    for transform in dataset.pipeline.transforms:
        name = type(transform).__name__
        if name.startswith("Pack"):  # tensors from here on
            break
        sample = transform(sample)
        if sample is None:
            raise UserError("input", name, f"drops image {index} of the data set")
        if "img" not in sample:
            continue
        step = Step(name, sample)
        if steps and steps[-1].labels is None and step.labels is not None:
            steps[-1] = Step(steps[-1].name, sample)  # labels loaded: no step of its own
        else:
            steps.append(step)
    if not steps:
        raise UserError("input", "the pipeline loads no image", "it has no LoadImageFromFile")
    return steps


def _colours(step: Step, palette: Sequence[Sequence[int]], opacity: float) -> NDArray[np.uint8]:
    if step.labels is None:
        return step.image
    return overlay(step.image, step.labels, palette, opacity)


def _sheet(
    title: str,
    rows: Sequence[Sequence[tuple[str, NDArray[np.uint8]]]],
    key: NDArray[np.uint8] | None,
) -> Image.Image:
    """Rows of pictures with a line of text above each; a legend below."""
    font, bold = ImageFont.load_default(13), ImageFont.load_default(17)
    scaled = []
    for some in rows:
        pictures = []
        for text, pixels in some:
            factor = _EDGE / max(pixels.shape[:2])
            size = (
                max(1, round(pixels.shape[1] * factor)),
                max(1, round(pixels.shape[0] * factor)),
            )
            pictures.append((text, Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)))
        scaled.append(pictures)
    columns = max(len(row) for row in scaled)
    width = 2 * _MARGIN + columns * (_EDGE + _GAP) - _GAP
    heights = [_LINE + max(p.height for _, p in line) + _GAP for line in scaled]
    below = 0 if key is None else key.shape[0]
    sheet = Image.new("RGB", (width, 40 + sum(heights) + below + _MARGIN), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 20), title, font=bold, fill=(32, 33, 36), anchor="lm")
    top = 40
    for line, height in zip(scaled, heights, strict=True):
        for n, (text, picture) in enumerate(line):
            left = _MARGIN + n * (_EDGE + _GAP)
            draw.text((left, top + _LINE / 2), text, font=font, fill=(95, 99, 104), anchor="lm")
            sheet.paste(picture, (left, top + _LINE))
        top += height
    if key is not None:
        sheet.paste(Image.fromarray(key), (_MARGIN, top))
    return sheet


def browse(
    cfg: Config,
    out_dir: str | os.PathLike[str],
    split: str = "train",
    images: int = 8,
    draws: int = 3,
    steps: bool = False,
    shuffle: bool = False,
    seed: int = 0,
    opacity: float = 0.5,
) -> dict[str, Any]:
    """Write a sheet for each image: as it is, and as the pipeline makes it, several times.

    Args:
        cfg: A checked config.
        out_dir: Where ``NAME.png`` go, named and nested as the images are.
        split: ``train``, ``val`` or ``test``: whose pipeline.
        images: How many images; the first ones.
        draws: How often the pipeline is run on each.
        steps: Show the image after each step rather than the last one beside its labels.
        shuffle: Take images at random instead.
        seed: Of the images and of the pipeline; the same seed makes the same sheets.
        opacity: Of the labels' colours.

    Returns:
        ``images``, the number of sheets; ``out``, the folder; ``pipeline``, the steps' names.

    Raises:
        UserError: The config has no such data, files are missing, or an argument is wrong.
    """
    name = f"{split}_dataloader"
    require(cfg, (name,), f"showing the {split} images")
    if images < 1 or draws < 1:
        raise UserError("argument", "--images and --draws", "must be at least 1")
    if not 0 <= opacity <= 1:
        raise UserError("argument", f"--opacity {opacity}", "must lie between 0 and 1")
    check_data(cfg, (name,))
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmseg")):
        dataset: Any = DATASETS.build(copy.deepcopy(cfg[name].dataset))
        while not hasattr(dataset, "pipeline") and hasattr(dataset, "dataset"):
            dataset = dataset.dataset  # wrappers such as RepeatDataset
        if not hasattr(dataset, "pipeline"):
            raise UserError(
                "config-value",
                f"config key {name}.dataset",
                f"{type(dataset).__name__} has no pipeline of its own; "
                "browse the data sets that it is made of one by one",
            )
        order = list(range(len(dataset)))
        if shuffle:
            random.Random(seed).shuffle(order)
        order = order[:images]
        paths = [dataset.get_data_info(i)["img_path"] for i in order]
        stems = unique_stems(paths)
        classes = [str(c) for c in dataset.metainfo["classes"]]
        palette = [list(map(int, colour)) for colour in dataset.metainfo["palette"]]
        names: list[str] = []
        for index, path in zip(
            tqdm(order, desc="images", disable=None, leave=False, dynamic_ncols=True),
            paths,
            strict=True,
        ):
            runs = [draw_sample(dataset, index, seed + 1000 * index + n) for n in range(draws)]
            names = [step.name for step in runs[0]]
            sheet = _draw(Path(path).name, runs, classes, palette, opacity, steps)
            save_image(sheet, Path(out_dir) / f"{stems[path]}.png")
    return {"images": len(order), "out": os.fspath(out_dir), "pipeline": names}


def _draw(
    title: str,
    runs: Sequence[Sequence[Step]],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    opacity: float,
    steps: bool,
) -> Image.Image:
    """The sheet of an image."""
    first = runs[0][0]
    rows: list[list[tuple[str, NDArray[np.uint8]]]] = []
    if steps:
        for run in runs:
            rows.append(
                [
                    (f"{s.name}: {s.text}" if n else s.text, _colours(s, palette, opacity))
                    for n, s in enumerate(run)
                ]
            )
    else:
        for label, step in [
            ("as it is: ", first),
            *((f"{n + 1}: ", r[-1]) for n, r in enumerate(runs)),
        ]:
            row = [(label + step.text, step.image)]
            if step.labels is not None:
                row.append(("its labels", _colours(step, palette, opacity)))
            rows.append(row)
        # Two columns of a picture and its labels use a wide screen better.
        rows = [[part for row in rows[i : i + 2] for part in row] for i in range(0, len(rows), 2)]
    present: set[int] = set()
    for run in runs:
        for step in (run[0], run[-1]):
            if step.labels is not None:
                present.update(int(i) for i in np.unique(step.labels))
    width = max(len(row) for row in rows) * (_EDGE + _GAP) - _GAP
    return _sheet(title, rows, legend(classes, palette, present, width) if present else None)
