"""How far our model is from Meta's own with the same weights, measured on images and prompts of many kinds.

Needs torch and segment-anything.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from PIL import Image

from samjax.convert.convert import to_states
from samjax.errors import SamjaxError
from samjax.evaluation.metrics import statistics
from samjax.inference.predictor import Predictor, Prompt
from samjax.model.sam import SamConfig
from samjax.parity import meta
from samjax.structs import ALL_MASKS, MULTIMASK

# (points, box, mask prompt): what is said about an object.
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
    """The largest differences seen, and how often the answers agree."""

    embedding: float  # max |difference| over the standard deviation of the embedding
    logits: float  # max |difference| of low-resolution logits
    logits_std: float  # spread of these logits
    iou: float  # max |difference| of predicted IoU
    mask_iou: float  # mean IoU of the two masks
    same_best: float  # share of ambiguous prompts where both trust the same of three masks most
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
        SamjaxError: the original is not installed, or the frame is not square, which its predictor demands.
    """
    if config.image_size[0] != config.image_size[1]:
        raise SamjaxError('the original predicts in square frames only: there is nothing to compare with')
    package = meta.package()
    import torch

    rng = np.random.default_rng(0)
    theirs = package.SamPredictor(meta.with_arrays(arrays, config))
    ours = Predictor(config, *jax.device_put(to_states(arrays, config)))
    count = -(-prompts // (len(sizes) * len(KINDS)))

    embedding, logits, spread, scores, mask_iou, same = [], [], [], [], [], []
    for height, width in sizes:
        image_HW3 = blotches(rng, height, width)
        theirs.set_image(image_HW3)
        [frame], embed_BhwC = ours.encode([image_HW3])
        their_embed = theirs.get_image_embedding().permute(0, 2, 3, 1).numpy()
        embedding.append(np.abs(their_embed - np.asarray(embed_BhwC)).max() / their_embed.std())
        for kind in KINDS:
            said = [_prompt(rng, kind, height, width, config.low_size) for _ in range(count)]
            their_low, their_iou = _theirs(torch, theirs, said)
            low_BNMyx, iou_BNM = ours.answer_low([frame], embed_BhwC, [said], ALL_MASKS)
            our_low, our_iou = low_BNMyx[0, :count], iou_BNM[0, :count]
            logits.append(np.abs(their_low - our_low).max())
            spread.append(their_low.std())
            scores.append(np.abs(their_iou - our_iou).max())
            mask_iou.append(statistics.mask_iou(their_low > 0, our_low > 0).ravel())
            three = list(MULTIMASK)
            same.append(their_iou[:, three].argmax(1) == our_iou[:, three].argmax(1))
    return Difference(
        embedding=float(max(embedding)),
        logits=float(max(logits)),
        logits_std=float(np.mean(spread)),
        iou=float(max(scores)),
        mask_iou=float(np.concatenate(mask_iou).mean()),
        same_best=float(np.concatenate(same).mean()),
        prompts=sum(map(len, same)),
    )


def _theirs(torch, predictor, said: list[Prompt]) -> tuple[np.ndarray, np.ndarray]:
    """Low-resolution logits (N, 4, y, x) and scores (N, 4) of the original, by what its predictor does."""
    transform, size = predictor.transform, predictor.original_size
    answers = []
    for p in said:  # one at a time: many at once take the system more time for memory than they save
        points = p.points_K2 is not None and (
            torch.as_tensor(transform.apply_coords(p.points_K2, size), dtype=torch.float)[None],
            torch.as_tensor(p.labels_K, dtype=torch.int)[None],
        )
        box = p.box_4 is not None and torch.as_tensor(transform.apply_boxes(p.box_4, size), dtype=torch.float)
        mask = p.mask_yx is not None and torch.as_tensor(p.mask_yx)[None, None]
        with torch.no_grad():
            sparse, dense = predictor.model.prompt_encoder(
                points=points or None,
                boxes=None if box is False else box,
                masks=None if mask is False else mask,
            )
            answers.append(
                predictor.model.mask_decoder.predict_masks(
                    image_embeddings=predictor.features,
                    image_pe=predictor.model.prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                )
            )
    return tuple(np.concatenate([part.numpy() for part in parts]) for parts in zip(*answers, strict=True))


def _prompt(rng: np.random.Generator, kind, height: int, width: int, low_size) -> Prompt:
    points, box, mask = kind
    corners_22 = np.sort(rng.uniform(0, (width, height), (2, 2)), 0)
    return Prompt(
        points_K2=rng.uniform(0, (width, height), (points, 2)) if points else None,
        labels_K=rng.integers(0, 2, points) if points else None,
        box_4=corners_22.reshape(4) if box else None,
        mask_yx=8 * _smooth(rng, *low_size, 1)[..., 0] if mask else None,
    )


def blotches(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Blotches of colour with noise, uint8."""
    image_HW3 = 128 + 70 * _smooth(rng, height, width, 3) + rng.normal(0, 10, (height, width, 3))
    return image_HW3.clip(0, 255).astype(np.uint8)


def _smooth(rng: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """Smooth noise of about -1 .. 1, float32 (H, W, channels)."""
    coarse = rng.uniform(-1.5, 1.5, (channels, 8, 8)).astype(np.float32)
    layers = [np.asarray(Image.fromarray(c).resize((width, height), Image.BICUBIC)) for c in coarse]
    return np.stack(layers, -1)
