"""`samjax train`: trains a model, or continues where the same command stopped."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from samjax.cli import common


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.make_parser(
        'train',
        'Trains a SAM, or continues where the same command stopped. Ctrl-C and SIGTERM save first; the exit code is '
        'then 130 or 75.',
    )
    common.add_config(parser, 'the options of samjax/config.py')
    parser.add_argument(
        '--workdir', required=True, metavar='DIR', help='folder of the run, on a disk that all machines see'
    )
    common.add_processes(parser)
    options = common.parse(parser, argv, configs=['config'])
    with common.one_line_errors():
        config = common.read_config(options.config, options.changes['config'])

    from samjax.evaluation.during_training import TrainingEvaluation
    from samjax.training import loop

    with common.job(options, verbosity='warning'):
        try:
            loop.train(config, options.workdir, TrainingEvaluation)
        except loop.Stopped as stopped:  # in all processes
            print(stopped, flush=True)
            sys.exit(stopped.code)
