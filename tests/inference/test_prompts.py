"""Prompts of one kind for a whole image are those that are packed one by one, on the host and inside of jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samjax.inference.frame import Frame
from samjax.inference.prompts import Prompt, box_prompts, pack_prompt, pad_prompts, point_prompts, stack_prompts
from samjax.model.config import SIZES
from samjax.structs import ABSENT, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NEGATIVE, NOT_A_POINT, POSITIVE

CONFIG = SIZES['test']
RNG = np.random.default_rng(0)
POINTS_NK2 = RNG.uniform(0, 60, (3, 4, 2))
LABELS_NK = RNG.integers(0, 2, (3, 4))
BOXES_N4 = RNG.uniform(0, 60, (3, 4))
MASKS_NYX = RNG.normal(size=(3, *CONFIG.low_res_size)).astype(np.float32)


@pytest.fixture
def frame():
    return Frame(CONFIG, 50, 60)


def stacked(prompts, frame, shape_BNP):
    return stack_prompts(
        [[pack_prompt(p, frame, CONFIG.low_res_size) for p in prompts]], shape_BNP, CONFIG.low_res_size
    )


def assert_same(prompts, expected):
    jax.tree.map(np.testing.assert_array_equal, prompts, expected)
    assert jax.tree.map(lambda x: x.dtype, prompts) == jax.tree.map(lambda x: x.dtype, expected)


def test_worked_example():
    prompts = point_prompts(np.array([[[3, 4]], [[5, 6]]], np.float32), POSITIVE)
    assert prompts.points_BNP2.tolist() == [[[[3, 4], [0, 0]], [[5, 6], [0, 0]]]]
    assert prompts.labels_BNP.tolist() == [[[POSITIVE, NOT_A_POINT]] * 2]
    padded = pad_prompts(prompts, 3, 3)
    assert padded.labels_BNP.tolist() == [[[POSITIVE, NOT_A_POINT, ABSENT]] * 2 + [[ABSENT] * 3]]
    assert padded.mask_BNyx is None
    prompts = box_prompts(np.array([[1, 2, 3, 4]], np.float32))
    assert prompts.points_BNP2.tolist() == [[[[1, 2], [3, 4]]]]
    assert prompts.labels_BNP.tolist() == [[[BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]]]


@pytest.mark.parametrize('masks_Nyx', [None, MASKS_NYX], ids=['without masks', 'with masks'])
def test_same_as_packed_one_by_one(frame, masks_Nyx):
    masks = [None] * 3 if masks_Nyx is None else masks_Nyx
    expected = stacked(
        [Prompt(*fields, None, mask) for *fields, mask in zip(POINTS_NK2, LABELS_NK, masks, strict=True)],
        frame,
        (1, 4, 8),
    )
    assert_same(pad_prompts(point_prompts(frame.apply_coords(POINTS_NK2), LABELS_NK, masks_Nyx), 4, 8), expected)

    expected = stacked(
        [Prompt(box_4=box_4, mask_yx=mask) for box_4, mask in zip(BOXES_N4, masks, strict=True)], frame, (1, 5, 2)
    )
    boxes_N4 = frame.apply_coords(BOXES_N4.reshape(-1, 2, 2)).reshape(-1, 4)
    assert_same(pad_prompts(box_prompts(boxes_N4, masks_Nyx), 5, 2), expected)


def test_same_inside_of_jit():
    points_NK2, boxes_N4 = POINTS_NK2.astype(np.float32), BOXES_N4.astype(np.float32)
    assert_same(
        jax.jit(point_prompts)(points_NK2, LABELS_NK, MASKS_NYX), point_prompts(points_NK2, LABELS_NK, MASKS_NYX)
    )
    assert_same(jax.jit(lambda x: point_prompts(x, NEGATIVE))(points_NK2), point_prompts(points_NK2, NEGATIVE))
    assert_same(jax.jit(box_prompts)(jnp.asarray(boxes_N4)), box_prompts(boxes_N4))


def test_more_prompts_than_room():
    with pytest.raises(ValueError, match='negative'):
        pad_prompts(box_prompts(BOXES_N4), 2, 2)
