# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The segmentors of the comparisons on a GPU: DeepLabV3 of 150 classes at output stride 8."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmseg.models.backbones.resnest import Bottleneck as StockBottleneck
from mmseg.models.backbones.resnest import ResNeSt as StockResNeSt
from models import CLASSES, NORM, deeplabv3, our_backbone, seed_weights, stock_backbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmseg_resnest.models import ARCHITECTURES, fold_for_inference
from mmseg_resnest.registry import MODELS
from mmseg_resnest.weights import convert_state_dict

# Changed by the toy runs, for which the head would be most of the work.
CHANNELS = {"decode_head": 512, "auxiliary_head": 256}
# The published ones, and one for toy runs that both packages can build.
COLUMNS = {
    **ARCHITECTURES,
    "toy": {**ARCHITECTURES["resnest14"], "groups": 2, "base_width": 4, "stem_width": 8},
}
TIMM = {
    "resnest50": "resnest50d",
    "resnest101": "resnest101e",
    "resnest200": "resnest200e",
    "resnest269": "resnest269e",
}


@MODELS.register_module(force=True)
class DeepStockResNeSt(StockResNeSt):
    """MMSegmentation's ResNeSt with the depths that its table lacks."""

    arch_settings = {
        **StockResNeSt.arch_settings,
        14: (StockBottleneck, (1, 1, 1, 1)),
        269: (StockBottleneck, (3, 30, 48, 8)),
    }


def _config(backbone: dict[str, Any], kind: str) -> ConfigDict:
    """MMSegmentation's DeepLabV3. No dropout: its mask differs with the order in memory."""
    cfg = deeplabv3(backbone, kind, CHANNELS["decode_head"])
    cfg.data_preprocessor.size_divisor = 1
    cfg.decode_head.dropout_ratio = 0.0
    cfg.auxiliary_head = {
        "type": "mmseg.FCNHead",
        "in_channels": 1024,
        "in_index": 2,
        "channels": CHANNELS["auxiliary_head"],
        "num_convs": 1,
        "concat_input": False,
        "loss_decode": {"type": "mmseg.CrossEntropyLoss", "loss_weight": 0.4},
        "num_classes": CLASSES,
        "norm_cfg": NORM,
        "align_corners": False,
        "dropout_ratio": 0.0,
    }
    return cfg


def stock(arch: str) -> nn.Module:
    """The stack's own segmentor and ResNeSt, with seeded weights, in evaluation mode."""
    return copy.deepcopy(_stock(arch, *CHANNELS.values()))


# Seconds for the large ones, and each way of each case asks for one.
@functools.lru_cache(maxsize=2)
def _stock(arch: str, *channels: int) -> nn.Module:
    init_default_scope("mmseg_resnest")
    torch.manual_seed(0)
    depth = 14 if arch == "toy" else int(arch.removeprefix("resnest"))
    backbone = stock_backbone(COLUMNS[arch], depth, "DeepStockResNeSt")
    return seed_weights(MODELS.build(_config(backbone, "mmseg.EncoderDecoder")))


def ours(arch: str) -> nn.Module:
    """This package's, with the same weights."""
    return copy.deepcopy(_ours(arch, *CHANNELS.values()))


@functools.lru_cache(maxsize=2)
def _ours(arch: str, *channels: int) -> nn.Module:
    backbone = our_backbone(COLUMNS[arch])
    model = MODELS.build(_config(backbone, "mmseg_resnest.EncoderDecoder"))
    model.load_state_dict(convert_state_dict(_stock(arch, *channels).state_dict()))
    return model.eval()


def fast(arch: str) -> nn.Module:
    """This package's form for inference: norms folded, channels last, bfloat16."""
    model = ours(arch)
    model.test_cfg["keep_scores"] = False
    return half(fold_for_inference(model)).to(memory_format=torch.channels_last)


def half(model: nn.Module) -> nn.Module:
    """Weights in bfloat16, batch norms left in float32: they would lose most by it."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) or name.startswith("data_preprocessor"):
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.bfloat16()
    return model


def compile_parts(model: Any) -> None:
    """Compile what runs on the device; making samples is Python that a compiler leaves alone.

    ``forward`` itself, because heads are called by it.
    """
    for part in (model.backbone, model.decode_head):
        part.forward = torch.compile(part.forward)


class AuthorsNetwork(nn.Module):
    """The authors' backbone under the same head: the published variant, with seeded weights."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        import resnest.torch as authors

        torch.manual_seed(0)
        self.backbone = getattr(authors, arch)(pretrained=False, dilated=True)
        self.head = copy.deepcopy(ours(arch).decode_head)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to scores (N, C, H / 8, W / 8)."""
        net = self.backbone
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        features = []
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(net, name)(x)
            features.append(x)
        return self.head(features)


def timm_with_smp(arch: str) -> nn.Module:
    """Timm's encoder under segmentation_models_pytorch's DeepLabV3, with weights of their own."""
    import segmentation_models_pytorch as smp

    return smp.DeepLabV3(
        encoder_name=f"tu-{TIMM[arch]}",
        encoder_weights=None,
        encoder_output_stride=8,
        classes=CLASSES,
    ).eval()


class Classifier(nn.Module):
    """A backbone for classification of 1000 classes, at output stride 32."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        init_default_scope("mmseg_resnest")
        torch.manual_seed(0)
        self.backbone = MODELS.build(
            {"type": "ResNeSt", "arch": COLUMNS[arch], "output_stride": 32, "norm_cfg": NORM}
        )
        self.fc = nn.Linear(2048, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 1000)."""
        return self.fc(self.backbone(images)[-1].mean((2, 3)))
