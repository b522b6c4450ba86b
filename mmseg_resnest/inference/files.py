# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Segmenting image files into files: atomic writes, a record to continue from, large images."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import UserError
from ..evaluation import side_by_side
from ..evaluation.uncertainty import uncertainty_image, uncertainty_of
from ..io.atomic import atomic_open, atomic_write
from ..io.bit_planes import file_type, part_sizes, to_file
from ..io.image_files import JPEG_EDGE, as_picture, save_image, unique_stems
from ..io.image_sources import image_size, is_address
from ..io.json_files import read_json
from ..io.up_to_date import Journal, fingerprint
from .faults import NOT_OF_AN_IMAGE, image_error
from .images import RECORD
from .picture_files import Metadata, PngRows, read_metadata
from .polygons import coco_json, geojson, mask_polygons, region_polygons
from .result import Segmentation
from .rows import open_rows
from .segmentor import Segmentor
from .tiles import Tiling

__all__ = ["OUTPUTS", "RECORD", "FileJob", "Summary", "claim", "plan_outputs"]

OUTPUTS = ("labels", "overlay", "side", "uncertainty", "geojson", "coco")
COCO_FILE = "coco.json"
_NO_PALETTE = {"uncertainty", "geojson", "coco"}
_LOSSY = {".jpg", ".jpeg", ".webp"}
_REDUCED_EDGE = 4096  # pixels of the overlay of an image in tiles


def plan_outputs(
    images: Sequence[str],
    out: Path,
    outputs: Sequence[str],
    root: str | os.PathLike[str] | None = None,
) -> dict[str, dict[str, Path]]:
    """Where the outputs of each image go; UserError if one would overwrite an image."""
    stems = unique_stems(images, ("_overlay", "_side", "_uncertainty"), root)
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
            "uncertainty": "_uncertainty.png",
            "geojson": ".geojson",
            "coco": "_coco.json",
        }
        plan[image] = {kind: out / f"{stem}{endings[kind]}" for kind in outputs}
        for target in plan[image].values():
            if os.path.realpath(target) in inputs:
                said = f"{target} would overwrite an image; name another folder"
                raise UserError("output-exists", "--out", said)
    return plan


def claim(record: Journal, outputs: Iterable[Path]) -> None:
    """Note outputs in a record before they are made; UserError if one is a file of others."""
    outputs = list(outputs)
    for path in outputs:
        if not record.names(path) and os.path.lexists(path) and not os.path.isdir(path):
            said = f"exists, and {RECORD} does not list it as an output; move it away, "
            raise UserError("output-exists", path, f"{said}or name another folder with --out")
    record.claim(outputs)


@dataclass
class Summary:
    """What a job did: numbers of images, and the errors of those that failed."""

    done: int = 0
    skipped: int = 0  # their outputs were complete
    failed: list[UserError] = field(default_factory=list)
    georeferenced: int = 0  # GeoTIFFs among those done, whose outputs carry no place
    several: int = 0  # files of several pages or frames among those done: the first was taken

    def note(self, error: UserError) -> None:
        """Keep an error without its frames, which hold the image."""
        error.__cause__ = error.__context__ = None
        self.failed.append(error.with_traceback(None))


@contextlib.contextmanager
def _alone(image: str, what: str, summary: Summary) -> Iterator[None]:
    """Whatever fails inside fails for this image alone; ``what`` as :func:`.image_error` has it."""
    try:
        yield
    except NOT_OF_AN_IMAGE:
        raise
    except Exception as error:
        summary.note(image_error(error, image, what))


class FileJob:
    """Segments images into a folder.

    Names and subfolders are kept: ``NAME.png`` is the label map, a palette PNG whose pixels are
    class indices, or a grey PNG of bit planes with classes that may overlap;
    ``NAME_overlay.jpg`` (``.png`` for lossless images) the overlay; ``NAME_side.jpg`` image and
    prediction side by side with a legend; ``NAME_uncertainty.png`` the entropy of each pixel, grey,
    255 being the largest (:meth:`Segmentation.uncertainty`); ``NAME.geojson`` and
    ``NAME_coco.json`` the outlines of all regions; ``coco.json`` those of all images. The overlay
    and the side by side picture of an image in tiles are reduced to 4096 pixels.

    Writes are atomic. An image is skipped if the record ``predictions.jsonl`` has its outputs and
    they, its file, the model and the settings have not changed; one at an address is fetched again.

    Args:
        model: The model.
        images: Paths and addresses.
        out: The folder to write to.
        outputs: Some of :data:`OUTPUTS`.
        opacity: Of the colours in the overlay.
        tile: As in :meth:`Segmentor.__call__`.
        settings: Whatever else decides about the outputs, beside the model.
        overwrite: Do all images again.
        root: The folder below which subfolders are kept; None is the deepest that has all images.

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
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        if not outputs or not set(outputs) <= set(OUTPUTS):
            raise UserError("argument", "outputs", f"choose from {', '.join(OUTPUTS)}")
        if not 0 <= opacity <= 1:
            raise UserError("argument", "opacity", f"must lie between 0 and 1, not {opacity}")
        if len(model.classes) > 255 and set(outputs) - _NO_PALETTE:
            said = f"a palette PNG holds at most 255 classes, not {len(model.classes)}"
            raise UserError("classes", "outputs", f"{said}; choose geojson or coco")
        if "uncertainty" in outputs:
            model.require_scores()
        model.tiling((1, 1), tile)
        self.model = model
        self.out = Path(out)
        self.outputs = tuple(outputs)
        self.opacity = opacity
        self.tile = tile
        self.plan = plan_outputs(images, self.out, self.outputs, root)
        same = fingerprint(model.fingerprint, tile, settings)
        # Before an image is read: what is put there meanwhile is another one.
        self._made_from = {image: self._fingerprints(image, same) for image in self.plan}
        self._record = Journal(self.out / RECORD)
        self._done: set[str] = set()
        if not overwrite:  # an address may answer otherwise now
            ours = {k: v for k, v in self._made_from.items() if not is_address(k)}
            self._done = {image for image, made in ours.items() if self._record.has(made)}

    def _fingerprints(self, image: str, settings: str) -> dict[Path, str]:
        """The outputs of an image, each with the fingerprint of what it is made from."""
        source = Path(image) if os.path.exists(image) else image
        options = {"overlay": self.opacity}
        return {
            path: fingerprint(source, settings, kind, options.get(kind))
            for kind, path in self.plan[image].items()
        }

    def run(self) -> Summary:
        """Segment the images that are not done.

        One that fails, to be read, prepared, segmented or written, does not stop the others.

        Raises:
            UserError: A file of others stands where an output goes; or the record or the file of
                all outlines, ``coco.json``, cannot be written.
        """
        waiting = [image for image in self.plan if image not in self._done]
        joined = [self.out / COCO_FILE] if "coco" in self.outputs else []
        claim(self._record, [*joined, *(p for i in waiting for p in self.plan[i].values())])
        summary = Summary(skipped=len(self.plan) - len(waiting))
        small: list[str] = []
        large: list[str] = []
        with tqdm(
            total=len(self.plan), initial=summary.skipped, desc="images", disable=None, leave=False,
            dynamic_ncols=True,
        ) as bar:  # fmt: skip
            for image in waiting:
                try:
                    size = None if is_address(image) else image_size(image)
                except UserError as error:
                    summary.note(error)
                    bar.update()
                    continue
                in_tiles = size is not None and self.model.tiling(size, self.tile) is not None
                (large if in_tiles else small).append(image)
            self._run_small(small, summary, bar)
            for image in large:
                with _alone(image, "segmenting it in tiles failed", summary):
                    self._run_large(image, summary)
                bar.update()
        if "coco" in self.outputs:
            self._join_coco()
        return summary

    def _run_small(self, images: Sequence[str], summary: Summary, bar: tqdm) -> None:
        begin = time.monotonic()
        results = self.model.attempts(images, tile=self.tile)
        for image, result in zip(images, results, strict=True):
            if isinstance(result, UserError):
                summary.note(result)
            else:
                with _alone(image, "writing its outputs failed", summary):
                    self._write(image, result, begin, summary)
            begin = time.monotonic()
            bar.update()

    def _write(self, image: str, result: Segmentation, begin: float, summary: Summary) -> None:
        plan, metadata = self.plan[image], read_metadata(image)
        if "labels" in plan:
            save_image(result.label_image(), plan["labels"], metadata.labels)
        if "uncertainty" in plan:
            picture = uncertainty_image(result.uncertainty())
            save_image(picture, plan["uncertainty"], metadata.labels)
        self._write_pictures(plan, result, metadata)
        self._write_polygons(image, result.labels)
        self._finish(image, result.size, begin, metadata, summary)

    def _run_large(self, image: str, summary: Summary) -> None:
        """Segment an image in tiles, reading and writing it in parts."""
        begin = time.monotonic()
        plan, metadata = self.plan[image], read_metadata(image)
        rows = open_rows(image, self.model.reader)
        size = (rows.height, rows.width)
        # Turned by its EXIF orientation it may have become small enough.
        tiling = self.model.tiling(size, self.tile) or Tiling(*size, max(size), 0)
        step = -(-max(size) // _REDUCED_EDGE)
        classes, several = len(self.model.classes), self.model.multilabel
        pictures = {"overlay", "side"} & set(plan)
        whole = np.empty(size, self.model.label_type) if {"geojson", "coco"} & set(plan) else None
        small_pixels, small_labels = [], []
        with contextlib.ExitStack() as stack:
            png = None
            if "labels" in plan:
                file = stack.enter_context(atomic_open(plan["labels"]))
                if several:
                    wide = size[0], size[1] * len(part_sizes(classes))
                    png = PngRows(file, wide, None, metadata.labels, file_type(classes))
                else:
                    palette, kind = self.model.palette, self.model.label_type
                    png = PngRows(file, size, palette, metadata.labels, kind)
            bar = stack.enter_context(
                tqdm(total=tiling.count, desc="tiles", disable=None, leave=False)
            )
            for top, labels in self.model.tiled_labels(rows.read, tiling, bar.update):
                if png is not None:
                    png.write(to_file(labels, classes) if several else labels)
                if whole is not None:
                    whole[top : top + len(labels)] = labels
                if pictures:
                    first = -top % step
                    small_labels.append(labels[first::step, ::step].copy())
                    band = rows.read(top, top + len(labels))
                    small_pixels.append(band[first::step, ::step].copy())
            if png is not None:
                png.close()
        if "uncertainty" in plan:
            self._write_uncertainty(plan["uncertainty"], rows.read, tiling, metadata)
        if pictures:
            pixels = as_picture(np.concatenate(small_pixels), self.model.reader.rgb)
            small = self.model.segmentation(np.concatenate(small_labels), pixels)
            self._write_pictures(plan, small, metadata)
        if whole is not None:
            self._write_polygons(image, whole)
        self._finish(image, size, begin, metadata, summary)

    def _write_uncertainty(
        self, path: Path, read: Callable[[int, int], Any], tiling: Tiling, metadata: Metadata
    ) -> None:
        """That of an image in tiles, row by row."""
        size, several = (tiling.height, tiling.width), self.model.multilabel
        with (
            atomic_open(path) as file,
            tqdm(total=tiling.count, desc="uncertainty", disable=None, leave=False) as bar,
        ):
            png = PngRows(file, size, None, metadata.labels)
            for _, scores in self.model.tiled_scores(read, tiling, advance=bar.update):
                values = uncertainty_of(scores, overlap=several)
                png.write(np.asarray(uncertainty_image(values)))
            png.close()

    def _finish(
        self, image: str, size: tuple[int, ...], begin: float, metadata: Metadata, summary: Summary
    ) -> None:
        facts: dict[str, Any] = {"georeferenced": True} if metadata.georeferenced else {}
        facts |= dict(height=size[0], width=size[1], seconds=round(time.monotonic() - begin, 3))
        self._record.add(self._made_from[image], input=image, **facts)
        self._done.add(image)
        summary.done += 1
        summary.georeferenced += metadata.georeferenced
        decoding = self.model.reader.decoding  # that of bands takes the pages of a TIFF for bands
        summary.several += metadata.several and (decoding is None or decoding.first_page)

    def _write_pictures(
        self, plan: dict[str, Path], result: Segmentation, metadata: Metadata
    ) -> None:
        if "overlay" in plan:
            drawn = np.asarray(result.overlay(self.opacity))
            step = -(-max(drawn.shape) // JPEG_EDGE) if plan["overlay"].suffix == ".jpg" else 1
            save_image(drawn[::step, ::step], plan["overlay"], metadata.picture)
        if "side" in plan:
            labels, classes, palette = result.shown()
            panel = side_by_side(result.image, None, labels, palette, classes)
            profile = {k: v for k, v in metadata.picture.items() if k == "icc_profile"}
            save_image(panel, plan["side"], profile)

    def _write_polygons(self, image: str, labels: NDArray[np.integer]) -> None:
        """Write the outlines of labels (H, W): class indices, or bits of classes that overlap."""
        plan, classes = self.plan[image], self.model.classes
        if not {"geojson", "coco"} & set(plan):
            return
        if self.model.multilabel:
            regions = mask_polygons(labels >> c & 1 == 1 for c in range(len(classes)))
        else:
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
            if image not in self._done:
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
