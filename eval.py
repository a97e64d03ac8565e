"""Evaluates the newest checkpoint of a run: table, results.json and pictures in DIR/eval.

python eval.py --workdir DIR [--config.data.eval_path=PATH] [--baselines=flood,grabcut] [--untrained]

The options are those of the run, unless --config=configs/FILE.py is given.
"""

import os
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from samjax import checkpoint, report
from samjax.errors import SamjaxError, one_line

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the trained run.', required=True)
BASELINES = flags.DEFINE_list('baselines', [], 'Also evaluate these: flood, grabcut.')
UNTRAINED = flags.DEFINE_boolean('untrained', False, 'Also evaluate the model before training.')
MAX_IMAGES = flags.DEFINE_integer('max_images', 0, 'A fixed random choice of images; 0 is all.')
MAX_OBJECTS = flags.DEFINE_integer('max_objects', 0, 'The same for the objects of an image.')


def parse(argv):
    """Reads the command line; the config comes from --config or else from the run in --workdir."""
    try:
        if any(word.split('=')[0] in ('--config', '-config') for word in argv):
            config_flags.DEFINE_config_file('config')
        else:
            flags.FLAGS(argv, known_only=True)
            config_flags.DEFINE_config_dict('config', checkpoint.read_config(WORKDIR.value))
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
        others = ['untrained'] * UNTRAINED.value + BASELINES.value
        limits = MAX_IMAGES.value, MAX_OBJECTS.value
        table, folder = report.evaluate(flags.FLAGS.config, WORKDIR.value, tuple(others), *limits)
    except (SamjaxError, OSError) as error:
        sys.exit(f'error: {one_line(error)}')
    print(table)
    for name in ('results.json', 'masks.csv', 'curve.png', 'slots_sam.png', 'overlays'):
        print(folder / name)


if __name__ == '__main__':
    app.run(main, flags_parser=parse)
