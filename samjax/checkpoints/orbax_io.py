"""How Orbax is used: what a checkpoint is made of, restoring with a check of shapes, and one error for its many."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import logging
import pathlib
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping

import jax
import orbax.checkpoint as ocp

from samjax.errors import SamjaxError
from samjax.storage import os_errors

# An array that is replicated over devices is written in slices, one by each device, if these have at least so many
# bytes.  Every shape that is sliced costs a compilation, half a minute for all the small arrays of a model.
SLICE_BYTES = 2**20
SILENCE = 0.5  # s without a late complaint after which there is none to come
PATIENCE = 10.0  # s to wait for that
NOT_DAMAGED = errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE  # why a whole checkpoint may not be readable
OTHER_MODEL = 'set --config.model.size and --config.model.image_size as they were, or choose another --workdir'


class UnreadableCheckpoint(SamjaxError):
    """A checkpoint is damaged."""


def open_manager(
    folder: pathlib.Path, options: ocp.CheckpointManagerOptions, concurrent_gb: int | None = None
) -> ocp.CheckpointManager:
    """concurrent_gb: limits what is written at once, where memory is short."""
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SLICE_BYTES)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    handlers = {
        'params': ocp.PyTreeCheckpointHandler(type_handler_registry=registry, save_concurrent_gb=concurrent_gb),
        'opt_state': ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        'data': ocp.JsonCheckpointHandler(),
        'config': ocp.JsonCheckpointHandler(),
    }
    with _muted('absl'):  # warns of what read-only means
        return ocp.CheckpointManager(folder, item_handlers=handlers, options=options)


def like(tree) -> ocp.args.PyTreeRestore:
    """Arguments that restore arrays with the shapes, dtypes and shardings of `tree`."""
    return ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))


def restore_newest(
    manager: ocp.CheckpointManager,
    folder: pathlib.Path,
    model: Mapping,
    params,
    items: ocp.args.Composite,
    remedy: str = OTHER_MODEL,
):
    """Restores `items` of the newest step after comparing its shapes with `params`.

    model: the section `model` of the options of the run that `params` belong to; remedy: what to do if the checkpoint
    holds another.

    Raises:
        UnreadableCheckpoint: it is damaged.
        SamjaxError: it holds a model of other shapes.
    """
    step = manager.latest_step()
    path = folder / str(step)
    readable = functools.partial(
        one_error, f'checkpoint {path} cannot be read', 'remove that folder to start over', UnreadableCheckpoint
    )
    with readable():
        stored = _shapes(manager.item_metadata(step)['params'].tree)
    expected = _shapes(params)
    for name in sorted(stored.keys() | expected.keys()):
        if value_of(stored, name) != value_of(expected, name):
            saved = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore())).config['model']
            raise SamjaxError(
                f'checkpoint {path} holds a {saved["size"]!r} for {tuple(saved["image_size"])} px and the config asks '
                f'for a {model["size"]!r} for {tuple(model["image_size"])} px ({name} is {value_of(stored, name)} '
                f'there and {value_of(expected, name)} here): {remedy}'
            )
    with readable():
        return manager.restore(step, args=items)


def value_of(table: Mapping, key: str) -> str:
    """A value for an error message, or 'absent'."""
    return repr(table[key]) if key in table else 'absent'


@contextlib.contextmanager
def one_error(what: str, remedy: str, kind: type[SamjaxError] = SamjaxError) -> Iterator[None]:
    """Turns whatever Orbax raises inside into one error of a `kind`: `what`, the reason, `remedy`.

    remedy: '{}' in it stands for what helps against the reason, see `samjax.storage.os_errors`.

    Orbax and TensorStore raise many kinds of error for one full disk and log a traceback for every array; and reads
    that end after Orbax has given up complain in their own threads.  All of this is kept from the terminal as long as
    this context lasts, which after an error waits for the late complaints.
    """
    complaints = [time.monotonic()]
    with (
        _muted('absl', 'asyncio'),
        _unraisable_filtered('Event loop is closed', complaints),
        warnings.catch_warnings(action='ignore', category=RuntimeWarning),  # of coroutines that nobody awaits
    ):
        try:
            yield
            return
        except Exception as error:
            reason = ': '.join(str(error).strip().split('\n')[0].split(' [')[0].split(': ')[-2:])
            remedy = remedy.format(os_errors.remedy(error))
            if kind is UnreadableCheckpoint and os_errors.number(error) in NOT_DAMAGED:
                kind, remedy = SamjaxError, os_errors.remedy(error)
            _release(error)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < min(complaints[-1] + SILENCE, end):
            gc.collect()
            time.sleep(0.05)
    raise kind(f'{what} ({reason}): {remedy}')


def _release(error: BaseException | None) -> None:
    """Frees what the frames of an error hold: asyncio complains of a failed task when it is freed."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def _muted(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _unraisable_filtered(message: str, times: list[float]) -> Iterator[None]:
    """Errors with this message that nobody can catch only add their time to `times`."""
    hook = sys.unraisablehook

    def filtered(unraisable) -> None:
        if str(unraisable.exc_value) == message:
            times.append(time.monotonic())
        else:
            hook(unraisable)

    sys.unraisablehook = filtered
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape) for path, leaf in leaves}
