import fcntl
import threading

import pytest

from samjax.errors import SamjaxError
from samjax.storage.lock import try_lock, wait_for_lock


def no_locks(descriptor, operation):
    raise OSError(37, 'No locks available')


def test_a_folder_is_locked_once(tmp_path):
    with try_lock(tmp_path) as first, try_lock(tmp_path) as second:
        assert (first, second) == (True, False)
    with try_lock(tmp_path) as again:
        assert again


def test_a_disk_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, 'flock', no_locks)
    with try_lock(tmp_path) as locked:
        assert locked
    with (
        pytest.raises(SamjaxError, match='cannot be locked .*: choose a disk with file locks'),
        wait_for_lock(tmp_path),
    ):
        pass


def test_waiting_for_a_lock(tmp_path):
    entered = threading.Event()

    def second():
        with wait_for_lock(tmp_path / 'a' / 'b'):
            entered.set()

    thread = threading.Thread(target=second)
    with wait_for_lock(tmp_path / 'a' / 'b'):
        thread.start()
        assert not entered.wait(0.1)
    thread.join(10)
    assert entered.is_set()
