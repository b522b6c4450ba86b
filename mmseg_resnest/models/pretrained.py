# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The initialiser ``Pretrained`` of scope ``mmseg_resnest``, which reads files safely."""

from __future__ import annotations

from typing import Any

from mmengine.logging import print_log
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from ..errors import UserError
from ..registry import WEIGHT_INITIALIZERS
from ..weights.mmengine_loaders import read_any

__all__ = ["Pretrained"]


@WEIGHT_INITIALIZERS.register_module()
class Pretrained:
    """As MMEngine's initialiser of this name, for modules of the stack such as ``ResNet``.

    MMEngine unpickles without restriction where a restricted reading fails; this one reads tensors
    and plain data only, and takes the names of the catalogue as well; ``map_location`` is not used.
    As in MMEngine, keys that do not fit are logged, not refused.

    Raises:
        UserError: The file cannot be fetched or read, or holds more than tensors and plain data;
            or no key has the prefix.
    """

    def __init__(
        self, checkpoint: str, prefix: str | None = None, map_location: Any = "cpu"
    ) -> None:
        self.checkpoint = checkpoint
        self.prefix = prefix

    def __call__(self, module: nn.Module) -> None:
        """Load the weights into a module, in place."""
        record = read_any(self.checkpoint)
        state = record.get("state_dict", record)
        state = {key.removeprefix("module."): value for key, value in state.items()}
        if self.prefix is not None:
            prefix = f"{self.prefix.removesuffix('.')}."
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if not state:
                raise UserError(
                    "checkpoint",
                    self.checkpoint,
                    f"no key starts with {prefix}; remove prefix from init_cfg or correct it",
                )
        print_log(f"load {self.prefix or 'weights'} from {self.checkpoint}", logger="current")
        load_state_dict(module, state, strict=False, logger="current")
