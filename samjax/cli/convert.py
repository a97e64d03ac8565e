"""`samjax convert`: PyTorch checkpoints to runs and back."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from samjax.cli import common


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.make_parser(
        'convert',
        'Converts Meta, Hugging Face and MAE checkpoints to a run that `samjax train` and `samjax eval` start from, '
        'and a run to a PyTorch checkpoint.',
    )
    parser.add_argument('source', help='.pth, .pt, .bin or .safetensors file, Hugging Face folder, or folder of a run')
    parser.add_argument('target', help='.pth, .pt or .safetensors file in the layout of Meta, or a folder')
    parser.add_argument('--to', help='samjax, meta or huggingface; default: by the target and the source')
    parser.add_argument('--image-size', metavar='H,W', type=_size, help='resize the position tables for it, in px')
    parser.add_argument('--key', metavar='NAME', help='which model, if the source holds several, such as ema')
    parser.add_argument(
        '--ignore-extra',
        metavar='NAME',
        action='append',
        default=[],
        help='leave out arrays that the model does not have; * and ? as in a shell; may be repeated',
    )
    parser.add_argument('--force', action='store_true', help='accept weights that are not finite')
    parser.add_argument('--verify', action='store_true', help="compare the result with Meta's code, if installed")
    options = common.parse(parser, argv)

    from samjax.convert import convert

    with common.one_line_errors():
        text = convert.convert(
            options.source,
            options.target,
            options.to,
            options.image_size,
            options.force,
            options.key,
            options.ignore_extra,
        )
        print(text, flush=True)
        if options.verify:
            from samjax.parity import verify

            arrays, config, _ = convert.read(pathlib.Path(options.target), options.force)
            print(*verify.verify(arrays, config).lines(), sep='\n')


def _size(text: str) -> tuple[int, int]:
    height, width = text.split(',')
    return int(height), int(width)


_size.__name__ = 'height,width in px'  # argparse names it in its error
