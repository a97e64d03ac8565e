"""How much of a data set training can never sample, and why: a run on such images alone would learn nothing."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np

from samjax.data.example import Example
from samjax.data.transforms import Sampling, never_sampled

CHECKED_IMAGES = 1000  # images of a data set that are looked at when training starts, evenly spread


class SamplingCheck:
    """Counts of the masks that training never samples, of the examples added."""

    def __init__(self, sampling: Sampling):
        self._sampling = sampling
        self.num_images, self.num_masks = 0, 0
        self.causes: collections.Counter[str] = collections.Counter()  # -> masks
        self.num_images_without = 0  # images of which no mask can be sampled

    def add(self, example: Example) -> None:
        """Counts the masks of an example; its pixels are not decoded."""
        size = example.image.height, example.image.width
        causes = [never_sampled(rle, size, self._sampling) for rle in example.rles]
        self.num_images += 1
        self.num_masks += len(causes)
        self.causes.update(cause for cause in causes if cause is not None)
        self.num_images_without += None not in causes

    def reasons(self) -> str:
        """The causes with their counts of masks, such as '3 have no pixels, 1 cover more than 90 % of ..'."""
        return ', '.join(f'{count} {cause}' for cause, count in self.causes.most_common())

    def summary(self) -> str:
        """What is never sampled, such as '3 of 9 masks, on 2 of 4 images all masks: 3 have no pixels'."""
        without = self.num_images_without
        images = f', on {without} of {self.num_images} images all masks' if without else ''
        return f'{self.causes.total()} of {self.num_masks} masks{images}: {self.reasons() or "none"}'


def check_sampling(source: Sequence[Example], sampling: Sampling, max_images: int = CHECKED_IMAGES) -> SamplingCheck:
    """The counts of at most `max_images` images, evenly spread over the source."""
    check = SamplingCheck(sampling)
    for index in evenly_spread(len(source), max_images):
        check.add(source[index])
    return check


def evenly_spread(count: int, most: int) -> list[int]:
    """At most `most` indices, evenly spread over `count`."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))
