# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The stack's data preprocessor under its name, for any number of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mmseg.models.data_preprocessor

from .._stack import set_normalisation
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
        own = mean is not None and std is not None and len(mean) not in (1, 3)
        super().__init__(None if own else mean, None if own else std, *args, **kwargs)
        if own:
            if len(mean) != len(std):  # type: ignore[arg-type]
                message = f"has {len(std)} values, and mean {len(mean)}"  # type: ignore[arg-type]
                raise UserError("config-value", "config key model.data_preprocessor.std", message)
            set_normalisation(self, mean, std)  # type: ignore[arg-type]
