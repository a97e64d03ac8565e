"""Digests that tell whether data on disk are still the same: 32 hexadecimal digits of SHA-256."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

DIGITS = 32


def of_strings(strings: Iterable[str]) -> str:
    """Of strings in their order; file names may be among them, whatever their bytes are."""
    return hashlib.sha256(b'\0'.join(map(os.fsencode, strings))).hexdigest()[:DIGITS]


def of_files(root: Path, files: Iterable[tuple[str, str | Path]]) -> str:
    """Of the resolved path `root` and of name, size and modification time of files, without reading them.

    files: a name, such as the path below `root`, and a path for each; a file that is not there counts by its name.
    """
    strings = [str(root.resolve())]
    for name, path in files:
        strings += [name, *_state(path)]
    return of_strings(strings)


def of_contents(paths: Iterable[str | Path]) -> str:
    """Of the bytes of files in their order."""
    sha = hashlib.sha256()
    for path in paths:
        sha.update(Path(path).read_bytes())
    return sha.hexdigest()[:DIGITS]


def _state(path: str | Path) -> list[str]:
    try:
        stat = os.stat(path)
    except OSError:
        return ['']
    return [str(stat.st_size), str(stat.st_mtime_ns)]
