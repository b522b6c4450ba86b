# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""From head scores to the confusion matrix: two resizes, arg max, metric.

The stack runs its own code: ``BaseDecodeHead.predict_by_feat``,
``BaseSegmentor.postprocess_result`` and ``IoUMetric``. Scores are made up: "regions" are one
class each with noise and broad borders, as after training; in "noise" every class can win
anywhere, so that little can be left out. In bfloat16 the stack rounds the resized scores to 8
bits, this package does not; 99.9% of the labels have to be equal there. Memory is that of a second
image. Compared are the labels, and the pixels of each class (found, true and both) with those of
the stack's metric, up to the labels that differ.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from harness import Comparison, Work
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder as StockEncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor

import mmseg_resnest  # noqa: F401
from mmseg_resnest.evaluation import SegmentationMetric
from mmseg_resnest.kernels.predict import label_map
from mmseg_resnest.kernels.resampling import Crop, Resize

# classes, scores, network input, image
SIZES = {
    "ade20k": (150, (64, 86), (512, 683), (512, 683)),
    "ade20k, published": (150, (49, 65), (390, 520), (512, 683)),
    "cityscapes": (19, (128, 256), (1024, 2048), (1024, 2048)),
    "cityscapes, published": (19, (33, 65), (260, 520), (1024, 2048)),
}
KINDS = ("regions", "noise")
# Name of a case to its size, kind and type.
CASES = {f"{name}, {kind}": (name, kind, torch.float32) for name in SIZES for kind in KINDS} | {
    f"{name}, regions, bfloat16": (name, "regions", torch.bfloat16)
    for name in ("ade20k", "cityscapes")
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _made_up(case: str) -> tuple[Tensor, Tensor, tuple[int, int], tuple[int, int]]:
    """Scores (1, C, h, w), label (H, W), size of the network's input and of the image."""
    name, kind, dtype = CASES[case]
    classes, (height, width), network, image = SIZES[name]
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, classes, height, width, generator=generator)
    if kind == "regions":
        # Places nearest to one of 20 points belong to that point's class.
        points = torch.rand(20, 2, generator=generator) * torch.tensor([height, width])
        owner = torch.randint(0, classes, (20,), generator=generator)
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([rows, columns], 2).reshape(-1, 2).float()
        region = owner[torch.cdist(places, points).argmin(1)].reshape(height, width)
        sure = F.one_hot(region, classes).permute(2, 0, 1)[None].float()
        sure = F.avg_pool2d(sure, 5, stride=1, padding=2, count_include_pad=False)
        scores = scores + 10 * sure
    label = torch.randint(0, classes, image, generator=generator)
    label[::7] = 255
    return scores.to(DEVICE, dtype), label, network, image


def _sample(label: Tensor, network: tuple[int, int], image: tuple[int, int]) -> SegDataSample:
    sample = SegDataSample(
        metainfo={"ori_shape": image, "img_shape": network, "pad_shape": network}
    )
    sample.gt_sem_seg = PixelData(data=label[None])
    return sample


def _names(count: int) -> dict[str, list[str]]:
    return {"classes": [str(i) for i in range(count)]}


def stack(case: str) -> Work:
    scores, label, network, image = _made_up(case)
    head = SimpleNamespace(align_corners=True)
    metric = IoUMetric()
    metric.dataset_meta = _names(scores.shape[1])

    @torch.no_grad()
    def work() -> dict[str, Tensor]:
        sample = _sample(label, network, image)
        full = BaseDecodeHead.predict_by_feat(head, scores, [sample.metainfo])
        StockEncoderDecoder.postprocess_result(head, full, [sample])
        metric.process({}, [sample.to_dict()])
        both, _, found, true = metric.results.pop()
        return _result(sample, both, found, true)

    return work


def ours(case: str) -> Work:
    scores, label, network, image = _made_up(case)
    metric = SegmentationMetric()
    metric.dataset_meta = _names(scores.shape[1])

    @torch.no_grad()
    def work() -> dict[str, Tensor]:
        sample = _sample(label, network, image)
        steps = [Resize(network, True), Crop(0, 0, 0, 0), Resize(image, True)]
        sample.pred_sem_seg = PixelData(data=label_map(scores, steps))
        metric.process({}, [sample.to_dict()])
        matrix = metric._last  # of this image
        assert matrix is not None
        return _result(sample, matrix.diagonal(), matrix.sum(0), matrix.sum(1))

    return work


def _result(sample: SegDataSample, both: Tensor, found: Tensor, true: Tensor) -> dict[str, Tensor]:
    return {"labels": sample.pred_sem_seg.data[0], "both": both, "found": found, "true": true}


def agree(expected: dict[str, Tensor], result: dict[str, Tensor]) -> float:
    """Share of equal labels; 0 if the counts differ by more than the labels do."""
    differ = int((expected["labels"] != result["labels"]).sum())
    for name in ("both", "found", "true"):
        counts = [one[name].cpu().double() for one in (expected, result)]
        if (counts[0] - counts[1]).abs().sum() > 2 * differ:
            return 0.0
    return 1 - differ / expected["labels"].numel()


def _what(sizes: tuple[int, tuple[int, int], tuple[int, int], tuple[int, int]]) -> str:
    classes, scores, network, image = sizes
    pairs = ((scores, "scores"), (network, "network"), (image, "image"))
    return f"{classes} classes, " + ", ".join(f"{name} {h}x{w}" for (h, w), name in pairs)


COMPARISON = Comparison(
    title="Predictions: head scores to confusion matrix",
    reference="MMSegmentation",
    cases={case: _what(SIZES[name]) for case, (name, _, _) in CASES.items()},
    variants={"MMSegmentation": stack, "mmseg-resnest": ours},
    agree=agree,
    at_least_equal={
        case: 0.9999 if dtype == torch.float32 else 0.999 for case, (_, _, dtype) in CASES.items()
    },
    least={
        "mmseg-resnest": {
            case: 3.5 if kind == "noise" else 6.0 for case, (_, kind, _) in CASES.items()
        }
    },
    most_memory={"mmseg-resnest": 0.1},
    warmed=True,
    note=(__doc__ or "").split("\n\n", 1)[1].replace("\n", " ").strip(),
)
