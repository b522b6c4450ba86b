# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Checks, before anything is built, that the folders of a data set exist and hold files."""

from __future__ import annotations

import codecs
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..io.image_files import IMAGE_SUFFIXES
from ..io.text import printable
from ..io.walk import walk
from ..registry import DATASETS, option_of

#: In the folder of a data set that was prepared.
PREPARED = ".prepare"
_HINT = "data/README.md says where the data come from and how the folders are laid out"


class EmptyDataError(UserError):
    """A folder or list of a data set is there, but names no sample."""


def _has_file(folder: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether a file below the folder has one of the suffixes; the folder itself comes first."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:  # or a link to itself
        if any(entry.name.endswith(suffixes) and entry.is_file() for entry in entries):
            return True
    return any(name.endswith(suffixes) for _, _, names in walk(folder) for name in names)


def require_folder(
    path: str | os.PathLike[str], dataset_name: str, suffixes: Sequence[str] = ("",)
) -> Path:
    """Makes sure that a data set's folder exists and holds a file with one of the suffixes.

    Raises:
        UserError: It is missing, not a folder, unreadable or holds no such file.
    """
    folder = Path(path)
    what = f"this folder of {dataset_name}"
    if not folder.exists():
        raise UserError("not-found", folder, f"{what} does not exist; {_HINT}")
    if not folder.is_dir():
        raise UserError("wrong-path-type", folder, f"{what} is not a folder; {_HINT}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError("unreadable", folder, f"{what} cannot be read; check its permissions")
    if not _has_file(folder, tuple(suffixes)):
        kinds = " or ".join(f"*{suffix}" for suffix in suffixes if suffix)
        raise EmptyDataError("empty", folder, f"{what} has no file {kinds}".rstrip() + f"; {_HINT}")
    return folder


def require_file(path: str | os.PathLike[str], dataset_name: str) -> Path:
    """Makes sure that a list of samples exists and is not empty.

    Raises:
        UserError: It is missing, unreadable or empty.
    """
    file = Path(path)
    what = f"this list of {dataset_name}"
    if not file.is_file():
        raise UserError("not-found", file, f"{what} does not exist; {_HINT}")
    if not read_lines(file):
        raise EmptyDataError("empty", file, f"{what} is empty; {_HINT}")
    return file


def read_lines(file: Path) -> list[tuple[int, str]]:
    """Number and text of each line that holds something, whatever editor wrote the file.

    Raises:
        UserError: It cannot be read, or is neither UTF-8 nor UTF-16.
    """
    try:
        lines = decode_text(file.read_bytes()).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("unreadable", file, f"this list cannot be read ({error})") from error
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def decode_text(data: bytes) -> str:
    """The text of a file in UTF-8 or, with a byte order mark, UTF-16.

    Raises:
        UnicodeDecodeError: It is neither.
    """
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8-sig")


def listed_names(
    ann_file: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    root: str | os.PathLike[str],
    suffixes: Sequence[str],
    known: Callable[[str], bool],
    strict: bool = True,
) -> list[str]:
    """The names of the images that a list takes, as often as it has them.

    A line names an image by its path below its folder, without suffix as in the stack's lists or
    with it; the path may also begin at the data root or be absolute, with slashes or backslashes,
    but without "..". A line that begins with ``#`` is a comment, unless an image has that name.

    Args:
        ann_file: The list.
        folder: Of the images.
        root: Of the data set.
        suffixes: That images may have, beside the usual ones.
        known: Whether there is an image of this path below ``folder``, without suffix.
        strict: Whether lines that name no image are an error, or else are passed over.

    Raises:
        UserError: Lines that name no image: the first one, and how many there are.
    """
    names = []
    wrong = []
    for number, line in read_lines(Path(ann_file)):
        spellings = _spellings(line, folder, root, (*suffixes, *IMAGE_SUFFIXES))
        name = next(filter(known, spellings), None)
        if name is not None:
            names.append(name)
        elif not line.lstrip().startswith("#"):
            wrong.append((number, printable(line.strip())[:200]))
    if not strict:
        return names
    if wrong:
        number, text = wrong[0]
        more = f" ({len(wrong)} such lines)" if len(wrong) > 1 else ""
        ending = suffixes[0] if len(suffixes) == 1 else ".*"
        ending = "" if text.endswith(tuple(suffixes)) else ending
        said = f"lists {text}, but there is no image {os.path.join(folder, text)}{ending}{more}"
        first, *others = text.split()
        if others and all(one.lower().endswith(IMAGE_SUFFIXES) for one in (first, others[-1])):
            said += "; keep the first of the names in each line alone"
        raise UserError("dataset", f"{ann_file}, line {number}", said)
    if not names:
        raise EmptyDataError("empty", ann_file, f"this list names no image; {_HINT}")
    return names


def _spellings(
    line: str,
    folder: str | os.PathLike[str],
    root: str | os.PathLike[str],
    suffixes: Sequence[str],
) -> Iterator[str]:
    """What a line may stand for, paths below the folder without suffix, likely ones first."""
    text = line.strip()
    forward = text.replace("\\", "/")
    if ".." in forward.split("/"):
        return
    # A name may begin or end with a space, and hold a backslash.
    for top, name in ((folder, line), (folder, text), (folder, forward), (root, forward)):
        path = Path(os.path.relpath(os.path.join(top, name), folder)).as_posix()
        if path.split("/")[0] == "..":
            continue
        yield path
        for suffix in suffixes:
            if path.lower().endswith(suffix.lower()):
                yield path[: -len(suffix)]


def listed_samples(dataset: Any) -> list[dict[str, Any]]:
    """The samples of a ``BaseSegDataset`` whose ``ann_file`` is a list of names.

    Raises:
        UserError: As :func:`listed_names`.
    """
    images, labels = (dataset.data_prefix.get(key) for key in ("img_path", "seg_map_path"))
    suffix, root = dataset.img_suffix, dataset.data_root or ""
    names = listed_names(
        dataset.ann_file, images, root, (suffix,),
        lambda name: os.path.isfile(os.path.join(images, name + suffix)),
    )  # fmt: skip
    return [sample_of(dataset, os.path.join(images, name + suffix), labels, name) for name in names]


def sample_of(dataset: Any, image: str, labels: str | None, name: str) -> dict[str, Any]:
    """A sample as ``BaseSegDataset`` lists it; ``labels`` is the folder of its label map."""
    sample: dict[str, Any] = {"img_path": image}
    if labels is not None:
        sample["seg_map_path"] = os.path.join(labels, name + dataset.seg_map_suffix)
    sample["label_map"] = dataset.label_map
    sample["reduce_zero_label"] = dataset.reduce_zero_label
    sample["seg_fields"] = []
    return sample


class FolderCheck:
    """Mixin for a ``BaseSegDataset``: checks the folders before the samples are listed."""

    data_prefix: dict[str, str]
    img_suffix: str | tuple[str, ...]
    seg_map_suffix: str
    ann_file: str

    def load_data_list(self) -> list[dict]:
        """Lists the samples, one dict each, as MMSegmentation's ``BaseSegDataset``.

        Raises:
            UserError: If a folder is missing or empty, or an image has no label map.
        """
        name = type(self).__name__
        suffixes = {"img_path": _as_tuple(self.img_suffix), "seg_map_path": (self.seg_map_suffix,)}
        _require_folders("", self.data_prefix, suffixes, name)
        if self.ann_file:
            require_file(self.ann_file, name)
        samples = self.list_samples()
        for sample in samples:
            for key in ("img_path", "seg_map_path"):
                if key in sample and not os.path.isfile(sample[key]):
                    raise UserError(
                        "not-found", sample[key], f"this file of {name} is missing; {_HINT}"
                    )
        return samples

    def list_samples(self) -> list[dict]:
        """The samples of folders that exist and hold files, whether or not each file exists."""
        if self.ann_file and not os.path.isdir(self.ann_file):
            return listed_samples(self)
        return super().load_data_list()  # type: ignore[misc]


def _require_folders(
    root: str, prefixes: Mapping[str, str], suffixes: Mapping[str, tuple[str, ...]], name: str
) -> None:
    for key, prefix in prefixes.items():
        if prefix is not None:
            require_folder(Path(root, prefix), name, suffixes.get(key, ("",)))


def _as_tuple(suffix: str | Sequence[str]) -> tuple[str, ...]:
    return (suffix,) if isinstance(suffix, str) else tuple(suffix)


def check_dataset_folders(dataset_cfg: Mapping[str, Any]) -> None:
    """Checks the folders that a data set's config names, before the data set is built.

    Works for any data set of MMSegmentation's kind, and inside wrappers (``ConcatDataset``, ...). A
    data set whose files are not local (``backend_args``) is left alone.

    Raises:
        UserError: ``data_root``, a folder of ``data_prefix`` or ``ann_file`` is missing or empty,
            or holds no file with the data set's suffix.
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
        raise UserError("not-found", root, f"the data_root of {name} does not exist; {_HINT}")
    _require_folders(root, dataset_cfg.get("data_prefix") or {}, _suffixes(dataset_cfg), name)
    if dataset_cfg.get("ann_file"):
        ann_file = Path(root, dataset_cfg["ann_file"])
        # MMSegmentation takes a folder here as "all files of it".
        if ann_file.suffix == ".json" and ann_file.is_file():
            return  # COCO's: no list of names, and large
        if not ann_file.is_dir():
            require_file(ann_file, name)


def _suffixes(dataset_cfg: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """File suffixes by key of ``data_prefix``: the config's, else the class's defaults."""
    # A name that is not known has none: whoever builds the data set reports it.
    options = {"img_path": "img_suffix", "seg_map_path": "seg_map_suffix"}
    found = {key: option_of(DATASETS, dataset_cfg, option) for key, option in options.items()}
    return {key: _as_tuple("" if value is None else value) for key, value in found.items()}
