"""Where an image lies in the model frame: coordinates go in, and low-resolution masks come back at the image's size."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from samjax.data import transforms
from samjax.masks import resize
from samjax.model.config import SamConfig

ALL = slice(None)


class Frame:
    """How an image of (height, width) px lies in the model frame; see `samjax.structs` for the frame.

    original_size: (height, width) of the image, px.
    input_size: (height, width) that the image takes in the frame, px.
    row_taps, column_taps: from the low-resolution mask to the image, for each axis.
    """

    def __init__(self, config: SamConfig, height: int, width: int):
        self.original_size = height, width
        self.input_size = new_h, new_w = transforms.frame_size(height, width, config.image_size)
        # Low resolution -> frame -> crop of the padding -> original size, in a single step for each axis.
        (low_y, low_x), (frame_h, frame_w) = config.low_res_size, config.image_size
        self.row_taps = resize.compose_taps(resize.linear_taps(low_y, frame_h), resize.linear_taps(new_h, height))
        self.column_taps = resize.compose_taps(resize.linear_taps(low_x, frame_w), resize.linear_taps(new_w, width))

    def apply_coords(self, points: np.ndarray) -> np.ndarray:
        """(x, y) in px of the image -> (x, y) in px of the frame, float32; any leading axes.

        Computed in float64, as `ResizeLongestSide.apply_coords` of segment-anything's utils/transforms.py does.
        """
        (height, width), (new_h, new_w) = self.original_size, self.input_size
        return (np.asarray(points, np.float64) * (new_w / width, new_h / height)).astype(np.float32)

    def upscale(self, low_res_yx: np.ndarray, rows: slice = ALL, columns: slice = ALL) -> np.ndarray:
        """Low-resolution logits of the frame -> logits of these rows and columns of the image, float32 (H, W)."""
        low_y, low_x = low_res_yx.shape
        columns_Wx = _sparse_matrix(self.column_taps, columns, low_x)
        rows_Hy = _sparse_matrix(self.row_taps, rows, low_y)
        wide_yW = np.ascontiguousarray((columns_Wx @ low_res_yx.T).T)
        return rows_Hy @ wide_yW

    def postprocess_masks(self, low_res_Myx: np.ndarray, return_logits: bool) -> np.ndarray:
        """Low-resolution logits -> masks (M, H, W) at the size of the image: bool, or float32 logits."""
        masks_MHW = np.empty((len(low_res_Myx), *self.original_size), np.float32 if return_logits else bool)
        for m, low_res_yx in enumerate(low_res_Myx):  # one at a time: full-size logits are large
            logits_HW = self.upscale(low_res_yx)
            masks_MHW[m] = logits_HW if return_logits else logits_HW > 0
        return masks_MHW


def _sparse_matrix(taps: resize.Taps, outputs: slice, n_in: int) -> sparse.csr_array:
    """The matrix (outputs, n_in) that resizes one axis, for a slice of its outputs."""
    first_n, weight_nt = taps.first_n[outputs], taps.weight_nt[outputs]
    inputs_nt = np.minimum(first_n[:, None] + np.arange(weight_nt.shape[1]), n_in - 1)
    row_starts = np.arange(len(first_n) + 1) * weight_nt.shape[1]
    return sparse.csr_array((weight_nt.ravel(), inputs_nt.ravel(), row_starts), (len(first_n), n_in))
