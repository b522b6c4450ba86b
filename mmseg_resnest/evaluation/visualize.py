# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Pictures of label maps: palette images, overlays, legends and panels to compare."""

from __future__ import annotations

import colorsys
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from ..errors import UserError
from ..io.text import printable

__all__ = ["default_palette", "legend", "overlay", "palette_image", "side_by_side"]

Palette = Sequence[Sequence[int]]

IGNORE = 255
_INK = (32, 33, 36)
_FAINT = (205, 208, 212)
_PAPER = (255, 255, 255)


def default_palette(num_classes: int) -> list[list[int]]:
    """Colours for classes whose data set has none.

    Hues step by the golden angle, so neighbours differ however many there are; lightness and
    saturation alternate to tell apart hues that come round again. Each is ``[r, g, b]`` in 0..255,
    the same on every machine.
    """
    colours = []
    for i in range(num_classes):
        hue = (0.58 + i * 0.6180339887498949) % 1.0
        lightness = (0.50, 0.66, 0.38, 0.58, 0.74)[i % 5]
        saturation = (0.72, 0.50)[i // 5 % 2]
        red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
        colours.append([round(255 * red), round(255 * green), round(255 * blue)])
    return colours


def _index_map(label: ArrayLike, palette: Palette) -> NDArray[np.uint8]:
    """``label`` as (H, W) uint8, checked against the palette."""
    array = np.asarray(label)
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2 or array.size == 0:
        raise UserError("size-mismatch", "the label map", f"is {array.shape}, not (H, W)")
    if len(palette) > IGNORE:
        raise UserError("classes", "the palette", f"has {len(palette)} colours, at most {IGNORE}")
    wrong = (array < 0) | ((array >= len(palette)) & (array != IGNORE))
    if wrong.any():
        value = f"holds {array[wrong].flat[0]}, the palette has {len(palette)} colours"
        raise UserError("label", "the label map", f"{value} ({IGNORE} marks ignored pixels)")
    return array.astype(np.uint8)


def _colour_table(palette: Palette) -> NDArray[np.uint8]:
    """(256, 3) colours, black where the palette has none."""
    table = np.zeros((256, 3), np.uint8)
    if len(palette):
        table[: len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)
    return table


def palette_image(label: ArrayLike, palette: Palette) -> Image.Image:
    """A label map as an image of mode P: its pixels are the labels, its colours the palette.

    Args:
        label: (H, W) classes; 255 marks ignored pixels, shown in black.
        palette: ``[r, g, b]`` in 0..255 for each class, at most 255 classes.

    Raises:
        UserError: A label has no colour; the message names it.
    """
    image = Image.fromarray(_index_map(label, palette))
    image.putpalette(_colour_table(palette).tobytes())
    return image


def _borders(label: NDArray[np.uint8], thickness: int) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour is of another class, ``thickness`` pixels wide."""
    edge = np.zeros(label.shape, bool)
    edge[:, :-1] |= label[:, 1:] != label[:, :-1]
    edge[:-1] |= label[1:] != label[:-1]
    for _ in range(thickness - 1):
        wide = edge.copy()
        wide[:, 1:] |= edge[:, :-1]
        wide[1:] |= edge[:-1]
        edge = wide
    return edge


def overlay(
    image: ArrayLike, label: ArrayLike, palette: Palette, opacity: float = 0.5
) -> NDArray[np.uint8]:
    """Lay the colours of a label map over its image, with thin borders between the classes.

    Args:
        image: (H, W, 3) RGB, uint8.
        label: (H, W) classes; 255 marks ignored pixels, which stay as they are in the image.
        palette: ``[r, g, b]`` in 0..255 for each class.
        opacity: Weight of the colours, 0 (the image alone) to 1 (the colours alone; ignored
            pixels are then black).

    Returns:
        (H, W, 3) RGB, uint8.

    Raises:
        UserError: Sizes differ, a label has no colour or ``opacity`` is outside [0, 1].
    """
    if not 0 <= opacity <= 1:
        raise UserError("argument", "opacity", f"is {opacity}; it must lie in 0..1")
    labels = _index_map(label, palette)
    pixels = _rgb(image)
    _check_size(pixels, labels, "label map")
    table = _colour_table(palette).astype(np.float32)
    weight = np.full((256, 1), opacity, np.float32)
    if opacity < 1:
        weight[len(palette) :] = 0  # ignored pixels are left transparent
    mixed: NDArray[np.float32] = pixels.astype(np.float32)
    mixed += weight[labels] * (table[labels] - mixed)
    if opacity > 0:
        # Whitened rather than white: visible on every colour without drowning small classes.
        border = _borders(labels, max(1, round(min(labels.shape) / 500)))
        mixed[border] += 0.6 * (255 - mixed[border])
    return np.rint(mixed).astype(np.uint8)


def _rgb(image: ArrayLike) -> NDArray[np.uint8]:
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        got = f"is {pixels.shape} of {pixels.dtype}, not (H, W, 3) of uint8"
        raise UserError("image", "the image", got)
    return pixels


def _check_size(image: NDArray[np.uint8], labels: NDArray[np.uint8], name: str) -> None:
    if image.shape[:2] != labels.shape:
        sizes = f"is {labels.shape}, its image {image.shape[:2]} (height, width)"
        raise UserError("size-mismatch", f"the {name}", sizes)


def _shorten(text: str, font: Any, width: float) -> str:
    """``text``, cut with an ellipsis so as to fit ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def legend(
    classes: Sequence[str],
    palette: Palette,
    present: Collection[int] | None = None,
    width: int = 640,
) -> NDArray[np.uint8]:
    """Swatches with the names of classes, in as many rows as the width asks for.

    Args:
        classes: Names of the classes.
        palette: ``[r, g, b]`` in 0..255 for each class.
        present: The classes to show; 255 is "unlabelled". None shows all.
        width: Width of the picture in pixels.

    Returns:
        (h, width, 3) RGB on white, uint8; long names are shortened.

    Raises:
        UserError: There are fewer colours than classes, or ``present`` names no class.
    """
    if len(palette) < len(classes):
        counts = f"has {len(palette)} colours for {len(classes)} classes"
        raise UserError("classes", "the palette", counts)
    shown = sorted(set(range(len(classes)) if present is None else (int(i) for i in present)))
    entries = []
    for i in shown:
        if i == IGNORE and i >= len(classes):
            entries.append(("unlabelled", (0, 0, 0)))
        elif 0 <= i < len(classes):
            red, green, blue = palette[i]
            entries.append((printable(str(classes[i])), (int(red), int(green), int(blue))))
        else:
            raise UserError("classes", f"class {i}", f"is outside 0..{len(classes) - 1}")

    font, swatch, row, gap = ImageFont.load_default(15), 16, 26, 8
    longest = max((font.getlength(name) for name, _ in entries), default=0)
    column = min(width, int(longest) + swatch + 4 * gap)
    columns = max(1, min(len(entries), width // max(column, 1)))
    rows = -(-len(entries) // columns) if entries else 0
    picture = Image.new("RGB", (width, max(rows * row, 1)), _PAPER)
    draw = ImageDraw.Draw(picture)
    for n, (name, colour) in enumerate(entries):
        x = n % columns * (width // columns)
        y = n // columns * row + (row - swatch) // 2
        draw.rounded_rectangle(
            (x, y, x + swatch - 1, y + swatch - 1), radius=4, fill=colour, outline=_FAINT
        )
        text = _shorten(name, font, width // columns - swatch - gap)
        draw.text((x + swatch + gap, y + swatch / 2), text, font=font, fill=_INK, anchor="lm")
    return np.asarray(picture).copy()


def side_by_side(
    image: ArrayLike,
    truth: ArrayLike | None,
    prediction: ArrayLike,
    palette: Palette,
    classes: Sequence[str],
    opacity: float = 0.8,
) -> NDArray[np.uint8]:
    """One figure: image, label and prediction in a row, and a legend of the classes present.

    Args:
        image: (H, W, 3) RGB, uint8.
        truth: (H, W) classes, 255 where unlabelled; None leaves this part out.
        prediction: (H, W) classes.
        palette: ``[r, g, b]`` in 0..255 for each class.
        classes: Names of the classes.
        opacity: Weight of the colours over the image; ignored pixels of the label are black.

    Returns:
        (h, w, 3) RGB on white, uint8. Images are shown with a long edge of 360 to 720 pixels.

    Raises:
        UserError: Sizes differ or a label has no colour.
    """
    pixels = _rgb(image)
    maps = {} if truth is None else {"label": _index_map(truth, palette)}
    maps["prediction"] = _index_map(prediction, palette)
    height, width = pixels.shape[:2]
    scale = min(max(height, width, 360), 720) / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    parts = [("image", small)]
    present: set[int] = set()
    for title, labels in maps.items():
        _check_size(pixels, labels, title)
        present.update(int(i) for i in np.unique(labels))
        shown = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
        drawn = overlay(small, shown, palette, opacity)
        drawn[shown == IGNORE] = _colour_table(palette)[IGNORE]
        parts.append((title, drawn))

    margin, gap, head, foot = 16, 12, 32, 14
    inner = len(parts) * size[0] + (len(parts) - 1) * gap
    key = legend(classes, palette, present, width=inner)
    height = head + size[1] + foot + key.shape[0] + margin
    figure = Image.new("RGB", (inner + 2 * margin, height), _PAPER)
    draw = ImageDraw.Draw(figure)
    font = ImageFont.load_default(17)
    for n, (title, part) in enumerate(parts):
        x = margin + n * (size[0] + gap)
        text = _shorten(title, font, size[0])
        draw.text((x, head / 2 + 1), text, font=font, fill=_INK, anchor="lm")
        figure.paste(Image.fromarray(part), (x, head))
    figure.paste(Image.fromarray(key), (margin, head + size[1] + foot))
    return np.asarray(figure).copy()
