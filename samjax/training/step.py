"""Training step: encode each image once, run the interactive rounds of every object, update parameters (paper §A)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from samjax.masks import packing, resize
from samjax.model.config import SamConfig
from samjax.model.layers import split_keys
from samjax.model.params import IMAGE_ENCODER, init_params
from samjax.model.sam import Sam, content_mask
from samjax.structs import MULTIMASK, SINGLE_MASK, Batch
from samjax.training import click_simulation, losses
from samjax.training.click_simulation import ClickSimulation
from samjax.training.losses import LossConfig

# (params, buffers, batch, index_B, key) -> gradient of the loss and its terms, summed over valid objects
SummedGradients = Callable[..., tuple[nnx.State, dict[str, jax.Array]]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes, and the model's fixed buffers."""

    step: jax.Array
    params: nnx.State
    buffers: nnx.State
    opt_state: optax.OptState
    skipped: jax.Array  # consecutive steps without effect up to now: their loss or gradient was not finite


def init_state(config: SamConfig, tx: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step; pure, to be jitted with the shardings it should have."""
    params, buffers = init_params(config, seed)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, buffers, tx.init(params), zero)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    summed_gradients: SummedGradients,
    tx: optax.GradientTransformation,
    loss: LossConfig,
    seed: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update of the parameters.  Randomness depends on (seed, state.step) alone, so a resumed run repeats it.

    `summed_gradients` is the function of that name below, or one that distributes its work.  A step whose loss or
    gradient is not finite changes only the counts of steps and of consecutive skipped steps; one without objects only
    the former.

    Returns the next state and metrics: `loss` and its terms `focal`, `dice`, `iou` (unweighted, summed over rounds,
    mean over objects), `mask_iou_first` and `mask_iou_last` (IoU reached in that round), `grad_norm`, `objects`,
    `skipped` (consecutive skipped steps).
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    index_B = jnp.arange(len(batch.size_B2))
    grads, sums = summed_gradients(state.params, state.buffers, batch, index_B, key)
    objects = batch.valid_BN.sum()
    grads, terms = jax.tree.map(lambda s: s / jnp.maximum(objects, 1), (grads, sums))
    value, norm = losses.total(loss, terms), optax.tree.norm(grads)

    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    useful = finite & (objects > 0)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(useful, new, old),
        (params, opt_state),
        (state.params, state.opt_state),
    )
    skipped = jnp.where(finite, 0, state.skipped + 1)
    metrics = terms | {'loss': value, 'grad_norm': norm, 'objects': objects, 'skipped': skipped}
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
    """Gradient of the loss and its terms, both summed over the valid objects of `batch`.

    index_B: the indices of its images in the whole batch, so that the sums over parts of a batch add up to the whole's.

    The objects of an image are simulated `simulation.objects_per_chunk` at a time.  The gradient of a chunk is
    propagated to the image embedding before the next chunk begins, which bounds memory, and from the embedding of all
    chunks through the encoder once.
    """
    key_schedule, key_images = jax.random.split(key)
    schedule = click_simulation.click_schedule(simulation, key_schedule)
    keys_B = jax.vmap(lambda index: jax.random.fold_in(key_images, index))(index_B)
    encoder_keys_B, chunk_keys_B = split_keys(keys_B, 2)

    n = batch.valid_BN.shape[1]
    chunk = simulation.chunk_size(n)

    encoder, others = nnx.split_state(params, nnx.PathContains(IMAGE_ENCODER), ...)

    def encode(encoder):
        sam = nnx.merge(graphdef, encoder, others, buffers)
        return sam.encode(batch.image_BHW3, batch.size_B2, encoder_keys_B)

    def split_chunks(x_BN):  # (B, N, ...) -> (N / chunk, B, chunk, ...)
        return jnp.moveaxis(x_BN.reshape(x_BN.shape[0], n // chunk, chunk, *x_BN.shape[2:]), 1, 0)

    def add_chunk(sums, inputs):
        packed_masks_BNVW, valid_BN, keys_B = inputs

        def total(others, embed_BhwC):
            masks_BNHW = packing.unpack_rows(packed_masks_BNVW, batch.image_BHW3.shape[1])
            sam = nnx.merge(graphdef, encoder, others, buffers)
            terms = run_rounds(sam, embed_BhwC, masks_BNHW, batch.size_B2, simulation, loss, schedule, keys_B)
            terms = jax.tree.map(lambda x_BN: jnp.where(valid_BN, x_BN, 0).sum(), terms)
            return losses.total(loss, terms), terms

        chunk_sums = jax.grad(total, (0, 1), has_aux=True)(others, embed_BhwC)
        return jax.tree.map(jnp.add, sums, chunk_sums), None

    embed_BhwC, encoder_vjp = jax.vjp(encode, encoder)
    zero_terms = dict.fromkeys(('focal', 'dice', 'iou', 'mask_iou_first', 'mask_iou_last'), jnp.zeros(()))
    zero_grads = jax.tree.map(jnp.zeros_like, others), jnp.zeros(embed_BhwC.shape, jnp.float32)
    inputs = split_chunks(batch.packed_masks_BNVW), split_chunks(batch.valid_BN), split_keys(chunk_keys_B, n // chunk)
    ((grads, embed_grad_BhwC), sums), _ = jax.lax.scan(add_chunk, (zero_grads, zero_terms), inputs)
    (encoder_grads,) = encoder_vjp(embed_grad_BhwC.astype(embed_BhwC.dtype))
    return nnx.merge_state(encoder_grads, grads), sums


def accumulate_gradients(summed_gradients: SummedGradients, steps: int) -> SummedGradients:
    """`summed_gradients` over `steps` equal parts of a batch, one after another (gradient accumulation).

    Memory holds the activations of one part, and the sum of the gradients in float32.
    """

    def sums(params, buffers, batch, index_B, key):
        parts = jax.tree.map(lambda x_B: x_B.reshape(steps, -1, *x_B.shape[1:]), (batch, index_B))

        def add(total, part):
            return jax.tree.map(jnp.add, total, summed_gradients(params, buffers, *part, key)), None

        shapes = jax.eval_shape(summed_gradients, params, buffers, *jax.tree.map(lambda x: x[0], parts), key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
        return jax.lax.scan(add, zeros, parts)[0]

    return summed_gradients if steps == 1 else sums


def run_rounds(
    sam: Sam,
    embed_BhwC: jax.Array,
    masks_BNHW: jax.Array,
    size_B2: jax.Array,
    simulation: ClickSimulation,
    loss: LossConfig,
    schedule: tuple[jax.Array, jax.Array],
    keys_B: jax.Array,
) -> dict[str, jax.Array]:
    """Loss terms (B, N) of N objects per image, summed over all interactive rounds, and first and last mask IoU.

    Every round is recomputed in the backward pass, so that memory holds one of them.
    """
    image_size = masks_BNHW.shape[2:]
    low_res_size = tuple(4 * side for side in embed_BhwC.shape[1:3])
    factor = image_size[0] // low_res_size[0]
    content_BHW = content_mask(size_B2, image_size)
    weighted_BHW = content_BHW if loss.padding == 'exclude' else jnp.ones_like(content_BHW)

    truth_BNHW, area_BHW = masks_BNHW, weighted_BHW
    if loss.resolution == 'low_res':
        truth_BNHW, area_BHW = shrink(masks_BNHW, factor), shrink(weighted_BHW, factor)

    def upscale(low_res_BNyx):
        return resize.upsample(low_res_BNyx, factor) if loss.resolution == 'input' else low_res_BNyx

    def score(masks, decoded):
        """Loss terms, and of the mask with the highest predicted IoU low-resolution logits and the mask itself."""
        prediction = sam.mask_decoder.predict_masks(*decoded, masks)
        best_BN1 = jnp.argmax(prediction.iou_BNM, -1)[..., None]
        low_res_BNyx = losses.take_mask(prediction.logits_BNMyx, best_BN1)
        terms = losses.sam_loss(loss, prediction.logits_BNMyx, prediction.iou_BNM, truth_BNHW, area_BHW, upscale)
        return terms, low_res_BNyx, resize.upsample(jax.lax.stop_gradient(low_res_BNyx), factor) > 0

    @jax.checkpoint
    def run_round(prompts, inputs):
        """Prediction, loss terms, and the prompts of the next round."""
        number, adds, slot, keys_B = inputs
        decoder_keys_B, click_keys_B = split_keys(keys_B, 2)
        output_tokens_BN5C, image_BNhwC = sam.run_transformer(embed_BhwC, prompts, decoder_keys_B)
        decoded = output_tokens_BN5C, sam.mask_decoder.upscale(image_BNhwC)
        # A single prompt is ambiguous and gets three masks; from then on there are several prompts, and one mask.
        ambiguous, unambiguous = functools.partial(score, MULTIMASK), functools.partial(score, SINGLE_MASK)
        terms, low_res_BNyx, predicted_BNHW = jax.lax.cond(number == 0, ambiguous, unambiguous, decoded)
        if simulation.stop_mask_gradient:
            low_res_BNyx = jax.lax.stop_gradient(low_res_BNyx)
        next_prompts = click_simulation.next_prompts(
            prompts, low_res_BNyx, predicted_BNHW, masks_BNHW, content_BHW, adds, slot, click_keys_B
        )
        return next_prompts, terms

    first_keys_B, *rounds_keys_B = split_keys(keys_B, 1 + simulation.rounds)
    first = click_simulation.first_prompts(simulation, masks_BNHW, low_res_size, size_B2, first_keys_B)
    rounds = (jnp.arange(simulation.rounds), *schedule, jnp.stack(rounds_keys_B))
    _, terms_K = jax.lax.scan(run_round, first, rounds)
    mask_iou_KBN = terms_K.pop('mask_iou')
    sums = jax.tree.map(lambda x_KBN: x_KBN.sum(0), terms_K)
    return sums | {'mask_iou_first': mask_iou_KBN[0], 'mask_iou_last': mask_iou_KBN[-1]}


def shrink(masks: jax.Array, factor: int) -> jax.Array:
    """Masks at 1/factor of their size: True where more than half of the pixels are."""
    *lead, height, width = masks.shape
    blocks = masks.reshape(*lead, height // factor, factor, width // factor, factor)
    return blocks.mean((-3, -1), dtype=jnp.float32) > 0.5
