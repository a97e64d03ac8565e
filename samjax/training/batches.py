"""The input of a training run: its options are checked, its data sets opened, and refused if nothing can be sampled."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

from ml_collections import ConfigDict

from samjax.data import pipeline
from samjax.data.example import Example
from samjax.data.formats.read_options import ReadOptions
from samjax.data.sampling_check import check_sampling
from samjax.data.synthetic import Scenes
from samjax.data.transforms import Sampling
from samjax.errors import SamjaxError, check_option

# Images of a run's first steps, of which one must have an object that is seen.
FIRST_IMAGES = 100


def check_input(config: ConfigDict) -> None:
    """Raises SamjaxError if an option of the input is not possible, before anything is read."""
    sampling_options(config)
    ReadOptions.of(config.data)
    mix = config.data.mix
    if not all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in mix):
        raise SamjaxError(f"data.mix {mix} is not like (('/data/more', 10.0),): pairs of path and weight")
    for name, path in (('data.path', config.data.path), *(('a path in data.mix', path) for path, _ in mix)):
        check_option(name, path, bool, "the path of a data set, or 'scenes'")
    weights = [weight for _, weight in mix]
    pipeline.check_loading(config.seed, config.data.num_workers, config.data.prefetch, weights)
    for name in ('synthetic_train_images', 'synthetic_eval_images'):
        check_option(f'data.{name}', config.data[name], lambda n: n >= 1, 'at least 1')


def sampling_options(config: ConfigDict) -> Sampling:
    """What the options say about sampling.  Raises SamjaxError if one is not possible."""
    data = config.data
    frame = tuple(config.model.image_size)
    return Sampling(frame, data.max_objects, data.max_area_fraction, data.flip, data.scale_jitter)


def open_batches(config: ConfigDict) -> pipeline.Batches:
    """The rows of this process of all training batches, from the first batch on.

    Raises:
        SamjaxError: an option is wrong, a data set cannot be used, or training can sample no mask of one.
    """
    check_input(config)
    sources, sampling = open_sources(config), sampling_options(config)
    for path, source, _ in sources:
        if not isinstance(source, Scenes):
            refuse_never_sampled(path, source, sampling)
    return pipeline.train_loader(
        [(source, weight) for _, source, weight in sources],
        sampling=sampling,
        seed=config.seed,
        batch_size=config.train.batch_size,
        num_workers=config.data.num_workers,
        prefetch=config.data.prefetch,
    )


def open_sources(config: ConfigDict) -> list[tuple[str, Sequence[Example], float]]:
    """Path, examples and weight of each training set.  Raises SamjaxError if one cannot be used."""
    open_dataset = functools.partial(
        pipeline.open_dataset,
        seed=config.seed,
        image_size=tuple(config.model.image_size),
        length=config.data.synthetic_train_images,
        cache=config.data.cache,
        max_invalid_fraction=config.data.max_invalid_fraction,
        options=ReadOptions.of(config.data),
    )
    return [(path, open_dataset(path), weight) for path, weight in [(config.data.path, 1.0), *config.data.mix]]


def refuse_never_sampled(path: str, source: Sequence[Example], sampling: Sampling) -> None:
    """Warns in one line if training can sample no mask of some of the images that are looked at.

    Raises:
        SamjaxError: it can sample none of all images; a large source is not looked through, and only warned about.
    """
    check = check_sampling(source, sampling)
    if check.num_images_without == len(source):
        raise SamjaxError(
            f'{path}: training can sample none of its {check.num_masks} masks: {check.reasons()}; change the options '
            f'in brackets, or the masks if objects and background are swapped'
        )
    if check.num_images_without:
        looked_at = '' if check.num_images == len(source) else f' ({check.num_images} of {len(source)} were looked at)'
        logging.getLogger(__name__).warning('%s: training never samples %s%s', path, check.summary(), looked_at)


class EmptySteps:
    """Whether the steps since update `start` had objects; without any a run would go on with loss 0."""

    def __init__(self, config: ConfigDict, start: int):
        self._config, self._start = config, start
        self._had_objects = False

    def check(self, step: int, objects: float) -> None:
        """Takes the number of objects of update `step`; it is that of all processes, which so stop alike.

        Raises:
            SamjaxError: the first steps since `start`, of `FIRST_IMAGES` images, or all steps of the run had no object.
        """
        self._had_objects |= objects > 0
        if self._had_objects:
            return
        steps, train = step - self._start, self._config.train
        if steps * train.batch_size >= FIRST_IMAGES or steps == train.num_steps:
            sampling = sampling_options(self._config)
            checked = [
                f'{path}: {check_sampling(source, sampling, FIRST_IMAGES).summary()}'
                for path, source, _ in open_sources(self._config)
            ]
            raise SamjaxError(
                f'the loss is 0, since no object is visible in the first {steps * train.batch_size} images; training '
                f'never samples of {", of ".join(checked)}; other masks may be outside of the crops of '
                f'data.scale_jitter={sampling.scale_jitter}: change this option or those in brackets, and look at '
                f'the data with samjax data check'
            )
