"""Losses: focal + dice on the best of the answered masks, and regression of its IoU (paper §3, §A; spec §3.1)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from samjax.errors import SamjaxError


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Weights and choices; the section `loss` of a config."""

    focal: float
    dice: float
    iou: float
    focal_alpha: float
    focal_gamma: float
    resolution: str  # 'frame' or 'low'
    padding: str  # 'exclude' or 'include'
    iou_supervision: str  # 'selected' or 'all'

    def __post_init__(self):
        for name, choices in (
            ('resolution', ('frame', 'low')),
            ('padding', ('exclude', 'include')),
            ('iou_supervision', ('selected', 'all')),
        ):
            if getattr(self, name) not in choices:
                raise SamjaxError(f'loss.{name} {getattr(self, name)!r} is neither {choices[0]!r} nor {choices[1]!r}.')


def sam_loss(
    options: LossOptions, logits_BNMHW: jax.Array, iou_BNM: jax.Array, masks_BNHW: jax.Array, area_BHW: jax.Array
) -> dict[str, jax.Array]:
    """The three loss parts of each object, unweighted, and the IoU its best mask has: each (B, N).

    Of the M candidates the one with the lowest weighted focal + dice loss counts, and only its gradient flows.

    Args:
      logits_BNMHW: candidate masks, float32.
      iou_BNM: the IoU the model expects of each.
      masks_BNHW: the truth, bool.
      area_BHW: bool, pixels that count.
    """
    weight_B11HW = area_BHW[:, None, None].astype(jnp.float32)
    truth_BN1HW = masks_BNHW[:, :, None].astype(jnp.float32)
    focal_BNM = focal_loss(logits_BNMHW, truth_BN1HW, weight_B11HW, options.focal_alpha, options.focal_gamma)
    dice_BNM = dice_loss(logits_BNMHW, truth_BN1HW, weight_B11HW)
    actual_BNM = jax.lax.stop_gradient(mask_iou(logits_BNMHW > 0, masks_BNHW[:, :, None], area_BHW[:, None, None]))
    square_BNM = jnp.square(iou_BNM - actual_BNM)

    best_BN1 = jnp.argmin(options.focal * focal_BNM + options.dice * dice_BNM, -1)[..., None]

    def pick(x_BNM):
        return jnp.take_along_axis(x_BNM, best_BN1, -1)[..., 0]

    iou_loss_BN = pick(square_BNM) if options.iou_supervision == 'selected' else square_BNM.mean(-1)
    return {'focal': pick(focal_BNM), 'dice': pick(dice_BNM), 'iou': iou_loss_BN, 'mask_iou': pick(actual_BNM)}


def total(options: LossOptions, parts: dict[str, jax.Array]) -> jax.Array:
    """20 focal + dice + IoU, by the weights of `options`."""
    return options.focal * parts['focal'] + options.dice * parts['dice'] + options.iou * parts['iou']


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


def mask_iou(predicted: jax.Array, truth: jax.Array, area: jax.Array) -> jax.Array:
    """Intersection over union of bool masks over the last two axes, on the pixels of `area`; 0 if both are empty."""
    intersection = (predicted & truth & area).sum((-2, -1))
    union = ((predicted | truth) & area).sum((-2, -1))
    return intersection / jnp.maximum(union, 1)
