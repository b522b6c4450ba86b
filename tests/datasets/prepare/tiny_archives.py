# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Images, label maps and archives as small as they can be."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import tifffile
from PIL import Image

from mmseg_resnest.datasets.prepare import DataSet
from mmseg_resnest.datasets.prepare.shapes import compress_rle

Members = Mapping[str, bytes]
Voc = tuple[Members, Members, dict[str, np.ndarray]]  # VOC, SBD, the label maps of trainaug and val


def jpeg(seed: int, size: tuple[int, int] = (8, 6)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return encoded(pixels, "JPEG")


def png_of(labels: np.ndarray, palette: list[int] | None = None) -> bytes:
    image = Image.fromarray(labels)
    if palette is not None:
        image = image.convert("P") if image.mode != "L" else image
        image.putpalette(palette)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def encoded(pixels: np.ndarray, form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    """A file as tifffile writes it."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def labels_of(seed: int, high: int, size: tuple[int, int] = (8, 6)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, (size[1], size[0]), dtype=np.uint8)


def write_zip(file: Path, members: Members) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file


def write_tar(file: Path, members: Members) -> Path:
    with tarfile.open(file, "w:gz" if file.name.endswith("gz") else "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def write_folder(folder: Path, members: Members) -> Path:
    for name, data in members.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return folder


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    """Modification time and hash of every file below a folder, the hidden state left out."""
    return {
        file.relative_to(folder).as_posix(): (
            file.stat().st_mtime_ns,
            hashlib.sha1(file.read_bytes()).hexdigest(),
        )
        for file in sorted(folder.rglob("*"))
        if file.is_file() and ".prepare" not in file.parts
    }


def sbd_mat(labels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    fields = {"Boundaries": np.zeros(2), "Segmentation": labels, "CategoriesPresent": np.ones(1)}
    scipy.io.savemat(stream, {"GTcls": fields}, do_compression=True)
    return stream.getvalue()


def context_mat(labels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"LabelMap": labels.astype(np.uint16)}, do_compression=True)
    return stream.getvalue()


def detail_json(maps: Mapping[str, tuple[str, np.ndarray]]) -> bytes:
    """A Detail file: one area for each number of each map."""
    images, areas = [], []
    for number, (name, (phase, labels)) in enumerate(maps.items(), start=7):
        height, width = labels.shape
        images.append(
            dict(image_id=number, file_name=f"{name}.jpg", phase=phase, height=height, width=width)
        )
        for value in np.unique(labels[labels > 0]):
            runs = compress_rle(labels == value)
            areas.append(
                dict(
                    id=len(areas), image_id=number, category_id=int(value),
                    segmentation={"size": [height, width], "counts": runs},
                )
            )  # fmt: skip
    return json.dumps({"images": images, "annos_segmentation": areas}).encode()


def small(dataset: DataSet, files: Sequence[Path] = (), **expected: int) -> DataSet:
    """The data set with the counts and hashes of tiny archives."""
    hashes = {file.name: hashlib.sha1(file.read_bytes()).hexdigest() for file in files}
    archives = [replace(a, sha1=hashes.get(a.name), md5=None) for a in dataset.archives]
    return replace(dataset, archives=tuple(archives), expected=expected, check=None)
