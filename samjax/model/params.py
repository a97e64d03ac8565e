"""Parameters of a model: their shapes, fresh values, the names of their paths, and a digest of their values."""

from __future__ import annotations

import hashlib

import jax
import numpy as np
from flax import nnx

from samjax.model.layers import Buffer
from samjax.model.sam import Sam, SamConfig


def abstract_state(config: SamConfig) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """(graphdef, params, buffers) of the model, with shapes for arrays; allocates nothing."""
    return nnx.split(nnx.eval_shape(lambda: Sam(config, nnx.Rngs(0))), nnx.Param, Buffer)


def init_params(config: SamConfig, seed: int) -> tuple[nnx.State, nnx.State]:
    """Fresh (params, buffers)."""
    _, params, buffers = nnx.split(Sam(config, nnx.Rngs(seed)), nnx.Param, Buffer)
    return params, buffers


def path_names(path) -> tuple[str, ...]:
    """A key path of an nnx.State as names: ('image_encoder', 'neck', 'norm1', ...), without the closing 'value'."""
    names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
    return names[:-1] if names[-1] == 'value' else names


def digest(params: nnx.State) -> str:
    """32 hexadecimal digits, the same for the same names, shapes and values."""
    sha = hashlib.sha256()
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(params), key=lambda entry: str(entry[0])):
        array = np.asarray(leaf)
        sha.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()[:32]
