"""Image encoder ViT-B/L/H: a plain ViT with windowed attention, but global in the last block of a stage (paper §A).

Blocks of a kind are one module whose parameters have leading axes: `windowed_blocks` (stages, windowed, ...) and
`global_blocks` (stages, ...).  They run in a loop of the compiled program, whose size does not grow with the depth.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from samjax.errors import SamjaxError
from samjax.model.attention.dense import ATTENTION_OUTPUT, relative_positions
from samjax.model.layers import (
    LayerNorm,
    Mlp,
    PatchConv,
    bias_like,
    drop_path,
    einsum_f32,
    gelu,
    split_keys,
    uniform,
)
from samjax.model.runtime import Regularization, Runtime

# What of a block is stored for the backward pass beside its input; the rest is recomputed.  For ViT-H at 1024 px an
# image takes .34 GiB of inputs, another 1 GiB with 'attention' and another 2.4 GiB with 'matmuls'.
REMAT = {
    'full': (),
    'attention': (ATTENTION_OUTPUT, 'middle'),  # recomputes of attention only queries, keys and values
    'matmuls': (ATTENTION_OUTPUT, 'middle', 'qkv', 'hidden'),  # recomputes only norms and activations
    'none': None,  # stores everything
}


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """The architecture: `num_stages` x (`windowed_per_stage` windowed blocks + 1 global block)."""

    width: int  # D, channels of the tokens
    num_stages: int
    windowed_per_stage: int
    num_heads: int
    patch_size: int = 16  # px
    window_size: int = 14  # tokens

    @property
    def depth(self) -> int:
        """Blocks."""
        return self.num_stages * (self.windowed_per_stage + 1)

    @property
    def is_global(self) -> tuple[bool, ...]:
        """Whether each block attends globally."""
        return self.num_stages * (*[False] * self.windowed_per_stage, True)


class ImageEncoderViT(nnx.Module):
    """(B, H, W, 3) normalized float image -> (B, h, w, C) embedding."""

    def __init__(
        self,
        config: ViTConfig,
        image_size: tuple[int, int],
        embed_dim: int,
        regularization: Regularization,
        runtime: Runtime,
        rngs: nnx.Rngs,
    ):
        """image_size: (H, W) in px; embed_dim: C.

        Raises:
            SamjaxError: `runtime.remat` is unknown.
        """
        if runtime.remat not in REMAT:
            raise SamjaxError(f'model.remat {runtime.remat!r} is unknown: set it to one of {", ".join(REMAT)}.')
        h, w = (side // config.patch_size for side in image_size)
        window = config.window_size, config.window_size
        self.patch_embed = PatchConv(config.patch_size, 3, config.width, runtime.dtype, rngs)
        self.pos_embed = nnx.Param(jnp.zeros((h, w, config.width)))
        shape = config.num_stages, config.windowed_per_stage
        self.windowed_blocks = stack(lambda rngs: WindowedBlock(config, window, runtime, rngs), shape, rngs)
        self.global_blocks = stack(lambda rngs: Block(config, (h, w), runtime, rngs), shape[:1], rngs)
        self.neck = Neck(config.width, embed_dim, runtime.dtype, rngs)
        self.drop_rates = tuple(np.linspace(0, regularization.drop_path, config.depth).tolist())
        self.num_stages = config.num_stages
        self.remat = runtime.remat

    def __call__(self, image_BHW3: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        """Deterministic unless there is a key for each image, which turns on drop path."""
        x_BhwD = self.patch_embed(image_BHW3)
        x_BhwD = x_BhwD + self.pos_embed[...].astype(x_BhwD.dtype)[None]

        windowed_graph, windowed_params = nnx.split(self.windowed_blocks)  # leading axes (stages, blocks)
        global_graph, global_params = nnx.split(self.global_blocks)  # leading axis (stages,)
        rates = jnp.asarray(self.drop_rates, jnp.float32).reshape(self.num_stages, -1)  # (stages, blocks)
        keys = None if keys_B is None else split_keys(keys_B, rates.size).reshape(*rates.shape, -1)

        def run_block(graphdef, x_BhwD, params, rate, keys_B):
            return nnx.merge(graphdef, params)(x_BhwD, rate, keys_B)

        if REMAT[self.remat] is not None:
            policy = jax.checkpoint_policies.save_only_these_names(*REMAT[self.remat])
            run_block = jax.checkpoint(run_block, policy=policy, static_argnums=0)

        def run_windowed(x_BhwD, block):
            return run_block(windowed_graph, x_BhwD, *block), None

        def run_stage(x_BhwD, stage):
            windowed_params, global_params, rates, keys = stage
            first, last = (rates[:-1], _take(keys, slice(-1))), (rates[-1], _take(keys, -1))
            x_BhwD, _ = jax.lax.scan(run_windowed, x_BhwD, (windowed_params, *first))
            return run_block(global_graph, x_BhwD, global_params, *last), None

        x_BhwD, _ = jax.lax.scan(run_stage, x_BhwD, (windowed_params, global_params, rates, keys))
        return self.neck(x_BhwD)


def stack(build, shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Module:
    """`shape` modules, each made by `build(rngs)`, as one module whose parameters have these leading axes."""

    def init(key):
        return nnx.state(build(nnx.Rngs(key)))

    for _ in shape:
        init = jax.vmap(init)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    return nnx.merge(graphdef, init(jax.random.split(rngs.params(), shape)))


def _take(keys, index):
    return None if keys is None else keys[index]


class Block(nnx.Module):
    """Pre-norm transformer block with attention over the whole grid."""

    def __init__(self, config: ViTConfig, grid: tuple[int, int], runtime: Runtime, rngs: nnx.Rngs):
        """grid: rows and columns of tokens that attend to each other."""
        self.norm1 = LayerNorm(config.width, 1e-6, runtime.dtype)
        self.attention = GridAttention(config, grid, runtime, rngs)
        self.norm2 = LayerNorm(config.width, 1e-6, runtime.dtype)
        self.mlp = Mlp((config.width, 4 * config.width, config.width), gelu, runtime.dtype, rngs)

    def __call__(self, x_BhwD: jax.Array, rate: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        """rate: of the images, drawn with their keys, whose residual branches are dropped."""
        keys1_B, keys2_B = split_keys(keys_B, 2)
        x_BhwD = x_BhwD + drop_path(self.attend(self.norm1(x_BhwD)), rate, keys1_B)
        x_BhwD = checkpoint_name(x_BhwD, 'middle')
        return x_BhwD + drop_path(self.mlp(self.norm2(x_BhwD)), rate, keys2_B)

    def attend(self, x_BhwD: jax.Array) -> jax.Array:
        return self.attention(x_BhwD)


class WindowedBlock(Block):
    """The same with attention within windows of the size of its grid."""

    def __init__(self, config: ViTConfig, grid: tuple[int, int], runtime: Runtime, rngs: nnx.Rngs):
        super().__init__(config, grid, runtime, rngs)
        self.window = grid[0]

    def attend(self, x_BhwD: jax.Array) -> jax.Array:
        windows_GhwD = split_windows(x_BhwD, self.window)
        return merge_windows(self.attention(windows_GhwD), x_BhwD.shape)


class GridAttention(nnx.Module):
    """Multi-head self-attention over a grid of tokens with decomposed relative positions (MViTv2)."""

    def __init__(self, config: ViTConfig, grid: tuple[int, int], runtime: Runtime, rngs: nnx.Rngs):
        width, heads, head = config.width, config.num_heads, config.width // config.num_heads
        self.w_qkv_DsAE = uniform(rngs, (width, 3, heads, head), width)
        self.b_qkv_sAE = uniform(rngs, (3, heads, head), width)
        self.rel_h_RE = nnx.Param(jnp.zeros((2 * grid[0] - 1, head)))
        self.rel_w_RE = nnx.Param(jnp.zeros((2 * grid[1] - 1, head)))
        self.w_out_AED = uniform(rngs, (heads, head, width), width)
        self.b_out_D = uniform(rngs, (width,), width)
        self.dtype = runtime.dtype
        self.attention_fn = runtime.attention

    def __call__(self, x_GhwD: jax.Array) -> jax.Array:
        w_qkv_DsAE, rel_h_RE, rel_w_RE, w_out_AED = (
            p[...].astype(self.dtype) for p in (self.w_qkv_DsAE, self.rel_h_RE, self.rel_w_RE, self.w_out_AED)
        )
        b_qkv_sAE, b_out_D = (p[...].astype(jnp.float32) for p in (self.b_qkv_sAE, self.b_out_D))
        qkv_GhwsAE = einsum_f32('GhwD,DsAE->GhwsAE', x_GhwD, w_qkv_DsAE) + bias_like(b_qkv_sAE, 6)
        qkv_sGAhwE = qkv_GhwsAE.astype(self.dtype).transpose(3, 0, 4, 1, 2, 5)
        q_GAhwE, k_GAijE, v_GAijE = checkpoint_name(qkv_sGAhwE, 'qkv')
        rel_h_hiE = relative_positions(rel_h_RE, x_GhwD.shape[1])
        rel_w_wjE = relative_positions(rel_w_RE, x_GhwD.shape[2])
        out_GAhwE = self.attention_fn(q_GAhwE, k_GAijE, v_GAijE, rel_h_hiE, rel_w_wjE)
        out_GhwD = einsum_f32('GAhwE,AED->GhwD', checkpoint_name(out_GAhwE, ATTENTION_OUTPUT), w_out_AED)
        return (out_GhwD + bias_like(b_out_D, 4)).astype(self.dtype)


class Neck(nnx.Module):
    """Encoder width -> embedding: 1x1 and 3x3 convolution without bias, each followed by LayerNorm."""

    def __init__(self, width: int, embed_dim: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.project_DC = uniform(rngs, (width, embed_dim), width)
        self.norm1 = LayerNorm(embed_dim, 1e-6, dtype)
        self.smooth_33CC = uniform(rngs, (3, 3, embed_dim, embed_dim), 9 * embed_dim)
        self.norm2 = LayerNorm(embed_dim, 1e-6, dtype)
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
