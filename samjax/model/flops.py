"""Floating-point operations of a SAM, counted by hand, and how many of them chips can do.

XLA's own count takes the body of a loop once, and blocks, chunks of objects and rounds are loops.  Counted are the
multiply-adds of matrix products and convolutions (MACs, two operations each); left out is all elementwise work, and
the Fourier features of points and grid, which multiply pairs of numbers.
"""

from __future__ import annotations

from typing import NamedTuple

from samjax.model.mask_decoder import MASK_TOKENS
from samjax.model.sam import SamConfig
from samjax.structs import MULTIMASK, SINGLE_MASK


def train_flops(config: SamConfig, objects: int, rounds: int) -> float:
    """Operations of a training step for one image whose `objects` masks play `rounds` rounds each.

    A backward pass does twice what a forward pass does; what rematerialisation computes again does not count.
    Prompt slots without a prompt and the first round's mask prompts without a mask are multiplied like any other.
    """
    slots = 2 + max(rounds - 3, 0)  # of samjax.training.click_simulation.first_prompts
    tokens = 1 + MASK_TOKENS + slots
    first = decoder_macs(config, tokens, True, len(MULTIMASK))
    later = decoder_macs(config, tokens, True, len(SINGLE_MASK))
    return 3 * 2 * float(encoder_macs(config) + objects * (first + (rounds - 1) * later))


def encoder_macs(config: SamConfig) -> int:
    """Of the image encoder for one image."""
    h, w = config.grid
    c, d, cells = config.channels, config.width, h * w

    def attention(grids: int, height: int, width: int) -> int:
        """Queries, keys, values and output; logits and sums of values; what rows and columns of keys add."""
        keys = height * width
        return grids * keys * (4 * d * d + 2 * keys * d + (height + width) * d)

    windows = -(-h // config.window) * -(-w // config.window)  # those at the borders are filled up with padding
    windowed = attention(windows, config.window, config.window)
    mlps = config.depth * cells * 8 * d * d
    patches = cells * config.patch**2 * 3 * d
    neck = cells * (d * c + 9 * c * c)
    return patches + config.stages * (config.windowed * windowed + attention(1, h, w)) + mlps + neck


def decoder_macs(config: SamConfig, tokens: int, mask_prompt: bool, masks: int) -> int:
    """Of prompt encoder and mask decoder for one prompt, as the paper's decoder is defined.

    Ours multiplies less with few tokens (`samjax.model.mask_decoder.cheapest_order`), and once for an image what is the
    same for all its prompts: 0.90e9 instead of 1.81e9 for one of many clicks on ViT-B.

    Args:
      tokens: of the prompt and the decoder's own five.
      mask_prompt: whether a mask prompt goes through its convolutions.
      masks: how many masks are answered.
    """
    h, w = config.grid
    c, cells = config.channels, h * w

    def attention(queries: int, keys: int, inner: int) -> int:
        """Queries and output; keys and values; logits and sums of values."""
        return 2 * queries * c * inner + 2 * keys * c * inner + 2 * queries * keys * inner

    block = attention(tokens, tokens, c) + attention(tokens, cells, c // 2) + attention(cells, tokens, c // 2)
    block += 2 * tokens * c * config.decoder_mlp
    transformer = config.decoder_depth * block + attention(tokens, cells, c // 2)
    upscale = cells * c * c + cells * c * c // 2  # twice to double sides, with C / 4 and C / 8 channels
    mask_heads = masks * (c * c + c * c + c * c // 8)
    mask_products = masks * 16 * cells * c // 8
    iou_head = c * config.iou_hidden + config.iou_hidden**2 + config.iou_hidden * MASK_TOKENS
    m = config.mask_channels
    mask_convs = cells * (4 * m + m * m + m * c)  # 1 -> m / 4 -> m -> C channels, twice to half the sides
    return transformer + upscale + mask_heads + mask_products + iou_head + mask_prompt * mask_convs


class Chip(NamedTuple):
    """What a TPU chip has; a bound for the time that work must take."""

    peak: float  # bf16 operations/s
    usable: float  # bytes of HBM that a program may take: what its compiler allows
    bandwidth: float  # bytes/s from HBM
    network: float  # bytes/s from all neighbours together, in a torus that is whole and busy in all dimensions


# By jax's `device_kind`, of whole chips: the two cores of a v4 or v5p are one device.  From the tables of
# docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e.  `network` is half of a chip's bidirectional bandwidth, which is
# a pod's all-reduce bandwidth by its chips: for v4 only that is given.  `usable` is from messages of libtpu 0.0.42.
CHIPS = {
    'TPU v4': Chip(275e12, 30.75 * 2**30, 1200e9, 1.1e15 / 4096),  # of 32 GiB
    'TPU v5 lite': Chip(197e12, 15.75 * 2**30, 819e9, 200e9),  # v5e, of 16 GiB
    'TPU v5': Chip(459e12, 95.74 * 2**30, 2765e9, 600e9),  # v5p
    'TPU v6 lite': Chip(918e12, 31.25 * 2**30, 1638e9, 400e9),  # v6e, of 32 GiB
}
CHIPS['TPU v5p'] = CHIPS['TPU v5']  # the name in older runtimes

# bf16 operations/s by `device_kind`, without sparsity; from NVIDIA's data sheets of A100, H100 and H200.
PEAK = {kind: chip.peak for kind, chip in CHIPS.items()} | {
    'NVIDIA A100-SXM4-40GB': 312e12,
    'NVIDIA A100-SXM4-80GB': 312e12,
    'NVIDIA A100-PCIE-40GB': 312e12,
    'NVIDIA A100 80GB PCIe': 312e12,
    'NVIDIA H100 80GB HBM3': 989e12,
    'NVIDIA H100 NVL': 835e12,
    'NVIDIA H100 PCIe': 756e12,
    'NVIDIA H200': 989e12,
}


def peak(device_kind: str) -> float | None:
    """bf16 operations/s of a device, None for one that is not in the table."""
    return PEAK.get(device_kind)
