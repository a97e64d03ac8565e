"""SAM as an edge detector, without being trained for it (arXiv 2304.02643, section 7.2 and appendix D.2).

What the authors left open is decided as follows: probabilities are smoothed by a Gaussian of 3 x 3 px before the last
thinning, and thinning keeps a pixel that is a maximum across the edge, as Canny's does.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from scipy import ndimage

from samjax.distributed.map import UNFINISHED, ResultJournal, choose, distributed_map
from samjax.errors import SamjaxError
from samjax.evaluation.eval_model import EvalModel
from samjax.evaluation.eval_result import EvalOptions, EvalResult
from samjax.evaluation.metrics import boundaries
from samjax.evaluation.report.boundary_plot import draw
from samjax.evaluation.report.html import Figure, Gallery, Table
from samjax.images.encoded_image import EncodedImage
from samjax.inference.automatic.crops import point_grid
from samjax.inference.predictor import Frame, PackedPrompt, Predictor, pack_prompts
from samjax.masks.boxes import mask_box, nms
from samjax.structs import MULTIMASK, NOT_A_POINT, POSITIVE

# F at the optimal scale of the set and of each image, average precision, recall at a precision of 50 %
PAPER = {
    'SAM ViT-H, as published': (0.768, 0.786, 0.794, 0.928),
    'HED': (0.788, 0.808, 0.840, 0.923),
    'EDETR': (0.840, 0.858, 0.896, 0.930),
    'Canny': (0.600, 0.640, 0.580, None),
    'Sobel': (0.539, None, None, None),
}
SIDE = 16  # of the grid of clicks
OVERLAP = 0.7  # IoU of boxes above which the less confident mask is dropped
SIGMA = 0.8  # px; of the Gaussian
CROSS = ndimage.generate_binary_structure(2, 1)


def edges(eval_model: EvalModel, options: EvalOptions, folder: Path) -> EvalResult:
    """The boundary benchmark on the images at `config.data.eval_path` that have ground truth of BSDS500."""
    config = eval_model.config
    pairs = _pairs(Path(config.data.eval_path).expanduser(), options.ground_truth)
    pairs = [pairs[n] for n in choose(len(pairs), options.max_images, np.random.default_rng(config.seed))]
    digest = hashlib.sha256(b''.join(file.read_bytes() for pair in pairs for file in pair)).hexdigest()[:32]
    stamp = {**eval_model.stamp, 'data': digest}
    workers = [
        functools.partial(_ask, pairs, folder, predictor, config.eval.prompt_batch_size)
        for predictor in eval_model.predictors
    ]
    answers = distributed_map(len(pairs), workers, 'edges', ResultJournal(folder / UNFINISHED, stamp))
    found = boundaries.scores([boundaries.Counts(*(np.array(row) for row in answer)) for answer in answers])
    scores = {'ODS': found.ods.f, 'OIS': found.ois.f, 'AP': found.ap, 'R50': found.r50}
    rows = [['sam', *scores.values()], *([title, *row] for title, row in PAPER.items())]
    note = f'{len(pairs)} images; at ODS precision {found.ods.precision:.3f} and recall {found.ods.recall:.3f}. '
    note += 'Published figures are of the test split.'
    figures = []
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        draw(folder / 'precision_recall.png', {'sam': found.curve})
        figures.append(Figure('Precision and recall', folder / 'precision_recall.png'))
    drawn = [image.stem for image, _ in pairs[: config.eval.num_visualizations]]
    gallery = Gallery('Edges', [(name, folder / 'edges' / f'{name}.png') for name in drawn])
    data = {'path': config.data.eval_path, 'digest': digest}
    table = Table('Boundary benchmark of BSDS500', ['', *scores], rows, note)
    return EvalResult(data, scores, [table], figures, [gallery])


def _pairs(images: Path, ground_truth: str) -> list[tuple[Path, Path]]:
    """Image and .mat file of the same name; raises SamjaxError if either is missing."""
    beside = images.parent / 'groundTruth' / images.name, images.parent.parent / 'groundTruth' / images.name
    given = [Path(ground_truth).expanduser()] if ground_truth else list(beside)
    truth = next((folder for folder in given if any(folder.glob('*.mat'))), None)
    if truth is None:
        raise SamjaxError(
            f'{" and ".join(map(str, given))} hold no .mat files: give --ground_truth=DIR, the folder groundTruth/test '
            'or groundTruth/val of BSDS500, and its images in --config.data.eval_path'
        )
    pairs = []
    for mat in sorted(truth.glob('*.mat')):
        image = next((file for suffix in ('.jpg', '.png') if (file := images / f'{mat.stem}{suffix}').is_file()), None)
        if image is None:
            raise SamjaxError(f'{images} has no image {mat.stem}.jpg for {mat}: give the images of the same split')
        pairs.append((image, mat))
    return pairs


def _ask(pairs: list[tuple[Path, Path]], folder: Path, predictor: Predictor, batch: int, place: int) -> list:
    """Counts of an image; its edge map is left in folder/edges."""
    image, mat = pairs[place]
    found_HW = edge_map(predictor, EncodedImage.from_bytes(image.read_bytes()).pixels(), batch)
    (folder / 'edges').mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(255 * (1 - found_HW)).astype(np.uint8)).save(folder / 'edges' / f'{image.stem}.png')
    return [row.tolist() for row in boundaries.count(found_HW, boundaries.read_truth(mat))]


def edge_map(predictor: Predictor, image_HW3: np.ndarray, batch: int) -> np.ndarray:
    """float32 (H, W) from 0 to 1, thin: how strongly any mask of a 16 x 16 grid of clicks ends there."""
    frame, answers = grid_masks(predictor, image_HW3, SIDE, batch)
    low, iou = zip(*answers, strict=True)
    boxes_N4 = np.stack([mask_box(frame.upscale(low_yx) > 0) for low_yx in low])
    strength_HW = np.zeros(image_HW3.shape[:2], np.float32)
    for n in nms(boxes_N4, np.array(iou), OVERLAP):
        np.maximum(strength_HW, mask_edges(frame.upscale(low[n])), out=strength_HW)
    top = strength_HW.max()
    return thinned(strength_HW / top) if top > 0 else strength_HW


def grid_masks(
    predictor: Predictor, image_HW3: np.ndarray, side: int, batch: int
) -> tuple[Frame, Iterator[tuple[np.ndarray, float]]]:
    """The frame of an image, and low-resolution logits and expected IoU of three masks for each click of the grid.

    batch: clicks that are answered at once.
    """
    [frame], embed_BhwC = predictor.encode([image_HW3])
    points_N2 = frame.points(point_grid(side) * (image_HW3.shape[1], image_HW3.shape[0]))

    def answers():
        for first in range(0, len(points_N2), batch):
            some = points_N2[first : first + batch]
            labels_2 = np.array([POSITIVE, NOT_A_POINT], np.int32)
            said = [PackedPrompt(np.stack([point_2, np.zeros(2, np.float32)]), labels_2, None) for point_2 in some]
            prompts = pack_prompts([said], (1, batch, 2), predictor.config.low_size)
            prediction = predictor.decode(embed_BhwC, prompts, MULTIMASK)
            low_NMyx, iou_NM = np.asarray(prediction.logits_BNMyx)[0], np.asarray(prediction.iou_BNM)[0]
            for n in range(len(some)):
                yield from zip(low_NMyx[n], iou_NM[n].tolist(), strict=True)

    return frame, answers()


def mask_edges(logits_HW: np.ndarray) -> np.ndarray:
    """Slope of the probability of one mask, by Sobel's filter, on the pixels just outside it; 0 elsewhere."""
    with np.errstate(over='ignore'):
        probability_HW = 1 / (1 + np.exp(-logits_HW))
    mask_HW = logits_HW > 0
    outside_HW = ndimage.binary_dilation(mask_HW, CROSS) & ~mask_HW
    slope_HW = np.hypot(ndimage.sobel(probability_HW, 0), ndimage.sobel(probability_HW, 1))
    return np.where(outside_HW, slope_HW, 0).astype(np.float32)


def thinned(strength_HW: np.ndarray) -> np.ndarray:
    """A map whose ridges are one pixel wide: what is not a maximum across the edge becomes 0."""
    smooth_HW = ndimage.gaussian_filter(strength_HW, SIGMA, radius=1)
    down_HW, right_HW = ndimage.sobel(smooth_HW, 0), ndimage.sobel(smooth_HW, 1)
    # On the ridge itself the slope is nearly 0, so its direction is that of the slopes around (the structure tensor).
    across, along, mixed = (
        ndimage.gaussian_filter(product_HW, SIGMA) for product_HW in (right_HW**2, down_HW**2, down_HW * right_HW)
    )
    angle_HW = 0.5 * np.arctan2(2 * mixed, across - along)
    rows, columns = np.indices(strength_HW.shape)
    kept_HW = np.ones_like(strength_HW, bool)
    for sign in (-1, 1):
        beside = rows + sign * np.sin(angle_HW), columns + sign * np.cos(angle_HW)
        kept_HW &= smooth_HW >= ndimage.map_coordinates(smooth_HW, beside, order=1, mode='nearest')
    return np.where(kept_HW, strength_HW, 0)
