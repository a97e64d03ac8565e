"""The click protocol on many data sets: a row for each, the mean over data sets, and which are absent."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from samjax.data.formats.read_options import ReadOptions
from samjax.data.formats.tfds import PREFIX
from samjax.data.records.source import open_records
from samjax.errors import SamjaxError
from samjax.evaluation.eval_model import EvalModel
from samjax.evaluation.eval_result import EvalOptions, EvalResult
from samjax.evaluation.report import figures
from samjax.evaluation.report.html import Figure, Table
from samjax.evaluation.tasks.interactive import evaluate_all, file_name, open_segmenters
from samjax.evaluation.tasks.suite_sets import SuiteConfig, SuiteSet

# mIoU in % at 1 and 5 clicks, mean over the 23 data sets (arXiv 2408.00714, Table 15)
PAPER = {'SAM ViT-B, as published': (55.9, 80.9), 'SAM ViT-H, as published': (58.1, 81.3)}


def suite(eval_model: EvalModel, options: EvalOptions, folder: Path) -> EvalResult:
    """Evaluates on every data set that is present.  Raises SamjaxError if none is."""
    config = SuiteConfig.from_config(options.suite)
    sets, root = config.sets, Path(config.root).expanduser()
    names = sorted(sets, key=lambda name: -sets[name].sam_minus_ritm)
    present = {name: path for name in names if (path := _path(root, sets[name].path))}
    if not present:
        raise SamjaxError(
            f'{root} has none of the {len(sets)} sets: put them where samjax/evaluation/tasks/suite_sets.py says, or '
            'give --suite.root=DIR or --suite.sets.NAME.path=PATH'
        )
    segmenters = open_segmenters(eval_model, options.baselines)
    eval_data = eval_model.data
    read_options = ReadOptions(image=eval_data.read_options.image)  # the layouts of the sets differ
    scores, data = {}, {}
    for name, path in present.items():
        source = open_records(path, eval_data.cache, eval_data.max_invalid_fraction, read_options)
        data[name] = {'path': path, 'digest': source.digest}
        results = evaluate_all(eval_model, segmenters, source, path, folder / name, options, config.max_masks)
        scores[name] = {key: dict(result.values()) for key, result in results.items()}
    means = {key: _means([scores[name][key] for name in present]) for key in segmenters}
    drawn = []
    if jax.process_index() == 0:
        titles = {name: sets[name].title for name in present}
        drawn = _figures(folder, titles, scores, means)
    tables = [_table(sets, scores, means, key, eval_model.config.clicks) for key in segmenters]
    absent = [name for name in names if name not in present]
    tables.append(_absent(sets, absent, root))
    return EvalResult(data, {'sets': scores, 'mean': means, 'absent': absent}, tables, drawn, [])


def _path(root: Path, path: str) -> str | None:
    """The path of a data set, None if it is absent."""
    if path.startswith(PREFIX):
        return path
    return str(root / path) if (root / path).exists() else None


def _means(scores_of_sets: list[dict[str, float]]) -> dict[str, float]:
    """Of the mean IoUs, with the same weight for each data set."""
    keys = [key for key in scores_of_sets[0] if key.startswith(('miou', 'oracle', 'box'))]
    return {key: float(np.mean([scores[key] for scores in scores_of_sets])) for key in keys}


def _table(sets: dict[str, SuiteSet], scores: dict, means: dict, segmenter: str, clicks: tuple[int, ...]) -> Table:
    columns = [*(f'miou@{k}' for k in clicks), 'oracle@1', 'box']
    rows = []
    for name, of_set in scores.items():
        values = of_set[segmenter]
        numbers = [100 * values[column] for column in columns]
        rows.append([sets[name].title, values['images'], values['masks'], *numbers, sets[name].sam_minus_ritm])
    rows.append([f'mean of {len(scores)}', None, None, *(100 * means[segmenter][column] for column in columns), None])
    for title, published in PAPER.items():
        known = dict(zip(('miou@1', 'miou@5'), published, strict=True))
        rows.append([f'{title}, mean of 23', None, None, *(known.get(column) for column in columns), None])
    header = ['set', 'images', 'masks', *columns, 'paper: SAM - RITM']
    return Table(f'mIoU in %: {segmenter}', header, rows, 'After 1, 2, .. clicks; oracle: the best of three masks.')


def _absent(sets: dict[str, SuiteSet], names: list[str], root: Path) -> Table:
    rows = [[sets[n].title, sets[n].split, sets[n].images, sets[n].masks, sets[n].source, str(root / sets[n].path)]
            for n in names]  # fmt: skip
    header = ['set', 'split', 'images in the paper', 'masks', 'source', 'put it here']
    return Table(f'Absent: {len(names)} of {len(sets)} sets', header, rows)


def _figures(folder: Path, titles: dict[str, str], scores: dict, means: dict) -> list[Figure]:
    drawn = [Figure('mIoU at one click', figures.set_bars(folder / 'sets.png', titles, scores, 'sam'))]
    for other in means:
        if other != 'sam':
            file = folder / f'deltas_{file_name(other)}.png'
            delta = 100 * (means['sam']['miou@1'] - means[other]['miou@1'])
            note = f'in points of mIoU at one click; mean {delta:+.1f}'
            drawn.append(Figure(f'sam minus {other}', figures.set_deltas(file, titles, scores, other), note))
    return drawn
