"""Zero-shot edge detection (arXiv 2304.02643, section 7.2 and appendix D.2).

The paper leaves two details open: here probabilities are smoothed by a Gaussian of 3 x 3 px before the last thinning,
and thinning keeps a pixel that is a maximum across the edge, as Canny's does.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from scipy import ndimage

from samjax.distributed.map import UNFINISHED, ResultJournal, choose_subset, distributed_map
from samjax.errors import SamjaxError
from samjax.evaluation.eval_model import EvalModel
from samjax.evaluation.eval_result import EvalOptions, EvalResult
from samjax.evaluation.metrics import boundaries
from samjax.evaluation.report.boundary_plot import draw_precision_recall
from samjax.evaluation.report.html import Figure, Gallery, Table
from samjax.evaluation.tasks.proposals import unfiltered_generator
from samjax.images.open import ImageOptions, read_image
from samjax.inference.automatic.generator import AutomaticMaskGenerator
from samjax.inference.predictor import Predictor
from samjax.storage import digest

# F at the optimal scale of the data set and of each image, average precision, recall at a precision of 50 %
PAPER = {
    'SAM ViT-H, as published': (0.768, 0.786, 0.794, 0.928),
    'HED': (0.788, 0.808, 0.840, 0.923),
    'EDETR': (0.840, 0.858, 0.896, 0.930),
    'Canny': (0.600, 0.640, 0.580, None),
    'Sobel': (0.539, None, None, None),
}
POINTS_PER_SIDE = 16
BOX_NMS_THRESH = 0.7
SIGMA = 0.8  # px; of the Gaussian
CROSS = ndimage.generate_binary_structure(2, 1)


def edges(eval_model: EvalModel, options: EvalOptions, folder: Path) -> EvalResult:
    """The boundary benchmark on the images at `data.eval_path` that have ground truth of BSDS500."""
    config, path = eval_model.config, eval_model.data.path
    pairs = find_pairs(Path(path).expanduser(), options.ground_truth)
    pairs = [pairs[n] for n in choose_subset(len(pairs), options.max_images, np.random.default_rng(eval_model.seed))]
    data_digest = digest.of_contents(file for pair in pairs for file in pair)
    generators = [edge_generator(predictor, config.prompt_batch_size) for predictor in eval_model.predictors]
    image_options = eval_model.data.read_options.image
    workers = [functools.partial(_count_matches, pairs, folder, generator, image_options) for generator in generators]
    fingerprint = {**eval_model.fingerprint, 'data': data_digest, 'options': dataclasses.asdict(image_options)}
    journal = ResultJournal(folder / UNFINISHED, fingerprint)
    counts = distributed_map(len(pairs), workers, 'edges', journal)
    result = boundaries.scores([boundaries.Counts(*(np.array(row) for row in rows)) for rows in counts])
    scores = {'ODS': result.ods.f, 'OIS': result.ois.f, 'AP': result.ap, 'R50': result.r50}
    rows = [['sam', *scores.values()], *([title, *row] for title, row in PAPER.items())]
    note = f'{len(pairs)} images; at ODS precision {result.ods.precision:.3f} and recall {result.ods.recall:.3f}. '
    note += 'Published figures are of the test split.'
    figures = []
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        draw_precision_recall(folder / 'precision_recall.png', {'sam': result.curve})
        figures.append(Figure('Precision and recall', folder / 'precision_recall.png'))
    names = [image.stem for image, _ in pairs[: config.num_visualizations]]
    gallery = Gallery('Edges', [(name, folder / 'edges' / f'{name}.png') for name in names])
    table = Table('Boundary benchmark of BSDS500', ['', *scores], rows, note)
    return EvalResult({'path': path, 'digest': data_digest}, scores, [table], figures, [gallery])


def find_pairs(images: Path, ground_truth: str) -> list[tuple[Path, Path]]:
    """Image and .mat file of the same name.

    images: a folder of .jpg or .png files.  ground_truth: a folder of .mat files; '': the one of BSDS500's layout.
    Raises SamjaxError if there are no .mat files, or no image for one of them.
    """
    default = [parent / 'groundTruth' / images.name for parent in (images.parent, images.parent.parent)]
    folders = [Path(ground_truth).expanduser()] if ground_truth else default
    truth = next((folder for folder in folders if any(folder.glob('*.mat'))), None)
    if truth is None:
        raise SamjaxError(
            f'{" and ".join(map(str, folders))} hold no .mat files: give --ground-truth=DIR, the folder '
            'groundTruth/test or groundTruth/val of BSDS500, and its images in --config.data.eval_path'
        )
    pairs = []
    for mat in sorted(truth.glob('*.mat')):
        image = next((file for suffix in ('.jpg', '.png') if (file := images / f'{mat.stem}{suffix}').is_file()), None)
        if image is None:
            raise SamjaxError(f'{images} has no image {mat.stem}.jpg for {mat}: give the images of the same split')
        pairs.append((image, mat))
    return pairs


def _count_matches(
    pairs: list[tuple[Path, Path]],
    folder: Path,
    generator: AutomaticMaskGenerator,
    image_options: ImageOptions,
    index: int,
) -> list[list[int]]:
    """`boundaries.Counts` of an image; writes its edge map into folder/edges."""
    image, mat = pairs[index]
    edges_HW = edge_map(generator, read_image(image, image_options))
    (folder / 'edges').mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(255 * (1 - edges_HW)).astype(np.uint8)).save(folder / 'edges' / f'{image.stem}.png')
    return [row.tolist() for row in boundaries.count(edges_HW, boundaries.read_ground_truth(mat))]


def edge_generator(predictor: Predictor, points_per_batch: int) -> AutomaticMaskGenerator:
    """Masks of a 16 x 16 point grid after NMS, without a filter by score."""
    return unfiltered_generator(predictor, POINTS_PER_SIDE, points_per_batch, BOX_NMS_THRESH)


def edge_map(generator: AutomaticMaskGenerator, image_HW3: np.ndarray) -> np.ndarray:
    """float32 (H, W) from 0 to 1, thin: the strongest edge of any generated mask at each pixel."""
    strength_HW = np.zeros(image_HW3.shape[:2], np.float32)
    for _, frame, low_res_yx in generator.low_res_masks(image_HW3):
        np.maximum(strength_HW, mask_edges(frame.upscale(low_res_yx)), out=strength_HW)
    strongest = strength_HW.max()
    return thinned(strength_HW / strongest) if strongest > 0 else strength_HW


def mask_edges(logits_HW: np.ndarray) -> np.ndarray:
    """Slope of the probability of a mask, by Sobel's filter, on the pixels just outside the mask; 0 elsewhere."""
    with np.errstate(over='ignore'):
        probability_HW = 1 / (1 + np.exp(-logits_HW))
    mask_HW = logits_HW > 0
    outside_HW = ndimage.binary_dilation(mask_HW, CROSS) & ~mask_HW
    slope_HW = np.hypot(ndimage.sobel(probability_HW, 0), ndimage.sobel(probability_HW, 1))
    return np.where(outside_HW, slope_HW, 0).astype(np.float32)


def thinned(strength_HW: np.ndarray) -> np.ndarray:
    """A map whose ridges are a pixel wide: a pixel that is not a maximum across the edge becomes 0."""
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
        neighbour = rows + sign * np.sin(angle_HW), columns + sign * np.cos(angle_HW)
        kept_HW &= smooth_HW >= ndimage.map_coordinates(smooth_HW, neighbour, order=1, mode='nearest')
    return np.where(kept_HW, strength_HW, 0)
