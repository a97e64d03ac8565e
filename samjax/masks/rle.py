"""COCO's run-length encoding of masks: read, checked and written without a mask at full size."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco


def encode(mask_HW: np.ndarray) -> dict:
    """COCO's compressed RLE of a bool mask."""
    return coco.encode(np.asfortranarray(mask_HW, np.uint8))


def runs_of_part(mask_hw: np.ndarray, top: int, left: int, size: tuple[int, int]) -> list[int]:
    """Lengths in px of the runs of 0, 1, 0, .. down the columns of a mask that is 0 outside of a part of `size` (H, W).

    mask_hw: bool, the part; top, left: where its first pixel lies.
    """
    height, width = size
    steps_wh = np.diff(np.pad(mask_hw.T, ((0, 0), (1, 1))).astype(np.int8))
    column, row = np.nonzero(steps_wh)
    edges = (column + left) * height + row + top
    # A run that ends at the bottom of the image goes on at the top of the next column.
    meets = np.flatnonzero(edges[1::2][:-1] == edges[2::2])
    edges = np.delete(edges, np.concatenate([2 * meets + 1, 2 * meets + 2]))
    counts = np.diff(np.concatenate([[0], edges, [height * width]])).tolist()
    return counts if counts[-1] or len(counts) == 1 else counts[:-1]


def as_text(rle: dict) -> dict:
    """COCO RLE for JSON."""
    return {'size': list(rle['size']), 'counts': rle['counts'].decode()}


def run_lengths(counts: bytes) -> np.ndarray:
    """Lengths in px of the runs of 0, 1, 0, .. that compressed RLE counts stand for.

    The COCO code: 5 bits per character, lowest first, +32 if more follow, sign in the last bit; from
    the fourth run on a number is the difference to the run before the last.  pycocotools decodes
    damaged counts without a word and leaves chance values in the mask, hence a reader of our own.
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
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * place), starts)
    runs -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


class Segments(NamedTuple):
    """A mask as vertical segments, one array entry each: pixels first .. last - 1 of a column."""

    column: np.ndarray
    first: np.ndarray
    last: np.ndarray


def segments(runs: np.ndarray, height: int) -> Segments:
    """Of the run lengths 0, 1, 0, .. of a mask, which run down one column and on in the next."""
    ends = np.cumsum(runs)
    starts, stops = ends[:-1:2], ends[1::2]
    some = stops > starts
    starts, stops = starts[some], stops[some]
    column, last_column = starts // height, (stops - 1) // height
    pieces = last_column - column + 1
    run = np.repeat(np.arange(len(pieces)), pieces)
    column = column[run] + np.arange(len(run)) - (np.cumsum(pieces) - pieces)[run]
    top = column * height
    return Segments(column, np.maximum(starts[run] - top, 0), np.minimum(stops[run] - top, height))


class Window(NamedTuple):
    """Rows top .. bottom - 1 and columns left .. right - 1 of a grid."""

    top: int
    left: int
    bottom: int
    right: int


def bounds(mask: Segments, size: tuple[int, int], grid: tuple[int, int]) -> Window:
    """The pixels of a grid (h, w) that a mask of `size` (H, W), which is not empty, touches when resized to it."""
    (H, W), (h, w) = size, grid
    top, bottom = int(mask.first.min()) * h // H, (int(mask.last.max()) * h - 1) // H + 1
    left, right = int(mask.column.min()) * w // W, (int(mask.column.max() + 1) * w - 1) // W + 1
    return Window(top, left, bottom, right)


def shares(mask: Segments, size: tuple[int, int], grid: tuple[int, int], window: Window) -> np.ndarray:
    """How much of each pixel of a window a mask of `size` (H, W) covers when resized to `grid` (h, w), exactly.

    Returns float64 (columns, rows): whole numbers in units of which a pixel of the grid has H * W.  The work grows
    with the length of the outline and with the window, not with the mask.
    """
    (H, W), (h, w) = size, grid
    rows_4S, dy_4S = _steps(mask.first * h, mask.last * h, H, window.top, window.bottom)
    columns_4S, dx_4S = _steps(mask.column * w, (mask.column + 1) * w, W, window.left, window.right)
    width, height = window.right - window.left + 2, window.bottom - window.top + 2
    place_44S = columns_4S[:, None] * height + rows_4S
    steps_xy = np.bincount(place_44S.ravel(), (dx_4S[:, None] * dy_4S).ravel(), width * height).reshape(width, height)
    return steps_xy[::-1, ::-1].cumsum(0).cumsum(1)[-2:0:-1, -2:0:-1]


def _steps(start: np.ndarray, stop: np.ndarray, length: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and heights of the four steps that make what [start, stop) covers of pixels low .. high - 1 of a line.

    Pixel q is [q length, (q + 1) length).  Of it [0, t) covers all before the pixel that t lies in, there the rest,
    and nothing behind: two steps, summed from the far end.  Places are 1 for `low`, up to high - low + 1.
    """

    def up_to(t):
        t = np.clip(t, low * length, high * length)
        q = t // length
        rest = t - q * length
        return (q - low + 1, rest), (q - low, length - rest)

    (places, heights) = zip(*up_to(stop), *up_to(start), strict=True)
    return np.stack(places), np.stack(heights) * np.array([1, 1, -1, -1])[:, None]


def encode_labels(labels_HW: np.ndarray, ignore: tuple[int, ...] = (0,)) -> dict[int, dict]:
    """Each label of an integer map, but those to ignore, with the compressed RLE of its pixels, in rising order."""
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
