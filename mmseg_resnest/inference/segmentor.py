# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A model ready to segment images: loading it, batches, tiles of large images."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from numpy.typing import NDArray
from torch import Tensor, nn

from .._stack import normalisation
from ..datasets import leaf_datasets
from ..datasets.channels import Channels
from ..datasets.label_map import dataset_metainfo
from ..datasets.reader import ImageInput, ImageReader, LoadedImage
from ..engine.checkpoint import load_weights
from ..engine.config import require, require_segmentation
from ..engine.facts import flatten
from ..engine.model import build_model
from ..engine.preflight import check_checkpoint, check_device
from ..errors import UserError
from ..evaluation import default_palette
from ..io.bit_planes import bits_type, pack
from ..io.cancel import raise_if_cancelled
from ..io.up_to_date import fingerprint
from ..models import (
    EncoderDecoder,
    fold_for_inference,
    input_channels,
    overlaps,
    probabilities,
    thresholds_of,
)
from ..registry import building
from ..runtimes import Engine
from ..version import __version__
from ..weights.hashes import tensor_digests
from .engine import preparing
from .faults import NOT_OF_AN_IMAGE, image_error
from .images import find_images
from .result import MultilabelSegmentation, ScoreBands, Segmentation
from .tiles import Tiling, tiled

__all__ = ["BATCH_PIXELS", "Segmentor", "load_config_model"]

#: The most pixels of the images that go through the network together.
BATCH_PIXELS = 1 << 20
#: Images of more pixels are segmented in tiles.
TILE_ABOVE = 1 << 24
#: Edge of a tile, in pixels.
TILE = 1024
#: From this many images on it is worth folding the network, which takes as long as some of them.
FOLD_FROM = 4
_LOOK_AHEAD = 4  # batches that are read ahead, to find images of equal size


@dataclass
class _Prepared:
    """An image on its way into the network."""

    image: LoadedImage
    data: dict[str, Any]

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width of the network's input."""
        return tuple(self.data["inputs"].shape[1:])


class Segmentor:
    """A model ready to segment images: ``model(image)`` returns a :class:`Segmentation`.

    Made by :func:`load_segmentor`. Images are read and prepared as the config's test pipeline reads
    and prepares those of the data set. Several threads may call one model at the same time.

    Attributes:
        model: The network, in evaluation mode.
        cfg: Its config.
        classes: Names of the classes.
        palette: ``[r, g, b]`` in 0..255 for each class.
        device: Where it computes.
        reader: How it reads images.
        channels: Of the network's input; None where its parts do not tell.
        multilabel: Whether its classes may overlap; then it returns a
            :class:`MultilabelSegmentation`.
        batch_pixels: Images of equal size go through the network together, as long as they have
            no more pixels than this in all: the bound on memory.
        files: Files that hold parts of the network that its state dict lacks.
        engine: What computes the network; None: the model itself, in float32.
    """

    files: tuple[Path, ...] = ()
    engine: Engine | None = None

    def __init__(
        self,
        model: nn.Module,
        cfg: Config,
        device: torch.device,
        batch_pixels: int = BATCH_PIXELS,
    ) -> None:
        if batch_pixels < 1:
            raise UserError("argument", "batch_pixels", f"must be at least 1, not {batch_pixels}")
        self.model = model.to(device).eval()
        self.cfg = cfg
        self.device = device
        self.batch_pixels = batch_pixels
        with building(cfg.get("default_scope", "mmseg")):
            self.classes, self.palette = _classes(cfg, model)
            self.reader = ImageReader.of(cfg.test_dataloader.dataset, "test_dataloader.dataset")
        self.channels = input_channels(model)
        self.multilabel = overlaps(model)
        means = normalisation(getattr(model, "data_preprocessor", None))
        self._accepts = Channels(None if means is None else means[0].numel(), self.channels)
        self._check_channels()

    def _check_channels(self) -> None:
        """Refuse a loader whose images the network cannot take."""
        decoding = self.reader.decoding
        if decoding is None or not decoding.eight_bit:
            return  # as many as are in a file
        pixels = np.zeros((64, 64, 3) if decoding.colours else (64, 64), np.uint8)
        try:
            found = len(self.reader.prepare(self.reader.loaded(pixels))["inputs"])
        except UserError:  # of a step that needs more than pixels
            return
        conflict = self._accepts.conflict(found, "test_dataloader")
        if conflict is not None:
            raise conflict

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all that decides the labels: weights, config, modules, classes, version.

        It is computed when it is first asked for, and kept.
        """
        weights = tensor_digests(self.model.state_dict())
        imports = (self.cfg.get("custom_imports") or {}).get("imports") or ()
        names = [imports] if isinstance(imports, str) else imports
        modules = [getattr(sys.modules.get(name), "__file__", None) or "" for name in names]
        files = [*self.files, *(Path(file) for file in modules if os.path.isfile(file))]
        facts = dict(flatten(dict(self.cfg.items())))
        parts = [__version__, weights, files, facts, self.classes, self.palette]
        if self.engine is not None and self.engine.precision != "float32":
            parts.append(self.engine.precision)
        return fingerprint(*parts)

    def fold(self) -> Segmentor:
        """Fold the network for speed if it computes on a CPU; returns the same model.

        See :func:`~mmseg_resnest.models.fold_for_inference`: its parameters have other names
        afterwards, so it can be neither saved nor exported. Where another engine computes the
        network nothing is done.
        """
        if self.device.type == "cpu" and (self.engine is None or self.engine.folds):
            fold_for_inference(self.model)
        return self

    @overload
    def __call__(
        self, image: Sequence[ImageInput], *, tile: int | None = None
    ) -> list[Segmentation]: ...

    @overload
    def __call__(self, image: ImageInput, *, tile: int | None = None) -> Any: ...

    def __call__(self, image: Any, *, tile: int | None = None) -> Any:
        """Segment an image, or all images of a list or a folder.

        Args:
            image: A path, an address (http, https), the bytes of an image file, a file that is open
                for reading bytes, a PIL image, an array (H, W, 3) or a tensor (C, H, W), see
                :data:`ImageInput`: arrays and tensors are RGB, so turn those of OpenCV by
                ``array[:, :, ::-1]``; or a list of them, a tensor (N, C, H, W), or a folder,
                whose images are taken with those of its subfolders, by name.
            tile: Edge of the tiles that a larger image is cut into; 0 never cuts; None cuts
                images of more than 16.8 million pixels into tiles of 1024. Tiles overlap by an
                eighth and are blended; they keep the image's own resolution, whatever the test
                pipeline resizes images to.

        Returns:
            The result for one image; for several, a list in their order.

        Raises:
            UserError: An image cannot be read or decoded.
        """
        if isinstance(image, str | os.PathLike) and os.path.isdir(image):
            return list(
                self.stream(find_images(image, suffixes=self.reader.suffixes)[0], tile=tile)
            )
        if isinstance(image, list | tuple):
            return list(self.stream(image, tile=tile))
        if isinstance(image, Tensor) and image.ndim == 4:
            return list(self.stream(self.reader.batch(image), tile=tile))
        return next(self.stream([image], tile=tile))

    def stream(
        self, images: Iterable[ImageInput], *, tile: int | None = None
    ) -> Iterator[Segmentation]:
        """Segment any number of images, a few at a time, and yield the results in their order.

        Images are read as they are needed; ``tile`` as in :meth:`__call__`. The first image that
        fails ends the stream with its UserError.
        """
        for result in self.attempts(images, tile=tile):
            if isinstance(result, UserError):
                raise result
            yield result

    def attempts(
        self, images: Iterable[ImageInput], *, tile: int | None = None
    ) -> Iterator[Segmentation | UserError]:
        """As :meth:`stream`, but an image that fails does not end it.

        Yields for each image its result, or the error of reading it, preparing it or of the
        network. Where the network fails on a batch, each of its images is tried alone.
        """
        self.tiling((1, 1), tile)  # a wrong edge is no fault of an image
        waiting = preparing(self, images, tile)
        while chunk := self._next_chunk(waiting, tile):
            results: dict[int, Segmentation | UserError] = {}
            sizes: dict[tuple[int, ...], list[int]] = {}
            for i, item in enumerate(chunk):
                if isinstance(item, _Prepared):
                    sizes.setdefault(item.size, []).append(i)
                else:
                    results[i] = item
            for (height, width), indices in sizes.items():
                each = max(1, self.batch_pixels // max(1, height * width))
                for batch in (indices[k : k + each] for k in range(0, len(indices), each)):
                    items = [cast(_Prepared, chunk[i]) for i in batch]
                    results.update(zip(batch, self._segmented(items), strict=True))
            yield from (results[i] for i in range(len(chunk)))

    def _next_chunk(
        self, images: Iterator[ImageInput], tile: int | None
    ) -> list[_Prepared | Segmentation | UserError]:
        """The next images, up to some batches of pixels; large ones are segmented in tiles here."""
        chunk: list[_Prepared | Segmentation | UserError] = []
        pixels = 0
        for image in images:
            item = self._ready(image, tile)
            chunk.append(item)
            if isinstance(item, UserError):
                break  # or a long row of them would wait for the next image
            height, width = item.size if isinstance(item, Segmentation) else item.image.size
            pixels += height * width
            if pixels >= _LOOK_AHEAD * self.batch_pixels:
                break
        return chunk

    def _ready(self, image: ImageInput, tile: int | None) -> _Prepared | Segmentation | UserError:
        """An image that is read and prepared; the result of a large one; or what went wrong."""
        name = os.fspath(image) if isinstance(image, str | os.PathLike) else "image"
        what = "reading it failed"
        try:
            loaded = self.reader.read(image)
            tiling = self.tiling(loaded.size, tile)
            if tiling is None:
                what = f"preparing {_pixels(loaded)} failed"
                return _Prepared(loaded, self._prepare(loaded))
            what = f"the network failed on {_pixels(loaded)}"
            labels = np.empty(loaded.size, self.label_type)
            for top, band in self.tiled_labels(_rows_of(loaded.pixels), tiling):
                labels[top : top + len(band)] = band
            return self._result(labels, loaded, tiling.tile)
        except NOT_OF_AN_IMAGE:
            raise
        except Exception as error:
            return image_error(error, name, what)

    def _segmented(self, items: Sequence[_Prepared]) -> list[Segmentation | UserError]:
        """Results of inputs of one size; where they fail together, each is tried alone."""
        try:
            labels = self._labels([item.data for item in items])
            return [
                self._result(label, item.image, 0)
                for item, label in zip(items, labels, strict=True)
            ]
        except NOT_OF_AN_IMAGE:
            raise
        except Exception as error:
            if len(items) == 1:
                what = f"the network failed on {_pixels(items[0].image)}"
                return [image_error(error, items[0].image.path or "image", what)]
        return [result for item in items for result in self._segmented([item])]

    def _result(self, labels: NDArray, image: LoadedImage, tile: int) -> Segmentation:
        scores = partial(self.score_bands, image, tile=tile)
        return self.segmentation(labels, image.picture, image.path, scores)

    def segmentation(
        self,
        labels: NDArray,
        picture: NDArray[np.uint8],
        path: str | None = None,
        scores: ScoreBands | None = None,
    ) -> Segmentation:
        """The result of labels (H, W) that the model gave for a picture (H, W, 3)."""
        kind = MultilabelSegmentation if self.multilabel else Segmentation
        return kind(labels, picture, self.classes, self.palette, path, scores)

    def tiled_labels(
        self,
        read: Callable[[int, int], NDArray[Any]],
        tiling: Tiling,
        advance: Callable[[], object] = lambda: None,
    ) -> Iterator[tuple[int, NDArray]]:
        """The first row, and labels (n, W), of the parts of a large image, from top to bottom.

        ``read`` gives its rows as :attr:`reader` loads them, see :func:`.tiles.tiled`.
        """
        if not self.multilabel:
            yield from tiled(read, self.tile_votes, tiling, advance=advance)
            return
        limits = self._tile_limits()[:, None, None]
        for top, scores in tiled(read, self.tile_votes, tiling, labels=False, advance=advance):
            yield top, pack(scores > limits)

    def _tile_limits(self) -> NDArray[np.float32]:
        """(C,) thresholds of classes that may overlap, for the blended :meth:`tile_votes`."""
        chosen = thresholds_of(cast(Any, self.model).test_cfg, len(self.classes))
        return np.asarray(chosen, np.float32)

    @property
    def label_type(self) -> type[np.integer]:
        """The type of label maps: 255 is kept free in uint8."""
        if self.multilabel:
            return bits_type(len(self.classes))
        return np.uint8 if len(self.classes) <= 255 else np.uint16

    def tiling(self, size: Sequence[int], tile: int | None = None) -> Tiling | None:
        """How an image of a height and width is cut into tiles; None if it is not.

        Raises:
            UserError: Tiles would be smaller than 64 pixels.
        """
        height, width = size[0], size[1]
        if tile == 0 or (tile is None and height * width <= TILE_ABOVE):
            return None
        edge = TILE if tile is None else tile
        if edge < 64:
            raise UserError("argument", "tile", f"must be 0 or at least 64 pixels, not {edge}")
        if max(height, width) <= edge:
            return None
        return Tiling(height, width, edge, edge // 8)

    def _prepare(self, image: ImageInput, tile: bool = False) -> dict[str, Any]:
        loaded = self.reader.read(image)
        data = self.reader.prepare(loaded, tile)
        conflict = self._accepts.conflict(data["inputs"].shape[0], "test_dataloader")
        if conflict is not None:
            raise UserError("image", loaded.path or "an image", conflict.text)
        return data

    def network_inputs(self, image: ImageInput, tile: bool = False) -> Tensor:
        """An image, or a tile of one, as the network gets it, (1, C, H, W)."""
        batch = pseudo_collate([self._prepare(image, tile)])
        return cast(Any, self.model).data_preprocessor(batch, False)["inputs"]

    def _run(self, samples: Sequence[dict[str, Any]], scores: bool) -> list[Any]:
        """The network's outputs for inputs of one size."""
        raise_if_cancelled()
        model = cast(Any, self.model)
        # No default scope is set here: all threads share it.
        with torch.inference_mode():
            batch = pseudo_collate(list(samples))
            if scores or not isinstance(model, EncoderDecoder):
                return model.test_step(batch)
            return model.predict_labels(**model.data_preprocessor(batch, False))

    def _labels(self, samples: Sequence[dict[str, Any]]) -> list[NDArray[np.integer]]:
        if self.multilabel:
            outputs = self._run(samples, scores=False)
            return [pack(output.pred_sem_seg.data.cpu().numpy()) for output in outputs]
        return [
            output.pred_sem_seg.data[0].cpu().numpy().astype(self.label_type)
            for output in self._run(samples, scores=False)
        ]

    def _probabilities(self, samples: Sequence[dict[str, Any]]) -> Iterator[Tensor]:
        """(C, H, W) probabilities of each image; two classes with a model of one output."""
        for output in self._run(samples, scores=True):
            yield probabilities(self.model, output.seg_logits.data)

    def _tile_scores(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        sample = self._prepare(self.reader.loaded(pixels), tile=True)
        return next(self._probabilities([sample])).cpu().numpy()

    def tile_votes(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """(C, h, w) scores of a tile, as :attr:`reader` loads it; the highest is the label.

        With classes that may overlap they are probabilities, to be compared with thresholds.
        """
        scores = self._tile_scores(pixels)
        if self.multilabel:
            return scores
        head = cast(Any, self.model).decode_head
        if head.out_channels == 1:  # the stack says class 1 above the head's threshold
            scores[0] = head.threshold
        return scores

    def score_bands(
        self, image: ImageInput, classes: Sequence[int] | None = None, tile: int | None = None
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The first row, and (K, n, W) float32 probabilities of K classes, of parts of an image.

        From top to bottom, each row once; an image that is not cut into tiles is one part. None
        are all classes; ``tile`` as in :meth:`__call__`.

        Raises:
            UserError: The image cannot be read, or the model gives labels only.
        """
        loaded = self.reader.read(image)
        tiling = self.tiling(loaded.size, tile)
        if tiling is None:
            scores = next(self._probabilities([self._prepare(loaded)]))
            yield 0, scores[slice(None) if classes is None else list(classes)].cpu().numpy()
            return
        yield from self.tiled_scores(_rows_of(loaded.pixels), tiling, classes)

    def tiled_scores(
        self,
        read: Callable[[int, int], NDArray[Any]],
        tiling: Tiling,
        classes: Sequence[int] | None = None,
        advance: Callable[[], object] = lambda: None,
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """As :meth:`score_bands`, of a large image whose rows ``read`` gives as the reader does."""
        chosen = slice(None) if classes is None else list(classes)
        yield from tiled(
            read, lambda pixels: self._tile_scores(pixels)[chosen], tiling, False, advance
        )

    def require_scores(self) -> None:
        """Raise UserError if the model gives labels only."""


def _pixels(image: LoadedImage) -> str:
    return f"its {image.size[1]}x{image.size[0]} pixels"


def _rows_of(array: NDArray[Any]) -> Callable[[int, int], NDArray[Any]]:
    return lambda top, bottom: array[top:bottom]


def load_config_model(
    cfg: Config,
    checkpoint: str | os.PathLike[str] | None,
    device: str | torch.device | None,
    batch_pixels: int = BATCH_PIXELS,
    check: Callable[[Config], None] = lambda cfg: None,
    weights: Mapping[str, Tensor] | None = None,
) -> Segmentor:
    """Build the model of a loaded config; arguments and errors as :func:`load_segmentor` has them.

    ``check`` is called with the config before memory is used for the model; ``weights`` is what
    ``checkpoint`` holds, where that has been read.
    """
    chosen = check_device(device)
    require(cfg, ("model", "test_dataloader"), "segmenting images")
    require_segmentation(cfg, "this")
    if checkpoint is not None:
        check_checkpoint(checkpoint, "checkpoint")
    check(cfg)
    model = build_model(cfg)
    if checkpoint is not None:
        load_weights(model, checkpoint if weights is None else weights, name=checkpoint)
    return Segmentor(model, cfg, chosen, batch_pixels)


def _classes(cfg: Config, model: nn.Module) -> tuple[list[str], list[list[int]]]:
    """Names and colours of the classes: the data set's, or made up where they do not fit."""
    info = dataset_metainfo(next(leaf_datasets(cfg.test_dataloader.dataset)))
    count = int(cast(Any, model).decode_head.num_classes)
    classes = [str(name) for name in info.get("classes") or ()]
    palette = [list(map(int, colour)) for colour in info.get("palette") or ()]
    if len(classes) != count:
        classes = [f"class {i}" for i in range(count)]
    if len(palette) != count:
        palette = default_palette(count)
    return classes, palette
