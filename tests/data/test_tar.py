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
