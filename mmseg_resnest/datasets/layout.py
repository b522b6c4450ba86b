# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Checks, before anything is built, that a data set lies where its config says.

MMSegmentation answers a missing folder with a bare ``AssertionError`` or a data set of length 0;
here each gets one sentence that names the folder.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..registry import DATASETS
from .walk import walk

_HINT = "see data/README.md for where it comes from and how its folders must lie"


class EmptyDataError(UserError):
    """A folder or list of a data set is there, but names no sample."""


def _files(folder: Path, suffixes: Sequence[str]) -> Iterator[str]:
    """Names of the files below a folder that end in one of the suffixes, links followed."""
    for _, _, names in walk(folder):
        yield from (name for name in names if name.endswith(tuple(suffixes)))


def _has_file(folder: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether one of the suffixes is that of a file in the folder itself; looks no further."""
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.endswith(suffixes) and entry.is_file() for entry in entries)
    except OSError:  # a link to itself
        return False


def require_folder(
    path: str | os.PathLike[str], dataset_name: str, suffixes: Sequence[str] = ("",)
) -> Path:
    """Makes sure that a data set's folder exists and holds files.

    Args:
        path: The folder.
        dataset_name: What the message calls the data set.
        suffixes: At least one file below the folder must end in one of these.

    Returns:
        The folder.

    Raises:
        UserError: If the folder is missing, not a folder, unreadable or holds no such file.
    """
    folder = Path(path)
    if not folder.exists():
        raise UserError("not-found", dataset_name, f"folder {folder} does not exist; {_HINT}")
    if not folder.is_dir():
        raise UserError("wrong-path-type", dataset_name, f"{folder} is not a folder; {_HINT}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(
            "unreadable", dataset_name, f"folder {folder} cannot be read: check its permissions"
        )
    if not _has_file(folder, tuple(suffixes)) and next(_files(folder, suffixes), None) is None:
        what = " or ".join(f"*{suffix}" for suffix in suffixes if suffix)
        raise EmptyDataError(
            "dataset",
            dataset_name,
            f"folder {folder} holds no {what + ' ' if what else ''}file; {_HINT}",
        )
    return folder


def require_file(path: str | os.PathLike[str], dataset_name: str) -> Path:
    """Makes sure that a list of samples exists and is not empty.

    Returns:
        The file.

    Raises:
        UserError: If the file is missing, unreadable or empty.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError("not-found", dataset_name, f"file {file} does not exist; {_HINT}")
    try:
        empty = not file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "unreadable", dataset_name, f"file {file} cannot be read ({error}); {_HINT}"
        ) from error
    if empty:
        raise EmptyDataError("empty", dataset_name, f"file {file} is empty; {_HINT}")
    return file


class FolderCheck:
    """Mixin for a ``BaseSegDataset``: checks the folders before the samples are listed."""

    data_prefix: dict[str, str]
    img_suffix: str
    seg_map_suffix: str
    ann_file: str
    test_mode: bool

    def load_data_list(self) -> list[dict]:
        """Lists the samples.

        Returns:
            One dict a sample, as MMSegmentation's ``BaseSegDataset``.

        Raises:
            UserError: If a folder is missing or empty, or an image has no label map.
        """
        name = type(self).__name__
        suffixes = {"img_path": self.image_suffixes(), "seg_map_path": (self.seg_map_suffix,)}
        for key, folder in self.data_prefix.items():
            if folder is not None:
                require_folder(folder, name, suffixes.get(key, ("",)))
        if self.ann_file:
            require_file(self.ann_file, name)
        samples = self._list_samples()
        for sample in samples:
            for key in ("img_path", "seg_map_path"):
                if key in sample and not os.path.isfile(sample[key]):
                    raise UserError("not-found", name, f"file {sample[key]} is missing; {_HINT}")
        return samples

    def image_suffixes(self) -> tuple[str, ...]:
        """The suffixes that an image may have."""
        return (self.img_suffix,)

    def _list_samples(self) -> list[dict]:
        """The samples of the folders, which exist and hold files."""
        samples: list[dict] = super().load_data_list()  # type: ignore[misc]
        return samples


def check_dataset_folders(dataset_cfg: Mapping[str, Any]) -> None:
    """Checks the folders that a data set's config names, before the data set is built.

    Works for any data set of MMSegmentation's kind and looks into wrappers
    (``ConcatDataset``, ``RepeatDataset``, ``MultiImageMixDataset``, ...). A data set whose files
    are not on this machine's disk (``backend_args``) is left alone.

    Args:
        dataset_cfg: The ``dataset`` value of a data loader's config.

    Raises:
        UserError: If ``data_root``, a folder of ``data_prefix`` or ``ann_file`` is missing or
            empty, or holds no file with the data set's suffix.
    """
    for inner in dataset_cfg.get("datasets", ()):
        check_dataset_folders(inner)
    if isinstance(dataset_cfg.get("dataset"), Mapping):
        check_dataset_folders(dataset_cfg["dataset"])
    if dataset_cfg.get("backend_args"):
        return

    kind = dataset_cfg.get("type", "data set")
    name = kind if isinstance(kind, str) else kind.__name__
    root = dataset_cfg.get("data_root") or ""
    if root and not Path(root).is_dir():
        raise UserError("not-found", name, f"folder {root} (data_root) does not exist; {_HINT}")
    suffixes = _suffixes(dataset_cfg)
    for key, prefix in (dataset_cfg.get("data_prefix") or {}).items():
        if prefix is not None:
            require_folder(Path(root, prefix), name, suffixes.get(key, ("",)))
    if dataset_cfg.get("ann_file"):
        ann_file = Path(root, dataset_cfg["ann_file"])
        # MMSegmentation takes a folder here as "all files of it".
        if not ann_file.is_dir():
            require_file(ann_file, name)


def _suffixes(dataset_cfg: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """File suffixes by key of ``data_prefix``: the config's, else the class's defaults."""
    kind = dataset_cfg.get("type")
    if isinstance(kind, str):
        # An unknown name gives None: whoever builds the data set reports it.
        kind = DATASETS.get(kind)
    defaults = inspect.signature(kind).parameters if isinstance(kind, type) else {}
    found: dict[str, tuple[str, ...]] = {}
    for key, option in (("img_path", "img_suffix"), ("seg_map_path", "seg_map_suffix")):
        default = defaults[option].default if option in defaults else ""
        suffix = dataset_cfg.get(option, default)
        found[key] = (suffix,) if isinstance(suffix, str) else tuple(suffix)
    return found
