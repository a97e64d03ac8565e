"""The click protocol on the evaluation images, run by the training loop from time to time."""

from __future__ import annotations

import math
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from samjax.distributed import sharding
from samjax.evaluation.eval_config import EvalConfig, EvalData
from samjax.evaluation.eval_model import on_devices
from samjax.evaluation.protocol import Interactive
from samjax.evaluation.report.overlays import draw_first_clicks
from samjax.evaluation.sam_segmenter import sam_segmenters
from samjax.model import config as model_config
from samjax.training.step import TrainState


class TrainingEvaluation:
    """Scores of a training state; also draws WORKDIR/pictures/step_STEP.png.

    Raises:
        SamjaxError: an option of the evaluation is wrong, or there are no images.
    """

    def __init__(self, config: ConfigDict, workdir: str, mesh: Mesh):
        self._sam, _, runtime = model_config.from_options(**config.model)
        self._dtype, self._config, self._mesh = runtime.dtype, EvalConfig(**config.eval), mesh
        self._interactive = Interactive(
            EvalData.from_config(config).open(),
            self._config,
            config.seed,
            max_images=config.train.eval_max_images,
            max_objects=config.train.eval_max_objects,
        )
        self._folder = Path(workdir) / 'pictures'

    def __call__(self, state: TrainState) -> dict[str, float]:
        """The scores as metrics for the log, without those that are not finite.  Every process calls this."""
        params, buffers = sharding.local_copy((state.params, state.buffers), self._mesh)
        predictors = on_devices(self._sam, self._dtype, params, buffers, self._config.devices)
        result = self._interactive.run(sam_segmenters('sam', predictors, self._config))
        if result.first_images and jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            draw_first_clicks(self._folder / f'step_{int(state.step):06d}.png', result.first_images)
        return {f'eval/{name}': value for name, value in result.values() if math.isfinite(value)}
