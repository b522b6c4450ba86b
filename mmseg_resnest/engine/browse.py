# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Pictures of what a config's data pipeline makes of images: what a network is trained on."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import DefaultScope
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from .._stack import mixing_transforms
from ..datasets import build_dataset, inside
from ..datasets.pipelines import gives_rgb, pipelines, step_name
from ..datasets.transforms.multilabel import PLANES, label_bits
from ..errors import UserError
from ..evaluation import legend, overlay
from ..io.bit_planes import index_sets
from ..io.image_files import as_picture, save_image, unique_stems
from ..registry import type_name
from .config import require
from .preflight import check_data, check_outputs, check_writable

_EDGE = 288  # pixels of the longer edge of a picture of a sheet
_MARGIN, _GAP, _LINE = 16, 12, 22
_Cell = tuple[str, NDArray[np.uint8]]  # a line of text and the picture below it


class Step:
    """What a pipeline has made of an image and its labels up to some step.

    ``image`` is (H, W, 3) RGB, uint8; ``labels`` (H, W), or None before they are loaded; ``planes``
    how many classes may overlap (:class:`~mmseg_resnest.datasets.LoadMultilabel`), whose bits the
    labels are, or None; ``text`` size and what was done so far, e.g.
    ``480 x 480, mirrored, scaled 1.32``.
    """

    def __init__(
        self, name: str, sample: dict[str, Any], rgb: bool | tuple[int, ...] = False
    ) -> None:
        self.name = name
        self.rgb = rgb
        image = np.asarray(sample["img"])
        self.image = as_picture(image, rgb)
        labels = sample.get("gt_seg_map")
        self.planes = sample.get(PLANES)
        labels = label_bits(sample) if self.planes else labels
        self.labels = None if labels is None else np.array(labels)
        self.text = f"{image.shape[1]} x {image.shape[0]}"
        if sample.get("flip"):
            self.text += ", mirrored"
        scale = sample.get("scale_factor")
        if scale is not None and not np.allclose(scale, 1):
            self.text += f", scaled {float(np.mean(scale)):.2f}"

    def coloured(self, palette: Sequence[Sequence[int]], opacity: float) -> NDArray[np.uint8]:
        """The image under its labels' colours, (H, W, 3) RGB, uint8."""
        if self.labels is None:
            return self.image
        labels, size = self.labels, self.image.shape[:2]
        if labels.shape != size:  # testing loads them at the size of the file
            labels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
        return overlay(self.image, labels, palette, opacity)


def draw_sample(dataset: Any, index: int, seed: int) -> list[Step]:
    """Run the pipelines of a data set and its wrappers on an image, with a seed, step by step.

    Returns:
        What each step made of the image; the first is the image as it was loaded.

    Raises:
        UserError: The pipeline loads no image, or drops it.
    """
    random.seed(seed)
    np.random.seed(seed)
    steps: list[Step] = []
    _run(dataset, index, steps)
    if not steps:
        raise UserError("config-value", "pipeline", "loads no image; add LoadImageFromFile")
    return steps


def _run(dataset: Any, index: int, steps: list[Step]) -> Any:
    """Add the steps of a sample of a data set or wrapper; returns what the last one made."""
    dataset, index = inside(dataset, index)
    others: Any = getattr(dataset, "dataset", None)  # that MultiImageMixDataset mixes
    sample: Any
    if others is None:
        sample, transforms = dataset.get_data_info(index), dataset.pipeline.transforms
    else:
        sample, transforms = _run(others, index, steps), mixing_transforms(dataset)
    for transform in transforms:
        name = type(transform).__name__
        if name.startswith("Pack"):  # tensors from here on
            break
        if hasattr(transform, "get_indices"):
            chosen = transform.get_indices(others)
            chosen = chosen if isinstance(chosen, Sequence) else [chosen]
            sample["mix_results"] = [copy.deepcopy(others[i]) for i in chosen]
        sample = transform(sample)
        if sample is None:
            raise UserError("dataset", f"transform {name}", f"drops image {index} of the data set")
        sample.pop("mix_results", None)
        if "img" not in sample:
            continue
        step = Step(name, sample, gives_rgb(transform) or (bool(steps) and steps[-1].rgb))
        if steps and steps[-1].labels is None and step.labels is not None:
            steps[-1] = Step(
                steps[-1].name, sample, step.rgb
            )  # loading labels is not a step of its own
        else:
            steps.append(step)
    return sample


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
    bands: Sequence[int] | None = None,
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
        bands: The three bands that are shown as red, green and blue, where ``LoadBands`` loads the
            images; None leaves it to its ``picture``.

    Returns:
        ``images``, the number of sheets; ``out``, the folder; ``pipeline``, the steps' names.
    """
    name = f"{split}_dataloader"
    require(cfg, (name,), f"showing the {split} images")
    if images < 1 or draws < 1:
        raise UserError("argument", "--images and --draws", "must be at least 1")
    if not 0 <= opacity <= 1:
        raise UserError("argument", f"--opacity {opacity}", "must lie between 0 and 1")
    check_data(cfg, (name,))
    check_outputs(cfg, {"--out": out_dir})
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmseg")):
        dataset_cfg = copy.deepcopy(cfg[name].dataset)
        while type_name(dataset_cfg.get("type")) in ("RepeatDataset", "ClassBalancedDataset"):
            dataset_cfg = dataset_cfg["dataset"]  # each image once
        if bands is not None:
            _show_bands(dataset_cfg, list(bands), f"{name}.dataset")
        dataset: Any = build_dataset(dataset_cfg)
        order = list(range(len(dataset)))
        if shuffle:
            random.Random(seed).shuffle(order)
        chosen: dict[str, int] = {}
        for index in order:
            chosen.setdefault(dataset.get_data_info(index)["img_path"], index)
            if len(chosen) == images:
                break
        stems = unique_stems(list(chosen))
        classes = [str(c) for c in dataset.metainfo["classes"]]
        colours_of_classes = dataset.metainfo.get("palette") or ()  # of images with one class: none
        palette = [list(map(int, colour)) for colour in colours_of_classes]
        names: list[str] = []
        check_writable(out_dir, "--out")
        items = chosen.items()
        for path, index in tqdm(items, "images", disable=None, leave=False, dynamic_ncols=True):
            runs = [draw_sample(dataset, index, seed + 1000 * index + n) for n in range(draws)]
            names = [step.name for step in runs[0]]
            shown_classes, colours = _show_sets(runs, classes, palette)
            if steps:
                rows = [_row_of_steps(run, colours, opacity) for run in runs]
            else:
                rows = _rows_of_draws(runs, colours, opacity)
            shown = [step.labels for run in runs for step in (run[0], run[-1])]
            present = {int(i) for labels in shown if labels is not None for i in np.unique(labels)}
            width = max(map(len, rows)) * (_EDGE + _GAP) - _GAP
            key = legend(shown_classes, colours, present, width) if present else None
            save_image(_sheet(Path(path).name, rows, key), Path(out_dir) / f"{stems[path]}.png")
    return {"images": len(chosen), "out": os.fspath(out_dir), "pipeline": names}


def _show_sets(
    runs: Sequence[Sequence[Step]], classes: list[str], palette: list[list[int]]
) -> tuple[list[str], list[list[int]]]:
    """Names and colours for the labels of a sheet; of classes that overlap, of their sets."""
    steps = [step for run in runs for step in run if step.planes and step.labels is not None]
    if not steps:
        return classes, palette
    bits = [step.labels for step in steps if step.labels is not None]
    found, names, colours = index_sets(bits, classes, palette)
    for step, labels in zip(steps, found, strict=True):
        step.labels = labels
    return names, colours


def _show_bands(dataset_cfg: Any, bands: list[int], key: str) -> None:
    """Let the loaders of a data set's config, which is changed, show these bands."""
    loaders = [
        step
        for _, steps in pipelines(dataset_cfg)
        for step in steps
        if step_name(step) == "LoadBands"
    ]
    if not loaders:
        message = f"is for images that LoadBands loads, and config key {key}.pipeline has none"
        raise UserError("argument", "--bands", message)
    for step in loaders:
        step["picture"] = bands


def _row_of_steps(
    run: Sequence[Step], palette: Sequence[Sequence[int]], opacity: float
) -> list[_Cell]:
    """The image after each step of a run of the pipeline."""
    texts = [run[0].text, *(f"{step.name}: {step.text}" for step in run[1:])]
    return [(text, s.coloured(palette, opacity)) for text, s in zip(texts, run, strict=True)]


def _rows_of_draws(
    runs: Sequence[Sequence[Step]], palette: Sequence[Sequence[int]], opacity: float
) -> list[list[_Cell]]:
    """The image and the result of each run, each beside its labels; two of these in a row."""
    cells: list[list[_Cell]] = []
    results = [("as it is: ", runs[0][0]), *((f"{n}: ", r[-1]) for n, r in enumerate(runs, 1))]
    for label, step in results:
        cells.append([(label + step.text, step.image)])
        if step.labels is not None:
            cells[-1].append(("its labels", step.coloured(palette, opacity)))
    return [[cell for pair in cells[i : i + 2] for cell in pair] for i in range(0, len(cells), 2)]


def _sheet(
    title: str, rows: Sequence[Sequence[_Cell]], key: NDArray[np.uint8] | None
) -> Image.Image:
    """Rows of pictures with a line of text above each; a legend below."""
    font, bold = ImageFont.load_default(13), ImageFont.load_default(17)
    scaled = [[(text, _scaled(pixels)) for text, pixels in row] for row in rows]
    width = 2 * _MARGIN + max(map(len, scaled)) * (_EDGE + _GAP) - _GAP
    heights = [_LINE + max(p.height for _, p in row) + _GAP for row in scaled]
    below = 0 if key is None else key.shape[0]
    sheet = Image.new("RGB", (width, 40 + sum(heights) + below + _MARGIN), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 20), title, font=bold, fill=(32, 33, 36), anchor="lm")
    top = 40
    for row, height in zip(scaled, heights, strict=True):
        for n, (text, picture) in enumerate(row):
            left = _MARGIN + n * (_EDGE + _GAP)
            draw.text((left, top + _LINE / 2), text, font=font, fill=(95, 99, 104), anchor="lm")
            sheet.paste(picture, (left, top + _LINE))
        top += height
    if key is not None:
        sheet.paste(Image.fromarray(key), (_MARGIN, top))
    return sheet


def _scaled(pixels: NDArray[np.uint8]) -> Image.Image:
    height, width = pixels.shape[:2]
    factor = _EDGE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
