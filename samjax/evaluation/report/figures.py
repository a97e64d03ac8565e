"""Figures of scores as PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from samjax.evaluation.protocol import ProtocolResult

SERIES = ('#2a78d6', '#d95f02', '#3a9d5d', '#8456b8', '#6b6b6b')  # of segmenters, in order
MARKERS = ('o', 's', 'D', '^', 'v')


def click_curves(path: Path, results: Mapping[str, ProtocolResult]) -> None:
    """mIoU over clicks for each segmenter, its name at the end of the line; oracle and box beside the lines."""
    figure = Figure(figsize=(7.5, 4.5), layout='constrained')
    axes = figure.subplots()
    last, ends = 1, []
    for (name, result), colour, marker in zip(results.items(), SERIES, MARKERS, strict=False):
        scores = {key: mean.value for key, mean in result.means().items()}
        clicks = result.clicks
        means = [scores[f'miou@{k}'] for k in clicks]
        axes.plot(clicks, means, color=colour, marker=marker, linewidth=2, markersize=5)
        axes.plot([1], [scores['oracle@1']], linestyle='', marker='*', markersize=12, color=colour)
        axes.plot([0], [scores['box']], linestyle='', marker='s', markersize=9, mfc='none', mec=colour)
        last = max(last, clicks[-1])
        ends.append((means[-1], f'{name} {means[-1]:.2f}', colour))
    for height, (_, text, colour) in zip(_separate([end[0] for end in ends], 0.05), ends, strict=True):
        axes.annotate(text, (last, height), (8, 0), textcoords='offset points', va='center',
                      color=colour, annotation_clip=False)  # fmt: skip
    ticks = sorted({k for result in results.values() for k in result.clicks})
    axes.set_xticks([0, *ticks], ['box', *map(str, ticks)])
    axes.set(xlim=(-0.4, last * 1.3 + 0.7), ylim=(0, 1.02), xlabel='prompt: a box, or number of clicks')
    axes.set_ylabel('mean IoU over objects')
    masks = max(len(result.objects) for result in results.values())
    axes.set_title(f'Segmentation after k clicks, {masks:,} objects', loc='left')
    star = axes.plot([], [], linestyle='', marker='*', markersize=11, color='#555')[0]
    square = axes.plot([], [], linestyle='', marker='s', markersize=8, mfc='none', mec='#555')[0]
    labels = ['best of three masks (oracle), 1 click', 'a box instead of clicks']
    figure.legend([star, square], labels, loc='outside lower center', ncols=2, frameon=False)
    _style(axes)
    figure.savefig(path, dpi=130)


def set_bars(path: Path, titles: Mapping[str, str], scores: Mapping[str, Mapping], segmenter: str) -> Path:
    """mIoU at the first click on each data set, sorted, and that of the best of three masks.  Returns the path."""
    names = sorted(titles, key=lambda name: scores[name][segmenter]['miou@1'])
    figure, axes = _set_axes(len(names))
    rows = np.arange(len(names))
    oracle = [100 * scores[name][segmenter]['oracle@1'] for name in names]
    selected = [100 * scores[name][segmenter]['miou@1'] for name in names]
    axes.barh(rows, oracle, 0.7, color=SERIES[1], alpha=0.35, label='best of three masks (oracle)')
    bars = axes.barh(rows, selected, 0.7, color=SERIES[0], label='most confident mask')
    axes.bar_label(bars, fmt='{:.1f}', padding=3, fontsize=8)
    axes.set_yticks(rows, [titles[name] for name in names])
    axes.set(xlim=(0, 100), xlabel='mIoU in % at one click')
    figure.legend(loc='outside lower center', ncols=2, frameon=False)
    figure.savefig(path, dpi=130)
    return path


def set_deltas(path: Path, titles: Mapping[str, str], scores: Mapping[str, Mapping], other: str) -> Path:
    """mIoU at the first click, the model minus another segmenter, on each data set, as Fig. 9a.  Returns the path."""
    delta = {name: 100 * (scores[name]['sam']['miou@1'] - scores[name][other]['miou@1']) for name in titles}
    names = sorted(titles, key=lambda name: delta[name])
    figure, axes = _set_axes(len(names))
    rows, values = np.arange(len(names)), [delta[name] for name in names]
    colours = [SERIES[0] if value >= 0 else SERIES[1] for value in values]
    bars = axes.barh(rows, values, 0.7, color=colours)
    axes.bar_label(bars, fmt='{:+.1f}', padding=3, fontsize=8)
    axes.axvline(0, color='#555', linewidth=1)
    axes.set_yticks(rows, [titles[name] for name in names])
    axes.margins(x=0.15)
    axes.set_xlabel(f'mIoU at one click, sam minus {other}, in points')
    figure.savefig(path, dpi=130)
    return path


def _set_axes(count: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 1.6 + 0.28 * count), layout='constrained')
    axes = figure.subplots()
    _style(axes)
    axes.grid(axis='x', color='#ddd', linewidth=0.7)
    axes.grid(visible=False, axis='y')
    return figure, axes


def mask_slots(path: Path, name: str, result: ProtocolResult) -> None:
    """Size and success of each of the three masks for the first click, and predicted against actual IoU."""
    scores = dict(result.values())
    count = len(result.objects[0].iou_M)
    figure = Figure(figsize=(12, 4), layout='constrained')
    areas, wins, reliability = figure.subplots(1, 3)
    slots, labels = np.arange(count), [f'mask {m + 1}' for m in range(count)]

    bars = areas.bar(slots, [scores[f'area@slot{m + 1}'] for m in slots], 0.6, color=SERIES[0])
    areas.bar_label(bars, fmt='{:.1%}')
    areas.set_xticks(slots, labels)
    areas.set(ylabel='mean area, fraction of the image', title='Size')
    areas.yaxis.set_major_formatter(PercentFormatter(1))
    areas.margins(y=0.12)

    for shift, key, label, colour in (
        (-0.2, 'picked', 'predicted best', SERIES[0]),
        (0.2, 'best', 'truly best', SERIES[1]),
    ):
        fractions = [scores[f'{key}@slot{m + 1}'] for m in slots]
        bars = wins.bar(slots + shift, fractions, 0.38, color=colour, label=label)
        wins.bar_label(bars, fmt='{:.0%}')
    wins.set_xticks(slots, labels)
    wins.set(ylabel='fraction of objects', title='Which mask wins', ylim=(0, 1.25))
    wins.yaxis.set_major_formatter(PercentFormatter(1))
    wins.set_yticks(np.linspace(0, 1, 6))
    wins.legend(loc='upper center', ncols=2, frameon=False)

    predicted_N, actual_N = result.predicted_and_actual_iou()
    low, high = min(0.0, predicted_N.min()), max(1.0, predicted_N.max())
    cells = reliability.hexbin(predicted_N, actual_N, gridsize=24, extent=(low, high, 0, 1), mincnt=1,
                               norm=PowerNorm(0.5, vmin=0), cmap='Blues', linewidths=0.2)  # fmt: skip
    figure.colorbar(cells, ax=reliability, label='masks', ticks=MaxNLocator(5, integer=True))
    reliability.plot([0, 1], [0, 1], color='#555', linewidth=1, linestyle='--')
    reliability.set(xlim=(low, high), ylim=(0, 1), xlabel='predicted IoU, every prediction', ylabel='actual IoU')
    reliability.set_title(f'Predicted and actual IoU, Spearman {scores["iou_spearman"]:.2f}')
    for axes in (areas, wins, reliability):
        _style(axes)
    figure.suptitle(f'{name}: the masks for the first click', x=0.01, ha='left')
    figure.savefig(path, dpi=120)


def _separate(heights: list[float], gap: float) -> list[float]:
    """Heights of labels, moved apart until neighbours have the distance `gap`; their order is kept."""
    moved = np.array(heights, float)
    order = np.argsort(moved, kind='stable')
    for _ in range(100):
        for below, above in zip(order, order[1:], strict=False):
            shift = max(gap - (moved[above] - moved[below]), 0) / 2
            moved[below] -= shift
            moved[above] += shift
    return moved.tolist()


def _style(axes: Axes) -> None:
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color='#ddd', linewidth=0.7)
    axes.set_axisbelow(True)
