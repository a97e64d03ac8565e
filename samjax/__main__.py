"""The command line beside train.py and eval.py: `python -m samjax data`, `convert`, `predict`, `embed`, `masks` and
`preflight`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import sys
import traceback
from unittest import mock

from absl import logging

from samjax.errors import SamjaxError, one_line


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='samjax', description='Segment Anything in JAX.')
    commands = parser.add_subparsers(required=True, metavar='command')
    _add_data(commands)
    _add_convert(commands)
    _add_predict(commands)
    _add_embed(commands)
    _add_masks(commands, chosen=(sys.argv[1:] if argv is None else argv)[:1] == ['masks'])
    _add_preflight(commands)
    options, changes = parser.parse_known_args(argv)
    if options.run is _preflight and all(change.startswith('--config.') for change in changes):
        options.changes = changes
    elif changes:
        parser.error(f'unknown: {" ".join(changes)}')
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what it does for us
    try:
        options.run(options)
    except (SamjaxError, OSError) as error:
        sys.exit(f'error: {one_line(error)}')


def _add_data(commands) -> None:
    parser = commands.add_parser('data', help='sets of images with masks: prepared for training, and checked')
    commands = parser.add_subparsers(required=True, metavar='command')
    for name, text in (
        ('sa1b', 'Prepares SA-1B, or some of its tar shards, for training.'),
        ('prepare', 'Prepares images with masks in any layout of docs/data.md for training.'),
    ):
        parser = commands.add_parser(name, help=text, description=f'{text} The same command goes on if interrupted.')
        parser.add_argument('--source', required=True, help='folder or file of the set')
        parser.add_argument('--out', required=True, type=pathlib.Path, help='folder for the records; then data.path')
        if name == 'sa1b':
            parser.add_argument('--shards', default='', metavar='0-9,12', help='numbers of the tar files wanted')
        parser.add_argument('--share', type=float, default=1.0, help='of the images, chosen by a hash of their names')
        parser.add_argument('--max-bad-share', type=float, default=0.01, help='of the images, before it stops')
        parser.add_argument('--workers', type=int, help='processes; without it one for each core')
        parser.add_argument('--beam', metavar='RUNNER', help='of Apache Beam: DirectRunner, DataflowRunner, ..')
        parser.add_argument('--beam-option', action='append', default=[], metavar='X=Y', help='of the runner; repeat')
        parser.set_defaults(run=_prepare, shards='')
    text = 'Says what a set is and what is wrong with it, and draws some of it.'
    parser = commands.add_parser('check', help=text, description=text)
    parser.add_argument('path', help='folder, tar, JSON of COCO, or tfds:NAME@SPLIT')
    parser.add_argument('--sheet', type=pathlib.Path, default='contact_sheet.png', help='the picture')
    parser.add_argument('--cache', default='~/.cache/samjax', help='where it is prepared; the data.cache of training')
    parser.set_defaults(run=_check)


def _prepare(options) -> None:
    from samjax.data.formats import sa1b
    from samjax.data.formats.detect import find
    from samjax.data.records.prepare import Beam, prepare

    if not 0 < options.share <= 1:
        raise SamjaxError(f'--share is {options.share}: give more than 0 and at most 1')
    found = sa1b.find_shards(options.source, options.shards) if options.shards else find(options.source)
    beam = options.beam and Beam(options.beam, [f'--{option}' for option in options.beam_option])
    folder, report = prepare(
        found,
        options.source,
        options.out,
        max_invalid_fraction=options.max_invalid_fraction,
        share=options.share,
        workers=options.workers,
        beam=beam,
    )
    size = sum(file.stat().st_size for file in folder.glob('*array_record*'))
    print(f'{folder}: {report.kept} images with {report.masks} masks, {size / 1e9:.2f} GB')
    if report.kept < report.found:
        print(f'left out {report.found - report.kept} of {report.found} images: {report.summary()}')
    for cause, count in report.left_out.items():
        print(f'left out {count} masks: {cause}')
    print('report.json there names what was left out and why, images.txt what is in')
    print(f'train with --config.data.path={options.out}')


def _check(options) -> None:
    from samjax.jobs.check_dataset import check

    for line in check(options.path, options.cache, options.sheet):
        print(line, flush=True)


def _add_convert(commands) -> None:
    parser = commands.add_parser(
        'convert',
        help='checkpoints of PyTorch to ours and back',
        description='Converts Meta, Hugging Face and MAE checkpoints to a run that train.py and eval.py start from, '
        'and a run to a PyTorch checkpoint.',
    )
    parser.add_argument('source', help='.pth, .pt, .bin or .safetensors file, Hugging Face folder, or folder of a run')
    parser.add_argument('target', help='.pth, .pt or .safetensors file in the layout of Meta, or a folder')
    parser.add_argument('--to', help='samjax, meta or huggingface; without it the target and the source tell')
    parser.add_argument('--image-size', metavar='H,W', type=_pair, help='resize the position tables for it, in px')
    parser.add_argument('--force', action='store_true', help='take weights that are not finite')
    parser.add_argument('--verify', action='store_true', help="compare the result with Meta's code, if installed")
    parser.set_defaults(run=_convert)


def _convert(options) -> None:
    from samjax.config import get_config
    from samjax.convert.convert import convert

    defaults = get_config()
    print(convert(options.source, options.target, options.to, options.image_size, options.force, defaults), flush=True)
    if options.verify:
        from samjax.convert.convert import read
        from samjax.parity import verify

        arrays, config, _ = read(pathlib.Path(options.target), options.force)
        print(*verify.verify(arrays, config).lines(), sep='\n')


def _add_predict(commands) -> None:
    parser = commands.add_parser(
        'predict',
        help='masks of one object in an image',
        description='Prints the masks of the object that is pointed at, best first, and writes them to files.',
    )
    parser.add_argument('image', nargs='?', help='any image file that pillow reads')
    parser.add_argument('--model', required=True, help='what `samjax convert` reads: torch file or folder, or a run')
    parser.add_argument(
        '--embedding',
        metavar='FILE.npz',
        help='what `samjax embed` wrote of the image, which then is not encoded and is needed for overlays only',
    )
    parser.add_argument('--point', metavar='X,Y', type=_numbers(2), action='append', default=[], help='on the object')
    parser.add_argument('--negative', metavar='X,Y', type=_numbers(2), action='append', default=[], help='not on it')
    parser.add_argument('--box', metavar='X0,Y0,X1,Y1', type=_numbers(4), help='around the object, in px')
    parser.add_argument(
        '--out',
        metavar='FILE',
        action='append',
        default=[],
        help='x.json: all masks as COCO RLE; mask.png or x_mask.png: the best one, 0 and 255; other .png: an overlay; '
        'may be repeated',
    )
    parser.set_defaults(run=_predict)


def _predict(options) -> None:
    from samjax.jobs import predict

    points, labels = options.point + options.negative, [1] * len(options.point) + [0] * len(options.negative)
    where = options.out, options.embedding
    for line in predict.predict(options.image, options.model, points, labels, options.box, *where):
        print(line)


def _add_embed(commands) -> None:
    parser = commands.add_parser(
        'embed',
        help='what the encoder says of images, for annotation tools and `predict --embedding`',
        description='Writes the embedding of each image: DIR/NAME.npz, from which masks are predicted later without '
        'the image. The same command goes on if interrupted.',
    )
    _add_many_images(parser, 'embeddings')
    parser.add_argument(
        '--format',
        choices=('npz', 'npy'),
        default='npz',
        help="npz (default): with the image's size and the model's digest, for samjax; npy: float32 of shape "
        "(1, 256, 64, 64), channels first, as segment-anything's SamPredictor.get_image_embedding().cpu().numpy(), for "
        'annotation tools and the ONNX decoder',
    )
    parser.add_argument('--dtype', choices=('float32', 'float16'), default='float32', help='of .npz; default: float32')
    _add_cluster(parser)
    parser.set_defaults(run=_embed)


def _embed(options) -> None:
    def work():
        from samjax.jobs.embeddings import embed

        chosen = options.format, options.dtype, options.devices
        return embed(options.inputs, options.model, options.out, *chosen)

    report = _in_a_job(options, work)
    _say(report, options.out, f'{report.images} embeddings')


def _add_masks(commands, chosen: bool) -> None:
    """chosen: whether it is this command; only then are its options read from elsewhere, which imports JAX."""
    parser = commands.add_parser(
        'masks',
        help='masks of everything in images',
        description='Writes masks of everything in images. The same command goes on if interrupted.',
    )
    if not chosen:
        return
    from samjax.inference.automatic.generator import PRESETS, AmgConfig
    from samjax.jobs.mask_formats import FORMATS

    _add_many_images(parser, 'masks')
    parser.add_argument(
        '--format',
        choices=tuple(FORMATS),
        default='sa1b',
        help='sa1b (default): JSON beside each image; coco: instances.json beside images; png: a file for each mask '
        'beside images; overlay: pictures to look at',
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
    _add_cluster(parser)
    parser.set_defaults(run=_masks)


def _masks(options) -> None:
    def work():
        from samjax.inference.automatic.generator import PRESETS, AmgConfig
        from samjax.jobs.generate_masks import masks

        given = {field.name: getattr(options, field.name) for field in dataclasses.fields(AmgConfig)}
        given = {name: value for name, value in given.items() if value is not None}
        settings = dataclasses.replace(PRESETS[options.preset], **given)
        return masks(options.inputs, options.model, options.out, options.format, settings, options.devices)

    report = _in_a_job(options, work)
    hint = '' if report.masks else ': lower --pred-iou-thresh and --stability-score-thresh for a weak model'
    more = [f'{report.without} images have no mask{hint}'] if report.without else []
    _say(report, options.out, f'{report.masks} masks of {report.images} images', *more)


def _add_many_images(parser, what: str) -> None:
    """The options of a command that `samjax.jobs.output_folder.fill`s a folder."""
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='INPUT',
        help='image file, folder of images at any depth, .tar file, or what `samjax data prepare` wrote',
    )
    parser.add_argument('--model', required=True, help='what `samjax convert` reads: torch file or folder, or a run')
    parser.add_argument('--out', required=True, metavar='DIR', type=pathlib.Path, help=f'folder for the {what}')
    parser.add_argument('--devices', type=int, default=0, metavar='N', help='of each process; without it all')


def _in_a_job(options, work):
    """What `work()` gives in one of the processes of a job, which does not leave the others waiting if it fails."""
    import jax

    from samjax.distributed import processes

    try:
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser('~/.cache/samjax/xla'))
        _join(options)
        return work()
    except (SamjaxError, OSError) as error:
        processes.exit_process(f'error: {one_line(error)}')
    except Exception:  # most often another process is gone; without `leave` jax waits minutes for it
        traceback.print_exc()
        processes.exit_process(1)


def _say(report, out: pathlib.Path, *lines: str) -> None:
    """What a folder has been filled with, once in a job."""
    import jax

    from samjax.jobs.output_folder import REPORT

    if jax.process_index() != 0:
        return
    print(f'{out}: {lines[0]}', *lines[1:], sep='\n')
    if report.bad:
        print(f'left out {report.found - report.images} of {report.found} images: {report.summary()}')
        print(f'{REPORT} there names what was left out and why')


def _add_cluster(parser) -> None:
    """The options of a command that several processes may run together; see `samjax.distributed.processes`."""
    group = parser.add_argument_group('several processes')
    group.add_argument('--distributed', action='store_true', help='one of those that Slurm, MPI, GKE or a TPU started')
    group.add_argument('--coordinator', metavar='HOST:PORT', help='of process 0, where nothing tells the processes')
    group.add_argument('--processes', type=int, metavar='N', help='with --coordinator: how many there are')
    group.add_argument('--process', type=int, metavar='I', help='with --coordinator: the number of this one, from 0')
    group.add_argument('--start_timeout', type=int, default=300, metavar='S', help='seconds to wait for the others')


def _join(options) -> None:
    from samjax.distributed import processes

    processes.initialize(
        options.distributed, options.coordinator, options.processes, options.process, options.start_timeout
    )


def _add_preflight(commands) -> None:
    parser = commands.add_parser(
        'preflight',
        help='whether a training config fits a TPU pod, which need not be there',
        description='Compiles the training step for a TPU topology on this machine and prints memory, network and '
        'hours. --config.SECTION.KEY=VALUE changes an option. Needs pip install "jax[tpu]".',
    )
    parser.add_argument('--config', required=True, help='configs/FILE.py')
    parser.add_argument('--topology', required=True, help='chips of a slice: v5e:16x16, v6e:16x16, v5p:8x8x4, v4:8x8x4')
    parser.add_argument('--slices', type=int, default=1, help='how many such slices work together')
    parser.add_argument('--save', metavar='FILE', help='write the compiled program, for jax.experimental')
    parser.set_defaults(run=_preflight)


def _preflight(options) -> None:
    # Before JAX is imported: compile for TPUs, look for none.  The type only keeps the compiler from asking for it.
    os.environ |= {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost'}
    os.environ |= {'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'TPU_ACCELERATOR_TYPE': 'v4-8'}
    from samjax.preflight.compile_ahead import preflight

    config = _config(options.config, options.changes)
    report = preflight(config, options.topology, options.slices, options.save)
    print(*report.lines(), sep='\n')
    if report.refusal is not None:
        sys.exit(2)


def _config(path: str, changes: list[str]):
    """The options of a config file with changes, by the rules of `train.py --config`."""
    from absl import flags
    from ml_collections import config_flags

    values, argv = flags.FlagValues(), ['samjax', f'--config={path}', *changes]
    config_flags.DEFINE_config_file('config', flag_values=values)
    try:
        with mock.patch.object(sys, 'argv', argv):  # where ml_collections looks for changes
            values(argv)
            return values.config
    except (AttributeError, KeyError) as error:
        raise SamjaxError(f'the config has no option {one_line(error)} See configs/default.py for all') from None
    except (flags.Error, FileNotFoundError) as error:
        raise SamjaxError(one_line(error)) from None


def _numbers(count: int):
    """A parser of `count` numbers with commas between them."""

    def parse(text: str) -> list[float]:
        numbers = [float(word) for word in text.split(',')]
        if len(numbers) != count:
            raise ValueError
        return numbers

    parse.__name__ = f'{count} numbers with commas between them'
    return parse


def _pair(text: str) -> tuple[int, int]:
    height, width = text.split(',')
    return int(height), int(width)


if __name__ == '__main__':
    main()
