"""What the command line asks of a task of the evaluation, and what the task returns, before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from samjax.evaluation.report.html import Figure, Gallery, Table


class EvalOptions(NamedTuple):
    """Options of an evaluation that are not in the config."""

    baselines: tuple[str, ...] = ()  # evaluated as well: 'untrained', 'flood', 'grabcut'
    max_images: int = 0  # a fixed random choice; 0 is all
    max_objects: int = 0  # the same for the objects of an image
    boxes: str = ''  # a detector's boxes in COCO's results form, for the task instances
    ground_truth: str = ''  # folder with .mat files of BSDS500, for the task edges
    suite: ConfigDict | None = None  # the data sets of the task suite, as samjax.evaluation.tasks.suite_sets


class EvalResult(NamedTuple):
    """Scores, and how to show them."""

    data: dict  # the data evaluated on: path and digest
    scores: dict  # for JSON
    tables: list[Table]
    figures: list[Figure]
    galleries: list[Gallery]

    def sections(self) -> list[Table | Figure | Gallery]:
        return [*self.tables, *self.figures, *self.galleries]


def png_files(folder: Path) -> list[tuple[str, Path]]:
    """Name and path of the PNG files of a folder."""
    return [(file.stem, file) for file in sorted(folder.glob('*.png'))]
