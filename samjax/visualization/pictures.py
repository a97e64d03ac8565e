"""Pictures of an evaluation: masks over images, and figures of its scores, as PNG files.

In pictures of masks blue is the prediction, yellow the outline of the truth, a green dot a click on the object and a
red one a click on the background.
"""

from __future__ import annotations

import colorsys
import math
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask
from scipy import ndimage

from samjax.data import transforms
from samjax.data.example import Example
from samjax.data.transforms import View, frame_size, view_image, view_mask
from samjax.evaluation.protocol import Outcome, Picture, Trace
from samjax.inference.predictor import MaskPrediction, Prompt
from samjax.structs import POSITIVE

PANEL = 224  # px, the longer side of one panel
LARGE_PANEL = 480  # px, the same where there is one row
GAP = 8  # px between panels
LINE = 18  # px, height of a line of text
MARGIN = 0.75  # of the longer side of an object that is shown around it

ANSWER = (42, 120, 214)
TRUTH = (255, 214, 10)
GREEN, RED, WHITE, INK = (20, 150, 60), (214, 40, 40), (255, 255, 255), (25, 25, 25)
SERIES = ('#2a78d6', '#d95f02', '#3a9d5d', '#8456b8', '#6b6b6b')  # of segmenters, in order
MARKERS = ('o', 's', 'D', '^', 'v')

FONT = ImageFont.load_default(13)
LEGEND = (
    'blue: prediction    yellow: truth    green, red dots: clicks on the object, on the background    '
    '*: highest predicted IoU ("says")'
)

SHEET_LEGEND = 'every mask has a colour of its own; small ones lie on large ones'
GOLDEN = 0.618034  # steps of hue that stay apart however many there are
TINT = 0.45  # of a mask's colour, over the image
PREDICTION_LEGEND = 'blue: prediction    green, red dots: points on the object, on the background    white: box'


# ---- masks over images -----------------------------------------------------------------------------


def overlay(path: Path, picture: Picture, clicks: tuple[int, ...]) -> None:
    """A row per object: where it is, each mask for the first click, the answers after some more of `clicks`."""
    later = sorted({k for k in (clicks[len(clicks) // 2], clicks[-1]) if k > 1})
    traces = sorted(picture.traces, key=_area, reverse=True)
    _sheet([_object_panels(picture.image_HW3, trace, later) for trace in traces], LEGEND, PANEL).save(path)


def mask_grid(path: Path, pictures: list[Picture]) -> None:
    """A row per image, showing its largest object: image and click, truth, each mask for that click."""
    rows = []
    for picture in pictures:
        trace = max(picture.traces, key=_area)
        whole = Window(0, 0, *trace.truth_HW.shape)
        first = whole.panel(picture.image_HW3)
        whole.click(first, trace.points_K2[0], trace.labels_K[0])
        truth = whole.panel(picture.image_HW3, trace.truth_HW, TRUTH)
        masks = _first_answers(whole, picture.image_HW3, trace)
        rows.append([(trace.row.image, first), ('truth', truth), *masks])
    _sheet(rows, LEGEND, PANEL).save(path)


def prediction(path: Path, image_HW3: np.ndarray, prompt: Prompt, prediction: MaskPrediction) -> None:
    """What was asked and each mask that was answered, the one with the highest predicted IoU first."""
    whole = Window(0, 0, *image_HW3.shape[:2], side=LARGE_PANEL)
    panels = []
    for m in np.argsort(-prediction.iou_M, kind='stable'):
        panel = whole.panel(image_HW3, prediction.masks_MHW[m])
        if prompt.box_4 is not None:
            x0, y0, x1, y1 = prompt.box_4
            whole.frame(panel, Window(y0, x0, y1 + 1, x1 + 1))
        if prompt.points_K2 is not None:
            for point_2, label in zip(prompt.points_K2, prompt.labels_K, strict=True):
                whole.click(panel, point_2, label)
        panels.append((f'mask {m + 1}: says IoU {prediction.iou_M[m]:.2f}', panel))
    _sheet([panels], PREDICTION_LEGEND, LARGE_PANEL).save(path)


def contact_sheet(path: Path, examples: list[Example]) -> None:
    """Images with all their masks in colours, larger ones below smaller ones: what training would see of them."""
    side, columns = (LARGE_PANEL, 3) if len(examples) <= 6 else (PANEL, 6)
    panels = [(f'{_tail(example.name)}: {len(example.rles)} masks', _all_masks(example, side)) for example in examples]
    rows = [panels[first : first + columns] for first in range(0, len(panels), columns)]
    _sheet(rows, SHEET_LEGEND, side).save(path)


def _all_masks(example: Example, side: int) -> Image.Image:
    height, width = grid = frame_size(example.image.height, example.image.width, (side, side))
    view = View(grid, transforms.Window(0, 0, height, width), 0)
    image_HW3 = view_image(example.image, view, grid)[0]
    drawn_HW3 = image_HW3.copy()
    for n, rle in enumerate(sorted(example.rles, key=coco_mask.area, reverse=True)):
        mask_VW = np.zeros((-(-height // 8), width), np.uint8)
        if coco_mask.area(rle):
            view_mask(rle, view, mask_VW)
        paint(drawn_HW3, image_HW3, np.unpackbits(mask_VW, 0, height, bitorder='little').astype(bool), n)
    return Image.fromarray(drawn_HW3)


def paint(drawn_HW3: np.ndarray, image_HW3: np.ndarray, mask_HW: np.ndarray, n: int) -> None:
    """Draws mask number n of an image in place: a tint over the image and an outline, in a colour of its own."""
    colour = 255 * np.array(colorsys.hsv_to_rgb(n * GOLDEN % 1, 0.8, 1.0))
    drawn_HW3[mask_HW] = (1 - TINT) * image_HW3[mask_HW] + TINT * colour
    drawn_HW3[_edge(mask_HW, 1)] = colour


def _tail(name: str) -> str:
    return name if len(name) <= 20 else f'..{name[-18:]}'


def _object_panels(image_HW3: np.ndarray, trace: Trace, later: list[int]):
    """[(caption, panel)]: the whole image with the object, then close-ups."""
    whole, window = Window(0, 0, *trace.truth_HW.shape), Window.around(trace.truth_HW)
    first = whole.panel(image_HW3)
    whole.outline(first, trace.truth_HW)
    if window != whole:
        whole.frame(first, window)
    panels = [(f'object {trace.row.object}, {trace.row.area:,} px', first)]
    panels += _first_answers(window, image_HW3, trace)
    for k in later:
        panel = window.panel(image_HW3, trace.answers_KHW[k - 1])
        window.outline(panel, trace.truth_HW)
        for i in range(k):
            window.click(panel, trace.points_K2[i], trace.labels_K[i])
        panels.append((f'{k} clicks: IoU {trace.row.iou_K[k - 1]:.2f}', panel))
    return panels


def _first_answers(window: Window, image_HW3: np.ndarray, trace: Trace):
    panels = []
    for m, mask_HW in enumerate(trace.masks_MHW):
        panel = window.panel(image_HW3, mask_HW)
        window.outline(panel, trace.truth_HW)
        window.click(panel, trace.points_K2[0], trace.labels_K[0])
        star = '*' if m == trace.row.picked else ''
        predicted, achieved = trace.row.predicted_M[m], trace.row.iou_M[m]
        panels.append((f'mask {m + 1}{star}: IoU {achieved:.2f} (says {predicted:.2f})', panel))
    return panels


def _area(trace: Trace) -> int:
    return trace.row.area


class Window:
    """A part of an image, drawn as one panel; in pixels of the image, ends excluded."""

    def __init__(self, top: int, left: int, bottom: int, right: int, side: int = PANEL):
        self.corners = top, left, bottom, right
        self.scale = side / max(bottom - top, right - left)
        self.size = (
            max(round((right - left) * self.scale), 1),
            max(round((bottom - top) * self.scale), 1),
        )

    @classmethod
    def around(cls, mask_HW: np.ndarray) -> Window:
        """A square around the object with room at each side, as far as the image reaches."""
        ends = []
        rows, columns = (np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0))
        side = max(np.ptp(rows), np.ptp(columns)) + 1
        side = max(math.ceil(side * (1 + 2 * MARGIN)), 48)
        for where, length in zip((rows, columns), mask_HW.shape, strict=True):
            start = np.clip((where[0] + where[-1] + 1 - side) // 2, 0, max(length - side, 0))
            ends.append((int(start), int(min(start + side, length))))
        (top, bottom), (left, right) = ends
        return cls(top, left, bottom, right)

    def __eq__(self, other) -> bool:
        return self.corners == other.corners

    def panel(self, image_HW3: np.ndarray, mask_HW=None, colour=ANSWER) -> Image.Image:
        """This part of the image, under a tint where the mask is."""
        top, left, bottom, right = self.corners
        panel = Image.fromarray(image_HW3[top:bottom, left:right]).resize(self.size, Image.BICUBIC)
        if mask_HW is None:
            return panel
        mask_HW = self._resized(mask_HW)
        tint_HW3 = np.asarray(panel, np.float32)
        tint_HW3 = np.where(mask_HW[..., None], 0.5 * tint_HW3 + 0.5 * np.array(colour), tint_HW3)
        tint_HW3[_edge(mask_HW, 1)] = colour
        return Image.fromarray(tint_HW3.astype(np.uint8))

    def outline(self, panel: Image.Image, mask_HW: np.ndarray) -> None:
        """Yellow just inside the edge of the mask, on a dark line that keeps it visible on light ground."""
        mask_HW = self._resized(mask_HW)
        for width, colour in ((3, INK), (2, TRUTH)):
            panel.paste(colour, mask=Image.fromarray(_edge(mask_HW, width)))

    def frame(self, panel: Image.Image, part: Window) -> None:
        """A white box where the close-ups are."""
        top, left, bottom, right = (side * self.scale for side in part.corners)
        box = [left, top, min(right, panel.width) - 1, min(bottom, panel.height) - 1]
        draw = ImageDraw.Draw(panel)
        draw.rectangle(box, outline=INK, width=3)
        draw.rectangle(box, outline=WHITE, width=1)

    def click(self, panel: Image.Image, point_2: np.ndarray, label: int) -> None:
        """A click as a dot with a white rim; one outside the window is left out."""
        top, left, bottom, right = self.corners
        x, y = point_2
        if not (left <= x < right and top <= y < bottom):
            return
        x, y = (x + 0.5 - left) * self.scale, (y + 0.5 - top) * self.scale
        draw = ImageDraw.Draw(panel)
        for radius, colour in (
            (6, INK),
            (5, WHITE),
            (3.5, GREEN if label == POSITIVE else RED),
        ):
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)

    def _resized(self, mask_HW: np.ndarray) -> np.ndarray:
        top, left, bottom, right = self.corners
        part = Image.fromarray(mask_HW[top:bottom, left:right])
        return np.asarray(part.resize(self.size, Image.NEAREST))


def _edge(mask_HW: np.ndarray, width: int) -> np.ndarray:
    return mask_HW & ~ndimage.binary_erosion(mask_HW, iterations=width)


def _sheet(rows: list[list[tuple[str, Image.Image]]], legend: str, side: int) -> Image.Image:
    """Rows of captioned panels on white, a legend below; captions too long for a panel end in dots."""
    heights = [max(panel.height for _, panel in row) + LINE + GAP for row in rows]
    columns = max(len(row) for row in rows)
    size = GAP + columns * (side + GAP), GAP + sum(heights) + LINE + GAP
    sheet = Image.new('RGB', size, WHITE)
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, (caption, panel) in enumerate(row):
            left = GAP + column * (side + GAP)
            draw.text((left, top), _fit(caption, side), fill=INK, font=FONT)
            sheet.paste(panel, (left, top + LINE))
        top += height
    draw.text((GAP, top), legend, fill=INK, font=FONT)
    return sheet


def _fit(caption: str, side: int) -> str:
    if FONT.getlength(caption) <= side:
        return caption
    while FONT.getlength(caption + '...') > side:
        caption = caption[:-1]
    return caption + '...'


# ---- figures of scores -----------------------------------------------------------------------------


def curve(path: Path, outcomes: dict[str, Outcome]) -> None:
    """mIoU over clicks for each segmenter, its name at the end of the line; oracle and box at their sides."""
    figure = Figure(figsize=(7.5, 4.5), layout='constrained')
    axes = figure.subplots()
    last, ends = 1, []
    for (name, outcome), colour, marker in zip(outcomes.items(), SERIES, MARKERS, strict=False):
        scores = {key: mean.value for key, mean in outcome.means().items()}
        clicks = outcome.clicks
        means = [scores[f'miou@{k}'] for k in clicks]
        axes.plot(clicks, means, color=colour, marker=marker, linewidth=2, markersize=5)
        axes.plot([1], [scores['oracle@1']], linestyle='', marker='*', markersize=12, color=colour)
        axes.plot([0], [scores['box']], linestyle='', marker='s', markersize=9, mfc='none', mec=colour)
        last = max(last, clicks[-1])
        ends.append((means[-1], f'{name} {means[-1]:.2f}', colour))
    for height, (_, text, colour) in zip(_apart([e[0] for e in ends], 0.05), ends, strict=True):
        axes.annotate(text, (last, height), (8, 0), textcoords='offset points', va='center',
                      color=colour, annotation_clip=False)  # fmt: skip
    ticks = sorted({k for outcome in outcomes.values() for k in outcome.clicks})
    axes.set_xticks([0, *ticks], ['box', *map(str, ticks)])
    axes.set(xlim=(-0.4, last * 1.3 + 0.7), ylim=(0, 1.02), xlabel='prompt: a box, or number of clicks')
    axes.set_ylabel('mean IoU over objects')
    masks = max(len(outcome.rows) for outcome in outcomes.values())
    axes.set_title(f'Segmentation after k clicks, {masks:,} objects', loc='left')
    star = axes.plot([], [], linestyle='', marker='*', markersize=11, color='#555')[0]
    square = axes.plot([], [], linestyle='', marker='s', markersize=8, mfc='none', mec='#555')[0]
    labels = ['best of three masks (oracle), 1 click', 'a box instead of clicks']
    figure.legend([star, square], labels, loc='outside lower center', ncols=2, frameon=False)
    _tidy(axes)
    figure.savefig(path, dpi=130)


def set_bars(path: Path, titles: dict[str, str], scores: dict[str, dict], segmenter: str) -> Path:
    """mIoU at one click on each set, sorted, and what the best of three masks would reach.  Returns the path."""
    names = sorted(titles, key=lambda name: scores[name][segmenter]['miou@1'])
    figure, axes = _set_axes(len(names))
    places = np.arange(len(names))
    oracle = [100 * scores[name][segmenter]['oracle@1'] for name in names]
    found = [100 * scores[name][segmenter]['miou@1'] for name in names]
    axes.barh(places, oracle, 0.7, color=SERIES[1], alpha=0.35, label='best of three masks (oracle)')
    bars = axes.barh(places, found, 0.7, color=SERIES[0], label='most confident mask')
    axes.bar_label(bars, fmt='{:.1f}', padding=3, fontsize=8)
    axes.set_yticks(places, [titles[name] for name in names])
    axes.set(xlim=(0, 100), xlabel='mIoU in % at one click')
    figure.legend(loc='outside lower center', ncols=2, frameon=False)
    figure.savefig(path, dpi=130)
    return path


def set_deltas(path: Path, titles: dict[str, str], scores: dict[str, dict], other: str) -> Path:
    """mIoU at one click of the model minus that of another segmenter on each set, as Fig. 9a.  Returns the path."""
    delta = {name: 100 * (scores[name]['sam']['miou@1'] - scores[name][other]['miou@1']) for name in titles}
    names = sorted(titles, key=lambda name: delta[name])
    figure, axes = _set_axes(len(names))
    places, values = np.arange(len(names)), [delta[name] for name in names]
    colours = [SERIES[0] if value >= 0 else SERIES[1] for value in values]
    bars = axes.barh(places, values, 0.7, color=colours)
    axes.bar_label(bars, fmt='{:+.1f}', padding=3, fontsize=8)
    axes.axvline(0, color='#555', linewidth=1)
    axes.set_yticks(places, [titles[name] for name in names])
    axes.margins(x=0.15)
    axes.set_xlabel(f'mIoU at one click, sam minus {other}, in points')
    figure.savefig(path, dpi=130)
    return path


def _set_axes(count: int):
    figure = Figure(figsize=(7.5, 1.6 + 0.28 * count), layout='constrained')
    axes = figure.subplots()
    _tidy(axes)
    axes.grid(axis='x', color='#ddd', linewidth=0.7)
    axes.grid(visible=False, axis='y')
    return figure, axes


def slots(path: Path, name: str, outcome: Outcome) -> None:
    """What the three masks of the first click are for, and whether the predicted IoU can be trusted."""
    scores = dict(outcome.values())
    count = len(outcome.rows[0].iou_M)
    figure = Figure(figsize=(12, 4), layout='constrained')
    areas, wins, trust = figure.subplots(1, 3)
    places, labels = np.arange(count), [f'mask {i + 1}' for i in range(count)]

    bars = areas.bar(places, [scores[f'area@slot{i + 1}'] for i in places], 0.6, color=SERIES[0])
    areas.bar_label(bars, fmt='{:.1%}')
    areas.set_xticks(places, labels)
    areas.set(ylabel='mean area, share of the image', title='Size')
    areas.yaxis.set_major_formatter(PercentFormatter(1))
    areas.margins(y=0.12)

    for shift, key, label, colour in (
        (-0.2, 'picked', 'predicted best', SERIES[0]),
        (0.2, 'best', 'truly best', SERIES[1]),
    ):
        shares = [scores[f'{key}@slot{i + 1}'] for i in places]
        bars = wins.bar(places + shift, shares, 0.38, color=colour, label=label)
        wins.bar_label(bars, fmt='{:.0%}')
    wins.set_xticks(places, labels)
    wins.set(ylabel='share of objects', title='Which mask wins', ylim=(0, 1.25))
    wins.yaxis.set_major_formatter(PercentFormatter(1))
    wins.set_yticks(np.linspace(0, 1, 6))
    wins.legend(loc='upper center', ncols=2, frameon=False)

    expected_N, achieved_N = outcome.expected_and_achieved()
    low, high = min(0.0, expected_N.min()), max(1.0, expected_N.max())
    cells = trust.hexbin(expected_N, achieved_N, gridsize=24, extent=(low, high, 0, 1), mincnt=1,
                         norm=PowerNorm(0.5, vmin=0), cmap='Blues', linewidths=0.2)  # fmt: skip
    figure.colorbar(cells, ax=trust, label='masks', ticks=MaxNLocator(5, integer=True))
    trust.plot([0, 1], [0, 1], color='#555', linewidth=1, linestyle='--')
    trust.set(xlim=(low, high), ylim=(0, 1), xlabel='predicted IoU, every prediction', ylabel='actual IoU')
    trust.set_title(f'Predicted and actual IoU, Spearman {scores["iou_spearman"]:.2f}')
    for axes in (areas, wins, trust):
        _tidy(axes)
    figure.suptitle(f'{name}: the masks answered to one click', x=0.01, ha='left')
    figure.savefig(path, dpi=120)


def _apart(heights: list[float], gap: float) -> list[float]:
    """Heights of labels, pushed from each other until they are `gap` apart; their order is kept."""
    placed = np.array(heights, float)
    order = np.argsort(placed, kind='stable')
    for _ in range(100):
        for below, above in zip(order, order[1:], strict=False):
            push = max(gap - (placed[above] - placed[below]), 0) / 2
            placed[below] -= push
            placed[above] += push
    return placed.tolist()


def _tidy(axes) -> None:
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color='#ddd', linewidth=0.7)
    axes.set_axisbelow(True)
