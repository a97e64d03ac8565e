"""samjax: Segment Anything in JAX, for training at scale, evaluation and checkpoint conversion.

    predictor = samjax.load('sam_vit_b_01ec64.pth')  # or the folder of a run
    predictor.set_image(image)
    masks, iou_predictions, low_res_masks = predictor.predict(point_coords, point_labels)
    annotations = samjax.AutomaticMaskGenerator(predictor).generate(image)

Nothing heavy is imported before one of these names is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samjax.inference.automatic.generator import AutomaticMaskGenerator
    from samjax.inference.load import load
    from samjax.inference.predictor import Predictor
    from samjax.model.config import SamConfig
    from samjax.model.sam import Sam

__version__ = '0.2.0'
__all__ = ['AutomaticMaskGenerator', 'Predictor', 'Sam', 'SamConfig', '__version__', 'load']

_MODULES = {
    'AutomaticMaskGenerator': 'samjax.inference.automatic.generator',
    'Predictor': 'samjax.inference.predictor',
    'Sam': 'samjax.model.sam',
    'SamConfig': 'samjax.model.config',
    'load': 'samjax.inference.load',
}


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted(__all__)
