"""All masks of a grid of clicks, scored on the device: only scores and boxes leave it, and the masks that are kept.

One program serves images of any size.  It goes through the clicks a few at a time, and gives up most masks for their
predicted IoU, which needs no pixels.  Only the others are enlarged, first to the resolution of the decoder's masks and
then, tile by tile, to that of the image.  No array has the size of the image.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from samjax.inference.predictor import Frame
from samjax.masks.resize import Taps
from samjax.model.sam import Sam
from samjax.structs import MULTIMASK, NOT_A_POINT, POSITIVE, Prompts

EDGE = 20  # px from the border of a crop at which a mask counts as cut off
GROUP = 8  # clicks, or masks, that are enlarged at once
SELECTED_BATCH = 16  # masks that leave the device at once
SIDE = 4096  # px; longer images need a program of their own, for each doubling
# Tile in px and masks at once: of a CPU, whose caches are small, and of anything else, which starts programs slowly.
TILES = {'cpu': (128, 8)}
LARGE_TILES = 512, 64


class AmgThresholds(NamedTuple):
    """Which masks stay; see `AmgConfig` in `samjax.inference.automatic.generator`."""

    iou: float
    stability: float
    offset: float
    share: float
    overlap: float
    batch: int  # clicks at once


class CropGeometry(NamedTuple):
    """Where a crop lies in the image and how the decoder's masks are enlarged to it; on the device."""

    size_2: np.ndarray  # int32, height and width of the crop, px
    box_4: np.ndarray  # int32, x0, y0, x1, y1 of the crop, px
    image_4: np.ndarray  # int32, the same of the image
    rows: Taps
    columns: Taps


class Proposals(NamedTuple):
    """Masks in the order of clicks and mask tokens; a row R is one of three of a click.

    What was not asked about, because the predicted IoU is too low, has stability 0 and box 0.
    """

    iou_R: jax.Array  # float32
    stability_R: jax.Array  # float32
    box_R4: jax.Array  # int32, x0, y0, x1, y1 in px of the crop, ends included
    order_R: jax.Array  # int32, the rows that stay, the best first; then -1


@functools.partial(jax.jit, static_argnums=0, static_argnames=('rules', 'window', 'tile'))
def propose(
    graphdef,
    params,
    buffers,
    embed_1hwC,
    points_S2,
    count,
    geometry: CropGeometry,
    *,
    rules: AmgThresholds,
    window: int,
    tile: int,
) -> Proposals:
    """Judges three masks of each of the first `count` clicks, given in px of the frame.

    S is a multiple of rules.batch; window, tile: see `tiling`.
    """
    sam: Sam = nnx.merge(graphdef, params, buffers)
    n, m = rules.batch, len(MULTIMASK)

    def more(carry):
        return carry[0] * n < count

    def some_clicks(carry):
        chunk, found = carry
        points_n2 = jax.lax.dynamic_slice_in_dim(points_S2, chunk * n, n)
        output_tokens_1n5C, image_1nhwC = sam.run_transformer(embed_1hwC, clicks(points_n2), None)
        iou_nM = sam.mask_decoder.iou_scores(output_tokens_1n5C, MULTIMASK)[0]
        asked_nM = jnp.broadcast_to((chunk * n + jnp.arange(n) < count)[:, None], iou_nM.shape)
        if rules.iou > 0:
            asked_nM &= iou_nM > rules.iou
        scored = score(sam, output_tokens_1n5C, image_1nhwC, asked_nM, geometry, rules, window, tile)
        new = iou_nM.ravel(), *scored
        found = tuple(
            jax.lax.dynamic_update_slice_in_dim(old, x, chunk * n * m, 0) for old, x in zip(found, new, strict=True)
        )
        return chunk + 1, found

    rows = len(points_S2) * m
    empty = jnp.zeros(rows), jnp.zeros(rows), jnp.zeros((rows, 4), jnp.int32), jnp.zeros(rows, bool)
    _, (iou_R, stability_R, box_R4, good_R) = jax.lax.while_loop(more, some_clicks, (0, empty))
    return Proposals(iou_R, stability_R, box_R4, nms(box_R4, iou_R, good_R, rules.overlap))


def score(
    sam: Sam,
    output_tokens_1n5C,
    image_1nhwC,
    asked_nM,
    geometry: CropGeometry,
    rules: AmgThresholds,
    window: int,
    tile: int,
):
    """Stability, box and whether it stays of the masks that are asked about, in rows (n M)."""
    n, m = asked_nM.shape
    y, x = (4 * side for side in image_1nhwC.shape[2:4])

    # What is asked about goes to the front, in groups of which only as many are computed as there are.
    clicks_n = jnp.argsort(~asked_nM.any(1), stable=True)
    group = math.gcd(n, GROUP)

    def enlarge(carry):
        at, low_nMyx = carry
        some = jax.lax.dynamic_slice_in_dim(clicks_n, at, group)
        upscaled_1ghw44U = sam.mask_decoder.upscale(image_1nhwC[:, some])
        low_gMyx = sam.mask_decoder.mask_logits(output_tokens_1n5C[:, some], upscaled_1ghw44U, MULTIMASK)[0]
        return at + group, jax.lax.dynamic_update_slice_in_dim(low_nMyx, low_gMyx, at, 0)

    used = asked_nM.any(1).sum()
    _, low_nMyx = jax.lax.while_loop(lambda c: c[0] < used, enlarge, (0, jnp.zeros((n, m, y, x), jnp.float32)))

    masks_R = jnp.argsort(~asked_nM[clicks_n].ravel(), stable=True)  # rows of low_nMyx
    rows_R = (clicks_n[:, None] * m + jnp.arange(m)[None]).ravel()[masks_R]  # the same, as rows of the answer
    low_Ryx = low_nMyx.reshape(n * m, y, x)
    together = math.gcd(n * m, tiles_of_platform()[1])

    def measure_some(carry):
        at, scored = carry
        some = jax.lax.dynamic_slice_in_dim(masks_R, at, together)
        rows = jax.lax.dynamic_slice_in_dim(rows_R, at, together)
        asked = at + jnp.arange(together) < asked_nM.sum()
        new = measure(low_Ryx[some], geometry, rules, window, tile)
        rows = jnp.where(asked, rows, n * m)
        return at + together, tuple(old.at[rows].set(x, mode='drop') for old, x in zip(scored, new, strict=True))

    rows = n * m
    empty = jnp.zeros(rows), jnp.zeros((rows, 4), jnp.int32), jnp.zeros(rows, bool)
    _, scored = jax.lax.while_loop(lambda c: c[0] < asked_nM.sum(), measure_some, (0, empty))
    return scored


def measure(low_Gyx, geometry: CropGeometry, rules: AmgThresholds, window: int, tile: int):
    """Stability, box and whether it stays of masks, by their logits at the resolution of the crop."""
    group, y, x = low_Gyx.shape
    low_yGx = jnp.moveaxis(low_Gyx, 0, 1)
    tall, wide = min(window, y), min(window, x)
    tiles_h, tiles_w = (-(-geometry.size_2[axis] // tile) for axis in range(2))
    beyond = jnp.iinfo(jnp.int32).max

    def one_tile(number, found):
        top, left = number // tiles_w * tile, number % tiles_w * tile
        y0, enlarge_py = interpolation_weights(geometry.rows, top, tile, tall, y)
        x0, enlarge_qx = interpolation_weights(geometry.columns, left, tile, wide, x)
        part_yGx = jax.lax.dynamic_slice(low_yGx, (y0, 0, x0), (tall, group, wide))

        def look(found):
            high, low, area, box_G4 = found
            wide_yGq = jnp.einsum('yGx,qx->yGq', part_yGx, enlarge_qx, precision='highest')
            logits_pGq = jnp.einsum('py,yGq->pGq', enlarge_py, wide_yGq, precision='highest')
            inside_p = top + jnp.arange(tile) < geometry.size_2[0]
            inside_q = left + jnp.arange(tile) < geometry.size_2[1]
            logits_pGq = jnp.where(inside_p[:, None, None] & inside_q[None, None], logits_pGq, -jnp.inf)
            # Three counts of up to 512 in one number, so that the pixels are read once.
            counted_pGq = (
                (logits_pGq > rules.offset).astype(jnp.int32)
                + ((logits_pGq > -rules.offset).astype(jnp.int32) << 10)
                + ((logits_pGq > 0).astype(jnp.int32) << 20)
            )
            counts_pG = counted_pGq.sum(2)
            area_pG = counts_pG >> 20
            rows_pG, columns_qG = area_pG > 0, (logits_pGq.max(0) > 0).T
            low_p, low_q = top + jnp.arange(tile)[:, None], left + jnp.arange(tile)[:, None]
            first = [jnp.where(some, place_, beyond).min(0) for some, place_ in ((columns_qG, low_q), (rows_pG, low_p))]
            last = [jnp.where(some, place_, -1).max(0) for some, place_ in ((columns_qG, low_q), (rows_pG, low_p))]
            seen_G4 = jnp.stack([*first, *last], 1)
            box_G4 = jnp.concatenate(
                [jnp.minimum(box_G4[:, :2], seen_G4[:, :2]), jnp.maximum(box_G4[:, 2:], seen_G4[:, 2:])], 1
            )
            return (
                high + (counts_pG & 1023).sum(0),
                low + ((counts_pG >> 10) & 1023).sum(0),
                area + area_pG.sum(0),
                box_G4,
            )

        # An enlarged logit is a mean of its neighbours: where all are low enough there is nothing to count.
        return jax.lax.cond(part_yGx.max() > -rules.offset - 1e-3, look, lambda found: found, found)

    zeros = jnp.zeros(group, jnp.int32)
    nothing = jnp.broadcast_to(jnp.array([beyond, beyond, -1, -1], jnp.int32), (group, 4))
    high, low, area, box_G4 = jax.lax.fori_loop(0, tiles_h * tiles_w, one_tile, (zeros, zeros, zeros, nothing))

    box_G4 = jnp.where((area > 0)[:, None], box_G4, 0)
    stability = jnp.where(low > 0, high / low, 0)
    good = ~cut_off(box_G4, geometry)
    if rules.stability > 0:
        good &= (low > 0) & (stability >= rules.stability)
    if rules.share < 1:
        good &= area < rules.share * geometry.image_4[2:].astype(jnp.float32).prod()
    return stability, box_G4, good


def cut_off(box_G4, geometry: CropGeometry):
    """Whether a box comes near an edge of the crop that is none of the image (utils/amg.py)."""
    box_G4 = box_G4 + geometry.box_4[jnp.array([0, 1, 0, 1])][None]
    near_crop = jnp.abs(box_G4 - geometry.box_4[None]) <= EDGE
    near_image = jnp.abs(box_G4 - geometry.image_4[None]) <= EDGE
    return (near_crop & ~near_image).any(1)


def nms(box_R4, score_R, good_R, overlap: float) -> jax.Array:
    """The rows that stay, best score first, then -1: a box goes if its IoU with a better one that stays is larger.

    As `samjax.masks.boxes.nms`, with ends of boxes included but areas (x1 - x0) (y1 - y0).  Source: torchvision.ops.nms.
    """
    box_R4 = box_R4.astype(jnp.float32)
    area_R = (box_R4[:, 2] - box_R4[:, 0]) * (box_R4[:, 3] - box_R4[:, 1])

    def take(carry):
        alive_R, order_R, taken = carry
        best = jnp.argmax(jnp.where(alive_R, score_R, -jnp.inf))
        low_R2 = jnp.maximum(box_R4[:, :2], box_R4[best, :2][None])
        high_R2 = jnp.minimum(box_R4[:, 2:], box_R4[best, 2:][None])
        shared_R = jnp.prod(jnp.maximum(high_R2 - low_R2, 0), 1)
        iou_R = shared_R / (area_R + area_R[best] - shared_R)
        alive_R &= ~(iou_R > overlap) & (jnp.arange(len(score_R)) != best)
        return alive_R, order_R.at[taken].set(best.astype(jnp.int32)), taken + 1

    nothing = jnp.full(len(score_R), -1, jnp.int32)
    _, order_R, _ = jax.lax.while_loop(lambda c: c[0].any(), take, (good_R, nothing, 0))
    return order_R


@functools.partial(jax.jit, static_argnums=0)
def decode_selected(graphdef, params, buffers, embed_1hwC, points_N2, mask_N) -> jax.Array:
    """Low-resolution logits (N, y, x) of one mask, 0, 1 or 2, of each click."""
    sam: Sam = nnx.merge(graphdef, params, buffers)
    low_1NMyx = sam.decode(embed_1hwC, clicks(points_N2), MULTIMASK).logits_BNMyx
    return jnp.take_along_axis(low_1NMyx[0], mask_N[:, None, None, None], 1)[:, 0]


def clicks(points_n2) -> Prompts:
    """One point on each object, and the token that goes with points alone."""
    points_1nP2 = jnp.stack([points_n2, jnp.zeros_like(points_n2)], 1)[None]
    labels_1nP = jnp.broadcast_to(jnp.array([POSITIVE, NOT_A_POINT], jnp.int32), (1, len(points_n2), 2))
    return Prompts(points_1nP2, labels_1nP)


# ---- how masks are enlarged, on the host ----


def tiles_of_platform() -> tuple[int, int]:
    return TILES.get(jax.default_backend(), LARGE_TILES)


def tiling(frame: Frame, low_size: tuple[int, int]) -> tuple[int, int]:
    """Sides of the tiles of an image, px, and of the window of low-resolution logits that is enough for any of them.

    There are five windows for each model, so that few programs are compiled.
    """
    tile, _ = tiles_of_platform()
    need = 0
    for taps, low in ((frame.rows, low_size[0]), (frame.columns, low_size[1])):
        first = taps.first_n[::tile]
        last = taps.first_n[np.minimum(np.arange(len(first)) * tile + tile, len(taps.first_n)) - 1]
        need = max(need, int((np.minimum(last + taps.weight_nt.shape[1], low) - first).max()))
    low = max(low_size)
    return tile, next((w for w in (low // part + 8 for part in (16, 8, 4, 2)) if need <= w < low), low)


def padded(taps: Taps) -> Taps:
    """Of as many outputs as images up to `SIDE` px need, or twice, four times .. as many; the last one is repeated."""
    length = SIDE
    while length < len(taps.first_n):
        length *= 2
    more = length - len(taps.first_n)
    return Taps(np.pad(taps.first_n, (0, more), 'edge'), np.pad(taps.weight_nt, ((0, more), (0, 0)), 'edge'))


def interpolation_weights(taps: Taps, start, tile: int, window: int, low: int):
    """Where the window of a tile begins, and its weights (tile, window)."""
    first_p = jax.lax.dynamic_slice_in_dim(taps.first_n, start, tile)
    weight_pt = jax.lax.dynamic_slice_in_dim(taps.weight_nt, start, tile)
    begin = jnp.minimum(first_p[0], low - window)
    place_pt = first_p[:, None] - begin + jnp.arange(weight_pt.shape[1])[None]
    return begin, (weight_pt[..., None] * (place_pt[..., None] == jnp.arange(window)[None, None])).sum(1)
