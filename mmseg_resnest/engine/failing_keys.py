# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The deepest key of a config that an exception comes from: what was being built, or was called."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..datasets import written_index


def key_of_build(key: str, node: Any, error: BaseException) -> str:
    """The key of the part of a config that was being built when an exception was raised.

    ``key`` is that of ``node``, which the registries were given; they may have had copies.
    """
    places = list(_nodes(key, node))
    found = key
    for frame in _frames(error):
        part = frame.f_locals.get("cfg")
        if isinstance(part, Mapping):
            inside = [(k, one) for k, one in places if f"{k}.".startswith(f"{found}.")]
            same = [k for k, one in inside if one is part]
            found = next(iter(same or [k for k, one in inside if _is_copy(part, one)]), found)
    return found


def _is_copy(part: Mapping[str, Any], node: Mapping[str, Any]) -> bool:
    """Whether a mapping is one of the config, to which what builds it may have added options."""
    same = (type(part.get(k)) is type(v) and part[k] == v for k, v in node.items())
    return "type" in node and all(same)


def _nodes(key: str, node: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The mappings in a config, with their keys."""
    if isinstance(node, Mapping):
        yield key, node
        for name, value in node.items():
            yield from _nodes(f"{key}.{name}", value)
    elif isinstance(node, list | tuple):
        steps = key.endswith(".pipeline")
        for i, value in enumerate(node):
            yield from _nodes(f"{key}.{written_index(node, i) if steps else i}", value)


def key_of_step(key: str, node: Any, dataset: Any, error: BaseException) -> tuple[str, str]:
    """The key and the name of the transform in which an exception was raised.

    ``key`` and "" where no transform of a pipeline failed. ``node`` is the config of the data set
    at ``key``, or None.
    """
    steps = {id(step): place for place, step in _steps(key, node, dataset)}
    found, name = key, ""
    for frame in _frames(error):
        step = frame.f_locals.get("self")
        if id(step) in steps:
            found, name = steps[id(step)], type(step).__name__
    return found, name


def _steps(key: str, node: Any, dataset: Any) -> Iterator[tuple[str, Any]]:
    """The transforms of a built data set and of those inside it, with their keys."""
    node = node if isinstance(node, Mapping) else {}
    pipeline = getattr(dataset, "pipeline", None)
    written = node.get("pipeline") or ()
    for i, step in enumerate(_transforms(pipeline)):
        number = written_index(written, i) if i < len(written) else i
        yield from _inner_steps(f"{key}.pipeline.{number}", step)
    inner = node.get("datasets") or ()
    for i, part in enumerate(getattr(dataset, "datasets", None) or ()):
        yield from _steps(f"{key}.datasets.{i}", inner[i] if i < len(inner) else None, part)
    if getattr(dataset, "dataset", None) is not None:
        yield from _steps(f"{key}.dataset", node.get("dataset"), dataset.dataset)


def _inner_steps(key: str, step: Any) -> Iterator[tuple[str, Any]]:
    yield key, step
    for i, one in enumerate(_transforms(getattr(step, "transforms", None))):
        place = f"{key}.transforms.{i}"
        yield from _inner_steps(place, one)
        for j, inner in enumerate(one if isinstance(one, list | tuple) else ()):
            yield from _inner_steps(f"{place}.{j}", inner)


def _transforms(pipeline: Any) -> Sequence[Any]:
    listed = getattr(pipeline, "transforms", pipeline)
    return listed if isinstance(listed, list | tuple) else ()


def _frames(error: BaseException) -> Iterator[Any]:
    """The frames of an exception and, deeper, of those that it was raised for."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or one.__context__
    for one in chain:
        yield from (frame for frame, _ in traceback.walk_tb(one.__traceback__))
