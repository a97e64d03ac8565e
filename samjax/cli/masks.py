"""`samjax masks`: automatic mask generation for many images."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from samjax.cli import common, many_images
from samjax.inference.automatic.generator import PRESETS, AmgConfig
from samjax.jobs import generate_masks
from samjax.jobs.mask_formats import FORMATS


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.make_parser(
        'masks', 'Generates masks of all objects in images. The same command continues if interrupted.'
    )
    many_images.add_arguments(parser, 'masks')
    parser.add_argument(
        '--format',
        choices=tuple(FORMATS),
        default='sa1b',
        help='sa1b (default): JSON beside each image; coco: instances.json beside images; png: a file for each mask '
        'beside images; overlay: images with the masks drawn over them',
    )
    group = parser.add_argument_group('which masks')
    group.add_argument('--preset', choices=tuple(PRESETS), default='original', help='default: original')
    for field in dataclasses.fields(AmgConfig):
        values = [f'{name}: {getattr(preset, field.name):.4g}' for name, preset in PRESETS.items()]
        kind = type(field.default)
        group.add_argument(
            f'--{field.name.replace("_", "-")}',
            dest=field.name,
            **{'action': argparse.BooleanOptionalAction} if kind is bool else {'type': kind, 'metavar': 'X'},
            help=', '.join(values),
        )
    common.add_processes(parser)
    options = common.parse(parser, argv)

    with common.job(options):
        given = {field.name: getattr(options, field.name) for field in dataclasses.fields(AmgConfig)}
        given = {name: value for name, value in given.items() if value is not None}
        config = dataclasses.replace(PRESETS[options.preset], **given)
        report = generate_masks.generate_masks(
            options.inputs,
            options.model,
            options.out,
            options.format,
            config,
            options.devices,
            common.image_options(options),
        )
    hint = '' if report.num_masks else ': lower --pred-iou-thresh and --stability-score-thresh for a weak model'
    without = [f'{report.num_without_masks} images have no mask{hint}'] if report.num_without_masks else []
    many_images.print_report(report, options.out, f'{report.num_masks} masks of {report.num_valid} images', *without)
