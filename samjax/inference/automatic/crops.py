"""Overlapping crops of an image, and the grid of points in each, for automatic mask generation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from samjax.errors import SamjaxError, one_line


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


def check_point_grids(point_grids: Iterable, layers: int) -> list[np.ndarray]:
    """Grids that a user gave, for layers 0 .. `layers`, as arrays, float64 (N, 2).

    Raises:
        SamjaxError: a grid is empty or has another shape, a point is no fraction, or there are not `layers` + 1 grids.
    """
    try:
        grids = [np.asarray(grid, np.float64) for grid in point_grids]
    except (TypeError, ValueError, RuntimeError) as error:  # no list, lists of unequal lengths, tensors on a GPU
        raise SamjaxError(
            f'point_grids cannot be made numpy arrays, {one_line(error)}: give a list with a grid (N, 2) for each layer'
        ) from None
    for layer, grid in enumerate(grids):
        if not grid.size:
            raise SamjaxError(f'point grid {layer} is empty: give each layer at least one point, or use fewer layers')
        if grid.ndim != 2 or grid.shape[1] != 2:
            raise SamjaxError(
                f'point grid {layer} has shape {grid.shape}: give a list with a grid (N, 2), x and y, for each layer'
            )
        is_fraction_N = ((grid >= 0) & (grid <= 1)).all(1)
        if not is_fraction_N.all():
            x, y = grid[~is_fraction_N][0]
            raise SamjaxError(
                f'point grid {layer} has the point {x:.6g},{y:.6g}: give fractions of the width and height of the '
                f'crop, between 0 and 1'
            )
    if len(grids) != layers + 1:
        raise SamjaxError(
            f'there are {len(grids)} point grids for the image and {layers} layers of crops: give {layers + 1}'
        )
    return grids
