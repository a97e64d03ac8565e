"""The click protocol as a task: every segmenter on a data set, with files that show its predictions.

folder/masks.csv                    a line per object and segmenter
folder/curve.png                    mIoU over clicks, all segmenters
folder/slots_<segmenter>.png        size and success of each of the three masks for the first click
folder/overlays/<segmenter>/*.png   masks over images; in worst/ and best/ objects by IoU after the first click
"""

from __future__ import annotations

import csv
import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from samjax.data.example import Example
from samjax.distributed.map import UNFINISHED, ResultJournal
from samjax.errors import SamjaxError
from samjax.evaluation.eval_model import EvalModel, on_devices
from samjax.evaluation.eval_result import EvalOptions, EvalResult, png_files
from samjax.evaluation.protocol import Interactive, ProtocolResult, Segmenter
from samjax.evaluation.report.figures import click_curves, mask_slots
from samjax.evaluation.report.html import Figure, Gallery, Table
from samjax.evaluation.report.overlays import draw_objects
from samjax.evaluation.sam_segmenter import sam_segmenters
from samjax.model.params import init_params

GALLERIES = {'overlays': 'Images', 'worst': 'Worst objects', 'best': 'Best objects'}  # folder: title


def interactive(eval_model: EvalModel, options: EvalOptions, folder: Path) -> EvalResult:
    """The click protocol on `data.eval_path`, for the model and `options.baselines`."""
    path, source = eval_model.data.path, eval_model.data.open()
    segmenters = open_segmenters(eval_model, options.baselines)
    results = evaluate_all(eval_model, segmenters, source, path, folder, options)
    galleries = [Gallery(title, png_files(folder / name / 'sam')) for name, title in GALLERIES.items()]
    figures = [Figure('mIoU over clicks', folder / 'curve.png')]
    figures += [Figure(f'The three masks for the first click: {name}', folder / _slots_file(name)) for name in results]
    scores = {name: dict(result.values()) | {'seconds': round(result.seconds, 1)} for name, result in results.items()}
    data = {'path': path, 'digest': source.digest}
    return EvalResult(
        data, scores, [score_table(results)], figures, [gallery for gallery in galleries if gallery.files]
    )


def open_segmenters(eval_model: EvalModel, baselines: tuple[str, ...]) -> dict[str, list[Segmenter]]:
    """By name: the model and what it is compared with; each once for every device.

    Raises SamjaxError if a baseline is unknown, or a package that it needs is not installed.
    """
    segmenters = {'sam': sam_segmenters('sam', eval_model.predictors, eval_model.config)}
    for name in baselines:
        copies = _open_baseline(name, eval_model)
        segmenters[copies[0].name] = copies
    return segmenters


def _open_baseline(name: str, eval_model: EvalModel) -> list[Segmenter]:
    if name == 'untrained':
        params, buffers = jax.jit(lambda: init_params(eval_model.sam, eval_model.seed))()
        predictors = on_devices(eval_model.sam, eval_model.dtype, params, buffers, eval_model.config.devices)
        return sam_segmenters(name, predictors, eval_model.config)
    try:
        from samjax.evaluation import baselines  # needs packages that only developers install

        if name == 'flood':
            return [baselines.FloodFill()]
        if name == 'grabcut':
            return [baselines.GrabCut()]
    except ImportError as error:
        raise SamjaxError(f'baseline {name!r} needs {error.name}: run pip install -r requirements-dev.txt') from error
    raise SamjaxError(f"baseline {name!r} is unknown: choose 'flood' or 'grabcut'")


def evaluate_all(
    eval_model: EvalModel,
    segmenters: Mapping[str, Sequence[Segmenter]],
    source: Sequence[Example],
    path: str,
    folder: Path,
    options: EvalOptions,
    max_masks: int = 0,
) -> dict[str, ProtocolResult]:
    """The result of each segmenter on a source at `path`; continues if it was interrupted.  Writes into `folder`.

    Raises SamjaxError if the source has no object.
    """
    config = eval_model.config
    protocol = Interactive(
        source,
        config,
        eval_model.seed,
        max_images=options.max_images,
        max_objects=options.max_objects,
        max_masks=max_masks,
        num_extremes=config.num_visualizations,
    )
    results = {}
    for name, copies in segmenters.items():
        fingerprint = {
            'segmenter': name,
            **eval_model.fingerprint,
            'data': source.digest,
            'eval': dataclasses.asdict(config),
            'seed': eval_model.seed,
            'limits': [options.max_images, options.max_objects, max_masks],
        }
        journal = ResultJournal(folder / UNFINISHED / file_name(name), fingerprint)
        results[name] = protocol.run(copies, journal)
    if not any(result.objects for result in results.values()):
        raise SamjaxError(f'{path} has no object to evaluate on: give another path')
    if jax.process_index() == 0:
        write(folder, results)
    return results


def write(folder: Path, results: Mapping[str, ProtocolResult]) -> None:
    """Scores of every mask, figures and overlays; those of an earlier evaluation are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for gallery in GALLERIES:
        shutil.rmtree(folder / gallery, ignore_errors=True)
    for stale in folder.glob('slots_*.png'):
        stale.unlink()
    _write_masks(folder / 'masks.csv', results)
    click_curves(folder / 'curve.png', results)
    for name, result in results.items():
        mask_slots(folder / _slots_file(name), name, result)
        for gallery, images in zip(GALLERIES, (result.first_images, result.worst, result.best), strict=True):
            of_segmenter = folder / gallery / file_name(name)
            of_segmenter.mkdir(parents=True, exist_ok=True)
            for number, traced in enumerate(images):
                first = traced.traces[0].scores
                iou = '' if gallery == 'overlays' else f'iou_{first.iou_K[0]:.2f}_'
                draw_objects(of_segmenter / f'{number:02d}_{iou}{file_name(first.image)}.png', traced, result.clicks)


def _slots_file(segmenter: str) -> str:
    return f'slots_{file_name(segmenter)}.png'


def score_table(results: Mapping[str, ProtocolResult]) -> Table:
    """mIoU after k clicks, best of three, with a box; rank correlation of predicted and actual IoU."""
    clicks = next(iter(results.values())).clicks
    keys = [*(f'miou@{k}' for k in clicks), 'oracle@1', 'box', 'iou_spearman', 'masks']
    rows = [[name, *(dict(result.values())[key] for key in keys)] for name, result in results.items()]
    note = 'After 1, 2, .. clicks; oracle: the best of three masks of one click; Spearman: predicted and actual IoU.'
    return Table('Mean IoU', ['', *keys], rows, note)


def _write_masks(path: Path, results: Mapping[str, ProtocolResult]) -> None:
    with path.open('w', newline='') as file:
        out = csv.writer(file)
        first = next(scores for result in results.values() for scores in result.objects)
        clicks = [f'{iou}_{k + 1}_clicks' for iou in ('iou', 'predicted_iou') for k in range(len(first.iou_K))]
        masks = range(1, len(first.iou_M) + 1)
        out.writerow(
            ['segmenter', 'image', 'object', 'area_px', *clicks, 'iou_box', 'predicted_iou_box']
            + [f'{column}_mask_{m}' for column in ('iou', 'predicted_iou', 'area_share') for m in masks]
        )
        for name, result in results.items():
            for scores in result.objects:
                numbers = (
                    *scores.iou_K,
                    *scores.predicted_iou_K,
                    scores.box_iou,
                    scores.predicted_box_iou,
                    *scores.iou_M,
                    *scores.predicted_iou_M,
                    *scores.area_fraction_M,
                )
                cells = [f'{number:.5g}' for number in numbers]
                out.writerow([name, scores.image, scores.index, scores.area, *cells])


def file_name(text: str) -> str:
    """A file name of plain letters, digits, dots and dashes for a text."""
    return re.sub(r'[^A-Za-z0-9.-]+', '_', text).strip('_')[-80:]
