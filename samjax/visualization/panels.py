"""Panels: an image, or a part of it, under a mask, with clicks and boxes; and sheets of panels with captions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from samjax.masks.boxes import mask_box
from samjax.structs import POSITIVE

PANEL = 224  # px, the longer side of one panel
LARGE_PANEL = 480  # px, the same where there is one row
GAP = 8  # px between panels
LINE = 18  # px, height of a line of text
MARGIN = 0.75  # of the longer side of an object that is shown around it
MIN_VIEWPORT = 48  # px of the image, least side of a close-up

PREDICTION = (42, 120, 214)
TRUTH = (255, 214, 10)
GREEN, RED, WHITE, INK = (20, 150, 60), (214, 40, 40), (255, 255, 255), (25, 25, 25)

FONT = ImageFont.load_default(13)

Panel = tuple[str, Image.Image]  # caption and image


@dataclasses.dataclass(frozen=True)
class Viewport:
    """A part of an image, drawn as one panel; in pixels of the image, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int
    side: int = PANEL  # px, the longer side of the panel

    @classmethod
    def whole(cls, height: int, width: int, side: int = PANEL) -> Viewport:
        return cls(0, 0, height, width, side)

    @classmethod
    def around(cls, mask_HW: np.ndarray) -> Viewport:
        """A square around the object with room at each side, as far as the image reaches."""
        x0, y0, x1, y1 = mask_box(mask_HW).astype(int).tolist()
        side = max(y1 - y0, x1 - x0) + 1
        side = max(math.ceil(side * (1 + 2 * MARGIN)), MIN_VIEWPORT)
        height, width = mask_HW.shape
        top, left = _start(y0, y1, side, height), _start(x0, x1, side, width)
        return cls(top, left, min(top + side, height), min(left + side, width))

    @property
    def scale(self) -> float:
        """Pixels of the panel for each pixel of the image."""
        return self.side / max(self.bottom - self.top, self.right - self.left)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the panel in px."""
        return (
            max(round((self.right - self.left) * self.scale), 1),
            max(round((self.bottom - self.top) * self.scale), 1),
        )

    def draw(
        self, image_HW3: np.ndarray, mask_HW: np.ndarray | None = None, colour: tuple[int, int, int] = PREDICTION
    ) -> Image.Image:
        """This part of the image, tinted where the mask is."""
        panel = Image.fromarray(image_HW3[self.top : self.bottom, self.left : self.right])
        panel = panel.resize(self.size, Image.BICUBIC)
        if mask_HW is None:
            return panel
        mask_HW = self._resize(mask_HW)
        tint_HW3 = np.asarray(panel, np.float32)
        tint_HW3 = np.where(mask_HW[..., None], 0.5 * tint_HW3 + 0.5 * np.array(colour), tint_HW3)
        tint_HW3[inner_edge(mask_HW, 1)] = colour
        return Image.fromarray(tint_HW3.astype(np.uint8))

    def draw_outline(self, panel: Image.Image, mask_HW: np.ndarray) -> None:
        """Yellow just inside the edge of the mask, on a dark line that keeps it visible on light ground."""
        mask_HW = self._resize(mask_HW)
        for width, colour in ((3, INK), (2, TRUTH)):
            panel.paste(colour, mask=Image.fromarray(inner_edge(mask_HW, width)))

    def draw_box(self, panel: Image.Image, box_4: Sequence[float]) -> None:
        """A white box from pixel (x0, y0) to pixel (x1, y1) of the image, ends included, in any order."""
        (x0, x1), (y0, y1) = sorted(box_4[::2]), sorted(box_4[1::2])
        left, top = (x0 - self.left) * self.scale, (y0 - self.top) * self.scale
        right, bottom = (x1 + 1 - self.left) * self.scale, (y1 + 1 - self.top) * self.scale
        right, bottom = min(right, panel.width) - 1, min(bottom, panel.height) - 1
        corners = [min(left, right), min(top, bottom), right, bottom]
        draw = ImageDraw.Draw(panel)
        draw.rectangle(corners, outline=INK, width=3)
        draw.rectangle(corners, outline=WHITE, width=1)

    def draw_click(self, panel: Image.Image, point_2: np.ndarray, label: int) -> None:
        """A click as a dot with a white rim; one outside the viewport is left out."""
        x, y = point_2
        if not (self.left <= x < self.right and self.top <= y < self.bottom):
            return
        x, y = (x + 0.5 - self.left) * self.scale, (y + 0.5 - self.top) * self.scale
        draw = ImageDraw.Draw(panel)
        for radius, colour in ((6, INK), (5, WHITE), (3.5, GREEN if label == POSITIVE else RED)):
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)

    def _resize(self, mask_HW: np.ndarray) -> np.ndarray:
        part = Image.fromarray(mask_HW[self.top : self.bottom, self.left : self.right])
        return np.asarray(part.resize(self.size, Image.NEAREST))


def _start(first: int, last: int, side: int, length: int) -> int:
    """First pixel of a part of `side` px around the pixels `first` to `last` of an axis of `length` px."""
    return int(np.clip((first + last + 1 - side) // 2, 0, max(length - side, 0)))


def inner_edge(mask_HW: np.ndarray, width: int) -> np.ndarray:
    """bool (H, W): the outermost `width` px of a bool mask."""
    return mask_HW & ~ndimage.binary_erosion(mask_HW, iterations=width)


def compose_sheet(rows: list[list[Panel]], legend: str, side: int) -> Image.Image:
    """Rows of captioned panels on white, a legend below; captions too long for a panel end in dots.

    side: px, the longer side of the panels.
    """
    heights = [max(panel.height for _, panel in row) + LINE + GAP for row in rows]
    columns = max(len(row) for row in rows)
    size = GAP + columns * (side + GAP), GAP + sum(heights) + LINE + GAP
    sheet = Image.new('RGB', size, WHITE)
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, (caption, panel) in enumerate(row):
            left = GAP + column * (side + GAP)
            draw.text((left, top), _shorten(caption, side), fill=INK, font=FONT)
            sheet.paste(panel, (left, top + LINE))
        top += height
    draw.text((GAP, top), legend, fill=INK, font=FONT)
    return sheet


def _shorten(caption: str, width: int) -> str:
    if FONT.getlength(caption) <= width:
        return caption
    while FONT.getlength(caption + '...') > width:
        caption = caption[:-1]
    return caption + '...'
