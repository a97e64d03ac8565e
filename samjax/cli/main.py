"""`samjax COMMAND`: only the module of the command is imported."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Sequence

from samjax import __version__

# command -> its module in samjax.cli, what it does
COMMANDS = {
    'train': ('train', 'train a model, or continue a run'),
    'eval': ('evaluate', 'evaluate the newest checkpoint of a run'),
    'convert': ('convert', 'convert PyTorch checkpoints to runs and back'),
    'predict': ('predict', 'predict the masks of one object in an image'),
    'masks': ('masks', 'generate masks of all objects in images'),
    'embed': ('embed', 'write image embeddings for annotation tools and `samjax predict --embedding`'),
    'data': ('data', 'prepare data sets for training, and check them'),
    'preflight': ('preflight', 'find out whether a training config fits a TPU pod, without the pod'),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command of `argv`, by default of the process's command line; exit codes: see `samjax.cli.common`."""
    with contextlib.suppress(AttributeError):  # a notebook's
        sys.stdout.reconfigure(errors='backslashreplace')  # names of files may be any bytes
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog='samjax', description='Segment Anything in JAX.', epilog='`samjax COMMAND --help` lists the options.'
    )
    parser.add_argument('--version', action='version', version=f'samjax {__version__}')
    commands = parser.add_subparsers(title='commands', metavar='COMMAND', dest='command', required=True)
    for name, (_, text) in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    module, _ = COMMANDS[parser.parse_args(words[:1]).command]
    importlib.import_module(f'samjax.cli.{module}').main(words[1:])
