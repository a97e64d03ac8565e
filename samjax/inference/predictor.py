"""Masks for images and prompts of any size and number, in pixels of the image.

`Predictor.set_image` and `predict` take and return what segment-anything's `SamPredictor` does.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from samjax.data import transforms
from samjax.errors import SamjaxError
from samjax.inference.frame import Frame
from samjax.inference.prompts import (
    SEVERAL_OBJECTS,
    Prompt,
    PromptWarning,
    finite_array,
    likely_mistakes,
    pack_prompt,
    stack_prompts,
)
from samjax.model.attention.by_platform import BY_PLATFORM
from samjax.model.config import SamConfig
from samjax.model.params import abstract_state, digest
from samjax.model.runtime import Runtime
from samjax.model.sam import Sam
from samjax.structs import MULTIMASK, SINGLE_MASK, Prediction, Prompts

# Attributes of segment-anything's SamPredictor that `Predictor` has not, and what is used instead.
INSTEAD_OF = {
    'predict_torch': 'predict_batch takes several prompts, in px of the image',
    'set_torch_image': 'set_image takes the image as it is',
    'transform': 'images and coordinates are given in px of the image, not of the model frame',
    'features': 'get_image_embedding() returns them, channels last, and set_embedding() takes what embedding() returns',
    'device': 'arrays are given and returned as numpy arrays',
}


@dataclasses.dataclass(frozen=True)
class MaskPrediction:
    """The masks predicted for one prompt: M is 3, or 1 without multimask output."""

    masks_MHW: np.ndarray  # bool at the size of the image, or float32 logits with `return_logits`
    iou_predictions_M: np.ndarray  # float32, the IoU the model expects of each
    low_res_masks_Myx: np.ndarray  # float32 logits, the mask prompt of a next call


@dataclasses.dataclass(frozen=True)
class Embedding:
    """An encoded image: enough to predict masks without the image and the encoder.

    The fields are those of a file written by `samjax embed` (samjax/jobs/embeddings.py).
    """

    embed_hwC: np.ndarray  # float32, or float16 to save space
    original: tuple[int, int]  # height and width of the image, px
    size: tuple[int, int]  # of the image in the model frame, px
    frame: tuple[int, int]  # of the model, px
    model: str  # digest of its parameters


class Predictor:
    """Predicts masks for prompts on images.

    The encoder and the decoder are compiled for each shape that occurs.  Numbers of images, objects and prompts are
    padded to powers of two, so that few shapes occur.
    """

    def __init__(self, config: SamConfig, params: nnx.State, buffers: nnx.State, dtype: str = 'float32'):
        """dtype: of activations, 'float32' or 'bfloat16'."""
        self.config, self.dtype = config, dtype
        runtime = Runtime(dtype, attention=BY_PLATFORM[jax.default_backend()])
        self.model = abstract_state(config, runtime=runtime)[0], params, buffers
        self.reset_image()

    # ---- one image, as in segment-anything ----

    def set_image(self, image: np.ndarray, image_format: str = 'RGB') -> None:
        """Encodes an image, uint8 (H, W, 3), for calls of `predict`.

        Raises:
            SamjaxError: the image has another type or shape, or the format is neither 'RGB' nor 'BGR'.
        """
        if image_format not in ('RGB', 'BGR'):
            raise SamjaxError(f"image_format must be 'RGB' or 'BGR', not {image_format!r}.")
        check_image(image)
        self.reset_image()
        [self._frame], self._embed_BhwC = self.encode([image if image_format == 'RGB' else image[..., ::-1]])

    def set_embedding(self, embedding: Embedding) -> None:
        """Sets an image by its embedding, which this predictor or another process has computed.

        Raises:
            SamjaxError: it is of another model, or has another shape.
        """
        if embedding.model != self.digest:
            raise SamjaxError(
                f'the embedding is of another model (parameters {embedding.model}, input {embedding.frame}) than this '
                f'({self.digest}, {self.config.image_size}): take that model, or embed the image again with this one'
            )
        frame = Frame(self.config, *embedding.original)
        actual = embedding.embed_hwC.shape, embedding.frame, embedding.size
        expected = (*self.config.embedding_size, self.config.embed_dim), self.config.image_size, frame.input_size
        if actual != expected:
            raise SamjaxError(
                'the embedding has shape {}, of a model input of {} px with an image of {} px in it, not {}, {} and '
                '{}: embed the image again'.format(*actual, *expected)
            )
        embed_1hwC = np.asarray(embedding.embed_hwC[None], self.dtype)
        self._frame, self._embed_BhwC = frame, _put_beside(self.model[1], embed_1hwC)

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predicts masks of one object of the image that was set.

        Arguments are arrays, lists, tuples, or tensors in the memory of the host.  Coordinates may lie outside of the
        image.

        Args:
          point_coords: (K, 2), x and y in px of the image.
          point_labels: (K,), 1 on the object, 0 on the background.
          box: (4,) or (1, 4), x0, y0, x1, y1.
          mask_input: (1, y, x), low-resolution logits of an earlier prediction.
          multimask_output: three masks, for an ambiguous prompt, instead of one.
          return_logits: masks as float32 logits instead of bool.

        Returns:
          masks (M, H, W), iou_predictions (M,), the IoU the model expects of each, and low_res_masks (M, y, x), logits.

        Raises:
          SamjaxError: no image was set, or the prompt has another shape or type, NaN or infinite values, or unknown
            labels.

        Warns:
          PromptWarning: the corners of the box are the wrong way round, the box or a point lies outside of the image,
            or the mask input holds no floats.
        """
        self._check_image_set('predict')
        mask_yx = None if mask_input is None else self._single_mask(mask_input)
        prompt = Prompt(point_coords, point_labels, box, mask_yx)
        [[prediction]] = self._predict([self._frame], self._embed_BhwC, [[prompt]], multimask_output, return_logits)
        return prediction.masks_MHW, prediction.iou_predictions_M, prediction.low_res_masks_Myx

    def _single_mask(self, mask_input) -> np.ndarray:
        """mask_input (1, y, x) without its first axis."""
        mask_1yx, expected = finite_array(mask_input, 'mask_input'), (1, *self.config.low_res_size)
        if mask_1yx.shape != expected:
            raise SamjaxError(
                f'mask_input has shape {mask_1yx.shape}: give the logits of one mask, {expected}, such as '
                f'low_res_masks[:1] of an earlier prediction{SEVERAL_OBJECTS if mask_1yx.ndim > 3 else ""}.'
            )
        return mask_1yx[0]

    def _check_image_set(self, name: str) -> None:
        if not self.is_image_set:
            raise SamjaxError(f'no image is set: call set_image before {name}.')

    def __getattr__(self, name: str):
        instead = f': {INSTEAD_OF[name]}' if name in INSTEAD_OF else ''
        raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}{instead}')

    @property
    def is_image_set(self) -> bool:
        return self._frame is not None

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the image that was set, px."""
        self._check_image_set('original_size')
        return self._frame.original_size

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) that it takes in the model frame, px."""
        self._check_image_set('input_size')
        return self._frame.input_size

    def get_image_embedding(self) -> jax.Array:
        """(1, h, w, C), channels last, of the image that was set."""
        self._check_image_set('get_image_embedding')
        return self._embed_BhwC

    def embedding(self) -> Embedding:
        """Of the image that was set, float32, for `set_embedding`."""
        embed_hwC = np.asarray(self.get_image_embedding(), np.float32)[0]
        return Embedding(embed_hwC, self.original_size, self.input_size, self.config.image_size, self.digest)

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the parameters (`samjax.model.params.digest`); takes half a second for each GB of them."""
        return digest(self.model[1])

    def reset_image(self) -> None:
        """Forgets the image that was set."""
        self._frame, self._embed_BhwC = None, None

    # ---- many images, many prompts ----

    def predict_batch(
        self,
        images: Sequence[np.ndarray],
        prompts: Sequence[Sequence[Prompt]],
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> list[list[MaskPrediction]]:
        """A prediction for each prompt of each image; images may differ in size, and prompts in number and kind.

        Raises:
          SamjaxError: an image or a prompt is not as in `set_image` and `predict`, or there are not as many lists of
            prompts as images.

        Warns:
          PromptWarning: as in `predict`; once for all prompts with the same mistake.
        """
        if len(images) != len(prompts):
            raise SamjaxError(f'there are {len(images)} images and {len(prompts)} lists of prompts: give one for each.')
        for b, prompts_N in enumerate(prompts):
            if not isinstance(prompts_N, Sequence) or not all(isinstance(prompt, Prompt) for prompt in prompts_N):
                raise SamjaxError(f'prompts[{b}] is not a list of Prompt: give one for each image.')
            for n, prompt in enumerate(prompts_N):
                if prompt.mask_yx is not None:
                    finite_array(prompt.mask_yx, f'prompts[{b}][{n}].mask_yx')
        if not len(images):
            return []
        frames, embed_BhwC = self.encode(images)
        return self._predict(frames, embed_BhwC, prompts, multimask_output, return_logits)

    def encode(self, images: Sequence[np.ndarray]) -> tuple[list[Frame], jax.Array]:
        """The frame of each image, and embed_BhwC of all; B is padded to a power of two.

        Raises:
          SamjaxError: an image has another type or shape than uint8 (H, W, 3).
        """
        for image in images:
            check_image(image)
        batch_size = _next_power_of_two(len(images))
        image_BHW3 = np.zeros((batch_size, *self.config.image_size, 3), np.uint8)
        size_B2 = np.zeros((batch_size, 2), np.int32)
        for b, image in enumerate(images):
            image_BHW3[b], size_B2[b] = transforms.frame_image(image, self.config.image_size)
        frames = [Frame(self.config, *image.shape[:2]) for image in images]
        return frames, _encode(*self.model, image_BHW3, size_B2)

    def decode(self, embed_BhwC: jax.Array, prompts: Prompts, mask_tokens: tuple[int, ...]) -> Prediction:
        """The model's decoder, compiled for the shapes of its arguments; mask_tokens: as in `Sam.decode`."""
        return _decode(*self.model, embed_BhwC, prompts, mask_tokens)

    def predict_low_res(
        self,
        frames: Sequence[Frame],
        embed_BhwC: jax.Array,
        prompts: Sequence[Sequence[Prompt]],
        mask_tokens: tuple[int, ...],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Low-resolution logits (B, N, M, y, x) and expected IoU (B, N, M) for each prompt of each image.

        B and N are padded; what the padding holds has no meaning.
        """
        packed_BN = [[] for _ in prompts]
        for b, (frame, prompts_N) in enumerate(zip(frames, prompts, strict=True)):
            for n, prompt in enumerate(prompts_N):
                try:
                    packed_BN[b].append(pack_prompt(prompt, frame, self.config.low_res_size))
                except SamjaxError as error:
                    if sum(map(len, prompts)) == 1:
                        raise
                    raise SamjaxError(f'prompts[{b}][{n}]: {error}') from None
        count = _next_power_of_two(max(map(len, packed_BN)))
        slots = _next_power_of_two(
            max((len(packed.labels_P) for packed_N in packed_BN for packed in packed_N), default=1)
        )
        stacked = stack_prompts(packed_BN, (len(embed_BhwC), count, slots), self.config.low_res_size)
        prediction = self.decode(embed_BhwC, stacked, mask_tokens)
        return np.asarray(prediction.logits_BNMyx), np.asarray(prediction.iou_BNM)

    def _predict(
        self, frames, embed_BhwC, prompts, multimask_output: bool, return_logits: bool
    ) -> list[list[MaskPrediction]]:
        if not any(prompts):
            return [[] for _ in prompts]
        mask_tokens = MULTIMASK if multimask_output else SINGLE_MASK
        low_res_BNMyx, iou_BNM = self.predict_low_res(frames, embed_BhwC, prompts, mask_tokens)
        _warn_of_mistakes(frames, prompts)
        return [
            [
                MaskPrediction(
                    frame.postprocess_masks(low_res_BNMyx[b, n], return_logits), iou_BNM[b, n], low_res_BNMyx[b, n]
                )
                for n in range(len(prompts_N))
            ]
            for b, (frame, prompts_N) in enumerate(zip(frames, prompts, strict=True))
        ]


def check_image(image) -> None:
    """Raises SamjaxError unless `image` is a numpy array, uint8 (H, W, 3), with at least one pixel."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f'{image.dtype} {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__
        raise SamjaxError(f'an image is {what}: give a numpy array, uint8 (height, width, 3).')
    if 0 in image.shape:
        raise SamjaxError(f'an image has shape {image.shape}: it needs at least one pixel.')


def _warn_of_mistakes(frames: Sequence[Frame], prompts: Sequence[Sequence[Prompt]]) -> None:
    """Warns the caller of a method that calls `_predict`, once for each remedy."""
    descriptions = {}  # by remedy
    for frame, prompts_N in zip(frames, prompts, strict=True):
        for prompt in prompts_N:
            for description, remedy in likely_mistakes(prompt, *frame.original_size):
                descriptions.setdefault(remedy, []).append(description)
    for remedy, (first, *others) in descriptions.items():
        more = f' (and {len(others)} more)' if others else ''
        warnings.warn(f'{first}{more}: {remedy}', PromptWarning, stacklevel=4)


def _put_beside(params: nnx.State, array: np.ndarray) -> jax.Array:
    """The array on the device of the parameters."""
    leaf = jax.tree.leaves(params)[0]
    return jax.device_put(array, leaf.sharding if isinstance(leaf, jax.Array) else None)


def _next_power_of_two(count: int) -> int:
    return 1 << (max(count, 1) - 1).bit_length()


@functools.partial(jax.jit, static_argnums=0)
def _encode(graphdef, params, buffers, image_BHW3, size_B2) -> jax.Array:
    sam: Sam = nnx.merge(graphdef, params, buffers)
    return sam.encode(image_BHW3, size_B2)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _decode(graphdef, params, buffers, embed_BhwC, prompts: Prompts, mask_tokens: tuple[int, ...]) -> Prediction:
    sam: Sam = nnx.merge(graphdef, params, buffers)
    return sam.decode(embed_BhwC, prompts, mask_tokens)
