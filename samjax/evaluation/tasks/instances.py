"""SAM as the mask head of a detector: boxes in, masks out (arXiv 2304.02643, section 7.4 and appendix D.4)."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np

from samjax.distributed.map import UNFINISHED, ResultJournal, distributed_map
from samjax.errors import SamjaxError
from samjax.evaluation.eval_model import EvalModel
from samjax.evaluation.eval_result import EvalOptions, EvalResult
from samjax.evaluation.metrics.average_precision import BoxFile, average_precision, read_boxes, read_truth
from samjax.evaluation.report.html import Table
from samjax.evaluation.tasks.coco_images import CocoImages
from samjax.inference.predictor import PackedPrompt, Predictor, pack_prompts
from samjax.masks import rle
from samjax.structs import ALL_MASKS, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, MULTIMASK

# mask AP in %: all, small, medium, large, with the boxes of ViTDet-H
PAPER = {
    'COCO': {'ViTDet-H, as published': (51.0, 32.0, 54.3, 68.9), 'SAM ViT-H, as published': (46.5, 30.8, 51.0, 61.7)},
    'LVIS': {'ViTDet-H, as published': (46.6, 35.0, 58.0, 66.3), 'SAM ViT-H, as published': (44.7, 32.5, 57.6, 65.5)},
}
COLUMNS = ('AP', 'small', 'medium', 'large')


def instances(eval_model: EvalModel, options: EvalOptions, folder: Path) -> EvalResult:
    """Mask AP on the JSON of COCO or LVIS at `config.data.eval_path`, with the boxes of `options.boxes`."""
    if not options.boxes:
        raise SamjaxError("--task instances needs --boxes=FILE, a detector's boxes in COCO's results form")
    config = eval_model.config
    truth = read_truth(config.data.eval_path)
    images = CocoImages(config.data.eval_path, truth, options.max_images, config.seed)
    boxes = read_boxes(options.boxes, truth)
    workers = [
        functools.partial(_ask, images, boxes, predictor, config.eval.prompt_batch_size)
        for predictor in eval_model.predictors
    ]
    digest = hashlib.sha256(Path(options.boxes).read_bytes()).hexdigest()[:32]
    journal = ResultJournal(folder / UNFINISHED, images.stamp(eval_model, boxes=digest))
    detections = [one for answer in distributed_map(len(images), workers, 'instances', journal) for one in answer]
    scores = average_precision(truth.only(images.ids), detections)
    rules = 'LVIS' if truth.is_lvis else 'COCO'
    published = {title: dict(zip(COLUMNS, row, strict=True)) for title, row in PAPER[rules].items()}
    rows = [['sam', *(100 * value for value in scores.values())]]
    rows += [[title, *(row.get(column) for column in scores)] for title, row in published.items()]
    note = (
        f'{len(images)} images, {len(detections)} boxes; {boxes.clipped} clipped to their image, {boxes.dropped} empty.'
    )
    table = Table(f'Mask AP in %, by the rules of {rules}', ['', *scores], rows, note)
    return EvalResult({**images.data, 'boxes': digest}, scores, [table], [], [])


def _ask(images: CocoImages, boxes: BoxFile, predictor: Predictor, batch: int, place: int) -> list[dict]:
    image_id = images.ids[place]
    of_image = boxes.images[image_id]
    if not len(of_image.boxes_N4):
        return []
    rles = box_masks(predictor, images[place], of_image.boxes_N4, batch)
    found = zip(rles, of_image.score_N.tolist(), of_image.category_N.tolist(), strict=True)
    return [
        {'image_id': image_id, 'category_id': category, 'score': score, 'segmentation': rle.as_text(mask)}
        for mask, score, category in found
    ]


def box_masks(predictor: Predictor, image_HW3: np.ndarray, boxes_N4: np.ndarray, batch: int) -> list[dict]:
    """COCO RLE of a mask for each box (x0, y0, x1, y1 in px).

    The most confident of three masks is fed back once, with the box; of that answer the most confident of three is
    taken again, since the paper does not say which.  batch: boxes that are answered at once.
    """
    [frame], embed_BhwC = predictor.encode([image_HW3])
    corners_N22 = frame.points(np.asarray(boxes_N4).reshape(-1, 2, 2))
    labels_2 = np.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], np.int32)

    def most_confident(said):
        prompts = pack_prompts([said], (1, batch, 2), predictor.config.low_size)
        prediction = predictor.decode(embed_BhwC, prompts, ALL_MASKS)
        three = list(MULTIMASK)
        picked_N = np.asarray(prediction.iou_BNM)[0][: len(said), three].argmax(1)
        low_NMyx = np.asarray(prediction.logits_BNMyx)[0][: len(said), three]
        return low_NMyx[np.arange(len(said)), picked_N]

    rles = []
    for first in range(0, len(corners_N22), batch):
        some = corners_N22[first : first + batch]
        first_Nyx = most_confident([PackedPrompt(corners_22, labels_2, None) for corners_22 in some])
        last_Nyx = most_confident(
            [PackedPrompt(*one) for one in zip(some, [labels_2] * len(some), first_Nyx, strict=True)]
        )
        for low_yx in last_Nyx:
            rles.append(rle.encode(frame.upscale(low_yx) > 0))
    return rles
