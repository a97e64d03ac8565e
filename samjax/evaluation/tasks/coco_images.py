"""The images that a JSON of COCO or LVIS lists, those without masks too, decoded when asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from samjax.data.formats import coco
from samjax.data.formats.dataset_index import InvalidItem
from samjax.distributed.map import choose
from samjax.errors import SamjaxError
from samjax.evaluation.eval_model import EvalModel
from samjax.evaluation.metrics.average_precision import Truth
from samjax.images.encoded_image import EncodedImage


class CocoImages:
    """Images by place, and the ids that the JSON gives them.

    truth: of the JSON at `path`; max_images: a fixed random choice of so many; 0 is all.
    Raises SamjaxError if an image of it is not there.
    """

    def __init__(self, path: str, truth: Truth, max_images: int, seed: int):
        found = coco.find(Path(path).expanduser())
        items = [item for shard in found.shards for item in shard.items()]
        bad = [item for item in items if isinstance(item, InvalidItem)]
        if bad:
            raise SamjaxError(
                f'{path}: {len(bad)} of {len(items)} images cannot be used, such as {bad[0].name} ({bad[0].detail}): '
                'put them beside the JSON, or take them out of it'
            )
        ids = list(truth.images)  # in the order of the items
        chosen = choose(len(items), max_images, np.random.default_rng(seed))
        self._items = [items[n] for n in chosen]
        self.ids = [ids[n] for n in chosen]
        self.data = {'path': path, 'digest': found.digest}
        self._chosen = [max_images, seed]

    def stamp(self, eval_model: EvalModel, **more) -> dict:
        """What the answers about the images depend on."""
        return {**eval_model.stamp, 'chosen': self._chosen, **self.data, **more}

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: int) -> np.ndarray:
        """uint8 [H, W, 3].  Raises SamjaxError if the file is damaged or of another size than the JSON says."""
        item = self._items[place]
        try:
            image_HW3 = EncodedImage.from_bytes(Path(item.path).read_bytes()).pixels()
        except Exception as error:  # pillow raises nearly anything on damaged files
            raise SamjaxError(f'{item.path} cannot be read ({error}): mend it, or take it out of the JSON') from error
        if item.size and image_HW3.shape[:2] != item.size:
            raise SamjaxError(
                f'{item.path} has {image_HW3.shape[0]} x {image_HW3.shape[1]} px, the JSON says '
                f'{item.size[0]} x {item.size[1]}: one of them belongs to another set'
            )
        return image_HW3
