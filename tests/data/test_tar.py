"""Members of tar files are located by their headers."""

import tarfile

import pytest
from samples import add

from samjax.data.formats.tar import ByteRange, list_members


def test_byte_range_reads_its_bytes(tmp_path):
    (tmp_path / 'x').write_bytes(b'0123456789')
    assert ByteRange(str(tmp_path / 'x'), 3, 4).read() == b'3456'
    assert ByteRange(str(tmp_path / 'x'), 8, 4).read() == b'89'


def test_members_in_order_without_folders_and_links(tmp_path):
    path = str(tmp_path / 'x.tar')
    with tarfile.open(path, 'w') as tar:
        folder, link = tarfile.TarInfo('a'), tarfile.TarInfo('link')
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, 'a/2'
        tar.addfile(folder)
        tar.addfile(link)
        add(tar, './a/2', b'two')
        add(tar, '/a/.1', b'first')
    members = list(list_members(path))
    assert [name for name, _ in members] == ['a/2', 'a/.1']
    assert [content.read() for _, content in members] == [b'two', b'first']


def test_file_that_is_no_tar(tmp_path):
    (tmp_path / 'x.tar').write_bytes(b'compressed?' * 200)
    with pytest.raises(tarfile.TarError):
        list(list_members(str(tmp_path / 'x.tar')))


@pytest.fixture
def three(tmp_path):
    """A tar file of three members, each of a header and a block."""
    path = tmp_path / 'x.tar'
    with tarfile.open(path, 'w') as tar:
        for name in ('a', 'b', 'c'):
            add(tar, name, name.encode())
    assert [name for name, _ in list_members(str(path))] == ['a', 'b', 'c']
    return path


def names_before(path, message):
    members, names = list_members(str(path)), []
    with pytest.raises(tarfile.TarError, match=message):
        names.extend(name for name, _ in members)
    return names


def test_damaged_header_is_not_taken_for_the_end(three):
    data = bytearray(three.read_bytes())
    data[1024 + 3] ^= 1  # in the name of b
    three.write_bytes(data)
    assert names_before(three, 'damaged or cut off at byte 1024: ') == ['a']


@pytest.mark.parametrize('size', [2048, 2048 + 100])
def test_file_cut_off_before_a_member_is_not_whole(three, size):
    three.write_bytes(three.read_bytes()[:size])
    assert names_before(three, 'damaged or cut off at byte 2048: ') == ['a', 'b']


def test_tar_files_joined_by_cat(three):
    three.write_bytes(2 * three.read_bytes())
    assert names_before(three, 'there is more after its end, at byte 3072: ') == ['a', 'b', 'c']


def test_end_without_padding(three):
    three.write_bytes(three.read_bytes()[: 3072 + 512])
    assert [name for name, _ in list_members(str(three))] == ['a', 'b', 'c']
