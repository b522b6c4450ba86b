# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Paints the pictures of the built-in demo data set ``scenes`` together with their exact labels.

Only integers, a Philox generator and OpenCV's unsmoothed polygons decide a pixel, so a scene is the
same on every machine. It is painted from back to front at twice its size.

A pinhole camera 64 world units (some 1.6 m) above the ground looks along a street or into a room.
A point of the ground seen ``t`` rows below the horizon has the scale ``t / 64`` pixels a unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Window = tuple[slice, slice]  # of the canvas: rows and columns
Colour = tuple[int, int, int]
Span = tuple[int, int]
Wall = tuple[int, str, int]  # height in world units, style, label
Points = Sequence[tuple[int, int]] | npt.NDArray[Any]

WIDTH, HEIGHT = 160, 128
_W, _H = 2 * WIDTH, 2 * HEIGHT  # the size painted at
_EYE, _FOCAL = 64, 280  # height of the camera in world units, focal length in painted pixels
_FAR = _EYE * _FOCAL  # a point of the ground at depth row t is _FAR / t units away

# Labels as in the files; _KEEP leaves a pixel its label.
SKY, BUILDING, ROAD, SIDEWALK, VEGETATION, WALL = 1, 2, 3, 4, 5, 6
FLOOR, FURNITURE, CAR, PERSON, LAMP, SIGN = 7, 8, 9, 10, 11, 12
_KEEP = -1

# Classes share colours: colour alone does not tell a wall from a car, nor a road from a floor.
_PAINTS = {
    "paint": "ded6c4 b0604e d6a45c 96a880 8cb2c4 5c80a8 3e547c d89e94 bababe e8e8e4 464246",
    "front": "ded6c4 c6b296 b0604e 96463e d6a45c d89e94 787474 88684e",
    "wood": "88684e 6e4a32 b08050 5c4238 96463e 464246",
    "coat": "c42c2c 2858aa e29628 2c786e 783c82 e8e8e4",
    "floor": "6c6c70 868278 9e988e ac9a82 927252 765844 a67a64 7e868e",
    "tar": "484a50 54565e 606264 6c6c70 767474 7e8288",
    "paving": "9e988e ac9a82 beb6aa a67a64 b2aaa0 86827c",
    "leaf": "48743e 628a48 386046 54803a 708c46 bc8a3e b05c3a",
    "skin": "eec8aa ce9c78 96684c 604234", "hair": "2a221e 62422c c4a268 96948e",
    "face": "c42c2c 2858aa f0c832 ececE8 347e54", "rim": "f0eee8 b4282c 282c3c",
    "zenith": "5c90d0 78acde 96a2b0 b0b2b6 6870a8 5896a8", "haze": "c4d8e6 d6c4be e2d6aa",
    "metal": "808286 54585c", "bark": "5c483a", "glow": "ffecaa e8e6dc", "red": "be302c",
    "dark": "2c2c32", "glass": "566a7c", "white": "e4e0d2",
}  # fmt: skip


class Part(NamedTuple):
    """A polygon that faces the camera, leaves, or a block ``depth`` deep, ``back`` behind others.

    ``at`` holds the corners x, height, ..., or x0, low, x1, high; ``gain`` is in 256ths.
    """

    paint: str
    at: tuple[int, ...]
    gain: int = 256
    depth: int = 0
    back: int = 0


def _oval(x: int, y: int, rx: int, ry: int) -> Ints:
    return np.array(cv2.ellipse2Poly((x, y), (max(rx, 2), max(ry, 1)), 0, 0, 360, 20), np.int32)


def _disc(x: int, up: int, radius: int) -> tuple[int, ...]:
    return tuple(_oval(x, up, radius, radius).reshape(-1).tolist())


def _sign(*face: int) -> tuple[int, list[Part]]:
    inner = tuple(100 * (i % 2) + (value - 100 * (i % 2)) * 3 // 4 for i, value in enumerate(face))
    post, bar = Part("metal", (-3, 0, 3, 100)), Part("rim", (-9, 98, 9, 102))
    return SIGN, [post, Part("rim", face), Part("face", inner), bar]


# Label and parts of everything that stands around, in world units.
_THINGS: dict[str, tuple[int, list[Part]]] = {
    "car": (CAR, [
        Part("dark", (-33, 0, -23, 16), depth=120), Part("dark", (23, 0, 33, 16), depth=120),
        Part("paint", (-35, 9, 35, 32), depth=130),
        Part("paint", (-30, 32, 30, 58), 236, depth=80, back=30),
        Part("glass", (-26, 34, -23, 54, 23, 54, 26, 34), back=30),
        Part("red", (-33, 22, -23, 28)), Part("red", (23, 22, 33, 28)),
        Part("white", (-9, 13, 9, 19)), Part("paint", (-35, 8, 35, 12), 120),
    ]),
    "person": (PERSON, [
        Part("wood", (-8, 34, 0, 34, -1, 0, -9, 0), 220), Part("wood", (0, 34, 8, 34, 10, 0, 2, 0)),
        Part("dark", (-9, 0, 0, 3)), Part("dark", (2, 0, 11, 3)),
        Part("coat", (-8, 56, 8, 56, 14, 30, 10, 30, 0, 50, -10, 30, -14, 30), 206),
        Part("skin", _disc(-13, 29, 3)), Part("skin", _disc(12, 29, 3)),
        Part("coat", (-8, 56, 8, 56, 9, 26, -9, 26)), Part("hair", _disc(0, 63, 7)),
        Part("skin", _disc(1, 61, 5)),
    ]),
    "street_lamp": (LAMP, [
        Part("metal", (-4, 0, 4, 200)), Part("metal", (-8, 0, 8, 12), 220),
        Part("metal", (0, 193, 40, 200)), Part("metal", (20, 192, 30, 204, 50, 204, 60, 192)),
        Part("glow", (24, 192, 30, 186, 50, 186, 56, 192)),
    ]),
    "floor_lamp": (LAMP, [
        Part("metal", (-9, 0, 9, 4)), Part("metal", (-3, 0, 3, 60)),
        Part("glow", (-9, 72, 9, 72, 20, 46, -20, 46), 240),
    ]),
    "circle": _sign(*_disc(0, 100, 25)),
    "diamond": _sign(0, 74, 26, 100, 0, 126, -26, 100),
    "sofa": (FURNITURE, [
        Part("wood", (-40, 4, 40, 40), 225, depth=8, back=46),
        Part("wood", (-40, 4, 40, 20), depth=46), Part("dark", (-1, 5, 1, 19)),
        *(Part("wood", (x, 4, x + 8, 28), 240, depth=46) for x in (-40, 32)),
        Part("any", (12, 20, 24, 32), back=30),
    ]),
    "table": (FURNITURE, [
        *(Part("wood", (x, 0, x + 4, 30), 180, back=back) for back in (44, 0) for x in (-34, 30)),
        Part("wood", (-35, 29, 35, 32), depth=48),
    ]),
    "shelf": (FURNITURE, [
        Part("wood", (-30, 0, 30, 82), depth=22), Part("wood", (-27, 4, 27, 78), 96),
        *(Part("any", (x, y, x + 9, y + 18)) for y in (4, 30, 56) for x in (-26, -14, -4, 12)),
    ]),
    "tree": (VEGETATION, [
        Part("bark", (-6, 0, 6, 100)), Part("leaf", (-40, 60, 40, 130)),
        Part("leaf", (-60, 90, 20, 170)), Part("leaf", (-15, 90, 60, 170)),
        Part("leaf", (-35, 130, 35, 195)),
    ]),
    "bush": (VEGETATION, [Part("leaf", (-30, 0, 8, 36)), Part("leaf", (-6, 0, 26, 30))]),
    "plant": (VEGETATION, [
        Part("leaf", (-18, 16, 6, 50)), Part("leaf", (-6, 20, 18, 56)),
        Part("leaf", (-12, 40, 12, 70)), Part("paint", (-9, 18, 9, 18, 6, 0, -6, 0)),
    ]),
}  # fmt: skip


class Dice:
    """Random integers; streams of one seed, both 64 bits, never overlap."""

    def __init__(self, seed: int, stream: int) -> None:
        self._random = np.random.Generator(np.random.Philox(key=(stream << 64) | seed))

    def roll(self, low: int, high: int) -> int:
        """A uniform integer from ``low`` to ``high``, both included."""
        return int(self._random.integers(low, high, endpoint=True))

    def pick(self, items: Sequence[Any]) -> Any:
        """One of the items."""
        return items[self.roll(0, len(items) - 1)]

    def noise(self, rows: int, cols: int, cell: int = 1) -> Ints:
        """Value noise -128..127, (rows, cols): a random lattice, ``cell`` pixels wide, smoothed."""
        shape = (rows // cell + 2, cols // cell + 2)
        lattice = self._random.integers(0, 256, shape, dtype=np.uint8)
        size = (shape[1] * cell, shape[0] * cell)
        field = cv2.resize(lattice, size, interpolation=cv2.INTER_LINEAR_EXACT)
        return field[:rows, :cols].astype(np.int32) - 128


def _scaled(colour: Colour, gain: int) -> Colour:
    r, g, b = (min(part * gain >> 8, 255) for part in colour)
    return r, g, b


def _window(x0: int, y0: int, x1: int, y1: int) -> Window:
    """Rows y0..y1 and columns x0..x1, cut to the canvas."""
    x0, y0 = min(max(x0, 0), _W), min(max(y0, 0), _H)
    return slice(y0, min(max(y1, y0), _H)), slice(x0, min(max(x1, x0), _W))


class Painter:
    """One scene in the making; lines along the view meet in ``centre`` at the ``horizon``."""

    def __init__(self, dice: Dice, horizon: int, centre: int) -> None:
        self.dice, self.horizon, self.centre = dice, horizon, centre
        self.rgb = np.zeros((_H, _W, 3), dtype=np.int32)
        self.label = np.zeros((_H, _W), dtype=np.uint8)
        self.y, self.x = np.mgrid[:_H, :_W].astype(np.int32)
        self.haze, self.haze_part = (128, 128, 128), 0
        self.sun = dice.pick((-1, 1))
        self.things: list[tuple[int, Callable[[], None]]] = []
        # Noise that all surfaces share: single grains, small patches, blobs and clouds.
        self.grain, self.patch, self.blob, self.cloud = (
            dice.noise(_H, _W, cell) for cell in (1, 5, 14, 44)
        )
        # The ground below the horizon: its window, and each pixel's row, place across and ahead.
        self.below = _window(0, horizon + 1, _W, _H)
        self.t = self.y[self.below] - horizon
        self.across, self.ahead = (self.x[self.below] - centre) * _EYE // self.t, _FAR // self.t

    def colour(self, paint: str) -> Colour:
        """A colour of a pool, slightly changed."""
        code, shift = self.dice.pick(_PAINTS[paint].split()), self.dice.roll(-14, 14)
        parts = (int(code[i : i + 2], 16) + self.dice.roll(-6, 6) for i in (0, 2, 4))
        r, g, b = (min(max(part + shift, 0), 255) for part in parts)
        return r, g, b

    def put(
        self, window: Window, mask: Mask, colour: Colour | Ints, label: int, gain: Ints | int = 256
    ) -> None:
        """Paints the masked pixels of a window, ``gain`` in 256ths."""
        value = np.asarray(colour, dtype=np.int32)
        value = value[mask] if value.ndim == 3 else value
        value = value * (gain[mask][:, None] if isinstance(gain, np.ndarray) else gain) >> 8
        self.rgb[window][mask] = value + ((np.asarray(self.haze) - value) * self.haze_part >> 8)
        if label != _KEEP:
            self.label[window][mask] = label

    def polygon(self, points: Points) -> tuple[Window, Mask]:
        """The pixels of a polygon."""
        corners = np.array(points, dtype=np.int32)
        window = _window(*corners.min(axis=0).tolist(), *(corners.max(axis=0) + 1).tolist())
        mask = np.zeros(self.label[window].shape, dtype=np.uint8)
        if mask.size:
            cv2.fillPoly(mask, [corners - (window[1].start, window[0].start)], 1)
        return window, mask.astype(np.bool_)

    def fill(self, points: Points, colour: Colour, label: int) -> None:
        """Paints a polygon, its surface slightly uneven."""
        window, mask = self.polygon(points)
        self.put(window, mask, colour, label, 256 + (self.patch[window] >> 3))

    def at(self, x: int, height: int, t: int) -> tuple[int, int]:
        """Canvas point of a world point: across, above the ground, at depth row ``t``."""
        return self.centre + x * t // _EYE, self.horizon + t - height * t // _EYE

    def thing(self, name: str, x: int, t: int, face: int = 0) -> None:
        """Draws a thing of the table, its size and colours varied, turned left or right."""
        dice, (label, parts) = self.dice, _THINGS[name]
        wide, high, face = dice.roll(86, 116), dice.roll(88, 114), face or dice.pick((-1, 1))
        colours = {part.paint: self.colour(part.paint.replace("any", "paint")) for part in parts}
        if min(parts[0].at[1::2]) < 30:  # its shadow, if it stands on the ground
            (cx, cy), rx = self.at(x, 0, t), max(parts[0].at[0::2]) * t // 48
            shadow = self.polygon(_oval(cx - self.sun * rx // 4, cy, rx, rx // 5))
            self.put(*shadow, self.rgb[shadow[0]], _KEEP, 140)
        for paint, at, gain, depth, back in parts:
            colour = _scaled(self.colour("paint") if paint == "any" else colours[paint], gain)
            near, far = (max(t * _FAR // (_FAR + z * t), 1) for z in (back, back + depth))
            xs = [x + face * value * wide // 100 for value in at[0::2]]
            ups = [value * high // 100 for value in at[1::2]]
            if len(at) == 4:
                xs, ups = [xs[0], xs[1], xs[1], xs[0]], [ups[0], ups[0], ups[1], ups[1]]
            front, rear = (
                [self.at(*place, k) for place in zip(xs, ups, strict=True)] for k in (near, far)
            )
            if paint == "leaf":
                self.crown(*front[0], *front[2], colour)
                continue
            if depth:  # the flank, then the top, which the front hides if it is above the eye
                self.fill(cv2.convexHull(np.array(front + rear))[:, 0], _scaled(colour, 200), label)
                self.fill([*front[2:4], *rear[:1:-1]], _scaled(colour, 310), label)
            self.fill(front, colour, label)

    def crown(self, x0: int, y0: int, x1: int, y1: int, colour: Colour) -> None:
        """A ragged mass of leaves between two corners, lit from above and from the sun's side."""
        cx, rx = x0 + x1 >> 1, max(abs(x1 - x0) // 2, 3)
        cy, ry = y0 + y1 >> 1, max(abs(y1 - y0) // 2, 3)
        window = _window(cx - rx * 5 // 4, cy - ry * 5 // 4, cx + rx * 5 // 4, cy + ry * 5 // 4)
        dx, dy = (self.x[window] - cx) * 256 // rx, (self.y[window] - cy) * 256 // ry
        leaves, mass = self.patch[window], self.blob[window]
        mask = dx * dx + dy * dy < (256 + (mass * 3 >> 2) + (leaves >> 2)) ** 2
        gain = np.clip(240 - dy // 4 + self.sun * dx // 6 + leaves + mass // 2, 70, 420)
        self.put(window, mask, colour, VEGETATION, gain)

    def scatter(self, most: int, names: str, ts: Span, xs: Span, face: int = 0) -> None:
        """Notes up to ``most`` things between two depth rows and between two world x."""
        for _ in range(self.dice.roll(0, most)):
            t, x = self.dice.roll(ts[0], max(ts)), self.dice.roll(min(xs), max(xs))
            name = self.dice.pick(names.split())
            self.things.append((t, partial(self.thing, name, x, t, face)))

    def sky(self, window: Window) -> None:
        """A gradient with clouds; its lower colour becomes the haze."""
        top, self.haze = np.asarray(self.colour("zenith")), self.colour("haze")
        part = np.minimum(self.y[window], self.horizon)[..., None]
        colour = top + (np.asarray(self.haze) - top) * part // self.horizon
        cover = self.dice.roll(-40, 80)
        soft = np.clip(self.cloud[window] + self.blob[window] // 3 - cover, 0, 60)[..., None]
        colour = colour + (246 - colour) * soft // 90
        self.put(window, np.ones(soft.shape[:2], dtype=np.bool_), colour, SKY)

    def cover(self, mask: Mask | bool, style: str, paint: str, label: int) -> None:
        """Covers the ground where the mask is with a material, in perspective."""
        x, z, near = self.across, self.ahead, np.minimum(self.t, 48)  # texture fades far away
        if style == "asphalt":
            tone = self.grain[self.below] * 3 >> 2
        elif style == "checker":
            tone = np.where((x // 34 + z // 34) % 2 == 0, -64, 44)
        else:
            wide, long = (18, 120) if style == "planks" else (self.dice.pick((20, 26, 34)), 30)
            z = z + x // wide * 71
            joint = (x % wide < 2) | (z % long < 4)
            tone = np.where(joint, -100, self.grain[z // long % _H, x // wide % _W] >> 1)
        gain = 256 + tone * near // 48 + (self.blob[self.ahead // 3 % _H, x // 2 % _W] >> 3)
        self.put(self.below, np.broadcast_to(mask, x.shape), self.colour(paint), label, gain)

    def wall(self, at: Window, t: Ints | int, along: Ints, wall: Wall, lit: int = 256) -> None:
        """A wall, given each column's depth in sixteenths of a row and run along the wall."""
        dice, (height, style, label) = self.dice, wall
        up = ((self.horizon - self.y[at]) * 16 + t) * _EYE // t
        mask, shift = (up >= 0) & (up < height), along + up // 6 % 2 * 7
        gain = 256 + (self.blob[up % _H, along % _W] >> 3)
        if style in ("windows", "bricks"):
            tone = self.grain[up // 6 % _H, shift // 14 % _W] >> 2
            gain = gain + np.where((up % 6 == 0) | (shift % 14 < 2), -34, tone)
        self.put(at, mask, _scaled(self.colour("front"), lit), label, gain)
        if style == "windows":
            storey, bay = dice.pick((44, 52, 60)), dice.pick((40, 52, 66))
            wide = bay * dice.roll(4, 7) // 10
            v, u = (up + storey - 16) % storey, along % bay
            frame = mask & (v > 8) & (v < storey - 10) & (u < wide) & (up < height - 8)
            pane = frame & (v > 11) & (v < storey - 13) & (u > 2) & (u < wide - 3)
            self.put(at, frame, self.colour(dice.pick(("white", "dark", "metal"))), _KEEP)
            tone = self.grain[(up + storey - 16) // storey % _H, along // bay % _W] >> 2
            self.put(at, pane, self.colour("glass"), _KEEP, 250 + tone + v * 40 // storey)

    def front(self, x0: int, x1: int, t: int, wall: Wall) -> None:
        """A wall that faces the camera at depth row ``t``, canvas columns ``x0`` to ``x1``."""
        x0, x1 = min(x0, x1), max(x0, x1)
        window = _window(x0, self.at(0, wall[0], t)[1], x1, self.horizon + t + 1)
        self.wall(window, t * 16, (self.x[window] - x0) * _EYE // t, wall)

    def flank(self, plane: int, far: int, near: int, wall: Wall) -> None:
        """A wall along the line of sight, ``plane`` units from its middle, left or right."""
        (x0, y0), (x1, y1) = (self.at(plane, wall[0], t) for t in (far, near))
        window = _window(min(x0, x1), min(y0, y1), max(x0, x1), self.horizon + near + 1)
        # Sixteenths of a row: a facade rises from row to row between columns.
        t = np.maximum(np.abs(self.x[window] - self.centre) * _EYE * 16 // abs(plane), 1)
        self.wall(window, t, _FAR * 16 // t, wall, 196 if plane * self.sun > 0 else 290)

    def street(self) -> None:
        """Along a street: facades recede on both sides, traffic comes and goes."""
        dice, x, z, last = self.dice, self.across, self.ahead, _H - self.horizon
        middle, half, walk = dice.roll(-30, 30), dice.roll(62, 104), dice.roll(56, 96)
        left, right = middle - half, middle + half
        self.sky(_window(0, 0, _W, self.horizon + 1))
        self.haze_part = 110
        for x0 in range(-20, _W, 30):  # trees close the view
            low, high = self.horizon + 8, self.horizon - dice.roll(6, 30)
            self.crown(x0, low, x0 + 60, high, self.colour("leaf"))
        self.haze_part = 0
        self.cover(True, dice.pick(("tiles", "planks")), "paving", SIDEWALK)
        self.cover((x > left) & (x < right), "asphalt", "tar", ROAD)
        self.put(self.below, (abs(x - middle) - half) // 4 == 0, self.colour("white"), _KEEP)
        start = dice.roll(150, 900)  # lane marks and a zebra crossing
        marks = (np.abs(x - middle) < 3) & (z % 180 < 90)
        marks |= (z > start) & (z < start + 70) & (x % 22 < 12) & (abs(x - middle) < half)
        self.put(self.below, marks & (self.t > 6), self.colour("white"), _KEEP)
        for plane in (left - walk, right + walk):
            far = dice.roll(4, 7)
            while far < 150:
                near, kind = far * dice.roll(130, 210) // 100 + 2, dice.roll(0, 99)
                if kind < 80:
                    self.things.append((far, partial(self.house, plane, far, near, kind < 70)))
                else:
                    away = plane + (plane > 0) * 60
                    self.scatter(6, "tree", (far, min(near, 110)), (away - 50, away - 10))
                far = near
        for lane in (middle - half // 2, middle + half // 2):
            self.scatter(2, "car", (20, 92), (lane - 8, lane + 8))
        for side, kerb in ((-1, left), (1, right)):
            edge, inner, outer = kerb - 34 * side, kerb + 20 * side, kerb + side * walk
            self.scatter(1, "car", (22, 80), (edge, edge))
            self.scatter(2, "street_lamp", (34, 92), (kerb + side * 10,) * 2, -side)
            self.scatter(1, "circle diamond", (40, 96), (kerb + side * 10, inner))
            self.scatter(3, "person", (54, last), (inner, outer))
            self.scatter(2, "tree bush bush", (20, 90), (inner, outer))

    def house(self, plane: int, far: int, near: int, tall: bool) -> None:
        """A house beside the street, its gable towards the camera; or a garden wall."""
        dice, out, inner = self.dice, 1 if plane > 0 else -1, self.centre + plane * near // _EYE
        height, label = (dice.roll(130, 420), BUILDING) if tall else (dice.roll(26, 56), WALL)
        self.front(inner, inner + out * 400 * near // _EYE, near, (height, "bricks", label))
        self.flank(plane, far, near, (height, "windows" if tall else "bricks", label))

    def room(self) -> None:
        """Inside: three walls, a ceiling (which counts as wall), a floor and what stands on it."""
        dice, x, t, last = self.dice, self.across, self.t, _H - self.horizon
        back, half, tall = dice.roll(42, 76), dice.roll(84, 150), dice.roll(104, 132)
        self.fill([(0, 0), (_W, 0), (_W, _H), (0, _H)], self.colour("white"), WALL)
        style = dice.pick(("plain", "bricks"))
        (x0, top), (x1, _) = self.at(-half, tall, back), self.at(half, tall, back)
        self.front(x0, x1, back, (tall, style, WALL))
        for plane in (-half, half):
            self.flank(plane, back, 200, (tall, style, WALL))
        kind = dice.pick(("planks", "checker", "tiles"))
        self.cover((np.abs(x) < half) & (t > back), kind, "floor", FLOOR)
        left, right = max(x0, 0), min(x1, _W)
        if right - left > 110:  # a window of four panes
            wide, high, trim = dice.roll(24, 40), dice.roll(19, 28), self.colour("white")
            x0, y0 = dice.roll(left + 8, right - 2 * wide - 8), max(top + dice.roll(8, 18), 4)
            frame = [(x0 - 4, y0 - 4), (x0 + 2 * wide, y0 - 4)]
            self.fill([*frame, *((x, y + 2 * high + 4) for x, y in frame[::-1])], trim, WALL)
            for corner in ((x0, y0), (x0 + wide, y0), (x0, y0 + high), (x0 + wide, y0 + high)):
                self.sky(_window(*corner, corner[0] + wide - 3, corner[1] + high - 2))
        half -= 22
        self.scatter(2, "shelf", (back + 4, back + 7), (-half, half))
        self.scatter(2, "sofa", (back + 14, last - 20), (-half, half))
        self.scatter(2, "table", (back + 16, last - 6), (-half, half))
        self.scatter(2, "plant", (back + 5, last - 10), (-half, half))
        self.scatter(1, "floor_lamp", (back + 5, back + 36), (-half, half))
        self.scatter(2, "person", (back + 16, last), (-half, half))

    def develop(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Light, halving and sensor noise: the picture (H, W, 3) and its labels (H, W)."""
        dice = self.dice
        gain = dice.roll(220, 268) + (self.cloud * dice.roll(0, 60) >> 7)
        cast = np.array([dice.roll(232, 280) for _ in range(3)], dtype=np.int32)
        light = (np.clip(self.rgb, 0, 255) * gain[..., None] >> 8) * cast >> 8
        small = light[0::2, 0::2] + light[1::2, 0::2] + light[0::2, 1::2] + light[1::2, 1::2] >> 2
        noise = dice.noise(HEIGHT, WIDTH * 3).reshape(small.shape)
        image = small + dice.roll(0, 20) + (noise * dice.roll(3, 10) >> 7)
        # The label that at least three of four painted pixels share, else unlabelled.
        a, b, c, d = (self.label[row::2, col::2] for row in (0, 1) for col in (0, 1))
        votes = (a == b).astype(np.uint8) + (a == c) + (a == d)
        label = np.where(votes >= 2, a, np.where((b == c) & (b == d), b, np.uint8(0)))
        return np.clip(image, 0, 255).astype(np.uint8), label


def paint_scene(dice: Dice) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Paints a street or a room: RGB image (128, 160, 3) and labels (128, 160), both uint8."""
    painter = Painter(dice, dice.roll(92, 144), dice.roll(100, 220))
    outside = dice.roll(1, 3) > 1
    (painter.street if outside else painter.room)()
    for t, draw in sorted(painter.things, key=lambda thing: thing[0]):  # far to near
        painter.haze_part = max(0, 120 - 2 * t) if outside else 0
        draw()
    return painter.develop()
