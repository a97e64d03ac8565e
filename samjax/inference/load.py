"""A predictor from any checkpoint on disk."""

from __future__ import annotations

import os
import pathlib

import jax

from samjax.convert import convert, weights
from samjax.inference.predictor import Predictor


def load(path: str | os.PathLike, dtype: str = 'float32') -> Predictor:
    """A predictor with the weights at `path`: the newest checkpoint of a run, .pth, .pt, .bin, .safetensors, or a
    folder of Hugging Face.

    dtype: of activations, 'float32' or 'bfloat16'.

    Raises:
        SamjaxError: there is nothing at `path`, it cannot be read, or it is no SAM.
    """
    arrays, config, _ = convert.read(pathlib.Path(path), force=False)
    params, buffers = jax.device_put(weights.to_states(arrays, config))
    return Predictor(config, params, buffers, dtype)
