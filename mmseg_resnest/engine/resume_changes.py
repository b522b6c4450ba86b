# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The config and numerics of a run, compared with those of the run that it resumes.

Every checkpoint holds the config that its run was started with, as dotted keys and short texts
(``meta.config_values``), and what decides its rounding (``meta.numerics``, see :mod:`.numerics`).
A difference means one of three things:

* it makes another run of it: an error, unless ``--allow-changes`` names the key or one above it;
* it changes rounding, or the scores of validations: one line in the header;
* nothing: :data:`_IGNORED`, and what :func:`~.run_record.flatten` leaves out.

A key below one of :data:`_READ` that no table names is of the first kind. Other top-level names are
variables of a config file, which nothing reads; a difference of one is told. Texts of a checkpoint
are compared and shown; nothing else is done with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..errors import UserError
from ..registry import type_name
from .run_record import flatten

__all__ = ["LONGEST_KEY", "LONGEST_VALUE", "MOST_KEYS", "Changes", "compare_with_run"]
__all__ += ["describe_config", "rounding_notes"]

MOST_KEYS = 20_000
LONGEST_KEY = 300
LONGEST_VALUE = 300

#: Patterns of keys that no result of training depends on. The seed and deterministic mode are
#: compared elsewhere; weights to start from are not loaded when resuming.
_IGNORED = (
    *("test_dataloader*", "test_evaluator*", "test_cfg*", "tta_model*", "tta_pipeline*"),
    *("default_hooks.checkpoint*", "default_hooks.logger*", "default_hooks.timer*"),
    *("default_hooks.visualization*", "default_hooks.runtime_info*", "default_hooks.console*"),
    *("log_processor*", "vis_backends*", "experiment_name", "load_from", "resume"),
    *("randomness.seed", "randomness.deterministic", "env_cfg.dist_cfg*"),
    *("model*.init_cfg", "model*.init_cfg.*", "model*.pretrained", "find_unused_parameters"),
)
#: Patterns of keys that change how validations are made or how numbers round.
_NOTED = (
    *("val_dataloader*", "val_evaluator*", "val_cfg*", "model.test_cfg*"),
    *("train_cfg.val_interval", "train_cfg.val_begin", "train_cfg.dynamic_intervals*"),
    *("model_wrapper_cfg.type", "env_cfg.cudnn_benchmark", "custom_imports*"),
)
#: Top-level keys that a training run is built from.
_READ = frozenset(
    {
        *("model", "data_preprocessor", "train_dataloader", "train_cfg", "optim_wrapper"),
        *("param_scheduler", "auto_scale_lr", "default_hooks", "custom_hooks", "default_scope"),
        *("randomness", "env_cfg", "model_wrapper_cfg", "sync_bn", "compile"),
        *("activation_checkpointing", "efficient_conv_bn_eval"),
    }
)
#: Options of optimizer wrappers that ``precision`` stands for.
_PRECISION = ("type", "dtype", "loss_scale")
_PRECISION_TYPES = ("OptimWrapper", "AmpOptimWrapper", "BFloat16OptimWrapper")
#: Keys of the numerics whose difference makes another run, and those that change rounding alone.
_REFUSED_NUMERICS = ("precision", "fused")
_ROUNDING = ("world_size", "memory_order", "threads", "device", "deterministic")
#: What learning rates depend on.
_OPTIMIZATION = frozenset(
    {"optim_wrapper", "param_scheduler", "train_cfg", "train_dataloader", "auto_scale_lr"}
)
_MOST_SHOWN = 5
_MOST_NOTES = 3
_SHORT_LIST = 32


@dataclass(frozen=True)
class Changes:
    """The allowed differences between a run and the one that it resumes.

    Attributes:
        keys: Their keys, of the config or the numerics.
        notes: Rows for the header.
    """

    keys: frozenset[str] = frozenset()
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def optimization(self) -> frozenset[str]:
        """Top-level config keys among them that learning rates depend on."""
        return frozenset(key.partition(".")[0] for key in self.keys) & _OPTIMIZATION

    @property
    def new_optimizer(self) -> bool:
        """Whether the optimizer is one of another type."""
        patterns = ("optim_wrapper.optimizer.type", "optim_wrapper.*.optimizer.type")
        return any(fnmatchcase(key, pattern) for key in self.keys for pattern in patterns)


@dataclass(frozen=True)
class _Difference:
    key: str
    ours: str | None
    theirs: str | None
    label: str = "config key "

    def __str__(self) -> str:
        ours = "is not set" if self.ours is None else f"is {self.ours}"
        theirs = "had none" if self.theirs is None else f"had {self.theirs}"
        return f"{self.label}{self.key} {ours}, the run {theirs}"


# --- what is recorded -----------------------------------------------------------------------


def describe_config(cfg: Mapping[str, Any]) -> dict[str, str]:
    """The config of a run as dotted keys and short texts, the same on any machine.

    Args:
        cfg: The config with the total batch, before it is fitted to a machine.

    Returns:
        At most :data:`MOST_KEYS` texts of at most :data:`LONGEST_VALUE` characters. A key that the
        precision stands for, and a scaling of the learning rate that is off, are left out.
    """
    values = {str(key): value for key, value in cfg.items()}
    wrapper = values.get("optim_wrapper")
    if (
        isinstance(wrapper, Mapping)
        and type_name(wrapper.get("type", "OptimWrapper")) in _PRECISION_TYPES
    ):
        values["optim_wrapper"] = {k: v for k, v in wrapper.items() if k not in _PRECISION}
    if not (values.get("auto_scale_lr") or {}).get("enable"):
        values.pop("auto_scale_lr", None)
    found = {_short(key, LONGEST_KEY): _short(text, LONGEST_VALUE)
             for key, text in flatten(_with_short_lists(values))}  # fmt: skip
    if len(found) <= MOST_KEYS:
        return found
    tops: dict[str, list[tuple[str, str]]] = {}
    for key, text in found.items():
        tops.setdefault(key.partition(".")[0], []).append((key, text))
    return {top: f"{len(some):,} keys {_digest(repr(some))}" for top, some in tops.items()}


def _with_short_lists(value: Any) -> Any:
    """Long lists of numbers and texts as one text, which flattened would be a key an item."""
    if isinstance(value, Mapping):
        return {key: _with_short_lists(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if any(isinstance(item, Mapping | list | tuple) for item in value):
            return [_with_short_lists(item) for item in value]
        if len(value) > _SHORT_LIST:
            return f"{len(value):,} items {_digest(repr(list(value)))}"
    return value


def _short(text: str, most: int) -> str:
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= most else f"{text[: most - 40]}... {_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


# --- comparison -----------------------------------------------------------------------------


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
        values: What :func:`describe_config` says of this run.
        numerics: What :func:`~.numerics.numerics_of` says of this run.
        allowed: Keys whose differences are wanted; a key stands for those below it as well.

    Returns:
        The allowed differences, with notes on them and on differences of validations.

    Raises:
        UserError: A difference makes another run and is not allowed; names the keys and both
            values.
    """
    allowed = tuple(dict.fromkeys(allowed))
    if "config_values" not in meta:
        note = f"not compared: {file} is of a version that did not record it"
        return Changes(frozenset(allowed), (("config", note),))
    found = _config_differences(values, meta["config_values"])
    before = meta.get("numerics") or {}
    refused = [
        _Difference(key, _words(numerics[key]), _words(before[key]), label="")
        for key in _REFUSED_NUMERICS
        if key in before and before[key] != numerics[key]
    ]
    refused += [one for one in found if not _is_noted(one.key)]
    wrong = [one for one in refused if not _covers(allowed, one.key)]
    if wrong:
        raise UserError("input", "", _refusal(file, wrong))
    noted = [one for one in found if _is_noted(one.key)]
    notes = [("changed", str(one)) for one in refused[:_MOST_SHOWN]]
    if len(refused) > _MOST_SHOWN:
        notes.append(("changed", f"and {len(refused) - _MOST_SHOWN:,} more keys"))
    notes += [("differs", str(one)) for one in noted[:_MOST_NOTES]]
    if len(noted) > _MOST_NOTES:
        notes.append(("differs", f"and {len(noted) - _MOST_NOTES:,} more keys"))
    changes = Changes(frozenset(one.key for one in refused))
    if changes.new_optimizer:
        notes.append(("optimizer", "starts without the state of the resumed run's"))
    notes += _unused(allowed, [one.key for one in refused])
    return Changes(changes.keys, tuple(notes))


def _words(value: Any) -> str:
    return {"True": "on", "False": "off (--plain)"}.get(str(value), str(value))


def _unused(allowed: Sequence[str], keys: Sequence[str]) -> list[tuple[str, str]]:
    unused = [one for one in allowed if not any(_covers((one,), key) for key in keys)]
    if not unused:
        return []
    # No error: a launcher repeats the command when it starts the changed run again.
    return [("changes", f"--allow-changes {' '.join(unused)}: nothing differs there")]


def _config_differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[_Difference]:
    """Keys whose values differ; of a list of another length the list alone."""
    found: list[_Difference] = []
    for key in dict.fromkeys((*ours, *theirs)):
        mine, other = ours.get(key), theirs.get(key)
        if mine != other and not _matches(key, _IGNORED):
            found.append(_Difference(key, mine, other))
    lists = tuple(
        f"{one.key}." for one in found if one.key in ours or one.key in theirs
    )  # the items of a list of another length, and the like
    return [one for one in found if not one.key.startswith(lists)] if lists else found


def _is_noted(key: str) -> bool:
    return key.partition(".")[0] not in _READ or _matches(key, _NOTED)


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _covers(allowed: Iterable[str], key: str) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in allowed)


def _refusal(file: str, wrong: Sequence[_Difference]) -> str:
    told = "; ".join(map(str, wrong[:_MOST_SHOWN]))
    keys = [one.key for one in wrong]
    if len(wrong) > _MOST_SHOWN:
        told += f"; and {len(wrong) - _MOST_SHOWN:,} more keys differ"
        keys = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    it = "it" if len(wrong) == 1 else "them"
    return (
        f"--resume {file}: {told}. Put {it} back, or allow {it} with "
        f"--allow-changes {' '.join(keys)}"
    )


def rounding_notes(
    numerics: Mapping[str, Any], before: Mapping[str, Any] | None
) -> list[tuple[str, str]]:
    """Rows for the header: numerics of a run that differ from those of the run it resumes.

    Args:
        numerics: Of this run.
        before: Of the checkpoint; None where it holds none.

    Returns:
        A row for each key, and one for all versions.
    """
    if not before:
        return []
    differ = [key for key in _ROUNDING if key in before and before[key] != numerics[key]]
    notes = [
        ("rounding", f"{key} is {numerics[key]}, the resumed run had {before[key]}")
        for key in differ
    ]
    ours, theirs = numerics["versions"], before.get("versions") or {}
    other = [
        f"{name} {ours.get(name, 'is missing')} ({theirs.get(name, 'was missing')} before)"
        for name in dict.fromkeys((*ours, *theirs))
        if theirs and ours.get(name) != theirs.get(name)
    ]
    if other:
        notes.append(("rounding", f"versions differ: {', '.join(other)}"))
    return notes
