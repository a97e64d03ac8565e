"""Evaluates the newest checkpoint of a run: tables, results.json, report.html and pictures in DIR/eval.

python eval.py --workdir DIR [--config.data.eval_path=PATH] [--baselines=flood,grabcut] [--untrained]
python eval.py --workdir DIR --task suite --suite.root=DIR_OF_SETS
python eval.py --workdir DIR --task edges --config.data.eval_path=BSDS500/data/images/test
python eval.py --workdir DIR --task proposals --config.data.eval_path=lvis_v1_val.json
python eval.py --workdir DIR --task instances --config.data.eval_path=instances_val2017.json --boxes detections.json

The options are those of the run, unless --config=configs/FILE.py is given.  The same command continues an evaluation
that was stopped or killed.  With --distributed or --coordinator, as for train.py, processes share the images out.
"""

import os
import sys
import traceback

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from samjax.distributed import processes
from samjax.errors import SamjaxError, one_line
from samjax.evaluation.eval_result import EvalOptions
from samjax.evaluation.evaluate import TASKS, evaluate
from samjax.training import checkpoints

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the trained run.', required=True)
TASK = flags.DEFINE_string('task', 'interactive', f'One of {", ".join(TASKS)}.')
BASELINES = flags.DEFINE_list('baselines', [], 'Also evaluate these on clicks: flood, grabcut.')
UNTRAINED = flags.DEFINE_boolean('untrained', False, 'Also evaluate the model before training on clicks.')
MAX_IMAGES = flags.DEFINE_integer('max_images', 0, 'A fixed random choice of images; 0 is all.')
MAX_OBJECTS = flags.DEFINE_integer('max_objects', 0, 'The same for the objects of an image.')
BOXES = flags.DEFINE_string('boxes', '', "For instances: boxes of a detector in COCO's results form.")
GROUND_TRUTH = flags.DEFINE_string('ground_truth', '', 'For edges: folder of .mat files, if not where BSDS500 has it.')
processes.define_flags()


def parse(argv):
    """Reads the command line; the config comes from --config or else from the run in --workdir."""
    try:
        config_flags.DEFINE_config_file('suite', 'configs/suite.py', 'The sets of --task suite, and where they are.')
        if any(word.split('=')[0] in ('--config', '-config') for word in argv):
            config_flags.DEFINE_config_file('config')
        else:
            flags.FLAGS(argv, known_only=True)
            config_flags.DEFINE_config_dict('config', checkpoints.read_config(WORKDIR.value))
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        sys.exit(f'error: the config has no option {one_line(error)} See configs/default.py for all of them')
    except (SamjaxError, flags.IllegalFlagValueError) as error:
        sys.exit(f'error: {one_line(error)}')


def main(argv):
    try:
        if len(argv) > 1:
            raise SamjaxError(f'{argv[1]!r} is not an option: write --config.section.key=value')
        logging.set_verbosity(logging.ERROR)
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser('~/.cache/samjax/xla'))
        processes.initialize_from_flags()
        options = EvalOptions(
            others=tuple(['untrained'] * UNTRAINED.value + BASELINES.value),
            max_images=MAX_IMAGES.value,
            max_objects=MAX_OBJECTS.value,
            boxes=BOXES.value,
            ground_truth=GROUND_TRUTH.value,
            suite=flags.FLAGS.suite,
        )
        text, folder = evaluate(flags.FLAGS.config, WORKDIR.value, TASK.value, options)
    except (SamjaxError, OSError) as error:
        processes.exit_process(f'error: {one_line(error)}')
    except Exception:  # most often another process is gone; without `leave` jax waits minutes for it
        traceback.print_exc()
        processes.exit_process(1)
    if jax.process_index() == 0:
        print(text)
        print(folder / 'report.html')


if __name__ == '__main__':
    app.run(main, flags_parser=parse)
