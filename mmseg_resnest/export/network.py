# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The part of a model that an exported file holds, in a form whose sizes stay free."""

from __future__ import annotations

import copy
import json
from typing import Any, cast

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmseg.models.data_preprocessor import SegDataPreProcessor as StockPreProcessor
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._stack import converts_channels, normalisation, shape_as_tensor
from ..datasets.reader import ImageReader
from ..errors import UserError
from ..inference import Segmentor
from ..inference.record import check_exported, plain_loading, plain_pipeline
from ..io.checks import NotAllowed
from ..models import SegDataPreProcessor, thresholds_of
from ..runtimes.free_sizes import keep_sizes_free
from ..version import __version__

__all__ = ["AlignedCorners", "ExportNetwork", "make_record", "output_of", "reading"]

ONLY_KNOWN_PARTS = (
    "exported and published models load without trust, so they may only have parts of this "
    "package: remove it, or share the config and the checkpoint instead"
)
_PLACES = {
    "loading": "test_dataloader.dataset.pipeline",
    "pipeline": "test_dataloader.dataset.pipeline",
    "test_cfg": "model.test_cfg",
    "data_preprocessor": "model.data_preprocessor",
}


class _Quotient(torch.autograd.Function):
    """A quotient for the ONNX exporter, which computes those of sizes in float32."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return a / b

    @staticmethod
    def symbolic(g: Any, a: Any, b: Any) -> Any:
        return g.op("Div", a, b)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return _Quotient.apply(a, b) if torch.onnx.is_in_onnx_export() else a / b


class _ImageResize(nn.Module):
    """The test pipeline's ``Resize`` of 8-bit images, bilinear, to the last bit.

    Both libraries compute with whole numbers, which float64 holds exactly. Pillow's triangle
    filter widens with the scale, its weights have 22 bits and each of its two passes rounds to 8
    (Pillow, ``Resample.c``); Pillow 13 begins with the rows where they shrink by more than twice
    as much as the columns. OpenCV interpolates between two neighbours with weights of 11 bits
    and drops bits on the way (OpenCV, ``resize.cpp``, ``VResizeLinear``).

    Args:
        scale: ``(width, height)``, or the long and the short edge with ``keep_ratio``.
        keep_ratio: Fit into ``scale`` (mmcv's ``rescale_size``).
        backend: ``pillow`` or ``cv2``.
    """

    def __init__(self, scale: tuple[int, int], keep_ratio: bool, backend: str) -> None:
        super().__init__()
        self.scale, self.keep_ratio, self.pillow = scale, keep_ratio, backend == "pillow"
        self.rows_first = True  # where that is Pillow's order
        if self.pillow and not self._is_exact(((80, 20), (50, 15))):
            self.rows_first = False

    def is_exact(self) -> bool:
        """Whether the libraries that are installed resize so; processors may differ as well."""
        sizes = (
            ((80, 20), (50, 15)),
            ((20, 80), (31, 50)),
            ((33, 66), (35, 70)),
            ((41, 57), (9, 90)),
        )
        return all(map(self._is_exact, sizes))

    def _is_exact(self, sizes: tuple[tuple[int, int], tuple[int, int]]) -> bool:
        """Whether an image of the first size, height and width, is resized well to the second."""
        (height, width), target = sizes
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
        backend = "pillow" if self.pillow else "cv2"
        want = mmcv.imresize(pixels, target[::-1], backend=backend)
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
        got = self._resized(x, torch.tensor(target), torch.tensor((height, width)))
        return np.array_equal(got[0].permute(1, 2, 0).numpy(), want)

    def _size(self, edges: Tensor) -> Tensor:
        """Height and width of the target, int64, for those of the source."""
        if not self.keep_ratio:
            return torch.tensor(self.scale[::-1], dtype=torch.int64, device=edges.device)
        wide = edges.double()
        bounds = torch.tensor([max(self.scale), min(self.scale)], dtype=torch.float64)
        factor = _divide(bounds.to(wide.device), torch.stack([wide.amax(), wide.amin()])).amin()
        return (wide * factor + 0.5).floor().to(torch.int64)

    @staticmethod
    def _triangle(target: Any, length: Any) -> Tensor:
        """(target, length) weights along one axis, in units of 2**-22."""
        # The filter 1 - |source + 0.5 - (target + 0.5) * step| / max(step, 1) with
        # step = length / target, times 2 * target * max(step, 1): whole numbers.
        place = 2 * torch.arange(target, device=target.device) + 1
        source = 2 * torch.arange(length, device=target.device) + 1
        distance = (source * target - place[:, None] * length).abs()
        inside = 2 * torch.maximum(length, target) - distance
        weights = torch.maximum(inside, torch.zeros_like(inside)).double()
        return (_divide(weights, weights.sum(1, keepdim=True)) * 2.0**22 + 0.5).floor()

    @staticmethod
    def _neighbours(target: Any, length: Any, rows: bool) -> tuple[Tensor, ...]:
        """Both neighbours along one axis, and their weights in units of 2**-11.

        At the border OpenCV gives all weight to one column, but to a row both weights.
        """
        index = torch.arange(target, device=target.device).double()
        # Of one value, not of none: the ONNX exporter makes those float32.
        sizes = target.reshape(1).double(), length.reshape(1).double()
        step = _divide(torch.ones_like(sizes[0]), _divide(*sizes))
        place = ((index + 0.5) * step - 0.5).float()
        below = place.floor()
        share = place - below
        first = below.to(torch.int64)
        none = torch.zeros_like(first)
        if not rows:
            share = share * ((first >= 0) & (first < length - 1)).float()
        near, far = ((w * 2048.0).round().double() for w in (1 - share, share))
        first, second = (
            torch.minimum(torch.maximum(at, none), length - 1) for at in (first, first + 1)
        )
        return first, second, near, far

    def forward(self, x: Tensor) -> Tensor:
        """Resizes ``x`` (N, C, H, W) of whole numbers 0..255, float."""
        edges = shape_as_tensor(x)[2:].to(x.device)
        return self._resized(x.double(), self._size(edges), edges).to(x.dtype)

    def _resized(self, wide: Tensor, size: Tensor, edges: Tensor) -> Tensor:
        if self.pillow:
            across, down = (self._triangle(size[i], edges[i]) for i in (1, 0))
            result = _rounded(down @ _rounded(wide @ across.t()))
            if self.rows_first:
                shrinks = edges - size
                first = (shrinks[0] > 2 * shrinks[1]) & (shrinks[0] > 0)
                result = torch.where(first, _rounded(_rounded(down @ wide) @ across.t()), result)
            return result.clamp(0.0, 255.0)
        left, right, near, far = self._neighbours(size[1], edges[1], False)
        across = wide.index_select(3, left) * near + wide.index_select(3, right) * far
        across = (across * 2.0**-4).floor()
        upper, lower, near, far = self._neighbours(size[0], edges[0], True)
        down = (across.index_select(2, upper) * near[:, None] * 2.0**-16).floor()
        down = down + (across.index_select(2, lower) * far[:, None] * 2.0**-16).floor()
        return ((down + 2.0) * 0.25).floor().clamp(0.0, 255.0)


def _rounded(sums: Tensor) -> Tensor:
    """Sums of Pillow's weights as whole numbers."""
    return (sums * 2.0**-22 + 0.5).floor()


class ExportNetwork(nn.Module):
    """What goes into the file: a copy of a model's backbone, neck and head.

    It takes normalised images (N, 3, H, W), float32, and gives scores (N, C, H, W). With
    ``processing`` it takes images as they are, (N, H, W, 3) RGB of uint8, and gives label maps
    (N, H, W), uint8 (int32 with more than 255 classes); with classes that may overlap it gives
    masks (N, C, H, W) of 0 and 1, uint8. Where the config reads images of another
    number of channels, the file takes that many. A UserError says why a model cannot be exported
    so.
    """

    mean: Tensor
    std: Tensor
    limits: Tensor

    def __init__(self, model: Segmentor, processing: bool = False) -> None:
        super().__init__()
        net = cast(Any, model.model)
        if not hasattr(net, "decode_head") or isinstance(net.decode_head, nn.ModuleList):
            raise UserError(
                "export", "config key model.decode_head", "cascades of heads cannot be exported"
            )
        if type(net.data_preprocessor) not in (SegDataPreProcessor, StockPreProcessor):
            raise UserError(
                "export", "config key model.data_preprocessor.type",
                "only a SegDataPreProcessor can be exported",
            )  # fmt: skip
        self.processing = processing
        self.net = copy.deepcopy(net).cpu().float().eval()
        self.net.data_preprocessor = nn.Identity()
        if getattr(self.net, "auxiliary_head", None) is not None:
            del self.net.auxiliary_head
        self.resize: nn.Module | None = None
        if processing:
            self._take_preprocessor(net)
            self.resize = _resize_step(model)
            _check_reading(model, self.resize is not None)
        self.channels = model.channels or 3
        self.threshold = net.decode_head.threshold if net.out_channels == 1 else None
        self.many = len(model.classes) > 255
        self.multilabel = model.multilabel
        if self.multilabel:
            limits = torch.tensor(thresholds_of(net.test_cfg, len(model.classes)))
            self.register_buffer("limits", limits.view(-1, 1, 1))
        keep_sizes_free(self.net)
        self.requires_grad_(False)

    def _take_preprocessor(self, net: Any) -> None:
        mode = net.test_cfg.get("mode", "whole")
        if mode != "whole":
            raise UserError(
                "export", "config key model.test_cfg.mode",
                f"with --processing the file scores the whole image at once, not by {mode!r}: "
                "export without it, or add --cfg-options model.test_cfg.mode=whole",
            )  # fmt: skip
        pre = net.data_preprocessor
        settings = dict(pre.test_cfg or {})
        self.divisor, self.padding = int(settings.pop("size_divisor", None) or 1), pre.pad_val
        if settings:
            raise UserError(
                "export", "config key model.data_preprocessor.test_cfg",
                "it pads images to a size, which a file with --processing cannot do: export "
                "without it",
            )  # fmt: skip
        self.to_bgr = not converts_channels(pre)  # pipelines read BGR, the file takes RGB
        values = normalisation(pre)
        self.normalise = values is not None
        for name, value in zip(("mean", "std"), values or (), strict=False):
            self.register_buffer(name, value.detach().clone().cpu().float())

    def scores(self, images: Tensor) -> Tensor:
        """(N, C, H, W) scores of normalised images (N, 3, H, W)."""
        size = images.shape[2:]
        features = self.net.extract_feat(images)
        metas = [{"img_shape": size, "pad_shape": size}]
        return self.net.decode_head.predict(features, metas, self.net.test_cfg)

    def forward(self, images: Tensor) -> Tensor:
        """Scores, or labels with ``processing``; see the class."""
        if not self.processing:
            return self.scores(images)
        x = images.permute(0, 3, 1, 2).float()
        if self.resize is not None:
            x = self.resize(x)
        if self.to_bgr and self.channels == 3:
            x = x[:, [2, 1, 0]]
        if self.normalise:
            x = (x - self.mean) / self.std
        height, width = x.shape[2:]
        if self.divisor > 1:
            right, below = (-width % self.divisor, -height % self.divisor)
            x = F.pad(x, (0, right, 0, below), value=self.padding)
        scores = self.scores(x)[:, :, :height, :width]
        if self.resize is not None:
            scores = F.interpolate(
                scores, images.shape[1:3], mode="bilinear", align_corners=self.net.align_corners
            )
        if self.multilabel:
            return (scores.sigmoid() > self.limits).to(torch.uint8)
        if self.threshold is not None:
            labels = (scores[:, 0].sigmoid() > self.threshold).to(torch.int64)
        else:
            labels = scores.argmax(1)
        return labels.to(torch.int32 if self.many else torch.uint8)

    def sample(self) -> Tensor:
        """An input to follow through the graph, of the sizes of ``write_scores_network``."""
        generator = torch.Generator().manual_seed(0)
        if self.processing:
            size = (2, 160, 192, self.channels)
            return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
        return torch.randn(2, self.channels, 160, 192, generator=generator)


def reading(model: Segmentor) -> dict[str, Any]:
    """The keys of a record that say how images are read and prepared, as JSON has them."""
    loading, scope = model.reader.describe_loading(), model.cfg.get("default_scope", "mmseg")
    if loading is None:
        loading = plain_loading(model.reader.loading, bool(model.reader.rgb), scope)
    default = ImageReader().describe_loading()
    return {
        **({} if loading == default else {"loading": loading}),
        "pipeline": plain_pipeline(model.reader.preparing, scope),
    }


def _check_reading(model: Segmentor, resizes: bool) -> None:
    """Refuse a loader whose images are no RGB or grey ones of uint8."""
    wrong = ""
    if not model.reader.eight_bit:
        wrong = "takes 8-bit images, but this config's loader does not make them 8-bit"
    elif model.channels == 3 and not getattr(model.reader.decoding, "colours", True):
        wrong = "takes images of the network's 3 channels, but this config's loader makes one"
    elif resizes and model.reader.to_float32:
        wrong = "resizes 8-bit images, but this config's loader has to_float32=True"
    if wrong:
        said = f"a file with --processing {wrong}: export without it"
        raise UserError("export", model.reader.key, said)


def _resize_step(model: Segmentor) -> _ImageResize | None:
    """The test pipeline's resizing as part of the graph; a UserError if it does more."""
    found: _ImageResize | None = None
    for step in reading(model)["pipeline"]:
        if step["type"] == "PackSegInputs":
            continue
        known = {"type", "scale", "keep_ratio", "backend", "interpolation"}
        simple = (
            step["type"] == "Resize"
            and found is None
            and set(step) <= known
            and isinstance(step.get("scale"), list | tuple)
            and step.get("interpolation", "bilinear") == "bilinear"
        )
        if not simple:
            raise UserError(
                "export", "config key test_dataloader.dataset.pipeline",
                f"a file with --processing cannot do the step {step['type']}: export without "
                "it, or remove the step",
            )  # fmt: skip
        width, height = (int(edge) for edge in step["scale"])
        found = _ImageResize(
            (width, height), bool(step.get("keep_ratio", False)), step.get("backend", "cv2")
        )
    if found is not None and not found.is_exact():
        library = "Pillow" if found.pillow else "OpenCV"
        said = f"{library} does not resize here as a file with --processing would: export without "
        said += "it"
        raise UserError("export", "config key test_dataloader.dataset.pipeline", said)
    return found


def output_of(model: Segmentor, processing: bool) -> str:
    """What an exported file gives, as its record and its output say it."""
    if not processing:
        return "logits"
    return "masks" if model.multilabel else "labels"


def make_record(model: Segmentor, processing: bool) -> str:
    """The JSON record that goes with the network, see :mod:`mmseg_resnest.inference.runtimes`.

    A UserError names what the config has and a record may not have.
    """
    net = cast(Any, model.model)
    pre = net.data_preprocessor
    values = normalisation(pre)
    record = {
        "format": 1,
        "version": __version__,
        "name": str(model.cfg.filename or "model").rsplit("/", 1)[-1].removesuffix(".py"),
        "input": "uint8" if processing else "float32",
        "output": output_of(model, processing),
        **({"multilabel": True} if model.multilabel else {}),
        "classes": list(model.classes),
        "palette": [list(colour) for colour in model.palette],
        "align_corners": bool(net.align_corners),
        "in_channels": model.channels or 3,
        "out_channels": int(net.out_channels),
        "threshold": getattr(net.decode_head, "threshold", None),
        "data_preprocessor": {
            "mean": values[0].flatten().tolist() if values else None,
            "std": values[1].flatten().tolist() if values else None,
            "bgr_to_rgb": converts_channels(pre),
            "pad_val": pre.pad_val,
            "seg_pad_val": pre.seg_pad_val,
            "test_cfg": pre.test_cfg,
        },
        "test_cfg": dict(net.test_cfg),
        **reading(model),
    }
    # As JSON has it: lists for tuples. What JSON has no type for is refused as a text.
    record = json.loads(json.dumps(record, default=repr))
    try:
        check_exported(record)
    except NotAllowed as error:
        place = _PLACES.get(error.key.partition(".")[0].partition("[")[0], "model")
        raise UserError("export", f"config key {place}", f"{error}; {ONLY_KNOWN_PARTS}") from error
    return json.dumps(record)


class AlignedCorners(TorchFunctionMode):
    """Makes the bilinear resizes of a network with ``align_corners`` while it is exported.

    The heads' ``resize`` reads sizes as numbers, to warn about some, where ``align_corners`` is
    set, and torch.export would fix those sizes. So the heads of ``net``, the copy that is exported,
    are given False, and the operation below them True.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.heads = [m for m in net.modules() if getattr(m, "align_corners", False)]
        for module in self.heads:
            module.align_corners = False  # type: ignore[assignment]

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self.heads and func is F.interpolate and kwargs.get("align_corners") is False:
            kwargs["align_corners"] = True
        return func(*args, **kwargs)
