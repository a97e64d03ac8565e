"""Mask decoder: a two-way transformer of prompt tokens and image, then masks by dynamic linear heads (paper §A)."""

from __future__ import annotations

import dataclasses
import enum

import jax
import jax.numpy as jnp
from flax import nnx

from samjax.model.layers import (
    LayerNorm,
    Mlp,
    PatchDeconv,
    bias_like,
    dropout,
    gelu,
    normal,
    softmax,
    split_keys,
    uniform,
)
from samjax.model.param_rules import DENSE, FROM_HEADS, TO_HEADS, TRANSPOSED_CONV, ParamRule
from samjax.structs import Prediction

MASK_TOKENS = 4

ATTENTION = r'transformer/(final_attention|blocks/\d+/(self_attention|token_to_image|image_to_token))'
PARAM_RULES = (
    ParamRule('iou_token_1C'),
    ParamRule('mask_tokens_4C'),
    ParamRule(f'{ATTENTION}/w_[qkv]_CAE', TO_HEADS),
    ParamRule(f'{ATTENTION}/w_out_AEC', FROM_HEADS),
    ParamRule(f'{ATTENTION}/b_([qkv]_AE|out_C)'),
    ParamRule(r'transformer/blocks/\d+/mlp/layers/\d+/kernel', DENSE),
    ParamRule(r'transformer/blocks/\d+/mlp/layers/\d+/bias'),
    ParamRule(r'transformer/(final_norm|blocks/\d+/norm[1-4])/(scale|bias)'),
    ParamRule('upscale[12]/kernel', TRANSPOSED_CONV),
    ParamRule('upscale[12]/bias'),
    ParamRule('upscale_norm/(scale|bias)'),
    ParamRule(r'(mask_heads/\d+|iou_head)/layers/\d+/kernel', DENSE),
    ParamRule(r'(mask_heads/\d+|iou_head)/layers/\d+/bias'),
)


@dataclasses.dataclass(frozen=True)
class MaskDecoderConfig:
    """The architecture of the mask decoder."""

    depth: int = 2  # blocks of the two-way transformer
    num_heads: int = 8
    mlp_dim: int = 2048
    iou_head_hidden_dim: int = 256


class MaskDecoder(nnx.Module):
    """Image embedding and encoded prompts -> masks and the predicted IoU of each."""

    def __init__(self, config: MaskDecoderConfig, embed_dim: int, dropout: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        """embed_dim: C; dropout: rate of the transformer's sub-layers."""
        c, hidden = embed_dim, config.iou_head_hidden_dim
        self.iou_token_1C = normal(rngs, (1, c))
        self.mask_tokens_4C = normal(rngs, (MASK_TOKENS, c))
        self.transformer = TwoWayTransformer(config, c, dropout, dtype, rngs)
        self.upscale1 = PatchDeconv(2, c, c // 4, dtype, rngs)
        self.upscale_norm = LayerNorm(c // 4, 1e-6, dtype)
        self.upscale2 = PatchDeconv(2, c // 4, c // 8, dtype, rngs)
        self.mask_heads = nnx.List([Mlp((c, c, c, c // 8), jax.nn.relu, dtype, rngs) for _ in range(MASK_TOKENS)])
        self.iou_head = Mlp((c, hidden, hidden, MASK_TOKENS), jax.nn.relu, dtype, rngs)
        self.dtype = dtype

    def run_transformer(
        self,
        embed_BhwC: jax.Array,
        positions_hwC: jax.Array,
        sparse_BNPC: jax.Array,
        present_BNP: jax.Array,
        dense_BNhwC: jax.Array,
        keys_B: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Output tokens (B, N, 1 + MASK_TOKENS, C) and image (B, N, h, w, C) after the two-way transformer.

        dense_BNhwC: N, h and w may be 1, if it is the same for all prompts or cells.
        """
        b, n = present_BNP.shape[:2]
        h, w, c = positions_hwC.shape
        output_tokens_5C = jnp.concatenate([self.iou_token_1C[...], self.mask_tokens_4C[...]])
        output_tokens_BN5C = jnp.broadcast_to(output_tokens_5C[None, None], (b, n, 1 + MASK_TOKENS, c))
        tokens_BNTC = jnp.concatenate([output_tokens_BN5C, sparse_BNPC], 2).astype(self.dtype)
        present_BNT = jnp.pad(present_BNP, ((0, 0), (0, 0), (1 + MASK_TOKENS, 0)), constant_values=True)
        image_BNLC = (embed_BhwC[:, None].astype(self.dtype) + dense_BNhwC).reshape(b, -1, h * w, c)
        image_pe_LC = positions_hwC.reshape(h * w, c).astype(self.dtype)

        output_tokens_BN5C, image_BNLC = self.transformer(
            tokens_BNTC, present_BNT, image_BNLC, image_pe_LC, keys_B, num_outputs=1 + MASK_TOKENS
        )
        return output_tokens_BN5C, image_BNLC.reshape(b, n, h, w, c)

    def upscale(self, image_BNhwC: jax.Array) -> jax.Array:
        """The upscaled embedding, (B, N, h, w, 4, 4, U): 2 x 2 pixels of 2 x 2 of each cell."""
        return gelu(self.upscale2(gelu(self.upscale_norm(self.upscale1(image_BNhwC)))))

    def predict_masks(
        self, output_tokens_BN5C: jax.Array, upscaled_BNhw44U: jax.Array, masks: tuple[int, ...]
    ) -> Prediction:
        """The masks of the mask tokens numbered in `masks`, from the output tokens and the upscaled embedding."""
        logits_BNMyx = self.mask_logits(output_tokens_BN5C, upscaled_BNhw44U, masks)
        return Prediction(logits_BNMyx, self.iou_scores(output_tokens_BN5C, masks))

    def mask_logits(
        self, output_tokens_BN5C: jax.Array, upscaled_BNhw44U: jax.Array, masks: tuple[int, ...]
    ) -> jax.Array:
        """float32 logits (B, N, M, y, x)."""
        heads_BNMU = jnp.stack([self.mask_heads[m](output_tokens_BN5C[:, :, 1 + m]) for m in masks], 2)
        logits = jnp.einsum('BNhwabU,BNMU->BNhwabM', upscaled_BNhw44U, heads_BNMU, preferred_element_type=jnp.float32)
        b, n, h, w, *_, m = logits.shape
        # Pixels are put in order only here, where they have M channels instead of U.
        logits = logits.reshape(b, n, h, w, 2, 2, 2, 2, m).transpose(0, 1, 8, 2, 4, 6, 3, 5, 7)
        return logits.reshape(b, n, m, 4 * h, 4 * w)

    def iou_scores(self, output_tokens_BN5C: jax.Array, masks: tuple[int, ...]) -> jax.Array:
        """The predicted IoU of each mask, float32 (B, N, M); needs no mask."""
        iou_BN4 = self.iou_head(output_tokens_BN5C[:, :, 0]).astype(jnp.float32)
        return jnp.stack([iou_BN4[..., m] for m in masks], -1)


class TwoWayTransformer(nnx.Module):
    """Blocks that update tokens and image alternately, then a last attention of the tokens to the image."""

    def __init__(self, config: MaskDecoderConfig, embed_dim: int, dropout: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        c = embed_dim
        self.blocks = nnx.List([TwoWayBlock(config, c, dropout, dtype, rngs) for _ in range(config.depth)])
        self.final_attention = MultiHeadAttention(c, c // 2, config.num_heads, dtype, rngs)
        self.final_norm = LayerNorm(c, 1e-5, dtype)
        self.dropout_rate = dropout

    def __call__(self, tokens_BNTC, present_BNT, image_BNLC, image_pe_LC, keys_B, num_outputs: int):
        """The first `num_outputs` tokens and the image."""
        token_pe_BNTC = tokens_BNTC
        image_pe_11LC = image_pe_LC[None, None]
        *keys, last_keys_B = split_keys(keys_B, len(self.blocks) + 1)
        for i, (block, block_keys_B) in enumerate(zip(self.blocks, keys, strict=True)):
            # The first block has nothing yet to add its self-attention to: positions are the tokens themselves.
            attend_self = block.replace_by_self_attention if i == 0 else block.add_self_attention
            tokens_BNTC, image_BNLC = block(
                attend_self, tokens_BNTC, token_pe_BNTC, present_BNT, image_BNLC, image_pe_11LC, block_keys_B
            )
        tokens_BNTC, token_pe_BNTC = tokens_BNTC[:, :, :num_outputs], token_pe_BNTC[:, :, :num_outputs]
        update_BNTC = self.final_attention(tokens_BNTC + token_pe_BNTC, image_BNLC + image_pe_11LC, image_BNLC)
        tokens_BNTC = tokens_BNTC + dropout(update_BNTC, self.dropout_rate, last_keys_B)
        return self.final_norm(tokens_BNTC), image_BNLC


class TwoWayBlock(nnx.Module):
    """Self-attention of tokens, attention of tokens to the image, MLP on tokens, attention of the image to tokens."""

    def __init__(self, config: MaskDecoderConfig, embed_dim: int, dropout: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        c, heads = embed_dim, config.num_heads
        self.self_attention = MultiHeadAttention(c, c, heads, dtype, rngs)
        self.norm1 = LayerNorm(c, 1e-5, dtype)
        self.token_to_image = MultiHeadAttention(c, c // 2, heads, dtype, rngs)
        self.norm2 = LayerNorm(c, 1e-5, dtype)
        self.mlp = Mlp((c, config.mlp_dim, c), jax.nn.relu, dtype, rngs)
        self.norm3 = LayerNorm(c, 1e-5, dtype)
        self.image_to_token = MultiHeadAttention(c, c // 2, heads, dtype, rngs)
        self.norm4 = LayerNorm(c, 1e-5, dtype)
        self.dropout_rate = dropout

    def __call__(self, attend_self, tokens_BNTC, token_pe_BNTC, present_BNT, image_BNLC, image_pe_11LC, keys_B):
        keys = split_keys(keys_B, 4)

        def drop(x, i):
            return dropout(x, self.dropout_rate, keys[i])

        tokens_BNTC = self.norm1(attend_self(tokens_BNTC, token_pe_BNTC, present_BNT, lambda x: drop(x, 0)))

        query_BNTC, key_BNLC = tokens_BNTC + token_pe_BNTC, image_BNLC + image_pe_11LC
        update_BNTC = self.token_to_image(query_BNTC, key_BNLC, image_BNLC)
        tokens_BNTC = self.norm2(tokens_BNTC + drop(update_BNTC, 1))

        tokens_BNTC = self.norm3(tokens_BNTC + drop(self.mlp(tokens_BNTC), 2))

        update_BNLC = self.image_to_token(key_BNLC, tokens_BNTC + token_pe_BNTC, tokens_BNTC, present_BNT)
        image_BNLC = self.norm4(image_BNLC + drop(update_BNLC, 3))
        return tokens_BNTC, image_BNLC

    def replace_by_self_attention(self, tokens_BNTC, token_pe_BNTC, present_BNT, drop):
        del token_pe_BNTC  # the tokens of the first block already are their positions
        return drop(self.self_attention(tokens_BNTC, tokens_BNTC, tokens_BNTC, present_BNT))

    def add_self_attention(self, tokens_BNTC, token_pe_BNTC, present_BNT, drop):
        query_BNTC = tokens_BNTC + token_pe_BNTC
        return tokens_BNTC + drop(self.self_attention(query_BNTC, query_BNTC, tokens_BNTC, present_BNT))


class MultiHeadAttention(nnx.Module):
    """Multi-head attention whose inner width may be smaller than its channels.

    Products are associative: q (x Wk) is (q Wk) x.  So the projections are applied to the side with fewer tokens, and
    4,096 pixels are not projected for each prompt.  A side that is the same for all prompts (N of length 1) is
    projected once.  In names, Q are queries and S keys and values.
    """

    def __init__(self, channels: int, inner: int, heads: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        shape = (heads, inner // heads)
        self.w_q_CAE, self.b_q_AE = uniform(rngs, (channels, *shape), channels), uniform(rngs, shape, channels)
        self.w_k_CAE, self.b_k_AE = uniform(rngs, (channels, *shape), channels), uniform(rngs, shape, channels)
        self.w_v_CAE, self.b_v_AE = uniform(rngs, (channels, *shape), channels), uniform(rngs, shape, channels)
        self.w_out_AEC, self.b_out_C = uniform(rngs, (*shape, channels), inner), uniform(rngs, (channels,), inner)
        self.dtype = dtype

    def __call__(self, query_BNQC, key_BNSC, value_BNSC, present_BNS=None) -> jax.Array:
        channels, heads, head = self.w_q_CAE.shape
        match cheapest_order(query_BNQC.shape[1:3], key_BNSC.shape[1:3], channels, heads, head):
            case Order.PROJECT_BOTH:
                attend = self.project_both
            case Order.PROJECT_QUERIES:
                attend = self.project_queries
            case Order.PROJECT_KEYS:
                attend = self.project_keys
        out_BNQC = attend(query_BNQC, key_BNSC, value_BNSC, present_BNS)
        return out_BNQC + bias_like(self.b_out_C[...].astype(self.dtype), 4)

    def project_both(self, query_BNQC, key_BNSC, value_BNSC, present_BNS):
        """The definition: both sides are projected, then multiplied with each other."""
        q_BNQAE = self._queries(query_BNQC)
        k_BNSAE = self._project(key_BNSC, self.w_k_CAE, self.b_k_AE)
        v_BNSAE = self._project(value_BNSC, self.w_v_CAE, self.b_v_AE)
        weights_BNAQS = self._weights(jnp.einsum('BNQAE,BNSAE->BNAQS', q_BNQAE, k_BNSAE), present_BNS, 4)
        out_BNQAE = jnp.einsum('BNAQS,BNSAE->BNQAE', weights_BNAQS, v_BNSAE)
        return jnp.einsum('BNQAE,AEC->BNQC', out_BNQAE, self.w_out_AEC[...].astype(self.dtype))

    def project_queries(self, query_BNQC, key_BNSC, value_BNSC, present_BNS):
        """For few queries.  The bias of the keys adds the same to all logits of a query, which cancels in softmax."""
        w_k_CAE, w_v_CAE, w_out_AEC = (w[...].astype(self.dtype) for w in (self.w_k_CAE, self.w_v_CAE, self.w_out_AEC))
        projected_BNAQC = jnp.einsum('BNQAE,CAE->BNAQC', self._queries(query_BNQC), w_k_CAE)
        # In this order no large array is transposed.
        logits_BNSAQ = jnp.einsum('BNSC,BNAQC->BNSAQ', key_BNSC, projected_BNAQC)
        weights_BNSAQ = self._weights(logits_BNSAQ, present_BNS, 2)
        mixed_BNAQC = jnp.einsum('BNSAQ,BNSC->BNAQC', weights_BNSAQ, value_BNSC)
        out_BNQAE = jnp.einsum('BNAQC,CAE->BNQAE', mixed_BNAQC, w_v_CAE)
        out_BNQAE += bias_like(self.b_v_AE[...].astype(self.dtype), 5)
        return jnp.einsum('BNQAE,AEC->BNQC', out_BNQAE, w_out_AEC)

    def project_keys(self, query_BNQC, key_BNSC, value_BNSC, present_BNS):
        """For few keys."""
        w_q_CAE, b_q_AE, w_out_AEC = (w[...].astype(self.dtype) for w in (self.w_q_CAE, self.b_q_AE, self.w_out_AEC))
        k_BNSAE = self._project(key_BNSC, self.w_k_CAE, self.b_k_AE) * w_q_CAE.shape[-1] ** -0.5
        v_BNSAE = self._project(value_BNSC, self.w_v_CAE, self.b_v_AE)
        projected_BNASC = jnp.einsum('BNSAE,CAE->BNASC', k_BNSAE, w_q_CAE)
        bias_BNAS = jnp.einsum('BNSAE,AE->BNAS', k_BNSAE, b_q_AE)
        logits_BNQAS = jnp.einsum('BNQC,BNASC->BNQAS', query_BNQC, projected_BNASC) + bias_BNAS[:, :, None]
        output_BNASC = jnp.einsum('BNSAE,AEC->BNASC', v_BNSAE, w_out_AEC)
        return jnp.einsum('BNQAS,BNASC->BNQC', self._weights(logits_BNQAS, present_BNS, 4), output_BNASC)

    def _project(self, x_BNSC, w_CAE, b_AE):
        x_BNSAE = jnp.einsum('BNSC,CAE->BNSAE', x_BNSC, w_CAE[...].astype(self.dtype))
        return x_BNSAE + bias_like(b_AE[...].astype(self.dtype), 5)

    def _queries(self, query_BNQC):
        return self._project(query_BNQC, self.w_q_CAE, self.b_q_AE) * self.w_q_CAE.shape[-1] ** -0.5

    def _weights(self, logits, present_BNS, axis: int):
        """Softmax over the keys that are present, which lie along `axis`."""
        if present_BNS is not None:
            present = jnp.expand_dims(present_BNS, [other for other in (2, 3, 4) if other != axis])
            logits = jnp.where(present, logits, -1e30)
        return softmax(logits, (axis,), self.dtype)


class Order(enum.Enum):
    """Which sides `MultiHeadAttention` multiplies with its projections."""

    PROJECT_BOTH = enum.auto()
    PROJECT_QUERIES = enum.auto()
    PROJECT_KEYS = enum.auto()


def cheapest_order(query_NQ: tuple[int, int], key_NS: tuple[int, int], channels: int, heads: int, head: int) -> Order:
    """The order with the fewest multiply-adds, given the numbers of prompts and tokens of queries and of keys."""
    (n_q, queries), (n_k, keys) = query_NQ, key_NS
    n, inner = max(n_q, n_k), heads * head
    pairs = n * queries * keys
    macs = {
        Order.PROJECT_BOTH: 2 * (n_q * queries + n_k * keys) * channels * inner + 2 * pairs * inner,
        Order.PROJECT_QUERIES: (2 * n_q * queries + 2 * n * queries) * channels * inner + 2 * pairs * heads * channels,
        Order.PROJECT_KEYS: 4 * n_k * keys * channels * inner + 2 * pairs * heads * channels,
    }
    return min(macs, key=macs.get)
