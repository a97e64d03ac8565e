"""The precision-recall figure of the boundary benchmark, as in the papers on BSDS500, as a PNG file."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from samjax.evaluation.metrics.boundaries import PrecisionRecallCurve
from samjax.evaluation.report.figures import SERIES

STYLES = list(itertools.product(('-', '--', ':'), SERIES))
MIN_RECALL = 0.01  # below, precision is that of a few pixels and noisy; the original leaves it out too
ISO_F = '#b5d6b2'


def draw_precision_recall(path: str | Path, curves: Mapping[str, PrecisionRecallCurve]) -> None:
    """A line per name with a dot at its best F, over lines of equal F; a curve that is a single point is only a dot.

    The legend gives F at one threshold for all images (ODS), the highest first.
    """
    figure = Figure(figsize=(6, 6), layout='constrained')
    axes = figure.subplots()
    _iso_f_lines(axes)
    styles = dict(zip(curves, itertools.cycle(STYLES), strict=False))
    for name, curve in sorted(curves.items(), key=lambda item: item[1].best().f, reverse=True):
        line, colour = styles[name]
        best, drawn_T = curve.best(), curve.recall_T >= MIN_RECALL
        recall, precision = curve.recall_T[drawn_T], curve.precision_T[drawn_T]
        line = line if np.ptp(curve.recall_T) or np.ptp(curve.precision_T) else 'none'
        axes.plot(recall, precision, linestyle=line, color=colour, linewidth=2)
        axes.plot(best.recall, best.precision, 'o', color=colour, markersize=8, mec='white', clip_on=False, zorder=3)
        label = f'[F = {best.f:.3f}] {name}'
        axes.plot([], [], linestyle=line, color=colour, linewidth=2, marker='o', mec='white', label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel='recall', ylabel='precision', aspect='equal')
    axes.set_xticks(np.linspace(0, 1, 11))
    axes.set_yticks(np.linspace(0, 1, 11))
    axes.set_title('Boundaries', loc='left')
    axes.spines[['top', 'right']].set_visible(False)
    if curves:
        axes.legend(loc='lower left', framealpha=0.9, edgecolor='none')
    figure.savefig(path, dpi=130)


def _iso_f_lines(axes: Axes) -> None:
    """Lines where the harmonic mean of precision and recall is 0.1, ..., 0.9, with labels at the right."""
    for f in np.arange(1, 10) / 10:
        recall = np.linspace(f / (2 - f), 1, 200)
        axes.plot(recall, f * recall / (2 * recall - f), color=ISO_F, linewidth=0.8, zorder=0)
        axes.annotate(f'{f:.1f}', (1, f / (2 - f)), (4, 0), textcoords='offset points', va='center', color='#6a9e66',
                      fontsize='small', annotation_clip=False)  # fmt: skip
