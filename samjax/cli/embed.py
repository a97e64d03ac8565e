"""`samjax embed`: image embeddings, from which masks are predicted later without the image."""

from __future__ import annotations

from collections.abc import Sequence

from samjax.cli import common, many_images


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.make_parser(
        'embed',
        'Writes the embedding of each image to DIR/NAME.npz, from which masks are predicted later without the image. '
        'The same command continues if interrupted.',
    )
    many_images.add_arguments(parser, 'embeddings')
    parser.add_argument(
        '--format',
        choices=('npz', 'npy'),
        default='npz',
        help="npz (default): with the image's size and the model's digest, for samjax; npy: float32 of shape "
        "(1, 256, 64, 64), channels first, as segment-anything's SamPredictor.get_image_embedding().cpu().numpy(), for "
        'annotation tools and the ONNX decoder',
    )
    parser.add_argument('--dtype', choices=('float32', 'float16'), default='float32', help='of .npz; default: float32')
    common.add_processes(parser)
    options = common.parse(parser, argv)

    with common.job(options):
        from samjax.jobs.embeddings import write_embeddings

        report = write_embeddings(
            options.inputs,
            options.model,
            options.out,
            options.format,
            options.dtype,
            options.devices,
            common.image_options(options),
        )
    many_images.print_report(report, options.out, f'{report.num_valid} embeddings')
