"""Options of an evaluation, typed: how objects are prompted, and which images they are from."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from samjax.data import pipeline
from samjax.data.formats.read_options import ReadOptions
from samjax.errors import SamjaxError, check_option

EVAL_SEED = 1_000_003  # of synthetic scenes; far from the seeds that runs are given


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The section `eval` of `samjax.config`.

    Raises:
        SamjaxError: there are no clicks to report, or the first click is unknown.
    """

    clicks: tuple[int, ...]  # mIoU is reported after this many clicks
    first_click: str  # 'center' or 'random'
    prompt_batch_size: int  # prompts decoded at once on each device
    devices: int  # of each process; 0 is all
    num_visualizations: int  # images drawn
    points_per_side: int  # of the point grid of the task `proposals`

    def __post_init__(self):
        if not self.clicks or not all(isinstance(k, int) and k > 0 for k in self.clicks):
            raise SamjaxError(f'eval.clicks {tuple(self.clicks)} must be whole numbers from 1 up, at least one')
        if self.first_click not in ('center', 'random'):
            raise SamjaxError(f"eval.first_click {self.first_click!r} must be 'center' or 'random'.")
        for name, least in (
            ('prompt_batch_size', 1),
            ('devices', 0),
            ('num_visualizations', 0),
            ('points_per_side', 1),
        ):
            check_option(f'eval.{name}', getattr(self, name), lambda n, least=least: n >= least, f'{least} or more')


@dataclasses.dataclass(frozen=True)
class EvalData:
    """The images to evaluate on."""

    path: str  # in any format of docs/data.md, or 'scenes' for synthetic ones
    cache: str  # folder where data sets are prepared
    max_invalid_fraction: float  # of images that may be unreadable
    read_options: ReadOptions
    num_synthetic: int  # of 'scenes' only
    image_size: tuple[int, int]  # (height, width) of synthetic scenes, px

    @classmethod
    def from_config(cls, config: ConfigDict) -> EvalData:
        data = config.data
        image_size = tuple(config.model.image_size)
        return cls(
            data.eval_path,
            data.cache,
            data.max_invalid_fraction,
            ReadOptions.of(data),
            data.synthetic_eval_images,
            image_size,
        )

    def open(self):
        """A sequence of `Example`s with a `digest`; scenes are the same for every run, whatever its seed."""
        return pipeline.open_dataset(
            self.path,
            seed=EVAL_SEED,
            image_size=self.image_size,
            length=self.num_synthetic,
            cache=self.cache,
            max_invalid_fraction=self.max_invalid_fraction,
            options=self.read_options,
        )
