"""samjax.inference.automatic against segment-anything's SamAutomaticMaskGenerator, record for record."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from PIL import Image
from pycocotools import mask as coco

from samjax.convert import weights
from samjax.convert.weights import to_states
from samjax.errors import SamjaxError
from samjax.inference.automatic import propose
from samjax.inference.automatic.generator import PRESETS, AmgConfig, AutomaticMaskGenerator, CroppedMask
from samjax.inference.frame import Frame
from samjax.inference.predictor import Predictor
from samjax.masks import boxes, rle
from samjax.model.config import SIZES
from samjax.parity import meta

CONFIG = SIZES['vit_xxs']
# Of random weights about a third of the masks pass.
LOOSE = {
    'points_per_side': 6,
    'points_per_batch': 20,
    'pred_iou_thresh': 0.02,
    'stability_score_thresh': 0.05,
    'stability_score_offset': 0.2,
}


@pytest.fixture(scope='module')
def torch_sam():
    sam = oracle.randomize(oracle.build(CONFIG), 3)
    for name, array in sam.image_encoder.named_parameters():
        if array.ndim > 1 and name.endswith('.weight'):
            array.data /= 1.5  # a gain of 1, or rounding would grow too much for outlines of small masks
    for name, weight in sam.mask_decoder.named_parameters():
        if name.endswith(('q_proj.weight', 'k_proj.weight')) and '.self_attn.' not in name:
            weight.data *= 3  # so that masks differ from point to point
    for array in sam.mask_decoder.iou_prediction_head.layers[-1].parameters():
        array.data *= 0.1  # most of them between 0 and 1
    return sam


@pytest.fixture(scope='module', autouse=True)
def independent_nms():
    """The original with the NMS of the tests: by default it has ours."""
    meta.package()
    module = importlib.import_module('segment_anything.automatic_mask_generator')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, 'batched_nms', oracle.batched_nms)
        yield


@pytest.fixture(scope='module')
def predictor(torch_sam):
    state = {key: value.numpy() for key, value in torch_sam.state_dict().items()}
    arrays, _ = weights.from_torch(weights.META, state, CONFIG, 'the oracle', force=False)
    return Predictor(CONFIG, *jax.device_put(to_states(arrays, CONFIG)))


@pytest.fixture(scope='module')
def image(real_data):
    """uint8 (321, 481, 3)."""
    return np.array(Image.open(sorted(real_data('bsds500/val').glob('*.jpg'))[0]).convert('RGB'))


def noise(height, width):
    coarse = np.random.default_rng(height).integers(0, 256, (5, 7, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def compare(torch_sam, predictor, image, *, least=1, **arguments):
    expected = meta.automatic_mask_generator(torch_sam, **arguments).generate(image)
    records = AutomaticMaskGenerator(predictor, AmgConfig(**arguments)).generate(image)
    assert len(records) == len(expected) >= least
    for f, e in zip(records, expected, strict=True):
        assert list(f) == list(e)
        intersection, union = f['segmentation'] & e['segmentation'], f['segmentation'] | e['segmentation']
        # Of a small mask a thousandth is less than a pixel, and random weights make many outlines of rounding errors.
        assert union.sum() - intersection.sum() <= max(3, 0.001 * union.sum())
        assert f['area'] == f['segmentation'].sum()
        for key in ('bbox', 'predicted_iou', 'stability_score', 'point_coords', 'crop_box'):
            # The original has NaN, which JSON has not, for the stability of a mask without pixels.
            np.testing.assert_allclose(f[key], np.nan_to_num(e[key]), atol=1e-3, err_msg=key)
    return records


@pytest.mark.parametrize(
    'settings',
    [
        {},
        {'box_nms_thresh': 0.95, 'stability_score_offset': 0.3},
        {'pred_iou_thresh': 0.6, 'stability_score_thresh': 0.0, 'box_nms_thresh': 0.99},
        {'crop_n_layers': 1},
        {'crop_n_layers': 2, 'crop_n_points_downscale_factor': 2, 'crop_nms_thresh': 0.9, 'box_nms_thresh': 0.9},
        {'min_mask_region_area': 2, 'box_nms_thresh': 0.95},
        {'min_mask_region_area': 200, 'crop_n_layers': 1, 'crop_overlap_ratio': 0.1},
    ],
    ids=['plain', 'overlapping', 'few', 'crops', 'two layers', 'small parts', 'crops with small parts'],
)
def test_real_image_as_the_original(torch_sam, predictor, image, settings):
    compare(torch_sam, predictor, image, **(LOOSE | settings))


@pytest.mark.parametrize(('height', 'width'), [(330, 40), (1, 1), (3, 200), (17, 23), (128, 128), (700, 500)])
def test_any_size_as_the_original(torch_sam, predictor, height, width):
    compare(torch_sam, predictor, noise(height, width), least=0, **LOOSE, box_nms_thresh=0.95)


def test_default_settings_as_the_original(torch_sam, predictor, image):
    compare(torch_sam, predictor, image, least=0)


def test_thresholds_of_zero_keep_everything(torch_sam, predictor, image):
    settings = LOOSE | {'pred_iou_thresh': 0.0, 'stability_score_thresh': 0.0, 'box_nms_thresh': 1.0}
    expected = meta.automatic_mask_generator(torch_sam, **settings).generate(image)
    records = AutomaticMaskGenerator(predictor, AmgConfig(**settings)).generate(image)
    assert len(records) == len(expected) == 3 * 36

    def by_point(records):  # many scores are equal but for rounding, and so is their order
        return sorted((record['point_coords'], record['predicted_iou'], record['area']) for record in records)

    for f, e in zip(by_point(records), by_point(expected), strict=True):
        np.testing.assert_allclose(f[1], e[1], atol=1e-3)
        assert abs(f[2] - e[2]) <= 5


def test_grids_and_forms_as_the_original(torch_sam, predictor, image):
    grids = [np.array([[0.3, 0.4], [0.7, 0.6], [0.51, 0.8]])]
    settings = {**LOOSE, 'points_per_side': None, 'box_nms_thresh': 0.99, 'pred_iou_thresh': 0.0}
    arguments = {**settings, 'point_grids': grids}
    settings = AmgConfig(**settings)
    for form, kind in (('uncompressed_rle', list), ('coco_rle', str)):
        expected = meta.automatic_mask_generator(torch_sam, **arguments, output_mode=form).generate(image)
        records = AutomaticMaskGenerator(predictor, settings, grids, form).generate(image)
        assert len(records) == len(expected) > 0
        for f, e in zip(records, expected, strict=True):
            assert list(f['segmentation']) == list(e['segmentation']) == ['size', 'counts']
            assert type(f['segmentation']['counts']) is type(e['segmentation']['counts']) is kind
            masks = [record['segmentation'] for record in (f, e)]
            if kind is list:
                masks = [coco.frPyObjects(mask, *mask['size']) for mask in masks]
            assert coco.iou(masks[:1], masks[1:], [False])[0, 0] >= 0.999


def test_grids_of_crops_as_the_original(torch_sam, predictor):
    """Also the order of records whose scores for NMS are equal: of crops of a size, and with small parts removed."""
    loose = {'pred_iou_thresh': 0.0, 'stability_score_thresh': 0.0, 'box_nms_thresh': 0.95, 'crop_nms_thresh': 0.8}
    settings = LOOSE | loose | {'points_per_side': None, 'crop_n_layers': 1}
    rng = np.random.default_rng(0)
    grids = [rng.uniform(0, 1, (8, 2)).tolist(), rng.uniform(0.2, 0.8, (4, 2)).tolist()]
    image_HW3 = noise(200, 260)
    for min_area in (0, 50):
        arguments = settings | {'min_mask_region_area': min_area}
        expected = meta.automatic_mask_generator(torch_sam, **arguments, point_grids=grids).generate(image_HW3)
        records = AutomaticMaskGenerator(predictor, AmgConfig(**arguments), grids).generate(image_HW3)
        assert len(records) == len(expected) > 9
        assert len({tuple(record['crop_box']) for record in expected}) == 3
        for f, e in zip(records, expected, strict=True):
            assert abs(f['area'] - e['area']) <= max(3, 0.001 * e['area'])
            for key in ('bbox', 'predicted_iou', 'point_coords', 'crop_box'):
                np.testing.assert_allclose(f[key], e[key], atol=1e-3, err_msg=key)


def test_points_of_one_kind_are_given(predictor):
    grids = [[[0.5, 0.5]]]
    with pytest.raises(SamjaxError, match='^points_per_side is None and there are no point_grids: give one of them$'):
        AutomaticMaskGenerator(predictor, AmgConfig(points_per_side=None))
    with pytest.raises(SamjaxError, match='^points_per_side 6 and point_grids are both given: set points_per_side'):
        AutomaticMaskGenerator(predictor, AmgConfig(points_per_side=6), grids)
    image_HW3 = noise(40, 60)
    by_default = AutomaticMaskGenerator(predictor, AmgConfig(pred_iou_thresh=0.0), grids).generate(image_HW3)
    explicit = AmgConfig(points_per_side=None, pred_iou_thresh=0.0)
    assert str(AutomaticMaskGenerator(predictor, explicit, grids).generate(image_HW3)) == str(by_default)
    with pytest.raises(SamjaxError, match='^point grid 0 is empty'):
        AutomaticMaskGenerator(predictor, explicit, [[]])


def test_no_masks_pass(predictor, image):
    assert AutomaticMaskGenerator(predictor, AmgConfig(pred_iou_thresh=1.0)).generate(image) == []
    # The original stops with an IndexError here.
    settings = AmgConfig(pred_iou_thresh=1.0, crop_n_layers=1, min_mask_region_area=10)
    assert AutomaticMaskGenerator(predictor, settings).generate(image) == []


def test_rules_of_the_paper(predictor, image):
    loose = AmgConfig(**LOOSE | {'box_nms_thresh': 1.0})
    everything = AutomaticMaskGenerator(predictor, loose).generate(image)
    areas = sorted(record['area'] for record in everything)
    limit = (areas[-1] - 1) / image[..., 0].size
    records = AutomaticMaskGenerator(predictor, dataclasses.replace(loose, max_mask_fraction=limit)).generate(image)
    assert sorted(record['area'] for record in records) == [area for area in areas if area < areas[-1] - 1]

    settings = dataclasses.replace(loose, min_mask_region_area=10**6, drop_small_masks=True)
    assert AutomaticMaskGenerator(predictor, settings).generate(image) == []
    assert PRESETS['sa1b'].crop_n_layers == 2


def test_hundred_images_of_any_size_are_compiled_for_five_times(predictor):
    generator = AutomaticMaskGenerator(predictor, AmgConfig(**LOOSE | {'points_per_side': 2, 'points_per_batch': 4}))
    before = propose.propose._cache_size()
    sizes = [(30, 40), (100, 128), (120, 100), (200, 256), (256, 90), (400, 512), (700, 900), (1000, 900), (1500, 1100)]
    for height, width in sizes:
        generator.generate(noise(height, width))
    compiled = propose.propose._cache_size(), propose.decode_selected._cache_size()
    assert compiled[0] - before <= 5
    for height, width in np.random.default_rng(0).integers(30, 1500, (91, 2)):
        generator.generate(noise(height, width))
    assert (propose.propose._cache_size(), propose.decode_selected._cache_size()) == compiled


@pytest.mark.parametrize('batch', [7, 36, 64])
def test_batch_changes_nothing(predictor, image, batch):
    settings = AmgConfig(**LOOSE | {'box_nms_thresh': 0.95})
    expected = AutomaticMaskGenerator(predictor, settings).generate(image)
    records = AutomaticMaskGenerator(predictor, dataclasses.replace(settings, points_per_batch=batch)).generate(image)
    assert [record['point_coords'] for record in records] == [record['point_coords'] for record in expected]
    assert [record['area'] for record in records] == pytest.approx([record['area'] for record in expected], abs=2)


@pytest.mark.parametrize(('height', 'width'), [(5, 3), (64, 48), (90, 310), (700, 500)])
@pytest.mark.parametrize('tile', [128, 512])
def test_measures_are_those_of_the_full_mask(height, width, tile):
    frame = Frame(CONFIG, height, width)
    rng = np.random.default_rng(0)
    coarse = rng.normal(0, 3, (8, 9, 9)).astype(np.float32)
    low_res_gyx = np.array(jax.image.resize(coarse, (8, *CONFIG.low_res_size), 'cubic'))
    low_res_gyx[0], low_res_gyx[1], low_res_gyx[2] = -5, 5, -5
    low_res_gyx[2, :3, :4] = 0.5  # neither above +1 nor below -1
    geometry = propose.CropGeometry(
        np.array([height, width], np.int32),
        np.array([0, 0, width, height], np.int32),
        np.array([0, 0, width, height], np.int32),
        propose.pad_taps(frame.row_taps),
        propose.pad_taps(frame.column_taps),
    )
    _, window = propose.tiling(frame, CONFIG.low_res_size)
    thresholds = propose.AmgThresholds(
        pred_iou_thresh=0.0,
        stability_score_thresh=0.5,
        stability_score_offset=1.0,
        max_mask_fraction=0.8,
        box_nms_thresh=0.7,
        points_per_batch=4,
    )
    window = window if tile == 128 else max(CONFIG.low_res_size)
    constants = geometry, thresholds, window, tile
    each_alone = [propose.measure_masks(jnp.asarray(low_res_gyx[g : g + 1]), *constants) for g in range(8)]
    stability, box_g4, good = propose.measure_masks(jnp.asarray(low_res_gyx), *constants)
    for alone, batched in zip(zip(*each_alone, strict=True), (stability, box_g4, good), strict=True):
        np.testing.assert_array_equal(np.concatenate(alone), batched)
    for g, low_res_yx in enumerate(low_res_gyx):
        logits_HW = frame.upscale(low_res_yx)
        high, low = (logits_HW > 1).sum(), (logits_HW > -1).sum()
        assert stability[g] == np.float32(high / low if low else 0)
        np.testing.assert_array_equal(box_g4[g], boxes.mask_box(logits_HW > 0))
        assert good[g] == (low > 0 and high / low >= 0.5 and (logits_HW > 0).mean() < 0.8)


def test_boxes_cut_off_by_a_crop():
    geometry = propose.CropGeometry(
        None, np.array([100, 50, 300, 250]), np.array([0, 0, 319, 600]), None, None
    )  # the right edge of the crop is within 20 px of the image's
    boxes_g4 = jnp.array(
        [[30, 30, 100, 100], [20, 30, 100, 100], [21, 30, 100, 100], [30, 30, 199, 100], [30, 30, 150, 179]], jnp.int32
    )
    assert propose.is_box_near_crop_edge(boxes_g4, geometry).tolist() == [False, True, False, False, False]
    assert propose.is_box_near_crop_edge(boxes_g4.at[4, 3].set(180), geometry).tolist()[4] is True


def test_runs_of_a_crop():
    mask_hw = np.array([[1, 0], [1, 1]], bool)
    assert rle.runs_of_crop(mask_hw, 1, 2, (4, 5)) == [9, 2, 3, 1, 5]
    assert rle.runs_of_crop(np.ones((2, 3), bool), 0, 0, (2, 3)) == [0, 6]  # columns without a gap
    assert rle.runs_of_crop(np.zeros((1, 1), bool), 0, 0, (2, 3)) == [6]
    rng = np.random.default_rng(0)
    for _ in range(100):
        (height, width), (top, left) = rng.integers(1, 7, 2), rng.integers(0, 3, 2)
        size = height + top + rng.integers(3), width + left + rng.integers(3)
        mask = CroppedMask(rng.random((height, width)) < 0.6, top, left, tuple(map(int, size)))
        assert rle.as_text(rle.encode(mask.full())) == mask.segmentation('coco_rle')
        assert mask.area() == mask.full().sum()
        np.testing.assert_array_equal(mask.box(), boxes.mask_box(mask.full()))


def test_wrong_settings_are_one_sentence(predictor):
    with pytest.raises(SamjaxError, match='pred_iou_thresh is 88: give a fraction between 0 and 1'):
        AmgConfig(pred_iou_thresh=88)
    with pytest.raises(SamjaxError, match='max_mask_fraction is 95: give a fraction between 0 and 1'):
        AmgConfig(max_mask_fraction=95)
    with pytest.raises(SamjaxError, match='points_per_side is 0: give at least 1'):
        AmgConfig(points_per_side=0)
    for name, value, message in (
        ('points_per_side', 8.5, 'points_per_side is 8.5: give a whole number'),
        ('points_per_side', '8', "points_per_side is '8': give a whole number"),
        ('points_per_batch', None, 'points_per_batch is None: give a whole number'),
        ('points_per_batch', -1, 'points_per_batch is -1: give at least 1'),
        ('crop_n_layers', True, 'crop_n_layers is True: give a whole number'),
        ('crop_n_points_downscale_factor', 0, 'crop_n_points_downscale_factor is 0: give at least 1'),
        ('pred_iou_thresh', np.nan, 'pred_iou_thresh is nan: give a number'),
        ('stability_score_offset', np.inf, 'stability_score_offset is inf: give a number'),
        ('box_nms_thresh', -0.1, 'box_nms_thresh is -0.1: give at least 0'),
    ):
        with pytest.raises(SamjaxError, match=f'^{message}$'):
            AmgConfig(**{name: value})
    assert AmgConfig(points_per_side=np.int64(8), pred_iou_thresh=np.float32(0.5)).points_per_side == 8
    with pytest.raises(SamjaxError, match="output_mode 'png' is not one of binary_mask, uncompressed_rle, coco_rle"):
        AutomaticMaskGenerator(predictor, output_mode='png')
    with pytest.raises(SamjaxError, match='there are 1 point grids for the image and 1 layers of crops: give 2'):
        AutomaticMaskGenerator(predictor, AmgConfig(None, crop_n_layers=1), [np.zeros((1, 2))])
    with pytest.raises(SamjaxError, match='an image is float64'):
        AutomaticMaskGenerator(predictor).generate(np.zeros((4, 4, 3)))


def test_records_load_in_pycocotools(predictor, image):
    generator = AutomaticMaskGenerator(predictor, AmgConfig(**LOOSE), output_mode='coco_rle')
    for record in generator.generate(image):
        assert coco.area(record['segmentation']) == record['area']
