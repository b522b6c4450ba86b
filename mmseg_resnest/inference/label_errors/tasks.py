# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Regions as tasks for people who correct labels: CVAT's XML 1.1 for images, LabelMe's JSON.

Each region is a polygon of the predicted class, so that accepting it corrects the label; what the
label says now stands beside it. A region with holes is one polygon with cuts of no width, see
:func:`~mmseg_resnest.inference.polygons.joined`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ...evaluation.label_quality import WrongRegion
from ...io.atomic import atomic_write
from ...io.text import printable
from ..polygons import joined, mask_polygons

__all__ = ["ImageTask", "write_cvat", "write_labelme"]

_LABELME = "5.5.0"  # the version whose files these are
_ATTRIBUTES = ("given", "score")


@dataclass(frozen=True)
class ImageTask:
    """An image (height, width) with the regions to look at; ``stem`` is a name for its files."""

    image: str
    stem: str
    size: tuple[int, int]
    regions: list[WrongRegion]

    def polygons(self) -> list[list[list[int]]]:
        """The outline of each region: x and y of pixel corners."""
        found = []
        for region in self.regions:
            (shape,) = mask_polygons([region.mask])
            found.append((joined(shape) + region.box[:2]).tolist())
        return found


def write_cvat(
    folder: Path,
    tasks: Sequence[ImageTask],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> list[Path]:
    """Write ``cvat.xml``, and ``cvat_labels.json``, which makes the labels of a task for it.

    The images are named as below their common folder, in the order of their names, as CVAT orders
    those of a task. Source: https://docs.cvat.ai/docs/manual/advanced/xml_format/.
    """
    names = [printable(name) for name in classes]
    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in palette]
    root = ElementTree.Element("annotations")
    _add(root, "version", "1.1")
    meta = _add(_add(root, "meta"), "task")
    _add(meta, "name", "label errors")
    _add(meta, "size", str(len(tasks)))
    _add(meta, "mode", "annotation")
    labels = _add(meta, "labels")
    for name, colour in zip(names, colours, strict=True):
        label = _add(labels, "label")
        _add(label, "name", name)
        _add(label, "color", colour)
        _add(label, "type", "any")
        attributes = _add(label, "attributes")
        for attribute in _ATTRIBUTES:
            one = _add(attributes, "attribute")
            parts = {"name": attribute, "mutable": "False", "input_type": "text"}
            for key, text in {**parts, "default_value": "", "values": ""}.items():
                _add(one, key, text)
    top = os.path.commonpath([os.path.dirname(os.path.abspath(t.image)) for t in tasks] or ["/"])
    named = sorted((os.path.relpath(os.path.abspath(t.image), top), t) for t in tasks)
    for number, (name, task) in enumerate(named):
        height, width = (str(edge) for edge in task.size)
        facts = {"id": str(number), "name": printable(name), "width": width, "height": height}
        image = ElementTree.SubElement(root, "image", facts)
        for region, points in zip(task.regions, task.polygons(), strict=True):
            options = {"label": names[region.predicted], "source": "auto", "occluded": "0"}
            options["points"] = ";".join(f"{x:.2f},{y:.2f}" for x, y in points)
            polygon = ElementTree.SubElement(image, "polygon", {**options, "z_order": "0"})
            values = (names[region.given], f"{region.score:.4f}")
            for attribute, text in zip(_ATTRIBUTES, values, strict=True):
                ElementTree.SubElement(polygon, "attribute", {"name": attribute}).text = text
    ElementTree.indent(root)
    files = [folder / "cvat.xml", folder / "cvat_labels.json"]
    atomic_write(files[0], ElementTree.tostring(root, "utf-8", xml_declaration=True) + b"\n")
    texts = [
        {"name": key, "mutable": False, "input_type": "text", "default_value": "", "values": [""]}
        for key in _ATTRIBUTES
    ]
    made = [
        {"name": name, "color": colour, "type": "any", "attributes": texts}
        for name, colour in zip(names, colours, strict=True)
    ]
    atomic_write(files[1], json.dumps(made, indent=1) + "\n")
    return files


def _add(parent: ElementTree.Element, tag: str, text: str | None = None) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, tag)
    element.text = text
    return element


def write_labelme(folder: Path, tasks: Sequence[ImageTask], classes: Sequence[str]) -> list[Path]:
    """Write ``NAME.json`` for each image, which LabelMe opens with its image."""
    files = []
    for task in tasks:
        file = folder / f"{task.stem}.json"
        shapes: list[dict[str, Any]] = [
            {
                "label": classes[region.predicted],
                "points": [[float(x), float(y)] for x, y in points],
                "group_id": None,
                "description": f"given: {classes[region.given]}, score {region.score:.4f}",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for region, points in zip(task.regions, task.polygons(), strict=True)
        ]
        height, width = task.size
        document: dict[str, Any] = {"version": _LABELME, "flags": {}, "shapes": shapes}
        document["imagePath"] = os.path.relpath(task.image, file.parent)
        document |= {"imageData": None, "imageHeight": height, "imageWidth": width}
        atomic_write(file, json.dumps(document, indent=1) + "\n")
        files.append(file)
    return files
