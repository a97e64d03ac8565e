"""ViT in PyTorch checkpoints of Meta, Hugging Face and MAE: names of arrays, sizes, and position tables.

Sources of the names: the state dicts of segment-anything 1.0, of `SamModel` of transformers, and of MAE
(github.com/facebookresearch/mae).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from samjax.masks import resize
from samjax.model.checkpoint_keys import (
    BATCHED,
    CONV,
    CONV_1X1,
    CONV_ARRAYS,
    HEADS_BIAS,
    HEADS_IN,
    HEADS_OUT,
    LINEAR_ARRAYS,
    NORM_ARRAYS,
    SAME,
    CheckpointKey,
    keys_of_layer,
)
from samjax.model.encoders.vit import ViTConfig

OURS, META_PREFIX, HUGGING_FACE_PREFIX = 'image_encoder', 'image_encoder.', 'vision_encoder.'


class KeyLayout(NamedTuple):
    """A naming of checkpoints: the names of the arrays by which it and the size of the encoder are recognized."""

    name: str
    positions: str
    patches: str
    block: str
    channels: str | None  # the projection to the embedding; None: the checkpoint has none


META = KeyLayout(
    "Meta's",
    positions='image_encoder.pos_embed',
    patches='image_encoder.patch_embed.proj.weight',
    block='image_encoder.blocks.{}.',
    channels='image_encoder.neck.0.weight',
)
HUGGING_FACE = KeyLayout(
    "Hugging Face's",
    positions='vision_encoder.pos_embed',
    patches='vision_encoder.patch_embed.projection.weight',
    block='vision_encoder.layers.{}.',
    channels='vision_encoder.neck.conv1.weight',
)
MAE = KeyLayout("MAE's", positions='pos_embed', patches='patch_embed.proj.weight', block='blocks.{}.', channels=None)
MAE_MARK = 'cls_token'  # only MAE's checkpoints have it; other names end alike
# Parts of MAE's checkpoints that SAM has no use for.
MAE_UNUSED = re.compile(r'cls_token|mask_token|norm\.(weight|bias)|fc_norm\..*|head\..*|decoder_.*')

# Layers: Meta's name, Hugging Face's, ours, and their arrays.
LAYERS = (
    ('patch_embed.proj', 'patch_embed.projection', 'patch_embed', CONV_ARRAYS),
    ('neck.1', 'neck.layer_norm1', 'neck/norm1', NORM_ARRAYS),
    ('neck.3', 'neck.layer_norm2', 'neck/norm2', NORM_ARRAYS),
)
BLOCK_LAYERS = (
    ('norm1', 'layer_norm1', 'norm1', NORM_ARRAYS),
    ('attn.qkv', 'attn.qkv', 'attention', (('weight', 'w_qkv_DsAE', HEADS_IN), ('bias', 'b_qkv_sAE', HEADS_BIAS))),
    ('attn.proj', 'attn.proj', 'attention', (('weight', 'w_out_AED', HEADS_OUT), ('bias', 'b_out_D', SAME))),
    ('norm2', 'layer_norm2', 'norm2', NORM_ARRAYS),
    ('mlp.lin1', 'mlp.lin1', 'mlp/layers/0', LINEAR_ARRAYS),
    ('mlp.lin2', 'mlp.lin2', 'mlp/layers/1', LINEAR_ARRAYS),
    ('attn', 'attn', 'attention', (('rel_pos_h', 'rel_h_RE', SAME), ('rel_pos_w', 'rel_w_RE', SAME))),
)
ARRAYS = (
    ('pos_embed', 'pos_embed', 'pos_embed', BATCHED),
    ('neck.0.weight', 'neck.conv1.weight', 'neck/project_DC', CONV_1X1),
    ('neck.2.weight', 'neck.conv2.weight', 'neck/smooth_33CC', CONV),
)


def checkpoint_keys(config: ViTConfig) -> Iterable[CheckpointKey]:
    """A key for every array of the encoder in a checkpoint of Meta or Hugging Face."""
    for meta, face, ours, axes in ARRAYS:
        yield CheckpointKey(f'{META_PREFIX}{meta}', f'{HUGGING_FACE_PREFIX}{face}', f'{OURS}/{ours}', axes)
    for meta, face, ours, arrays in LAYERS:
        yield from keys_of_layer(f'{META_PREFIX}{meta}', f'{HUGGING_FACE_PREFIX}{face}', f'{OURS}/{ours}', arrays)
    for i, is_global in enumerate(config.is_global):
        stage, block = divmod(i, config.windowed_per_stage + 1)
        stacked, index = ('global_blocks', (stage,)) if is_global else ('windowed_blocks', (stage, block))
        for meta, face, ours, arrays in BLOCK_LAYERS:
            yield from keys_of_layer(
                f'{META.block.format(i)}{meta}',
                f'{HUGGING_FACE.block.format(i)}{face}',
                f'{OURS}/{stacked}/{ours}',
                arrays,
                index,
            )


def mae_name(key: CheckpointKey) -> str | None:
    """The name of an array in a checkpoint of MAE, None if it is not in there."""
    if not key.meta.startswith(META_PREFIX) or re.search(r'\.neck\.|rel_pos', key.meta):
        return None
    return key.meta.removeprefix(META_PREFIX).replace('mlp.lin', 'mlp.fc')


def recognized_sizes(layout: KeyLayout, arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """width, depth, and if the layout has them patch_size, embed_dim and num_heads of the encoder in `arrays`."""
    patches, depth = arrays[layout.patches], 0
    while any(key.startswith(layout.block.format(depth)) for key in arrays):
        depth += 1
    sizes = {'width': patches.shape[0], 'depth': depth}
    if layout.channels:
        sizes |= {'patch_size': patches.shape[-1], 'embed_dim': arrays[layout.channels].shape[0]}
        relative = layout.block.format(0) + 'attn.rel_pos_h'
        if relative in arrays:
            sizes['num_heads'] = sizes['width'] // arrays[relative].shape[-1]
    return sizes


def image_size(layout: KeyLayout, arrays: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """(H, W) in px that the position table of a SAM is for."""
    h, w = arrays[layout.positions].shape[1:3]
    patch_size = arrays[layout.patches].shape[-1]
    return h * patch_size, w * patch_size


def resized(
    ours: Mapping[str, np.ndarray],
    old_embedding_size: tuple[int, int],
    new_embedding_size: tuple[int, int],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """Our arrays with the position tables for another image size, resized linearly without antialiasing.

    This is what Meta's code does to relative positions of another length.  shapes: of our arrays at the new size.
    """
    result, name = dict(ours), f'{OURS}/pos_embed'
    rows, columns = (resize.linear_matrix(a, b) for a, b in zip(old_embedding_size, new_embedding_size, strict=True))
    result[name] = np.einsum('hi,ijD,wj->hwD', rows, ours[name], columns)
    for name, value in ours.items():
        if re.search(r'/rel_[hw]_RE$', name):
            result[name] = resize.linear_matrix(value.shape[-2], shapes[name][-2]) @ value
    return result


def from_mae(name: str, value: np.ndarray, embedding_size: tuple[int, int], patch_size: int) -> np.ndarray:
    """An array of MAE with the shape that Meta's has; positions and patches are resized."""
    if name == MAE.positions:
        return mae_positions(value, embedding_size)
    if name == MAE.patches:
        return mae_patches(value, patch_size)
    return value


def mae_positions(table_1ND: np.ndarray, embedding_size: tuple[int, int]) -> np.ndarray:
    """MAE's positions (1, 1 + n n, D), the first of the class token, -> (1, h, w, D), bicubic as PyTorch's."""
    side = round((table_1ND.shape[1] - 1) ** 0.5)
    square_ijD = table_1ND[0, 1:].astype(np.float32).reshape(side, side, -1)
    rows, columns = (resize.cubic_matrix(side, n) for n in embedding_size)
    return np.einsum('hi,ijD,wj->hwD', rows, square_ijD, columns)[None].astype(np.float32)


def mae_patches(kernel_DIpq: np.ndarray, patch_size: int) -> np.ndarray:
    """The kernel of the patch embedding for another patch size (14 -> 16 px in ViT-H), bicubic as PyTorch's."""
    if kernel_DIpq.shape[-1] == patch_size:
        return kernel_DIpq
    cubic = resize.cubic_matrix(kernel_DIpq.shape[-1], patch_size)
    return np.einsum('yp,DIpq,xq->DIyx', cubic, kernel_DIpq.astype(np.float32), cubic)


def hugging_face_config(config: ViTConfig, side: int, embed_dim: int) -> dict:
    """The section `vision_config` of Hugging Face's config.json, for square images of `side` px."""
    return {
        'hidden_size': config.width,
        'output_channels': embed_dim,
        'num_hidden_layers': config.depth,
        'num_attention_heads': config.num_heads,
        'num_channels': 3,
        'image_size': side,
        'patch_size': config.patch_size,
        'hidden_act': 'gelu',
        'layer_norm_eps': 1e-6,
        'attention_dropout': 0.0,
        'qkv_bias': True,
        'mlp_dim': 4 * config.width,
        'mlp_ratio': 4.0,
        'use_abs_pos': True,
        'use_rel_pos': True,
        'window_size': config.window_size,
        'global_attn_indexes': [i for i, is_global in enumerate(config.is_global) if is_global],
        'num_pos_feats': embed_dim // 2,
    }
