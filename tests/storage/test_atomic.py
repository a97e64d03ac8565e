import errno
import os
import resource
import signal

import pytest

from samjax.errors import SamjaxError
from samjax.storage import atomic


def interrupted(opened, error):
    """Writes half of a file, then `error` comes."""
    with opened as temporary:
        temporary.write_text('hal')
        raise error


def test_files_are_written_and_replaced(tmp_path):
    atomic.write_text(tmp_path / 'x', 'ä')
    atomic.write_text(tmp_path / 'x', 'ö')
    atomic.write_bytes(tmp_path / 'y', b'\0\r\n')
    assert (tmp_path / 'x').read_bytes() == 'ö'.encode()
    assert (tmp_path / 'y').read_bytes() == b'\0\r\n'
    assert sorted(os.listdir(tmp_path)) == ['x', 'y']


def test_after_an_error_the_old_file_stays(tmp_path):
    atomic.write_text(tmp_path / 'x', 'old')
    with pytest.raises(KeyboardInterrupt):
        interrupted(atomic.replacing(tmp_path / 'x'), KeyboardInterrupt())
    assert os.listdir(tmp_path) == ['x']
    assert (tmp_path / 'x').read_text() == 'old'


def test_a_folder_replaces_a_folder(tmp_path):
    (tmp_path / 'x').mkdir()
    (tmp_path / 'x' / 'old').touch()
    (tmp_path / 'parts').mkdir()
    with atomic.replacing(tmp_path / 'x', tmp_path / 'parts') as temporary:
        assert temporary.parent == tmp_path / 'parts'
        temporary.mkdir()
        (temporary / 'new').touch()
    assert os.listdir(tmp_path / 'x') == ['new']
    assert os.listdir(tmp_path / 'parts') == []


def test_new_path_makes_folders_and_removes_what_a_killed_process_left(tmp_path):
    path = tmp_path / 'a' / 'b'
    (tmp_path / 'a' / '.b.unfinished').mkdir(parents=True)
    (tmp_path / 'a' / '.b.unfinished' / 'old').touch()
    with atomic.new_path(path) as unfinished:
        assert not path.exists()
        unfinished.mkdir()
        (unfinished / 'new').touch()
    assert os.listdir(tmp_path / 'a') == ['b']
    assert os.listdir(path) == ['new']


def test_new_path_leaves_nothing_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError):
        interrupted(atomic.new_path(tmp_path / 'x'), ZeroDivisionError())
    assert os.listdir(tmp_path) == []


def test_new_path_says_when_the_disk_is_full(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(SamjaxError, match=r'x cannot be written \(No space left on device\): free some space'):
        interrupted(atomic.new_path(tmp_path / 'x'), full)
    assert os.listdir(tmp_path) == []


def test_new_path_refuses_an_existing_path(tmp_path):
    (tmp_path / 'x').touch()
    with pytest.raises(SamjaxError, match='x exists: choose another name'), atomic.new_path(tmp_path / 'x'):
        pass


def test_remove_leaves_the_target_of_a_link(tmp_path):
    (tmp_path / 'x').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'x')
    atomic.remove(tmp_path / 'link')
    atomic.remove(tmp_path / 'absent')
    assert os.listdir(tmp_path) == ['x']


def test_file_systems_that_cannot_tell_their_space_are_written_to(tmp_path, monkeypatch):
    def refuse(descriptor, start, length):
        raise OSError(errno.ENOTSUP, 'not supported')

    monkeypatch.setattr(os, 'posix_fallocate', refuse)
    atomic.check_space(tmp_path, 5)
    monkeypatch.delattr(os, 'posix_fallocate')
    atomic.check_space(tmp_path, 5)


def test_space_is_checked_and_nothing_stays(tmp_path):
    atomic.check_space(tmp_path, 0)
    atomic.check_space(tmp_path, 10_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # the system refuses more, as it does on a full disk
    try:
        atomic.check_space(tmp_path, 4096)
        with pytest.raises(OSError, match='too large'):
            atomic.check_space(tmp_path, 4097)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert os.listdir(tmp_path) == []
