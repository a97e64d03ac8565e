import errno
import os

import pytest

from samjax.storage import os_errors


def os_error(code):
    return OSError(code, os.strerror(code))


def caused_by(error):
    """Another error that `error` caused."""
    try:
        try:
            raise error
        except Exception as inner:
            raise RuntimeError('it failed') from inner
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ('error', 'remedy'),
    [
        (os_error(errno.ENOSPC), 'free some space'),
        (os_error(errno.EDQUOT), 'free some space'),
        (os_error(errno.EFBIG), 'raise the limit on the size of files (ulimit -f)'),
        (os_error(errno.EACCES), 'change the permissions'),
        (os_error(errno.EROFS), 'mount that disk with write access'),
        (os_error(errno.ENOTDIR), 'name a path that leads through folders only'),
        (os_error(errno.ENAMETOOLONG), 'choose a shorter name'),
        (os_error(errno.EIO), 'check the disk'),
        (ValueError('INTERNAL: Failed to write: No space left on device [os_error_code=28]'), 'free some space'),
        (RuntimeError('write() failed: Permission denied; at byte 4096'), 'change the permissions'),
        (RuntimeError('it failed'), 'check the disk'),
        (caused_by(os_error(errno.ENOSPC)), 'free some space'),
        (caused_by(ValueError('Disk quota exceeded')), 'free some space'),
        (caused_by(ValueError('x')), 'check the disk'),
    ],
)
def test_remedy_fits_the_error(error, remedy):
    assert os_errors.remedy(error) == remedy
