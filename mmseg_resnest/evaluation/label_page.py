# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A page of labels that are likely wrong: each region with image, label, prediction and error."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..io.atomic import atomic_write
from ..io.image_files import data_uri
from ..io.text import printable
from ..version import __version__
from .label_quality import WrongRegion
from .report import MAX_BYTES
from .visualize import IGNORE, overlay

__all__ = ["region_card", "write_page"]

_EDGE = 280  # pixels of a picture
_MOST_IMAGES = 200  # in the table
_RED = (214, 40, 40)


def region_card(
    rank: int,
    facts: Mapping[str, Any],
    region: WrongRegion,
    picture: NDArray[np.uint8],
    given: NDArray[np.integer],
    predicted: NDArray[np.integer],
    palette: Sequence[Sequence[int]],
) -> str:
    """The HTML of a region: what surrounds it in four pictures, and its facts.

    Args:
        rank: From 0.
        facts: An entry of ``regions`` of
            :class:`~mmseg_resnest.inference.label_errors.LabelErrors`.
        region: The region.
        picture: (H, W, 3) the image, RGB.
        given: (H, W) its labels, -1 where ignored.
        predicted: (H, W) its predicted classes, -1 where ignored.
        palette: ``[r, g, b]`` of each class.
    """
    window = _window(region.box, given.shape)
    crop, size = _shrink(picture[window])
    x, y, width, height = region.box
    mask = np.zeros(given.shape, np.uint8)
    mask[y : y + height, x : x + width] = region.mask
    near = np.asarray(Image.fromarray(mask[window]).resize(size, Image.Resampling.NEAREST)) == 1
    shown = {"image": crop}
    for name, labels in (("label", given), ("prediction", predicted)):
        # Numbered anew, for an overlay takes at most 255 colours.
        local, colours = _local(labels[window], palette)
        small = Image.fromarray(local).resize(size, Image.Resampling.NEAREST)
        shown[name] = overlay(crop, np.asarray(small), colours, 0.7)
    error = crop.astype(np.float32)
    error[near] += 0.7 * (np.array(_RED, np.float32) - error[near])
    shown["error region"] = error.astype(np.uint8)
    pictures = "".join(
        f"<figure><img alt='{name}' src='{data_uri(Image.fromarray(pixels), 'JPEG', quality=82)}'>"
        f"<figcaption>{name}</figcaption></figure>"
        for name, pixels in shown.items()
    )
    keys = " is given, ".join(
        f"<i style='background:rgb{tuple(map(int, palette[index]))}'></i><b>{_text(facts[key])}</b>"
        for key, index in (("given", region.given), ("predicted", region.predicted))
    )
    return (
        f"<article><h3>{rank + 1}. {keys} is predicted</h3><div class=row>{pictures}</div>"
        f"<p>{_text(facts['image'])}: {region.area:,} pixels in {width} x {height} at ({x}, {y}); "
        f"score {region.score:.4f}, probability {region.p_given:.3f} of the label and "
        f"{region.p_predicted:.3f} of the prediction</p></article>"
    )


def write_page(
    path: Path,
    cards: Sequence[str],
    images: Sequence[Mapping[str, Any]],
    regions: int,
    facts: Mapping[str, Any],
) -> Path:
    """Write one HTML page that needs no other file, atomically; returns its path.

    Cards are left out from the end where it would have more than 9.5 MB.

    Args:
        path: The file.
        cards: Of :func:`region_card`, the most likely wrong first.
        images: The entries of ``images``, the lowest score first.
        regions: How many there are, those that are not shown too.
        facts: How they were scored.
    """
    rows = "".join(_row(rank, entry) for rank, entry in enumerate(images[:_MOST_IMAGES], 1))
    room = MAX_BYTES - len(rows.encode()) - len(_PAGE)
    kept: list[str] = []
    for card in cards:
        room -= len(card.encode())
        if room < 0:
            break
        kept.append(card)
    how = f"the {_text(facts['split'])} images"
    if facts.get("folds"):
        how += f", each by a model of {facts['folds']} that did not learn it"
    page = _PAGE.format(
        how=how,
        images=f"{len(images):,}",
        regions=f"{regions:,}",
        shown=f"{len(kept):,}",
        listed=f"{min(len(images), _MOST_IMAGES):,}",
        cards="\n".join(kept) or "<p>No region of labels was found wrong.</p>",
        rows=rows,
        version=__version__,
    )
    atomic_write(path, page)
    return path


def _row(rank: int, entry: Mapping[str, Any]) -> str:
    share = entry["wrong_pixels"] / max(entry["labelled_pixels"], 1)
    score, worst = (
        "-" if v is None else f"{v:.4f}" for v in (entry["score"], entry["worst_region"])
    )
    cells = (str(rank), entry["image"], score, worst, f"{share:.2%}")
    return "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>\n"


def _text(value: Any) -> str:
    return html.escape(printable(os.fspath(value)))


def _window(box: tuple[int, int, int, int], size: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns around a region: three times its box, and at least a third of the image."""
    x, y, width, height = box
    wanted = max(3 * width, 3 * height, max(size) // 3, 64)
    spans = []
    for start, length, whole in ((y, height, size[0]), (x, width, size[1])):
        edge = min(whole, wanted)
        begin = min(max(0, start + length // 2 - edge // 2), whole - edge)
        spans.append(slice(begin, begin + edge))
    return spans[0], spans[1]


def _shrink(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """A picture of which the longer edge has as many pixels as the page shows, and its size."""
    scale = _EDGE / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    image = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.LANCZOS)
    return np.asarray(image), size


def _local(
    labels: NDArray[np.integer], palette: Sequence[Sequence[int]]
) -> tuple[NDArray[np.uint8], list[Sequence[int]]]:
    """Labels as indices into a palette of the classes that occur among them.

    Of more than 255 the rarest are left out, as what is ignored is.
    """
    values, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    classes = np.flatnonzero((values >= 0) & (values < len(palette)))
    common = np.sort(classes[np.argsort(-counts[classes], kind="stable")[:IGNORE]])
    table = np.full(len(values), IGNORE, np.uint8)
    table[common] = np.arange(len(common))
    known = [int(value) for value in values[common]]
    indices = table[places].reshape(labels.shape)
    return indices, [palette[value] for value in known]


_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Label errors</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1200px; padding: 16px; }}
.row {{ display: flex; flex-wrap: wrap; gap: 8px; }} figure {{ margin: 0; max-width: 280px; }}
figure img {{ display: block; width: 100%; border-radius: 6px; }}
figcaption, p {{ opacity: .75; font-size: 13px; overflow-wrap: anywhere; }}
h3 {{ margin: 22px 0 6px; font-weight: 400; }}
i {{ display: inline-block; width: .9em; height: .9em; border-radius: .2em; margin: 0 .35em;
box-shadow: inset 0 0 0 1px #8886; }}
table {{ border-collapse: collapse; font-size: 13px; }}
td, th {{ padding: 2px 10px 2px 0; text-align: left; overflow-wrap: anywhere; }}
</style>
<h1>Labels that are likely wrong</h1>
<p>{regions} regions in {how}, {images} in all; {shown} are shown, the most likely wrong first.</p>
{cards}
<h2>Images</h2>
<p>{listed} of {images}, the lowest score first. The score is the soft minimum of the probabilities
of the labels, 0 to 1.</p>
<table><tr><th></th><th>image</th><th>score</th><th>worst region</th><th>wrong pixels</th></tr>
{rows}</table>
<p>mmseg-resnest {version}. This file holds all it shows and loads nothing.</p>
</html>
"""
