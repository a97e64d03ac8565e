"""The data that flows through samjax: Batch -> Prompts -> Prediction, and the key to the letters in names.

A name such as `points_BNP2` carries its shape, one letter per axis, digits for literal sizes:

    B  images in the batch             H W  pixels of the model input (1024 x 1024), or of an image
    N  objects (masks) per image       h w  image embedding (64 x 64)
    P  prompt slots per object         y x  low-resolution mask (256 x 256 = 4h x 4w)
    M  masks predicted per object      D    channels of the encoder
    T  decoder tokens                  C    channels of embedding, prompts and decoder (256)
    K  rounds or clicks                A E  attention heads, channels of a head
    G  windows (B x windows/image)     i j  rows and columns of keys in attention
    R  relative offsets (2 side - 1)   s    the stack of queries, keys and values
    V  bytes of eight rows (H / 8)     L    tokens of an image in sequence (h w)
    U  channels of the upscaled        Q S  queries and source tokens (keys and values) of an attention
       embedding (C / 8)               Z    grids x heads (G A)
    F  Fourier features (C / 2)        X    channels of a head and of folded relative positions

A file that needs more letters lists them in its docstring.  The *frame* is the padded model input: an image is resized
until its long side fills the frame and lies in the top left corner; the rest is padding.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax

# Labels of prompt slots.  ABSENT slots are masked as attention keys and change nothing; NOT_A_POINT is a token that
# Meta's code appends exactly once when points come without a box.
ABSENT = -2
NOT_A_POINT = -1
NEGATIVE = 0
POSITIVE = 1
BOX_TOP_LEFT = 2
BOX_BOTTOM_RIGHT = 3

# Mask tokens that are decoded (arXiv 2304.02643, appendix A): three for a single, ambiguous prompt, one for several.
MULTIMASK = (1, 2, 3)
SINGLE_MASK = (0,)
ALL_MASKS = (0, 1, 2, 3)


class Batch(NamedTuple):
    """Images with their objects, made by `samjax.data.pipeline`, padded to one static shape."""

    image_BHW3: jax.Array  # uint8 RGB; padding is 0
    packed_masks_BNVW: jax.Array  # uint8, 8 rows per byte (samjax.masks.packing); padding and missing objects are 0
    valid_BN: jax.Array  # bool, False for objects that only fill up the batch
    size_B2: jax.Array  # int32, (height, width) of the image inside the frame, px


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts for N objects of each of B images."""

    points_BNP2: jax.Array  # float32 (x, y) in pixels of the model frame
    labels_BNP: jax.Array  # int32, one of the codes above
    mask_BNyx: jax.Array | None = None  # float32 logits of an earlier prediction; None if no object has any
    has_mask_BN: jax.Array | None = None  # bool, False: `mask_BNyx` is ignored


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predicted masks for `Prompts`."""

    logits_BNMyx: jax.Array  # float32, > 0 is foreground
    iou_BNM: jax.Array  # float32, the predicted IoU of each mask
