# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The parts that a published folder and an exported file may name, with their arguments.

An argument that is not here does not reach the stack: among those left out are all that name files,
addresses or code. Sizes are bounded, so that no record asks for more memory than an image of a
service does.
"""

from __future__ import annotations

from typing import Any

from mmcv.cnn import Conv2d
from mmcv.transforms import Normalize
from mmcv.transforms import Pad as StockPad
from mmseg.datasets.transforms import (
    LoadBiomedicalImageFromFile,
    LoadSingleRSImageFromFile,
    ResizeToMultiple,
)
from mmseg.datasets.transforms import PackSegInputs as StockPackSegInputs
from mmseg.datasets.transforms import Resize as StockResize
from mmseg.datasets.transforms import ResizeShortestEdge as StockResizeShortestEdge
from mmseg.datasets.transforms.loading import LoadImageFromNpyFile
from mmseg.models.backbones import ResNet, ResNetV1c, ResNetV1d
from mmseg.models.data_preprocessor import SegDataPreProcessor as StockPreProcessor
from mmseg.models.decode_heads import (
    ASPPHead,
    DepthwiseSeparableASPPHead,
    DepthwiseSeparableFCNHead,
    EncHead,
    FCNHead,
    PSPHead,
    SegformerHead,
    UPerHead,
)
from mmseg.models.segmentors import EncoderDecoder as StockEncoderDecoder
from torch import nn

from ..datasets.transforms import LoadBands, LoadImageFromFile
from ..datasets.transforms.geometry import Pad
from ..datasets.transforms.loading import LoadGivenArrays
from ..datasets.transforms.photometric import PackSegInputs
from ..datasets.transforms.resized_crop import Resize, ResizeShortestEdge
from ..errors import UserError
from ..io.bands import LAYOUTS, MAX_BANDS
from ..io.bit_planes import MOST_CLASSES
from ..io.checks import (
    Check,
    NotAllowed,
    Part,
    either,
    fields,
    flag,
    none,
    number,
    one_of,
    one_or_several,
    optional,
    part,
    several,
    text,
    whole,
)
from ..models import EncoderDecoder, ResNeSt, SegDataPreProcessor
from ..models.backbones import MSCAN, MixVisionTransformer
from ..models.heads import DeepLabV3Head, PublishedEncHead, PublishedFCNHead, PublishedPSPHead
from ..models.light_ham import LightHamHead
from ..models.norm import SyncBN
from ..models.resnest import ARCHITECTURES
from ..models.segmentor import check_test_cfg

__all__ = [
    "ACTIVATIONS", "BACKBONES", "CONVOLUTIONS", "HEADS", "IMAGE_CHANNELS", "LOADERS",
    "MAX_CLASSES", "NORMS", "PREPARATION", "PREPROCESSORS", "SEGMENTORS", "STEPS", "loading",
    "scoring",
]  # fmt: skip

#: Classes of a model; scores of a pixel take four bytes for each.
MAX_CLASSES = 2048
#: Edge of an image or a window, and pixels of a resized image.
MAX_EDGE = 16384
MAX_PIXELS = 1 << 26
# Windows overlap by less than this share of their edge, or an image would have millions.
_LEAST_STRIDE = 8

_CHANNELS = whole(1, 16384)
IMAGE_CHANNELS = whole(1, 64)
_EDGE = whole(1, MAX_EDGE)
_RATE = whole(1, 256)
_STAGES = several(whole(0, 3), 1, 4)
_PIXEL = number(-1e6, 1e6)
_SPREAD = number(1e-6, 1e6)
_INTERPOLATION = one_of("nearest", "bilinear", "bicubic", "area", "lanczos")


def _size(value: Any, key: str) -> tuple[int, int]:
    """Two edges of an image."""
    first, second = several(_EDGE, 2, 2)(value, key)
    if first * second > MAX_PIXELS:
        raise NotAllowed(key, f"{first} x {second} are more than {MAX_PIXELS:,} pixels")
    return first, second


def _edge_or_size(value: Any, key: str) -> int | tuple[int, int]:
    return _size(value, key) if type(value) is list else whole(1, 8192)(value, key)


# --- layers ---------------------------------------------------------------------------------

_GROUP_NORM: dict[str, Check] = {
    "num_groups": whole(1, 16384),
    "requires_grad": flag,
    "eps": number(1e-12, 1.0),
    "affine": flag,
}
_BATCH_NORM: dict[str, Check] = {
    "requires_grad": flag,
    "eps": number(1e-12, 1.0),
    "momentum": optional(number(0.0, 1.0)),
    "affine": flag,
    "track_running_stats": flag,
}
# By name: the stack makes the names of layers, and in one head other names, from these.
NORMS = {
    "BN": Part(None, _BATCH_NORM, others=(nn.BatchNorm2d,)),
    "BN2d": Part(None, _BATCH_NORM),
    "SyncBN": Part(None, _BATCH_NORM, others=(SyncBN, nn.SyncBatchNorm)),
    "IN": Part(None, _BATCH_NORM, others=(nn.InstanceNorm2d,)),
    "GN": Part(None, _GROUP_NORM, ("num_groups",), others=(nn.GroupNorm,)),
}
ACTIVATIONS = {
    "ReLU": Part(None, {"inplace": flag}, others=(nn.ReLU,)),
    "ReLU6": Part(None, {"inplace": flag}, others=(nn.ReLU6,)),
    "LeakyReLU": Part(
        None, {"inplace": flag, "negative_slope": number(0.0, 1.0)}, others=(nn.LeakyReLU,)
    ),
    "SiLU": Part(None, {"inplace": flag}, others=(nn.SiLU,)),
    "GELU": Part(None, {}, others=(nn.GELU,)),
}
CONVOLUTIONS = {
    "Conv2d": Part(None, {}, others=(nn.Conv2d,)),
    "Conv": Part(None, {}, others=(Conv2d,)),
}
_LAYER_NORM = {
    "LN": Part(
        None, {"requires_grad": flag, "eps": number(1e-12, 1.0)}, others=(nn.LayerNorm,)
    )
}  # fmt: skip
_NORM, _ACTIVATION = optional(part(NORMS)), optional(part(ACTIVATIONS))
_CONVOLUTION = optional(part(CONVOLUTIONS))

# --- networks -------------------------------------------------------------------------------

_ARCHITECTURE = fields(
    {
        "blocks": several(whole(1, 64), 4, 4),
        "radix": whole(1, 16),
        "groups": whole(1, 256),
        "base_width": whole(1, 1024),
        "stem_width": whole(1, 1024),
        "avd_first": flag,
    },
    ("blocks",),
)
_RESNET: dict[str, Check] = {
    "depth": one_of(18, 34, 50, 101, 152),
    "in_channels": IMAGE_CHANNELS,
    "stem_channels": _CHANNELS,
    "base_channels": whole(1, 1024),
    "num_stages": whole(1, 4),
    "strides": several(one_of(1, 2), 1, 4),
    "dilations": several(_RATE, 1, 4),
    "out_indices": _STAGES,
    "style": one_of("pytorch", "caffe"),
    "frozen_stages": whole(-1, 4),
    "conv_cfg": _CONVOLUTION,
    "norm_cfg": part(NORMS),
    "norm_eval": flag,
    "dcn": none,
    "plugins": none,
    "multi_grid": optional(several(_RATE, 1, 8)),
    "contract_dilation": flag,
    "with_cp": flag,
    "zero_init_residual": flag,
}
_WIDTH = whole(1, 2048)


def _kernel(least: int) -> Check:
    """An edge, or height and width."""
    return one_or_several(whole(least, 64), 2, 2)


_STAGED: dict[str, Check] = {
    "in_channels": IMAGE_CHANNELS,
    "num_stages": whole(4, 4),
    "drop_rate": number(0.0, 1.0),
    "drop_path_rate": number(0.0, 1.0),
    "act_cfg": part(ACTIVATIONS),
}
BACKBONES = {
    "ResNeSt": Part(
        ResNeSt,
        {
            "arch": either(_ARCHITECTURE, one_of(*ARCHITECTURES)),
            "output_stride": one_of(8, 16, 32),
            "out_indices": _STAGES,
            "frozen_stages": whole(-1, 4),
            "in_channels": IMAGE_CHANNELS,
            "norm_cfg": _NORM,
            "norm_eval": flag,
            "with_cp": flag,
            "avd_in_dilated": flag,
            "dropblock_prob": number(0.0, 1.0),
            "dropblock_size": whole(1, 64),
        },
    ),
    "ResNet": Part(ResNet, {**_RESNET, "deep_stem": flag, "avg_down": flag}, ("depth",)),
    "ResNetV1c": Part(ResNetV1c, _RESNET, ("depth",)),
    "ResNetV1d": Part(ResNetV1d, _RESNET, ("depth",)),
    "MSCAN": Part(
        MSCAN,
        {
            **_STAGED,
            "embed_dims": several(_WIDTH, 4, 4),
            "mlp_ratios": several(whole(1, 16), 4, 4),
            "depths": several(whole(1, 64), 4, 4),
            "attention_kernel_sizes": several(_kernel(1), 4, 4),
            "attention_kernel_paddings": several(_kernel(0), 4, 4),
            "norm_cfg": part(NORMS),
        },
    ),
    "MixVisionTransformer": Part(
        MixVisionTransformer,
        {
            **_STAGED,
            "embed_dims": whole(1, 256),
            "num_layers": several(whole(1, 64), 4, 4),
            "num_heads": several(whole(1, 64), 4, 4),
            "patch_sizes": several(whole(1, 16), 4, 4),
            "strides": several(whole(1, 8), 4, 4),
            "sr_ratios": several(whole(1, 16), 4, 4),
            "out_indices": _STAGES,
            "mlp_ratio": whole(1, 16),
            "qkv_bias": flag,
            "attn_drop_rate": number(0.0, 1.0),
            "norm_cfg": part(_LAYER_NORM),
            "with_cp": flag,
        },
    ),
}

_SELECTING_HEAD: dict[str, Check] = {  # which sets input_transform itself
    "in_channels": one_or_several(_CHANNELS, 1, 8),
    "channels": _CHANNELS,
    "num_classes": whole(1, MAX_CLASSES),
    "out_channels": optional(whole(1, MAX_CLASSES)),
    "threshold": optional(number(0.0, 1.0)),
    "dropout_ratio": number(0.0, 1.0),
    "conv_cfg": _CONVOLUTION,
    "norm_cfg": _NORM,
    "act_cfg": _ACTIVATION,
    "in_index": one_or_several(whole(-8, 7), 1, 8),
    "ignore_index": whole(-1000, 65535),
    "align_corners": flag,
}
_HEAD: dict[str, Check] = {
    **_SELECTING_HEAD,
    "input_transform": optional(one_of("resize_concat", "multiple_select")),
}
_FCN_HEAD: dict[str, Check] = {
    **_HEAD,
    "num_convs": whole(0, 16),
    "kernel_size": whole(1, 15),
    "concat_input": flag,
    "dilation": _RATE,
}
_PSP_HEAD: dict[str, Check] = {**_HEAD, "pool_scales": several(whole(1, 64), 1, 16)}
_ASPP_HEAD: dict[str, Check] = {**_HEAD, "dilations": several(_RATE, 1, 16)}
_ENC_HEAD: dict[str, Check] = {
    **_HEAD, "num_codes": whole(1, 1024), "use_se_loss": flag, "add_lateral": flag,
}  # fmt: skip
_SIZES = ("in_channels", "channels", "num_classes")
HEADS = {
    "FCNHead": Part(FCNHead, _FCN_HEAD, _SIZES),
    "PSPHead": Part(PSPHead, _PSP_HEAD, _SIZES),
    "ASPPHead": Part(ASPPHead, _ASPP_HEAD, _SIZES),
    "DepthwiseSeparableASPPHead": Part(
        DepthwiseSeparableASPPHead,
        {**_ASPP_HEAD, "c1_in_channels": whole(0, 16384), "c1_channels": whole(0, 16384)},
        (*_SIZES, "c1_in_channels", "c1_channels"),
    ),
    "DepthwiseSeparableFCNHead": Part(
        DepthwiseSeparableFCNHead, {**_FCN_HEAD, "dw_act_cfg": _ACTIVATION}, _SIZES
    ),
    "EncHead": Part(EncHead, _ENC_HEAD, _SIZES),
    "UPerHead": Part(UPerHead, _PSP_HEAD, _SIZES),
    "PublishedFCNHead": Part(PublishedFCNHead, _FCN_HEAD, _SIZES),
    "PublishedPSPHead": Part(PublishedPSPHead, _PSP_HEAD, _SIZES),
    "PublishedEncHead": Part(PublishedEncHead, _ENC_HEAD, _SIZES),
    "LightHamHead": Part(
        LightHamHead,
        {
            **_SELECTING_HEAD,
            "ham_channels": _CHANNELS,
            "ham_kwargs": fields(
                {
                    "MD_S": whole(1, 16),
                    "MD_R": whole(1, 1024),
                    "train_steps": whole(1, 64),
                    "eval_steps": whole(1, 64),
                    "inv_t": number(0.0, 1e6),
                    "rand_init": flag,
                }
            ),
        },
        (*_SIZES, "ham_channels"),
    ),
    "SegformerHead": Part(
        SegformerHead,
        {**_SELECTING_HEAD, "interpolate_mode": one_of("nearest", "bilinear")},
        _SIZES,
    ),
    "DeepLabV3Head": Part(
        DeepLabV3Head, {**_ASPP_HEAD, "projection_dropout": number(0.0, 1.0)}, ("num_classes",)
    ),
}

# --- images and labels ----------------------------------------------------------------------

PREPARATION: dict[str, Check] = {
    "mean": optional(several(_PIXEL, 1, 64)),
    "std": optional(several(_SPREAD, 1, 64)),
    "bgr_to_rgb": flag,
    "rgb_to_bgr": flag,
    "pad_val": _PIXEL,
    "seg_pad_val": whole(-1000, 65535),
    "size": optional(_size),
    "size_divisor": optional(whole(1, 4096)),
    "test_cfg": optional(
        fields({"size": optional(_size), "size_divisor": optional(whole(1, 4096))})
    ),
}
PREPROCESSORS = {
    "SegDataPreProcessor": Part(SegDataPreProcessor, PREPARATION, others=(StockPreProcessor,))
}

_WINDOW = one_or_several(whole(16, 8192), 2, 2)
_TEST_FIELDS = fields(
    {
        "mode": one_of("whole", "slide", "multi_scale_grid"),
        "crop_size": _WINDOW,
        "stride": _WINDOW,
        "keep_scores": flag,
        "scales": several(number(0.1, 8.0), 1, 16),
        "flip": flag,
        "base_size": whole(16, 8192),
        "window_batch_size": whole(1, 64),
        "thresholds": one_or_several(number(0.0, 1.0), 1, MOST_CLASSES),
    }
)


def scoring(value: Any, key: str) -> dict[str, Any]:
    """How scores are made, see :func:`~mmseg_resnest.models.segmentor.check_test_cfg`."""
    checked = _TEST_FIELDS(value, key)
    try:
        check_test_cfg(checked)
    except UserError as error:
        raise NotAllowed(key, error.text.partition("model.test_cfg")[2].lstrip(". ")) from error
    longest = checked.get("base_size", 520) * max(checked.get("scales", (1.75,)))
    if longest > MAX_EDGE:
        raise NotAllowed(f"{key}.scales", f"make images with an edge of {longest:.0f} pixels")
    if checked.get("mode") == "slide":
        for step, edge in zip(checked["stride"], checked["crop_size"], strict=True):
            if step * _LEAST_STRIDE < edge:
                raise NotAllowed(
                    f"{key}.stride", f"{step} is less than 1/{_LEAST_STRIDE} of the windows' {edge}"
                )
    return checked


_META_KEYS = (
    "img_path", "seg_map_path", "ori_shape", "img_shape", "pad_shape", "scale", "scale_factor",
    "keep_ratio", "flip", "flip_direction", "reduce_zero_label",
)  # fmt: skip
#: How a file's bytes become pixels; where they come from is not among the arguments.
_LOADING: dict[str, Check] = {
    "to_float32": flag,
    "color_type": one_of(
        "color", "grayscale", "unchanged", "color_ignore_orientation",
        "grayscale_ignore_orientation", *range(-1, 256),
    ),
    "imdecode_backend": one_of("cv2", "pillow", "tifffile"),
}  # fmt: skip
_BAND = whole(1, MAX_BANDS)
_BANDS: dict[str, Check] = {
    "bands": optional(several(_BAND, 1, 64)),
    "layout": one_of(*LAYOUTS),
    "nodata": optional(number(-1e39, 1e39)),
    "fill": one_or_several(_PIXEL, 1, 64),
    "picture": optional(several(_BAND, 3, 3)),
}
#: Loaders of other kinds; the last one stands for any that is not here.
LOADERS = {
    "LoadBands": Part(LoadBands, _BANDS),
    "LoadImageFromNpyFile": Part(LoadImageFromNpyFile, _LOADING),
    "LoadSingleRSImageFromFile": Part(LoadSingleRSImageFromFile, {"to_float32": flag}),
    "LoadBiomedicalImageFromFile": Part(
        LoadBiomedicalImageFromFile,
        {"decode_backend": one_of("numpy", "nifti"), "to_xyz": flag, "to_float32": flag},
    ),
    "LoadGivenArrays": Part(LoadGivenArrays, {"loader": text(1024), "rgb": flag}, ("loader",)),
}


def loading(value: Any, key: str) -> dict[str, Any]:
    """The loader: arguments of ``LoadImageFromFile``, or ``type`` and arguments of another one.

    Returns:
        The config of the step, whose ``type`` is a class.
    """
    if isinstance(value, dict) and value.get("type") is not None:
        checked: dict[str, Any] = part(LOADERS)(value, key)
        try:
            checked["type"](**{k: v for k, v in checked.items() if k != "type"})
        except (UserError, RuntimeError) as error:
            said = error.text if isinstance(error, UserError) else str(error)
            raise NotAllowed(key, said) from error
        return checked
    return dict(fields(_LOADING)(value, key), type=LoadImageFromFile)


STEPS = {
    "Resize": Part(
        Resize,
        {
            "scale": optional(_edge_or_size),
            "scale_factor": optional(one_or_several(number(0.05, 2.0), 2, 2)),
            "keep_ratio": flag,
            "clip_object_border": flag,
            "backend": one_of("cv2", "pillow"),
            "interpolation": _INTERPOLATION,
        },
        others=(StockResize,),
    ),
    "ResizeToMultiple": Part(
        ResizeToMultiple,
        {"size_divisor": whole(1, 4096), "interpolation": optional(_INTERPOLATION)},
    ),
    "ResizeShortestEdge": Part(
        ResizeShortestEdge,
        {"scale": _edge_or_size, "max_size": whole(1, 8192)},
        ("scale", "max_size"),
        others=(StockResizeShortestEdge,),
    ),
    "Pad": Part(
        Pad,
        {
            "size": optional(_size),
            "size_divisor": optional(whole(1, 4096)),
            "pad_val": either(
                fields({"img": one_or_several(_PIXEL, 1, 64), "seg": whole(-1000, 65535)}), _PIXEL
            ),
            "padding_mode": one_of("constant", "edge", "reflect", "symmetric"),
        },
        others=(StockPad,),
    ),
    "Normalize": Part(
        Normalize,
        {"mean": several(_PIXEL, 1, 64), "std": several(_SPREAD, 1, 64), "to_rgb": flag},
        ("mean", "std"),
    ),
    "PackSegInputs": Part(
        PackSegInputs,
        {"meta_keys": several(one_of(*_META_KEYS), 0, 32)},
        others=(StockPackSegInputs,),
    ),
}

SEGMENTORS = {
    "EncoderDecoder": Part(
        EncoderDecoder,
        {
            "data_preprocessor": part(PREPROCESSORS),
            "backbone": part(BACKBONES),
            "neck": none,
            "decode_head": part(HEADS),
            "test_cfg": optional(scoring),
            "multilabel": flag,
        },
        ("data_preprocessor", "backbone", "decode_head"),
        others=(StockEncoderDecoder,),
    )
}
