"""Locks between processes that write into one folder; the system releases them when a process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from samjax.errors import SamjaxError


@contextlib.contextmanager
def try_lock(folder: Path) -> Iterator[bool]:
    """Holds the lock of `folder` and yields True, or yields False if another process holds it.

    Yields True as well on a disk without locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def wait_for_lock(folder: Path) -> Iterator[None]:
    """Makes `folder`, waits until no other process holds the file `lock` in it, and holds that.

    Raises:
        SamjaxError: the disk has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'lock', 'w') as file:  # NFS locks only what is open for writing, which no folder is
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise SamjaxError(f'{folder} cannot be locked ({error}): choose a disk with file locks') from error
        yield
