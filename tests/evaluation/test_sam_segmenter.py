"""A SAM as segmenter: prompts, masks in pixels of the image, and a fixed number of compilations."""

import jax
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from samjax.data.example import Example
from samjax.evaluation.eval_config import EvalConfig
from samjax.evaluation.protocol import Interactive
from samjax.evaluation.sam_segmenter import SamSegmenter
from samjax.images.encoded_image import EncodedImage
from samjax.inference.predictor import Predictor, _decode, _encode
from samjax.model.config import SIZES
from samjax.model.params import abstract_state
from samjax.structs import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, POSITIVE, Prediction


@pytest.fixture
def source():
    """Five objects and a single object; two non-square sizes."""

    def example(height, width, corners):
        masks_HWN = np.zeros((height, width, len(corners)), np.uint8, order='F')
        for n, (top, left, bottom, right) in enumerate(corners):
            masks_HWN[top:bottom, left:right, n] = 1
        image_HW3 = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        return Example(f'{height}', EncodedImage.from_array(image_HW3), coco_mask.encode(masks_HWN))

    five = [(2 * i, i, 2 * i + 7, i + 9 + 3 * i) for i in range(5)]
    return [example(20, 30, five), example(25, 10, [(3, 2, 21, 9)])]


@pytest.fixture(scope='module')
def predictor():
    config, rng = SIZES['test'], np.random.default_rng(0)
    random = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), abstract_state(config)[1:])
    return Predictor(config, *random)


def interactive(source, max_images=0):
    return Interactive(source, EvalConfig((1, 2, 3), 'center', 3, 1, 1, 4), seed=0, max_images=max_images)


def test_the_model_goes_through_the_protocol(source, predictor):
    segmenter = SamSegmenter('model', predictor, prompt_batch_size=3, max_clicks=3)
    result = interactive(source).run([segmenter])
    assert len(result.objects) == 6
    for scores in result.objects:
        assert len(scores.iou_K) == len(scores.iou_M) == 3
        assert 0 <= min(scores.iou_K + scores.iou_M + (scores.box_iou,)) <= 1
        assert scores.iou_K[0] == scores.iou_M[scores.selected]


def predict(predictor, prompt_batch_size, max_clicks, image_HW3, points_NP2, labels_NP, previous=None):
    segmenter = SamSegmenter('model', predictor, prompt_batch_size, max_clicks)
    segmenter.set_image(image_HW3)
    points_NP2 = np.array(points_NP2, np.float32)
    return segmenter.predict(points_NP2, np.array(labels_NP, np.int32), previous)


IMAGE = np.random.default_rng(1).integers(0, 256, (27, 71, 3), np.uint8)
CLICKS = [[[40, 5]], [[3, 20]]]


def test_unused_objects_and_slots_change_nothing(predictor):
    small = predict(predictor, 3, 3, IMAGE, CLICKS, [[1], [1]])
    large = predict(predictor, 5, 6, IMAGE, CLICKS, [[1], [1]])
    assert small[0].shape == (2, 3, 27, 71)
    np.testing.assert_allclose(small[1], large[1], atol=1e-5)
    np.testing.assert_allclose(small[2], large[2], atol=1e-4)


def test_a_single_prompt_has_three_masks_several_have_one(predictor):
    box = [[[3, 2], [30, 20]]]
    corners = [[BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]]
    assert predict(predictor, 3, 3, IMAGE, CLICKS, [[1], [1]])[1].shape == (2, 3)
    assert predict(predictor, 3, 3, IMAGE, box, corners)[1].shape == (1, 3)
    assert predict(predictor, 3, 3, IMAGE, [[[3, 2], [30, 20]]], [[1, 0]])[1].shape == (1, 1)
    boxed_point = [[[9, 9], *box[0]]], [[POSITIVE, *corners[0]]]
    assert predict(predictor, 3, 3, IMAGE, *boxed_point)[1].shape == (1, 1)


def test_the_previous_prediction_is_a_mask_prompt(predictor):
    low_NMyx = predict(predictor, 3, 3, IMAGE, CLICKS, [[1], [1]])[2]
    without = predict(predictor, 3, 3, IMAGE, CLICKS, [[1], [1]], None)[2]
    with_mask = predict(predictor, 3, 3, IMAGE, CLICKS, [[1], [1]], low_NMyx[:, 0])[2]
    assert abs(with_mask - without).max() > 1e-4


def test_prompts_are_scaled_into_the_frame_and_closed_by_not_a_point(predictor):
    segmenter = SamSegmenter('model', predictor, prompt_batch_size=3, max_clicks=2)
    segmenter.set_image(np.zeros((64, 64, 3), np.uint8))  # frame 32 x 48: half size, 16 columns of padding
    prompts = segmenter._pack(np.array([[[10, 20]]], np.float32), np.array([[1]]), None)
    assert prompts.points_BNP2[0, 0, 0].tolist() == [5, 10]
    assert prompts.labels_BNP[0].tolist() == [[1, -1, -2], [-2, -2, -2], [-2, -2, -2]]
    segmenter.set_image(IMAGE)  # 27 x 71 becomes 18 x 48; the factors differ
    prompts = segmenter._pack(np.array([[[71, 27]]], np.float32), np.array([[1]]), None)
    assert prompts.points_BNP2[0, 0, 0] == pytest.approx([48, 18])
    boxed = segmenter._pack(np.array([[[2, 4], [6, 8]]], np.float32), np.array([[2, 3]]), None)
    assert boxed.labels_BNP[0, 0].tolist() == [2, 3, -2]


@pytest.mark.parametrize('part', ['upper', 'left'])
def test_masks_return_to_the_original_pixels(predictor, monkeypatch, part):
    """The upper 16 rows or the left 12 columns of the 32 x 48 frame land where they belong in images of any size."""
    low_y, low_x = predictor.config.low_res_size
    logits = np.full((1, 2, 4, low_y, low_x), -1.0, np.float32)
    logits[..., : low_y // 2 if part == 'upper' else low_y, : low_x // 4 if part == 'left' else low_x] = 1
    prediction = Prediction(logits, np.zeros((1, 2, 4), np.float32))
    monkeypatch.setattr('samjax.inference.predictor._decode', lambda *inputs: prediction)
    sizes = ((64, 96), (32, 24)), ((32, 48), (16, 12)), ((16, 24), (8, 6)), ((96, 48), (48, 36)), ((32, 96), (32, 24))
    for (height, width), (rows, columns) in sizes:
        masks_NMHW = predict(predictor, 2, 1, np.zeros((height, width, 3), np.uint8), [[[0, 0]]], [[1]])[0]
        expected_HW = np.zeros((height, width), bool)
        expected_HW[: rows if part == 'upper' else height, : columns if part == 'left' else width] = True
        assert (masks_NMHW == expected_HW).all(), (height, width)


@pytest.mark.parametrize(
    ('labels', 'tokens'), [([[1], [1]], (1, 2, 3)), ([[1, 0], [1, 1]], (0,)), ([[2, 3], [2, 3]], (1, 2, 3))]
)
def test_masks_and_their_predicted_iou_are_of_the_same_slots(predictor, monkeypatch, labels, tokens):
    """The logits of object n and token m are all 10 n + m + 1, or minus that of odd tokens; their IoU is a tenth."""
    number_NM = 10 * np.arange(3)[:, None] + np.arange(4) + 1
    signed_NM = np.where(np.arange(4) % 2, -number_NM, number_NM).astype(np.float32)
    logits = np.tile(signed_NM[None, :, :, None, None], (1, 1, 1, *predictor.config.low_res_size))
    prediction = Prediction(logits, (signed_NM / 10)[None])
    monkeypatch.setattr('samjax.inference.predictor._decode', lambda *inputs: prediction)
    points = [[[3, 4], [20, 9]][: len(labels[0])]] * 2
    masks_NMHW, iou_NM, low_NMyx = predict(predictor, 3, 3, IMAGE, points, labels)
    np.testing.assert_array_equal(low_NMyx[:, :, 2, 3], signed_NM[:2, tokens])
    np.testing.assert_array_equal(iou_NM, signed_NM[:2, tokens] / np.float32(10))
    np.testing.assert_array_equal(masks_NMHW[:, :, 5, 6], signed_NM[:2, tokens] > 0)


def test_encoder_and_decoder_are_compiled_once(source, predictor):
    for max_images in (0, 1):
        segmenter = SamSegmenter('model', predictor, prompt_batch_size=3, max_clicks=3)
        interactive(source, max_images=max_images).run([segmenter])
        sizes = _encode._cache_size(), _decode._cache_size()
        if max_images == 0:
            first = sizes
    assert sizes == first


def test_too_many_objects_or_points_are_refused(predictor):
    with pytest.raises(ValueError, match='2 objects with 1 prompts do not fit'):
        predict(predictor, 1, 1, IMAGE, CLICKS, [[1], [1]])
    with pytest.raises(ValueError, match='2 prompts do not fit'):
        predict(predictor, 1, 1, IMAGE, [[[1, 1], [2, 2]]], [[1, 1]])
