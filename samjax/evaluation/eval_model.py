"""The model under evaluation: the newest checkpoint of a run, on each device of this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from samjax.inference.predictor import Predictor
from samjax.model.params import digest
from samjax.model.sam import sam_config
from samjax.training import checkpoints


class EvalModel(NamedTuple):
    """What is evaluated."""

    config: ConfigDict
    workdir: Path
    step: int
    digest: str  # of the parameters
    predictors: list[Predictor]  # one for each device

    @property
    def stamp(self) -> dict:
        """What its answers depend on, for a journal."""
        return {'checkpoint': self.digest, 'model': json.loads(self.config.model.to_json())}


def open_eval_model(workdir: str, config: ConfigDict) -> EvalModel:
    """Raises SamjaxError if there is no checkpoint that fits the config."""
    params, buffers, step = checkpoints.restore_params(workdir, config)
    return EvalModel(config, Path(workdir), step, digest(params), on_devices(config, params, buffers))


def on_devices(config: ConfigDict, params, buffers) -> list[Predictor]:
    """A predictor on each of the first `config.eval.devices` devices of this process; 0 is all."""
    model, devices = sam_config(**config.model), jax.local_devices()[: config.eval.devices or None]
    return [Predictor(model, *jax.device_put((params, buffers), device)) for device in devices]
