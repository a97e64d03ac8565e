import math

import jax
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from samjax.data.example import Example
from samjax.distributed import map
from samjax.errors import SamjaxError
from samjax.evaluation import protocol
from samjax.evaluation.protocol import Interactive, SamSegmenter
from samjax.images.encoded_image import EncodedImage
from samjax.inference.predictor import Predictor, _decode, _encode
from samjax.model.params import abstract_state
from samjax.model.sam import SIZES
from samjax.structs import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NEGATIVE, POSITIVE, Prediction


def rectangle(height, width, top, left, bottom, right):
    mask_HW = np.zeros((height, width), bool)
    mask_HW[top:bottom, left:right] = True
    return mask_HW


def example(name, height, width, masks):
    rles = [coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8))) for mask_HW in masks]
    image_HW3 = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Example(name, EncodedImage.from_array(image_HW3), rles)


@pytest.fixture
def source():
    """Five, no and one object; two non-square sizes."""
    five = [rectangle(20, 30, 2 * i, i, 2 * i + 7, i + 9 + 3 * i) for i in range(5)]
    one = [rectangle(25, 10, 3, 2, 21, 9)]
    return [example('five', 20, 30, five), example('none', 8, 9, []), example('one', 25, 10, one)]


def interactive(source, **options):
    settings = {
        'clicks': (1, 2, 3),
        'first_click': 'center',
        'prompt_batch_size': 3,
        'pictures': 0,
        'cases': 0,
        'max_images': 0,
        'max_objects': 0,
        'seed': 0,
    }
    return Interactive(source, **settings | options)


class Fake:
    """A segmenter that knows the truth and answers with `make(truth_HW, click number, slot)`.

    It remembers every call.  An object is found by its first prompt, which must lie inside it.
    """

    name = 'fake'

    def __init__(self, source, make, predicted=(0.2, 0.9, 0.5)):
        self.source, self.make, self.predicted, self.calls = source, make, predicted, []

    def set_image(self, image_HW3):
        (example,) = [e for e in self.source if np.array_equal(e.image.pixels(), image_HW3)]
        self.truth_NHW = protocol.decode_masks(example.rles)
        self.asked = 0

    def answer(self, points_NP2, labels_NP, previous):
        count, prompts = labels_NP.shape
        boxed = labels_NP[0, 0] == BOX_TOP_LEFT
        slots = 3 if prompts == 1 or boxed else 1
        truth_NHW = self.truth_NHW[self.asked : self.asked + count]
        self.calls.append((points_NP2.copy(), labels_NP.copy(), previous))
        if boxed:
            self.asked += count
        click = 0 if boxed else prompts
        masks = [[self.make(t, click, m) for m in range(slots)] for t in truth_NHW]
        state = np.array([[[10 * prompts + m] for m in range(slots)]] * count)
        return np.array(masks), np.tile(self.predicted[:slots], (count, 1)), state


def test_a_perfect_segmenter_scores_one_everywhere(source):
    values = dict(interactive(source).measure([Fake(source, lambda truth, click, slot: truth)]).values())
    for name in ('miou@1', 'miou@2', 'miou@3', 'oracle@1', 'box'):
        assert values[name] == 1, name
    assert (values['masks'], values['images'], values['images_without_objects']) == (6, 2, 1)


def test_an_empty_answer_scores_zero_everywhere(source):
    fake = Fake(source, lambda truth, click, slot: np.zeros_like(truth))
    values = dict(interactive(source).measure([fake]).values())
    for name in ('miou@1', 'miou@2', 'miou@3', 'oracle@1', 'box', 'area@slot1'):
        assert values[name] == 0, name
    assert math.isnan(values['iou_spearman'])


def upper_part(truth, click, slot):
    """1 click: a quarter, the upper half and all of a 8 x 4 object; then 6 rows, then all; box: half."""
    rows = {0: (2, 4, 8), 1: (2, 4, 8), 2: (6,), 3: (8,)}[click][slot]
    top = np.flatnonzero(truth.any(1))[0]
    return truth & (np.arange(len(truth)) < top + rows)[:, None]


def test_scores_by_hand():
    source = [example('a', 16, 10, [rectangle(16, 10, 3, 2, 11, 6)])]
    outcome = interactive(source).measure([Fake(source, upper_part)])
    values = dict(outcome.values())
    assert values['miou@1'] == 0.5  # the second mask is the most confident
    assert values['miou@2'] == 0.75
    assert values['miou@3'] == 1
    assert values['oracle@1'] == 1  # the third is the best
    assert values['box'] == 0.5
    assert [values[f'area@slot{i}'] for i in (1, 2, 3)] == [8 / 160, 16 / 160, 32 / 160]
    assert [values[f'picked@slot{i}'] for i in (1, 2, 3)] == [0, 1, 0]
    assert [values[f'best@slot{i}'] for i in (1, 2, 3)] == [0, 0, 1]
    (row,) = outcome.rows
    assert (row.image, row.object, row.area) == ('a', 0, 32)
    assert row.iou_K == (0.5, 0.75, 1)
    assert row.predicted_M == (0.2, 0.9, 0.5)
    expected_N, achieved_N = outcome.expected_and_achieved()  # three masks; two and three clicks; the box
    assert expected_N.tolist() == [0.2, 0.9, 0.5, 0.2, 0.2, 0.9]
    assert achieved_N.tolist() == [0.25, 0.5, 1, 0.75, 1, 0.5]
    assert math.isnan(values['iou_spearman@1'])  # of one object


def test_prompts_of_the_protocol():
    source = [example('a', 16, 10, [rectangle(16, 10, 3, 2, 11, 6)])]
    fake = Fake(source, upper_part)
    interactive(source).measure([fake])
    one, two, three, box = fake.calls
    assert one[0].tolist() == [[[3, 4]]]
    assert one[1].tolist() == [[POSITIVE]]
    assert one[2] is None
    # Rows 3 to 6 are answered; the middle of the missing rows 7 to 10 is next.
    assert two[0].tolist() == [[[3, 4], [3, 8]]]
    assert two[2].tolist() == [[11]]  # the state of the picked second mask
    assert three[0].tolist() == [[[3, 4], [3, 8], [2, 9]]]
    assert three[2].tolist() == [[20]]
    assert box[0].tolist() == [[[2, 3], [5, 10]]]
    assert box[1].tolist() == [[BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]]
    assert box[2] is None


def test_surplus_is_clicked_negative():
    source = [example('a', 12, 9, [rectangle(12, 9, 0, 0, 4, 9)])]
    fake = Fake(source, lambda truth, click, slot: np.ones_like(truth))
    interactive(source, clicks=(2,)).measure([fake])
    assert fake.calls[1][0].tolist() == [[[1, 1], [3, 7]]]
    assert fake.calls[1][1].tolist() == [[POSITIVE, NEGATIVE]]


def test_objects_come_in_batches_and_the_last_is_partial(source):
    fake = Fake(source, lambda truth, click, slot: truth)
    interactive(source, clicks=(1,)).measure([fake])
    assert [len(points) for points, _, _ in fake.calls] == [3, 3, 2, 2, 1, 1]


def test_batch_size_does_not_change_scores(source):
    def half(truth, click, slot):
        return truth & (np.arange(truth.shape[1]) % (slot + 2) > 0)

    whole = interactive(source, prompt_batch_size=8).measure([Fake(source, half)])
    parts = interactive(source, prompt_batch_size=2).measure([Fake(source, half)])
    assert whole.rows == parts.rows


@pytest.mark.parametrize('processes', [2, 4])
def test_processes_share_images_and_find_what_one_finds(source, monkeypatch, processes):
    """Three images; of two processes one has two, of four one has none."""
    fake = Fake(source, lambda truth_HW, click, slot: truth_HW if slot else np.zeros_like(truth_HW))
    whole = interactive(source, pictures=1).measure([fake])
    found = []
    for process in range(processes):
        monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
        monkeypatch.setattr(jax, 'process_count', lambda: processes)
        monkeypatch.setattr(
            map.cluster, 'gather', lambda mine: found.append(mine) or [[(place, []) for place in range(3)], mine]
        )
        interactive(source, pictures=1).measure([fake])
    monkeypatch.setattr(jax, 'process_index', lambda: 0)
    monkeypatch.setattr(map.cluster, 'gather', lambda mine: found)
    joined = interactive(source, pictures=1).measure([fake])
    assert joined.rows == whole.rows
    assert (joined.images, joined.images_without_objects) == (2, 1)
    np.testing.assert_equal(dict(joined.values()), dict(whole.values()))
    assert len(joined.pictures) == 1
    np.testing.assert_array_equal(joined.pictures[0].image_HW3, whole.pictures[0].image_HW3)


def test_random_first_clicks_repeat_and_lie_inside(source):
    def points(seed):
        fake = Fake(source, lambda truth, click, slot: truth)
        interactive(source, clicks=(1,), first_click='random', seed=seed).measure([fake])
        return np.concatenate([p[:, 0] for p, labels, _ in fake.calls if labels.shape[1] == 1])

    assert (points(1) == points(1)).all()
    assert (points(1) != points(2)).any()
    truths = [*protocol.decode_masks(source[0].rles), *protocol.decode_masks(source[2].rles)]
    for (x, y), truth_HW in zip(points(1).astype(int), truths, strict=True):
        assert truth_HW[y, x]


def test_limits_take_a_fixed_part(source):
    fake = Fake(source, lambda truth, click, slot: np.zeros_like(truth))
    limited = interactive(source, max_objects=2)
    rows = limited.measure([fake]).rows
    assert [row.image for row in rows] == ['five', 'five', 'one']
    assert rows == limited.measure([fake]).rows
    assert len({row.object for row in rows[:2]}) == 2
    outcome = interactive(source, max_images=1).measure([fake])
    assert outcome.images + outcome.images_without_objects == 1


def test_nothing_to_evaluate_gives_nan():
    values = dict(interactive([example('none', 8, 9, [])], pictures=3).measure([Fake([], None)]).values())
    assert math.isnan(values['miou@1'])
    assert values['masks'] == 0


def test_objects_without_pixels_are_left_out():
    source = [example('a', 6, 7, [np.zeros((6, 7), bool), rectangle(6, 7, 1, 1, 3, 4)])]

    def whole(truth, click, slot):
        return np.ones_like(truth)

    (row,) = interactive(source).measure([Fake(source, whole)]).rows
    assert row.object == 1


def test_pictures_trace_what_happened(source):
    fake = Fake(source, lambda truth, click, slot: truth & (np.arange(truth.shape[1]) % 2 > 0))
    outcome = interactive(source, pictures=1).measure([fake])
    (picture,) = outcome.pictures
    np.testing.assert_array_equal(picture.image_HW3, source[0].image.pixels())
    assert len(picture.traces) == protocol.PICTURED_OBJECTS
    for trace in picture.traces:
        assert trace.masks_MHW.shape == (3, 20, 30)
        assert trace.answers_KHW.shape == (3, 20, 30)
        assert trace.truth_HW.sum() == trace.row.area
        reached = [protocol.mask_iou(a, trace.truth_HW) for a in trace.answers_KHW]
        assert reached == list(trace.row.iou_K)


def test_unusable_options_are_named(source):
    with pytest.raises(SamjaxError, match='eval.first_click'):
        interactive(source, first_click='middle')
    for clicks in ((), (0, 1), ('x',), (1.5,)):
        with pytest.raises(SamjaxError, match='eval.clicks'):
            interactive(source, clicks=clicks)


# ---- the model as segmenter ------------------------------------------------------------------------


@pytest.fixture(scope='module')
def predictor():
    config, rng = SIZES['test'], np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), abstract_state(config)[1:])
    return Predictor(config, *drawn)


def test_the_model_goes_through_the_protocol(source, predictor):
    segmenter = SamSegmenter('model', predictor, prompt_batch_size=3, max_clicks=3)
    outcome = interactive(source, pictures=1).measure([segmenter])
    assert len(outcome.rows) == 6
    for row in outcome.rows:
        assert len(row.iou_K) == len(row.iou_M) == 3
        assert 0 <= min(row.iou_K + row.iou_M + (row.box,)) <= 1
        assert row.iou_K[0] == row.iou_M[row.picked]


def ask(predictor, prompt_batch_size, max_clicks, image_HW3, points_NP2, labels_NP, previous=None):
    segmenter = SamSegmenter('model', predictor, prompt_batch_size, max_clicks)
    segmenter.set_image(image_HW3)
    points_NP2 = np.array(points_NP2, np.float32)
    return segmenter.answer(points_NP2, np.array(labels_NP, np.int32), previous)


IMAGE = np.random.default_rng(1).integers(0, 256, (27, 71, 3), np.uint8)
CLICKS = [[[40, 5]], [[3, 20]]]


def test_unused_objects_and_slots_change_nothing(predictor):
    small = ask(predictor, 3, 3, IMAGE, CLICKS, [[1], [1]])
    large = ask(predictor, 5, 6, IMAGE, CLICKS, [[1], [1]])
    assert small[0].shape == (2, 3, 27, 71)
    np.testing.assert_allclose(small[1], large[1], atol=1e-5)
    np.testing.assert_allclose(small[2], large[2], atol=1e-4)


def test_a_lone_prompt_has_three_answers_several_have_one(predictor):
    box = [[[3, 2], [30, 20]]]
    corners = [[BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]]
    assert ask(predictor, 3, 3, IMAGE, CLICKS, [[1], [1]])[1].shape == (2, 3)
    assert ask(predictor, 3, 3, IMAGE, box, corners)[1].shape == (1, 3)
    assert ask(predictor, 3, 3, IMAGE, [[[3, 2], [30, 20]]], [[1, 0]])[1].shape == (1, 1)
    boxed_point = [[[9, 9], *box[0]]], [[POSITIVE, *corners[0]]]
    assert ask(predictor, 3, 3, IMAGE, *boxed_point)[1].shape == (1, 1)


def test_the_previous_answer_is_a_mask_prompt(predictor):
    low_NMyx = ask(predictor, 3, 3, IMAGE, CLICKS, [[1], [1]])[2]
    without = ask(predictor, 3, 3, IMAGE, CLICKS, [[1], [1]], None)[2]
    with_mask = ask(predictor, 3, 3, IMAGE, CLICKS, [[1], [1]], low_NMyx[:, 0])[2]
    assert abs(with_mask - without).max() > 1e-4


def test_prompts_are_scaled_into_the_frame_and_closed_by_not_a_point(predictor):
    segmenter = SamSegmenter('model', predictor, prompt_batch_size=3, max_clicks=2)
    segmenter.set_image(np.zeros((64, 64, 3), np.uint8))  # frame 32 x 48: half size, 16 columns of padding
    prompts = segmenter._prompts(np.array([[[10, 20]]], np.float32), np.array([[1]]), None)
    assert prompts.points_BNP2[0, 0, 0].tolist() == [5, 10]
    assert prompts.labels_BNP[0].tolist() == [[1, -1, -2], [-2, -2, -2], [-2, -2, -2]]
    segmenter.set_image(IMAGE)  # 27 x 71 becomes 18 x 48; the factors differ
    prompts = segmenter._prompts(np.array([[[71, 27]]], np.float32), np.array([[1]]), None)
    assert prompts.points_BNP2[0, 0, 0] == pytest.approx([48, 18])
    boxed = segmenter._prompts(np.array([[[2, 4], [6, 8]]], np.float32), np.array([[2, 3]]), None)
    assert boxed.labels_BNP[0, 0].tolist() == [2, 3, -2]


@pytest.mark.parametrize('part', ['upper', 'left'])
def test_masks_return_to_the_original_pixels(predictor, monkeypatch, part):
    """The upper 16 rows or the left 12 columns of the 32 x 48 frame land where they belong in images of any size."""
    low_y, low_x = predictor.config.low_size
    logits = np.full((1, 2, 4, low_y, low_x), -1.0, np.float32)
    logits[..., : low_y // 2 if part == 'upper' else low_y, : low_x // 4 if part == 'left' else low_x] = 1
    prediction = Prediction(logits, np.zeros((1, 2, 4), np.float32))
    monkeypatch.setattr('samjax.inference.predictor._decode', lambda *inputs: prediction)
    sizes = ((64, 96), (32, 24)), ((32, 48), (16, 12)), ((16, 24), (8, 6)), ((96, 48), (48, 36)), ((32, 96), (32, 24))
    for (height, width), (rows, columns) in sizes:
        masks_NMHW = ask(predictor, 2, 1, np.zeros((height, width, 3), np.uint8), [[[0, 0]]], [[1]])[0]
        expected_HW = np.zeros((height, width), bool)
        expected_HW[: rows if part == 'upper' else height, : columns if part == 'left' else width] = True
        assert (masks_NMHW == expected_HW).all(), (height, width)


def test_everything_is_compiled_once(source, predictor):
    for max_images in (0, 1):
        segmenter = SamSegmenter('model', predictor, prompt_batch_size=3, max_clicks=3)
        interactive(source, max_images=max_images).measure([segmenter])
        sizes = _encode._cache_size(), _decode._cache_size()
        if max_images == 0:
            first = sizes
    assert sizes == first


def test_too_many_objects_or_points_are_refused(predictor):
    with pytest.raises(ValueError, match='2 objects with 1 prompts do not fit'):
        ask(predictor, 1, 1, IMAGE, CLICKS, [[1], [1]])
    with pytest.raises(ValueError, match='2 prompts do not fit'):
        ask(predictor, 1, 1, IMAGE, [[[1, 1], [2, 2]]], [[1, 1]])
