"""The two JSON files that make a folder of weights a `SamModel` and `SamProcessor` of Hugging Face's transformers."""

from __future__ import annotations

from samjax.errors import SamjaxError
from samjax.model.config import SamConfig
from samjax.model.encoders import vit_checkpoints
from samjax.model.sam import PIXEL_MEAN, PIXEL_STD


def model_json(config: SamConfig) -> dict:
    """config.json.  Raises SamjaxError for a model input that is not square, which transformers cannot express."""
    height, width = config.image_size
    if height != width:
        raise SamjaxError(f'Hugging Face has only square images, not {height} x {width} px: convert to a .pth file')
    c, decoder = config.embed_dim, config.decoder
    return {
        'architectures': ['SamModel'],
        'model_type': 'sam',
        'torch_dtype': 'float32',
        'vision_config': vit_checkpoints.hugging_face_config(config.encoder, height, c),
        'prompt_encoder_config': {
            'hidden_size': c,
            'image_size': height,
            'patch_size': config.encoder.patch_size,
            'mask_input_channels': config.mask_in_chans,
            'num_point_embeddings': 4,
            'hidden_act': 'gelu',
            'layer_norm_eps': 1e-6,
        },
        'mask_decoder_config': {
            'hidden_size': c,
            'hidden_act': 'relu',
            'mlp_dim': decoder.mlp_dim,
            'num_hidden_layers': decoder.depth,
            'num_attention_heads': decoder.num_heads,
            'attention_downsample_rate': 2,
            'num_multimask_outputs': 3,
            'iou_head_depth': 3,
            'iou_head_hidden_dim': decoder.iou_head_hidden_dim,
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
