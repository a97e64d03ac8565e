"""A predictor from any checkpoint on disk."""

from __future__ import annotations

import os

import jax

from samjax.convert import convert
from samjax.inference.predictor import Predictor


def load(path: str | os.PathLike, dtype: str = 'float32') -> Predictor:
    """A predictor with the weights at `path`: the newest checkpoint of a run, .pth, .pt, .bin, .safetensors, or a
    folder of Hugging Face.

    dtype: of activations, 'float32' or 'bfloat16'.

    Raises:
        SamjaxError: there is nothing at `path`, it cannot be read, or it is no SAM.
    """
    config, *states = convert.read_states(path)
    return Predictor(config, *jax.device_put(states), dtype)
