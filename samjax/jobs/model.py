"""The model of a job: read once, put on each device."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self

import jax
from flax import nnx

from samjax.convert import convert
from samjax.inference.predictor import Predictor
from samjax.model.config import SamConfig, size_name
from samjax.model.params import digest


class JobModel(NamedTuple):
    """A checkpoint in the memory of the host."""

    config: SamConfig
    params: nnx.State
    buffers: nnx.State
    digest: str  # of the parameters

    @classmethod
    def read(cls, path: Path) -> Self:
        """Of whatever `samjax convert` reads.  Raises SamjaxError if it cannot be read or is no SAM."""
        config, params, buffers = convert.read_states(path)
        return cls(config, params, buffers, digest(params))

    def predictor(self, device: jax.Device) -> Predictor:
        """A predictor whose parameters are on `device`."""
        return Predictor(self.config, *jax.device_put((self.params, self.buffers), device))

    @property
    def fingerprint(self) -> dict:
        """What files made with this model depend on, for JSON."""
        return {'size': [size_name(self.config), *self.config.image_size], 'digest': self.digest}
