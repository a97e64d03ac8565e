"""What a set of images with masks is, and what is wrong with it: words and a contact sheet."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
from pycocotools import mask as coco

from samjax.data.records.prepare import NAMES, REPORT, Report
from samjax.data.records.source import Source, open_source

SHOWN = 24  # images of the contact sheet
MEASURED = 5000  # images that are measured, evenly spread
NAMED = 5  # places of each fault that are named


def check(path: str, cache: str, sheet: pathlib.Path) -> Iterator[str]:
    """Prepares a set in `cache`, as training would, and yields lines about it; draws some of it into a PNG.

    Raises SamjaxError if there is nothing that can be used.
    """
    from samjax.visualization import pictures  # takes seconds

    source = open_source(path, cache, max_invalid_fraction=1.0)
    report = Report.read(pathlib.Path(source.folder))
    yield f'{path}: {report.layout}'
    without, bad = len(report.no_masks), report.bad_images
    yield f'images: {report.found}; {report.kept} can be used, {without} have no mask, {bad} are bad'
    yield from _measures(source, report)
    for cause, count in report.left_out.items():
        yield f'masks left out: {count} {cause}'
    for cause, places in report.unused.items():
        yield f'{cause}: {len(places)}'
        yield from (f'  {place}' for place in places[:NAMED])
        yield from [f'  and {len(places) - NAMED} more'] if len(places) > NAMED else []
    pictures.contact_sheet(sheet, [source[index] for index in _spread(len(source), SHOWN)])
    yield f'all of them by name: {pathlib.Path(source.folder) / REPORT}; images that can be used: {NAMES} beside it'
    yield f'contact sheet: {sheet}'


def _measures(source: Source, report: Report) -> Iterator[str]:
    some = _spread(len(source), MEASURED)
    counts, heights, widths, areas, shares = [], [], [], [], []
    for index in some:
        example = source[index]
        counts.append(len(example.rles))
        heights.append(example.image.height)
        widths.append(example.image.width)
        of_image = [int(coco.area(rle)) for rle in example.rles]
        areas += of_image
        shares += [area / (heights[-1] * widths[-1]) for area in of_image]
    where = '' if len(some) == len(source) else f' (of {len(some)} images)'
    yield f'masks: {report.masks}; least, median and most per image{where}: {_three(counts)}'
    yield f'height in px{where}: {_three(heights)}; width: {_three(widths)}'
    yield f'area of masks in px{where}: {_three(areas)}; in % of the image: {_three(100 * np.array(shares), "{:.2g}")}'
    empty, whole = sum(not area for area in areas), sum(share > 0.9 for share in shares)
    if empty or whole:
        yield f'never drawn in training{where}: {empty} masks without pixels, {whole} over 90 % of the image'


def _three(values, form: str = '{:.0f}') -> str:
    return ', '.join(form.format(value) for value in np.quantile(values, [0, 0.5, 1]))


def _spread(count: int, most: int) -> list[int]:
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))
