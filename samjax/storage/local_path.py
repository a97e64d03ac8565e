"""Paths must lead to disks: what to do about the address of a bucket or a web page."""

from __future__ import annotations

import os
import re

from samjax.errors import SamjaxError

# pathlib writes gs://bucket as gs:/bucket.  A single letter is a drive of Windows.
ADDRESS = re.compile(r'([a-z][a-z0-9+.-]+):/', re.IGNORECASE)


def refuse_address(path: str | os.PathLike) -> None:
    """Raises SamjaxError if `path` is an address such as gs://bucket/folder or https://host/file."""
    match = ADDRESS.match(os.fspath(path))
    if match is None:
        return
    if match[1].lower() in ('http', 'https', 'ftp'):
        raise SamjaxError(f'{path} is an address, not a path: download it, and name the file')
    if match[1].lower() == 'file':
        raise SamjaxError(f'{path} is an address, not a path: leave out {match[1]}://')
    raise SamjaxError(
        f'{path} is in a bucket, and samjax reads and writes disks only: mount the bucket, with gcsfuse for example, '
        'and name the path of the mount (docs/launch.md)'
    )
