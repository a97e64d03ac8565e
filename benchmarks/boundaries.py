"""People, Canny and Sobel on the boundary benchmark of BSDS500, and how long it takes.

    python -m benchmarks.boundaries DIR/val DIR/groundTruth/val [--out curves.png]

People: each annotator's boundaries against those of the others.  Published, on the test split: people F .80 (.79 in the
paper of 2011), Canny ODS .600, OIS .640, AP .580, Sobel ODS .539.  Needs scikit-image.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.feature import canny

from samjax import boundaries, pictures
from samjax.edges import thinned

SIGMA = 2.0  # px, of the Gaussian in Canny's


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('images', type=Path)
    parser.add_argument('ground_truth', type=Path)
    parser.add_argument('--workers', type=int, default=os.cpu_count())
    parser.add_argument('--limit', type=int, default=0, help='images; 0 is all')
    parser.add_argument('--out', type=Path)
    options = parser.parse_args()
    mats = sorted(options.ground_truth.glob('*.mat'))[: options.limit or None]
    found = {}
    for name, make in (('people', people), ('Canny', edges_of(canny_strength)), ('Sobel', edges_of(sobel_strength))):
        start = time.perf_counter()
        counts = [counts for _, counts in boundaries.count_all(make(options.images, mats), options.workers)]
        found[name] = boundaries.scores(counts)
        ods, ois = found[name].ods, found[name].ois
        print(
            f'{name:<7} ODS {ods.f:.3f} (P {ods.precision:.3f}, R {ods.recall:.3f})  OIS {ois.f:.3f}  '
            f'AP {found[name].ap:.3f}  R50 {found[name].r50:.3f}  {time.perf_counter() - start:.0f} s',
            flush=True,
        )
    if options.out:
        pictures.precision_recall(options.out, found)


def people(images: Path, mats: list[Path]):
    for mat in mats:
        truths = boundaries.read_truth(mat)
        for k, truth_HW in enumerate(truths):
            others = truths[:k] + truths[k + 1 :]
            if others:
                yield f'{mat.stem} {k}', truth_HW.astype(np.float32), others


def edges_of(strength):
    """A reader of images whose edges are found by `strength`."""

    def read(images: Path, mats: list[Path]):
        for mat in mats:
            grey_HW = np.asarray(Image.open(images / f'{mat.stem}.jpg').convert('L'), np.float32) / 255
            yield mat.stem, strength(grey_HW), boundaries.read_truth(mat)

    return read


def sobel_strength(grey_HW: np.ndarray) -> np.ndarray:
    """Sobel's filter where it is a maximum across the edge, as Matlab's `edge` has it."""
    slope_HW = np.hypot(ndimage.sobel(grey_HW, 0), ndimage.sobel(grey_HW, 1))
    return thinned(slope_HW / max(slope_HW.max(), 1e-9))


def canny_strength(grey_HW: np.ndarray) -> np.ndarray:
    """Canny's thin edges, as strong as the slope there."""
    smooth_HW = ndimage.gaussian_filter(grey_HW, SIGMA)
    slope_HW = np.hypot(ndimage.sobel(smooth_HW, 0), ndimage.sobel(smooth_HW, 1))
    thin_HW = canny(grey_HW, SIGMA, low_threshold=0, high_threshold=0)
    return np.where(thin_HW, slope_HW / max(slope_HW.max(), 1e-9), 0)


if __name__ == '__main__':
    main()
