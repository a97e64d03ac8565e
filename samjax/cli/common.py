"""What the commands share: reading a command line and the options of a config, errors, and jobs of several processes.

Exit codes of every command:

    0    done
    1    an error: one line on stderr that begins with `error: `
    2    the command line is wrong, or `preflight` found that the training step does not fit
    75   SIGTERM: the run is saved (`train`; "try again" of sysexits.h)
    130  Ctrl-C: the run is saved (`train`)

Modules that take long to import are imported after the command line was read.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import io
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from samjax.errors import SamjaxError, one_line
from samjax.storage import local_path, os_errors

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from samjax.images.open import ImageOptions

COMPILATION_CACHE = '~/.cache/samjax/xla'
MODEL_HELP = 'checkpoint that `samjax convert` reads: file or folder of PyTorch, or folder of a run'
# Flags before version 0.2 whose words changed; of the others only underscores became dashes.
RENAMED_FLAGS = {
    '--share': '--fraction',
    '--max-bad-share': '--max-invalid-fraction',
    '--workers': '--num-workers',
    '--max-mask-share': '--max-mask-fraction',
}
# Options whose names before version 0.2 were about evaluation in general, and the flags of `samjax eval` for them.
EVAL_FLAGS = {'train.eval_max_images': '--max-images', 'train.eval_max_objects': '--max-objects'}

# Types of options, in words.
KINDS = {
    bool: 'true or false',
    int: 'a whole number',
    float: 'a number',
    tuple: "a tuple, which the shell needs in quotes: '(1, 2)'",
    object: 'a section: write --config.section.key=value',
}


# ---- the command line ------------------------------------------------------------------------------


def make_parser(command: str, description: str) -> argparse.ArgumentParser:
    """The parser of `samjax COMMAND`; flags have one spelling and cannot be abbreviated."""
    parser = argparse.ArgumentParser(prog=f'samjax {command}', description=description, allow_abbrev=False)
    parser.set_defaults(parser=parser)
    return parser


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, configs: Sequence[str] = ()
) -> argparse.Namespace:
    """The options of `argv`, by default of the process's command line.

    configs: names of the configs whose options may be changed: with 'config', words such as --config.section.key=value
        go to the list `changes['config']` of the result.

    Raises:
        SystemExit: the command line is wrong (2), names a bucket (1), or asks for help (0).
    """
    argv = sys.argv[1:] if argv is None else argv
    with one_line_errors():
        for word in argv:
            local_path.refuse_address(word.partition('=')[2] if word.startswith('--') else word)
    words, changes = split_changes(argv, configs)
    options, unknown = parser.parse_known_args(_join_negative_values(words))
    if unknown:
        _refuse(options.parser, unknown[0], configs)
    options.changes = changes
    return options


def split_changes(argv: Sequence[str], configs: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The words of `argv` that change no config, and for each config those that do."""
    words, changes = [], {name: [] for name in configs}
    remaining = list(argv)
    while remaining:
        word = remaining.pop(0)
        match = re.match(r'--(?:no)?(\w+)\.', word)
        if match is None or match[1] not in changes:
            words.append(word)
            continue
        changes[match[1]].append(word)
        if '=' not in word and remaining and not remaining[0].startswith('--'):
            changes[match[1]].append(remaining.pop(0))
    return words, changes


def _join_negative_values(words: Sequence[str]) -> list[str]:
    """`--flag -1,2` as `--flag=-1,2`; argparse would take a word such as -1,2, -1e3 or -inf for an option."""
    joined = []
    for word in words:
        if joined and re.fullmatch(r'--[\w-]+', joined[-1]) and re.match(r'-(\.?\d|inf|nan)', word, re.IGNORECASE):
            joined[-1] += f'={word}'
        else:
            joined.append(word)
    return joined


def _refuse(parser: argparse.ArgumentParser, word: str, configs: Sequence[str]) -> NoReturn:
    """Ends the process with a sentence about a word that the parser does not know."""
    flag = word.partition('=')[0]
    dashed = flag.replace('_', '-')
    current = RENAMED_FLAGS.get(dashed, dashed)
    if current in re.findall(r'--[\w-]+', parser.format_help()):
        parser.error(f'{flag} is not an option: write {current}')
    remedy = f'write --{configs[0]}.section.key=value, or see' if configs else 'see'
    parser.error(f'{word!r} is not an option: {remedy} {parser.prog} --help')


# ---- options of a config ---------------------------------------------------------------------------


def add_config(parser: argparse.ArgumentParser, default: str) -> None:
    """The flag `--config`; `default` says where the options come from without it."""
    parser.add_argument(
        '--config',
        metavar='PATH',
        help=f'recipe: Python file with a function get_config, see configs/; default: {default}. '
        '--config.SECTION.KEY=VALUE changes an option; samjax/config.py explains all of them',
    )


def change(config: ConfigDict, name: str, words: Sequence[str]) -> ConfigDict:
    """`config` changed by the words of a command line, such as --NAME.section.key=value.

    Raises:
        SamjaxError: an option does not exist, has another name since version 0.2, or cannot have the value, such as
            the address of a bucket.
    """
    from absl import flags
    from ml_collections import config_flags

    from samjax.config import RENAMED, refuse_renamed, unknown_option

    for word in words:
        if not re.match(rf'--(no)?{name}\.\w', word) and word.startswith('--'):
            raise SamjaxError(f'{word!r} names no option: write --{name}.section.key=value')
        option = word.removeprefix(f'--{name}.').partition('=')[0]
        if option in RENAMED and RENAMED[option] in EVAL_FLAGS:
            current = RENAMED[option]
            raise SamjaxError(
                f'the option {option} is now called {current} and limits the evaluation during training: '
                f'write --config.{current}, or {EVAL_FLAGS[current]} for samjax eval'
            )
        refuse_renamed(option)
    values, argv = flags.FlagValues(), ['samjax', *words]
    try:
        config_flags.DEFINE_config_dict(name, config, flag_values=values, sys_argv=argv)
        stray = values(argv)[1:]
    except (AttributeError, KeyError) as error:
        raise unknown_option(error, 'the command line') from None
    except flags.IllegalFlagValueError as error:
        option = re.match(rf'flag --{name}\.([\w.]+)=', str(error))[1]
        default = functools.reduce(lambda section, key: section[key], option.split('.'), config)
        kind = next(kind for type_, kind in KINDS.items() if isinstance(default, type_))
        text = one_line(error).removeprefix('flag ').partition(': ')[0]
        raise SamjaxError(f'{text} is not possible: {option} is {kind}') from None
    except (flags.Error, TypeError, ValueError) as error:
        raise SamjaxError(one_line(error)) from None
    if stray:
        raise SamjaxError(f'{stray[0]!r} is not an option: write --{name}.section.key=value')
    for text in _texts(values[name].value.to_dict()):
        local_path.refuse_address(text)
    return values[name].value


def _texts(value) -> Iterator[str]:
    """Every text in an option, a section or a sequence of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry)


def read_config(path: str | None, words: Sequence[str]) -> ConfigDict:
    """The options of the recipe at `path`, or else of samjax/config.py, changed by --config.section.key=value.

    Raises:
        SamjaxError: the recipe cannot be read, or see `change`.
    """
    from samjax import config

    return change(config.get_config() if path is None else config.load(path), 'config', words)


# ---- options of image files ------------------------------------------------------------------------


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """The flags that `image_options` reads: what is done with images that are not read without a decision."""
    parser.add_argument(
        '--bit-depth-range',
        metavar='LOW,HIGH',
        type=_pair,
        default=(),
        help='values shown as black and white in images of more than 8 bits per channel; default: refuse such images',
    )
    parser.add_argument(
        '--max-pixels', metavar='N', type=int, default=178_956_970, help='refuse larger images; default: 178956970'
    )


def image_options(options: argparse.Namespace) -> ImageOptions:
    """Raises SamjaxError if a value makes no sense."""
    from samjax.images.open import ImageOptions

    return ImageOptions(options.bit_depth_range, options.max_pixels)


def _pair(text: str) -> tuple[float, float]:
    low, high = map(float, text.split(','))
    return low, high


_pair.__name__ = 'LOW,HIGH: two numbers with a comma between them'  # argparse names it in its error


# ---- errors ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with exit code 1 and one line on stderr at an error that the user can fix."""
    _set_verbosity('error')
    try:
        yield
    except (SamjaxError, OSError) as error:
        sys.exit(_error_line(error))


def _error_line(error: SamjaxError | OSError) -> str:
    """One line on what went wrong, for an error of the system with what helps against it."""
    remedy = os_errors.REMEDIES.get(error.errno) if isinstance(error, OSError) else None
    if remedy is None or error.filename is None:
        return f'error: {one_line(error)}'
    return f'error: {error.filename} cannot be used ({error.strerror}): {remedy}'


# ---- jobs of several processes ---------------------------------------------------------------------


def add_processes(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that several processes run together; see `samjax.distributed.processes`."""
    group = parser.add_argument_group('several processes')
    group.add_argument('--distributed', action='store_true', help='one of those that Slurm, MPI, GKE or a TPU started')
    group.add_argument('--coordinator', metavar='HOST:PORT', help='of process 0, if nothing else names the processes')
    group.add_argument('--processes', type=int, metavar='N', help='with --coordinator: how many there are')
    group.add_argument('--process', type=int, metavar='I', help='with --coordinator: the number of this one, from 0')
    group.add_argument('--start-timeout', type=int, default=300, metavar='S', help='seconds to wait for the others')


@contextlib.contextmanager
def job(options: argparse.Namespace, verbosity: str = 'error') -> Iterator[None]:
    """Runs its body as one of the processes of a job, whose devices are then known to each other.

    An error ends this process as `one_line_errors` does, any other exception with its traceback; the other processes
    of the job are not left waiting.  verbosity: the level from which on libraries log.
    """
    from samjax.distributed import processes

    with contextlib.suppress(io.UnsupportedOperation):  # stderr is no file in a notebook
        faulthandler.enable()
    _set_verbosity(verbosity)
    use_compilation_cache()
    try:
        processes.initialize(
            options.distributed, options.coordinator, options.processes, options.process, options.start_timeout
        )
        yield
    except (SamjaxError, OSError) as error:
        processes.exit_process(_error_line(error))
    except Exception:  # most often another process is gone; JAX alone would wait minutes for it
        traceback.print_exc()
        processes.exit_process(1)


def use_compilation_cache() -> None:
    """Lets JAX keep compiled functions on disk, for this and other processes."""
    import jax

    jax.config.update('jax_compilation_cache_dir', os.path.expanduser(COMPILATION_CACHE))


def _set_verbosity(level: str) -> None:
    """Libraries that log through absl, such as Orbax, which warns about its defaults, log from `level` on."""
    from absl import logging

    logging.set_verbosity(level)
