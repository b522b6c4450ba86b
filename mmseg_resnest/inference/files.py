# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Segmenting files into files: whole outputs, a record to continue from, metadata, large images."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import struct
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ..errors import UserError
from ..evaluation import overlay, palette_image, side_by_side
from ..io.atomic import atomic_open
from ..io.image_files import save_image, unique_stems
from ..io.image_header import open_any_size
from ..io.json_files import parse_json, read_json
from .images import find_images, image_size, is_address, open_rows, read_image
from .polygons import coco_json, geojson, region_polygons
from .segmentor import Segmentor
from .tiles import Tiling, tiled

__all__ = [
    "OUTPUTS",
    "FileJob",
    "Summary",
    "find_inputs",
    "model_settings",
    "plan_outputs",
    "read_metadata",
]

OUTPUTS = ("labels", "overlay", "side", "geojson", "coco")
RECORD = "predictions.jsonl"
COCO_FILE = "coco.json"
_LOSSY = {".jpg", ".jpeg", ".webp"}
_REDUCED_EDGE = 4096  # pixels of the overlay of an image in tiles

# What pictures say about themselves and their making; not how their pixels are stored.
_EXIF_TAGS = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)
_EXIF_FOLDERS = (0x8769, 0x8825)  # camera settings, GPS
_GEO_TAGS = (33550, 33922, 34264, 34735)  # GeoTIFF


def find_inputs(
    source: str, leave_out: str | os.PathLike[str] | None = None
) -> tuple[list[str], list[Path]]:
    """The images that an argument names: a file, an address, a folder, or a pattern.

    Args:
        source: E.g. ``a.jpg``, ``photos``, ``photos/**/*.png``, ``https://.../a.jpg``.
        leave_out: A folder that is not searched.

    Returns:
        Paths and addresses; and the files of a folder that are no images.

    Raises:
        UserError: There is none.
    """
    if is_address(source) or os.path.isfile(source):
        return [source], []
    if os.path.isdir(source):
        images, others = find_images(source, leave_out)
        return [os.fspath(image) for image in images], others
    if glob.has_magic(source):
        without = None if leave_out is None else os.path.realpath(leave_out) + os.sep
        found = sorted(
            path
            for path in glob.glob(source, recursive=True)
            if os.path.isfile(path) and not (without and os.path.realpath(path).startswith(without))
        )
        if not found:
            raise UserError("input", f"image {source}", "no file matches this pattern")
        return found, []
    raise UserError(
        "not-found", f"image {source}", "does not exist; name an image file or a folder of images"
    )


def model_settings(cfg: Any, checkpoint: str | os.PathLike[str]) -> list[Any]:
    """What tells one model from another: the config's text and the checkpoint's file."""
    stat: list[int] = []
    with contextlib.suppress(OSError):
        found = os.stat(checkpoint)
        stat = [found.st_size, found.st_mtime_ns]
    return [cfg.pretty_text, os.fspath(checkpoint), *stat]


@dataclass(frozen=True)
class Metadata:
    """What a picture says about itself.

    Attributes:
        picture: Options of Pillow's ``save`` for pictures with the image's colours.
        labels: The same for label maps, whose colours are those of classes.
        georeferenced: Whether it is a GeoTIFF.
    """

    picture: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    georeferenced: bool = False


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """Read resolution, colour profile and EXIF (author, camera, time, place) of an image file.

    The EXIF orientation is left out: outputs are turned upright. Nothing is decoded.
    """
    if is_address(path):
        return Metadata()
    try:
        with open_any_size(path) as image:
            return _metadata_of(image)
    except Exception:  # Pillow raises many kinds; what is wrong, whoever decodes it will tell
        return Metadata()


def _metadata_of(image: Image.Image) -> Metadata:
    common: dict[str, Any] = {}
    dpi = image.info.get("dpi")
    if dpi and all(float(d) > 0 for d in dpi):
        common["dpi"] = (float(dpi[0]), float(dpi[1]))
    source, kept = image.getexif(), Image.Exif()
    for tag in _EXIF_TAGS:
        if tag in source:
            kept[tag] = source[tag]
    for tag in _EXIF_FOLDERS:
        folder = source.get_ifd(tag)
        if folder:
            kept.get_ifd(tag).update(folder)
            kept[tag] = dict(folder)
    if len(kept):
        with contextlib.suppress(Exception):  # Pillow cannot write all that it can read
            common["exif"] = kept.tobytes()
    picture = dict(common)
    profile = image.info.get("icc_profile")
    if profile and profile[16:20] == b"RGB ":
        picture["icc_profile"] = profile
    tags = getattr(image, "tag_v2", {})
    return Metadata(picture, common, any(tag in tags for tag in _GEO_TAGS))


class _PngRows:
    """Writes a palette PNG row by row (W3C PNG, third edition); Pillow needs all rows at once."""

    def __init__(
        self,
        file: IO[bytes],
        height: int,
        width: int,
        palette: Sequence[Sequence[int]],
        metadata: dict[str, Any],
    ) -> None:
        self._file = file
        self._packer = zlib.compressobj(3)
        table = np.zeros((256, 3), np.uint8)
        table[: len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)
        file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        if "dpi" in metadata:
            across, down = (round(d / 0.0254) for d in metadata["dpi"])
            self._chunk(b"pHYs", struct.pack(">IIB", across, down, 1))
        self._chunk(b"PLTE", table.tobytes())
        if "exif" in metadata:
            self._chunk(b"eXIf", metadata["exif"].removeprefix(b"Exif\x00\x00"))

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self._file.write(struct.pack(">I", len(data)) + kind + data)
        self._file.write(struct.pack(">I", zlib.crc32(kind + data)))

    def write(self, rows: NDArray[np.uint8]) -> None:
        filtered = np.pad(rows, ((0, 0), (1, 0)))  # filter 0 before each row
        data = self._packer.compress(filtered.tobytes())
        if data:
            self._chunk(b"IDAT", data)

    def close(self) -> None:
        self._chunk(b"IDAT", self._packer.flush())
        self._chunk(b"IEND", b"")


@dataclass
class Summary:
    """What a job did.

    Attributes:
        done: Images that were segmented.
        skipped: Those whose outputs were there, whole.
        failed: What was wrong with the others.
        georeferenced: GeoTIFFs among those done, whose outputs carry no place.
    """

    done: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)
    georeferenced: int = 0


class FileJob:
    """Segments images into a folder.

    Names and subfolders are kept: ``NAME.png`` is the label map, a palette PNG whose pixels are
    class indices; ``NAME_overlay.jpg`` (``.png`` for lossless images) the overlay;
    ``NAME_side.jpg`` image and prediction side by side with a legend; ``NAME.geojson`` and
    ``NAME_coco.json`` the outlines of all regions; ``coco.json`` those of all images. The overlay
    and the side by side picture of an image in tiles are reduced to 4096 pixels.

    Each output is whole or absent. ``predictions.jsonl`` has a line for each image that is done;
    one whose file, settings and outputs are as the line says is not done again.

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
        unknown = [name for name in outputs if name not in OUTPUTS]
        if unknown or not outputs:
            raise UserError(
                "argument", f"outputs {', '.join(unknown)}", f"choose of {', '.join(OUTPUTS)}"
            )
        if not 0 <= opacity <= 1:
            raise UserError("argument", f"opacity {opacity}", "must lie between 0 and 1")
        if len(model.classes) > 255 and set(outputs) - {"geojson", "coco"}:
            raise UserError(
                "classes",
                "outputs",
                f"a palette PNG holds at most 255 classes, not {len(model.classes)}; "
                "choose geojson or coco",
            )
        model.tiling((1, 1), tile)
        self.model = model
        self.out = Path(out)
        self.outputs = tuple(outputs)
        self.opacity = opacity
        self.tile = tile
        self.plan = plan_outputs(images, self.out, self.outputs)
        text = json.dumps([list(self.outputs), opacity, tile, settings], default=str)
        self._settings = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._record = {} if overwrite else self._read_record()

    # --- the record

    def _read_record(self) -> dict[str, dict[str, Any]]:
        record = {}
        with contextlib.suppress(FileNotFoundError):
            for line in (self.out / RECORD).read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(UserError, TypeError, KeyError, AttributeError):
                    entry = parse_json(line, str(self.out / RECORD))
                    if isinstance(entry.get("outputs", {}), dict):
                        record[entry["input"]] = entry
        return record

    def _identity(self, image: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"input": image, "settings": self._settings}
        if not is_address(image):
            with contextlib.suppress(OSError):
                stat = os.stat(image)
                entry.update(bytes=stat.st_size, modified=stat.st_mtime_ns)
        return entry

    def _is_done(self, image: str) -> bool:
        entry = self._record.get(image)
        if entry is None or any(entry.get(k) != v for k, v in self._identity(image).items()):
            return False
        written = entry.get("outputs", {})
        return set(written) == {self._relative(p) for p in self.plan[image].values()} and all(
            (self.out / name).is_file() and (self.out / name).stat().st_size == size
            for name, size in written.items()
        )

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path, self.out)

    def _note(self, image: str, size: tuple[int, int], seconds: float, geo: bool) -> None:
        entry = self._identity(image) | {
            "height": size[0],
            "width": size[1],
            "seconds": round(seconds, 3),
            "outputs": {
                self._relative(p): p.stat().st_size for p in self.plan[image].values()
            },
        }  # fmt: skip
        if geo:
            entry["georeferenced"] = True
        self._record[image] = entry
        try:
            with (self.out / RECORD).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise UserError(
                "not-writable", self.out / RECORD, f"cannot be written ({error})"
            ) from error

    # --- the work

    def run(self) -> Summary:
        """Segment the images that are not done.

        A broken image does not stop the others; it is told in the summary.

        Raises:
            UserError: An output cannot be written.
        """
        summary = Summary()
        waiting = [image for image in self.plan if not self._is_done(image)]
        summary.skipped = len(self.plan) - len(waiting)
        small: list[str] = []
        large: list[str] = []
        for image in waiting:
            size = None if is_address(image) else image_size(image)
            in_tiles = size is not None and self.model.tiling(size, self.tile) is not None
            (large if in_tiles else small).append(image)
        with tqdm(
            total=len(self.plan),
            initial=summary.skipped,
            desc="images",
            disable=None,
            leave=False,
            dynamic_ncols=True,
        ) as bar:
            self._run_small(small, summary, bar)
            for image in large:
                try:
                    self._run_large(image, summary)
                except UserError as error:
                    summary.failed.append(error.text)
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
                    summary.failed.append(error.text)
                    bar.update()
                    continue
                names.append(image)
                yield pixels

        begin = time.monotonic()
        for result in self.model.stream(readable(), tile=self.tile):
            image = names.popleft()
            self._write(image, result.image, result.labels, summary, begin)
            begin = time.monotonic()
            bar.update()

    def _write(
        self,
        image: str,
        pixels: NDArray[np.uint8],
        labels: NDArray[np.integer],
        summary: Summary,
        begin: float,
    ) -> None:
        plan, metadata = self.plan[image], read_metadata(image)
        if "labels" in plan:
            picture = palette_image(labels, self.model.palette)
            save_image(picture, plan["labels"], metadata.labels)
        self._write_pictures(plan, pixels, labels, metadata)
        self._write_polygons(image, labels)
        self._note(image, labels.shape, time.monotonic() - begin, metadata.georeferenced)
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
        plan = self.plan[image]
        if not {"geojson", "coco"} & set(plan):
            return
        regions = region_polygons(labels)
        if "geojson" in plan:
            _write_json(geojson(regions, self.model.classes), plan["geojson"])
        if "coco" in plan:
            height, width = labels.shape
            name = os.path.basename(image)
            _write_json(
                coco_json({name: (regions, (height, width))}, self.model.classes), plan["coco"]
            )

    def _run_large(self, image: str, summary: Summary) -> None:
        """Segment an image in tiles, reading and writing it in parts."""
        begin = time.monotonic()
        plan, metadata = self.plan[image], read_metadata(image)
        rows = open_rows(image)
        tiling = self.model.tiling((rows.height, rows.width), self.tile)
        if tiling is None:  # turned by its EXIF orientation it may be another size
            tiling = Tiling(rows.height, rows.width, max(rows.height, rows.width), 0)
        step = -(-max(rows.height, rows.width) // _REDUCED_EDGE)
        pictures = {"overlay", "side"} & set(plan)
        outlines = {"geojson", "coco"} & set(plan)
        kept = np.empty((rows.height, rows.width), self.model.label_type) if outlines else None
        small_pixels, small_labels = [], []
        with contextlib.ExitStack() as stack:
            png = None
            if "labels" in plan:
                file = stack.enter_context(atomic_open(plan["labels"]))
                png = _PngRows(
                    file, rows.height, rows.width, self.model.palette, metadata.labels
                )  # fmt: skip
            bar = stack.enter_context(
                tqdm(total=tiling.count, desc="tiles", disable=None, leave=False)
            )
            for top, labels in tiled(
                rows.read, self.model.tile_votes, tiling, advance=lambda: bar.update()
            ):
                if png is not None:
                    png.write(labels)
                if kept is not None:
                    kept[top : top + len(labels)] = labels
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
        if kept is not None:
            self._write_polygons(image, kept)
        size = (rows.height, rows.width)
        self._note(image, size, time.monotonic() - begin, metadata.georeferenced)
        summary.done += 1
        summary.georeferenced += metadata.georeferenced

    def _join_coco(self) -> None:
        """Write the annotations of all images into one file."""
        joined: dict[str, Any] = {"images": [], "categories": [], "annotations": []}
        for image, plan in self.plan.items():
            if not self._is_done(image):
                continue
            part = read_json(plan["coco"], str(plan["coco"]))
            image_id = len(joined["images"]) + 1
            name = self._relative(plan["coco"]).removesuffix("_coco.json")
            folder = os.path.dirname(name)
            joined["images"].append(
                {
                    **part["images"][0],
                    "id": image_id,
                    "file_name": os.path.join(folder, part["images"][0]["file_name"]),
                }
            )
            joined["categories"] = part["categories"]
            for annotation in part["annotations"]:
                number = len(joined["annotations"]) + 1
                joined["annotations"].append({**annotation, "id": number, "image_id": image_id})
        _write_json(joined, self.out / COCO_FILE)


def _write_json(data: Any, path: Path) -> None:
    with atomic_open(path) as file:
        file.write(json.dumps(data, separators=(",", ":")).encode())


def plan_outputs(
    images: Sequence[str], out: Path, outputs: Sequence[str]
) -> dict[str, dict[str, Path]]:
    """Where the outputs of each image go.

    Raises:
        UserError: One of them would overwrite an image.
    """
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
                raise UserError(
                    "output-exists",
                    f"--out {out}",
                    f"{target} would overwrite an image; use another folder",
                )
    return plan
