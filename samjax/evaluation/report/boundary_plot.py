"""The precision-recall figure of the boundary benchmark, as in the papers on BSDS500, as a PNG file."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from samjax.evaluation.metrics.boundaries import Curve
from samjax.visualization.pictures import SERIES

STYLES = list(itertools.product(('-', '--', ':'), SERIES))
LEAST_RECALL = 0.01  # below, precision is that of a handful of pixels and jumps; the original leaves it out too
EQUAL_F = '#b5d6b2'


def draw(path: str | Path, curves: dict[str, Curve]) -> None:
    """A line per name with a dot at its best F, on lines of equal F; a curve that is one point is a dot alone.

    The legend gives F at one threshold for all images (ODS), the highest first.
    """
    figure = Figure(figsize=(6, 6), layout='constrained')
    axes = figure.subplots()
    _equal_f(axes)
    styles = dict(zip(curves, itertools.cycle(STYLES)))  # noqa: B905  endless on one side
    for name, curve in sorted(curves.items(), key=lambda item: item[1].best().f, reverse=True):
        line, colour = styles[name]
        best, shown = curve.best(), curve.recall_T >= LEAST_RECALL
        recall, precision = curve.recall_T[shown], curve.precision_T[shown]
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


def _equal_f(axes: Axes) -> None:
    """Lines where the harmonic mean of precision and recall is 0.1, ..., 0.9, labelled at the right."""
    for f in np.arange(1, 10) / 10:
        recall = np.linspace(f / (2 - f), 1, 200)
        axes.plot(recall, f * recall / (2 * recall - f), color=EQUAL_F, linewidth=0.8, zorder=0)
        axes.annotate(f'{f:.1f}', (1, f / (2 - f)), (4, 0), textcoords='offset points', va='center', color='#6a9e66',
                      fontsize='small', annotation_clip=False)  # fmt: skip
