# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The models, the training step, and the images and data set of what is compared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness import Comparison, Work
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample
from PIL import Image
from torch import Tensor, nn

from mmseg_resnest.evaluation import SegmentationMetric
from mmseg_resnest.io.memory import keep_freed_memory
from mmseg_resnest.models import ARCHITECTURES, fold_for_inference
from mmseg_resnest.registry import DATASETS, MODELS
from mmseg_resnest.weights import convert_state_dict

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLASSES = 150
SIZE = (256, 341)  # half an ADE20K image's edges, so that the stack takes seconds
NORM = {"type": "BN"}
# A line of ARCHITECTURES that both packages can build, for toy runs.
TOY = {**ARCHITECTURES["resnest14"], "groups": 2, "base_width": 4, "stem_width": 8}
StockResNeSt: Any = MODELS.get("mmseg.ResNeSt")


@MODELS.register_module(force=True)
class StockResNeSt14(StockResNeSt):
    """MMSegmentation's ResNeSt with 14 layers, which its table lacks."""

    arch_settings = {14: (StockResNeSt.arch_settings[50][0], (1, 1, 1, 1))}


def deeplabv3(backbone: dict[str, Any], kind: str, channels: int = 512) -> ConfigDict:
    """DeepLabV3 as MMSegmentation has it, at output stride 8, without its auxiliary head.

    Loss and data preprocessor are of the package that ``kind``, a segmentor with its scope, is of.
    """
    scope = kind.partition(".")[0]
    head = dict(
        type="mmseg.ASPPHead", in_channels=2048, in_index=3, channels=channels,
        dilations=(1, 12, 24, 36), num_classes=CLASSES, norm_cfg=NORM, align_corners=False,
        loss_decode=dict(type=f"{scope}.CrossEntropyLoss"),
    )  # fmt: skip
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    images = dict(type=f"{scope}.SegDataPreProcessor", mean=mean, std=std, bgr_to_rgb=True)
    model = dict(type=kind, data_preprocessor=images, backbone=backbone, decode_head=head)
    return ConfigDict(model, test_cfg=dict(mode="whole"))


def stock_backbone(
    columns: Mapping[str, Any], depth: int, output_stride: int = 8
) -> dict[str, Any]:
    """The stack's own ResNeSt of 14, 50, 101 or 200 layers.

    ``columns`` are the architecture's line of ``mmseg_resnest.models.ARCHITECTURES``.
    """
    widths = dict(groups=columns["groups"], base_width=columns["base_width"])
    dilations = {8: (1, 1, 2, 4), 16: (1, 1, 1, 2), 32: (1, 1, 1, 1)}[output_stride]
    strides = (1, *(2 if dilation == 1 else 1 for dilation in dilations[1:]))
    return dict(
        type="StockResNeSt14" if depth == 14 else "mmseg.ResNeSt", depth=depth, **widths,
        stem_channels=2 * columns["stem_width"], radix=2, reduction_factor=4, norm_cfg=NORM,
        avg_down_stride=True, contract_dilation=True, strides=strides, dilations=dilations,
    )  # fmt: skip


def our_backbone(arch: Any) -> dict[str, Any]:
    """This package's, which computes what :func:`stock_backbone` does; ``arch``: name or line."""
    cfg = dict(type="ResNeSt", arch=arch, output_stride=8, norm_cfg=NORM)
    return dict(cfg, avd_in_dilated=False)


def seed_weights(model: nn.Module) -> nn.Module:
    """Weights that keep activations of order one through the whole network."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 4:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif name.endswith("bn3.weight"):
            tensor.fill_(0.2)
    return model.eval()


def stock_model(
    depth: int = 50, columns: Mapping[str, Any] | None = None, channels: int = 512
) -> nn.Module:
    """The stack's own segmentor and ResNeSt of 14, 50 or 101 layers, with seeded weights."""
    init_default_scope("mmseg_resnest")
    torch.manual_seed(0)
    backbone = stock_backbone(columns or ARCHITECTURES[f"resnest{depth}"], depth)
    return seed_weights(MODELS.build(deeplabv3(backbone, "mmseg.EncoderDecoder", channels)))


def our_model(
    depth: int = 50, columns: Mapping[str, Any] | None = None, channels: int = 512
) -> nn.Module:
    """This package's, with the same weights."""
    weights = stock_model(depth, columns, channels).state_dict()
    backbone = our_backbone(columns or f"resnest{depth}")
    model = MODELS.build(deeplabv3(backbone, "mmseg_resnest.EncoderDecoder", channels))
    model.load_state_dict(convert_state_dict(weights))
    model.eval()
    return model


def training_steps(scale: tuple[int, int], crop: tuple[int, int]) -> list[dict[str, Any]]:
    """MMSegmentation's augmentation: ``scale`` is (width, height), ``crop`` (height, width)."""
    return [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations"),
        dict(type="RandomResize", scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type="RandomCrop", crop_size=crop, cat_max_ratio=0.75),
        dict(type="RandomFlip", prob=0.5),
        dict(type="PhotoMetricDistortion"),
        dict(type="PackSegInputs"),
    ]


def training_step(
    model: Any, size: tuple[int, int], count: int, autocast: torch.dtype | None = None
) -> Work:
    """Forward, backward and a step of SGD that leaves the weights as they are.

    Crops are ``count`` of ``size`` (height, width), made up; ``autocast`` is the type of the mixed
    precision. The work returns the loss and the gradient's norm.
    """
    device = next(model.parameters()).device
    if model.data_preprocessor.size_divisor is None:
        model.data_preprocessor.size = size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)
    images = images.to(device)
    samples = []
    for _ in range(count):
        sample = SegDataSample(metainfo={"img_shape": size, "ori_shape": size, "pad_shape": size})
        coarse = torch.randint(0, model.num_classes, (1, 1, 8, 8), generator=generator)
        regions = F.interpolate(coarse.float(), size, mode="nearest")[0].long()
        sample.gt_sem_seg = PixelData(data=regions.to(device))
        samples.append(sample)

    def loss() -> Tensor:
        data = model.data_preprocessor({"inputs": list(images), "data_samples": samples}, True)
        torch.manual_seed(0)  # the same dropout each time
        with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
            losses = model(**data, mode="loss")
        return sum(value for name, value in losses.items() if "loss" in name)

    return sgd_step(model, loss)


def sgd_step(model: nn.Module, loss_of: Callable[[], Tensor]) -> Work:
    """Backward pass and a step of SGD; the work returns the loss and the gradient's norm."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def work() -> Tensor:
        loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        return torch.stack([loss.detach(), torch.stack(norms).norm()]).cpu()

    return work


class Images:
    """ADE20K's layout with two images that are made up, through a pipeline."""

    def __init__(self, pipeline: list[dict[str, Any]]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        root = Path(self._folder.name)
        rng = np.random.default_rng(0)
        for part in ("images", "labels"):
            (root / part).mkdir()
        for i in range(2):
            coarse = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
            photo = Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC)
            photo.save(root / "images" / f"{i}.jpg", quality=95)
            regions = rng.integers(0, CLASSES + 1, (8, 10), dtype=np.uint8)
            label = Image.fromarray(regions).resize(SIZE[::-1], Image.Resampling.NEAREST)
            label.save(root / "labels" / f"{i}.png")
        prefix = dict(img_path="images", seg_map_path="labels")
        cfg = dict(type="mmseg.ADE20KDataset", data_root=str(root), data_prefix=prefix)
        self.dataset = DATASETS.build(dict(cfg, pipeline=pipeline, test_mode=True))


def _evaluate(model: Any, images: Images, metric: Any) -> dict[str, Tensor]:
    """Labels of all images, and their mIoU in percent."""
    dataset = images.dataset
    metric.dataset_meta = dataset.metainfo
    labels = []
    with torch.inference_mode():
        for i in range(len(dataset)):
            batch = pseudo_collate([dataset[i]])  # as the evaluation's data loader makes it
            samples = model.test_step(batch)
            metric.process(batch, [sample.to_dict() for sample in samples])
            labels += [sample.pred_sem_seg.data.reshape(SIZE).cpu() for sample in samples]
    scores = metric.evaluate(len(dataset))
    score = next(value for name, value in scores.items() if name.endswith("mIoU"))
    return {"labels": torch.stack(labels), "mIoU": torch.tensor(float(score))}


def same_evaluation(expected: dict[str, Tensor], result: dict[str, Tensor]) -> float:
    """Share of equal labels; 0 if the mIoU is off by more than 0.01."""
    if (expected["mIoU"] - result["mIoU"]).abs() > 0.0101:  # the stack rounds to 0.01
        return 0.0
    return float((expected["labels"] == result["labels"]).double().mean())


def evaluation(
    pipeline: list[dict[str, Any]],
    stack: Callable[[], nn.Module],
    ours: Callable[[], nn.Module],
    **facts: Any,
) -> Comparison:
    """The stack's evaluation beside what tools/test.py does; the functions make the models."""

    def of_stack(case: str) -> Work:
        model, images = stack().to(DEVICE).eval(), Images(pipeline)
        return lambda: _evaluate(model, images, IoUMetric())

    def of_ours(case: str) -> Work:
        keep_freed_memory()
        model, images = ours().to(DEVICE).eval(), Images(pipeline)
        if DEVICE == "cpu":
            fold_for_inference(model)
        return lambda: _evaluate(model, images, SegmentationMetric())

    return Comparison(
        reference="MMSegmentation",
        variants={"MMSegmentation": of_stack, "mmseg-resnest": of_ours},
        agree=same_evaluation,
        most_memory={"mmseg-resnest": 2.0},
        **facts,
    )
