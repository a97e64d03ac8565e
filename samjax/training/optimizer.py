"""AdamW or Muon with warm-up, step decay and a lower rate for early encoder blocks (arXiv 2304.02643, appendix A)."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from samjax.errors import SamjaxError, check_option, is_whole
from samjax.model.param_rules import LAST_LAYER, MatrixAxes, ParamRule
from samjax.model.params import ParamRules, path_names

EPSILON = 1e-8
# Muon's update of a matrix has orthonormal rows or columns; this fraction of sqrt(longer side) gives it the root mean
# square that Adam's has, so that both take the same learning rate (arXiv 2502.16982, section 2.2).
MUON_RMS = 0.2
MUON_MOMENTUM = 0.95
SCALE_BY = ('adamw', 'muon')
WEIGHT_DECAY_ON = ('kernels', 'all')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The section `optimizer` of samjax.config, which explains the fields.

    Raises:
        SamjaxError: a value is unknown or not possible.
    """

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

    def __post_init__(self):
        for name, choices in (('name', SCALE_BY), ('weight_decay_on', WEIGHT_DECAY_ON)):
            if getattr(self, name) not in choices:
                raise SamjaxError(
                    f'optimizer.{name}={getattr(self, name)!r} is unknown: set it to one of {", ".join(choices)}'
                )
        for name, is_possible, possible in (
            ('lr', lambda x: 0 < x < math.inf, 'a number over 0'),
            ('warmup_steps', lambda n: n >= 0, '0 or more'),
            (
                'milestones',
                lambda steps: all(is_whole(n) and 0 <= n < 2**31 for n in steps),
                'steps, such as (120000,)',
            ),
            ('timescale', lambda n: n >= 0, '0 or more'),
            ('b1', lambda x: 0 <= x < 1, '0 or more, less than 1'),
            ('b2', lambda x: 0 <= x < 1, '0 or more, less than 1'),
            ('weight_decay', lambda x: 0 <= x < math.inf, '0 or more'),
            ('layer_decay', lambda x: 0 < x <= 1, 'more than 0 and at most 1'),
            ('cooldown', is_step_range, '(first, last) step of which the last comes later; (0, 0) is none'),
            ('clip_norm', lambda x: 0 <= x < math.inf, '0, which is no clipping, or more'),
        ):
            check_option(f'optimizer.{name}', getattr(self, name), is_possible, possible)


def make_optimizer(config: OptimizerConfig, params, rules: ParamRules) -> optax.GradientTransformation:
    """The update rule for `params`, an nnx.State of arrays or shapes.

    The layer's factor multiplies the weight decay too, as parameter groups do in the code of MAE and ViTDet.
    """
    scale_by = {'adamw': scale_by_adam, 'muon': scale_by_muon_or_adam}
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm > 0 else []
    return optax.chain(
        *clip,
        scale_by[config.name](config, params, rules),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask(params, rules, config.weight_decay_on)),
        _scale_each(layer_factors(params, rules, config.layer_decay)),
        optax.scale_by_learning_rate(schedule(config)),
    )


def is_step_range(steps: tuple[int, int]) -> bool:
    """Whether it is (0, 0), or (first, last) step with the first before the last."""
    first, last = steps if len(steps) == 2 else (None, None)
    return is_whole(first) and is_whole(last) and (0 <= first < last < 2**31 or first == last == 0)


def scale_by_adam(config: OptimizerConfig, params, rules: ParamRules) -> optax.GradientTransformation:
    del params, rules  # all parameters are treated alike
    return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=EPSILON)


def scale_by_muon_or_adam(config: OptimizerConfig, params, rules: ParamRules) -> optax.GradientTransformation:
    """Muon (arXiv 2502.16982) for the matrices of linear layers and convolutions, Adam for everything else."""

    def axes(matrices):
        return _map_rules(lambda rule, p: muon_axes(rule.matrix, p.ndim), rules, matrices)

    def rms_factor(rule: ParamRule, p) -> float:
        if rule.matrix is None:
            return 1.0
        sides = (math.prod(p.shape[axis] for axis in axes) for axes in rule.matrix)
        return MUON_RMS * max(sides) ** 0.5

    labels = _map_rules(lambda rule, p: 'adam' if rule.matrix is None else 'muon', rules, params)
    muon = scale_by_muon(beta=MUON_MOMENTUM, weight_dimension_numbers=axes)
    adam = scale_by_adam(config, params, rules)
    return optax.chain(
        optax.partition({'muon': muon, 'adam': adam}, labels), _scale_each(_map_rules(rms_factor, rules, params))
    )


def muon_axes(matrix: MatrixAxes, ndim: int) -> MuonDimensionNumbers:
    """The same axes counted from the first, as optax wants them."""
    return MuonDimensionNumbers(*(tuple(ndim + axis for axis in axes) for axes in matrix))


def schedule(config: OptimizerConfig) -> optax.Schedule:
    """Updates done -> learning rate.

    Linear up to `lr`; then a tenth after each milestone, or with a timescale t 1 / sqrt(1 + n / t) after n steps more
    (arXiv 2106.04560, appendix B); at last linear down to 0.
    """
    first, last = config.cooldown

    def rate(count):
        warm = jnp.minimum(1.0, (count + 1) / max(config.warmup_steps, 1))
        passed = jnp.sum(count >= jnp.asarray(config.milestones, jnp.int32))
        long = jnp.maximum(count - config.warmup_steps, 0) / config.timescale if config.timescale else 0.0
        left = jnp.clip((last - count) / (last - first), 0, 1) if last > first else 1.0
        return config.lr * warm * 0.1**passed * (1 + long) ** -0.5 * left

    return rate


def decay_mask(params, rules: ParamRules, weight_decay_on: str):
    """`params` with True where weight decay pulls: on 'kernels', the weights of matrix products, or on 'all'."""
    return _map_rules(lambda rule, p: weight_decay_on == 'all' or rule.matrix is not None, rules, params)


def layer_factors(params, rules: ParamRules, layer_decay: float):
    """`params` with layer_decay^(last layer - layer); an array, along stacked axes, for stacked blocks."""
    last = rules.num_layers - 1

    def factor(rule: ParamRule, p):
        layer = np.asarray(last if rule.layer is LAST_LAYER else rule.layer)
        layer = layer.reshape(*layer.shape, *[1] * (p.ndim - layer.ndim)) if layer.ndim else layer
        return np.float32(layer_decay ** (float(last) - layer))

    return _map_rules(factor, rules, params)


def _map_rules(function, rules: ParamRules, params):
    """`params` with `function` of its rule and itself in place of each parameter."""
    return jax.tree_util.tree_map_with_path(lambda path, p: function(rules.of(path_names(path)), p), params)


def _scale_each(factors) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, factor: u * factor, updates, factors))
