"""AP and AR are those of pycocotools, LVIS's rules are those of its examples, and what does not fit is refused."""

import contextlib
import copy
import io
import json
import math

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from samjax.data.formats.causes import Causes
from samjax.data.formats.detect import open_index
from samjax.data.records.record import make_record
from samjax.errors import SamjaxError
from samjax.evaluation.metrics.average_precision import average_precision, average_recall, read_boxes, read_ground_truth
from samjax.images.open import ImageOptions

SIDE = 40  # px of the images of the examples
FREQUENCIES = 'rcffc'


def encode(mask_HW):
    rle = coco.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {'size': rle['size'], 'counts': rle['counts'].decode()}


def rectangle(x, y, width, height, image_side=SIDE):
    mask_HW = np.zeros((image_side, image_side), bool)
    mask_HW[y : y + height, x : x + width] = True
    return encode(mask_HW)


FIRST = rectangle(0, 0, 8, 10)  # 80 px
THIRD_QUARTER = rectangle(0, 0, 6, 10)  # of it, 60 px
SECOND = rectangle(20, 20, 10, 10)
ELSEWHERE = rectangle(30, 0, 10, 10)


def image(number, **more):
    return {'id': number, 'height': SIDE, 'width': SIDE, **more}


def lvis_image(number, absent=(), not_exhaustive=()):
    return image(number, neg_category_ids=list(absent), not_exhaustive_category_ids=list(not_exhaustive))


def annotation(number, rle, image_id=1, category_id=1, **more):
    area = int(coco.area(rle))
    known = {'id': number, 'image_id': image_id, 'category_id': category_id, 'area': area, 'iscrowd': 0}
    return {**known, 'segmentation': rle, **more}


def detection(segmentation, score=0.5, image_id=1, category_id=1):
    return {'image_id': image_id, 'category_id': category_id, 'score': score, 'segmentation': segmentation}


def content(images, annotations, frequencies=None):
    """Categories are 1, 2, .. of the frequencies given, or 1 .. 5 of COCO."""
    categories = [{'id': number, 'name': str(number)} for number in range(1, len(frequencies or FREQUENCIES) + 1)]
    for category, frequency in zip(categories, frequencies or (), strict=False):
        category['frequency'] = frequency
    return {'images': images, 'annotations': annotations, 'categories': categories}


@pytest.fixture
def truth(tmp_path):
    """Makes a truth of images, annotations and frequencies of categories (LVIS) or none (COCO)."""

    def make(*args, **kwargs):
        path = tmp_path / 'truth.json'
        path.write_text(json.dumps(content(*args, **kwargs)))
        return read_ground_truth(path)

    return make


# ---- against pycocotools ---------------------------------------------------------------------------


def blob(rng, height, width):
    """An ellipse of 5 to 130 px half axes."""
    (cy, cx), (ry, rx) = rng.uniform(0, (height, width)), np.exp(rng.uniform(np.log(5), np.log(130), 2))
    y_H1, x_W = np.arange(height)[:, None], np.arange(width)
    return ((y_H1 - cy) / ry) ** 2 + ((x_W - cx) / rx) ** 2 < 1


def random_set(seed, crowds=True):
    """A dozen images with ten objects each, and detections near them, of other categories, and anywhere."""
    rng = np.random.default_rng(seed)
    images, annotations, detections = [], [], []
    for number in range(3, 15):
        height, width = (int(side) for side in rng.integers(200, 320, 2))
        images.append({'id': number, 'height': height, 'width': width})
        for _ in range(10):
            mask_HW = blob(rng, height, width)
            if not mask_HW.any():
                continue
            category = int(rng.integers(1, 6))
            more = {'iscrowd': int(crowds and rng.random() < 0.1)}
            annotations.append(annotation(len(annotations) + 1, encode(mask_HW), number, category, **more))
            for _ in range(rng.integers(0, 4)):
                moved_HW = np.roll(mask_HW, rng.integers(-6, 7, 2), (0, 1))
                category_id = category if rng.random() < 0.8 else int(rng.integers(1, 6))
                detections.append(detection(encode(moved_HW), rng.random(), number, category_id))
        detections += [
            detection(encode(blob(rng, height, width)), rng.random(), number, int(rng.integers(1, 6))) for _ in range(5)
        ]
    return content(images, annotations), detections


def pycocotools_stats(path, detections, most=(1, 10, 100), use_categories=True):
    """The twelve numbers of COCOeval."""
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO(path)
        evaluation = COCOeval(annotations, annotations.loadRes(copy.deepcopy(detections)), 'segm')
        evaluation.params.useCats = int(use_categories)
        evaluation.params.maxDets = list(most)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def write(path, content):
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_ap_is_that_of_pycocotools(tmp_path, seed):
    content, detections = random_set(seed)
    for item in detections:
        item['score'] = round(item['score'], 1)  # many ties
    path = write(tmp_path / 'truth.json', content)
    scores = average_precision(read_ground_truth(path), detections)
    assert list(scores) == ['AP', 'AP50', 'AP75', 'small', 'medium', 'large']
    assert list(scores.values()) == pytest.approx(pycocotools_stats(path, detections)[:6], abs=1e-12)
    assert all(0 < score < 1 for score in scores.values())


@pytest.mark.parametrize('seed', [3, 4, 5])
@pytest.mark.parametrize('most', [4, 1000])
def test_ar_is_that_of_pycocotools_without_categories(tmp_path, seed, most):
    content, detections = random_set(seed)
    path = write(tmp_path / 'truth.json', content)
    scores = average_recall(read_ground_truth(path), detections, most)
    expected = pycocotools_stats(path, detections, (1, 2, most), use_categories=False)[8:]
    assert list(scores) == ['all', 'small', 'medium', 'large']
    assert list(scores.values()) == pytest.approx(expected, abs=1e-12)
    assert all(0 <= score < 1 for score in scores.values())


def test_ap_takes_the_best_100_of_a_category_and_image_as_pycocotools_does(tmp_path):
    content, detections = random_set(6)
    rng = np.random.default_rng(7)
    extra = [{**rng.choice(detections), 'image_id': 3, 'category_id': 1, 'score': rng.random()} for _ in range(150)]
    size = [content['images'][0]['height'], content['images'][0]['width']]
    detections += [{**item, 'segmentation': encode(blob(rng, *size))} for item in extra]
    path = write(tmp_path / 'truth.json', content)
    scores = average_precision(read_ground_truth(path), detections)
    assert list(scores.values()) == pytest.approx(pycocotools_stats(path, detections)[:6], abs=1e-12)


def test_lvis_ar_of_a_frequency_is_that_of_its_objects_alone(tmp_path):
    content, detections = random_set(8, crowds=False)
    for category, frequency in zip(content['categories'], FREQUENCIES, strict=True):
        category['frequency'] = frequency
    for item in content['images']:
        item |= {'neg_category_ids': [], 'not_exhaustive_category_ids': []}
    scores = average_recall(read_ground_truth(write(tmp_path / 'truth.json', content)), detections)
    assert list(scores) == ['all', 'small', 'medium', 'large', 'frequent', 'common', 'rare']
    for name in ('frequent', 'common', 'rare'):
        categories = [number for number, letter in enumerate(FREQUENCIES, 1) if letter == name[0]]
        kept = [item for item in content['annotations'] if item['category_id'] in categories]
        path = write(tmp_path / 'subset.json', {**content, 'annotations': kept})
        assert scores[name] == pytest.approx(pycocotools_stats(path, detections, (1, 2, 1000), False)[8], abs=1e-12)


def test_lvis_ap_is_that_of_coco_where_all_is_known_of_every_image(tmp_path):
    content, detections = random_set(9, crowds=False)
    path = write(tmp_path / 'coco.json', content)
    expected = average_precision(read_ground_truth(path), detections)
    rare = [item for item in content['annotations'] if item['category_id'] == 1]
    expected_rare = pycocotools_stats(write(tmp_path / 'rare.json', {**content, 'annotations': rare}), detections)[0]

    for category, frequency in zip(content['categories'], FREQUENCIES, strict=True):
        category['frequency'] = frequency
    for item in content['images']:
        item |= {'neg_category_ids': [1, 2, 3, 4, 5], 'not_exhaustive_category_ids': []}
    scores = average_precision(read_ground_truth(write(tmp_path / 'lvis.json', content)), detections)
    assert list(scores) == [*expected, 'APr', 'APc', 'APf']
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert scores['APr'] == pytest.approx(expected_rare, abs=1e-12)
    assert scores['AP'] == pytest.approx((scores['APr'] + 2 * scores['APc'] + 2 * scores['APf']) / 5, abs=1e-12)


# ---- by hand ---------------------------------------------------------------------------------------


def test_all_found_exactly_is_1(truth):
    both = truth([image(1)], [annotation(1, FIRST), annotation(2, SECOND, category_id=2)])
    detections = [detection(FIRST), detection(SECOND, category_id=2)]
    recall, precision = average_recall(both, detections), average_precision(both, detections)
    assert (recall['all'], recall['small']) == (1, 1)
    assert math.isnan(recall['medium'])
    assert math.isnan(recall['large'])
    assert [precision[name] for name in ('AP', 'AP50', 'AP75', 'small')] == pytest.approx([1] * 4)
    assert math.isnan(precision['large'])


def test_half_of_the_objects_found(truth):
    both = truth([image(1), image(2)], [annotation(1, FIRST), annotation(2, SECOND, image_id=2)])
    assert average_recall(both, [detection(FIRST)])['all'] == 0.5
    # Precision is 1 at recall 0, .01, .. .50 and 0 at the other 50.
    assert average_precision(both, [detection(FIRST)])['AP'] == pytest.approx(51 / 101)


def test_an_iou_of_exactly_the_threshold_is_enough(truth):
    ground_truth = truth([image(1)], [annotation(1, FIRST)])
    assert average_recall(ground_truth, [detection(THIRD_QUARTER)])['all'] == pytest.approx(0.6)  # .50, .55, .. .75
    precision = average_precision(ground_truth, [detection(THIRD_QUARTER)])
    assert [precision[name] for name in ('AP', 'AP50', 'AP75')] == pytest.approx([0.6, 1, 1])

    bit = np.zeros((SIDE, SIDE), bool)
    bit[:10, :6] = True
    bit[0, 0] = False
    assert average_recall(ground_truth, [detection(encode(bit))])['all'] == pytest.approx(0.5)
    assert average_precision(ground_truth, [detection(encode(bit))])['AP75'] == 0


def test_an_iou_of_exactly_one_half_is_enough(truth):
    ground_truth = truth([image(1)], [annotation(1, FIRST)])
    assert average_recall(ground_truth, [detection(rectangle(0, 0, 4, 10))])['all'] == pytest.approx(0.1)
    assert average_recall(ground_truth, [detection(rectangle(0, 0, 4, 9))])['all'] == 0


def test_recall_takes_the_best_of_each_image_and_needs_no_category(truth):
    ground_truth = truth([image(1)], [annotation(1, FIRST)])
    detections = [detection(ELSEWHERE, 0.9), detection(FIRST, 0.1)]
    for each in detections:
        del each['category_id']
    assert average_recall(ground_truth, detections, max_detections=1)['all'] == 0
    assert average_recall(ground_truth, detections, max_detections=2)['all'] == 1


def test_size_is_the_area_of_the_annotation(truth):
    ground_truth = truth([image(1)], [annotation(1, FIRST, area=96**2 + 1)])
    recall = average_recall(ground_truth, [detection(FIRST)])
    assert recall['large'] == 1
    assert math.isnan(recall['small'])
    assert average_precision(ground_truth, [detection(FIRST)])['large'] == pytest.approx(1)


def test_crowds_are_neither_to_be_found_nor_wrong(truth):
    ground_truth = truth([image(1)], [annotation(1, FIRST), annotation(2, SECOND, iscrowd=1)])
    part = rectangle(22, 22, 3, 3)
    assert average_recall(ground_truth, [detection(FIRST, 0.1), detection(part, 0.9)])['all'] == 1
    assert average_precision(ground_truth, [detection(FIRST, 0.1), detection(part, 0.9)])['AP'] == pytest.approx(1)
    assert average_precision(ground_truth, [detection(FIRST, 0.1), detection(ELSEWHERE, 0.9)])['AP'] == pytest.approx(
        0.5
    )


def test_an_annotation_may_have_the_id_0(truth):
    """COCOeval counts it as never matched."""
    ground_truth = truth([image(0)], [annotation(0, FIRST, image_id=0)])
    assert average_recall(ground_truth, [detection(FIRST, image_id=0)])['all'] == 1
    assert average_precision(ground_truth, [detection(FIRST, image_id=0)])['AP'] == pytest.approx(1)


def test_polygons_and_runs_are_read(truth):
    polygon = [[0, 0, 8, 0, 8, 10, 0, 10]]
    runs = {'size': [SIDE, SIDE], 'counts': [0, *[10, SIDE - 10] * 7, 10, SIDE * SIDE - 7 * SIDE - 10]}
    for segmentation in (polygon, runs):
        ground_truth = truth([image(1)], [annotation(1, FIRST, segmentation=segmentation)])
        assert average_recall(ground_truth, [detection(FIRST)])['all'] == 1


def test_some_images_are_scored_as_if_there_were_no_others(truth):
    both = truth([image(1), image(2)], [annotation(1, FIRST), annotation(2, SECOND, image_id=2)])
    assert average_recall(both.only({1}), [detection(FIRST)])['all'] == 1
    assert average_recall(both.only({2}), [])['all'] == 0
    with pytest.raises(SamjaxError, match='1 of 1 detections are of images'):
        average_recall(both.only({2}), [detection(FIRST)])


def test_no_detections_are_0_and_no_objects_nan(truth):
    ground_truth = truth([image(1)], [annotation(1, FIRST)])
    assert average_recall(ground_truth, [])['all'] == 0
    assert average_precision(ground_truth, [])['AP'] == 0
    for frequencies in (None, 'rcf'):
        images = [lvis_image(1) if frequencies else image(1)]
        nothing = truth(images, [], frequencies)
        for detections in ([], [detection(FIRST)]):
            scores = {**average_recall(nothing, detections), **average_precision(nothing, detections)}
            assert all(math.isnan(score) for score in scores.values())


def test_nothing_is_printed_or_changed(truth, capsys):
    ground_truth = truth([image(1)], [annotation(1, FIRST), annotation(2, SECOND, category_id=2)])
    detections = [detection(SECOND, 0.2, category_id=2), detection(FIRST, 0.9)]
    before = copy.deepcopy((ground_truth, detections))
    average_recall(ground_truth, detections)
    average_precision(ground_truth, detections)
    assert (ground_truth, detections) == before
    assert capsys.readouterr() == ('', '')


# ---- LVIS's rules ----------------------------------------------------------------------------------


def lvis_ap(truth, first_image, extra, annotations=(), name='AP'):
    """AP of category 2, detected in image 2 after a better scored detection `extra` in the first."""
    known = annotation(1, FIRST, image_id=2, category_id=2)
    ground_truth = truth([first_image, lvis_image(2)], [known, *annotations], 'rc')
    assert ground_truth.is_lvis
    return average_precision(ground_truth, [detection(FIRST, 0.1, 2, 2), *extra])[name]


WRONG = detection(ELSEWHERE, 0.9, 1, 2)


def test_lvis_leaves_out_categories_of_which_nothing_is_known_in_an_image(truth):
    assert lvis_ap(truth, lvis_image(1), [WRONG]) == pytest.approx(1)


def test_lvis_counts_detections_of_categories_that_are_absent(truth):
    assert lvis_ap(truth, lvis_image(1, absent=[2]), [WRONG]) == pytest.approx(0.5)
    assert lvis_ap(truth, lvis_image(1, absent=[1]), [WRONG]) == pytest.approx(1)


def test_lvis_ignores_what_may_be_an_object_that_nobody_marked(truth):
    annotated = annotation(2, SECOND, image_id=1, category_id=2)
    correct = detection(SECOND, 0.2, 1, 2)
    assert lvis_ap(truth, lvis_image(1), [WRONG, correct], [annotated]) == pytest.approx(2 / 3)
    assert lvis_ap(truth, lvis_image(1, not_exhaustive=[1]), [WRONG, correct], [annotated]) == pytest.approx(2 / 3)
    assert lvis_ap(truth, lvis_image(1, not_exhaustive=[2]), [WRONG, correct], [annotated]) == pytest.approx(1)
    # The object is not detected: precision 1 up to recall .50.
    assert lvis_ap(truth, lvis_image(1, not_exhaustive=[2]), [WRONG], [annotated]) == pytest.approx(51 / 101)


@pytest.mark.parametrize(('others', 'expected'), [(299, 1), (300, 0)])
def test_lvis_takes_the_best_300_of_an_image_before_any_is_left_out(truth, others, expected):
    better = [detection(ELSEWHERE, 0.9, 2, 1)] * others
    assert lvis_ap(truth, lvis_image(1), better) == pytest.approx(expected)


def test_lvis_has_more_than_100_of_a_category(truth):
    better = [detection(ELSEWHERE, 0.9, 2, 2)] * 150
    assert lvis_ap(truth, lvis_image(1), better) == pytest.approx(1 / 151)


def test_lvis_has_no_crowds(truth):
    part = detection(rectangle(22, 22, 3, 3), 0.9)
    assert lvis_ap(truth, lvis_image(1), [part], [annotation(2, SECOND, iscrowd=1)]) == pytest.approx(0.5)


def test_lvis_objects_to_ignore_are_no_crowds(truth):
    part, whole = detection(rectangle(22, 22, 3, 3), 0.9), detection(SECOND, 0.9)
    ignored = [annotation(2, SECOND, category_id=2, ignore=1)]
    assert lvis_ap(truth, lvis_image(1), [{**whole, 'category_id': 2}], ignored) == pytest.approx(1)
    assert lvis_ap(truth, lvis_image(1), [{**part, 'category_id': 2}], ignored) == pytest.approx(0.5)


def test_lvis_ap_of_frequencies(truth):
    annotations = [annotation(1, FIRST), annotation(2, SECOND, category_id=2), annotation(3, ELSEWHERE, category_id=3)]
    ground_truth = truth([lvis_image(1)], annotations, 'rrc')
    scores = average_precision(ground_truth, [detection(FIRST), detection(ELSEWHERE, category_id=3)])
    assert [scores[name] for name in ('AP', 'APr', 'APc')] == pytest.approx([2 / 3, 1 / 2, 1])
    assert math.isnan(scores['APf'])


def test_lvis_ar_of_a_frequency_sees_no_other_objects(truth):
    twice = truth([lvis_image(1)], [annotation(1, FIRST), annotation(2, FIRST, category_id=2)], 'rf')
    recall = average_recall(twice, [detection(FIRST)])
    assert [recall[name] for name in ('all', 'rare', 'frequent')] == [0.5, 1, 1]
    assert math.isnan(recall['common'])


def test_lvis_ar_does_not_ask_what_is_known_of_a_category(truth):
    ground_truth = truth([lvis_image(1, not_exhaustive=[1])], [annotation(1, FIRST)], 'rf')
    assert average_recall(ground_truth, [detection(FIRST, category_id=2)])['all'] == 1


# ---- what does not fit -----------------------------------------------------------------------------


GOOD = detection(FIRST)
BAD_DETECTIONS = [
    ({'image_id': 99}, r'2 of 3 detections are of images that .*truth.json lacks, first \[1\] with image_id 99: '),
    ({'image_id': [1]}, r'2 of 3 detections are of images .* with image_id \[1\]: '),
    ({'score': math.nan}, r'2 of 3 detections have no finite score, first \[1\] with score nan: '),
    ({'score': -math.inf}, r'2 of 3 detections have no finite score, first \[1\] with score -inf: '),
    ({'score': None}, r'2 of 3 detections have no finite score, first \[1\] with score None: '),
    ({'segmentation': [[1, 2, 3]]}, r'2 of 3 detections have no compressed RLE, first \[1\] with segmentation '),
    ({'segmentation': {'size': [SIDE, SIDE], 'counts': [5, 3]}}, r'2 of 3 detections have no compressed RLE, '),
    ({'segmentation': {'counts': 'abc'}}, r'2 of 3 detections have no compressed RLE, '),
    ({'segmentation': rectangle(0, 0, 2, 2, SIDE + 1)}, r'2 of 3 .* have an RLE of another size .* image_id 1: '),
]


@pytest.mark.parametrize(('change', 'message'), BAD_DETECTIONS)
@pytest.mark.parametrize('score', [average_precision, average_recall])
def test_detections_that_do_not_fit_are_refused(truth, score, change, message):
    ground_truth = truth([image(1)], [annotation(1, FIRST)])
    with pytest.raises(SamjaxError, match=message):
        score(ground_truth, [GOOD, {**GOOD, **change}, {**GOOD, **change}])


def test_detections_of_unknown_categories_are_refused_where_categories_count(truth):
    ground_truth = truth([image(1)], [annotation(1, FIRST)])
    detections = [GOOD, detection(FIRST, category_id=0)]
    with pytest.raises(SamjaxError, match=r'1 of 2 detections are of categories that .* lacks, .* category_id 0: '):
        average_precision(ground_truth, detections)
    assert average_recall(ground_truth, detections)['all'] == 1


@pytest.mark.parametrize('key', ['image_id', 'score', 'segmentation', 'category_id'])
def test_detections_that_lack_something_are_refused(truth, key):
    ground_truth = truth([image(1)], [annotation(1, FIRST)])
    with pytest.raises(SamjaxError, match=r'1 of 2 detections lack one of image_id, score, segmentation, category_id'):
        average_precision(ground_truth, [GOOD, {name: value for name, value in GOOD.items() if name != key}])


def without(entry, key):
    return {name: value for name, value in entry.items() if name != key}


def truth_with(images=(), annotations=(), frequencies=None, **changes):
    """An image with an object, and more."""
    return {**content([image(1), *images], [annotation(1, FIRST), *annotations], frequencies), **changes}


def lvis_with(**changes):
    return {**content([lvis_image(1)], [annotation(1, FIRST)], 'rcf'), **changes}


BAD_TRUTHS = [
    ([], 'is not a JSON object: give the annotations'),
    ({}, 'has no list of images and annotations: give the annotations'),
    ({**truth_with(), 'annotations': {}}, 'has no list of annotations: '),
    (
        truth_with([without(image(2), 'height')]),
        '1 of 2 images of .* lack a valid height and width, .* first image 2: ',
    ),
    (truth_with([image(2, height=0)]), '1 of 2 images of .* lack a valid height and width, '),
    (truth_with([image(1.5)]), r'1 of 2 images of .* lack a valid id, first \[1\] '),
    (truth_with([image(None)]), '1 of 2 images of .* lack a valid id, '),
    (truth_with([7]), '1 of 2 images of .* lack a valid id, .* with 7: '),
    (truth_with([image('1', width=9)]), 'has several images with the id 1: '),
    (truth_with(categories=[{'id': 1}, {}]), r'1 of 2 categories of .* lack a valid id, first \[1\] with {}: '),
    (
        {**truth_with(), 'annotations': [{'id': 5, 'image_id': 1, 'segments_info': []}]},
        'is panoptic, without a segmentation for each object: ',
    ),
    (
        {
            **truth_with(),
            'annotations': [annotation(4, FIRST, image_id=5), {**annotation(5, FIRST), 'segmentation': []}],
        },
        'none of its 2 annotations can be used .1 unknown image id, such as annotation 4 of image 5; 1 no mask, ',
    ),
    (lvis_with(images=[image(1)]), '1 of 1 images of .* lack a valid id, neg_category_ids, not_exhaustive'),
    (lvis_with(images=[{**lvis_image(1), 'neg_category_ids': [[]]}]), '1 of 1 images of .* lack a valid id, '),
    (lvis_with(categories=[{'id': 1}]), '1 of 1 categories of .* lack a valid id, frequency, '),
    (lvis_with(categories=[{'id': 1, 'frequency': 'x'}]), '1 of 1 categories of .* lack a valid id, frequency, '),
]


@pytest.mark.parametrize(('content', 'message'), BAD_TRUTHS)
def test_a_truth_of_another_form_is_refused(tmp_path, content, message):
    path = write(tmp_path / 'truth.json', content)
    with pytest.raises(SamjaxError, match=message) as error:
        read_ground_truth(path)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('read', [read_ground_truth, lambda path: read_boxes(path, None)])
def test_what_is_no_json_is_refused(tmp_path, read):
    path = tmp_path / 'truth.json'
    with pytest.raises(SamjaxError, match='truth.json cannot be read .*: give '):
        read(path)
    for text in (b'{"images": [', b'\xff\xfe', b'[' * 100_000):
        path.write_bytes(text)
        with pytest.raises(SamjaxError, match='truth.json is not valid JSON .*: give '):
            read(path)


UNUSABLE = [
    (annotation(2, FIRST, 5), 'unknown image id', 'annotation 2 of image 5'),
    (without(annotation(2, FIRST), 'image_id'), 'unknown image id', 'annotation 2 of image None'),
    (7, 'not a JSON object', 'annotations[1]'),
    (annotation(2, FIRST, iscrowd='some'), 'unclear iscrowd', "annotation 2 of image 1: 'some'"),
    (without(annotation(2, FIRST), 'segmentation'), 'no mask', 'annotation 2 of image 1: its segmentation is None'),
    (annotation(2, FIRST, segmentation='abc'), 'no mask', "annotation 2 of image 1: its segmentation is 'abc'"),
    (
        annotation(2, FIRST, segmentation=[[1, 'a']]),
        'invalid polygon',
        'annotation 2 of image 1: a polygon has 2 numbers, ',
    ),
    (
        annotation(None, FIRST, segmentation=[1, 1, 5, 1, 5, 4]),
        'invalid polygon',
        'annotations[1] of image 1: its segm',
    ),
    (
        annotation(2, rectangle(0, 0, 3, 3, 50)),
        'damaged RLE',
        'annotation 2 of image 1: its size is [50, 50], the image',
    ),
    (annotation(2, FIRST, segmentation={**FIRST, 'counts': '09'}), 'damaged RLE', 'annotation 2 of image 1: its runs '),
    (
        annotation(2, FIRST, segmentation={**FIRST, 'counts': '\x00'}),
        'damaged RLE',
        'annotation 2 of image 1: the counts',
    ),
    (annotation(2, FIRST), 'duplicate mask', 'annotation 2 of image 1'),
]


@pytest.mark.parametrize(('bad', 'cause', 'example'), UNUSABLE)
def test_a_bad_annotation_is_left_out_counted_and_said(truth, bad, cause, example):
    ground_truth = truth([image(1)], [annotation(1, FIRST), bad])
    assert len(ground_truth.objects) == 1
    [(count, first)] = ground_truth.skipped.values()
    assert (list(ground_truth.skipped), count, first[: len(example)]) == ([cause], 1, example)
    assert ground_truth.remarks().startswith(f'Annotations left out: 1 {cause}, such as {example}')
    assert average_recall(ground_truth, [detection(FIRST)])['all'] == 1


UNUSUAL = [
    ({'area': None}, 'object without valid area, that of its mask is taken', 100),
    ({'area': math.nan}, 'object without valid area, that of its mask is taken', 100),
    ({'area': 10**400}, 'object without valid area, that of its mask is taken', 100),
    ({'area': -5}, 'object without valid area, that of its mask is taken', 100),
    ({'area': 0}, 'object without valid area, that of its mask is taken', 100),
    ({'area': '7.5'}, None, 7.5),
    ({'category_id': 9}, 'object of an unknown category, which counts for AR only', 100),
    ({'category_id': None}, 'object of an unknown category, which counts for AR only', 100),
    (
        {'segmentation': {'size': [SIDE, SIDE], 'counts': [SIDE * SIDE]}},
        'object without pixels, which is never found',
        100,
    ),
]


@pytest.mark.parametrize(('change', 'cause', 'area'), UNUSUAL)
def test_what_is_replaced_is_counted_and_said(truth, change, cause, area):
    ground_truth = truth([image(1)], [annotation(1, FIRST), annotation(2, SECOND, **change)])
    assert [item['area'] for item in ground_truth.objects] == [80, area]
    assert ground_truth.warnings.counts == ({cause: 1} if cause else {})
    assert ground_truth.remarks() == '' if cause is None else 'In the annotations: 1 object' in ground_truth.remarks()


def test_objects_without_pixels_are_not_duplicates_of_each_other(truth):
    empty = {'size': [SIDE, SIDE], 'counts': [SIDE * SIDE]}
    ground_truth = truth([image(1)], [annotation(n, FIRST, segmentation=empty) for n in (1, 2)])
    assert (len(ground_truth.objects), ground_truth.skipped) == (2, {})


def test_objects_of_unknown_categories_count_for_recall_only(truth):
    ground_truth = truth([image(1)], [annotation(1, FIRST), annotation(2, SECOND, category_id=9)])
    assert average_recall(ground_truth, [detection(FIRST)])['all'] == 0.5
    assert average_precision(ground_truth, [detection(FIRST)])['AP'] == pytest.approx(1)


def test_the_same_mask_of_another_category_or_a_crowd_is_another_object(truth):
    more = [annotation(2, FIRST, category_id=2), annotation(3, FIRST, iscrowd=1), annotation(4, FIRST, image_id=2)]
    ground_truth = truth([image(1), image(2)], [annotation(1, FIRST), *more])
    assert (len(ground_truth.objects), ground_truth.skipped) == (4, {})


def test_ids_of_annotations_may_repeat(truth):
    annotations = [annotation(n, rectangle(9 * n, 0, 8, 8), image_id) for image_id in (1, 2, 3) for n in (1, 2, 3)]
    ground_truth = truth([image(1), image(2), image(3)], annotations)
    assert (len(ground_truth.objects), ground_truth.skipped) == (9, {})


def test_lists_that_repeat_or_lack_entries(tmp_path):
    """An image that is listed twice, a category with the id of another, no list of categories."""
    content = truth_with([image(1)], categories=[{'id': 1, 'name': 'a'}, {'id': '1', 'name': 'b'}])
    ground_truth = read_ground_truth(write(tmp_path / 'truth.json', content))
    assert ground_truth.categories == {1: {'id': 1, 'name': 'a'}}
    assert ground_truth.warnings == {
        'entry of images that is there several times': (1, ''),
        'category with the id of another': (1, 'category 1'),
    }
    for categories in ({}, {'categories': None}):
        content = {**without(truth_with(), 'categories'), **categories}
        ground_truth = read_ground_truth(write(tmp_path / 'truth.json', content))
        assert list(ground_truth.categories) == [1]
        assert list(ground_truth.warnings) == ['file without a list of categories, those of its annotations are taken']
        assert average_precision(ground_truth, [detection(FIRST)])['AP'] == pytest.approx(1)


@pytest.mark.parametrize('as_written', [str, float, 'id_{}'.format], ids=['text', 'float', 'name'])
def test_scores_do_not_depend_on_how_ids_are_written(tmp_path, as_written):
    content, detections = random_set(11)
    plain = read_ground_truth(write(tmp_path / 'plain.json', content))
    expected = {**average_precision(plain, detections), 'AR': average_recall(plain, detections)['all']}

    def rewritten(items, *keys):
        return [{**item, **{key: as_written(item[key]) for key in keys}} for item in items]

    content |= {
        'images': rewritten(content['images'], 'id'),
        'categories': rewritten(content['categories'], 'id'),
        'annotations': rewritten(content['annotations'], 'image_id', 'category_id'),
    }
    if as_written(1) == 'id_1':  # as the others are, the integers do
        detections = rewritten(detections, 'image_id', 'category_id')
    written = read_ground_truth(write(tmp_path / 'written.json', content))
    scores = {**average_precision(written, detections), 'AR': average_recall(written, detections)['all']}
    assert scores == pytest.approx(expected, abs=1e-12)


def test_images_and_categories_with_ids_of_both_types(tmp_path):
    annotations = [annotation(1, FIRST, 'a'), annotation(2, SECOND, 1, 'b'), annotation(3, FIRST, '01')]
    content = {**truth_with(), 'images': [image('a'), image('1')], 'categories': [{'id': 'b'}, {'id': 1}]}
    ground_truth = read_ground_truth(write(tmp_path / 'truth.json', {**content, 'annotations': annotations}))
    assert list(ground_truth.images) == ['a', 1]
    detections = [detection(FIRST, 0.9, 'a'), detection(SECOND, 0.9, 1, 'b'), detection(FIRST, 0.9, '1', '1')]
    assert average_recall(ground_truth, detections)['all'] == 1
    assert average_precision(ground_truth, detections)['AP'] == pytest.approx(1)
    assert average_precision(ground_truth, detections[1:])['AP'] == pytest.approx((51 / 101 + 1) / 2)


def test_coco_and_lvis_are_told_apart(truth):
    assert not truth([image(1)], []).is_lvis
    assert truth([lvis_image(1)], [], 'rcf').is_lvis


# ---- the reader of training ------------------------------------------------------------------------

SQUARE = [2, 2, 6, 2, 6, 6, 2, 6]
SQUARE_RLE = encode(np.pad(np.ones((4, 4), bool), ((2, SIDE - 6), (2, SIDE - 6))))
DISK = [20, 8, 30, 14, 28, 25, 15, 27, 9, 18]

# segmentation, and what is left of it for both readers: a mask, or a cause
SEGMENTATIONS = [
    ([SQUARE], 'mask'),
    ([SQUARE, DISK], 'mask'),
    ([list(map(float, DISK))], 'mask'),
    ([list(map(str, DISK))], 'mask'),
    ([SQUARE, [1, 2]], 'mask'),
    ([[*SQUARE[:-1], -1e6]], 'mask'),
    (SQUARE_RLE, 'mask'),
    ({'size': [str(SIDE), float(SIDE)], 'counts': SQUARE_RLE['counts']}, 'mask'),
    ({'size': [SIDE, SIDE], 'counts': [100, 50, SIDE * SIDE - 150]}, 'mask'),
    ({'size': [SIDE, SIDE], 'counts': ['100', 50.0, SIDE * SIDE - 150]}, 'mask'),
    ({'size': [SIDE, SIDE], 'counts': [100.5, 50.5, SIDE * SIDE - 151]}, 'damaged RLE'),
    ({'size': [SIDE, SIDE + 1], 'counts': SQUARE_RLE['counts']}, 'damaged RLE'),
    ({'size': [SIDE, SIDE], 'counts': [100, 50]}, 'damaged RLE'),
    ({'size': [SIDE, SIDE], 'counts': 'nonsense'}, 'damaged RLE'),
    ({'size': [SIDE, SIDE]}, 'no mask'),
    ({'counts': SQUARE_RLE['counts']}, 'no mask'),
    ({'size': [SIDE, SIDE], 'counts': None}, 'no mask'),
    (SQUARE, 'invalid polygon'),
    ([SQUARE[:4]], 'invalid polygon'),
    ([SQUARE[:7]], 'invalid polygon'),
    ([[*SQUARE[:-1], math.nan]], 'invalid polygon'),
    ([[*SQUARE[:-1], None]], 'invalid polygon'),
    ([[*SQUARE[:-1], 'x']], 'invalid polygon'),
    ([[[2, 2], [6, 2], [6, 6]]], 'invalid polygon'),
    ([SQUARE_RLE], 'invalid polygon'),
    (None, 'no mask'),
    ([], 'no mask'),
    ({}, 'no mask'),
    ('[[2, 2, 6, 2, 6, 6]]', 'no mask'),
    (5, 'no mask'),
]


def both_readers(folder, images, annotations):
    """Masks by image as training reads them from the records, and as evaluation does, each with what was left out."""
    for entry in images:
        Image.new('RGB', (SIDE, SIDE)).save(folder / entry['file_name'])
    path = write(folder / 'truth.json', {**content([], annotations), 'images': images})
    train, skipped = {}, Causes()
    for shard in open_index(str(path)).shards:
        for item in shard.items():
            made = make_record(item, ImageOptions())
            train[item.image_id] = [mask['counts'] for mask in made.content['annotations']]
            skipped.add_all(made.skipped_masks)
    truth = read_ground_truth(path)
    evaluated = {key: [] for key in truth.images}
    for item in truth.objects:
        evaluated[item['image_id']].append(item['segmentation']['counts'])
    return (train, skipped.counts), (evaluated, truth.skipped.counts)


@pytest.mark.parametrize(('segmentation', 'outcome'), SEGMENTATIONS)
def test_training_and_evaluation_read_the_same_masks(tmp_path, segmentation, outcome):
    annotations = [annotation(1, SECOND), annotation(2, SECOND, segmentation=segmentation)]
    train, evaluated = both_readers(tmp_path, [image(1, file_name='a.png')], annotations)
    assert train == evaluated
    masks, skipped = train
    assert (len(masks[1]), skipped) == ((2, {}) if outcome == 'mask' else (1, {outcome: 1}))


IDS = [(1, 2), (1.0, '2'), ('0001', '0002'), ('a', 'b'), ('a', 2)]


@pytest.mark.parametrize('ids', IDS)
@pytest.mark.parametrize(('iscrowd', 'expected'), [('0', 3), ('false', 3), (None, 3), (0.0, 3), (3, 2), ('yes', 2)])
@pytest.mark.parametrize('size', [SIDE, float(SIDE), str(SIDE), None, 0])
def test_training_and_evaluation_read_the_same_fields(tmp_path, ids, iscrowd, expected, size):
    first, second = ids
    images = [{'id': key, 'file_name': f'{n}.png', 'height': size, 'width': size} for n, key in enumerate(ids)]
    annotations = [
        annotation(0, FIRST, second, iscrowd=iscrowd),
        annotation(0, SECOND, f' {first}'),
        annotation(0, FIRST, first),
        annotation(0, SECOND, first),
    ]
    train, evaluated = both_readers(tmp_path, images, annotations)
    assert train == evaluated
    masks, skipped = train
    assert sum(map(len, masks.values())) == expected
    assert skipped == {'duplicate mask': 1} | ({'unclear iscrowd': 1} if expected == 2 else {})


# ---- boxes of a detector ---------------------------------------------------------------------------


def box(x, y, width, height, **more):
    return {'image_id': 1, 'category_id': 1, 'bbox': [x, y, width, height], 'score': 0.5, **more}


@pytest.fixture
def boxes(truth, tmp_path):
    """Reads a file of boxes in images 1 of 40 x 40 and 2 of 40 x 20 px."""

    def read(entries):
        ground_truth = truth([image(1), image(2, width=20)], [annotation(1, FIRST)])
        return read_boxes(write(tmp_path / 'boxes.json', entries), ground_truth)

    return read


def test_boxes_are_corners_in_the_order_of_the_file(boxes):
    box_file = boxes(
        [
            box(1, 2, 10, 20, score=0.25),
            box(0.5, 0, 3, 4, image_id=2, category_id=3),
            box(5, 6, 7.5, 8, category_id=2, score=1),
        ]
    )
    np.testing.assert_array_equal(box_file.images[1].boxes_N4, [[1, 2, 11, 22], [5, 6, 12.5, 14]])
    np.testing.assert_array_equal(box_file.images[1].score_N, [0.25, 1])
    np.testing.assert_array_equal(box_file.images[1].category_N, [1, 2])
    np.testing.assert_array_equal(box_file.images[2].boxes_N4, [[0.5, 0, 3.5, 4]])
    assert box_file.images[1].boxes_N4.dtype == np.float32
    assert (box_file.clipped, box_file.dropped) == (0, 0)


def test_ids_of_boxes_match_whatever_their_type(boxes):
    box_file = boxes([box(1, 2, 3, 4, image_id='1', category_id='2'), box(5, 6, 7, 8, image_id=2.0, category_id='03')])
    assert [of_image.category_N.tolist() for of_image in box_file.images.values()] == [[2], [3]]


def test_boxes_are_clipped_to_their_image_and_dropped_without_area(boxes):
    box_file = boxes(
        [
            box(-5, 10, 20, 40, image_id=2),
            box(15, 0, 5.00001, 5, image_id=2),  # rounded
            box(25, 0, 5, 5, image_id=2),  # outside
            box(3, 3, 0, 5),
            box(3, 3, 5, -1),
            box(30, 30, 10, 10),
        ]
    )
    np.testing.assert_array_equal(box_file.images[2].boxes_N4, [[0, 10, 15, 40], [15, 0, 20, 5]])
    np.testing.assert_array_equal(box_file.images[1].boxes_N4, [[30, 30, 40, 40]])
    assert (box_file.clipped, box_file.dropped) == (1, 3)


def test_every_image_has_boxes_if_only_none(boxes):
    box_file = boxes([])
    assert list(box_file.images) == [1, 2]
    assert box_file.images[1].boxes_N4.shape == (0, 4)
    assert box_file.images[1].score_N.shape == box_file.images[1].category_N.shape == (0,)


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        (without(box(0, 0, 1, 1), 'bbox'), r'1 of 2 boxes of .*boxes.json lack one of image_id, category_id, bbox, '),
        ('box', r'1 of 2 boxes of .* lack one of image_id, '),
        (box(0, 0, 1, 1, image_id=7), r'1 of 2 boxes of .* are of images that .* lacks, first \[1\] with image_id 7: '),
        (box(0, 0, 1, 1, category_id=0), r'1 of 2 boxes of .* are of categories that .* lacks, .* category_id 0: '),
        (box(0, 0, 1, 1, score=math.inf), r'1 of 2 boxes of .* have no finite score, .* score inf: '),
        (box(0, math.nan, 1, 1), r'1 of 2 boxes of .* are not four finite numbers, .* bbox \[0, nan, 1, 1\]: '),
        (box(0, 0, 1, 1, bbox=[1, 2, 3]), r'1 of 2 boxes of .* are not four finite numbers, .* bbox \[1, 2, 3\]: '),
    ],
)
def test_boxes_that_do_not_fit_are_refused(boxes, bad, message):
    with pytest.raises(SamjaxError, match=message):
        boxes([box(0, 0, 1, 1), bad])


def test_boxes_of_another_form_are_refused(boxes):
    with pytest.raises(SamjaxError, match="boxes.json is not a list: give a detector's results"):
        boxes({'annotations': []})
