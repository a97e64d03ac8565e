"""Segment Anything: an image is encoded once, prompts are answered many times (arXiv 2304.02643)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from samjax.errors import SamjaxError
from samjax.model.attention.attention import chunked_attention
from samjax.model.encoders.vit import ImageEncoder
from samjax.model.mask_decoder import MaskDecoder
from samjax.model.prompt_encoder import PromptEncoder
from samjax.structs import ALL_MASKS, Prediction, Prompts

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclasses.dataclass(frozen=True)
class SamConfig:
    """Every size of a SAM.  The encoder is `stages` x (`windowed` windowed blocks + 1 global block)."""

    width: int  # D, of the encoder
    stages: int
    windowed: int  # windowed blocks before each global one
    heads: int
    image_size: tuple[int, int] = (1024, 1024)  # H, W of the model frame, px
    patch: int = 16  # px
    window: int = 14  # grid cells
    channels: int = 256  # C, of embedding, prompts and decoder
    mask_channels: int = 16  # hidden channels of the mask prompt
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    iou_hidden: int = 256
    dtype: str = 'float32'  # of activations
    drop_path: float = 0.0  # rate at the last encoder block, linear from 0 at the first
    dropout: float = 0.0  # rate in the mask decoder
    remat: str = 'none'  # what the backward pass computes again: a row of samjax.model.encoders.vit.REMAT
    attend: Callable = chunked_attention  # one of samjax.model.attention.attention

    def __post_init__(self):
        if any(side <= 0 or side % self.patch for side in self.image_size):
            raise SamjaxError(
                f'model.image_size {tuple(self.image_size)} must be multiples of the patch, {self.patch} px; '
                f'round each side to one.'
            )

    @property
    def depth(self) -> int:
        return self.stages * (self.windowed + 1)

    @property
    def grid(self) -> tuple[int, int]:
        """h, w: cells of the embedding."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def low_size(self) -> tuple[int, int]:
        """y, x: pixels of the masks that the decoder answers with."""
        return 4 * self.grid[0], 4 * self.grid[1]


SIZES = {
    'vit_h': SamConfig(width=1280, stages=4, windowed=7, heads=16),
    'vit_l': SamConfig(width=1024, stages=4, windowed=5, heads=16),
    'vit_b': SamConfig(width=768, stages=4, windowed=2, heads=12),
    # Small rows for CPUs: finer patches for smaller images, a slimmer decoder.
    'vit_xs': SamConfig(
        width=128, stages=1, windowed=3, heads=2, image_size=(256, 256), patch=8, window=8, channels=64,
        decoder_heads=4, decoder_mlp=256, iou_hidden=64,
    ),
    'vit_xxs': SamConfig(
        width=128, stages=2, windowed=1, heads=4, image_size=(128, 128), patch=8, window=8, channels=64,
        decoder_heads=4, decoder_mlp=256, iou_hidden=64,
    ),
    'test': SamConfig(
        width=16, stages=1, windowed=1, heads=2, image_size=(32, 48), patch=8, window=3, channels=16,
        mask_channels=8, decoder_heads=2, decoder_mlp=32, iou_hidden=16,
    ),
}  # fmt: skip


def sam_config(size: str, image_size, dtype: str, drop_path: float, dropout: float, remat: str) -> SamConfig:
    """A row of `SIZES` with the options of a config's `model` section.  Raises SamjaxError for an unknown row."""
    if size not in SIZES:
        raise SamjaxError(f'model.size {size!r} is not one of {", ".join(SIZES)}.')
    return dataclasses.replace(
        SIZES[size], image_size=tuple(image_size), dtype=dtype, drop_path=drop_path, dropout=dropout, remat=remat
    )


class Sam(nnx.Module):
    """The whole model.  Deterministic unless there is a key for each image, which turns on drop path and dropout."""

    def __init__(self, config: SamConfig, rngs: nnx.Rngs):
        self.image_encoder = ImageEncoder(config, rngs)
        self.prompt_encoder = PromptEncoder(config, rngs)
        self.mask_decoder = MaskDecoder(config, rngs)

    def encode(self, image_BHW3: jax.Array, size_B2: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        """uint8 RGB images in the model frame -> embed_BhwC."""
        return self.image_encoder(normalize(image_BHW3, size_B2), keys_B)

    def decode(
        self,
        embed_BhwC: jax.Array,
        prompts: Prompts,
        masks: tuple[int, ...] = ALL_MASKS,
        keys_B: jax.Array | None = None,
    ) -> Prediction:
        """Answers N prompts for each of B images with the mask tokens named in `masks` (axis M, in that order)."""
        output_tokens_BNTC, image_BNhwC = self.run_transformer(embed_BhwC, prompts, keys_B)
        return self.mask_decoder.predict_masks(output_tokens_BNTC, self.mask_decoder.upscale(image_BNhwC), masks)

    def run_transformer(
        self, embed_BhwC: jax.Array, prompts: Prompts, keys_B: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """The decoder's own tokens and the image after their talk, of which masks and their scores are made."""
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


def content_mask(size_B2: jax.Array, frame: tuple[int, int]) -> jax.Array:
    """bool (B, H, W): True on the image, False on the padding of the frame."""
    rows_BH = jnp.arange(frame[0])[None] < size_B2[:, :1]
    columns_BW = jnp.arange(frame[1])[None] < size_B2[:, 1:]
    return rows_BH[:, :, None] & columns_BW[:, None, :]
