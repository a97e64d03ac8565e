"""The compiled training step of a config on a mesh: what the loop runs and the preflight compiles."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from samjax.distributed import sharding
from samjax.model import config as model_config
from samjax.model.config import SamConfig
from samjax.model.params import ParamRules, abstract_state
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
    step: Callable  # (state, batch) -> (state, metrics); donates the old state


def build(config: ConfigDict, devices=None) -> CompiledTrainStep:
    """The training step of `config` on `devices`, by default all of the job; compiled at its first call.

    Raises:
        SamjaxError: an option is wrong, or the batch or the mesh does not fit the devices.
    """
    model, regularization, runtime = model_config.from_options(**config.model)
    encoder, mesh_config = model.encoder, sharding.MeshConfig(**config.mesh)
    mesh = sharding.make_mesh(mesh_config, encoder.width, encoder.num_heads, devices)
    sharding.check_batch(config.train.batch_size, config.train.grad_accum_steps, mesh)
    simulation, loss = ClickSimulation(**config.prompts), LossConfig(**config.loss)
    simulation.chunk_size(config.data.max_objects)
    optimizer_config = optimizer.OptimizerConfig(**config.optimizer)
    runtime = dataclasses.replace(runtime, attention=sharding.attention(mesh))
    graphdef, params, _ = abstract_state(model, regularization, runtime)

    rules = ParamRules(model)
    tx = optimizer.make_optimizer(optimizer_config, params, rules)
    init = functools.partial(init_state, model, tx, config.seed)
    shapes = jax.eval_shape(init)
    shardings = sharding.state_shardings(shapes, mesh, rules)
    gradients = functools.partial(summed_gradients, graphdef=graphdef, simulation=simulation, loss=loss)
    gradients = accumulate_gradients(gradients, config.train.grad_accum_steps)
    gradients = sharding.data_parallel(gradients, params, mesh, rules, runtime.dtype)
    step = functools.partial(train_step, summed_gradients=gradients, tx=tx, loss=loss, seed=config.seed)
    return CompiledTrainStep(
        mesh=mesh,
        model=model,
        rate=optimizer.schedule(optimizer_config),
        state=jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings),
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(
            step,
            in_shardings=(shardings, sharding.batch_sharding(mesh)),
            out_shardings=(shardings, sharding.replicated(mesh)),
            donate_argnums=0,
        ),
    )
