"""The click protocol as a task: every segmenter on one set, with files that show what they do.

folder/masks.csv                    one line per object and segmenter
folder/curve.png                    mIoU over clicks, all segmenters
folder/slots_<segmenter>.png        what the three masks of the first click are for
folder/overlays/<segmenter>/*.png   masks over images; in worst/ and best/ objects by IoU after one click
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import jax
from ml_collections import ConfigDict

from samjax.data import pipeline
from samjax.distributed.map import UNFINISHED, ResultJournal
from samjax.errors import SamjaxError
from samjax.evaluation.eval_model import EvalModel, on_devices
from samjax.evaluation.eval_result import EvalOptions, EvalResult, pictures_of
from samjax.evaluation.protocol import Interactive, Outcome, SamSegmenter
from samjax.evaluation.report.html import Figure, Gallery, Table
from samjax.inference.predictor import Predictor
from samjax.model.params import init_params
from samjax.model.sam import sam_config
from samjax.visualization import pictures

EVAL_SEED = 1_000_003  # of drawn scenes; far from the seeds that runs are given
KINDS = ('overlays', 'worst', 'best')


def interactive(eval_model: EvalModel, options: EvalOptions, folder: Path) -> EvalResult:
    """The click protocol on `config.data.eval_path`, for the model and `options.others`."""
    config = eval_model.config
    source = open_source(config)
    segmenters = open_segmenters(eval_model, options.others)
    outcomes = measure_all(eval_model, segmenters, source, config.data.eval_path, folder, options)
    galleries = [
        Gallery(title, pictures_of(folder / kind / 'sam'))
        for kind, title in (('overlays', 'Images'), ('worst', 'Worst objects'), ('best', 'Best objects'))
    ]
    figures = [Figure('mIoU over clicks', folder / 'curve.png')]
    figures += [Figure(f'What the three masks are for: {name}', folder / _slots(file_name(name))) for name in outcomes]
    scores = {
        name: dict(outcome.values()) | {'seconds': round(outcome.seconds, 1)} for name, outcome in outcomes.items()
    }
    data = {'path': config.data.eval_path, 'digest': source.digest}
    return EvalResult(data, scores, [score_table(outcomes)], figures, [one for one in galleries if one.files])


def open_source(config: ConfigDict):
    """The images of `config.data.eval_path`; scenes are the same for every run, whatever its seed."""
    return pipeline.open_set(
        config.data.eval_path,
        seed=EVAL_SEED,
        image_size=tuple(config.model.image_size),
        length=config.data.synthetic_eval_images,
        cache=config.data.cache,
        max_invalid_fraction=config.data.max_invalid_fraction,
    )


def open_interactive(
    config: ConfigDict, source, options: EvalOptions, cases: int = 0, max_masks: int = 0
) -> Interactive:
    """The evaluation of `config` on a source."""
    return Interactive(
        source,
        config.eval.clicks,
        config.eval.first_click,
        config.eval.prompt_batch_size,
        config.eval.num_visualizations,
        cases,
        options.max_images,
        options.max_objects,
        config.seed,
        max_masks,
    )


def open_segmenters(eval_model: EvalModel, others: tuple[str, ...]) -> dict[str, list]:
    """By name: the model, and what to hold it against; of each, one for every device."""
    segmenters = {'sam': sam_segmenters('sam', eval_model.config, eval_model.predictors)}
    return segmenters | {many[0].name: many for name in others for many in [_other(name, eval_model.config)]}


def sam_segmenters(name: str, config: ConfigDict, predictors: list[Predictor]) -> list[SamSegmenter]:
    """A model for the evaluation of `config`."""
    clicks = max(config.eval.clicks)
    return [SamSegmenter(name, predictor, config.eval.prompt_batch_size, clicks) for predictor in predictors]


def measure_all(
    eval_model: EvalModel,
    segmenters: dict[str, list],
    source,
    path: str,
    folder: Path,
    options: EvalOptions,
    max_masks: int = 0,
) -> dict[str, Outcome]:
    """What each segmenter does on a source at `path`, which goes on if it was interrupted; files in `folder`."""
    config = eval_model.config
    protocol = open_interactive(config, source, options, config.eval.num_visualizations, max_masks)
    outcomes = {}
    for name, many in segmenters.items():
        stamp = {
            'segmenter': name,
            **eval_model.stamp,
            'data': source.digest,
            'eval': json.loads(config.eval.to_json()),
            'seed': config.seed,
            'limits': [options.max_images, options.max_objects, max_masks],
        }
        journal = ResultJournal(folder / UNFINISHED / file_name(name), stamp)
        outcomes[name] = protocol.measure(many, journal)
    if not any(outcome.rows for outcome in outcomes.values()):
        raise SamjaxError(f'{path} has no object to evaluate on: give another path')
    if jax.process_index() == 0:
        write(folder, outcomes)
    return outcomes


def write(folder: Path, outcomes: dict[str, Outcome]) -> None:
    """Scores of every mask, figures and pictures; those of an earlier evaluation are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        shutil.rmtree(folder / kind, ignore_errors=True)
    for stale in folder.glob(_slots('*')):
        stale.unlink()
    _write_masks(folder / 'masks.csv', outcomes)
    pictures.curve(folder / 'curve.png', outcomes)
    for name, outcome in outcomes.items():
        pictures.slots(folder / _slots(file_name(name)), name, outcome)
        for kind, some in zip(KINDS, (outcome.pictures, outcome.worst, outcome.best), strict=True):
            of_kind = folder / kind / file_name(name)
            of_kind.mkdir(parents=True, exist_ok=True)
            for number, picture in enumerate(some):
                first = picture.traces[0].row
                iou = '' if kind == 'overlays' else f'iou_{first.iou_K[0]:.2f}_'
                image = file_name(first.image)
                pictures.overlay(of_kind / f'{number:02d}_{iou}{image}.png', picture, outcome.clicks)


def _slots(name: str) -> str:
    return f'slots_{name}.png'


def score_table(outcomes: dict[str, Outcome]) -> Table:
    """mIoU after k clicks, best of three, with a box; ranks of predicted and actual IoU."""
    clicks = next(iter(outcomes.values())).clicks
    keys = [*(f'miou@{k}' for k in clicks), 'oracle@1', 'box', 'iou_spearman', 'masks']
    rows = [[name, *(dict(outcome.values())[key] for key in keys)] for name, outcome in outcomes.items()]
    note = 'After 1, 2, .. clicks; oracle: the best of three masks of one click; Spearman: predicted and actual IoU.'
    return Table('Mean IoU', ['', *keys], rows, note)


def _other(name: str, config: ConfigDict) -> list:
    """The segmenters to compare with that go by `name`."""
    if name == 'untrained':
        model = sam_config(**config.model)
        params, buffers = jax.jit(lambda: init_params(model, config.seed))()
        return sam_segmenters(name, config, on_devices(config, params, buffers))
    try:
        from samjax.evaluation import baselines  # needs packages that only developers install

        if name == 'flood':
            return [baselines.FloodFill()]
        if name == 'grabcut':
            return [baselines.GrabCut()]
    except ImportError as error:
        raise SamjaxError(f'baseline {name!r} needs {error.name}: run pip install -r requirements-dev.txt') from error
    raise SamjaxError(f"baseline {name!r} is unknown: choose 'flood' or 'grabcut'")


def _write_masks(path: Path, outcomes: dict[str, Outcome]) -> None:
    with path.open('w', newline='') as file:
        out = csv.writer(file)
        first = next(row for outcome in outcomes.values() for row in outcome.rows)
        clicks = [f'{what}_{k + 1}_clicks' for what in ('iou', 'predicted_iou') for k in range(len(first.iou_K))]
        masks = range(1, len(first.iou_M) + 1)
        out.writerow(
            ['segmenter', 'image', 'object', 'area_px', *clicks, 'iou_box', 'predicted_iou_box']
            + [f'{what}_mask_{m}' for what in ('iou', 'predicted_iou', 'area_share') for m in masks]
        )
        for name, outcome in outcomes.items():
            for row in outcome.rows:
                numbers = (
                    *row.iou_K,
                    *row.expected_K,
                    row.box,
                    row.expected_box,
                    *row.iou_M,
                    *row.predicted_M,
                    *row.area_M,
                )
                cells = [f'{number:.5g}' for number in numbers]
                out.writerow([name, row.image, row.object, row.area, *cells])


def file_name(text: str) -> str:
    """A name for a file that says the same in plain letters."""
    return re.sub(r'[^A-Za-z0-9.-]+', '_', text).strip('_')[-80:]
