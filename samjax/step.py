"""Training step: encode each image once, play the rounds of interaction with every object, descend (paper §A)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from samjax import bits, losses, prompts, resize
from samjax.errors import SamjaxError
from samjax.losses import LossOptions
from samjax.model.layers import Buffer, split
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
    skipped: jax.Array  # steps without effect since the last one that had one: their loss or gradient was not finite


def init_params(config: SamConfig, seed: int) -> tuple[nnx.State, nnx.State]:
    """Fresh (params, buffers)."""
    _, params, buffers = nnx.split(Sam(config, nnx.Rngs(seed)), nnx.Param, Buffer)
    return params, buffers


def init_state(config: SamConfig, tx: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step; pure, to be jitted with the shardings it should have."""
    params, buffers = init_params(config, seed)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, buffers, tx.init(params), zero)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    object_sums: Callable[..., tuple[nnx.State, dict[str, jax.Array]]],
    tx: optax.GradientTransformation,
    loss: LossOptions,
    seed: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of the optimiser.  Randomness depends on (seed, state.step) alone, so a resumed run repeats it.

    `object_sums` is the function of that name below, or one that shares the work out.  A step whose loss or gradient
    is not finite changes nothing but the count of steps, and of such steps since the last good one.

    Returns the next state and metrics: `loss` and its parts `focal`, `dice`, `iou` (unweighted, summed over rounds,
    mean over objects), `mask_iou_first` and `mask_iou_last` (IoU reached in that round), `grad_norm`, `objects`,
    `skipped` (steps that changed nothing since the last one that did).
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    places_B = jnp.arange(len(batch.size_B2))
    grads, sums = object_sums(state.params, state.buffers, batch, places_B, key)
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


def object_sums(
    params: nnx.State,
    buffers: nnx.State,
    batch: Batch,
    places_B: jax.Array,
    key: jax.Array,
    *,
    graphdef: nnx.GraphDef,
    simulation: Simulation,
    loss: LossOptions,
) -> tuple[nnx.State, dict[str, jax.Array]]:
    """Gradient of the loss and its parts, both summed over the valid objects of `batch`.

    `places_B` are the places of its images in the whole batch: sums over parts of a batch add up to the whole's.

    Objects of an image go through the rounds `simulation.object_chunk` at a time, and the gradient of these is back at
    the embedding before the next ones come: that bounds memory.  From there it goes through the encoder once.
    """
    key_schedule, key_images = jax.random.split(key)
    schedule = prompts.click_schedule(simulation, key_schedule)
    keys_B = jax.vmap(lambda place: jax.random.fold_in(key_images, place))(places_B)
    encoder_keys_B, chunk_keys_B = split(keys_B, 2)

    n = batch.valid_BN.shape[1]
    chunk = min(simulation.object_chunk, n)
    if n % chunk:
        raise SamjaxError(f'data.max_objects {n} is not a multiple of prompts.object_chunk {chunk}; make it one.')

    encoder, others = nnx.split_state(params, nnx.PathContains('image_encoder'), ...)

    def encode(encoder):
        sam = nnx.merge(graphdef, encoder, others, buffers)
        return sam.encode(batch.image_BHW3, batch.size_B2, encoder_keys_B)

    def chunks(x_BN):  # (B, N, ...) -> (N / chunk, B, chunk, ...)
        return jnp.moveaxis(x_BN.reshape(x_BN.shape[0], n // chunk, chunk, *x_BN.shape[2:]), 1, 0)

    def one_chunk(sums, inputs):
        masks_BNVW, valid_BN, keys_B = inputs

        def total(others, embed_BhwC):
            masks_BNHW = bits.unpack_rows(masks_BNVW, batch.image_BHW3.shape[1])
            sam = nnx.merge(graphdef, encoder, others, buffers)
            parts = interact(sam, embed_BhwC, masks_BNHW, batch.size_B2, simulation, loss, schedule, keys_B)
            parts = jax.tree.map(lambda x_BN: jnp.where(valid_BN, x_BN, 0).sum(), parts)
            return losses.total(loss, parts), parts

        found = jax.grad(total, (0, 1), has_aux=True)(others, embed_BhwC)
        return jax.tree.map(jnp.add, sums, found), None

    embed_BhwC, through_encoder = jax.vjp(encode, encoder)
    zeros = dict.fromkeys(('focal', 'dice', 'iou', 'mask_iou_first', 'mask_iou_last'), jnp.zeros(()))
    nothing = jax.tree.map(jnp.zeros_like, others), jnp.zeros(embed_BhwC.shape, jnp.float32)
    inputs = chunks(batch.masks_BNVW), chunks(batch.valid_BN), split(chunk_keys_B, n // chunk)
    ((grads, embed_grad_BhwC), sums), _ = jax.lax.scan(one_chunk, (nothing, zeros), inputs)
    (encoder_grads,) = through_encoder(embed_grad_BhwC.astype(embed_BhwC.dtype))
    return nnx.merge_state(encoder_grads, grads), sums


def in_turns(object_sums: Callable, turns: int) -> Callable:
    """`object_sums` of so many equal parts of a batch, one after another (gradient accumulation).

    Memory holds the activations of one part, and the sum of the gradients in float32.
    """

    def sums(params, buffers, batch, places_B, key):
        parts = jax.tree.map(lambda x_B: x_B.reshape(turns, -1, *x_B.shape[1:]), (batch, places_B))

        def add(total, part):
            return jax.tree.map(jnp.add, total, object_sums(params, buffers, *part, key)), None

        shapes = jax.eval_shape(object_sums, params, buffers, *jax.tree.map(lambda x: x[0], parts), key)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
        return jax.lax.scan(add, nothing, parts)[0]

    return object_sums if turns == 1 else sums


def interact(
    sam: Sam,
    embed_BhwC: jax.Array,
    masks_BNHW: jax.Array,
    size_B2: jax.Array,
    simulation: Simulation,
    loss: LossOptions,
    schedule: tuple[jax.Array, jax.Array],
    keys_B: jax.Array,
) -> dict[str, jax.Array]:
    """Plays all rounds with N objects per image; loss parts (B, N) summed over rounds, and first and last mask IoU.

    Every round is recomputed in the backward pass, so that memory holds one of them.
    """
    frame = masks_BNHW.shape[2:]
    low_size = tuple(4 * side for side in embed_BhwC.shape[1:3])
    factor = frame[0] // low_size[0]
    inside_BHW = inside(size_B2, frame)
    counted_BHW = inside_BHW if loss.padding == 'exclude' else jnp.ones_like(inside_BHW)

    truth_BNHW, area_BHW = masks_BNHW, counted_BHW
    if loss.resolution == 'low':
        truth_BNHW, area_BHW = shrink(masks_BNHW, factor), shrink(counted_BHW, factor)

    def enlarge(low_BNyx):
        return resize.upsample(low_BNyx, factor) if loss.resolution == 'frame' else low_BNyx

    def judge(answering, looked):
        """Loss parts of the answer, and of its most confident mask the low-resolution logits and the mask itself."""
        prediction = sam.mask_decoder.answer(*looked, answering)
        confident_BN1 = jnp.argmax(prediction.iou_BNM, -1)[..., None]
        low_BNyx = losses.take_mask(prediction.logits_BNMyx, confident_BN1)
        parts = losses.sam_loss(loss, prediction.logits_BNMyx, prediction.iou_BNM, truth_BNHW, area_BHW, enlarge)
        return parts, low_BNyx, resize.upsample(jax.lax.stop_gradient(low_BNyx), factor) > 0

    @jax.checkpoint
    def play(given, inputs):
        """One round: answer, loss, and the prompts of the next round."""
        number, adds, slot, keys_B = inputs
        decoder_keys_B, click_keys_B = split(keys_B, 2)
        own_BN5C, image_BNhwC = sam.look(embed_BhwC, given, decoder_keys_B)
        looked = own_BN5C, sam.mask_decoder.enlarge(image_BNhwC)
        # One prompt is ambiguous and gets three answers; from then on there are several, and one answer.
        ambiguous, clear = functools.partial(judge, MULTIMASK), functools.partial(judge, SINGLE_MASK)
        parts, low_BNyx, answer_BNHW = jax.lax.cond(number == 0, ambiguous, clear, looked)
        fed_back_BNyx = jax.lax.stop_gradient(low_BNyx) if simulation.detach_mask else low_BNyx
        return prompts.next_prompts(
            given, fed_back_BNyx, answer_BNHW, masks_BNHW, inside_BHW, adds, slot, click_keys_B
        ), parts

    first_keys_B, *rounds_keys_B = split(keys_B, 1 + simulation.rounds)
    first = prompts.first_prompts(simulation, masks_BNHW, low_size, size_B2, first_keys_B)
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
