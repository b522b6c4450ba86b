# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What must be the same in every process of a run, as names and short texts."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config
from torch import Tensor, nn

from ..datasets import build_dataset
from ..registry import building
from ..weights import resolve_checkpoint
from ..weights.hashes import hex_digests
from .facts import differences, digest, flatten, shorten, text_of
from .numerics import versions

#: Top-level keys that are compared as what they lead to: the checkpoint's content.
_COMPARED_ELSEWHERE = frozenset({"load_from", "resume"})
#: Packages whose loaded modules are compared though they are installed: people change their
#: sources in place.
_STACK = frozenset({"mmseg", "mmengine", "mmcv", "mmseg_resnest", "mmseg_resnest_cli"})
_SHORT = 60  # characters of a value that is shown
_MODULE = "source of module "


@dataclass
class RunRecord:
    """What one process says of its run.

    ``facts`` by name, what explains the rest first; and the ``files`` of data sets in their order,
    by name and kind (images, label maps).
    """

    facts: dict[str, str] = field(default_factory=dict)
    files: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def digest(self) -> str:
        """The same for records without a difference."""
        return digest(repr((sorted(self.facts.items()), sorted(self.files.items()))))


def record_run(
    cfg: Config,
    loaders: Sequence[str],
    model: Mapping[str, str],
    checkpoint: str | os.PathLike[str] | None = None,
    **arguments: Any,
) -> RunRecord:
    """Describe a run, before its first step.

    Args:
        cfg: The config as the run uses it; the batch is that of one process.
        loaders: Data loaders whose data sets are listed; those that the config lacks are skipped.
        model: What :func:`describe_model_state` says.
        checkpoint: What the weights or the run come from: a file, an address or a name.
        **arguments: What else decides how the run computes.

    Raises:
        UserError: The checkpoint or the data cannot be read.
    """
    record = RunRecord()
    facts = record.facts
    values = {key: value for key, value in cfg.items() if key not in _COMPARED_ELSEWHERE}
    facts.update((f"config key {key}", text) for key, text in flatten(values))
    facts.update((f"argument {key}", text) for key, text in flatten(arguments))
    with building(cfg.get("default_scope", "mmseg")):
        for name in loaders:
            dataset = (cfg.get(name) or {}).get("dataset")
            if isinstance(dataset, Mapping):
                dataset = build_dataset(copy.deepcopy(dataset), keep=True)
            if dataset is not None:
                describe_dataset(dataset, f"{name}.dataset", record)
    if checkpoint is not None:
        path = resolve_checkpoint(os.fspath(checkpoint))
        with path.open("rb") as file:
            (found,) = hex_digests(file, "sha256")
        facts["the checkpoint's file name"] = path.name
        facts["the checkpoint's SHA-256"] = found[:16]
    facts.update(versions())
    facts.update((f"{_MODULE}{name}", text) for name, text in _module_sources())
    facts.update((f"model {name}", text) for name, text in model.items())
    return record


def describe_model_state(model: nn.Module) -> dict[str, str]:
    """Type and shape of each parameter and buffer, and whether it is trained.

    E.g. ``{"backbone.conv1.weight": "float32 (64, 3, 3, 3)"}``.
    """
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    return {
        name: f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        + (" not trained" if name in frozen else "")
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor)
    }


def _module_sources() -> Iterator[tuple[str, str]]:
    """Digests of the loaded modules of the stack, and of those that are not installed."""
    paths = sysconfig.get_paths()
    installed = tuple(paths[key] + os.sep for key in ("stdlib", "purelib", "platlib"))
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name == "__main__" or not isinstance(file, str) or not file.endswith(".py"):
            continue
        if name.partition(".")[0] in _STACK or not os.path.abspath(file).startswith(installed):
            with contextlib.suppress(OSError), open(file, "rb") as source:
                yield name, f"content {digest(source.read())}"


def describe_dataset(dataset: Any, name: str, record: RunRecord) -> None:
    """Record what a built data set holds; of wrappers also what is in the data sets inside."""
    facts = record.facts
    facts[f"{name} type"] = text_of(type(dataset))
    for attribute in ("repeat_indices", "indices"):  # which samples a wrapper takes
        chosen = getattr(dataset, attribute, None)
        if isinstance(chosen, Iterable):
            facts[f"{name} {attribute}"] = f"sequence {digest(repr(list(chosen)))}"
    meta = getattr(dataset, "metainfo", None)
    if isinstance(meta, Mapping):
        facts.update(flatten(meta, f"{name} metainfo"))
    inner = getattr(dataset, "datasets", None)
    parts = list(inner) if isinstance(inner, list | tuple) else []
    if hasattr(dataset, "dataset"):
        parts.append(dataset.dataset)
    for index, part in enumerate(parts):
        describe_dataset(part, f"{name}.{index}", record)
    if parts or not _list_files(dataset, name, record):
        with contextlib.suppress(TypeError):  # an iterable one has no length
            facts[f"{name} length"] = str(len(dataset))


def _list_files(dataset: Any, name: str, record: RunRecord) -> bool:
    """Put in the images and label maps, in their order; False where it has none."""
    if not hasattr(dataset, "get_data_info"):
        return False
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    prefixes = getattr(dataset, "data_prefix", None) or {}
    found = {}
    for kind, key in (("images", "img_path"), ("label maps", "seg_map_path")):
        paths = [os.fspath(one[key]) for one in infos if isinstance(one, Mapping) and one.get(key)]
        folders = (prefixes.get(key), getattr(dataset, "data_root", None))
        record.files[name, kind] = found[kind] = _relative(paths, folders)
    return len(found["images"]) == len(dataset)


def _relative(paths: list[str], folders: Iterable[Any]) -> list[str]:
    """Paths relative to the first folder that holds all of them, or else to the common one."""
    for folder in folders:
        if isinstance(folder, str) and folder:
            start = os.path.join(folder, "")
            if all(path.startswith(start) for path in paths):
                return [path[len(start) :] for path in paths]
    common = os.path.commonprefix(paths)  # noqa: RUF071 (cut at the last separator)
    return [path[common.rfind("/") + 1 :] for path in paths]


def describe_differences(mine: RunRecord, theirs: RunRecord) -> list[str]:
    """How a process differs from another one, what may explain the rest first."""
    texts, names = [], set()
    for key, ours, other in differences(mine.facts, theirs.facts):
        if key.startswith(_MODULE) and None in (ours, other):
            continue  # which are loaded may differ
        pair = ["missing" if text is None else shorten(text, _SHORT) for text in (ours, other)]
        texts.append(f"{key} is {pair[0]}, not {pair[1]}")
    for name, kind in dict.fromkeys((*theirs.files, *mine.files)):
        here, there = (one.files.get((name, kind), []) for one in (mine, theirs))
        if here != there and name not in names:
            texts.insert(0, f"{name} {_compare_lists(kind, here, there)}")
            names.add(name)
    return texts


def _compare_lists(kind: str, here: list[str], there: list[str]) -> str:
    if sorted(here) == sorted(there):
        return f"has its {kind} in another order"
    text = f"has {len(here):,} {kind}, not {len(there):,}"
    if len(here) == len(there):
        text = f"has other {kind}"
    for word, only in (("without", set(there) - set(here)), ("with", set(here) - set(there))):
        if only:
            text += f", {word} {min(only)}" + (f" and {len(only) - 1:,} more" * (len(only) > 1))
    return text
