# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Images of bands in a data set of one's own: which there are, and their statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import UserError
from ...io.bands import BandOptions, count_bands, decode_bands, tiff_kind
from ...io.parallel import in_parallel
from ...io.up_to_date import fingerprint
from .labels import indices
from .planes import file_planes
from .samples import IGNORED, Sample

BAND_SUFFIXES = (".npy", ".tif", ".tiff")


@dataclass(frozen=True)
class BandStatistics:
    """What a config says of the bands that it takes.

    Attributes:
        options: How they are read.
        mean: Of each band, over the labelled pixels of the training images.
        std: Deviation of each band; 1 where it has one value everywhere.
    """

    options: BandOptions
    mean: tuple[float, ...]
    std: tuple[float, ...]


def band_options(
    samples: Sequence[Sample], asked: BandOptions | None, where: str
) -> BandOptions | None:
    """How images are read if they are of bands; None of photos.

    ``.npy`` files are, and TIFF files are that are no photos (:func:`.tiff_kind`): of another type
    than 8 bits, of several pages, or of another number of bands than 1, 3 or 4; with ``asked`` all
    TIFF files are.

    Raises:
        UserError: Some are and some are not, or photos are asked to be; or an image lacks a band.
    """
    found: dict[bool, Sample] = {}
    for sample in samples:
        found.setdefault(_is_of_bands(sample, asked is not None), sample)
        if len(found) == 2:
            photo, other = (f"{found[kind].name}{found[kind].suffix}" for kind in (False, True))
            message = f"is a photo, and {other} is an image of bands; prepare them apart"
            raise UserError("dataset", photo, message)
    if True in found:
        options = asked or BandOptions()
        _check_numbers(samples, options)
        return options
    if asked is not None:
        message = f"are for TIFF and .npy files, and {where} holds photos"
        raise UserError("argument", "--bands, --layout and --nodata", message)
    return None


def _check_numbers(samples: Sequence[Sample], options: BandOptions) -> None:
    """Refuse an image that lacks a band, or has other bands than the first one."""
    first: tuple[str, int] | None = None
    for sample in samples:
        file = sample.image
        number = count_bands(file, options.layout) if isinstance(file, Path) else None
        if number is None:
            continue
        first = first or (f"{sample.name}{sample.suffix}", number)
        if options.bands is None and number != first[1]:
            message = (
                f"has {number} bands, and {first[0]} has {first[1]}; choose those that all "
                "have with --bands"
            )
            raise UserError("image", file, message)
        if options.bands is not None and max(options.bands) > number:
            message = f"has no band {max(options.bands)}; its bands are 1 to {number}"
            raise UserError("image", file, message)


def _is_of_bands(sample: Sample, asked: bool) -> bool:
    suffix = sample.suffix.lower()
    if suffix == ".npy" or suffix not in BAND_SUFFIXES or not isinstance(sample.image, Path):
        return suffix == ".npy"
    kind = tiff_kind(sample.image)
    return asked or kind is None or not kind[1]


def measure_bands(
    folder: Path,
    samples: Sequence[Sample],
    options: BandOptions,
    processes: int,
    planes: int | None = None,
) -> BandStatistics:
    """Mean and deviation of each band of prepared training images, one image at a time.

    Pixels that are ignored, values without data and those that are not finite do not count.

    Args:
        folder: The data set, with ``images`` and ``annotations``.
        samples: The training images.
        options: How they are read.
        processes: How many to read with.
        planes: The number of classes that may overlap; None of ones that exclude each other.

    Raises:
        UserError: An image cannot be read or has another size than its labels; or a band has no
            value at all.
    """
    names = {sample.name: f"{sample.name}{sample.suffix.lower()}" for sample in samples}
    found: dict[str, npt.NDArray[np.float64]] = {}
    work = partial(_measure, folder, options, planes)
    for name, sums in in_parallel(work, sorted(names.items()), processes, "measure bands"):
        found[name] = sums
    first = next(iter(sorted(found)))
    count, mean, rest = np.zeros((3, found[first].shape[1]))
    for name in sorted(found):  # in one order, so that a repetition gives the same numbers
        n, m, r = found[name]
        total = np.maximum(count + n, 1)
        rest += r + (m - mean) ** 2 * count * n / total
        mean += (m - mean) * n / total
        count += n
    if not count.all():
        band = int(np.flatnonzero(count == 0)[0])
        number = band + 1 if options.bands is None else options.bands[band]
        message = f"band {number} has no value in the labelled pixels of the training images"
        raise UserError("image", folder / "images", message)
    std = np.sqrt(rest / count)
    std[std < 1e-6] = 1
    rounded = [tuple(float(f"{value:.6g}") for value in values) for values in (mean, std)]
    return BandStatistics(options, *rounded)


def _measure(
    folder: Path, options: BandOptions, planes: int | None, job: tuple[str, str]
) -> tuple[str, npt.NDArray[np.float64]]:
    """Name, and of each band how many values count, their mean, and the sum of squares about it."""
    name, image = job
    file = folder / "images" / image
    try:
        pixels = decode_bands(file.read_bytes(), options._replace(fill=float("nan")))
    except Exception as error:  # tifffile raises what it pleases
        raise UserError("image", file, f"cannot be read as bands ({error})") from error
    labels_file = folder / "annotations" / f"{name}.png"
    labels = indices(labels_file.read_bytes(), labels_file)
    if planes is not None:
        labels = file_planes(labels, planes)[0]
    if labels.shape != pixels.shape[:2]:
        ours, theirs = ("x".join(map(str, shape[1::-1])) for shape in (pixels.shape, labels.shape))
        message = f"is {ours}, and its labels are {theirs}; is --layout another one?"
        raise UserError("size-mismatch", file, message)
    values = pixels[labels != IGNORED].astype(np.float64)
    known = np.isfinite(values)
    count = known.sum(0)
    mean = np.where(known, values, 0).sum(0) / np.maximum(count, 1)
    rest = (np.where(known, values - mean, 0) ** 2).sum(0)
    return name, np.stack([count, mean, rest])


def keep_statistics(
    about: dict[str, Any], statistics: BandStatistics, names: Sequence[str]
) -> None:
    """Note statistics of training images of these names in the record of a data set."""
    key = fingerprint(statistics.options.as_text(), sorted(names))
    about["bands"] = {"key": key, "mean": statistics.mean, "std": statistics.std}


def known_statistics(
    about: Mapping[str, Any], options: BandOptions | None, names: Sequence[str]
) -> BandStatistics | None:
    """What :func:`keep_statistics` has noted, if of these options and names."""
    noted = about.get("bands") or {}
    if options is None or noted.get("key") != fingerprint(options.as_text(), sorted(names)):
        return None
    return BandStatistics(options, tuple(noted["mean"]), tuple(noted["std"]))
