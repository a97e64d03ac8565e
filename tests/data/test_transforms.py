"""Frame geometry worked out by hand, which masks are sampled, and the rule for pixels that are partly covered."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from samjax.data import transforms
from samjax.data.example import Example
from samjax.data.transforms import (
    FLIPS,
    Sampling,
    frame_image,
    frame_size,
    random_view,
    sample_example,
    view_image,
    view_mask,
)
from samjax.images.encoded_image import EncodedImage, apply_symmetry
from samjax.masks.packing import unpack_rows


def rectangle(shape, top, left, bottom, right):
    mask_HW = np.zeros(shape, np.uint8)
    mask_HW[top:bottom, left:right] = 1
    return mask_HW


def example(masks, shape):
    rles = [coco.encode(np.asfortranarray(mask_HW)) for mask_HW in masks]
    image_HW3 = np.arange(np.prod(shape) * 3, dtype=np.int64).reshape(*shape, 3).astype(np.uint8)
    return Example('it', EncodedImage.from_array(image_HW3), rles)


def sample(it, frame, max_objects, seed=0, flip='none', scale_jitter=(1.0, 1.0)):
    """The sampled example, and its masks as bool (N, H, W)."""
    rng = np.random.default_rng(seed) if isinstance(seed, int) else seed
    sampled = sample_example(it, Sampling(frame, max_objects, 0.9, flip, scale_jitter), rng)
    assert sampled.packed_masks_NVW.shape == (max_objects, -(-frame[0] // 8), frame[1])
    return sampled, np.array(unpack_rows(sampled.packed_masks_NVW, frame[0]))


def in_frame(mask_HW, frame, view=None):
    """A mask in a view, by default of the whole image."""
    view = view or random_view(mask_HW.shape, frame, 0, (1.0, 1.0), np.random.default_rng(0))
    mask_VW = np.zeros((-(-frame[0] // 8), frame[1]), np.uint8)
    view_mask(coco.encode(np.asfortranarray(mask_HW)), view, mask_VW)
    return np.array(unpack_rows(mask_VW, frame[0]))


@pytest.mark.parametrize(
    ('shape', 'frame', 'size'),
    [
        ((1365, 2048), (1024, 1024), (683, 1024)),  # 682.5 rounds up
        ((2048, 1365), (1024, 1024), (1024, 683)),
        ((30, 40), (60, 60), (45, 60)),  # small images grow
        ((30, 40), (60, 120), (60, 80)),  # the height fills a wide frame
        ((30, 40), (90, 80), (60, 80)),
        ((7, 7), (7, 7), (7, 7)),
        ((1, 5000), (64, 64), (1, 64)),  # never 0
    ],
)
def test_frame_size(shape, frame, size):
    assert frame_size(*shape, frame) == size


def test_frame_size_never_exceeds_the_frame():
    for height in range(1, 60):
        for width in range(1, 60):
            new_h, new_w = frame_size(height, width, (37, 53))
            assert new_h <= 37
            assert new_w <= 53
            assert new_h == 37 or new_w == 53


def test_frame_image_is_top_left_and_pads_with_zero():
    image_HW3 = np.full((2, 4, 3), 200, np.uint8)
    framed_HW3, size = frame_image(image_HW3, (6, 8))
    assert size == (4, 8)
    assert framed_HW3.shape == (6, 8, 3)
    assert framed_HW3.dtype == np.uint8
    assert (framed_HW3[:4] == 200).all()
    assert (framed_HW3[4:] == 0).all()


def test_frame_image_is_pil_bilinear_with_smoothing():
    image_HW3 = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    framed_HW3, size = frame_image(image_HW3, (20, 20))
    expected = Image.fromarray(image_HW3).resize((20, 13), Image.Resampling.BILINEAR)
    assert size == (13, 20)
    np.testing.assert_array_equal(framed_HW3[:13], expected)


def test_masks_of_the_same_size_stay_and_padding_is_false():
    assert in_frame(rectangle((3, 4), 0, 1, 2, 3), (5, 4)).astype(int).tolist() == [
        [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0],
    ]  # fmt: skip


def test_a_pixel_that_is_half_covered_belongs_to_the_mask():
    assert in_frame(rectangle((8, 8), 2, 2, 6, 6), (4, 4)).astype(int).tolist() == [
        [0, 0, 0, 0],
        [0, 1, 1, 0],
        [0, 1, 1, 0],
        [0, 0, 0, 0],
    ]
    assert in_frame(rectangle((2, 2), 0, 0, 2, 1), (1, 1)).tolist() == [[True]]
    assert in_frame(rectangle((2, 2), 0, 0, 1, 1), (1, 1)).tolist() == [[False]]
    assert in_frame(rectangle((3, 3), 0, 0, 3, 1), (2, 2)).astype(int).tolist() == [[1, 0], [1, 0]]  # 2/3 of the left


def expected_by_the_rule(mask_HW, view, frame):
    """The rule, slowly: every pixel is divided into as many pieces as the other grid has; half must be covered."""
    fine = np.kron(mask_HW, np.ones(view.grid, int))  # (H h, W w)
    (H, W), (h, w) = mask_HW.shape, view.grid
    fraction_hw = fine.reshape(h, H, w, W).sum((1, 3))
    part = (2 * fraction_hw >= H * W)[view.window.top : view.window.bottom, view.window.left : view.window.right]
    part = apply_symmetry(part, view.symmetry)
    framed_HW = np.zeros(frame, bool)
    framed_HW[: part.shape[0], : part.shape[1]] = part
    return framed_HW


@pytest.mark.parametrize('scale_jitter', [(1.0, 1.0), (0.1, 2.0)])
@pytest.mark.parametrize('symmetry', range(8))
def test_view_mask_equals_decoding_at_full_size_and_the_rule(symmetry, scale_jitter):
    rng = np.random.default_rng(symmetry)
    for _ in range(25):
        mask_HW = (rng.random(rng.integers(1, 30, 2)) < rng.choice([0.05, 0.5, 0.97])).astype(np.uint8)
        mask_HW[0, -1] = 1
        frame = tuple(rng.integers(1, 40, 2).tolist())
        view = random_view(mask_HW.shape, frame, symmetry, scale_jitter, rng)
        np.testing.assert_array_equal(in_frame(mask_HW, frame, view), expected_by_the_rule(mask_HW, view, frame))


def test_random_view_of_a_larger_image_is_any_part_that_fills_the_frame():
    rng = np.random.default_rng(0)
    views = [random_view((30, 60), (32, 32), 0, (2.0, 2.0), rng) for _ in range(300)]
    assert {view.grid for view in views} == {(32, 64)}
    assert {(view.window.top, view.window.bottom) for view in views} == {(0, 32)}
    assert {view.window.left for view in views} == set(range(33))
    assert all(view.window.right - view.window.left == 32 for view in views)


def test_random_view_of_a_smaller_image_is_all_of_it():
    view = random_view((30, 60), (32, 32), 0, (0.5, 0.5), np.random.default_rng(0))
    assert view == ((8, 16), (0, 0, 8, 16), 0)


def test_sizes_of_large_scale_jitter_are_spread_evenly():
    rng = np.random.default_rng(0)
    widths = [random_view((50, 100), (1000, 1000), 0, (0.1, 2.0), rng).grid[1] for _ in range(2000)]
    assert np.histogram(widths, 4, (100, 2000))[0].tolist() == pytest.approx([500] * 4, abs=80)


def test_view_image_shows_the_part_that_a_full_resize_would():
    image_HW3 = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    view = random_view((40, 60), (32, 32), 0, (2.0, 2.0), np.random.default_rng(4))
    framed_HW3, size = view_image(EncodedImage.from_array(image_HW3), view, (32, 32))
    whole = np.asarray(Image.fromarray(image_HW3).resize(view.grid[::-1], Image.Resampling.BILINEAR)).astype(int)
    top, left, bottom, right = view.window
    assert size == (32, 32)
    assert abs(framed_HW3 - whole[top:bottom, left:right]).max() <= 1


def test_sample_example_frames_the_image_and_its_mask():
    mask_HW = rectangle((4, 8), 0, 4, 2, 8)
    it = example([mask_HW], (4, 8))
    sampled, masks_NHW = sample(it, (16, 16), 3)
    assert sampled.size_2.tolist() == [8, 16]
    assert sampled.size_2.dtype == np.int32
    assert sampled.valid_N.tolist() == [True, False, False]
    np.testing.assert_array_equal(sampled.image_HW3, frame_image(it.image.pixels(), (16, 16))[0])
    assert masks_NHW[0, :4, 8:].all()
    assert masks_NHW.sum() == 32


@pytest.mark.parametrize('flip', FLIPS)
def test_sample_example_transforms_image_and_masks_together(flip):
    """The mask is where the image is red, however both are mirrored or rotated; the image is not square."""
    image_HW3 = np.zeros((6, 12, 3), np.uint8)
    image_HW3[0:2, 0:8, 0] = 255
    rles = [coco.encode(np.asfortranarray(image_HW3[..., 0] // 255))]
    it = Example('it', EncodedImage.from_array(image_HW3), rles)
    distinct = set()
    for seed in range(60):
        sampled, masks_NHW = sample(it, (12, 12), 1, seed, flip)
        np.testing.assert_array_equal(masks_NHW[0], sampled.image_HW3[..., 0] > 127)
        distinct.add(masks_NHW.tobytes())
    assert len(distinct) == FLIPS[flip]


def test_sample_example_leaves_out_empty_and_large_masks():
    shape = (10, 10)
    masks = [
        rectangle(shape, 0, 0, 0, 0),  # empty
        rectangle(shape, 0, 0, 9, 10),  # 0.9 exactly: stays
        rectangle(shape, 0, 0, 10, 10),  # too large
        rectangle(shape, 2, 2, 4, 4),
    ]
    sampled, masks_NHW = sample(example(masks, shape), shape, 4)
    areas = sorted(masks_NHW.sum((1, 2)).tolist())
    assert areas == [0, 0, 4, 90]
    assert sampled.valid_N.tolist() == [True, True, False, False]


def test_sample_example_without_masks_to_sample():
    for masks in ([], [rectangle((5, 7), 0, 0, 5, 7)]):
        sampled, masks_NHW = sample(example(masks, (5, 7)), (10, 10), 2)
        assert not sampled.valid_N.any()
        assert not masks_NHW.any()
        assert sampled.size_2.tolist() == [7, 10]


def test_sample_example_decodes_only_what_it_samples(monkeypatch):
    shape = (20, 20)
    masks = [rectangle(shape, n, 0, n + 1, 20) for n in range(20)]
    it = example(masks, shape)
    decoded = []
    read = transforms.run_lengths
    monkeypatch.setattr(transforms, 'run_lengths', lambda counts: decoded.append(counts) or read(counts))
    sampled, masks_NHW = sample(it, shape, 5, seed=1)
    assert len(decoded) == 5
    rows = [int(np.flatnonzero(mask_HW.any(1))[0]) for mask_HW in masks_NHW]
    assert len(set(rows)) == 5  # without replacement
    assert sampled.valid_N.all()


def test_sample_example_depends_on_the_generator_alone():
    shape = (20, 20)
    it = example([rectangle(shape, n, 0, n + 1, 20) for n in range(20)], shape)
    draws = [sample(it, shape, 5, seed)[1] for seed in (3, 3, 4)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()


def test_sample_example_samples_every_mask_equally_often():
    shape = (6, 6)
    it = example([rectangle(shape, n, 0, n + 1, 6) for n in range(6)], shape)
    rng = np.random.default_rng(0)
    counts = sum(sample(it, shape, 2, rng)[1].any((0, 2)).astype(int) for _ in range(300))
    assert counts.sum() == 600
    assert (abs(counts - 100) < 35).all()  # standard deviation 8


def test_sample_example_marks_a_mask_that_vanishes_in_the_frame():
    masks = [rectangle((64, 64), 5, 5, 6, 6), rectangle((64, 64), 0, 0, 32, 32)]
    sampled, masks_NHW = sample(example(masks, (64, 64)), (8, 8), 2)
    assert sorted(masks_NHW.sum((1, 2)).tolist()) == [0, 16]
    assert sampled.valid_N.tolist() == masks_NHW.any((1, 2)).tolist()


def test_sample_example_takes_hundreds_of_masks():
    shape = (300, 4)
    it = example([rectangle(shape, n, 0, n + 1, 4) for n in range(300)], shape)
    sampled, _ = sample(it, (300, 300), 8)
    assert sampled.valid_N.all()
