"""Prompt encoder: points, boxes and masks become sparse tokens and a dense map (paper §A)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from samjax.model.layers import Buffer, LayerNorm, PatchConv, gelu, normal
from samjax.model.param_rules import CONV, ParamRule
from samjax.structs import ABSENT, BOX_BOTTOM_RIGHT, NOT_A_POINT, Prompts

# The rules of the parameters, and of the fixed Fourier matrix, which like them is on every device.
PARAM_RULES = (
    ParamRule('fourier_2F'),
    ParamRule('label_embed_4C'),
    ParamRule('not_a_point_C'),
    ParamRule('no_mask_C'),
    ParamRule('mask_conv[123]/kernel', CONV),
    ParamRule('mask_conv[123]/bias'),
    ParamRule('mask_norm[12]/(scale|bias)'),
)


class PromptEncoder(nnx.Module):
    """Prompts -> sparse_BNPC tokens, which of them are present (BNP), and a dense_BNhwC map."""

    def __init__(
        self,
        embed_dim: int,
        image_size: tuple[int, int],
        embedding_size: tuple[int, int],
        mask_in_chans: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """embed_dim: C; image_size: (H, W) in px; embedding_size: (h, w); mask_in_chans: see `SamConfig`."""
        c = embed_dim
        self.fourier_2F = Buffer(jax.random.normal(rngs.params(), (2, c // 2), jnp.float32))
        # negative point, positive point, box top left, box bottom right: the label is the row
        self.label_embed_4C = normal(rngs, (4, c))
        self.not_a_point_C = normal(rngs, (c,))
        self.no_mask_C = normal(rngs, (c,))
        self.mask_conv1 = PatchConv(2, 1, mask_in_chans // 4, dtype, rngs)
        self.mask_norm1 = LayerNorm(mask_in_chans // 4, 1e-6, dtype)
        self.mask_conv2 = PatchConv(2, mask_in_chans // 4, mask_in_chans, dtype, rngs)
        self.mask_norm2 = LayerNorm(mask_in_chans, 1e-6, dtype)
        self.mask_conv3 = PatchConv(1, mask_in_chans, c, dtype, rngs)
        self.image_size = image_size
        self.embedding_size = embedding_size
        self.dtype = dtype

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
        """Fourier features of the centres of the cells of the embedding, (h, w, C) float32."""
        h, w = self.embedding_size
        y_hw, x_hw = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing='ij')
        return self.fourier(jnp.asarray(np.stack([x_hw, y_hw], -1), jnp.float32))

    def fourier(self, xy: jax.Array) -> jax.Array:
        """(..., 2) coordinates in [0, 1] -> (..., C) random Fourier features; row 0 of the matrix goes with x."""
        angle = 2 * jnp.pi * jnp.einsum('...z,zF->...F', 2 * xy - 1, self.fourier_2F[...], precision='highest')
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
