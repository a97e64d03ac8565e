"""A SAM of 24 thousand parameters: its config, its training step, and it as the model under evaluation."""

import dataclasses
import functools

import optax

from samjax.config import get_config
from samjax.evaluation.eval_model import EvalModel
from samjax.model.params import abstract_state
from samjax.training import step
from samjax.training.click_simulation import ClickSimulation
from samjax.training.losses import LossConfig


def tiny_run_config():
    config = get_config()
    config.model.size = 'test'
    config.model.image_size = (32, 48)
    config.data.synthetic_eval_images = 2
    config.model.dtype = 'float32'
    config.eval.clicks = (1, 3)
    config.eval.prompt_batch_size = 3
    config.eval.num_visualizations = 1
    return config


def tiny_eval_model(params, devices=1, path='scenes', cache='~/.cache/samjax'):
    config = tiny_run_config()
    config.eval.devices = devices
    config.eval.points_per_side = 4
    config.data.eval_path = str(path)
    config.data.cache = str(cache)
    return EvalModel.from_params(config, *params, step=7, params_digest='digest')


SIMULATION = dataclasses.replace(ClickSimulation(**get_config().prompts), rounds=5, objects_per_chunk=1)


LOSS = LossConfig(**get_config().loss)


TX = optax.adam(3e-3)


def make_step(config):
    sums = functools.partial(
        step.summed_gradients, graphdef=abstract_state(config)[0], simulation=SIMULATION, loss=LOSS
    )
    return functools.partial(step.train_step, summed_gradients=sums, tx=TX, loss=LOSS, seed=0)
