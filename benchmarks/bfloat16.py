"""How much bfloat16 activations change the masks of a trained model: IoU with the masks of float32, on real images.

    python -m benchmarks.bfloat16 runs/quickstart DIR [--images 30]

DIR has the layout of SA-1B.  Each object is prompted with its centre point, where the mask with the highest predicted
IoU counts, and with its box.  Masks that are empty in both dtypes are left out.
"""

import argparse
import json
import pathlib

import numpy as np
from pycocotools import mask as coco

from samjax.evaluation.clicks import first_click
from samjax.images.open import read_image
from samjax.inference.load import load
from samjax.inference.prompts import Prompt
from samjax.masks.boxes import mask_box
from samjax.masks.iou import mask_iou


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('model', help='run or checkpoint')
    parser.add_argument('folder', help='images with JSON files, as in SA-1B')
    parser.add_argument('--images', type=int, default=30)
    parser.add_argument('--objects', type=int, default=16, help='at most, of each image')
    options = parser.parse_args()
    predictors = [load(options.model, dtype) for dtype in ('float32', 'bfloat16')]
    agreement, iou_float32, iou_bfloat16 = [], [], []
    for path in sorted(pathlib.Path(options.folder).glob('*.json'))[: options.images]:
        record = json.loads(path.read_text())
        image_HW3 = read_image(str(path.with_name(record['image']['file_name'])))
        truths = [coco.decode(a['segmentation']).astype(bool) for a in record['annotations'][: options.objects]]
        prompts = []
        for truth_HW in truths:
            point_2, label = first_click(truth_HW)
            prompts += [Prompt(np.array([point_2]), np.array([label])), Prompt(box_4=mask_box(truth_HW))]
        predictions = [predictor.predict_batch([image_HW3], [prompts])[0] for predictor in predictors]
        for n, (a, b) in enumerate(zip(*predictions, strict=True)):
            best_a, best_b = a.iou_predictions_M.argmax(), b.iou_predictions_M.argmax()
            mask_a, mask_b = a.masks_MHW[best_a], b.masks_MHW[best_a]
            if mask_a.any() or mask_b.any():
                agreement.append(mask_iou(mask_a, mask_b))
            iou_float32.append(mask_iou(mask_a, truths[n // 2]))
            iou_bfloat16.append(mask_iou(b.masks_MHW[best_b], truths[n // 2]))
    print(f'{len(agreement)} masks: mean IoU of bfloat16 with float32 {np.mean(agreement):.4f}')
    print(f'mIoU with the ground truth: float32 {np.mean(iou_float32):.4f}, bfloat16 {np.mean(iou_bfloat16):.4f}')


if __name__ == '__main__':
    main()
