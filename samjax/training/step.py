"""Training step: encode each image once, play the rounds of interaction with every object, descend (paper §A)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from samjax.errors import SamjaxError
from samjax.masks import packing, resize
from samjax.model.layers import split_keys
from samjax.model.params import init_params
from samjax.model.sam import Sam, SamConfig, content_mask
from samjax.structs import MULTIMASK, SINGLE_MASK, Batch
from samjax.training import click_simulation, losses
from samjax.training.click_simulation import ClickSimulation
from samjax.training.losses import LossConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes, and the model's fixed buffers."""

    step: jax.Array
    params: nnx.State
    buffers: nnx.State
    opt_state: optax.OptState
    skipped: jax.Array  # steps without effect since the last one that had one: their loss or gradient was not finite


def init_state(config: SamConfig, tx: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step; pure, to be jitted with the shardings it should have."""
    params, buffers = init_params(config, seed)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, buffers, tx.init(params), zero)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    summed_gradients: Callable[..., tuple[nnx.State, dict[str, jax.Array]]],
    tx: optax.GradientTransformation,
    loss: LossConfig,
    seed: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of the optimiser.  Randomness depends on (seed, state.step) alone, so a resumed run repeats it.

    `summed_gradients` is the function of that name below, or one that shares the work out.  A step whose loss or gradient
    is not finite changes nothing but the count of steps, and of such steps since the last good one.

    Returns the next state and metrics: `loss` and its parts `focal`, `dice`, `iou` (unweighted, summed over rounds,
    mean over objects), `mask_iou_first` and `mask_iou_last` (IoU reached in that round), `grad_norm`, `objects`,
    `skipped` (steps that changed nothing since the last one that did).
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    index_B = jnp.arange(len(batch.size_B2))
    grads, sums = summed_gradients(state.params, state.buffers, batch, index_B, key)
    objects = batch.valid_BN.sum()
    grads, parts = jax.tree.map(lambda s: s / jnp.maximum(objects, 1), (grads, sums))
    value, norm = losses.total(loss, parts), optax.tree.norm(grads)

    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    good = jnp.isfinite(value) & jnp.isfinite(norm)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(good, new, old), (params, opt_state), (state.params, state.opt_state)
    )
    skipped = jnp.where(good, 0, state.skipped + 1)
    metrics = parts | {'loss': value, 'grad_norm': norm, 'objects': objects, 'skipped': skipped}
    return TrainState(state.step + 1, params, state.buffers, opt_state, skipped), metrics


def summed_gradients(
    params: nnx.State,
    buffers: nnx.State,
    batch: Batch,
    index_B: jax.Array,
    key: jax.Array,
    *,
    graphdef: nnx.GraphDef,
    simulation: ClickSimulation,
    loss: LossConfig,
) -> tuple[nnx.State, dict[str, jax.Array]]:
    """Gradient of the loss and its parts, both summed over the valid objects of `batch`.

    `index_B` are the places of its images in the whole batch: sums over parts of a batch add up to the whole's.

    Objects of an image go through the rounds `simulation.objects_per_chunk` at a time, and the gradient of these is back at
    the embedding before the next ones come: that bounds memory.  From there it goes through the encoder once.
    """
    key_schedule, key_images = jax.random.split(key)
    schedule = click_simulation.click_schedule(simulation, key_schedule)
    keys_B = jax.vmap(lambda place: jax.random.fold_in(key_images, place))(index_B)
    encoder_keys_B, chunk_keys_B = split_keys(keys_B, 2)

    n = batch.valid_BN.shape[1]
    chunk = min(simulation.objects_per_chunk, n)
    if n % chunk:
        raise SamjaxError(
            f'data.max_objects {n} is not a multiple of click_simulation.objects_per_chunk {chunk}; make it one.'
        )

    encoder, others = nnx.split_state(params, nnx.PathContains('image_encoder'), ...)

    def encode(encoder):
        sam = nnx.merge(graphdef, encoder, others, buffers)
        return sam.encode(batch.image_BHW3, batch.size_B2, encoder_keys_B)

    def chunks(x_BN):  # (B, N, ...) -> (N / chunk, B, chunk, ...)
        return jnp.moveaxis(x_BN.reshape(x_BN.shape[0], n // chunk, chunk, *x_BN.shape[2:]), 1, 0)

    def one_chunk(sums, inputs):
        packed_masks_BNVW, valid_BN, keys_B = inputs

        def total(others, embed_BhwC):
            masks_BNHW = packing.unpack_rows(packed_masks_BNVW, batch.image_BHW3.shape[1])
            sam = nnx.merge(graphdef, encoder, others, buffers)
            parts = interact(sam, embed_BhwC, masks_BNHW, batch.size_B2, simulation, loss, schedule, keys_B)
            parts = jax.tree.map(lambda x_BN: jnp.where(valid_BN, x_BN, 0).sum(), parts)
            return losses.total(loss, parts), parts

        found = jax.grad(total, (0, 1), has_aux=True)(others, embed_BhwC)
        return jax.tree.map(jnp.add, sums, found), None

    embed_BhwC, through_encoder = jax.vjp(encode, encoder)
    zeros = dict.fromkeys(('focal', 'dice', 'iou', 'mask_iou_first', 'mask_iou_last'), jnp.zeros(()))
    nothing = jax.tree.map(jnp.zeros_like, others), jnp.zeros(embed_BhwC.shape, jnp.float32)
    inputs = chunks(batch.packed_masks_BNVW), chunks(batch.valid_BN), split_keys(chunk_keys_B, n // chunk)
    ((grads, embed_grad_BhwC), sums), _ = jax.lax.scan(one_chunk, (nothing, zeros), inputs)
    (encoder_grads,) = through_encoder(embed_grad_BhwC.astype(embed_BhwC.dtype))
    return nnx.merge_state(encoder_grads, grads), sums


def accumulate_gradients(summed_gradients: Callable, turns: int) -> Callable:
    """`summed_gradients` of so many equal parts of a batch, one after another (gradient accumulation).

    Memory holds the activations of one part, and the sum of the gradients in float32.
    """

    def sums(params, buffers, batch, index_B, key):
        parts = jax.tree.map(lambda x_B: x_B.reshape(turns, -1, *x_B.shape[1:]), (batch, index_B))

        def add(total, part):
            return jax.tree.map(jnp.add, total, summed_gradients(params, buffers, *part, key)), None

        shapes = jax.eval_shape(summed_gradients, params, buffers, *jax.tree.map(lambda x: x[0], parts), key)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
        return jax.lax.scan(add, nothing, parts)[0]

    return summed_gradients if turns == 1 else sums


def interact(
    sam: Sam,
    embed_BhwC: jax.Array,
    masks_BNHW: jax.Array,
    size_B2: jax.Array,
    simulation: ClickSimulation,
    loss: LossConfig,
    schedule: tuple[jax.Array, jax.Array],
    keys_B: jax.Array,
) -> dict[str, jax.Array]:
    """Plays all rounds with N objects per image; loss parts (B, N) summed over rounds, and first and last mask IoU.

    Every round is recomputed in the backward pass, so that memory holds one of them.
    """
    frame = masks_BNHW.shape[2:]
    low_size = tuple(4 * side for side in embed_BhwC.shape[1:3])
    factor = frame[0] // low_size[0]
    inside_BHW = content_mask(size_B2, frame)
    counted_BHW = inside_BHW if loss.padding == 'exclude' else jnp.ones_like(inside_BHW)

    truth_BNHW, area_BHW = masks_BNHW, counted_BHW
    if loss.resolution == 'low_res':
        truth_BNHW, area_BHW = shrink(masks_BNHW, factor), shrink(counted_BHW, factor)

    def upscale(low_BNyx):
        return resize.upsample(low_BNyx, factor) if loss.resolution == 'input' else low_BNyx

    def score_masks(answering, looked):
        """Loss parts of the answer, and of its most confident mask the low-resolution logits and the mask itself."""
        prediction = sam.mask_decoder.predict_masks(*looked, answering)
        confident_BN1 = jnp.argmax(prediction.iou_BNM, -1)[..., None]
        low_BNyx = losses.take_mask(prediction.logits_BNMyx, confident_BN1)
        parts = losses.sam_loss(loss, prediction.logits_BNMyx, prediction.iou_BNM, truth_BNHW, area_BHW, upscale)
        return parts, low_BNyx, resize.upsample(jax.lax.stop_gradient(low_BNyx), factor) > 0

    @jax.checkpoint
    def play(given, inputs):
        """One round: answer, loss, and the prompts of the next round."""
        number, adds, slot, keys_B = inputs
        decoder_keys_B, click_keys_B = split_keys(keys_B, 2)
        output_tokens_BNTC, image_BNhwC = sam.run_transformer(embed_BhwC, given, decoder_keys_B)
        looked = output_tokens_BNTC, sam.mask_decoder.upscale(image_BNhwC)
        # One prompt is ambiguous and gets three answers; from then on there are several, and one answer.
        ambiguous, clear = functools.partial(score_masks, MULTIMASK), functools.partial(score_masks, SINGLE_MASK)
        parts, low_BNyx, answer_BNHW = jax.lax.cond(number == 0, ambiguous, clear, looked)
        fed_back_BNyx = jax.lax.stop_gradient(low_BNyx) if simulation.stop_mask_gradient else low_BNyx
        return click_simulation.next_prompts(
            given, fed_back_BNyx, answer_BNHW, masks_BNHW, inside_BHW, adds, slot, click_keys_B
        ), parts

    first_keys_B, *rounds_keys_B = split_keys(keys_B, 1 + simulation.rounds)
    first = click_simulation.first_prompts(simulation, masks_BNHW, low_size, size_B2, first_keys_B)
    rounds = (jnp.arange(simulation.rounds), *schedule, jnp.stack(rounds_keys_B))
    _, parts_K = jax.lax.scan(play, first, rounds)
    reached_KBN = parts_K.pop('mask_iou')
    sums = jax.tree.map(lambda x_KBN: x_KBN.sum(0), parts_K)
    return sums | {'mask_iou_first': reached_KBN[0], 'mask_iou_last': reached_KBN[-1]}


def shrink(masks: jax.Array, factor: int) -> jax.Array:
    """Masks at 1/factor of their size: True where more than half of the pixels are."""
    *lead, height, width = masks.shape
    blocks = masks.reshape(*lead, height // factor, factor, width // factor, factor)
    return blocks.mean((-3, -1), dtype=jnp.float32) > 0.5
