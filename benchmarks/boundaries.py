"""BSDS500's boundary benchmark of what is known: people beside each other, and the detectors of Sobel and Canny.

    python -m benchmarks.boundaries DIR [--out DIR] [--workers 2] [--images 100]

DIR holds images, and DIR/../groundTruth/NAME_OF_DIR their .mat files, as in BSDS500/data/images/test; or
--ground_truth says where those are.  A person's F is that of their boundaries as an answer, with those of all others
of the same image as the truth.  Published, on the test images: people .80, Sobel .539, Canny .600.
"""

import argparse
import functools
import pathlib
import time

import numpy as np
from scipy import ndimage
from skimage import feature, filters

from samjax.evaluation.metrics.boundaries import THRESHOLDS, count_all, read_truth, scores
from samjax.evaluation.report.boundary_plot import draw
from samjax.images.open import read_image

SOBEL_SIGMA = 1.0  # px; of the Gaussian before the slopes
CANNY_SIGMA = 2.0
CANNY_LOW = 0.4  # of the upper threshold


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', type=pathlib.Path, help='images')
    parser.add_argument('--ground_truth', type=pathlib.Path, help='.mat files')
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('.'), help='for boundaries.png')
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--images', type=int)
    options = parser.parse_args()
    truth = options.ground_truth or options.folder.parent / 'groundTruth' / options.folder.name
    paths = sorted(options.folder.glob('*.jpg'))[: options.images]
    images = [(path, truth / f'{path.stem}.mat') for path in paths]
    print(f'{"":8}{"ODS":>7}{"OIS":>7}{"AP":>7}{"R50":>7}{"seconds":>9}  {len(images)} images')
    curves = {}
    rows = {'human': people, 'Sobel': functools.partial(answers, sobel), 'Canny': functools.partial(answers, canny)}
    for name, answered in rows.items():
        start = time.perf_counter()
        found = scores([counts for _, counts in count_all(answered(images), options.workers)])
        seconds = time.perf_counter() - start
        figures = [found.ods.f, found.ois.f, found.ap, found.r50]
        if name == 'human':  # one point, not a curve
            figures[2:] = [np.nan, np.nan]
        print(f'{name:8}' + ''.join(f'{figure:7.3f}' for figure in figures) + f'{seconds:9.0f}', flush=True)
        curves[name] = found.curve
    draw(options.out / 'boundaries.png', curves)


def people(images):
    """Each annotator of each image as an answer, with the others as the truth."""
    for path, truth in images:
        maps = read_truth(truth)
        for k, map_HW in enumerate(maps):
            yield f'{path}, annotator {k + 1}', map_HW.astype(float), maps[:k] + maps[k + 1 :]


def answers(detector, images):
    for path, truth in images:
        grey_HW = read_image(str(path)) @ np.array([0.299, 0.587, 0.114]) / 255
        yield str(path), detector(grey_HW), read_truth(truth)


def sobel(grey_HW: np.ndarray) -> np.ndarray:
    """Slopes of the smoothed image, 1 where they are strongest."""
    slope_HW = _slope(grey_HW, SOBEL_SIGMA)
    return slope_HW / slope_HW.max()


def canny(grey_HW: np.ndarray) -> np.ndarray:
    """The highest of the benchmark's thresholds at which a pixel is an edge of Canny's detector, else 0."""
    thin_HW = feature.canny(grey_HW, CANNY_SIGMA, low_threshold=0, high_threshold=0)
    slope_HW = np.where(thin_HW, _slope(grey_HW, CANNY_SIGMA), 0)
    slope_HW /= slope_HW.max()
    edges_HW = np.zeros_like(slope_HW)
    for threshold in THRESHOLDS:
        edges_HW[filters.apply_hysteresis_threshold(slope_HW, CANNY_LOW * threshold, threshold)] = threshold
    return edges_HW


def _slope(grey_HW: np.ndarray, sigma: float) -> np.ndarray:
    smooth_HW = ndimage.gaussian_filter(grey_HW, sigma)
    return np.hypot(ndimage.sobel(smooth_HW, 0), ndimage.sobel(smooth_HW, 1))


if __name__ == '__main__':
    main()
