# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""MMSegmentation's test-time augmentation without a full-size score map for every view."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.structures import PixelData
from mmseg.models.segmentors import SegTTAModel as StockSegTTAModel
from mmseg.structures import SegDataSample

from ..kernels.predict import summed_label_map
from ..registry import MODELS
from .multilabel import overlaps
from .segmentor import EncoderDecoder

__all__ = ["SegTTAModel"]


@MODELS.register_module()
class SegTTAModel(StockSegTTAModel):
    """Mean of the softmax of several views' scores, as MMSegmentation's class computes it.

    The stock class resizes the scores of every view to the image and keeps them all. Here they stay
    at the head's resolution, and their sum is reduced to labels tile by tile. Models with a single
    output, of another class than this package's ``EncoderDecoder``, or with
    ``test_cfg.keep_scores=True`` keep the scores. With a single output or with ``multilabel`` it is
    the mean of the views' probabilities that is compared with the threshold; the stock class takes
    a sigmoid of these probabilities first.
    """

    @torch.no_grad()
    def test_step(self, data: dict | tuple | list) -> list[SegDataSample]:
        """One sample an image: the last view's, as in the stock class, with the sum's labels.

        ``inputs`` and ``data_samples`` of ``data`` are lists of views, each a list of images.
        """
        model: Any = self.module.module if is_model_wrapper(self.module) else self.module
        sums = isinstance(model, EncoderDecoder) and model.out_channels > 1 and not overlaps(model)
        if not sums or (model.test_cfg or {}).get("keep_scores", False):
            return super().test_step(data)
        inputs, samples = (data["inputs"], data["data_samples"]) if isinstance(data, dict) else data
        count = len(inputs[0])
        views: list[list] = [[] for _ in range(count)]
        results: list[SegDataSample] = []
        for i, (images, view_samples) in enumerate(zip(inputs, samples, strict=True)):
            batch = model.data_preprocessor({"inputs": images, "data_samples": view_samples})
            scores, steps = model.head_scores(batch["inputs"], batch["data_samples"])
            for view, score, step in zip(views, scores, steps, strict=True):
                view.append((score, step))
            if i == 0:
                first = batch["data_samples"]
            results = batch["data_samples"]
        for sample, first_sample, view in zip(results, first, views, strict=True):
            labels = summed_label_map(view, softmax=True)
            sample.set_data({"pred_sem_seg": PixelData(data=labels)})
            if "gt_sem_seg" in first_sample:
                sample.set_data({"gt_sem_seg": first_sample.gt_sem_seg})
            if "img_path" in first_sample:
                sample.set_metainfo({"img_path": first_sample.img_path})
        return results

    def merge_preds(self, data_samples_list: list[list[SegDataSample]]) -> list[SegDataSample]:
        """One sample an image, from those of its views, as :meth:`test_step` says."""
        model: Any = self.module.module if is_model_wrapper(self.module) else self.module
        multilabel = overlaps(model)
        if not multilabel and model.out_channels > 1:
            return super().merge_preds(data_samples_list)
        for views in data_samples_list:
            chances = torch.stack([view.seg_logits.data for view in views]).mean(0)
            if multilabel:
                model.set_masks(views[0], chances)
            else:
                labels = (chances > model.decode_head.threshold).to(chances)
                views[0].set_data({"pred_sem_seg": PixelData(data=labels)})
        return [views[0] for views in data_samples_list]
