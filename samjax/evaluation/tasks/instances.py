"""Zero-shot instance segmentation: masks for the boxes of a detector (arXiv 2304.02643, section 7.4, appendix D.4)."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from samjax.distributed.map import UNFINISHED, ResultJournal, distributed_map
from samjax.errors import SamjaxError
from samjax.evaluation.eval_model import EvalModel
from samjax.evaluation.eval_result import EvalOptions, EvalResult
from samjax.evaluation.metrics.average_precision import BoxFile, average_precision, read_boxes, read_ground_truth
from samjax.evaluation.report.html import Table
from samjax.evaluation.tasks.coco_images import CocoImages
from samjax.inference.predictor import Predictor
from samjax.inference.prompts import box_prompts, pad_prompts
from samjax.masks import rle
from samjax.storage import digest
from samjax.structs import MULTIMASK

# mask AP in %: all, small, medium, large, with the boxes of ViTDet-H
PAPER = {
    'COCO': {'ViTDet-H, as published': (51.0, 32.0, 54.3, 68.9), 'SAM ViT-H, as published': (46.5, 30.8, 51.0, 61.7)},
    'LVIS': {'ViTDet-H, as published': (46.6, 35.0, 58.0, 66.3), 'SAM ViT-H, as published': (44.7, 32.5, 57.6, 65.5)},
}
COLUMNS = ('AP', 'small', 'medium', 'large')


def instances(eval_model: EvalModel, options: EvalOptions, folder: Path) -> EvalResult:
    """Mask AP on the JSON of COCO or LVIS at `data.eval_path`, with the boxes of `options.boxes`."""
    if not options.boxes:
        raise SamjaxError("--task instances needs --boxes=FILE, a detector's boxes in COCO's results form")
    path = eval_model.data.path
    truth = read_ground_truth(path)
    images = CocoImages(path, truth, options.max_images, eval_model.seed, eval_model.data.read_options.image)
    boxes = read_boxes(options.boxes, truth)
    workers = [
        functools.partial(_predict, images, boxes, predictor, eval_model.config.prompt_batch_size)
        for predictor in eval_model.predictors
    ]
    boxes_digest = digest.of_contents([options.boxes])
    journal = ResultJournal(folder / UNFINISHED, images.fingerprint(eval_model, boxes=boxes_digest))
    results = distributed_map(len(images), workers, 'instances', journal)
    detections = [detection for of_image in results for detection in of_image]
    scores = average_precision(truth.only(images.ids), detections)
    rules = 'LVIS' if truth.is_lvis else 'COCO'
    published = {title: dict(zip(COLUMNS, row, strict=True)) for title, row in PAPER[rules].items()}
    rows = [['sam', *(100 * value for value in scores.values())]]
    rows += [[title, *(row.get(column) for column in scores)] for title, row in published.items()]
    note = (
        f'{len(images)} images, {len(detections)} boxes; {boxes.clipped} clipped to their image, '
        f'{boxes.dropped} empty. {truth.remarks()}'
    )
    table = Table(f'Mask AP in %, by the rules of {rules}', ['', *scores], rows, note)
    return EvalResult({**images.data, 'boxes': boxes_digest}, scores, [table], [], [])


def _predict(images: CocoImages, boxes: BoxFile, predictor: Predictor, batch_size: int, index: int) -> list[dict]:
    image_id = images.ids[index]
    of_image = boxes.images[image_id]
    if not len(of_image.boxes_N4):
        return []
    rles = box_masks(predictor, images[index], of_image.boxes_N4, batch_size)
    detections = zip(rles, of_image.score_N.tolist(), of_image.category_N.tolist(), strict=True)
    return [
        {'image_id': image_id, 'category_id': category, 'score': score, 'segmentation': rle.as_text(mask)}
        for mask, score, category in detections
    ]


def box_masks(predictor: Predictor, image_HW3: np.ndarray, boxes_N4: np.ndarray, batch_size: int) -> list[dict]:
    """COCO RLE of a mask for each box (x0, y0, x1, y1 in px).

    Of the three masks the one with the highest predicted IoU is fed back once, with the box; of the next three masks
    that one is taken again, since the paper does not say which.  batch_size: boxes that are decoded at once.
    """
    [frame], embed_BhwC = predictor.encode([image_HW3])
    frame_boxes_N4 = frame.apply_coords(np.asarray(boxes_N4).reshape(-1, 2, 2)).reshape(-1, 4)

    def most_confident(boxes_N4, low_res_Nyx):
        count = len(boxes_N4)
        prompts = pad_prompts(box_prompts(boxes_N4, low_res_Nyx), batch_size, 2)
        prediction = predictor.decode(embed_BhwC, prompts, MULTIMASK)
        best_N = np.asarray(prediction.iou_BNM)[0, :count].argmax(1)
        return np.asarray(prediction.logits_BNMyx)[0][np.arange(count), best_N]

    rles = []
    for start in range(0, len(frame_boxes_N4), batch_size):
        batch_N4 = frame_boxes_N4[start : start + batch_size]
        first_Nyx = most_confident(batch_N4, None)
        for low_res_yx in most_confident(batch_N4, first_Nyx):
            rles.append(rle.encode(frame.upscale(low_res_yx) > 0))
    return rles
