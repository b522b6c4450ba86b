# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What must be the same in every process of a run, as names and short texts.

Left out is what may differ between machines and changes no result: where folders lie, how many
workers load the data, what is drawn and logged.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.metadata
import os
import platform
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

from .. import registry as registries
from ..datasets import build_dataset
from ..registry import building
from ..weights import resolve_checkpoint
from ..weights.hashes import hex_digests

__all__ = [
    "RunRecord",
    "describe_model_state",
    "differences",
    "flatten",
    "record_run",
    "versions",
]

#: Keys of a config, at any depth, that may differ between machines.
_OF_A_MACHINE = frozenset(
    {
        *("data_root", "work_dir", "out_dir", "image_counts", "visualizer", "log_level"),
        *("num_workers", "persistent_workers", "pin_memory", "prefetch_factor", "timeout"),
        *("launcher", "mp_cfg", "resource_limit"),
    }
)
#: Top-level keys that are compared as what they lead to: the checkpoint's content.
_COMPARED_ELSEWHERE = frozenset({"load_from", "resume"})
_PACKAGES = ("torchvision", "pillow", "mmsegmentation", "onedl-mmsegmentation")
_MODULES = ("torch", "numpy", "cv2", "mmengine", "mmseg", "mmcv", "mmseg_resnest")
#: Packages whose loaded modules are compared: people change their sources in place.
_STACK = frozenset({"mmseg", "mmengine", "mmcv", "mmseg_resnest_cli"})
_SHORT = 60  # characters of a value that is told
_SHORT_LIST = 8

# Section: how one of its facts is named, whether its values tell something, and whether a fact
# that one process alone has counts. In the order of causes: what comes first explains the rest.
_SECTIONS = {
    "config": ("config key {}", True, True),
    "argument": ("argument {}", True, True),
    "data": ("{}", True, True),
    "checkpoint": ("the checkpoint's {}", True, True),
    "version": ("{}", True, True),
    "code": ("source file {}", False, True),
    "module": ("source of module {}", False, False),  # which are loaded may differ
    "model": ("model {}", True, True),
}


@dataclass
class RunRecord:
    """What one process says of its run.

    Attributes:
        facts: Section, name of the fact, and what it is; see :data:`_SECTIONS`.
        images: Name of a data set, and its images in their order.
        labels: The same for label maps.
    """

    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    images: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)

    def digest(self) -> str:
        """The same for records without a difference."""
        facts = sorted((name, sorted(of.items())) for name, of in self.facts.items())
        lists = sorted(self.images.items()), sorted(self.labels.items())
        return _digest(repr((facts, lists)).encode())


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
        loaders: Data loaders whose data sets are listed, e.g. ``train_dataloader``; those that
            the config lacks are passed over.
        model: What :func:`describe_model_state` says.
        checkpoint: What the weights or the run come from: a file, an address or a name.
        **arguments: What else decides how the run computes.

    Raises:
        UserError: The checkpoint or the data cannot be read.
    """
    record = RunRecord()
    values = {k: v for k, v in cfg.items() if k not in _COMPARED_ELSEWHERE}
    record.facts["config"] = dict(flatten(values))
    record.facts["argument"] = dict(flatten(arguments))
    record.facts["checkpoint"] = {} if checkpoint is None else _checkpoint(checkpoint)
    record.facts["version"] = versions()
    record.facts["code"] = _own_sources()
    record.facts["module"] = _module_sources(cfg)
    record.facts["model"] = dict(model)
    record.facts["data"] = {}
    with building(cfg.get("default_scope", "mmseg")):
        for name in loaders:
            dataset = (cfg.get(name) or {}).get("dataset")
            if isinstance(dataset, Mapping):
                dataset = build_dataset(copy.deepcopy(dataset), keep=True)
            if dataset is not None:
                _describe_dataset(dataset, f"{name}.dataset", record)
    return record


def differences(mine: RunRecord, theirs: RunRecord) -> list[str]:
    """How a process differs from another one, each as words that follow "differs: ".

    Args:
        mine: What the process says.
        theirs: What the other one says.

    Returns:
        The differences, those that may explain others first.
    """
    found = []
    for section, (label, tells, one_sided) in _SECTIONS.items():
        here, there = mine.facts.get(section, {}), theirs.facts.get(section, {})
        skipped: list[str] = []
        for name in sorted({*here, *there}):  # a list, and then its items
            a, b = here.get(name), there.get(name)
            if a == b or any(name.startswith(prefix) for prefix in skipped):
                continue
            if not one_sided and None in (a, b):
                continue
            short = tells and max(len(a or ""), len(b or "")) <= _SHORT
            if a is None:
                state = f"is missing, not {b}" if short else "is missing"
            elif b is None:
                state = f"is {a}, not missing" if short else "is there, not missing"
            else:
                state = f"is {a}, not {b}" if short else "has another content"
            found.append(f"{label.format(name)} {state}")
            skipped.append(f"{name}.")  # the items of a list of another length, and the like
        if section == "data":
            of_images = _compare_lists("images", mine.images, theirs.images)
            found += of_images or _compare_lists("label maps", mine.labels, theirs.labels)
    return found


def _compare_lists(
    what: str, mine: dict[str, list[str]], theirs: dict[str, list[str]]
) -> list[str]:
    found = []
    for name in dict.fromkeys((*theirs, *mine)):
        here, there = mine.get(name, []), theirs.get(name, [])
        if here == there:
            continue
        told = [f"{name} has {len(here):,} {what}, not {len(there):,}"]
        if len(here) == len(there):
            told = [f"{name} has other {what}"]
        for word, some, others in (("without", there, here), ("with", here, there)):
            known = set(others)
            only = [file for file in some if file not in known]
            if only:
                more = f" and {len(only) - 1:,} more" if len(only) > 1 else ""
                told.append(f"{word} {only[0]}{more}")
        if len(told) == 1 and len(here) == len(there):
            at = next(i for i, (a, b) in enumerate(zip(here, there, strict=True)) if a != b)
            told = [f"{name} has its {what} in another order, from number {at} on"]
        found.append(", ".join(told))
    return found


def describe_model_state(model: nn.Module) -> dict[str, str]:
    """Type and shape of each parameter and buffer, and whether it is trained.

    Args:
        model: A model, on any device.

    Returns:
        E.g. ``{"backbone.conv1.weight": "float32 (64, 3, 3, 3)"}``.
    """
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    return {
        name: f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        + (" not trained" if name in frozen else "")
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor)
    }


# --- a config -------------------------------------------------------------------------------


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The dotted keys of a nested value, each with its value as text.

    A list comes with its length first. Keys of a machine are left out. Of an absolute path only
    the name of a file counts: folders lie elsewhere on another machine.

    Args:
        value: Mappings, lists and anything else.
        key: Where it stands.
    """
    if isinstance(value, Mapping):
        if not value and key:
            yield key, "empty"
        for name, item in value.items():
            if name not in _OF_A_MACHINE:
                yield from flatten(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        plain = not any(isinstance(item, Mapping | list | tuple) for item in value)
        if plain and len(value) <= _SHORT_LIST:
            yield key, f"[{', '.join(map(_text, value))}]"
            return
        yield key, f"{len(value)} items"
        for index, item in enumerate(value):
            yield from flatten(item, f"{key}.{index}")
    else:
        yield key, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        if os.path.isabs(value) or value.startswith("~"):
            path = PurePath(value)
            return f"a file {path.name}" if path.suffix else "a folder"
        return repr(value)
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, bytes):
        return f"bytes {_digest(value)}"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(_text, value)))}}}"
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        content = repr(value.tolist()) if value.dtype.hasobject else value.tobytes()
        data = content.encode() if isinstance(content, str) else content
        return f"array {value.dtype} {value.shape} {_digest(data)}"
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{getattr(named, '__module__', '')}.{named.__qualname__}"


# --- data -----------------------------------------------------------------------------------


def _describe_dataset(dataset: Any, name: str, record: RunRecord) -> None:
    """Put in what a data set holds; of wrappers also what is in the data sets inside."""
    facts = record.facts["data"]
    facts[f"{name} type"] = _text(type(dataset))
    for attribute in ("repeat_indices", "indices"):  # which samples a wrapper takes
        chosen = getattr(dataset, attribute, None)
        if isinstance(chosen, Iterable):
            facts[f"{name} {attribute}"] = f"sequence {_digest(repr(list(chosen)).encode())}"
    meta = getattr(dataset, "metainfo", None)
    if isinstance(meta, Mapping):
        facts.update(flatten(meta, f"{name} metainfo"))
    inner = getattr(dataset, "datasets", None)
    parts = list(inner) if isinstance(inner, list | tuple) else []
    if hasattr(dataset, "dataset"):
        parts.append(dataset.dataset)
    for index, part in enumerate(parts):
        _describe_dataset(part, f"{name}.{index}", record)
    if parts or not _list_files(dataset, name, record):
        with contextlib.suppress(TypeError):  # an iterable one has no length
            facts[f"{name} length"] = str(len(dataset))


def _list_files(dataset: Any, name: str, record: RunRecord) -> bool:
    """Put in the images and label maps, in their order; False where there are none."""
    images: list[str] = []
    labels: list[str] = []
    if not hasattr(dataset, "get_data_info"):
        return False
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        if isinstance(info, Mapping):
            for key, found in (("img_path", images), ("seg_map_path", labels)):
                if info.get(key) is not None:
                    found.append(os.fspath(info[key]))
    prefixes = getattr(dataset, "data_prefix", None) or {}
    root = getattr(dataset, "data_root", None)
    record.images[name] = _relative(images, (prefixes.get("img_path"), root))
    record.labels[name] = _relative(labels, (prefixes.get("seg_map_path"), root))
    return len(images) == len(dataset)


def _relative(paths: list[str], folders: Iterable[Any]) -> list[str]:
    """Paths relative to the first folder that holds all of them, or else to the common one."""
    if not paths:
        return paths
    for folder in folders:
        if isinstance(folder, str) and folder:
            start = os.path.join(folder, "")
            if all(path.startswith(start) for path in paths):
                return [path[len(start) :] for path in paths]
    common = os.path.commonprefix(paths)  # noqa: RUF071 (cut at the last separator)
    return [path[common.rfind("/") + 1 :] for path in paths]


# --- files and versions ---------------------------------------------------------------------


def _checkpoint(source: str | os.PathLike[str]) -> dict[str, str]:
    path = resolve_checkpoint(os.fspath(source))
    with path.open("rb") as file:
        (digest,) = hex_digests(file, "sha256")
    return {"file name": path.name, "SHA-256": digest[:16]}


def versions() -> dict[str, str]:
    """Versions of Python, CUDA and the packages that compute, by name."""
    found = {
        "Python": platform.python_version(),
        "CUDA of torch": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()) if torch.cuda.is_available() else "None",
    }
    for name in _MODULES:
        found[name] = str(getattr(sys.modules.get(name), "__version__", "not loaded"))
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _own_sources() -> dict[str, str]:
    """Digests of the files of this package, loaded yet or not."""
    root = Path(__file__).parents[1]
    found = {}
    for folder, names, files in os.walk(root):
        names[:] = [n for n in names if not n.startswith(".") and n != "__pycache__"]
        for name in files:
            path = Path(folder, name)
            if path.suffix == ".py" or path.suffix == ".json":
                found[f"{root.name}/{path.relative_to(root).as_posix()}"] = _digest_of(path)
    return dict(sorted(found.items()))


def _module_sources(cfg: Config) -> dict[str, str]:
    """Digests of the loaded modules of the stack, and of those that the user has written."""
    tops = _STACK | {name.partition(".")[0] for name in _custom_modules(cfg)}
    folders = []
    for top in tops - _STACK:
        module = sys.modules.get(top)
        file = getattr(module, "__file__", None)
        if file and not hasattr(module, "__path__") and not _is_installed(file):
            folders.append(os.path.join(os.path.dirname(os.path.abspath(file)), ""))
    found = {}
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name == "__main__" or not isinstance(file, str) or not file.endswith(".py"):
            continue
        beside = any(os.path.abspath(file).startswith(folder) for folder in folders)
        if name.partition(".")[0] in tops or (beside and not _is_installed(file)):
            found[name] = _digest_of(Path(file))
    found.pop(__package__.partition(".")[0], None)
    return found


def _custom_modules(cfg: Config) -> Iterator[str]:
    """Modules that the config imports, or that have registered parts and are not installed."""
    imports = (cfg.get("custom_imports") or {}).get("imports") or []
    yield from [imports] if isinstance(imports, str) else imports
    for registry in vars(registries).values():
        while isinstance(registry, registries.Registry):
            for part in list(registry.module_dict.values()):
                name = getattr(part, "__module__", None) or ""
                file = getattr(sys.modules.get(name), "__file__", None)
                ours = name.partition(".")[0] in ("mmseg_resnest", *_STACK)
                if not ours and isinstance(file, str) and not _is_installed(file):
                    yield name
            registry = registry.parent


def _is_installed(file: str) -> bool:
    """Whether a file belongs to an installed package or to Python: its version is compared."""
    paths = sysconfig.get_paths()
    path = os.path.abspath(file)
    return any(path.startswith(paths[k] + os.sep) for k in ("stdlib", "purelib", "platlib"))


def _digest_of(path: Path) -> str:
    try:
        return _digest(path.read_bytes())
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
