# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The published multi-scale, flip and grid evaluation, in memory that does not grow with scales.

The image is scored at several scales in square windows, each also mirrored; every scale's scores
are resized to the image and added up: the protocol of the authors' PyTorch-Encoding repository, on
which the published mIoU of the ResNeSt segmentation models rests. Only the order of sums differs:

- The map of a scale is never held whole. Its rows are resized and added to the image's scores band
  by band, as soon as the row of windows below them has been scored.
- Windows of one scale run through the network as batches.
- Logits at the head's resolution are added to those of the mirror image there, and only the part of
  a window that shows the image is resized.

The peak is the image's scores, one crop-high band of the largest scale and the logits of one batch
of windows.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..errors import UserError, check_value
from ..kernels.resampling import Crop, Resampling, Resize, Step, add_resized
from ..registry import MODELS
from .multilabel import overlaps

LogitsFunction = Callable[[Tensor], Tensor]
"""Windows (B, 3, crop, crop) to their logits (B, C, h, w), to be resized to the windows' size."""

# Bytes of averaged scores that are resized at a time. Small next to a band of windows, large
# enough that the calls cost nothing.
_RESIZE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class MultiScaleGrid:
    """Settings of the evaluation; the defaults are the published ones (but for Cityscapes' scales).

    Attributes:
        scales: factors of ``base_size``.
        flip: whether every window is also scored mirrored.
        base_size: long edge of the image at scale 1, in pixels.
        crop_size: edge of the square windows, in pixels. They are ``int(crop_size * 2 / 3)`` apart.
        window_batch_size: windows of one scale that run through the network at once; changes speed
            and memory only.
    """

    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    flip: bool = True
    base_size: int = 520
    crop_size: int = 480
    window_batch_size: int = 1

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """Names of the settings, in order."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any], where: str) -> MultiScaleGrid:
        """Checks the values of a config, whose dotted name ``where`` messages give.

        ``mode`` and ``keep_scores`` are passed over; a UserError names what is wrong.
        """
        known = cls.keys()
        for key in cfg:
            if key not in ("mode", "keep_scores", *known):
                raise UserError(
                    "config-key",
                    f"config key {where}.{key}",
                    f"mode 'multi_scale_grid' does not read it; remove it, or use one of "
                    f"{', '.join(known)}",
                )
        settings = {key: cfg[key] for key in known if key in cfg}
        if "scales" in settings:
            scales = settings["scales"]
            check_value(
                f"{where}.scales", scales, "a list of positive numbers, e.g. (0.75, 1.0)",
                isinstance(scales, Sequence) and not isinstance(scales, str) and len(scales) > 0
                and all(_is_number(scale) and 0 < scale < math.inf for scale in scales),
            )  # fmt: skip
            settings["scales"] = tuple(float(scale) for scale in scales)
        flip = settings.get("flip", True)
        check_value(f"{where}.flip", flip, "True or False", isinstance(flip, bool))
        # A crop of one pixel would have windows no pixel apart.
        for key, least in (("base_size", 1), ("crop_size", 2), ("window_batch_size", 1)):
            value = settings.get(key, least)
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            good = whole and int(value) >= least
            check_value(f"{where}.{key}", value, f"a whole number of at least {least}", good)
            if key in settings:
                settings[key] = int(value)
        return cls(**settings)

    @property
    def stride(self) -> int:
        """Pixels between the starts of neighbouring windows."""
        return 2 * self.crop_size // 3

    def scaled_size(self, height: int, width: int, scale: float) -> tuple[int, int]:
        """Height and width, in pixels, at which an image is scored at ``scale``.

        The short edge is at least 1: that of a very long strip would round to 0.
        """
        long_edge = math.ceil(self.base_size * scale)
        if height > width:
            return long_edge, max(int(1.0 * width * long_edge / height + 0.5), 1)
        return max(int(1.0 * height * long_edge / width + 0.5), 1), long_edge


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


@torch.no_grad()
def add_multi_scale_scores(
    scores: Tensor,
    image: Tensor,
    logits_function: LogitsFunction,
    settings: MultiScaleGrid,
    black: Tensor,
    align_corners: bool = True,
) -> None:
    """Adds the multi-scale scores of one image to ``scores``, in place and without gradients.

    For every scale the image is resized (bilinear, align_corners=True) so that its long edge is
    ``ceil(base_size * scale)``, and cut into windows that are padded right and bottom with black.
    A window scores the exponential of its logits plus, with ``flip``, those of its mirror image.
    Overlapping windows are averaged, and the scale's scores are resized to the image and added.

    Source: multi-scale evaluation of PyTorch-Encoding (the ResNeSt authors' segmentation code).

    Args:
        scores: (C, H, W), float32 or float64.
        image: (3, H, W), normalised, at its own size.
        logits_function: the network.
        settings: of the evaluation.
        black: (3, 1, 1), the normalised value of a black pixel.
        align_corners: how logits of another size than the window's are resized to it.
    """
    height, width = image.shape[1:]
    for scale in settings.scales:
        scaled_size = settings.scaled_size(height, width, scale)
        scaled = F.interpolate(image[None], scaled_size, mode="bilinear", align_corners=True)[0]
        rows = _scored_rows(scaled, logits_function, settings, black, scores, align_corners)
        _add_resized_rows(scores, rows, scaled_size[0])
    # amax keeps NaN and allocates nothing, unlike isfinite over the whole map.
    if not bool(torch.isfinite(scores.amax())):
        print_log(
            "multi-scale evaluation: the scores of an image overflowed (the evaluation takes the "
            "exponential of summed logits, so logits near 44 or more do that): its labels are not "
            "to be trusted. Has the training diverged?",
            logger="current",
            level=logging.WARNING,
        )


def window_logits(logits_function: LogitsFunction, windows: Tensor, flip: bool) -> Tensor:
    """Logits (B, C, h, w) of ``windows`` plus, if ``flip``, those of their mirror images.

    A bilinear resize and a mirror image commute, so logits that are yet to be resized are summed
    before. Half precision logits are summed in float32, because the exponential of the sum leaves
    the range of float16 at 11.
    """
    logits = logits_function(windows)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if flip:
        mirrored = logits_function(windows.flip(3))
        # One window at a time: flip copies.
        for sums, mirrored_logits in zip(logits, mirrored, strict=True):
            sums += mirrored_logits.flip(2)
    return logits


def _window_starts(length: int, settings: MultiScaleGrid) -> list[int]:
    """Where windows start along an edge: ceil((length - crop) / stride) + 1 of them, at least 1."""
    beyond_first = max(length - settings.crop_size, 0)
    return list(range(0, beyond_first + settings.stride, settings.stride))


def _window_hits(length: int, starts: list[int], crop: int, like: Tensor) -> Tensor:
    """How many windows cover each pixel along an edge, (length,)."""
    hits = like.new_zeros(length)
    for start in starts:
        hits[start : start + crop] += 1
    return hits


def _scored_rows(
    scaled: Tensor,
    logits_function: LogitsFunction,
    settings: MultiScaleGrid,
    black: Tensor,
    like: Tensor,
    align_corners: bool,
) -> Iterator[Tensor]:
    """Scores of one scaled image (3, h, w), in pieces (C, rows, w) from top to bottom.

    A piece is valid until the next one is asked for. Padding an edge below the crop size and then
    cutting windows from it, as published, is the same as cutting first and padding the windows:
    beyond the scaled image there is black either way, and it is cropped away from the result.
    """
    crop, stride = settings.crop_size, settings.stride
    height, width = scaled.shape[1:]
    tops, lefts = _window_starts(height, settings), _window_starts(width, settings)
    hits_down = _window_hits(height, tops, crop, like)
    hits_across = _window_hits(width, lefts, crop, like)
    # The pieces are resized across next: count the wider of the two.
    row_bytes = like.shape[0] * max(width, like.shape[2]) * like.element_size()
    piece_rows = max(_RESIZE_BYTES // row_bytes, 1)

    # Sums of the rows [band_top, band_top + crop) within the image.
    band = like.new_zeros(like.shape[0], min(crop, height), width)
    band_top = 0

    def average(rows: int) -> Iterator[Tensor]:
        for first in range(0, rows, piece_rows):
            last = min(first + piece_rows, rows)
            hits = hits_down[band_top + first : band_top + last, None] * hits_across
            yield band[:, first:last] / hits

    places = [(top, left) for top in tops for left in lefts]
    for first in range(0, len(places), settings.window_batch_size):
        batch = places[first : first + settings.window_batch_size]
        windows = black.repeat(len(batch), 1, crop, crop)
        for window, (top, left) in zip(windows, batch, strict=True):
            piece = scaled[:, top : top + crop, left : left + crop]
            window[:, : piece.shape[1], : piece.shape[2]] = piece
        batch_logits = window_logits(logits_function, windows, settings.flip)
        for logits, (top, left) in zip(batch_logits, batch, strict=True):
            if top > band_top:
                yield from average(stride)
                # The rows kept do not overlap their new place: a stride is half a crop or more.
                kept = band.shape[1] - stride
                band[:, :kept] = band[:, stride:]
                band[:, kept:] = 0
                band_top = top
            target = band[:, : height - top, left : left + crop]
            rows, columns = target.shape[1:]
            if logits.shape[1:] == (crop, crop):
                target += logits[:, :rows, :columns].exp()
            else:
                steps: list[Step] = [
                    Resize((crop, crop), align_corners),
                    Crop(0, crop - columns, 0, crop - rows),
                ]
                add_resized(target, logits, steps, exponential=True)
        # Names, and views by their names, would keep this batch while the next is scored.
        del batch_logits, logits
    yield from average(height - band_top)


def _add_resized_rows(scores: Tensor, pieces: Iterator[Tensor], height: int) -> None:
    """Adds a map of ``height`` rows, resized with align_corners=True, to ``scores`` (C, H, W).

    It comes as pieces (C, rows, w) from top to bottom. Rows of the result are made as soon as the
    two rows that they lie between are there.
    """
    resampling = None
    start = 0  # row of the map at which the piece starts
    done = 0  # rows of the result that are finished
    last_row = scores.new_empty(0)  # the row before the piece
    for piece in pieces:
        if resampling is None:
            steps = [Resize((scores.shape[1], scores.shape[2]), align_corners=True)]
            size = (height, piece.shape[2])
            resampling = Resampling(size, steps, scores.dtype, scores.device)
        end = start + piece.shape[1]
        ready = resampling.rows.made_from(end)
        if start:
            piece = torch.cat([last_row, piece], dim=1)
        if ready > done:
            resampling.add(scores, piece, end - piece.shape[1], slice(done, ready))
        done = ready
        last_row = piece[:, -1:].clone()
        start = end


@MODELS.register_module()
class MultiScaleGridTTA(BaseTTAModel):
    """Test-time augmentation that is the published multi-scale evaluation.

    ``tta_model = dict(type='MultiScaleGridTTA', scales=(0.5, ...), ...)`` in a config makes it
    what MMSegmentation's tools run with ``--tta``. Scales, mirroring and windows are made inside
    the segmentor, from one image at its own size: ``tta_pipeline`` loads, and packs, nothing more.

    Args:
        module: the segmentor (``EncoderDecoder`` of this package), built or as a config. Its
            ``test_cfg`` is replaced.
        data_preprocessor: replaces the one of ``module`` when that is a config.
        **settings: attributes of :class:`MultiScaleGrid`; a UserError names one that is wrong.
    """

    def __init__(
        self,
        module: dict | nn.Module,
        data_preprocessor: dict | nn.Module | None = None,
        **settings: Any,
    ) -> None:
        # Before the network is built: that takes seconds.
        MultiScaleGrid.from_config(settings, "tta_model")
        super().__init__(module, data_preprocessor)
        segmentor = self.module.module if is_model_wrapper(self.module) else self.module
        if not hasattr(segmentor, "multi_scale_grid_inference"):
            raise UserError(
                "config-value",
                "config key model.type",
                f"MultiScaleGridTTA cannot evaluate a {type(segmentor).__name__}; use "
                "'mmseg_resnest.EncoderDecoder'",
            )
        if overlaps(segmentor):
            raise UserError(
                "config-conflict",
                "config key tta_model.type",
                "MultiScaleGridTTA adds scores of a softmax; with model.multilabel=True use "
                "SegTTAModel, with TestTimeAug in tta_pipeline",
            )
        segmentor.test_cfg = dict(mode="multi_scale_grid", **settings)

    def test_step(self, data: dict | tuple | list) -> list[BaseDataElement]:
        """Samples with ``pred_sem_seg`` and the summed scores as ``seg_logits``, one an image.

        ``inputs`` are images (3, H, W) as loaded; several versions of one are a UserError.
        """
        inputs = data["inputs"] if isinstance(data, dict) else data[0]
        if not isinstance(inputs, Tensor) and any(not isinstance(item, Tensor) for item in inputs):
            raise UserError(
                "config-value",
                "config key tta_pipeline",
                "MultiScaleGridTTA makes scales and mirror images itself: remove TestTimeAug; "
                "LoadImageFromFile, LoadAnnotations and PackSegInputs remain",
            )
        return self.module.test_step(data)

    def merge_preds(self, data_samples_list: list[list[BaseDataElement]]) -> list[BaseDataElement]:
        """The predictions as they are: they are merged, as scores, before they get here."""
        if any(len(data_samples) != 1 for data_samples in data_samples_list):
            raise UserError(
                "config-value", "config key tta_pipeline", "it must make one version of an image"
            )
        return [data_samples[0] for data_samples in data_samples_list]
