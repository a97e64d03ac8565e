"""Prompts of a user, in pixels of the image, packed into the arrays that the model takes (`samjax.structs.Prompts`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samjax.errors import SamjaxError, one_line
from samjax.inference.frame import Frame
from samjax.structs import ABSENT, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NEGATIVE, NOT_A_POINT, POSITIVE, Prompts

SEVERAL_OBJECTS = '; for several objects give predict_batch a Prompt for each'


class PromptWarning(UserWarning):
    """A prompt that is used as it is, but most likely is a mistake."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt for one object; coordinates are (x, y) in pixels of the image.

    Fields are arrays, or anything that numpy makes arrays of: lists, tuples, tensors in the memory of the host.
    """

    points_K2: np.ndarray | None = None
    labels_K: np.ndarray | None = None  # 1 on the object, 0 on the background
    box_4: np.ndarray | None = None  # x0, y0, x1, y1; four numbers of any shape, such as (1, 4)
    mask_yx: np.ndarray | None = None  # low-resolution logits of an earlier prediction


class PackedPrompt(NamedTuple):
    """A prompt in pixels of the frame: a slot for each point and box corner, and for the token that ends points."""

    points_P2: np.ndarray  # float32
    labels_P: np.ndarray  # int32, codes of `samjax.structs`
    mask_yx: np.ndarray | None  # float32


# ---- prompts of any kind, one by one ----


def pack_prompt(prompt: Prompt, frame: Frame, low_res_size: tuple[int, int]) -> PackedPrompt:
    """A prompt in pixels of the frame.  low_res_size: (y, x) of the model's mask prompts.

    Raises:
        SamjaxError: an array has another shape, points or a box hold NaN, infinite values or no numbers, a label is
            unknown, or there are points without labels.
    """
    points, labels = [np.zeros((0, 2), np.float32)], [np.zeros(0, np.int32)]
    if (prompt.points_K2 is None) != (prompt.labels_K is None):
        raise SamjaxError('point_coords and point_labels go together: give both or neither.')
    if prompt.points_K2 is not None:
        points_K2 = finite_array(prompt.points_K2, 'the array of points')
        labels_K = finite_array(prompt.labels_K, 'the array of point labels')
        if points_K2.ndim != 2 or points_K2.shape[1] != 2 or labels_K.shape != points_K2.shape[:1]:
            raise SamjaxError(
                f'points have shape {points_K2.shape} and labels {labels_K.shape}: give (K, 2) and (K,)'
                f'{SEVERAL_OBJECTS if points_K2.ndim > 2 else ""}.'
            )
        unknown = set(labels_K.tolist()) - {POSITIVE, NEGATIVE, NOT_A_POINT}
        if unknown:
            raise SamjaxError(f'point label {min(unknown)} is neither 1 (object) nor 0 (background).')
        points.append(frame.apply_coords(points_K2))
        labels.append(labels_K)
        if prompt.box_4 is None:
            points.append(np.zeros((1, 2)))
            labels.append([NOT_A_POINT])
    if prompt.box_4 is not None:
        box = finite_array(prompt.box_4, 'the box')
        if box.size != 4:
            several = SEVERAL_OBJECTS if box.ndim > 1 else ''
            raise SamjaxError(f'the box has shape {box.shape}: give x0, y0, x1, y1{several}.')
        points.append(frame.apply_coords(box.reshape(2, 2)))
        labels.append([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT])
    # Not necessarily finite: evaluation passes on what a model predicted.
    mask_yx = None if prompt.mask_yx is None else np.asarray(prompt.mask_yx, np.float32)
    if mask_yx is not None and mask_yx.shape != low_res_size:
        raise SamjaxError(f'the mask has shape {mask_yx.shape}: give logits of shape {low_res_size}.')
    return PackedPrompt(np.concatenate(points).astype(np.float32), np.concatenate(labels).astype(np.int32), mask_yx)


def finite_array(values, name: str) -> np.ndarray:
    """`values` as an array of finite numbers (bool, integer or float); `name` is what errors call it.

    Raises:
        SamjaxError: numpy makes no array of it, or an array of something else.
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # lists of unequal lengths, tensors on a GPU
        raise SamjaxError(f'{name} cannot be made a numpy array, {one_line(error)}: give an array or a list.') from None
    if not (array.dtype == bool or any(jnp.issubdtype(array.dtype, kind) for kind in (np.integer, np.floating))):
        raise SamjaxError(f'{name} has dtype {array.dtype}: give integers or floats.')
    with np.errstate(over='ignore'):
        is_finite = np.isfinite(array.astype(np.float32)).all()
    if not is_finite:
        raise SamjaxError(f'{name} has NaN or infinite values: give finite numbers.')
    return array


def likely_mistakes(prompt: Prompt, height: int, width: int) -> Iterator[tuple[str, str]]:
    """What is odd about a valid prompt on an image of (height, width) px, each with what to give instead.

    A box may reach beyond the image, as those of detectors do, but not lie beside it.
    """
    outside = f'outside of the image of {width} x {height} px'
    if prompt.box_4 is not None:
        box_4 = np.asarray(prompt.box_4, np.float64).ravel()
        (x0, y0, x1, y1), text = box_4, ','.join(f'{side:.6g}' for side in box_4)
        if x1 < x0 or y1 < y0:
            remedy = 'give x0, y0, x1, y1, the top left and the bottom right corner, not x, y, width, height'
            yield f'the box {text} has its corners the wrong way round', remedy
        elif x1 < 0 or y1 < 0 or x0 > width or y0 > height:
            yield f'the box {text} is {outside}', 'give x0, y0, x1, y1 in px of the image'
    if prompt.points_K2 is not None:
        for x, y in np.asarray(prompt.points_K2, np.float64):
            if not (0 <= x <= width and 0 <= y <= height):
                yield f'the point {x:.6g},{y:.6g} is {outside}', 'give x, then y, in px of the image'
    dtype = np.dtype(np.float32) if prompt.mask_yx is None else np.asarray(prompt.mask_yx).dtype
    if not jnp.issubdtype(dtype, np.floating):
        remedy = 'give logits, such as the low-resolution masks of an earlier prediction'
        yield f'the mask prompt has dtype {dtype}, and its values are used as logits', remedy


def stack_prompts(
    packed_BN: Sequence[Sequence[PackedPrompt]], shape_BNP: tuple[int, int, int], low_res_size: tuple[int, int]
) -> Prompts:
    """The prompts for each image in arrays of `shape_BNP`; slots that remain are ABSENT."""
    points_BNP2, labels_BNP = np.zeros((*shape_BNP, 2), np.float32), np.full(shape_BNP, ABSENT, np.int32)
    for b, packed_N in enumerate(packed_BN):
        for n, (points_P2, labels_P, _) in enumerate(packed_N):
            points_BNP2[b, n, : len(labels_P)], labels_BNP[b, n, : len(labels_P)] = points_P2, labels_P
    if all(packed.mask_yx is None for packed_N in packed_BN for packed in packed_N):
        return Prompts(points_BNP2, labels_BNP)
    mask_BNyx, has_mask_BN = np.zeros((*shape_BNP[:2], *low_res_size), np.float32), np.zeros(shape_BNP[:2], bool)
    for b, packed_N in enumerate(packed_BN):
        for n, packed in enumerate(packed_N):
            if packed.mask_yx is not None:
                mask_BNyx[b, n], has_mask_BN[b, n] = packed.mask_yx, True
    return Prompts(points_BNP2, labels_BNP, mask_BNyx, has_mask_BN)


# ---- prompts of one kind for all objects of an image, in pixels of the frame ----


def point_prompts(points_NP2, labels_NP, masks_Nyx=None) -> Prompts:
    """P points for each of N objects of one image, and the token that ends points without a box: (1, N, P + 1) slots.

    points_NP2: float32, numpy, or JAX inside of jit; labels_NP: POSITIVE or NEGATIVE, an array or one for all points;
    masks_Nyx: low-resolution logits.
    """
    xp = _namespace(points_NP2)
    count = len(points_NP2)
    labels_NP = xp.broadcast_to(xp.asarray(labels_NP, xp.int32), points_NP2.shape[:2])
    points_1NP2 = xp.concatenate([points_NP2, xp.zeros((count, 1, 2), xp.float32)], 1)[None]
    labels_1NP = xp.concatenate([labels_NP, xp.full((count, 1), NOT_A_POINT, xp.int32)], 1)[None]
    return Prompts(points_1NP2, labels_1NP, *_mask_prompts(masks_Nyx))


def box_prompts(boxes_N4, masks_Nyx=None) -> Prompts:
    """A box for each of N objects of one image: (1, N, 2) slots.

    boxes_N4: float32 x0, y0, x1, y1, numpy, or JAX inside of jit; masks_Nyx: low-resolution logits.
    """
    xp = _namespace(boxes_N4)
    labels_1N2 = xp.broadcast_to(xp.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], xp.int32), (1, len(boxes_N4), 2))
    return Prompts(boxes_N4.reshape(1, -1, 2, 2), labels_1N2, *_mask_prompts(masks_Nyx))


def pad_prompts(prompts: Prompts, count: int, slots: int) -> Prompts:
    """Prompts (numpy) with room for `count` objects and `slots` slots, so that few shapes are compiled.

    Raises ValueError if there are more already.
    """
    _, n, p = prompts.labels_BNP.shape
    new_objects, new_slots = (0, count - n), (0, slots - p)
    points_BNP2 = np.pad(prompts.points_BNP2, ((0, 0), new_objects, new_slots, (0, 0)))
    labels_BNP = np.pad(prompts.labels_BNP, ((0, 0), new_objects, new_slots), constant_values=ABSENT)
    if prompts.mask_BNyx is None:
        return Prompts(points_BNP2, labels_BNP)
    mask_BNyx = np.pad(prompts.mask_BNyx, ((0, 0), new_objects, (0, 0), (0, 0)))
    return Prompts(points_BNP2, labels_BNP, mask_BNyx, np.pad(prompts.has_mask_BN, ((0, 0), new_objects)))


def _mask_prompts(masks_Nyx):
    """(mask_BNyx, has_mask_BN) of `Prompts`."""
    if masks_Nyx is None:
        return None, None
    return masks_Nyx[None], _namespace(masks_Nyx).ones((1, len(masks_Nyx)), bool)


def _namespace(array):
    return jnp if isinstance(array, jax.Array) else np
