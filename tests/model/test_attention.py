"""samjax.model.attention: all functions equal the definition, and their gradients; the kernels compile for TPUs."""

import functools

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from samjax.model.attention import by_platform, chunked, dense, tpu
from samjax.preflight.compile_ahead import describe

TOLERANCE = 1e-5
DENSE = dense.dense_attention


def draw(g, a, h, w, e, dtype=jnp.float32):
    rng = np.random.default_rng(g + h)
    q, k, v = (jnp.asarray(rng.normal(size=(g, a, h, w, e)), dtype) for _ in range(3))
    tables = (jnp.asarray(rng.normal(size=(2 * side - 1, e)), dtype) for side in (h, w))
    return q, k, v, *(dense.relative_positions(table, side) for table, side in zip(tables, (h, w), strict=True))


def test_relative_positions_by_hand():
    table_RE = jnp.arange(5.0)[:, None]  # distances -2, -1, 0, 1, 2 of query minus key
    np.testing.assert_array_equal(dense.relative_positions(table_RE, 3)[..., 0], [[2, 1, 0], [3, 2, 1], [4, 3, 2]])


def test_attention_by_hand():
    """Two cells in a row, one head of one channel: each logit is q k + q rel[distance]."""
    q, k, v = (jnp.array(x, jnp.float32).reshape(1, 1, 1, 2, 1) for x in ([1, 2], [3, 0], [10, 20]))
    rel_h, rel_w = jnp.zeros((1, 1, 1)), dense.relative_positions(jnp.array([[-1.0], [0], [1]]), 2)
    logits = np.array([[3 + 0, 0 - 1], [6 + 2, 0 + 0]])
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    out = dense.dense_attention(q, k, v, rel_h, rel_w)
    np.testing.assert_allclose(out.reshape(2), weights @ [10, 20], rtol=1e-6)


WINDOWED, GLOBAL = (2, 2, 14, 14, 8), (1, 2, 24, 16, 10)  # 196 tokens fill no whole blocks; 384 do
FUNCTIONS = {
    'heads': functools.partial(chunked.chunked_attention, logits=2**17),  # 3 of 4 would fit: 2 at a time
    'rows': functools.partial(chunked.chunked_attention, logits=2**15),
    'row': functools.partial(chunked.chunked_attention, logits=1),
    'all': functools.partial(chunked.chunked_attention, logits=2**30),
    'tpu': functools.partial(tpu.tpu_attention, interpret=True),
}


def cell_by_cell(q, k, v, table_h, table_w):
    """Attention over a grid in loops; the tables hold distances of query minus key, the most negative first."""
    g, a, h, w, e = q.shape
    out = np.zeros_like(q)
    for group, head, y, x in np.ndindex(g, a, h, w):
        query, logits_ij = q[group, head, y, x], np.zeros((h, w))
        for i, j in np.ndindex(h, w):
            logits_ij[i, j] = query @ k[group, head, i, j] / e**0.5
            logits_ij[i, j] += query @ table_h[y - i + h - 1] + query @ table_w[x - j + w - 1]
        weights_ij = np.exp(logits_ij) / np.exp(logits_ij).sum()
        out[group, head, y, x] = (weights_ij[..., None] * v[group, head]).sum((0, 1))
    return out


@functools.cache
def grid_that_is_not_square(*grid):
    """Queries, keys, values and relative positions, float32, and the attention."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 2, *grid, 4)) for _ in range(3))
    tables = [rng.normal(size=(2 * side - 1, 4)) for side in grid]
    rel = (dense.relative_positions(jnp.asarray(t, jnp.float32), side) for t, side in zip(tables, grid, strict=True))
    return (*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), *rel), cell_by_cell(q, k, v, *tables)


@pytest.mark.parametrize('grid', [(2, 5), (4, 3), (18, 16)], ids=lambda grid: '{}x{}'.format(*grid))
@pytest.mark.parametrize('name', ['dense', *FUNCTIONS])
def test_rows_and_columns_have_their_own_distances(name, grid):
    """The largest grid takes the flash kernel on TPUs."""
    arrays, expected = grid_that_is_not_square(*grid)
    attend = DENSE if name == 'dense' else FUNCTIONS[name]
    with jax.default_matmul_precision('highest'):
        np.testing.assert_allclose(jax.jit(attend)(*arrays), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('shape', [WINDOWED, GLOBAL], ids=['windowed', 'global'])
@pytest.mark.parametrize('name', FUNCTIONS)
def test_forward_and_backward_equal_the_definition(name, shape):
    arrays = draw(*shape)
    weight = jnp.asarray(np.random.default_rng(9).normal(size=shape), jnp.float32) / 8
    with jax.default_matmul_precision('highest'):
        expected, actual = (
            jax.jit(both, static_argnums=0)(attend, arrays, weight) for attend in (DENSE, FUNCTIONS[name])
        )
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        np.testing.assert_allclose(b, a, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize('shape', [WINDOWED, GLOBAL], ids=['windowed', 'global'])
@pytest.mark.parametrize('name', FUNCTIONS)
def test_bfloat16_errs_at_most_twice_as_much_as_the_definition(name, shape):
    arrays = draw(*shape)
    weight = jnp.asarray(np.random.default_rng(9).normal(size=shape), jnp.float32) / 8
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), arrays)
    exact = jax.jit(both, static_argnums=0)(DENSE, jax.tree.map(lambda x: x.astype(jnp.float32), half), weight)
    plain, actual = (jax.jit(both, static_argnums=0)(attend, half, weight) for attend in (DENSE, FUNCTIONS[name]))
    for x, a, b in zip(*map(jax.tree.leaves, (exact, plain, actual)), strict=True):
        assert jnp.linalg.norm(b - x) <= 2 * jnp.linalg.norm(a - x)


def test_chunks_hold_no_more_logits_than_they_may():
    """Two heads of 16 x 16 cells: 2^17 logits.  Of rows of one head there may be four times as many."""
    arrays = draw(1, 2, 16, 16, 4)
    for logits, most in ((2**17, 2**17), (2**16, 2**16), (2**13, 2**15), (2**12, 2**14)):
        part = functools.partial(chunked.chunked_attention, logits=logits)
        sizes = [np.prod(shape, dtype=int) for shape in shapes(jax.make_jaxpr(part)(*arrays).jaxpr)]
        assert max(sizes) == most


def test_platforms_have_their_own_function():
    assert by_platform.BY_PLATFORM['cpu'] is chunked.chunked_attention
    assert by_platform.BY_PLATFORM['gpu'].keywords == {'logits': 2**26}
    assert by_platform.BY_PLATFORM['tpu'] is by_platform.tpu_attention


def test_small_grids_are_a_single_block_on_tpus(monkeypatch):
    monkeypatch.setattr(tpu, 'single_block_attention', lambda *x: 0 * x[2] + 1)
    monkeypatch.setattr(tpu, 'flash_attention', lambda *x: 0 * x[2] + 2)
    assert by_platform.tpu_attention(*draw(1, 1, 14, 14, 2))[0, 0, 0, 0, 0] == 1
    assert by_platform.tpu_attention(*draw(1, 1, 16, 17, 2))[0, 0, 0, 0, 0] == 2


@pytest.mark.parametrize('topology', ['v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'])
@pytest.mark.parametrize(('side', 'batch', 'gib'), [(14, 25, 0.35), (64, 1, 0.3)], ids=['windowed', 'global'])
def test_kernels_compile_for_tpus_and_no_logits_exist(side, batch, gib, topology):
    """ViT-H, forward and backward: 16 heads of 4096 x 4096 logits would take .5 GiB in bfloat16, of windows .03."""
    sharding = SingleDeviceSharding(describe(topology, 1)[0])
    arrays = jax.eval_shape(lambda: draw(batch, 16, side, side, 80, jnp.bfloat16))
    arrays = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arrays)

    compiled = jax.jit(both, static_argnums=0).lower(by_platform.tpu_attention, arrays, arrays[0]).compile()
    assert compiled.as_text().count('tpu_custom_call') >= 2
    for logits in (f'[{batch * 16},{side**2},{side**2}]', f'[{batch},16,{side},{side},{side},{side}]'):
        assert logits not in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes < gib * 2**30


def both(attend, arrays, weight):
    """The result, and the gradient of a weighted sum of it, in float32."""
    grads = jax.grad(lambda arrays: (attend(*arrays) * weight).sum().astype(jnp.float32))(arrays)
    return jax.tree.map(lambda x: x.astype(jnp.float32), (attend(*arrays), grads))


def shapes(jaxpr):
    """Of all intermediate arrays."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for inner in jex.core.jaxprs_in_params(equation.params):
            yield from shapes(inner)
