"""Attention in chunks of bounded size, so that the logits of a whole grid are never in memory; for CPUs and GPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from samjax.model.layers import einsum_f32

CPU_LOGITS = 2**19  # per chunk, 2 MiB: fits the cache of a core; docs/speed.md has other sizes
GPU_LOGITS = 2**26  # per chunk, 256 MiB: keeps a GPU busy


def chunked_attention(q_GAhwE, k_GAijE, v_GAijE, rel_h_hiE, rel_w_wjE, logits: int = CPU_LOGITS) -> jax.Array:
    """`dense_attention` on about `logits` logits at a time: of several heads, or four times as many of rows of a head.

    The more rows there are, the faster they are multiplied with all keys (docs/speed.md).  Only the inputs are kept
    for the backward pass, which computes the logits again.
    """
    g, a, h, w, e = q_GAhwE.shape
    heads_that_fit = logits // (h * w * h * w)
    heads = _largest_divisor(g * a, heads_that_fit) if heads_that_fit else 1
    rows = h if heads_that_fit else _largest_divisor(h, 4 * logits // (w * h * w))

    @jax.checkpoint
    def attend_rows(q_ZrwE, k_ZLE, v_ZLE, rel_h_riE):
        across_ZrwL = einsum_f32('ZrwE,ZLE->ZrwL', q_ZrwE * e**-0.5, k_ZLE)
        down_Zrwi = jnp.einsum('ZrwE,riE->Zrwi', q_ZrwE, rel_h_riE, preferred_element_type=jnp.float32)
        along_Zrwj = jnp.einsum('ZrwE,wjE->Zrwj', q_ZrwE, rel_w_wjE, preferred_element_type=jnp.float32)
        logits_Zrwij = across_ZrwL.reshape(*across_ZrwL.shape[:-1], h, w) + down_Zrwi[..., None]
        logits_Zrwij += along_Zrwj[..., None, :]
        max_Zrw11 = jax.lax.stop_gradient(logits_Zrwij.max((-2, -1), keepdims=True))
        weights_Zrwij = jnp.exp(logits_Zrwij - max_Zrw11).astype(v_ZLE.dtype)
        weights_ZrwL = weights_Zrwij.reshape(across_ZrwL.shape)
        out_ZrwE = einsum_f32('ZrwL,ZLE->ZrwE', weights_ZrwL, v_ZLE)
        return out_ZrwE / weights_ZrwL.sum(-1, dtype=jnp.float32)[..., None]

    def attend_heads(q_ZhwE, k_ZLE, v_ZLE):
        q_nZrwE = jnp.moveaxis(q_ZhwE.reshape(heads, h // rows, rows, w, e), 1, 0)
        rel_h_nriE = rel_h_hiE.reshape(h // rows, rows, h, e)
        out_nZrwE = _map(lambda q_ZrwE, rel_h_riE: attend_rows(q_ZrwE, k_ZLE, v_ZLE, rel_h_riE), q_nZrwE, rel_h_nriE)
        return jnp.moveaxis(out_nZrwE, 0, 1).reshape(heads, h, w, e)

    chunks = g * a // heads, heads
    k_nZLE, v_nZLE = (x.reshape(*chunks, h * w, e) for x in (k_GAijE, v_GAijE))
    # Rounded here, not chunk by chunk: to write a slice of a bfloat16 array, a CPU widens the whole of it.
    out_nZhwE = _map(attend_heads, q_GAhwE.reshape(*chunks, h, w, e), k_nZLE, v_nZLE)
    return out_nZhwE.reshape(g, a, h, w, e).astype(v_GAijE.dtype)


def _map(function, *arrays_n):
    """`function` over the first axis of all arrays, stacked; without a loop if its length is 1."""
    if len(arrays_n[0]) == 1:
        return function(*(x[0] for x in arrays_n))[None]
    return jax.lax.map(lambda xs: function(*xs), arrays_n)


def _largest_divisor(whole: int, limit: int) -> int:
    """The largest divisor of `whole` that is at most `limit`, but at least 1."""
    return max(d for d in range(1, whole + 1) if whole % d == 0 and (d == 1 or d <= limit))
