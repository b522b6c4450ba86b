# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Paints the pictures of the built-in demo data set ``scenes`` together with their exact labels.

Everything is integer arithmetic on NumPy arrays, fed by the raw words of a Philox generator: no
floating point, no drawing library and none of NumPy's distribution functions, whose streams may
change between versions. A scene is therefore the same on every machine, byte for byte.

A scene is painted from back to front at twice its size and then halved, which smooths the edges.
A pinhole camera one "eye height" (64 world units, some 40 units a metre) above the ground looks
along the street or into the room. A point of the ground that is seen ``t`` rows below the horizon
has the scale ``t / 64`` pixels a unit: ``t`` is the only depth that appears below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
Colour = tuple[int, int, int]
Point = tuple[int, int]
T = TypeVar("T")

WIDTH, HEIGHT = 160, 128
_W, _H = 2 * WIDTH, 2 * HEIGHT  # the size painted at
_EYE = 64  # height of the camera above the ground, in world units
_FOCAL = 280  # in painted pixels

# Labels as in the files: 0 is unlabelled.
UNLABELLED = 0
SKY, BUILDING, ROAD, SIDEWALK, VEGETATION, WALL = 1, 2, 3, 4, 5, 6
FLOOR, FURNITURE, CAR, PERSON, LAMP, SIGN = 7, 8, 9, 10, 11, 12

# One pool of paints for everything that people paint, one for everything they walk or drive on:
# colour alone does not tell a wall from a car, nor a road from a floor.
_PAINTS: tuple[Colour, ...] = (
    (222, 214, 196),
    (198, 178, 150),
    (176, 96, 78),
    (150, 70, 62),
    (214, 164, 92),
    (226, 196, 120),
    (150, 168, 128),
    (92, 128, 108),
    (140, 178, 196),
    (92, 128, 168),
    (62, 84, 124),
    (172, 150, 184),
    (216, 158, 148),
    (120, 116, 116),
    (186, 188, 190),
    (232, 232, 228),
    (70, 66, 70),
    (136, 104, 78),
)
_FRONTS: tuple[Colour, ...] = (
    (222, 214, 196),
    (198, 178, 150),
    (176, 96, 78),
    (150, 70, 62),
    (214, 164, 92),
    (216, 158, 148),
    (120, 116, 116),
    (136, 104, 78),
)
_WOODS: tuple[Colour, ...] = (
    (136, 104, 78),
    (110, 74, 50),
    (176, 128, 80),
    (92, 66, 56),
    (150, 70, 62),
    (70, 66, 70),
)
_COATS: tuple[Colour, ...] = (
    (196, 44, 44),
    (40, 88, 170),
    (226, 150, 40),
    (44, 120, 110),
    (120, 60, 130),
    (232, 232, 228),
)
_GROUNDS: tuple[Colour, ...] = (
    (108, 108, 112),
    (84, 86, 94),
    (134, 130, 124),
    (158, 152, 142),
    (172, 154, 130),
    (146, 112, 82),
    (118, 88, 68),
    (166, 122, 100),
    (126, 134, 142),
    (190, 182, 170),
)
_SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((92, 144, 208), (196, 216, 230)),
    ((120, 172, 222), (214, 226, 226)),
    ((150, 162, 176), (206, 208, 206)),
    ((176, 178, 182), (214, 204, 190)),
    ((104, 112, 168), (240, 176, 132)),
    ((168, 140, 180), (246, 206, 160)),
    ((88, 150, 168), (226, 214, 170)),
)
_NIGHT_SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((24, 30, 62), (70, 66, 104)),
    ((34, 40, 58), (92, 78, 88)),
)
_TARS: tuple[Colour, ...] = (
    (72, 74, 80),
    (84, 86, 94),
    (96, 98, 100),
    (108, 108, 112),
    (118, 116, 116),
    (126, 130, 136),
)
_PAVINGS: tuple[Colour, ...] = (
    (158, 152, 142),
    (172, 154, 130),
    (190, 182, 170),
    (166, 122, 100),
    (178, 170, 160),
    (134, 130, 124),
)
_FACES: tuple[Colour, ...] = (
    (196, 44, 44),
    (40, 88, 170),
    (240, 200, 50),
    (236, 236, 232),
    (52, 126, 84),
)
_FOLIAGE: tuple[Colour, ...] = (
    (72, 116, 62),
    (98, 138, 72),
    (56, 96, 70),
    (84, 128, 58),
    (112, 140, 70),
    (188, 138, 62),
    (176, 92, 58),
)
_SKINS: tuple[Colour, ...] = ((238, 200, 170), (206, 156, 120), (150, 104, 76), (96, 66, 52))
_DARK: Colour = (44, 44, 50)
_GLASS: Colour = (74, 92, 112)


class Dice:
    """Random integers from the raw 64-bit words of Philox-4x64 (Salmon et al., SC 2011).

    Args:
        seed: Low half of the key, 0 to 2**64 - 1.
        stream: High half of the key: streams of one seed never overlap.
    """

    def __init__(self, seed: int, stream: int) -> None:
        self._bits = np.random.Philox(key=(stream << 64) | seed)
        self._words: list[int] = []

    def roll(self, low: int, high: int) -> int:
        """A uniform integer from ``low`` to ``high``, both included."""
        if not self._words:
            self._words = self._bits.random_raw(64).tolist()
        return low + ((self._words.pop() >> 32) * (high - low + 1) >> 32)

    def chance(self, percent: int) -> bool:
        """True in ``percent`` of 100 cases."""
        return self.roll(0, 99) < percent

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.roll(0, len(items) - 1)]

    def field(self, *shape: int) -> IntArray:
        """Independent uniform integers 0..255 of the given shape."""
        size = 1
        for length in shape:
            size *= length
        words = self._bits.random_raw((size + 7) // 8)
        shifts = np.arange(0, 64, 8, dtype=np.uint64)
        values = (words[:, None] >> shifts) & np.uint64(255)
        return values.astype(np.int32).reshape(-1)[:size].reshape(shape)

    def noise(self, rows: int, cols: int, cell: int) -> IntArray:
        """Value noise 0..255, (rows, cols): a random lattice, interpolated bilinearly."""
        lattice = self.field(rows // cell + 2, cols // cell + 2)
        y, x = np.arange(rows, dtype=np.int32), np.arange(cols, dtype=np.int32)
        fy, fx = (y % cell)[:, None], (x % cell)[None, :]
        along = lattice[y // cell] * (cell - fy) + lattice[y // cell + 1] * fy
        both = along[:, x // cell] * (cell - fx) + along[:, x // cell + 1] * fx
        return np.asarray(both // (cell * cell), dtype=np.int32)


class Region(NamedTuple):
    """A window of the canvas and the pixels of it that belong to a shape."""

    rows: slice
    cols: slice
    mask: npt.NDArray[np.bool_]

    @property
    def y(self) -> IntArray:
        """Canvas rows of the window, (h, 1)."""
        return np.arange(self.rows.start, self.rows.stop, dtype=np.int32)[:, None]

    @property
    def x(self) -> IntArray:
        """Canvas columns of the window, (1, w)."""
        return np.arange(self.cols.start, self.cols.stop, dtype=np.int32)[None, :]


def _window(x0: int, y0: int, x1: int, y1: int) -> Region:
    """The rectangle x0 <= x < x1, y0 <= y < y1, cut to the canvas (possibly empty)."""
    x0, y0 = min(max(x0, 0), _W), min(max(y0, 0), _H)
    x1, y1 = min(max(x1, x0), _W), min(max(y1, y0), _H)
    return Region(slice(y0, y1), slice(x0, x1), np.ones((y1 - y0, x1 - x0), dtype=np.bool_))


def _polygon(*points: Point) -> Region:
    """A convex polygon, corners in either direction round."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    region = _window(min(xs), min(ys), max(xs) + 1, max(ys) + 1)
    pairs = list(zip(points, points[1:] + points[:1], strict=True))
    turn = sum(ax * by - bx * ay for (ax, ay), (bx, by) in pairs)
    for (ax, ay), (bx, by) in pairs:
        side = (bx - ax) * (region.y - ay) - (by - ay) * (region.x - ax)
        np.logical_and(region.mask, side >= 0 if turn > 0 else side <= 0, out=region.mask)
    return region


def _ellipse(cx: int, cy: int, rx: int, ry: int) -> Region:
    rx, ry = max(rx, 1), max(ry, 1)
    region = _window(cx - rx, cy - ry, cx + rx + 1, cy + ry + 1)
    level = ((region.x - cx) * ry) ** 2 + ((region.y - cy) * rx) ** 2
    np.logical_and(region.mask, level <= (rx * ry) ** 2, out=region.mask)
    return region


def _mix(a: Colour, b: Colour, part: int) -> Colour:
    """``a`` with ``part`` 256ths of it replaced by ``b``."""
    r, g, c = ((p * (256 - part) + q * part) >> 8 for p, q in zip(a, b, strict=True))
    return r, g, c


def _scaled(colour: Colour, gain: int) -> Colour:
    r, g, b = (min(p * gain >> 8, 255) for p in colour)
    return r, g, b


class Painter:
    """One scene in the making: the canvas, the camera, the light and the things to draw.

    Args:
        dice: Where every choice comes from.
    """

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        self.rgb = np.zeros((_H, _W, 3), dtype=np.int32)
        self.label = np.zeros((_H, _W), dtype=np.uint8)
        self.horizon, self.centre = _H // 2, _W // 2
        self.haze: Colour = (128, 128, 128)
        self.haze_part = 0
        self.night = False
        self.sun = dice.pick((-1, 1))
        # Shared noise: single grains, small patches, blobs and clouds.
        self.grain = dice.field(_H, _W)
        self.patch = dice.noise(_H, _W, 5)
        self.blob = dice.noise(_H, _W, 14)
        self.cloud = dice.noise(_H, _W, 44)

    # ---- colours -------------------------------------------------------------------------

    def jitter(self, colour: Colour, by: int = 14) -> Colour:
        """The colour, moved by up to ``by``, mostly in brightness."""
        shift = self.dice.roll(-by, by)
        r, g, b = (min(max(p + shift + self.dice.roll(-by // 2, by // 2), 0), 255) for p in colour)
        return r, g, b

    def paint_colour(self, pool: Sequence[Colour] = _PAINTS) -> Colour:
        """A colour from a pool, by default that of all paints."""
        return self.jitter(self.dice.pick(pool))

    # ---- filling -------------------------------------------------------------------------

    def fill(
        self, region: Region, colour: Colour | IntArray, label: int | None, gain: object = None
    ) -> None:
        """Paints a region; ``gain`` is in 256ths, (h, w); ``label=None`` keeps the labels."""
        mask = region.mask
        value = np.asarray(colour, dtype=np.int32)
        if value.ndim == 3:
            value = value[mask]
        if gain is not None:
            gains = np.broadcast_to(np.asarray(gain, dtype=np.int32), mask.shape)[mask]
            value = value * gains[:, None] >> 8
        if self.haze_part:
            haze = np.asarray(self.haze, dtype=np.int32)
            value = value + ((haze - value) * self.haze_part >> 8)
        self.rgb[region.rows, region.cols][mask] = value
        if label is not None:
            self.label[region.rows, region.cols][region.mask] = label

    def shade(self, region: Region, gain: int | IntArray) -> None:
        """Multiplies what is there by ``gain`` / 256: shadows and patches of light."""
        block = self.rgb[region.rows, region.cols]
        gains = np.broadcast_to(np.asarray(gain, dtype=np.int32), region.mask.shape)
        np.copyto(block, block * gains[..., None] >> 8, where=region.mask[..., None])

    def rough(self, region: Region, field: IntArray, amount: int, seed: int = 0) -> IntArray:
        """A gain of 256 +- ``amount`` / 2 over the region from a shared noise field."""
        rows = (region.y + 37 * seed) % _H
        cols = (region.x + 53 * seed) % _W
        return 256 + ((field[rows, cols] - 128) * amount >> 8)

    # ---- the camera ----------------------------------------------------------------------

    def at(self, x: int, height: int, t: int) -> Point:
        """Canvas point of a world point: across, above the ground, at depth row ``t``."""
        return self.centre + x * t // _EYE, self.horizon + t - height * t // _EYE

    def box(
        self,
        x: tuple[int, int],
        height: tuple[int, int],
        t: tuple[int, int],
        colour: Colour,
        label: int,
    ) -> Region:
        """An upright box between depth rows ``t = (far, near)``; returns its front face."""
        (x0, x1), (h0, h1), (far, near) = x, height, t
        lit = 286 if self.sun > 0 else 190
        for edge, inner, gain in ((x0, x0 > 0, 476 - lit), (x1, x1 < 0, lit)):
            if inner:  # this side faces the camera
                side = _polygon(
                    self.at(edge, h0, far),
                    self.at(edge, h1, far),
                    self.at(edge, h1, near),
                    self.at(edge, h0, near),
                )
                self.fill(side, _scaled(colour, gain), label, self.rough(side, self.patch, 20))
        if h1 < _EYE:
            top = _polygon(
                self.at(x0, h1, far),
                self.at(x1, h1, far),
                self.at(x1, h1, near),
                self.at(x0, h1, near),
            )
            self.fill(top, _scaled(colour, 310), label, self.rough(top, self.patch, 20))
        (left, top_y), (right, bottom_y) = self.at(x0, h1, near), self.at(x1, h0, near)
        front = _window(left, top_y, right, bottom_y)
        self.fill(front, colour, label, self.rough(front, self.patch, 24))
        return front

    def contact_shadow(self, x: int, half: int, t: int, gain: int = 150) -> None:
        """The dark patch under a thing that stands on the ground."""
        cx, cy = self.at(x, 0, t)
        rx = max(half * t // _EYE, 2)
        lean = rx // 3 * -self.sun
        self.shade(_ellipse(cx + lean, cy, rx + rx // 3, max(rx // 4, 1)), gain)
        self.shade(_ellipse(cx, cy, rx, max(rx // 6, 1)), (gain + 256) // 2)

    # ---- sky and ground ------------------------------------------------------------------

    def sky(self, region: Region) -> None:
        """A gradient with clouds, with stars at night; its lower colour becomes the haze."""
        pool = _NIGHT_SKIES if self.night else _SKIES
        top, bottom = self.dice.pick(pool)
        top, bottom = self.jitter(top, 10), self.jitter(bottom, 10)
        self.haze = bottom
        last = max(self.horizon, 1)
        part = np.minimum(region.y, last)[..., None]
        colour = (
            np.asarray(top, np.int32) * (last - part) + np.asarray(bottom, np.int32) * part
        ) // last
        colour = np.broadcast_to(colour, (*region.mask.shape, 3))
        # Clouds: squeezed towards the horizon, soft-edged.
        cover = self.dice.roll(90, 210)
        rows, drift = (region.y * 2) % _H, self.dice.roll(0, _W - 1)
        cols = (region.x + drift) % _W
        mixed = self.cloud[rows, cols] * 5 + self.blob[rows, cols] * 2 + self.patch[rows, cols]
        soft = np.clip((mixed >> 3) - cover, 0, 60) * 3
        white = np.asarray(_mix(bottom, (250, 248, 244), 60 if self.night else 190), np.int32)
        colour = colour + ((white - colour) * soft[..., None] >> 8)
        self.fill(region, colour, SKY)
        if self.night:
            stars = self.grain[region.rows, region.cols] == 255
            stars &= (self.patch[region.rows, region.cols] > 140) & (soft == 0) & region.mask
            self.fill(region._replace(mask=stars), (206, 206, 214), None)

    def ground(
        self,
        region: Region,
        inside: Callable[[IntArray, IntArray], npt.NDArray[np.bool_]],
        style: str,
        colour: Colour,
        label: int,
    ) -> None:
        """Paints the ground's material where ``inside(x, z)`` holds, in perspective."""
        t = np.maximum(region.y - self.horizon, 1)
        x = (region.x - self.centre) * _EYE // t
        z = np.broadcast_to(_FOCAL * _EYE // t, x.shape)
        mask = region.mask & (region.y > self.horizon) & inside(x, z)
        near = np.minimum(t, 48)  # far away, texture fades instead of flickering
        worn = (self.blob[(z // 3) % _H, (x // 2) % _W] - 128) >> 2
        if style == "asphalt":
            gain = 256 + ((self.grain[region.rows, region.cols] - 128) * near >> 6) + (worn >> 1)
        elif style == "tiles":
            size = self.dice.pick((20, 26, 34))
            tone = (self.grain[(z // size) % _H, (x // size) % _W] - 128) >> 1
            joint = ((x % size) < 3) | ((z % size) < 4)
            gain = 256 + (np.where(joint, -110, tone) * near // 48) + (worn >> 1)
        elif style == "planks":
            size = self.dice.pick((14, 18, 24))
            board = x // size
            along = (z + board * 71) // 120
            tone = (self.grain[along % _H, board % _W] - 128) * 5 >> 3
            fibre = (self.patch[(z // 6) % _H, (x * 2) % _W] - 128) >> 2
            joint = ((x % size) < 2) | (((z + board * 71) % 120) < 4)
            gain = 256 + (np.where(joint, -90, tone + fibre) * near // 48)
        elif style == "checker":
            size = self.dice.pick((30, 40))
            odd = ((x // size) + (z // size)) % 2 == 0
            gain = 256 + (np.where(odd, -64, 44) * near // 48) + (worn >> 1)
        elif style == "grass":
            gain = 256 + ((self.patch[region.rows, region.cols] - 128) * near >> 5) + worn
        else:  # carpet
            gain = 256 + ((self.patch[region.rows, region.cols] - 128) >> 2) + (worn >> 1)
        self.fill(region._replace(mask=mask), colour, label, gain)

    def facade(
        self, side: int, x: int, t: tuple[int, int], height: int, style: str, label: int
    ) -> None:
        """A wall along the line of sight: plane ``side * x``, depth rows ``t = (far, near)``."""
        colour, dice = self.paint_colour(_FRONTS), self.dice
        far, near = t
        left, right = sorted(self.centre + side * x * k // _EYE for k in (far, near))
        top = self.at(0, height, near)[1]
        region = _window(left, top, right, self.horizon + near + 1)
        # Sixteenths of a row, since a facade rises from row to row between columns.
        t16 = np.maximum(np.abs(region.x - self.centre) * _EYE * 16 // x, 1)
        up = (self.horizon * 16 + t16 - region.y * 16) * _EYE // t16
        mask = region.mask & (up >= 0) & (up < height)
        depth = np.broadcast_to(_FOCAL * _EYE * 16 // t16, up.shape)
        gain = self.wall_texture(up, depth, height, style)
        lit = 290 if side == -self.sun else 196
        self.fill(region._replace(mask=mask), _scaled(colour, lit), label, gain)
        if style == "windows":
            self.windows(region._replace(mask=mask), up, depth, height)
        if dice.chance(50):
            foot = mask & (up < 5)
            self.fill(region._replace(mask=foot), _scaled(colour, 150), None)

    def wall_texture(self, up: IntArray, along: IntArray, height: int, style: str) -> IntArray:
        """Gain (256ths) of a wall's surface at world height ``up`` and run ``along``."""
        worn = (self.blob[up % _H, along % _W] - 128) >> 3
        if style in ("windows", "bricks"):
            row = up // 6
            joint = (up % 6 == 0) | ((along + row % 2 * 7) % 14 < 2)
            tone = (self.grain[row % _H, ((along + row % 2 * 7) // 14) % _W] - 128) >> 2
            return 256 + np.where(joint, -34, tone) + worn
        if style == "stripes":
            return 256 + np.where(along // 8 % 2 == 0, -20, 16) + worn
        if style == "dots":
            return 256 + np.where(((up // 3 + along // 9 * 2) % 4 == 0) & (along % 9 < 4), -46, 6)
        if style == "panels":
            low = up < height * 3 // 8
            board = low & (along % 16 < 2)
            return 256 + np.where(board, -80, np.where(low, -40, 14)) + worn
        return 256 + worn

    def windows(self, region: Region, up: IntArray, along: IntArray, height: int) -> None:
        """A grid of windows; some lit at night, some reflecting the sky."""
        dice = self.dice
        storey, bay = dice.pick((44, 52, 60)), dice.pick((40, 52, 66))
        wide = dice.roll(bay * 4 // 10, bay * 7 // 10)
        start = dice.roll(0, bay)
        v, u = (up + storey - 16) % storey, (along + start) % bay
        frame = (v > 8) & (v < storey - 10) & (u < wide) & (up < height - 8)
        pane = frame & (v > 11) & (v < storey - 13) & (u > 2) & (u < wide - 3)
        pane &= (u - wide // 2) ** 2 > 1
        cell = self.grain[((up + storey - 16) // storey) % _H, ((along + start) // bay) % _W]
        trim = dice.pick(((226, 222, 214), (92, 80, 74), (170, 164, 158)))
        self.fill(region._replace(mask=region.mask & frame), trim, None)
        glass = _mix(_GLASS, self.haze, dice.roll(20, 120))
        tone = 220 + (cell >> 2) + ((v * 40) // storey)
        self.fill(region._replace(mask=region.mask & pane), glass, None, tone)
        if self.night:
            lit = region.mask & pane & (cell > 120)
            self.fill(region._replace(mask=lit), (250, 214, 140), None)

    def front(
        self, x0: int, x1: int, top: int, bottom: int, t: int, style: str, label: int
    ) -> Region:
        """A wall that faces the camera, canvas columns x0..x1 and rows top..bottom."""
        colour = self.paint_colour(_FRONTS)
        region = _window(x0, top, x1, bottom)
        up = (bottom - region.y) * _EYE // t + 0 * region.x
        along = (region.x - x0) * _EYE // t + 0 * region.y
        height = (bottom - top) * _EYE // t
        self.fill(region, colour, label, self.wall_texture(up, along, height, style))
        if style == "windows":
            self.windows(region, up, along, height)
        return region

    # ---- things --------------------------------------------------------------------------

    def crown(self, cx: int, cy: int, rx: int, ry: int, colour: Colour) -> None:
        """A ragged mass of leaves, lit from above and from the sun's side."""
        rx, ry = max(rx, 3), max(ry, 3)
        region = _window(cx - rx * 5 // 4, cy - ry * 5 // 4, cx + rx * 5 // 4, cy + ry * 5 // 4)
        dx, dy = (region.x - cx) * 256 // rx, (region.y - cy) * 256 // ry
        seed = self.dice.roll(0, 40)
        rows, cols = (region.y + 31 * seed) % _H, (region.x + 17 * seed) % _W
        leaves, mass = self.patch[rows, cols], self.blob[rows, cols]
        mask = dx * dx + dy * dy < (256 + ((mass - 128) * 3 >> 2) + (leaves - 128 >> 2)) ** 2
        light = -dy // 4 + self.sun * dx // 6
        gain = 240 + light + (leaves - 128) + ((mass - 128) >> 1)
        self.fill(region._replace(mask=mask), colour, VEGETATION, np.clip(gain, 70, 420))

    def tree(self, x: int, t: int, height: int) -> None:
        """A tree: a conifer or a trunk with several crowns."""
        dice = self.dice
        colour = self.jitter(dice.pick(_FOLIAGE))
        self.contact_shadow(x, height // 4, t, 170)
        wide = max(height // 22, 3)
        base, top = self.at(x, 0, t), self.at(x, height // 2, t)
        half = max(wide * t // _EYE // 2, 1)
        trunk = _window(base[0] - half, top[1], base[0] + half + 1, base[1])
        self.fill(trunk, self.jitter((92, 72, 58)), VEGETATION, self.rough(trunk, self.patch, 90))
        size = height * t // _EYE
        if dice.chance(25):  # a conifer: shrinking tiers
            for tier in range(4):
                cy = base[1] - size * (5 + tier * 3) // 16
                self.crown(base[0], cy, size * (5 - tier) // 20, size // 6, colour)
        else:
            for _ in range(dice.roll(3, 5)):
                cx = base[0] + dice.roll(-size, size) // 7
                cy = base[1] - size * 11 // 16 + dice.roll(-size, size) // 9
                self.crown(cx, cy, size * dice.roll(16, 24) // 100, size // 5, colour)

    def bush(self, x: int, t: int, height: int) -> None:
        """Two low crowns."""
        colour = self.jitter(self.dice.pick(_FOLIAGE))
        size = height * t // _EYE
        cx, cy = self.at(x, height // 2, t)
        self.contact_shadow(x, height * 2 // 3, t)
        self.crown(cx - size // 2, cy, size // 2, size // 2, colour)
        self.crown(cx + size // 3, cy + size // 10, size // 2, size * 2 // 5, colour)

    def potted_plant(self, x: int, t: int) -> None:
        """A plant in a pot; both count as vegetation."""
        dice = self.dice
        self.contact_shadow(x, 12, t)
        tall, size = dice.roll(44, 78), t
        (px, py), (_, rim) = self.at(x, 0, t), self.at(x, 18, t)
        half = 9 * size // _EYE
        pot = _polygon(
            (px - half, rim), (px + half, rim), (px + half * 2 // 3, py), (px - half * 2 // 3, py)
        )
        colour = self.jitter(dice.pick(_FOLIAGE))
        for _ in range(5):
            cx = px + dice.roll(-10, 10) * size // _EYE
            _, cy = self.at(x, dice.roll(28, tall), t)
            self.crown(cx, cy, 10 * size // _EYE, 9 * size // _EYE, colour)
        self.fill(pot, self.paint_colour(), VEGETATION, self.rough(pot, self.patch, 40))

    def car_along(self, x: int, t: int) -> None:
        """A car seen from behind or from the front, its flank showing when it stands aside."""
        dice = self.dice
        colour = self.paint_colour()
        half, tall, body = dice.roll(32, 37), dice.roll(54, 66), dice.roll(30, 34)
        far = max(t * _FOCAL // (_FOCAL + 2 * t), t // 2)  # a car's length away
        self.contact_shadow(x, half + 6, t, 110)
        for wheel in (x - half + 2, x + half - 12):
            self.box((wheel, wheel + 10), (0, 16), (far, t), _DARK, CAR)
        self.box((x - half, x + half), (9, body), (far, t), colour, CAR)
        inset = 5
        mid = (far + t * 3) // 4
        self.box(
            (x - half + inset, x + half - inset),
            (body, tall),
            (far, mid),
            _scaled(colour, 236),
            CAR,
        )
        glass = _polygon(
            self.at(x - half + inset + 3, body + 2, mid),
            self.at(x - half + inset + 6, tall - 4, mid),
            self.at(x + half - inset - 6, tall - 4, mid),
            self.at(x + half - inset - 3, body + 2, mid),
        )
        self.fill(glass, _mix(_GLASS, self.haze, 50), CAR, 300 - (glass.y - glass.rows.start) * 4)
        lamp = dice.pick(((196, 44, 40), (250, 240, 200)))
        for edge in (x - half + 2, x + half - 12):
            light = _window(*self.at(edge, body - 4, t), *self.at(edge + 10, body - 10, t))
            self.fill(light, lamp, CAR)
        plate = _window(*self.at(x - 9, 19, t), *self.at(x + 9, 13, t))
        self.fill(plate, (226, 224, 210), CAR)
        bumper = _window(*self.at(x - half, 12, t), *self.at(x + half, 8, t))
        self.fill(bumper, _scaled(colour, 120), CAR)

    def car_across(self, x: int, t: int) -> None:
        """A car seen from its side."""
        dice = self.dice
        colour, way = self.paint_colour(), dice.pick((-1, 1))
        half, tall = dice.roll(72, 86), dice.roll(52, 62)
        boxy = dice.chance(30)

        def p(dx: int, height: int) -> Point:
            return self.at(x + way * dx, height, t)

        self.contact_shadow(x, half, t, 110)
        nose = 26 if not boxy else 34
        lower = _polygon(p(-half, 10), p(-half, 30), p(half - 6, nose), p(half, 10))
        self.fill(lower, colour, CAR, 290 - (lower.y - lower.rows.start) * 3)
        back = -half + (4 if boxy else 18)
        cabin = _polygon(
            p(back - 6, 29), p(back + 8, tall), p(half // 3, tall), p(half * 3 // 5, 27)
        )
        self.fill(cabin, _scaled(colour, 280), CAR)
        for x0, x1, x2, x3 in (
            (back + 1, back + 11, -5, -5),
            (-1, -1, half // 3 - 3, half // 2 - 1),
        ):
            pane = _polygon(p(x0, 32), p(x1, tall - 5), p(x2, tall - 5), p(x3, 32))
            self.fill(pane, _mix(_GLASS, self.haze, 70), CAR, 310 - (pane.y - pane.rows.start) * 5)
        radius = 13 * t // _EYE
        for hub in (-half + 24, half - 26):
            cx, cy = p(hub, 12)
            self.fill(_ellipse(cx, cy, radius, radius), _DARK, CAR)
            self.fill(_ellipse(cx, cy, radius // 2, radius // 2), (164, 164, 168), CAR)
        for edge, lamp in ((half - 5, (250, 236, 190)), (-half + 4, (190, 48, 44))):
            cx, cy = p(edge, 22)
            self.fill(_ellipse(cx, cy, 4 * t // _EYE, 3 * t // _EYE), lamp, CAR)
        seam = _window(*self.at(x - 4, 28, t), *self.at(x - 3, 12, t))
        self.fill(seam, _scaled(colour, 170), CAR)

    def person(self, x: int, t: int) -> None:
        """A person who stands or walks."""
        dice = self.dice
        tall = dice.roll(60, 74)
        coat, legs, skin = self.paint_colour(_COATS), self.paint_colour(_WOODS), dice.pick(_SKINS)
        stride = dice.roll(1, 9)
        self.contact_shadow(x, 12, t)

        def p(dx: int, height: int) -> Point:
            return self.at(x + dx, height * tall // 68, t)

        for way, gain in ((-1, 220), (1, 256)):
            foot = way * stride
            leg = _polygon(p(way * 4 - 4, 34), p(way * 4 + 4, 34), p(foot + 4, 0), p(foot - 4, 0))
            self.fill(leg, _scaled(legs, gain), PERSON)
            shoe = _polygon(p(foot - 4, 3), p(foot + 5, 3), p(foot + 6, 0), p(foot - 4, 0))
            self.fill(shoe, _DARK, PERSON)
        skirt = 11 if dice.chance(35) else 8
        torso = _polygon(p(-9, 56), p(9, 56), p(skirt, 26), p(-skirt, 26))
        self.fill(torso, coat, PERSON, self.rough(torso, self.patch, 60))
        swing = dice.roll(-6, 6)
        for way in (-1, 1):
            hand = way * 11 + way * swing
            arm = _polygon(p(way * 8, 56), p(way * 11, 54), p(hand + 2, 30), p(hand - 2, 30))
            self.fill(arm, _scaled(coat, 206), PERSON)
            cx, cy = p(hand, 29)
            self.fill(_ellipse(cx, cy, 3 * t // _EYE, 3 * t // _EYE), skin, PERSON)
        cx, cy = p(0, 62)
        radius = max(6 * t // _EYE, 2)
        hair = dice.pick(((42, 34, 30), (98, 66, 44), (196, 162, 104), (150, 148, 146)))
        self.fill(_ellipse(cx, cy - 1, radius, radius * 5 // 4), hair, PERSON)
        face = _ellipse(
            cx + dice.roll(-1, 1) * radius // 4, cy + radius // 3, radius * 3 // 4, radius
        )
        self.fill(face, skin, PERSON)
        if dice.chance(25):
            bag = _polygon(p(9, 38), p(17, 38), p(17, 26), p(9, 26))
            self.fill(bag, self.paint_colour(), PERSON)

    def street_lamp(self, x: int, t: int, inward: int) -> None:
        """A street light; its arm reaches towards ``inward``."""
        metal = self.jitter(self.dice.pick(((84, 88, 92), (128, 130, 132), (70, 84, 78))), 8)
        tall = self.dice.roll(170, 230)
        self.contact_shadow(x, 8, t, 170)
        half = max(9 * t // _EYE // 2, 3)
        (px, py), (_, top) = self.at(x, 0, t), self.at(x, tall, t)
        pole = _window(px - half, top, px + half + 1, py)
        self.fill(pole, metal, LAMP, 226 + 70 * ((pole.x < px) == (self.sun < 0)) + 0 * pole.y)
        foot = _window(px - half * 2, self.at(x, 12, t)[1], px + half * 2 + 1, py)
        self.fill(foot, _scaled(metal, 220), LAMP)
        reach = inward * 40 * t // _EYE
        left, right = sorted((px, px + reach))
        self.fill(_window(left, top, right, top + half * 2), metal, LAMP)
        glow = (255, 236, 170) if self.night else (232, 230, 220)
        head = _ellipse(px + reach, top + half * 2, 20 * t // _EYE, max(8 * t // _EYE, 3))
        self.fill(head, metal, LAMP)
        bulb = _ellipse(px + reach, top + half * 3, 15 * t // _EYE, max(6 * t // _EYE, 3))
        self.fill(bulb, glow, LAMP)

    def standing_lamp(self, x: int, t: int) -> None:
        """A lamp with a shade on a thin stand."""
        tall, shade_colour = self.dice.roll(62, 80), self.paint_colour()
        metal = self.jitter((110, 100, 92))
        self.contact_shadow(x, 10, t)
        half = max(6 * t // _EYE // 2, 2)
        (px, py), (_, neck) = self.at(x, 0, t), self.at(x, tall - 16, t)
        self.fill(_window(px - half, neck, px + half + 1, py), metal, LAMP)
        self.fill(_ellipse(px, py, 9 * t // _EYE, max(3 * t // _EYE, 1)), metal, LAMP)
        self.hat(x, tall, t, _mix(shade_colour, (255, 236, 180), 180))

    def hat(self, x: int, height: int, t: int, colour: Colour) -> None:
        """A lamp shade whose top is ``height`` above the ground."""
        (cx, top), (_, low) = self.at(x, height, t), self.at(x, height - 26, t)
        narrow, wide = 10 * t // _EYE, 21 * t // _EYE
        cone = _polygon((cx - narrow, top), (cx + narrow, top), (cx + wide, low), (cx - wide, low))
        self.fill(cone, colour, LAMP, 200 + (cone.y - cone.rows.start) * 80 // max(low - top, 1))

    def plate(self, cx: int, cy: int, radius: int) -> None:
        """The face of a sign, with a rim and a mark on it."""
        dice = self.dice
        face = dice.pick(_FACES)
        rim = (240, 238, 232) if sum(face) < 400 else dice.pick(((180, 40, 44), (40, 44, 60)))
        kind, inner = dice.roll(0, 3), radius * 3 // 4
        for size, colour in ((radius, rim), (inner, face)):
            if kind == 0:
                shape = _ellipse(cx, cy, size, size)
            elif kind == 1:
                shape = _polygon(
                    (cx, cy - size),
                    (cx + size, cy + size * 4 // 5),
                    (cx - size, cy + size * 4 // 5),
                )
            elif kind == 2:
                shape = _window(cx - size, cy - size, cx + size + 1, cy + size + 1)
            else:
                shape = _polygon((cx, cy - size), (cx + size, cy), (cx, cy + size), (cx - size, cy))
            self.fill(shape, colour, SIGN)
        bar, length = max(radius // 6, 1), radius * 2 // 5
        if dice.chance(50):
            self.fill(_window(cx - length, cy - bar, cx + length + 1, cy + bar + 1), rim, None)
        if dice.chance(50):
            self.fill(_window(cx - bar, cy - length, cx + bar + 1, cy + length + 1), rim, None)

    def road_sign(self, x: int, t: int) -> None:
        """A sign on a post, which counts as sign."""
        tall = self.dice.roll(88, 120)
        self.contact_shadow(x, 6, t, 180)
        half = max(5 * t // _EYE // 2, 2)
        (px, py), (_, top) = self.at(x, 0, t), self.at(x, tall, t)
        self.fill(_window(px - half, top, px + half + 1, py), (140, 142, 146), SIGN)
        self.plate(px, top, max(self.dice.roll(22, 28) * t // _EYE, 7))

    def board(self, x0: int, y0: int, x1: int, y1: int) -> None:
        """A lettered board or a poster: rows of unequal strokes on a framed plate."""
        dice = self.dice
        face, rim = self.paint_colour(), self.paint_colour()
        ink = (40, 38, 42) if sum(face) > 380 else (240, 234, 220)
        edge = max((y1 - y0) // 9, 1)
        self.fill(_window(x0, y0, x1, y1), rim, SIGN)
        self.fill(_window(x0 + edge, y0 + edge, x1 - edge, y1 - edge), face, SIGN)
        line = max((y1 - y0) // 4, 4)
        for y in range(y0 + edge * 2 + 1, y1 - line // 2 - edge, line):
            x = x0 + edge * 3
            while x < x1 - edge * 4:
                step = dice.roll(3, 9)
                if dice.chance(75):
                    stop = min(x + step, x1 - edge * 3)
                    self.fill(_window(x, y, stop, y + max(line // 2, 2)), ink, None)
                x += step + 3

    def bench(self, x: int, t: int) -> None:
        """A bench: legs, seat and back."""
        colour = self.paint_colour()
        far = max(t * _FOCAL // (_FOCAL + t * 9 // 32), 4)
        self.contact_shadow(x, 34, t)
        for leg in (x - 28, x + 24):
            self.box((leg, leg + 4), (0, 18), (far, t), _DARK, FURNITURE)
        self.box((x - 32, x + 32), (17, 21), (far, t), colour, FURNITURE)
        for low in (25, 32):
            slat = _window(*self.at(x - 32, low + 5, far), *self.at(x + 32, low, far))
            self.fill(slat, _scaled(colour, 226), FURNITURE)

    def sofa(self, x: int, t: int) -> None:
        """A sofa: back, seat, arms, perhaps a cushion."""
        colour, half = self.paint_colour(_WOODS), self.dice.roll(30, 52)
        far = max(t * _FOCAL // (_FOCAL + t * 3 // 4), 4)
        self.contact_shadow(x, half, t, 130)
        self.box((x - half, x + half), (4, 40), (far - 1, far + 1), _scaled(colour, 230), FURNITURE)
        self.box((x - half, x + half), (4, 20), (far, t), colour, FURNITURE)
        for arm in (x - half, x + half - 8):
            self.box((arm, arm + 8), (4, 28), (far, t), _scaled(colour, 240), FURNITURE)
        seams = range(x - half + 8, x + half - 8, max((2 * half - 16) // 2, 8))
        for seam in seams:
            (sx, top), (_, low) = self.at(seam, 20, t), self.at(seam, 6, t)
            self.fill(_window(sx, top, sx + 2, low), _scaled(colour, 160), None)
        if self.dice.chance(60):
            cx, cy = self.at(x + self.dice.roll(-half // 2, half // 2), 26, (far + t) // 2)
            size = 9 * t // _EYE
            cushion = _polygon((cx, cy - size), (cx + size, cy), (cx, cy + size), (cx - size, cy))
            self.fill(cushion, self.paint_colour(), FURNITURE)

    def table(self, x: int, t: int) -> None:
        """A table, high or low, perhaps with flowers on it."""
        colour, half = self.paint_colour(_WOODS), self.dice.roll(26, 44)
        tall = self.dice.pick((20, 32, 34))
        far = max(t * _FOCAL // (_FOCAL + t * 3 // 4), 4)
        self.contact_shadow(x, half, (t + far) // 2, 150)
        for depth in (far + 1, t):
            for leg in (x - half + 2, x + half - 6):
                post = _window(*self.at(leg, tall, depth), *self.at(leg + 4, 0, depth))
                self.fill(post, _scaled(colour, 180), FURNITURE)
        self.box((x - half, x + half), (tall - 3, tall), (far, t), colour, FURNITURE)
        if self.dice.chance(35):  # something on it
            (cx, cy), size = self.at(x, tall + 3, (t + far) // 2), t // 10 + 2
            self.crown(cx, cy - size * 2, size, size * 2, self.jitter(self.dice.pick(_FOLIAGE)))

    def cabinet(self, x: int, t: int) -> None:
        """A cabinet with doors or with books."""
        dice = self.dice
        colour, half, tall = self.paint_colour(_WOODS), dice.roll(20, 38), dice.roll(38, 96)
        far = max(t * _FOCAL // (_FOCAL + t // 3), 4)
        self.contact_shadow(x, half, t, 140)
        self.box((x - half, x + half), (0, tall), (far, t), colour, FURNITURE)
        shelves, books = max(tall // 20, 2), dice.chance(55)
        for shelf in range(shelves):
            low, high = 3 + shelf * (tall - 4) // shelves, (shelf + 1) * (tall - 4) // shelves
            (x0, y0), (x1, y1) = self.at(x - half + 3, high, t), self.at(x + half - 3, low, t)
            if not books:  # doors and knobs
                self.fill(_window(x0, y0, x1, y1), _scaled(colour, 216), None)
                self.fill(_window(x0 + 2, y0 + 2, x1 - 1, y1 - 1), _scaled(colour, 268), None)
                cx, cy = (x0 + x1) // 2, (y0 + y1) // 2
                self.fill(_window(cx - 2, cy - 1, cx + 3, cy + 2), _DARK, None)
                continue
            self.fill(_window(x0, y0, x1, y1), _scaled(colour, 96), None)
            left = x0
            while left < x1 - 2:
                thick = dice.roll(2, 5)
                top = y0 + dice.roll(2, max((y1 - y0) // 2, 3))
                if dice.chance(85):
                    spine = _window(left, top, min(left + thick, x1), y1)
                    self.fill(spine, self.paint_colour(), None)
                left += thick + 1

    def stranger(self, x: int, t: int) -> None:
        """Something that belongs to none of the classes: a ball, a cone, a box or a dog."""
        kind, colour = self.dice.roll(0, 3), self.paint_colour()
        self.contact_shadow(x, 12, t)
        cx, cy = self.at(x, 10, t)
        size = max(10 * t // _EYE, 3)
        if kind == 0:
            ball = _ellipse(cx, cy, size, size)
            self.fill(ball, colour, UNLABELLED, 300 - (ball.y - ball.rows.start) * 100 // size)
            self.fill(_window(cx - size, cy - 1, cx + size, cy + 2), (236, 232, 220), None)
        elif kind == 1:
            cone = _polygon(
                (cx - 1, cy - size * 2),
                (cx + 1, cy - size * 2),
                (cx + size, cy + size),
                (cx - size, cy + size),
            )
            self.fill(cone, (226, 108, 44), UNLABELLED)
            self.fill(
                cone._replace(mask=cone.mask & ((cone.y - cy + size) // 4 % 2 == 0)),
                (240, 236, 226),
                None,
            )
        elif kind == 2:
            self.box((x - 12, x + 12), (0, 22), (max(t - 4, 1), t), colour, UNLABELLED)
            self.fill(
                _window(cx - size // 5, cy - size, cx + size // 5 + 1, cy + size),
                _scaled(colour, 190),
                None,
            )
        else:
            for leg in (-size, -size // 2, size // 2, size):
                self.fill(_window(cx + leg - 1, cy, cx + leg + 2, cy + size), colour, UNLABELLED)
            self.fill(_ellipse(cx, cy - size // 4, size * 5 // 4, size // 2), colour, UNLABELLED)
            self.fill(
                _ellipse(cx + size * 5 // 4, cy - size * 3 // 4, size // 2, size // 2),
                colour,
                UNLABELLED,
            )

    # ---- scenes --------------------------------------------------------------------------

    def place(self, things: list[tuple[int, Callable[[], None]]], reach: int) -> None:
        """Draws things far to near, veiled by haze that halves every ``reach`` rows closer."""
        for t, draw in sorted(things, key=lambda item: item[0]):
            self.haze_part = max(0, 120 - t * 120 // reach) if reach else 0
            draw()
        self.haze_part = 0

    def street(self) -> None:
        """Along a street: facades recede on both sides, traffic comes and goes."""
        dice = self.dice
        self.night = dice.chance(12)
        self.horizon, self.centre = dice.roll(96, 146), dice.roll(100, 220)
        self.sky(_window(0, 0, _W, _H))
        middle, half = dice.roll(-30, 30), dice.roll(62, 104)
        left, right = middle - half, middle + half
        walk = dice.roll(56, 96)
        self.skyline()
        self.street_ground(left, right, walk)
        facades: list[tuple[int, Callable[[], None]]] = []
        for side, plane in ((-1, walk - left), (1, right + walk)):
            self.block(facades, side, plane)
        self.place(facades, 30)
        self.street_things(left, right, walk)

    def skyline(self) -> None:
        """What closes the view at the horizon."""
        dice = self.dice
        self.haze_part = 110
        leafy = dice.chance(45)
        x = -10
        while x < _W:
            wide = dice.roll(16, 46)
            if leafy:
                colour = self.jitter(dice.pick(_FOLIAGE))
                self.crown(x + wide // 2, self.horizon, wide, dice.roll(12, 26), colour)
            else:
                top = self.horizon - dice.roll(12, 60)
                self.front(x, x + wide, top, self.horizon + 4, 10, "windows", BUILDING)
            x += wide
        self.haze_part = 0

    def street_ground(self, left: int, right: int, walk: int) -> None:
        """Verges, pavements and road with their marks and shadows."""
        dice = self.dice
        below = _window(0, self.horizon, _W, _H)
        verge = dice.chance(50)
        if verge:
            colour = self.jitter(dice.pick(_FOLIAGE))
            self.ground(below, lambda x, z: x == x, "grass", colour, VEGETATION)
        pavement = self.jitter(dice.pick(_PAVINGS))
        style = dice.pick(("tiles", "tiles", "carpet"))
        inner = (left - walk, right + walk) if verge else (-100000, 100000)
        self.ground(below, lambda x, z: (x > inner[0]) & (x < inner[1]), style, pavement, SIDEWALK)
        tar = self.jitter(dice.pick(_TARS))
        self.ground(below, lambda x, z: (x > left) & (x < right), "asphalt", tar, ROAD)
        # Kerbs, lane marks and a zebra crossing.
        t = np.maximum(below.y - self.horizon, 1)
        x = (below.x - self.centre) * _EYE // t
        z = np.broadcast_to(_FOCAL * _EYE // t, x.shape)
        kerb = (((x - left) // 4 == -1) | ((x - right) // 4 == 0)) & (below.y > self.horizon)
        self.fill(below._replace(mask=kerb), _scaled(pavement, 300), None)
        white = dice.pick(((226, 224, 214), (226, 224, 214), (222, 184, 92)))
        dash = dice.pick((120, 180, 240))
        marks = (np.abs(x - (left + right) // 2) < 3) & (z % dash < dash // 2)
        if dice.chance(40):
            marks |= (np.abs(x - left - 8) < 2) | (np.abs(x - right + 8) < 2)
        if dice.chance(30):
            start = dice.roll(150, 420)
            marks |= (z > start) & (z < start + 70) & (x % 22 < 12) & (x > left) & (x < right)
        marks &= (t > 6) & (self.blob[below.rows, below.cols] > 60)
        self.fill(below._replace(mask=marks), white, None, self.rough(below, self.patch, 60))
        if dice.chance(45) and not self.night:  # the houses' shadow
            edge = dice.roll(left // 2, right // 2)
            dark = (x * self.sun > edge * self.sun) & (below.y > self.horizon)
            self.shade(below._replace(mask=dark), dice.roll(120, 170))
        if dice.chance(35):  # dappled light under trees
            leaves = self.blob[below.rows, below.cols] + self.patch[below.rows, below.cols] // 2
            gain = np.clip(256 - (leaves - 150) * 2, dice.roll(140, 190), 256)
            self.shade(below._replace(mask=below.y + 0 * below.x > self.horizon), gain)

    def block(self, facades: list[tuple[int, Callable[[], None]]], side: int, plane: int) -> None:
        """One side of the street: houses, garden walls and gaps with trees, far to near."""
        dice = self.dice
        far = dice.roll(4, 7)
        while far < 150:
            near = far * dice.roll(130, 210) // 100 + 2
            span = (far, near)
            kind = dice.roll(0, 99)
            if kind < 68:
                tall = dice.roll(130, 420)
                style = "windows" if dice.chance(88) else "bricks"
                facades.append((far, self._house(side, plane, span, tall, style)))
            elif kind < 80:
                tall = dice.roll(26, 56)
                facades.append((far, self._garden_wall(side, plane, span, tall)))
            else:
                for t in range(far, min(near, 110), max((near - far) // 2, 3)):
                    x, tall = side * (plane + dice.roll(10, 60)), dice.roll(120, 260)
                    facades.append((t, lambda x=x, t=t, tall=tall: self.tree(x, t, tall)))  # type: ignore[misc]
            far = near

    def _house(
        self, side: int, plane: int, span: tuple[int, int], tall: int, style: str
    ) -> Callable[[], None]:
        def draw() -> None:
            far, near = span
            # The gable towards the camera, then the front along the street.
            x, (_, top), (_, low) = side * plane, self.at(0, tall, near), self.at(0, 0, near)
            inner = self.at(x, 0, near)[0]
            outer = inner + side * 400 * near // _EYE
            left, right = min(inner, outer), max(inner, outer)
            self.front(left, right, top, low, near, "bricks", BUILDING)
            self.facade(side, plane, span, tall, style, BUILDING)
            if self.dice.chance(25) and near < 120:
                t = (far + near) // 2
                cx, cy = self.at(x - side * 8, self.dice.roll(70, 100), t)
                wide, high = max(14 * t // _EYE, 5), max(22 * t // _EYE, 8)
                self.board(cx - wide, cy - high, cx + wide, cy + high)

        return draw

    def _garden_wall(
        self, side: int, plane: int, span: tuple[int, int], tall: int
    ) -> Callable[[], None]:
        def draw() -> None:
            style = self.dice.pick(("bricks", "panels", "plain"))
            x, t = side * (plane + 30), (span[0] + span[1]) // 2
            self.tree(x, t, self.dice.roll(100, 220))
            self.facade(side, plane, span, tall, style, WALL)

        return draw

    def street_things(self, left: int, right: int, walk: int) -> None:
        """Traffic, people, trees and what else stands in a street."""
        dice = self.dice
        things: list[tuple[int, Callable[[], None]]] = []
        deepest = _H - self.horizon

        def add(draw: Callable[..., None], x: int, low: int, high: int, *rest: int) -> None:
            t = dice.roll(low, high)
            things.append((t, lambda: draw(x, t, *rest)))

        quarter = (right - left) // 4
        for lane in (left + quarter, right - quarter):
            for _ in range(dice.roll(0, 2)):
                add(self.car_along, lane + dice.roll(-8, 8), 20, 92)
        for edge in (left + 34, right - 34):
            if dice.chance(45):  # parked
                for _ in range(dice.roll(1, 2)):
                    add(self.car_along, edge, 22, 80)
        for side, kerb in ((-1, left), (1, right)):
            if dice.chance(60):
                for _ in range(dice.roll(1, 3)):
                    add(self.street_lamp, kerb + side * 10, 34, 92, -side)
            if dice.chance(55):
                for _ in range(dice.roll(1, 2)):
                    add(self.road_sign, kerb + side * dice.roll(10, 24), 40, 96)
            for _ in range(dice.roll(0, 3)):
                add(self.person, kerb + side * dice.roll(16, walk - 8), 54, deepest + 6)
            if dice.chance(45):
                for _ in range(dice.roll(1, 3)):
                    add(self.tree, kerb + side * dice.roll(18, walk), 20, 84, dice.roll(110, 220))
            if dice.chance(30):
                add(self.bush, kerb + side * dice.roll(30, walk), 26, 90, dice.roll(18, 38))
            if dice.chance(30):
                add(self.bench, kerb + side * dice.roll(40, walk), 30, 90)
        if dice.chance(25):
            add(self.person, dice.roll(left, right), 30, 90)
        if dice.chance(22):
            add(self.stranger, dice.roll(left - walk, right + walk), 40, deepest)
        self.place(things, 70)

    def row_of_houses(self) -> None:
        """Across a street: house fronts side by side, pavement and road in front of them."""
        dice = self.dice
        self.night = dice.chance(10)
        base = dice.roll(134, 172)
        depth = dice.roll(28, 38)
        self.horizon, self.centre = base - depth, _W // 2 + dice.roll(-60, 60)
        self.sky(_window(0, 0, _W, _H))
        self.skyline()
        x = -dice.roll(0, 60)
        while x < _W:
            wide = dice.roll(60, 130)
            kind = dice.roll(0, 99)
            if kind < 74:
                top = base - dice.roll(64, 190)
                style = "windows" if dice.chance(85) else "bricks"
                self.front(x, x + wide, top, base, depth, style, BUILDING)
                self._shop(x, x + wide, base, depth)
            else:
                for _ in range(2):
                    at = (x + dice.roll(0, wide) - self.centre) * _EYE // depth
                    self.tree(at, depth, dice.roll(90, 190))
                if dice.chance(60):
                    top = base - dice.roll(26, 40)
                    style = dice.pick(("bricks", "panels", "plain"))
                    self.front(x, x + wide, top, base, depth, style, WALL)
            x += wide
        below = _window(0, base, _W, _H)
        t = np.maximum(below.y - self.horizon, 1)
        kerb_t = depth + dice.roll(11, 22)
        kerb_z = _FOCAL * _EYE // kerb_t
        pavement, tar = self.jitter(dice.pick(_PAVINGS)), self.jitter(dice.pick(_TARS))
        style = dice.pick(("tiles", "tiles", "carpet"))
        self.ground(below, lambda x, z: z >= kerb_z, style, pavement, SIDEWALK)
        self.ground(below, lambda x, z: z < kerb_z, "asphalt", tar, ROAD)
        rows = np.broadcast_to(t, below.mask.shape)
        kerb = (rows >= kerb_t) & (rows < kerb_t + 3)
        self.fill(below._replace(mask=kerb), _scaled(pavement, 300), None)
        if dice.chance(60):
            mark = kerb_t + dice.roll(20, 34)
            run = (below.x - self.centre) * _EYE // t
            dash = (rows >= mark) & (rows < mark + 3) & (run % 60 < 34)
            self.fill(below._replace(mask=dash), (224, 220, 206), None)
        things: list[tuple[int, Callable[[], None]]] = []

        def add(draw: Callable[..., None], low: int, high: int, *rest: int) -> None:
            t = dice.roll(low, high)
            reach = 170 * _EYE // t
            x = dice.roll(-reach, reach)
            things.append((t, lambda: draw(x, t, *rest)))

        last = _H - self.horizon
        for _ in range(dice.roll(1, 3)):
            add(self.car_across, kerb_t + 3, kerb_t + 22)
        for _ in range(dice.roll(1, 4)):
            add(self.person, kerb_t - 8, kerb_t - 2)
        for _ in range(dice.roll(0, 2)):
            add(self.street_lamp, kerb_t - 3, kerb_t - 1, dice.pick((-1, 1)))
        for _ in range(dice.roll(0, 2)):
            add(self.road_sign, kerb_t - 3, kerb_t - 1)
        for _ in range(dice.roll(0, 2)):
            add(self.tree, depth + 6, kerb_t - 2, dice.roll(80, 150))
        if dice.chance(50):
            add(self.bench, depth + 5, kerb_t - 3)
        if dice.chance(30):
            add(self.bush, depth + 2, depth + 8, dice.roll(16, 30))
        if dice.chance(20):
            add(self.person, kerb_t + 4, last)
        if dice.chance(20):
            add(self.stranger, depth + 10, last)
        self.place(things, 0)

    def _shop(self, x0: int, x1: int, base: int, t: int) -> None:
        """A ground floor: a door (part of the building), perhaps a board above it."""
        dice = self.dice
        unit = max(t * 10 // _EYE, 1)
        door = dice.roll(x0 + 6, x1 - 6 - unit * 4)
        self.fill(_window(door, base - unit * 9, door + unit * 4, base), self.paint_colour(), None)
        self.fill(
            _window(door + 2, base - unit * 8, door + unit * 4 - 2, base - unit * 5), _GLASS, None
        )
        if dice.chance(45):
            wide = min(x1 - x0 - 10, dice.roll(40, 90))
            left = dice.roll(x0 + 5, x1 - 5 - wide)
            top = base - unit * dice.roll(12, 14)
            self.board(left, top, left + wide, top + dice.roll(14, 20))

    def room(self) -> None:
        """Inside: three walls, a ceiling (which counts as wall), a floor and what stands on it."""
        dice = self.dice
        self.horizon, self.centre = dice.roll(92, 140), dice.roll(110, 210)
        back = dice.roll(42, 76)
        half, tall = dice.roll(84, 150), dice.roll(104, 132)
        paints = self.paint_colour()
        region = _window(0, 0, _W, _H)
        # Ceiling over everything, then the walls, then the floor.
        self.fill(
            region, _mix(paints, (236, 232, 226), 190), WALL, self.rough(region, self.cloud, 30)
        )
        style = dice.pick(("plain", "stripes", "dots", "panels", "bricks"))
        (x0, top), (x1, base) = self.at(-half, tall, back), self.at(half, 0, back)
        below = _window(0, self.horizon, _W, _H)
        t = np.maximum(below.y - self.horizon, 1)
        self.front(x0, x1, top, base, back, style, WALL)
        side_style = style if dice.chance(60) else "plain"
        for side in (-1, 1):
            self.facade(side, half, (back, 200), tall, side_style, WALL)
        wood = self.jitter(dice.pick(_GROUNDS))
        kind = dice.pick(("planks", "planks", "checker", "carpet", "tiles"))
        self.ground(
            below,
            lambda x, z: (np.abs(x) < half) & (z < _FOCAL * _EYE // back),
            kind,
            wood,
            FLOOR,
        )
        if dice.chance(50):
            skirting = (np.abs(below.y - base) < 2) & (below.x > x0) & (below.x < x1)
            self.fill(below._replace(mask=skirting), (228, 224, 216), None)
        if dice.chance(45):  # a rug
            rx, ct = dice.roll(26, 60), dice.roll(back + 14, back + 40)
            middle = dice.roll(-40, 40)
            run = (below.x - self.centre) * _EYE // t - middle
            rows = np.abs(t - ct)
            rug = (np.abs(run) < rx) & (rows < 14) & (t > back + 1)
            self.fill(
                below._replace(mask=rug),
                self.paint_colour(),
                None,
                self.rough(below, self.patch, 70),
            )
            rim = rug & ((np.abs(run) > rx - 7) | (rows > 10))
            self.fill(below._replace(mask=rim), self.paint_colour(), None)
        self.room_walls(x0, x1, top, base, back)
        if dice.chance(50):  # light from a window falls on the floor
            near, far = back + dice.roll(20, 50), back + dice.roll(4, 16)
            x = dice.roll(-half // 2, half // 2)
            beam = _polygon(
                self.at(x, 0, far),
                self.at(x + 40, 0, far),
                self.at(x + 70, 0, near),
                self.at(x + 24, 0, near),
            )
            floor = beam.mask & (self.label[beam.rows, beam.cols] == FLOOR)
            self.shade(beam._replace(mask=floor), dice.roll(300, 350))
        self.room_things(half, back, tall)

    def room_walls(self, x0: int, x1: int, top: int, base: int, back: int) -> None:
        """A window with a view and posters on the back wall."""
        dice = self.dice
        left, right = max(x0, 4), min(x1, _W - 4)
        view = -1
        if dice.chance(55) and right - left > 90:
            wide, high = dice.roll(44, 76), dice.roll(34, 52)
            x, y = dice.roll(left + 6, right - wide - 6), top + dice.roll(8, 18)
            view = x + wide // 2
            trim = self.dice.pick(((236, 232, 224), (120, 92, 70)))
            self.fill(_window(x - 4, y - 4, x + wide + 4, y + high + 5), trim, WALL)
            saved_rgb, saved_label = self.rgb.copy(), self.label.copy()
            pane = _window(x, y, x + wide, y + high)
            # Outside, the horizon is the camera's own.
            self.sky(pane)
            self.skyline()
            inside = (pane.rows, pane.cols)
            rgb, label = self.rgb[inside].copy(), self.label[inside].copy()
            self.rgb, self.label = saved_rgb, saved_label
            self.rgb[inside], self.label[inside] = rgb, label
            for bar in (
                _window(x + wide // 2 - 1, y, x + wide // 2 + 2, y + high),
                _window(x, y + high // 2 - 1, x + wide, y + high // 2 + 1),
            ):
                self.fill(bar, trim, WALL)
            if dice.chance(50):  # curtains hang on the wall and count as wall
                cloth = self.paint_colour()
                for edge in (x - 12, x + wide - 2):
                    drape = _window(edge, y - 8, edge + 14, min(y + high + 26, base))
                    fold = 230 + (drape.x - edge) % 5 * 16 + 0 * drape.y
                    self.fill(drape, cloth, WALL, fold)
        for _ in range(dice.roll(0, 2)):
            wide, high = dice.roll(18, 40), dice.roll(18, 34)
            x, y = dice.roll(left, max(right - wide, left)), top + dice.roll(6, 20)
            if view < 0 or abs(x + wide // 2 - view) > 40 + wide:
                self.board(x, y, x + wide, y + high)

    def room_things(self, half: int, back: int, tall: int) -> None:
        """Furniture, plants, lamps and people in a room."""
        dice = self.dice
        things: list[tuple[int, Callable[[], None]]] = []
        last = _H - self.horizon + 8

        def add(draw: Callable[..., None], low: int, high: int, margin: int) -> None:
            t = dice.roll(low, max(low, high))
            reach = max(min(half - margin, 150 * _EYE // t), 4)
            x = dice.roll(-reach, reach)
            things.append((t, lambda: draw(x, t)))

        for _ in range(dice.roll(0, 2)):
            add(self.cabinet, back + 4, back + 7, 36)
        for _ in range(dice.roll(0, 2)):
            add(self.sofa, back + 14, last - 20, 40)
        for _ in range(dice.roll(0, 2)):
            add(self.table, back + 16, last - 6, 36)
        for _ in range(dice.roll(0, 2)):
            add(self.potted_plant, back + 5, last - 10, 12)
        if dice.chance(55):
            add(self.standing_lamp, back + 5, back + 36, 14)
        for _ in range(dice.roll(0, 2)):
            add(self.person, back + 16, last, 14)
        if dice.chance(22):
            add(self.stranger, back + 12, last - 10, 14)
        self.place(things, 0)
        if dice.chance(40):  # a pendant lamp
            x, t = dice.roll(-half // 2, half // 2), back + dice.roll(4, 30)
            (cx, roof), (_, low) = self.at(x, tall, t), self.at(x, tall - 22, t)
            self.fill(_window(cx - 1, roof, cx + 1, low), _DARK, LAMP)
            self.hat(x, tall - 22, t, _mix(self.paint_colour(), (255, 236, 180), 180))

    # ---- developing ----------------------------------------------------------------------

    def develop(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Light, halving, blur and sensor noise: the picture (H, W, 3) and its labels (H, W)."""
        dice = self.dice
        y, x = np.arange(_H, dtype=np.int32)[:, None], np.arange(_W, dtype=np.int32)[None, :]
        slope_x, slope_y = dice.roll(-50, 50), dice.roll(-36, 36)
        gain = dice.roll(220, 268) + (x - _W // 2) * slope_x // _W + (y - _H // 2) * slope_y // _H
        gain = gain + ((self.cloud - 128) * dice.roll(0, 60) >> 7)
        far = (x - _W // 2) ** 2 + (y - _H // 2) ** 2
        gain = gain - far * dice.roll(0, 60) // (_W * _W // 4)
        if self.night:
            gain = gain * 150 >> 8
            red, blue = self.rgb[..., 0], self.rgb[..., 2]
            glow = (red >= 240) & (red - blue >= 40)  # lamps and lit windows stay bright
            gain = np.where(glow, 250, gain)
        cast = [dice.roll(232, 280) for _ in range(3)]
        lift = dice.roll(0, 20)
        light = np.clip(self.rgb, 0, 255) * gain[..., None] >> 8
        light = (light * np.asarray(cast, dtype=np.int32) >> 8) + lift
        small = light[0::2, 0::2] + light[1::2, 0::2] + light[0::2, 1::2] + light[1::2, 1::2]
        image = np.clip(small + 2 >> 2, 0, 255)
        if dice.chance(6):  # slightly out of focus
            padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
            rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
            image = rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:] + 8 >> 4
        amount = dice.roll(3, 12)
        noise = dice.field(HEIGHT, WIDTH, 3) + dice.field(HEIGHT, WIDTH, 3) - 255
        image = np.clip(image + (noise * amount >> 8), 0, 255)
        return image.astype(np.uint8), _halve_labels(self.label)


def _halve_labels(label: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The label that at least three of four painted pixels share, else unlabelled."""
    a, b, c, d = label[0::2, 0::2], label[0::2, 1::2], label[1::2, 0::2], label[1::2, 1::2]
    votes = (a == b).astype(np.uint8) + (a == c) + (a == d)
    rest = np.where((b == c) & (b == d), b, np.uint8(UNLABELLED))
    return np.where(votes >= 2, a, rest).astype(np.uint8)


def paint_scene(dice: Dice) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Paints one scene.

    Args:
        dice: The source of every choice; two equal dice paint the same scene.

    Returns:
        RGB image (128, 160, 3) and labels (128, 160), both uint8; 0 is unlabelled, 1..12 are the
        classes.
    """
    painter = Painter(dice)
    kind = dice.roll(0, 99)
    if kind < 42:
        painter.street()
    elif kind < 62:
        painter.row_of_houses()
    else:
        painter.room()
    return painter.develop()
