"""A model of two parameters that stands in for SAM in the tests of the loop: it compiles at once.

Both parameters chase a number that depends on the images of the step and its key, so the curve tells whether data,
step and seed are as they were.  Run as a program it is train.py with this model:

    python tests/stand_in.py WORKDIR STEPS SECONDS_PER_STEP DEVICES [PORT PROCESSES PROCESS [sam]]

or, with the last word, with a real SAM, which takes a minute to compile.
"""

import functools
import os
import sys
import time

if __name__ == '__main__':
    os.environ['JAX_PLATFORMS'] = 'cpu'
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import jax
import jax.numpy as jnp
from flax import nnx

from configs import default
from samjax import cluster, loop, optimizer, sharding, step
from samjax.errors import SamjaxError
from samjax.losses import LossOptions
from samjax.model.layers import Buffer
from samjax.model.sam import sam_config
from samjax.program import Program
from samjax.step import TrainState

QUICK = {
    'model.size': 'test',
    'model.image_size': (32, 48),
    'model.dtype': 'float32',
    'data.workers': 0,
    'data.max_objects': 2,
    'data.train_images': 40,
    'data.eval_images': 3,
    'prompts.rounds': 4,
    'prompts.object_chunk': 2,
    'optimizer.warmup': 3,
    'train.batch': 8,
    'train.log_every': 1,
    'train.save_every': 2,
    'train.eval_every': 2,
    'eval.clicks': (1, 2),
    'eval.object_batch': 2,
    'eval.devices': 1,
    'eval.max_objects': 2,
    'eval.pictures': 1,
}


def quick(steps, **changes):
    """A config for a run of seconds."""
    config = default.get_config()
    config.update_from_flattened_dict(QUICK | {'train.steps': steps} | changes)
    return config


def build(config):
    """A program whose model has two parameters."""
    model, mesh = sam_config(**config.model), sharding.make_mesh(sharding.MeshOptions(**config.mesh), 16, 2)
    sharding.check_batch(config.train.batch, config.train.turns, mesh)
    everywhere = sharding.replicated(mesh)
    params = nnx.State({'layer': {'kernel': nnx.Param(jnp.ones((2, 2))), 'bias': nnx.Param(jnp.zeros(2))}})
    buffers, zero = nnx.State({'fixed': Buffer(jnp.ones(3))}), jnp.zeros((), jnp.int32)
    options = optimizer.Options(**config.optimizer)
    tx = optimizer.make_optimizer(options, params, model)

    def init():
        return TrainState(zero, params, buffers, tx.init(params), zero)

    def shape(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)

    update = functools.partial(
        step.train_step, object_sums=object_sums, tx=tx, loss=LossOptions(**config.loss), seed=config.seed
    )
    split = sharding.batch_sharding(mesh)
    return Program(
        mesh=mesh,
        model=model,
        rate=optimizer.schedule(options),
        state=jax.tree.map(shape, jax.eval_shape(init)),
        init=jax.jit(init, out_shardings=everywhere),
        step=jax.jit(update, in_shardings=(everywhere, split), out_shardings=everywhere, donate_argnums=0),
    )


def object_sums(params, buffers, batch, places_B, key):
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
    if model == 'stand-in':
        loop.build, loop.Evaluation = build, Evaluation
    try:
        if port:
            cluster.join(False, f'127.0.0.1:{port}', int(processes), int(process), 60)
        loop.train(quick(int(steps)), workdir)
    except SamjaxError as error:
        cluster.leave(f'error: {error}')
    except loop.Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(stopped.code)


if __name__ == '__main__':
    main(*sys.argv[1:])
