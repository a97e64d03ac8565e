"""Masks for images and prompts as they come: any size, any number, in pixels of the image.

`Predictor.set_image` and `predict` take and return what segment-anything's `SamPredictor` does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from scipy import sparse

from samjax.data import transforms
from samjax.errors import SamjaxError
from samjax.masks import resize
from samjax.model.attention.attention import ATTEND
from samjax.model.params import abstract_state, digest
from samjax.model.sam import Sam, SamConfig
from samjax.structs import (
    ABSENT,
    BOX_BOTTOM_RIGHT,
    BOX_TOP_LEFT,
    MULTIMASK,
    NEGATIVE,
    NOT_A_POINT,
    POSITIVE,
    SINGLE_MASK,
    Prediction,
    Prompts,
)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is said about one object; coordinates are (x, y) in pixels of the image."""

    points_K2: np.ndarray | None = None
    labels_K: np.ndarray | None = None  # 1 on the object, 0 on the background
    box_4: np.ndarray | None = None  # x0, y0, x1, y1
    mask_yx: np.ndarray | None = None  # low-resolution logits of an earlier prediction


@dataclasses.dataclass(frozen=True)
class MaskPrediction:
    """Up to three masks for one prompt."""

    masks_MHW: np.ndarray  # bool at the size of the image, or float32 logits if these were asked for
    iou_M: np.ndarray  # float32, the IoU the model expects each to have
    low_Myx: np.ndarray  # float32 logits, as mask prompt for a next call


@dataclasses.dataclass(frozen=True)
class Embedding:
    """What the encoder says of an image: enough to predict masks without either; see `samjax.jobs.embeddings`."""

    embed_hwC: np.ndarray  # float32, or float16 to save room
    original: tuple[int, int]  # height and width of the image, px
    size: tuple[int, int]  # of the image in the model frame, px
    frame: tuple[int, int]  # of the model, px
    model: str  # digest of its parameters


ALL = slice(None)


class Frame:
    """How an image of (height, width) px lies in the model frame, and how masks get back from there."""

    def __init__(self, config: SamConfig, height: int, width: int):
        self.original = height, width
        self.size = new_h, new_w = transforms.frame_size(height, width, config.image_size)
        # Low resolution -> frame -> cut off the padding -> original size, at once for each axis.
        (low_y, low_x), (frame_h, frame_w) = config.low_size, config.image_size
        self.rows = resize.chained(resize.taps(low_y, frame_h), resize.taps(new_h, height))
        self.columns = resize.chained(resize.taps(low_x, frame_w), resize.taps(new_w, width))

    def points(self, points_K2: np.ndarray) -> np.ndarray:
        """Pixels of the image -> pixels of the frame, float32; in float64 until then, as the original does."""
        (height, width), (new_h, new_w) = self.original, self.size
        return (np.asarray(points_K2, np.float64) * (new_w / width, new_h / height)).astype(np.float32)

    def upscale(self, low_yx: np.ndarray, rows: slice = ALL, columns: slice = ALL) -> np.ndarray:
        """Low-resolution logits of the frame -> logits of these rows and columns of the image, float32 (H, W)."""
        low_y, low_x = low_yx.shape
        columns_Wx, rows_Hy = _sparse(self.columns, columns, low_x), _sparse(self.rows, rows, low_y)
        wide_yW = np.ascontiguousarray((columns_Wx @ low_yx.T).T)
        return rows_Hy @ wide_yW

    def masks(self, low_Myx: np.ndarray, as_logits: bool) -> np.ndarray:
        """Low-resolution logits -> masks (M, H, W) at the size of the image: bool, or float32 logits."""
        masks_MHW = np.empty((len(low_Myx), *self.original), np.float32 if as_logits else bool)
        for m, low_yx in enumerate(low_Myx):  # one at a time: full-size logits are large
            logits_HW = self.upscale(low_yx)
            masks_MHW[m] = logits_HW if as_logits else logits_HW > 0
        return masks_MHW


def _sparse(taps: resize.Taps, some: slice, n_in: int) -> sparse.csr_array:
    """The matrix (outputs, n_in) of some outputs of an axis."""
    first_n, weight_nt = taps.first_n[some], taps.weight_nt[some]
    places_nt = np.minimum(first_n[:, None] + np.arange(weight_nt.shape[1]), n_in - 1)
    rows = np.arange(len(first_n) + 1) * weight_nt.shape[1]
    return sparse.csr_array((weight_nt.ravel(), places_nt.ravel(), rows), (len(first_n), n_in))


class Predictor:
    """A SAM that answers prompts about images.  Programs are compiled for the shapes that occur, in powers of two."""

    def __init__(self, config: SamConfig, params: nnx.State, buffers: nnx.State):
        self.config = config
        attend = ATTEND[jax.default_backend()]
        self.model = abstract_state(dataclasses.replace(config, attend=attend))[0], params, buffers
        self.reset_image()

    # ---- one image, as in segment-anything ----

    def set_image(self, image: np.ndarray, image_format: str = 'RGB') -> None:
        """Encodes an image, uint8 (H, W, 3), for calls of `predict`.

        Raises:
            SamjaxError: it is not such an image, or the format is neither 'RGB' nor 'BGR'.
        """
        if image_format not in ('RGB', 'BGR'):
            raise SamjaxError(f"image_format must be 'RGB' or 'BGR', not {image_format!r}.")
        check_image(image)
        self.reset_image()
        [self._frame], self._embed_BhwC = self.encode([image if image_format == 'RGB' else image[..., ::-1]])

    def set_embedding(self, embedding: Embedding) -> None:
        """Takes what `embedding` gave, here or elsewhere, in place of an image.

        Raises:
            SamjaxError: it is of another model, or has another shape.
        """
        if embedding.model != self.digest:
            raise SamjaxError(
                f'the embedding is of another model (parameters {embedding.model}, frame {embedding.frame}) than this '
                f'({self.digest}, {self.config.image_size}): take that model, or embed the image again with this one'
            )
        frame = Frame(self.config, *embedding.original)
        found = embedding.embed_hwC.shape, embedding.frame, embedding.size
        wanted = (*self.config.grid, self.config.channels), self.config.image_size, frame.size
        if found != wanted:
            raise SamjaxError(
                'the embedding has shape {}, of a frame of {} px with an image of {} px in it, in place of {}, {} and '
                '{}: embed the image again'.format(*found, *wanted)
            )
        embed_1hwC = np.asarray(embedding.embed_hwC[None], self.config.dtype)
        self._frame, self._embed_BhwC = frame, _beside(self.model[1], embed_1hwC)

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks of one object of the image that was set.

        Args:
          point_coords: (K, 2), x and y in px of the image.
          point_labels: (K,), 1 on the object, 0 on the background.
          box: (4,), x0, y0, x1, y1.
          mask_input: (1, y, x), low-resolution logits of an earlier prediction.
          multimask_output: three masks, for an ambiguous prompt, instead of one.
          return_logits: masks as logits instead of bool.

        Returns:
          masks (M, H, W), the IoU the model expects of each (M,), low-resolution logits (M, y, x).

        Raises:
          SamjaxError: no image was set, or the prompt has another shape or unknown labels.
        """
        if not self.is_image_set:
            raise SamjaxError('no image is set: call set_image before predict.')
        mask_yx = None if mask_input is None else np.asarray(mask_input)[0]
        prompt = Prompt(point_coords, point_labels, box, mask_yx)
        [[prediction]] = self._answer([self._frame], self._embed_BhwC, [[prompt]], multimask_output, return_logits)
        return prediction.masks_MHW, prediction.iou_M, prediction.low_Myx

    @property
    def is_image_set(self) -> bool:
        return self._frame is not None

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the image that was set, in px."""
        return self._frame.original

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) it has in the model frame."""
        return self._frame.size

    def get_image_embedding(self) -> jax.Array:
        """(1, h, w, C), channels last, of the image that was set."""
        if not self.is_image_set:
            raise SamjaxError('no image is set: call set_image before get_image_embedding.')
        return self._embed_BhwC

    def embedding(self) -> Embedding:
        """Of the image that was set, float32, for `set_embedding`."""
        embed_hwC = np.asarray(self.get_image_embedding(), np.float32)[0]
        return Embedding(embed_hwC, self.original_size, self.input_size, self.config.image_size, self.digest)

    @functools.cached_property
    def digest(self) -> str:
        """Of the parameters; takes half a second for each GB of them."""
        return digest(self.model[1])

    def reset_image(self) -> None:
        self._frame, self._embed_BhwC = None, None

    # ---- many images, many prompts ----

    def predict_batch(
        self,
        images: Sequence[np.ndarray],
        prompts: Sequence[Sequence[Prompt]],
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> list[list[MaskPrediction]]:
        """An prediction to each prompt about each image; images may differ in size and prompts in number and kind.

        Raises:
          SamjaxError: an image or a prompt has another shape or unknown labels, or there are not as many lists of
            prompts as images.
        """
        if len(images) != len(prompts):
            raise SamjaxError(f'there are {len(images)} images and {len(prompts)} lists of prompts: give one for each.')
        if not images:
            return []
        frames, embed_BhwC = self.encode(images)
        return self._answer(frames, embed_BhwC, prompts, multimask_output, return_logits)

    def encode(self, images: Sequence[np.ndarray]) -> tuple[list[Frame], jax.Array]:
        """Where each image lies in the frame, and embed_BhwC of all; B is filled up to a power of two."""
        for image in images:
            check_image(image)
        batch = _room(len(images))
        image_BHW3 = np.zeros((batch, *self.config.image_size, 3), np.uint8)
        size_B2 = np.zeros((batch, 2), np.int32)
        for b, image in enumerate(images):
            image_BHW3[b], size_B2[b] = transforms.frame_image(image, self.config.image_size)
        frames = [Frame(self.config, *image.shape[:2]) for image in images]
        return frames, _encode(*self.model, image_BHW3, size_B2)

    def decode(self, embed_BhwC: jax.Array, prompts: Prompts, answering: tuple[int, ...]) -> Prediction:
        """The model's decoder, compiled for the shapes of its arguments; see `samjax.structs`."""
        return _decode(*self.model, embed_BhwC, prompts, answering)

    def answer_low(
        self,
        frames: Sequence[Frame],
        embed_BhwC: jax.Array,
        prompts: Sequence[Sequence[Prompt]],
        answering: tuple[int, ...],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Low-resolution logits and expected IoU of the mask tokens `answering`, for each prompt about each image.

        (B, N, M, y, x) and (B, N, M), where B and N are filled up with rows that mean nothing.
        """
        said = [[pack_prompt(self.config, f, p) for p in of_image] for f, of_image in zip(frames, prompts, strict=True)]
        objects = _room(max(map(len, said)))
        slots = _room(max((len(s.labels_P) for of_image in said for s in of_image), default=1))
        filled = pack_prompts(said, (len(embed_BhwC), objects, slots), self.config.low_size)
        prediction = self.decode(embed_BhwC, filled, answering)
        return np.asarray(prediction.logits_BNMyx), np.asarray(prediction.iou_BNM)

    def _answer(
        self, frames, embed_BhwC, prompts, multimask_output: bool, return_logits: bool
    ) -> list[list[MaskPrediction]]:
        if not any(prompts):
            return [[] for _ in prompts]
        answering = MULTIMASK if multimask_output else SINGLE_MASK
        low_BNMyx, iou_BNM = self.answer_low(frames, embed_BhwC, prompts, answering)
        return [
            [
                MaskPrediction(frame.masks(low_BNMyx[b, n], return_logits), iou_BNM[b, n], low_BNMyx[b, n])
                for n in range(len(of_image))
            ]
            for b, (frame, of_image) in enumerate(zip(frames, prompts, strict=True))
        ]


class PackedPrompt(NamedTuple):
    """A prompt in the frame: a slot for every point and corner, and for the token that goes with points alone."""

    points_P2: np.ndarray
    labels_P: np.ndarray
    mask_yx: np.ndarray | None


def pack_prompts(
    said: Sequence[Sequence[PackedPrompt]], room: tuple[int, int, int], low_size: tuple[int, int]
) -> Prompts:
    """The prompts about each image, in arrays with room for (B, N, P); what is left over is absent."""
    points_BNP2, labels_BNP = np.zeros((*room, 2), np.float32), np.full(room, ABSENT, np.int32)
    for b, of_image in enumerate(said):
        for n, (points_P2, labels_P, _) in enumerate(of_image):
            points_BNP2[b, n, : len(labels_P)], labels_BNP[b, n, : len(labels_P)] = points_P2, labels_P
    if all(mask_yx is None for of_image in said for *_, mask_yx in of_image):
        return Prompts(points_BNP2, labels_BNP)
    mask_BNyx, has_mask_BN = np.zeros((*room[:2], *low_size), np.float32), np.zeros(room[:2], bool)
    for b, of_image in enumerate(said):
        for n, (*_, mask_yx) in enumerate(of_image):
            if mask_yx is not None:
                mask_BNyx[b, n], has_mask_BN[b, n] = mask_yx, True
    return Prompts(points_BNP2, labels_BNP, mask_BNyx, has_mask_BN)


def pack_prompt(config: SamConfig, frame: Frame, prompt: Prompt) -> PackedPrompt:
    points, labels = [np.zeros((0, 2), np.float32)], [np.zeros(0, np.int32)]
    if (prompt.points_K2 is None) != (prompt.labels_K is None):
        raise SamjaxError('point_coords and point_labels go together: give both or neither.')
    if prompt.points_K2 is not None:
        points_K2, labels_K = np.asarray(prompt.points_K2), np.asarray(prompt.labels_K)
        if points_K2.ndim != 2 or points_K2.shape[1] != 2 or labels_K.shape != points_K2.shape[:1]:
            raise SamjaxError(f'points have shape {points_K2.shape} and labels {labels_K.shape}: give (K, 2) and (K,).')
        unknown = set(labels_K.tolist()) - {POSITIVE, NEGATIVE, NOT_A_POINT}
        if unknown:
            raise SamjaxError(f'point label {unknown.pop()} is neither 1 (object) nor 0 (background).')
        points.append(frame.points(points_K2))
        labels.append(labels_K)
        if prompt.box_4 is None:
            points.append(np.zeros((1, 2)))
            labels.append([NOT_A_POINT])
    if prompt.box_4 is not None:
        box_4 = np.asarray(prompt.box_4)
        if box_4.shape != (4,):
            raise SamjaxError(f'the box has shape {box_4.shape}: give x0, y0, x1, y1.')
        points.append(frame.points(box_4.reshape(2, 2)))
        labels.append([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT])
    mask_yx = None if prompt.mask_yx is None else np.asarray(prompt.mask_yx, np.float32)
    if mask_yx is not None and mask_yx.shape != config.low_size:
        raise SamjaxError(f'the mask has shape {mask_yx.shape}: give logits of shape {config.low_size}.')
    return PackedPrompt(np.concatenate(points).astype(np.float32), np.concatenate(labels).astype(np.int32), mask_yx)


def check_image(image) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f'{image.dtype} {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__
        raise SamjaxError(f'an image is {what}: give a numpy array, uint8 (height, width, 3).')
    if 0 in image.shape:
        raise SamjaxError(f'an image has shape {image.shape}: it needs at least one pixel.')


def _beside(params: nnx.State, array: np.ndarray) -> jax.Array:
    """The array on the device of the parameters."""
    leaf = jax.tree.leaves(params)[0]
    return jax.device_put(array, leaf.sharding if isinstance(leaf, jax.Array) else None)


def _room(count: int) -> int:
    """The next power of two, so that few programs are compiled."""
    return 1 << (max(count, 1) - 1).bit_length()


@functools.partial(jax.jit, static_argnums=0)
def _encode(graphdef, params, buffers, image_BHW3, size_B2) -> jax.Array:
    sam: Sam = nnx.merge(graphdef, params, buffers)
    return sam.encode(image_BHW3, size_B2)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _decode(graphdef, params, buffers, embed_BhwC, prompts: Prompts, answering: tuple[int, ...]) -> Prediction:
    sam: Sam = nnx.merge(graphdef, params, buffers)
    return sam.decode(embed_BhwC, prompts, answering)
