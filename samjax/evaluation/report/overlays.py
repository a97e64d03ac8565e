"""Predicted masks of the click protocol over images, as PNG files.

Blue is the prediction, yellow the outline of the truth, a green dot a click on the object and a red dot a click on the
background.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samjax.evaluation.protocol import ObjectTrace, TracedImage
from samjax.visualization.panels import PANEL, TRUTH, Panel, Viewport, compose_sheet

LEGEND = (
    'blue: prediction    yellow: truth    green, red dots: clicks on the object, on the background    '
    '*: highest predicted IoU'
)


def draw_objects(path: Path, traced: TracedImage, clicks: tuple[int, ...]) -> None:
    """A row per object: its location, each mask for the first click, the selected mask after some more of `clicks`."""
    later = sorted({k for k in (clicks[len(clicks) // 2], clicks[-1]) if k > 1})
    traces = sorted(traced.traces, key=_area, reverse=True)
    rows = [_object_panels(traced.image_HW3, trace, later) for trace in traces]
    compose_sheet(rows, LEGEND, PANEL).save(path)


def draw_first_clicks(path: Path, images: Sequence[TracedImage]) -> None:
    """A row per image, showing its largest object: image and click, truth, each mask for that click."""
    rows = []
    for traced in images:
        trace = max(traced.traces, key=_area)
        whole = Viewport.whole(*trace.truth_HW.shape)
        first = whole.draw(traced.image_HW3)
        whole.draw_click(first, trace.points_K2[0], trace.labels_K[0])
        truth = whole.draw(traced.image_HW3, trace.truth_HW, TRUTH)
        masks = _first_click_panels(whole, traced.image_HW3, trace)
        rows.append([(trace.scores.image, first), ('truth', truth), *masks])
    compose_sheet(rows, LEGEND, PANEL).save(path)


def _object_panels(image_HW3: np.ndarray, trace: ObjectTrace, later: list[int]) -> list[Panel]:
    """The whole image with the object, then close-ups."""
    whole, close_up = Viewport.whole(*trace.truth_HW.shape), Viewport.around(trace.truth_HW)
    first = whole.draw(image_HW3)
    whole.draw_outline(first, trace.truth_HW)
    if close_up != whole:
        whole.draw_box(first, (close_up.left, close_up.top, close_up.right - 1, close_up.bottom - 1))
    panels = [(f'object {trace.scores.index}, {trace.scores.area:,} px', first)]
    panels += _first_click_panels(close_up, image_HW3, trace)
    for k in later:
        panel = close_up.draw(image_HW3, trace.selected_KHW[k - 1])
        close_up.draw_outline(panel, trace.truth_HW)
        for i in range(k):
            close_up.draw_click(panel, trace.points_K2[i], trace.labels_K[i])
        panels.append((f'{k} clicks: IoU {trace.scores.iou_K[k - 1]:.2f}', panel))
    return panels


def _first_click_panels(viewport: Viewport, image_HW3: np.ndarray, trace: ObjectTrace) -> list[Panel]:
    panels = []
    for m, mask_HW in enumerate(trace.masks_MHW):
        panel = viewport.draw(image_HW3, mask_HW)
        viewport.draw_outline(panel, trace.truth_HW)
        viewport.draw_click(panel, trace.points_K2[0], trace.labels_K[0])
        star = '*' if m == trace.scores.selected else ''
        predicted, actual = trace.scores.predicted_iou_M[m], trace.scores.iou_M[m]
        panels.append((f'mask {m + 1}{star}: IoU {actual:.2f} (predicted {predicted:.2f})', panel))
    return panels


def _area(trace: ObjectTrace) -> int:
    return trace.scores.area
