# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Weights of a part of a model: which tensors of a file go where, and what is said of the rest."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import UserError
from .convert import analyse
from .input_channels import Stem, adapt_stem
from .parts import COUNTER
from .state_dict import list_keys

CLASSIFIER = re.compile(
    r"(?:^|\.)(?:decode_head|auxiliary_head)(?:\.\d+)?\.(?:conv_seg|se_layer)\.(?:weight|bias)$"
)
_PARTS = {"backbone", "neck", "decode_head", "auxiliary_head"}
_DEEPEST_PREFIX = 3
_PREFIXES_TRIED = 16


@dataclass
class Fit:
    """What of a file goes into a model.

    Attributes:
        placed: The tensors that have a place, under the model's names.
        classes: The model's last layers for another number of classes, which stay.
        missing: The model's names that the file has not.
        left_out: Keys of the file that have no place, and the names that they would have.
        shapes: Names of tensors of another shape, with both.
        prefix: What stands before the names in the file.
        numbers: How many parameters are loaded, and how many the model has.
        stem: What became of the first convolution where the model takes another number of channels.
    """

    placed: dict[str, Tensor]
    classes: list[str]
    missing: list[str]
    left_out: dict[str, str]
    shapes: dict[str, str]
    prefix: str
    numbers: tuple[int, int]
    stem: Stem

    @property
    def loaded(self) -> dict[str, Tensor]:
        """The tensors that fit."""
        left = {*self.classes, *self.shapes}
        return {name: value for name, value in self.placed.items() if name not in left}

    def say(self, model: nn.Module) -> str:
        """E.g. ``11 of 15 parameters; left as they are: decode_head``."""
        text = "{:,} of {:,} parameters".format(*self.numbers)
        text += f"; {self.stem.said}" if self.stem.name else ""
        whole = {_part(key) for key in model.state_dict()} - {_part(key) for key in self.loaded}
        missing = dict.fromkeys(_part(k) if _part(k) in whole else k for k in self.missing)
        for what, keys in (
            ("left as they are", missing),
            ("left as they are, for another number of classes", self.classes),
            ("not taken from the file", self.left_out),
        ):
            text += f"; {what}: {list_keys(keys)}" if keys else ""
        return text


def _part(key: str) -> str:
    return key.partition(".")[0]


def fit(
    state_dict: Mapping[str, Tensor],
    model: nn.Module,
    starts: Sequence[str] | None = None,
    any_channels: bool = False,
) -> Fit:
    """Give the tensors of a file a model's names, where one prefix is all that differs.

    Args:
        state_dict: Names to tensors, e.g. ``model.encoder.layer1.0.conv1.weight``.
        model: The model, or the part of it.
        starts: What the model may have before the names of the file's part, e.g. ``backbone.``;
            None: the names of its parts if it is a segmentor.
        any_channels: Whether the first convolution of a network for RGB images is adapted to the
            number of channels that the model takes, see :func:`.adapt_stem`.

    Returns:
        What goes where with the prefixes that place the most.
    """
    target = model.state_dict()
    if starts is None:
        parts = [f"{name}." for name, _ in model.named_children()]
        starts = ["", *parts] if "backbone." in parts else [""]
    counts: Counter[str] = Counter()
    for key in state_dict:
        levels = key.split(".")[:-1][:_DEEPEST_PREFIX]
        counts.update(f"{prefix}." for prefix in itertools.accumulate(levels, "{}.{}".format))
    prefixes = sorted((prefix for prefix, _ in counts.most_common(_PREFIXES_TRIED)), key=len)
    names: dict[str, str] = {}
    taken, most = "", -1
    for prefix, start in itertools.product(["", *prefixes], starts):
        if prefix and counts[prefix] <= most:
            continue
        inside = {k: start + k[len(prefix) :] for k in state_dict if k.startswith(prefix)}
        places = sum(name in target for name in inside.values())
        if places > most:
            names, taken, most = inside, prefix, places
    placed = {name: state_dict[key] for key, name in names.items() if name in target}
    stem = Stem()
    if any_channels:
        placed, stem = adapt_stem(placed, model)
    differing = [k for k, value in placed.items() if tuple(value.shape) != tuple(target[k].shape)]
    classes = [
        name
        for name in differing
        if CLASSIFIER.search(name) and placed[name].shape[1:] == target[name].shape[1:]
    ]
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return Fit(
        placed=placed,
        classes=classes,
        missing=[k for k in target if k not in placed and not k.endswith(COUNTER)],
        left_out={k: names.get(k, "") for k in state_dict if names.get(k) not in target},
        shapes={
            k: f"{k} ({list(placed[k].shape)}, the model has {list(target[k].shape)})"
            for k in differing
            if k not in classes
        },
        prefix=taken,
        numbers=(
            sum(n for k, n in sizes.items() if k in placed and k not in differing),
            sum(sizes.values()),
        ),
        stem=stem,
    )


def fit_parts(state_dict: Mapping[str, Tensor], model: nn.Module, label: str) -> tuple[Fit, str]:
    """The whole parts (backbone, neck, heads) of a model that a file holds, in any known layout.

    The first convolution is adapted to the channels that the model takes.

    Returns:
        What goes where, and the layout where it is not the model's own.

    Raises:
        UserError: Nothing fits, or a part does in part only; the message lists the keys.
    """
    found = fit(state_dict, model, any_channels=True)
    wrong = _wrong_in_parts(found, model)
    # Of another layout the backbone alone may have the model's names.
    if not wrong and not (found.missing and found.left_out):
        return found, ""
    try:
        conversion = analyse(_without_shared_prefix(state_dict))
    except UserError as error:
        why_not = "" if found.placed else f" (it does not convert either: {error.message})"
    else:
        converted = fit(conversion.state_dict, model, any_channels=True)
        still_wrong = _wrong_in_parts(converted, model)
        if not still_wrong and (wrong or len(converted.placed) > len(found.placed)):
            converted.left_out.update(dict.fromkeys(conversion.left_out, ""))
            return converted, conversion.layout
        why_not = ""
        if wrong:
            found, wrong = converted, still_wrong
    if not wrong:
        return found, ""
    advice = "use the config that the checkpoint belongs to"
    bad = {_part(key) for keys in wrong.values() for key in keys}
    if "backbone" not in bad and any(_part(key) == "backbone" for key in found.loaded):
        init = (
            f"dict(type='Pretrained', checkpoint={label!r}, prefix={found.prefix + 'backbone'!r})"
        )
        advice += f", or load the backbone alone: model.backbone.init_cfg={init}"
    advice += f"; {found.stem.said}" if found.stem.said else ""
    raise not_fitting(label, model, wrong, f"{advice}{why_not}")


def check_left_out(found: Fit, model: nn.Module, label: str) -> None:
    """UserError where a file has more of a module of the model than the model, as a deeper one."""
    modules = {_part(key) for key in model.state_dict()}
    more = [key for key, name in found.left_out.items() if name and _part(name) in modules]
    if more:
        advice = "give weights of this network"
        raise not_fitting(label, model, {"are not in the model": more}, advice)


def _wrong_in_parts(found: Fit, model: nn.Module) -> dict[str, list[str]]:
    """What keeps the parts that a file holds from being loaded whole; keys by what is wrong."""
    target = model.state_dict()
    if not found.loaded:
        return {"of the file have no place in it": list(found.left_out) or list(found.shapes)}
    parts = {_part(key) for key in (*found.loaded, *found.classes, *found.shapes)}
    modules = {tuple(key.split(".")[:2]) for key in target}
    wrong = {
        "are missing": [key for key in found.missing if _part(key) in parts],
        # Of a module that the model does not have (a classifier, a stage) nothing is expected.
        "are not in the model": [
            name
            for name in found.left_out.values()
            if _part(name) in parts and tuple(name.split(".")[:2]) in modules
        ],
        "have another shape": list(found.shapes.values()),
    }
    return wrong if any(wrong.values()) else {}


def not_fitting(
    label: str, model: nn.Module, wrong: Mapping[str, Sequence[str]], advice: str
) -> UserError:
    """The error that lists what does not fit; ``wrong`` has keys by what is wrong with them."""
    lists = [
        f"{len(keys)} keys {what}: {list_keys(keys)}; " for what, keys in wrong.items() if keys
    ]
    message = f"does not fit {type(model).__name__}; {''.join(lists)}{advice}"
    return UserError("checkpoint", label, message)


def _without_shared_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the first level of the names where all have the same that is not a part's."""
    names = dict(state_dict)
    while len(first := {_part(key) for key in names}) == 1 and not first & _PARTS:
        if not all("." in key for key in names):
            break
        names = {key.partition(".")[2]: value for key, value in names.items()}
    return names
