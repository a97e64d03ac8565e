"""samjax.distributed.sharding on the eight simulated devices of conftest.py: shardings change no number."""

import dataclasses
import functools

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from samjax.config import get_config
from samjax.distributed import sharding
from samjax.distributed.sharding import MeshConfig
from samjax.errors import SamjaxError
from samjax.masks.packing import pack_rows
from samjax.model.config import SIZES
from samjax.model.params import ParamRules, abstract_state, path_names
from samjax.model.runtime import Regularization
from samjax.structs import Batch
from samjax.training import step
from samjax.training.click_simulation import ClickSimulation
from samjax.training.losses import LossConfig


def make_mesh(data=0, fsdp=0, tensor=1, width=16, heads=2, devices=None):
    return sharding.make_mesh(MeshConfig(data, fsdp, tensor), width, heads, devices)


@pytest.mark.parametrize(
    ('options', 'shape'),
    [
        ({}, (1, 8, 1)),
        ({'width': 12}, (2, 4, 1)),  # 8 devices do not divide a width of 12
        ({'tensor': 2}, (1, 4, 2)),
        ({'fsdp': 2}, (4, 2, 1)),
        ({'data': 2, 'fsdp': 2, 'tensor': 2}, (2, 2, 2)),
    ],
)
def test_mesh_is_chosen(options, shape):
    assert tuple(make_mesh(**options).shape.items()) == tuple(zip(('data', 'fsdp', 'tensor'), shape, strict=True))


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh asks a device."""

    id: int
    slice_index: int
    process_index: int
    platform: str = 'cpu'
    device_kind: str = 'stand-in'


def test_slices_lie_along_data():
    devices = [Device(i, slice_index=i // 4, process_index=i // 4) for i in range(8)]
    mesh = make_mesh(devices=devices)
    assert dict(mesh.shape) == {'data': 2, 'fsdp': 4, 'tensor': 1}
    assert [{device.slice_index for device in row.flat} for row in mesh.devices] == [{0}, {1}]
    with pytest.raises(SamjaxError, match=r'mesh.data=1 x mesh.fsdp=8 .* 8 devices in 2 slice'):
        make_mesh(data=1, fsdp=8, devices=devices)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'tensor': 3}, 'mesh.tensor=3 does not divide both the 8 devices of a slice and the 2 heads'),
        ({'tensor': 4}, 'mesh.tensor=4 does not divide both'),
        ({'data': 3}, 'mesh.data=3 x mesh.fsdp=8 x mesh.tensor=1 is not the 8 devices'),
        (
            {'tensor': 4, 'heads': 4, 'devices': [Device(i, 0, i // 2) for i in range(8)]},
            'split an image between processes',
        ),
    ],
)
def test_mesh_that_does_not_fit_is_named(options, message):
    with pytest.raises(SamjaxError, match=message):
        make_mesh(**options)


def test_batch_is_shared_out_along_its_first_axis():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    local = Batch(
        np.arange(8 * 2 * 4 * 3, dtype=np.uint8).reshape(8, 2, 4, 3),
        np.zeros((8, 5, 1, 4), np.uint8),
        np.ones((8, 5), bool),
        np.tile(np.int32([2, 4]), (8, 1)),
    )
    batch = sharding.to_global(local, mesh)
    assert isinstance(batch, Batch)
    for given, made in zip(local, batch, strict=True):
        np.testing.assert_array_equal(given, made)
        assert given.dtype == made.dtype
        assert {shard.data.shape for shard in made.addressable_shards} == {(2, *given.shape[1:])}


@pytest.mark.parametrize('batch', [0, 12])
def test_batch_that_devices_cannot_share_is_named(batch):
    sharding.check_batch(16, 2, make_mesh())
    sharding.check_batch(12, 3, make_mesh(tensor=2))
    with pytest.raises(SamjaxError, match=f'train.batch_size={batch} .* 8 devices.* multiple of 8'):
        sharding.check_batch(batch, 1, make_mesh())


@pytest.mark.parametrize('steps', [0, 3])
def test_accumulation_steps_that_do_not_divide_the_images_of_a_device_are_named(steps):
    with pytest.raises(
        SamjaxError, match=f'2 image.s. of a device .* {steps} steps: .*train.grad_accum_steps to a divisor of 2'
    ):
        sharding.check_batch(16, steps, make_mesh())


def test_matrices_of_the_encoder_are_split_and_nothing_else(tiny_config):
    params = abstract_state(tiny_config)[1]
    state = {'params': params, 'opt_state': optax.adam(1e-3).init(params)}
    shardings = sharding.state_shardings(state, make_mesh(data=2, fsdp=2, tensor=2), ParamRules(tiny_config))
    for found in (shardings['params'], shardings['opt_state'][0].mu):
        blocks = found['image_encoder']['windowed_blocks']
        specs = {name: leaf.get_value().spec for part in ('attention', 'norm1') for name, leaf in blocks[part].items()}
        assert specs['w_qkv_DsAE'] == P(None, None, 'fsdp', None, 'tensor', None)
        assert specs['b_qkv_sAE'] == P(None, None, None, 'tensor', None)
        assert specs['w_out_AED'] == P(None, None, 'tensor', None, 'fsdp')
        assert not any(specs['rel_h_RE'])
        assert not any(specs['scale'])
        first, second = (blocks['mlp']['layers'][i] for i in (0, 1))
        assert first['kernel'].get_value().spec == P(None, None, 'fsdp', 'tensor')
        assert first['bias'].get_value().spec == P(None, None, 'tensor')
        assert second['kernel'].get_value().spec == P(None, None, 'tensor', 'fsdp')
        assert found['image_encoder']['pos_embed'].get_value().spec == P(None, None, 'fsdp')
        decoder = jax.tree.leaves(found['mask_decoder'])
        assert all(leaf.spec == P() for leaf in decoder)
    alone = sharding.state_shardings(state, make_mesh(data=8, fsdp=1), ParamRules(tiny_config))
    assert all(not any(leaf.spec) for leaf in jax.tree.leaves(alone))


TX = optax.sgd(0.1, momentum=0.9)  # Adam's first step is the sign of a gradient, however small
SIMULATION = dataclasses.replace(ClickSimulation(**get_config().prompts), rounds=5, objects_per_chunk=1)
LOSS = LossConfig(**get_config().loss)
REGULARIZATION = Regularization(drop_path=0.5, dropout=0.1)


def one_step(config, regularization, batch, mesh):
    """State and metrics after a step from parameters none of which is zero; on `mesh`, or on one device."""
    graphdef, params, _ = abstract_state(config, regularization)
    sums = functools.partial(step.summed_gradients, graphdef=graphdef, simulation=SIMULATION, loss=LOSS)

    def init():
        state = step.init_state(config, TX, 0)
        leaves, tree = jax.tree.flatten(state.params)
        keys = jax.random.split(jax.random.key(5), len(leaves))
        noisy = [p + 0.02 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
        return dataclasses.replace(state, params=tree.unflatten(noisy))

    if mesh is None:
        run = functools.partial(step.train_step, summed_gradients=sums, tx=TX, loss=LOSS, seed=0)
        return jax.jit(run)(jax.jit(init)(), batch)
    rules = ParamRules(config)
    shardings = sharding.state_shardings(jax.eval_shape(init), mesh, rules)
    shared = sharding.data_parallel(sums, params, mesh, rules, 'float32')
    run = functools.partial(step.train_step, summed_gradients=shared, tx=TX, loss=LOSS, seed=0)
    state = jax.jit(init, out_shardings=shardings)()
    images = sharding.batch_sharding(mesh)
    run = jax.jit(run, in_shardings=(shardings, images), out_shardings=(shardings, sharding.replicated(mesh)))
    return run(state, sharding.to_global(batch, mesh))


@pytest.fixture(scope='module')
def single():
    """The step on one device, with drop path and dropout, of eight images with two objects each."""
    # More than two channels in the norm of the mask prompt, which otherwise turns rounding errors into signs.
    config, batch = dataclasses.replace(SIZES['test'], mask_in_chans=32), eight_images()
    with jax.default_matmul_precision('highest'):
        return config, batch, one_step(config, REGULARIZATION, batch, None)


def eight_images():
    rng = np.random.default_rng(3)
    masks_BNHW = np.zeros((8, 2, 32, 48), bool)
    for b in range(8):
        for n in range(2):
            y, x = rng.integers(0, 16, 2)
            masks_BNHW[b, n, y : y + 8 + n, x : x + 14] = True
    valid_BN = np.ones((8, 2), bool)
    valid_BN[5, 1] = valid_BN[6] = False  # an image without objects, too
    size_B2 = np.tile(np.int32([32, 48]), (8, 1))
    size_B2[2] = 32, 31
    image_BHW3 = rng.integers(0, 256, (8, 32, 48, 3), np.uint8)
    return Batch(image_BHW3, pack_rows(masks_BNHW & valid_BN[..., None, None]), valid_BN, size_B2)


@pytest.mark.parametrize('shape', [(8, 1, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2)], ids=lambda s: 'x'.join(map(str, s)))
def test_step_on_eight_devices_equals_the_step_on_one(single, shape):
    config, batch, (expected, expected_metrics) = single
    with jax.default_matmul_precision('highest'):
        state, metrics = one_step(config, REGULARIZATION, batch, make_mesh(*shape))
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    for whole, shared in zip(jax.tree.leaves(expected), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(shared, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('shape', [(8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=lambda s: 'x'.join(map(str, s)))
def test_gradients_of_devices_are_summed_in_float32(tiny_config, shape):
    """Of 256 on a device and 1 on each other, in the model's bfloat16, the sum in bfloat16 would be 256."""
    params = abstract_state(tiny_config)[1]
    blocks, heads = params['image_encoder']['global_blocks'], params['mask_decoder']['mask_heads']
    params = nnx.State({'image_encoder': {'global_blocks': blocks}, 'mask_decoder': {'mask_heads': heads}})
    mesh, rules, on_device = make_mesh(*shape), ParamRules(tiny_config), {}

    def sums(params, buffers, batch, index_B, key):
        on_device.update(names(params))
        value = jnp.where(index_B == 0, 256, 1).sum()
        return jax.tree.map(lambda p: jnp.full_like(p, value), params), {'loss': (index_B + 0.5).sum()}

    shared = sharding.data_parallel(sums, params, mesh, rules, 'bfloat16')
    shardings = sharding.state_shardings(params, mesh, rules)
    whole = jax.tree.map(lambda x, s: jax.device_put(np.ones(x.shape, x.dtype), s), params, shardings)
    count = sharding.num_image_groups(mesh)
    index_B = jax.device_put(np.arange(count), sharding.batch_sharding(mesh))
    traced = jax.jit(shared).trace(whole, {}, index_B, index_B, jnp.zeros(()))
    summed = [e for e in equations(traced.jaxpr.jaxpr) if e.primitive.name.startswith(('psum', 'reduce_scatter'))]
    assert len(summed) > 1
    assert {str(variable.aval.dtype) for equation in summed for variable in equation.invars} == {'float32'}
    grads, total = jax.jit(shared)(whole, {}, index_B, index_B, jnp.zeros(()))
    assert float(total['loss']) == count**2 / 2
    for name, gradient in names(grads).items():
        rule, parameter = rules.of(tuple(name.split('/'))), names(whole)[name]
        assert gradient.dtype == jnp.float32, name
        np.testing.assert_array_equal(gradient, np.full(parameter.shape, 256 + count - 1), err_msg=name)
        assert ('fsdp' in gradient.sharding.spec) == ('fsdp' in parameter.sharding.spec), name
        assert on_device[name].shape == parameter.shape
        assert on_device[name].dtype == ('bfloat16' if rule.fsdp else 'float32'), name


def equations(jaxpr):
    """All, also those inside others."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jex.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def names(tree):
    return {'/'.join(path_names(path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_highest_number_of_all_devices():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.transfer_guard('disallow'):
        global_max = sharding.global_max(15, mesh)
    assert int(global_max) == 15


def test_local_copy_is_whole_on_one_device():
    mesh = make_mesh()
    x = jax.device_put(jnp.arange(16.0), jax.sharding.NamedSharding(mesh, P('fsdp')))
    [copy] = sharding.local_copy([x], mesh)
    np.testing.assert_array_equal(copy, np.arange(16.0))
    assert copy.devices() == {jax.local_devices()[0]}
