# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The initialiser ``Pretrained`` of scope ``mmseg_resnest``, which reads files safely."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from ..registry import WEIGHT_INITIALIZERS
from ..weights import load_backbone
from ..weights.load_into import below, load_tensors
from ..weights.mmengine_loaders import read_any
from ..weights.partial import Fit, fit, not_fitting
from ..weights.state_dict import unwrap_state_dict
from .resnest import ResNeSt

__all__ = ["Pretrained", "check_pretrained"]

#: Modules of the stack that read the file themselves, and the prefixes that they take off.
_OWN_LOADERS: dict[str, tuple[str, ...]] = {
    "SwinTransformer": ("", "backbone."),
    **dict.fromkeys(("BEiT", "MAE", "PIDNet", "VisionTransformer"), ("",)),
}


@WEIGHT_INITIALIZERS.register_module()
class Pretrained:
    """As MMEngine's initialiser of this name, for modules of the stack such as ``ResNet``.

    MMEngine unpickles without restriction where a restricted reading fails, and passes over what
    does not fit; this one reads tensors and plain data only, takes the names of the catalogue as
    well, and loads what fits by name: one log line says how much that was and what stays. Where the
    module takes another number of channels, its first convolution is adapted
    (:func:`~mmseg_resnest.weights.input_channels.adapt_stem`).
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
        found = self.fit(module)
        load_tensors(module, found.loaded)
        said = f"{type(module).__name__}: loaded {found.say(module)} from {self.checkpoint}"
        print_log(said, logger="current")

    def fit(self, module: nn.Module) -> Fit:
        """What of the file goes where in a module; errors are those of the class."""
        label = str(self.checkpoint)
        values = unwrap_state_dict(read_any(self.checkpoint), label)
        state = {key: value for key, value in values.items() if isinstance(value, Tensor)}
        if self.prefix is not None:
            state = below(self.prefix, state, label)
        found = fit(state, module, any_channels=True)
        loaded, total = found.numbers
        advice = "give weights of this network"
        prefixes = _OWN_LOADERS.get(type(module).__name__)
        if prefixes is not None:  # it fits shapes in its own way
            good = bool(found.placed) and found.prefix in prefixes and not found.stem.said
            advice += f", or start from them with load_from={label!r}, "
            advice += "which adapts them" if found.stem.name else "which finds their prefix"
        else:
            good = not found.shapes and 2 * loaded >= total
        if not good:
            if found.stem.said and not found.stem.name:
                advice += f"; {found.stem.said}"
            wrong = {
                "have another shape": list(found.shapes.values()),
                "are missing": found.missing,
                "of the file have no place in it": list(found.left_out) or list(state),
            }
            raise not_fitting(label, module, wrong, advice)
        return found


def check_pretrained(module: nn.Module, init_cfg: Mapping[str, Any]) -> str:
    """Check that the file of an ``init_cfg`` can be read and fits a module; loads nothing.

    Returns:
        What will be loaded, in words.

    Raises:
        UserError: As :class:`Pretrained` and :func:`~mmseg_resnest.weights.load_backbone` do.
    """
    checkpoint, prefix = init_cfg["checkpoint"], init_cfg.get("prefix")
    if isinstance(module, ResNeSt):
        return load_backbone(module, checkpoint, prefix, check_only=True)
    return Pretrained(checkpoint, prefix).fit(module).say(module)
