import errno
import os

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


def no_room(path):
    with atomic.new_path(path) as unfinished:
        unfinished.write_text('x')


def test_new_path_names_what_helps(tmp_path):
    """Space is not what is short."""
    (tmp_path / 'file').touch()
    for path, reason, remedy in (
        (tmp_path / 'file' / 'x', 'Not a directory', 'name a path that leads through folders only'),
        (tmp_path / 'file' / 'a' / 'x', 'Not a directory', 'name a path that leads through folders only'),
        (tmp_path / ('x' * 300), 'File name too long', 'choose a shorter name'),
        (tmp_path / ('x' * 300) / 'y', 'File name too long', 'choose a shorter name'),
    ):
        with pytest.raises(SamjaxError, match=rf'cannot be written \({reason}\): {remedy} or choose another path$'):
            no_room(path)
    assert os.listdir(tmp_path) == ['file']


def test_new_path_refuses_a_dangling_link(tmp_path):
    (tmp_path / 'x').symlink_to(tmp_path / 'nowhere')
    with pytest.raises(SamjaxError, match='x exists: choose another name'), atomic.new_path(tmp_path / 'x'):
        pass
    assert os.readlink(tmp_path / 'x') == str(tmp_path / 'nowhere')


def test_what_does_not_fit_is_known_before_it_is_written(tmp_path):
    atomic.refuse_full_disk(tmp_path, 1000)
    with pytest.raises(OSError, match='No space left on device|File too large'):
        atomic.refuse_full_disk(tmp_path, 2**62)
    assert os.listdir(tmp_path) == []
