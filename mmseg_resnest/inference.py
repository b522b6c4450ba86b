# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Segmenting images with a trained model, from Python.

from mmseg_resnest.inference import load_segmentor

model = load_segmentor("configs/fcn_resnest14_camvid.py", "work_dirs/.../best.pth")
result = model("street.jpg")
result.labels       # (H, W) class indices
result.overlay()    # a PIL image
result.save("street.png")
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from .engine.checkpoint import load_weights
from .engine.config import load_config, require
from .engine.outputs import read_rgb, save_image
from .engine.preflight import check_checkpoint, check_device
from .engine.runner import build_model, predict_labels_only
from .errors import UserError
from .evaluation import default_palette, overlay, palette_image
from .registry import DATASETS
from .weights import find

__all__ = ["ImageInput", "Segmentation", "Segmentor", "load_segmentor", "predict_image"]

ImageInput = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
"""A path, a PIL image, or an array (H, W), (H, W, 3) or (H, W, 4): grey, RGB, RGB and alpha."""


@dataclass(frozen=True)
class Segmentation:
    """The segmentation of one image.

    Attributes:
        labels: (H, W) class indices, uint8 (uint16 with more than 255 classes), at the size of
            the image.
        image: (H, W, 3) the image, RGB, uint8.
        classes: Names of the classes, by index.
        palette: ``[r, g, b]`` in 0..255 for each class.
        path: Where the image came from, if from a file.
    """

    labels: NDArray[np.integer]
    image: NDArray[np.uint8]
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]
    path: str | None = None

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The image under the colours of its classes.

        Args:
            opacity: Weight of the colours, 0 (the image alone) to 1 (the colours alone).

        Raises:
            UserError: ``opacity`` is outside [0, 1].
        """
        return Image.fromarray(overlay(self.image, self.labels, self.palette, opacity))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the label map as a palette PNG: its pixels are the class indices.

        Args:
            path: The file, ``.png``; its folder is made.

        Returns:
            The path.

        Raises:
            UserError: The name does not end in ``.png``, or the file cannot be written.
        """
        if Path(path).suffix.lower() != ".png":
            raise UserError(f"{path}: a label map is written as .png, which changes no value")
        return save_image(palette_image(self.labels, self.palette), path)


class Segmentor:
    """A model ready to segment images: ``model(image)`` returns a :class:`Segmentation`.

    Made by :func:`load_segmentor`. Images are prepared as the config's test pipeline prepares
    those of the data set.

    Attributes:
        model: The network, in evaluation mode.
        cfg: Its config.
        classes: Names of the classes.
        palette: ``[r, g, b]`` in 0..255 for each class.
        device: Where it computes.
    """

    def __init__(self, model: nn.Module, cfg: Config, device: torch.device) -> None:
        self.model = model.to(device)
        self.model.eval()
        predict_labels_only(model)
        self.cfg = cfg
        self.device = device
        self.classes, self.palette = _classes(cfg, model)
        self._pipeline = _image_pipeline(cfg)

    def __call__(self, image: ImageInput) -> Segmentation:
        """Segment one image; see :func:`predict_image`."""
        return predict_image(self, image)


def load_segmentor(
    config: str | os.PathLike[str] | Config,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
) -> Segmentor:
    """Load a model to segment images with.

    Args:
        config: A config file, or a config that was loaded; or, alone, the name of a published
            segmentation model (``python tools/weights.py list``), for its config and its weights.
        checkpoint: Weights of the whole model, in any known layout: a path, an address, or a name
            of the catalogue. None leaves the weights untrained, which is of use only to measure
            speed.
        device: E.g. ``cpu`` or ``cuda:1``; None is the GPU if there is one.

    Returns:
        The model; call it with an image.

    Raises:
        UserError: The config, the checkpoint or the device is missing or does not fit.
    """
    chosen = check_device(device)
    if isinstance(config, str) and checkpoint is None and not Path(config).suffix:
        config, checkpoint = _published(config)
    cfg = config if isinstance(config, Config) else load_config(config)
    require(cfg, ("model", "test_dataloader"), "segmenting images")
    if checkpoint is not None:
        check_checkpoint(checkpoint, "checkpoint")
    with _scope(cfg):
        model = build_model(cfg)
        if checkpoint is not None:
            load_weights(model, checkpoint)
        return Segmentor(model, cfg, chosen)


def _published(name: str) -> tuple[Path, str]:
    """The config of a published model, and the name of its weights."""
    entry = find(name)
    if entry.config is None:
        raise UserError(
            f"{name}: an ImageNet backbone without a head, which cannot segment; train from it "
            f"with init_cfg=dict(type='Pretrained', checkpoint={name!r})"
        )
    config = Path(__file__).resolve().parents[1] / entry.config
    if not config.is_file():
        raise UserError(
            f"{name}: its config {entry.config} is not installed with the package; give the path "
            "of it in a clone of the repository, and the name as the checkpoint"
        )
    return config, name


def predict_image(model: Segmentor, image: ImageInput) -> Segmentation:
    """Segment one image.

    Args:
        model: What :func:`load_segmentor` returned.
        image: A path, a PIL image or an RGB array of uint8, of any size.

    Returns:
        The label map at the image's own size, with what is needed to show it.

    Raises:
        UserError: The image cannot be read, or is none.
    """
    pixels, path = _pixels(image)
    height, width = pixels.shape[:2]
    sample = {
        # The stack reads images as BGR; the data preprocessor turns them as training did.
        "img": np.ascontiguousarray(pixels[:, :, ::-1]),
        "img_shape": (height, width),
        "ori_shape": (height, width),
        "img_path": path,
    }
    with _scope(model.cfg), torch.inference_mode():
        data = pseudo_collate([model._pipeline(sample)])
        output = cast(Any, model.model).test_step(data)[0]
    kind = np.uint8 if len(model.classes) <= 255 else np.uint16
    labels = output.pred_sem_seg.data[0].cpu().numpy().astype(kind)
    return Segmentation(labels, pixels, model.classes, model.palette, path)


def _scope(cfg: Config) -> Any:
    return DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmseg"))


def _pixels(image: ImageInput) -> tuple[NDArray[np.uint8], str | None]:
    """The image as (H, W, 3) RGB of uint8, and its path if it has one."""
    if isinstance(image, str | os.PathLike):
        return read_rgb(image), os.fspath(image)
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB")).copy(), None
    if not isinstance(image, np.ndarray):
        raise UserError(f"an image is a path, a PIL image or an array, not {type(image).__name__}")
    if image.dtype != np.uint8:
        raise UserError(f"an image array holds uint8 values 0..255, not {image.dtype}")
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] not in (3, 4) or not image.size:
        raise UserError(
            f"an image array has shape (H, W), (H, W, 3) or (H, W, 4), not {image.shape}"
        )
    return np.ascontiguousarray(image[:, :, :3]), None


def _image_pipeline(cfg: Config) -> Compose:
    """The config's test pipeline without the steps that read the image and its labels."""
    dataset = cfg.test_dataloader.dataset
    while "pipeline" not in dataset and "dataset" in dataset:
        dataset = dataset.dataset
    steps = copy.deepcopy(list(dataset.get("pipeline", [])))
    names = [
        step["type"] if isinstance(step["type"], str) else step["type"].__name__ for step in steps
    ]
    kept = [
        step
        for step, name in zip(steps, names, strict=True)
        if not name.split(".")[-1].startswith(("LoadImageFrom", "LoadAnnotations"))
    ]
    if "PackSegInputs" not in [name.split(".")[-1] for name in names]:
        raise UserError(
            f"{cfg.filename}: the test pipeline does not end in PackSegInputs, so its output is no "
            "input of a segmentor"
        )
    return Compose(kept)


def _classes(cfg: Config, model: nn.Module) -> tuple[list[str], list[list[int]]]:
    """Names and colours of the classes, from the config's data set, or made up."""
    dataset = cfg.test_dataloader.dataset
    while "dataset" in dataset:
        dataset = dataset.dataset
    kind = dataset["type"]
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    info = {**getattr(kind, "METAINFO", {}), **(dataset.get("metainfo") or {})}
    count = int(cast(Any, model).decode_head.num_classes)
    classes = [str(name) for name in info.get("classes") or ()]
    if len(classes) != count:
        classes = [f"class {i}" for i in range(count)]
    palette = [list(map(int, colour)) for colour in info.get("palette") or ()]
    if len(palette) != count:
        palette = default_palette(count)
    return classes, palette
