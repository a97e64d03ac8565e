import sys

import pytest

from samjax.storage import progress
from samjax.storage.progress import Progress, format_duration


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    return now


def test_a_log_file_gets_a_line_each_minute_and_the_last_one(clock, capsys):
    with Progress('embeddings', 4) as line:
        for count, seconds in enumerate((10, 60, 61, 80), 1):
            clock[0] = 100.0 + seconds
            line.update(count)
    assert capsys.readouterr().err == (
        'embeddings: 2/4 images, 0.03 images/s, 1 min 00 s left\nembeddings: 4/4 images, 0.05 images/s, 0 s left\n'
    )


def test_a_terminal_has_one_line_which_is_ended(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    with Progress('x', 3, 'files') as line:
        line.update(1)
        for count in (1, 2):
            clock[0] += 1
            line.update(count)
    shown = capsys.readouterr().err
    assert shown == '\rx: 1/3 files, 1.00 files/s, 2 s left\x1b[K\rx: 2/3 files, 1.00 files/s, 1 s left\x1b[K\n'


def test_short_work_is_silent(clock, capsys):
    with Progress('x') as line:
        line.update(5, 0.5)
    assert capsys.readouterr().err == ''


def test_rate_and_time_left_leave_out_what_was_done_before(clock):
    line = Progress('preparing x', count=100, fraction=0.2)
    assert line.line(100, 0.2) == 'preparing x: 100 images, 0.00 images/s, 20%'
    clock[0] += 10
    assert line.line(350, 0.4) == 'preparing x: 350 images, 25.0 images/s, 40%, 30 s left'


def test_total_rate_and_time_left_after_a_resume(clock):
    line = Progress('x', 40, count=10, fraction=0.25)
    assert line.line(10) == 'x: 10/40 images, 0.00 images/s'
    clock[0] += 5
    assert line.line(20) == 'x: 20/40 images, 2.00 images/s, 10 s left'
    clock[0] += 10
    assert line.line(40) == 'x: 40/40 images, 2.00 images/s, 0 s left'


@pytest.mark.parametrize(
    ('seconds', 'text'), [(0.4, '0 s'), (59.6, '1 min 00 s'), (62, '1 min 02 s'), (3723, '1 h 02 min')]
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text
