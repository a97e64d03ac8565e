"""Which file a name means: spellings of other systems, never another case or suffix; messages tell twins apart."""

import unicodedata

import pytest

from samjax.data.formats import file_names


def make(root, *names):
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b'')


@pytest.mark.parametrize(
    ('name', 'path'),
    [
        ('a.png', 'a.png'),
        ('./b/../a.png', 'b/../a.png'),
        ('b\\\\a.png', 'b/a.png'),
        ('b//a.png', 'b/a.png'),
        ('/b/a.png', '/b/a.png'),
        ('s3://bucket/deep/er/a%20b.png', 'er/a b.png'),
        ('https://host/a.png?x=/y.png#z', 'a.png'),
        ('file:///home/me/a.png', 'me/a.png'),
        ('caf\udce9.png', 'caf\udce9.png'),
        *(
            (name, None)
            for name in ('', '..', 'a/..', '.', '\ud800.png', 5, None, ['a.png'], 'x' * 5000, 'http://host/')
        ),
    ],
)
def test_as_path(name, path):
    assert file_names.as_path(name) == path


def test_spellings():
    assert file_names.spellings('b/a.png') == ['b/a.png']
    assert file_names.spellings('a%20b.png') == ['a%20b.png', 'a b.png']
    assert file_names.spellings('/a.png') == ['/a.png', 'a.png']
    assert file_names.spellings('e\u0301') == ['e\u0301', '\xe9']
    assert file_names.spellings('%C3%A9%5Ca') == ['%C3%A9%5Ca', '\xe9/a', 'e\u0301/a']


def test_first_file_is_the_literal_one(tmp_path):
    make(tmp_path, 'p/a b.png', 'q/a%20b.png')
    folders = [tmp_path / 'p', tmp_path / 'q']
    assert file_names.first_file('a%20b.png', folders) == str(tmp_path / 'q/a%20b.png')
    assert file_names.first_file('a%20b.png', folders, {str(tmp_path / 'q/a%20b.png')}) == str(tmp_path / 'p/a b.png')
    assert file_names.first_file('A%20b.png', folders) is None
    assert file_names.first_file('nul\0.png', folders) is None


def test_twins_on_disk(tmp_path):
    """Names that look alike are different files where the literal one exists, and are shown apart where it does not."""
    composed, decomposed = ('\xe9 \xe8.png', unicodedata.normalize('NFD', '\xe9 \xe8.png'))
    make(tmp_path, f'p/{composed}', f'p/{decomposed}')
    for name in (composed, decomposed):
        located = file_names.locate([name], [tmp_path], [tmp_path])[name]
        assert located.files == [str(tmp_path / 'p' / name)]
    mixed = 'e\u0301 \xe8.png'
    located = file_names.locate([mixed], [tmp_path], [tmp_path])[mixed]
    assert len(located.files) == 2
    message = located.why_missing(mixed, 'there')
    assert r'e\u0301 \xe8.png may be ' in message
    assert r'/p/\xe9 \xe8.png' in message
    assert r'/p/e\u0301 e\u0300.png' in message


def test_whole_path_is_better_than_its_last_part(tmp_path):
    make(tmp_path, 'deep/p/a.png', 'deep/q/a.png', 'deep/p/b.png')
    located = file_names.locate(['q/a.png', 'elsewhere/b.png'], [tmp_path], [tmp_path])
    assert [files for files, _ in located.values()] == [[f'{tmp_path}/deep/q/a.png'], [f'{tmp_path}/deep/p/b.png']]


def test_many_files_of_one_name(tmp_path):
    """Each folder has an image.png, and the folders lie elsewhere than the names say."""
    make(tmp_path, *(f'deep/{n}/image.png' for n in range(300)))
    names = [f'{n}/image.png' for n in range(300)]
    located = file_names.locate(names, [tmp_path], [tmp_path])
    assert [files for files, _ in located.values()] == [[str(tmp_path / 'deep' / name)] for name in names]


@pytest.mark.parametrize(
    ('name', 'hint'),
    [
        ('b/A.png', 'b/a.png is there, with other letter case'),
        ('b/a.jpeg', 'b/a.png is there, with another suffix'),
        ('b/other.png', ''),
        ('absent/a.png', ''),
        ('b/c.png', ''),
        ('nul\0/a.png', ''),
    ],
)
def test_similar_file(name, hint, tmp_path):
    make(tmp_path, 'b/a.png', 'b/c.txt')
    assert file_names.similar_file(name, tmp_path) == hint


def test_storable_and_escaped_names():
    assert file_names.storable('\xe9\udce9') == '\xe9\\udce9'
    assert file_names.escaped('a\xe9\udce9\u732b') == r'a\xe9\udce9\u732b'
