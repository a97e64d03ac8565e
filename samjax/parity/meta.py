"""Meta's own model, a torch module of the package segment-anything, with the sizes and the weights of ours.

torch and segment-anything are imported only when the model is asked for, by `verify`, benchmarks and tests.
"""

from __future__ import annotations

import sys
import types

import numpy as np

from samjax.convert import weights
from samjax.errors import SamjaxError
from samjax.masks.boxes import nms
from samjax.model.sam import SamConfig


def _suppress(boxes, scores, idxs, iou_threshold: float):
    """torchvision's batched_nms for boxes of one category, which is all that the original has."""
    import torch

    return torch.as_tensor(nms(boxes.numpy(), scores.numpy(), iou_threshold))


def _area(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _resize(image, size):
    from PIL import Image

    return image.resize((size[1], size[0]), Image.BILINEAR)


def _to_image(array):
    from PIL import Image

    return Image.fromarray(array)


# segment_anything imports these names of torchvision.  What it asks of them comes down to pillow and a few products.
TORCHVISION = {
    'torchvision': {},
    'torchvision.ops': {},
    'torchvision.ops.boxes': {'batched_nms': _suppress, 'box_area': _area},
    'torchvision.transforms': {},
    'torchvision.transforms.functional': {'resize': _resize, 'to_pil_image': _to_image},
}


def package():
    """The package segment_anything; stubs stand in for torchvision while it is imported, which then is as it was.

    Raises:
        SamjaxError: torch or segment-anything is not installed.
    """
    before = {name: sys.modules[name] for name in TORCHVISION if name in sys.modules}
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
        sys.modules.update(before)
    return segment_anything


def build(config: SamConfig):
    """Meta's Sam, a torch module, with the sizes of `config`; for a frame that is not square, too."""
    modeling = package().modeling
    import torch

    is_global = [(i + 1) % (config.windowed + 1) == 0 for i in range(config.depth)]
    encoder = modeling.ImageEncoderViT(
        img_size=config.image_size[0],
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        out_chans=config.channels,
        norm_layer=lambda channels: torch.nn.LayerNorm(channels, eps=1e-6),
        use_rel_pos=True,
        window_size=config.window,
        global_attn_indexes=[i for i in range(config.depth) if is_global[i]],
    )
    # Its constructor knows square frames only; its forward pass goes by the shapes of these two.
    h, w = config.grid
    encoder.pos_embed = torch.nn.Parameter(torch.zeros(1, h, w, config.width))
    for block in encoder.blocks:
        if block.window_size == 0:
            head = config.width // config.heads
            block.attn.rel_pos_w = torch.nn.Parameter(torch.zeros(2 * w - 1, head))
    prompt_encoder = modeling.PromptEncoder(
        embed_dim=config.channels,
        image_embedding_size=config.grid,
        input_image_size=config.image_size,
        mask_in_chans=config.mask_channels,
    )
    decoder = modeling.MaskDecoder(
        transformer_dim=config.channels,
        transformer=modeling.TwoWayTransformer(
            depth=config.decoder_depth,
            embedding_dim=config.channels,
            num_heads=config.decoder_heads,
            mlp_dim=config.decoder_mlp,
        ),
        iou_head_hidden_dim=config.iou_hidden,
    )
    return modeling.Sam(encoder, prompt_encoder, decoder).eval()


def with_arrays(arrays: dict[str, np.ndarray], config: SamConfig):
    """Meta's Sam with our `arrays`."""
    sam = build(config)
    import torch

    state = weights.to_torch(weights.META, arrays, config)
    sam.load_state_dict({key: torch.tensor(np.ascontiguousarray(value)) for key, value in state.items()})
    return sam


def generator(sam, **arguments):
    """Meta's automatic mask generator, with its own `arguments`, of Meta's Sam."""
    package()
    from segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator

    return SamAutomaticMaskGenerator(sam, **arguments)
