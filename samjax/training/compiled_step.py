"""The compiled training step of a config on a mesh: what the loop runs and the preflight compiles."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from samjax.distributed import sharding
from samjax.model.params import abstract_state
from samjax.model.sam import SamConfig, sam_config
from samjax.training import optimizer
from samjax.training.click_simulation import ClickSimulation
from samjax.training.losses import LossConfig
from samjax.training.step import TrainState, accumulate_gradients, init_state, summed_gradients, train_step


@dataclasses.dataclass(frozen=True)
class CompiledTrainStep:
    """Functions under jit, and the shapes and shardings they are for."""

    mesh: Mesh
    model: SamConfig
    rate: Callable  # step -> learning rate
    state: TrainState  # shapes, dtypes and shardings
    init: Callable[[], TrainState]
    step: Callable  # (state, batch) -> (state, metrics); takes the memory of the old state


def build(config: ConfigDict, devices=None) -> CompiledTrainStep:
    """The program of `config` on `devices`, by default all of the job; nothing is compiled yet.

    Raises:
        SamjaxError: an option is wrong, or the batch or the mesh does not fit the devices.
    """
    model = sam_config(**config.model)
    mesh = sharding.make_mesh(sharding.MeshConfig(**config.mesh), model.width, model.heads, devices)
    sharding.check_batch(config.train.batch_size, config.train.grad_accum_steps, mesh)
    model = dataclasses.replace(model, attend=sharding.attention(mesh))
    graphdef, params, _ = abstract_state(model)

    options, loss = optimizer.OptimizerConfig(**config.optimizer), LossConfig(**config.loss)
    tx = optimizer.make_optimizer(options, params, model)
    init = functools.partial(init_state, model, tx, config.seed)
    shapes = jax.eval_shape(init)
    shardings = sharding.state_shardings(shapes, mesh)
    sums = functools.partial(
        summed_gradients, graphdef=graphdef, simulation=ClickSimulation(**config.prompts), loss=loss
    )
    shared = sharding.data_parallel(
        accumulate_gradients(sums, config.train.grad_accum_steps), params, mesh, model.dtype
    )
    step = functools.partial(train_step, summed_gradients=shared, tx=tx, loss=loss, seed=config.seed)
    return CompiledTrainStep(
        mesh=mesh,
        model=model,
        rate=optimizer.schedule(options),
        state=jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings),
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(
            step,
            in_shardings=(shardings, sharding.batch_sharding(mesh)),
            out_shardings=(shardings, sharding.replicated(mesh)),
            donate_argnums=0,
        ),
    )
