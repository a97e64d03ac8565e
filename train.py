"""Trains a SAM, or continues where the same command stopped.

python train.py --config configs/default.py --workdir DIR [--config.train.steps=1000 ...]
"""

import os
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from samjax import loop
from samjax.errors import SamjaxError, one_line

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)


def parse(argv):
    """Reads the command line; ml_collections says unknown options with a traceback, here it is one line."""
    try:
        config_flags.DEFINE_config_file('config', 'configs/default.py', 'Options of the run.')
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        sys.exit(f'error: the config has no option {one_line(error)} See configs/default.py for all of them')


def main(argv):
    try:
        if len(argv) > 1:
            raise SamjaxError(f'{argv[1]!r} is not an option: write --config.section.key=value')
        logging.set_verbosity(logging.WARNING)
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser('~/.cache/samjax/xla'))
        loop.train(flags.FLAGS.config, WORKDIR.value)
    except (SamjaxError, OSError) as error:
        sys.exit(f'error: {one_line(error)}')
    except KeyboardInterrupt as interrupt:
        print(interrupt)
        sys.exit(130)


if __name__ == '__main__':
    app.run(main, flags_parser=parse)
