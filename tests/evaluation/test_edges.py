"""Edge detection: the slope just outside each mask, thinned, on BSDS500's benchmark; end to end with a tiny model."""

import numpy as np
import pytest
import scipy.io
from PIL import Image
from samples import random_image
from tiny import tiny_eval_model

from samjax.errors import SamjaxError
from samjax.evaluation.eval_result import EvalOptions
from samjax.evaluation.tasks import edges
from samjax.inference.automatic.crops import point_grid
from samjax.inference.frame import Frame
from samjax.inference.prompts import Prompt
from samjax.masks.boxes import mask_box, nms
from samjax.model.config import SIZES


def test_edges_of_a_mask_lie_just_outside_it():
    logits_HW = np.full((5, 6), -4.0, np.float32)
    logits_HW[1:4, 1:3] = 4.0
    edges_HW = edges.mask_edges(logits_HW)
    assert (edges_HW > 0).astype(int).tolist() == [
        [0, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [0, 1, 1, 0, 0, 0],
    ]
    # Beside the middle of a straight edge Sobel's filter sees (1 + 2 + 1) times the step of the probability.
    step = 1 / (1 + np.exp(-4)) - 1 / (1 + np.exp(4))
    assert edges_HW[2, 3] == pytest.approx(4 * step, rel=1e-5)


def test_sure_masks_overflow_nothing():
    logits_HW = np.full((4, 4), -1e4, np.float32)
    logits_HW[:2] = 1e4
    assert np.isfinite(edges.mask_edges(logits_HW)).all()


@pytest.mark.parametrize('transposed', [False, True])
def test_ridge_is_thinned_to_its_middle(transposed):
    strength_HW = np.tile(np.array([0, 0, 0.2, 0.6, 1.0, 0.6, 0.2, 0, 0], np.float32), (9, 1))
    strength_HW = strength_HW.T if transposed else strength_HW
    thin_HW = edges.thinned(strength_HW)
    thin_HW = thin_HW.T if transposed else thin_HW
    assert (thin_HW[:, 4] == 1).all()
    assert not thin_HW[:, 2:4].any()
    assert not thin_HW[:, 5:7].any()


def test_diagonal_ridge_is_thinned_to_its_middle():
    rows, columns = np.mgrid[:15, :15]
    strength_HW = np.exp(-((rows - columns) ** 2) / 4).astype(np.float32)
    thin_HW = edges.thinned(strength_HW)
    inner = np.s_[3:12, 3:12]
    np.testing.assert_array_equal((thin_HW > 0.05)[inner], (rows == columns)[inner])


def test_masks_are_those_of_a_point_grid_after_nms(params, monkeypatch):
    monkeypatch.setattr(edges, 'POINTS_PER_SIDE', 4)
    [predictor] = tiny_eval_model(params).predictors
    image_HW3 = np.array(random_image(3, 40, 30))
    generated = list(edges.edge_generator(predictor, 16).low_res_masks(image_HW3))
    prompts = [Prompt(point_2[None], np.array([1])) for point_2 in point_grid(4) * (30, 40)]
    [predictions] = predictor.predict_batch([image_HW3], [prompts])
    iou_N = np.concatenate([prediction.iou_predictions_M for prediction in predictions])
    low_res_Nyx = np.concatenate([prediction.low_res_masks_Myx for prediction in predictions])
    boxes_N4 = np.stack([mask_box(mask_HW) for prediction in predictions for mask_HW in prediction.masks_MHW])
    kept = nms(boxes_N4, iou_N, edges.BOX_NMS_THRESH)
    np.testing.assert_allclose([candidate.predicted_iou for candidate, _, _ in generated], iou_N[kept], rtol=1e-5)
    np.testing.assert_allclose([low_res_yx for _, _, low_res_yx in generated], low_res_Nyx[kept], atol=1e-4)
    assert 1 < len(kept) < 48


class Generated:
    """Stands in for a generator: rectangles of 2 px cells (top, left, bottom, right) in an image of 32 x 48 px."""

    def __init__(self, *rectangles):
        self.rectangles = rectangles

    def low_res_masks(self, image_HW3):
        for strength, (top, left, bottom, right) in self.rectangles:
            low_res_yx = np.full((16, 24), -strength, np.float32)
            low_res_yx[top:bottom, left:right] = strength
            yield None, Frame(SIZES['test'], 32, 48), low_res_yx


def test_edge_map_is_the_strongest_edge_of_any_mask_and_nothing_elsewhere():
    image_HW3 = np.zeros((32, 48, 3), np.uint8)
    assert not edges.edge_map(Generated(), image_HW3).any()
    edges_HW = edges.edge_map(Generated((8.0, (4, 3, 12, 9)), (1.0, (2, 14, 8, 21))), image_HW3)
    assert edges_HW.shape == (32, 48)
    assert edges_HW.max() == 1
    assert edges_HW[16, 1:8].max() == 1  # the left side of the sure mask, at 6 px
    assert 0 < edges_HW[10, 24:31].max() < 0.7  # of the other, at 28 px
    assert not edges_HW[16, 10:16].any()  # inside
    assert not edges_HW[28:].any()


@pytest.fixture
def bsds(tmp_path):
    """Two images with two annotators each, as BSDS500 lays them out."""
    images, truth = tmp_path / 'images' / 'val', tmp_path / 'groundTruth' / 'val'
    images.mkdir(parents=True)
    truth.mkdir(parents=True)
    for n, (height, width) in enumerate([(24, 40), (40, 30)]):
        random_image(n, height, width).save(images / f'{n}.jpg')
        cells = np.empty((1, 2), object)
        for k in range(2):
            boundary_HW = np.zeros((height, width), np.uint8)
            boundary_HW[:, 10 + k] = 1
            cells[0, k] = {'Segmentation': boundary_HW.astype(np.uint16) + 1, 'Boundaries': boundary_HW}
        scipy.io.savemat(truth / f'{n}.mat', {'groundTruth': cells})
    return images


def test_task_scores_images_and_leaves_their_edges(tmp_path, params, bsds):
    result = edges.edges(tiny_eval_model(params, 1, bsds), EvalOptions(), tmp_path / 'out')
    assert list(result.scores) == ['ODS', 'OIS', 'AP', 'R50']
    assert 0 <= result.scores['ODS'] <= result.scores['OIS'] <= 1
    assert result.tables[0].rows[1][0] == 'SAM ViT-H, as published'
    with Image.open(tmp_path / 'out' / 'edges' / '0.png') as image:
        assert image.size == (40, 24)
    assert result.figures[0].file.stat().st_size > 1000
    again = edges.edges(tiny_eval_model(params, 8, bsds), EvalOptions(), tmp_path / 'eight')
    np.testing.assert_equal(again.scores, result.scores)


def test_missing_files_are_named(tmp_path, params, bsds):
    model = tiny_eval_model(params, 1, bsds)
    with pytest.raises(SamjaxError, match='nowhere hold no .mat files: give --ground-truth=DIR'):
        edges.edges(model, EvalOptions(ground_truth=str(tmp_path / 'nowhere')), tmp_path / 'out')
    (bsds / '1.jpg').unlink()
    with pytest.raises(SamjaxError, match='val has no image 1.jpg for .*1.mat: give the images of the same split'):
        edges.edges(model, EvalOptions(), tmp_path / 'out')
