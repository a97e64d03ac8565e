"""AdamW or Muon with warm-up, step decay and a lower rate for early encoder blocks (arXiv 2304.02643, appendix A)."""

from __future__ import annotations

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from samjax.errors import SamjaxError
from samjax.model.params import path_names
from samjax.model.sam import SamConfig

EPSILON = 1e-8
# Muon's update of a matrix has orthonormal rows or columns; this share of sqrt(longer side) gives it the root mean
# square that Adam's has, so that both take the same learning rate (arXiv 2502.16982, section 2.2).
MUON_RMS = 0.2
MUON_MOMENTUM = 0.95
# How many first axes of the encoder's blocks number the blocks.
STACKED = {'windowed_blocks': 2, 'global_blocks': 1}
# Names (last part of the path) of the parameters that weight decay pulls at.  'kernels' are the weights of matrix
# products and convolutions: no norms, biases, tokens, embeddings and positions.
DECAYED = {
    'kernels': re.compile(r'kernel|w_\w+|project_DC|smooth_33CC'),
    'all': re.compile(r'\w+'),
}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The section `optimizer` of configs/default.py, which explains the fields."""

    name: str
    lr: float
    warmup_steps: int
    milestones: tuple[int, ...]
    timescale: int
    cooldown: tuple[int, int]
    b1: float
    b2: float
    weight_decay: float
    weight_decay_on: str
    layer_decay: float
    clip_norm: float


def make_optimizer(options: OptimizerConfig, params, model: SamConfig) -> optax.GradientTransformation:
    """The update rule for `params`, an nnx.State of arrays or shapes, of a `model`.

    The layer's factor multiplies the weight decay too, as parameter groups do in the original lineage.

    Raises:
        SamjaxError: `options.name` or `options.weight_decay_on` is not known, or the cooldown ends before it begins.
    """
    rules = {'adamw': scale_by_adam, 'muon': scale_by_muon_or_adam}
    if options.name not in rules:
        raise SamjaxError(f'optimizer.name={options.name!r} is not known: set it to one of {", ".join(rules)}')
    clip = [optax.clip_by_global_norm(options.clip_norm)] if options.clip_norm > 0 else []
    rate = schedule(options)
    return optax.chain(
        *clip,
        rules[options.name](options, params),
        optax.add_decayed_weights(options.weight_decay, mask=decay_mask(params, options.weight_decay_on)),
        _scale_each(layer_factors(params, model, options.layer_decay)),
        optax.scale_by_learning_rate(rate),
    )


def scale_by_adam(options: OptimizerConfig, params) -> optax.GradientTransformation:
    del params  # all are treated alike
    return optax.scale_by_adam(b1=options.b1, b2=options.b2, eps=EPSILON)


def scale_by_muon_or_adam(options: OptimizerConfig, params) -> optax.GradientTransformation:
    """Muon (arXiv 2502.16982) for the matrices of linear layers and convolutions, Adam for everything else."""

    def axes(tree):
        return jax.tree_util.tree_map_with_path(lambda path, p: matrix_axes(path_names(path), p.ndim), tree)

    def rms_factor(path, p) -> float:
        if not is_matrix(path_names(path)):
            return 1.0
        rule = matrix_axes(path_names(path), p.ndim)
        sides = (math.prod(p.shape[i] for i in side) for side in (rule.reduction_axis, rule.output_axis))
        return MUON_RMS * max(sides) ** 0.5

    labels = jax.tree_util.tree_map_with_path(lambda path, _: 'muon' if is_matrix(path_names(path)) else 'adam', params)
    muon = scale_by_muon(beta=MUON_MOMENTUM, weight_dimension_numbers=axes)
    adam = scale_by_adam(options, params)
    return optax.chain(
        optax.partition({'muon': muon, 'adam': adam}, labels),
        _scale_each(jax.tree_util.tree_map_with_path(rms_factor, params)),
    )


def is_matrix(names: tuple[str, ...]) -> bool:
    """Whether the parameter is the weight of a matrix product or convolution."""
    return bool(DECAYED['kernels'].fullmatch(names[-1]))


def matrix_axes(names: tuple[str, ...], ndim: int) -> MuonDimensionNumbers:
    """Which axes of such a weight its inputs lie along, and which its outputs; queries, keys and values are apart.

    Encoder blocks are stacked along the first axes, which belong to neither.
    """
    lead = STACKED.get(names[1], 0) if len(names) > 1 else 0
    match names:
        case (*_, 'w_qkv_DsAE'):
            return MuonDimensionNumbers((lead,), (lead + 2, lead + 3))
        case (*_, 'w_q_CAE' | 'w_k_CAE' | 'w_v_CAE'):
            return MuonDimensionNumbers((0,), (1, 2))
        case (*_, 'upscale1' | 'upscale2', 'kernel'):
            return MuonDimensionNumbers((2,), (0, 1, 3))
        case _:
            return MuonDimensionNumbers(tuple(range(lead, ndim - 1)), (ndim - 1,))


def schedule(options: OptimizerConfig) -> optax.Schedule:
    """Updates done so far -> learning rate.

    Linear up to `lr`; then a tenth after each milestone, or with a timescale t 1 / sqrt(1 + n / t) after n steps more
    (arXiv 2106.04560, appendix B); at last linear down to 0.
    """
    first, last = options.cooldown
    if last < first:
        raise SamjaxError(f'optimizer.cooldown={options.cooldown} ends before it begins: give (first, last) step')

    def rate(count):
        warm = jnp.minimum(1.0, (count + 1) / max(options.warmup_steps, 1))
        passed = jnp.sum(count >= jnp.asarray(options.milestones, jnp.int32))
        long = jnp.maximum(count - options.warmup_steps, 0) / options.timescale if options.timescale else 0.0
        left = jnp.clip((last - count) / (last - first), 0, 1) if last > first else 1.0
        return options.lr * warm * 0.1**passed * (1 + long) ** -0.5 * left

    return rate


def decay_mask(params, decay: str):
    """`params` with True where weight decay pulls at the parameter; `decay` is a row of `DECAYED`."""
    if decay not in DECAYED:
        raise SamjaxError(f'optimizer.weight_decay_on={decay!r} is not known: set it to one of {", ".join(DECAYED)}')
    pulled = DECAYED[decay].fullmatch
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(pulled(path_names(path)[-1])), params)


def layer_factors(params, model: SamConfig, layer_decay: float):
    """`params` with layer_decay^(depth + 1 - layer): embeddings are layer 0, block i is i + 1, the rest depth + 1.

    A number for most parameters, and for the encoder's blocks an array that has one for each block.
    """
    layer_Sn = 1 + np.arange(model.depth).reshape(model.stages, -1)

    def factor(path, p):
        match path_names(path):
            case ('image_encoder', 'pos_embed' | 'patch_embed', *_):
                layer = 0
            case ('image_encoder', 'windowed_blocks', *_):
                layer = layer_Sn[:, :-1].reshape(*p.shape[:2], *[1] * (p.ndim - 2))
            case ('image_encoder', 'global_blocks', *_):
                layer = layer_Sn[:, -1].reshape(*p.shape[:1], *[1] * (p.ndim - 1))
            case _:
                layer = model.depth + 1
        return np.float32(layer_decay ** (model.depth + 1.0 - layer))

    return jax.tree_util.tree_map_with_path(factor, params)


def _scale_each(factors) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, factor: u * factor, updates, factors))
