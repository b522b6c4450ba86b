# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The model, the images and the data set of the evaluations that are compared."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from PIL import Image
from torch import nn

import mmseg_resnest  # noqa: F401
from mmseg_resnest.registry import DATASETS, MODELS
from mmseg_resnest.weights import convert_state_dict

CLASSES = 150
SIZE = (256, 341)  # half an ADE20K image's edges, so that the stack's way takes seconds
NORM = {"type": "BN"}


def _config(backbone: dict[str, Any], kind: str) -> ConfigDict:
    """DeepLabV3 as MMSegmentation has it, at output stride 8."""
    model = {
        "type": kind,
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
            "bgr_to_rgb": True,
        },
        "backbone": backbone,
        "decode_head": {
            "type": "mmseg.ASPPHead",
            "in_channels": 2048,
            "in_index": 3,
            "channels": 512,
            "dilations": (1, 12, 24, 36),
            "num_classes": CLASSES,
            "norm_cfg": NORM,
            "align_corners": False,
        },
        "test_cfg": {"mode": "whole"},
    }
    return ConfigDict(model)


def stock_model(depth: int = 50) -> nn.Module:
    """The stack's own segmentor and ResNeSt of 50 or 101 layers, with seeded weights."""
    init_default_scope("mmseg_resnest")
    torch.manual_seed(0)
    backbone = {
        "type": "mmseg.ResNeSt",
        "depth": depth,
        "stem_channels": {50: 64, 101: 128}[depth],
        "radix": 2,
        "reduction_factor": 4,
        "avg_down_stride": True,
        "contract_dilation": True,
        "strides": (1, 2, 1, 1),
        "dilations": (1, 1, 2, 4),
        "norm_cfg": NORM,
    }
    model = MODELS.build(_config(backbone, "mmseg.EncoderDecoder"))
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        # Weights that keep activations of order one through the whole network.
        if tensor.dim() == 4:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif name.endswith("bn3.weight"):
            tensor.fill_(0.2)
    model.eval()
    return model


def our_model(depth: int = 50) -> nn.Module:
    """This package's, with the same weights."""
    weights = stock_model(depth).state_dict()
    backbone = {
        "type": "ResNeSt",
        "arch": f"resnest{depth}",
        "output_stride": 8,
        "avd_in_dilated": False,
        "norm_cfg": NORM,
    }
    model = MODELS.build(_config(backbone, "mmseg_resnest.EncoderDecoder"))
    model.load_state_dict(convert_state_dict(weights))
    model.eval()
    return model


class Images:
    """ADE20K's layout with two images that are made up.

    Args:
        pipeline: Transforms of the evaluation.
    """

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
        self.dataset = DATASETS.build(
            {
                "type": "mmseg.ADE20KDataset",
                "data_root": str(root),
                "data_prefix": {"img_path": "images", "seg_map_path": "labels"},
                "pipeline": pipeline,
                "test_mode": True,
            }
        )

    def batches(self) -> Any:
        """Batches of one image, as the evaluation's data loader makes them."""
        for i in range(len(self.dataset)):
            yield pseudo_collate([self.dataset[i]])


def evaluate(model: Any, images: Images, metric: Any) -> torch.Tensor:
    """Labels of all images, after they were scored too."""
    metric.dataset_meta = images.dataset.metainfo
    labels = []
    with torch.inference_mode():
        for batch in images.batches():
            samples = model.test_step(batch)
            metric.process(batch, [sample.to_dict() for sample in samples])
            labels += [sample.pred_sem_seg.data.reshape(SIZE).cpu() for sample in samples]
    metric.evaluate(len(images.dataset))
    return torch.stack(labels)
