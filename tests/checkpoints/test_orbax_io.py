"""One error for Orbax's many, with what helps against it."""

import errno
import os

import pytest

from samjax.checkpoints import orbax_io
from samjax.errors import SamjaxError


def raise_inside(error, remedy, kind=SamjaxError):
    with orbax_io.one_error('it cannot be done', remedy, kind):
        raise error


@pytest.mark.parametrize(
    ('code', 'remedy'), [(errno.ENOSPC, 'free some space'), (errno.EROFS, 'mount that disk with write access')]
)
def test_remedy_is_that_of_the_cause(code, remedy):
    with pytest.raises(SamjaxError) as raised:
        raise_inside(OSError(code, os.strerror(code)), '{} and run it again')
    assert str(raised.value).endswith(f'{os.strerror(code)}): {remedy} and run it again')


def test_a_whole_checkpoint_that_may_not_be_read_is_not_called_damaged():
    """Training moves a damaged one away and goes on from the one before it."""
    with pytest.raises(SamjaxError, match='Permission denied.: change the permissions$') as raised:
        raise_inside(ValueError('open: Permission denied'), 'remove it', orbax_io.UnreadableCheckpoint)
    assert not isinstance(raised.value, orbax_io.UnreadableCheckpoint)
    with pytest.raises(orbax_io.UnreadableCheckpoint, match='No such file or directory.: remove it$'):
        raise_inside(OSError(errno.ENOENT, 'No such file or directory'), 'remove it', orbax_io.UnreadableCheckpoint)
