# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The commits of what a training takes from a hub (:mod:`mmseg_resnest.weights.hub`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

from ..weights import pinned
from ..weights.hub import is_hub
from .facts import mappings


def find_pins(cfg: Config, teacher: str | None, resumes: bool) -> dict[str, str]:
    """Names of models on a hub and, asked of it, the same with their commits.

    ``teacher`` is the one that the command line names, if it does. A run that goes on starts from
    its own weights. Raises as :func:`~mmseg_resnest.weights.pinned`.
    """
    named = [(node[key], key) for node, key in _of_hubs(cfg)]
    if teacher is not None:
        named = [(name, key) for name, key in named if key != "teacher"] + [(teacher, "teacher")]
    return {name: pinned(name) for name, key in named if key == "teacher" or not resumes}


def set_pins(cfg: Config, pins: Mapping[str, str]) -> None:
    """Put the names with commits into a config."""
    for node, key in _of_hubs(cfg):
        node[key] = pins.get(node[key], node[key])


def _of_hubs(cfg: Config) -> Iterator[tuple[Any, str]]:
    """The mappings, and their keys, that name a model on a hub."""
    if is_hub(cfg.get("load_from")):
        yield cfg, "load_from"
    distillation = cfg.get("distillation")
    if isinstance(distillation, Mapping) and is_hub(distillation.get("teacher")):
        yield distillation, "teacher"
    for _, node in mappings(cfg.get("model")):
        if is_hub(node.get("checkpoint")):
            yield node, "checkpoint"
