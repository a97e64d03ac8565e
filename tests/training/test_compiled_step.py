"""samjax.training.compiled_step: every option of model, prompts, loss, optimizer and mesh arrives."""

import dataclasses

import jax
import numpy as np
import pytest

from samjax.config import get_config
from samjax.distributed.sharding import MeshConfig
from samjax.model.config import SIZES
from samjax.model.runtime import Regularization
from samjax.training import compiled_step, optimizer
from samjax.training.click_simulation import ClickSimulation
from samjax.training.losses import LossConfig

CHANGED = {
    'seed': 17,
    'model.size': 'test',
    'model.image_size': (48, 32),
    'model.dtype': 'float32',
    'model.drop_path': 0.25,
    'model.dropout': 0.3,
    'model.remat': 'matmuls',
    'prompts.rounds': 7,
    'prompts.box_probability': 0.125,
    'prompts.box_noise': 'uniform',
    'prompts.box_noise_fraction': 0.3,
    'prompts.box_noise_max': 11.0,
    'prompts.stop_mask_gradient': True,
    'prompts.objects_per_chunk': 4,
    'loss.focal': 19.0,
    'loss.dice': 2.0,
    'loss.iou': 3.0,
    'loss.focal_alpha': 0.4,
    'loss.focal_gamma': 1.5,
    'loss.resolution': 'low_res',
    'loss.padding': 'include',
    'loss.iou_supervision': 'all',
    'optimizer.name': 'muon',
    'optimizer.lr': 2e-3,
    'optimizer.warmup_steps': 11,
    'optimizer.milestones': (13, 14),
    'optimizer.timescale': 15,
    'optimizer.cooldown': (16, 18),
    'optimizer.b1': 0.8,
    'optimizer.b2': 0.95,
    'optimizer.weight_decay': 0.2,
    'optimizer.weight_decay_on': 'all',
    'optimizer.layer_decay': 0.7,
    'optimizer.clip_norm': 5.0,
    'mesh.data': 2,
    'mesh.fsdp': 1,
    'mesh.tensor': 2,
    'train.batch_size': 12,
    'train.grad_accum_steps': 3,
}


@pytest.fixture
def config():
    """Every option that the step depends on differs from its default."""
    config = get_config()
    default = config.copy_and_resolve_references()
    config.update_from_flattened_dict(CHANGED)
    for section in ('model', 'prompts', 'loss', 'optimizer', 'mesh'):
        assert {f'{section}.{name}' for name in config[section]} <= CHANGED.keys()
        assert all(config[section][name] != default[section][name] for name in config[section])
    return config


def test_options_reach_the_functions_of_the_step(config, monkeypatch):
    """The functions are replaced by ones that only note what they are given."""
    noted = {}

    def spy(owner, name):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            noted[name] = args, kwargs
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    for owner, name in (
        (compiled_step, 'init_state'),
        (compiled_step, 'accumulate_gradients'),
        (compiled_step, 'abstract_state'),
        (compiled_step.sharding, 'make_mesh'),
        (compiled_step.sharding, 'check_batch'),
        (compiled_step.sharding, 'data_parallel'),
        (compiled_step.optimizer, 'make_optimizer'),
    ):
        spy(owner, name)
    monkeypatch.setattr(compiled_step, 'train_step', lambda *args, **kwargs: (args, kwargs))
    monkeypatch.setattr(compiled_step, 'summed_gradients', lambda *args, **kwargs: (args, kwargs))
    captured = []
    monkeypatch.setattr(jax, 'jit', lambda function, **options: captured.append((function, options)) or function)
    compiled = compiled_step.build(config, jax.devices()[:4])

    model = dataclasses.replace(SIZES['test'], image_size=(48, 32))
    assert compiled.model == model
    assert dict(compiled.mesh.shape) == {'data': 2, 'fsdp': 1, 'tensor': 2}
    assert noted['make_mesh'][0] == (MeshConfig(2, 1, 2), 16, 2, jax.devices()[:4])
    assert noted['check_batch'][0] == (12, 3, compiled.mesh)
    _, regularization, runtime = noted['abstract_state'][0]
    assert regularization == Regularization(0.25, 0.3)
    assert (runtime.dtype, runtime.remat) == ('float32', 'matmuls')
    assert noted['init_state'][0][0] == model
    assert noted['init_state'][0][2] == 17
    assert noted['accumulate_gradients'][0][1] == 3
    assert noted['data_parallel'][0][4] == 'float32'
    options = optimizer.OptimizerConfig(**{n: CHANGED[f'optimizer.{n}'] for n in config.optimizer})
    assert noted['make_optimizer'][0][0] == options
    np.testing.assert_allclose(
        [compiled.rate(n) for n in (0, 12, 17)], [optimizer.schedule(options)(n) for n in (0, 12, 17)]
    )

    (_, init_options), (step, step_options) = captured
    assert step.keywords['seed'] == 17
    assert step.keywords['loss'] == LossConfig(**{n: CHANGED[f'loss.{n}'] for n in config.loss})
    assert step_options['donate_argnums'] == 0
    assert init_options['out_shardings'] == step_options['in_shardings'][0] == step_options['out_shardings'][0]
    _, gradient_options = noted['accumulate_gradients'][0][0]()
    assert gradient_options['simulation'] == ClickSimulation(**{n: CHANGED[f'prompts.{n}'] for n in config.prompts})
    assert gradient_options['loss'] == step.keywords['loss']


def test_shapes_are_float32_whatever_the_dtype_of_activations(config):
    config.model.dtype = 'bfloat16'
    compiled = compiled_step.build(config, jax.devices()[:4])
    shapes = jax.tree.leaves((compiled.state.params, compiled.state.buffers))
    assert {str(x.dtype) for x in shapes} == {'float32'}
    assert all(x.sharding.mesh.shape == compiled.mesh.shape for x in jax.tree.leaves(compiled.state))
