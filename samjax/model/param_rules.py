"""How training treats a parameter: weight decay, Muon, layer-wise learning rate, and the mesh axes it is split along.

Each module of the model states the rules of its own parameters; `samjax.model.params.param_rule` finds the rule of a
path.  Nothing outside the model names a parameter.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

LAST_LAYER = None  # the layer of everything behind the image encoder


class MatrixAxes(NamedTuple):
    """The axes of inputs and outputs of a weight, counted from the last; other axes number separate matrices."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class ParamRule(NamedTuple):
    """The rule of all parameters whose path, names joined by '/', matches `pattern` as a whole."""

    pattern: str
    matrix: MatrixAxes | None = None  # of a matrix product or convolution, which weight decay pulls at; None: neither
    layer: int | np.ndarray | None = LAST_LAYER  # 0 is before the first encoder block; an array along stacked axes
    fsdp: bool = False  # large and used once per step: split over the mesh axis 'fsdp', gathered in the compute dtype
    tensor_axis: int | None = None  # split over the mesh axis 'tensor', counted from the last

    def matches(self, path: str) -> bool:
        return re.fullmatch(self.pattern, path) is not None


DENSE = MatrixAxes(inputs=(-2,), outputs=(-1,))  # kernel (inputs, outputs)
CONV = MatrixAxes(inputs=(-4, -3, -2), outputs=(-1,))  # kernel (height, width, inputs, outputs)
TRANSPOSED_CONV = MatrixAxes(inputs=(-2,), outputs=(-4, -3, -1))  # the same, each input makes height x width pixels
TO_HEADS = MatrixAxes(inputs=(-3,), outputs=(-2, -1))  # (inputs, heads, channels of a head)
TO_QKV_HEADS = MatrixAxes(inputs=(-4,), outputs=(-2, -1))  # (inputs, [q, k, v], heads, channels): three matrices
FROM_HEADS = MatrixAxes(inputs=(-3, -2), outputs=(-1,))  # (heads, channels of a head, outputs)
