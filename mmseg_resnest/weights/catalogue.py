# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The catalogue of published weights: data (``catalogue.json``) and its typed reader.

Names are the published ones (``resnest50``, ``deeplab_resnest101_ade``), for detectors those of
their configs (``faster_rcnn_resnest50_coco``); those of other sources have a prefix: ``gluoncv/``,
``openmmlab/``, ``timm/``.
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
    """One published checkpoint."""

    name: str
    task: str  # segmentation, detection (whole models) or classification (an ImageNet backbone)
    layout: str  # whose parameter names it has: published, gluoncv, openmmlab, timm, detectron2
    file: str  # the checkpoint's name in the cache folder, also if it is published in a .zip
    urls: tuple[str, ...]  # where it is published, tried in turn
    algorithm: str | None  # sha256 or sha1, as the publisher has it; None where nobody says
    digest: str  # of the file: all hex digits, or the first 8 where only they are published
    arch: str  # the backbone: a name of mmseg_resnest.models.resnest.ARCHITECTURES, mscan_*, mit_*
    config: str | None  # relative to the repository; None for backbones
    dataset: str  # that it was trained and measured on
    #: Published percentages by protocol: ``multi-scale + flip`` and ``single scale`` hold ``mIoU``
    #: and perhaps ``pixAcc``, or ``box AP`` and perhaps ``mask AP``; ``single crop`` holds ``top1``
    #: and perhaps ``crop`` (pixels). Empty where the source states none.
    metrics: Mapping[str, Mapping[str, float]]
    source: str  # who publishes the file and the numbers
    licence: str | None  # of the weights, an SPDX identifier or a LicenseRef


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
        UserError: No entry has that name; names the closest ones.
    """
    entries = _entries()
    if name not in entries:
        hint = f"{did_you_mean(name)}; see mmseg-resnest weights list"
        raise UserError("not-found", name, f"not a name of published weights{hint}")
    return entries[name]
