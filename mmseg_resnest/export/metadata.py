# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What an exported file says of itself: the record that we load, and plain keys for other programs.

The plain keys are made from the record and say nothing else, so that a program without this package
can prepare images and name labels. docs/deployment.md has the table and an example.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..inference import Segmentor
from ..inference.runtimes import RECORD_KEY
from .network import make_record

__all__ = ["make_metadata"]

_LIBRARIES = {"cv2": "opencv", "pillow": "pillow"}


def make_metadata(model: Segmentor, processing: bool) -> dict[str, str]:
    """The record of an exported file under its key, and others, each a JSON text.

    A UserError names what the config has and a record may not have.
    """
    text = make_record(model, processing)
    record = json.loads(text)
    pre, channels = record["data_preprocessor"], record["in_channels"]
    given, colours = model.reader.rgb, channels == 3  # a tuple: bands, which have another order
    swapped = bool(given) == pre["bgr_to_rgb"]
    order = ("BGR" if swapped else "RGB") if colours and not isinstance(given, tuple) else None
    plain = {
        **{key: record[key] for key in ("classes", "palette", "input", "output")},
        "channel_order": order,
        "mean": pre["mean"] or [0.0] * channels,
        "std": pre["std"] or [1.0] * channels,
        "resize": _resizing(record["pipeline"]),
        "pad": {**pre["test_cfg"], "value": pre["pad_val"]} if pre["test_cfg"] else None,
        "align_corners": record["align_corners"],
        "threshold": record["test_cfg"].get("thresholds", record["threshold"]),
        "mode": record["test_cfg"].get("mode", "whole"),
    }
    return {RECORD_KEY: text, **{key: json.dumps(value) for key, value in plain.items()}}


def _resizing(steps: Sequence[Mapping[str, Any]]) -> Any:
    """The resizing of a test pipeline; None without. Steps that do more are listed."""
    steps = [dict(step) for step in steps if step["type"] != "PackSegInputs"]
    if not steps:
        return None
    step = steps[0]
    scale = step.get("scale")
    simple = len(steps) == 1 and step["type"] == "Resize" and scale is not None
    if not simple or not isinstance(scale, list | tuple | int):
        return {"steps": steps}
    backend = step.get("backend", "cv2")
    return {
        "scale": [scale, scale] if isinstance(scale, int) else list(scale),
        "keep_ratio": bool(step.get("keep_ratio", False)),
        "interpolation": step.get("interpolation", "bilinear"),
        "library": _LIBRARIES.get(backend, backend),
        "antialias": backend == "pillow",
    }
