# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The regions of a label map as polygons whose outlines run along the edges of its pixels.

Coordinates are those of pixel corners: x to the right, y down, the first pixel covers (0, 0) to
(1, 1). Filling a polygon by the centres of pixels gives back its region exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Region", "coco_json", "geojson", "rasterize", "region_polygons"]

_ROWS = 1024  # looked at together, so that large maps need little memory
_STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])  # east, south, west, north, as (x, y)


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
    outer: NDArray[np.int64]
    holes: tuple[NDArray[np.int64], ...]


def _edges(labels: NDArray[np.integer]) -> list[NDArray[np.int64]]:
    """Pixels (flat indices) with an edge of the region on each side: top, right, bottom, left.

    The outline runs with the region on its right: a top edge goes east, a right one south.
    """
    height, width = labels.shape
    found: list[list[NDArray[np.int64]]] = [[], [], [], []]
    for start in range(0, height, _ROWS):
        band = labels[start : min(start + _ROWS, height)]
        sides = np.ones((4, *band.shape), bool)
        sides[0, 1:] = sides[2, :-1] = band[1:] != band[:-1]
        sides[3, :, 1:] = sides[1, :, :-1] = band[:, 1:] != band[:, :-1]
        if start:
            sides[0, 0] = band[0] != labels[start - 1]
        if start + len(band) < height:
            sides[2, -1] = band[-1] != labels[start + len(band)]
        for side in range(4):
            found[side].append(np.flatnonzero(sides[side]) + start * width)
    return [np.concatenate(parts) for parts in found]


def _corner_runs(
    labels: NDArray[np.integer],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The straight runs of all outlines.

    Returns:
        (n, 2) start corner (x, y) of each run; (n,) the run that follows it; (n,) the pixel
        (flat) at its start; and (n,) its direction.
    """
    height, width = labels.shape
    sides = _edges(labels)
    flat = labels.reshape(-1)
    starts, pixels, directions, next_pixel, next_direction = [], [], [], [], []
    for direction, cells in enumerate(sides):
        dx, dy = _STEPS[direction]
        rx, ry = _STEPS[(direction + 1) % 4]  # to the right: the inside
        # In the order of the direction, run after run: rows for east and west, else columns.
        y, x = np.divmod(cells, width)
        if direction % 2:
            order = np.lexsort((y * dy, x))
            cells, y, x = cells[order], y[order], x[order]
        elif dx < 0:
            order = np.lexsort((-x, y))
            cells, y, x = cells[order], y[order], x[order]
        label = flat[cells]

        def same(
            yy: NDArray[np.int64], xx: NDArray[np.int64], label: NDArray[np.integer] = label
        ) -> NDArray[np.bool_]:
            inside = (yy >= 0) & (yy < height) & (xx >= 0) & (xx < width)
            value = flat[np.where(inside, yy * width + xx, 0)]
            return inside & (value == label)

        front = same(y + dy, x + dx)  # ahead on the inside
        front_left = same(y + dy - ry, x + dx - rx)
        straight = front & ~front_left
        # Right where the region ends, also when it goes on diagonally: corners do not connect.
        turn_left = front & front_left
        last = ~straight
        first = np.ones(len(cells), bool)
        first[1:] = last[:-1]
        begin = np.flatnonzero(first)
        end = np.flatnonzero(last)
        # The start corner of an edge, relative to its pixel.
        corner_x = x[begin] + (1 if direction in (1, 2) else 0)
        corner_y = y[begin] + (1 if direction in (2, 3) else 0)
        starts.append(np.stack([corner_x, corner_y], axis=1))
        pixels.append(cells[begin])
        directions.append(np.full(len(begin), direction))
        left = turn_left[end]
        next_pixel.append(
            np.where(
                left,
                (y[end] + dy - ry) * width + x[end] + dx - rx,
                cells[end],
            )
        )
        next_direction.append(np.where(left, (direction + 3) % 4, (direction + 1) % 4))
    pixel, way = np.concatenate(pixels), np.concatenate(directions)
    key = pixel * 4 + way
    order = np.argsort(key, kind="stable")
    wanted = np.concatenate(next_pixel) * 4 + np.concatenate(next_direction)
    following = order[np.searchsorted(key[order], wanted)]
    return np.concatenate(starts), following, pixel, way


def _rings(following: NDArray[np.int64]) -> tuple[list[list[int]], NDArray[np.int64]]:
    """The cycles of a permutation, and the cycle of each element."""
    after = following.tolist()
    ring_of = [-1] * len(after)
    rings: list[list[int]] = []
    for begin in range(len(after)):
        if ring_of[begin] >= 0:
            continue
        ring, at = [], begin
        while ring_of[at] < 0:
            ring_of[at] = len(rings)
            ring.append(at)
            at = after[at]
        rings.append(ring)
    return rings, np.array(ring_of, np.int64)


def region_polygons(labels: NDArray[np.integer]) -> list[Region]:
    """The connected regions of a label map, from top to bottom.

    Args:
        labels: (H, W) integers.

    Returns:
        Its regions; together they cover each pixel once.
    """
    if labels.ndim != 2 or not labels.size:
        raise ValueError(f"a label map has shape (H, W), got {labels.shape}")
    labels = np.ascontiguousarray(labels)
    width = labels.shape[1]
    corners, following, pixel, way = _corner_runs(labels)
    rings, ring_of = _rings(following)
    outlines = [corners[ring] for ring in rings]
    areas = [_area(outline) for outline in outlines]
    # A hole belongs to the ring to the left of its leftmost edge, in the same row of pixels.
    left_runs = np.flatnonzero(way == 3)  # the left edges of regions, going north
    xs, bottoms = pixel[left_runs] % width, pixel[left_runs] // width
    tops = corners[following[left_runs]][:, 1]
    parent = list(range(len(rings)))
    row_order = _RowIndex(xs, tops, bottoms, ring_of[left_runs], labels.shape[0])
    for i, area in enumerate(areas):
        if area < 0:
            outline = outlines[i]
            ends = np.flatnonzero(outline[:, 0] == outline[:, 0].min())
            # The rows beside its leftmost edge; the one that goes south has the region west of it.
            y = int(outline[ends, 1].min())
            parent[i] = row_order.ring_left_of(int(outline[ends[0], 0]) - 1, y)
    regions: dict[int, list[int]] = {i: [] for i, area in enumerate(areas) if area > 0}
    for i, area in enumerate(areas):
        if area < 0:
            root = i
            while areas[root] < 0:
                root = parent[root]
            regions[root].append(i)
    result = []
    for root, holes in regions.items():
        outer = outlines[root]
        low, high = outer.min(axis=0), outer.max(axis=0)
        result.append(
            Region(
                int(labels.reshape(-1)[pixel[rings[root][0]]]),
                areas[root] + sum(areas[h] for h in holes),
                (int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1])),
                outer,
                tuple(outlines[h] for h in holes),
            )
        )
    return sorted(result, key=lambda r: (r.box[1], r.box[0], r.label))


class _RowIndex:
    """Finds the left edge of the region that a pixel belongs to, in its row."""

    def __init__(
        self,
        xs: NDArray[np.int64],
        tops: NDArray[np.int64],
        bottoms: NDArray[np.int64],
        rings: NDArray[np.int64],
        height: int,
    ) -> None:
        # One entry for each pixel row of each run, sorted by row and then x.
        lengths = bottoms - tops + 1
        run = np.repeat(np.arange(len(xs)), lengths)
        offset = np.arange(len(run)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = tops[run] + offset
        order = np.lexsort((xs[run], rows))
        self._rows = np.searchsorted(rows[order], np.arange(height + 1))
        self._xs, self._rings = xs[run][order], rings[run][order]

    def ring_left_of(self, x: int, y: int) -> int:
        """The ring of the last left edge at or before pixel ``x`` of row ``y``."""
        low, high = self._rows[y], self._rows[y + 1]
        return int(self._rings[low + np.searchsorted(self._xs[low:high], x, side="right") - 1])


def _area(outline: NDArray[np.int64]) -> int:
    """Twice-signed shoelace halved: positive clockwise as seen (y down)."""
    x, y = outline[:, 0], outline[:, 1]
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) // 2


def _closed(outline: NDArray[np.int64]) -> list[list[int]]:
    return [*outline.tolist(), outline[0].tolist()]


def geojson(regions: Sequence[Region], classes: Sequence[str]) -> dict[str, Any]:
    """A GeoJSON FeatureCollection (RFC 7946), one Polygon with its holes for each region.

    Coordinates are pixels of the image with y down, not places on the earth; in such a plane the
    outer rings run as RFC 7946 asks when y is turned up.

    Args:
        regions: From :func:`region_polygons`.
        classes: Names of the classes.
    """
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "properties": {"class": r.label, "name": _name(r.label, classes), "area": r.area},
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [_closed(r.outer), *(_closed(h) for h in r.holes)],
                },
            }
            for r in regions
        ],
    }


def _name(label: int, classes: Sequence[str]) -> str:
    return str(classes[label]) if label < len(classes) else "unlabelled"


def coco_json(
    images: Mapping[str, tuple[Sequence[Region], tuple[int, int]]], classes: Sequence[str]
) -> dict[str, Any]:
    """Regions of images in COCO's object format, one annotation for each.

    COCO's polygons have no holes: each is joined to the outline by a cut of no width, so that
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
                    "segmentation": [_joined(region).reshape(-1).tolist()],
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


def _joined(region: Region) -> NDArray[np.int64]:
    """One closed walk around the outline and, by cuts of no width, around the holes.

    A cut goes from the hole's leftmost edge west to the nearest edge of the walk so far, along
    the top of a row of pixels. Holes are taken from left to right, so that the ring it meets is
    in the walk.
    """
    walk = region.outer
    for hole in sorted(region.holes, key=lambda h: (h[:, 0].min(), h[:, 1].min())):
        x = hole[:, 0].min()
        candidates = np.flatnonzero(hole[:, 0] == x)
        at = candidates[np.argmin(hole[candidates, 1])]
        y = hole[at, 1]
        after = np.roll(walk, -1, axis=0)
        vertical = (walk[:, 0] == after[:, 0]) & (walk[:, 0] < x)
        low, high = np.minimum(walk[:, 1], after[:, 1]), np.maximum(walk[:, 1], after[:, 1])
        # The edge must bound the row of pixels below the cut.
        meets = np.flatnonzero(vertical & (low <= y) & (high > y))
        edge = meets[np.argmax(walk[meets, 0])]
        turned = np.roll(hole, -at, axis=0)
        cut = np.array([[walk[edge, 0], y]])
        walk = np.concatenate([walk[: edge + 1], cut, turned, turned[:1], cut, walk[edge + 1 :]])
    return walk


def rasterize(
    polygons: Sequence[tuple[int, Sequence[Sequence[Sequence[float]]]]],
    height: int,
    width: int,
    fill: int = 255,
) -> NDArray[np.int64]:
    """Fill polygons by the even-odd rule at the centres of pixels.

    Args:
        polygons: For each its value and its rings of (x, y) points, closed or not.
        height: Of the map.
        width: Of the map.
        fill: Value of pixels in no polygon.

    Returns:
        (height, width) map.
    """
    result = np.full((height, width), fill, np.int64)
    for value, rings in polygons:
        crossings = np.zeros((height, width + 1), bool)
        for ring in rings:
            points = np.asarray(ring, np.float64)
            for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
                low, high = sorted((y0, y1))
                first, last = int(np.ceil(low - 0.5)), int(np.ceil(high - 0.5))
                for row in range(max(first, 0), min(last, height)):
                    x = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
                    column = min(max(int(np.ceil(x - 0.5)), 0), width)
                    crossings[row, column] ^= True
        inside = np.logical_xor.accumulate(crossings, axis=1)[:, :-1]
        result[inside] = value
    return result
