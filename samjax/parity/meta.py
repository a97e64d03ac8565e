"""Meta's own model, a torch module of the package segment-anything, with the sizes and the weights of our model.

torch and segment-anything are imported only when this model is built, by `verify`, benchmarks and tests.
"""

from __future__ import annotations

import sys
import types

import numpy as np

from samjax.convert import weights
from samjax.errors import SamjaxError
from samjax.masks.boxes import nms
from samjax.model.config import SamConfig


def _batched_nms(boxes, scores, idxs, iou_threshold: float):
    """torchvision's batched_nms for boxes of a single category, as segment-anything calls it."""
    import torch

    return torch.as_tensor(nms(boxes.numpy(), scores.numpy(), iou_threshold))


def _box_area(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _resize(image, size):
    from PIL import Image

    return image.resize((size[1], size[0]), Image.BILINEAR)


def _to_pil_image(array):
    from PIL import Image

    return Image.fromarray(array)


# The names that segment_anything imports from torchvision: what it does with them needs only pillow and numpy.
TORCHVISION = {
    'torchvision': {},
    'torchvision.ops': {},
    'torchvision.ops.boxes': {'batched_nms': _batched_nms, 'box_area': _box_area},
    'torchvision.transforms': {},
    'torchvision.transforms.functional': {'resize': _resize, 'to_pil_image': _to_pil_image},
}


def package():
    """The package segment_anything.  During its import, and only then, the functions above replace torchvision.

    Raises:
        SamjaxError: torch or segment-anything is not installed.
    """
    installed = {name: sys.modules[name] for name in TORCHVISION if name in sys.modules}
    for name, attributes in TORCHVISION.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(attributes)
    try:
        import segment_anything
        import segment_anything.utils.transforms
    except ImportError as error:
        raise SamjaxError(
            f'nothing to compare with, {error.name} is not installed: run pip install torch segment-anything'
        ) from None
    finally:
        for name in TORCHVISION:
            del sys.modules[name]
        sys.modules.update(installed)
    return segment_anything


def build(config: SamConfig):
    """Meta's Sam, a torch module, with the sizes of `config`, also for a frame that is not square."""
    modeling = package().modeling
    import torch

    encoder = modeling.ImageEncoderViT(
        img_size=config.image_size[0],
        patch_size=config.encoder.patch_size,
        embed_dim=config.encoder.width,
        depth=config.encoder.depth,
        num_heads=config.encoder.num_heads,
        out_chans=config.embed_dim,
        norm_layer=lambda channels: torch.nn.LayerNorm(channels, eps=1e-6),
        use_rel_pos=True,
        window_size=config.encoder.window_size,
        global_attn_indexes=[i for i, is_global in enumerate(config.encoder.is_global) if is_global],
    )
    # Its constructor supports square frames only, its forward pass all: it takes the sizes from these two arrays.
    h, w = config.embedding_size
    encoder.pos_embed = torch.nn.Parameter(torch.zeros(1, h, w, config.encoder.width))
    for block in encoder.blocks:
        if block.window_size == 0:
            head_dim = config.encoder.width // config.encoder.num_heads
            block.attn.rel_pos_w = torch.nn.Parameter(torch.zeros(2 * w - 1, head_dim))
    prompt_encoder = modeling.PromptEncoder(
        embed_dim=config.embed_dim,
        image_embedding_size=config.embedding_size,
        input_image_size=config.image_size,
        mask_in_chans=config.mask_in_chans,
    )
    decoder = modeling.MaskDecoder(
        transformer_dim=config.embed_dim,
        transformer=modeling.TwoWayTransformer(
            depth=config.decoder.depth,
            embedding_dim=config.embed_dim,
            num_heads=config.decoder.num_heads,
            mlp_dim=config.decoder.mlp_dim,
        ),
        iou_head_hidden_dim=config.decoder.iou_head_hidden_dim,
    )
    return modeling.Sam(encoder, prompt_encoder, decoder).eval()


def with_arrays(arrays: dict[str, np.ndarray], config: SamConfig):
    """Meta's Sam with the weights `arrays`, by our names (see `samjax.convert.convert.read`)."""
    sam = build(config)
    import torch

    state = weights.to_torch(weights.META, arrays, config)
    sam.load_state_dict({key: torch.tensor(np.ascontiguousarray(value)) for key, value in state.items()})
    return sam


def automatic_mask_generator(sam, **arguments):
    """Meta's SamAutomaticMaskGenerator for Meta's Sam."""
    package()
    from segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator

    return SamAutomaticMaskGenerator(sam, **arguments)
