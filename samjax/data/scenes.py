"""Scenes: the embedded default data set, drawn on the fly from a seed; no file, no network.

A scene is a lit, noisy picture of a few things in front of a cluttered background.  Every thing is a
whole with parts, and parts have sub-parts (a car, its door, the door's window), each with a mask of
its own, so one click has up to three right answers.  Colours come from one small palette per scene:
neighbours differ, but things, parts and background share colours, and most surfaces have two tones.
"""

from __future__ import annotations

import math
import operator
from typing import Callable, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from samjax.structs import Example

MIN_SIDE = 32  # px; below this a sub-part is less than a pixel
MIN_AREA = 12 / 128**2  # share of the image an object must show to be labelled
MAX_SHARE = 0.85  # of its parent that a part may cover and still be an object of its own
WHOLES = (3, 6)  # per scene
WHOLE_SIDE = (0.17, 0.6)  # of the image's short side


class Scenes:
    """`length` drawn scenes of one size; scene i depends on (seed, i) and nothing else.

    seed: non-negative; length: number of scenes; image_size: (H, W) in px, each at least 32.
    Raises ValueError for anything else, IndexError outside 0 .. length - 1.
    """

    def __init__(self, seed: int, length: int, image_size: tuple[int, int]):
        if seed < 0:
            raise ValueError(f'Scenes: seed is {seed}, it must not be negative')
        if length < 1:
            raise ValueError(f'Scenes: length is {length}, it must be at least 1')
        if len(image_size) != 2 or min(image_size) < MIN_SIDE:
            raise ValueError(
                f'Scenes: image_size is {image_size}, it must be (height, width) of at least {MIN_SIDE} px'
            )
        self.seed, self.length, self.image_size = seed, length, tuple(image_size)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        image_HW3, masks_NHW, _ = self._draw(index)
        rles = coco.encode(masks_NHW.transpose(1, 2, 0))
        return Example(f'scene-{self.seed}-{operator.index(index)}', image_HW3, rles)

    def levels(self, index: int) -> list[int]:
        """For each mask of scene `index`: 0 whole, 1 part, 2 sub-part."""
        return self._draw(index)[2]

    def _draw(self, index: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
        index = operator.index(index)
        if not 0 <= index < self.length:
            raise IndexError(f'Scenes: index {index} is not in 0 .. {self.length - 1}')
        return draw(np.random.default_rng((self.seed, index)), self.image_size)


def draw(rng: np.random.Generator, image_size: tuple[int, int]):
    """One scene: image uint8 (H, W, 3), masks uint8 (N, H, W) with Fortran-order planes, N levels."""
    canvas = Canvas(rng, image_size)
    draw_background(canvas)
    draw_things(canvas)
    if rng.random() < 0.3:
        draw_lines(canvas, count=rng.integers(1, 3))  # in front: what they cover is not visible
    light(canvas)
    masks_NHW, levels = canvas.masks()
    return np.clip(canvas.image_HW3, 0, 255).astype(np.uint8), masks_NHW, levels


class Canvas:
    """What has been drawn so far: colours, and for each pixel the number of the piece on top.

    Pieces are numbered from 1 in pre-order, so the piece `n` and all within it are n .. last[n].
    """

    def __init__(self, rng: np.random.Generator, image_size: tuple[int, int]):
        self.rng = rng
        self.height, self.width = image_size
        self.side = min(image_size)
        self.image_HW3 = np.zeros((*image_size, 3), np.float32)
        self.top_WH = np.zeros(image_size[::-1], np.int16)  # transposed: RLE runs down columns
        self.level, self.parent, self.last = [0], [0], [0]
        self.noise_HW = value_noise(rng, image_size, cells=24)
        self.palette = make_palette(rng)

    def add_piece(self, level: int, parent: int) -> int:
        self.level.append(level)
        self.parent.append(parent)
        self.last.append(len(self.last))
        return len(self.last) - 1

    def masks(self) -> tuple[np.ndarray, list[int]]:
        """Masks of the pieces that show enough, and add something to what they are part of."""
        last = np.array(self.last)
        shown = np.cumsum(np.bincount(self.top_WH.ravel(), minlength=len(last)))
        area = shown[last[1:]] - shown[:-1]  # of piece 1, 2, ..
        area = np.concatenate([[np.inf], area])
        large = area >= max(1, MIN_AREA * self.height * self.width)
        distinct = area <= MAX_SHARE * area[self.parent]
        keep = [n for n in range(1, len(last)) if large[n] and distinct[n]]
        masks_NWH = [(self.top_WH >= n) & (self.top_WH <= last[n]) for n in keep]
        masks_NHW = np.stack(masks_NWH).astype(np.uint8).transpose(0, 2, 1)
        return masks_NHW, [self.level[n] for n in keep]


# ---- what is in a scene --------------------------------------------------------------------------


def draw_background(canvas: Canvas) -> None:
    """Two or three textured regions with wavy borders, then clutter: patches, lines, specks."""
    rng, side = canvas.rng, canvas.side
    everything = Frame(canvas.width / 2, canvas.height / 2, rng.uniform(-0.3, 0.3), 1.5, 1.5, 0.0)
    everything = everything.scaled(max(canvas.height, canvas.width))
    paint(canvas, everything, box, Surface.pick(rng, canvas.palette, None), 0)
    for _ in range(rng.integers(0, 3)):  # ground, sky, wall
        angle = rng.choice((0.0, 0.0, math.pi, 0.5 * math.pi)) + rng.uniform(-0.2, 0.2)
        far = rng.uniform(1.1, 1.5) * side
        x = canvas.width / 2 - far * math.sin(angle)
        y = canvas.height / 2 + far * math.cos(angle)
        region = Frame(x, y, angle, 3 * side, 1.1 * side, 0.0)
        paint(canvas, region, wavy, Surface.pick(rng, canvas.palette, None), 0)
    for _ in range(rng.integers(1, 5)):  # stains and shadows
        r = rng.uniform(0.05, 0.25) * side
        x, y = rng.uniform(0, canvas.width), rng.uniform(0, canvas.height)
        stain = Frame(x, y, rng.uniform(0, 3), r, r * rng.uniform(0.3, 1), rng.uniform(0, 6))
        shade(canvas, stain, blob, rng.uniform(-0.3, 0.25), softness=rng.uniform(0.05, 0.6))
    draw_lines(canvas, count=rng.integers(0, 6))
    specks = rng.integers(0, 60)
    ys, xs = rng.integers(0, canvas.height, specks), rng.integers(0, canvas.width, specks)
    canvas.image_HW3[ys, xs] += rng.uniform(-60, 60, (specks, 1))


def draw_lines(canvas: Canvas, count: int) -> None:
    """Thin straight or bent lines that belong to no object: wires, cracks, twigs."""
    rng, side = canvas.rng, canvas.side
    for _ in range(count):
        x, y = rng.uniform(0, canvas.width), rng.uniform(0, canvas.height)
        half = max(0.6, rng.uniform(0.003, 0.009) * side)
        line = Frame(x, y, rng.uniform(0, math.pi), rng.uniform(0.1, 0.8) * side, half, 0.0)
        paint(canvas, line, box, Surface.pick(rng, canvas.palette, None), 0)


def draw_things(canvas: Canvas) -> None:
    """Wholes from large to small, so that the front ones rarely hide the back ones; spread out."""
    rng = canvas.rng
    sides = rng.uniform(*WHOLE_SIDE, rng.integers(WHOLES[0], WHOLES[1] + 1))
    sides = -np.sort(-sides * rng.uniform(0.8, 1.25, sides.shape)).clip(*WHOLE_SIDE)
    placed = []
    for side in sides:
        r = 0.5 * side * canvas.side
        xs = rng.uniform(0.7 * r, canvas.width - 0.7 * r, 6)
        ys = rng.uniform(0.7 * r, canvas.height - 0.7 * r, 6)
        gaps = [min((math.hypot(x - a, y - b) - c for a, b, c in placed), default=0.0)
                for x, y in zip(xs, ys, strict=True)]  # fmt: skip
        best = int(np.argmax(gaps))
        placed.append((xs[best], ys[best], r))
        draw_thing(canvas, float(xs[best]), float(ys[best]), r)


def draw_thing(canvas: Canvas, x: float, y: float, r: float) -> None:
    rng = canvas.rng
    root, tilt = THINGS[rng.integers(len(THINGS))]
    frame = Frame(x, y, rng.uniform(-tilt, tilt), r, r, rng.uniform(0, 6))
    if rng.random() < 0.5:
        frame = frame._replace(flip=-1.0)
    draw_piece(canvas, root, frame, parent=0, ground=None)


def draw_piece(canvas: Canvas, piece: Piece, around: Frame, parent: int, ground) -> None:
    """Draw `piece` and what belongs to it in the frame `around`; `ground`: surface of the parent."""
    rng = canvas.rng
    frame = around.inner(piece, rng)
    level = canvas.level[parent] + 1 if parent else 0
    number = canvas.add_piece(level, parent)
    shape = SHAPES[rng.integers(len(SHAPES))] if piece.shape is anything else piece.shape
    if parent == 0:
        below = canvas.image_HW3[canvas.pixel(frame)] if False else None
        shade(canvas, frame.moved(0.06, 0.1), shape, -rng.uniform(0.1, 0.5), softness=0.15)
    surface = Surface.pick(rng, canvas.palette, ground)
    parts = [part for part in piece.parts if rng.random() < part.odds]
    for part in parts:
        if part.place is UNDER:
            draw_piece(canvas, part, frame, number, surface)
    paint(canvas, frame, shape, surface, number, clip=parent if piece.place is INSIDE else 0)
    for part in parts:
        if part.place is not UNDER:
            draw_piece(canvas, part, frame, number, surface)
    canvas.last[number] = len(canvas.last) - 1
