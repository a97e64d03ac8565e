"""Files within tar files, located by their headers, so that any of them can be read later without the tar."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import NamedTuple


class ByteRange(NamedTuple):
    """Some bytes of a file: all of it, or one member of a tar file."""

    path: str
    offset: int  # bytes
    size: int  # bytes

    def read(self) -> bytes:
        """The bytes; fewer than `size` if the file ends before.  Raises OSError."""
        with open(self.path, 'rb') as file:
            file.seek(self.offset)
            return file.read(self.size)


def whole_file(path: str) -> ByteRange:
    """All bytes of a file; of one that is not there, such as a link to nothing, none, and reading it raises OSError."""
    try:
        return ByteRange(path, 0, os.path.getsize(path))
    except OSError:
        return ByteRange(path, 0, 0)


def list_members(path: str) -> Iterator[tuple[str, ByteRange]]:
    """Name and bytes of each regular file in an uncompressed tar file, in its order; reads only headers.

    Raises:
        tarfile.TarError, EOFError, OSError: the tar file cannot be read, or cannot be read any further.  Python's
            module takes a damaged header, and a file cut off between two members, for the end.
    """
    with tarfile.open(path, 'r:') as tar:
        for member in tar:
            if member.isfile():
                name = os.path.normpath(member.name).lstrip('/')
                yield name, ByteRange(path, member.offset_data, member.size)
            tar.members = []  # a shard has tens of thousands; the module would keep them all
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f'it is damaged or cut off at byte {tar.offset}: what follows is not read')
        if any(tar.fileobj.read(tarfile.RECORDSIZE)):
            raise tarfile.ReadError(
                f'there is more after its end, at byte {tar.offset}: give each tar file by itself, not joined by cat'
            )
