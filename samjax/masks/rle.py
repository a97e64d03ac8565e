"""COCO's run-length encoding (RLE) of masks: read, checked, resized and written without a mask at full size."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco


def encode(mask_HW: np.ndarray) -> dict:
    """COCO's compressed RLE of a bool mask."""
    return coco.encode(np.asfortranarray(mask_HW, np.uint8))


def runs_of_crop(mask_hw: np.ndarray, top: int, left: int, size: tuple[int, int]) -> list[int]:
    """Run lengths (see `run_lengths`) of a mask of `size` (H, W) px that is 0 outside of a crop.

    mask_hw: bool, the crop; top, left: its first row and column in the mask.
    """
    height, width = size
    steps_wh = np.diff(np.pad(mask_hw.T, ((0, 0), (1, 1))).astype(np.int8))
    column, row = np.nonzero(steps_wh)
    edges = (column + left) * height + row + top
    # A run that ends at the bottom of the image continues at the top of the next column.
    joined = np.flatnonzero(edges[1::2][:-1] == edges[2::2])
    edges = np.delete(edges, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    counts = np.diff(np.concatenate([[0], edges, [height * width]])).tolist()
    return counts if counts[-1] or len(counts) == 1 else counts[:-1]


def as_text(rle: dict) -> dict:
    """The same RLE with its counts as str, for JSON."""
    return {'size': list(rle['size']), 'counts': rle['counts'].decode()}


def run_lengths(counts: bytes) -> np.ndarray:
    """Lengths in px of the runs of 0, 1, 0, .. down the columns of a mask, from compressed RLE counts.

    The COCO code: 5 bits per character, lowest first, +32 if more follow, sign in the last bit; from the fourth run on
    a number is the difference to the run before the last.  pycocotools decodes damaged counts without an error and
    leaves uninitialized values in the mask, so we read them ourselves.
    Raises ValueError for characters or numbers that the code cannot produce.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError('the counts hold characters that are not RLE, or end too early')
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits
        raise ValueError('the counts hold a number too large for any image')
    digit = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * digit), starts)
    runs -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


class Segments(NamedTuple):
    """A mask as vertical segments, each the pixels first .. last - 1 of a column."""

    column_S: np.ndarray
    first_S: np.ndarray
    last_S: np.ndarray


def segments(runs: np.ndarray, height: int) -> Segments:
    """Of the run lengths of a mask (see `run_lengths`), each run split where a column of `height` px ends."""
    ends = np.cumsum(runs)
    starts, stops = ends[:-1:2], ends[1::2]
    not_empty = stops > starts
    starts, stops = starts[not_empty], stops[not_empty]
    first_column, last_column = starts // height, (stops - 1) // height
    columns = last_column - first_column + 1  # of each run
    run_S = np.repeat(np.arange(len(columns)), columns)
    column_S = first_column[run_S] + np.arange(len(run_S)) - (np.cumsum(columns) - columns)[run_S]
    top_S = column_S * height
    return Segments(column_S, np.maximum(starts[run_S] - top_S, 0), np.minimum(stops[run_S] - top_S, height))


class GridWindow(NamedTuple):
    """Rows top .. bottom - 1 and columns left .. right - 1 of a grid of pixels."""

    top: int
    left: int
    bottom: int
    right: int


def covered_window(mask: Segments, size: tuple[int, int], grid: tuple[int, int]) -> GridWindow:
    """The window of a grid (h, w) that a mask of `size` (H, W), which is not empty, touches when resized to it."""
    (H, W), (h, w) = size, grid
    top, bottom = int(mask.first_S.min()) * h // H, (int(mask.last_S.max()) * h - 1) // H + 1
    left, right = int(mask.column_S.min()) * w // W, (int(mask.column_S.max() + 1) * w - 1) // W + 1
    return GridWindow(top, left, bottom, right)


def pixel_coverage(mask: Segments, size: tuple[int, int], grid: tuple[int, int], window: GridWindow) -> np.ndarray:
    """How much of each pixel of a window a mask of `size` (H, W) covers when resized to `grid` (h, w), exactly.

    Returns float64 (columns, rows): integers from 0 to H * W, which is a pixel that is covered completely.  The work
    grows with the length of the outline and with the window, not with the mask.
    """
    (H, W), (h, w) = size, grid
    rows_4S, dy_4S = _steps(mask.first_S * h, mask.last_S * h, H, window.top, window.bottom)
    columns_4S, dx_4S = _steps(mask.column_S * w, (mask.column_S + 1) * w, W, window.left, window.right)
    width, height = window.right - window.left + 2, window.bottom - window.top + 2
    index_44S = columns_4S[:, None] * height + rows_4S
    steps_xy = np.bincount(index_44S.ravel(), (dx_4S[:, None] * dy_4S).ravel(), width * height).reshape(width, height)
    return steps_xy[::-1, ::-1].cumsum(0).cumsum(1)[-2:0:-1, -2:0:-1]


def _steps(start: np.ndarray, stop: np.ndarray, length: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and heights of four steps whose sum is what [start, stop) covers of pixels low .. high - 1 of a line.

    Pixel q is [q length, (q + 1) length).  The interval [0, t) covers each pixel before that of t completely, that of
    t in part, and the others not: two steps, summed from the far end.  Positions run from 1, for `low`, to
    high - low + 1.
    """

    def up_to(t):
        t = np.clip(t, low * length, high * length)
        q = t // length
        rest = t - q * length
        return (q - low + 1, rest), (q - low, length - rest)

    positions, heights = zip(*up_to(stop), *up_to(start), strict=True)
    return np.stack(positions), np.stack(heights) * np.array([1, 1, -1, -1])[:, None]


def encode_labels(labels_HW: np.ndarray, ignore: tuple[int, ...] = (0,)) -> dict[int, dict]:
    """Label -> compressed RLE of its pixels, in rising order, for an integer map; without the labels to ignore."""
    height, width = labels_HW.shape
    column_major = labels_HW.ravel('F')
    starts = np.concatenate([[0], np.flatnonzero(np.diff(column_major)) + 1])
    ends = np.concatenate([starts[1:], [column_major.size]])
    label_of_run = column_major[starts]
    rles = {}
    order = np.argsort(label_of_run, kind='stable')
    labels, firsts = np.unique(label_of_run[order], return_index=True)
    for label, runs in zip(labels.tolist(), np.split(order, firsts[1:]), strict=True):
        if label not in ignore:
            edges = np.stack([starts[runs], ends[runs]], 1).ravel()
            counts = np.diff(np.concatenate([[0], edges, [column_major.size]]))
            counts = counts if counts[-1] else counts[:-1]
            uncompressed = {'size': [height, width], 'counts': counts.tolist()}
            rles[label] = coco.frPyObjects(uncompressed, height, width)
    return rles
