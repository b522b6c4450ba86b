# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Which steps of a pipeline resize and crop become one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

_RESIZE_CROP = "mmseg_resnest.RandomResizeCrop"
_LONG_EDGE_CROP = "mmseg_resnest.RandomLongEdgeCrop"
#: Steps that others are merged into, and how many.
_STANDS_FOR = {_RESIZE_CROP: 2, _LONG_EDGE_CROP: 3}


def merge_steps(pipeline: Sequence[Any]) -> list[Any]:
    """A new pipeline in which resize and crop are one step.

    ``RandomResize`` and ``RandomCrop`` become ``RandomResizeCrop``; ``RandomLongEdgeResize``,
    ``Pad`` to the crop's size and ``RandomCrop`` become ``RandomLongEdgeCrop``. Steps that
    have other arguments, or are named with a scope (``mmseg.RandomCrop``), stay. The same random
    numbers are drawn and labels are equal; images differ as the two classes say.
    """
    merged: list[Any] = []
    rest = list(pipeline)
    while rest:
        for count, merge in _MERGES:
            step = merge(*rest[:count]) if len(rest) >= count else None
            if step is not None:
                merged.append(step)
                del rest[:count]
                break
        else:
            merged.append(rest.pop(0))
    return merged


def written_index(merged: Sequence[Any], index: int) -> int:
    """The index in the pipeline of a config of the first step behind one of :func:`merge_steps`."""
    kinds = (step.get("type") for step in merged[:index] if isinstance(step, Mapping))
    return index + sum(_STANDS_FOR.get(kind, 1) - 1 for kind in kinds if isinstance(kind, str))


def _takes(step: Any, kind: str, keys: set[str]) -> bool:
    """Whether a step is of this kind and has no other arguments than these."""
    return isinstance(step, Mapping) and step.get("type") == kind and set(step) <= keys | {"type"}


_CROP_KEYS = {"crop_size", "cat_max_ratio", "ignore_index"}


def _merged_resize(resize: Any, crop: Any) -> dict[str, Any] | None:
    if not (
        _takes(resize, "RandomResize", {"scale", "ratio_range", "keep_ratio"})
        and resize.get("keep_ratio")
        and _takes(crop, "RandomCrop", _CROP_KEYS)
    ):
        return None
    rest = {key: step[key] for step in (resize, crop) for key in step if key != "type"}
    del rest["keep_ratio"]
    return {"type": _RESIZE_CROP, **rest}


def _merged_long_edge(resize: Any, pad: Any, crop: Any) -> dict[str, Any] | None:
    if not (
        _takes(resize, "RandomLongEdgeResize", {"base_size", "ratio_range"})
        and _takes(pad, "Pad", {"size", "pad_val"})
        and isinstance(pad.get("pad_val"), Mapping)
        and _takes(crop, "RandomCrop", {"crop_size"})
        and not isinstance(crop["crop_size"], int)
        and tuple(pad.get("size", ())) == tuple(crop["crop_size"])[::-1]
    ):
        return None
    rest = {key: resize[key] for key in resize if key != "type"}
    return {
        "type": _LONG_EDGE_CROP,
        "crop_size": tuple(crop["crop_size"]),
        "pad_val": dict(pad["pad_val"]),
        **rest,
    }


_MERGES: tuple[tuple[int, Callable[..., dict[str, Any] | None]], ...] = (
    (_STANDS_FOR[_RESIZE_CROP], _merged_resize),
    (_STANDS_FOR[_LONG_EDGE_CROP], _merged_long_edge),
)
