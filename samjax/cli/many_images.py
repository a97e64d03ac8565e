"""The arguments and the last lines of the commands that take many images and fill a folder: `masks` and `embed`."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING

from samjax.cli import common

if TYPE_CHECKING:
    from samjax.jobs.output_folder import ImageReport


def add_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Inputs, model, output folder and devices; `what` names that which is written."""
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='INPUT',
        help='image file, folder of images at any depth, .tar file, or what `samjax data prepare` wrote',
    )
    parser.add_argument('--model', required=True, metavar='PATH', help=common.MODEL_HELP)
    parser.add_argument('--out', required=True, metavar='DIR', type=pathlib.Path, help=f'folder for the {what}')
    common.add_image_options(parser)
    parser.add_argument('--devices', type=int, default=0, metavar='N', help='of each process; default: all')


def print_report(report: ImageReport, out: pathlib.Path, *lines: str) -> None:
    """Prints what the folder `out` was filled with and what was left out, once in a job."""
    import jax

    from samjax.jobs.output_folder import REPORT

    if jax.process_index() != 0:
        return
    print(f'{out}: {lines[0]}', *lines[1:], sep='\n')
    if report.invalid:
        print(f'left out {report.num_invalid} of {report.num_images} images: {report.summary()}')
        print(f'{REPORT} there names what was left out and why')
