"""Click simulation: masks become the clicks and boxes a user would give, inside jit (paper §A).

Each image has its own random key (`keys_B`), so the samples do not depend on how a batch is distributed.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from samjax.errors import SamjaxError, check_option
from samjax.model.layers import split_keys
from samjax.structs import ABSENT, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NEGATIVE, NOT_A_POINT, POSITIVE, Prompts


@dataclasses.dataclass(frozen=True)
class ClickSimulation:
    """How a user is simulated: the section `prompts` of samjax.config, which explains the fields."""

    rounds: int
    box_probability: float
    box_noise: str  # 'gaussian' or 'uniform'
    box_noise_fraction: float  # of the box side
    box_noise_max: float  # px of the model input
    stop_mask_gradient: bool
    objects_per_chunk: int

    def __post_init__(self):
        check_option('prompts.rounds', self.rounds, lambda n: n >= 1, 'at least 1')
        if self.box_noise not in ('gaussian', 'uniform'):
            raise SamjaxError(f"prompts.box_noise {self.box_noise!r} is neither 'gaussian' nor 'uniform'.")

        for name, is_possible, possible in (
            ('box_probability', lambda x: 0 <= x <= 1, 'a probability, 0 to 1'),
            ('box_noise_fraction', lambda x: 0 <= x < math.inf, '0 or more'),
            ('box_noise_max', lambda x: x >= 0, '0 or more'),
            ('objects_per_chunk', lambda n: n >= 1, 'at least 1'),
        ):
            check_option(f'prompts.{name}', getattr(self, name), is_possible, possible)

    def chunk_size(self, max_objects: int) -> int:
        """Objects of an image that are simulated at once.  Raises SamjaxError if it does not divide their number."""
        check_option('data.max_objects', max_objects, lambda n: n >= 1, 'at least 1')
        size = min(self.objects_per_chunk, max_objects)
        if max_objects % size:
            raise SamjaxError(
                f'data.max_objects {max_objects} is not a multiple of prompts.objects_per_chunk {size}; make it one.'
            )
        return size

    @property
    def clicks(self) -> int:
        """Corrective clicks after the first prompt: all rounds but the first and two without a new prompt."""
        return max(self.rounds - 3, 0)


def click_schedule(simulation: ClickSimulation, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """When clicks are added: (adds_K bool, slot_K int32), read after each of the K rounds.

    The first round has the initial prompt and the last never has a new one.  A round between, sampled uniformly, has no
    new prompt either: it only refines its own mask.
    """
    rounds_K = jnp.arange(simulation.rounds)
    pause = jax.random.randint(key, (), 0, simulation.clicks + 1)
    adds_K = (rounds_K < simulation.rounds - 2) & (rounds_K != pause)
    return adds_K, 2 + jnp.cumsum(adds_K) - adds_K


def first_prompts(
    simulation: ClickSimulation, masks_BNHW: jax.Array, low_res_size: tuple[int, int], size_B2, keys_B
) -> Prompts:
    """A uniform foreground point, or the bounding box with noise, for each object; no mask prompt.

    Slots 0 and 1 hold (point, not-a-point) or the two box corners, the others are for clicks.
    """
    kind_keys_B, point_keys_B, noise_keys_B = split_keys(keys_B, 3)
    b, n = masks_BNHW.shape[:2]
    is_box_BN = jax.vmap(lambda key: jax.random.bernoulli(key, simulation.box_probability, (n,)))(kind_keys_B)
    point_BN2 = sample_pixel(masks_BNHW, point_keys_B)
    box_BN22 = noisy_box(simulation, bounding_box(masks_BNHW), size_B2, noise_keys_B)
    pair_BN22 = jnp.where(is_box_BN[..., None, None], box_BN22, jnp.stack([point_BN2, point_BN2], 2))
    pair_BN2 = jnp.where(
        is_box_BN[..., None],
        jnp.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT])[None, None],
        jnp.array([POSITIVE, NOT_A_POINT])[None, None],
    )
    clicks = simulation.clicks
    return Prompts(
        points_BNP2=jnp.pad(pair_BN22, ((0, 0), (0, 0), (0, clicks), (0, 0))),
        labels_BNP=jnp.pad(pair_BN2, ((0, 0), (0, 0), (0, clicks)), constant_values=ABSENT),
        mask_BNyx=jnp.zeros((b, n, *low_res_size), jnp.float32),
        has_mask_BN=jnp.zeros((b, n), bool),
    )


def next_prompts(
    prompts: Prompts,
    low_res_BNyx: jax.Array,
    predicted_BNHW: jax.Array,
    masks_BNHW: jax.Array,
    content_BHW: jax.Array,
    adds: jax.Array,
    slot: jax.Array,
    keys_B: jax.Array,
) -> Prompts:
    """The earlier prompts, the predicted mask as mask prompt and, if `adds`, a click on an error of it in `slot`.

    Args:
      low_res_BNyx: logits of the predicted mask, fed back as they are.
      predicted_BNHW: this mask at the size of the model input.
      masks_BNHW: the true mask.
      content_BHW: True on the image; clicks never fall on padding.
    """
    click_BN2, label_BN = error_click(predicted_BNHW, masks_BNHW, content_BHW, keys_B)
    # A slot outside the array (after the last click) matches nothing.
    added_P = adds & (jnp.arange(prompts.labels_BNP.shape[2]) == slot)
    return Prompts(
        points_BNP2=jnp.where(added_P[None, None, :, None], click_BN2[:, :, None], prompts.points_BNP2),
        labels_BNP=jnp.where(added_P[None, None], label_BN[:, :, None], prompts.labels_BNP),
        mask_BNyx=low_res_BNyx,
        has_mask_BN=jnp.ones_like(prompts.has_mask_BN),
    )


def error_click(predicted_BNHW, masks_BNHW, content_BHW, keys_B) -> tuple[jax.Array, jax.Array]:
    """A pixel sampled uniformly from the errors, (x, y) float32, and its true label.

    Without errors it is a background pixel, hence a negative click.
    """
    content_BNHW = jnp.broadcast_to(content_BHW[:, None], masks_BNHW.shape)
    errors_BNHW = (predicted_BNHW != masks_BNHW) & content_BNHW
    any_BN = errors_BNHW.any((2, 3))
    candidates_BNHW = jnp.where(any_BN[..., None, None], errors_BNHW, ~masks_BNHW & content_BNHW)
    click_BN2 = sample_pixel(candidates_BNHW, keys_B)
    x_BN, y_BN = click_BN2[..., 0].astype(int), click_BN2[..., 1].astype(int)
    b_B1, n_1N = jnp.ogrid[: masks_BNHW.shape[0], : masks_BNHW.shape[1]]
    return click_BN2, jnp.where(masks_BNHW[b_B1, n_1N, y_BN, x_BN], POSITIVE, NEGATIVE)


def sample_pixel(masks_BNHW: jax.Array, keys_B: jax.Array) -> jax.Array:
    """(x, y) float32 of a pixel sampled uniformly from each mask; (0, 0) for an empty one.

    Samples the rank of a pixel in row-major order, then finds its row and column: one random number per mask.
    """
    rows_BNH = masks_BNHW.sum(3, dtype=jnp.int32)
    ends_BNH = jnp.cumsum(rows_BNH, 2)
    total_BN = ends_BNH[..., -1]
    rank_BN = jax.vmap(lambda key, count_N: jax.random.randint(key, count_N.shape, 0, count_N))(
        keys_B, jnp.maximum(total_BN, 1)
    )
    y_BN = (ends_BNH <= rank_BN[..., None]).sum(2)
    y_BN = jnp.where(total_BN > 0, y_BN, 0)
    b_B1, n_1N = jnp.ogrid[: masks_BNHW.shape[0], : masks_BNHW.shape[1]]
    rank_in_row_BN = rank_BN - (ends_BNH - rows_BNH)[b_B1, n_1N, y_BN]
    row_BNW = jnp.cumsum(masks_BNHW[b_B1, n_1N, y_BN], 2, dtype=jnp.int32)
    x_BN = jnp.where(total_BN > 0, (row_BNW <= rank_in_row_BN[..., None]).sum(2), 0)
    return jnp.stack([x_BN, y_BN], -1).astype(jnp.float32)


def bounding_box(masks_BNHW: jax.Array) -> jax.Array:
    """((x0, y0), (x1, y1)) of the outermost pixels, inclusive, float32 (B, N, 2, 2); zeros for an empty mask."""

    def extent(any_BNX):
        first_BN = jnp.argmax(any_BNX, -1)
        last_BN = any_BNX.shape[-1] - 1 - jnp.argmax(any_BNX[..., ::-1], -1)
        return first_BN, jnp.where(any_BNX.any(-1), last_BN, 0)

    x0_BN, x1_BN = extent(masks_BNHW.any(2))
    y0_BN, y1_BN = extent(masks_BNHW.any(3))
    corners = [jnp.stack([x0_BN, y0_BN], -1), jnp.stack([x1_BN, y1_BN], -1)]
    return jnp.stack(corners, 2).astype(jnp.float32)


def noisy_box(simulation: ClickSimulation, box_BN22: jax.Array, size_B2: jax.Array, keys_B: jax.Array) -> jax.Array:
    """Adds noise in proportion to the side to each coordinate (paper: 10 %, at most 20 px), clipped to the image."""
    side_BN12 = box_BN22[:, :, 1:] - box_BN22[:, :, :1] + 1
    scale_BN12 = simulation.box_noise_fraction * side_BN12
    limit = simulation.box_noise_max
    shape = box_BN22.shape[1:]
    if simulation.box_noise == 'gaussian':
        normal_BN22 = jax.vmap(lambda key: jax.random.normal(key, shape))(keys_B)
        noise_BN22 = jnp.clip(scale_BN12 * normal_BN22, -limit, limit)
    else:
        uniform_BN22 = jax.vmap(lambda key: jax.random.uniform(key, shape, minval=-1, maxval=1))(keys_B)
        noise_BN22 = jnp.minimum(scale_BN12, limit) * uniform_BN22
    last_B112 = (size_B2[:, None, None, ::-1] - 1).astype(jnp.float32)
    return jnp.clip(box_BN22 + noise_BN22, 0, last_B112)
