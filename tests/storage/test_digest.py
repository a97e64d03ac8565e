import hashlib
import os

from samjax.storage import digest


def test_of_files_depends_on_root_name_size_and_time(tmp_path):
    file = tmp_path / 'x'
    file.write_text('abc')
    os.utime(file, ns=(1, 2))
    first = digest.of_files(tmp_path, [('x', file)])
    assert len(first) == 32
    assert first == digest.of_files(tmp_path / '.' / '..' / tmp_path.name, [('x', str(file))])
    assert first != digest.of_files(tmp_path.parent, [('x', file)])
    assert first != digest.of_files(tmp_path, [('y', file)])
    assert first != digest.of_files(tmp_path, [('x', file), ('x', file)])
    file.write_text('xyz')
    os.utime(file, ns=(1, 2))
    assert first == digest.of_files(tmp_path, [('x', file)])
    os.utime(file, ns=(1, 3))
    assert first != digest.of_files(tmp_path, [('x', file)])


def test_missing_files_count_by_name(tmp_path):
    assert digest.of_files(tmp_path, [('x', tmp_path / 'x')]) != digest.of_files(tmp_path, [('y', tmp_path / 'x')])
    assert digest.of_files(tmp_path, [('x', tmp_path / 'x')]) != digest.of_files(tmp_path, [])


def test_names_need_not_be_utf_8(tmp_path):
    assert digest.of_strings(['\udcff']) == hashlib.sha256(b'\xff').hexdigest()[:32]


def test_of_strings_depends_on_where_they_end():
    assert digest.of_strings(['a', 'bc']) != digest.of_strings(['ab', 'c'])


def test_of_contents(tmp_path):
    (tmp_path / 'x').write_bytes(b'ab')
    (tmp_path / 'y').write_bytes(b'c')
    expected = hashlib.sha256(b'abc').hexdigest()[:32]
    assert digest.of_contents([tmp_path / 'x', str(tmp_path / 'y')]) == expected
