"""samjax.model.attention: three ways to the same numbers, forward and backward, and the kernel compiles for TPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from samjax.model import attention
from samjax.preflight import describe

TOLERANCE = 1e-5


def draw(g, h, w, a, e, dtype=jnp.float32):
    rng = np.random.default_rng(g + h)
    q, k, v = (jnp.asarray(rng.normal(size=(g, h, w, a, e)), dtype) for _ in range(3))
    tables = (jnp.asarray(rng.normal(size=(2 * side - 1, e)), dtype) for side in (h, w))
    return q, k, v, *(attention.relative(table, side) for table, side in zip(tables, (h, w), strict=True))


def test_relative_rows_by_hand():
    table_RE = jnp.arange(5.0)[:, None]  # distances -2, -1, 0, 1, 2 of query minus key
    np.testing.assert_array_equal(attention.relative(table_RE, 3)[..., 0], [[2, 1, 0], [3, 2, 1], [4, 3, 2]])


def test_attention_by_hand():
    """Two cells in a row, one head of one channel: each logit is q k + q rel[distance]."""
    q, k, v = (jnp.array(x, jnp.float32).reshape(1, 1, 2, 1, 1) for x in ([1, 2], [3, 0], [10, 20]))
    rel_h, rel_w = jnp.zeros((1, 1, 1)), attention.relative(jnp.array([[-1.0], [0], [1]]), 2)
    logits = np.array([[3 + 0, 0 - 1], [6 + 2, 0 + 0]])
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    out = attention.attend(q, k, v, rel_h, rel_w)
    np.testing.assert_allclose(out.reshape(2), weights @ [10, 20], rtol=1e-6)


WINDOWED, GLOBAL = (2, 14, 14, 2, 8), (1, 24, 16, 2, 10)  # 196 tokens fill no whole blocks; 384 do


@pytest.mark.parametrize('shape', [WINDOWED, GLOBAL], ids=['windowed', 'global'])
@pytest.mark.parametrize('way', ['by_rows', 'fused'])
def test_forward_and_backward_equal_the_definition(monkeypatch, way, shape):
    monkeypatch.setattr(attention, 'QUERIES', 64)  # so that rows are taken a few at a time
    ways = {'by_rows': attention.attend_by_rows, 'fused': lambda *x: attention.attend_fused(*x, interpret=True)}
    arrays = draw(*shape)
    weight = jnp.asarray(np.random.default_rng(9).normal(size=shape), jnp.float32) / 8

    def run(attend):
        value, grads = jax.value_and_grad(lambda arrays: (attend(*arrays) * weight).sum())(arrays)
        return attend(*arrays), value, grads

    with jax.default_matmul_precision('highest'):
        expected, found = (jax.jit(run, static_argnums=0)(attend) for attend in (attention.attend, ways[way]))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, rtol=TOLERANCE, atol=TOLERANCE)


def test_on_tpus_only_large_grids_take_the_kernel(monkeypatch):
    monkeypatch.setattr(attention, 'attend', lambda *x: 'plain')
    monkeypatch.setattr(attention, 'attend_fused', lambda *x: 'fused')
    small, large = np.zeros((1, 14, 14, 1, 1)), np.zeros((1, 64, 64, 1, 1))
    assert attention.attend_fused_if_large(small, *[None] * 4) == 'plain'
    assert attention.attend_fused_if_large(large, *[None] * 4) == 'fused'


@pytest.mark.parametrize('topology', ['v5e:2x2', 'v6e:2x2'])
def test_kernel_compiles_for_tpus_and_no_logits_exist(topology):
    """ViT-H's global attention, forward and backward: 16 heads of 4096 x 4096 logits would take .5 GiB in bfloat16."""
    there = SingleDeviceSharding(describe(topology, 1)[0])
    arrays = jax.eval_shape(lambda: draw(1, 64, 64, 16, 80, jnp.bfloat16))
    arrays = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), arrays)

    def run(attend, arrays):
        return jax.grad(lambda arrays: attend(*arrays).astype(jnp.float32).sum())(arrays)

    compiled = jax.jit(run, static_argnums=0).lower(attention.attend_fused_if_large, arrays).compile()
    assert 'tpu_custom_call' in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.3 * 2**30
