"""samjax.model.encoders.vit: what of attention depends on rows and columns, and how windows are cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from samjax.model.encoders import vit
from samjax.model.runtime import Regularization, Runtime

CONFIG = vit.ViTConfig(width=8, num_stages=1, windowed_per_stage=1, num_heads=2, patch_size=8, window_size=3)


@pytest.mark.parametrize('axis', [1, 2], ids=['rows', 'columns'])
def test_order_of_rows_counts_only_for_the_vertical_table_and_of_columns_for_the_horizontal(axis):
    """On a grid of 3 x 5 tokens with one table of relative positions; without any, no order counts."""
    attention = vit.GridAttention(CONFIG, (3, 5), Runtime(), nnx.Rngs(0))
    assert attention.rel_h_RE.shape == (5, 4)
    assert attention.rel_w_RE.shape == (9, 4)
    table = attention.rel_h_RE if axis == 1 else attention.rel_w_RE
    x_1hwD, table_RE = (
        jax.random.normal(jax.random.key(1), (1, 3, 5, 8)),
        jax.random.normal(jax.random.key(2), table.shape),
    )

    def change_of_order(axis):
        order = np.roll(np.arange(x_1hwD.shape[axis]), 1)
        before, after = attention(x_1hwD), attention(jnp.take(x_1hwD, order, axis))
        return float(jnp.abs(after - jnp.take(before, order, axis)).max())

    with jax.default_matmul_precision('highest'):
        assert max(change_of_order(1), change_of_order(2)) < 1e-5
        table[...] = table_RE
        assert change_of_order(axis) > 1e-2
        assert change_of_order(3 - axis) < 1e-5


def test_windows_by_hand():
    """Of 3 x 4 tokens windows of 2 are two rows of two; the last row is padded with zeros."""
    tokens_11hwD = jnp.arange(1.0, 13).reshape(1, 3, 4, 1)
    windows_Ghw = vit.split_windows(tokens_11hwD, 2)[..., 0]
    np.testing.assert_array_equal(
        windows_Ghw, [[[1, 2], [5, 6]], [[3, 4], [7, 8]], [[9, 10], [0, 0]], [[11, 12], [0, 0]]]
    )
    np.testing.assert_array_equal(vit.merge_windows(windows_Ghw[..., None], (1, 3, 4, 1)), tokens_11hwD)


@pytest.mark.parametrize('shape', [(2, 7, 5, 2), (1, 6, 3, 1), (3, 1, 7, 1)])
def test_windows_of_several_images_come_back(shape):
    tokens_BhwD = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    windows_GhwD = vit.split_windows(tokens_BhwD, 3)
    assert windows_GhwD.shape == (shape[0] * -(-shape[1] // 3) * -(-shape[2] // 3), 3, 3, shape[3])
    np.testing.assert_array_equal(vit.merge_windows(windows_GhwD, shape), tokens_BhwD)
    np.testing.assert_array_equal(windows_GhwD[0, : shape[1], : shape[2]], tokens_BhwD[0, :3, :3])


def test_drop_path_grows_from_none_at_the_first_block_to_its_rate_at_the_last():
    config = vit.ViTConfig(width=8, num_stages=2, windowed_per_stage=2, num_heads=2, patch_size=8, window_size=3)
    encoder = nnx.eval_shape(
        lambda: vit.ImageEncoderViT(config, (16, 24), 4, Regularization(drop_path=0.5), Runtime(), nnx.Rngs(0))
    )
    np.testing.assert_allclose(encoder.drop_rates, [0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert config.depth == 6
    assert config.is_global == (False, False, True, False, False, True)
    assert encoder.pos_embed.shape == (2, 3, 8)
