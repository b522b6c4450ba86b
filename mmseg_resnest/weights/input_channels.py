# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Weights of a network for RGB images, for one that takes another number of channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

_RGB = 3


class Stem(NamedTuple):
    """What became of a first convolution.

    Attributes:
        name: Of its weight, if it was adapted; "" otherwise.
        said: What was done, or why nothing; "" where the channels are the file's.
    """

    name: str = ""
    said: str = ""


def for_channels(weight: Tensor, channels: int) -> Tensor:
    """The weight (out, 3, k, k) of a convolution of RGB images, for another number of channels.

    Channel i becomes ``weight[:, i % 3] * 3 / channels``, so that an image that has the same values
    in all channels gives the same features; for one channel the three are summed. This is the rule
    of segmentation_models_pytorch (``encoders/_utils.py``, ``patch_first_conv``).

    Args:
        weight: Of the convolution.
        channels: N, at least 1.

    Returns:
        (out, N, k, k), same type.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    indices = [channel % _RGB for channel in range(channels)]
    return weight[:, indices] * (_RGB / channels)


def adapt_stem(placed: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], Stem]:
    """Adapt the first convolution of a network for RGB images to the channels that a model takes.

    It is adapted where it can be found plainly: it is the model's first ``Conv2d``, not grouped,
    and the only one that takes the image.

    Args:
        placed: Tensors of a file under the model's names.
        model: The model, or its backbone.

    Returns:
        The tensors, with the adapted weight, and what was done.
    """
    target = model.state_dict()
    takers = {
        name: value.shape
        for name, value in placed.items()
        if value.ndim == target[name].ndim == 4
        and value.shape[1] != target[name].shape[1]
        and _without_channels(value) == _without_channels(target[name])
    }
    if not takers:
        return dict(placed), Stem()
    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    first = next(iter(convolutions), "")
    name = f"{first}.weight"
    if name not in takers:
        return dict(placed), Stem()
    channels = convolutions[first].in_channels
    why_not = ""
    if takers[name][1] != _RGB:
        why_not = f"only weights for {_RGB} channels are adapted to others"
    elif convolutions[first].groups != 1:
        why_not = "it is a grouped convolution"
    elif len(takers) > 1:
        others = ", ".join(other for other in takers if other != name)
        why_not = f"these depend on the number of channels as well: {others}"
    if why_not:
        return dict(placed), Stem(
            said=f"{name} cannot be adapted to {channels} channels: {why_not}"
        )
    how = "summed to 1" if channels == 1 else f"repeated to {channels}, times 3/{channels}"
    adapted = {**placed, name: for_channels(placed[name], channels)}
    return adapted, Stem(name, f"{name}: 3 input channels {how}")


def _without_channels(weight: Tensor) -> tuple[int, ...]:
    return (weight.shape[0], *weight.shape[2:])
