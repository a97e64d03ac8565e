"""Frame geometry worked out by hand, and which masks are drawn and decoded."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from samjax.data import transforms
from samjax.data.transforms import FLIPS, flipped, frame_image, frame_masks, frame_size, sample_example
from samjax.structs import Example


def rectangle(shape, top, left, bottom, right):
    mask_HW = np.zeros(shape, np.uint8)
    mask_HW[top:bottom, left:right] = 1
    return mask_HW


def example(masks, shape):
    rles = [coco.encode(np.asfortranarray(mask_HW)) for mask_HW in masks]
    image_HW3 = np.arange(np.prod(shape) * 3, dtype=np.int64).reshape(*shape, 3).astype(np.uint8)
    return Example('it', image_HW3, rles)


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


def test_frame_masks_of_the_same_size_stay_and_padding_is_false():
    masks_NHW = np.stack([rectangle((3, 4), 0, 1, 2, 3), rectangle((3, 4), 2, 0, 3, 4)])
    framed_NHW = frame_masks(masks_NHW, (5, 4))
    assert framed_NHW.dtype == bool
    assert framed_NHW.astype(int).tolist() == [
        [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]],
    ]


def test_frame_masks_halved_keeps_a_pixel_that_is_half_covered():
    mask_HW = rectangle((8, 8), 2, 2, 6, 6)
    assert frame_masks(mask_HW[None], (4, 4))[0].astype(int).tolist() == [
        [0, 0, 0, 0],
        [0, 1, 1, 0],
        [0, 1, 1, 0],
        [0, 0, 0, 0],
    ]
    assert frame_masks(rectangle((2, 2), 0, 0, 2, 1)[None], (1, 1)).tolist() == [[[True]]]
    assert frame_masks(rectangle((2, 2), 0, 0, 1, 1)[None], (1, 1)).tolist() == [[[False]]]


def test_frame_masks_takes_bool_transposed_and_no_masks():
    masks_NHW = np.stack([rectangle((4, 3), 0, 1, 2, 3)])
    transposed = np.asfortranarray(masks_NHW)
    np.testing.assert_array_equal(frame_masks(masks_NHW.astype(bool), (8, 9)), frame_masks(transposed, (8, 9)))
    assert frame_masks(np.zeros((0, 4, 3), np.uint8), (8, 9)).shape == (0, 8, 9)


def test_sample_example_frames_the_image_and_its_mask():
    mask_HW = rectangle((4, 8), 0, 4, 2, 8)
    it = example([mask_HW], (4, 8))
    batch = sample_example(it, (16, 16), 3, 0.9, 'none', np.random.default_rng(0))
    assert batch.size_B2.tolist() == [8, 16]
    assert batch.size_B2.dtype == np.int32
    assert batch.valid_BN.tolist() == [True, False, False]
    np.testing.assert_array_equal(batch.image_BHW3, frame_image(it.image_HW3, (16, 16))[0])
    np.testing.assert_array_equal(batch.masks_BNHW[:1], frame_masks(mask_HW[None], (16, 16)))
    assert batch.masks_BNHW[0, :4, 8:].all()
    assert batch.masks_BNHW.sum() == 32


def test_flipped_is_each_symmetry_of_the_square_once():
    x_HW = np.array([[1, 2], [3, 4]])
    seen = [flipped(x_HW, symmetry).tolist() for symmetry in range(8)]
    assert seen[:3] == [[[1, 2], [3, 4]], [[2, 1], [4, 3]], [[3, 4], [1, 2]]]
    assert seen[4] == [[1, 3], [2, 4]]
    assert len({str(x) for x in seen}) == 8


@pytest.mark.parametrize('flip', FLIPS)
def test_sample_example_turns_image_and_masks_together(flip):
    """The mask is where the image is red, however both are turned; the image is not square."""
    image_HW3 = np.zeros((6, 12, 3), np.uint8)
    image_HW3[0:2, 0:8, 0] = 255
    it = Example('it', image_HW3, [coco.encode(np.asfortranarray(image_HW3[..., 0] // 255))])
    seen = set()
    for seed in range(60):
        batch = sample_example(it, (12, 12), 1, 0.9, flip, np.random.default_rng(seed))
        np.testing.assert_array_equal(batch.masks_BNHW[0], batch.image_BHW3[..., 0] > 127)
        seen.add(batch.masks_BNHW.tobytes())
    assert len(seen) == FLIPS[flip]


def test_sample_example_leaves_out_empty_and_large_masks():
    shape = (10, 10)
    masks = [
        rectangle(shape, 0, 0, 0, 0),  # empty
        rectangle(shape, 0, 0, 9, 10),  # 0.9 exactly: stays
        rectangle(shape, 0, 0, 10, 10),  # too large
        rectangle(shape, 2, 2, 4, 4),
    ]
    batch = sample_example(example(masks, shape), shape, 4, 0.9, 'none', np.random.default_rng(0))
    areas = sorted(batch.masks_BNHW.sum((1, 2)).tolist())
    assert areas == [0, 0, 4, 90]
    assert batch.valid_BN.tolist() == [True, True, False, False]


def test_sample_example_without_usable_masks():
    for masks in ([], [rectangle((5, 7), 0, 0, 5, 7)]):
        batch = sample_example(example(masks, (5, 7)), (10, 10), 2, 0.9, 'none', np.random.default_rng(0))
        assert not batch.valid_BN.any()
        assert not batch.masks_BNHW.any()
        assert batch.size_B2.tolist() == [7, 10]


def test_sample_example_decodes_only_what_it_draws(monkeypatch):
    shape = (20, 20)
    masks = [rectangle(shape, n, 0, n + 1, 20) for n in range(20)]
    it = example(masks, shape)
    decoded = []
    decode = coco.decode
    monkeypatch.setattr(transforms.coco, 'decode', lambda rle: decoded.append(rle) or decode(rle))
    batch = sample_example(it, shape, 5, 0.9, 'none', np.random.default_rng(1))
    assert len(decoded) == 5
    rows = [int(np.flatnonzero(mask_HW.any(1))[0]) for mask_HW in batch.masks_BNHW]
    assert len(set(rows)) == 5  # without replacement
    assert batch.valid_BN.all()


def test_sample_example_depends_on_the_generator_alone():
    shape = (20, 20)
    it = example([rectangle(shape, n, 0, n + 1, 20) for n in range(20)], shape)
    draws = [sample_example(it, shape, 5, 0.9, 'none', np.random.default_rng(seed)).masks_BNHW for seed in (3, 3, 4)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()


def test_sample_example_draws_every_mask_equally_often():
    shape = (6, 6)
    it = example([rectangle(shape, n, 0, n + 1, 6) for n in range(6)], shape)
    rng = np.random.default_rng(0)
    counts = sum(sample_example(it, shape, 2, 0.9, 'none', rng).masks_BNHW.any((0, 2)).astype(int) for _ in range(300))
    assert counts.sum() == 600
    assert (abs(counts - 100) < 35).all()  # standard deviation 8


def test_sample_example_marks_a_mask_that_vanishes_in_the_frame():
    masks = [rectangle((64, 64), 5, 5, 6, 6), rectangle((64, 64), 0, 0, 32, 32)]
    batch = sample_example(example(masks, (64, 64)), (8, 8), 2, 0.9, 'none', np.random.default_rng(0))
    assert sorted(batch.masks_BNHW.sum((1, 2)).tolist()) == [0, 16]
    assert batch.valid_BN.tolist() == batch.masks_BNHW.any((1, 2)).tolist()


def test_sample_example_takes_hundreds_of_masks():
    shape = (300, 4)
    it = example([rectangle(shape, n, 0, n + 1, 4) for n in range(300)], shape)
    batch = sample_example(it, (300, 300), 8, 0.9, 'none', np.random.default_rng(0))
    assert batch.valid_BN.all()
