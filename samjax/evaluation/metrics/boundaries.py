"""The boundary benchmark of BSDS500: how well an edge map agrees with the boundaries that several annotators drew.

For each of 99 thresholds the edge map becomes a bool map and is thinned.  Its pixels are then matched one to one with
those of each annotator, no farther than 0.0075 of the image's diagonal.  Recall counts the pixels of every annotator;
precision counts a predicted pixel once, if it matches a pixel of any annotator.

    counts = [count(edges_HW, read_ground_truth(path)) for edges_HW, path in ...]
    scores(counts).ods.f

Source: Arbelaez, Maire, Fowlkes and Malik, IEEE TPAMI 33(5), 2011, and their code (github.com/BIDS/BSDS500, folder
bench); R50 is that of Dollar and Zitnick's edgesEvalDir.m.  In names, T are thresholds, N pixels, and E pairs of
pixels near each other.
"""

from __future__ import annotations

import collections
import concurrent.futures
import io
import math
import multiprocessing
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io
from scipy.sparse import coo_array, csgraph, csr_array

from samjax.distributed.workers import initialize_worker
from samjax.errors import SamjaxError

THRESHOLDS = np.arange(1, 100) / 100
MAX_DISTANCE = 0.0075  # of the image's diagonal: how far apart matched pixels may be
OUTLIER_COST = 100  # times that distance: the cost of a pixel without a match
COST_UNITS = 100  # per px: costs are whole hundredths of a pixel, as in the original, so that sums are exact
PIXELS_PER_CALL = 200  # pixels of components solved in one call: more make it slower, fewer make more calls


class Counts(NamedTuple):
    """Pixels of one image, or summed over images: int64 (T,) each."""

    matched_truth_T: np.ndarray  # boundary pixels that were matched, over all annotators
    truth_T: np.ndarray  # all boundary pixels, over all annotators
    matched_predicted_T: np.ndarray  # predicted pixels that were matched with a pixel of any annotator
    predicted_T: np.ndarray  # all predicted pixels


class OperatingPoint(NamedTuple):
    """Precision and recall at a threshold; from 0 to 1."""

    f: float  # harmonic mean of the next two
    precision: float
    recall: float
    threshold: float  # NaN if each image has its own


class PrecisionRecallCurve(NamedTuple):
    """Precision over recall, one point per threshold; float64 (T,) each."""

    precision_T: np.ndarray
    recall_T: np.ndarray

    def best(self) -> OperatingPoint:
        """The highest F at a common threshold; between thresholds both are interpolated in 100 steps."""
        steps = np.linspace(0, 1, 100)
        precision, recall, threshold = (
            np.concatenate([values_T[:1], (values_T[:-1, None] + steps * np.diff(values_T)[:, None]).ravel()])
            for values_T in (self.precision_T, self.recall_T, THRESHOLDS)
        )
        f = _f_measure(precision, recall)
        best = f.argmax()
        return OperatingPoint(float(f[best]), float(precision[best]), float(recall[best]), float(threshold[best]))


class Scores(NamedTuple):
    ods: OperatingPoint  # optimal dataset scale: a common threshold for all images
    ois: OperatingPoint  # optimal image scale: each image at its best threshold
    ap: float  # mean precision over recall; 0 where the curve is a single point
    r50: float  # recall at 50 % precision; NaN if no threshold is as precise
    curve: PrecisionRecallCurve


# ---- counting --------------------------------------------------------------------------------------


def count(edges_HW: np.ndarray, truths: Sequence[np.ndarray]) -> Counts:
    """Compares an edge map, float from 0 to 1, with the boundary maps, bool (H, W), of an image's annotators.

    Raises SamjaxError if the edge map has other values, there is no annotator, or sizes differ.
    """
    _check(edges_HW, truths)
    rows, previous_HW, row = [], None, ()
    for threshold in THRESHOLDS:
        map_HW = edges_HW >= threshold
        if previous_HW is None or not np.array_equal(map_HW, previous_HW):
            previous_HW, row = map_HW, _count_map(thin(map_HW), truths)
        rows.append(row)
    return Counts(*np.array(rows, np.int64).T)


def _check(edges_HW: np.ndarray, truths: Sequence[np.ndarray]) -> None:
    if not len(truths):
        raise SamjaxError('no annotator drew boundaries of this image: leave it out')
    for k, truth_HW in enumerate(truths):
        if truth_HW.shape != edges_HW.shape:
            raise SamjaxError(
                f'the edge map has shape {edges_HW.shape}, but the boundaries of annotator {k + 1} have '
                f'{truth_HW.shape}: compute edges at the size of the original image'
            )
    if not ((edges_HW >= 0) & (edges_HW <= 1)).all():
        raise SamjaxError('the edge map has values outside 0 to 1: scale it so that the strongest edge is 1')


def _count_map(map_HW: np.ndarray, truths: Sequence[np.ndarray]) -> tuple[int, int, int, int]:
    """One threshold of `Counts`."""
    matched_truth, matched_predicted_HW = 0, np.zeros(map_HW.shape, bool)
    for truth_HW in truths:
        predicted_HW, partner_HW = match(map_HW, truth_HW)
        matched_truth += np.count_nonzero(partner_HW)
        matched_predicted_HW |= predicted_HW
    truth = sum(np.count_nonzero(truth_HW) for truth_HW in truths)
    return matched_truth, truth, np.count_nonzero(matched_predicted_HW), np.count_nonzero(map_HW)


def count_all(
    images: Iterable[tuple[str, np.ndarray, Sequence[np.ndarray]]], workers: int = 1
) -> Iterator[tuple[str, Counts]]:
    """(name, counts) of each (name, edge map, annotators' maps), in order and as soon as they are known.

    workers: processes that count; 1: this process.  At most two images per worker are read ahead.
    Raises SamjaxError, which then names the image, as `count` does, or if a process was killed.
    """
    if workers <= 1:
        for image in images:
            yield _count_named(*image)
        return
    spawn = multiprocessing.get_context('spawn')  # JAX does not survive a fork
    pool = concurrent.futures.ProcessPoolExecutor(workers, spawn, initializer=initialize_worker)
    pending = collections.deque()
    try:
        for image in images:
            pending.append(pool.submit(_count_named, *image))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise SamjaxError('a process that matched boundaries was killed: start again with fewer workers') from None
    finally:
        pool.shutdown(cancel_futures=True)


def _count_named(name: str, edges_HW: np.ndarray, truths: Sequence[np.ndarray]) -> tuple[str, Counts]:
    try:
        return name, count(edges_HW, truths)
    except SamjaxError as error:
        raise SamjaxError(f'{name}: {error}') from None


# ---- matching --------------------------------------------------------------------------------------


def match(predicted_HW: np.ndarray, truth_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels of two bool maps are matched one to one: two bool (H, W).

    The matching has the least cost: a pair costs its distance, and each pair fewer costs 100 times the greatest
    distance allowed.  Among matchings of equal cost the choice is arbitrary, but always the same.
    """
    # Unmatched rows are expensive to compute, so the map with fewer pixels has the rows.
    swap = np.count_nonzero(truth_HW) > np.count_nonzero(predicted_HW)
    fewer_HW, more_HW = (predicted_HW, truth_HW) if swap else (truth_HW, predicted_HW)
    distance = MAX_DISTANCE * math.hypot(*truth_HW.shape)
    fewer_N, more_N, fewer_E, more_E, cost_E = _pairs(fewer_HW, more_HW, distance)
    matched = _min_cost_matching(fewer_E, more_E, cost_E, math.ceil(OUTLIER_COST * distance * COST_UNITS))
    fewer_HW = _map_of_pixels(fewer_N[fewer_E[matched]], truth_HW.shape)
    more_HW = _map_of_pixels(more_N[more_E[matched]], truth_HW.shape)
    return (fewer_HW, more_HW) if swap else (more_HW, fewer_HW)


def _map_of_pixels(pixels_N: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    flat = np.zeros(math.prod(shape), bool)
    flat[pixels_N] = True
    return flat.reshape(shape)


def _pairs(a_HW: np.ndarray, b_HW: np.ndarray, max_distance: float) -> tuple[np.ndarray, ...]:
    """Pixels of both maps, as flat positions, and every pair within the distance: index in a, index in b, cost."""
    rim = int(max_distance)
    down, right = (grid.ravel() for grid in np.mgrid[-rim : rim + 1, -rim : rim + 1])
    near = down**2 + right**2 <= max_distance**2
    down, right = down[near], right[near]
    a_N, b_N = np.flatnonzero(a_HW), np.flatnonzero(b_HW)
    # With an empty rim no test is needed at the border.
    index_HW = np.full(np.add(b_HW.shape, 2 * rim), -1, np.int32)
    width = index_HW.shape[1]
    index_HW[rim : rim + b_HW.shape[0], rim : rim + b_HW.shape[1]][b_HW] = np.arange(b_N.size)
    y, x = np.divmod(a_N, a_HW.shape[1])
    partner = index_HW.ravel()[((y + rim) * width + x + rim)[:, None] + (down * width + right)]
    a_E, offset = np.nonzero(partner >= 0)
    cost = np.rint(COST_UNITS * np.hypot(down, right))
    return a_N, b_N, a_E, partner[a_E, offset], cost[offset]


def _min_cost_matching(row_E: np.ndarray, column_E: np.ndarray, cost_E: np.ndarray, unmatched: float) -> np.ndarray:
    """Indices of the pairs of the matching of least cost, where a row without a match costs `unmatched`.

    Connected components are matched separately, which is much faster; small components share a call.
    """
    if not row_E.size:
        return np.zeros(0, int)
    rows = row_E.max() + 1
    nodes = rows + column_E.max() + 1
    graph = coo_array((np.ones(row_E.size, bool), (row_E, rows + column_E)), shape=(nodes, nodes))
    label_N = csgraph.connected_components(graph, directed=False)[1]
    part_N = np.cumsum(np.bincount(label_N[:rows], minlength=label_N.max() + 1)) // PIXELS_PER_CALL
    part_E = part_N[label_N[row_E]]
    order = np.argsort(part_E, kind='stable')
    parts = np.split(order, np.flatnonzero(np.diff(part_E[order])) + 1)
    return np.concatenate([part[_assign(row_E[part], column_E[part], cost_E[part], unmatched)] for part in parts])


def _assign(row_E: np.ndarray, column_E: np.ndarray, cost_E: np.ndarray, unmatched: float) -> np.ndarray:
    """As `_min_cost_matching`, in one call of the solver.

    The solver matches every row, so each row gets a column of its own that means no match.  It takes a cost of 0 for a
    missing edge, so 1 is added to all costs; the number of rows is fixed, so this does not change the matching.
    """
    rows, row_E = np.unique(row_E, return_inverse=True)
    columns, column_E = np.unique(column_E, return_inverse=True)
    own = np.arange(rows.size)
    shape = rows.size, columns.size + rows.size
    costs = np.concatenate([cost_E, np.full(rows.size, unmatched)]) + 1
    indices = np.concatenate([row_E, own]), np.concatenate([column_E, columns.size + own])
    row_N, column_N = csgraph.min_weight_full_bipartite_matching(csr_array((costs, indices), shape=shape))
    partner_N = np.empty(rows.size, int)
    partner_N[row_N] = column_N
    return np.flatnonzero(partner_N[row_E] == column_E)


# ---- thinning --------------------------------------------------------------------------------------

AROUND = (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1)  # (y, x), counter-clockwise from the east


def thin(map_HW: np.ndarray) -> np.ndarray:
    """Lines one pixel wide that keep the shape of a bool map: Matlab's bwmorph(map, 'thin', Inf).

    Outside the image is False.  Source: Lam, Lee and Suen, IEEE TPAMI 14(9), 1992, page 879.
    """
    padded_HW = np.pad(map_HW, 1).astype(bool)
    flat, width = padded_HW.ravel(), padded_HW.shape[1]
    steps = [y * width + x for y, x in AROUND]
    pixels_N = np.flatnonzero(flat)
    code = np.zeros(flat.size, np.uint8)  # bit k of a pixel: whether its neighbour k is set
    for bit, step in enumerate(steps):
        code[pixels_N] |= flat[pixels_N + step].view(np.uint8) << bit
    previous_size = -1
    while previous_size != pixels_N.size:
        previous_size = pixels_N.size
        for removable in REMOVABLE:
            is_removed = removable[code[pixels_N]]
            removed_N, pixels_N = pixels_N[is_removed], pixels_N[~is_removed]
            for bit, step in enumerate(steps):
                code[removed_N - step] &= 255 - (1 << bit)
    thin_HW = np.zeros(padded_HW.shape, bool)
    thin_HW.ravel()[pixels_N] = True
    return thin_HW[1:-1, 1:-1]


def _removable() -> tuple[np.ndarray, np.ndarray]:
    """For each of 256 neighbourhoods, whether the first and the second half of a step remove the pixel.

    x[0] is the pixel to the east and the rest follow counter-clockwise: x1, ..., x8 of the source.
    """
    x = [(np.arange(256) >> bit & 1).astype(bool) for bit in range(8)]
    x.append(x[0])
    crossings = sum((~x[k] & (x[k + 1] | x[k + 2])).astype(int) for k in (0, 2, 4, 6))
    sides = [sum((x[k + first] | x[k + first + 1]).astype(int) for k in (0, 2, 4, 6)) for first in (0, 1)]
    fewer = np.minimum(*sides)
    end = (crossings == 1) & (fewer >= 2) & (fewer <= 3)
    return end & ~((x[1] | x[2] | ~x[7]) & x[0]), end & ~((x[5] | x[6] | ~x[3]) & x[4])


REMOVABLE = _removable()


# ---- scores ----------------------------------------------------------------------------------------


def scores(counts: Sequence[Counts]) -> Scores:
    """The scores of the benchmark from the counts of every image.  Raises SamjaxError if there is no image."""
    if not len(counts):
        raise SamjaxError('there is no image to score: give at least one')
    counts_N4T = np.array(counts, np.int64)
    curve = PrecisionRecallCurve(*_precision_and_recall(counts_N4T.sum(axis=0)))
    return Scores(curve.best(), _best_of_each(counts_N4T), _average_precision(curve), _recall_at_half(curve), curve)


def _precision_and_recall(counts_4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From an array of `Counts`, with any further axes; 0 where there are no pixels."""
    matched_truth, truth, matched_predicted, predicted = counts_4
    return matched_predicted / np.maximum(predicted, 1), matched_truth / np.maximum(truth, 1)


def _f_measure(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    total = precision + recall
    return 2 * precision * recall / np.where(total > 0, total, 1)


def _best_of_each(counts_N4T: np.ndarray) -> OperatingPoint:
    best_N = _f_measure(*_precision_and_recall(counts_N4T.swapaxes(0, 1))).argmax(axis=1)
    counts_4 = counts_N4T[np.arange(len(best_N)), :, best_N].sum(axis=0)
    precision, recall = _precision_and_recall(counts_4)
    return OperatingPoint(float(_f_measure(precision, recall)), float(precision), float(recall), math.nan)


def _average_precision(curve: PrecisionRecallCurve) -> float:
    """Precision at recalls 0, 0.01, ..., 1, summed and divided by 100; 0 where the curve does not reach."""
    recall, first = np.unique(curve.recall_T, return_index=True)
    if len(recall) == 1:
        return 0.0
    levels = np.linspace(0, 1, 101)
    return float(np.interp(levels, recall, curve.precision_T[first], left=0, right=0).sum() * 0.01)


def _recall_at_half(curve: PrecisionRecallCurve) -> float:
    """Recall interpolated at a precision of 0.5, or at the lowest precision if that is higher."""
    precision, first = np.unique(curve.precision_T, return_index=True)
    return float(np.interp(0.5, precision, curve.recall_T[first], right=math.nan))


# ---- ground truth ----------------------------------------------------------------------------------


def read_ground_truth(path: str | Path) -> list[np.ndarray]:
    """The boundary map, bool (H, W), of each annotator in a .mat file of BSDS500's ground truth.

    Raises SamjaxError if the file cannot be read or is no such file.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise SamjaxError(f'{path} cannot be read ({error.strerror}): give a .mat file of BSDS500') from None
    try:
        _check_mat(content)
        cells = scipy.io.loadmat(io.BytesIO(content))['groundTruth']
        truths = [np.asarray(cell['Boundaries'][0, 0]) != 0 for cell in cells.ravel()]
        is_valid = len(truths) > 0 and all(truth_HW.ndim == 2 and truth_HW.size for truth_HW in truths)
    except Exception:  # scipy raises errors of many types for other files
        is_valid = False
    if not is_valid:
        raise SamjaxError(f'{path} holds no boundaries of annotators: give a .mat file of BSDS500, as downloaded')
    return truths


MAT_HEADER = 128  # bytes
MAT_MATRIX, MAT_COMPRESSED = 14, 15
MAT_TYPES = (*range(1, 8), 9, 12, 13, 16, 17, 18)  # of numbers and text


def _check_mat(content: bytes) -> None:
    """Raises ValueError, struct.error or zlib.error for a damaged .mat file, on which scipy would end the process."""
    byte_order = '<' if content[126:MAT_HEADER] == b'IM' else '>'
    _check_elements(memoryview(content)[MAT_HEADER:], byte_order)


def _check_elements(content: memoryview, byte_order: str) -> None:
    position = 0
    while position < len(content):
        kind, size = struct.unpack_from(f'{byte_order}II', content, position)
        is_small = kind >> 16 > 0  # both numbers in the first four bytes, and up to four bytes of content
        size = 4 if is_small else size
        start = position + (4 if is_small else 8)
        kind &= 0xFFFF
        if start + size > len(content):
            raise ValueError('an element ends beyond the one that it is in')
        if kind == MAT_COMPRESSED:
            _check_elements(memoryview(zlib.decompress(content[start : start + size])), byte_order)
        elif kind == MAT_MATRIX:
            _check_elements(content[start : start + size], byte_order)
        elif kind not in MAT_TYPES:
            raise ValueError(f'an element has the type {kind}')
        position = start + size if kind == MAT_COMPRESSED else -(-(start + size) // 8) * 8  # padded to 8 bytes
