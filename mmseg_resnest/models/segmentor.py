# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""MMSegmentation's encoder-decoder with the published multi-scale evaluation as a test mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder as StockEncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor

from ..errors import UserError
from ..registry import MODELS
from .multi_scale import MultiScaleGrid, add_multi_scale_scores

_MODES = ("whole", "slide", "multi_scale_grid")
_KEYS = ("mode", "stride", *MultiScaleGrid.keys())


def check_test_cfg(test_cfg: Mapping[str, Any]) -> None:
    """Checks ``model.test_cfg`` of a config.

    Keys that another mode reads may stay, except that 'multi_scale_grid' refuses 'stride', which
    a reader would take for its own (its windows are always 2/3 of ``crop_size`` apart).

    Raises:
        UserError: the mode, a key or a value is wrong; the message names ``model.test_cfg.KEY``.
    """
    mode = test_cfg.get("mode", "whole")
    if mode not in _MODES:
        raise UserError(f"config key model.test_cfg.mode must be one of {_MODES}, not {mode!r}")
    for key in test_cfg:
        if key not in _KEYS:
            raise UserError(
                f"config key model.test_cfg.{key} is unknown: remove it (known keys: "
                f"{', '.join(_KEYS)})"
            )
    if mode == "multi_scale_grid":
        MultiScaleGrid.from_config(test_cfg, "model.test_cfg")
    if mode == "slide":
        for key in ("crop_size", "stride"):
            pair = test_cfg.get(key)
            if (
                not isinstance(pair, Sequence)
                or len(pair) != 2
                or not all(isinstance(edge, int) and edge > 0 for edge in pair)
            ):
                raise UserError(
                    f"config key model.test_cfg.{key} must be two positive whole numbers, height "
                    f"and width, in mode 'slide', not {pair!r}"
                )
        if any(s > c for s, c in zip(test_cfg["stride"], test_cfg["crop_size"], strict=True)):
            raise UserError(
                f"config key model.test_cfg.stride {test_cfg['stride']} leaves gaps between "
                f"windows of model.test_cfg.crop_size {test_cfg['crop_size']}: make it smaller"
            )


@MODELS.register_module()
class EncoderDecoder(StockEncoderDecoder):
    """Backbone, optional neck, head and auxiliary heads; see MMSegmentation's class.

    Beside 'whole' and 'slide', ``test_cfg.mode`` can be 'multi_scale_grid', the published
    evaluation, with the keys of :class:`~mmseg_resnest.models.multi_scale.MultiScaleGrid`.

    Parts that the config names without a scope are looked for in this package first also when no
    default scope is set: MMSegmentation has a ResNeSt of its own that computes something else.

    Args:
        *args, **kwargs: those of MMSegmentation's EncoderDecoder. Without ``test_cfg`` the whole
            image is scored at once.

    Raises:
        UserError: ``test_cfg`` is wrong.
    """

    test_cfg: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        unset = DefaultScope.get_current_instance() is None
        with DefaultScope.overwrite_default_scope(MODELS.scope) if unset else nullcontext():
            super().__init__(*args, **kwargs)
        self.test_cfg = ConfigDict(self.test_cfg or {"mode": "whole"})
        check_test_cfg(self.test_cfg)

    def inference(self, inputs: Tensor, batch_img_metas: Sequence[dict]) -> Tensor:
        """Scores of normalised images by ``test_cfg.mode``.

        Args:
            inputs: (N, 3, H, W), normalised.
            batch_img_metas: N mappings with at least ``ori_shape`` and ``img_shape``; they are
                not changed.

        Returns:
            (N, C, H, W): logits, or in mode 'multi_scale_grid' the summed scores.

        Raises:
            UserError: ``test_cfg`` is wrong.
        """
        test_cfg = ConfigDict(self.test_cfg or {})
        test_cfg.setdefault("mode", "whole")
        check_test_cfg(test_cfg)
        # Copies, because the stock sliding windows write their own size into them.
        metas = [dict(meta) for meta in batch_img_metas]
        if test_cfg.mode == "multi_scale_grid":
            return self.multi_scale_grid_inference(inputs, metas)
        self.test_cfg = test_cfg
        return super().inference(inputs, metas)

    @torch.no_grad()
    def multi_scale_grid_inference(self, inputs: Tensor, batch_img_metas: Sequence[dict]) -> Tensor:
        """Summed scores of the published multi-scale evaluation, image by image.

        What the data preprocessor has padded is left out of the evaluation and scores 0.

        Args:
            inputs: (N, 3, H, W), normalised.
            batch_img_metas: N mappings; only the padding is read.

        Returns:
            (N, C, H, W), float32 (float64 for float64 images), without gradients.

        Raises:
            UserError: ``test_cfg`` is wrong, or the head has a single output.
        """
        settings = MultiScaleGrid.from_config(self.test_cfg or {}, "model.test_cfg")
        if self.out_channels == 1:
            raise UserError(
                "config key model.test_cfg.mode: 'multi_scale_grid' compares the scores of classes "
                "and model.decode_head.out_channels is 1: use out_channels=2, or mode='whole'"
            )
        count, _, height, width = inputs.shape
        scores = torch.zeros(
            (count, self.out_channels, height, width),
            dtype=torch.promote_types(inputs.dtype, torch.float32),
            device=inputs.device,
        )
        black = self._black(inputs)
        for image, score, meta in zip(inputs, scores, batch_img_metas, strict=True):
            left, right, top, bottom = _padding(meta)
            inner = (slice(None), slice(top, height - bottom), slice(left, width - right))
            add_multi_scale_scores(score[inner], image[inner], self._logits, settings, black)
        return scores

    def _logits(self, windows: Tensor) -> Tensor:
        """Logits (B, C, h, w) of normalised images (B, 3, h, w)."""
        size = windows.shape[2:]
        meta = {"ori_shape": size, "img_shape": size, "pad_shape": size}
        return self.encode_decode(windows, [dict(meta) for _ in windows])

    def _black(self, inputs: Tensor) -> Tensor:
        """The value, (3, 1, 1), that the data preprocessor gives a black pixel."""
        black = inputs.new_zeros(inputs.shape[1], 1, 1)
        if getattr(self.data_preprocessor, "_enable_normalize", False):
            black = (black - self.data_preprocessor.mean) / self.data_preprocessor.std
        return black.to(inputs)

    def postprocess_result(
        self, seg_logits: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Puts scores and labels into data samples, at the images' original sizes.

        Scores that have that size already are taken as they are: the stock code copies them, and
        the scores of a 2048x1024 image in 150 classes are 1.2 GiB.

        Args:
            seg_logits: (N, C, H, W).
            data_samples: N samples with metainfo; None makes new ones of the scores' size.

        Returns:
            N samples with ``seg_logits`` (C, h, w) and ``pred_sem_seg`` (1, h, w), int64.
        """
        if (
            self.out_channels == 1
            or data_samples is None
            or not all(_is_original(s.metainfo, seg_logits.shape[2:]) for s in data_samples)
        ):
            return super().postprocess_result(seg_logits, data_samples)
        for scores, data_sample in zip(seg_logits, data_samples, strict=True):
            labels = scores.argmax(dim=0, keepdim=True)
            data_sample.set_data(
                {"seg_logits": PixelData(data=scores), "pred_sem_seg": PixelData(data=labels)}
            )
        return data_samples


def _padding(meta: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Pixels that the data preprocessor added left, right, top and bottom."""
    left, right, top, bottom = meta.get("img_padding_size", meta.get("padding_size", (0, 0, 0, 0)))
    return left, right, top, bottom


def _is_original(meta: Mapping[str, Any], size: Sequence[int]) -> bool:
    """Whether scores of ``size`` (H, W) need no cropping, mirroring or resizing."""
    return (
        not any(_padding(meta))
        and not meta.get("flip")
        and tuple(meta["ori_shape"][:2]) == tuple(size)
    )
