"""Attention over a grid with decomposed relative positions (MViTv2), in three ways that give the same numbers.

`attend` is the definition.  `attend_by_rows` never holds the logits of a large grid at once.  `attend_fused` never
holds them at all: it folds the relative positions into queries and keys, so that a stock flash kernel for TPUs
computes them.  All take

    q_GhwAE k_GijAE v_GijAE    queries of a grid (h, w), keys and values of the same grid (i, j)
    rel_h_hiE rel_w_wjE        what a query's vertical and horizontal distance to a key adds, from `relative`

and return out_GhwAE.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from samjax.model.layers import softmax

QUERIES = 1024  # at most so many attend at once in `attend_by_rows`
LANES = 128  # the fused kernel works on multiples of so many tokens and channels
BLOCK = 512  # tokens that the fused kernel takes at a time, if the grid has them
KEPT = 'attended'  # the name of the kernel's results for a rematerialisation policy


def attend(q_GhwAE, k_GijAE, v_GijAE, rel_h_hiE, rel_w_wjE) -> jax.Array:
    """Softmax attention; to each logit the query adds what its vertical and horizontal distance to the key says."""
    scale = q_GhwAE.shape[-1] ** -0.5
    logits_GAhwij = jnp.einsum('GhwAE,GijAE->GAhwij', q_GhwAE * scale, k_GijAE)
    logits_GAhwij += jnp.einsum('GhwAE,hiE->GAhwi', q_GhwAE, rel_h_hiE)[..., :, None]  # unscaled q
    logits_GAhwij += jnp.einsum('GhwAE,wjE->GAhwj', q_GhwAE, rel_w_wjE)[..., None, :]
    weights_GAhwij = softmax(logits_GAhwij, (-2, -1), v_GijAE.dtype)
    return jnp.einsum('GAhwij,GijAE->GhwAE', weights_GAhwij, v_GijAE)


def attend_by_rows(q_GhwAE, k_GijAE, v_GijAE, rel_h_hiE, rel_w_wjE) -> jax.Array:
    """`attend`, a few rows of queries at a time; the logits are computed again in the backward pass."""
    g, h, w, a, e = q_GhwAE.shape
    rows = max(r for r in range(1, h + 1) if h % r == 0 and (r == 1 or r * w <= QUERIES))
    if rows == h:
        return attend(q_GhwAE, k_GijAE, v_GijAE, rel_h_hiE, rel_w_wjE)

    @jax.checkpoint
    def some_rows(q_GrwAE, rel_h_riE):
        return attend(q_GrwAE, k_GijAE, v_GijAE, rel_h_riE, rel_w_wjE)

    q_nGrwAE = jnp.moveaxis(q_GhwAE.reshape(g, h // rows, rows, w, a, e), 1, 0)
    rel_h_nriE = rel_h_hiE.reshape(h // rows, rows, *rel_h_hiE.shape[1:])
    out_nGrwAE = jax.lax.map(lambda chunk: some_rows(*chunk), (q_nGrwAE, rel_h_nriE))
    return jnp.moveaxis(out_nGrwAE, 0, 1).reshape(g, h, w, a, e)


def attend_fused_if_large(q_GhwAE, k_GijAE, v_GijAE, rel_h_hiE, rel_w_wjE) -> jax.Array:
    """On TPUs: the kernel for grids whose logits are large; XLA does well with windows."""
    attention = attend if q_GhwAE.shape[1] * q_GhwAE.shape[2] <= QUERIES else attend_fused
    return attention(q_GhwAE, k_GijAE, v_GijAE, rel_h_hiE, rel_w_wjE)


def attend_fused(q_GhwAE, k_GijAE, v_GijAE, rel_h_hiE, rel_w_wjE, interpret: bool = False) -> jax.Array:
    """The same in one kernel: softmax([scale q, q rel_h, q rel_w] [k, row of the key, column of the key]^T) v.

    The two products with the tables are numbers per query and key row or column, and "row of the key" is a one-hot
    vector, so each logit is `attend`'s.  `interpret` runs the kernel on a CPU, slowly, for tests.
    """
    g, h, w, a, e = q_GhwAE.shape
    queries_GhwAX = jnp.concatenate(
        [
            q_GhwAE * e**-0.5,
            jnp.einsum('GhwAE,hiE->GhwAi', q_GhwAE, rel_h_hiE),
            jnp.einsum('GhwAE,wjE->GhwAj', q_GhwAE, rel_w_wjE),
        ],
        -1,
    )
    row_ijX, column_ijX = np.broadcast_to(np.eye(h)[:, None], (h, w, h)), np.broadcast_to(np.eye(w)[None], (h, w, w))
    place_ijX = jnp.asarray(np.concatenate([row_ijX, column_ijX], -1), k_GijAE.dtype)
    place_GijAX = jnp.broadcast_to(place_ijX[None, :, :, None], (g, h, w, a, h + w))
    keys_GijAX = jnp.concatenate([k_GijAE, place_GijAX], -1)

    tokens = _up(h * w, LANES)

    def heads_first(x_GhwAX, width: int):
        """(G A, tokens, width), filled up with zeros."""
        x_ZLX = jnp.moveaxis(x_GhwAX.reshape(g, h * w, a, -1), 2, 1).reshape(g * a, h * w, -1)
        return jnp.pad(x_ZLX, ((0, 0), (0, tokens - h * w), (0, width - x_ZLX.shape[-1])))

    kernel = _kernel(g * a, h * w, tokens, interpret)
    wide = _up(e + h + w, LANES)
    out_ZLE = kernel(heads_first(queries_GhwAX, wide), heads_first(keys_GijAX, wide), heads_first(v_GijAE, e))
    out_GALE = out_ZLE[:, : h * w].reshape(g, a, h * w, e)
    return jnp.moveaxis(out_GALE, 1, 2).reshape(g, h, w, a, e)


def _kernel(heads: int, used: int, tokens: int, interpret: bool):
    """JAX's splash attention for (heads, tokens, channels); keys beyond the first `used` tokens do not exist."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    exists_LK = np.broadcast_to(np.arange(tokens) < used, (tokens, tokens))
    mask = splash.FullMask((tokens, tokens)) if used == tokens else splash.NumpyMask(exists_LK)
    block = math.gcd(tokens, BLOCK)
    sizes = splash.BlockSizes(
        **dict.fromkeys(('block_q', 'block_kv', 'block_kv_compute', 'block_q_dkv', 'block_kv_dkv'), block),
        **dict.fromkeys(('block_kv_dkv_compute', 'block_q_dq', 'block_kv_dq'), block),
    )
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=KEPT,
        interpret=interpret,
    )


def relative(rel_RE: jax.Array, side: int) -> jax.Array:
    """Rows of a relative-position table for every (query, key) pair: result[q, k] = rel[q - k + side - 1]."""
    index_qk = np.arange(side)[:, None] - np.arange(side)[None, :] + side - 1
    return rel_RE[index_qk]


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
