"""SAM as a generator of object proposals (arXiv 2304.02643, section 7.3 and appendix D.3)."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from samjax.distributed.map import UNFINISHED, ResultJournal, distributed_map
from samjax.evaluation.eval_model import EvalModel
from samjax.evaluation.eval_result import EvalOptions, EvalResult
from samjax.evaluation.metrics.average_precision import average_recall, read_truth
from samjax.evaluation.report.html import Table
from samjax.evaluation.tasks.coco_images import CocoImages
from samjax.inference.automatic.generator import AmgConfig, AutomaticMaskGenerator, Candidate
from samjax.inference.predictor import Predictor

OVERLAP = 0.9  # IoU of boxes above which the less confident mask is dropped
MOST = 1000  # proposals per image

# AR@1000 in % on LVIS v1 val: all, small, medium, large, frequent, common, rare
PAPER = {
    'ViTDet-H, as published': (63.0, 51.7, 80.8, 87.0, 63.1, 63.3, 58.3),
    'SAM ViT-H, as published': (59.3, 45.5, 81.6, 86.9, 59.1, 63.9, 65.8),
}


def proposals(eval_model: EvalModel, options: EvalOptions, folder: Path) -> EvalResult:
    """AR@1000 on the JSON of COCO or LVIS at `config.data.eval_path`."""
    config = eval_model.config
    truth = read_truth(config.data.eval_path)
    images = CocoImages(config.data.eval_path, truth, options.max_images, config.seed)
    generators = [
        proposer(predictor, config.eval.points_per_side, config.eval.prompt_batch_size)
        for predictor in eval_model.predictors
    ]
    workers = [functools.partial(_ask, images, generator) for generator in generators]
    journal = ResultJournal(folder / UNFINISHED, images.stamp(eval_model, grid=config.eval.points_per_side))
    answers = distributed_map(len(images), workers, 'proposals', journal)
    scores = average_recall(truth.only(images.ids), [one for answer in answers for one in answer], MOST)
    rows = [['sam', *(100 * value for value in scores.values())]]
    rows += [[title, *row[: len(scores)]] for title, row in PAPER.items()]
    note = f'{len(images)} images, {np.mean([len(answer) for answer in answers]):.0f} masks of each; '
    note += 'published: LVIS v1 val, 64 x 64 clicks.'
    return EvalResult(images.data, scores, [Table('Mask AR@1000 in %', ['', *scores], rows, note)], [], [])


def _ask(images: CocoImages, generator: AutomaticMaskGenerator, place: int) -> list[dict]:
    records = generator.generate(images[place], best)
    return [
        {
            'image_id': images.ids[place],
            'score': (record['predicted_iou'] + record['stability_score']) / 2,
            'segmentation': record['segmentation'],
        }
        for record in records
    ]


def proposer(predictor: Predictor, side: int, batch: int) -> AutomaticMaskGenerator:
    """Masks without a filter by score or stability.  side: of the grid, the paper's is 64; batch: clicks at once."""
    loose = {'pred_iou_thresh': 0.0, 'stability_score_thresh': 0.0, 'box_nms_thresh': OVERLAP}
    return AutomaticMaskGenerator(predictor, AmgConfig(side, batch, **loose), output_mode='coco_rle')


def best(found: list[Candidate]) -> list[Candidate]:
    """Up to 1000 masks, best first, by the mean of expected IoU and stability."""
    return sorted(found, key=lambda one: -(one.iou + one.stability) / 2)[:MOST]
