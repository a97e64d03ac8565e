"""Losses: focal + dice on the best of the predicted masks, and regression of its IoU (paper §3 and §A)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from samjax.errors import SamjaxError, check_option
from samjax.masks.iou import mask_iou


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The section `loss` of samjax.config, which explains the fields."""

    focal: float
    dice: float
    iou: float
    focal_alpha: float
    focal_gamma: float
    resolution: str  # 'input' or 'low_res'
    padding: str  # 'exclude' or 'include'
    iou_supervision: str  # 'selected' or 'all'

    def __post_init__(self):
        for name, choices in (
            ('resolution', ('input', 'low_res')),
            ('padding', ('exclude', 'include')),
            ('iou_supervision', ('selected', 'all')),
        ):
            if getattr(self, name) not in choices:
                raise SamjaxError(f'loss.{name} {getattr(self, name)!r} is neither {choices[0]!r} nor {choices[1]!r}.')
        for name in ('focal', 'dice', 'iou', 'focal_gamma'):
            check_option(f'loss.{name}', getattr(self, name), lambda x: 0 <= x < math.inf, 'a number, 0 or more')
        check_option('loss.focal_alpha', self.focal_alpha, lambda x: 0 <= x <= 1, 'a number from 0 to 1')
        if self.focal == self.dice == 0:
            raise SamjaxError('loss.focal and loss.dice are both 0, and no mask is learned: set one to more than 0')


def sam_loss(
    config: LossConfig,
    low_res_BNMyx: jax.Array,
    iou_BNM: jax.Array,
    masks_BNHW: jax.Array,
    area_BHW: jax.Array,
    upscale: Callable[[jax.Array], jax.Array],
) -> dict[str, jax.Array]:
    """The three loss terms of each object, unweighted, and the IoU of its best mask: each (B, N).

    Of the M predicted masks the one with the lowest weighted focal + dice loss counts, and only its gradient flows.  So
    each is scored without gradient, one after another, and the best again with it: one mask is at full size at a time.

    Args:
      low_res_BNMyx: logits of the predicted masks, float32.
      iou_BNM: their predicted IoU.
      masks_BNHW: the true masks, bool.
      area_BHW: bool, pixels that count.
      upscale: logits of a mask of each object, from their size to that of the true masks.
    """
    weight_B1HW, truth_BNHW = area_BHW[:, None].astype(jnp.float32), masks_BNHW.astype(jnp.float32)

    def score_masks(low_res_BNyx):
        """Focal loss, dice loss and IoU of a mask of each object."""
        logits_BNHW = upscale(low_res_BNyx)
        focal_BN = focal_loss(logits_BNHW, truth_BNHW, weight_B1HW, config.focal_alpha, config.focal_gamma)
        mask_iou_BN = mask_iou(logits_BNHW > 0, masks_BNHW, area_BHW[:, None])
        return focal_BN, dice_loss(logits_BNHW, truth_BNHW, weight_B1HW), mask_iou_BN

    if low_res_BNMyx.shape[2] == 1:
        best_BN1 = jnp.zeros((*low_res_BNMyx.shape[:2], 1), jnp.int32)
        focal_BN, dice_BN, mask_iou_BN = score_masks(low_res_BNMyx[:, :, 0])
        mask_iou_BNM = mask_iou_BN[..., None]
    else:
        low_res_MBNyx = jnp.moveaxis(jax.lax.stop_gradient(low_res_BNMyx), 2, 0)
        focal_BNM, dice_BNM, mask_iou_BNM = (jnp.moveaxis(x, 0, -1) for x in jax.lax.map(score_masks, low_res_MBNyx))
        best_BN1 = jnp.argmin(config.focal * focal_BNM + config.dice * dice_BNM, -1)[..., None]
        focal_BN, dice_BN, mask_iou_BN = score_masks(take_mask(low_res_BNMyx, best_BN1))

    square_BNM = jnp.square(iou_BNM - mask_iou_BNM)
    if config.iou_supervision == 'selected':
        iou_loss_BN = jnp.take_along_axis(square_BNM, best_BN1, -1)[..., 0]
    else:
        iou_loss_BN = square_BNM.mean(-1)
    return {'focal': focal_BN, 'dice': dice_BN, 'iou': iou_loss_BN, 'mask_iou': mask_iou_BN}


def take_mask(logits_BNMyx: jax.Array, index_BN1: jax.Array) -> jax.Array:
    """The mask of each object at its index."""
    return jnp.take_along_axis(logits_BNMyx, index_BN1[..., None, None], 2)[:, :, 0]


def total(config: LossConfig, terms: dict[str, jax.Array]) -> jax.Array:
    """The weighted sum of the terms, by default 20 focal + dice + IoU."""
    return config.focal * terms['focal'] + config.dice * terms['dice'] + config.iou * terms['iou']


def focal_loss(logits: jax.Array, truth: jax.Array, weight: jax.Array, alpha: float, gamma: float) -> jax.Array:
    """Mean over the pixels (last two axes) with weight 1 of -alpha_t (1 - p_t)^gamma log p_t (Lin et al. 2017).

    alpha weighs foreground, 1 - alpha background.  Computed from logits, so it is finite for any of them.
    """
    # With s = +1 on foreground and -1 on background, p_t = sigmoid(s logits).
    signed = logits * (2 * truth - 1)
    log_p = jax.nn.log_sigmoid(signed)
    # log (1 - p_t) = log_sigmoid(-signed); the power by exp keeps the gradient finite where 1 - p_t vanishes.
    modulation = jnp.exp(gamma * (log_p - signed))
    balance = alpha * truth + (1 - alpha) * (1 - truth)
    return (-balance * modulation * log_p * weight).sum((-2, -1)) / jnp.maximum(weight.sum((-2, -1)), 1)


def dice_loss(logits: jax.Array, truth: jax.Array, weight: jax.Array) -> jax.Array:
    """1 - (2 sum p t + 1) / (sum p + sum t + 1) over the last two axes, p = sigmoid(logits)."""
    p = jax.nn.sigmoid(logits) * weight
    t = truth * weight
    overlap = (p * t).sum((-2, -1))
    return 1 - (2 * overlap + 1) / (p.sum((-2, -1)) + t.sum((-2, -1)) + 1)
