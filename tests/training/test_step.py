"""The training step: what counts, what does not, and that it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import LOSS, SIMULATION, TX, make_step

from samjax.errors import SamjaxError
from samjax.masks.packing import pack_rows
from samjax.model.params import abstract_state, init_params
from samjax.model.runtime import Regularization, Runtime
from samjax.structs import MULTIMASK
from samjax.training import step

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
