"""Trains a SAM, or continues where the same command stopped.

python train.py --config configs/default.py --workdir DIR [--config.train.num_steps=1000 ...]

Exit code 0: done.  1: an error, in one line.  130: Ctrl-C, saved.  75: SIGTERM, saved; run the same command again.
"""

import os
import sys
import traceback

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from samjax.distributed import processes
from samjax.errors import SamjaxError, one_line
from samjax.training import loop

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run, on a disk that all machines see.', required=True)
processes.define_flags()


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
        processes.initialize_from_flags()
        loop.train(flags.FLAGS.config, WORKDIR.value)
    except (SamjaxError, OSError) as error:
        processes.exit_process(f'error: {one_line(error)}')
    except loop.Stopped as stopped:  # in all processes
        print(stopped, flush=True)
        sys.exit(stopped.code)
    except Exception:  # most often another process is gone; without `leave` jax waits minutes for it
        traceback.print_exc()
        processes.exit_process(1)


if __name__ == '__main__':
    app.run(main, flags_parser=parse)
