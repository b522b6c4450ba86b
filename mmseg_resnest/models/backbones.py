# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""MMSegmentation's backbones of SegNeXt and SegFormer, which can be built without memory.

Theirs read the rates of their dropped paths from a tensor of the default device, and the meta
device, on which a published file is compared with its network first, has no numbers.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from mmengine.model import BaseModule
from mmseg.models.backbones import MSCAN as StockMSCAN
from mmseg.models.backbones import MixVisionTransformer as StockMixVisionTransformer
from torch.overrides import TorchFunctionMode

from ..registry import MODELS

__all__ = ["MSCAN", "MixVisionTransformer"]


class _RatesOnCPU(TorchFunctionMode):
    """Makes what ``torch.linspace`` returns a tensor of the CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


@MODELS.register_module()
class MSCAN(StockMSCAN):
    """SegNeXt's backbone (arXiv 2209.08575); takes the arguments of MMSegmentation's class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with _RatesOnCPU():
            super().__init__(*args, **kwargs)

    def init_weights(self) -> None:
        """Initialise the weights, or load those of ``init_cfg``; the stack's prints that, too."""
        if self.init_cfg is None:
            StockMixVisionTransformer.init_weights(cast(Any, self))  # the same rule
        else:
            BaseModule.init_weights(self)


@MODELS.register_module()
class MixVisionTransformer(StockMixVisionTransformer):
    """SegFormer's backbone (arXiv 2105.15203); takes the arguments of MMSegmentation's class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with _RatesOnCPU():
            super().__init__(*args, **kwargs)
