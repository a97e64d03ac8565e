"""samjax.training.optimizer: one AdamW step by hand, and which parameters decay and how fast they learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from samjax.errors import SamjaxError
from samjax.model.config import SIZES
from samjax.model.params import ParamRules, init_params, path_names
from samjax.training import optimizer

OPTIONS = optimizer.OptimizerConfig(
    name='adamw',
    lr=1e-2,
    warmup_steps=2,
    milestones=(3, 5),
    timescale=0,
    cooldown=(0, 0),
    b1=0.9,
    b2=0.99,
    weight_decay=0.1,
    weight_decay_on='kernels',
    layer_decay=0.5,
    clip_norm=0.0,
)


RULES = ParamRules(SIZES['test'])  # two blocks: one windowed, one global


def with_options(**changes):
    return dataclasses.replace(OPTIONS, **changes)


def tiny_params():
    """The layers of an encoder with two blocks, one windowed, one global; each with a kernel and a bias."""

    def layer(value, *lead):
        return {'kernel': nnx.Param(jnp.full((*lead, 2, 2), value)), 'bias': nnx.Param(jnp.full((*lead, 2), value))}

    def mlp(value, *lead):
        return {'mlp': {'layers': {0: layer(value, *lead)}}}

    encoder = {'patch_embed': layer(1.0), 'windowed_blocks': mlp(2.0, 1, 1), 'global_blocks': mlp(3.0, 1)}
    encoder['pos_embed'] = nnx.Param(jnp.full((2, 2, 2), 5.0))
    return nnx.State({'image_encoder': encoder, 'mask_decoder': {'upscale1': layer(4.0)}})


def head(**arrays):
    """Parameters of a linear layer behind the encoder."""
    layer = {name: nnx.Param(array) for name, array in arrays.items()}
    return nnx.State({'mask_decoder': {'iou_head': {'layers': {0: layer}}}})


def names(tree):
    """{'a/b': leaf}"""
    return {'/'.join(path_names(path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def rates(counts, **changes):
    rate = optimizer.schedule(with_options(**changes))
    return [float(rate(jnp.int32(count))) for count in counts]


def test_schedule_warms_up_then_drops_to_a_tenth():
    expected = [0.25, 0.5, 0.75, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    np.testing.assert_allclose(rates(range(10), lr=1.0, warmup_steps=4, milestones=(6, 8)), expected, rtol=1e-6)


def test_schedule_of_the_paper():
    """Steps and milestones beyond 16 bits."""
    got = rates((249, 119_999, 120_000, 173_332, 173_333), lr=8e-4, warmup_steps=250, milestones=(120_000, 173_333))
    np.testing.assert_allclose(got, [8e-4, 8e-4, 8e-5, 8e-5, 8e-6], rtol=1e-5)


def test_schedule_cools_down_to_zero():
    expected = [0.5, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    np.testing.assert_allclose(
        rates(range(9), lr=1.0, warmup_steps=2, milestones=(), cooldown=(3, 7)), expected, rtol=1e-6
    )


def test_schedule_falls_with_the_square_root_of_the_steps():
    got = rates((0, 1, 2, 5, 14), lr=1.0, warmup_steps=2, milestones=(), timescale=1)
    np.testing.assert_allclose(got, [0.5, 1, 1, 0.5, 13**-0.5], rtol=1e-6)


def test_schedule_without_warmup_and_milestones_is_constant():
    assert rates((0, 7), lr=0.5, warmup_steps=0, milestones=()) == [0.5, 0.5]


def test_cooldown_that_ends_before_it_begins_is_named():
    with pytest.raises(SamjaxError, match=r'optimizer.cooldown is \(7, 3\): set it to \(first, last\)'):
        optimizer.schedule(with_options(cooldown=(7, 3)))


def adamw(params, grads, rates, factor, decay):
    """torch.optim.AdamW with lr = rate * factor, in float64: decay p -= lr * wd * p, then the Adam update."""
    first = second = np.zeros_like(params)
    for t, (g, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        lr = rate * factor
        params = params * (1 - lr * decay)
        first = 0.9 * first + 0.1 * g
        second = 0.99 * second + 0.01 * g**2
        params = params - lr * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.99**t)) + 1e-8)
    return params


def test_two_updates_equal_adamw_with_parameter_groups():
    params = tiny_params()
    tx = optimizer.make_optimizer(OPTIONS, params, RULES)
    state = tx.init(params)
    rng = np.random.default_rng(0)
    flat = {name: np.asarray(p, np.float64) for name, p in names(params).items()}
    grads = [jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params) for _ in range(2)]
    for g in grads:
        updates, state = jax.jit(tx.update)(g, state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
    expected_factor_and_decay = {
        'image_encoder/patch_embed/kernel': (0.125, 0.1),
        'image_encoder/patch_embed/bias': (0.125, 0),
        'image_encoder/pos_embed': (0.125, 0),
        'image_encoder/windowed_blocks/mlp/layers/0/kernel': (0.25, 0.1),
        'image_encoder/windowed_blocks/mlp/layers/0/bias': (0.25, 0),
        'image_encoder/global_blocks/mlp/layers/0/kernel': (0.5, 0.1),
        'image_encoder/global_blocks/mlp/layers/0/bias': (0.5, 0),
        'mask_decoder/upscale1/kernel': (1.0, 0.1),
        'mask_decoder/upscale1/bias': (1.0, 0),
    }
    after = names(params)
    assert after.keys() == expected_factor_and_decay.keys()
    for name, (factor, decay) in expected_factor_and_decay.items():
        g = [np.asarray(names(g)[name], np.float64) for g in grads]
        expected = adamw(flat[name], g, (0.005, 0.01), factor, decay)
        np.testing.assert_allclose(after[name], expected, atol=2e-6, err_msg=name)


def test_first_update_in_literal_numbers():
    """Adam's first update is the sign of the gradient: 1 - 0.005 * (1 + 0.1 * 1) = 0.9945."""
    params = head(kernel=jnp.ones((1, 1)))
    tx = optimizer.make_optimizer(OPTIONS, params, RULES)
    updates, _ = tx.update(jax.tree.map(lambda p: 7 * p, params), tx.init(params), params)
    np.testing.assert_allclose(updates['mask_decoder']['iou_head']['layers'][0]['kernel'], [[-0.0055]], rtol=1e-5)


def test_clip_scales_gradients_to_the_norm():
    """Adam hides the scale of gradients, but not of the second one relative to the first: 30, 3 is clipped to 1, 1."""
    params = head(kernel=jnp.zeros((1, 1)))

    def after(clip, first, second):
        tx = optimizer.make_optimizer(with_options(clip_norm=clip), params, RULES)
        state = tx.init(params)
        for g in (first, second):
            updates, state = tx.update(jax.tree.map(lambda p, g=g: p + g, params), state, params)
        return float(updates['mask_decoder']['iou_head']['layers'][0]['kernel'][0, 0])

    assert after(1.0, 30.0, 3.0) == pytest.approx(after(0.0, 1.0, 1.0))
    assert after(0.0, 30.0, 3.0) != pytest.approx(after(0.0, 1.0, 1.0))


def test_decay_reaches_the_kernels_of_the_model_and_nothing_else(tiny_config):
    params, _ = jax.eval_shape(lambda: init_params(tiny_config, 0))
    mask = names(optimizer.decay_mask(params, RULES, 'kernels'))
    last = {decayed: {name.split('/')[-1] for name, m in mask.items() if m == decayed} for decayed in (True, False)}
    assert last[True] == {
        'kernel', 'project_DC', 'smooth_33CC', 'w_qkv_DsAE', 'w_out_AED',
        'w_q_CAE', 'w_k_CAE', 'w_v_CAE', 'w_out_AEC',
    }  # fmt: skip
    assert last[False] == {
        'bias', 'scale', 'b_qkv_sAE', 'b_out_D', 'b_q_AE', 'b_k_AE', 'b_v_AE', 'b_out_C',
        'pos_embed', 'rel_h_RE', 'rel_w_RE',
        'label_embed_4C', 'not_a_point_C', 'no_mask_C', 'iou_token_1C', 'mask_tokens_4C',
    }  # fmt: skip
    assert all(names(optimizer.decay_mask(params, RULES, 'all')).values())


def test_unknown_decay_is_named():
    with pytest.raises(SamjaxError, match="optimizer.weight_decay_on='some'.*kernels, all"):
        optimizer.make_optimizer(with_options(weight_decay_on='some'), tiny_params(), RULES)


def test_layer_factors_of_vit_b():
    params, _ = jax.eval_shape(lambda: init_params(SIZES['vit_b'], 0))
    factor = names(optimizer.layer_factors(params, ParamRules(SIZES['vit_b']), 0.6))
    np.testing.assert_allclose(factor['image_encoder/pos_embed'], 0.6**13, rtol=1e-6)
    np.testing.assert_allclose(factor['image_encoder/patch_embed/kernel'], 0.6**13, rtol=1e-6)
    # Blocks 0, 1 | 3, 4 | 6, 7 | 9, 10 attend in windows, 2, 5, 8, 11 globally.
    windowed = factor['image_encoder/windowed_blocks/attention/w_qkv_DsAE']
    assert windowed.shape == (4, 2, 1, 1, 1, 1)
    expected = 0.6 ** np.array([[12.0, 11], [9, 8], [6, 5], [3, 2]])
    np.testing.assert_allclose(windowed[..., 0, 0, 0, 0], expected, rtol=1e-6)
    globally = factor['image_encoder/global_blocks/norm1/scale']
    assert globally.shape == (4, 1)
    np.testing.assert_allclose(globally[:, 0], 0.6 ** np.array([10.0, 7, 4, 1]), rtol=1e-6)
    outside = {f for name, f in factor.items() if 'blocks' not in name.split('/')[1] and 'embed' not in name}
    assert outside == {1.0}


def test_muon_moves_all_directions_of_a_matrix_alike_and_the_rest_as_adam_does():
    """A gradient with singular values 1, 0.1, 0.01 becomes an update with three of about 0.2 sqrt(longer side)."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(side, 3)))[0] for side in (6, 4))
    kernel = jnp.asarray(left @ np.diag([1.0, 0.1, 0.01]) @ right.T, jnp.float32)
    params = head(kernel=kernel, bias=jnp.array([1.0, -1e-3]))
    tx = optimizer.make_optimizer(with_options(name='muon', weight_decay=0.0, warmup_steps=0), params, RULES)
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    scale = -1e-2 * 0.2 * 6**0.5
    singular = np.linalg.svd(
        left.T @ (np.asarray(updates['mask_decoder']['iou_head']['layers'][0]['kernel'][...]) / scale) @ right
    )[1]
    assert 0.65 < singular.min() <= singular.max() < 1.25  # five Newton-Schulz steps come that near to 1
    np.testing.assert_allclose(updates['mask_decoder']['iou_head']['layers'][0]['bias'], [-1e-2, 1e-2], rtol=1e-4)


def test_muon_remembers_earlier_gradients_as_published():
    """Momentum 0.95: two updates of a matrix of linear layers are those of optax, in the scale of Adam."""
    rng = np.random.default_rng(0)
    params = head(kernel=jnp.zeros((3, 3)))
    grads = [jnp.asarray(rng.normal(size=(3, 3)), jnp.float32) for _ in range(2)]
    options = with_options(name='muon', weight_decay=0.0, warmup_steps=0, milestones=())
    ours = optimizer.make_optimizer(options, params, RULES)
    theirs = scale_by_muon(beta=0.95, weight_dimension_numbers={'w': MuonDimensionNumbers((0,), (1,))})
    our_state, their_state = ours.init(params), theirs.init({'w': jnp.zeros((3, 3))})
    for grad in grads:
        updates, our_state = ours.update(jax.tree.map(lambda p, g=grad: g, params), our_state, params)
        expected, their_state = theirs.update({'w': grad}, their_state, {'w': grad})
        found = updates['mask_decoder']['iou_head']['layers'][0]['kernel'][...]
        np.testing.assert_allclose(found, -1e-2 * 0.2 * 3**0.5 * expected['w'], rtol=1e-4, atol=1e-6)


def test_muon_sees_each_product_of_the_model_as_one_matrix(tiny_config):
    params, _ = jax.eval_shape(lambda: init_params(tiny_config, 0))
    rules = ParamRules(tiny_config)
    axes = {
        name: (*optimizer.muon_axes(rule.matrix, len(p.shape)), p.shape)
        for name, p in names(params).items()
        if (rule := rules.of(tuple(name.split('/')))).matrix
    }
    assert axes['image_encoder/patch_embed/kernel'] == ((0, 1, 2), (3,), (8, 8, 3, 16))
    assert axes['image_encoder/windowed_blocks/attention/w_qkv_DsAE'] == ((2,), (4, 5), (1, 1, 16, 3, 2, 8))
    assert axes['image_encoder/global_blocks/attention/w_out_AED'] == ((1, 2), (3,), (1, 2, 8, 16))
    assert axes['image_encoder/neck/smooth_33CC'] == ((0, 1, 2), (3,), (3, 3, 16, 16))
    assert axes['mask_decoder/transformer/final_attention/w_q_CAE'] == ((0,), (1, 2), (16, 2, 4))
    assert axes['mask_decoder/upscale1/kernel'] == ((2,), (0, 1, 3), (2, 2, 16, 4))
    assert axes['mask_decoder/iou_head/layers/0/kernel'] == ((0,), (1,), (16, 16))


def test_unknown_optimizer_is_named():
    with pytest.raises(SamjaxError, match="optimizer.name='lion'.*adamw, muon"):
        optimizer.make_optimizer(with_options(name='lion'), tiny_params(), RULES)
