"""Training step: encode each image once, play the rounds of interaction with every object, descend (paper §A)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from samjax import losses, prompts, resize
from samjax.errors import SamjaxError
from samjax.losses import LossOptions
from samjax.model.layers import Buffer
from samjax.model.sam import Sam, SamConfig, inside
from samjax.prompts import Simulation
from samjax.structs import MULTIMASK, SINGLE_MASK, Batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes, and the model's fixed buffers."""

    step: jax.Array
    params: nnx.State
    buffers: nnx.State
    opt_state: optax.OptState


def init_params(config: SamConfig, seed: int) -> tuple[nnx.State, nnx.State]:
    """Fresh (params, buffers)."""
    _, params, buffers = nnx.split(Sam(config, nnx.Rngs(seed)), nnx.Param, Buffer)
    return params, buffers


def init_state(config: SamConfig, tx: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step; pure, to be jitted with the shardings it should have."""
    params, buffers = init_params(config, seed)
    return TrainState(jnp.zeros((), jnp.int32), params, buffers, tx.init(params))


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    graphdef: nnx.GraphDef,
    tx: optax.GradientTransformation,
    simulation: Simulation,
    loss: LossOptions,
    seed: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of the optimiser.  Randomness depends on (seed, state.step) alone, so a resumed run repeats it.

    Returns the next state and metrics: `loss` and its parts `focal`, `dice`, `iou` (unweighted, summed over rounds,
    mean over objects), `mask_iou_first` and `mask_iou_last` (IoU reached in that round), `grad_norm`, `objects`.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def mean_loss(params):
        sam = nnx.merge(graphdef, params, state.buffers)
        parts = batch_loss(sam, batch, simulation, loss, key)
        return losses.total(loss, parts), parts

    (value, metrics), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = metrics | {'loss': value, 'grad_norm': optax.tree.norm(grads), 'objects': batch.valid_BN.sum()}
    return TrainState(state.step + 1, params, state.buffers, opt_state), metrics


def batch_loss(
    sam: Sam, batch: Batch, simulation: Simulation, loss: LossOptions, key: jax.Array
) -> dict[str, jax.Array]:
    """Loss parts summed over rounds and averaged over the valid objects of the whole batch.

    Objects of an image go through the rounds `simulation.object_chunk` at a time, which bounds memory.
    """
    key_encoder, key_schedule, key_chunks = jax.random.split(key, 3)
    embed_BhwC = sam.encode(batch.image_BHW3, batch.size_B2, key_encoder)
    schedule = prompts.click_schedule(simulation, key_schedule)

    n = batch.valid_BN.shape[1]
    chunk = min(simulation.object_chunk, n)
    if n % chunk:
        raise SamjaxError(f'data.max_objects {n} is not a multiple of prompts.object_chunk {chunk}; make it one.')

    def chunks(x_BN):  # (B, N, ...) -> (N / chunk, B, chunk, ...)
        return jnp.moveaxis(x_BN.reshape(x_BN.shape[0], n // chunk, chunk, *x_BN.shape[2:]), 1, 0)

    def one_chunk(sums, inputs):
        masks_BNHW, valid_BN, chunk_key = inputs
        parts = interact(sam, embed_BhwC, masks_BNHW, batch.size_B2, simulation, loss, schedule, chunk_key)
        return jax.tree.map(lambda s, x_BN: s + jnp.where(valid_BN, x_BN, 0).sum(), sums, parts), None

    names = ('focal', 'dice', 'iou', 'mask_iou_first', 'mask_iou_last')
    zeros = {name: jnp.zeros(()) for name in names}
    keys = jax.random.split(key_chunks, n // chunk)
    sums, _ = jax.lax.scan(one_chunk, zeros, (chunks(batch.masks_BNHW), chunks(batch.valid_BN), keys))
    objects = jnp.maximum(batch.valid_BN.sum(), 1)
    return jax.tree.map(lambda s: s / objects, sums)


def interact(
    sam: Sam,
    embed_BhwC: jax.Array,
    masks_BNHW: jax.Array,
    size_B2: jax.Array,
    simulation: Simulation,
    loss: LossOptions,
    schedule: tuple[jax.Array, jax.Array],
    key: jax.Array,
) -> dict[str, jax.Array]:
    """Plays all rounds with N objects per image; loss parts (B, N) summed over rounds, and first and last mask IoU.

    Every round is recomputed in the backward pass, so that memory holds one of them.
    """
    frame = masks_BNHW.shape[2:]
    low_size = tuple(4 * side for side in embed_BhwC.shape[1:3])
    factor = frame[0] // low_size[0]
    inside_BHW = inside(size_B2, frame)
    counted_BHW = inside_BHW if loss.padding == 'exclude' else jnp.ones_like(inside_BHW)

    def play(given, adds, slot, round_key, answering):
        """One round: answer, loss, and the prompts of the next round."""
        key_decoder, key_click = jax.random.split(round_key)
        prediction = sam.decode(embed_BhwC, given, answering, key_decoder)
        best_BN1 = jnp.argmax(prediction.iou_BNM, -1)[..., None]
        if loss.resolution == 'frame':
            logits_BNMHW = resize.upsample(prediction.logits_BNMyx, factor)
            parts = losses.sam_loss(loss, logits_BNMHW, prediction.iou_BNM, masks_BNHW, counted_BHW)
            answer_BNHW = take_mask(logits_BNMHW, best_BN1)
            low_BNyx = take_mask(prediction.logits_BNMyx, best_BN1)
        else:
            truth_BNyx, area_Byx = shrink(masks_BNHW, factor), shrink(counted_BHW, factor)
            parts = losses.sam_loss(loss, prediction.logits_BNMyx, prediction.iou_BNM, truth_BNyx, area_Byx)
            low_BNyx = take_mask(prediction.logits_BNMyx, best_BN1)
            answer_BNHW = resize.upsample(jax.lax.stop_gradient(low_BNyx), factor)
        fed_back_BNyx = jax.lax.stop_gradient(low_BNyx) if simulation.detach_mask else low_BNyx
        following = prompts.next_prompts(
            given, fed_back_BNyx, answer_BNHW, masks_BNHW, inside_BHW, adds, slot, key_click
        )
        return following, parts

    key_first, key_rounds = jax.random.split(key)
    keys_K = jax.random.split(key_rounds, simulation.rounds)
    adds_K, slot_K = schedule
    first = prompts.first_prompts(simulation, masks_BNHW, low_size, size_B2, key_first)

    # One prompt is ambiguous and gets three answers; from then on there are several, and one answer.
    play_first = jax.checkpoint(play, static_argnums=4)
    given, parts = play_first(first, adds_K[0], slot_K[0], keys_K[0], MULTIMASK)

    def next_round(given, inputs):
        return play(given, *inputs, SINGLE_MASK)

    _, later_K = jax.lax.scan(jax.checkpoint(next_round), given, (adds_K[1:], slot_K[1:], keys_K[1:]))
    rounds_K = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), parts, later_K)
    reached_KBN = rounds_K.pop('mask_iou')
    sums = jax.tree.map(lambda x_KBN: x_KBN.sum(0), rounds_K)
    return sums | {'mask_iou_first': reached_KBN[0], 'mask_iou_last': reached_KBN[-1]}


def take_mask(logits_BNMyx: jax.Array, index_BN1: jax.Array) -> jax.Array:
    """The mask of each object that its index names."""
    return jnp.take_along_axis(logits_BNMyx, index_BN1[..., None, None], 2)[:, :, 0]


def shrink(masks: jax.Array, factor: int) -> jax.Array:
    """Masks at 1/factor of their size: True where more than half of the pixels are."""
    *lead, height, width = masks.shape
    blocks = masks.reshape(*lead, height // factor, factor, width // factor, factor)
    return blocks.mean((-3, -1), dtype=jnp.float32) > 0.5
