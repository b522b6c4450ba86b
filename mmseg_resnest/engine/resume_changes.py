# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The config and numerics of a run, compared with those of the run that it resumes.

Every checkpoint holds the config that its run was started with, as dotted keys and short texts
(``meta.config_values``), and what decides its rounding (``meta.numerics``, see :mod:`.numerics`).
A difference means one of three things:

* it makes another run of it: an error, unless ``--allow-changes`` names the key or one above it;
* it changes rounding, or the scores of validations: one line in the header;
* nothing: :data:`_IGNORED`, and what :func:`~.facts.flatten` leaves out.

A key below one of :data:`_READ` that no table names is of the first kind. Other top-level names are
variables of a config file, which nothing reads; a difference of one is a line in the header. Texts
of a checkpoint are compared and shown; nothing else is done with them.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any

from ..errors import UserError
from .facts import Difference, differences, digest, flatten, shorten

#: What there is to train on, beside the keys of the config: how many images, of which names, and
#: which classes.
IMAGES, FILES = "train_dataloader.images", "train_dataloader.files"
CLASSES = "train_dataloader.classes"
SEED = "randomness.seed"
MOST_KEYS = 20_000
LONGEST_TEXT = 300

#: Patterns of keys that no result of training depends on, or that are compared as numerics.
#: Weights to start from are not loaded when resuming.
_IGNORED = (
    *("test_dataloader*", "test_evaluator*", "test_cfg*", "tta_model*", "tta_pipeline*"),
    *("default_hooks.checkpoint*", "default_hooks.logger*", "default_hooks.timer*"),
    *("default_hooks.visualization*", "default_hooks.runtime_info*", "default_hooks.console*"),
    *("log_processor*", "vis_backends*", "experiment_name", "load_from", "resume"),
    *("randomness.deterministic", "env_cfg.dist_cfg*", "numerics*"),
    *("optim_wrapper.type", "optim_wrapper.dtype", "optim_wrapper.loss_scale*"),
    *("model*.init_cfg", "model*.init_cfg.*", "model*.pretrained", "find_unused_parameters"),
    *("dry_step", "distillation.teacher"),  # a teacher is identified by its weights
)
#: Patterns of keys that change how validations are made or how numbers round.
_NOTED = (
    *("val_dataloader*", "val_evaluator*", "val_cfg*", "model.test_cfg*"),
    *("train_cfg.val_interval", "train_cfg.val_begin", "train_cfg.dynamic_intervals*"),
    *("model_wrapper_cfg.type", "env_cfg.cudnn_benchmark", "custom_imports*"),
)
#: Top-level keys that a training run is built from, and the numerics that make another run.
_NUMERICS = ("precision", "fused")
_READ = frozenset(
    {
        *("model", "data_preprocessor", "train_dataloader", "train_cfg", "optim_wrapper"),
        *("param_scheduler", "auto_scale_lr", "default_hooks", "custom_hooks", "default_scope"),
        *("randomness", "env_cfg", "model_wrapper_cfg", "sync_bn", "compile"),
        *("activation_checkpointing", "efficient_conv_bn_eval", "distillation", *_NUMERICS),
    }
)
#: Numerics that change rounding alone.
_ROUNDING = (
    "engine",
    "fused_steps",
    "float32_matmul",
    "world_size",
    "memory_order",
    "threads",
    "device",
    "deterministic",
    "versions",
)
#: What learning rates depend on.
_OPTIMIZATION = frozenset(
    {"optim_wrapper", "param_scheduler", "train_cfg", "train_dataloader", "auto_scale_lr"}
)
_NEW_OPTIMIZER = ("optim_wrapper.optimizer.type", "optim_wrapper.*.optimizer.type")
_MOST_SHOWN = 5
_MOST_OF_A_VALUE = 200
_TYPE = re.compile(r"(\.\d+)?\.type")  # of a part, or of each in a list of parts
_LONG_LIST = 32
_MOST_NAMES = 1000  # of files, which are evenly spread

#: A row of the header that a run prints.
Note = tuple[str, str]


@dataclass(frozen=True)
class Changes:
    """The allowed differences between a run and the one that it resumes.

    Their ``keys``, of the config or the numerics, and ``notes``, rows for the header.
    """

    keys: frozenset[str] = frozenset()
    notes: tuple[Note, ...] = ()

    @property
    def optimization(self) -> frozenset[str]:
        """Top-level config keys among them that learning rates depend on."""
        return frozenset(key.partition(".")[0] for key in self.keys) & _OPTIMIZATION

    @property
    def new_optimizer(self) -> bool:
        """Whether the optimizer is one of another type."""
        return any(_matches(key, _NEW_OPTIMIZER) for key in self.keys)


def describe_config(cfg: Mapping[str, Any]) -> dict[str, str]:
    """The config of a run, with the total batch, as dotted keys and short texts.

    They are the same on any machine: at most :data:`MOST_KEYS` keys and texts of at most
    :data:`LONGEST_TEXT` characters.
    """
    values = {str(key): value for key, value in cfg.items()}
    if not (values.get("auto_scale_lr") or {}).get("enable"):
        values.pop("auto_scale_lr", None)
    facts = itertools.islice(flatten(values, most=_LONG_LIST), MOST_KEYS)
    return {shorten(key, LONGEST_TEXT): shorten(text, LONGEST_TEXT) for key, text in facts}


def describe_data(dataset: object) -> dict[str, str]:
    """Images of a data set and the names of its classes, as a config's values."""
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    return describe_images(dataset) | _describe_classes(classes)


def describe_images(dataset: Any) -> dict[str, str]:
    """How many images a data set has, and the first and last of their names with a digest.

    Names count, not folders, in their order, which is that of the run. They tell data sets apart,
    not every change of one: at most :data:`_MOST_NAMES` are read.
    """
    if not isinstance(dataset, Sized):
        return {}
    size = len(dataset)
    found = {IMAGES: str(size)}
    if not size or not hasattr(dataset, "get_data_info"):
        return found
    infos = [dataset.get_data_info(i) for i in range(0, size, math.ceil(size / _MOST_NAMES))]
    if all(isinstance(one, Mapping) and one.get("img_path") for one in infos):
        # One accent may be written in two ways, by which systems differ.
        paths = [PurePath(unicodedata.normalize("NFC", one["img_path"])) for one in infos]
        names = [shorten(repr(path.name), _MOST_OF_A_VALUE // 4) for path in paths]
        found[FILES] = f"{names[0]} to {names[-1]} ({digest(repr([path.name for path in paths]))})"
    return found


def _describe_classes(names: Sequence[str] | None) -> dict[str, str]:
    loader, _, key = CLASSES.partition(".")
    return describe_config({loader: {key: list(names)}}) if names else {}


def compare_with_run(
    file: str,
    meta: Mapping[str, Any],
    values: Mapping[str, str],
    numerics: Mapping[str, Any],
    allowed: Iterable[str] = (),
) -> Changes:
    """Compare a run with the one that it resumes.

    Args:
        file: The checkpoint.
        meta: Its checked ``meta``.
        values: What :func:`describe_config` says of this run, and :func:`describe_data`.
        numerics: What :func:`~.numerics.numerics_of` says of this run.
        allowed: Keys whose differences are wanted; a key stands for those below it as well.

    Returns:
        The allowed differences, with notes on them and on differences of validations.

    Raises:
        UserError: A difference that is not allowed makes another run; names keys and values.
    """
    allowed = tuple(dict.fromkeys(allowed))
    if "config_values" not in meta:
        note = f"not compared: {file} is of a version that did not record it"
        return Changes(frozenset(allowed), (("config", note),))
    before = meta.get("numerics") or {}
    ours = {**values, **{key: str(numerics[key]) for key in _NUMERICS if key in before}}
    theirs = {**meta["config_values"], **{k: str(before[k]) for k in _NUMERICS if k in before}}
    theirs |= _describe_classes(meta.get("classes"))
    for key in (IMAGES, FILES, CLASSES):  # which not every version has recorded
        if not any(covers((key,), one) for one in theirs):
            ours = {one: text for one, text in ours.items() if not covers((key,), one)}
    # The config may name none, and a run keeps its own unless another one is allowed.
    seed = meta.get("seed") if covers(allowed, SEED) else None
    theirs[SEED] = ours.get(SEED) if seed is None else str(seed)
    found = [
        Difference(one.key, _shown(ours, one.key), _shown(theirs, one.key))
        for one in differences(ours, theirs)
        if not (_matches(one.key, _IGNORED) or _same_number(one))
    ]
    noted = [one for one in found if _is_noted(one.key)]
    changed = [one for one in found if not _is_noted(one.key)]
    wrong = [one for one in changed if not covers(allowed, one.key)]
    if wrong:
        keys = [one.key for one in wrong]
        if len(wrong) > _MOST_SHOWN:
            keys = list(dict.fromkeys(key.partition(".")[0] for key in keys))
        text = "; ".join(_texts(wrong))
        raise UserError(
            "resume-changed",
            f"--resume {file}",
            f"{text}. Put back what differs, or allow it with --allow-changes {' '.join(keys)}",
        )
    notes = [("changed", text) for text in _texts(changed)]
    notes += [("differs", text) for text in _texts(noted)]
    changes = Changes(frozenset(one.key for one in changed))
    if changes.new_optimizer:
        notes.append(("optimizer", "starts without the state of the resumed run's"))
    unused = [one for one in allowed if not any(covers((one,), key) for key in changes.keys)]
    if unused:  # not an error: a launcher repeats the command when it starts the run again
        notes.append(("changes", f"--allow-changes {' '.join(unused)}: nothing differs there"))
    return Changes(changes.keys, tuple(notes))


def _texts(found: Sequence[Difference]) -> list[str]:
    texts = [
        f"{key} {'is not set' if ours is None else f'is {ours}'}, "
        f"the run had {'none' if theirs is None else theirs}"
        for key, ours, theirs in found[:_MOST_SHOWN]
    ]
    if len(found) > _MOST_SHOWN:
        texts.append(f"and {len(found) - _MOST_SHOWN:,} more keys differ")
    return texts


def _same_number(one: Difference) -> bool:
    """Whether it is a number in both, written as 1 and as 1.0."""
    try:
        return float(one.ours or "") == float(one.theirs or "")
    except ValueError:
        return False


def _shown(values: Mapping[str, str], key: str) -> str | None:
    """The text of a value, with the types of what it holds; None: it is not there."""
    inside = [name for name in values if name.startswith(f"{key}.")]
    kinds = [values[name].strip("'") for name in inside if _TYPE.fullmatch(name, len(key))]
    text = values.get(key)
    if kinds:
        text = ", ".join(kinds) if text is None else f"{text} ({', '.join(kinds)})"
    elif inside and text is None:
        text = "a mapping"
    return None if text is None else shorten(text, _MOST_OF_A_VALUE)


def _is_noted(key: str) -> bool:
    return key.partition(".")[0] not in _READ or _matches(key, _NOTED)


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def covers(allowed: Iterable[str], key: str) -> bool:
    """Whether one of the allowed keys is this one, or above it."""
    return any(key == one or key.startswith(f"{one}.") for one in allowed)


def rounding_notes(numerics: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[Note]:
    """Rows for the header: numerics that round otherwise than the resumed run's, ``before``."""
    before = before or {}
    ours, theirs = (
        dict(flatten({key: of[key] for key in _ROUNDING if key in before}))
        for of in (numerics, before)
    )
    return [
        ("rounding", f"{key.removeprefix('versions.')} is {mine}, the resumed run had {other}")
        for key, mine, other in differences(ours, theirs)
    ]
