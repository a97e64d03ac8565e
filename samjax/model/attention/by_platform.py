"""Which attention is fastest on which platform of JAX."""

from __future__ import annotations

import functools

import jax

from samjax.model.attention.chunked import GPU_LOGITS, chunked_attention


def tpu_attention(*arrays) -> jax.Array:
    """`samjax.model.attention.tpu.tpu_attention`, imported at the first call: Pallas takes seconds to import."""
    from samjax.model.attention import tpu

    return tpu.tpu_attention(*arrays)


BY_PLATFORM = {
    'cpu': chunked_attention,
    'gpu': functools.partial(chunked_attention, logits=GPU_LOGITS),
    'tpu': tpu_attention,
}
