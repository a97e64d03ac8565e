"""Zero-shot object proposals (arXiv 2304.02643, section 7.3 and appendix D.3)."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from samjax.distributed.map import UNFINISHED, ResultJournal, distributed_map
from samjax.evaluation.eval_model import EvalModel
from samjax.evaluation.eval_result import EvalOptions, EvalResult
from samjax.evaluation.metrics.average_precision import average_recall, read_ground_truth
from samjax.evaluation.report.html import Table
from samjax.evaluation.tasks.coco_images import CocoImages
from samjax.inference.automatic.generator import AmgConfig, AutomaticMaskGenerator, Candidate
from samjax.inference.predictor import Predictor

BOX_NMS_THRESH = 0.9
MAX_PROPOSALS = 1000  # per image

# AR@1000 in % on LVIS v1 val: all, small, medium, large, frequent, common, rare
PAPER = {
    'ViTDet-H, as published': (63.0, 51.7, 80.8, 87.0, 63.1, 63.3, 58.3),
    'SAM ViT-H, as published': (59.3, 45.5, 81.6, 86.9, 59.1, 63.9, 65.8),
}


def proposals(eval_model: EvalModel, options: EvalOptions, folder: Path) -> EvalResult:
    """AR@1000 on the JSON of COCO or LVIS at `data.eval_path`."""
    config, path = eval_model.config, eval_model.data.path
    truth = read_ground_truth(path)
    images = CocoImages(path, truth, options.max_images, eval_model.seed, eval_model.data.read_options.image)
    generators = [
        proposal_generator(predictor, config.points_per_side, config.prompt_batch_size)
        for predictor in eval_model.predictors
    ]
    workers = [functools.partial(_propose, images, generator) for generator in generators]
    fingerprint = images.fingerprint(eval_model, points_per_side=config.points_per_side)
    results = distributed_map(len(images), workers, 'proposals', ResultJournal(folder / UNFINISHED, fingerprint))
    detections = [detection for of_image in results for detection in of_image]
    scores = average_recall(truth.only(images.ids), detections, MAX_PROPOSALS)
    rows = [['sam', *(100 * value for value in scores.values())]]
    rows += [[title, *row[: len(scores)]] for title, row in PAPER.items()]
    note = f'{len(images)} images, {np.mean([len(of_image) for of_image in results]):.0f} masks of each; '
    note += f'published: LVIS v1 val, 64 x 64 clicks. {truth.remarks()}'
    return EvalResult(images.data, scores, [Table('Mask AR@1000 in %', ['', *scores], rows, note)], [], [])


def _propose(images: CocoImages, generator: AutomaticMaskGenerator, index: int) -> list[dict]:
    records = generator.generate(images[index], best_proposals)
    return [
        {
            'image_id': images.ids[index],
            'score': (record['predicted_iou'] + record['stability_score']) / 2,
            'segmentation': record['segmentation'],
        }
        for record in records
    ]


def proposal_generator(predictor: Predictor, points_per_side: int, points_per_batch: int) -> AutomaticMaskGenerator:
    """The generator of the task; the paper has 64 points per side."""
    return unfiltered_generator(predictor, points_per_side, points_per_batch, BOX_NMS_THRESH)


def unfiltered_generator(
    predictor: Predictor, points_per_side: int, points_per_batch: int, box_nms_thresh: float
) -> AutomaticMaskGenerator:
    """A generator whose masks are filtered by NMS only, not by predicted IoU or stability."""
    config = AmgConfig(
        points_per_side,
        points_per_batch,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
        box_nms_thresh=box_nms_thresh,
    )
    return AutomaticMaskGenerator(predictor, config, output_mode='coco_rle')


def best_proposals(candidates: list[Candidate]) -> list[Candidate]:
    """Up to 1000 candidates, best first, by the mean of predicted IoU and stability."""
    return sorted(candidates, key=lambda c: -(c.predicted_iou + c.stability_score) / 2)[:MAX_PROPOSALS]
