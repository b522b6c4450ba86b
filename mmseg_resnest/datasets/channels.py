# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""How many channels a model takes, and whether images have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..registry import MODELS, option_of, type_name
from .pipelines import preprocessor_of

__all__ = ["Channels"]

_KEYS = "mean and std of model.data_preprocessor and model.backbone.in_channels"
#: Parts that leave the channels of images as they are.
_PLAIN = ("EncoderDecoder", "SegDataPreProcessor")


@dataclass(frozen=True)
class Channels:
    """What a model does with the channels of an image.

    Attributes:
        normalised: For how many channels it has means and deviations; None without any.
        taken: How many its backbone takes; None where its parts do not tell.
    """

    normalised: int | None
    taken: int | None

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> Channels:
        """What the config of a model says of them."""
        model, preprocessor = cfg.get("model") or {}, preprocessor_of(cfg)
        kinds = [type_name(node.get("type")) for node in (model, preprocessor) if node]
        if not all(kind in _PLAIN for kind in kinds):
            return cls(None, None)
        mean = preprocessor.get("mean")
        backbone = model.get("backbone")
        taken = (
            option_of(MODELS, backbone, "in_channels") if isinstance(backbone, Mapping) else None
        )
        return cls(
            len(mean) if isinstance(mean, Sequence) else None,
            taken if isinstance(taken, int) else None,
        )

    def fault(self, found: int) -> tuple[str, str] | None:
        """The config key that does not fit images of ``found`` channels, and why; or None."""
        normalised = self.normalised or 1  # one mean is that of all channels
        images = f"images have {found} channel{'s' if found > 1 else ''}"
        if found != normalised and 1 not in (found, normalised):
            what = f"{images}, but model.data_preprocessor.mean and std have {normalised} values"
            return "config key model.data_preprocessor.mean", what
        if self.taken in (None, max(found, normalised)):
            return None
        means = "no mean" if self.normalised is None else f"mean and std have {normalised}"
        what = f"{images}, but model.backbone.in_channels is {self.taken} "
        what += f"(model.data_preprocessor: {means})"
        return "config key model.backbone.in_channels", what

    def conflict(self, found: int, loader: str) -> UserError | None:
        """The error of images of ``found`` channels, of a data loader at a key; or None."""
        fault = self.fault(found)
        if fault is None:
            return None
        remedy = f"change color_type of the loader in {loader}.dataset.pipeline, or {_KEYS}"
        return UserError("config-conflict", fault[0], f"{fault[1]}; {remedy}")
