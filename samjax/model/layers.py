"""Layers of both encoder and decoder, initialized as in PyTorch (the reference code has no scheme of its own)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name


class Buffer(nnx.Variable):
    """A fixed array that belongs to the model and its checkpoints but is never trained."""


def uniform(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> nnx.Param:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what torch gives weights and biases of linear and conv layers."""
    bound = fan_in**-0.5
    return nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound))


def normal(rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param:
    """N(0, 1): what torch gives embeddings."""
    return nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))


def bias_like(bias: jax.Array, ndim: int) -> jax.Array:
    """`bias` with leading axes of length 1 up to `ndim` axes."""
    return bias.reshape((1,) * (ndim - bias.ndim) + bias.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_f32(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """jnp.einsum of two arrays of one type, summed and returned in float32; so are the products of its gradient.

    On CPUs only such products of bfloat16 use the units for it (AVX-512 BF16, AMX): XLA widens the operands of one that
    returns bfloat16.  Each letter of `spec` occurs in at least two of its three terms, with the same length.
    """
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _einsum_f32_forward(spec, x, y):
    return einsum_f32(spec, x, y), (x, y)


def _einsum_f32_backward(spec, operands, g):
    (x, y), (first, second, out) = operands, spec.replace('->', ',').split(',')
    g = g.astype(x.dtype)
    dx, dy = einsum_f32(f'{out},{second}->{first}', g, y), einsum_f32(f'{first},{out}->{second}', x, g)
    return dx.astype(x.dtype), dy.astype(y.dtype)


einsum_f32.defvjp(_einsum_f32_forward, _einsum_f32_backward)


def linear(x: jax.Array, kernel_IO: jax.Array, bias_O: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x W + b over the last axis, multiplied in `dtype`, added in float32 and returned in `dtype`."""
    lead = 'abcdefgh'[: x.ndim - 1]
    y = einsum_f32(f'{lead}I,IO->{lead}O', x.astype(dtype), kernel_IO.astype(dtype))
    return (y + bias_like(bias_O.astype(jnp.float32), y.ndim)).astype(dtype)


class Linear(nnx.Module):
    """y = x W + b over the last axis."""

    def __init__(self, inputs: int, outputs: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.kernel = uniform(rngs, (inputs, outputs), inputs)
        self.bias = uniform(rngs, (outputs,), inputs)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        return linear(x, self.kernel[...], self.bias[...], self.dtype)


class Mlp(nnx.Module):
    """Linear layers with `activation` between them; `widths` are all widths from input to output."""

    def __init__(self, widths: tuple[int, ...], activation, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.layers = nnx.List([Linear(i, o, dtype, rngs) for i, o in zip(widths, widths[1:], strict=False)])
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers[:-1]:
            x = self.activation(checkpoint_name(layer(x), 'hidden'))
        return self.layers[-1](x)


class LayerNorm(nnx.Module):
    """Layer normalisation over channels, in float32 with a two-pass variance, returned in `dtype`.

    The reference uses eps 1e-6 everywhere but in the two-way transformer, where it is torch's 1e-5.
    """

    def __init__(self, channels: int, eps: float, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        y = x * bias_like(self.scale[...], x.ndim) + bias_like(self.bias[...], x.ndim)
        return y.astype(self.dtype)


class PatchConv(nnx.Module):
    """Convolution whose stride equals its kernel: (..., H, W, I) -> (..., H/p, W/p, O)."""

    def __init__(self, patch: int, inputs: int, outputs: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        fan_in = patch * patch * inputs
        self.kernel = uniform(rngs, (patch, patch, inputs, outputs), fan_in)
        self.bias = uniform(rngs, (outputs,), fan_in)
        self.patch = patch
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        *lead, height, width, channels = x.shape
        p = self.patch
        x = x.reshape(*lead, height // p, p, width // p, p, channels).swapaxes(-4, -3)
        patches = x.reshape(*lead, height // p, width // p, p * p * channels)
        return linear(patches, self.kernel[...].reshape(p * p * channels, -1), self.bias[...], self.dtype)


class PatchDeconv(nnx.Module):
    """Transposed convolution whose stride equals its kernel: (..., I) -> (..., p p, O), the p x p pixels of each."""

    def __init__(self, patch: int, inputs: int, outputs: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        fan_in = patch * patch * outputs  # torch counts the other way round for transposed convolutions
        self.kernel = uniform(rngs, (patch, patch, inputs, outputs), fan_in)
        self.bias = uniform(rngs, (outputs,), fan_in)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        p, _, inputs, outputs = self.kernel.shape
        kernel_IbO = self.kernel[...].astype(self.dtype).reshape(p * p, inputs, outputs).swapaxes(0, 1)
        lead = 'acdefgh'[: x.ndim - 1]
        y = einsum_f32(f'{lead}I,IbO->{lead}bO', x.astype(self.dtype), kernel_IbO)
        return (y + bias_like(self.bias[...].astype(jnp.float32), y.ndim)).astype(self.dtype)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), the exact GELU of the reference, by erf in float32; the gradient is computed from x alone.

    JAX's default is the tanh approximation, and its exact version uses erfc, which takes twice as many operations.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _gelu_gradient(x, g):
    wide = x.astype(jnp.float32)
    slope = _normal_cdf(wide) + wide * jnp.exp(-0.5 * wide * wide) * (2 * jnp.pi) ** -0.5
    return ((slope * g).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_gradient)


def _normal_cdf(x):
    return 0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def softmax(logits: jax.Array, axes: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Softmax in float32, returned in `dtype`.  Its gradient needs nothing but the result."""
    return _softmax(logits, axes, dtype)[0]


def _softmax(logits, axes, dtype):
    weights = jax.nn.softmax(logits.astype(jnp.float32), axis=axes)
    return weights.astype(dtype), (weights, jnp.zeros((), logits.dtype))


def _softmax_gradient(axes, dtype, residuals, g):
    weights, like = residuals
    weighted = weights * g.astype(jnp.float32)
    return ((weighted - weights * weighted.sum(axes, keepdims=True)).astype(like.dtype),)


softmax.defvjp(_softmax, _softmax_gradient)


def dropout(x_B: jax.Array, rate: float, keys_B: jax.Array | None) -> jax.Array:
    """Zeroes a fraction `rate` of the entries and scales up the rest; each image (first axis) has its own key.

    So the result does not depend on how images are distributed over devices.  The identity without keys.
    """
    if keys_B is None or rate == 0:
        return x_B
    keep_B = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x_B.shape[1:]))(keys_B)
    return jnp.where(keep_B, x_B / (1 - rate), 0).astype(x_B.dtype)


def drop_path(x_BhwD: jax.Array, rate: jax.Array, keys_B: jax.Array | None) -> jax.Array:
    """Zeroes a residual branch for a fraction `rate` of the images (stochastic depth)."""
    if keys_B is None:
        return x_BhwD
    keep_B = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate))(keys_B)
    return jnp.where(keep_B[:, None, None, None], x_BhwD / (1 - rate), 0).astype(x_BhwD.dtype)


def split_keys(keys_B: jax.Array | None, count: int):
    """`count` keys from the key of each image, (count, B), or a list of `count` None without keys."""
    return [None] * count if keys_B is None else jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys_B)
