"""What every array is called in checkpoints of Meta and of Hugging Face and here, and how its axes lie.

Source of Meta's names: the state dict of segment-anything 1.0; of Hugging Face's: `SamModel` of transformers.  Those of
the image encoder are in `samjax.model.encoders.vit_checkpoints`.
"""

from __future__ import annotations

from samjax.model.checkpoint_keys import (
    BATCHED,
    CONV_ARRAYS,
    HEADS_BIAS,
    HEADS_IN,
    HEADS_OUT,
    LINEAR_ARRAYS,
    NORM_ARRAYS,
    SAME,
    TRANSPOSED_CONV_ARRAYS,
    Arrays,
    CheckpointKey,
    keys_of_layer,
)
from samjax.model.config import SamConfig
from samjax.model.encoders import vit_checkpoints

DECODER_Q = (('weight', 'w_q_CAE', HEADS_IN), ('bias', 'b_q_AE', HEADS_BIAS))
DECODER_K = (('weight', 'w_k_CAE', HEADS_IN), ('bias', 'b_k_AE', HEADS_BIAS))
DECODER_V = (('weight', 'w_v_CAE', HEADS_IN), ('bias', 'b_v_AE', HEADS_BIAS))
DECODER_OUT = (('weight', 'w_out_AEC', HEADS_OUT), ('bias', 'b_out_C', SAME))

# Layers: Meta's name, Hugging Face's, ours, and their arrays.
PROMPT_ENCODER = (
    ('mask_downscaling.0', 'mask_embed.conv1', 'mask_conv1', CONV_ARRAYS),
    ('mask_downscaling.1', 'mask_embed.layer_norm1', 'mask_norm1', NORM_ARRAYS),
    ('mask_downscaling.3', 'mask_embed.conv2', 'mask_conv2', CONV_ARRAYS),
    ('mask_downscaling.4', 'mask_embed.layer_norm2', 'mask_norm2', NORM_ARRAYS),
    ('mask_downscaling.6', 'mask_embed.conv3', 'mask_conv3', CONV_ARRAYS),
)
DECODER = (
    ('transformer.norm_final_attn', 'transformer.layer_norm_final_attn', 'transformer/final_norm', NORM_ARRAYS),
    ('output_upscaling.0', 'upscale_conv1', 'upscale1', TRANSPOSED_CONV_ARRAYS),
    ('output_upscaling.1', 'upscale_layer_norm', 'upscale_norm', NORM_ARRAYS),
    ('output_upscaling.3', 'upscale_conv2', 'upscale2', TRANSPOSED_CONV_ARRAYS),
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
    CheckpointKey(
        'prompt_encoder.pe_layer.positional_encoding_gaussian_matrix',
        'prompt_encoder.shared_embedding.positional_embedding',
        'prompt_encoder/fourier_2F',
        SAME,
    ),
    *(
        CheckpointKey(
            f'prompt_encoder.point_embeddings.{label}.weight',
            f'prompt_encoder.point_embed.{label}.weight',
            'prompt_encoder/label_embed_4C',
            BATCHED,
            index=(label,),
        )
        for label in range(4)
    ),
    CheckpointKey(
        'prompt_encoder.not_a_point_embed.weight',
        'prompt_encoder.not_a_point_embed.weight',
        'prompt_encoder/not_a_point_C',
        BATCHED,
    ),
    CheckpointKey(
        'prompt_encoder.no_mask_embed.weight',
        'prompt_encoder.no_mask_embed.weight',
        'prompt_encoder/no_mask_C',
        BATCHED,
    ),
    CheckpointKey('mask_decoder.iou_token.weight', 'mask_decoder.iou_token.weight', 'mask_decoder/iou_token_1C', SAME),
    CheckpointKey(
        'mask_decoder.mask_tokens.weight', 'mask_decoder.mask_tokens.weight', 'mask_decoder/mask_tokens_4C', SAME
    ),
)
# Hugging Face keeps the Fourier matrix a second time.
HUGGING_FACE_COPY = (
    'shared_image_embedding.positional_embedding',
    'prompt_encoder.shared_embedding.positional_embedding',
)


def checkpoint_keys(config: SamConfig) -> list[CheckpointKey]:
    """A key for every array of this model in a checkpoint of Meta or Hugging Face, each once."""
    keys = [*vit_checkpoints.checkpoint_keys(config.encoder), *ARRAYS]

    def add(module: str, meta: str, hugging_face: str, ours: str, arrays: Arrays) -> None:
        keys.extend(keys_of_layer(f'{module}.{meta}', f'{module}.{hugging_face}', f'{module}/{ours}', arrays))

    for layer in PROMPT_ENCODER:
        add('prompt_encoder', *layer)
    for layer in DECODER:
        add('mask_decoder', *layer)
    attentions = [('transformer.final_attn_token_to_image', 'transformer/final_attention')]
    for i in range(config.decoder.depth):
        meta, ours = f'transformer.layers.{i}', f'transformer/blocks/{i}'
        attentions += [
            (f'{meta}.self_attn', f'{ours}/self_attention'),
            (f'{meta}.cross_attn_token_to_image', f'{ours}/token_to_image'),
            (f'{meta}.cross_attn_image_to_token', f'{ours}/image_to_token'),
        ]
        for n in range(1, 5):
            add('mask_decoder', f'{meta}.norm{n}', f'{meta}.layer_norm{n}', f'{ours}/norm{n}', NORM_ARRAYS)
        for n in range(2):
            linear = f'{meta}.mlp.lin{n + 1}'
            add('mask_decoder', linear, linear, f'{ours}/mlp/layers/{n}', LINEAR_ARRAYS)
    for meta, ours in attentions:
        for projection, arrays in DECODER_ATTENTION:
            add('mask_decoder', f'{meta}.{projection}', f'{meta}.{projection}', ours, arrays)
    heads = [(f'output_hypernetworks_mlps.{m}', f'mask_heads/{m}') for m in range(4)]
    for name, ours in [*heads, ('iou_prediction_head', 'iou_head')]:
        for meta, face, layer in HEAD:
            add('mask_decoder', f'{name}.{meta}', f'{name}.{face}', f'{ours}/layers/{layer}', LINEAR_ARRAYS)
    return keys
