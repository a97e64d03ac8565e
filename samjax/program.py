"""The compiled training step of a config on a mesh: what the loop runs and the preflight compiles."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from samjax import optimizer, sharding
from samjax.losses import LossOptions
from samjax.model.sam import SamConfig, abstract, sam_config
from samjax.prompts import Simulation
from samjax.step import TrainState, in_turns, init_state, object_sums, train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """Functions under jit, and the shapes and shardings they are for."""

    mesh: Mesh
    model: SamConfig
    rate: Callable  # step -> learning rate
    state: TrainState  # shapes, dtypes and shardings
    init: Callable[[], TrainState]
    step: Callable  # (state, batch) -> (state, metrics); takes the memory of the old state


def build(config: ConfigDict, devices=None) -> Program:
    """The program of `config` on `devices`, by default all of the job; nothing is compiled yet.

    Raises:
        SamjaxError: an option is wrong, or the batch or the mesh does not fit the devices.
    """
    model = sam_config(**config.model)
    mesh = sharding.make_mesh(sharding.MeshOptions(**config.mesh), model.width, model.heads, devices)
    sharding.check_batch(config.train.batch, config.train.turns, mesh)
    model = dataclasses.replace(model, attend=sharding.attention(mesh))
    graphdef, params, _ = abstract(model)

    options, loss = optimizer.Options(**config.optimizer), LossOptions(**config.loss)
    tx = optimizer.make_optimizer(options, params, model)
    init = functools.partial(init_state, model, tx, config.seed)
    shapes = jax.eval_shape(init)
    shardings = sharding.state_shardings(shapes, mesh)
    sums = functools.partial(object_sums, graphdef=graphdef, simulation=Simulation(**config.prompts), loss=loss)
    shared = sharding.shared_out(in_turns(sums, config.train.turns), params, mesh, model.dtype)
    step = functools.partial(train_step, object_sums=shared, tx=tx, loss=loss, seed=config.seed)
    return Program(
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
