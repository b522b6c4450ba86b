# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""MMSegmentation's encoder-decoder with the published multi-scale evaluation, and fast labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.models.decode_heads import EncHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder as StockEncoderDecoder
from mmseg.structures import SegDataSample
from mmseg.utils import add_prefix
from torch import Tensor, nn

from .._stack import normalisation
from ..errors import UserError, check_value
from ..kernels.predict import argmax_classes, label_map
from ..kernels.resampling import Crop, Mirror, Resize, Step
from ..registry import MODELS, building
from .losses import check_losses
from .multi_scale import MultiScaleGrid, add_multi_scale_scores
from .multilabel import (
    check_multilabel,
    check_thresholds,
    multilabel_losses,
    overlaps,
    thresholds_of,
    with_outputs,
)
from .resnest import ResNeSt

_MODES = ("whole", "slide", "multi_scale_grid")
_KEYS = ("mode", "stride", "keep_scores", "thresholds", *MultiScaleGrid.keys())


def check_test_cfg(test_cfg: Mapping[str, Any]) -> None:
    """Checks ``model.test_cfg`` of a config.

    Keys that another mode reads may stay, except that 'multi_scale_grid' refuses 'stride', which
    a reader would take for its own (its windows are always 2/3 of ``crop_size`` apart).

    Raises:
        UserError: the mode, a key or a value is wrong; the message names ``model.test_cfg.KEY``.
    """
    where = "model.test_cfg"
    mode = test_cfg.get("mode", "whole")
    check_value(f"{where}.mode", mode, f"one of {', '.join(_MODES)}", mode in _MODES)
    for key in test_cfg:
        if key not in _KEYS:
            raise UserError(
                "config-key", f"config key {where}.{key}", f"is not one of {', '.join(_KEYS)}"
            )
    if "thresholds" in test_cfg:
        check_thresholds(f"{where}.thresholds", test_cfg["thresholds"], None)
    keep = test_cfg.get("keep_scores", True)
    check_value(f"{where}.keep_scores", keep, "True or False", isinstance(keep, bool))
    if mode == "multi_scale_grid":
        MultiScaleGrid.from_config(test_cfg, where)
    if mode == "slide":
        for key in ("crop_size", "stride"):
            pair = test_cfg.get(key)
            good = (
                isinstance(pair, Sequence)
                and len(pair) == 2
                and all(isinstance(edge, int) and edge > 0 for edge in pair)
            )
            check_value(f"{where}.{key}", pair, "height and width in pixels", good)
        crop, stride = test_cfg["crop_size"], test_cfg["stride"]
        closed = all(s <= c for s, c in zip(stride, crop, strict=True))
        check_value(f"{where}.stride", stride, f"at most crop_size, {crop}", closed)


@MODELS.register_module()
class EncoderDecoder(StockEncoderDecoder):
    """Backbone, optional neck, head and auxiliary heads; see MMSegmentation's class.

    Beside 'whole' and 'slide', ``test_cfg.mode`` can be 'multi_scale_grid', the published
    evaluation, with the keys of :class:`~mmseg_resnest.models.multi_scale.MultiScaleGrid`.

    ``test_cfg.keep_scores`` says whether predictions hold the scores at the image's size
    (``seg_logits``) beside the labels, as MMSegmentation does; True is the default. With False
    labels are made from the head's scores tile by tile (:mod:`mmseg_resnest.kernels.predict`), in
    a fraction of the time and memory; this package's tools set it where they need labels only.

    With ``multilabel=True`` classes may overlap: each has a sigmoid and a threshold of its own,
    ``test_cfg.thresholds`` (a number or one for each class, 0.5 by default). Labels are
    ``gt_sem_seg`` (C, H, W) of 0, 1 and what is ignored, and so are predictions; ``seg_logits``
    are probabilities, as with a single output.

    Parts that the config names without a scope are looked for in this package first also when no
    default scope is set: MMSegmentation has a ResNeSt of its own that computes something else.
    Without ``test_cfg`` the whole image is scored at once; a wrong one is a UserError, here and in
    all that predicts, and so is a loss that does not fit its head.
    """

    test_cfg: Any
    multilabel = False
    #: A :class:`~.distillation.Distillation`: what the training learns from a teacher.
    distillation: Any = None
    #: What computes :meth:`logits` in place of backbone, neck and head: another runtime's network.
    runtime: Callable[[Tensor], Tensor] | None = None
    #: What computes :meth:`extract_feat` of training steps: a
    #: :class:`~mmseg_resnest.kernels.compiled.Compiled` of the stack's method.
    compiled: Callable[[Any, Tensor], Any] | None = None

    def __init__(self, *args: Any, multilabel: bool = False, **kwargs: Any) -> None:
        check_value("model.multilabel", multilabel, "True or False", isinstance(multilabel, bool))
        with building():
            unset = DefaultScope.get_current_instance() is None
            with building(MODELS.scope if unset else None):
                if multilabel:
                    check_multilabel(kwargs)
                    for name in {"decode_head", "auxiliary_head"} & set(kwargs):
                        kwargs[name] = with_outputs(kwargs[name])
                check_losses({**kwargs, "multilabel": multilabel})
                super().__init__(*args, **kwargs)
        if isinstance(self.backbone, ResNeSt) and self.backbone.num_classes is not None:
            key = "config key model.backbone.num_classes"
            said = "makes it an image classifier, whose scores no head reads; remove it, and set "
            raise UserError("config-conflict", key, said + "num_classes of the heads")
        self.multilabel = multilabel
        self.test_cfg = ConfigDict(self.test_cfg or {"mode": "whole"})
        check_test_cfg(self.test_cfg)
        if multilabel:
            thresholds_of(self.test_cfg, self.num_classes)
        elif "thresholds" in self.test_cfg:
            raise UserError(
                "config-conflict",
                "config key model.test_cfg.thresholds",
                "is for classes that overlap: set model.multilabel=True; the threshold of a single "
                "output is model.decode_head.threshold",
            )

    def extract_feat(self, inputs: Tensor) -> Any:
        """Feature maps of normalised images (N, 3, H, W); see :attr:`compiled`."""
        if self.compiled is not None and self.training:
            return self.compiled(self, inputs)
        return super().extract_feat(inputs)

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Scores (N, C, H, W) of normalised images (N, 3, H, W); see :attr:`runtime`."""
        if self.runtime is None:
            return super().encode_decode(inputs, batch_img_metas)
        scores, size = self.runtime(inputs), inputs.shape[2:]
        return scores if scores.shape[2:] == size else self._resized(scores, size)

    def _resized(self, scores: Tensor, size: Sequence[int]) -> Tensor:
        """As ``BaseDecodeHead.predict_by_feat`` does it."""
        corners = self.align_corners
        return F.interpolate(scores, tuple(size), mode="bilinear", align_corners=corners)

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """Losses by name, of normalised images (N, 3, H, W) and their labels.

        With one output there is no ``acc_seg``, which the stack takes from the highest score, nor
        with ``multilabel``.
        """
        if self.multilabel or self.distillation is not None:
            losses = self._losses_of_scores(inputs, data_samples)
        else:
            losses = super().loss(inputs, data_samples)
        if self.out_channels == 1:
            losses = {name: v for name, v in losses.items() if not name.endswith("acc_seg")}
        return losses

    def _losses_of_scores(
        self, inputs: Tensor, data_samples: list[SegDataSample]
    ) -> dict[str, Tensor]:
        """The losses of heads whose scores something else needs as well."""
        taught = self.distillation
        # First, while no tensor waits for the backward pass yet.
        wanted = None if taught is None else taught.scores(inputs, data_samples)
        features = self.extract_feat(inputs)
        heads: dict[str, Any] = {"decode": self.decode_head}
        if self.with_auxiliary_head:
            several = isinstance(self.auxiliary_head, nn.ModuleList)
            auxiliary = self.auxiliary_head if several else [self.auxiliary_head]
            heads |= {f"aux_{i}" if several else "aux": head for i, head in enumerate(auxiliary)}
        losses: dict[str, Tensor] = {}
        for name, head in heads.items():
            if head is not self.decode_head and not self.multilabel:
                own = head.loss(features, data_samples, self.train_cfg)
            else:
                scores = head.forward(features)
                by_labels = multilabel_losses if self.multilabel else type(head).loss_by_feat
                own = by_labels(head, scores, data_samples)
            losses |= add_prefix(own, name)
            if taught is not None and head is self.decode_head:
                first = scores[0] if isinstance(scores, tuple) else scores
                losses |= taught.losses(first, wanted, self.align_corners)
        return losses

    def inference(self, inputs: Tensor, batch_img_metas: Sequence[dict]) -> Tensor:
        """Scores (N, C, H, W) of normalised images (N, 3, H, W) by ``test_cfg.mode``.

        They are logits, or in mode 'multi_scale_grid' the summed scores. ``batch_img_metas`` are N
        mappings with at least ``ori_shape`` and ``img_shape``; they are not changed.
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
        """Summed scores (N, C, H, W) of the published multi-scale evaluation, image by image.

        They are float32 (float64 for float64 images), without gradients. What the data
        preprocessor has padded scores 0. A head with a single output is a UserError.
        """
        settings = MultiScaleGrid.from_config(self.test_cfg or {}, "model.test_cfg")
        if self.out_channels == 1:
            raise UserError(
                "config-conflict",
                "config key model.test_cfg.mode",
                "'multi_scale_grid' needs a score for each class, and "
                "model.decode_head.out_channels is 1: set it to 2, or mode to 'whole'",
            )
        count, _, height, width = inputs.shape
        scores = torch.zeros(
            (count, self.out_channels, height, width),
            dtype=torch.promote_types(inputs.dtype, torch.float32),
            device=inputs.device,
        )
        black = self._black(inputs)
        for image, score, meta in zip(inputs, scores, batch_img_metas, strict=True):
            left, right, top, bottom = padding(meta)
            inner = (slice(None), slice(top, height - bottom), slice(left, width - right))
            add_multi_scale_scores(
                score[inner], image[inner], self.logits, settings, black, self.align_corners
            )
        return scores

    def predict(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Predictions of normalised images (N, 3, H, W) at their original sizes.

        Returns:
            N samples (``data_samples``, or new ones of the inputs' size) with ``pred_sem_seg``
            (1, h, w), int64, and unless ``test_cfg.keep_scores`` is False ``seg_logits`` (C, h, w).
            With ``multilabel``, ``pred_sem_seg`` (C, h, w) of 0 and 1, uint8, and probabilities.
        """
        if (self.test_cfg or {}).get("keep_scores", True):
            return super().predict(inputs, data_samples)
        return self.predict_labels(inputs, data_samples)

    @torch.no_grad()
    def predict_labels(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """As :meth:`predict`, without ``seg_logits`` where they can be spared."""
        if self.out_channels == 1 or self.multilabel:
            # Outputs are compared with thresholds, as probabilities: no arg max.
            return super().predict(inputs, data_samples)
        scores, steps = self.head_scores(inputs, data_samples)
        if data_samples is None:
            data_samples = [SegDataSample() for _ in inputs]
        for score, step, data_sample in zip(scores, steps, data_samples, strict=True):
            labels = label_map(score[None], step)
            data_sample.set_data({"pred_sem_seg": PixelData(data=labels)})
        return data_samples

    @torch.no_grad()
    def head_scores(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> tuple[Tensor, list[list[Step]]]:
        """Scores before they are resized, and what leads from them to the original sizes.

        Returns:
            (N, C, h, w) scores of normalised images (N, 3, H, W), at the head's resolution where
            all that follows the head is known to be a bilinear resize, and at that of ``inputs``
            otherwise; and N lists of steps.
        """
        test_cfg = self.test_cfg or {}
        check_test_cfg(test_cfg)
        if data_samples is None:
            size = tuple(inputs.shape[2:])
            metas = [{"ori_shape": size, "img_shape": size, "pad_shape": size} for _ in inputs]
        else:
            metas = [data_sample.metainfo for data_sample in data_samples]
        steps: list[Step] = []
        if test_cfg.get("mode", "whole") == "whole" and self.resizes_plainly():
            scores = self.logits(inputs)
            # As BaseDecodeHead.predict_by_feat does it.
            steps.append(Resize(_size(metas[0], "pad_shape", "img_shape"), self.align_corners))
        else:
            scores = self.inference(inputs, metas)
        return scores, [[*steps, *self._steps_to_original(meta)] for meta in metas]

    def _steps_to_original(self, meta: Mapping[str, Any]) -> list[Step]:
        """What BaseSegmentor.postprocess_result does to the scores of one image."""
        steps: list[Step] = [Crop(*padding(meta))]
        if meta.get("flip"):
            steps.append(Mirror({"vertical": 0, "horizontal": 1}[meta["flip_direction"]]))
        return [*steps, Resize(_size(meta, "ori_shape"), self.align_corners)]

    def resizes_plainly(self) -> bool:
        """Whether all that follows the head is known to be one bilinear resize."""
        head = type(self.decode_head)
        return (
            type(self).encode_decode is EncoderDecoder.encode_decode
            and type(self).whole_inference is StockEncoderDecoder.whole_inference
            and getattr(head, "predict_by_feat", None) is BaseDecodeHead.predict_by_feat
            and head.predict in (BaseDecodeHead.predict, EncHead.predict)
        )

    def _head_scores(self, images: Tensor) -> Tensor:
        """Scores (N, C, h, w) of normalised images, at the resolution of the head."""
        scores = self.decode_head.forward(self.extract_feat(images))
        # EncHead adds the scores of its class branch. Channels-last scores are turned, as
        # all that follows goes through them class by class.
        return (scores[0] if isinstance(scores, tuple) else scores).contiguous()

    def logits(self, windows: Tensor) -> Tensor:
        """Logits (N, C, h, w) of normalised images, at the head's resolution where it is known."""
        return self.own_logits(windows) if self.runtime is None else self.runtime(windows)

    def own_logits(self, windows: Tensor) -> Tensor:
        """As :meth:`logits`, by backbone, neck and head, whatever :attr:`runtime` is."""
        if self.resizes_plainly():
            return self._head_scores(windows)
        size = windows.shape[2:]
        meta = {"ori_shape": size, "img_shape": size, "pad_shape": size}
        encode = self.encode_decode if self.runtime is None else super().encode_decode
        return encode(windows, [dict(meta) for _ in windows])

    def _black(self, inputs: Tensor) -> Tensor:
        """The value, (3, 1, 1), that the data preprocessor gives a black pixel."""
        black = inputs.new_zeros(inputs.shape[1], 1, 1)
        if (values := normalisation(self.data_preprocessor)) is not None:
            black = (black - values[0]) / values[1]
        return black.to(inputs)

    def postprocess_result(
        self, seg_logits: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Puts scores (N, C, H, W) and labels into data samples, at the images' original sizes.

        Scores that have that size already are taken as they are: the stock code copies them, and
        the scores of a 2048x1024 image in 150 classes are 1.2 GiB.
        """
        if self.multilabel:
            samples = super().postprocess_result(seg_logits, data_samples)
            for sample in samples:
                scores = sample.seg_logits.data
                # The stack makes a probability of a single output.
                self.set_masks(sample, scores if len(scores) == 1 else scores.sigmoid())
            return samples
        if (
            self.out_channels == 1
            or data_samples is None
            or not all(_is_original(s.metainfo, seg_logits.shape[2:]) for s in data_samples)
        ):
            return super().postprocess_result(seg_logits, data_samples)
        for scores, data_sample in zip(seg_logits, data_samples, strict=True):
            labels = argmax_classes(scores)[None]
            data_sample.set_data(
                {"seg_logits": PixelData(data=scores), "pred_sem_seg": PixelData(data=labels)}
            )
        return data_samples

    def set_masks(self, sample: SegDataSample, chances: Tensor) -> None:
        """Puts probabilities (C, h, w) and what they say of each class into a sample."""
        limits = chances.new_tensor(thresholds_of(self.test_cfg, len(chances)))
        masks = (chances > limits.view(-1, 1, 1)).to(torch.uint8)
        sample.set_data(
            {"seg_logits": PixelData(data=chances), "pred_sem_seg": PixelData(data=masks)}
        )


def _size(meta: Mapping[str, Any], *keys: str) -> tuple[int, int]:
    """Height and width under the first of the keys that is there."""
    height, width = next(meta[key] for key in keys if key in meta)[:2]
    return int(height), int(width)


def padding(meta: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Pixels that the data preprocessor added left, right, top and bottom."""
    left, right, top, bottom = meta.get("img_padding_size", meta.get("padding_size", (0, 0, 0, 0)))
    return left, right, top, bottom


def _is_original(meta: Mapping[str, Any], size: Sequence[int]) -> bool:
    """Whether scores of ``size`` (H, W) need no cropping, mirroring or resizing."""
    return (
        not any(padding(meta))
        and not meta.get("flip")
        and tuple(meta["ori_shape"][:2]) == tuple(size)
    )


def probabilities(model: Any, scores: Tensor) -> Tensor:
    """(C, H, W) float32 probabilities, of what a segmentor predicts as ``seg_logits``.

    They sum to 1, two for a model of one output, unless classes may overlap.
    """
    scores = scores.float()
    if overlaps(model):
        return scores
    if len(scores) == 1:  # MMSegmentation has turned it into a probability
        return torch.cat([1 - scores, scores])
    if (getattr(model, "test_cfg", None) or {}).get("mode") == "multi_scale_grid":
        return scores / scores.sum(0, keepdim=True)  # exponentials already
    return scores.softmax(0)


def input_channels(model: nn.Module) -> int | None:
    """How many channels the images of a segmentor have; None where its parts do not tell."""
    known = getattr(model, "in_channels", None)
    backbone = getattr(model, "backbone", None)
    if known is not None or backbone is None:
        return known
    makers = [vars(base).get("__init__") for base in type(backbone).__mro__[:-1]]
    if not any("in_channels" in inspect.signature(m).parameters for m in makers if m is not None):
        return None
    layers = (layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d))
    first = next(layers, None)
    return None if first is None else first.in_channels


def windows_of(model: Any, inputs: Tensor) -> Tensor:
    """Of images (N, C, H, W), what goes through the network at a time by ``model.test_cfg``."""
    settings: Any = model.test_cfg or {}
    mode, number = settings.get("mode", "whole"), 1
    if mode == "whole":
        return inputs
    if mode == "multi_scale_grid":
        grid = MultiScaleGrid.from_config(settings, "model.test_cfg")
        height = width = grid.crop_size
        number = grid.window_batch_size
    else:
        height, width = settings["crop_size"]
    window = inputs.new_zeros(1, inputs.shape[1], height, width)
    part = inputs[:1, :, :height, :width]
    window[:, :, : part.shape[2], : part.shape[3]] = part
    return window if number == 1 else torch.cat([window] * number)
