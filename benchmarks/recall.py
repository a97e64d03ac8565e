"""Recall of automatic masks: the fraction of annotated objects that they match, for several settings of the generator.

    python -m benchmarks.recall RUN DIR [--images 100] [--iou 0.6] [--stability 0.6]

DIR has the layout of SA-1B.  An object is recalled at a threshold if a mask has at least that IoU with it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import time

import numpy as np
from pycocotools import mask as coco

from samjax.evaluation.tasks.proposals import best_proposals
from samjax.images.open import read_image
from samjax.inference.automatic.generator import PRESETS, AmgConfig, AutomaticMaskGenerator
from samjax.inference.load import load

THRESHOLDS = 0.5, 0.75  # of IoU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('model', help='run or checkpoint')
    parser.add_argument('folder', help='images with JSON files, as in SA-1B')
    parser.add_argument('--images', type=int, default=100)
    parser.add_argument('--iou', type=float, default=0.88, help='pred_iou_thresh of the rows that filter')
    parser.add_argument('--stability', type=float, default=0.95, help='stability_score_thresh of the same')
    options = parser.parse_args()
    predictor = load(options.model)
    files = sorted(pathlib.Path(options.folder).glob('*.json'))[: options.images]
    filters = {'pred_iou_thresh': options.iou, 'stability_score_thresh': options.stability}
    original, sa1b = (dataclasses.replace(preset, **filters) for preset in PRESETS.values())
    loose = AmgConfig(64, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=0.9)
    rows = {
        'original, 32 x 32': (original, list),
        'SA-1B: 21 crops, small regions removed': (sa1b, list),
        'the same with small regions': (dataclasses.replace(sa1b, min_mask_region_area=0), list),
        'proposals: 64 x 64, the best 1000': (loose, best_proposals),
    }
    print(f'{len(files)} images; {filters}')
    print(f'{"":40}{"recall .5":>10}{"recall .75":>11}{"masks/image":>12}{"s/image":>9}')
    for title, (config, select) in rows.items():
        generator = AutomaticMaskGenerator(predictor, config, output_mode='coco_rle')
        best_ious, num_masks, start = [], 0, time.perf_counter()
        for file in files:
            content = json.loads(file.read_text())
            image_HW3 = read_image(file.with_name(content['image']['file_name']))
            masks = [record['segmentation'] for record in generator.generate(image_HW3, select)]
            truth = [annotation['segmentation'] for annotation in content['annotations']]
            num_masks += len(masks)
            iou_NT = coco.iou(masks, truth, [False] * len(truth)) if masks else np.zeros((1, len(truth)))
            best_ious.append(np.max(iou_NT, 0))
        seconds = (time.perf_counter() - start) / len(files)
        recalls = [100 * np.mean(np.concatenate(best_ious) >= threshold) for threshold in THRESHOLDS]
        print(f'{title:40}{recalls[0]:10.1f}{recalls[1]:11.1f}{num_masks / len(files):12.0f}{seconds:9.2f}', flush=True)


if __name__ == '__main__':
    main()
