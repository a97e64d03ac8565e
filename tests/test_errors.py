"""Messages are one line that any terminal shows, whatever damaged files put into them."""

import pickle

import pytest

from samjax.errors import InvalidExample, SamjaxError, printable, reason


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('x.jpg is damaged (ü): copy it', 'x.jpg is damaged (ü): copy it'),
        ('a\n  b\r\nc', 'a b c'),
        ('a  b', 'a  b'),
        ('x\x1b[2J\x00\x7f\t', r'x\x1b[2J\x00\x7f\t'),
        ('bytes \udcff and half a character \ud800', r'bytes \udcff and half a character \ud800'),
        ('cannot identify <_io.BytesIO object at 0x7f2c5d3a4310>', 'cannot identify <_io.BytesIO object>'),
        ('damaged at 0x7f of the file', 'damaged at 0x7f of the file'),
    ],
)
def test_messages(text, expected):
    assert printable(text) == str(SamjaxError(text)) == expected
    error = InvalidExample('unreadable image', text)
    assert (error.cause, error.detail) == ('unreadable image', expected)
    expected.encode()


def test_errors_are_the_same_after_a_process_sent_them():
    error = pickle.loads(pickle.dumps(SamjaxError('x\ny')))
    assert str(error) == 'x y'
    error = pickle.loads(pickle.dumps(InvalidExample('cause', 'x\0')))
    assert (error.cause, error.detail) == ('cause', r'x\x00')


def test_reasons_of_libraries():
    assert reason(ValueError('bad checksum')) == 'bad checksum'
    assert reason(AssertionError()) == 'AssertionError'
    assert reason(ValueError('x' * 1000)) == 'x' * 300 + ' ..'
