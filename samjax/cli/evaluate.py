"""`samjax eval`: evaluates the newest checkpoint of a run; tables, results.json, report.html and images in DIR/eval."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from samjax.cli import common

EPILOG = """
examples:
  samjax eval --workdir DIR --config.data.eval_path=PATH --baselines flood,grabcut --untrained
  samjax eval --workdir DIR --task suite --suite.root=DIR_OF_SETS
  samjax eval --workdir DIR --task edges --config.data.eval_path=BSDS500/data/images/test
  samjax eval --workdir DIR --task proposals --config.data.eval_path=lvis_v1_val.json
  samjax eval --workdir DIR --task instances --config.data.eval_path=instances_val2017.json --boxes detections.json

The same command continues an evaluation that was stopped or killed.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.make_parser('eval', 'Evaluates the newest checkpoint of a run.')
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument('--workdir', required=True, metavar='DIR', help='folder of the trained run')
    common.add_config(parser, 'the options of the run')
    parser.add_argument(
        '--task',
        default='interactive',
        metavar='NAME',
        help='interactive (default), suite, edges, proposals or instances',
    )
    parser.add_argument('--max-images', type=int, default=0, metavar='N', help='a fixed random subset; default: all')
    group = parser.add_argument_group('interactive and suite')
    group.add_argument('--max-objects', type=int, default=0, metavar='N', help='of each image, a fixed random subset')
    group.add_argument(
        '--baselines', type=_names, default=[], metavar='A,B', help='also evaluate these: flood, grabcut'
    )
    group.add_argument('--untrained', action='store_true', help='also evaluate the model before training')
    group.add_argument(
        '--suite',
        metavar='PATH',
        help='Python file with the sets of the suite; default: samjax/evaluation/tasks/suite_sets.py. '
        '--suite.root=DIR and --suite.sets.NAME.path=PATH change where the sets are',
    )
    group = parser.add_argument_group('edges and instances')
    group.add_argument('--boxes', default='', metavar='FILE', help="instances: a detector's boxes as COCO results")
    group.add_argument(
        '--ground-truth', default='', metavar='DIR', help='edges: folder of .mat files, if not where BSDS500 has it'
    )
    common.add_processes(parser)
    options = common.parse(parser, argv, configs=['config', 'suite'])
    with common.one_line_errors():
        config, suite = _read_configs(options)

    import jax

    from samjax.evaluation.eval_result import EvalOptions
    from samjax.evaluation.evaluate import evaluate

    with common.job(options):
        eval_options = EvalOptions(
            baselines=tuple(['untrained'] * options.untrained + options.baselines),
            max_images=options.max_images,
            max_objects=options.max_objects,
            boxes=options.boxes,
            ground_truth=options.ground_truth,
            suite=suite,
        )
        text, folder = evaluate(config, options.workdir, options.task, eval_options)
        if jax.process_index() == 0:
            print(text)
            print(folder / 'report.html')


def _read_configs(options: argparse.Namespace):
    """The config of the recipe or of the run, and that of the suite, as the command line changes them."""
    from samjax.checkpoints.run import read_config
    from samjax.config import load, read_recipe
    from samjax.errors import check_option
    from samjax.evaluation.tasks import suite_sets

    config = read_config(options.workdir) if options.config is None else load(options.config)
    suite = suite_sets.get_config() if options.suite is None else read_recipe(options.suite)
    suite = common.change(suite, 'suite', options.changes['suite'])
    suite_sets.SuiteConfig.from_config(suite)  # refuses a recipe of something else
    for flag, value in (('--max-images', options.max_images), ('--max-objects', options.max_objects)):
        check_option(flag, value, lambda n: n >= 0, '0, which is all, or more')
    return common.change(config, 'config', options.changes['config']), suite


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(',') if name.strip()]
