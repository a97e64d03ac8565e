"""Attention on TPUs: kernels that keep the logits on the chip, forward and backward.

Relative positions are folded into queries and keys:

    logits = [scale q, q rel_h, q rel_w] [k, row of the key, column of the key]^T

The two products with the tables are numbers per query and key row or column, and "row of the key" is a one-hot vector,
so each logit is that of `samjax.model.attention.dense.dense_attention`.  A window's 64 or 80 channels and 14 + 14 rows
and columns take no more than the 128 lanes which the channels alone take up.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from samjax.model.attention.dense import ATTENTION_OUTPUT

LANES = 128  # of the vector registers; arrays are padded to multiples
BLOCK = 512  # tokens of a large grid per step of the flash kernel
SINGLE_BLOCK_TOKENS = 256  # the largest grid whose logits are all on the chip at once
HEADS_PER_BLOCK = 8  # heads of small grids per step of the kernel, at most


def tpu_attention(q_GAhwE, k_GAijE, v_GAijE, rel_h_hiE, rel_w_wjE, interpret: bool = False) -> jax.Array:
    """`dense_attention` by the kernel for grids of this size.  `interpret` runs it on a CPU, slowly, for tests."""
    g, a, h, w, e = q_GAhwE.shape
    down_GAhwi = jnp.einsum('GAhwE,hiE->GAhwi', q_GAhwE, rel_h_hiE)
    along_GAhwj = jnp.einsum('GAhwE,wjE->GAhwj', q_GAhwE, rel_w_wjE)
    queries_GAhwX = jnp.concatenate([q_GAhwE * e**-0.5, down_GAhwi, along_GAhwj], -1)
    row_ijX, column_ijX = np.broadcast_to(np.eye(h)[:, None], (h, w, h)), np.broadcast_to(np.eye(w)[None], (h, w, w))
    position_ijX = jnp.asarray(np.concatenate([row_ijX, column_ijX], -1), k_GAijE.dtype)
    keys_GAijX = jnp.concatenate([k_GAijE, jnp.broadcast_to(position_ijX[None, None], (g, a, h, w, h + w))], -1)

    padded = _round_up(e + h + w, LANES)
    queries_ZLX, keys_ZLX = (_tokens(x_GAhwX, padded) for x_GAhwX in (queries_GAhwX, keys_GAijX))
    kernel = single_block_attention if h * w <= SINGLE_BLOCK_TOKENS else flash_attention
    return kernel(queries_ZLX, keys_ZLX, _tokens(v_GAijE, e), interpret).reshape(g, a, h, w, e)


def _tokens(x_GAhwX: jax.Array, width: int) -> jax.Array:
    """(Z, L, width), Z = G A and L = h w, padded with zeros."""
    g, a, h, w, x = x_GAhwX.shape
    return jnp.pad(x_GAhwX.reshape(g * a, h * w, x), ((0, 0), (0, 0), (0, width - x)))


def flash_attention(q_ZLX, k_ZLX, v_ZLE, interpret: bool) -> jax.Array:
    """softmax(q k^T) v by JAX's splash attention; tokens that pad the last block are masked as keys."""
    heads, used, _ = q_ZLX.shape
    tokens = _round_up(used, LANES)
    q_ZLX, k_ZLX, v_ZLE = (jnp.pad(x, ((0, 0), (0, tokens - used), (0, 0))) for x in (q_ZLX, k_ZLX, v_ZLE))
    valid_LL = np.broadcast_to(np.arange(tokens) < used, (tokens, tokens))
    mask = splash.FullMask((tokens, tokens)) if used == tokens else splash.NumpyMask(valid_LL)
    block = math.gcd(tokens, BLOCK)
    sizes = splash.BlockSizes(
        **dict.fromkeys(('block_q', 'block_kv', 'block_kv_compute', 'block_q_dkv', 'block_kv_dkv'), block),
        **dict.fromkeys(('block_kv_dkv_compute', 'block_q_dq', 'block_kv_dq'), block),
    )
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION_OUTPUT,
        interpret=interpret,
    )
    return kernel(q_ZLX, k_ZLX, v_ZLE)[:, :used]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def single_block_attention(q_ZLX, k_ZLX, v_ZLE, interpret: bool) -> jax.Array:
    """softmax(q k^T) v, all logits of `HEADS_PER_BLOCK` heads at once."""
    return _run_on_heads(_forward_kernel, (q_ZLX, k_ZLX, v_ZLE), (v_ZLE,), interpret)[0]


def _single_block_forward(q_ZLX, k_ZLX, v_ZLE, interpret):
    return single_block_attention(q_ZLX, k_ZLX, v_ZLE, interpret), (q_ZLX, k_ZLX, v_ZLE)


def _single_block_backward(interpret, inputs, g_ZLE):
    return _run_on_heads(_backward_kernel, (*inputs, g_ZLE), inputs, interpret)


single_block_attention.defvjp(_single_block_forward, _single_block_backward)


def _run_on_heads(kernel, inputs, outputs, interpret: bool):
    """Runs `kernel` on blocks of heads; `outputs` have the shapes of its results."""
    heads = inputs[0].shape[0]
    block = max(d for d in range(1, HEADS_PER_BLOCK + 1) if heads % d == 0)

    def block_spec(x):
        return pl.BlockSpec((block, *x.shape[1:]), lambda z: (z, 0, 0))

    return pl.pallas_call(
        kernel,
        grid=(heads // block,),
        in_specs=[block_spec(x) for x in inputs],
        out_specs=[block_spec(x) for x in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        interpret=interpret,
    )(*inputs)


def _forward_kernel(q_ref, k_ref, v_ref, out_ref):
    for z in range(len(q_ref)):
        weights_LS = _weights(q_ref[z], k_ref[z])
        out_ref[z] = _dot(weights_LS.astype(v_ref.dtype), v_ref[z], 1, 0).astype(out_ref.dtype)


def _backward_kernel(q_ref, k_ref, v_ref, g_ref, dq_ref, dk_ref, dv_ref):
    for z in range(len(q_ref)):
        weights_LS = _weights(q_ref[z], k_ref[z])
        dv_ref[z] = _dot(weights_LS.astype(g_ref.dtype), g_ref[z], 0, 0).astype(dv_ref.dtype)
        dweights_LS = _dot(g_ref[z], v_ref[z], 1, 1)
        dlogits_LS = weights_LS * (dweights_LS - (weights_LS * dweights_LS).sum(1, keepdims=True))
        dlogits_LS = dlogits_LS.astype(q_ref.dtype)
        dq_ref[z] = _dot(dlogits_LS, k_ref[z], 1, 0).astype(dq_ref.dtype)
        dk_ref[z] = _dot(dlogits_LS, q_ref[z], 0, 0).astype(dk_ref.dtype)


def _weights(q_LX, k_SX):
    """Softmax in float32."""
    logits_LS = _dot(q_LX, k_SX, 1, 1)
    weights_LS = jnp.exp(logits_LS - logits_LS.max(1, keepdims=True))
    return weights_LS / weights_LS.sum(1, keepdims=True)


def _dot(x, y, x_axis: int, y_axis: int):
    """Product over these axes, summed in float32."""
    return jax.lax.dot_general(x, y, (((x_axis,), (y_axis,)), ((), ())), preferred_element_type=jnp.float32)


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
