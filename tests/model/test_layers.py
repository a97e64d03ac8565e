"""samjax.model.layers: functions with gradients of their own, against literal values and JAX's own gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samjax.model import layers


def test_gelu_by_hand():
    found = layers.gelu(jnp.array([-3.0, -1.0, 0.0, 0.5, 2.0]))
    np.testing.assert_allclose(found, [-0.00404969, -0.15865525, 0, 0.34573123, 1.9544997], rtol=1e-5, atol=1e-7)


def test_gradient_of_gelu_is_that_of_the_definition():
    x = jnp.linspace(-6, 6, 101)
    expected = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=False)))(x)
    np.testing.assert_allclose(jax.vmap(jax.grad(layers.gelu))(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('axes', [(1,), (-2, -1)])
def test_softmax_and_its_gradient_are_those_of_the_definition(axes):
    rng = np.random.default_rng(0)
    logits, weight = (jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32) for _ in range(2))

    def weighted(softmax):
        return jax.value_and_grad(lambda logits: (softmax(logits) * weight).sum())(logits)

    expected = weighted(lambda logits: jax.nn.softmax(logits, axes))
    found = weighted(lambda logits: layers.softmax(logits, axes, jnp.float32))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-7)


def test_types_of_gelu_and_softmax_come_back_from_their_gradients():
    x = jnp.ones((2, 3), jnp.bfloat16)
    assert jax.grad(lambda x: layers.gelu(x).sum())(x).dtype == jnp.bfloat16
    assert jax.grad(lambda x: layers.softmax(x, (1,), jnp.float32).sum())(x).dtype == jnp.bfloat16


def test_patches_by_hand():
    """Of 2 x 2 pixels each cell adds 1, 10, 100 and 1000 times what is there."""
    rngs = layers.nnx.Rngs(0)
    conv = layers.PatchConv(2, 1, 1, jnp.float32, rngs)
    conv.kernel[...] = jnp.array([[1.0, 10], [100, 1000]]).reshape(2, 2, 1, 1)
    conv.bias[...] = jnp.array([0.5])
    image_HW1 = jnp.array([[1.0, 2, 5, 6], [3, 4, 7, 8]])[..., None]
    np.testing.assert_array_equal(conv(image_HW1)[..., 0], [[4321.5, 8765.5]])


KEYS_B = jax.random.split(jax.random.key(0), 3)


@pytest.mark.parametrize('drop', [layers.dropout, layers.drop_path])
def test_nothing_is_dropped_without_keys_or_at_rate_zero(drop):
    x_B = jnp.arange(1.0, 25).reshape(3, 2, 2, 2)
    np.testing.assert_array_equal(drop(x_B, 0.5, None), x_B)
    np.testing.assert_array_equal(drop(x_B, 0.0, KEYS_B), x_B)


def test_dropout_keeps_the_mean_and_gives_an_image_what_its_key_says():
    x_B = jnp.ones((3, 40, 50))
    dropped_B = layers.dropout(x_B, 0.25, KEYS_B)
    np.testing.assert_allclose(np.unique(dropped_B), [0, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose((dropped_B == 0).mean((1, 2)), 0.25, atol=0.04)  # 4 standard deviations
    assert (dropped_B[0] != dropped_B[1]).any()
    np.testing.assert_array_equal(layers.dropout(x_B[2:], 0.25, KEYS_B[2:])[0], dropped_B[2])
    assert layers.dropout(x_B.astype(jnp.bfloat16), 0.25, KEYS_B).dtype == jnp.bfloat16


def test_drop_path_drops_whole_images():
    keys_B = jax.random.split(jax.random.key(1), 2000)
    dropped_B = layers.drop_path(jnp.ones((2000, 1, 2, 3)), 0.2, keys_B)
    first_B = dropped_B[:, 0, 0, 0]
    np.testing.assert_array_equal(dropped_B, np.broadcast_to(first_B[:, None, None, None], dropped_B.shape))
    np.testing.assert_allclose(np.unique(first_B), [0, 1.25])
    np.testing.assert_allclose((first_B == 0).mean(), 0.2, atol=0.04)
    assert layers.drop_path(jnp.ones((3, 1, 1, 1), jnp.bfloat16), 0.2, KEYS_B).dtype == jnp.bfloat16


def test_keys_are_split_for_each_image():
    first_B, second_B = layers.split_keys(KEYS_B, 2)
    assert first_B.shape == second_B.shape == (3,)
    expected = jax.random.split(KEYS_B[1], 2)
    assert jax.random.key_data(first_B[1]).tolist() == jax.random.key_data(expected[0]).tolist()
    assert jax.random.key_data(second_B[1]).tolist() == jax.random.key_data(expected[1]).tolist()
    assert layers.split_keys(None, 3) == [None] * 3
