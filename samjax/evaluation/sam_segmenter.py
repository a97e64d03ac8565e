"""A SAM as segmenter of the click protocol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samjax.evaluation.eval_config import EvalConfig
from samjax.inference.predictor import Predictor
from samjax.inference.prompts import Prompt, pack_prompt, stack_prompts
from samjax.structs import ALL_MASKS, BOX_TOP_LEFT, MULTIMASK, NEGATIVE, POSITIVE, SINGLE_MASK, Prompts


class SamSegmenter:
    """A SAM as `samjax.evaluation.protocol.Segmenter`.  Its state is the low-resolution logits, the next mask prompt.

    Images, objects and prompts are padded to a single static shape, so that two functions are compiled, once for all
    images and objects: encode an image, and decode `prompt_batch_size` objects with up to `max_clicks` points, or a
    box and `max_clicks - 1` points.
    """

    def __init__(self, name: str, predictor: Predictor, prompt_batch_size: int, max_clicks: int):
        self.name = name
        self._predictor = predictor
        self._prompt_batch_size = prompt_batch_size
        self._slots = max_clicks + 1  # another for NOT_A_POINT, or for the second corner of a box

    def set_image(self, image_HW3: np.ndarray) -> None:
        [self._frame], self._embed_BhwC = self._predictor.encode([image_HW3])

    def predict(self, points_NP2: np.ndarray, labels_NP: np.ndarray, previous_Nyx: np.ndarray | None):
        """See `Segmenter`.  Raises ValueError if there are more objects or prompts than fit."""
        count, prompts = len(points_NP2), self._pack(points_NP2, labels_NP, previous_Nyx)
        prediction = self._predictor.decode(self._embed_BhwC, prompts, ALL_MASKS)
        tokens = list(MULTIMASK if _is_ambiguous(labels_NP) else SINGLE_MASK)
        low_res_NMyx = np.asarray(prediction.logits_BNMyx)[0, :count, tokens].swapaxes(0, 1)
        iou_NM = np.asarray(prediction.iou_BNM)[0, :count, tokens].swapaxes(0, 1)
        masks_NMHW = np.empty((*iou_NM.shape, *self._frame.original_size), bool)
        for n, low_res_Myx in enumerate(low_res_NMyx):
            masks_NMHW[n] = self._frame.postprocess_masks(low_res_Myx, return_logits=False)
        return masks_NMHW, iou_NM, low_res_NMyx

    def _pack(self, points_NP2: np.ndarray, labels_NP: np.ndarray, previous_Nyx: np.ndarray | None) -> Prompts:
        count, used = labels_NP.shape
        if count > self._prompt_batch_size or used + (BOX_TOP_LEFT not in labels_NP) > self._slots:
            raise ValueError(
                f'{count} objects with {used} prompts do not fit into {self._prompt_batch_size} objects with '
                f'{self._slots} slots: predict in parts, or make the segmenter larger.'
            )
        previous_N = [None] * count if previous_Nyx is None else previous_Nyx
        low_res_size = self._predictor.config.low_res_size
        packed_N = [
            pack_prompt(_prompt(*prompt), self._frame, low_res_size)
            for prompt in zip(points_NP2, labels_NP, previous_N, strict=True)
        ]
        return stack_prompts([packed_N], (1, self._prompt_batch_size, self._slots), low_res_size)


def sam_segmenters(name: str, predictors: Sequence[Predictor], config: EvalConfig) -> list[SamSegmenter]:
    """The model on each device, with room for the prompts of an evaluation."""
    return [SamSegmenter(name, predictor, config.prompt_batch_size, max(config.clicks)) for predictor in predictors]


def _prompt(points_P2: np.ndarray, labels_P: np.ndarray, previous_yx: np.ndarray | None) -> Prompt:
    is_click_P = (labels_P == POSITIVE) | (labels_P == NEGATIVE)
    clicks = (points_P2[is_click_P], labels_P[is_click_P]) if is_click_P.any() else (None, None)
    box_4 = None if is_click_P.all() else points_P2[~is_click_P].reshape(4)
    return Prompt(*clicks, box_4, previous_yx)


def _is_ambiguous(labels_NP: np.ndarray) -> bool:
    """Whether the prompt is a single point or box, with or without a mask."""
    prompts = labels_NP.shape[1]
    return prompts == 1 or (prompts == 2 and BOX_TOP_LEFT in labels_NP)
