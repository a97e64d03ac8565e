"""The training step: what counts, what does not, and that it learns."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import LOSS, SIMULATION, TX, make_step

from samjax.errors import SamjaxError
from samjax.masks import resize
from samjax.masks.packing import pack_rows, unpack_rows
from samjax.model.layers import split_keys
from samjax.model.params import abstract_state, init_params
from samjax.model.runtime import Regularization, Runtime
from samjax.model.sam import content_mask
from samjax.structs import MULTIMASK, SINGLE_MASK
from samjax.training import click_simulation, losses, step

SEED = 1  # with it points and boxes are drawn
ONE_ROUND = dataclasses.replace(SIMULATION, rounds=1, box_probability=0.0)


@functools.cache
def initial(config, noise):
    """Parameters and buffers; `noise` makes parameters random that start at zero."""
    params, buffers = jax.jit(lambda: init_params(config, 0))()
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    noisy = [np.asarray(p) + noise * rng.standard_normal(p.shape).astype(np.float32) for p in leaves]
    return tree.unflatten(noisy), buffers


@functools.cache
def compiled(config, simulation, loss, regularization, runtime):
    """Gradients and loss terms as a function of (params, buffers, batch), compiled once for all tests."""
    graphdef, *_ = abstract_state(config, regularization, runtime)

    @jax.jit
    def run(params, buffers, batch):
        index_B = jnp.arange(len(batch.size_B2))
        options = {'graphdef': graphdef, 'simulation': simulation, 'loss': loss}
        sums = step.summed_gradients(params, buffers, batch, index_B, jax.random.key(SEED), **options)
        return jax.tree.map(lambda s: s / jnp.maximum(batch.valid_BN.sum(), 1), sums)

    return run


def loss_and_grads(
    config, batch, simulation=SIMULATION, loss=LOSS, noise=0.02, regularization=Regularization(), runtime=Runtime()
):
    """Loss terms and gradients of a first step."""
    params, buffers = initial(config, noise)
    grads, terms = compiled(config, simulation, loss, regularization, runtime)(params, buffers, batch)
    return terms, grads


def assert_trees_close(a, b, rtol=1e-4, atol=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def counted_sums(params, buffers, batch, index_B, key):
    """Gradients of 6 and terms that hold what the function was given."""
    terms = {'focal': batch.valid_BN.sum() * 1.0, 'dice': index_B.sum() * 1.0, 'iou': jax.random.uniform(key)}
    return jax.tree.map(lambda p: jnp.full_like(p, 6.0), params), terms


def test_update_by_hand(tiny_batch):
    """Sums over three objects become means; the key is of seed and step; gradient descent with a rate of 0.5."""
    params = nnx.State({'layer': {'kernel': nnx.Param(jnp.ones((2, 2))), 'bias': nnx.Param(jnp.zeros(2))}})
    tx = optax.sgd(0.5)
    state = step.TrainState(jnp.int32(7), params, nnx.State({}), tx.init(params), jnp.int32(2))
    options = {'summed_gradients': counted_sums, 'tx': tx, 'seed': 3}
    loss = dataclasses.replace(LOSS, focal=10.0, dice=100.0, iou=1000.0)
    after, metrics = step.train_step(state, tiny_batch, loss=loss, **options)
    np.testing.assert_allclose(after.params['layer']['kernel'], 0.0)  # 1 - 0.5 * 6 / 3
    np.testing.assert_allclose(after.params['layer']['bias'], -1.0)
    assert (int(after.step), int(after.skipped), int(metrics['objects'])) == (8, 0, 3)
    draw = float(jax.random.uniform(jax.random.fold_in(jax.random.key(3), 7)))
    terms = {'focal': 1.0, 'dice': 1 / 3, 'iou': draw / 3}
    for name, value in terms.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6)
    np.testing.assert_allclose(metrics['loss'], 10 + 100 / 3 + 1000 * draw / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics['grad_norm'], 2 * 6**0.5, rtol=1e-6)  # six gradients of 2


def test_step_without_objects_changes_nothing_but_its_number(tiny_batch):
    """Neither weight decay nor momentum moves parameters; steps that were skipped before end with it."""
    params = nnx.State({'layer': {'kernel': nnx.Param(jnp.ones((2, 2)))}})
    tx = optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.1), optax.scale(-0.5))
    state = step.TrainState(jnp.int32(7), params, nnx.State({}), tx.init(params), jnp.int32(2))
    options = {'summed_gradients': counted_sums, 'tx': tx, 'seed': 3, 'loss': LOSS}
    empty = tiny_batch._replace(valid_BN=np.zeros_like(tiny_batch.valid_BN))
    after, metrics = step.train_step(state, empty, **options)
    assert_trees_close((after.params, after.opt_state), (state.params, state.opt_state), rtol=0, atol=0)
    assert (int(after.step), int(after.skipped), int(metrics['objects'])) == (8, 0, 0)
    moved, _ = step.train_step(state, tiny_batch, **options)
    assert float(moved.params['layer']['kernel'][0, 0]) != 1


def test_accumulated_gradients_are_summed_in_float32_each_image_once(tiny_batch):
    """256 and then 1 in bfloat16, of the images with these indices."""

    def sums(params, buffers, batch, index_B, key):
        assert index_B.shape == (2,)
        value = jnp.where(index_B[0] == 0, 256, 1).astype(jnp.bfloat16)
        return {'w': value * params['w']}, {'images': batch.size_B2.sum() + 0.0 * key, 'indices': index_B.sum()}

    batch, ones = jax.tree.map(lambda x_B: np.concatenate([x_B, x_B]), tiny_batch), {'w': jnp.ones(3, jnp.bfloat16)}
    grads, terms = step.accumulate_gradients(sums, 2)(ones, {}, batch, jnp.arange(4), jnp.zeros(()))
    assert grads['w'].dtype == jnp.float32
    np.testing.assert_array_equal(grads['w'], [257, 257, 257])
    assert float(terms['images']) == 2 * tiny_batch.size_B2.sum()
    assert float(terms['indices']) == 6


def test_masks_shrink_to_where_more_than_half_of_the_pixels_are():
    masks_HW = np.zeros((4, 6), bool)
    masks_HW[:2, :2] = [[1, 1], [1, 0]]  # three of four
    masks_HW[:2, 2:4] = [[1, 1], [0, 0]]  # half
    masks_HW[2:, 4:] = True
    assert step.shrink(masks_HW, 2).tolist() == [[True, False, False], [False, False, True]]
    wide_HW = np.zeros((3, 3), bool)
    wide_HW[:2] = True
    assert step.shrink(wide_HW[None, :, :], 3).tolist() == [[[True]]]


def spoiled_sums(params, buffers, batch, index_B, key):
    """Losses and gradients of one; the number in the first pixel makes them not finite, 1 the loss, 2 the gradients."""
    what = batch.image_BHW3[0, 0, 0, 0]
    grads = jax.tree.map(lambda p: jnp.ones_like(p) / (what != 2), params)
    return grads, {'focal': jnp.ones(()), 'dice': jnp.ones(()), 'iou': jnp.where(what == 1, jnp.nan, 0.0)}


def test_steps_without_a_finite_loss_and_gradient_change_nothing_and_are_counted(tiny_batch):
    params = nnx.State({'layer': {'kernel': nnx.Param(jnp.ones((2, 2))), 'bias': nnx.Param(jnp.zeros(2))}})
    zero = jnp.zeros((), jnp.int32)
    state = step.TrainState(zero, params, nnx.State({}), TX.init(params), zero)
    train = jax.jit(functools.partial(step.train_step, summed_gradients=spoiled_sums, tx=TX, loss=LOSS, seed=0))

    def go(state, what):
        image_BHW3 = tiny_batch.image_BHW3.copy()
        image_BHW3[0, 0, 0, 0] = what
        return train(state, tiny_batch._replace(image_BHW3=image_BHW3))

    good, metrics = go(state, 0)
    assert int(metrics['skipped']) == 0
    bad, metrics = go(good, 1)
    assert not np.isfinite(metrics['loss'])
    assert int(metrics['skipped']) == 1
    worse, metrics = go(bad, 2)
    assert np.isfinite(metrics['loss'])
    assert not np.isfinite(metrics['grad_norm'])
    assert (int(metrics['skipped']), int(worse.skipped), int(worse.step)) == (2, 2, 3)
    assert_trees_close((good.params, good.opt_state), (worse.params, worse.opt_state), rtol=0, atol=0)
    assert int(go(worse, 0)[1]['skipped']) == 0


def one_by_one(config, simulation, loss, params, buffers, batch):
    """The terms of a first step, summed over valid objects: each chunk of one object per image, each round of it."""
    sam = nnx.merge(abstract_state(config)[0], *jax.tree.map(jnp.asarray, (params, buffers)))
    factor = config.image_size[0] // config.low_res_size[0]
    content_BHW = content_mask(batch.size_B2, config.image_size)

    @functools.partial(jax.jit, static_argnums=0)
    def run_round(slots, embed_BhwC, masks_B1HW, prompts, adds, slot, keys_B):
        decoder_keys_B, click_keys_B = split_keys(keys_B, 2)
        tokens, image = sam.run_transformer(embed_BhwC, prompts, decoder_keys_B)
        prediction = sam.mask_decoder.predict_masks(tokens, sam.mask_decoder.upscale(image), slots)
        terms = losses.sam_loss(
            loss,
            prediction.logits_BNMyx,
            prediction.iou_BNM,
            masks_B1HW,
            content_BHW,
            lambda x: resize.upsample(x, factor),
        )
        best_B1 = jnp.argmax(prediction.iou_BNM, -1)
        low_res_B1yx = prediction.logits_BNMyx[*jnp.ogrid[: len(best_B1), :1], best_B1]
        predicted_B1HW = resize.upsample(low_res_B1yx, factor) > 0
        return terms, click_simulation.next_prompts(
            prompts, low_res_B1yx, predicted_B1HW, masks_B1HW, content_BHW, adds, slot, click_keys_B
        )

    key_schedule, key_images = jax.random.split(jax.random.key(SEED))
    adds_K, slot_K = click_simulation.click_schedule(simulation, key_schedule)
    keys_B = jnp.stack([jax.random.fold_in(key_images, b) for b in range(len(batch.size_B2))])
    encoder_keys_B, chunk_keys_B = split_keys(keys_B, 2)
    embed_BhwC = jax.jit(sam.encode)(batch.image_BHW3, batch.size_B2, encoder_keys_B)
    count, sums = batch.valid_BN.shape[1], collections.defaultdict(float)
    for n, keys_B in enumerate(split_keys(chunk_keys_B, count)):
        first_keys_B, *rounds_keys_B = split_keys(keys_B, 1 + simulation.rounds)
        masks_B1HW = unpack_rows(batch.packed_masks_BNVW, config.image_size[0])[:, n : n + 1]
        first = functools.partial(click_simulation.first_prompts, simulation, low_res_size=config.low_res_size)
        prompts = jax.jit(first)(masks_B1HW, size_B2=batch.size_B2, keys_B=first_keys_B)
        for k, keys_B in enumerate(rounds_keys_B):
            slots = SINGLE_MASK if k else MULTIMASK
            terms, prompts = run_round(slots, embed_BhwC, masks_B1HW, prompts, adds_K[k], slot_K[k], keys_B)
            of_round = {
                name: float(jnp.where(batch.valid_BN[:, n : n + 1], x_B1, 0).sum()) for name, x_B1 in terms.items()
            }
            for name in ('focal', 'dice', 'iou'):
                sums[name] += of_round[name]
            if k in (0, simulation.rounds - 1):
                sums['mask_iou_last' if k else 'mask_iou_first'] += of_round['mask_iou']
    return dict(sums)


def test_losses_are_those_of_one_round_after_another(tiny_config, tiny_batch):
    """Three masks in the first of five rounds and one in the others, of which two add a click."""
    expected = one_by_one(tiny_config, SIMULATION, LOSS, *initial(tiny_config, noise=0.02), tiny_batch)
    terms, _ = loss_and_grads(tiny_config, tiny_batch)
    assert_trees_close(terms, jax.tree.map(lambda s: s / 3, expected), rtol=1e-4, atol=1e-5)


def test_padded_objects_change_nothing(tiny_config, tiny_batch):
    _, grads = loss_and_grads(tiny_config, tiny_batch)
    packed_masks_BNVW = tiny_batch.packed_masks_BNVW.copy()
    packed_masks_BNVW[1, 1, 1:3, 3:9] = 255  # an object that is not valid
    terms, other = loss_and_grads(tiny_config, tiny_batch._replace(packed_masks_BNVW=packed_masks_BNVW))
    assert_trees_close(grads, other, rtol=0, atol=0)


def test_batch_without_any_object_has_no_loss_and_no_gradient(tiny_config, tiny_batch):
    empty = tiny_batch._replace(
        valid_BN=np.zeros_like(tiny_batch.valid_BN), packed_masks_BNVW=np.zeros_like(tiny_batch.packed_masks_BNVW)
    )
    terms, grads = loss_and_grads(tiny_config, empty)
    assert all(value == 0 for value in terms.values())
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_every_parameter_is_trained_but_heads_that_never_were_the_best(tiny_config, tiny_batch):
    _, grads = loss_and_grads(tiny_config, tiny_batch)
    still = {
        jax.tree_util.keystr(path[:3], simple=True, separator='/')
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not np.abs(leaf).sum() > 0
    }
    assert still < {f'mask_decoder/mask_heads/{m}' for m in MULTIMASK}


def test_pixels_on_padding_change_nothing(tiny_config, tiny_batch):
    terms, _ = loss_and_grads(tiny_config, tiny_batch)
    image_BHW3 = tiny_batch.image_BHW3.copy()
    image_BHW3[1, :, 30:] = 255
    other, _ = loss_and_grads(tiny_config, tiny_batch._replace(image_BHW3=image_BHW3))
    assert_trees_close(terms, other, rtol=0, atol=0)


def test_chunks_only_bound_memory(tiny_config, tiny_batch):
    # Prompts without randomness (a point on a mask of one pixel): then chunks must not matter.
    masks_BNHW = np.zeros((2, 2, 32, 48), bool)
    masks_BNHW[:, 0, 5, 7] = masks_BNHW[:, 1, 20, 11] = True
    batch = tiny_batch._replace(packed_masks_BNVW=pack_rows(masks_BNHW))
    terms1, grads1 = loss_and_grads(tiny_config, batch, ONE_ROUND)
    terms2, grads2 = loss_and_grads(tiny_config, batch, dataclasses.replace(ONE_ROUND, objects_per_chunk=2))
    assert_trees_close(terms1, terms2)
    assert_trees_close(grads1, grads2, rtol=2e-3, atol=1e-5)


def test_gradient_accumulation_only_bounds_memory(tiny_config, tiny_batch):
    """Each image draws with its key; a part without any object counts nothing."""
    params, buffers = initial(tiny_config, noise=0.02)
    sums = functools.partial(
        step.summed_gradients, graphdef=abstract_state(tiny_config)[0], simulation=SIMULATION, loss=LOSS
    )
    inputs = jax.tree.map(lambda x_B: np.concatenate([x_B, x_B]), tiny_batch), jnp.arange(4), jax.random.key(SEED)
    inputs[0].valid_BN[2:] = False
    expected, actual = (jax.jit(step.accumulate_gradients(sums, steps))(params, buffers, *inputs) for steps in (1, 2))
    assert_trees_close(actual, expected)
    assert step.accumulate_gradients(sums, 1) is sums


def test_objects_must_fill_whole_chunks(tiny_config, tiny_batch):
    batch = jax.tree.map(lambda x: x, tiny_batch)._replace(
        packed_masks_BNVW=np.zeros((2, 3, 4, 48), np.uint8), valid_BN=np.zeros((2, 3), bool)
    )
    with pytest.raises(SamjaxError, match='multiple of prompts.objects_per_chunk 2'):
        loss_and_grads(tiny_config, batch, dataclasses.replace(ONE_ROUND, objects_per_chunk=2))


@pytest.mark.parametrize('remat', ['full', 'attention', 'matmuls'])
def test_rematerialization_changes_no_number(tiny_config, tiny_batch, remat):
    terms1, grads1 = loss_and_grads(tiny_config, tiny_batch, ONE_ROUND)
    terms2, grads2 = loss_and_grads(tiny_config, tiny_batch, ONE_ROUND, runtime=Runtime(remat=remat))
    assert_trees_close(terms1, terms2)
    assert_trees_close(grads1, grads2, rtol=2e-3, atol=1e-5)


def test_stopping_the_gradient_of_the_mask_prompt_changes_gradients_only(tiny_config, tiny_batch):
    terms1, grads1 = loss_and_grads(tiny_config, tiny_batch, noise=0.5)
    stopped = dataclasses.replace(SIMULATION, stop_mask_gradient=True)
    terms2, grads2 = loss_and_grads(tiny_config, tiny_batch, stopped, noise=0.5)
    assert_trees_close(terms1, terms2)
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), grads1, grads2)
    assert max(jax.tree.leaves(difference)) > 1e-4


@pytest.mark.parametrize('changes', [{'resolution': 'low_res'}, {'padding': 'include'}])
def test_loss_options_reach_the_loss(tiny_config, tiny_batch, changes):
    terms, _ = loss_and_grads(tiny_config, tiny_batch, ONE_ROUND)
    other, _ = loss_and_grads(tiny_config, tiny_batch, ONE_ROUND, dataclasses.replace(LOSS, **changes))
    assert abs(terms['dice'] - other['dice']) > 1e-5
    assert all(np.isfinite(value) for value in other.values())


def test_dropout_and_drop_path_act_in_training_only(tiny_config, tiny_batch):
    dropping = Regularization(drop_path=0.5, dropout=0.1)
    terms, _ = loss_and_grads(tiny_config, tiny_batch, ONE_ROUND, noise=0.2)
    other, _ = loss_and_grads(tiny_config, tiny_batch, ONE_ROUND, noise=0.2, regularization=dropping)
    assert abs(terms['dice'] - other['dice']) > 1e-4
    embeddings = [encode(tiny_config, regularization, tiny_batch) for regularization in (Regularization(), dropping)]
    np.testing.assert_array_equal(*embeddings)


def encode(config, regularization, batch):
    sam = nnx.merge(abstract_state(config, regularization)[0], *initial(config, noise=0.2))
    return jax.jit(sam.encode)(batch.image_BHW3, batch.size_B2)


def test_bfloat16_is_close_to_float32(tiny_config, tiny_batch):
    terms, _ = loss_and_grads(tiny_config, tiny_batch, ONE_ROUND)
    other, grads = loss_and_grads(tiny_config, tiny_batch, ONE_ROUND, runtime=Runtime(dtype='bfloat16'))
    np.testing.assert_allclose(terms['dice'], other['dice'], rtol=0.02)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))


def test_loss_falls_and_nothing_is_compiled_twice(tiny_config, tiny_batch):
    train = jax.jit(make_step(tiny_config))
    state, history = step.init_state(tiny_config, TX, 0), []
    for _ in range(40):
        state, metrics = train(state, tiny_batch)
        history.append(float(metrics['loss']))
    assert np.mean(history[-5:]) < 0.8 * np.mean(history[:5])
    assert train._cache_size() == 1
