"""AdamW with warm-up, step decay and a lower rate for early encoder blocks (arXiv 2304.02643, appendix A)."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import optax

from samjax.errors import SamjaxError

EPSILON = 1e-8
# Names (last part of the path) of the parameters that weight decay pulls at.  'kernels' are the weights of matrix
# products and convolutions: no norms, biases, tokens, embeddings and positions.
DECAYED = {
    'kernels': re.compile(r'kernel|w_\w+|project_DC|smooth_33CC'),
    'all': re.compile(r'\w+'),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """The section `optimizer` of configs/default.py, which explains the fields."""

    lr: float
    warmup: int
    milestones: tuple[int, ...]
    b1: float
    b2: float
    weight_decay: float
    decay: str
    layer_decay: float
    clip: float


def make_optimizer(options: Options, params, depth: int) -> optax.GradientTransformation:
    """The update rule for `params`, an nnx.State of arrays or shapes, with `depth` encoder blocks.

    The layer's factor multiplies the weight decay too, as parameter groups do in the original lineage.

    Raises:
        SamjaxError: `options.decay` is not known.
    """
    clip = [optax.clip_by_global_norm(options.clip)] if options.clip > 0 else []
    rate = schedule(options.lr, options.warmup, options.milestones)
    return optax.chain(
        *clip,
        optax.scale_by_adam(b1=options.b1, b2=options.b2, eps=EPSILON),
        optax.add_decayed_weights(options.weight_decay, mask=decay_mask(params, options.decay)),
        _scale_each(layer_factors(params, depth, options.layer_decay)),
        optax.scale_by_learning_rate(rate),
    )


def schedule(lr: float, warmup: int, milestones: tuple[int, ...]) -> optax.Schedule:
    """Updates done so far -> learning rate: linear up to `lr` in `warmup` updates, a tenth after each milestone."""

    def rate(count):
        warm = jnp.minimum(1.0, (count + 1) / max(warmup, 1))
        passed = jnp.sum(count >= jnp.asarray(milestones, jnp.int32))
        return lr * warm * 0.1**passed

    return rate


def decay_mask(params, decay: str):
    """`params` with True where weight decay pulls at the parameter; `decay` is a row of `DECAYED`."""
    if decay not in DECAYED:
        raise SamjaxError(f'optimizer.decay={decay!r} is not known: set it to one of {", ".join(DECAYED)}')
    pulled = DECAYED[decay].fullmatch
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(pulled(parts(path)[-1])), params)


def layer_factors(params, depth: int, layer_decay: float):
    """`params` with layer_decay^(depth + 1 - layer): embeddings are layer 0, block i is i + 1, the rest depth + 1."""

    def factor(path, _) -> float:
        match parts(path):
            case ('image_encoder', 'pos_embed' | 'patch_embed', *_):
                layer = 0
            case ('image_encoder', 'blocks', index, *_):
                layer = int(index) + 1
            case _:
                layer = depth + 1
        return layer_decay ** (depth + 1 - layer)

    return jax.tree_util.tree_map_with_path(factor, params)


def parts(path) -> tuple[str, ...]:
    """A key path of an nnx.State as names: ('image_encoder', 'blocks', '0', ...), without the closing 'value'."""
    names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
    return names[:-1] if names[-1] == 'value' else names


def _scale_each(factors) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, factor: u * factor, updates, factors))
