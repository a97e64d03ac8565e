"""Proposals and instances end to end with a tiny model: on a device, on eight, and interrupted."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco
from samples import random_image
from tiny import tiny_eval_model

from samjax.errors import SamjaxError
from samjax.evaluation.eval_result import EvalOptions
from samjax.evaluation.tasks.instances import box_masks, instances
from samjax.evaluation.tasks.proposals import BOX_NMS_THRESH, best_proposals, proposal_generator, proposals
from samjax.inference.automatic.crops import point_grid
from samjax.inference.frame import Frame
from samjax.inference.prompts import Prompt
from samjax.masks import boxes
from samjax.model.config import SIZES
from samjax.structs import MULTIMASK, Prediction


@pytest.fixture
def truth(tmp_path):
    """Five images, one without objects, and a detector's boxes."""
    folder = tmp_path / 'set'
    folder.mkdir()
    images, annotations, detections = [], [], []
    for n in range(5):
        height, width = (24, 40) if n % 2 else (40, 30)
        random_image(n, height, width).save(folder / f'{n}.png')
        images.append({'id': 10 + n, 'file_name': f'{n}.png', 'height': height, 'width': width})
        for k in range(n % 4):
            box = [2 + 3 * k, 3 + k, 12.0, 9.0]
            corners = [box[0], box[1], box[0] + 12, box[1], box[0] + 12, box[1] + 9, box[0], box[1] + 9]
            annotations.append({'id': len(annotations) + 1, 'image_id': 10 + n, 'category_id': 1 + k, 'bbox': box,
                                'area': 108, 'iscrowd': 0, 'segmentation': [corners]})  # fmt: skip
            detections.append({'image_id': 10 + n, 'category_id': 1 + k, 'bbox': box, 'score': 0.9 - 0.1 * k})
    categories = [{'id': 1, 'name': 'a'}, {'id': 2, 'name': 'b'}, {'id': 3, 'name': 'c'}]
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    (folder / 'truth.json').write_text(json.dumps(content))
    (folder / 'boxes.json').write_text(json.dumps(detections))
    return folder


def test_masks_of_boxes_are_those_of_two_predictions(params):
    """The most confident of three for the box, then the most confident of three for the box and that mask."""
    [predictor] = tiny_eval_model(params).predictors
    image_HW3 = np.array(random_image(3, 40, 30))
    boxes_N4 = np.array([[2, 3, 20, 30], [5, 5, 12, 9], [0, 0, 29, 39], [1, 1, 4, 30]], np.float32)
    rles = box_masks(predictor, image_HW3, boxes_N4, batch_size=3)
    predictor.set_image(image_HW3)
    for box_4, rle in zip(boxes_N4, rles, strict=True):
        _, iou_M, low_Myx = predictor.predict(box=box_4)
        masks_MHW, iou_M, _ = predictor.predict(box=box_4, mask_input=low_Myx[[iou_M.argmax()]])
        np.testing.assert_array_equal(coco.decode(rle), masks_MHW[iou_M.argmax()])


class SlotPredictor:
    """Stands in for a predictor: of box n slot (n + round) % 3 has the highest IoU, and each slot its own mask.

    The mask of a slot is a row of the low-resolution grid of 16 x 24: row 3 n + slot in the first round, and in the
    second, if the mask that is fed back is that of the best slot, row 3 n + slot + 1.
    """

    def encode(self, images):
        return [Frame(SIZES['test'], *images[0].shape[:2])], None

    def decode(self, embed_BhwC, prompts, mask_tokens):
        assert mask_tokens == MULTIMASK
        count = prompts.labels_BNP.shape[1]
        logits_BNMyx, iou_BNM = np.full((1, count, 3, 16, 24), -1.0, np.float32), np.zeros((1, count, 3), np.float32)
        for n in range(count):
            number = int(prompts.points_BNP2[0, n, 0, 0])  # of the box
            again = prompts.mask_BNyx is not None and bool(prompts.has_mask_BN[0, n])
            if again:
                best_yx = np.full((16, 24), -1.0)
                best_yx[3 * number + number % 3] = 1
                np.testing.assert_array_equal(prompts.mask_BNyx[0, n], best_yx)
            for slot in range(3):
                logits_BNMyx[0, n, slot, 3 * number + slot + again] = 1
            best = (number + again) % 3
            iou_BNM[0, n] = np.roll([0.9, 0.2, 0.5] if number % 2 else [0.3, 0.1, 0.2], best)
        return Prediction(logits_BNMyx, iou_BNM)


@pytest.mark.parametrize('batch_size', [1, 2, 3, 8])
def test_masks_of_boxes_come_from_the_slot_of_the_highest_predicted_iou(batch_size):
    boxes_N4 = np.array([[n, 1, n + 9, 20] for n in range(4)], np.float32)
    rles = box_masks(SlotPredictor(), np.zeros((32, 48, 3), np.uint8), boxes_N4, batch_size)
    for n, rle in enumerate(rles):
        row = 3 * n + (n + 1) % 3 + 1
        [rows] = np.nonzero(coco.decode(rle).any(1))
        np.testing.assert_allclose(rows.mean(), 2 * row + 0.5)  # of the image, which has twice the rows
    assert len(rles) == 4


def test_proposals_of_an_image_by_hand(params):
    [predictor] = tiny_eval_model(params).predictors
    image_HW3 = np.array(random_image(3, 40, 30))
    records = proposal_generator(predictor, 4, points_per_batch=5).generate(image_HW3, best_proposals)
    points = point_grid(4) * (30, 40)
    prompts = [Prompt(point_2[None], np.array([1])) for point_2 in points]
    [predictions] = predictor.predict_batch([image_HW3], [prompts], return_logits=True)
    logits = [logits_HW for prediction in predictions for logits_HW in prediction.masks_MHW]
    iou_N = np.array([iou for prediction in predictions for iou in prediction.iou_predictions_M])
    kept = boxes.nms(np.stack([boxes.mask_box(logits_HW > 0) for logits_HW in logits]), iou_N, BOX_NMS_THRESH)
    stability_N = [(logits_HW > 1).sum() / max((logits_HW > -1).sum(), 1) for logits_HW in logits]
    expected = sorted(((iou_N[n] + stability_N[n]) / 2 for n in kept), reverse=True)
    scores = [(record['predicted_iou'] + record['stability_score']) / 2 for record in records]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert 1 < len(scores) < 48


@pytest.mark.parametrize('task', [proposals, instances])
def test_eight_devices_have_the_scores_of_one(tmp_path, params, truth, task):
    options = EvalOptions(boxes=str(truth / 'boxes.json'))
    path = truth / 'truth.json'
    single = task(tiny_eval_model(params, 1, path), options, tmp_path / 'single')
    eight = task(tiny_eval_model(params, 8, path), options, tmp_path / 'eight')
    np.testing.assert_equal(single.scores, eight.scores)
    lines = [
        sorted(next(folder.rglob('process_0.jsonl')).read_text().splitlines())
        for folder in (tmp_path / 'single', tmp_path / 'eight')
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 5
    assert single.data['digest'] == eight.data['digest']
    assert len(single.tables[0].rows) == 3  # with those of the paper


@pytest.mark.parametrize('task', [proposals, instances])
def test_interrupted_task_continues(tmp_path, params, truth, task):
    options = EvalOptions(boxes=str(truth / 'boxes.json'))
    model = tiny_eval_model(params, 1, truth / 'truth.json')
    expected = task(model, options, tmp_path / 'whole')
    [file] = (tmp_path / 'whole').rglob('process_0.jsonl')
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(''.join(lines[:2]) + lines[2][:7])  # killed while it wrote
    encoded, encode = [], model.predictors[0].encode
    model.predictors[0].encode = lambda images: encoded.append(1) or encode(images)
    again = task(model, options, tmp_path / 'whole')
    np.testing.assert_equal(again.scores, expected.scores)
    assert len(encoded) == 3 if task is proposals else 1 <= len(encoded) <= 3


def test_json_of_another_program_has_the_same_scores(tmp_path, params, truth):
    """Ids as text and floats, an image listed twice, sizes and areas that are missing, a bad mask, which is said."""
    options = EvalOptions(boxes=str(truth / 'boxes.json'))
    expected = instances(tiny_eval_model(params, 1, truth / 'truth.json'), options, tmp_path / 'plain')
    assert expected.tables[0].note.endswith('0 empty. ')
    content = json.loads((truth / 'truth.json').read_text())
    for image in content['images']:
        del image['height']
        image['id'] = str(image['id'])
    for annotation in content['annotations']:
        annotation |= {'id': 0, 'image_id': float(annotation['image_id']), 'iscrowd': 'false'}
        del annotation['area']
    content['images'].insert(1, content['images'][3])
    content['annotations'].append({**content['annotations'][0], 'segmentation': [[1, 2]]})
    (truth / 'other.json').write_text(json.dumps(content))
    result = instances(tiny_eval_model(params, 1, truth / 'other.json'), options, tmp_path / 'other')
    np.testing.assert_equal(result.scores, expected.scores)
    note = result.tables[0].note
    assert (
        'Annotations left out: 1 invalid polygon, such as annotation 0 of image 11.0: a polygon has 2 numbers' in note
    )
    assert '5 image without valid height and width, those of its file are taken, such as image 10' in note
    assert '6 object without valid area, that of its mask is taken' in note
    assert '1 entry of images that is there several times' in note


def test_missing_files_are_named(tmp_path, params, truth):
    model = tiny_eval_model(params, 1, truth / 'truth.json')
    with pytest.raises(SamjaxError, match='--task instances needs --boxes=FILE'):
        instances(model, EvalOptions(), tmp_path / 'x')
    (truth / '2.png').unlink()
    with pytest.raises(
        SamjaxError, match=r'1 of 5 images cannot be used, such as 2 \(2.png is not below the folder of the JSON'
    ):
        proposals(model, EvalOptions(), tmp_path / 'x')
    random_image(2, 9, 9).save(truth / '2.png')
    with pytest.raises(SamjaxError, match='2.png cannot be used .wrong size: .* for 40 x 30, .* 9 x 9 px'):
        proposals(model, EvalOptions(), tmp_path / 'x')
    with pytest.raises(SamjaxError, match='scenes'):
        proposals(tiny_eval_model(params), EvalOptions(), tmp_path / 'x')
    unknown = [{'image_id': 99, 'category_id': 1, 'bbox': [0, 0, 3, 3], 'score': 1.0}]
    (truth / 'boxes.json').write_text(json.dumps(unknown))
    with pytest.raises(SamjaxError, match='1 of 1 boxes of .* are of images that .* lacks'):
        instances(model, EvalOptions(boxes=str(truth / 'boxes.json')), tmp_path / 'x')
