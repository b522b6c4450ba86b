# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""MMSegmentation's head of SegNeXt (arXiv 2209.08575), whose predictions are the same every time.

It factors the features of an image into bases and coefficients (non-negative matrix
factorisation, arXiv 2109.04553) and begins with random bases. The stack draws them anew at each
prediction, so that two predictions of one image differ, and an exported file from both.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads import LightHamHead as StockLightHamHead
from mmseg.models.decode_heads.ham_head import NMF2D
from torch import Tensor

from ..registry import MODELS
from .heads import without_autocast

__all__ = ["FixedBasesNMF2D", "LightHamHead"]

_SEED = 0


class FixedBasesNMF2D(NMF2D):
    """Matrix factorisation that begins with the same bases in every evaluation.

    In training the bases are drawn for each image of each step, as published; with
    ``rand_init=False`` they are the fixed ones there, too. The fixed bases are drawn from a seed
    of their own, one set for all images, and are no part of a checkpoint. Computed in float32 at
    least, whatever the autocast type, since quotients of small sums lose their digits in 16 bits.

    Args:
        channels: Channels C of the features.
        settings: The arguments of the stack's ``NMF2D``: ``MD_S``, ``MD_R``, ``train_steps``,
            ``eval_steps``, ``rand_init``.
    """

    bases_at_rest: Tensor

    def __init__(self, channels: int, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.draws = bool(settings.get("rand_init", True))
        self.rand_init = True  # so that the stack keeps none itself
        generator = torch.Generator().manual_seed(_SEED)
        size = (self.S, channels // self.S, self.R)
        bases = F.normalize(torch.rand(size, generator=generator, device="cpu"), dim=1)
        self.register_buffer(
            "bases_at_rest", bases.to(torch.get_default_device()), persistent=False
        )

    def _build_bases(self, B: int, S: int, D: int, R: int, device: Any = None) -> Tensor:
        """(B * S, D, R) bases to begin with."""
        if self.training and self.draws:
            # On the device at once: the stack's are drawn on the CPU, and copying waits for a GPU.
            return F.normalize(torch.rand((B * S, D, R), device=device), dim=1)
        return self.bases_at_rest.repeat(B, 1, 1)

    def forward(self, x: Tensor, return_bases: bool = False) -> Tensor:
        """Maps features (N, C, H, W), none negative, to their approximation, of the same shape."""
        with without_autocast(x):
            wide = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
            return super().forward(wide)


@MODELS.register_module()
class LightHamHead(StockLightHamHead):
    """MMSegmentation's head of SegNeXt with :class:`FixedBasesNMF2D`; takes its arguments."""

    def __init__(
        self, ham_channels: int = 512, ham_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        settings = dict(ham_kwargs or {})
        super().__init__(ham_channels, settings, **kwargs)
        self.hamburger.ham = FixedBasesNMF2D(ham_channels, settings)
