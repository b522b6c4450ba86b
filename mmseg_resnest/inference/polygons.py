# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The regions of a label map as polygons whose outlines run along the edges of its pixels.

Coordinates are those of pixel corners: x to the right, y down; the first pixel covers (0, 0) to
(1, 1). Filling a polygon by the centres of pixels gives back its region exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Region", "coco_json", "geojson", "joined", "mask_polygons", "region_polygons",
]  # fmt: skip

Ring = NDArray[np.int64]


@dataclass(frozen=True)
class Region:
    """A connected region of one class; pixels connect along their edges, not their corners.

    Attributes:
        label: The class.
        area: Pixels.
        box: x, y, width, height.
        outer: (n, 2) corners of its outline, x and y, clockwise as seen, not closed.
        holes: The same of its holes, counter-clockwise.
    """

    label: int
    area: int
    box: tuple[int, int, int, int]
    outer: Ring
    holes: tuple[Ring, ...]


def region_polygons(labels: NDArray[np.integer]) -> list[Region]:
    """The connected regions of a label map (H, W), from top to bottom; they cover all of it."""
    if labels.ndim != 2 or not labels.size:
        raise ValueError(f"a label map has shape (H, W), got {labels.shape}")
    return _regions((int(label), labels == label) for label in np.unique(labels))


def mask_polygons(masks: Iterable[NDArray[np.bool_]]) -> list[Region]:
    """The connected regions of classes that may overlap, from top to bottom.

    Args:
        masks: (H, W) of class 0, 1, ..., one at a time.
    """
    return _regions(enumerate(masks))


def _regions(masks: Iterable[tuple[int, NDArray[np.bool_]]]) -> list[Region]:
    """The connected regions of labels and their masks (H, W), from top to bottom."""
    regions = []
    for label, mask in masks:
        count, components, stats, _ = cv2.connectedComponentsWithStats(
            mask.astype(np.uint8), connectivity=4
        )
        for index in range(1, count):
            x, y, width, height, area = map(int, stats[index])
            part = components[y : y + height, x : x + width] == index
            outer, *holes = _rings(part, (x, y))
            regions.append(Region(label, area, (x, y, width, height), outer, tuple(holes)))
    return sorted(regions, key=lambda r: (r.box[1], r.box[0], r.label))


def _rings(mask: NDArray[np.bool_], offset: tuple[int, int]) -> list[Ring]:
    """The outline of a connected mask, then those of its holes.

    OpenCV's contours run through the centres of pixels. In the mask at twice its size each pixel
    has one quarter at each of its corners, so that a contour there names the corners.
    """
    double = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, hierarchy = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = []
    for contour, (_, _, _, parent) in zip(contours, hierarchy[0], strict=True):
        ring = (contour[:, 0].astype(np.int64) + 1) // 2
        ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
        clockwise = cv2.contourArea(ring.astype(np.float32), oriented=True) > 0
        if clockwise != (parent < 0):
            ring = ring[::-1]
        rings.append((parent >= 0, ring + offset))
    return [ring for _, ring in sorted(rings, key=lambda item: item[0])]


def geojson(regions: Sequence[Region], classes: Sequence[str]) -> dict[str, Any]:
    """A GeoJSON FeatureCollection (RFC 7946), one Polygon with its holes for each region.

    Coordinates are pixels of the image with y down, not places on the earth; with y turned up the
    outer rings run counter-clockwise, as RFC 7946 asks.
    """
    features = []
    for region in regions:
        rings = [np.append(ring, ring[:1], axis=0) for ring in (region.outer, *region.holes)]
        known = region.label < len(classes)
        properties = {
            "class": region.label,
            "name": str(classes[region.label]) if known else "unlabelled",
            "area": region.area,
        }
        geometry = {"type": "Polygon", "coordinates": [ring.tolist() for ring in rings]}
        features.append({"type": "Feature", "properties": properties, "geometry": geometry})
    return {"type": "FeatureCollection", "features": features}


def coco_json(
    images: Mapping[str, tuple[Sequence[Region], tuple[int, int]]], classes: Sequence[str]
) -> dict[str, Any]:
    """Regions of images in COCO's object format, one annotation for each.

    COCO's polygons have no holes: each hole is joined to the outline by a cut of no width, so that
    the one polygon, filled, is the region with its holes.

    Args:
        images: For each file name its regions and its (height, width).
        classes: Names of the classes; category ids are their indices + 1.
    """
    annotations: list[dict[str, Any]] = []
    for image_id, (regions, _) in enumerate(images.values(), 1):
        for region in regions:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": region.label + 1,
                    "segmentation": [joined(region).reshape(-1).tolist()],
                    "area": region.area,
                    "bbox": list(region.box),
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": i, "file_name": name, "height": size[0], "width": size[1]}
            for i, (name, (_, size)) in enumerate(images.items(), 1)
        ],
        "categories": [{"id": i + 1, "name": str(name)} for i, name in enumerate(classes)],
        "annotations": annotations,
    }


def joined(region: Region) -> Ring:
    """(n, 2) One closed walk around the outline and, by horizontal cuts, around the holes.

    A cut goes west from the top of a hole's leftmost edge to the nearest edge of the walk. Holes
    are taken from left to right, so that the ring it meets is part of the walk.
    """
    walk = region.outer
    for hole in sorted(region.holes, key=lambda hole: int(hole[:, 0].min())):
        start = np.lexsort((hole[:, 1], hole[:, 0]))[0]
        x, y = hole[start]
        hole = np.roll(hole, -start, axis=0)
        after = np.roll(walk, -1, axis=0)
        low, high = np.minimum(walk[:, 1], after[:, 1]), np.maximum(walk[:, 1], after[:, 1])
        # A vertical edge beside the row of pixels below the cut.
        meets = (walk[:, 0] == after[:, 0]) & (walk[:, 0] < x) & (low <= y) & (high > y)
        edge = max(np.flatnonzero(meets), key=lambda index: walk[index, 0])
        cut = [[walk[edge, 0], y]]
        walk = np.concatenate([walk[: edge + 1], cut, hole, hole[:1], cut, walk[edge + 1 :]])
    return walk
