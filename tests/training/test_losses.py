"""Losses against literal values and a plain numpy transcription."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samjax.config import get_config
from samjax.masks import resize
from samjax.masks.iou import mask_iou
from samjax.training import losses
from samjax.training.losses import LossConfig

PAPER = LossConfig(**get_config().loss)


def same(logits_BNHW):
    """Logits that need not be enlarged."""
    return logits_BNHW


def test_focal_loss_of_two_pixels():
    logits = jnp.array([[0.0, np.log(3.0)]])  # p = 0.5, 0.75
    truth = jnp.array([[1.0, 0.0]])
    # foreground: .25 * .5^2 * ln 2;  background: .75 * .75^2 * ln 4
    expected = (0.25 * 0.25 * np.log(2) + 0.75 * 0.5625 * np.log(4)) / 2
    np.testing.assert_allclose(losses.focal_loss(logits, truth, jnp.ones((1, 2)), 0.25, 2.0), expected, rtol=1e-6)


def test_dice_loss_of_two_pixels():
    logits = jnp.array([[0.0, np.log(3.0)]])
    truth = jnp.array([[1.0, 0.0]])
    expected = 1 - (2 * 0.5 + 1) / (0.5 + 0.75 + 1 + 1)
    np.testing.assert_allclose(losses.dice_loss(logits, truth, jnp.ones((1, 2))), expected, rtol=1e-6)


def test_losses_are_finite_for_extreme_logits():
    def total(logits):
        weight, truth = jnp.ones((1, 4)), jnp.array([[1.0, 0.0, 1.0, 0.0]])
        return losses.focal_loss(logits, truth, weight, 0.25, 2.0) + losses.dice_loss(logits, truth, weight)

    value, grad = jax.value_and_grad(total)(jnp.array([[1e4, -1e4, -1e4, 1e4]]))
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


def transcribed(logits_MHW, iou_M, truth_HW, area_HW, supervision):
    """The losses of one object, pixel by pixel."""
    candidates = []
    for logits_HW, iou in zip(logits_MHW, iou_M, strict=True):
        focal = overlap = sum_p = sum_t = intersection = union = count = 0
        for logit, t, counted in zip(logits_HW.ravel(), truth_HW.ravel(), area_HW.ravel(), strict=True):
            if not counted:
                continue
            p = 1 / (1 + np.exp(-logit))
            p_t, alpha_t = (p, 0.25) if t else (1 - p, 0.75)
            focal += -alpha_t * (1 - p_t) ** 2 * np.log(p_t)
            overlap, sum_p, sum_t = overlap + p * t, sum_p + p, sum_t + t
            intersection, union = intersection + (logit > 0 and t), union + (logit > 0 or t)
            count += 1
        actual = intersection / max(union, 1)
        dice = 1 - (2 * overlap + 1) / (sum_p + sum_t + 1)
        candidates.append({'focal': focal / count, 'dice': dice, 'iou': (iou - actual) ** 2, 'mask_iou': actual})
    best = min(candidates, key=lambda c: 20 * c['focal'] + c['dice'])
    if supervision == 'all':
        best['iou'] = np.mean([c['iou'] for c in candidates])
    return best


@pytest.mark.parametrize('masks', [3, 1])
@pytest.mark.parametrize('supervision', ['selected', 'all'])
def test_sam_loss_equals_a_plain_transcription(supervision, masks):
    rng = np.random.default_rng(0)
    logits_BNMHW = rng.normal(0, 3, (2, 3, masks, 5, 7)).astype(np.float32)
    iou_BNM = rng.uniform(0, 1, (2, 3, masks)).astype(np.float32)
    masks_BNHW = rng.random((2, 3, 5, 7)) < 0.4
    area_BHW = np.ones((2, 5, 7), bool)
    area_BHW[1, 3:] = False
    options = dataclasses.replace(PAPER, iou_supervision=supervision)
    parts = losses.sam_loss(options, logits_BNMHW, iou_BNM, masks_BNHW, area_BHW, same)
    for b in range(2):
        for n in range(3):
            expected = transcribed(logits_BNMHW[b, n], iou_BNM[b, n], masks_BNHW[b, n], area_BHW[b], supervision)
            for name, value in expected.items():
                np.testing.assert_allclose(parts[name][b, n], value, rtol=2e-5, atol=1e-6, err_msg=name)


def test_only_the_best_candidate_gets_a_gradient():
    truth_BNHW = np.array([[[[1, 1, 0, 0]]]], bool)
    logits_BNMHW = jnp.array([[[[[3.0, -3, 3, -3]], [[3.0, 3, -3, -3]], [[-3.0, -3, 3, 3]]]]])
    iou_BNM = jnp.array([[[0.1, 0.2, 0.3]]])

    def loss(logits, iou):
        parts = losses.sam_loss(PAPER, logits, iou, truth_BNHW, np.ones((1, 1, 4), bool), same)
        return losses.total(PAPER, parts).sum()

    grad_logits, grad_iou = jax.grad(loss, (0, 1))(logits_BNMHW, iou_BNM)
    np.testing.assert_array_equal(np.abs(grad_logits[0, 0]).sum((1, 2)) > 0, [False, True, False])
    np.testing.assert_allclose(grad_iou[0, 0], [0, 2 * (0.2 - 1.0), 0], rtol=1e-6)


def test_one_mask_at_a_time_equals_all_enlarged_at_once():
    """Value and gradient, with the logits at half the size of the truth."""
    rng = np.random.default_rng(1)
    low_BNMyx = jnp.asarray(rng.normal(0, 3, (2, 3, 3, 3, 4)), jnp.float32)
    iou_BNM = jnp.asarray(rng.uniform(0, 1, (2, 3, 3)), jnp.float32)
    masks_BNHW = rng.random((2, 3, 6, 8)) < 0.4
    area_BHW = np.ones((2, 6, 8), bool)
    area_BHW[1, 4:] = False

    def upscale(low):
        return resize.upsample(low, 2)

    def found(low_BNMyx, iou_BNM):
        parts = losses.sam_loss(PAPER, low_BNMyx, iou_BNM, masks_BNHW, area_BHW, upscale)
        return losses.total(PAPER, parts).sum()

    def expected(low_BNMyx, iou_BNM):
        logits_BNMHW, weight, truth = upscale(low_BNMyx), area_BHW[:, None, None] * 1.0, masks_BNHW[:, :, None] * 1.0
        mask_loss_BNM = 20 * losses.focal_loss(logits_BNMHW, truth, weight, 0.25, 2.0)
        mask_loss_BNM += losses.dice_loss(logits_BNMHW, truth, weight)
        actual_BNM = mask_iou(logits_BNMHW > 0, masks_BNHW[:, :, None], area_BHW[:, None, None])
        best_BN1 = mask_loss_BNM.argmin(-1)[..., None]
        return jnp.take_along_axis(mask_loss_BNM + (iou_BNM - actual_BNM) ** 2, best_BN1, -1).sum()

    (a, grads_a), (b, grads_b) = (jax.value_and_grad(f, (0, 1))(low_BNMyx, iou_BNM) for f in (found, expected))
    np.testing.assert_allclose(a, b, rtol=1e-6)
    for x, y in zip(grads_a, grads_b, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_padding_counts_only_on_request():
    logits_BNMHW = jnp.zeros((1, 1, 1, 2, 2))
    masks_BNHW = np.array([[[[1, 0], [0, 0]]]], bool)
    half, whole = np.array([[[1, 1], [0, 0]]], bool), np.ones((1, 2, 2), bool)
    iou_BNM = jnp.zeros((1, 1, 1))
    excluded = losses.sam_loss(PAPER, logits_BNMHW, iou_BNM, masks_BNHW, half, same)
    included = losses.sam_loss(PAPER, logits_BNMHW, iou_BNM, masks_BNHW, whole, same)
    np.testing.assert_allclose(excluded['dice'], 1 - 2 / 3)
    np.testing.assert_allclose(included['dice'], 1 - 2 / 4)


def test_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="loss.resolution 'half'"):
        dataclasses.replace(PAPER, resolution='half')
