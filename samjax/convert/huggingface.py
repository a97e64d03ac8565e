"""The two JSON files that make a folder of weights a `SamModel` and `SamProcessor` of Hugging Face's transformers."""

from __future__ import annotations

from samjax.errors import SamjaxError
from samjax.model.sam import PIXEL_MEAN, PIXEL_STD, SamConfig


def model_json(config: SamConfig) -> dict:
    """config.json.  Raises SamjaxError for a frame that is not square, which transformers has no words for."""
    height, width = config.image_size
    if height != width:
        raise SamjaxError(f'Hugging Face knows square images only, not {height} x {width} px: convert to a .pth file')
    return {
        'architectures': ['SamModel'],
        'model_type': 'sam',
        'torch_dtype': 'float32',
        'vision_config': {
            'hidden_size': config.width,
            'output_channels': config.channels,
            'num_hidden_layers': config.depth,
            'num_attention_heads': config.heads,
            'num_channels': 3,
            'image_size': height,
            'patch_size': config.patch,
            'hidden_act': 'gelu',
            'layer_norm_eps': 1e-6,
            'attention_dropout': 0.0,
            'qkv_bias': True,
            'mlp_dim': 4 * config.width,
            'mlp_ratio': 4.0,
            'use_abs_pos': True,
            'use_rel_pos': True,
            'window_size': config.window,
            'global_attn_indexes': [i for i in range(config.depth) if (i + 1) % (config.windowed + 1) == 0],
            'num_pos_feats': config.channels // 2,
        },
        'prompt_encoder_config': {
            'hidden_size': config.channels,
            'image_size': height,
            'patch_size': config.patch,
            'mask_input_channels': config.mask_channels,
            'num_point_embeddings': 4,
            'hidden_act': 'gelu',
            'layer_norm_eps': 1e-6,
        },
        'mask_decoder_config': {
            'hidden_size': config.channels,
            'hidden_act': 'relu',
            'mlp_dim': config.decoder_mlp,
            'num_hidden_layers': config.decoder_depth,
            'num_attention_heads': config.decoder_heads,
            'attention_downsample_rate': 2,
            'num_multimask_outputs': 3,
            'iou_head_depth': 3,
            'iou_head_hidden_dim': config.iou_hidden,
            'layer_norm_eps': 1e-5,  # of the two-way transformer; transformers' default 1e-6 is not Meta's
        },
    }


def processor_json(config: SamConfig) -> dict:
    """preprocessor_config.json."""
    side = config.image_size[0]
    return {
        'processor_class': 'SamProcessor',
        'image_processor_type': 'SamImageProcessor',
        'do_convert_rgb': True,
        'do_resize': True,
        'size': {'longest_edge': side},
        'mask_size': {'longest_edge': side // 4},
        'resample': 2,
        'do_rescale': True,
        'rescale_factor': 1 / 255,
        'do_normalize': True,
        'image_mean': [value / 255 for value in PIXEL_MEAN],
        'image_std': [value / 255 for value in PIXEL_STD],
        'do_pad': True,
        'pad_size': {'height': side, 'width': side},
        'mask_pad_size': {'height': side // 4, 'width': side // 4},
    }
