import base64
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samjax.errors import SamjaxError
from samjax.evaluation.report import html
from samjax.evaluation.report.html import Facts, Figure, Gallery, Table

VOID = ('meta', 'link', 'img')  # elements without an end
SCRIPT = '<script>alert("1" & \'2\')</script>'


class Report(HTMLParser):
    """A report as a browser reads it; elements that do not nest are an error."""

    def __init__(self, path: Path):
        super().__init__()
        self.text = path.read_text(encoding='utf-8')
        self.open, self.tags, self.words = [], [], []
        self.feed(self.text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != 'style' and data.strip():
            self.words.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    def texts(self, tag: str) -> list[str]:
        return [text for name, text in self.words if name == tag]


@pytest.fixture
def png(tmp_path):
    file = tmp_path / 'a.png'
    Image.fromarray(np.arange(300, dtype=np.uint16).astype(np.uint8).reshape(10, 10, 3)).save(file)
    return file


def write(tmp_path, *sections, title='suite: run', subtitle='step 90') -> Report:
    html.write(tmp_path / 'report.html', title, subtitle, sections)
    return Report(tmp_path / 'report.html')


def every_kind(file: Path, text: str) -> list:
    return [
        Table(text, [text, 'n'], [[text, 1]], text),
        Figure(text, file, text),
        Gallery(text, [(text, file)]),
        Facts(text, {text: text, 'list': [text], 'short': {text: text}, 'long': {text: {text: [text]}}}),
    ]


def test_every_text_is_escaped(tmp_path, png):
    result = write(tmp_path, *every_kind(png, SCRIPT), title=SCRIPT, subtitle=SCRIPT)
    assert '<script' not in result.text
    assert result.texts('h1') == result.texts('title') == [SCRIPT]
    assert result.texts('h2') == result.texts('a') == [SCRIPT] * 4
    assert result.texts('p') == [SCRIPT] * 3
    assert result.texts('th') == [SCRIPT, 'n', SCRIPT]
    assert result.texts('span') == [SCRIPT]
    assert result.texts('dt').count(SCRIPT) == 2
    assert [image['alt'] for image in result.all('img')] == [SCRIPT] * 2
    assert result.texts('pre')[0].count('<script>') == 3


def test_elements_nest_and_ids_are_unique(tmp_path, png):
    result = write(tmp_path, *every_kind(png, 'a'), Table('b', ['c'], []), Facts('d', {}), Gallery('e', []))
    ids = [attributes['id'] for _, attributes in result.tags if 'id' in attributes]
    assert len(ids) == len(set(ids)) == 7


def test_contents_link_to_the_sections(tmp_path):
    result = write(tmp_path, *(Facts(name, {}) for name in 'abc'))
    assert [link['href'] for link in result.all('a')] == [f'#{section["id"]}' for section in result.all('section')]
    assert result.texts('a') == result.texts('h2') == ['a', 'b', 'c']


def test_report_without_sections(tmp_path):
    result = write(tmp_path)
    assert result.texts('h1') == ['suite: run']
    assert not result.all('nav')


def test_report_needs_no_other_file(tmp_path, png):
    result = write(tmp_path, *every_kind(png, 'a'))
    assert not re.search(r'https?://|@import|url\(', result.text)
    assert not result.all('script')
    for _, attributes in result.tags:
        for name in ('src', 'href'):
            assert attributes.get(name, 'data:').startswith(('data:', '#'))
    linked = write(tmp_path, Facts('a', {'source': 'https://example.org'}))
    assert linked.text.count('https://') == 1
    assert not linked.all('a')


def test_numbers_are_formatted_and_at_the_right(tmp_path):
    row = ['sam', 14121, 0.61251, math.nan, None, np.float32(2 / 3), np.int64(-1000), math.inf]
    result = write(tmp_path, Table('a', list('abcdefgh'), [row, ['flood', *range(7)]]))
    assert result.texts('td')[:7] == ['14,121', '0.613', '–', '–', '0.667', '-1,000', '–']
    assert [cell.get('class') for cell in result.all('td')] == ['number'] * 14
    heads = [cell.get('class') for cell in result.all('th') if cell['scope'] == 'col']
    assert heads == [None] + ['number'] * 7


def test_column_of_text_is_at_the_left(tmp_path):
    result = write(tmp_path, Table('a', ['b', 'c'], [['sam', 'x'], ['flood', None]]))
    assert [cell.get('class') for cell in result.all('td')] == [None, None]


def test_row_of_another_length_than_the_header_is_an_error(tmp_path):
    table = Table('a', ['b', 'c'], [['sam']])
    with pytest.raises(ValueError, match='zip'):
        write(tmp_path, table)
    with pytest.raises(ValueError, match='zip'):
        html.markdown([table])


def test_images_are_embedded_once_byte_for_byte(tmp_path, png):
    other = tmp_path / 'b.png'
    Image.new('RGB', (640, 480), 'red').save(other)
    result = write(tmp_path, Figure('f', png), Gallery('g', [('one', other), ('two', png)]))
    data = [image['src'].removeprefix('data:image/png;base64,') for image in result.all('img')]
    assert [base64.b64decode(encoded, validate=True) for encoded in data] == [
        png.read_bytes(),
        other.read_bytes(),
        png.read_bytes(),
    ]
    assert result.texts('span') == ['one', 'two']


def test_short_dict_is_shown_and_a_nested_one_is_json(tmp_path):
    config = {'model': {'size': [1024, 1024], 'names': ['a  b', 'c']}, 'lr': 8e-4}
    result = write(tmp_path, Facts('a', {'data': {'path': 'x'}, 'config': config, 'seeds': [1, 2], 'on': True}))
    assert result.texts('dt') == ['data', 'path', 'config', 'seeds', 'on']
    assert result.texts('dd') == ['x', '[1, 2]', 'true']
    assert result.texts('summary') == ['2 entries']
    assert '"size": [1024, 1024],' in result.texts('pre')[0]
    assert '"a  b"' in result.texts('pre')[0]


def test_fact_of_any_type_is_shown(tmp_path):
    result = write(
        tmp_path, Facts('a', {'path': Path('/x'), 'none': None, 'empty': {}, 'deep': {'a': {'b': Path('y')}}})
    )
    assert result.texts('dd') == ['/x', '–', '{}']
    assert '"b": "y"' in result.texts('pre')[0]


@pytest.mark.parametrize('kind', [lambda file: Figure('f', file), lambda file: Gallery('g', [('c', file)])])
def test_missing_image_is_an_error_and_writes_no_report(tmp_path, kind):
    with pytest.raises(SamjaxError, match=r'the image .*none\.png does not exist: run the evaluation again$'):
        write(tmp_path, kind(tmp_path / 'none.png'))
    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_leaves_the_earlier_report(tmp_path, monkeypatch):
    write(tmp_path, title='earlier')

    def fill_disk(self, data):
        with open(self, 'wb') as file:
            file.write(b'<!DOC')
        raise OSError('disk is full')

    monkeypatch.setattr(Path, 'write_bytes', fill_disk)
    with pytest.raises(OSError, match='disk is full'):
        write(tmp_path, title='later')
    assert [file.name for file in tmp_path.iterdir()] == ['report.html']
    assert Report(tmp_path / 'report.html').texts('h1') == ['earlier']


def test_markdown_tables():
    rows = [['sam', 0.61251, 14121, 'a|b'], ['flood', math.nan, None, None]]
    first = Table('Mean IoU', ['', 'miou@1', 'masks', 'from'], rows, 'A note.')
    assert html.markdown([first, Table('Absent', ['set'], [])]) == (
        '### Mean IoU\n'
        '\n'
        '|       | miou@1 |  masks | from |\n'
        '| ----- | -----: | -----: | ---- |\n'
        '| sam   |  0.613 | 14,121 | a\\|b |\n'
        '| flood |      - |      - | -    |\n'
        '\n'
        'A note.\n'
        '\n'
        '### Absent\n'
        '\n'
        '| set |\n'
        '| --- |\n'
    )
