# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Segmenting image files into files: atomic writes, a record to continue from, large images."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import UserError
from ..evaluation import overlay, palette_image, side_by_side
from ..io.atomic import atomic_open, atomic_write
from ..io.image_files import save_image, unique_stems
from ..io.json_files import parse_json, read_json
from .images import image_size, is_address, read_image
from .picture_files import Metadata, PngRows, read_metadata
from .polygons import coco_json, geojson, region_polygons
from .rows import open_rows
from .segmentor import Segmentor
from .tiles import Tiling, tiled

__all__ = ["OUTPUTS", "FileJob", "Summary", "model_settings", "plan_outputs"]

OUTPUTS = ("labels", "overlay", "side", "geojson", "coco")
RECORD = "predictions.jsonl"
COCO_FILE = "coco.json"
_LOSSY = {".jpg", ".jpeg", ".webp"}
_REDUCED_EDGE = 4096  # pixels of the overlay of an image in tiles


def model_settings(cfg: Any, checkpoint: str | os.PathLike[str]) -> list[Any]:
    """What identifies a model: the config's text and the checkpoint's file."""
    return [cfg.pretty_text, os.fspath(checkpoint), *_size_and_time(checkpoint)]


def _size_and_time(path: str | os.PathLike[str]) -> list[int]:
    """Nothing if there is no such file, as for an address."""
    try:
        found = os.stat(path)
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def plan_outputs(
    images: Sequence[str], out: Path, outputs: Sequence[str]
) -> dict[str, dict[str, Path]]:
    """Where the outputs of each image go; UserError if one would overwrite an image."""
    stems = unique_stems(images, endings=("_overlay", "_side"))
    inputs = {os.path.realpath(image) for image in images}
    plan = {}
    for image in images:
        name = image.split("?")[0].rstrip("/").rsplit("/", 1)[-1] if is_address(image) else image
        stem = (os.path.splitext(name)[0] or "image") if is_address(image) else stems[image]
        suffix = ".jpg" if Path(name).suffix.lower() in _LOSSY else ".png"
        endings = {
            "labels": ".png",
            "overlay": f"_overlay{suffix}",
            "side": f"_side{suffix}",
            "geojson": ".geojson",
            "coco": "_coco.json",
        }
        plan[image] = {kind: out / f"{stem}{endings[kind]}" for kind in outputs}
        for target in plan[image].values():
            if os.path.realpath(target) in inputs:
                said = f"{target} would overwrite an image; name another folder"
                raise UserError("output-exists", "--out", said)
    return plan


@dataclass
class Summary:
    """What a job did: numbers of images, and the errors of those that failed."""

    done: int = 0
    skipped: int = 0  # their outputs were complete
    failed: list[UserError] = field(default_factory=list)
    georeferenced: int = 0  # GeoTIFFs among those done, whose outputs carry no place


class _Record:
    """``predictions.jsonl``: a line for each image that is done, by whose outputs it is known."""

    def __init__(self, out: Path, settings: str, overwrite: bool) -> None:
        self._out, self._settings = out, settings
        self._entries: dict[str, dict[str, Any]] = {}
        if overwrite or not (out / RECORD).exists():
            return
        for line in (out / RECORD).read_text(encoding="utf-8").splitlines():
            # The last line may have been cut off.
            with contextlib.suppress(UserError, TypeError, KeyError, AttributeError):
                entry = parse_json(line, str(out / RECORD))
                if isinstance(entry.get("outputs", {}), dict):
                    self._entries[entry["input"]] = entry

    def _identity(self, image: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"input": image, "settings": self._settings}
        return entry | dict(zip(("bytes", "modified"), _size_and_time(image), strict=False))

    def has(self, image: str, outputs: Sequence[Path]) -> bool:
        """Whether the image, the settings and the outputs are as they were written."""
        entry = self._entries.get(image)
        if entry is None or any(entry.get(k) != v for k, v in self._identity(image).items()):
            return False
        written = entry.get("outputs", {})
        return set(written) == {os.path.relpath(path, self._out) for path in outputs} and all(
            (self._out / name).is_file() and (self._out / name).stat().st_size == size
            for name, size in written.items()
        )

    def add(self, image: str, outputs: Sequence[Path], **facts: Any) -> None:
        sizes = {os.path.relpath(path, self._out): path.stat().st_size for path in outputs}
        entry = {**self._identity(image), **facts, "outputs": sizes}
        self._entries[image] = entry
        try:
            with (self._out / RECORD).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise UserError("not-writable", self._out / RECORD, f"{error.strerror}") from error


class FileJob:
    """Segments images into a folder.

    Names and subfolders are kept: ``NAME.png`` is the label map, a palette PNG whose pixels are
    class indices; ``NAME_overlay.jpg`` (``.png`` for lossless images) the overlay;
    ``NAME_side.jpg`` image and prediction side by side with a legend; ``NAME.geojson`` and
    ``NAME_coco.json`` the outlines of all regions; ``coco.json`` those of all images. The overlay
    and the side by side picture of an image in tiles are reduced to 4096 pixels.

    Writes are atomic. An image is skipped if the record ``predictions.jsonl`` has it and its file,
    the settings and the outputs have not changed.

    Args:
        model: The model.
        images: Paths and addresses.
        out: The folder to write to.
        outputs: Some of :data:`OUTPUTS`.
        opacity: Of the colours in the overlay.
        tile: As in :meth:`Segmentor.__call__`.
        settings: Whatever else decides about the outputs, such as the checkpoint.
        overwrite: Do all images again.

    Raises:
        UserError: An argument is wrong, or an output would overwrite an image.
    """

    def __init__(
        self,
        model: Segmentor,
        images: Sequence[str],
        out: str | os.PathLike[str],
        outputs: Sequence[str] = ("labels", "overlay"),
        opacity: float = 0.5,
        tile: int | None = None,
        settings: Any = None,
        overwrite: bool = False,
    ) -> None:
        if not outputs or not set(outputs) <= set(OUTPUTS):
            raise UserError("argument", "outputs", f"choose from {', '.join(OUTPUTS)}")
        if not 0 <= opacity <= 1:
            raise UserError("argument", "opacity", f"must lie between 0 and 1, not {opacity}")
        if len(model.classes) > 255 and set(outputs) - {"geojson", "coco"}:
            said = f"a palette PNG holds at most 255 classes, not {len(model.classes)}"
            raise UserError("classes", "outputs", f"{said}; choose geojson or coco")
        model.tiling((1, 1), tile)
        self.model = model
        self.out = Path(out)
        self.outputs = tuple(outputs)
        self.opacity = opacity
        self.tile = tile
        self.plan = plan_outputs(images, self.out, self.outputs)
        text = json.dumps([list(self.outputs), opacity, tile, settings], default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._record = _Record(self.out, digest, overwrite)

    def _is_done(self, image: str) -> bool:
        return self._record.has(image, list(self.plan[image].values()))

    def run(self) -> Summary:
        """Segment the images that are not done; one that fails does not stop the others.

        Raises:
            UserError: An output cannot be written.
        """
        waiting = [image for image in self.plan if not self._is_done(image)]
        summary = Summary(skipped=len(self.plan) - len(waiting))
        small: list[str] = []
        large: list[str] = []
        for image in waiting:
            size = None if is_address(image) else image_size(image)
            in_tiles = size is not None and self.model.tiling(size, self.tile) is not None
            (large if in_tiles else small).append(image)
        with tqdm(
            total=len(self.plan), initial=summary.skipped, desc="images", disable=None, leave=False,
            dynamic_ncols=True,
        ) as bar:  # fmt: skip
            self._run_small(small, summary, bar)
            for image in large:
                try:
                    self._run_large(image, summary)
                except UserError as error:
                    summary.failed.append(error)
                bar.update()
        if "coco" in self.outputs:
            self._join_coco()
        return summary

    def _run_small(self, images: Sequence[str], summary: Summary, bar: tqdm) -> None:
        names: deque[str] = deque()

        def readable() -> Iterator[NDArray[np.uint8]]:
            for image in images:
                try:
                    pixels = read_image(image)[0]
                except UserError as error:
                    summary.failed.append(error)
                    bar.update()
                    continue
                names.append(image)
                yield pixels

        begin = time.monotonic()
        for result in self.model.stream(readable(), tile=self.tile):
            image = names.popleft()
            plan, metadata = self.plan[image], read_metadata(image)
            if "labels" in plan:
                picture = palette_image(result.labels, self.model.palette)
                save_image(picture, plan["labels"], metadata.labels)
            self._write_pictures(plan, result.image, result.labels, metadata)
            self._write_polygons(image, result.labels)
            self._finish(image, result.labels.shape, begin, metadata, summary)
            begin = time.monotonic()
            bar.update()

    def _run_large(self, image: str, summary: Summary) -> None:
        """Segment an image in tiles, reading and writing it in parts."""
        begin = time.monotonic()
        plan, metadata = self.plan[image], read_metadata(image)
        rows = open_rows(image)
        size = (rows.height, rows.width)
        # Turned by its EXIF orientation it may have become small enough.
        tiling = self.model.tiling(size, self.tile) or Tiling(*size, max(size), 0)
        step = -(-max(size) // _REDUCED_EDGE)
        pictures = {"overlay", "side"} & set(plan)
        whole = np.empty(size, self.model.label_type) if {"geojson", "coco"} & set(plan) else None
        small_pixels, small_labels = [], []
        with contextlib.ExitStack() as stack:
            png = None
            if "labels" in plan:
                file = stack.enter_context(atomic_open(plan["labels"]))
                png = PngRows(file, size, self.model.palette, metadata.labels)
            bar = stack.enter_context(
                tqdm(total=tiling.count, desc="tiles", disable=None, leave=False)
            )
            for top, labels in tiled(rows.read, self.model.tile_votes, tiling, advance=bar.update):
                if png is not None:
                    png.write(labels)
                if whole is not None:
                    whole[top : top + len(labels)] = labels
                if pictures:
                    first = -top % step
                    small_labels.append(labels[first::step, ::step].copy())
                    band = rows.read(top, top + len(labels))
                    small_pixels.append(band[first::step, ::step].copy())
            if png is not None:
                png.close()
        if pictures:
            pixels = np.concatenate(small_pixels)
            self._write_pictures(plan, pixels, np.concatenate(small_labels), metadata)
        if whole is not None:
            self._write_polygons(image, whole)
        self._finish(image, size, begin, metadata, summary)

    def _finish(
        self, image: str, size: tuple[int, ...], begin: float, metadata: Metadata, summary: Summary
    ) -> None:
        facts: dict[str, Any] = {"georeferenced": True} if metadata.georeferenced else {}
        facts |= dict(height=size[0], width=size[1], seconds=round(time.monotonic() - begin, 3))
        self._record.add(image, list(self.plan[image].values()), **facts)
        summary.done += 1
        summary.georeferenced += metadata.georeferenced

    def _write_pictures(
        self,
        plan: dict[str, Path],
        pixels: NDArray[np.uint8],
        labels: NDArray[np.integer],
        metadata: Metadata,
    ) -> None:
        if "overlay" in plan:
            drawn = overlay(pixels, labels, self.model.palette, self.opacity)
            save_image(drawn, plan["overlay"], metadata.picture)
        if "side" in plan:
            panel = side_by_side(pixels, None, labels, self.model.palette, self.model.classes)
            profile = {k: v for k, v in metadata.picture.items() if k == "icc_profile"}
            save_image(panel, plan["side"], profile)

    def _write_polygons(self, image: str, labels: NDArray[np.integer]) -> None:
        plan, classes = self.plan[image], self.model.classes
        if not {"geojson", "coco"} & set(plan):
            return
        regions = region_polygons(labels)
        if "geojson" in plan:
            _write_json(geojson(regions, classes), plan["geojson"])
        if "coco" in plan:
            height, width = labels.shape
            images = {os.path.basename(image): (regions, (height, width))}
            _write_json(coco_json(images, classes), plan["coco"])

    def _join_coco(self) -> None:
        """Write the annotations of all images into one file."""
        joined: dict[str, Any] = {"images": [], "categories": [], "annotations": []}
        for image, plan in self.plan.items():
            if not self._is_done(image):
                continue
            part = read_json(plan["coco"], str(plan["coco"]))
            image_id = len(joined["images"]) + 1
            name = plan["coco"].parent.relative_to(self.out) / part["images"][0]["file_name"]
            entry = {**part["images"][0], "id": image_id, "file_name": os.fspath(name)}
            joined["images"].append(entry)
            joined["categories"] = part["categories"]
            for annotation in part["annotations"]:
                number = len(joined["annotations"]) + 1
                joined["annotations"].append({**annotation, "id": number, "image_id": image_id})
        _write_json(joined, self.out / COCO_FILE)


def _write_json(data: Any, path: Path) -> None:
    atomic_write(path, json.dumps(data, separators=(",", ":")))
