import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pycocotools import mask as coco

from samjax.data import synthetic
from samjax.data.synthetic import Canvas, Piece, Scenes, ShapeFrame, Surface, draw_piece


def masks_of(example):
    return coco.decode(example.rles).transpose(2, 0, 1).astype(bool)


def same(a, b):
    return a.name == b.name and a.rles == b.rles and np.array_equal(a.image.pixels(), b.image.pixels())


def test_example_has_the_promised_types():
    example = Scenes(3, 10, (96, 144))[4]
    assert example.name == 'scene-3-4'
    assert example.image.pixels().shape == (96, 144, 3)
    assert example.image.pixels().dtype == np.uint8
    assert all(rle['size'] == [96, 144] and isinstance(rle['counts'], bytes) for rle in example.rles)


def test_scene_depends_on_seed_and_index_only():
    assert same(Scenes(1, 5, (64, 64))[3], Scenes(1, 50, (64, 64))[np.int64(3)])
    assert not same(Scenes(1, 5, (64, 64))[3], Scenes(2, 5, (64, 64))[3])
    assert not same(Scenes(1, 5, (64, 64))[3], Scenes(1, 5, (64, 64))[2])


def test_scenes_survive_pickle_and_threads():
    source = Scenes(0, 12, (64, 80))
    again = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(source.__getitem__, range(12)))
    assert all(same(drawn[i], again[i]) for i in range(12))


def test_iteration_ends_at_length():
    source = Scenes(0, 3, (48, 48))
    assert len(source) == 3
    assert [example.name for example in source] == ['scene-0-0', 'scene-0-1', 'scene-0-2']


@pytest.mark.parametrize('image_size', [(128, 128), (32, 32), (33, 300), (200, 40)])
def test_every_scene_has_masks_of_the_least_area(image_size):
    source = Scenes(0, 40, image_size)
    least = 120 * (min(image_size) / 128) ** 2
    for i in range(40):
        areas = masks_of(source[i]).sum((1, 2))
        assert len(areas) >= 1
        assert areas.min() >= least


def test_large_image_shows_the_same_scene():
    small, large = Scenes(0, 9, (64, 64)), Scenes(0, 9, (512, 512))
    small_N, large_N = masks_of(small[8]), masks_of(large[8])[:, 4::8, 4::8]
    whole_small = small_N[np.array(small.levels(8)) == 0].any(0)
    whole_large = large_N[np.array(large.levels(8)) == 0].any(0)
    assert (whole_small & whole_large).sum() > 0.9 * (whole_small | whole_large).sum()


def test_masks_are_disjoint_or_nested_and_levels_say_how_deep():
    source = Scenes(2, 10, (128, 128))
    for i in range(10):
        masks, levels = masks_of(source[i]), source.levels(i)
        assert len(masks) == len(levels)
        for a in range(len(masks)):
            for b in range(a):
                common = (masks[a] & masks[b]).sum()
                assert common in (0, min(masks[a].sum(), masks[b].sum()))
                if common:
                    inner, outer = sorted((a, b), key=lambda n: masks[n].sum())
                    assert levels[inner] > levels[outer]


def test_one_click_has_several_correct_masks():
    source = Scenes(0, 30, (128, 128))
    levels = np.concatenate([source.levels(i) for i in range(30)])
    assert set(levels) == {0, 1, 2}
    deepest = [masks_of(source[i]).sum(0).max() for i in range(30)]
    assert np.mean(np.array(deepest) >= 3) > 0.8  # somewhere three masks share their pixels
    ambiguous = []  # fraction of the objects' pixels that belong to two masks or more
    for i in range(30):
        count_HW = masks_of(source[i]).sum(0)
        ambiguous.append((count_HW > 1).sum() / (count_HW > 0).sum())
    assert np.mean(ambiguous) > 0.35


def plain_canvas(height, width):
    return Canvas(np.random.default_rng(0), (height, width))


def fixed(*args, **kwargs):
    return Piece(*args, jitter=0.0, **kwargs)


def test_covered_pixels_are_not_in_the_mask():
    canvas = plain_canvas(40, 60)
    flat = Surface(np.full(3, 90.0), np.full(3, 90.0), synthetic.plain, 5.0, [0.0, 0.0], 0.0)
    back, front = canvas.add_piece(0), canvas.add_piece(0)
    synthetic.draw_shape(canvas, ShapeFrame(20, 20, 0.0, 10, 10), synthetic.box, flat, back)
    synthetic.draw_shape(canvas, ShapeFrame(30, 20, 0.0, 10, 10), synthetic.box, flat, front)
    masks, levels = canvas.masks()
    assert levels == [0, 0]
    assert masks[0][20].nonzero()[0].tolist() == list(range(10, 20))
    assert masks[1][20].nonzero()[0].tolist() == list(range(20, 40))


def test_part_is_in_its_whole_and_inside_parts_are_cut_off():
    canvas = plain_canvas(64, 64)
    spot = fixed(synthetic.box, 0, 0, 0.5, 0.5)
    panel = fixed(synthetic.box, 1, 0, 0.5, 0.5, (spot,))
    arm = fixed(synthetic.box, -1, 0, 0.5, 0.5, layer='under')
    draw_piece(canvas, fixed(synthetic.box, 0, 0, 1, 1, (panel, arm)), ShapeFrame(32, 32, 0, 20, 20), 0, None)
    masks, levels = canvas.masks()
    assert levels == [0, 1, 1, 2]  # in the order drawn: whole, the arm under it, panel, spot
    whole, arm, panel, spot = masks.astype(bool)
    assert (whole | arm == whole).all()
    assert (panel | spot == panel).all()
    assert not (arm & panel).any()
    assert panel[32].nonzero()[0].max() < 32 + 1.15 * 20  # the largest half-width of the body


def test_part_that_is_nearly_all_of_its_parent_is_dropped():
    canvas = plain_canvas(64, 64)
    panel = fixed(synthetic.box, 0, 0, 1.5, 1.5)
    draw_piece(canvas, fixed(synthetic.box, 0, 0, 1, 1, (panel,)), ShapeFrame(32, 32, 0, 12, 12), 0, None)
    assert canvas.masks()[1] == [0]


@pytest.mark.parametrize('shape', synthetic.FREE_SHAPES)
def test_shape_fills_its_frame_and_stays_within(shape):
    canvas = plain_canvas(60, 100)
    frame = ShapeFrame(50, 30, 0.0, 40, 20, bend=1.0)
    rows, columns, x_hw, y_hw = synthetic.local_grid(canvas, frame)
    inside = shape(x_hw, y_hw, frame) > 0
    ys, xs = inside.nonzero()
    ys, xs = ys + rows.start, xs + columns.start
    assert 10 <= ys.min() <= 16
    assert 44 <= ys.max() <= 49
    assert 10 <= xs.min() <= 18
    assert 82 <= xs.max() <= 89
    assert inside[30 - rows.start, 50 - columns.start]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match='seed of synthetic scenes is -1'):
        Scenes(-1, 5, (64, 64))
    with pytest.raises(ValueError, match='number of synthetic scenes is 0'):
        Scenes(0, 0, (64, 64))
    with pytest.raises(ValueError, match='size of synthetic scenes is'):
        Scenes(0, 5, (64, 16))
    with pytest.raises(IndexError, match='there are 5 synthetic scenes, none has the index 5'):
        Scenes(0, 5, (64, 64))[5]
    with pytest.raises(IndexError, match='none has the index -1'):
        Scenes(0, 5, (64, 64))[-1]


def test_camera_fades_colours_of_most_scenes_in_part_and_of_some_completely():
    red_HW3 = np.tile(np.float32([200, 40, 40]), (24, 36, 1))
    images = [synthetic.simulate_camera(np.random.default_rng(seed), red_HW3.copy()) for seed in range(60)]
    left = [float(image[..., 0].mean() - image[..., 1].mean()) / 160 for image in images]
    grey = sum(fraction < 0.02 for fraction in left)
    assert 1 <= grey <= 15
    assert sum(fraction > 0.3 for fraction in left) >= 40
    assert max(left) < 1.2
