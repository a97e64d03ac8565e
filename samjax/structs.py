"""The data that flows through samjax: Batch -> Prompts -> Prediction, and the key to the letters in names.

A name such as `points_BNP2` carries its shape, one letter per axis, digits for literal sizes:

    B  images in the batch             H W  pixels of the model frame (1024 x 1024)
    N  objects (masks) per image       h w  embedding grid (64 x 64)
    P  prompt slots per object         y x  low-resolution mask (256 x 256 = 4h x 4w)
    M  masks answered per object       D    encoder width
    T  decoder tokens                  C    decoder width (256)
    K  rounds or clicks                A E  attention heads, width of one head
    G  windows (B x windows/image)     i j  key grid in attention
    R  relative offsets (2 side - 1)   s    the stack of q, k, v
    V  bytes of eight rows (H / 8)     S    vertical segments of a mask

The *frame* is the padded model input: an image is resized until its long side fills the frame and
sits in the top-left corner; the rest is padding.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax

# What a prompt slot holds.  ABSENT slots are masked as attention keys and change nothing; NOT_A_POINT is a
# real token that the original appends exactly once when points come without a box.
ABSENT = -2
NOT_A_POINT = -1
NEGATIVE = 0
POSITIVE = 1
BOX_TOP_LEFT = 2
BOX_BOTTOM_RIGHT = 3

# Which mask tokens answer (arXiv 2304.02643, appendix A): three for one ambiguous prompt, one for several.
MULTIMASK = (1, 2, 3)
SINGLE_MASK = (0,)
ALL_MASKS = (0, 1, 2, 3)


class Batch(NamedTuple):
    """Images with their objects, made by `samjax.data.pipeline`, padded to one static shape."""

    image_BHW3: jax.Array  # uint8 RGB; padding is 0
    packed_masks_BNVW: jax.Array  # uint8, 8 rows per byte (samjax.masks.packing); padding and missing objects are 0
    valid_BN: jax.Array  # bool, False for objects that only fill up the batch
    size_B2: jax.Array  # int32, (height, width) of the image inside the frame


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """Everything a user can say about N objects of each of B images."""

    points_BNP2: jax.Array  # float32 (x, y) in pixels of the model frame
    labels_BNP: jax.Array  # int32, one of the codes above
    mask_BNyx: jax.Array | None = None  # float32 logits of an earlier answer; None if no object has one
    has_mask_BN: jax.Array | None = None  # bool, False: `mask_BNyx` is ignored


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prediction:
    """The model's answer to `Prompts`."""

    logits_BNMyx: jax.Array  # float32, > 0 is foreground
    iou_BNM: jax.Array  # float32, the IoU the model expects each mask to have
