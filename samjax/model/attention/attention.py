"""Attention over a grid with decomposed relative positions (MViTv2), in ways that give the same numbers.

`dense_attention` is the definition.  The others never hold the logits of a whole grid in memory: `chunked_attention` computes a
part of them at a time, and `samjax.model.attention.tpu` has kernels.  `ATTEND` names the best one for a platform.
All take

    q_GAhwE k_GAijE v_GAijE    queries of a grid (h, w), keys and values of the same grid (i, j)
    rel_h_hiE rel_w_wjE        what a query's vertical and horizontal distance to a key adds, from `relative`

and return out_GAhwE.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from samjax.model.layers import einsum_f32, softmax

ATTENTION_OUTPUT = 'attended'  # the name of attention's results for a rematerialisation policy
IN_CACHE = 2**19  # logits, 2 MiB: what CPU cores keep near; docs/speed.md has others
IN_MEMORY = 2**26  # logits, 256 MiB: so many that a GPU is busy


def dense_attention(q_GAhwE, k_GAijE, v_GAijE, rel_h_hiE, rel_w_wjE) -> jax.Array:
    """Softmax attention; to each logit the query adds what its vertical and horizontal distance to the key says."""
    scale = q_GAhwE.shape[-1] ** -0.5
    logits_GAhwij = jnp.einsum('GAhwE,GAijE->GAhwij', q_GAhwE * scale, k_GAijE)
    logits_GAhwij += jnp.einsum('GAhwE,hiE->GAhwi', q_GAhwE, rel_h_hiE)[..., :, None]  # unscaled q
    logits_GAhwij += jnp.einsum('GAhwE,wjE->GAhwj', q_GAhwE, rel_w_wjE)[..., None, :]
    weights_GAhwij = softmax(logits_GAhwij, (-2, -1), v_GAijE.dtype)
    return jnp.einsum('GAhwij,GAijE->GAhwE', weights_GAhwij, v_GAijE)


def chunked_attention(q_GAhwE, k_GAijE, v_GAijE, rel_h_hiE, rel_w_wjE, logits: int = IN_CACHE) -> jax.Array:
    """`dense_attention`, with about so many logits at a time: of some heads, or four times as many of some rows of one head.

    The more rows there are, the faster they are multiplied with all keys (docs/speed.md).  Nothing but the inputs is
    kept for the backward pass, which computes the logits again.
    """
    g, a, h, w, e = q_GAhwE.shape
    fitting = logits // (h * w * h * w)
    heads, rows = (_part(g * a, fitting), h) if fitting else (1, _part(h, 4 * logits // (w * h * w)))

    @jax.checkpoint
    def some_rows(q_ZrwE, k_ZLE, v_ZLE, rel_h_riE):
        across_ZrwL = einsum_f32('ZrwE,ZLE->ZrwL', q_ZrwE * e**-0.5, k_ZLE)
        down_Zrwi = jnp.einsum('ZrwE,riE->Zrwi', q_ZrwE, rel_h_riE, preferred_element_type=jnp.float32)
        along_Zrwj = jnp.einsum('ZrwE,wjE->Zrwj', q_ZrwE, rel_w_wjE, preferred_element_type=jnp.float32)
        logits_Zrwij = across_ZrwL.reshape(*across_ZrwL.shape[:-1], h, w) + down_Zrwi[..., None]
        logits_Zrwij += along_Zrwj[..., None, :]
        greatest_Zrw11 = jax.lax.stop_gradient(logits_Zrwij.max((-2, -1), keepdims=True))
        weights_Zrwij = jnp.exp(logits_Zrwij - greatest_Zrw11).astype(v_ZLE.dtype)
        weights_ZrwL = weights_Zrwij.reshape(across_ZrwL.shape)
        out_ZrwE = einsum_f32('ZrwL,ZLE->ZrwE', weights_ZrwL, v_ZLE)
        return out_ZrwE / weights_ZrwL.sum(-1, dtype=jnp.float32)[..., None]

    def some_heads(q_ZhwE, k_ZLE, v_ZLE):
        q_nZrwE = jnp.moveaxis(q_ZhwE.reshape(heads, h // rows, rows, w, e), 1, 0)
        rel_h_nriE = rel_h_hiE.reshape(h // rows, rows, h, e)
        out_nZrwE = _map(lambda q_ZrwE, rel_h_riE: some_rows(q_ZrwE, k_ZLE, v_ZLE, rel_h_riE), q_nZrwE, rel_h_nriE)
        return jnp.moveaxis(out_nZrwE, 0, 1).reshape(heads, h, w, e)

    parts = g * a // heads, heads
    k_nZLE, v_nZLE = (x.reshape(*parts, h * w, e) for x in (k_GAijE, v_GAijE))
    # Rounded here, not part by part: to write a slice of a bfloat16 array, a CPU widens the whole of it.
    out_nZhwE = _map(some_heads, q_GAhwE.reshape(*parts, h, w, e), k_nZLE, v_nZLE)
    return out_nZhwE.reshape(g, a, h, w, e).astype(v_GAijE.dtype)


def _map(function, *arrays_n):
    """`function` of the first, second, .. of all arrays, stacked; without a loop if there is one only."""
    if len(arrays_n[0]) == 1:
        return function(*(x[0] for x in arrays_n))[None]
    return jax.lax.map(lambda parts: function(*parts), arrays_n)


def _part(whole: int, most: int) -> int:
    """The greatest divisor of `whole` that is at most `most`, but at least 1."""
    return max(d for d in range(1, whole + 1) if whole % d == 0 and (d == 1 or d <= most))


def tpu_attention(*arrays) -> jax.Array:
    """`dense_attention` by the kernels of `samjax.model.attention.tpu`, which are loaded only here: it takes seconds."""
    from samjax.model.attention import tpu

    return tpu.tpu_attention(*arrays)


def relative(rel_RE: jax.Array, side: int) -> jax.Array:
    """Rows of a relative-position table for every (query, key) pair: result[q, k] = rel[q - k + side - 1]."""
    index_qk = np.arange(side)[:, None] - np.arange(side)[None, :] + side - 1
    return rel_RE[index_qk]


ATTEND = {  # by the name of a platform in JAX
    'cpu': chunked_attention,
    'gpu': functools.partial(chunked_attention, logits=IN_MEMORY),
    'tpu': tpu_attention,
}
