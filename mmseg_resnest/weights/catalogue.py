# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The catalogue of published weights: data (``catalogue.json``) and its typed reader.

Names are the published ones (``resnest50``, ``deeplab_resnest101_ade``); those of other sources
have a prefix: ``gluoncv/``, ``openmmlab/``, ``timm/``.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import UserError

_DATA = Path(__file__).with_name("catalogue.json")


@dataclass(frozen=True)
class Entry:
    """One published checkpoint.

    Attributes:
        name: What it is asked for by.
        task: ``segmentation`` (a whole model) or ``classification`` (an ImageNet backbone).
        layout: Whose parameter names it has: ``published``, ``gluoncv``, ``openmmlab`` or
            ``timm`` (the published ones under timm's model names).
        file: The name of the checkpoint in the cache folder; of a published .zip, the file in it.
        urls: Where it is published, tried in turn.
        algorithm: ``sha256`` or ``sha1``, as the publisher has it.
        digest: Hex digits of the hash of ``file``: all, or the first 8 where only they are
            published.
        arch: The backbone, a name of :data:`mmseg_resnest.models.resnest.ARCHITECTURES`.
        config: The config it belongs to, relative to the repository; None for backbones.
        dataset: The data set it was trained and measured on.
        metrics: Published numbers, percent, by protocol: ``multi-scale + flip`` and ``single
            scale`` hold ``mIoU`` and, where published, ``pixAcc``; ``single crop`` holds
            ``top1`` and, where known, ``crop`` (pixels).
        source: Who publishes the file and the numbers.
        licence: The licence of that source (an SPDX identifier), or None.
    """

    name: str
    task: str
    layout: str
    file: str
    urls: tuple[str, ...]
    algorithm: str
    digest: str
    arch: str
    config: str | None
    dataset: str
    metrics: Mapping[str, Mapping[str, float]]
    source: str
    licence: str | None


@cache
def _entries() -> dict[str, Entry]:
    data = json.loads(_DATA.read_text(encoding="utf-8"))
    return {
        name: Entry(name=name, **{**values, "urls": tuple(values["urls"])})
        for name, values in data.items()
    }


def catalogue() -> dict[str, Entry]:
    """Every published checkpoint by its name, in the order of the file."""
    return dict(_entries())


def did_you_mean(name: str) -> str:
    """``; did you mean 'x' or 'y'?`` with the names closest to one that does not exist, or ''.

    Nothing for what has a dot: it is meant as a file.
    """
    if "." in name:
        return ""
    near = difflib.get_close_matches(name, _entries(), n=3)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def find(name: str) -> Entry:
    """The entry of a name.

    Raises:
        UserError: There is none; names the closest ones.
    """
    entries = _entries()
    if name not in entries:
        message = f"not a name of published weights{did_you_mean(name)} (all: weights list)"
        raise UserError("not-found", name, message)
    return entries[name]
