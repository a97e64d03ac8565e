"""The masks of a grid of points, scored on the device: only scores, boxes and the masks that are kept leave it.

One compiled function serves images of any size.  It decodes a batch of points after the other and rejects most masks by
their predicted IoU, which needs no pixels.  Only the others are upscaled, first to the resolution of the decoder's
masks and then, tile by tile, to that of the image.  No array has the size of the image.

Suffixes besides the key in `samjax.structs`: F the masks of all points (N x M, flattened), n the points of a batch, g
masks that are upscaled together, p and q rows and columns of a tile.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from samjax.inference.frame import Frame
from samjax.inference.prompts import point_prompts
from samjax.masks.boxes import nms_on_device
from samjax.masks.resize import Taps
from samjax.model.sam import Sam
from samjax.structs import MULTIMASK, POSITIVE

CROP_EDGE_TOLERANCE = 20  # px from the border of a crop at which a mask counts as cut off
UPSCALE_BATCH = 8  # points whose masks are upscaled at once to the resolution of the decoder's masks
SELECTED_BATCH = 16  # masks that leave the device at once
PADDED_LENGTH = 4096  # px; longer images need another compilation, for each doubling
# Side of a tile in px and masks at once, for a CPU, whose caches are small, and for all others, which start kernels
# slowly.
TILES = {'cpu': (128, 8)}
DEFAULT_TILES = 512, 64


class AmgThresholds(NamedTuple):
    """Which masks stay; see `AmgConfig` in `samjax.inference.automatic.generator`."""

    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    max_mask_fraction: float
    box_nms_thresh: float
    points_per_batch: int


class CropGeometry(NamedTuple):
    """Where a crop lies in the image and how the decoder's masks are resized to it; arrays on the device."""

    size_2: np.ndarray  # int32, height and width of the crop, px
    crop_box_4: np.ndarray  # int32, x0, y0, x1, y1 of the crop in the image, px
    image_box_4: np.ndarray  # int32, 0, 0, width, height of the image, px
    row_taps: Taps
    column_taps: Taps


class Proposals(NamedTuple):
    """Scores of masks in the order of points and mask tokens: mask f is of token f % 3 of point f // 3.

    A mask that was rejected for its predicted IoU has stability score 0 and box 0.
    """

    iou_F: jax.Array  # float32
    stability_F: jax.Array  # float32
    box_F4: jax.Array  # int32, x0, y0, x1, y1 in px of the crop, ends included
    kept_F: jax.Array  # int32, indices of the masks that stay, best predicted IoU first; then -1


@functools.partial(jax.jit, static_argnums=0, static_argnames=('thresholds', 'window', 'tile'))
def propose(
    graphdef,
    params,
    buffers,
    embed_1hwC,
    points_N2,
    count,
    geometry: CropGeometry,
    *,
    thresholds: AmgThresholds,
    window: int,
    tile: int,
) -> Proposals:
    """Scores three masks of each of the first `count` points, given in px of the frame.

    N is a multiple of points_per_batch; window, tile: see `tiling`.
    """
    sam: Sam = nnx.merge(graphdef, params, buffers)
    n, m = thresholds.points_per_batch, len(MULTIMASK)

    def is_unfinished(carry):
        return carry[0] * n < count

    def score_batch(carry):
        batch, scores = carry
        points_n2 = jax.lax.dynamic_slice_in_dim(points_N2, batch * n, n)
        output_tokens_1nTC, image_1nhwC = sam.run_transformer(
            embed_1hwC, point_prompts(points_n2[:, None], POSITIVE), None
        )
        iou_nM = sam.mask_decoder.iou_scores(output_tokens_1nTC, MULTIMASK)[0]
        candidate_nM = jnp.broadcast_to((batch * n + jnp.arange(n) < count)[:, None], iou_nM.shape)
        if thresholds.pred_iou_thresh > 0:
            candidate_nM &= iou_nM > thresholds.pred_iou_thresh
        new_scores = (
            iou_nM.ravel(),
            *score_masks(sam, output_tokens_1nTC, image_1nhwC, candidate_nM, geometry, thresholds, window, tile),
        )
        scores = tuple(
            jax.lax.dynamic_update_slice_in_dim(old, new, batch * n * m, 0)
            for old, new in zip(scores, new_scores, strict=True)
        )
        return batch + 1, scores

    masks = len(points_N2) * m
    empty = jnp.zeros(masks), jnp.zeros(masks), jnp.zeros((masks, 4), jnp.int32), jnp.zeros(masks, bool)
    _, (iou_F, stability_F, box_F4, good_F) = jax.lax.while_loop(is_unfinished, score_batch, (0, empty))
    kept_F = nms_on_device(box_F4, iou_F, good_F, thresholds.box_nms_thresh)
    return Proposals(iou_F, stability_F, box_F4, kept_F)


def score_masks(
    sam: Sam,
    output_tokens_1nTC,
    image_1nhwC,
    candidate_nM,
    geometry: CropGeometry,
    thresholds: AmgThresholds,
    window: int,
    tile: int,
):
    """Stability score, box, and whether it passes all thresholds, of each mask that is a candidate: (n M, ..)."""
    n, m = candidate_nM.shape
    y, x = (4 * side for side in image_1nhwC.shape[2:4])

    # Points with candidates come first, so that only their masks are computed, in batches.
    point_order_n = jnp.argsort(~candidate_nM.any(1), stable=True)
    upscale_batch = math.gcd(n, UPSCALE_BATCH)

    def upscale_masks(carry):
        start, low_res_nMyx = carry
        points_g = jax.lax.dynamic_slice_in_dim(point_order_n, start, upscale_batch)
        upscaled_1ghw44U = sam.mask_decoder.upscale(image_1nhwC[:, points_g])
        low_res_gMyx = sam.mask_decoder.mask_logits(output_tokens_1nTC[:, points_g], upscaled_1ghw44U, MULTIMASK)[0]
        return start + upscale_batch, jax.lax.dynamic_update_slice_in_dim(low_res_nMyx, low_res_gMyx, start, 0)

    points = candidate_nM.any(1).sum()
    zeros_nMyx = jnp.zeros((n, m, y, x), jnp.float32)
    _, low_res_nMyx = jax.lax.while_loop(lambda carry: carry[0] < points, upscale_masks, (0, zeros_nMyx))

    # The same for masks: candidates first, by their index in low_res_nMyx and by their index in the result.
    low_res_order_F = jnp.argsort(~candidate_nM[point_order_n].ravel(), stable=True)
    order_F = (point_order_n[:, None] * m + jnp.arange(m)[None]).ravel()[low_res_order_F]
    low_res_Fyx = low_res_nMyx.reshape(n * m, y, x)
    measure_batch = math.gcd(n * m, tiles_of_platform()[1])
    candidates = candidate_nM.sum()

    def measure(carry):
        start, measures = carry
        low_res_g = jax.lax.dynamic_slice_in_dim(low_res_order_F, start, measure_batch)
        index_g = jax.lax.dynamic_slice_in_dim(order_F, start, measure_batch)
        new = measure_masks(low_res_Fyx[low_res_g], geometry, thresholds, window, tile)
        index_g = jnp.where(start + jnp.arange(measure_batch) < candidates, index_g, n * m)
        return (
            start + measure_batch,
            tuple(old.at[index_g].set(values, mode='drop') for old, values in zip(measures, new, strict=True)),
        )

    empty = jnp.zeros(n * m), jnp.zeros((n * m, 4), jnp.int32), jnp.zeros(n * m, bool)
    _, measures = jax.lax.while_loop(lambda carry: carry[0] < candidates, measure, (0, empty))
    return measures


def measure_masks(low_res_gyx, geometry: CropGeometry, thresholds: AmgThresholds, window: int, tile: int):
    """Stability score, box, and whether it passes all thresholds, of masks by their logits in the crop."""
    group, y, x = low_res_gyx.shape
    low_res_ygx = jnp.moveaxis(low_res_gyx, 0, 1)
    window_h, window_w = min(window, y), min(window, x)
    tiles_h, tiles_w = (-(-geometry.size_2[axis] // tile) for axis in range(2))
    beyond = jnp.iinfo(jnp.int32).max
    offset = thresholds.stability_score_offset

    def measure_tile(number, measures):
        top, left = number // tiles_w * tile, number % tiles_w * tile
        y0, weights_py = interpolation_weights(geometry.row_taps, top, tile, window_h, y)
        x0, weights_qx = interpolation_weights(geometry.column_taps, left, tile, window_w, x)
        window_ygx = jax.lax.dynamic_slice(low_res_ygx, (y0, 0, x0), (window_h, group, window_w))

        def add_tile(measures):
            high_g, low_g, area_g, box_g4 = measures
            wide_ygq = jnp.einsum('ygx,qx->ygq', window_ygx, weights_qx, precision='highest')
            logits_pgq = jnp.einsum('py,ygq->pgq', weights_py, wide_ygq, precision='highest')
            inside_p = top + jnp.arange(tile) < geometry.size_2[0]
            inside_q = left + jnp.arange(tile) < geometry.size_2[1]
            logits_pgq = jnp.where(inside_p[:, None, None] & inside_q[None, None], logits_pgq, -jnp.inf)
            # Three counts of up to 512 in one number, so that the pixels are read once.
            counted_pgq = (
                (logits_pgq > offset).astype(jnp.int32)
                + ((logits_pgq > -offset).astype(jnp.int32) << 10)
                + ((logits_pgq > 0).astype(jnp.int32) << 20)
            )
            counts_pg = counted_pgq.sum(2)
            area_pg = counts_pg >> 20
            mask_pg, mask_qg = area_pg > 0, (logits_pgq.max(0) > 0).T
            row_p1, column_q1 = top + jnp.arange(tile)[:, None], left + jnp.arange(tile)[:, None]
            by_axis = (mask_qg, column_q1), (mask_pg, row_p1)
            first = [jnp.where(mask, index, beyond).min(0) for mask, index in by_axis]
            last = [jnp.where(mask, index, -1).max(0) for mask, index in by_axis]
            tile_box_g4 = jnp.stack([*first, *last], 1)
            box_g4 = jnp.concatenate(
                [jnp.minimum(box_g4[:, :2], tile_box_g4[:, :2]), jnp.maximum(box_g4[:, 2:], tile_box_g4[:, 2:])], 1
            )
            return (
                high_g + (counts_pg & 1023).sum(0),
                low_g + ((counts_pg >> 10) & 1023).sum(0),
                area_g + area_pg.sum(0),
                box_g4,
            )

        # An upscaled logit is a mean of its neighbours: where all are low enough there is nothing to count.
        return jax.lax.cond(window_ygx.max() > -offset - 1e-3, add_tile, lambda measures: measures, measures)

    zeros_g = jnp.zeros(group, jnp.int32)
    empty_box_g4 = jnp.broadcast_to(jnp.array([beyond, beyond, -1, -1], jnp.int32), (group, 4))
    high_g, low_g, area_g, box_g4 = jax.lax.fori_loop(
        0, tiles_h * tiles_w, measure_tile, (zeros_g, zeros_g, zeros_g, empty_box_g4)
    )

    box_g4 = jnp.where((area_g > 0)[:, None], box_g4, 0)
    stability_g = jnp.where(low_g > 0, high_g / low_g, 0)
    good_g = ~is_box_near_crop_edge(box_g4, geometry)
    if thresholds.stability_score_thresh > 0:
        good_g &= (low_g > 0) & (stability_g >= thresholds.stability_score_thresh)
    if thresholds.max_mask_fraction < 1:
        good_g &= area_g < thresholds.max_mask_fraction * geometry.image_box_4[2:].astype(jnp.float32).prod()
    return stability_g, box_g4, good_g


def is_box_near_crop_edge(box_g4, geometry: CropGeometry):
    """Whether a box comes near an edge of the crop that is not one of the image; bool (g,).

    Source: the function of the same name of segment-anything's utils/amg.py.
    """
    box_g4 = box_g4 + geometry.crop_box_4[jnp.array([0, 1, 0, 1])][None]
    near_crop = jnp.abs(box_g4 - geometry.crop_box_4[None]) <= CROP_EDGE_TOLERANCE
    near_image = jnp.abs(box_g4 - geometry.image_box_4[None]) <= CROP_EDGE_TOLERANCE
    return (near_crop & ~near_image).any(1)


@functools.partial(jax.jit, static_argnums=0)
def decode_selected(graphdef, params, buffers, embed_1hwC, points_N2, mask_index_N) -> jax.Array:
    """Low-resolution logits (N, y, x) of one mask, 0, 1 or 2, of each point."""
    sam: Sam = nnx.merge(graphdef, params, buffers)
    low_res_1NMyx = sam.decode(embed_1hwC, point_prompts(points_N2[:, None], POSITIVE), MULTIMASK).logits_BNMyx
    return jnp.take_along_axis(low_res_1NMyx[0], mask_index_N[:, None, None, None], 1)[:, 0]


# ---- tiles and interpolation weights ----


def tiles_of_platform() -> tuple[int, int]:
    """Side of a tile in px, and how many masks are measured at once."""
    return TILES.get(jax.default_backend(), DEFAULT_TILES)


def tiling(frame: Frame, low_res_size: tuple[int, int]) -> tuple[int, int]:
    """Side of the tiles of an image, px, and side of a window of low-resolution logits that is enough for any of them.

    There are five window sizes for each model, so that `propose` is compiled five times at most.
    """
    tile, _ = tiles_of_platform()
    required = 0
    for taps, low in ((frame.row_taps, low_res_size[0]), (frame.column_taps, low_res_size[1])):
        first = taps.first_n[::tile]
        last = taps.first_n[np.minimum(np.arange(len(first)) * tile + tile, len(taps.first_n)) - 1]
        required = max(required, int((np.minimum(last + taps.weight_nt.shape[1], low) - first).max()))
    low = max(low_res_size)
    return tile, next((w for w in (low // part + 8 for part in (16, 8, 4, 2)) if required <= w < low), low)


def pad_taps(taps: Taps) -> Taps:
    """Taps for as many outputs as images of up to `PADDED_LENGTH` px need, or 2, 4, .. times as many.

    The last output is repeated.
    """
    length = PADDED_LENGTH
    while length < len(taps.first_n):
        length *= 2
    padding = length - len(taps.first_n)
    return Taps(np.pad(taps.first_n, (0, padding), 'edge'), np.pad(taps.weight_nt, ((0, padding), (0, 0)), 'edge'))


def interpolation_weights(taps: Taps, start, tile: int, window: int, low: int):
    """Of the tile that begins at pixel `start`: where its window begins, and weights (tile, window).  low: inputs."""
    first_p = jax.lax.dynamic_slice_in_dim(taps.first_n, start, tile)
    weight_pt = jax.lax.dynamic_slice_in_dim(taps.weight_nt, start, tile)
    begin = jnp.minimum(first_p[0], low - window)
    index_pt = first_p[:, None] - begin + jnp.arange(weight_pt.shape[1])[None]
    return begin, (weight_pt[..., None] * (index_pt[..., None] == jnp.arange(window)[None, None])).sum(1)
