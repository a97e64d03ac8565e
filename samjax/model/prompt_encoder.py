"""Prompt encoder: points, boxes and masks become sparse tokens and a dense map (paper §A)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from samjax.model.layers import Buffer, LayerNorm, PatchConv, gelu, normal
from samjax.structs import ABSENT, BOX_BOTTOM_RIGHT, NOT_A_POINT, Prompts


class PromptEncoder(nnx.Module):
    """Prompts -> sparse_BNPC tokens, which of them are present (BNP), and a dense_BNhwC map."""

    def __init__(self, config, rngs: nnx.Rngs):
        c = config.channels
        self.fourier_2F = Buffer(jax.random.normal(rngs.params(), (2, c // 2), jnp.float32))
        # negative point, positive point, box top left, box bottom right: the label is the row
        self.label_embed_4C = normal(rngs, (4, c))
        self.not_a_point_C = normal(rngs, (c,))
        self.no_mask_C = normal(rngs, (c,))
        self.mask_conv1 = PatchConv(2, 1, config.mask_channels // 4, config.dtype, rngs)
        self.mask_norm1 = LayerNorm(config.mask_channels // 4, 1e-6, config.dtype)
        self.mask_conv2 = PatchConv(2, config.mask_channels // 4, config.mask_channels, config.dtype, rngs)
        self.mask_norm2 = LayerNorm(config.mask_channels, 1e-6, config.dtype)
        self.mask_conv3 = PatchConv(1, config.mask_channels, c, config.dtype, rngs)
        self.image_size = config.image_size
        self.grid = config.grid
        self.dtype = config.dtype

    def __call__(self, prompts: Prompts) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Without mask prompts the map is the same for all objects and cells: N, h and w are 1."""
        sparse_BNPC = self.embed_points(prompts.points_BNP2, prompts.labels_BNP)
        dense_BNhwC = self.no_mask_C[...].astype(self.dtype)[None, None, None, None]
        if prompts.mask_BNyx is not None:
            has_mask_BN111 = prompts.has_mask_BN[:, :, None, None, None]
            dense_BNhwC = jnp.where(has_mask_BN111, self.embed_mask(prompts.mask_BNyx), dense_BNhwC)
        return sparse_BNPC, prompts.labels_BNP != ABSENT, dense_BNhwC

    def embed_points(self, points_BNP2: jax.Array, labels_BNP: jax.Array) -> jax.Array:
        """Position plus kind of each point, in float32; box corners are points with labels of their own."""
        height, width = self.image_size
        centre_BNP2 = (points_BNP2.astype(jnp.float32) + 0.5) / jnp.array([width, height], jnp.float32)[
            None, None, None
        ]
        kind_BNPC = self.label_embed_4C[...][jnp.clip(labels_BNP, 0, BOX_BOTTOM_RIGHT)]
        embed_BNPC = self.fourier(centre_BNP2) + kind_BNPC
        nothing_BNP1 = (labels_BNP == NOT_A_POINT)[..., None]
        return jnp.where(nothing_BNP1, self.not_a_point_C[...][None, None, None], embed_BNPC)

    def embed_mask(self, mask_BNyx: jax.Array) -> jax.Array:
        x = gelu(self.mask_norm1(self.mask_conv1(mask_BNyx[..., None])))
        x = gelu(self.mask_norm2(self.mask_conv2(x)))
        return self.mask_conv3(x)

    def grid_positions(self) -> jax.Array:
        """Fourier features of the centres of the embedding grid's cells, (h, w, C) float32."""
        h, w = self.grid
        y_hw, x_hw = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing='ij')
        return self.fourier(jnp.asarray(np.stack([x_hw, y_hw], -1), jnp.float32))

    def fourier(self, xy: jax.Array) -> jax.Array:
        """(..., 2) coordinates in [0, 1] -> (..., C) random Fourier features; row 0 of the matrix goes with x."""
        angle = 2 * jnp.pi * jnp.einsum('...z,zF->...F', 2 * xy - 1, self.fourier_2F[...], precision='highest')
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
