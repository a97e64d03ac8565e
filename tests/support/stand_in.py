"""A model of two parameters that stands in for SAM in the tests of the loop: it compiles at once.

Both parameters chase a number that depends on the images of the step and its key, so the curve tells whether data,
step and seed are as they were.  Run as a program it is `samjax train` with this model:

    python tests/support/stand_in.py WORKDIR STEPS SECONDS_PER_STEP DEVICES [PORT PROCESSES PROCESS [sam]]

or, with the last word, with a real SAM, which takes a minute to compile.
"""

import functools
import os
import sys
import time

if __name__ == '__main__':
    os.environ['JAX_PLATFORMS'] = 'cpu'
    sys.path.insert(0, os.path.abspath(f'{__file__}/../../..'))

import jax
import jax.numpy as jnp
from flax import nnx

from samjax.config import get_config
from samjax.distributed import sharding
from samjax.distributed.processes import exit_process, initialize
from samjax.errors import SamjaxError
from samjax.evaluation.during_training import TrainingEvaluation
from samjax.model.config import from_options
from samjax.model.layers import Buffer
from samjax.model.param_rules import DENSE, ParamRule
from samjax.training import loop, optimizer, step
from samjax.training.compiled_step import CompiledTrainStep
from samjax.training.losses import LossConfig
from samjax.training.step import TrainState

QUICK = {
    'model.size': 'test',
    'model.image_size': (32, 48),
    'model.dtype': 'float32',
    'data.num_workers': 0,
    'data.max_objects': 2,
    'data.synthetic_train_images': 40,
    'data.synthetic_eval_images': 3,
    'prompts.rounds': 4,
    'prompts.objects_per_chunk': 2,
    'optimizer.warmup_steps': 3,
    'train.batch_size': 8,
    'train.log_every': 1,
    'train.save_every': 2,
    'train.eval_every': 2,
    'train.eval_max_objects': 2,
    'eval.clicks': (1, 2),
    'eval.prompt_batch_size': 2,
    'eval.devices': 1,
    'eval.num_visualizations': 1,
}


def quick(steps, **changes):
    """A config for a run of seconds."""
    config = get_config()
    config.update_from_flattened_dict(QUICK | {'train.num_steps': steps} | changes)
    return config


class Rules:
    """The kernel is a matrix, the bias is none."""

    num_layers = 1

    def of(self, names):
        return ParamRule(names[-1], DENSE if names[-1] == 'kernel' else None)


def build(config):
    """A training step whose model has two parameters."""
    model, _, _ = from_options(**config.model)
    mesh = sharding.make_mesh(sharding.MeshConfig(**config.mesh), 16, 2)
    sharding.check_batch(config.train.batch_size, config.train.grad_accum_steps, mesh)
    everywhere = sharding.replicated(mesh)
    params = nnx.State({'layer': {'kernel': nnx.Param(jnp.ones((2, 2))), 'bias': nnx.Param(jnp.zeros(2))}})
    buffers, zero = nnx.State({'fixed': Buffer(jnp.ones(3))}), jnp.zeros((), jnp.int32)
    options = optimizer.OptimizerConfig(**config.optimizer)
    tx = optimizer.make_optimizer(options, params, Rules())

    def init():
        return TrainState(zero, params, buffers, tx.init(params), zero)

    def shape(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)

    update = functools.partial(
        step.train_step, summed_gradients=summed_gradients, tx=tx, loss=LossConfig(**config.loss), seed=config.seed
    )
    split = sharding.batch_sharding(mesh)
    return CompiledTrainStep(
        mesh=mesh,
        model=model,
        rate=optimizer.schedule(options),
        state=jax.tree.map(shape, jax.eval_shape(init)),
        init=jax.jit(init, out_shardings=everywhere),
        step=jax.jit(update, in_shardings=(everywhere, split), out_shardings=everywhere, donate_argnums=0),
    )


def summed_gradients(params, buffers, batch, index_B, key):
    """Both parameters chase a number that depends on the images and the key."""
    aim = batch.image_BHW3.astype(jnp.float32).mean() / 255 + jax.random.normal(key, ())
    grads = jax.tree.map(lambda p: 2 * (p - aim), params)
    return grads, dict.fromkeys(('focal', 'dice', 'iou', 'mask_iou_first', 'mask_iou_last'), jnp.square(aim))


class Evaluation:
    """Scores without a model."""

    def __init__(self, config, workdir, mesh):
        pass

    def __call__(self, state):
        return {'eval/miou@1': float(state.params['layer']['bias'][0])}


def main(workdir, steps, seconds, devices, port='', processes='', process='', model='stand-in'):
    jax.config.update('jax_num_cpu_devices', int(devices))
    batches = loop.open_batches

    def open_slowly(config):
        opened = batches(config)
        take = opened.__class__.__next__
        opened.__class__.__next__ = lambda self: (time.sleep(float(seconds)), take(self))[1]
        return opened

    loop.open_batches = open_slowly
    open_evaluation = TrainingEvaluation
    if model == 'stand-in':
        loop.build, open_evaluation = build, Evaluation
    try:
        if port:
            initialize(False, f'127.0.0.1:{port}', int(processes), int(process), 60)
        loop.train(quick(int(steps)), workdir, open_evaluation)
    except SamjaxError as error:
        exit_process(f'error: {error}')
    except loop.Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(stopped.code)


if __name__ == '__main__':
    main(*sys.argv[1:])
