"""Errors of the operating system in words, and what a user can do about them."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from samjax.errors import one_line

REMEDIES: Mapping[int, str] = {
    errno.ENOSPC: 'free some space',
    errno.EDQUOT: 'free some space',
    errno.EFBIG: 'raise the limit on the size of files (ulimit -f)',
    errno.EACCES: 'change the permissions',
    errno.EPERM: 'change the permissions',
    errno.EROFS: 'mount that disk with write access',
    errno.ENOTDIR: 'name a path that leads through folders only',
    errno.EEXIST: 'name a path that leads through folders only',
    errno.EISDIR: 'name a file instead of a folder',
    errno.ENAMETOOLONG: 'choose a shorter name',
    errno.ELOOP: 'remove the links that lead in a circle',
    errno.EMFILE: 'raise the limit on open files (ulimit -n)',
    errno.ENFILE: 'raise the limit on open files of the system',
}
DISK_FULL = errno.ENOSPC, errno.EDQUOT


def number(error: BaseException) -> int | None:
    """The errno of an error or of what caused it, None if it has none.

    Libraries in other languages pass on only the text, such as 'No space left on device'.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        text = str(error)
        for code in REMEDIES:
            if os.strerror(code) in text:
                return code
        error = error.__cause__ or error.__context__
    return None


def remedy(error: BaseException) -> str:
    """A clause such as 'free some space'."""
    return REMEDIES.get(number(error), 'check the disk')


def reason(error: OSError) -> str:
    """Why a file cannot be read, without its path, which messages name in their own way."""
    path = error.filename
    if isinstance(path, (str, bytes, os.PathLike)) and os.path.islink(path) and not os.path.exists(path):
        target = os.fsdecode(os.readlink(path)).encode('utf-8', 'backslashreplace').decode()
        return f'it is a link to {target}, which is not there'
    return error.strerror or one_line(error)
