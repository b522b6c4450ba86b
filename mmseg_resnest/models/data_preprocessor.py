# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The stack's data preprocessor under its name, for any number of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mmseg.models.data_preprocessor

from .._stack import set_normalisation, take_channel_conversion
from ..errors import UserError
from ..registry import MODELS

__all__ = ["SegDataPreProcessor"]


@MODELS.register_module()
class SegDataPreProcessor(mmseg.models.data_preprocessor.SegDataPreProcessor):
    """mmseg's ``SegDataPreProcessor``, whose own takes one or three means.

    Args:
        mean: Of each channel, in the order of the network's input; or one of all.
        std: Deviation of each channel, as many.
        *args: As of mmseg's.
        **kwargs: As of mmseg's.

    Raises:
        UserError: There are not as many deviations as means.
    """

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if mean is None or std is None or {len(mean), len(std)} <= {1, 3}:
            super().__init__(mean, std, *args, **kwargs)
        elif len(mean) != len(std):
            message = f"has {len(std)} values, and mean {len(mean)}"
            raise UserError("config-value", "config key model.data_preprocessor.std", message)
        else:
            super().__init__(None, None, *args, **kwargs)
            set_normalisation(self, mean, std)
        self.converts_channels = take_channel_conversion(self)

    def forward(self, data: dict, training: bool = False) -> dict[str, Any]:
        """As of mmseg's, which swaps red and blue by an index that it copies to a GPU each time.

        That waits for the GPU, once an image; here they are swapped before.
        """
        inputs = data["inputs"]
        if self.converts_channels and len(inputs[0]) == 3:
            data = {**data, "inputs": [image.flip(0) for image in inputs]}
        return super().forward(data, training)
