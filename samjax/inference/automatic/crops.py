"""Overlapping crops of an image, and the grid of points in each, for automatic mask generation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from samjax.errors import SamjaxError


class Crop(NamedTuple):
    """Columns x0 .. x1 - 1 and rows y0 .. y1 - 1 of an image, px; layer n divides each side by 2^n."""

    layer: int
    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1."""
        return self[1:]

    @property
    def area(self) -> int:
        """In px."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)


def crop_boxes(height: int, width: int, layers: int, overlap_ratio: float) -> list[Crop]:
    """The whole image, then the crops of each of `layers` layers, column by column.

    overlap_ratio: overlap of two neighbours in layer 1, as a fraction of the image's shorter side; half as much in each
    further layer.  A tiny image has fewer crops, as empty ones are left out.  Source: `generate_crop_boxes` of
    segment-anything's utils/amg.py, which returns empty ones, too.
    """
    crops = [Crop(0, 0, 0, width, height)]
    for layer in range(1, layers + 1):
        overlap = int(overlap_ratio * min(height, width) / 2 ** (layer - 1))
        columns, rows = _intervals(width, 2**layer, overlap), _intervals(height, 2**layer, overlap)
        crops += [Crop(layer, x0, y0, x1, y1) for x0, x1 in columns for y0, y1 in rows]
    return crops


def _intervals(length: int, count: int, overlap: int) -> list[tuple[int, int]]:
    """Start and end, px, of `count` intervals that cover a line.

    Their length is rounded up, so that the last is shorter, or empty and left out.
    """
    size = -(-(length + (count - 1) * overlap) // count)
    starts = [n * (size - overlap) for n in range(count)]
    return [(start, min(start + size, length)) for start in starts if start < length]


def point_grid(side: int) -> np.ndarray:
    """float64 (side^2, 2) points (x, y) as fractions of the image, x fastest: (i + 1/2) / side.

    Rounded as `build_point_grid` of segment-anything's utils/amg.py does.
    """
    first = 1 / (2 * side)
    line = np.linspace(first, 1 - first, side)
    return np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)


def build_point_grids(points_per_side: int, layers: int, downscale: float) -> list[np.ndarray]:
    """The grid of each layer, 0 .. layers, as fractions of a crop; each has `downscale` times fewer points per side.

    Source: `build_all_layer_point_grids` of segment-anything's utils/amg.py.

    Raises:
        SamjaxError: a layer has no point.
    """
    sides = [int(points_per_side / downscale**layer) for layer in range(layers + 1)]
    if min(sides) < 1:
        raise SamjaxError(
            f'points_per_side {points_per_side} with a downscale factor of {downscale} leaves no point in layer '
            f'{sides.index(min(sides))} of {layers} layers: take more points, a smaller factor or fewer layers'
        )
    return [point_grid(side) for side in sides]
