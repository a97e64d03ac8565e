"""Mask decoder: a two-way transformer of prompt tokens and image, then masks by dynamic linear heads (paper §A)."""

from __future__ import annotations

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
from samjax.structs import Prediction

MASK_TOKENS = 4


class MaskDecoder(nnx.Module):
    """Image embedding and encoded prompts -> masks and the IoU each is expected to have."""

    def __init__(self, config, rngs: nnx.Rngs):
        c, dtype = config.channels, config.dtype
        self.iou_token_1C = normal(rngs, (1, c))
        self.mask_tokens_4C = normal(rngs, (MASK_TOKENS, c))
        self.transformer = TwoWayTransformer(config, rngs)
        self.upscale1 = PatchDeconv(2, c, c // 4, dtype, rngs)
        self.upscale_norm = LayerNorm(c // 4, 1e-6, dtype)
        self.upscale2 = PatchDeconv(2, c // 4, c // 8, dtype, rngs)
        self.mask_heads = nnx.List([Mlp((c, c, c, c // 8), jax.nn.relu, dtype, rngs) for _ in range(MASK_TOKENS)])
        self.iou_head = Mlp((c, config.iou_hidden, config.iou_hidden, MASK_TOKENS), jax.nn.relu, dtype, rngs)
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
        """The decoder's own tokens (B, N, 1 + MASK_TOKENS, C) and the image (B, N, h, w, C) after their talk.

        dense_BNhwC: N, h and w may be 1, if it is the same for all prompts or cells.
        """
        b, n = present_BNP.shape[:2]
        h, w, c = positions_hwC.shape
        output_tokens_5C = jnp.concatenate([self.iou_token_1C[...], self.mask_tokens_4C[...]])
        output_tokens_BNTC = jnp.broadcast_to(output_tokens_5C[None, None], (b, n, 1 + MASK_TOKENS, c))
        tokens_BNTC = jnp.concatenate([output_tokens_BNTC, sparse_BNPC], 2).astype(self.dtype)
        present_BNT = jnp.pad(present_BNP, ((0, 0), (0, 0), (1 + MASK_TOKENS, 0)), constant_values=True)
        image_BNLC = (embed_BhwC[:, None].astype(self.dtype) + dense_BNhwC).reshape(b, -1, h * w, c)
        image_pe_LC = positions_hwC.reshape(h * w, c).astype(self.dtype)

        output_tokens_BNTC, image_BNLC = self.transformer(
            tokens_BNTC, present_BNT, image_BNLC, image_pe_LC, keys_B, wanted=1 + MASK_TOKENS
        )

        return output_tokens_BNTC, image_BNLC.reshape(b, n, h, w, c)

    def upscale(self, image_BNhwC: jax.Array) -> jax.Array:
        """The image at the resolution of the masks, (B, N, h, w, 4, 4, U): 2 x 2 pixels of 2 x 2 of each cell."""
        return gelu(self.upscale2(gelu(self.upscale_norm(self.upscale1(image_BNhwC)))))

    def predict_masks(
        self, output_tokens_BNTC: jax.Array, upscaled_BNhw44U: jax.Array, masks: tuple[int, ...]
    ) -> Prediction:
        """The masks of the mask tokens named in `masks`, from the own tokens and the enlarged image."""
        return Prediction(
            self.mask_logits(output_tokens_BNTC, upscaled_BNhw44U, masks), self.iou_scores(output_tokens_BNTC, masks)
        )

    def mask_logits(
        self, output_tokens_BNTC: jax.Array, upscaled_BNhw44U: jax.Array, masks: tuple[int, ...]
    ) -> jax.Array:
        """float32 logits (B, N, M, y, x)."""
        heads_BNMU = jnp.stack([self.mask_heads[m](output_tokens_BNTC[:, :, 1 + m]) for m in masks], 2)
        logits = jnp.einsum('BNhwabU,BNMU->BNhwabM', upscaled_BNhw44U, heads_BNMU, preferred_element_type=jnp.float32)
        b, n, h, w, *_, m = logits.shape
        # Pixels come to their places only here, where they have M channels instead of U.
        logits = logits.reshape(b, n, h, w, 2, 2, 2, 2, m).transpose(0, 1, 8, 2, 4, 6, 3, 5, 7)
        return logits.reshape(b, n, m, 4 * h, 4 * w)

    def iou_scores(self, output_tokens_BNTC: jax.Array, masks: tuple[int, ...]) -> jax.Array:
        """The IoU each mask is expected to have, float32 (B, N, M); needs no mask."""
        iou_BN4 = self.iou_head(output_tokens_BNTC[:, :, 0]).astype(jnp.float32)
        return jnp.stack([iou_BN4[..., m] for m in masks], -1)


class TwoWayTransformer(nnx.Module):
    """Blocks that update tokens and image in turn, then one last look of the tokens at the image."""

    def __init__(self, config, rngs: nnx.Rngs):
        self.blocks = nnx.List([TwoWayBlock(config, rngs) for _ in range(config.decoder_depth)])
        self.final_attention = Attention(
            config.channels, config.channels // 2, config.decoder_heads, config.dtype, rngs
        )
        self.final_norm = LayerNorm(config.channels, 1e-5, config.dtype)
        self.dropout_rate = config.dropout

    def __call__(self, tokens_BNTC, present_BNT, image_BNLC, image_pe_LC, keys_B, wanted: int):
        """The first `wanted` tokens and the image."""
        token_pe_BNTC = tokens_BNTC
        image_pe_11LC = image_pe_LC[None, None]
        *keys, last_keys_B = split_keys(keys_B, len(self.blocks) + 1)
        for i, (block, block_keys_B) in enumerate(zip(self.blocks, keys, strict=True)):
            # The first block has nothing yet to add its self-attention to: positions are the tokens themselves.
            attend_self = block.replace_by_self_attention if i == 0 else block.add_self_attention
            tokens_BNTC, image_BNLC = block(
                attend_self, tokens_BNTC, token_pe_BNTC, present_BNT, image_BNLC, image_pe_11LC, block_keys_B
            )
        tokens_BNTC, token_pe_BNTC = tokens_BNTC[:, :, :wanted], token_pe_BNTC[:, :, :wanted]
        update_BNTC = self.final_attention(tokens_BNTC + token_pe_BNTC, image_BNLC + image_pe_11LC, image_BNLC)
        tokens_BNTC = tokens_BNTC + dropout(update_BNTC, self.dropout_rate, last_keys_B)
        return self.final_norm(tokens_BNTC), image_BNLC


class TwoWayBlock(nnx.Module):
    """Self-attention of tokens, tokens look at the image, MLP on tokens, the image looks at tokens."""

    def __init__(self, config, rngs: nnx.Rngs):
        c, heads, dtype = config.channels, config.decoder_heads, config.dtype
        self.self_attention = Attention(c, c, heads, dtype, rngs)
        self.norm1 = LayerNorm(c, 1e-5, dtype)
        self.token_to_image = Attention(c, c // 2, heads, dtype, rngs)
        self.norm2 = LayerNorm(c, 1e-5, dtype)
        self.mlp = Mlp((c, config.decoder_mlp, c), jax.nn.relu, dtype, rngs)
        self.norm3 = LayerNorm(c, 1e-5, dtype)
        self.image_to_token = Attention(c, c // 2, heads, dtype, rngs)
        self.norm4 = LayerNorm(c, 1e-5, dtype)
        self.dropout_rate = config.dropout

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


class Attention(nnx.Module):
    """Multi-head attention whose inner width may be smaller than its channels.

    A side of few tokens takes the other side's projections upon itself: q (x Wk) is (q Wk) x.  It is the same algebra,
    and 4,096 pixels are not projected for each prompt.  Where one side has no N of its own (an axis of length 1), it is
    projected once for all prompts.
    """

    def __init__(self, channels: int, inner: int, heads: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        shape = (heads, inner // heads)
        self.w_q_CAE, self.b_q_AE = uniform(rngs, (channels, *shape), channels), uniform(rngs, shape, channels)
        self.w_k_CAE, self.b_k_AE = uniform(rngs, (channels, *shape), channels), uniform(rngs, shape, channels)
        self.w_v_CAE, self.b_v_AE = uniform(rngs, (channels, *shape), channels), uniform(rngs, shape, channels)
        self.w_out_AEC, self.b_out_C = uniform(rngs, (*shape, channels), inner), uniform(rngs, (channels,), inner)
        self.dtype = dtype

    def __call__(self, query_BNQC, key_BNKC, value_BNKC, present_BNK=None) -> jax.Array:
        channels, heads, head = self.w_q_CAE.shape
        attend = cheapest_order(query_BNQC.shape[1:3], key_BNKC.shape[1:3], channels, heads, head)
        out_BNQC = getattr(self, attend)(query_BNQC, key_BNKC, value_BNKC, present_BNK)
        return out_BNQC + bias_like(self.b_out_C[...].astype(self.dtype), 4)

    def project_all(self, query_BNQC, key_BNKC, value_BNKC, present_BNK):
        """The definition: both sides are projected, then they meet."""
        q_BNQAE = self._queries(query_BNQC)
        k_BNKAE = self._project(key_BNKC, self.w_k_CAE, self.b_k_AE)
        v_BNKAE = self._project(value_BNKC, self.w_v_CAE, self.b_v_AE)
        weights_BNAQK = self._weights(jnp.einsum('BNQAE,BNKAE->BNAQK', q_BNQAE, k_BNKAE), present_BNK, 4)
        out_BNQAE = jnp.einsum('BNAQK,BNKAE->BNQAE', weights_BNAQK, v_BNKAE)
        return jnp.einsum('BNQAE,AEC->BNQC', out_BNQAE, self.w_out_AEC[...].astype(self.dtype))

    def project_queries(self, query_BNQC, key_BNKC, value_BNKC, present_BNK):
        """For few queries.  The bias of the keys adds the same to all logits of a query, which softmax does not see."""
        w_k_CAE, w_v_CAE, w_out_AEC = (w[...].astype(self.dtype) for w in (self.w_k_CAE, self.w_v_CAE, self.w_out_AEC))
        asked_BNAQC = jnp.einsum('BNQAE,CAE->BNAQC', self._queries(query_BNQC), w_k_CAE)
        logits_BNKAQ = jnp.einsum(
            'BNKC,BNAQC->BNKAQ', key_BNKC, asked_BNAQC
        )  # in this order nothing large is transposed
        weights_BNKAQ = self._weights(logits_BNKAQ, present_BNK, 2)
        mixed_BNAQC = jnp.einsum('BNKAQ,BNKC->BNAQC', weights_BNKAQ, value_BNKC)
        out_BNQAE = jnp.einsum('BNAQC,CAE->BNQAE', mixed_BNAQC, w_v_CAE)
        out_BNQAE += bias_like(self.b_v_AE[...].astype(self.dtype), 5)
        return jnp.einsum('BNQAE,AEC->BNQC', out_BNQAE, w_out_AEC)

    def project_keys(self, query_BNQC, key_BNKC, value_BNKC, present_BNK):
        """For few keys."""
        w_q_CAE, b_q_AE, w_out_AEC = (w[...].astype(self.dtype) for w in (self.w_q_CAE, self.b_q_AE, self.w_out_AEC))
        k_BNKAE = self._project(key_BNKC, self.w_k_CAE, self.b_k_AE) * w_q_CAE.shape[-1] ** -0.5
        v_BNKAE = self._project(value_BNKC, self.w_v_CAE, self.b_v_AE)
        asked_BNAKC = jnp.einsum('BNKAE,CAE->BNAKC', k_BNKAE, w_q_CAE)
        bias_BNAK = jnp.einsum('BNKAE,AE->BNAK', k_BNKAE, b_q_AE)
        logits_BNQAK = jnp.einsum('BNQC,BNAKC->BNQAK', query_BNQC, asked_BNAKC) + bias_BNAK[:, :, None]
        told_BNAKC = jnp.einsum('BNKAE,AEC->BNAKC', v_BNKAE, w_out_AEC)
        return jnp.einsum('BNQAK,BNAKC->BNQC', self._weights(logits_BNQAK, present_BNK, 4), told_BNAKC)

    def _project(self, x_BNKC, w_CAE, b_AE):
        x_BNKAE = jnp.einsum('BNKC,CAE->BNKAE', x_BNKC, w_CAE[...].astype(self.dtype))
        return x_BNKAE + bias_like(b_AE[...].astype(self.dtype), 5)

    def _queries(self, query_BNQC):
        return self._project(query_BNQC, self.w_q_CAE, self.b_q_AE) * self.w_q_CAE.shape[-1] ** -0.5

    def _weights(self, logits, present_BNK, axis: int):
        """Softmax over the keys that are present, which lie along `axis`."""
        if present_BNK is not None:
            there = jnp.expand_dims(present_BNK, [other for other in (2, 3, 4) if other != axis])
            logits = jnp.where(there, logits, -1e30)
        return softmax(logits, (axis,), self.dtype)


def cheapest_order(query_NQ: tuple[int, int], key_NK: tuple[int, int], channels: int, heads: int, head: int) -> str:
    """Which method of `Attention` multiplies least, given how many prompts and tokens each side has."""
    (n_q, queries), (n_k, keys) = query_NQ, key_NK
    n, inner = max(n_q, n_k), heads * head
    meet = n * queries * keys
    macs = {
        'project_all': 2 * (n_q * queries + n_k * keys) * channels * inner + 2 * meet * inner,
        'project_queries': (2 * n_q * queries + 2 * n * queries) * channels * inner + 2 * meet * heads * channels,
        'project_keys': 4 * n_k * keys * channels * inner + 2 * meet * heads * channels,
    }
    return min(macs, key=macs.get)
