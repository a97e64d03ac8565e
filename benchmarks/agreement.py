"""Records of samjax's automatic mask generator compared with segment-anything's, with the same weights.

    python -m benchmarks.agreement RUN DIR [--images 10] [--iou 0.6] [--stability 0.6]

Runs both on the images of DIR with default settings, one and two layers of crops, and removal of small regions.  Prints
the number of masks of each side and the number of images where these differ.  On the other images: the number of masks
that differ, their differing pixels in total, the number of masks with an IoU below .999, and the largest differences of
the other fields.
"""

from __future__ import annotations

import argparse
import pathlib

import jax
import numpy as np

from samjax.convert import convert, weights
from samjax.images.open import read_image
from samjax.inference.automatic.generator import AmgConfig, AutomaticMaskGenerator
from samjax.inference.predictor import Predictor
from samjax.masks.iou import mask_iou
from samjax.parity import meta

ROWS = {
    'defaults': {'pred_iou_thresh': 0.88, 'stability_score_thresh': 0.95},
    'no crops': {},
    'one layer of crops': {'crop_n_layers': 1, 'points_per_side': 16},
    'two layers, fewer points': {'crop_n_layers': 2, 'points_per_side': 16, 'crop_n_points_downscale_factor': 2},
    'small regions removed': {'min_mask_region_area': 50},
    'crops, small regions removed': {'crop_n_layers': 1, 'points_per_side': 16, 'min_mask_region_area': 50},
}
SCORES = 'bbox', 'predicted_iou', 'stability_score', 'point_coords', 'crop_box'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('model', help='run or checkpoint')
    parser.add_argument('folder', help='folder of images')
    parser.add_argument('--images', type=int, default=10)
    parser.add_argument('--iou', type=float, default=0.88, help='pred_iou_thresh')
    parser.add_argument('--stability', type=float, default=0.95, help='stability_score_thresh')
    options = parser.parse_args()
    arrays, config, _ = convert.read(pathlib.Path(options.model), force=False)
    predictor = Predictor(config, *jax.device_put(weights.to_states(arrays, config)))
    sam = meta.with_arrays(arrays, config)

    files = sorted(file for file in pathlib.Path(options.folder).iterdir() if file.suffix in ('.jpg', '.png'))
    images = [read_image(file) for file in files[: options.images]]
    print(f'{"":28}{"meta":>9}{"samjax":>7}{"images":>7}{"masks":>7}{"px":>5}{"<.999":>7}  largest differences')
    for title, changes in ROWS.items():
        arguments = {'pred_iou_thresh': options.iou, 'stability_score_thresh': options.stability, **changes}
        reference = meta.automatic_mask_generator(sam, **arguments)
        ours = AutomaticMaskGenerator(predictor, AmgConfig(**arguments))
        counts, differing, pixels, ious, largest = np.zeros(2, int), 0, [], [], dict.fromkeys(SCORES, 0.0)
        for image_HW3 in images:
            try:
                expected = reference.generate(image_HW3)
            except IndexError:  # raised with crops if there is no mask
                expected = []
            records = ours.generate(image_HW3)
            counts += len(expected), len(records)
            if len(expected) != len(records):
                differing += 1
                continue
            for e, r in zip(expected, records, strict=True):
                pixels.append(np.count_nonzero(e['segmentation'] != r['segmentation']))
                ious.append(mask_iou(e['segmentation'], r['segmentation']))
                for key in SCORES:
                    largest[key] = max(largest[key], float(np.abs(np.subtract(e[key], r[key])).max()))
        changed, low = np.count_nonzero(pixels), sum(iou < 0.999 for iou in ious)
        rest = ', '.join(f'{key} {value:.1e}' for key, value in largest.items())
        print(f'{title:28}{counts[0]:9}{counts[1]:7}{differing:7}{changed:7}{sum(pixels):5}{low:7}  {rest}', flush=True)


if __name__ == '__main__':
    main()
