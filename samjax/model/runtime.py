"""Choices about a model that do not touch its parameters: regularization in training, and how it is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from samjax.errors import check_option
from samjax.model.attention.chunked import chunked_attention


@dataclasses.dataclass(frozen=True)
class Regularization:
    """What is dropped at random in training; inactive without a key for each image."""

    drop_path: float = 0.0  # rate at the last encoder block, linear from 0 at the first
    dropout: float = 0.0  # rate in the mask decoder

    def __post_init__(self):
        for name in ('drop_path', 'dropout'):
            check_option(
                f'model.{name}', getattr(self, name), lambda x: 0 <= x < 1, 'a rate, 0 or more and less than 1'
            )


@dataclasses.dataclass(frozen=True)
class Runtime:
    """How the model is computed."""

    dtype: str = 'float32'  # of activations
    remat: str = 'none'  # what the backward pass recomputes: a row of samjax.model.encoders.vit.REMAT
    attention: Callable = chunked_attention  # of the encoder: a function of samjax.model.attention
