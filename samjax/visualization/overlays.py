"""Masks over images as PNG files: the masks predicted for a prompt, and contact sheets of data sets."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from samjax.data import transforms
from samjax.data.example import Example
from samjax.data.transforms import View, frame_size, view_image, view_mask
from samjax.inference.predictor import MaskPrediction
from samjax.inference.prompts import Prompt
from samjax.visualization.panels import LARGE_PANEL, PANEL, Viewport, compose_sheet, inner_edge

GOLDEN = 0.618034  # steps of hue that stay apart however many there are
TINT = 0.45  # of a mask's colour, over the image
SHEET_LEGEND = 'each mask has its own colour; small masks are drawn over large ones'
PREDICTION_LEGEND = 'blue: prediction    green, red dots: points on the object, on the background    white: box'


def draw_prediction(path: Path, image_HW3: np.ndarray, prompt: Prompt, prediction: MaskPrediction) -> None:
    """A panel for each predicted mask with its prompt, the one with the highest predicted IoU first."""
    viewport = Viewport.whole(*image_HW3.shape[:2], LARGE_PANEL)
    panels = []
    for m in np.argsort(-prediction.iou_predictions_M, kind='stable'):
        panel = viewport.draw(image_HW3, prediction.masks_MHW[m])
        if prompt.box_4 is not None:
            viewport.draw_box(panel, prompt.box_4)
        if prompt.points_K2 is not None:
            for point_2, label in zip(prompt.points_K2, prompt.labels_K, strict=True):
                viewport.draw_click(panel, point_2, label)
        panels.append((f'mask {m + 1}: predicted IoU {prediction.iou_predictions_M[m]:.2f}', panel))
    compose_sheet([panels], PREDICTION_LEGEND, LARGE_PANEL).save(path, 'PNG')  # whatever its suffix


def contact_sheet(path: Path, examples: Sequence[Example]) -> None:
    """Images with all their masks in colours, larger ones below smaller ones: what training would see of them."""
    side, columns = (LARGE_PANEL, 3) if len(examples) <= 6 else (PANEL, 6)
    panels = [(f'{_tail(example.name)}: {len(example.rles)} masks', _all_masks(example, side)) for example in examples]
    rows = [panels[first : first + columns] for first in range(0, len(panels), columns)]
    compose_sheet(rows, SHEET_LEGEND, side).save(path)


def draw_mask(drawn_HW3: np.ndarray, image_HW3: np.ndarray, mask_HW: np.ndarray, number: int) -> None:
    """Draws mask `number` of an image into `drawn_HW3`: a tint over the image and an outline, in its own colour.

    The images are uint8 RGB, the mask is bool.
    """
    colour = 255 * np.array(colorsys.hsv_to_rgb(number * GOLDEN % 1, 0.8, 1.0))
    drawn_HW3[mask_HW] = (1 - TINT) * image_HW3[mask_HW] + TINT * colour
    drawn_HW3[inner_edge(mask_HW, 1)] = colour


def _all_masks(example: Example, side: int) -> Image.Image:
    height, width = grid = frame_size(example.image.height, example.image.width, (side, side))
    view = View(grid, transforms.GridWindow(0, 0, height, width), 0)
    image_HW3 = view_image(example.image, view, grid)[0]
    drawn_HW3 = image_HW3.copy()
    for number, rle in enumerate(sorted(example.rles, key=coco_mask.area, reverse=True)):
        mask_VW = np.zeros((-(-height // 8), width), np.uint8)
        if coco_mask.area(rle):
            view_mask(rle, view, mask_VW)
        draw_mask(drawn_HW3, image_HW3, np.unpackbits(mask_VW, 0, height, bitorder='little').astype(bool), number)
    return Image.fromarray(drawn_HW3)


def _tail(name: str) -> str:
    return name if len(name) <= 20 else f'..{name[-18:]}'
