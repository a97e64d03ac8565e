"""The report of an evaluation: a table on screen, numbers as JSON and CSV, figures and overlays as PNG.

folder/results.json                 scores, config, data, software, seconds
folder/masks.csv                    one line per object and segmenter
folder/curve.png                    mIoU over clicks, all segmenters
folder/slots_<segmenter>.png        what the three masks of the first click are for
folder/overlays/<segmenter>/*.png   masks over images
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import math
import platform
import re
import shutil
from pathlib import Path

import jax
from ml_collections import ConfigDict

from samjax import checkpoint, pictures, step
from samjax.data import pipeline
from samjax.errors import SamjaxError
from samjax.evaluators import Interactive, Outcome, SamSegmenter
from samjax.model.sam import sam_config
from samjax.predictor import Predictor

EVAL_SEED = 1_000_003  # of drawn scenes; far from the seeds that runs are given
PACKAGES = ('jax', 'flax', 'orbax-checkpoint', 'numpy', 'scipy', 'pillow', 'pycocotools')


def evaluate(
    config: ConfigDict,
    workdir: str,
    others: tuple[str, ...],
    max_images: int,
    max_objects: int,
) -> tuple[str, Path]:
    """Evaluates the newest checkpoint in `workdir` and `others` on `config.data.eval_path`.

    others: of 'untrained', 'flood', 'grabcut'; max_images, max_objects: see `Interactive`.
    Returns the table and the folder of the report.

    Raises:
        SamjaxError: there is no fitting checkpoint, nothing to evaluate on, or a segmenter is unknown.
    """
    folder = Path(workdir) / 'eval' / _file_name('_'.join(Path(config.data.eval_path).parts[-2:]))
    params, buffers, trained_step = checkpoint.restore_params(workdir, config)
    segmenters = [sam_segmenter('sam', config, params, buffers)]
    segmenters += [_other(name, config) for name in others]
    interactive = open_interactive(config, max_images, max_objects)
    outcomes = {segmenter.name: interactive.measure(segmenter) for segmenter in segmenters}
    if not outcomes['sam'].rows:
        raise SamjaxError(f'{config.data.eval_path} has no object to evaluate on: give another path')
    facts = {
        'data': config.data.eval_path,
        'step': trained_step,
        'max_images': max_images,
        'max_objects': max_objects,
        'config': json.loads(config.to_json()),
        'versions': {name: importlib.metadata.version(name) for name in PACKAGES},
        'python': platform.python_version(),
        'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    }
    write(folder, outcomes, facts)
    return table(outcomes), folder


def open_interactive(config: ConfigDict, max_images: int, max_objects: int) -> Interactive:
    """The evaluation on `config.data.eval_path`; scenes are the same for every run, whatever its seed."""
    source = pipeline.open_set(
        config.data.eval_path,
        seed=EVAL_SEED,
        image_size=tuple(config.model.image_size),
        length=config.data.eval_images,
        cache=config.data.cache,
        max_bad_share=config.data.max_bad_share,
    )
    return Interactive(
        source,
        config.eval.clicks,
        config.eval.first_click,
        config.eval.object_batch,
        config.eval.pictures,
        max_images,
        max_objects,
        config.seed,
    )


def sam_segmenter(name: str, config: ConfigDict, params, buffers) -> SamSegmenter:
    """The model of `config` with these parameters, for the evaluation of `config`."""
    model = sam_config(**config.model)
    clicks = max(config.eval.clicks)
    return SamSegmenter(name, Predictor(model, params, buffers), config.eval.object_batch, clicks)


def write(folder: Path, outcomes: dict[str, Outcome], facts: dict) -> None:
    """All files of the report; pictures of an earlier one are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / 'overlays', ignore_errors=True)
    for stale in folder.glob('slots_*.png'):
        stale.unlink()
    scores = {
        name: _finite(outcome.values()) | {'seconds': round(outcome.seconds, 1)} for name, outcome in outcomes.items()
    }
    text = json.dumps({'scores': scores, **facts}, indent=2)
    (folder / 'results.json').write_text(text + '\n')
    _write_masks(folder / 'masks.csv', outcomes)
    pictures.curve(folder / 'curve.png', outcomes)
    for name, outcome in outcomes.items():
        pictures.slots(folder / f'slots_{_file_name(name)}.png', name, outcome)
        overlays = folder / 'overlays' / _file_name(name)
        overlays.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(outcome.pictures):
            image = _file_name(picture.traces[0].row.image)
            pictures.overlay(overlays / f'{number:02d}_{image}.png', picture, outcome.clicks)


def table(outcomes: dict[str, Outcome]) -> str:
    """Aligned rows of segmenters: mIoU after k clicks, best of three, with a box; ranks of predicted and actual IoU."""
    clicks = next(iter(outcomes.values())).clicks
    columns = [(f'miou@{k}', f'{k} click{"s" * (k > 1)}') for k in clicks]
    columns += [('oracle@1', 'oracle@1'), ('box', 'box'), ('iou_spearman', 'spearman'), ('masks', 'masks')]
    lines = [['', *(title for _, title in columns)]]
    for name, outcome in outcomes.items():
        scores = dict(outcome.values())
        lines.append([name, *(_shown(scores[key]) for key, _ in columns)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return '\n'.join(
        line[0].ljust(widths[0])
        + ''.join(f'  {cell:>{width}}' for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )


def _other(name: str, config: ConfigDict):
    """The segmenter to compare with that goes by `name`."""
    if name == 'untrained':
        model = sam_config(**config.model)
        return sam_segmenter(name, config, *jax.jit(lambda: step.init_params(model, config.seed))())
    try:
        from samjax import baseline  # needs packages that only developers install

        if name == 'flood':
            return baseline.FloodFill()
        if name == 'grabcut':
            return baseline.GrabCut()
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


def _finite(values) -> dict[str, float | None]:
    """JSON has no NaN: null stands for what cannot be said."""
    return {name: value if math.isfinite(value) else None for name, value in values}


def _shown(value: float) -> str:
    if isinstance(value, int):
        return f'{value:,}'
    return f'{value:.3f}' if math.isfinite(value) else '-'


def _file_name(text: str) -> str:
    return re.sub(r'[^A-Za-z0-9.-]+', '_', text).strip('_')[-80:]
