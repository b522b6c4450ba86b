# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The initialiser ``Pretrained`` of scope ``mmseg_resnest``, which reads files safely."""

from __future__ import annotations

from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from ..registry import WEIGHT_INITIALIZERS
from ..weights.load_into import below, load_tensors
from ..weights.mmengine_loaders import read_any
from ..weights.partial import fit, not_fitting
from ..weights.state_dict import unwrap_state_dict

__all__ = ["Pretrained"]


@WEIGHT_INITIALIZERS.register_module()
class Pretrained:
    """As MMEngine's initialiser of this name, for modules of the stack such as ``ResNet``.

    MMEngine unpickles without restriction where a restricted reading fails, and passes over what
    does not fit; this one reads tensors and plain data only, takes the names of the catalogue as
    well, and loads what fits by name: one log line says how much that was and what stays.
    ``map_location`` is not used.

    Args:
        checkpoint: A file, an address or a name.
        prefix: Use only the keys that start with it, without it; None finds the prefix.

    Raises:
        UserError: The file cannot be fetched or read, or holds more than tensors and plain data;
            no key has the prefix; a tensor has another shape; or less than half of the module's
            parameters is in the file.
    """

    def __init__(
        self, checkpoint: str, prefix: str | None = None, map_location: Any = "cpu"
    ) -> None:
        self.checkpoint = checkpoint
        self.prefix = prefix

    def __call__(self, module: nn.Module) -> None:
        """Load the weights into a module, in place."""
        label = str(self.checkpoint)
        values = unwrap_state_dict(read_any(self.checkpoint), label)
        state = {key: value for key, value in values.items() if isinstance(value, Tensor)}
        if self.prefix is not None:
            state = below(self.prefix, state, label)
        found = fit(state, module)
        loaded, total = found.numbers
        if found.shapes or 2 * loaded < total:
            wrong = {
                "have another shape": list(found.shapes.values()),
                "are missing": found.missing,
                "of the file have no place in it": list(found.left_out),
            }
            raise not_fitting(label, module, wrong, "give weights of this network")
        load_tensors(module, found.loaded)
        name = type(module).__name__
        print_log(f"{name}: loaded {found.say(module)} from {label}", logger="current")
