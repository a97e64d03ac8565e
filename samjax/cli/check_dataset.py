"""`samjax data check`: what a data set is and what is wrong with it, in words and as a contact sheet."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
from pycocotools import mask as coco_mask

from samjax.config import get_config
from samjax.data.formats.read_options import ReadOptions
from samjax.data.records.prepare import NAMES, REPORT, PreparationReport
from samjax.data.records.source import RecordSource, open_records
from samjax.data.sampling_check import SamplingCheck, evenly_spread
from samjax.training.batches import sampling_options
from samjax.visualization.overlays import contact_sheet

SHEET_IMAGES = 24  # images of the contact sheet
MEASURED_IMAGES = 5000  # images that are measured, evenly spread
NAMED_FILES = 5  # files that are named for each cause


def check(path: str, cache: str, sheet: pathlib.Path, options: ReadOptions) -> Iterator[str]:
    """Prepares a data set in the folder `cache`, as training would, and yields lines about it.

    Some of its images are drawn with their masks into the PNG `sheet`.

    Raises:
        SamjaxError: there is nothing that can be used.
    """
    source = open_records(path, cache, max_invalid_fraction=1.0, options=options)
    report = PreparationReport.read(pathlib.Path(source.folder))
    counts = '; '.join(f'{name}: {count} images' for name, count in report.images_by_layout.items())
    yield f'{path}: {report.layout}' + (f' ({counts})' if counts else '')
    without, invalid = len(report.no_masks), report.num_invalid
    yield f'images: {report.num_images}; {report.num_kept} can be used, {without} have no mask, {invalid} are invalid'
    yield from _measures(source, report)
    yield from notes(report)
    for cause, locations in report.dropped.items():
        yield f'{cause}: {len(locations)}'
        yield from (f'  {location}' for location in locations[:NAMED_FILES])
        yield from [f'  and {len(locations) - NAMED_FILES} more'] if len(locations) > NAMED_FILES else []
    contact_sheet(sheet, [source[index] for index in evenly_spread(len(source), SHEET_IMAGES)])
    yield f'all causes with names: {pathlib.Path(source.folder) / REPORT}; images that can be used: {NAMES} beside it'
    yield f'contact sheet: {sheet}'


def notes(report: PreparationReport) -> Iterator[str]:
    """Lines about how files were interpreted, what was changed and left out, and what looks wrong."""
    for option, value in report.options.items():
        yield f'option: {option} = {value}'
    for interpretation, count in report.read_as.items():
        folder, _, kind = interpretation.rpartition(': ')
        yield f'mask files of {folder}: {count} read as {kind}'
    if report.num_scaled:
        yield f'images of more than 8 bits per channel, scaled by bit_depth_range: {report.num_scaled}'
    yield from (f'not used: {line}' for line in report.ignored.lines())
    yield from (f'masks left out: {line}' for line in report.skipped_masks.lines())
    yield from (f'warning: {line}' for line in report.warnings.lines())


def _measures(source: RecordSource, report: PreparationReport) -> Iterator[str]:
    """Lines about counts and sizes."""
    indices = evenly_spread(len(source), MEASURED_IMAGES)
    counts, heights, widths, areas, fractions = [], [], [], [], []
    sampling = SamplingCheck(sampling_options(get_config()))
    for index in indices:
        example = source[index]
        sampling.add(example)
        counts.append(len(example.rles))
        heights.append(example.image.height)
        widths.append(example.image.width)
        areas_N = [int(coco_mask.area(rle)) for rle in example.rles]
        areas += areas_N
        fractions += [area / (heights[-1] * widths[-1]) for area in areas_N]
    subset = '' if len(indices) == len(source) else f' (of {len(indices)} images)'
    yield f'masks: {report.num_masks}; least, median and most per image{subset}: {_range(counts)}'
    yield f'height in px{subset}: {_range(heights)}; width: {_range(widths)}'
    percent = _range(100 * np.array(fractions), '{:.2g}')
    yield f'area of masks in px{subset}: {_range(areas)}; in % of the image: {percent}'
    if sampling.causes:
        yield f'never sampled in training with default options{subset}: {sampling.summary()}'


def _range(values, form: str = '{:.0f}') -> str:
    """Least, median and most."""
    return ', '.join(form.format(value) for value in np.quantile(values, [0, 0.5, 1]))
