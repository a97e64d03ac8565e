"""Simulated users: where clicks and boxes fall, and when."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samjax.config import get_config
from samjax.structs import ABSENT, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NEGATIVE, NOT_A_POINT, POSITIVE
from samjax.training import click_simulation
from samjax.training.click_simulation import ClickSimulation

PAPER = ClickSimulation(**get_config().prompts)


def keys(seed):
    """One for the only image of a batch."""
    return jax.random.split(jax.random.key(seed), 1)


def test_sample_pixel_is_uniform_over_the_mask():
    mask_HW = np.array([[0, 1, 0, 0], [1, 1, 0, 1]], bool)
    masks_BNHW = np.broadcast_to(mask_HW, (1, 4000, 2, 4))
    xy_N2 = np.asarray(click_simulation.sample_pixel(masks_BNHW, keys(0)))[0].astype(int)
    counts_HW = np.zeros((2, 4), int)
    np.add.at(counts_HW, (xy_N2[:, 1], xy_N2[:, 0]), 1)
    assert (counts_HW[~mask_HW] == 0).all()
    np.testing.assert_allclose(counts_HW[mask_HW], 1000, atol=120)  # 4 standard deviations


def test_sample_pixel_of_empty_mask_is_the_origin():
    masks_BNHW = np.zeros((1, 1, 3, 5), bool)
    np.testing.assert_array_equal(click_simulation.sample_pixel(masks_BNHW, keys(0)), [[[0, 0]]])


def test_bounding_box_is_inclusive_and_xy():
    masks_BNHW = np.zeros((1, 3, 4, 6), bool)
    masks_BNHW[0, 0, 1:3, 2:5] = True
    masks_BNHW[0, 1, 3, 5] = True
    box_BN22 = click_simulation.bounding_box(masks_BNHW)
    np.testing.assert_array_equal(box_BN22[0], [[[2, 1], [4, 2]], [[5, 3], [5, 3]], [[0, 0], [0, 0]]])


@pytest.mark.parametrize('noise', ['gaussian', 'uniform'])
def test_box_noise_is_bounded_and_stays_on_the_image(noise):
    simulation = dataclasses.replace(PAPER, box_noise=noise)
    box_BN22 = jnp.broadcast_to(jnp.array([[0.0, 100.0], [899.0, 119.0]]), (1, 500, 2, 2))
    noisy_BN22 = click_simulation.noisy_box(simulation, box_BN22, jnp.array([[200, 900]]), keys(1))
    shift_BN22 = np.abs(noisy_BN22 - box_BN22)
    assert shift_BN22.max() <= 20
    assert shift_BN22[..., 0].max() > 19
    assert np.std(noisy_BN22[..., 1]) > 0
    assert noisy_BN22[..., 0].min() >= 0
    assert noisy_BN22[..., 0].max() <= 899
    if noise == 'uniform':
        assert shift_BN22[..., 1].max() <= 2  # 10 % of 20 px
    else:
        np.testing.assert_allclose(np.std(noisy_BN22[..., 0, 1] - 100), 2, rtol=0.15)


def test_first_prompts_are_a_point_on_the_mask_or_a_box():
    masks_BNHW = np.zeros((1, 200, 32, 48), bool)
    masks_BNHW[..., 10:20, 5:40] = True
    first = click_simulation.first_prompts(PAPER, masks_BNHW, (16, 24), jnp.array([[32, 48]]), keys(0))
    assert first.points_BNP2.shape == (1, 200, 10, 2)
    assert not first.has_mask_BN.any()
    labels_NP = np.asarray(first.labels_BNP[0])
    is_box_N = labels_NP[:, 0] == BOX_TOP_LEFT
    assert 60 < is_box_N.sum() < 140
    assert (labels_NP[is_box_N, 1] == BOX_BOTTOM_RIGHT).all()
    assert (labels_NP[~is_box_N, :2] == [POSITIVE, NOT_A_POINT]).all()
    assert (labels_NP[:, 2:] == ABSENT).all()
    x_N, y_N = np.asarray(first.points_BNP2[0, ~is_box_N, 0]).T
    assert ((x_N >= 5) & (x_N < 40) & (y_N >= 10) & (y_N < 20)).all()


def test_error_click_falls_on_an_error_and_tells_the_truth():
    masks_BNHW = np.zeros((1, 2, 4, 6), bool)
    masks_BNHW[0, 0, 1, 1] = True  # missed
    predicted_BNHW = np.zeros((1, 2, 4, 6), bool)
    predicted_BNHW[0, 1, 2, 3] = True  # invented
    predicted_BNHW[0, 1, 3, 5] = True  # invented, but on padding
    inside_BHW = np.ones((1, 4, 6), bool)
    inside_BHW[0, 3] = False
    for seed in range(5):
        xy_BN2, label_BN = click_simulation.error_click(predicted_BNHW, masks_BNHW, inside_BHW, keys(seed))
        np.testing.assert_array_equal(xy_BN2[0], [[1, 1], [3, 2]])
        np.testing.assert_array_equal(label_BN[0], [POSITIVE, NEGATIVE])


def test_error_click_without_errors_is_negative_on_the_background():
    masks_BNHW = np.ones((1, 1, 3, 3), bool)
    masks_BNHW[0, 0, 2, 1] = False
    xy_BN2, label_BN = click_simulation.error_click(masks_BNHW, masks_BNHW, np.ones((1, 3, 3), bool), keys(0))
    np.testing.assert_array_equal(xy_BN2, [[[1, 2]]])
    np.testing.assert_array_equal(label_BN, [[NEGATIVE]])


def test_every_click_falls_on_the_image_and_not_on_its_padding():
    """A frame with a narrow, a low and a tiny image, and one that fills it; 40 keys, with and without errors."""
    height, width = 32, 48
    size_B2 = np.array([[32, 5], [3, 48], [2, 2], [32, 48]], np.int32)
    y, x = np.mgrid[:height, :width]
    content_BHW = (y < size_B2[:, :1, None]) & (x < size_B2[:, 1:, None])
    masks_BNHW = np.zeros((4, 3, height, width), bool)
    masks_BNHW[:, 0, 0, 1] = True  # a pixel
    masks_BNHW[:, 1] = content_BHW & (x >= 1)  # all but the first column
    masks_BNHW[:, 2] = content_BHW & (y % 2 == 1)
    masks_BNHW, invented_BNHW = jnp.asarray(masks_BNHW), jnp.ones_like(masks_BNHW)  # on the padding, too
    b_B1, n_1N = np.ogrid[:4, :3]

    @jax.jit
    def draw(key, predicted_BNHW):
        keys_B = jax.random.split(key, 4)
        click_BN2, label_BN = click_simulation.error_click(predicted_BNHW, masks_BNHW, content_BHW, keys_B)
        return click_BN2, label_BN, click_simulation.first_prompts(PAPER, masks_BNHW, (16, 24), size_B2, keys_B)

    for seed in range(40):
        for predicted_BNHW in (masks_BNHW, invented_BNHW, ~masks_BNHW):
            click_BN2, label_BN, first = draw(jax.random.key(seed), predicted_BNHW)
            x_BN, y_BN = np.moveaxis(np.asarray(click_BN2), -1, 0).astype(int)
            assert ((click_BN2 >= 0) & (click_BN2 < size_B2[:, None, ::-1])).all()
            np.testing.assert_array_equal(label_BN == POSITIVE, masks_BNHW[b_B1, n_1N, y_BN, x_BN])
            if predicted_BNHW is masks_BNHW:
                assert (label_BN == NEGATIVE).all()
            points_BN22 = np.asarray(first.points_BNP2[:, :, :2])
            assert ((points_BN22 >= 0) & (points_BN22 <= size_B2[:, None, None, ::-1] - 1)).all()


def test_schedule_has_eight_clicks_one_pause_and_nothing_new_in_the_last_round():
    schedules = [click_simulation.click_schedule(PAPER, jax.random.key(seed)) for seed in range(60)]
    pauses = set()
    for adds_K, slot_K in schedules:
        adds_K, slot_K = np.asarray(adds_K), np.asarray(slot_K)
        assert adds_K.shape == (11,)
        assert adds_K.sum() == 8
        assert not adds_K[9:].any()
        np.testing.assert_array_equal(slot_K[adds_K], range(2, 10))
        pauses.add(int(np.flatnonzero(~adds_K)[0]))
    assert pauses == set(range(9))  # the pause may come in any of rounds 2 to 10


def test_next_prompts_keep_what_was_said_and_add_one_click():
    masks_BNHW = np.zeros((1, 1, 32, 48), bool)
    masks_BNHW[0, 0, 8:16, 8:16] = True
    inside_BHW = np.ones((1, 32, 48), bool)
    given = click_simulation.first_prompts(PAPER, masks_BNHW, (16, 24), jnp.array([[32, 48]]), keys(0))
    low_BNyx = jnp.full((1, 1, 16, 24), -1.0)
    for adds in (True, False):
        following = click_simulation.next_prompts(
            given, low_BNyx, jnp.zeros((1, 1, 32, 48), bool), masks_BNHW, inside_BHW, adds, 2, keys(0)
        )
        np.testing.assert_array_equal(following.points_BNP2[:, :, :2], given.points_BNP2[:, :, :2])
        assert following.has_mask_BN.all()
        assert (following.mask_BNyx == -1).all()
        assert following.labels_BNP[0, 0, 2] == (POSITIVE if adds else ABSENT)
        assert (following.labels_BNP[0, 0, 3:] == ABSENT).all()


def test_what_an_image_draws_does_not_depend_on_its_batch():
    masks_BNHW = np.random.default_rng(0).random((3, 5, 32, 48)) > 0.5
    size_B2, keys_B = jnp.array([[32, 48]] * 3), jax.random.split(jax.random.key(7), 3)
    together = click_simulation.first_prompts(PAPER, masks_BNHW, (16, 24), size_B2, keys_B)
    alone = click_simulation.first_prompts(PAPER, masks_BNHW[2:], (16, 24), size_B2[2:], keys_B[2:])
    np.testing.assert_array_equal(together.points_BNP2[2:], alone.points_BNP2)
    np.testing.assert_array_equal(together.labels_BNP[2:], alone.labels_BNP)


def test_unknown_noise_is_refused():
    with pytest.raises(ValueError, match='box_noise'):
        dataclasses.replace(PAPER, box_noise='laplace')
