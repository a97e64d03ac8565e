"""Our training step compared with a plain PyTorch step of Meta's modules, with the same weights and batch.

    python -m benchmarks.torch_step [--size vit_xs] [--images 1] [--objects 8] [--rounds 11] [--repeats 5] [--check]

Prints the median seconds of a step of each side in float32, after a step that is not counted, their ratio, and the
losses of the last step, which agree only roughly: each side samples its own clicks.  With --check it prints the losses
of the first steps of both sides instead.  Nothing is then sampled: all prompts are exact boxes, and the rounds, at most
three, have no clicks.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import torch
import torch.nn.functional as F

from samjax.masks import packing
from samjax.model.config import SIZES, SamConfig
from samjax.parity import meta
from samjax.structs import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NOT_A_POINT, POSITIVE, Batch
from samjax.training.click_simulation import ClickSimulation
from samjax.training.losses import LossConfig

LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.1
CHECKED_ROUNDS = 3  # with more rounds there would be clicks, which are sampled
CHECKED_STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', default='vit_xs', help='row of samjax.model.config.SIZES')
    parser.add_argument('--images', type=int, default=1, help='per step')
    parser.add_argument('--objects', type=int, default=8, help='of each image')
    parser.add_argument('--rounds', type=int, default=11, help='interactive rounds of each object')
    parser.add_argument('--repeats', type=int, default=5, help='measured steps')
    parser.add_argument('--check', action='store_true', help='compare losses, not seconds')
    options = parser.parse_args()

    from benchmarks.automatic_masks import random_arrays

    config = samjax_config(options)
    model, batch = SIZES[options.size], random_batch(SIZES[options.size].image_size, options.images, options.objects)
    arrays = random_arrays(model)
    steps = {
        'samjax': samjax_step(config, model, batch, arrays),
        'torch': build(
            model,
            ClickSimulation(**config.prompts),
            LossConfig(**config.loss),
            batch,
            seed=config.seed,
            device='cpu' if jax.default_backend() == 'cpu' else 'cuda',
            dtype=torch.float32,
            arrays=arrays,
        ),
    }
    if options.check:
        for number in range(CHECKED_STEPS):
            ours, theirs = (step() for step in steps.values())
            print(f'step {number}: loss samjax {ours:.6f}, torch {theirs:.6f}, relatively {theirs / ours - 1:.1e}')
        return

    seconds, losses = {side: [] for side in steps}, {}
    for _ in range(1 + options.repeats):
        for side, step in steps.items():
            start = time.perf_counter()
            losses[side] = step()
            seconds[side].append(time.perf_counter() - start)
    medians = {side: statistics.median(values[1:]) for side, values in seconds.items()}
    for side, median in medians.items():
        print(f'{side:6}{median:9.3f} s per step, loss {losses[side]:.4f}')
    print(f'ratio {medians["torch"] / medians["samjax"]:9.2f}')


def samjax_config(options: argparse.Namespace):
    """The options of our side, with the optimizer of the other side."""
    from samjax.config import get_config

    c = get_config()
    c.model.size, c.model.image_size = options.size, SIZES[options.size].image_size
    c.model.dtype, c.model.remat = 'float32', 'none'
    c.model.drop_path = c.model.dropout = 0.0
    c.data.max_objects, c.train.batch_size = options.objects, options.images
    c.prompts.rounds = options.rounds
    if options.check:
        c.prompts.rounds = min(options.rounds, CHECKED_ROUNDS)
        c.prompts.box_probability, c.prompts.box_noise_fraction = 1.0, 0.0
    c.optimizer.lr, c.optimizer.warmup_steps, c.optimizer.milestones = LEARNING_RATE, 0, ()
    c.optimizer.weight_decay, c.optimizer.weight_decay_on, c.optimizer.layer_decay = WEIGHT_DECAY, 'all', 1.0
    return c


def random_batch(frame: tuple[int, int], images: int, objects: int) -> Batch:
    """Images of smooth colours in the upper three quarters of the model input, with discs as masks, all valid."""
    from samjax.parity.verify import random_image

    rng = np.random.default_rng(0)
    size_2 = height, width = frame[0] * 3 // 4, frame[1]
    image_BHW3 = np.zeros((images, *frame, 3), np.uint8)
    image_BHW3[:, :height] = [random_image(rng, height, width) for _ in range(images)]
    y_BN11, x_BN11 = (rng.uniform(0, side, (images, objects, 1, 1)) for side in size_2)
    radius_BN11 = rng.uniform(0.05, 0.3, (images, objects, 1, 1)) * min(frame)
    rows_H1, columns_1W = np.ogrid[: frame[0], : frame[1]]
    masks_BNHW = (np.hypot(rows_H1 - y_BN11, columns_1W - x_BN11) < radius_BN11) & (rows_H1 < height)
    size_B2 = np.tile(np.array(size_2, np.int32), (images, 1))
    return Batch(image_BHW3, packing.pack_rows(masks_BNHW), np.ones((images, objects), bool), size_B2)


def samjax_step(config, model: SamConfig, batch: Batch, arrays: dict[str, np.ndarray]) -> Callable[[], float]:
    """A function that runs one of our steps on one device, waits for it and returns the loss."""
    from samjax.convert.weights import to_states
    from samjax.training import compiled_step

    compiled = compiled_step.build(config, jax.devices()[:1])
    params, buffers = to_states(arrays, model)
    state = dataclasses.replace(compiled.init(), params=params, buffers=buffers)
    state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, compiled.state))

    def step() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(compiled.step(state, batch))
        return float(metrics['loss'])

    return step


def build(
    config: SamConfig,
    simulation: ClickSimulation,
    loss: LossConfig,
    batch: Batch,
    seed: int,
    device: str,
    dtype: torch.dtype,
    arrays: dict[str, np.ndarray] | None = None,
) -> Callable[[], float]:
    """A function that runs one step of AdamW on `batch`, waits for the device and returns the loss.

    The loss is the metric `loss` of `samjax.training.step.train_step`.  `arrays` are weights by their path in samjax;
    without them PyTorch initializes the weights.  At least one object of the batch must be valid.

    All images are encoded at once.  Then the rounds of each image are run alone, as Meta's decoder takes one image,
    with `simulation.objects_per_chunk` objects at a time.  The gradient of a chunk is propagated to the embedding
    before the next chunk begins, and from there through the encoder once.  So memory holds all rounds of one chunk (13
    GiB for 8 objects and 11 rounds at 1024 px in float32) beside the encoder (6 GiB for an image in ViT-B).  Nothing is
    recomputed in the backward pass, where ours recomputes every round.  For vit_xs on a CPU chunks of 8 objects are
    faster than smaller ones and than all 32 or 64 objects at once.

    A dtype other than float32 is that of `torch.autocast`; positions, upsampled logits and losses stay float32.  There
    is no dropout and no drop path, which Meta's modules lack.

    Left out is what ours does to have static shapes: invalid objects, absent prompt slots, the mask prompt of the first
    round, and clicks that are not added.
    """
    torch.set_num_threads(os.cpu_count())
    if torch.device(device).type == 'cuda':
        torch.backends.cuda.matmul.fp32_precision = 'tf32'  # JAX's default there
    torch.manual_seed(seed)
    sam = meta.build(config) if arrays is None else meta.with_arrays(arrays, config)
    sam.to(device)
    optimizer = torch.optim.AdamW(sam.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    autocast = torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32)
    interaction = Interaction(sam, simulation, loss, autocast, torch.Generator(device).manual_seed(seed))
    round_without_click = random.Random(seed)

    image_BHW3, packed_masks_BNVW, valid_BN, size_B2 = map(np.asarray, batch)
    height, width = image_BHW3.shape[1:3]
    masks_BNHW = np.unpackbits(packed_masks_BNVW, axis=2, count=height, bitorder='little').astype(bool)
    rows_H1, columns_1W = np.ogrid[:height, :width]
    content_BHW = (rows_H1 < size_B2[:, :1, None]) & (columns_1W < size_B2[:, 1:, None])
    images = [
        Image(
            torch.tensor(masks_NHW[valid_N], device=device), torch.tensor(content_HW, device=device), *size_2.tolist()
        )
        for masks_NHW, valid_N, content_HW, size_2 in zip(masks_BNHW, valid_BN, content_BHW, size_B2, strict=True)
    ]
    pixels_B3HW = torch.tensor(np.moveaxis(image_BHW3, 3, 1), device=device)
    content_B1HW = torch.tensor(content_BHW[:, None], device=device)
    objects = int(valid_BN.sum())

    def step() -> float:
        optimizer.zero_grad()
        skipped_round = round_without_click.randint(0, simulation.clicks)
        normal_B3HW = (pixels_B3HW - sam.pixel_mean) / sam.pixel_std * content_B1HW
        with autocast:
            embed_BChw = sam.image_encoder(normal_B3HW)
        leaf_BChw = embed_BChw.detach().requires_grad_()
        total = torch.zeros((), device=device)
        for number, image in enumerate(images):
            for first in range(0, len(image.masks_NHW), simulation.objects_per_chunk):
                chunk = image._replace(masks_NHW=image.masks_NHW[first : first + simulation.objects_per_chunk])
                loss_of_chunk = interaction.run(leaf_BChw[number, None], chunk, skipped_round).sum() / objects
                loss_of_chunk.backward()
                total += loss_of_chunk.detach()
        embed_BChw.backward(leaf_BChw.grad)
        optimizer.step()
        return total.item()  # waits for all work of the device, the update included

    return step


class Image(NamedTuple):
    """An image of a batch with its objects, or with a chunk of them."""

    masks_NHW: torch.Tensor  # bool, of its valid objects
    content_HW: torch.Tensor  # bool, False on the padding of the model input
    height: int  # of the image inside the model input, px
    width: int


class Interaction:
    """Runs the interactive rounds of the objects of an image, as `samjax.training.step.run_rounds` does."""

    def __init__(
        self,
        sam: torch.nn.Module,
        simulation: ClickSimulation,
        loss: LossConfig,
        autocast: torch.autocast,
        generator: torch.Generator,
    ):
        self.sam = sam
        self.simulation = simulation
        self.loss = loss
        self.autocast = autocast
        self.generator = generator
        self.positions_1Chw = sam.prompt_encoder.get_dense_pe()

    def run(self, embed_1Chw: torch.Tensor, image: Image, skipped_round: int) -> torch.Tensor:
        """The loss (N,) of each object, summed over rounds; after round `skipped_round` there is no click."""
        masks_NHW, rounds, at_input = image.masks_NHW, self.simulation.rounds, self.loss.resolution == 'input'
        frame = masks_NHW.shape[1:]
        counted_HW = image.content_HW if self.loss.padding == 'exclude' else torch.ones_like(image.content_HW)
        truth_NHW, area_HW = masks_NHW, counted_HW
        if not at_input:
            factor = frame[0] // (4 * embed_1Chw.shape[2])
            truth_NHW, area_HW = shrink(masks_NHW, factor), shrink(counted_HW[None], factor)[0]

        points_NP2, labels_NP = self.first_prompts(image)
        low_N1yx, loss_N = None, 0
        for number in range(rounds):
            logits_NMyx, iou_NM = self.predict(embed_1Chw, points_NP2, labels_NP, low_N1yx, multimask=number == 0)
            best_N = iou_NM.argmax(1)
            low_N1yx = take_mask(logits_NMyx, best_N)
            if at_input:
                logits_NMyx = upsample(logits_NMyx, frame)
            loss_N = loss_N + sam_loss(self.loss, logits_NMyx, iou_NM, truth_NHW, area_HW)
            if number < rounds - 2 and number != skipped_round:
                with torch.no_grad():
                    predicted_N1HW = take_mask(logits_NMyx, best_N) if at_input else upsample(low_N1yx, frame)
                    click_N12, label_N1 = self.error_click(predicted_N1HW[:, 0] > 0, image)
                points_NP2, labels_NP = torch.cat([points_NP2, click_N12], 1), torch.cat([labels_NP, label_N1], 1)
            if self.simulation.stop_mask_gradient:
                low_N1yx = low_N1yx.detach()
        return loss_N

    def predict(
        self,
        embed_1Chw: torch.Tensor,
        points_NP2: torch.Tensor,
        labels_NP: torch.Tensor,
        low_N1yx: torch.Tensor | None,
        multimask: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 logits (N, M, y, x) and IoU predictions (N, M); M is 3 if `multimask`, else 1."""
        sparse_NPC = self.embed_points(points_NP2, labels_NP)
        with self.autocast:
            _, dense_NChw = self.sam.prompt_encoder(points=None, boxes=None, masks=low_N1yx)
            logits_NMyx, iou_NM = self.sam.mask_decoder(
                image_embeddings=embed_1Chw,
                image_pe=self.positions_1Chw,
                sparse_prompt_embeddings=sparse_NPC,
                dense_prompt_embeddings=dense_NChw,
                multimask_output=multimask,
            )
        return logits_NMyx.float(), iou_NM.float()

    def embed_points(self, points_NP2: torch.Tensor, labels_NP: torch.Tensor) -> torch.Tensor:
        """The tokens (N, P, C) of Meta's prompt encoder.

        It takes either boxes or points for all objects.  Here they are mixed: a box is two points with the labels of
        its corners, a first click is a point and the padding point with label -1 that Meta's encoder adds if there is
        no box.  Both take two slots, so all objects have the same number of tokens.
        """
        encoder = self.sam.prompt_encoder
        kind_5C = torch.cat([encoder.not_a_point_embed.weight, *(row.weight for row in encoder.point_embeddings)])
        position_NPC = encoder.pe_layer.forward_with_coords(points_NP2 + 0.5, encoder.input_image_size)
        position_NPC = torch.where(labels_NP[..., None] == NOT_A_POINT, 0, position_NPC)
        return position_NPC + F.embedding(labels_NP + 1, kind_5C)

    def first_prompts(self, image: Image) -> tuple[torch.Tensor, torch.Tensor]:
        """points (N, 2, 2) and labels (N, 2): a uniform foreground click and a padding point, or a noisy box."""
        masks_NHW = image.masks_NHW
        device, n = masks_NHW.device, len(masks_NHW)
        is_box_N1 = torch.rand(n, 1, generator=self.generator, device=device) < self.simulation.box_probability
        click_N12, _ = self.sample_pixel(masks_NHW)
        points_N22 = torch.where(is_box_N1[..., None], self.noisy_box(image), click_N12)
        corners_2 = torch.tensor([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], device=device)
        return points_N22, torch.where(is_box_N1, corners_2, torch.tensor([POSITIVE, NOT_A_POINT], device=device))

    def noisy_box(self, image: Image) -> torch.Tensor:
        """The bounding boxes (N, 2, 2) with noise in proportion to their sides, kept on the image."""
        box_N22, limit = bounding_box(image.masks_NHW), self.simulation.box_noise_max
        scale_N12 = self.simulation.box_noise_fraction * (box_N22[:, 1:] - box_N22[:, :1] + 1)
        random_options = {'generator': self.generator, 'device': box_N22.device}
        if self.simulation.box_noise == 'gaussian':
            noise_N22 = (scale_N12 * torch.randn(box_N22.shape, **random_options)).clamp(-limit, limit)
        else:
            noise_N22 = scale_N12.clamp(max=limit) * (2 * torch.rand(box_N22.shape, **random_options) - 1)
        last_2 = torch.tensor([image.width - 1, image.height - 1], device=box_N22.device)
        return torch.minimum((box_N22 + noise_N22).clamp(min=0), last_2)

    def error_click(self, predicted_NHW: torch.Tensor, image: Image) -> tuple[torch.Tensor, torch.Tensor]:
        """A pixel (N, 1, 2) sampled uniformly from the errors, or if there are none from the background, with label."""
        masks_NHW = image.masks_NHW
        errors_NHW = (predicted_NHW != masks_NHW) & image.content_HW
        any_N11 = errors_NHW.any((1, 2))[:, None, None]
        click_N12, index_N1 = self.sample_pixel(torch.where(any_N11, errors_NHW, ~masks_NHW & image.content_HW))
        return click_N12, masks_NHW.flatten(1).gather(1, index_N1).long()

    def sample_pixel(self, masks_NHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x, y) float32 (N, 1, 2) of a pixel sampled uniformly from each mask, and its row-major index (N, 1).

        Both are 0 for an empty mask.
        """
        count_NL = masks_NHW.flatten(1).cumsum(1, dtype=torch.int32)
        total_N1 = count_NL[:, -1:]
        uniform_N1 = torch.rand(total_N1.shape, generator=self.generator, device=total_N1.device)
        index_N1 = torch.searchsorted(count_NL, (uniform_N1 * total_N1).int(), right=True)
        index_N1 = torch.where(total_N1 > 0, index_N1, 0)
        width = masks_NHW.shape[2]
        return torch.stack([index_N1 % width, index_N1 // width], 2).float(), index_N1


def take_mask(logits_NMyx: torch.Tensor, index_N: torch.Tensor) -> torch.Tensor:
    """The mask (N, 1, y, x) of each object at its index."""
    return logits_NMyx[torch.arange(len(index_N), device=index_N.device), index_N][:, None]


def upsample(logits_NMyx: torch.Tensor, frame: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits_NMyx, frame, mode='bilinear', align_corners=False)


def shrink(masks_NHW: torch.Tensor, factor: int) -> torch.Tensor:
    """Masks at 1/factor of their size: True where more than half of the pixels are True."""
    return F.avg_pool2d(masks_NHW.float(), factor) > 0.5


def bounding_box(masks_NHW: torch.Tensor) -> torch.Tensor:
    """((x0, y0), (x1, y1)) of the outermost pixels, inclusive, float32 (N, 2, 2); no mask may be empty."""

    def extent(any_NX):
        first_N, from_end_N = any_NX.int().argmax(1), any_NX.flip(1).int().argmax(1)
        return torch.stack([first_N, any_NX.shape[1] - 1 - from_end_N], 1)

    return torch.stack([extent(masks_NHW.any(1)), extent(masks_NHW.any(2))], 2).float()


def sam_loss(
    options: LossConfig,
    logits_NMHW: torch.Tensor,
    iou_NM: torch.Tensor,
    truth_NHW: torch.Tensor,
    area_HW: torch.Tensor,
) -> torch.Tensor:
    """Weighted focal + dice + IoU loss (N,) of the mask with the lowest focal + dice loss; only that has a gradient.

    `truth_NHW` and `area_HW`, the pixels that count, are bool.  All arrays may be at low resolution.
    """
    truth_NMHW = truth_NHW[:, None].float().expand_as(logits_NMHW)
    weight_HW = area_HW.float()
    p_NMHW = logits_NMHW.sigmoid()
    entropy_NMHW = F.binary_cross_entropy_with_logits(logits_NMHW, truth_NMHW, reduction='none')
    p_true_NMHW = p_NMHW * truth_NMHW + (1 - p_NMHW) * (1 - truth_NMHW)
    balance_NMHW = options.focal_alpha * truth_NMHW + (1 - options.focal_alpha) * (1 - truth_NMHW)
    each_NMHW = balance_NMHW * (1 - p_true_NMHW) ** options.focal_gamma * entropy_NMHW
    focal_NM = (each_NMHW * weight_HW).sum((2, 3)) / weight_HW.sum().clamp(min=1)

    p_NMHW, t_NMHW = p_NMHW * weight_HW, truth_NMHW * weight_HW
    overlap_NM = (p_NMHW * t_NMHW).sum((2, 3))
    dice_NM = 1 - (2 * overlap_NM + 1) / (p_NMHW.sum((2, 3)) + t_NMHW.sum((2, 3)) + 1)

    with torch.no_grad():
        predicted_NMHW, truth_N1HW = logits_NMHW > 0, truth_NHW[:, None]
        both_NM = (predicted_NMHW & truth_N1HW & area_HW).sum((2, 3))
        actual_NM = both_NM / ((predicted_NMHW | truth_N1HW) & area_HW).sum((2, 3)).clamp(min=1)
    square_NM = (iou_NM - actual_NM) ** 2

    mask_loss_NM = options.focal * focal_NM + options.dice * dice_NM
    best_N1 = mask_loss_NM.argmin(1, keepdim=True)
    iou_loss_N = square_NM.gather(1, best_N1)[:, 0] if options.iou_supervision == 'selected' else square_NM.mean(1)
    return mask_loss_NM.gather(1, best_N1)[:, 0] + options.iou * iou_loss_N


if __name__ == '__main__':
    main()
