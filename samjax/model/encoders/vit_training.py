"""What training needs to know about ViT: a rule for each of its parameters, and its multiply-adds."""

from __future__ import annotations

import numpy as np

from samjax.model.encoders.vit import ViTConfig
from samjax.model.param_rules import CONV, DENSE, FROM_HEADS, TO_QKV_HEADS, ParamRule


def param_rules(config: ViTConfig) -> tuple[ParamRule, ...]:
    """Rules for paths below the encoder.

    Layers, as in layer-wise learning-rate decay: the embeddings are layer 0, block i is layer i + 1.
    """
    layer = 1 + np.arange(config.depth).reshape(config.num_stages, -1)  # (stages, blocks)
    stacked = {'windowed_blocks': layer[:, :-1], 'global_blocks': layer[:, -1]}
    return (
        ParamRule('pos_embed', layer=0, fsdp=True),
        ParamRule('patch_embed/kernel', CONV, layer=0, fsdp=True),
        ParamRule('patch_embed/bias', layer=0),
        *(rule for name, layer in stacked.items() for rule in _block_rules(name, layer)),
        ParamRule('neck/project_DC', DENSE, fsdp=True),
        ParamRule('neck/smooth_33CC', CONV, fsdp=True),
        ParamRule('neck/norm[12]/(scale|bias)'),
    )


def _block_rules(blocks: str, layer: np.ndarray) -> tuple[ParamRule, ...]:
    return (
        ParamRule(f'{blocks}/norm[12]/(scale|bias)', layer=layer),
        ParamRule(f'{blocks}/attention/w_qkv_DsAE', TO_QKV_HEADS, layer, fsdp=True, tensor_axis=-2),
        ParamRule(f'{blocks}/attention/b_qkv_sAE', layer=layer, tensor_axis=-2),
        ParamRule(f'{blocks}/attention/rel_[hw]_RE', layer=layer),
        ParamRule(f'{blocks}/attention/w_out_AED', FROM_HEADS, layer, fsdp=True, tensor_axis=-3),
        ParamRule(f'{blocks}/attention/b_out_D', layer=layer),
        ParamRule(f'{blocks}/mlp/layers/0/kernel', DENSE, layer, fsdp=True, tensor_axis=-1),
        ParamRule(f'{blocks}/mlp/layers/0/bias', layer=layer, tensor_axis=-1),
        ParamRule(f'{blocks}/mlp/layers/1/kernel', DENSE, layer, fsdp=True, tensor_axis=-2),
        ParamRule(f'{blocks}/mlp/layers/1/bias', layer=layer),
    )


def macs(config: ViTConfig, image_size: tuple[int, int], embed_dim: int) -> int:
    """Multiply-adds of matrix products and convolutions for one image of (H, W) px."""
    h, w = (side // config.patch_size for side in image_size)
    c, d, tokens = embed_dim, config.width, h * w

    def attention(grids: int, height: int, width: int) -> int:
        """Queries, keys, values and output; logits and sums of values; relative positions of rows and columns."""
        keys = height * width
        return grids * keys * (4 * d * d + 2 * keys * d + (height + width) * d)

    windows = -(-h // config.window_size) * -(-w // config.window_size)  # with those that are padded at the borders
    windowed = config.windowed_per_stage * attention(windows, config.window_size, config.window_size)
    mlps = config.depth * tokens * 8 * d * d
    patches = tokens * config.patch_size**2 * 3 * d
    neck = tokens * (d * c + 9 * c * c)
    return patches + config.num_stages * (windowed + attention(1, h, w)) + mlps + neck
