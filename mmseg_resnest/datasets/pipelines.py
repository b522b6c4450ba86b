# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Steps of data sets inside wrappers, and which of them load images and labels."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import UserError
from ..registry import type_name

__all__ = [
    "boxes_not_maps", "comparable", "gives_rgb", "is_stock", "loads_labels", "pipelines",
    "preprocessor_of", "split_loading", "step_name", "with_loading",
]  # fmt: skip

#: Options that say where a loader finds its bytes, not what it makes of them.
_PLACES = ("cache_dir", "backend_args", "file_client_args", "ignore_empty")


def split_loading(steps: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The steps of a pipeline up to the one that loads the image, by its name; and the others."""
    for i, step in enumerate(steps):
        if step_name(step).startswith("Load") and not loads_labels(step_name(step)):
            return list(steps[: i + 1]), list(steps[i + 1 :])
    return [], list(steps)


def with_loading(steps: Sequence[Any], like: Sequence[Any], key: str) -> list[Any]:
    """The config of a pipeline, at a key, with the loader of another one of the same images.

    Raises:
        UserError: It names another loader, or options of it, by itself.
    """
    own, rest = split_loading(steps)
    theirs, _ = split_loading(like)
    same = [comparable(step) for step in own] == [comparable(step) for step in theirs]
    default = [comparable(dict(type="LoadImageFromFile"))]
    if theirs and not same and [comparable(step) for step in own] not in ([], default):
        said = "reads images in another way than the pipeline of the data set; use its loader"
        raise UserError("config-conflict", f"config key {key}", said)
    return [*(copy.deepcopy(theirs) if own and theirs else own), *rest]


def pipelines(dataset: Any) -> Iterator[tuple[Any, list[Any]]]:
    """The data sets inside wrappers, each with its steps and those of the wrappers around it.

    ``dataset`` is a config, or a data set that was built.
    """
    yield from _pipelines(dataset, [])


def _pipelines(node: Any, after: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    def get(name: str, other: str = "") -> Any:
        if isinstance(node, Mapping):
            return node.get(name)
        return getattr(node, name, getattr(node, other or name, None))

    own = get("pipeline") or []
    skipped = get("skip_type_keys", "_skip_type_keys") or ()
    own = [step for step in getattr(own, "transforms", own) if step_name(step) not in skipped]
    inner = list(get("datasets") or ())
    if get("dataset") is not None:
        inner.append(get("dataset"))
    if not inner:
        yield node, [*own, *after]
    for one in inner:
        yield from _pipelines(one, [*own, *after])


def preprocessor_of(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of what prepares batches, of the model or else of the whole config; or {}."""
    own = (cfg.get("model") or {}).get("data_preprocessor")
    return own or cfg.get("data_preprocessor") or {}


def step_name(step: Any) -> str:
    """The name of a step's class, of its config or built."""
    return type_name(step["type"]) if isinstance(step, Mapping) else type(step).__name__


def gives_rgb(loader: Any) -> bool | tuple[int, ...]:
    """Whether a built loader keeps the order of a file's channels; OpenCV's is BGR.

    Or the channels, from 0, that are to be shown as red, green and blue (``LoadBands``).
    """
    name = type(loader).__name__
    if name == "LoadBands":
        return loader.shown or True
    if name == "LoadGivenArrays":
        return bool(loader.rgb)
    backend = getattr(loader, "imdecode_backend", "")
    return name.startswith("Load") and (backend == "tifffile" or "RSImage" in name)


def is_stock(step: Any) -> bool:
    """Whether a transform is one of the stack's or of this package."""
    return type(step).__module__.split(".")[0] in ("mmcv", "mmseg", "mmseg_resnest")


def boxes_not_maps(node: Mapping[str, Any]) -> bool:
    """Whether the config of a data set or step is MMDetection's: its labels are not label maps."""
    return str(node.get("type")).startswith("mmdet.")


def loads_labels(name: str) -> bool:
    """Whether a step of a name loads labels."""
    return name.startswith("Load") and ("Annotation" in name or name == "LoadMultilabel")


def comparable(step: Any) -> Any:
    """A step's config without what says where files are, and without scopes and modules."""
    kept = {k: v for k, v in step.items() if k not in (*_PLACES, "type", "_scope_")}
    return type_name(step["type"]), kept
