"""Synthetic scenes: the built-in default data set, rendered on the fly from a seed; no file, no network.

A scene is a lit, noisy image of a few objects on a cluttered background.  Every object is a whole with
parts, and parts have sub-parts (a car, its door, the door's window), each with a mask of its own, so a
click has up to three correct masks.  Colours come from one small palette per scene: neighbours mostly
differ, but objects, parts and background have colours in common, and most surfaces have two tones.

Suffixes: H W the image, h w the region that a shape covers, N the masks.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from samjax.data.example import Example
from samjax.errors import SamjaxError
from samjax.images.encoded_image import EncodedImage

MIN_SIDE = 32  # px; in smaller images most sub-parts are under a pixel
MIN_AREA = 120 / 128**2  # of the short side squared: visible area that a piece needs to get a mask
MAX_FRACTION = 0.85  # of the area of its parent that a piece with a mask may have
OBJECTS = (2, 5)  # wholes per scene, upper end excluded
OBJECT_SIDE = (0.3, 0.75)  # of the image's short side
CAMOUFLAGED = 0.08  # fraction of the pieces that may have the colour of what they lie on

# x_hw, y_hw in px, frame -> about the signed distance to the border in px, > 0 inside
Shape = Callable[[np.ndarray, np.ndarray, 'ShapeFrame'], np.ndarray]
# x_hw, y_hw in px, wave number in rad/px, noise_hw -> fraction of the second tone, 0 .. 1
Pattern = Callable[[np.ndarray, np.ndarray, float, np.ndarray], np.ndarray]


class Scenes:
    """A data source of synthetic scenes; scene i depends on (seed, i) and the size and nothing else.

    seed: 0 or more; length: number of scenes; image_size: (H, W) in px.

    Raises:
        SamjaxError: the arguments have other values.
        IndexError: an index is outside 0 .. length - 1.
    """

    def __init__(self, seed: int, length: int, image_size: tuple[int, int]):
        if seed < 0:
            raise SamjaxError(f'the seed of synthetic scenes is {seed}: set seed to 0 or more')
        if length < 1:
            raise SamjaxError(f'the number of synthetic scenes is {length}: ask for at least 1')
        if len(image_size) != 2 or min(image_size) < MIN_SIDE:
            raise SamjaxError(
                f'the size of synthetic scenes is {image_size}: set model.image_size to (height, width), each at least '
                f'{MIN_SIDE} px'
            )
        self.seed, self.length, self.image_size = seed, length, tuple(image_size)

    @property
    def digest(self) -> str:
        """Identifies the scenes: everything that they depend on."""
        return f'scenes {self.seed} {self.length} {self.image_size[0]} x {self.image_size[1]}'

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        image_HW3, masks_NHW, _ = self._render(index)
        rles = coco.encode(masks_NHW.transpose(1, 2, 0))  # a view in Fortran order
        return Example(f'scene-{self.seed}-{operator.index(index)}', EncodedImage.from_array(image_HW3), rles)

    def levels(self, index: int) -> list[int]:
        """For each mask of scene `index`: 0 whole, 1 part, 2 sub-part."""
        return self._render(index)[2]

    def _render(self, index: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
        index = operator.index(index)
        if not 0 <= index < self.length:
            raise IndexError(f'there are {self.length} synthetic scenes, none has the index {index}')
        return render_scene(np.random.default_rng((self.seed, index)), self.image_size)


def render_scene(rng: np.random.Generator, image_size: tuple[int, int]):
    """Returns the image, uint8 (H, W, 3); masks, uint8 (N, H, W), each in Fortran order; and N levels (0 whole ..)."""
    canvas = Canvas(rng, image_size)
    draw_background(canvas)
    draw_objects(canvas)
    if rng.random() < 0.3:
        draw_lines(canvas, count=rng.integers(1, 3))  # in front: what they cover is not visible
    masks_NHW, levels = canvas.masks()
    return simulate_camera(rng, canvas.image_HW3), masks_NHW, levels


class Canvas:
    """The scene so far: a colour for each pixel and the number of the piece on top (0: none).

    Pieces are numbered from 1 in pre-order: a piece n and all that belongs to it are n .. last[n].
    """

    def __init__(self, rng: np.random.Generator, image_size: tuple[int, int]):
        self.rng = rng
        self.height, self.width = image_size
        self.side = min(image_size)
        self.image_HW3 = np.zeros((*image_size, 3), np.float32)  # 0 .. 255
        self.top_HW = np.zeros(image_size, np.int16, order='F')  # RLE runs down the columns
        self.blotches_HW = value_noise(rng, image_size, 16) + 0.7 * value_noise(rng, image_size, 40)
        self.palette = make_palette(rng)
        self.level, self.parent, self.last = [-1], [0], [0]  # of the background, number 0

    def add_piece(self, parent: int) -> int:
        number = len(self.level)
        self.level.append(self.level[parent] + 1)
        self.parent.append(parent)
        self.last.append(number)
        return number

    def masks(self) -> tuple[np.ndarray, list[int]]:
        """Masks (N, H, W) and levels of the pieces with enough visible area that are not nearly all of their parent."""
        last_N, parent_N = np.array(self.last), np.array(self.parent)
        visible_N = np.bincount(self.top_HW.ravel(order='K'), minlength=len(last_N)).cumsum()
        area_N = visible_N[last_N] - np.roll(visible_N, 1)
        area_N[0] = self.top_HW.size
        keep_N = (area_N >= MIN_AREA * self.side**2) & (area_N <= MAX_FRACTION * area_N[parent_N])
        kept = np.flatnonzero(keep_N)
        top_WH = self.top_HW.T
        masks_NWH = np.stack([(top_WH >= n) & (top_WH <= self.last[n]) for n in kept])
        return masks_NWH.view(np.uint8).transpose(0, 2, 1), [self.level[n] for n in kept]


# ---- what is in a scene ------------------------------------------------------------------------


def draw_background(canvas: Canvas) -> None:
    """Textured regions with wavy borders, then clutter that is no object: stains, lines, specks."""
    rng, side = canvas.rng, canvas.side
    far = canvas.height + canvas.width
    middle = ShapeFrame(canvas.width / 2, canvas.height / 2, rng.uniform(-0.5, 0.5), far, far)
    draw_shape(canvas, middle, box, pick_surface(canvas, None))
    for _ in range(rng.integers(0, 3)):  # ground, sky, wall
        angle = rng.choice((0.0, 0.0, math.pi, 0.5 * math.pi)) + rng.uniform(-0.25, 0.25)
        region = middle._replace(angle=angle, bend=rng.uniform(0, 6))
        region = region.moved(0, 1 + rng.uniform(0.0, 0.35) * side / far)
        draw_shape(canvas, region, wavy, pick_surface(canvas, None))
    for _ in range(rng.integers(1, 5)):  # stains and shadows
        x, y, angle, bend = rng.uniform(0, (canvas.width, canvas.height, math.pi, 6)).tolist()
        r = rng.uniform(0.05, 0.25) * side
        stain = ShapeFrame(x, y, angle, r, r * rng.uniform(0.3, 1), bend)
        shade(canvas, stain, blob, rng.uniform(-0.25, 0.2), softness=rng.uniform(0.1, 0.8))
    draw_lines(canvas, count=rng.integers(0, 5))
    specks = rng.integers(0, 50)
    ys, xs = rng.integers(0, canvas.height, specks), rng.integers(0, canvas.width, specks)
    canvas.image_HW3[ys, xs] += rng.uniform(-60, 60, (specks, 1))


def draw_lines(canvas: Canvas, count: int) -> None:
    """Thin lines that belong to no object: wires, cracks, twigs."""
    rng = canvas.rng
    for _ in range(count):
        x, y, angle = rng.uniform(0, (canvas.width, canvas.height, math.pi)).tolist()
        half = max(0.6, rng.uniform(0.003, 0.007) * canvas.side)
        line = ShapeFrame(x, y, angle, rng.uniform(0.1, 0.8) * canvas.side, half)
        draw_shape(canvas, line, box, pick_surface(canvas, None))


def draw_objects(canvas: Canvas) -> None:
    """Wholes, roughly from large to small and away from each other, so that few are hidden."""
    rng = canvas.rng
    sides = np.sort(rng.uniform(*OBJECT_SIDE, rng.integers(*OBJECTS)))[::-1]
    sides = (sides * rng.uniform(0.8, 1.25, sides.shape)).clip(*OBJECT_SIDE)
    placed = []
    for r in (0.5 * canvas.side * sides).tolist():
        xs = rng.uniform(0.7 * r, canvas.width - 0.7 * r, 5).tolist()
        ys = rng.uniform(0.7 * r, canvas.height - 0.7 * r, 5).tolist()
        gaps = [min((math.hypot(x - a, y - b) - c for a, b, c in placed), default=0.0)
                for x, y in zip(xs, ys, strict=True)]  # fmt: skip
        x, y, _ = max(zip(xs, ys, gaps, strict=True), key=lambda candidate: candidate[2])
        placed.append((x, y, r))
        tilt, whole = OBJECT_TEMPLATES[rng.integers(len(OBJECT_TEMPLATES))]
        flip = rng.choice((-1.0, 1.0))
        frame = ShapeFrame(x, y, rng.uniform(-tilt, tilt), r, r, rng.uniform(0, 6), flip)
        ground_3 = canvas.image_HW3[int(y), int(x)].copy()
        draw_piece(canvas, whole, frame, 0, ground_3)


def draw_piece(canvas: Canvas, piece: Piece, around: ShapeFrame, parent: int, ground_3: np.ndarray) -> None:
    """Draws a piece in the frame `around` on the colour `ground_3`, and all that belongs to it."""
    rng = canvas.rng
    number = canvas.add_piece(parent)
    frame = around.inner(piece, rng)
    shape = piece.shape or FREE_SHAPES[rng.integers(len(FREE_SHAPES))]
    surface = pick_surface(canvas, ground_3)
    parts = [part for part in piece.parts if rng.random() < part.probability]
    if parent == 0:
        shade(canvas, frame.moved(0.1, 0.1), shape, -rng.uniform(0.1, 0.5), softness=0.3)
    for part in parts:
        if part.layer == 'under':
            draw_piece(canvas, part, frame, number, surface.tone_3)
    draw_shape(canvas, frame, shape, surface, number, above=parent if piece.layer == 'inside' else 0)
    for part in parts:
        if part.layer != 'under':
            draw_piece(canvas, part, frame, number, surface.tone_3)
    canvas.last[number] = len(canvas.last) - 1


class ShapeFrame(NamedTuple):
    """The coordinate frame of a shape: centre and half-sizes in px, angle in radians; y points down."""

    x: float
    y: float
    angle: float
    rx: float
    ry: float
    bend: float = 0.0  # makes each blob, star and border a little different
    flip: float = 1.0  # -1: mirrored left to right

    def moved(self, right: float, down: float) -> ShapeFrame:
        """The frame shifted along its own axes, in half-sizes."""
        dx, dy = self.flip * right * self.rx, down * self.ry
        c, s = math.cos(self.angle), math.sin(self.angle)
        return self._replace(x=self.x + c * dx - s * dy, y=self.y + s * dx + c * dy)

    def inner(self, piece: Piece, rng: np.random.Generator) -> ShapeFrame:
        """The frame of a piece of this one, with a random deviation from the table."""
        x, y, angle, bend = rng.uniform((-0.06, -0.06, -0.15, 0), (0.06, 0.06, 0.15, 6)).tolist()
        wide, high = rng.uniform(0.85, 1.15, 2).tolist()
        frame = self.moved(piece.x + x * piece.jitter, piece.y + y * piece.jitter)
        angle = self.angle + self.flip * (piece.angle + angle * piece.jitter)
        rx, ry = max(0.5, piece.rx * wide * self.rx), max(0.5, piece.ry * high * self.ry)
        return frame._replace(angle=angle, rx=rx, ry=ry, bend=bend)


class Piece(NamedTuple):
    """A row of OBJECT_TEMPLATES: a shape in the frame of its parent (in half-sizes), and its own parts."""

    shape: Shape | None  # None: any of FREE_SHAPES
    x: float
    y: float
    rx: float
    ry: float
    parts: tuple[Piece, ...] = ()
    layer: str = 'inside'  # cut off at the parent's border; or 'over' or 'under' the parent
    probability: float = 1.0  # of being drawn
    angle: float = 0.0
    jitter: float = 1.0  # how far its position, size and angle may vary


# ---- drawing -------------------------------------------------------------------------------------


class Surface(NamedTuple):
    tone_3: np.ndarray
    second_3: np.ndarray
    pattern: Pattern
    period: float  # px
    slope_2: list[float]  # change of brightness from the centre to the right and to the bottom
    rim: float  # how much darker the border is


def pick_surface(canvas: Canvas, ground_3: np.ndarray | None) -> Surface:
    """Two tones of the palette and a pattern; mostly unlike the colour it lies on, where given."""
    rng = canvas.rng
    tones = canvas.palette[rng.permutation(len(canvas.palette))]
    if ground_3 is not None and rng.random() > CAMOUFLAGED:
        tones = tones[np.argsort(np.abs(tones - ground_3).sum(1) < 110, kind='stable')]
    tone_3 = tones[0] + rng.uniform(-12, 12, 3)
    brighter = rng.choice((-1, 1)) * rng.uniform(15, 60)
    second_3 = tones[1] if rng.random() < 0.25 else tone_3 + brighter
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    period = max(3.0, rng.uniform(0.025, 0.09) * canvas.side)
    slope_2 = rng.uniform(-0.2, 0.2, 2).tolist()
    return Surface(tone_3, second_3, pattern, period, slope_2, rim=rng.uniform(0.0, 0.4))


def draw_shape(
    canvas: Canvas, frame: ShapeFrame, shape: Shape, surface: Surface, number: int = 0, above: int = 0
) -> None:
    """Fills the shape with the surface where the piece on top has the number `above` or a later one."""
    rows, columns, x_hw, y_hw = local_grid(canvas, frame)
    inside_hw = shape(x_hw, y_hw, frame)
    cover_hw = np.clip(inside_hw + 0.5, 0, 1)
    top_hw = canvas.top_HW[rows, columns]
    if above:
        cover_hw *= top_hw >= above
    blotches_hw = canvas.blotches_HW[rows, columns]
    mix_hw = surface.pattern(x_hw, y_hw, 2 * math.pi / surface.period, blotches_hw)
    slope_x, slope_y = surface.slope_2[0] / frame.rx, surface.slope_2[1] / frame.ry
    light_hw = 1 + slope_x * x_hw + slope_y * y_hw
    if number:
        depth_hw = inside_hw * (4 / min(frame.rx, frame.ry))
        light_hw -= surface.rim * np.clip(1 - depth_hw, 0, 1)
    image_hw3 = canvas.image_HW3[rows, columns]
    tone_3 = surface.tone_3.astype(np.float32)
    change_3 = surface.second_3.astype(np.float32) - tone_3
    colour_hw3 = (tone_3 + mix_hw[..., None] * change_3) * light_hw[..., None]
    image_hw3 += cover_hw[..., None] * (colour_hw3 - image_hw3)
    top_hw[cover_hw >= 0.5] = number


def shade(canvas: Canvas, frame: ShapeFrame, shape: Shape, change: float, softness: float) -> None:
    """Brightens or darkens a shape by the fraction `change`, with a border `softness` half-sizes wide."""
    rows, columns, x_hw, y_hw = local_grid(canvas, frame)
    soft = max(1.0, softness * min(frame.rx, frame.ry))
    cover_hw = np.clip(shape(x_hw, y_hw, frame) / soft, 0, 1)
    canvas.image_HW3[rows, columns] *= (1 + change * cover_hw)[..., None]


def local_grid(canvas: Canvas, frame: ShapeFrame) -> tuple[slice, slice, np.ndarray, np.ndarray]:
    """The rows and columns that a frame touches, and its coordinates x_hw, y_hw there in px from its centre."""
    c, s = math.cos(frame.angle), math.sin(frame.angle)
    wide = abs(c) * frame.rx + abs(s) * frame.ry + 1
    high = abs(s) * frame.rx + abs(c) * frame.ry + 1
    left, right = np.clip((frame.x - wide, frame.x + wide + 1), 0, canvas.width).astype(int)
    top, bottom = np.clip((frame.y - high, frame.y + high + 1), 0, canvas.height).astype(int)
    dx_1w = np.arange(left, right, dtype=np.float32)[None] + (0.5 - frame.x)
    dy_h1 = np.arange(top, bottom, dtype=np.float32)[:, None] + (0.5 - frame.y)
    x_hw = frame.flip * c * dx_1w + frame.flip * s * dy_h1
    y_hw = c * dy_h1 - s * dx_1w
    return slice(top, bottom), slice(left, right), x_hw, y_hw


def simulate_camera(rng: np.random.Generator, image_HW3: np.ndarray) -> np.ndarray:
    """Adds light from one side, faded colours and sensor noise; returns uint8."""
    height, width, _ = image_HW3.shape
    x_1W = np.linspace(-1, 1, width, dtype=np.float32)[None]
    y_H1 = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    from_x, from_y, level = rng.uniform((-0.22, -0.22, 0.85), (0.22, 0.22, 1.1)).tolist()
    grey_HW = image_HW3.mean(axis=2)
    faded = rng.uniform(0.0, 0.6) if rng.random() < 0.9 else 1.0
    image_HW3 = image_HW3 + faded * (grey_HW[..., None] - image_HW3)
    image_HW3 *= (level + from_x * x_1W + from_y * y_H1)[..., None]
    image_HW3 += rng.uniform(1, 9) * rng.standard_normal(image_HW3.shape, np.float32)
    return np.clip(image_HW3, 0, 255).astype(np.uint8)


def make_palette(rng: np.random.Generator) -> np.ndarray:
    """Seven colours from dark to bright, float (7, 3) in 0 .. 255."""
    grey_71 = np.linspace(40, 225, 7)[:, None] + rng.uniform(-15, 15, (7, 1))
    tint_73 = rng.uniform(-1, 1, (7, 3))
    tint_73 -= tint_73.mean(axis=1, keepdims=True)
    return (grey_71 + 75 * tint_73).clip(10, 245)


def value_noise(rng: np.random.Generator, image_size: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise of about -1 .. 1, float32 (H, W), with `cells` bumps along the short side."""
    height, width = image_size
    step = min(image_size) / cells
    coarse = rng.uniform(-1, 1, (math.ceil(height / step), math.ceil(width / step)))
    smooth = Image.fromarray(coarse.astype(np.float32)).resize((width, height), Image.BICUBIC)
    return np.asarray(smooth)


# ---- patterns: see Pattern -----------------------------------------------------------------------


def plain(x_hw, y_hw, wave, blotches_hw):
    return 0.3 * blotches_hw


def mottled(x_hw, y_hw, wave, blotches_hw):
    return np.clip(0.5 + 2 * blotches_hw, 0, 1)


def stripes(x_hw, y_hw, wave, blotches_hw):
    return np.clip(0.5 + 1.5 * np.sin(wave * x_hw), 0, 1)


def bands(x_hw, y_hw, wave, blotches_hw):
    return np.clip(0.5 + 1.5 * np.sin(wave * (y_hw + 0.4 * x_hw) + blotches_hw), 0, 1)


def checks(x_hw, y_hw, wave, blotches_hw):
    return np.clip(0.5 + 4 * np.sin(0.6 * wave * x_hw) * np.sin(0.6 * wave * y_hw), 0, 1)


def dots(x_hw, y_hw, wave, blotches_hw):
    return np.clip(4 * np.cos(0.7 * wave * x_hw) * np.cos(0.7 * wave * y_hw) - 1.6, 0, 1)


def ramp(x_hw, y_hw, wave, blotches_hw):
    return np.clip(0.5 + 0.12 * wave * (x_hw + y_hw) + 0.2 * blotches_hw, 0, 1)


PATTERNS = (plain, mottled, stripes, bands, checks, dots, ramp)


# ---- shapes: see Shape ---------------------------------------------------------------------------


def ellipse(x_hw, y_hw, f: ShapeFrame):
    return _radial(x_hw, y_hw, f, 1.0)


def blob(x_hw, y_hw, f: ShapeFrame):
    a_hw = np.arctan2(y_hw * (1 / f.ry), x_hw * (1 / f.rx))
    reach_hw = 0.85 + 0.1 * np.cos(2 * a_hw + f.bend) + 0.05 * np.cos(5 * a_hw + 2 * f.bend)
    return _radial(x_hw, y_hw, f, reach_hw)


def petals(x_hw, y_hw, f: ShapeFrame):
    a_hw = np.arctan2(y_hw * (1 / f.ry), x_hw * (1 / f.rx))
    return _radial(x_hw, y_hw, f, 0.8 + 0.2 * np.cos((5 + int(f.bend / 2)) * a_hw))


def star(x_hw, y_hw, f: ShapeFrame):
    phase_hw = np.arctan2(x_hw * (1 / f.rx), -y_hw * (1 / f.ry)) * ((5 + int(f.bend / 2)) / (2 * math.pi))
    return _radial(x_hw, y_hw, f, 0.5 + np.abs(phase_hw - np.floor(phase_hw) - 0.5))


def box(x_hw, y_hw, f: ShapeFrame):
    return _rounded(x_hw, y_hw, f, 0.2 * min(f.rx, f.ry))


def capsule(x_hw, y_hw, f: ShapeFrame):
    return _rounded(x_hw, y_hw, f, min(f.rx, f.ry))


def triangle(x_hw, y_hw, f: ShapeFrame):
    return _wedge(x_hw, y_hw, f, 0.0)


def trapezoid(x_hw, y_hw, f: ShapeFrame):
    return _wedge(x_hw, y_hw, f, 0.55)


def wavy(x_hw, y_hw, f: ShapeFrame):
    """All of the frame below a wavy top border."""
    wave = 60 / f.rx
    return y_hw + f.ry * 0.98 + 0.006 * f.ry * np.sin(wave * x_hw + f.bend) * np.sin(0.37 * wave * x_hw)


def _radial(x_hw, y_hw, f: ShapeFrame, reach_hw):
    r_hw = np.sqrt(np.square(x_hw * (1 / f.rx)) + np.square(y_hw * (1 / f.ry)))
    return (reach_hw - r_hw) * min(f.rx, f.ry)


def _rounded(x_hw, y_hw, f: ShapeFrame, corner: float):
    dx_hw = np.abs(x_hw) - (f.rx - corner)
    dy_hw = np.abs(y_hw) - (f.ry - corner)
    outside_hw = np.sqrt(np.square(np.maximum(dx_hw, 0)) + np.square(np.maximum(dy_hw, 0)))
    return corner - outside_hw - np.minimum(np.maximum(dx_hw, dy_hw), 0)


def _wedge(x_hw, y_hw, f: ShapeFrame, top: float):
    """Straight sides from half-width `top` * rx above to rx below."""
    lean = (1 - top) * f.rx / (2 * f.ry)
    side_hw = 0.5 * (1 + top) * f.rx + lean * y_hw - np.abs(x_hw)
    return np.minimum(side_hw * (1 / math.hypot(1, lean)), f.ry - np.abs(y_hw))


FREE_SHAPES = (ellipse, blob, blob, petals, star, box, box, capsule, triangle, trapezoid)


# ---- objects: largest tilt in radians, and the whole with its parts ------------------------------


def _disc(x, y, r, parts=(), **kwargs):
    return Piece(ellipse, x, y, r, r, parts, **kwargs)


WHEEL = (_disc(0, 0, 0.45),)
HALF_TURN = math.pi
OBJECT_TEMPLATES = (
    # car: cabin with window, door with window, wheels with hubs
    (0.3, Piece(box, 0, 0, 1, 0.4, (
        Piece(trapezoid, 0, -1.3, 0.6, 0.8, (
            Piece(trapezoid, 0, 0, 0.65, 0.5, probability=0.8),), 'under'),
        Piece(box, 0.05, 0, 0.3, 0.75, (Piece(box, 0, -0.1, 0.6, 0.4, probability=0.7),), probability=0.8),
        Piece(ellipse, -0.6, 0.9, 0.26, 0.65, WHEEL, 'over'),
        Piece(ellipse, 0.6, 0.9, 0.26, 0.65, WHEEL, 'over', probability=0.8)))),
    # house: roof with attic window, door with pane, window with shutter
    (0.2, Piece(box, 0, 0.3, 0.75, 0.65, (
        Piece(triangle, 0, -1.4, 1.25, 0.55, (_disc(0, 0.3, 0.28, probability=0.6),), 'over'),
        Piece(box, 0, 0.3, 0.32, 0.7, (Piece(box, 0, -0.35, 0.6, 0.35, probability=0.7),)),
        Piece(box, 0.62, -0.2, 0.24, 0.3, (Piece(box, 0.4, 0, 0.5, 0.9, probability=0.3),), probability=0.6)))),
    # fish: tail, flank with spot, head with eye
    (0.6, Piece(ellipse, 0.15, 0, 0.8, 0.5, (
        Piece(triangle, -1.1, 0, 0.4, 0.6, (), 'under', angle=HALF_TURN / 2),
        Piece(blob, -0.1, 0, 0.45, 0.6, (_disc(0, 0, 0.42, probability=0.7),)),
        Piece(ellipse, 0.95, 0, 0.5, 0.95, (_disc(-0.25, -0.25, 0.3),), probability=0.8)))),
    # beast: legs under the body, head with eyes, fur patch with spot
    (0.3, Piece(blob, -0.1, 0, 0.8, 0.55, (
        Piece(capsule, -0.5, 0.95, 0.14, 0.65, (), 'under'),
        Piece(capsule, 0.5, 0.95, 0.14, 0.65, (), 'under', probability=0.7),
        Piece(blob, -0.05, 0, 0.45, 0.55, (Piece(blob, 0, 0, 0.45, 0.5),)),
        Piece(ellipse, 0.95, -0.7, 0.45, 0.6, (
            _disc(0.2, -0.15, 0.3), _disc(0.7, 0.4, 0.35, probability=0.4)), 'over')))),
    # figure: arms, head with eyes, chest plate with badge
    (0.3, Piece(box, 0, 0.25, 0.45, 0.7, (
        Piece(capsule, -1.2, -0.1, 0.22, 0.8, (), 'under', angle=0.4, probability=0.7),
        Piece(capsule, 1.2, -0.1, 0.22, 0.8, (), 'under', angle=-0.4, probability=0.7),
        Piece(None, 0, 0.05, 0.6, 0.5, (_disc(0, 0, 0.4),)),
        _disc(0, -1.3, 0.6, (_disc(-0.4, 0, 0.25), _disc(0.4, 0, 0.25)), layer='over')))),
    # flower: heart with core on petals, stem, leaf
    (0.5, Piece(petals, 0, -0.2, 0.75, 0.75, (
        Piece(capsule, 0, 1.0, 0.09, 0.85, (), 'under'),
        Piece(ellipse, 0.35, 1.25, 0.4, 0.18, (), 'under', angle=-0.5, probability=0.6),
        _disc(0, 0, 0.5, (_disc(0, 0, 0.5, probability=0.8),))))),
    # mushroom: cap with spots, ring on the stem
    (0.4, Piece(box, 0, 0.3, 0.35, 0.7, (
        Piece(blob, 0, -1, 2.4, 0.8, (_disc(0, 0, 0.35), _disc(0.6, 0.1, 0.25, probability=0.6)), 'over'),
        Piece(box, 0, 0.3, 1.0, 0.25, probability=0.7)))),
    # tree: crown with fruit, trunk with hole
    (0.2, Piece(box, 0, 0.5, 0.2, 0.5, (
        Piece(blob, 0, -1.7, 3.8, 1.4, (
            _disc(0, 0, 0.3), _disc(-0.5, 0.2, 0.22, probability=0.5)), 'over'),
        Piece(ellipse, 0, 0.3, 0.5, 0.25, probability=0.5)))),
    # jar: lid, label with emblem, handle
    (0.5, Piece(box, 0, 0.1, 0.6, 0.8, (
        Piece(ellipse, 1.1, 0, 0.45, 0.5, (_disc(0, 0, 0.5, probability=0.5),), 'under', probability=0.6),
        Piece(box, 0, -1.05, 0.75, 0.18, (), 'over', probability=0.7),
        Piece(box, 0, 0.05, 0.85, 0.5, (Piece(None, 0, 0, 0.42, 0.65),))))),
    # butterfly: wings with spots
    (1.5, Piece(capsule, 0, 0, 0.16, 0.75, (
        Piece(blob, -2.9, -0.2, 2.8, 0.85, (Piece(ellipse, 0, 0, 0.45, 0.45),), 'under'),
        Piece(blob, 2.9, -0.2, 2.8, 0.85, (Piece(ellipse, 0, 0, 0.45, 0.45),), 'under'),
        Piece(ellipse, 0, -0.6, 0.9, 0.25, probability=0.4)))),
    # ball, plate, stone, sign: a patch within a patch
    (HALF_TURN, Piece(None, 0, 0, 0.95, 0.9, (
        Piece(None, 0, 0, 0.5, 0.5, (Piece(None, 0, 0, 0.5, 0.5),), jitter=2),), jitter=2)),
    (HALF_TURN, Piece(blob, 0, 0, 0.95, 0.75, (
        Piece(None, -0.35, 0, 0.4, 0.55, (Piece(None, 0, 0, 0.5, 0.5, probability=0.8),), jitter=2),
        Piece(None, 0.45, 0.1, 0.35, 0.45, (Piece(None, 0, 0, 0.5, 0.5, probability=0.6),), jitter=2)))),
    (HALF_TURN, Piece(box, 0, 0, 0.95, 0.7, (
        Piece(None, 0, 0, 0.5, 0.6, (
            Piece(None, -0.35, 0, 0.3, 0.4), Piece(None, 0.35, 0, 0.3, 0.4))),
        Piece(ellipse, -0.8, -0.7, 0.14, 0.2, probability=0.6)))),
)  # fmt: skip
