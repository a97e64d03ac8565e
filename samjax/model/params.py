"""Parameters of a SAM: shapes, initial values, paths, the rule that training has for each, and a digest of all."""

from __future__ import annotations

import hashlib

import jax
import numpy as np
from flax import nnx

from samjax.model import mask_decoder, prompt_encoder
from samjax.model.config import SamConfig
from samjax.model.encoders import vit_training
from samjax.model.layers import Buffer
from samjax.model.param_rules import ParamRule
from samjax.model.runtime import Regularization, Runtime
from samjax.model.sam import Sam

IMAGE_ENCODER = 'image_encoder'  # the first name of the paths of the encoder's parameters


def abstract_state(
    config: SamConfig, regularization: Regularization = Regularization(), runtime: Runtime = Runtime()
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """(graphdef, params, buffers) of the model, with shapes in place of arrays; allocates nothing."""
    sam = nnx.eval_shape(lambda: Sam(config, nnx.Rngs(0), regularization, runtime))
    return nnx.split(sam, nnx.Param, Buffer)


def init_params(config: SamConfig, seed: int) -> tuple[nnx.State, nnx.State]:
    """(params, buffers) initialized from the seed."""
    _, params, buffers = nnx.split(Sam(config, nnx.Rngs(seed)), nnx.Param, Buffer)
    return params, buffers


def path_names(path) -> tuple[str, ...]:
    """A key path of an nnx.State as names: ('image_encoder', 'neck', 'norm1', ...), without the closing 'value'."""
    names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
    return names[:-1] if names[-1] == 'value' else names


class ParamRules:
    """The rule of each parameter of a model, by its path."""

    def __init__(self, config: SamConfig):
        self.num_layers = config.encoder.depth + 2  # embeddings, blocks, everything behind
        self._by_module = {
            IMAGE_ENCODER: vit_training.param_rules(config.encoder),
            'prompt_encoder': prompt_encoder.PARAM_RULES,
            'mask_decoder': mask_decoder.PARAM_RULES,
        }

    def of(self, names: tuple[str, ...]) -> ParamRule:
        """The rule of the parameter whose path ends the path `names`, as those of optimizer states do.

        Raises:
            LookupError: not exactly one rule matches; a module lacks a rule for one of its parameters.
        """
        start = next((i for i, name in enumerate(names) if name in self._by_module), None)
        path = names if start is None else names[start:]
        rules = () if start is None else self._by_module[path[0]]
        matching = [rule for rule in rules if rule.matches('/'.join(path[1:]))]
        if len(matching) != 1:
            raise LookupError(f'{len(matching)} rules match the parameter {"/".join(path)}, not one: see ParamRule')
        return matching[0]

    def is_param(self, names: tuple[str, ...]) -> bool:
        """Whether a path of a training state is that of a parameter or of an optimizer state of one."""
        return any(name in self._by_module for name in names)


def digest(params: nnx.State) -> str:
    """32 hexadecimal digits, the same for the same names, shapes and values."""
    sha = hashlib.sha256()
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(params), key=lambda entry: str(entry[0])):
        array = np.asarray(leaf)
        sha.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()[:32]
