"""samjax.inference.predictor against segment-anything's SamPredictor."""

import jax
import numpy as np
import oracle
import pytest

from samjax.convert import weights
from samjax.convert.weights import to_states
from samjax.errors import SamjaxError
from samjax.inference.predictor import Predictor
from samjax.inference.prompts import Prompt
from samjax.model.config import SIZES

CONFIG = SIZES['vit_xxs']
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((90, 128), (300, 41), (128, 128))]


@pytest.fixture(scope='module')
def torch_sam():
    return oracle.randomize(oracle.build(CONFIG), 3)


@pytest.fixture(scope='module')
def reference(torch_sam):
    return oracle.segment_anything.SamPredictor(torch_sam)


@pytest.fixture(scope='module')
def ours(torch_sam):
    state = {key: value.numpy() for key, value in torch_sam.state_dict().items()}
    arrays = weights.from_torch(weights.META, state, CONFIG, 'the oracle', force=False)
    return Predictor(CONFIG, *jax.device_put(to_states(arrays, CONFIG)))


LOGITS = RNG.normal(0, 5, (1, *CONFIG.low_res_size)).astype(np.float32)
CALLS = [
    {'point_coords': [[30, 20]], 'point_labels': [1]},
    {'point_coords': [[30, 20], [5.5, 7], [40, 0]], 'point_labels': [1, 0, 1]},
    {'box': [3, 4, 30, 40]},
    {'point_coords': [[30, 20]], 'point_labels': [0], 'box': [3, 4, 30, 40]},
    {'point_coords': [[30, 20]], 'point_labels': [1], 'mask_input': LOGITS},
    {'mask_input': LOGITS},
    {},
]


@pytest.mark.parametrize('call', CALLS, ids=['point', 'points', 'box', 'both', 'mask', 'mask alone', 'nothing'])
@pytest.mark.parametrize('image', [0, 1])
def test_predict_returns_what_the_original_returns(reference, ours, image, call):
    call = {name: np.array(value) for name, value in call.items()}
    reference.set_image(IMAGES[image])
    ours.set_image(IMAGES[image])
    assert ours.original_size == reference.original_size
    assert ours.input_size == reference.input_size
    for multimask in (True, False):
        for logits in (True, False):
            options = {'multimask_output': multimask, 'return_logits': logits}
            expected, actual = reference.predict(**call, **options), ours.predict(**call, **options)
            for e, f in zip(expected, actual, strict=True):
                assert (e.shape, e.dtype) == (f.shape, f.dtype)
            if logits:
                np.testing.assert_allclose(actual[0], expected[0], atol=1e-3)
            else:
                assert (actual[0] == expected[0]).mean() > 0.9999
            np.testing.assert_allclose(actual[1], expected[1], atol=1e-4)
            np.testing.assert_allclose(actual[2], expected[2], atol=1e-3)


def test_embedding_is_channels_last_and_bgr_is_converted(reference, ours):
    reference.set_image(IMAGES[0], 'BGR')
    ours.set_image(IMAGES[0], 'BGR')
    expected = reference.get_image_embedding().permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours.get_image_embedding(), expected, atol=1e-4)


def test_batch_equals_one_by_one(ours):
    """Three images of other sizes with two, none and three prompts of other kinds and lengths."""
    prompts = [
        [Prompt(np.array([[3, 4]]), np.array([1])), Prompt(box_4=np.array([1, 2, 30, 40]))],
        [],
        [
            Prompt(np.array([[3, 4], [9, 9], [50, 60]]), np.array([1, 0, 1])),
            Prompt(mask_yx=LOGITS[0]),
            Prompt(np.array([[3, 4]]), np.array([1]), np.array([1, 2, 30, 40]), LOGITS[0]),
        ],
    ]
    predictions = ours.predict_batch(IMAGES, prompts)
    assert [len(predictions_N) for predictions_N in predictions] == [2, 0, 3]
    for image, predictions_N, prompts_N in zip(IMAGES, predictions, prompts, strict=True):
        ours.set_image(image)
        for prediction, p in zip(predictions_N, prompts_N, strict=True):
            mask = None if p.mask_yx is None else p.mask_yx[None]
            masks_MHW, iou_M, low_Myx = ours.predict(p.points_K2, p.labels_K, p.box_4, mask)
            np.testing.assert_allclose(prediction.low_res_masks_Myx, low_Myx, atol=1e-3)
            np.testing.assert_allclose(prediction.iou_predictions_M, iou_M, atol=1e-4)
            assert prediction.masks_MHW.shape == masks_MHW.shape == (3, *image.shape[:2])
            assert (prediction.masks_MHW == masks_MHW).mean() > 0.9999


def test_batches_of_nothing(ours):
    assert ours.predict_batch([], []) == []
    assert ours.predict_batch(IMAGES[:2], [[], []]) == [[], []]


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        ({'point_coords': [[1, 2]]}, 'point_coords and point_labels go together'),
        ({'point_coords': [[1, 2, 3]], 'point_labels': [1]}, r'points have shape \(1, 3\) and labels \(1,\)'),
        ({'point_coords': [[1, 2]], 'point_labels': [1, 0]}, r'points have shape \(1, 2\) and labels \(2,\)'),
        ({'point_coords': [[1, 2]], 'point_labels': [7]}, 'point label 7 is neither 1'),
        ({'box': [1, 2, 3]}, r'the box has shape \(3,\)'),
        ({'mask_input': np.zeros((1, 3, 3))}, r'the mask has shape \(3, 3\): give logits of shape \(64, 64\)'),
    ],
)
def test_wrong_prompts_are_one_sentence(ours, call, message):
    ours.set_image(IMAGES[0])
    with pytest.raises(SamjaxError, match=message):
        ours.predict(**call)


def test_wrong_images_are_one_sentence(ours):
    for image, message in (
        (IMAGES[0].astype(np.float32), r'an image is float32 \(90, 128, 3\): give a numpy array, uint8'),
        (IMAGES[0][..., 0], r'an image is uint8 \(90, 128\)'),
        ('image.jpg', 'an image is str'),
        (IMAGES[0][:0], 'needs at least one pixel'),
    ):
        with pytest.raises(SamjaxError, match=message):
            ours.set_image(image)
    with pytest.raises(SamjaxError, match='1 images and 2 lists of prompts'):
        ours.predict_batch(IMAGES[:1], [[], []])
    with pytest.raises(SamjaxError, match="must be 'RGB' or 'BGR', not 'GRB'"):
        ours.set_image(IMAGES[0], 'GRB')


def test_predict_without_an_image_says_so(ours):
    ours.reset_image()
    assert not ours.is_image_set
    with pytest.raises(SamjaxError, match='call set_image before predict'):
        ours.predict()
    with pytest.raises(SamjaxError, match='call set_image before get_image_embedding'):
        ours.get_image_embedding()
