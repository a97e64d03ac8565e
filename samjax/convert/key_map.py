"""One table: what every array is called in Meta's checkpoints, in Hugging Face's and here, and how its axes lie.

Source of Meta's names: the state dict of segment-anything 1.0; of Hugging Face's: `SamModel` of transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from samjax.model.sam import SamConfig


class Layout(NamedTuple):
    """How the axes of an array lie in torch and here; both ways are views."""

    to_ours: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]  # (torch's array, our shape) -> our array
    to_torch: Callable[[np.ndarray], np.ndarray]


class Row(NamedTuple):
    """An array of the model.  `place` is its index along our first axes where torch keeps one array per place."""

    meta: str
    hugging_face: str
    ours: str
    layout: Layout
    place: tuple[int, ...] = ()


SAME = Layout(lambda x, shape: x, lambda x: x)
BATCHED = Layout(lambda x, shape: x[0], lambda x: x[None])  # torch has one more axis, of length 1
LINEAR = Layout(lambda x, shape: x.T, lambda x: x.T)
CONV = Layout(lambda x, shape: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
CONV_1X1 = Layout(lambda x, shape: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
DECONV = Layout(lambda x, shape: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1))
# Attention has its heads as axes: inputs x (qkv x) heads x channels, and back.
HEADS_IN = Layout(lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(x.shape[0], -1).T)
HEADS_BIAS = Layout(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1))
HEADS_OUT = Layout(lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(-1, x.shape[-1]).T)

# The arrays of a torch layer: torch's name, ours, layout.
NORM = (('weight', 'scale', SAME), ('bias', 'bias', SAME))
DENSE = (('weight', 'kernel', LINEAR), ('bias', 'bias', SAME))
CONVOLUTION = (('weight', 'kernel', CONV), ('bias', 'bias', SAME))
DECONVOLUTION = (('weight', 'kernel', DECONV), ('bias', 'bias', SAME))
ENCODER_QKV = (('weight', 'w_qkv_DsAE', HEADS_IN), ('bias', 'b_qkv_sAE', HEADS_BIAS))
ENCODER_OUT = (('weight', 'w_out_AED', HEADS_OUT), ('bias', 'b_out_D', SAME))
DECODER_Q = (('weight', 'w_q_CAE', HEADS_IN), ('bias', 'b_q_AE', HEADS_BIAS))
DECODER_K = (('weight', 'w_k_CAE', HEADS_IN), ('bias', 'b_k_AE', HEADS_BIAS))
DECODER_V = (('weight', 'w_v_CAE', HEADS_IN), ('bias', 'b_v_AE', HEADS_BIAS))
DECODER_OUT = (('weight', 'w_out_AEC', HEADS_OUT), ('bias', 'b_out_C', SAME))

# Layers: Meta's name, Hugging Face's, ours, and which arrays they have.
ENCODER = (
    ('patch_embed.proj', 'patch_embed.projection', 'patch_embed', CONVOLUTION),
    ('neck.1', 'neck.layer_norm1', 'neck/norm1', NORM),
    ('neck.3', 'neck.layer_norm2', 'neck/norm2', NORM),
)
ENCODER_BLOCK = (
    ('norm1', 'layer_norm1', 'norm1', NORM),
    ('attn.qkv', 'attn.qkv', 'attention', ENCODER_QKV),
    ('attn.proj', 'attn.proj', 'attention', ENCODER_OUT),
    ('norm2', 'layer_norm2', 'norm2', NORM),
    ('mlp.lin1', 'mlp.lin1', 'mlp/layers/0', DENSE),
    ('mlp.lin2', 'mlp.lin2', 'mlp/layers/1', DENSE),
)
RELATIVE = (('attn', 'attn', 'attention', (('rel_pos_h', 'rel_h_RE', SAME), ('rel_pos_w', 'rel_w_RE', SAME))),)
PROMPT_ENCODER = (
    ('mask_downscaling.0', 'mask_embed.conv1', 'mask_conv1', CONVOLUTION),
    ('mask_downscaling.1', 'mask_embed.layer_norm1', 'mask_norm1', NORM),
    ('mask_downscaling.3', 'mask_embed.conv2', 'mask_conv2', CONVOLUTION),
    ('mask_downscaling.4', 'mask_embed.layer_norm2', 'mask_norm2', NORM),
    ('mask_downscaling.6', 'mask_embed.conv3', 'mask_conv3', CONVOLUTION),
)
DECODER = (
    ('transformer.norm_final_attn', 'transformer.layer_norm_final_attn', 'transformer/final_norm', NORM),
    ('output_upscaling.0', 'upscale_conv1', 'upscale1', DECONVOLUTION),
    ('output_upscaling.1', 'upscale_layer_norm', 'upscale_norm', NORM),
    ('output_upscaling.3', 'upscale_conv2', 'upscale2', DECONVOLUTION),
)
DECODER_ATTENTION = (
    ('q_proj', DECODER_Q),
    ('k_proj', DECODER_K),
    ('v_proj', DECODER_V),
    ('out_proj', DECODER_OUT),
)
HEAD = (('layers.0', 'proj_in', 0), ('layers.1', 'layers.0', 1), ('layers.2', 'proj_out', 2))

# Single arrays.
ARRAYS = (
    Row('image_encoder.pos_embed', 'vision_encoder.pos_embed', 'image_encoder/pos_embed', BATCHED),
    Row('image_encoder.neck.0.weight', 'vision_encoder.neck.conv1.weight', 'image_encoder/neck/project_DC', CONV_1X1),
    Row('image_encoder.neck.2.weight', 'vision_encoder.neck.conv2.weight', 'image_encoder/neck/smooth_33CC', CONV),
    Row(
        'prompt_encoder.pe_layer.positional_encoding_gaussian_matrix',
        'prompt_encoder.shared_embedding.positional_embedding',
        'prompt_encoder/fourier_2F',
        SAME,
    ),
    *(
        Row(
            f'prompt_encoder.point_embeddings.{label}.weight',
            f'prompt_encoder.point_embed.{label}.weight',
            'prompt_encoder/label_embed_4C',
            BATCHED,
            place=(label,),
        )
        for label in range(4)
    ),
    Row(
        'prompt_encoder.not_a_point_embed.weight',
        'prompt_encoder.not_a_point_embed.weight',
        'prompt_encoder/not_a_point_C',
        BATCHED,
    ),
    Row(
        'prompt_encoder.no_mask_embed.weight',
        'prompt_encoder.no_mask_embed.weight',
        'prompt_encoder/no_mask_C',
        BATCHED,
    ),
    Row('mask_decoder.iou_token.weight', 'mask_decoder.iou_token.weight', 'mask_decoder/iou_token_1C', SAME),
    Row('mask_decoder.mask_tokens.weight', 'mask_decoder.mask_tokens.weight', 'mask_decoder/mask_tokens_4C', SAME),
)
# Hugging Face keeps the Fourier matrix a second time.
HUGGING_FACE_COPY = (
    'shared_image_embedding.positional_embedding',
    'prompt_encoder.shared_embedding.positional_embedding',
)


def table(config: SamConfig) -> list[Row]:
    """A row for every array in a torch checkpoint of this model, each once."""
    rows = list(ARRAYS)

    def add(meta: str, hugging_face: str, ours: str, arrays, place: tuple[int, ...] = ()) -> None:
        for torch_name, our_name, layout in arrays:
            names = f'{meta}.{torch_name}', f'{hugging_face}.{torch_name}', f'{ours}/{our_name}'
            rows.append(Row(*names, layout, place))

    for meta, face, ours, arrays in ENCODER:
        add(f'image_encoder.{meta}', f'vision_encoder.{face}', f'image_encoder/{ours}', arrays)
    for i in range(config.depth):
        stage, index = divmod(i, config.windowed + 1)
        is_global = index == config.windowed
        kind, place = ('global_blocks', (stage,)) if is_global else ('windowed_blocks', (stage, index))
        block = f'image_encoder.blocks.{i}', f'vision_encoder.layers.{i}', f'image_encoder/{kind}'
        for meta, face, ours, arrays in (*ENCODER_BLOCK, *RELATIVE):
            add(f'{block[0]}.{meta}', f'{block[1]}.{face}', f'{block[2]}/{ours}', arrays, place)

    for meta, face, ours, arrays in PROMPT_ENCODER:
        add(f'prompt_encoder.{meta}', f'prompt_encoder.{face}', f'prompt_encoder/{ours}', arrays)

    for meta, face, ours, arrays in DECODER:
        add(f'mask_decoder.{meta}', f'mask_decoder.{face}', f'mask_decoder/{ours}', arrays)
    attentions = [('transformer.final_attn_token_to_image', 'transformer/final_attention')]
    for i in range(config.decoder_depth):
        meta, ours = f'transformer.layers.{i}', f'transformer/blocks/{i}'
        attentions += [
            (f'{meta}.self_attn', f'{ours}/self_attention'),
            (f'{meta}.cross_attn_token_to_image', f'{ours}/token_to_image'),
            (f'{meta}.cross_attn_image_to_token', f'{ours}/image_to_token'),
        ]
        for n in range(1, 5):
            names = f'{meta}.norm{n}', f'{meta}.layer_norm{n}', f'{ours}/norm{n}'
            add(*(f'mask_decoder{separator}{name}' for separator, name in zip('../', names, strict=True)), NORM)
        for n in range(2):
            name = f'mask_decoder.{meta}.mlp.lin{n + 1}'
            add(name, name, f'mask_decoder/{ours}/mlp/layers/{n}', DENSE)
    for meta, ours in attentions:
        for projection, arrays in DECODER_ATTENTION:
            name = f'mask_decoder.{meta}.{projection}'
            add(name, name, f'mask_decoder/{ours}', arrays)
    heads = [(f'output_hypernetworks_mlps.{m}', f'mask_heads/{m}') for m in range(4)]
    for name, ours in [*heads, ('iou_prediction_head', 'iou_head')]:
        for meta, face, layer in HEAD:
            head = f'mask_decoder.{name}'
            add(f'{head}.{meta}', f'{head}.{face}', f'mask_decoder/{ours}/layers/{layer}', DENSE)
    return rows
