"""samjax.data.sampling_check: which masks training never samples, and why; worked out by hand."""

import numpy as np
import pytest
from pycocotools import mask as coco

from samjax.data.example import Example
from samjax.data.sampling_check import check_sampling, evenly_spread
from samjax.data.transforms import Sampling, never_sampled, sample_example
from samjax.images.encoded_image import EncodedImage

LARGE = 'cover more than 90 % of the image (data.max_area_fraction)'
EMPTY = 'have no pixels'


def rectangle(top, left, bottom, right, size=(40, 60)):
    mask_HW = np.zeros(size, np.uint8, order='F')
    mask_HW[top:bottom, left:right] = 1
    return coco.encode(mask_HW)


def example(*rles, size=(40, 60)):
    return Example('it', EncodedImage.from_array(np.zeros((*size, 3), np.uint8)), list(rles))


def sampling(frame, flip='none', scale_jitter=(1.0, 1.0), max_area_fraction=0.9):
    return Sampling(frame, 4, max_area_fraction, flip, scale_jitter)


@pytest.mark.parametrize(
    ('rle', 'options', 'cause'),
    [
        (rectangle(0, 0, 40, 60), {}, LARGE),
        (rectangle(0, 0, 36, 60), {}, None),  # 90 %
        (rectangle(0, 0, 37, 60), {}, LARGE),
        (rectangle(0, 0, 40, 60), {'max_area_fraction': 1.0}, None),
        (rectangle(0, 0, 5, 60), {'max_area_fraction': 0.1}, LARGE.replace('90', '10')),
        (rectangle(5, 5, 5, 5), {}, EMPTY),
        # A fourth of the size: a pixel of the frame is 4 x 4 of the image, of which 8 must be covered.
        (rectangle(4, 4, 6, 8), {'frame': (10, 15)}, None),
        (rectangle(4, 4, 6, 7), {'frame': (10, 15)}, 'vanish when resized to 10 x 15 px (model.image_size)'),
        (rectangle(0, 5, 40, 6), {'frame': (10, 15)}, 'vanish when resized to 10 x 15 px (model.image_size)'),  # thin
        (rectangle(0, 6, 40, 8), {'frame': (10, 15)}, None),
        (rectangle(2, 2, 6, 6), {'frame': (10, 15)}, 'vanish when resized to 10 x 15 px (model.image_size)'),  # corner
        (rectangle(2, 2, 6, 6), {'frame': (10, 15), 'scale_jitter': (0.5, 2.0)}, None),  # at twice the size
        (rectangle(0, 0, 8, 5), {'frame': (5, 15), 'scale_jitter': (0.5, 1.0)}, None),  # 1/8: 40 of 64 px
        (rectangle(0, 0, 6, 4), {'frame': (5, 15)}, 'vanish when resized to 5 x 15 px (model.image_size)'),
        (rectangle(4, 4, 6, 8), {'frame': (30, 10)}, 'vanish when resized to 30 x 10 px (model.image_size)'),  # 7 x 10
        (rectangle(4, 4, 6, 8), {'frame': (30, 10), 'flip': 'horizontal'},
         'vanish when resized to 30 x 10 px (model.image_size)'),
        (rectangle(4, 4, 6, 8), {'frame': (30, 10), 'flip': 'any'}, None),  # turned by 90 degrees: 10 x 15
        (rectangle(7, 9, 8, 10), {'frame': (60, 90)}, None),  # a pixel, enlarged 1.5 times
    ],
)  # fmt: skip
def test_cause(rle, options, cause):
    assert never_sampled(rle, (40, 60), sampling(**{'frame': (40, 60)} | options)) == cause


def test_mask_is_sampled_or_there_is_a_cause():
    """Random masks of blobs, lines and dots in frames of several sizes, without and with every symmetry."""
    rng, vanished = np.random.default_rng(0), 0
    for _ in range(150):
        size = tuple(rng.integers(5, 60, 2))
        mask_HW = rng.random(size) < rng.choice([0.002, 0.05, 0.5])
        if rng.random() < 0.5:
            mask_HW[:, rng.integers(size[1])] = True
        if not mask_HW.any():
            continue
        rle = coco.encode(np.asfortranarray(mask_HW, np.uint8))
        options = sampling(tuple(rng.integers(4, 40, 2)), rng.choice(['none', 'any']), max_area_fraction=1.0)
        cause = never_sampled(rle, size, options)
        valid = [
            sample_example(example(rle, size=size), options, np.random.default_rng(n)).valid_N[0]
            for n in range(1 if options.flip == 'none' else 12)
        ]
        assert any(valid) == (cause is None)
        vanished += cause is not None
    assert 20 < vanished < 120


def test_counts():
    source = [
        example(rectangle(0, 0, 40, 60), rectangle(0, 0, 9, 9)),
        example(rectangle(0, 0, 40, 60), rectangle(3, 3, 3, 3)),
        example(rectangle(0, 0, 40, 60)),
    ]
    check = check_sampling(source, sampling((40, 60)))
    assert (check.num_images, check.num_images_without, check.num_masks) == (3, 2, 5)
    assert check.causes == {LARGE: 3, EMPTY: 1}
    assert check.summary() == f'4 of 5 masks, on 2 of 3 images all masks: 3 {LARGE}, 1 {EMPTY}'
    assert check_sampling(source[:1], sampling((40, 60))).summary() == f'1 of 2 masks: 1 {LARGE}'
    assert check_sampling(source * 50, sampling((40, 60)), max_images=10).num_images == 10


def test_evenly_spread():
    assert evenly_spread(3, 10) == [0, 1, 2]
    assert evenly_spread(101, 3) == [0, 50, 100]
    assert evenly_spread(1, 1) == [0]
