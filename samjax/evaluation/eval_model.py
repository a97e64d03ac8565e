"""The model under evaluation: the newest checkpoint of a run, on each device of this process."""

from __future__ import annotations

import dataclasses

import jax
from ml_collections import ConfigDict

from samjax.checkpoints import run
from samjax.evaluation.eval_config import EvalConfig, EvalData
from samjax.inference.predictor import Predictor
from samjax.model import config as model_config
from samjax.model.config import SamConfig
from samjax.model.params import digest


@dataclasses.dataclass(frozen=True)
class EvalModel:
    """The model under evaluation, and the options of its evaluation."""

    sam: SamConfig
    dtype: str  # of activations
    config: EvalConfig
    data: EvalData
    seed: int
    step: int
    digest: str  # of the parameters
    predictors: list[Predictor]  # for each device

    @classmethod
    def from_params(cls, config: ConfigDict, params, buffers, step: int, params_digest: str) -> EvalModel:
        """The model with these parameters, with the options of `config`."""
        sam, _, runtime = model_config.from_options(**config.model)
        eval_config, data = EvalConfig(**config.eval), EvalData.from_config(config)
        predictors = on_devices(sam, runtime.dtype, params, buffers, eval_config.devices)
        return cls(sam, runtime.dtype, eval_config, data, config.seed, step, params_digest, predictors)

    @property
    def fingerprint(self) -> dict:
        """What its predictions depend on, for a journal."""
        return {'checkpoint': self.digest, 'model': dataclasses.asdict(self.sam), 'dtype': self.dtype}


def open_eval_model(workdir: str, config: ConfigDict) -> EvalModel:
    """Raises SamjaxError if there is no checkpoint that fits the config."""
    params, buffers, step = run.restore_params(workdir, config)
    return EvalModel.from_params(config, params, buffers, step, digest(params))


def on_devices(sam: SamConfig, dtype: str, params, buffers, count: int) -> list[Predictor]:
    """A predictor on each of the first `count` devices of this process; 0 is all."""
    devices = jax.local_devices()[: count or None]
    return [Predictor(sam, *jax.device_put((params, buffers), device), dtype) for device in devices]
