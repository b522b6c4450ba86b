# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Merging and leaving out classes by the config key ``label_map`` of a data set."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..registry import DATASETS
from .class_names import check_class_name, read_classes_of
from .layout import read_lines

#: What a label is mapped to that the loss and the metric leave out.
IGNORE = "ignore"
_IGNORED = 255  # what labels are padded with
_KEY = "config key label_map"


class MergedClasses(NamedTuple):
    """The classes after a ``label_map``.

    Attributes:
        classes: Their names.
        palette: ``[r, g, b]`` of each; empty where none was given.
        labels: The new label of each label of the files that changes.
    """

    classes: list[str]
    palette: list[Any]
    labels: dict[int, int]


def merge_classes(
    label_map: Mapping[Any, Any],
    classes: Sequence[str],
    palette: Sequence[Any] = (),
    ignore_index: int = _IGNORED,
) -> MergedClasses:
    """Read labels as other classes, and leave out the classes that no label is read as any more.

    The classes keep their order; a new name stands where its first class stood, and has its colour.

    Args:
        label_map: For a label of the files, a number from 0 to 255 or the name of its class, what
            to read it as: a class by number or name, a new name, or ``'ignore'`` (also
            ``ignore_index`` and 255). Numbers are those of ``classes``, after
            ``reduce_zero_label``; others name labels that are no class, such as a void label.
            Labels that it does not name stay what they are.
        classes: Names of the labels 0, 1, ...
        palette: Their colours, or nothing.
        ignore_index: The label that is left out.

    Raises:
        UserError: It is not such a map, names no class, or leaves none.
    """
    if not isinstance(label_map, Mapping):
        message = (
            "must be a dictionary, e.g. {'bus': 'vehicle', 'car': 'vehicle', 11: 'ignore'}, "
            f"not {label_map!r}"
        )
        raise UserError("config-value", _KEY, message)
    names = [str(name) for name in classes]
    if not names:
        message = (
            "the data set names no classes; give it classes_file or metainfo=dict(classes=...)"
        )
        raise UserError("classes", _KEY, message)
    # What each label is read as: the name of a class, or None to ignore it.
    targets: dict[int, str | None] = dict(enumerate(names))
    given: dict[int, Any] = {}
    for key, value in label_map.items():
        label = _label(key, names)
        if label in given:
            message = f"names label {label} ({_name(label, names)}) twice"
            raise UserError("config-value", _KEY, message)
        given[label] = value
        targets[label] = _target(value, names, ignore_index)
    position: dict[str, tuple[int, int]] = {}
    for label, target in sorted(targets.items()):
        if target is not None:
            place = (names.index(target), 0) if target in names else (label, 1)
            position.setdefault(target, place)
    merged = sorted(position, key=position.__getitem__)
    if not merged:
        raise UserError("config-value", _KEY, "leaves no class; map one label at least to a class")
    firsts = [position[name][0] for name in merged] if palette else []
    spare = [255, 255, 255]  # of a new name for labels that are no class
    colours = [palette[first] if first < len(palette) else spare for first in firsts]
    labels = {
        label: ignore_index if target is None else merged.index(target)
        for label, target in targets.items()
    }
    return MergedClasses(merged, colours, {old: new for old, new in labels.items() if old != new})


def _name(label: int, names: Sequence[str]) -> str:
    return repr(names[label]) if label < len(names) else "no class"


def _label(key: Any, names: Sequence[str]) -> int:
    """The label that a key stands for: a class by name, or a number, in JSON as text."""
    if isinstance(key, str) and key in names:
        return names.index(key)
    number = key
    if isinstance(key, str) and key.isascii() and key.isdigit():
        number = int(key)
    if type(number) is int and 0 <= number <= 255:
        return number
    if isinstance(key, str):
        raise UserError("config-value", _KEY, f"there is no class {key!r}{_hint(key, names)}")
    message = f"labels are numbers from 0 to 255 or names of classes, not {key!r}"
    raise UserError("config-value", _KEY, message)


def _hint(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"; did you mean {near[0]!r}?" if near else f"; the classes are {shown}"


def _target(value: Any, names: Sequence[str], ignore_index: int) -> str | None:
    if value == IGNORE or (type(value) is int and value in (ignore_index, _IGNORED)):
        return None
    if type(value) is int and 0 <= value < len(names):
        return names[value]
    if isinstance(value, str):
        return check_class_name(value, _KEY)
    message = (
        f"labels are read as a class (0 to {len(names) - 1}, or a name) or as {IGNORE!r}, "
        f"not as {value!r}"
    )
    raise UserError("config-value", _KEY, message)


class MapsLabels:
    """Mixin for a ``BaseSegDataset``, before it: takes ``label_map``.

    Args:
        label_map: See :func:`merge_classes`; the data set has the classes that it leaves.
        **kwargs: As of the data set.

    Raises:
        UserError: It is not such a map; or ``metainfo`` chooses classes of a data set that has its
            own, which is another way to map its labels.
    """

    METAINFO: dict[str, Any]
    label_map: dict[int, int] | None
    ignore_index: int
    _metainfo: dict[str, Any]

    def __init__(
        self,
        *args: Any,
        label_map: Mapping[Any, Any] | None = None,
        metainfo: Mapping[str, Any] | None = None,
        lazy_init: bool = False,
        **kwargs: Any,
    ) -> None:
        if label_map:
            _refuse_two_ways(self.METAINFO, metainfo)
        super().__init__(*args, metainfo=metainfo, lazy_init=True, **kwargs)  # type: ignore[call-arg]
        if label_map:
            merged = merge_classes(
                label_map,
                self._metainfo.get("classes") or (),
                self._metainfo.get("palette") or (),
                self.ignore_index,
            )
            self.label_map = {**(self.label_map or {}), **merged.labels}
            kind = type(self._metainfo["classes"]) if "classes" in self._metainfo else list
            self._metainfo.update(
                classes=tuple(merged.classes) if kind is tuple else merged.classes,
                palette=merged.palette,
                label_map=self.label_map,
            )
        if not lazy_init:
            self.full_init()  # type: ignore[attr-defined]


def dataset_metainfo(dataset_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The ``metainfo`` (``classes``, ``palette``, ...) of a data set that is not built yet.

    Args:
        dataset_cfg: Its config; no wrapper.

    Raises:
        UserError: The classes file cannot be read, or ``label_map`` does not fit the classes.
    """
    kind = dataset_cfg.get("type")
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    own = getattr(kind, "METAINFO", {})
    given = read_classes_of(
        dataset_cfg.get("classes_file"), dataset_cfg.get("data_root"), dataset_cfg.get("metainfo")
    )
    info = {**own, **given}
    label_map = dataset_cfg.get("label_map")
    if label_map and isinstance(kind, type) and issubclass(kind, MapsLabels):
        _refuse_two_ways(own, given)
        classes = info.get("classes") or ()
        if isinstance(classes, str):  # the path of a file of names
            classes = [line for _, line in read_lines(Path(classes))]
        palette, ignored = info.get("palette") or (), dataset_cfg.get("ignore_index", _IGNORED)
        merged = merge_classes(label_map, classes, palette, ignored)
        info["classes"] = tuple(merged.classes)
        if palette:
            info["palette"] = merged.palette
    return info


def _refuse_two_ways(own: Mapping[str, Any], metainfo: Mapping[str, Any] | None) -> None:
    """UserError where a config chooses among the classes of a data set in another way as well."""
    if own.get("classes") and (metainfo or {}).get("classes"):
        message = (
            "metainfo.classes (or classes_file) chooses among the classes as well; take it away "
        )
        message += f"and map those that are not wanted to {IGNORE!r}"
        raise UserError("config-conflict", _KEY, message)
