"""Image encoder: a plain ViT whose blocks attend in windows, but for one global block per stage (paper §A; ViTDet).

Blocks of a kind are one module whose parameters have leading axes: `windowed_blocks` (stages, windowed, ...) and
`global_blocks` (stages, ...).  They run in a loop of the compiled program, whose size does not grow with the depth.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from samjax.errors import SamjaxError
from samjax.model.attention.attention import ATTENTION_OUTPUT, relative
from samjax.model.layers import LayerNorm, Mlp, PatchConv, bias_like, drop_path, einsum_f32, gelu, split_keys, uniform

# What of a block stays in memory for the backward pass beside its input; the rest is computed again.  For ViT-H at
# 1024 px an image takes .34 GiB of inputs, another 1 GiB with 'attention' and another 2.4 GiB with 'matmuls'.
REMAT = {
    'full': (),
    'attention': (ATTENTION_OUTPUT, 'middle'),  # nothing of attention but queries, keys and values
    'matmuls': (ATTENTION_OUTPUT, 'middle', 'qkv', 'hidden'),  # only norms and activations
    'none': None,  # everything stays
}


class ImageEncoder(nnx.Module):
    """(B, H, W, 3) normalised float image -> (B, h, w, C) embedding.  Raises SamjaxError for an unknown `remat`."""

    def __init__(self, config, rngs: nnx.Rngs):
        if config.remat not in REMAT:
            raise SamjaxError(f'model.remat {config.remat!r} is not known: set it to one of {", ".join(REMAT)}.')
        h, w = config.grid
        self.patch_embed = PatchConv(config.patch, 3, config.width, config.dtype, rngs)
        self.pos_embed = nnx.Param(jnp.zeros((h, w, config.width)))
        shape = config.stages, config.windowed
        self.windowed_blocks = stack(lambda rngs: Block(config, config.window, rngs), shape, rngs)
        self.global_blocks = stack(lambda rngs: Block(config, None, rngs), shape[:1], rngs)
        self.neck = Neck(config.width, config.channels, config.dtype, rngs)
        self.rates = tuple(np.linspace(0, config.drop_path, config.depth).tolist())
        self.remat = config.remat

    def __call__(self, image_BHW3: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        """Deterministic unless there is a key for each image, which turns on drop path."""
        x_BhwD = self.patch_embed(image_BHW3)
        x_BhwD = x_BhwD + self.pos_embed[...].astype(x_BhwD.dtype)[None]

        windowed, windowed_Sn = nnx.split(self.windowed_blocks)
        globally, global_S = nnx.split(self.global_blocks)
        stages = len(jax.tree.leaves(global_S)[0])
        rates_Sn = jnp.asarray(self.rates, jnp.float32).reshape(stages, -1)
        keys_SnB = None if keys_B is None else split_keys(keys_B, rates_Sn.size).reshape(*rates_Sn.shape, -1)

        def run(graphdef, x_BhwD, params, rate, keys_B):
            return nnx.merge(graphdef, params)(x_BhwD, rate, keys_B)

        if REMAT[self.remat] is not None:
            policy = jax.checkpoint_policies.save_only_these_names(*REMAT[self.remat])
            run = jax.checkpoint(run, policy=policy, static_argnums=0)

        def stage(x_BhwD, inputs):
            windowed_n, global_, rates_n, keys_nB = inputs
            before, last = (rates_n[:-1], _take(keys_nB, slice(-1))), (rates_n[-1], _take(keys_nB, -1))
            x_BhwD, _ = jax.lax.scan(lambda x, block: (run(windowed, x, *block), None), x_BhwD, (windowed_n, *before))
            return run(globally, x_BhwD, global_, *last), None

        x_BhwD, _ = jax.lax.scan(stage, x_BhwD, (windowed_Sn, global_S, rates_Sn, keys_SnB))
        return self.neck(x_BhwD)


def stack(build, shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Module:
    """The module that `build(rngs)` makes, `shape` times: one module whose parameters have these leading axes."""

    def init(key):
        return nnx.state(build(nnx.Rngs(key)))

    for _ in shape:
        init = jax.vmap(init)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    return nnx.merge(graphdef, init(jax.random.split(rngs.params(), shape)))


def _take(keys, index):
    return None if keys is None else keys[index]


class Block(nnx.Module):
    """Pre-norm transformer block that attends in windows, or globally if there is no window."""

    def __init__(self, config, window: int | None, rngs: nnx.Rngs):
        self.window = window
        self.norm1 = LayerNorm(config.width, 1e-6, config.dtype)
        self.attention = Attention(config, config.grid if window is None else (window, window), rngs)
        self.norm2 = LayerNorm(config.width, 1e-6, config.dtype)
        self.mlp = Mlp((config.width, 4 * config.width, config.width), gelu, config.dtype, rngs)

    def __call__(self, x_BhwD: jax.Array, rate: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        """`rate` of the images, drawn with their keys, pass by a branch."""
        keys1_B, keys2_B = split_keys(keys_B, 2)
        x_BhwD = x_BhwD + drop_path(self.attend(self.norm1(x_BhwD)), rate, keys1_B)
        x_BhwD = checkpoint_name(x_BhwD, 'middle')
        return x_BhwD + drop_path(self.mlp(self.norm2(x_BhwD)), rate, keys2_B)

    def attend(self, x_BhwD: jax.Array) -> jax.Array:
        if self.window is None:
            return self.attention(x_BhwD)
        windows_GhwD = split_windows(x_BhwD, self.window)
        return merge_windows(self.attention(windows_GhwD), x_BhwD.shape)


class Attention(nnx.Module):
    """Multi-head attention over a whole grid, with decomposed relative positions (MViTv2)."""

    def __init__(self, config, side: tuple[int, int], rngs: nnx.Rngs):
        width, heads, head = config.width, config.heads, config.width // config.heads
        self.w_qkv_DsAE = uniform(rngs, (width, 3, heads, head), width)
        self.b_qkv_sAE = uniform(rngs, (3, heads, head), width)
        self.rel_h_RE = nnx.Param(jnp.zeros((2 * side[0] - 1, head)))
        self.rel_w_RE = nnx.Param(jnp.zeros((2 * side[1] - 1, head)))
        self.w_out_AED = uniform(rngs, (heads, head, width), width)
        self.b_out_D = uniform(rngs, (width,), width)
        self.dtype = config.dtype
        self.attend = config.attend

    def __call__(self, x_GhwD: jax.Array) -> jax.Array:
        w_qkv_DsAE, rel_h_RE, rel_w_RE, w_out_AED = (
            p[...].astype(self.dtype) for p in (self.w_qkv_DsAE, self.rel_h_RE, self.rel_w_RE, self.w_out_AED)
        )
        b_qkv_sAE, b_out_D = (p[...].astype(jnp.float32) for p in (self.b_qkv_sAE, self.b_out_D))
        qkv_GhwsAE = (einsum_f32('GhwD,DsAE->GhwsAE', x_GhwD, w_qkv_DsAE) + bias_like(b_qkv_sAE, 6)).astype(self.dtype)
        q_GAhwE, k_GAijE, v_GAijE = checkpoint_name(qkv_GhwsAE.transpose(3, 0, 4, 1, 2, 5), 'qkv')
        rel_h_hiE = relative(rel_h_RE, x_GhwD.shape[1])
        rel_w_wjE = relative(rel_w_RE, x_GhwD.shape[2])
        out_GAhwE = checkpoint_name(self.attend(q_GAhwE, k_GAijE, v_GAijE, rel_h_hiE, rel_w_wjE), ATTENTION_OUTPUT)
        out_GhwD = einsum_f32('GAhwE,AED->GhwD', out_GAhwE, w_out_AED)
        return (out_GhwD + bias_like(b_out_D, 4)).astype(self.dtype)


class Neck(nnx.Module):
    """Encoder width -> decoder width: 1x1 and 3x3 convolution without bias, each followed by LayerNorm."""

    def __init__(self, width: int, channels: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.project_DC = uniform(rngs, (width, channels), width)
        self.norm1 = LayerNorm(channels, 1e-6, dtype)
        self.smooth_33CC = uniform(rngs, (3, 3, channels, channels), 9 * channels)
        self.norm2 = LayerNorm(channels, 1e-6, dtype)
        self.dtype = dtype

    def __call__(self, x_BhwD: jax.Array) -> jax.Array:
        x_BhwC = self.norm1(einsum_f32('BhwD,DC->BhwC', x_BhwD, self.project_DC[...].astype(self.dtype)))
        kernel_33CC = self.smooth_33CC[...].astype(self.dtype)
        x_BhwC = jax.lax.conv_general_dilated(
            x_BhwC, kernel_33CC, (1, 1), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )
        return self.norm2(x_BhwC)


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
