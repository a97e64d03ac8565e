import math

import jax
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from samjax.data.example import Example
from samjax.distributed import map
from samjax.errors import SamjaxError
from samjax.evaluation import protocol
from samjax.evaluation.eval_config import EvalConfig
from samjax.evaluation.protocol import Interactive
from samjax.images.encoded_image import EncodedImage
from samjax.masks.iou import mask_iou
from samjax.structs import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NEGATIVE, POSITIVE


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
    single = [rectangle(25, 10, 3, 2, 21, 9)]
    return [example('five', 20, 30, five), example('none', 8, 9, []), example('single', 25, 10, single)]


def interactive(source, *, seed=0, max_images=0, max_objects=0, **options):
    defaults = {
        'clicks': (1, 2, 3),
        'first_click': 'center',
        'prompt_batch_size': 3,
        'devices': 1,
        'num_visualizations': 0,
        'points_per_side': 4,
    }
    config = EvalConfig(**defaults | options)
    return Interactive(source, config, seed, max_images=max_images, max_objects=max_objects)


class Fake:
    """A segmenter that knows the truth and predicts `make(truth_HW, click number, slot)`.

    It records every call, and takes the objects in the order in which they are prompted.
    """

    name = 'fake'

    def __init__(self, source, make, predicted=(0.2, 0.9, 0.5)):
        self.source, self.make, self.predicted, self.calls = source, make, predicted, []

    def set_image(self, image_HW3):
        (example,) = [e for e in self.source if np.array_equal(e.image.pixels(), image_HW3)]
        self.truth_NHW = protocol.decode_masks(example.rles)
        self.first_object = 0

    def predict(self, points_NP2, labels_NP, previous):
        count, prompts = labels_NP.shape
        boxed = labels_NP[0, 0] == BOX_TOP_LEFT
        slots = 3 if prompts == 1 or boxed else 1
        truth_NHW = self.truth_NHW[self.first_object : self.first_object + count]
        self.calls.append((points_NP2.copy(), labels_NP.copy(), previous))
        if boxed:
            self.first_object += count
        click = 0 if boxed else prompts
        masks = [[self.make(t, click, m) for m in range(slots)] for t in truth_NHW]
        state = np.array([[[10 * prompts + m] for m in range(slots)]] * count)
        return np.array(masks), np.tile(self.predicted[:slots], (count, 1)), state


def test_a_perfect_segmenter_scores_one_everywhere(source):
    values = dict(interactive(source).run([Fake(source, lambda truth, click, slot: truth)]).values())
    for name in ('miou@1', 'miou@2', 'miou@3', 'oracle@1', 'box'):
        assert values[name] == 1, name
    assert (values['masks'], values['images'], values['images_without_objects']) == (6, 2, 1)


def test_empty_masks_score_zero_everywhere(source):
    fake = Fake(source, lambda truth, click, slot: np.zeros_like(truth))
    values = dict(interactive(source).run([fake]).values())
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
    result = interactive(source).run([Fake(source, upper_part)])
    values = dict(result.values())
    assert values['miou@1'] == 0.5  # the second mask is the most confident
    assert values['miou@2'] == 0.75
    assert values['miou@3'] == 1
    assert values['oracle@1'] == 1  # the third is the best
    assert values['box'] == 0.5
    assert [values[f'area@slot{i}'] for i in (1, 2, 3)] == [8 / 160, 16 / 160, 32 / 160]
    assert [values[f'picked@slot{i}'] for i in (1, 2, 3)] == [0, 1, 0]
    assert [values[f'best@slot{i}'] for i in (1, 2, 3)] == [0, 0, 1]
    (scores,) = result.objects
    assert (scores.image, scores.index, scores.area) == ('a', 0, 32)
    assert scores.iou_K == (0.5, 0.75, 1)
    assert scores.predicted_iou_M == (0.2, 0.9, 0.5)
    assert scores.predicted_iou_K == (0.9, 0.2, 0.2)  # of the selected mask
    predicted_N, actual_N = result.predicted_and_actual_iou()  # three masks; two and three clicks; the box
    assert predicted_N.tolist() == [0.2, 0.9, 0.5, 0.2, 0.2, 0.9]
    assert actual_N.tolist() == [0.25, 0.5, 1, 0.75, 1, 0.5]
    assert math.isnan(values['iou_spearman@1'])  # of one object


def test_clicks_in_any_order_are_the_same():
    source = [example('a', 16, 10, [rectangle(16, 10, 3, 2, 11, 6)])]
    results = [interactive(source, clicks=clicks).run([Fake(source, upper_part)]) for clicks in ((1, 3), (3, 1))]
    first, second = (dict(result.values()) for result in results)
    assert (first['miou@1'], first['miou@3']) == (0.5, 1)
    np.testing.assert_equal(second, first)


def test_prompts_of_the_protocol():
    source = [example('a', 16, 10, [rectangle(16, 10, 3, 2, 11, 6)])]
    fake = Fake(source, upper_part)
    interactive(source).run([fake])
    first, second, third, box = fake.calls
    assert first[0].tolist() == [[[3, 4]]]
    assert first[1].tolist() == [[POSITIVE]]
    assert first[2] is None
    # Rows 3 to 6 are predicted; the middle of the missing rows 7 to 10 is next.
    assert second[0].tolist() == [[[3, 4], [3, 8]]]
    assert second[2].tolist() == [[11]]  # the state of the selected second mask
    assert third[0].tolist() == [[[3, 4], [3, 8], [2, 9]]]
    assert third[2].tolist() == [[20]]
    assert box[0].tolist() == [[[2, 3], [5, 10]]]
    assert box[1].tolist() == [[BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]]
    assert box[2] is None


def test_surplus_is_clicked_negative():
    source = [example('a', 12, 9, [rectangle(12, 9, 0, 0, 4, 9)])]
    fake = Fake(source, lambda truth, click, slot: np.ones_like(truth))
    interactive(source, clicks=(2,)).run([fake])
    assert fake.calls[1][0].tolist() == [[[1, 1], [3, 7]]]
    assert fake.calls[1][1].tolist() == [[POSITIVE, NEGATIVE]]


def test_objects_come_in_batches_and_the_last_is_partial(source):
    fake = Fake(source, lambda truth, click, slot: truth)
    interactive(source, clicks=(1,)).run([fake])
    assert [len(points) for points, _, _ in fake.calls] == [3, 3, 2, 2, 1, 1]


def test_batch_size_does_not_change_scores(source):
    def half(truth, click, slot):
        return truth & (np.arange(truth.shape[1]) % (slot + 2) > 0)

    whole = interactive(source, prompt_batch_size=8).run([Fake(source, half)])
    parts = interactive(source, prompt_batch_size=2).run([Fake(source, half)])
    assert whole.objects == parts.objects


@pytest.mark.parametrize('processes', [2, 4])
def test_several_processes_have_the_result_of_a_single_process(source, monkeypatch, processes):
    """Three images; of two processes one has two, of four one has none."""
    fake = Fake(source, lambda truth_HW, click, slot: truth_HW if slot else np.zeros_like(truth_HW))
    whole = interactive(source, num_visualizations=1).run([fake])
    gathered = []
    for process in range(processes):
        monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
        monkeypatch.setattr(jax, 'process_count', lambda: processes)
        monkeypatch.setattr(
            map.processes,
            'all_gather_objects',
            lambda mine: gathered.append(mine) or [[(index, []) for index in range(3)], mine],
        )
        interactive(source, num_visualizations=1).run([fake])
    monkeypatch.setattr(jax, 'process_index', lambda: 0)
    monkeypatch.setattr(map.processes, 'all_gather_objects', lambda mine: gathered)
    joined = interactive(source, num_visualizations=1).run([fake])
    assert joined.objects == whole.objects
    assert (joined.images, joined.images_without_objects) == (2, 1)
    np.testing.assert_equal(dict(joined.values()), dict(whole.values()))
    assert len(joined.first_images) == 1
    np.testing.assert_array_equal(joined.first_images[0].image_HW3, whole.first_images[0].image_HW3)


def test_random_first_clicks_repeat_and_lie_inside(source):
    def points(seed):
        fake = Fake(source, lambda truth, click, slot: truth)
        interactive(source, clicks=(1,), first_click='random', seed=seed).run([fake])
        return np.concatenate([p[:, 0] for p, labels, _ in fake.calls if labels.shape[1] == 1])

    assert (points(1) == points(1)).all()
    assert (points(1) != points(2)).any()
    truths = [*protocol.decode_masks(source[0].rles), *protocol.decode_masks(source[2].rles)]
    for (x, y), truth_HW in zip(points(1).astype(int), truths, strict=True):
        assert truth_HW[y, x]


def test_random_first_clicks_of_equal_objects_differ():
    same = [rectangle(20, 30, 2, 3, 18, 28)] * 4
    fake = Fake([example('a', 20, 30, same)], lambda truth, click, slot: truth)
    interactive(fake.source, clicks=(1,), first_click='random').run([fake])
    points_N2 = np.concatenate([p[:, 0] for p, labels, _ in fake.calls if labels.shape[1] == 1])
    assert len(np.unique(points_N2, axis=0)) == 4


def test_limits_take_a_fixed_subset(source):
    fake = Fake(source, lambda truth, click, slot: np.zeros_like(truth))
    limited = interactive(source, max_objects=2)
    objects = limited.run([fake]).objects
    assert [scores.image for scores in objects] == ['five', 'five', 'single']
    assert objects == limited.run([fake]).objects
    assert len({scores.index for scores in objects[:2]}) == 2
    result = interactive(source, max_images=1).run([fake])
    assert result.images + result.images_without_objects == 1


def test_nothing_to_evaluate_gives_nan():
    values = dict(interactive([example('none', 8, 9, [])], num_visualizations=3).run([Fake([], None)]).values())
    assert math.isnan(values['miou@1'])
    assert values['masks'] == 0


def test_objects_without_pixels_are_left_out():
    source = [example('a', 6, 7, [np.zeros((6, 7), bool), rectangle(6, 7, 1, 1, 3, 4)])]

    def whole(truth, click, slot):
        return np.ones_like(truth)

    (scores,) = interactive(source).run([Fake(source, whole)]).objects
    assert scores.index == 1


def test_traces_hold_the_masks_that_were_scored(source):
    fake = Fake(source, lambda truth, click, slot: truth & (np.arange(truth.shape[1]) % 2 > 0))
    result = interactive(source, num_visualizations=1).run([fake])
    (traced,) = result.first_images
    np.testing.assert_array_equal(traced.image_HW3, source[0].image.pixels())
    assert len(traced.traces) == protocol.TRACED_OBJECTS
    for trace in traced.traces:
        assert trace.masks_MHW.shape == (3, 20, 30)
        assert trace.selected_KHW.shape == (3, 20, 30)
        assert trace.truth_HW.sum() == trace.scores.area
        iou_K = [mask_iou(mask_HW, trace.truth_HW) for mask_HW in trace.selected_KHW]
        assert iou_K == list(trace.scores.iou_K)


def test_invalid_options_are_named(source):
    with pytest.raises(SamjaxError, match='eval.first_click'):
        interactive(source, first_click='middle')
    for clicks in ((), (0, 1), ('x',), (1.5,)):
        with pytest.raises(SamjaxError, match='eval.clicks'):
            interactive(source, clicks=clicks)
