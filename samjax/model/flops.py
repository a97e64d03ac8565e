"""Floating-point operations of a SAM, counted by formula.

XLA's own count takes the body of a loop once, and blocks, chunks of objects and rounds are loops.  Counted are the
multiply-adds of matrix products and convolutions (MACs, two operations each); elementwise work is left out, and so are
the Fourier features of points and grid, which multiply pairs of numbers.
"""

from __future__ import annotations

from samjax.model.config import SamConfig
from samjax.model.encoders import vit_training
from samjax.model.mask_decoder import MASK_TOKENS
from samjax.structs import MULTIMASK, SINGLE_MASK


def train_flops(config: SamConfig, objects: int, rounds: int) -> float:
    """Operations of a training step for one image with `objects` masks and `rounds` interactive rounds each.

    A backward pass costs two forward passes; what rematerialization recomputes does not count.  Prompt slots without a
    prompt and the first round's mask prompts without a mask are multiplied like any other.
    """
    slots = 2 + max(rounds - 3, 0)  # of samjax.training.click_simulation.first_prompts
    tokens = 1 + MASK_TOKENS + slots
    first = decoder_macs(config, tokens, True, len(MULTIMASK))
    later = decoder_macs(config, tokens, True, len(SINGLE_MASK))
    return 3 * 2 * float(encoder_macs(config) + objects * (first + (rounds - 1) * later))


def encoder_macs(config: SamConfig) -> int:
    """Of the image encoder for one image."""
    return vit_training.macs(config.encoder, config.image_size, config.embed_dim)


def decoder_macs(config: SamConfig, tokens: int, mask_prompt: bool, masks: int) -> int:
    """Of prompt encoder and mask decoder for one prompt, as the paper's decoder is defined.

    Ours multiplies less with few tokens (`samjax.model.mask_decoder.cheapest_order`), and only once per image what is
    the same for all its prompts: 0.90e9 instead of 1.81e9 for each of many points on ViT-B.

    Args:
      tokens: of the prompt and the decoder's own five.
      mask_prompt: whether a mask prompt goes through its convolutions.
      masks: how many masks are predicted.
    """
    (h, w), decoder = config.embedding_size, config.decoder
    c, cells = config.embed_dim, h * w

    def attention(queries: int, keys: int, inner: int) -> int:
        """Queries and output; keys and values; logits and sums of values."""
        return 2 * queries * c * inner + 2 * keys * c * inner + 2 * queries * keys * inner

    block = attention(tokens, tokens, c) + attention(tokens, cells, c // 2) + attention(cells, tokens, c // 2)
    block += 2 * tokens * c * decoder.mlp_dim
    transformer = decoder.depth * block + attention(tokens, cells, c // 2)
    upscale = cells * c * c + cells * c * c // 2  # twice to double sides, with C / 4 and C / 8 channels
    mask_heads = masks * (c * c + c * c + c * c // 8)
    mask_products = masks * 16 * cells * c // 8
    hidden = decoder.iou_head_hidden_dim
    iou_head = c * hidden + hidden**2 + hidden * MASK_TOKENS
    m = config.mask_in_chans
    mask_convs = cells * (4 * m + m * m + m * c)  # 1 -> m / 4 -> m -> C channels, twice to half the sides
    return transformer + upscale + mask_heads + mask_products + iou_head + mask_prompt * mask_convs
