"""`samjax data`: prepares data sets for training, and checks them."""

from __future__ import annotations

import argparse
import logging
import pathlib
from collections.abc import Sequence

from samjax.cli import common
from samjax.errors import SamjaxError

CHECK = 'Describes a data set and what is wrong with it, and draws some of its images with their masks.'


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.make_parser('data', 'Data sets of images with masks.')
    commands = parser.add_subparsers(title='commands', required=True, metavar='COMMAND')
    for name, text in (
        ('sa1b', 'Prepares SA-1B, or some of its tar shards, for training.'),
        ('prepare', 'Prepares images with masks in any layout of docs/data.md for training.'),
    ):
        _add_prepare(commands, name, text)
    check = commands.add_parser('check', help=CHECK, description=CHECK, allow_abbrev=False)
    check.add_argument('path', help='folder, tar, COCO JSON, or tfds:NAME@SPLIT')
    check.add_argument(
        '--sheet', type=pathlib.Path, default='contact_sheet.png', metavar='FILE', help='PNG for the images'
    )
    check.add_argument(
        '--cache', default='~/.cache/samjax', metavar='DIR', help='where it is prepared; the data.cache of training'
    )
    _add_read_options(check)
    check.set_defaults(run=_check, parser=check)
    options = common.parse(parser, argv)
    with common.one_line_errors():
        options.run(options)


def _add_prepare(commands, name: str, text: str) -> None:
    """A command that prepares a data set; `sa1b` can choose tar shards."""
    parser = commands.add_parser(
        name, help=text, description=f'{text} The same command continues if interrupted.', allow_abbrev=False
    )
    parser.add_argument('--source', required=True, metavar='PATH', help='folder or file of the data set')
    parser.add_argument(
        '--out', required=True, type=pathlib.Path, metavar='DIR', help='folder for the records; then data.path'
    )
    if name == 'sa1b':
        parser.add_argument('--shards', default='', metavar='0-9,12', help='numbers of the tar files; default: all')
    parser.add_argument(
        '--fraction', type=float, default=1.0, metavar='X', help='of the images, chosen by a hash of their names'
    )
    parser.add_argument(
        '--max-invalid-fraction', type=float, default=0.01, metavar='X', help='of the images, before it stops'
    )
    parser.add_argument('--num-workers', type=int, metavar='N', help='processes; default: one for each core')
    parser.add_argument('--beam', metavar='RUNNER', help='of Apache Beam: DirectRunner, DataflowRunner, ..')
    parser.add_argument('--beam-option', action='append', default=[], metavar='X=Y', help='of the runner; repeat')
    parser.set_defaults(run=_prepare, shards='', layout='', images='', masks='', mask_kind='auto', parser=parser)
    common.add_image_options(parser) if name == 'sa1b' else _add_read_options(parser)


def _add_read_options(parser) -> None:
    """The flags of `samjax.data.formats.read_options.ReadOptions`."""
    group = parser.add_argument_group('how the files are read (default: by what they hold)')
    group.add_argument('--layout', default='', metavar='NAME', help='sa1b, coco, folder or labelme')
    group.add_argument('--images', default='', metavar='DIR', help='folder of the images, relative to the path')
    group.add_argument('--masks', default='', metavar='DIR', help='folder of the mask files, relative to the path')
    group.add_argument('--mask-kind', default='auto', metavar='KIND', help='of mask files: binary, labels or soft')
    common.add_image_options(group)


def _prepare(options: argparse.Namespace) -> None:
    from samjax.cli.check_dataset import notes
    from samjax.data.formats.detect import open_index, open_shards
    from samjax.data.formats.read_options import ReadOptions
    from samjax.data.records.prepare import Beam, prepare

    if not 0 < options.fraction <= 1:
        raise SamjaxError(f'--fraction is {options.fraction}: give more than 0 and at most 1')
    read_options = ReadOptions.of(options)
    index = (
        open_shards(options.source, options.shards, read_options)
        if options.shards
        else open_index(options.source, read_options)
    )
    beam = Beam(options.beam, [f'--{option}' for option in options.beam_option]) if options.beam else None
    folder, report = prepare(
        index,
        options.source,
        options.out,
        max_invalid_fraction=options.max_invalid_fraction,
        fraction=options.fraction,
        num_workers=options.num_workers,
        beam=beam,
        options=read_options,
    )
    size = sum(file.stat().st_size for file in folder.glob('*array_record*'))
    print(f'{folder}: {report.num_kept} images with {report.num_masks} masks, {size / 1e9:.2f} GB')
    if report.num_kept < report.num_images:
        print(f'left out {report.num_images - report.num_kept} of {report.num_images} images: {report.summary()}')
    for line in notes(report):
        print(line)
    print('report.json there names what was left out and why, images.txt what is in')
    print(f'train with --config.data.path={options.out}')


def _check(options: argparse.Namespace) -> None:
    from samjax.cli.check_dataset import check
    from samjax.data.formats.read_options import ReadOptions

    logger = logging.getLogger('samjax')
    level = logger.level
    logger.setLevel(logging.ERROR)  # what it warns of is among the lines
    try:
        for line in check(options.path, options.cache, options.sheet, ReadOptions.of(options)):
            print(line, flush=True)
    finally:
        logger.setLevel(level)
