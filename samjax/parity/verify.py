"""Differences between our model and Meta's own with the same weights, on images and prompts of many kinds.

Needs torch and segment-anything.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from PIL import Image

from samjax.convert.weights import to_states
from samjax.errors import SamjaxError
from samjax.inference.predictor import Predictor
from samjax.inference.prompts import Prompt
from samjax.masks.iou import mask_iou
from samjax.model.config import SamConfig
from samjax.parity import meta
from samjax.structs import ALL_MASKS, MULTIMASK

# Kinds of prompts: number of points, whether there is a box, whether there is a mask.
KINDS = (
    *((points, False, False) for points in range(1, 10)),
    (0, True, False),
    (1, True, False),
    (4, True, False),
    (1, False, True),
    (3, False, True),
    (0, True, True),
    (2, True, True),
)
SIZES = ((683, 1024), (1024, 640), (1500, 37), (3000, 4000))  # height, width in px of the images


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest differences over all prompts, and how often the predictions agree."""

    embedding: float  # max |difference| over the standard deviation of the embedding
    logits: float  # max |difference| of low-resolution logits
    logits_std: float  # standard deviation of these logits
    iou: float  # max |difference| of predicted IoU
    mask_iou: float  # mean IoU of the two masks
    same_best: float  # fraction of prompts where both give the same of three masks the highest predicted IoU
    prompts: int

    def lines(self) -> list[str]:
        return [
            f'embedding   max |difference| {self.embedding:.1e} of its standard deviation',
            f'logits      max |difference| {self.logits:.1e} (standard deviation {self.logits_std:.1f})',
            f'IoU scores  max |difference| {self.iou:.1e}',
            f'masks       mean IoU {self.mask_iou:.6f}; the same best of three in {self.same_best:.2%} '
            f'of {self.prompts:,} prompts',
        ]


def verify(arrays: dict[str, np.ndarray], config: SamConfig, sizes=SIZES, prompts: int = 1000) -> Difference:
    """Runs both models with `arrays` on an image of each of `sizes` and about `prompts` prompts in all.

    Raises:
        SamjaxError: segment-anything is not installed, or the frame is not square, as its predictor requires.
    """
    if config.image_size[0] != config.image_size[1]:
        raise SamjaxError('segment-anything predicts with square model inputs only: there is nothing to compare with')
    package = meta.package()
    import torch

    rng = np.random.default_rng(0)
    reference = package.SamPredictor(meta.with_arrays(arrays, config))
    ours = Predictor(config, *jax.device_put(to_states(arrays, config)))
    count = -(-prompts // (len(sizes) * len(KINDS)))

    embedding, logits, logits_std, iou, mask_ious, same_best = [], [], [], [], [], []
    for height, width in sizes:
        image_HW3 = random_image(rng, height, width)
        reference.set_image(image_HW3)
        [frame], embed_1hwC = ours.encode([image_HW3])
        reference_1hwC = reference.get_image_embedding().permute(0, 2, 3, 1).numpy()
        embedding.append(np.abs(reference_1hwC - np.asarray(embed_1hwC)).max() / reference_1hwC.std())
        for kind in KINDS:
            prompts_N = [_prompt(rng, kind, height, width, config.low_res_size) for _ in range(count)]
            reference_NMyx, reference_iou_NM = _predict_reference(torch, reference, prompts_N)
            low_res_1NMyx, iou_1NM = ours.predict_low_res([frame], embed_1hwC, [prompts_N], ALL_MASKS)
            ours_NMyx, ours_iou_NM = low_res_1NMyx[0, :count], iou_1NM[0, :count]
            logits.append(np.abs(reference_NMyx - ours_NMyx).max())
            logits_std.append(reference_NMyx.std())
            iou.append(np.abs(reference_iou_NM - ours_iou_NM).max())
            mask_ious.append(mask_iou(reference_NMyx > 0, ours_NMyx > 0).ravel())
            three = list(MULTIMASK)
            same_best.append(reference_iou_NM[:, three].argmax(1) == ours_iou_NM[:, three].argmax(1))
    return Difference(
        embedding=float(max(embedding)),
        logits=float(max(logits)),
        logits_std=float(np.mean(logits_std)),
        iou=float(max(iou)),
        mask_iou=float(np.concatenate(mask_ious).mean()),
        same_best=float(np.concatenate(same_best).mean()),
        prompts=sum(map(len, same_best)),
    )


def _predict_reference(torch, predictor, prompts: list[Prompt]) -> tuple[np.ndarray, np.ndarray]:
    """Low-resolution logits (N, 4, y, x) and IoU predictions (N, 4), computed as segment-anything's predictor does."""
    transform, size = predictor.transform, predictor.original_size
    predictions = []
    for prompt in prompts:  # one at a time: for many at once the system takes longer to allocate than it saves
        points = prompt.points_K2 is not None and (
            torch.as_tensor(transform.apply_coords(prompt.points_K2, size), dtype=torch.float)[None],
            torch.as_tensor(prompt.labels_K, dtype=torch.int)[None],
        )
        box = prompt.box_4 is not None and torch.as_tensor(transform.apply_boxes(prompt.box_4, size), dtype=torch.float)
        mask = prompt.mask_yx is not None and torch.as_tensor(prompt.mask_yx)[None, None]
        with torch.no_grad():
            sparse, dense = predictor.model.prompt_encoder(
                points=points or None,
                boxes=None if box is False else box,
                masks=None if mask is False else mask,
            )
            predictions.append(
                predictor.model.mask_decoder.predict_masks(
                    image_embeddings=predictor.features,
                    image_pe=predictor.model.prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                )
            )
    return tuple(np.concatenate([array.numpy() for array in arrays]) for arrays in zip(*predictions, strict=True))


def _prompt(rng: np.random.Generator, kind, height: int, width: int, low_res_size) -> Prompt:
    points, box, mask = kind
    corners_22 = np.sort(rng.uniform(0, (width, height), (2, 2)), 0)
    return Prompt(
        points_K2=rng.uniform(0, (width, height), (points, 2)) if points else None,
        labels_K=rng.integers(0, 2, points) if points else None,
        box_4=corners_22.reshape(4) if box else None,
        mask_yx=8 * _smooth(rng, *low_res_size, 1)[..., 0] if mask else None,
    )


def random_image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth blobs of colour with noise, uint8 (H, W, 3)."""
    image_HW3 = 128 + 70 * _smooth(rng, height, width, 3) + rng.normal(0, 10, (height, width, 3))
    return image_HW3.clip(0, 255).astype(np.uint8)


def _smooth(rng: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """Smooth noise of about -1 .. 1, float32 (H, W, channels)."""
    coarse = rng.uniform(-1.5, 1.5, (channels, 8, 8)).astype(np.float32)
    channels_HW = [np.asarray(Image.fromarray(c).resize((width, height), Image.BICUBIC)) for c in coarse]
    return np.stack(channels_HW, -1)
