"""samjax.inference.predictor against segment-anything's SamPredictor."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch

from samjax.convert import weights
from samjax.convert.weights import to_states
from samjax.errors import SamjaxError
from samjax.inference.predictor import Predictor
from samjax.inference.prompts import Prompt, PromptWarning
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
    arrays, _ = weights.from_torch(weights.META, state, CONFIG, 'the oracle', force=False)
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
            assert_same_prediction(ours.predict(**call, **options), reference.predict(**call, **options))


def assert_same_prediction(actual, expected):
    for e, f in zip(expected, actual, strict=True):
        assert (e.shape, e.dtype) == (f.shape, f.dtype)
    if actual[0].dtype == bool:
        assert (actual[0] == expected[0]).mean() > 0.9999
    else:
        np.testing.assert_allclose(actual[0], expected[0], atol=1e-3)
    np.testing.assert_allclose(actual[1], expected[1], atol=1e-4)
    np.testing.assert_allclose(actual[2], expected[2], atol=1e-3)


BOX, POINT, LABEL = np.array([3, 4, 30, 40]), np.array([[30, 20]]), np.array([1])


@pytest.mark.parametrize(
    'call',
    [
        {'box': BOX[None]},
        {'box': BOX.reshape(2, 2)},
        {'box': BOX[None, None]},
        {'box': BOX[:, None]},
        {'box': BOX.astype(np.uint8)},
        {'box': BOX.astype(np.float16), 'mask_input': LOGITS.astype(np.float16)},
        {'box': np.array([-5, 4, 140.5, 40])},  # beyond the image, which has 128 x 90 px
        {'box': np.array([0, 0, 128, 90])},
        {'point_coords': POINT, 'point_labels': LABEL.astype(float)},
        {'point_coords': POINT, 'point_labels': LABEL.astype(bool)},
        {'point_coords': POINT, 'point_labels': LABEL.tolist(), 'box': BOX[None]},
        {'point_coords': np.array([[30, 20], [7, 8]]), 'point_labels': np.array([1, -1])},  # -1: padding
        {'point_coords': np.zeros((0, 2)), 'point_labels': np.zeros(0)},
        {'point_coords': np.zeros((0, 2)), 'point_labels': np.zeros(0, int), 'box': BOX},
        {'point_coords': np.array([[128, 90]]), 'point_labels': LABEL},
        {'mask_input': LOGITS.tolist()},
        {'mask_input': torch.tensor(LOGITS)},
        {'mask_input': LOGITS.astype(np.float64), 'point_coords': POINT, 'point_labels': LABEL},
    ],
)
def test_whatever_the_original_takes_gives_the_same(reference, ours, call):
    reference.set_image(IMAGES[0])
    ours.set_image(IMAGES[0])
    assert_same_prediction(ours.predict(**call, return_logits=True), reference.predict(**call, return_logits=True))


def test_lists_tuples_and_tensors_are_arrays(ours):
    ours.set_image(IMAGES[0])
    expected = ours.predict(POINT, LABEL, BOX, LOGITS)
    for convert in (np.ndarray.tolist, lambda array: tuple(map(tuple, array)) if array.ndim == 2 else array):
        np.testing.assert_array_equal(ours.predict(*map(convert, (POINT, LABEL, BOX[None], LOGITS)))[2], expected[2])
    for convert in (torch.tensor, jnp.asarray):
        np.testing.assert_array_equal(ours.predict(*map(convert, (POINT, LABEL, BOX, LOGITS)))[2], expected[2])
    [[prediction]] = ours.predict_batch(IMAGES[:1], [[Prompt([[30, 20]], (1,), [[3, 4, 30, 40]], LOGITS[0].tolist())]])
    np.testing.assert_array_equal(prediction.low_res_masks_Myx, expected[2])


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (
            {'box': np.array([30, 4, 10, 40])},
            'the box 30,4,10,40 has its corners the wrong way round: give x0, y0, x1, y1, the top left and the bottom '
            'right corner, not x, y, width, height',
        ),
        ({'box': np.array([[10, 44.5, 20, 44.25]])}, 'the box 10,44.5,20,44.25 has its corners the wrong way round: '),
        ({'box': np.array([130, 4, 150, 40])}, 'the box 130,4,150,40 is outside of the image of 128 x 90 px: give x0'),
        ({'box': np.array([3, -9, 9, -1])}, 'the box 3,-9,9,-1 is outside of the image of 128 x 90 px'),
        (
            {'point_coords': np.array([[30, 100]]), 'point_labels': LABEL},
            'the point 30,100 is outside of the image of 128 x 90 px: give x, then y, in px of the image',
        ),
        (
            {'point_coords': np.array([[-1, 5], [3, 5], [129, 5]]), 'point_labels': np.array([0, 1, 1])},
            'the point -1,5 is outside of the image of 128 x 90 px (and 1 more): ',
        ),
        ({'mask_input': LOGITS > 0}, 'the mask prompt has dtype bool, and its values are used as logits: give logits'),
        ({'mask_input': LOGITS.astype(int)}, 'the mask prompt has dtype int64, and its values are used as logits'),
    ],
)
def test_likely_mistakes_warn_once_and_are_predicted_as_the_original_does(reference, ours, call, message):
    reference.set_image(IMAGES[0])
    ours.set_image(IMAGES[0])
    with pytest.warns(PromptWarning, match=f'^{re.escape(message)}') as caught:
        prediction = ours.predict(**call, return_logits=True)
    assert [warning.filename for warning in caught] == [__file__]
    assert_same_prediction(prediction, reference.predict(**call, return_logits=True))


def test_a_batch_warns_once_for_each_mistake(ours):
    flipped, outside, right = Prompt(box_4=[9, 9, 3, 12]), Prompt([[0, 91]], [1]), Prompt(box_4=BOX)
    with pytest.warns(PromptWarning) as caught:
        ours.predict_batch(IMAGES[:2], [[flipped, outside, right], [flipped, flipped, outside]])
    assert [str(warning.message).partition(':')[0] for warning in caught] == [
        'the box 9,9,3,12 has its corners the wrong way round (and 2 more)',
        'the point 0,91 is outside of the image of 128 x 90 px',  # the second image is 300 px high
    ]
    assert {warning.filename for warning in caught} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        one_pixel, corner = Prompt(box_4=[5, 5, 5, 5]), Prompt([[128, 90]], [1])
        ours.predict_batch(IMAGES[:1], [[one_pixel, corner]])


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


BATCH = 'for several objects give predict_batch a Prompt for each'


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        ({'point_coords': [[1, 2]]}, 'point_coords and point_labels go together'),
        ({'point_labels': [1]}, 'point_coords and point_labels go together'),
        ({'point_coords': [[1, 2, 3]], 'point_labels': [1]}, 'points have shape (1, 3) and labels (1,): give (K, 2)'),
        ({'point_coords': [[1, 2]], 'point_labels': [1, 0]}, 'points have shape (1, 2) and labels (2,)'),
        ({'point_coords': [[1, 2]], 'point_labels': [[1]]}, 'points have shape (1, 2) and labels (1, 1)'),
        (
            {'point_coords': [[1, 2]], 'point_labels': 1},
            'points have shape (1, 2) and labels (): give (K, 2)',
        ),
        (
            {'point_coords': [1, 2], 'point_labels': [1]},
            'points have shape (2,) and labels (1,): give (K, 2)',
        ),
        ({'point_coords': [], 'point_labels': []}, 'points have shape (0,) and labels (0,)'),
        (
            {'point_coords': np.ones((1, 5, 2)), 'point_labels': np.ones((1, 5))},
            f'points have shape (1, 5, 2) and labels (1, 5): give (K, 2) and (K,); {BATCH}.',
        ),
        ({'point_coords': [[1, 2]], 'point_labels': [7]}, 'point label 7 is neither 1'),
        ({'point_coords': [[1, 2]], 'point_labels': [0.5]}, 'point label 0.5 is neither 1'),
        ({'point_coords': [[1, 2]], 'point_labels': [np.nan]}, 'the array of point labels has NaN or infinite values'),
        ({'point_coords': [[1, 2]], 'point_labels': ['1']}, 'the array of point labels has dtype <U1: give integers'),
        ({'point_coords': [[np.nan, 2]], 'point_labels': [1]}, 'the array of points has NaN or infinite values'),
        ({'point_coords': [[1, 2], [3]], 'point_labels': [1, 1]}, 'the array of points cannot be made a numpy array, '),
        ({'box': [1, 2, 3]}, 'the box has shape (3,): give x0, y0, x1, y1.'),
        ({'box': []}, 'the box has shape (0,): give x0, y0, x1, y1.'),
        ({'box': np.ones((2, 4))}, f'the box has shape (2, 4): give x0, y0, x1, y1; {BATCH}.'),
        ({'box': torch.ones(3, 4)}, f'the box has shape (3, 4): give x0, y0, x1, y1; {BATCH}.'),
        ({'box': torch.ones(4, requires_grad=True)}, 'the box cannot be made a numpy array, '),
        ({'box': [1, 2, 3, np.inf]}, 'the box has NaN or infinite values: give finite numbers.'),
        ({'box': [1, 2, 1e300, 3]}, 'the box has NaN or infinite values'),  # float32 has no such number
        ({'box': '1,2,3,4'}, 'the box has dtype <U7: give integers or floats.'),
        ({'box': [1, 2, None, 4]}, 'the box has dtype object'),
        ({'box': [1j, 2, 3, 4]}, 'the box has dtype complex128'),
        (
            {'mask_input': np.zeros((3, 64, 64))},
            'mask_input has shape (3, 64, 64): give the logits of one mask, (1, 64, 64), such as low_res_masks[:1] of '
            'an earlier prediction.',
        ),
        ({'mask_input': np.zeros((64, 64))}, 'mask_input has shape (64, 64): give the logits of one mask'),
        ({'mask_input': np.zeros((1, 3, 3))}, 'mask_input has shape (1, 3, 3)'),
        ({'mask_input': np.zeros((1, 128, 128))}, 'mask_input has shape (1, 128, 128)'),
        ({'mask_input': []}, 'mask_input has shape (0,)'),
        ({'mask_input': 0.5}, 'mask_input has shape ()'),
        ({'mask_input': np.zeros((2, 1, 64, 64))}, f'earlier prediction; {BATCH}.'),
        ({'mask_input': LOGITS * np.nan}, 'mask_input has NaN or infinite values: give finite numbers.'),
        ({'mask_input': LOGITS.astype(str)}, 'mask_input has dtype <U'),
    ],
)
def test_wrong_prompts_are_one_sentence(ours, call, message):
    ours.set_image(IMAGES[0])
    with pytest.raises(SamjaxError, match=re.escape(message)):
        ours.predict(**call)


@pytest.mark.parametrize(
    ('prompts', 'message'),
    [
        (
            [[Prompt(box_4=BOX)], [Prompt(box_4=BOX), Prompt(box_4=[1, 2])]],
            'prompts[1][1]: the box has shape (2,)',
        ),
        ([[], [Prompt(mask_yx=LOGITS)]], 'the mask has shape (1, 64, 64): give logits of shape (64, 64).'),
        ([[], [Prompt(mask_yx=LOGITS[0] * np.nan)]], 'prompts[1][0].mask_yx has NaN or infinite values'),
        ([Prompt(box_4=BOX), []], 'prompts[0] is not a list of Prompt: give one for each image.'),
        ([[], BOX[None]], 'prompts[1] is not a list of Prompt'),
        ([[], [BOX, BOX]], 'prompts[1] is not a list of Prompt'),
        ([[]], 'there are 2 images and 1 lists of prompts'),
    ],
)
def test_wrong_batches_name_the_prompt(ours, prompts, message):
    with pytest.raises(SamjaxError, match=re.escape(message)):
        ours.predict_batch(IMAGES[:2], prompts)


def test_what_the_original_has_and_this_has_not_names_its_replacement(ours):
    for name, replacement in (
        ('predict_torch', 'predict_batch takes several prompts'),
        ('set_torch_image', 'set_image takes'),
        ('features', r'get_image_embedding\(\)'),
        ('transform', 'px of the image'),
        ('device', 'numpy'),
    ):
        with pytest.raises(AttributeError, match=f"'Predictor' object has no attribute '{name}': .*{replacement}"):
            getattr(ours, name)
    with pytest.raises(AttributeError, match="^'Predictor' object has no attribute 'orig_h'$"):
        _ = ours.orig_h


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
    for name in ('original_size', 'input_size'):
        with pytest.raises(SamjaxError, match=f'call set_image before {name}'):
            getattr(ours, name)
