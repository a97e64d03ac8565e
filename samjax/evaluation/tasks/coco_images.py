"""The images that a JSON of COCO or LVIS lists, including those without masks, decoded when they are needed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from samjax.data.formats import coco
from samjax.data.formats.dataset_index import InvalidItem
from samjax.distributed.map import choose_subset
from samjax.errors import InvalidExample, SamjaxError
from samjax.evaluation.eval_model import EvalModel
from samjax.evaluation.metrics.average_precision import GroundTruth
from samjax.images.file import read_bytes
from samjax.images.open import ImageOptions, open_image, orientation_for, upright_rgb


class CocoImages:
    """Images by index, and their ids in the JSON.

    truth: read from the JSON at `path`; max_images: a fixed random choice of so many; 0 is all.
    Raises SamjaxError if an image of it is missing or invalid.
    """

    def __init__(self, path: str, truth: GroundTruth, max_images: int, seed: int, options: ImageOptions):
        dataset = coco.open_index(Path(path).expanduser())
        items = [item for shard in dataset.shards for item in shard.items()]
        by_id = {item.image_id: item for item in items if not isinstance(item, InvalidItem)}
        missing = [key for key in truth.images if key not in by_id]
        if missing:
            # Annotations of unknown images are counted by `read_ground_truth`.
            invalid = [item for item in items if isinstance(item, InvalidItem) and item.cause != 'unknown image id']
            reason = f', such as {invalid[0].name} ({invalid[0].detail})' if invalid else ''
            raise SamjaxError(
                f'{path}: {len(missing)} of {len(truth.images)} images cannot be used{reason}: '
                'put them beside the JSON, or take them out of it'
            )
        ids = list(truth.images)
        chosen = choose_subset(len(ids), max_images, np.random.default_rng(seed))
        self.ids = [ids[n] for n in chosen]
        self._items = [by_id[key] for key in self.ids]
        self.data = {'path': path, 'digest': dataset.digest}
        self._choice = [max_images, seed]
        self._options = options

    def fingerprint(self, eval_model: EvalModel, **more) -> dict:
        """What the predictions for the images depend on, for a journal."""
        options = dataclasses.asdict(self._options)
        return {**eval_model.fingerprint, 'choice': self._choice, 'options': options, **self.data, **more}

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 RGB (H, W, 3), rotated as for training.

        Raises:
            SamjaxError: the file cannot be used, or has another size than the JSON says.
        """
        item = self._items[index]
        try:
            opened = open_image(read_bytes(item.path, 'unreadable image'), self._options)
            orientation = orientation_for(item.size, opened) if item.size else opened.orientation
        except InvalidExample as error:
            raise SamjaxError(
                f'{item.path} cannot be used ({error.cause}: {error.detail}): give the images that belong to '
                f'{self.data["path"]}'
            ) from None
        return upright_rgb(opened.image, orientation)
