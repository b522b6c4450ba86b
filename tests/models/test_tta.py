# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The sum of several views against MMSegmentation's class, which keeps every view's scores."""

import copy

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.models.segmentors import SegTTAModel as StockSegTTAModel
from mmseg.structures import SegDataSample
from tiny_models import built

from mmseg_resnest.models import SegTTAModel


def views(count=2):
    """Three sizes of ``count`` images, each also mirrored, as the data loader gives them."""
    generator = torch.Generator().manual_seed(1)
    inputs, samples = [], []
    label = torch.randint(0, 6, (1, 37, 53), generator=generator)
    for height, width in [(19, 27), (37, 53), (50, 72)]:
        for flip in (False, True):
            images = torch.randint(0, 256, (count, 3, height, width), generator=generator)
            inputs.append(list(images.to(torch.uint8)))
            size = (height, width)
            samples.append([])
            for i in range(count):
                meta = {"ori_shape": (37, 53), "img_shape": size, "img_path": f"{i}.jpg"}
                meta |= {"flip": flip, "flip_direction": "horizontal" if flip else None}
                sample = SegDataSample(metainfo=meta)
                sample.gt_sem_seg = PixelData(data=label.flip(2) if flip else label)
                samples[-1].append(sample)
    return {"inputs": inputs, "data_samples": samples}


@pytest.mark.parametrize("align_corners", [True, False])
def test_labels_are_those_of_the_stock_class(align_corners):
    model = built(head={"num_classes": 6, "align_corners": align_corners})
    data = views()
    with torch.no_grad():
        expected = StockSegTTAModel(model).test_step(copy.deepcopy(data))
    results = SegTTAModel(model).test_step(data)
    assert len(results) == len(expected) == 2
    for result, stock in zip(results, expected, strict=True):
        assert torch.equal(result.pred_sem_seg.data, stock.pred_sem_seg.data)
        assert torch.equal(result.gt_sem_seg.data, stock.gt_sem_seg.data)
        assert result.img_path == stock.img_path
        assert "seg_logits" not in result
    assert len(results[0].pred_sem_seg.data.unique()) > 1


def test_scores_that_are_asked_for_are_kept():
    model = built(head={"num_classes": 6})
    model.test_cfg.keep_scores = True
    with torch.no_grad():
        results = SegTTAModel(model).test_step(views())
    assert results[0].seg_logits.data.shape == (6, 37, 53)


def mean_of_views(model, data):
    """The mean (C, H, W) over the views of the first image's probabilities."""
    with torch.no_grad():
        steps = [
            model.test_step({"inputs": one, "data_samples": samples})[0].seg_logits.data
            for one, samples in zip(data["inputs"], data["data_samples"], strict=True)
        ]
    return torch.stack(steps).mean(0)


def test_probabilities_of_a_single_output_are_averaged():
    loss = {"type": "CrossEntropyLoss", "use_sigmoid": True}
    head = {"num_classes": 2, "out_channels": 1, "threshold": 0.5, "loss_decode": loss}
    model = built(head=head)
    chances = mean_of_views(model, views())
    model.decode_head.threshold = float(chances.median())
    labels = SegTTAModel(model).test_step(views())[0].pred_sem_seg.data
    assert torch.equal(labels, (chances > chances.median()).to(labels))
    assert 0.3 < labels.mean() < 0.7


def test_probabilities_of_classes_that_overlap_are_averaged():
    head = {"num_classes": 3, "loss_decode": {"type": "FocalLoss"}}
    model = built(head=head, multilabel=True)
    chances = mean_of_views(model, views())
    limits = chances.flatten(1).median(1).values
    model.test_cfg.thresholds = limits.tolist()
    labels = SegTTAModel(model).test_step(views())[0].pred_sem_seg.data
    assert torch.equal(labels, (chances > limits[:, None, None]).to(torch.uint8))
    assert labels.sum((1, 2)).min() > 500
