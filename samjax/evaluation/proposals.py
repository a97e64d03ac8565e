"""SAM as a generator of object proposals (arXiv 2304.02643, section 7.3 and appendix D.3)."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from samjax.boxes import box_of, suppress
from samjax.data import rle
from samjax.evaluation.average_precision import average_recall, read_truth
from samjax.evaluation.findings import Findings, Options
from samjax.evaluation.grid import grid_masks
from samjax.evaluation.labelled_images import LabelledImages
from samjax.evaluation.page import Table
from samjax.evaluation.subject import Subject
from samjax.predictor import Predictor
from samjax.survey import UNFINISHED, Ledger, survey

OVERLAP = 0.9  # IoU of boxes above which the less confident mask is dropped
MOST = 1000  # proposals per image
OFFSET = 1.0  # of the logits between which a stable mask does not change


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
    askers = [
        functools.partial(_ask, images, predictor, config.eval.grid, config.eval.object_batch)
        for predictor in subject.predictors
    ]
    ledger = Ledger(folder / UNFINISHED, images.stamp(subject, grid=config.eval.grid))
    answers = survey(len(images), askers, 'proposals', ledger)
    scores = average_recall(truth.only(images.ids), [one for answer in answers for one in answer], MOST)
    rows = [['sam', *(100 * value for value in scores.values())]]
    rows += [[title, *row[: len(scores)]] for title, row in PAPER.items()]
    note = f'{len(images)} images, {np.mean([len(answer) for answer in answers]):.0f} masks of each; '
    note += 'published: LVIS v1 val, 64 x 64 clicks.'
    return Findings(images.data, scores, [Table('Mask AR@1000 in %', ['', *scores], rows, note)], [], [])


def _ask(images: LabelledImages, predictor: Predictor, side: int, batch: int, place: int) -> list[dict]:
    found = propose(predictor, images[place], side, batch)
    return [{'image_id': images.ids[place], 'score': score, 'segmentation': rle.as_text(mask)} for score, mask in found]


def propose(predictor: Predictor, image_HW3: np.ndarray, side: int, batch: int) -> list[tuple[float, dict]]:
    """Scores and COCO RLE of up to 1000 masks of an image, best first; no filter by score or stability.

    side: of the grid, the paper's is 64; batch: clicks that are answered at once.  The score, by which the best are
    taken if there are more, is the mean of expected IoU and stability.
    """
    frame, answers = grid_masks(predictor, image_HW3, side, batch)
    boxes, scores, rles = [], [], []
    for low_yx, iou in answers:
        logits_HW = frame.upscale(low_yx)
        mask_HW = logits_HW > 0
        boxes.append(box_of(mask_HW))
        scores.append((iou, stability(logits_HW)))
        rles.append(rle.encode(mask_HW))
    score_N2 = np.array(scores)
    kept = suppress(np.stack(boxes), score_N2[:, 0], OVERLAP)
    mean_N = score_N2.mean(1)
    best = sorted(kept.tolist(), key=lambda n: -mean_N[n])[:MOST]
    return [(float(mean_N[n]), rles[n]) for n in best]


def stability(logits_HW: np.ndarray) -> float:
    """IoU of the masks above +1 and above -1; 0 if the larger is empty (utils/amg.py has NaN there and drops it)."""
    smaller, larger = np.count_nonzero(logits_HW > OFFSET), np.count_nonzero(logits_HW > -OFFSET)
    return smaller / larger if larger else 0.0
