"""Image encoder: a plain ViT whose blocks attend in windows, but for one global block per stage (paper §A; ViTDet)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from samjax.model.layers import LayerNorm, Mlp, PatchConv, bias_like, drop_path, gelu, softmax, split, uniform

QUERIES = 1024  # at most so many attend at once


class ImageEncoder(nnx.Module):
    """(B, H, W, 3) normalised float image -> (B, h, w, C) embedding."""

    def __init__(self, config, rngs: nnx.Rngs):
        h, w = config.grid
        self.patch_embed = PatchConv(config.patch, 3, config.width, config.dtype, rngs)
        self.pos_embed = nnx.Param(jnp.zeros((h, w, config.width)))
        rates = np.linspace(0, config.drop_path, config.depth)
        self.blocks = nnx.List([Block(config, i, float(rates[i]), rngs) for i in range(config.depth)])
        self.neck = Neck(config.width, config.channels, config.dtype, rngs)
        self.remat = config.remat

    def __call__(self, image_BHW3: jax.Array, key: jax.Array | None = None) -> jax.Array:
        x_BhwD = self.patch_embed(image_BHW3)
        x_BhwD = x_BhwD + self.pos_embed[...].astype(x_BhwD.dtype)[None]
        for block, block_key in zip(self.blocks, split(key, len(self.blocks)), strict=True):
            run = jax.checkpoint(block.__call__) if self.remat else block
            x_BhwD = run(x_BhwD, block_key)
        return self.neck(x_BhwD)


class Block(nnx.Module):
    """Pre-norm transformer block; the last of each stage attends globally, the others in windows."""

    def __init__(self, config, index: int, drop_path_rate: float, rngs: nnx.Rngs):
        is_global = (index + 1) % (config.windowed + 1) == 0
        self.window = None if is_global else config.window
        side = config.grid if is_global else (config.window, config.window)
        self.norm1 = LayerNorm(config.width, 1e-6, config.dtype)
        self.attention = Attention(config.width, config.heads, side, config.dtype, rngs)
        self.norm2 = LayerNorm(config.width, 1e-6, config.dtype)
        self.mlp = Mlp((config.width, 4 * config.width, config.width), gelu, config.dtype, rngs)
        self.drop_path_rate = drop_path_rate

    def __call__(self, x_BhwD: jax.Array, key: jax.Array | None = None) -> jax.Array:
        key1, key2 = split(key, 2)
        x_BhwD = x_BhwD + drop_path(self.attend(self.norm1(x_BhwD)), self.drop_path_rate, key1)
        return x_BhwD + drop_path(self.mlp(self.norm2(x_BhwD)), self.drop_path_rate, key2)

    def attend(self, x_BhwD: jax.Array) -> jax.Array:
        if self.window is None:
            return self.attention(x_BhwD)
        windows_GhwD = split_windows(x_BhwD, self.window)
        return merge_windows(self.attention(windows_GhwD), x_BhwD.shape)


class Attention(nnx.Module):
    """Multi-head attention over a whole grid, with decomposed relative positions (MViTv2)."""

    def __init__(self, width: int, heads: int, side: tuple[int, int], dtype: jnp.dtype, rngs: nnx.Rngs):
        head = width // heads
        self.w_qkv_DsAE = uniform(rngs, (width, 3, heads, head), width)
        self.b_qkv_sAE = uniform(rngs, (3, heads, head), width)
        self.rel_h_RE = nnx.Param(jnp.zeros((2 * side[0] - 1, head)))
        self.rel_w_RE = nnx.Param(jnp.zeros((2 * side[1] - 1, head)))
        self.w_out_AED = uniform(rngs, (heads, head, width), width)
        self.b_out_D = uniform(rngs, (width,), width)
        self.dtype = dtype

    def __call__(self, x_GhwD: jax.Array) -> jax.Array:
        w_qkv_DsAE, b_qkv_sAE, rel_h_RE, rel_w_RE, w_out_AED, b_out_D = (
            p[...].astype(self.dtype)
            for p in (self.w_qkv_DsAE, self.b_qkv_sAE, self.rel_h_RE, self.rel_w_RE, self.w_out_AED, self.b_out_D)
        )
        qkv_sGhwAE = jnp.einsum('GhwD,DsAE->sGhwAE', x_GhwD, w_qkv_DsAE)
        q_GhwAE, k_GijAE, v_GijAE = qkv_sGhwAE + b_qkv_sAE[:, None, None, None]
        rel_h_hiE = relative(rel_h_RE, x_GhwD.shape[1])
        rel_w_wjE = relative(rel_w_RE, x_GhwD.shape[2])
        out_GhwAE = attend_by_rows(q_GhwAE, k_GijAE, v_GijAE, rel_h_hiE, rel_w_wjE)
        out_GhwD = jnp.einsum('GhwAE,AED->GhwD', out_GhwAE, w_out_AED)
        return out_GhwD + bias_like(b_out_D, 4)


class Neck(nnx.Module):
    """Encoder width -> decoder width: 1x1 and 3x3 convolution without bias, each followed by LayerNorm."""

    def __init__(self, width: int, channels: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.project_DC = uniform(rngs, (width, channels), width)
        self.norm1 = LayerNorm(channels, 1e-6, dtype)
        self.smooth_33CC = uniform(rngs, (3, 3, channels, channels), 9 * channels)
        self.norm2 = LayerNorm(channels, 1e-6, dtype)
        self.dtype = dtype

    def __call__(self, x_BhwD: jax.Array) -> jax.Array:
        x_BhwC = self.norm1(jnp.einsum('BhwD,DC->BhwC', x_BhwD, self.project_DC[...].astype(self.dtype)))
        kernel_33CC = self.smooth_33CC[...].astype(self.dtype)
        x_BhwC = jax.lax.conv_general_dilated(
            x_BhwC, kernel_33CC, (1, 1), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )
        return self.norm2(x_BhwC)


def attend(q_GhwAE, k_GijAE, v_GijAE, rel_h_hiE, rel_w_wjE) -> jax.Array:
    """Softmax attention; to each logit the query adds what its vertical and horizontal distance to the key says."""
    scale = q_GhwAE.shape[-1] ** -0.5
    logits_GAhwij = jnp.einsum('GhwAE,GijAE->GAhwij', q_GhwAE * scale, k_GijAE)
    logits_GAhwij += jnp.einsum('GhwAE,hiE->GAhwi', q_GhwAE, rel_h_hiE)[..., :, None]  # unscaled q
    logits_GAhwij += jnp.einsum('GhwAE,wjE->GAhwj', q_GhwAE, rel_w_wjE)[..., None, :]
    weights_GAhwij = softmax(logits_GAhwij, (-2, -1), v_GijAE.dtype)
    return jnp.einsum('GAhwij,GijAE->GhwAE', weights_GAhwij, v_GijAE)


def attend_by_rows(q_GhwAE, k_GijAE, v_GijAE, rel_h_hiE, rel_w_wjE) -> jax.Array:
    """`attend`, a few rows of queries at a time, so that the logits of a large grid never exist all at once."""
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


def relative(rel_RE: jax.Array, side: int) -> jax.Array:
    """Rows of a relative-position table for every (query, key) pair: result[q, k] = rel[q - k + side - 1]."""
    index_qk = np.arange(side)[:, None] - np.arange(side)[None, :] + side - 1
    return rel_RE[index_qk]


def split_windows(x_BhwD: jax.Array, window: int) -> jax.Array:
    """(B, h, w, D) -> (G, window, window, D), zero-padded at the bottom and right to whole windows.

    The padding takes part in attention like any other token: the released weights were trained so.
    """
    b, h, w, d = x_BhwD.shape
    rows, columns = -(-h // window), -(-w // window)
    x = jnp.pad(x_BhwD, ((0, 0), (0, rows * window - h), (0, columns * window - w), (0, 0)))
    x = x.reshape(b, rows, window, columns, window, d)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b * rows * columns, window, window, d)


def merge_windows(x_GhwD: jax.Array, shape: tuple[int, int, int, int]) -> jax.Array:
    """The inverse of `split_windows` for a grid of `shape` (B, h, w, D)."""
    b, h, w, d = shape
    window = x_GhwD.shape[1]
    rows, columns = -(-h // window), -(-w // window)
    x = x_GhwD.reshape(b, rows, columns, window, window, d).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, rows * window, columns * window, d)[:, :h, :w]
