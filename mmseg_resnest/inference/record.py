# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a published folder and an exported file may say.

Both may come from anywhere, and the stack would import, fetch or read whatever they named. So only
what the tables of :mod:`.parts` allow reaches the stack, with names of parts replaced by classes.
The same tables check what is written, so that what was published can be loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry

from ..datasets.pipelines import comparable, step_name
from ..datasets.transforms import LoadImageFromFile
from ..errors import UserError
from ..io.bit_planes import MOST_CLASSES
from ..io.checks import (
    Check,
    NotAllowed,
    Part,
    fields,
    flag,
    number,
    one_of,
    optional,
    part,
    several,
    text,
    whole,
)
from ..io.json_files import parse_json, read_json
from ..models import thresholds_of
from ..registry import MODELS, TRANSFORMS
from ..weights.hub import CONFIG_FILE, MAX_BYTES
from .parts import (
    ACTIVATIONS,
    BACKBONES,
    CONVOLUTIONS,
    HEADS,
    IMAGE_CHANNELS,
    LOADERS,
    MAX_CLASSES,
    NORMS,
    PREPARATION,
    PREPROCESSORS,
    SEGMENTORS,
    STEPS,
    loading,
    scoring,
)

__all__ = [
    "FORMAT", "MAX_RECORD_BYTES", "check_exported", "check_published", "plain_model",
    "plain_loading", "plain_pipeline", "read_exported", "read_published", "record_config",
]  # fmt: skip

FORMAT = 1
#: A larger record is refused unread.
MAX_RECORD_BYTES = MAX_BYTES[CONFIG_FILE]
# Parts that matter to training alone, or that name files and addresses to load from.
_TRAINING = ("init_cfg", "pretrained", "train_cfg", "sampler", "auxiliary_head", "batch_augments")

_CLASSES: dict[str, Check] = {
    "classes": several(text(1024), 1, MAX_CLASSES),
    "palette": several(several(whole(0, 255), 3, 3), 1, MAX_CLASSES),
}
_LABEL = optional(text(1024))
_ANYTHING: Check = lambda value, key: value  # noqa: E731 (only people read it)
_PUBLISHED = fields(
    {
        **_CLASSES,
        "format": one_of(FORMAT),
        "library_name": _LABEL,
        "version": _LABEL,
        "name": _LABEL,
        "sha256": text(64),
        "parameters": whole(0, 1 << 60),
        "metrics": _ANYTHING,
        "model": part(SEGMENTORS),
        "loading": loading,
        "pipeline": several(part(STEPS), 1, 32),
    },
    ("format", "classes", "palette", "sha256", "model", "pipeline"),
)
_EXPORTED_KEYS: dict[str, Check] = {
    **_CLASSES,
    "format": one_of(FORMAT),
    "version": _LABEL,
    "name": _LABEL,
    "input": one_of("float32", "uint8"),
    "output": one_of("logits", "labels", "masks"),
    "multilabel": flag,
    "align_corners": flag,
    "in_channels": IMAGE_CHANNELS,
    "out_channels": whole(1, MAX_CLASSES),
    "threshold": optional(number(0.0, 1.0)),
    "data_preprocessor": fields(PREPARATION),
    "test_cfg": scoring,
    "loading": loading,
    "pipeline": several(part(STEPS), 1, 32),
}
_NOT_NEEDED = ("version", "name", "in_channels", "loading", "multilabel")
_EXPORTED = fields(_EXPORTED_KEYS, tuple(k for k in _EXPORTED_KEYS if k not in _NOT_NEEDED))


def check_published(record: Any) -> dict[str, Any]:
    """The content of a published ``config.json``, checked.

    Classes take the place of names of parts, and tuples that of lists.

    Raises:
        NotAllowed: Something in it is not on the list; names the key.
    """
    _check_format(record)
    checked: dict[str, Any] = _PUBLISHED(record, "")
    _check_lengths(checked, checked["model"]["decode_head"]["num_classes"])
    return checked


def check_exported(record: Any) -> dict[str, Any]:
    """Check the record of an exported file, as :func:`check_published` does."""
    _check_format(record)
    checked: dict[str, Any] = _EXPORTED(record, "")
    classes, outputs = len(checked["classes"]), checked["out_channels"]
    _check_lengths(checked, classes)
    several = checked.get("multilabel", False)
    processed = "masks" if several else "labels"
    if checked["output"] != (processed if checked["input"] == "uint8" else "logits"):
        raise NotAllowed("output", f"{checked['output']} does not fit input {checked['input']}")
    if several:
        _check_overlap(checked, classes)
        return checked
    if outputs != classes and (outputs, classes) != (1, 2):
        raise NotAllowed("out_channels", f"{outputs} do not fit {classes} classes")
    if outputs == 1 and checked["threshold"] is None:
        raise NotAllowed("threshold", "a model of one output needs one")
    return checked


def _check_overlap(record: Mapping[str, Any], classes: int) -> None:
    """Check a record whose classes may overlap."""
    if record["out_channels"] != classes or classes > MOST_CLASSES:
        raise NotAllowed("out_channels", f"{record['out_channels']} do not fit {classes} classes")
    try:
        thresholds_of(record["test_cfg"], classes)
    except UserError as error:
        raise NotAllowed("test_cfg.thresholds", error.message) from error


def _check_format(record: Any) -> None:
    found = record.get("format") if isinstance(record, dict) else None
    if type(found) is int and found != FORMAT:
        raise NotAllowed("format", f"is {found}; this version reads {FORMAT}")


def _check_lengths(record: Mapping[str, Any], classes: int) -> None:
    for key in ("classes", "palette"):
        if len(record[key]) != classes:
            raise NotAllowed(key, f"has {len(record[key])} entries for {classes} classes")


def read_published(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A published ``config.json`` as it stands, and as :func:`check_published` returns it.

    Raises:
        UserError: It cannot be read, or holds something that is not allowed.
    """
    record = read_json(path, f"{path}", MAX_RECORD_BYTES)
    try:
        return record, check_published(record)
    except NotAllowed as error:
        raise UserError("format", path, f"not the config of a published model: {error}") from error


def read_exported(content: str, subject: str) -> dict[str, Any]:
    """Read and check the JSON text of a record in an exported file, ``subject``.

    Raises:
        UserError: It is too large, not JSON, or holds something that is not allowed.
    """
    if len(content) > MAX_RECORD_BYTES:
        raise UserError("too-large", subject, f"its record exceeds {MAX_RECORD_BYTES:,} characters")
    record = parse_json(content, f"record of {subject}")
    try:
        return check_exported(record)
    except NotAllowed as error:
        raise UserError("format", subject, f"its record cannot be used: {error}") from error


def record_config(record: Mapping[str, Any], model: Any, file: Path | None = None) -> Config:
    """The config of a record's model, as :class:`.Segmentor` takes it; ``file`` is its JSON."""
    dataset = dict(
        type="BaseSegDataset",
        metainfo=dict(classes=list(record["classes"]), palette=list(record["palette"])),
        pipeline=[{"type": LoadImageFromFile, **record.get("loading", {})}, *record["pipeline"]],
    )
    return Config(
        dict(default_scope="mmseg_resnest", model=model, test_dataloader=dict(dataset=dataset)),
        filename=file,
    )


def plain_model(config: Any, scope: str | None = None) -> Any:
    """A model's config as a record has it: plain values, without what only training needs.

    Parts of the tables have their names there; any other part has its full name, with dots, which
    the tables refuse. ``scope`` is that in which the config names its parts.
    """
    return _plain(config, MODELS, scope, _MODEL_PARTS, training=False)


def plain_pipeline(steps: Any, scope: str | None = None) -> Any:
    """The steps of a test pipeline as a record has them, see :func:`plain_model`."""
    return _plain(steps, TRANSFORMS, scope, STEPS, training=True)


def plain_loading(steps: Sequence[Any], rgb: bool, scope: str | None = None) -> dict[str, Any]:
    """The loading steps of a pipeline as a record has them: loaders that it may not name are left.

    Args:
        steps: Configs of the steps.
        rgb: Whether the first three channels are red, green and blue, rather than the reverse.
        scope: As of :func:`plain_model`.
    """
    name = step_name(steps[-1])
    if len(steps) == 1 and isinstance(steps[0], Mapping):
        step = {"type": steps[0]["type"], **comparable(steps[0])[1]}
        plain = _plain(step, TRANSFORMS, scope, LOADERS, training=True)
        if plain["type"] in LOADERS:
            return dict(plain)
    return {"type": "LoadGivenArrays", "loader": name, "rgb": rgb}


_MODEL_PARTS = {
    **SEGMENTORS, **BACKBONES, **HEADS, **PREPROCESSORS, **NORMS, **ACTIVATIONS,
    **CONVOLUTIONS,
}  # fmt: skip


def _plain(
    value: Any, registry: Registry, scope: str | None, parts: Mapping[str, Part], training: bool
) -> Any:
    if isinstance(value, Mapping):
        scope = value.get("_scope_", scope)
        result = {}
        for key, item in value.items():
            left_out = key in _TRAINING or str(key).startswith("loss_")
            if key == "type":
                result[key] = _part_name(item, registry, scope, parts)
            elif key != "_scope_" and (training or not left_out):
                result[key] = _plain(item, registry, scope, parts, training)
        return result
    if isinstance(value, list | tuple):
        return [_plain(item, registry, scope, parts, training) for item in value]
    return value


def _part_name(kind: Any, registry: Registry, scope: str | None, parts: Mapping[str, Part]) -> Any:
    """The name in the tables of what a config names; its full name if it is not in them."""
    made_by = kind
    if isinstance(kind, str):
        try:
            with registry.switch_scope_and_registry(scope) as found:
                made_by = found.get(kind)
        except Exception:  # the config was built from, so this is a part of another family
            return kind
    for name, known in parts.items():
        if made_by is not None and (made_by is known.made_by or made_by in known.others):
            return name
    return f"{getattr(made_by, '__module__', '')}.{getattr(made_by, '__qualname__', made_by)}"
