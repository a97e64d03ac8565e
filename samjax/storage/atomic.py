"""Files and folders that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from samjax.errors import SamjaxError
from samjax.storage import os_errors


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file, or replaces it; a reader at the same time sees the old text or the new text."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """As `write_text`, for bytes."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Yields a path for a file or folder that replaces `path` at the end, or is removed after an error.

    folder: where the temporary path lies, on the same disk as `path`; by default beside it.
    """
    temporary = (folder or path.parent) / f'.{uuid.uuid4().hex}.part'  # unique among processes, and never too long
    with _renaming(temporary, path):
        yield temporary
        if temporary.is_dir():  # a folder is not renamed onto one that holds files
            remove(path)


@contextlib.contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """Yields a path for a file or folder that becomes `path` at the end, or is removed after an error.

    What a killed process left of an earlier attempt is removed.

    Raises:
        SamjaxError: `path` exists, or cannot be written, as on a full disk.
    """
    refuse_existing(path)
    unfinished = path.with_name(f'.{path.name}.unfinished')
    try:
        remove(unfinished)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _renaming(unfinished, path):
            yield unfinished
    except OSError as error:
        reason = error.strerror or error
        raise SamjaxError(
            f'{path} cannot be written ({reason}): {os_errors.remedy(error)} or choose another path'
        ) from None


def refuse_full_disk(folder: Path, size: int) -> None:
    """Raises OSError if a file of `size` bytes does not fit into `folder`, where the system can tell."""
    if not hasattr(os, 'posix_fallocate'):  # macOS
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # the disk cannot tell
                raise


def refuse_existing(path: Path) -> None:
    """Raises SamjaxError if there is something at `path`."""
    if os.path.lexists(path):
        raise SamjaxError(f'{path} exists: choose another name, or remove it first')


def remove(path: Path) -> None:
    """Removes a file or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _renaming(temporary: Path, path: Path) -> Iterator[None]:
    try:
        yield
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise
