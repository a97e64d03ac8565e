"""The files below a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from samjax.errors import SamjaxError


def _refuse(error: OSError) -> None:
    raise SamjaxError(
        f'{error.filename} cannot be read ({error.strerror}): change its permissions, or move it elsewhere'
    ) from error


def ignore_error(error: OSError) -> None:
    """For `list_files`: folders that cannot be read are left out."""


def list_files(
    root: Path,
    wanted: Callable[[str], bool],
    *,
    every_link: bool = False,
    on_error: Callable[[OSError], None] = _refuse,
) -> Iterator[str]:
    """Paths, each beginning with `root`, of the files below it in a fixed order; links are followed.

    wanted: whether a file with this name counts, see `has_suffix`; hidden folders are left out in any case.
    every_link: a folder that several links lead to is listed once for each of them, otherwise once in all.  Links to a
    folder that contains them are never followed.
    on_error: called for a folder that cannot be read, which is left out if this returns; by default SamjaxError.
    """
    seen: set[str] = set()  # real folders
    ancestors = {os.fspath(root): frozenset()}  # real folders that contain a folder still to be visited
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=on_error):
        real, above = os.path.realpath(folder), ancestors.pop(folder)
        if real in (above if every_link else seen):
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith('.'))
        ancestors |= {os.path.join(folder, name): above | {real} for name in subfolders}
        yield from (os.path.join(folder, name) for name in sorted(names) if wanted(name))


def has_suffix(suffixes: Collection[str]) -> Callable[[str], bool]:
    """For `list_files`: files with one of these suffixes, such as '.jpg', in any case; hidden ones are left out."""
    return lambda name: not name.startswith('.') and os.path.splitext(name)[1].lower() in suffixes
