# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The segmentation of one image: labels, scores, areas, pictures."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError
from ..evaluation import overlay, palette_image
from ..evaluation.uncertainty import check_uncertainty, uncertainty_of
from ..io.bit_planes import bits_type, index_sets, to_file, unpack
from ..io.image_files import data_uri, save_image
from ..io.text import printable

__all__ = ["Area", "MultilabelSegmentation", "Segmentation", "class_indices"]

#: The first row, and (K, n, W) probabilities, of parts of an image; of K classes, None of all.
ScoreBands = Callable[[list[int] | None], Iterator[tuple[int, NDArray[np.float32]]]]

_SHOWN_EDGE = 960  # pixels, in a notebook
IGNORE = 255


class Area(NamedTuple):
    """How much of an image a class covers: pixels, and their share of the image, 0..1."""

    pixels: int
    share: float


_ONE = (str, int, np.integer)  # as np.unique(labels) gives them


def class_indices(wanted: Collection[str | int] | str | int, classes: Sequence[str]) -> list[int]:
    """Indices of classes that are given by name or index; UserError if there is no such class."""
    indices = []
    for item in [wanted] if isinstance(wanted, _ONE) else wanted:
        if not isinstance(item, _ONE):
            raise UserError("classes", f"class {item!r}", "is neither a name nor an index")
        if isinstance(item, str) and item not in classes:
            known = ", ".join(map(printable, classes))
            raise UserError("classes", f"class {item!r}", f"is unknown; choose from {known}")
        index = list(classes).index(item) if isinstance(item, str) else int(item)
        if not 0 <= index < len(classes):
            raise UserError("classes", f"class {item}", f"is outside 0..{len(classes) - 1}")
        indices.append(index)
    return indices


@dataclass(frozen=True, eq=False, repr=False)  # arrays neither compare nor print in a line
class Segmentation:
    """The segmentation of one image.

    In a notebook it shows itself as its overlay with a legend.

    Attributes:
        labels: (H, W) class indices, uint8 (uint16 with more than 255 classes), at the size of
            the image.
        image: (H, W, 3) the image, RGB, uint8.
        classes: Names of the classes, by index.
        palette: ``[r, g, b]`` in 0..255 for each class.
        path: Where the image came from, if from a file or an address.
    """

    labels: NDArray[np.integer]
    image: NDArray[np.uint8]
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]
    path: str | None = None
    _score_bands: ScoreBands | None = None

    @property
    def _overlap(self) -> bool:
        """Whether classes may overlap."""
        return False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.labels.shape[0], self.labels.shape[1]

    def __repr__(self) -> str:
        """File, size, and the largest classes."""
        height, width = self.labels.shape
        shares = sorted(((area.share, name) for name, area in self.areas().items()), reverse=True)
        words = [f"{printable(name)} {share:.1%}" for share, name in shares if share > 0]
        largest = ", ".join(words[:3]) + (", ..." if len(words) > 3 else "")
        source = f" of {self.path}" if self.path else ""
        return f"<Segmentation{source}, {width} x {height} pixels: {largest}>"

    def scores(self, classes: Collection[str | int] | str | int | None = None) -> NDArray:
        """Probabilities of classes at each pixel.

        They are not kept, because those of all classes are many times as large as the labels:
        each call runs the model once more. Ask for all the classes you need at once.

        Args:
            classes: Names or indices; None is all, in order.

        Returns:
            float32 in [0, 1], (K, H, W) for K classes, (H, W) for one class given by itself. Over
            all classes they sum to 1.

        Raises:
            UserError: There is no such class, or the result was not made by a model.
        """
        wanted = range(len(self.classes)) if classes is None else classes
        chosen = class_indices(wanted, self.classes)
        scores = np.empty((len(chosen), *self.size), np.float32)
        for top, band in self._scored("scores", chosen):
            scores[:, top : top + band.shape[1]] = band
        return scores[0] if isinstance(classes, _ONE) else scores

    def uncertainty(self, kind: str = "entropy") -> NDArray[np.float32]:
        """How unsure the model is of each pixel, 0 (sure) to 1, without a unit.

        As with :meth:`scores` each call runs the model once more.

        Args:
            kind: ``entropy``, that of the classes over the largest one that it can have, or
                ``margin``, 1 minus the difference of the two highest probabilities; for classes
                that may overlap see :func:`~mmseg_resnest.evaluation.uncertainty.uncertainty_of`.

        Returns:
            (H, W) float32.

        Raises:
            UserError: There is no such kind, the model gives labels only, or the result was not
                made by a model.
        """
        check_uncertainty(kind)
        values = np.empty(self.size, np.float32)
        for top, band in self._scored("uncertainty", None):
            values[top : top + band.shape[1]] = uncertainty_of(band, kind, self._overlap)
        return values

    def _scored(self, what: str, classes: list[int] | None) -> Iterator[tuple[int, NDArray]]:
        if self._score_bands is None:
            raise UserError("input", what, "this result was not made by a model")
        return self._score_bands(classes)

    def areas(self) -> dict[str, Area]:
        """Pixels and share of each class, by name, in class order; 0 for those that are absent."""
        counts = np.bincount(self.labels.reshape(-1), minlength=len(self.classes))
        return {
            name: Area(int(counts[i]), float(counts[i] / self.labels.size))
            for i, name in enumerate(self.classes)
        }

    def overlay(
        self, opacity: float = 0.5, classes: Collection[str | int] | str | int | None = None
    ) -> Image.Image:
        """The image under the colours of its classes.

        Args:
            opacity: Weight of the colours, 0 (the image alone) to 1 (the colours alone).
            classes: Names or indices of those to colour; None is all.

        Raises:
            UserError: ``opacity`` is outside [0, 1], or there is no such class.
        """
        labels = self.labels if classes is None else self.only(classes).labels
        labels, palette = self._coloured(labels)
        return Image.fromarray(overlay(self.image, labels, palette, opacity))

    def only(self, classes: Collection[str | int] | str | int) -> Segmentation:
        """The same without other classes: their pixels are of none.

        That is label 255, with more than 255 classes 65535, or no bit of classes that overlap.
        UserError if there is no such class.
        """
        return replace(self, labels=self._only(class_indices(classes, self.classes)))

    def _only(self, chosen: list[int]) -> NDArray[np.integer]:
        """The labels without classes that are not chosen."""
        none = IGNORE if len(self.classes) <= IGNORE else np.iinfo(np.uint16).max
        return np.where(np.isin(self.labels, chosen), self.labels, none)

    def _coloured(
        self, labels: NDArray[np.integer]
    ) -> tuple[NDArray[np.integer], Sequence[Sequence[int]]]:
        """Labels as :attr:`labels` has them, as indices of colours for an overlay; the colours."""
        return labels, self.palette

    def shown(self) -> tuple[NDArray[np.integer], Sequence[str], Sequence[Sequence[int]]]:
        """A map of one index a pixel (H, W), with names and colours, to draw with a legend."""
        return self.labels, self.classes, self.palette

    def label_image(self) -> Image.Image:
        """What :meth:`save` writes."""
        return palette_image(self.labels, self.palette)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the label map as a palette PNG: its pixels are the class indices.

        The folder is made; returns the path.

        Raises:
            UserError: The name does not end in ``.png``, or the file cannot be written.
        """
        if Path(path).suffix.lower() != ".png":
            raise UserError("argument", path, "must end in .png, which keeps every value")
        return save_image(self.label_image(), path)

    def _small(self) -> Image.Image:
        """The overlay, reduced for a notebook."""
        step = max(1, -(-max(self.labels.shape) // _SHOWN_EDGE))
        labels, palette = self._coloured(self.labels[::step, ::step])
        return Image.fromarray(overlay(self.image[::step, ::step], labels, palette, 0.5))

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self._small().save(data, "PNG")
        return data.getvalue()

    def _repr_html_(self) -> str:
        areas = sorted(self.areas().items(), key=lambda item: -item[1].pixels)
        colours = dict(zip(self.classes, self.palette, strict=False))
        keys = "".join(
            '<span style="white-space:nowrap;margin-right:1em"><span style="display:inline-block;'
            "width:.8em;height:.8em;border-radius:.2em;margin-right:.35em;background:rgb("
            f'{",".join(map(str, colours[name]))})"></span>{html.escape(name)} '
            f"{100 * area.share:.1f}%</span>"
            for name, area in areas
            if area.pixels
        )
        return (
            f'<figure style="margin:0"><img alt="overlay" style="max-width:100%" '
            f'src="{data_uri(self._small(), "JPEG", quality=88)}">'
            f'<figcaption style="line-height:1.7;margin-top:.4em">{keys}</figcaption></figure>'
        )


@dataclass(frozen=True, eq=False, repr=False)
class MultilabelSegmentation(Segmentation):
    """The segmentation of one image into classes that may overlap.

    :meth:`scores` gives each class a probability of its own, and :meth:`save` writes a grey PNG
    whose pixels are :attr:`labels`.

    Attributes:
        labels: (H, W): bit c of a pixel says whether it is of class c. uint8 with up to 7 classes,
            uint16 with up to 15, uint32 with up to 31, uint64 with up to 63.
    """

    @property
    def _overlap(self) -> bool:
        return True

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(C, H, W), True where a pixel is of the class."""
        return unpack(self.labels, len(self.classes)) == 1

    def mask(self, name: str | int) -> NDArray[np.bool_]:
        """(H, W), True where a pixel is of the class, given by name or index.

        Raises:
            UserError: There is no such class.
        """
        (index,) = class_indices(name, self.classes)
        mask: NDArray[np.bool_] = (self.labels >> index & 1) == 1
        return mask

    def areas(self) -> dict[str, Area]:
        """Pixels and share of each class, by name, in class order; the shares overlap."""
        counts = [int((self.labels >> c & 1).sum()) for c in range(len(self.classes))]
        size = self.labels.size
        return {n: Area(k, k / size) for n, k in zip(self.classes, counts, strict=True)}

    def _only(self, chosen: list[int]) -> NDArray[np.integer]:
        return self.labels & bits_type(len(self.classes))(sum(1 << c for c in set(chosen)))

    def _coloured(
        self, labels: NDArray[np.integer]
    ) -> tuple[NDArray[np.integer], Sequence[Sequence[int]]]:
        (indices,), _, palette = index_sets([labels], self.classes, self.palette)
        indices[indices == 0] = IGNORE  # the image shows through where no class is
        return indices, palette

    def shown(self) -> tuple[NDArray[np.integer], Sequence[str], Sequence[Sequence[int]]]:
        """A map of the sets of classes that occur, with their names and mixed colours."""
        (indices,), names, palette = index_sets([self.labels], self.classes, self.palette)
        return indices, names, palette

    def label_image(self) -> Image.Image:
        """What :meth:`save` writes: a grey PNG of 8 bits a pixel, or of 16.

        With more than 15 classes it is wider: 15 classes each, side by side.
        """
        return Image.fromarray(to_file(self.labels, len(self.classes)))
