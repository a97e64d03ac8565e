"""Attention over a grid with decomposed relative positions (MViTv2): the definition.

Every function of this package computes the same.  All take

    q_GAhwE k_GAijE v_GAijE    queries of a grid (h, w), keys and values of the same grid (i, j)
    rel_h_hiE rel_w_wjE        the relative positions of each pair of rows and columns, from `relative_positions`

and return out_GAhwE.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from samjax.model.layers import softmax

ATTENTION_OUTPUT = 'attention_output'  # the name of the results for a rematerialization policy


def dense_attention(q_GAhwE, k_GAijE, v_GAijE, rel_h_hiE, rel_w_wjE) -> jax.Array:
    """Softmax attention with all logits in memory; products of queries and relative positions are added to logits."""
    scale = q_GAhwE.shape[-1] ** -0.5
    logits_GAhwij = jnp.einsum('GAhwE,GAijE->GAhwij', q_GAhwE * scale, k_GAijE)
    logits_GAhwij += jnp.einsum('GAhwE,hiE->GAhwi', q_GAhwE, rel_h_hiE)[..., :, None]  # unscaled q
    logits_GAhwij += jnp.einsum('GAhwE,wjE->GAhwj', q_GAhwE, rel_w_wjE)[..., None, :]
    weights_GAhwij = softmax(logits_GAhwij, (-2, -1), v_GAijE.dtype)
    return jnp.einsum('GAhwij,GAijE->GAhwE', weights_GAhwij, v_GAijE)


def relative_positions(rel_RE: jax.Array, side: int) -> jax.Array:
    """Rows of a relative-position table for every (query, key) pair: result[q, k] = rel[q - k + side - 1]."""
    index_qk = np.arange(side)[:, None] - np.arange(side)[None, :] + side - 1
    return rel_RE[index_qk]
