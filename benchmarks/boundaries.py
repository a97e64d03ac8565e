"""BSDS500's boundary benchmark, applied to human annotators and to the edge detectors of Sobel and Canny.

    python -m benchmarks.boundaries DIR [--out DIR] [--num-workers 2] [--images 100]

DIR holds images, as BSDS500/data/images/test does; their .mat files are in groundTruth/NAME_OF_DIR beside DIR, or
beside the folder that DIR is in, or in --ground-truth.  The boundaries of an annotator are scored against those of all
other annotators of the image.
Published scores on the test images: humans .80, Sobel .539, Canny .600.
"""

import argparse
import functools
import pathlib
import time

import numpy as np
from scipy import ndimage
from skimage import feature, filters

from samjax.evaluation.metrics.boundaries import THRESHOLDS, count_all, read_ground_truth, scores
from samjax.evaluation.report.boundary_plot import draw_precision_recall
from samjax.evaluation.tasks.edges import find_pairs
from samjax.images.open import read_image

SOBEL_SIGMA = 1.0  # px; of the Gaussian before the gradient
CANNY_SIGMA = 2.0
CANNY_LOW = 0.4  # of the upper threshold


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', type=pathlib.Path, help='folder of images')
    parser.add_argument('--ground-truth', default='', help='folder of .mat files')
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('.'), help='folder for boundaries.png')
    parser.add_argument('--num-workers', type=int, default=2, help='processes')
    parser.add_argument('--images', type=int, help='at most; default: all')
    options = parser.parse_args()
    images = find_pairs(options.folder, options.ground_truth)[: options.images]
    print(f'{"":8}{"ODS":>7}{"OIS":>7}{"AP":>7}{"R50":>7}{"seconds":>9}  {len(images)} images')
    curves = {}
    detect = functools.partial
    rows = {'human': annotators, 'Sobel': detect(detections, sobel), 'Canny': detect(detections, canny)}
    for name, edge_maps in rows.items():
        start = time.perf_counter()
        result = scores([counts for _, counts in count_all(edge_maps(images), options.num_workers)])
        seconds = time.perf_counter() - start
        columns = [result.ods.f, result.ois.f, result.ap, result.r50]
        if name == 'human':  # a point, not a curve
            columns[2:] = [np.nan, np.nan]
        print(f'{name:8}' + ''.join(f'{score:7.3f}' for score in columns) + f'{seconds:9.0f}', flush=True)
        curves[name] = result.curve
    draw_precision_recall(options.out / 'boundaries.png', curves)


def annotators(images):
    """Name, boundaries of an annotator as edge map, and those of the others, for each annotator of each image."""
    for path, truth in images:
        maps = read_ground_truth(truth)
        for k, map_HW in enumerate(maps):
            yield f'{path}, annotator {k + 1}', map_HW.astype(float), maps[:k] + maps[k + 1 :]


def detections(detector, images):
    """Name, edge map of the detector and boundaries of all annotators, for each image."""
    for path, truth in images:
        grey_HW = read_image(str(path)) @ np.array([0.299, 0.587, 0.114]) / 255
        yield str(path), detector(grey_HW), read_ground_truth(truth)


def sobel(grey_HW: np.ndarray) -> np.ndarray:
    """Gradient magnitude of the smoothed image, divided by its maximum."""
    gradient_HW = _gradient_magnitude(grey_HW, SOBEL_SIGMA)
    return gradient_HW / gradient_HW.max()


def canny(grey_HW: np.ndarray) -> np.ndarray:
    """The highest of the benchmark's thresholds at which a pixel is an edge of Canny's detector, else 0."""
    thin_HW = feature.canny(grey_HW, CANNY_SIGMA, low_threshold=0, high_threshold=0)
    gradient_HW = np.where(thin_HW, _gradient_magnitude(grey_HW, CANNY_SIGMA), 0)
    gradient_HW /= gradient_HW.max()
    edges_HW = np.zeros_like(gradient_HW)
    for threshold in THRESHOLDS:
        edges_HW[filters.apply_hysteresis_threshold(gradient_HW, CANNY_LOW * threshold, threshold)] = threshold
    return edges_HW


def _gradient_magnitude(grey_HW: np.ndarray, sigma: float) -> np.ndarray:
    smooth_HW = ndimage.gaussian_filter(grey_HW, sigma)
    return np.hypot(ndimage.sobel(smooth_HW, 0), ndimage.sobel(smooth_HW, 1))


if __name__ == '__main__':
    main()
