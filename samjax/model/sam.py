"""Segment Anything: an image is encoded once and decoded with any number of prompts (arXiv 2304.02643)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from samjax.model.config import SamConfig
from samjax.model.encoders.vit import ImageEncoderViT
from samjax.model.mask_decoder import MaskDecoder
from samjax.model.prompt_encoder import PromptEncoder
from samjax.model.runtime import Regularization, Runtime
from samjax.structs import ALL_MASKS, Prediction, Prompts

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class Sam(nnx.Module):
    """The whole model.  Deterministic unless there is a key for each image, which turns on drop path and dropout."""

    def __init__(
        self,
        config: SamConfig,
        rngs: nnx.Rngs,
        regularization: Regularization = Regularization(),
        runtime: Runtime = Runtime(),
    ):
        c, dtype = config.embed_dim, runtime.dtype
        self.image_encoder = ImageEncoderViT(config.encoder, config.image_size, c, regularization, runtime, rngs)
        self.prompt_encoder = PromptEncoder(
            c, config.image_size, config.embedding_size, config.mask_in_chans, dtype, rngs
        )
        self.mask_decoder = MaskDecoder(config.decoder, c, regularization.dropout, dtype, rngs)

    def encode(self, image_BHW3: jax.Array, size_B2: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        """uint8 RGB images, padded to the model input, and their (height, width) in it -> embed_BhwC."""
        return self.image_encoder(normalize(image_BHW3, size_B2), keys_B)

    def decode(
        self,
        embed_BhwC: jax.Array,
        prompts: Prompts,
        masks: tuple[int, ...] = ALL_MASKS,
        keys_B: jax.Array | None = None,
    ) -> Prediction:
        """Masks for N prompts of each of B images, of the mask tokens numbered in `masks` (axis M, in that order)."""
        output_tokens_BNTC, image_BNhwC = self.run_transformer(embed_BhwC, prompts, keys_B)
        return self.mask_decoder.predict_masks(output_tokens_BNTC, self.mask_decoder.upscale(image_BNhwC), masks)

    def run_transformer(
        self, embed_BhwC: jax.Array, prompts: Prompts, keys_B: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Output tokens (B, N, 5, C) and image (B, N, h, w, C) after the two-way transformer of the mask decoder."""
        sparse_BNPC, present_BNP, dense_BNhwC = self.prompt_encoder(prompts)
        positions_hwC = self.prompt_encoder.grid_positions()
        return self.mask_decoder.run_transformer(
            embed_BhwC, positions_hwC, sparse_BNPC, present_BNP, dense_BNhwC, keys_B
        )


def normalize(image_BHW3: jax.Array, size_B2: jax.Array) -> jax.Array:
    """uint8 RGB -> zero mean, unit variance, float32; the padding beyond `size_B2` becomes 0 (the mean colour)."""
    mean_3, std_3 = np.array(PIXEL_MEAN, np.float32), np.array(PIXEL_STD, np.float32)
    x_BHW3 = (image_BHW3.astype(jnp.float32) - mean_3[None, None, None]) / std_3[None, None, None]
    return jnp.where(content_mask(size_B2, image_BHW3.shape[1:3])[..., None], x_BHW3, 0)


def content_mask(size_B2: jax.Array, image_size: tuple[int, int]) -> jax.Array:
    """bool (B, H, W): True on the image, False on the padding of the model input."""
    rows_BH = jnp.arange(image_size[0])[None] < size_B2[:, :1]
    columns_BW = jnp.arange(image_size[1])[None] < size_B2[:, 1:]
    return rows_BH[:, :, None] & columns_BW[:, None, :]
