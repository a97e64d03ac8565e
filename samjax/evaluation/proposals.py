"""SAM as a generator of object proposals (arXiv 2304.02643, section 7.3 and appendix D.3)."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from samjax.automatic.generator import AutomaticMaskGenerator, Found, Settings
from samjax.evaluation.average_precision import average_recall, read_truth
from samjax.evaluation.findings import Findings, Options
from samjax.evaluation.labelled_images import LabelledImages
from samjax.evaluation.page import Table
from samjax.evaluation.subject import Subject
from samjax.predictor import Predictor
from samjax.survey import UNFINISHED, Ledger, survey

OVERLAP = 0.9  # IoU of boxes above which the less confident mask is dropped
MOST = 1000  # proposals per image

# AR@1000 in % on LVIS v1 val: all, small, medium, large, frequent, common, rare
PAPER = {
    'ViTDet-H, as published': (63.0, 51.7, 80.8, 87.0, 63.1, 63.3, 58.3),
    'SAM ViT-H, as published': (59.3, 45.5, 81.6, 86.9, 59.1, 63.9, 65.8),
}


def proposals(subject: Subject, options: Options, folder: Path) -> Findings:
    """AR@1000 on the JSON of COCO or LVIS at `config.data.eval_path`."""
    config = subject.config
    truth = read_truth(config.data.eval_path)
    images = LabelledImages(config.data.eval_path, truth, options.max_images, config.seed)
    generators = [proposer(predictor, config.eval.grid, config.eval.object_batch) for predictor in subject.predictors]
    askers = [functools.partial(_ask, images, generator) for generator in generators]
    ledger = Ledger(folder / UNFINISHED, images.stamp(subject, grid=config.eval.grid))
    answers = survey(len(images), askers, 'proposals', ledger)
    scores = average_recall(truth.only(images.ids), [one for answer in answers for one in answer], MOST)
    rows = [['sam', *(100 * value for value in scores.values())]]
    rows += [[title, *row[: len(scores)]] for title, row in PAPER.items()]
    note = f'{len(images)} images, {np.mean([len(answer) for answer in answers]):.0f} masks of each; '
    note += 'published: LVIS v1 val, 64 x 64 clicks.'
    return Findings(images.data, scores, [Table('Mask AR@1000 in %', ['', *scores], rows, note)], [], [])


def _ask(images: LabelledImages, generator: AutomaticMaskGenerator, place: int) -> list[dict]:
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
    return AutomaticMaskGenerator(predictor, Settings(side, batch, **loose), output_mode='coco_rle')


def best(found: list[Found]) -> list[Found]:
    """Up to 1000 masks, best first, by the mean of expected IoU and stability."""
    return sorted(found, key=lambda one: -(one.iou + one.stability) / 2)[:MOST]
