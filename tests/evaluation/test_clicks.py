import numpy as np
import pytest
from scipy import ndimage

from samjax.evaluation import clicks
from samjax.structs import NEGATIVE, POSITIVE


def mask(*rows):
    return np.array([[c == '#' for c in row] for row in rows])


L_SHAPE = mask(
    '##......',
    '##......',
    '##......',
    '########',
    '########',
    '########',
)


def test_first_click_of_an_l_shape_is_its_corner():
    assert clicks.first_click(L_SHAPE) == ((1, 4), POSITIVE)


def test_the_image_border_is_an_edge():
    full = np.ones((5, 9), bool)
    assert clicks.first_click(full) == ((2, 2), POSITIVE)  # radius 3, first of (2..6, 2)


def test_one_pixel():
    pixel_HW = np.zeros((3, 4), bool)
    pixel_HW[2, 3] = True
    assert clicks.first_click(pixel_HW) == ((3, 2), POSITIVE)


def test_ties_within_an_error_go_to_the_first_row():
    twins = mask(
        '.....###',
        '###..###',
        '###..###',
        '###.....',
    )
    assert clicks.first_click(twins) == ((6, 1), POSITIVE)


def test_the_wider_error_is_clicked():
    truth = mask('#####..', '#####..', '#####..', '.......')
    predicted = mask('.....##', '.....##', '.....##', '.......')
    assert clicks.next_click(truth, predicted) == ((1, 1), POSITIVE)
    assert clicks.next_click(predicted, truth) == ((1, 1), NEGATIVE)


def test_equal_errors_give_a_negative_click():
    truth = mask('###....', '###....', '###....')
    predicted = mask('....###', '....###', '....###')
    assert clicks.next_click(truth, predicted) == ((5, 1), NEGATIVE)


def test_without_error_the_farthest_background_is_clicked():
    assert clicks.next_click(L_SHAPE, L_SHAPE) == ((4, 0), NEGATIVE)  # 3 px from both arms
    full = np.ones((3, 3), bool)
    assert clicks.next_click(full, full) == ((1, 1), POSITIVE)


def test_random_click_reaches_every_pixel_and_no_other():
    rng = np.random.default_rng(0)
    seen = {clicks.random_click(mask('.#.', '..#'), rng) for _ in range(50)}
    assert seen == {((1, 0), POSITIVE), ((2, 1), POSITIVE)}


def test_empty_mask_is_refused():
    empty = np.zeros((2, 3), bool)
    with pytest.raises(ValueError, match='without pixels'):
        clicks.first_click(empty)
    with pytest.raises(ValueError, match='without pixels'):
        clicks.random_click(empty, np.random.default_rng(0))


def slow_click(truth, predicted):
    """The published recipe as it stands, on the whole padded image."""
    missed = ndimage.distance_transform_edt(np.pad(truth & ~predicted, 1))[1:-1, 1:-1]
    surplus = ndimage.distance_transform_edt(np.pad(predicted & ~truth, 1))[1:-1, 1:-1]
    positive = missed.max() > surplus.max()
    y, x = np.unravel_index((missed if positive else surplus).argmax(), truth.shape)
    return (int(x), int(y)), (POSITIVE if positive else NEGATIVE)


def random_mask(rng, shape):
    """Blobs with holes, in several pieces, often at the border; coarse ones have many ties."""
    coarse = rng.random(rng.integers(2, 9, 2)) < rng.uniform(0.2, 0.8)
    rows, columns = (np.arange(n) * m // n for n, m in zip(shape, coarse.shape, strict=True))
    blobs = coarse[rows][:, columns]
    return blobs ^ (rng.random(shape) < rng.choice([0, 0.01, 0.2]))


@pytest.mark.parametrize('shape', [(24, 37), (41, 16)])
def test_clicks_equal_the_whole_image_recipe(shape):
    rng = np.random.default_rng(shape[0])
    compared = 0
    while compared < 250:
        truth, predicted = random_mask(rng, shape), random_mask(rng, shape)
        if not truth.any() or (truth == predicted).all():
            continue
        assert clicks.next_click(truth, predicted) == slow_click(truth, predicted)
        assert clicks.first_click(truth) == slow_click(truth, np.zeros_like(truth))
        compared += 1
