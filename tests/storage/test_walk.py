import os

import pytest

from samjax.errors import SamjaxError
from samjax.storage.walk import has_suffix, ignore_error, list_files


def make(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def relative(root, files):
    return [os.path.relpath(file, root) for file in files]


def test_files_come_in_a_fixed_order_without_hidden_folders(tmp_path):
    make(tmp_path, 'b/1', 'a/2', 'a/1', 'z', '.hidden/1', '.y')
    files = list(list_files(tmp_path, lambda name: name != '2'))
    assert relative(tmp_path, files) == ['.y', 'z', 'a/1', 'b/1']
    assert all(file.startswith(f'{tmp_path}/') for file in files)


def test_has_suffix():
    is_jpeg = has_suffix(('.jpg', '.jpeg'))
    assert is_jpeg('a.JPG')
    assert not any(map(is_jpeg, ('a.png', '.a.jpg', '.jpg', 'jpg', 'a.jpg.txt')))


def test_loops_of_links_end(tmp_path):
    make(tmp_path, 'a/b/1')
    (tmp_path / 'a' / 'b' / 'up').symlink_to(tmp_path / 'a')
    (tmp_path / 'a' / 'self').symlink_to(tmp_path / 'a')
    for every_link in (False, True):
        files = list_files(tmp_path, lambda name: True, every_link=every_link)
        assert relative(tmp_path, files) == ['a/b/1']


def test_folders_that_several_links_lead_to(tmp_path):
    make(tmp_path, 'root/b/1', 'elsewhere/2')
    for name in ('a', 'c'):
        (tmp_path / 'root' / name).symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'root' / 'd').symlink_to(tmp_path / 'root' / 'b')
    once = list_files(tmp_path / 'root', lambda name: True)
    assert relative(tmp_path / 'root', once) == ['a/2', 'b/1']
    every = list_files(tmp_path / 'root', lambda name: True, every_link=True)
    assert relative(tmp_path / 'root', every) == ['a/2', 'b/1', 'c/2', 'd/1']


def test_folders_that_cannot_be_read(tmp_path):
    errors = []
    absent = tmp_path / 'absent'
    with pytest.raises(SamjaxError, match='absent cannot be read .No such file or directory.'):
        list(list_files(absent, lambda name: True))
    assert list(list_files(absent, lambda name: True, on_error=errors.append)) == []
    assert [error.filename for error in errors] == [str(absent)]
    assert list(list_files(absent, lambda name: True, on_error=ignore_error)) == []


def test_broken_links_are_files_and_folders_are_not(tmp_path):
    make(tmp_path, 'x.png/1.png')
    (tmp_path / 'gone.png').symlink_to('/nowhere.png')
    (tmp_path / 'self.png').symlink_to(tmp_path / 'self.png')
    files = list_files(tmp_path, has_suffix(('.png',)))
    assert relative(tmp_path, files) == ['gone.png', 'self.png', 'x.png/1.png']


def test_names_of_any_bytes(tmp_path):
    name = os.fsdecode(b'\xff.png')
    make(tmp_path, name)
    assert relative(tmp_path, list_files(tmp_path, has_suffix(('.png',)))) == [name]
