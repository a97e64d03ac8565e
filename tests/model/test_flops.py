import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from samjax.config import get_config
from samjax.masks.packing import unpack_rows
from samjax.model import flops, mask_decoder
from samjax.model.config import SIZES
from samjax.model.params import abstract_state
from samjax.structs import ALL_MASKS, MULTIMASK, SINGLE_MASK, Prompts
from samjax.training import click_simulation
from samjax.training.click_simulation import ClickSimulation


@pytest.mark.parametrize(
    ('size', 'encoder', 'train'),
    [('vit_b', 486.04e9, 10.895e12), ('vit_l', 1492.84e9, 16.935e12), ('vit_h', 2980.54e9, 25.862e12)],
)
def test_counts_of_the_published_sizes(size, encoder, train):
    assert flops.encoder_macs(SIZES[size]) == pytest.approx(encoder, rel=1e-5)
    assert flops.decoder_macs(SIZES[size], tokens=7, mask_prompt=False, masks=4) == pytest.approx(1.8113e9, rel=1e-5)
    assert flops.train_flops(SIZES[size], objects=64, rounds=11) == pytest.approx(train, rel=1e-4)


def test_encoder_by_hand(tiny_config):
    # 24 cells of width 16; four windows of 9 cells cover the 4 x 6 grid, filled up to 6 x 6
    patches = 24 * 8 * 8 * 3 * 16
    windowed = 36 * (4 * 16 * 16 + 2 * 9 * 16 + (3 + 3) * 16)
    global_ = 24 * (4 * 16 * 16 + 2 * 24 * 16 + (4 + 6) * 16)
    mlps = 2 * 24 * 2 * 16 * 64
    neck = 24 * 16 * 16 + 24 * 9 * 16 * 16
    assert flops.encoder_macs(tiny_config) == patches + windowed + global_ + mlps + neck == 331_008


def test_decoder_by_hand(tiny_config):
    # 7 tokens and 24 cells of width 16; attention between the two is 8 wide
    self_attention = 4 * 7 * 16 * 16 + 2 * 7 * 7 * 16
    cross_attention = 2 * 7 * 16 * 8 + 2 * 24 * 16 * 8 + 2 * 7 * 24 * 8  # in either direction
    mlp = 2 * 7 * 16 * 32
    transformer = 2 * (self_attention + 2 * cross_attention + mlp) + cross_attention
    upscale = 24 * 16 * 4 * 4 + 96 * 4 * 4 * 2
    heads = 4 * (16 * 16 + 16 * 16 + 16 * 2) + 4 * 384 * 2
    iou = 16 * 16 + 16 * 16 + 16 * 4
    assert flops.decoder_macs(tiny_config, 7, False, 4) == transformer + upscale + heads + iou == 99_968
    mask_convs = 96 * 4 * 1 * 2 + 24 * 4 * 2 * 8 + 24 * 8 * 16
    assert flops.decoder_macs(tiny_config, 7, True, 4) == 99_968 + mask_convs == 105_344


@pytest.mark.parametrize('size', ['test', 'vit_xxs', 'vit_b', 'vit_h'])
def test_encoder_multiplies_what_is_counted(size):
    config = SIZES[size]
    graphdef, *state = abstract_state(config)
    image_BHW3 = jax.ShapeDtypeStruct((1, *config.image_size, 3), jnp.float32)

    def encode(state, image_BHW3):
        return nnx.merge(graphdef, *state).image_encoder(image_BHW3)

    assert multiplied(jax.make_jaxpr(encode)(state, image_BHW3).jaxpr) == flops.encoder_macs(config)


@pytest.mark.parametrize('masks', [SINGLE_MASK, ALL_MASKS])
@pytest.mark.parametrize('size', ['test', 'vit_b'])
def test_decoder_multiplies_what_is_counted(monkeypatch, size, masks):
    monkeypatch.setattr(mask_decoder, 'cheapest_order', lambda *sides: mask_decoder.Order.PROJECT_BOTH)
    config = SIZES[size]
    decode, inputs = decoder(config, slots=10, masks=masks)
    cells, c = math.prod(config.embedding_size), config.embed_dim
    fourier = (10 + cells) * c  # is left out of the count
    last = 2 * 10 * (c * c // 2 + cells * c // 2)  # a last look of the prompt's tokens, which nobody wants
    counted = flops.decoder_macs(config, tokens=15, mask_prompt=True, masks=len(masks))
    assert multiplied(jax.make_jaxpr(decode)(*inputs).jaxpr) == counted + fourier - last


def test_a_click_multiplies_less():
    config = SIZES['vit_b']

    def macs(objects, mask_prompt):
        decode, inputs = decoder(config, 2, MULTIMASK, objects, mask_prompt)
        return multiplied(jax.make_jaxpr(decode)(*inputs).jaxpr)

    assert flops.decoder_macs(config, 7, False, 3) == pytest.approx(1.809e9, rel=1e-3)
    assert macs(1, True) == pytest.approx(1.005e9, rel=1e-3)
    assert (macs(65, False) - macs(1, False)) / 64 == pytest.approx(0.904e9, rel=1e-3)  # what clicks share left out


def test_xla_counts_elementwise_work_on_top():
    # Of ViT-B's decoder it is 13 %: softmax, LayerNorm and GELU of maps with few channels to multiply.
    decode, inputs = decoder(SIZES['vit_b'], slots=2, masks=ALL_MASKS)
    xla = jax.jit(decode).lower(*inputs).compile().cost_analysis()['flops']
    assert 1 < xla / (2 * multiplied(jax.make_jaxpr(decode)(*inputs).jaxpr)) < 1.15


@pytest.mark.parametrize('rounds', [1, 2, 4, 11])
def test_training_counts_every_prompt_slot(tiny_config, tiny_batch, rounds):
    simulation = dataclasses.replace(ClickSimulation(**get_config().prompts), rounds=rounds)

    def first_prompts(packed_masks_BNVW, size_B2):
        keys_B, masks_BNHW = jax.random.split(jax.random.key(0), len(size_B2)), unpack_rows(packed_masks_BNVW, 32)
        return click_simulation.first_prompts(simulation, masks_BNHW, tiny_config.low_res_size, size_B2, keys_B)

    labels_BNP = jax.eval_shape(first_prompts, tiny_batch.packed_masks_BNVW, tiny_batch.size_B2).labels_BNP
    first, later = (
        flops.decoder_macs(tiny_config, tokens=5 + labels_BNP.shape[2], mask_prompt=True, masks=masks)
        for masks in (len(MULTIMASK), len(SINGLE_MASK))
    )
    forward = flops.encoder_macs(tiny_config) + 3 * (first + (rounds - 1) * later)
    assert flops.train_flops(tiny_config, objects=3, rounds=rounds) == 2 * 3 * forward


def decoder(config, slots: int, masks: tuple[int, ...], objects: int = 1, mask_prompt: bool = True):
    """A function of arrays that decodes prompts about one image, and the shapes of the arrays."""
    graphdef, *state = abstract_state(config)
    shape = jax.ShapeDtypeStruct
    given = Prompts(
        points_BNP2=shape((1, objects, slots, 2), jnp.float32),
        labels_BNP=shape((1, objects, slots), jnp.int32),
        mask_BNyx=shape((1, objects, *config.low_res_size), jnp.float32) if mask_prompt else None,
        has_mask_BN=shape((1, objects), bool) if mask_prompt else None,
    )
    embed_BhwC = shape((1, *config.embedding_size, config.embed_dim), jnp.float32)

    def decode(state, embed_BhwC, given):
        return nnx.merge(graphdef, *state).decode(embed_BhwC, given, masks)

    return decode, (state, embed_BhwC, given)


def multiplied(jaxpr) -> int:
    """Multiply-adds of a program's matrix products and convolutions, of loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'dot_general':
            ((axes, _), _), sides = equation.params['dimension_numbers'], equation.invars[0].aval.shape
            total += equation.outvars[0].aval.size * math.prod(sides[axis] for axis in axes)
        elif equation.primitive.name == 'conv_general_dilated':
            *window, inputs, _ = equation.invars[1].aval.shape
            total += equation.outvars[0].aval.size * math.prod(window) * inputs
        elif 'call_jaxpr' in equation.params:  # a function with a gradient of its own
            total += multiplied(equation.params['call_jaxpr'].jaxpr)
        elif 'jaxpr' in equation.params:
            inner = equation.params['jaxpr']
            total += equation.params.get('length', 1) * multiplied(getattr(inner, 'jaxpr', inner))
    return total
