"""Our model equals Meta's segment-anything 1.0 in float32, module by module and as a whole.

Tolerances are absolute and relative, and never grow: a new platform that misses them has a bug.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from samjax.convert import key_map
from samjax.data.transforms import frame_size
from samjax.masks import resize
from samjax.model.config import SIZES, SamConfig
from samjax.model.encoders.vit import ViTConfig
from samjax.model.mask_decoder import MaskDecoderConfig
from samjax.model.sam import Sam, normalize
from samjax.structs import (
    ABSENT,
    ALL_MASKS,
    BOX_BOTTOM_RIGHT,
    BOX_TOP_LEFT,
    MULTIMASK,
    NEGATIVE,
    NOT_A_POINT,
    POSITIVE,
    SINGLE_MASK,
    Prompts,
)

SIMPLE = 1e-5  # one module
COMPOSED = 1e-4  # many modules in a row

# The window of 3 divides no side of the grids, 5 x 5 and 5 x 7: windows are padded both ways.
SQUARE = SamConfig(
    ViTConfig(width=24, num_stages=2, windowed_per_stage=1, num_heads=2, patch_size=16, window_size=3),
    image_size=(80, 80),
    embed_dim=32,
    mask_in_chans=8,
    decoder=MaskDecoderConfig(num_heads=4, mlp_dim=48, iou_head_hidden_dim=20),
)
WIDE = dataclasses.replace(SQUARE, image_size=(80, 112))


class Pair(NamedTuple):
    """The same weights twice."""

    torch: torch.nn.Module
    jax: Sam


@pytest.fixture(autouse=True)
def exact():
    with jax.default_matmul_precision('highest'), torch.no_grad():
        yield


@pytest.fixture(scope='module')
def square():
    torch_sam = oracle.randomize(oracle.build(SQUARE), seed=7)
    return Pair(torch_sam, oracle.port(torch_sam, SQUARE))


@pytest.fixture(scope='module')
def wide():
    torch_sam = oracle.randomize(oracle.build(WIDE), seed=7)
    return Pair(torch_sam, oracle.port(torch_sam, WIDE))


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def channels_first(x):
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, -3).copy())


def channels_last(x):
    return np.moveaxis(x.numpy(), -3, -1)


def assert_equal(actual, expected, tolerance):
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def unstacked(stacked, index):
    """The module at an index of the stacked ones."""
    graphdef, params = nnx.split(stacked)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x[index], params))


# Image encoder


@pytest.mark.parametrize('index', [0, 1], ids=['windowed', 'global'])
def test_encoder_block(wide, index):
    x_BhwD = draw(0, 2, 5, 7, WIDE.encoder.width)
    expected = wide.torch.image_encoder.blocks[index](torch.from_numpy(x_BhwD))
    encoder = wide.jax.image_encoder
    stacked, position = [(encoder.windowed_blocks, (0, 0)), (encoder.global_blocks, 0)][index]
    assert_equal(unstacked(stacked, position)(x_BhwD, 0.0), expected, SIMPLE)


def test_neck(wide):
    x_BhwD = draw(1, 2, 5, 7, WIDE.encoder.width)
    expected = channels_last(wide.torch.image_encoder.neck(channels_first(x_BhwD)))
    assert_equal(wide.jax.image_encoder.neck(x_BhwD), expected, SIMPLE)


@pytest.mark.parametrize('frame', ['square', 'wide'])
def test_image_encoder(frame, request):
    pair = request.getfixturevalue(frame)
    h, w = pair.jax.prompt_encoder.embedding_size
    image_BHW3 = draw(2, 2, 16 * h, 16 * w, 3)
    expected = channels_last(pair.torch.image_encoder(channels_first(image_BHW3)))
    assert_equal(pair.jax.image_encoder(image_BHW3), expected, COMPOSED)


def test_every_norm_with_little_variance(square):
    """An epsilon of 1e-5 instead of 1e-6 only shows when the variance is about as small."""
    norms, keys = 0, {key.meta: key for key in key_map.checkpoint_keys(SQUARE)}
    for name, module in square.torch.named_modules():
        if not isinstance(module, (torch.nn.LayerNorm, oracle.modeling.common.LayerNorm2d)):
            continue
        ours, key = square.jax, keys[f'{name}.weight']
        for part in key.ours.split('/')[:-1]:
            ours = ours[int(part)] if part.isdigit() else getattr(ours, part)
        ours = unstacked(ours, key.index)
        x_B11C = draw(norms, 4, 1, 1, ours.scale.shape[0]) * 2e-3
        if isinstance(module, torch.nn.LayerNorm):
            expected = module(torch.from_numpy(x_B11C))
        else:
            expected = channels_last(module(channels_first(x_B11C)))
        assert_equal(ours(x_B11C), expected, SIMPLE)
        norms += 1
    assert norms == 2 * SQUARE.encoder.depth + 2 + 2 + 4 * SQUARE.decoder.depth + 1 + 1


# Prompt encoder


@pytest.mark.parametrize('pad', [False, True])
def test_points(wide, pad):
    points_NP2 = np.random.default_rng(3).uniform([0, 0], [112, 80], (2, 3, 2)).astype(np.float32)
    labels_NP = np.array([[NOT_A_POINT, NEGATIVE, POSITIVE], [POSITIVE, POSITIVE, NOT_A_POINT]])
    expected = wide.torch.prompt_encoder._embed_points(torch.tensor(points_NP2), torch.tensor(labels_NP), pad)
    if pad:
        points_NP2 = np.pad(points_NP2, ((0, 0), (0, 1), (0, 0)))
        labels_NP = np.pad(labels_NP, ((0, 0), (0, 1)), constant_values=NOT_A_POINT)
    actual = wide.jax.prompt_encoder.embed_points(jnp.array(points_NP2)[None], jnp.array(labels_NP)[None])
    assert_equal(actual[0], expected, SIMPLE)


def test_boxes(wide):
    boxes_N4 = np.array([[3, 5, 60, 41], [0, 0, 111, 79]], np.float32)
    expected = wide.torch.prompt_encoder._embed_boxes(torch.from_numpy(boxes_N4))
    labels_BNP = jnp.array([[[BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]] * 2])
    actual = wide.jax.prompt_encoder.embed_points(jnp.array(boxes_N4).reshape(1, 2, 2, 2), labels_BNP)
    assert_equal(actual[0], expected, SIMPLE)


def test_mask_prompt(wide):
    mask_BNyx = draw(4, 1, 3, 20, 28) * 8
    expected = channels_last(wide.torch.prompt_encoder._embed_masks(torch.from_numpy(mask_BNyx[0][:, None])))
    assert_equal(wide.jax.prompt_encoder.embed_mask(mask_BNyx)[0], expected, COMPOSED)


def test_fourier_features(wide):
    xy_NP2 = np.random.default_rng(5).uniform(0, 1, (2, 9, 2)).astype(np.float32)
    expected = wide.torch.prompt_encoder.pe_layer._pe_encoding(torch.from_numpy(xy_NP2))
    assert_equal(wide.jax.prompt_encoder.fourier(xy_NP2), expected, SIMPLE)


def test_grid_positions(wide):
    expected = channels_last(wide.torch.prompt_encoder.get_dense_pe())[0]
    assert_equal(wide.jax.prompt_encoder.grid_positions(), expected, SIMPLE)


# Mask decoder


def test_two_way_transformer(wide):
    image_hwC, positions_hwC, tokens_TC = draw(6, 5, 7, 32), draw(7, 5, 7, 32), draw(8, 9, 32)
    tokens, image = wide.torch.mask_decoder.transformer(
        channels_first(image_hwC)[None],
        channels_first(positions_hwC)[None],
        torch.from_numpy(tokens_TC)[None],
    )
    actual_tokens, actual_image = wide.jax.mask_decoder.transformer(
        tokens_TC[None, None],
        jnp.ones((1, 1, 9), bool),
        image_hwC.reshape(1, 1, 35, 32),
        positions_hwC.reshape(35, 32),
        None,
        num_outputs=9,
    )
    assert_equal(actual_tokens[0], tokens, COMPOSED)
    assert_equal(actual_image[0], image, COMPOSED)


class Prompt(NamedTuple):
    """One object's prompt in the words of the original."""

    points: tuple = ()  # (x, y, label)
    box: tuple = ()  # x1, y1, x2, y2
    mask: bool = False


PROMPTS = {
    'one point': Prompt(points=((30, 41, 1),)),
    'three points': Prompt(points=((30, 41, 1), (99.5, 7.25, 0), (0, 0, 1))),
    'box': Prompt(box=(10, 12, 70, 60)),
    'two points and box': Prompt(points=((30, 41, 1), (12, 60, 0)), box=(10, 12, 70, 60)),
    'mask and point': Prompt(points=((30, 41, 1),), mask=True),
    'mask': Prompt(mask=True),
    'nothing': Prompt(),
}
MASK_yx = draw(9, 20, 28) * 5


def slots(prompt, count):
    """The prompt as (points_P2, labels_P), filled up to `count` slots."""
    entries = [*prompt.points]
    if prompt.points and not prompt.box:
        entries.append((0, 0, NOT_A_POINT))
    if prompt.box:
        x1, y1, x2, y2 = prompt.box
        entries += [(x1, y1, BOX_TOP_LEFT), (x2, y2, BOX_BOTTOM_RIGHT)]
    entries += [(55, 55, ABSENT)] * (count - len(entries))
    entries = np.array(entries, np.float32).reshape(-1, 3)
    return entries[:, :2], entries[:, 2].astype(np.int32)


@functools.cache
def decoder(masks):
    return nnx.jit(lambda sam, embed_BhwC, prompts: sam.decode(embed_BhwC, prompts, masks))


def prompts_of(prompts_BN, count):
    filled = [[slots(prompt, count) for prompt in prompts_N] for prompts_N in prompts_BN]
    has_mask_BN = np.array([[prompt.mask for prompt in prompts_N] for prompts_N in prompts_BN])
    return Prompts(
        points_BNP2=jnp.array([[points for points, _ in row] for row in filled]),
        labels_BNP=jnp.array([[labels for _, labels in row] for row in filled]),
        # Where no mask is given, one must be ignored.
        mask_BNyx=jnp.where(has_mask_BN[..., None, None], MASK_yx[None, None], 7.0),
        has_mask_BN=jnp.array(has_mask_BN),
    )


def answer(torch_sam, embed_hwC, prompt, multimask):
    """The original's (logits_Myx, iou_M) for one prompt."""
    points = torch.tensor(prompt.points, dtype=torch.float32).reshape(1, -1, 3)
    sparse, dense = torch_sam.prompt_encoder(
        points=(points[..., :2], points[..., 2]) if prompt.points else None,
        boxes=torch.tensor([prompt.box], dtype=torch.float32) if prompt.box else None,
        masks=torch.from_numpy(MASK_yx)[None, None] if prompt.mask else None,
    )
    logits, iou = torch_sam.mask_decoder(
        image_embeddings=channels_first(embed_hwC)[None],
        image_pe=torch_sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
    )
    return logits[0].numpy(), iou[0].numpy()


@pytest.mark.parametrize('masks', [MULTIMASK, SINGLE_MASK], ids=['multimask', 'single'])
@pytest.mark.parametrize('name', PROMPTS)
def test_decode(wide, name, masks):
    """With four absent slots or more."""
    embed_hwC = draw(10, 5, 7, 32)
    logits_Myx, iou_M = answer(wide.torch, embed_hwC, PROMPTS[name], masks == MULTIMASK)
    actual = decoder(masks)(wide.jax, embed_hwC[None], prompts_of([[PROMPTS[name]]], 9))
    assert_equal(actual.logits_BNMyx[0, 0], logits_Myx, COMPOSED)
    assert_equal(actual.iou_BNM[0, 0], iou_M, COMPOSED)


@pytest.mark.parametrize('name', PROMPTS)
def test_decode_without_absent_slots(wide, name):
    embed_hwC = draw(10, 5, 7, 32)
    single, single_iou = answer(wide.torch, embed_hwC, PROMPTS[name], False)
    several, several_iou = answer(wide.torch, embed_hwC, PROMPTS[name], True)
    actual = decoder(ALL_MASKS)(wide.jax, embed_hwC[None], prompts_of([[PROMPTS[name]]], 0))
    assert_equal(actual.logits_BNMyx[0, 0], np.concatenate([single, several]), COMPOSED)
    assert_equal(actual.iou_BNM[0, 0], np.concatenate([single_iou, several_iou]), COMPOSED)


def test_weights_make_logits_of_both_signs(wide):
    """Else the comparisons above would compare constants."""
    prompts = prompts_of([[PROMPTS['one point']]], 9)
    logits_BNMyx = decoder(MULTIMASK)(wide.jax, draw(10, 1, 5, 7, 32), prompts).logits_BNMyx
    share_BNM = (logits_BNMyx > 0).mean((-2, -1))
    assert (share_BNM > 0.1).all()
    assert (share_BNM < 0.9).all()
    assert (logits_BNMyx.std((-2, -1)) > 1).all()


def test_decode_of_several_prompts_on_two_images(wide):
    names_BN = [
        ['one point', 'two points and box', 'mask and point'],
        ['nothing', 'mask', 'three points'],
    ]
    embed_BhwC = draw(11, 2, 5, 7, 32)
    prompts = prompts_of([[PROMPTS[name] for name in names_N] for names_N in names_BN], 4)
    actual = decoder(ALL_MASKS)(wide.jax, embed_BhwC, prompts)
    for b, n in np.ndindex(2, 3):
        single, single_iou = answer(wide.torch, embed_BhwC[b], PROMPTS[names_BN[b][n]], False)
        several, several_iou = answer(wide.torch, embed_BhwC[b], PROMPTS[names_BN[b][n]], True)
        assert_equal(actual.logits_BNMyx[b, n], np.concatenate([single, several]), COMPOSED)
        assert_equal(actual.iou_BNM[b, n], np.concatenate([single_iou, several_iou]), COMPOSED)


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_order_of_slots_does_not_matter(wide, seed):
    embed_BhwC = draw(13, 1, 5, 7, 32)
    prompts = prompts_of([[PROMPTS['two points and box']]], 9)
    order = np.random.default_rng(seed).permutation(9)
    shuffled = dataclasses.replace(
        prompts,
        points_BNP2=prompts.points_BNP2[:, :, order],
        labels_BNP=prompts.labels_BNP[:, :, order],
    )
    expected, actual = (decoder(MULTIMASK)(wide.jax, embed_BhwC, p) for p in (prompts, shuffled))
    assert_equal(actual.logits_BNMyx, expected.logits_BNMyx, COMPOSED)
    assert_equal(actual.iou_BNM, expected.iou_BNM, COMPOSED)


# The whole path from pixels to masks


def framed(size, seed):
    """A random image of `size`, and the same in the square frame with noise for padding."""
    rng = np.random.default_rng(seed)
    image_HW3 = rng.integers(0, 256, (*size, 3), np.uint8)
    frame_HW3 = rng.integers(0, 256, (80, 80, 3), np.uint8)
    frame_HW3[: size[0], : size[1]] = image_HW3
    return image_HW3, frame_HW3


@pytest.mark.parametrize('size', [(80, 53), (37, 80), (80, 80)])
def test_preprocessing(square, size):
    image_HW3, frame_HW3 = framed(size, seed=0)
    expected = channels_last(square.torch.preprocess(channels_first(image_HW3)))
    assert_equal(normalize(jnp.array(frame_HW3)[None], jnp.array([size]))[0], expected, SIMPLE)


def test_pixels_to_embedding(square):
    sizes = [(80, 53), (37, 80)]
    images = [framed(size, seed=i) for i, size in enumerate(sizes)]
    pixels = torch.stack([square.torch.preprocess(channels_first(image_HW3)) for image_HW3, _ in images])
    expected = channels_last(square.torch.image_encoder(pixels))
    actual = square.jax.encode(jnp.array([frame_HW3 for _, frame_HW3 in images]), jnp.array(sizes))
    assert_equal(actual, expected, COMPOSED)


def test_pixels_to_masks(square):
    """The original's whole forward pass: uint8 image, point and box -> masks at original size."""
    size, original = (80, 53), (121, 80)
    image_HW3, frame_HW3 = framed(size, seed=3)
    record = {
        'image': channels_first(image_HW3),
        'original_size': original,
        'point_coords': torch.tensor([[[20.0, 30.0]]]),
        'point_labels': torch.tensor([[1]]),
        'boxes': torch.tensor([[4.0, 5.0, 50.0, 70.0]]),
    }
    (expected,) = square.torch([record], multimask_output=True)
    embed_BhwC = square.jax.encode(jnp.array(frame_HW3)[None], jnp.array([size]))
    prompts = prompts_of([[Prompt(points=((20, 30, 1),), box=(4, 5, 50, 70))]], 3)
    prompts = dataclasses.replace(prompts, mask_BNyx=jnp.zeros((1, 1, 20, 20)))
    actual = decoder(MULTIMASK)(square.jax, embed_BhwC, prompts)
    assert_equal(actual.logits_BNMyx[0], expected['low_res_logits'], COMPOSED)
    assert_equal(actual.iou_BNM[0], expected['iou_predictions'], COMPOSED)
    rows, columns = restoring((20, 20), (80, 80), size, original)
    logits_MHW = rows @ np.asarray(actual.logits_BNMyx[0, 0]) @ columns.T
    clear_MHW = abs(logits_MHW) > COMPOSED
    np.testing.assert_array_equal((logits_MHW > 0)[clear_MHW], expected['masks'][0].numpy()[clear_MHW])
    assert clear_MHW.mean() > 0.99
    assert 0.05 < (logits_MHW > 0).mean() < 0.95


# Resizing


def restoring(low, frame, size, original):
    """Matrices from low-resolution logits to the frame, less its padding, to original size."""
    return tuple(
        resize.linear_matrix(s, o) @ resize.linear_matrix(x, f)[:s]
        for x, f, s, o in zip(low, frame, size, original, strict=True)
    )


@pytest.mark.parametrize(
    'original',
    [(45, 61), (200, 131), (64, 80), (80, 80), (33, 400)],
    ids=lambda o: f'{o[0]}x{o[1]}',
)
def test_postprocessing(square, original):
    size = frame_size(*original, (80, 80))
    low_yx = draw(14, 20, 20) * 4
    expected = square.torch.postprocess_masks(torch.from_numpy(low_yx)[None, None], size, original)[0, 0]
    rows, columns = restoring((20, 20), (80, 80), size, original)
    assert_equal(rows @ low_yx @ columns.T, expected, COMPOSED)


@pytest.mark.parametrize('original', [(1365, 2048), (375, 500), (4000, 3000)], ids=lambda o: f'{o[0]}x{o[1]}')
def test_postprocessing_of_the_released_frame(original):
    """One column of real size, against float64: PyTorch's float32 coordinates are off by 2e-4."""
    size = frame_size(*original, (1024, 1024))
    low_yx = draw(15, 256, 1) * 4
    low = torch.from_numpy(low_yx).double()[None, None]
    frame = F.interpolate(low, (1024, 1), mode='bilinear', align_corners=False)
    expected = F.interpolate(frame[:, :, : size[0]], (original[0], 1), mode='bilinear', align_corners=False)[0, 0]
    rows, _ = restoring((256, 1), (1024, 1), (size[0], 1), (original[0], 1))
    assert_equal(rows @ low_yx, expected, SIMPLE)


@pytest.mark.parametrize('size', [(3, 20), (5, 7), (11, 3), (1, 1)])
def test_resize_matrix(size):
    x_yx = draw(16, 5, 7)
    expected = F.interpolate(torch.from_numpy(x_yx)[None, None], size, mode='bilinear', align_corners=False)[0, 0]
    assert_equal(resize.linear_matrix(5, size[0]) @ x_yx @ resize.linear_matrix(7, size[1]).T, expected, SIMPLE)


@pytest.mark.parametrize('factor', [1, 2, 3, 4, 8])
def test_upsample(factor):
    x_BMyx = draw(17, 2, 3, 5, 7)
    expected = F.interpolate(torch.from_numpy(x_BMyx), (5 * factor, 7 * factor), mode='bilinear', align_corners=False)
    assert_equal(resize.upsample(x_BMyx, factor), expected, SIMPLE)


def test_frame_size_of_many_images():
    transform = oracle.segment_anything.utils.transforms.ResizeLongestSide
    sizes = [
        (1365, 2048),
        (2048, 1365),
        (1, 1),
        *np.random.default_rng(18).integers(100, 5000, (200, 2)).tolist(),
    ]
    for height, width in sizes:
        assert frame_size(height, width, (1024, 1024)) == transform.get_preprocess_shape(height, width, 1024)


# The released sizes, without memory for their weights


@pytest.mark.parametrize(
    ('size', 'parameters', 'entries'),
    [('vit_b', 93_735_472, 314), ('vit_l', 312_342_832, 482), ('vit_h', 641_090_608, 594)],
)
def test_released_sizes(size, parameters, entries):
    ours = nnx.eval_shape(lambda: Sam(SIZES[size], nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(ours, nnx.Param))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert sum(math.prod(leaf.shape) for leaf in leaves) == parameters

    with torch.device('meta'):
        theirs = oracle.segment_anything.sam_model_registry[size]()
    assert sum(parameter.numel() for parameter in theirs.parameters()) == parameters
    assert len(theirs.state_dict()) == entries
