"""How far bfloat16 activations move the masks of a trained model: IoU with those of float32, on real images.

    python -m benchmarks.bfloat16 runs/quickstart DIR [--images 30]

DIR is in the layout of SA-1B.  Every object is prompted with its centre click (three masks, the most confident counts)
and with its box, in both types.  Masks that are empty in both types are left out.
"""

import argparse
import json
import pathlib

import numpy as np
from pycocotools import mask as coco

from samjax.convert.convert import open_predictor
from samjax.evaluation.clicks import first_click
from samjax.evaluation.metrics.statistics import mask_iou
from samjax.inference.predictor import Prompt
from samjax.jobs.predict import read_image


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('model', help='run or checkpoint')
    parser.add_argument('folder', help='images with JSON, as in SA-1B')
    parser.add_argument('--images', type=int, default=30)
    parser.add_argument('--objects', type=int, default=16, help='at most so many of each image')
    options = parser.parse_args()
    exact, half = (open_predictor(options.model, dtype) for dtype in ('float32', 'bfloat16'))
    agreement, truth_exact, truth_half = [], [], []
    for path in sorted(pathlib.Path(options.folder).glob('*.json'))[: options.images]:
        record = json.loads(path.read_text())
        image_HW3 = read_image(str(path.with_name(record['image']['file_name'])))
        truths = [coco.decode(a['segmentation']).astype(bool) for a in record['annotations'][: options.objects]]
        prompts = []
        for truth_HW in truths:
            point_2, label = first_click(truth_HW)
            rows, columns = np.flatnonzero(truth_HW.any(1)), np.flatnonzero(truth_HW.any(0))
            box_4 = np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float64)
            prompts += [Prompt(np.array([point_2]), np.array([label])), Prompt(box_4=box_4)]
        answers = [predictor.predict_batch([image_HW3], [prompts])[0] for predictor in (exact, half)]
        for n, (a, b) in enumerate(zip(*answers, strict=True)):
            mask_a, mask_b = a.masks_MHW[a.iou_M.argmax()], b.masks_MHW[a.iou_M.argmax()]
            if mask_a.any() or mask_b.any():
                agreement.append(mask_iou(mask_a[None], mask_b[None])[0])
            truth_exact.append(mask_iou(mask_a[None], truths[n // 2][None])[0])
            truth_half.append(mask_iou(b.masks_MHW[b.iou_M.argmax()][None], truths[n // 2][None])[0])
    print(f'{len(agreement)} masks: mean IoU of bfloat16 with float32 {np.mean(agreement):.4f}')
    print(f'mIoU with the truth: float32 {np.mean(truth_exact):.4f}, bfloat16 {np.mean(truth_half):.4f}')


if __name__ == '__main__':
    main()
