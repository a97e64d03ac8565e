"""Every reader with 200 damaged files: each is read, counted or refused in a sentence, and nothing changes silently.

    PYTHONPATH=.:tests/support python tests/support/damage.py FOLDER SEED COUNT [READER ..]

tries others and keeps the files with faults.
"""

import json
import random
import warnings

import damage
import numpy as np
import pytest
from damage import COUNTED, DIFFERENT, EQUAL, REFUSED, Fault, Reader, Reading
from readers import READERS

from samjax.errors import InvalidExample, SamjaxError

SEED = 0
COUNT = 200


@pytest.mark.parametrize('name', READERS)
def test_damaged_files(name, tmp_path):
    outcomes = dict(damage.attempts(READERS[name], tmp_path / 'input', SEED, COUNT))
    assert len(outcomes) == COUNT
    faults = {number: outcome for number, outcome in outcomes.items() if outcome.startswith('FAULT')}
    assert not faults, '\n'.join(f'{number}: {outcome}' for number, outcome in faults.items())
    assert {COUNTED, REFUSED} & set(outcomes.values())


# ---- what is a fault -------------------------------------------------------------------------------


def raising(error):
    def read(folder):
        raise error

    return read


def warning(folder):
    warnings.warn('as pillow does', stacklevel=1)
    return Reading('a')


def hanging(folder):
    while True:
        try:
            while True:
                pass
        except Exception:  # as readers do
            continue


def reading(content, *counted):
    return lambda folder: Reading(content, counted)


@pytest.mark.parametrize(
    ('read', 'expected'),
    [
        (reading('a'), EQUAL),
        (reading('b'), DIFFERENT),
        (reading('a', 'wrong size: x.png: it has 3 x 4 px'), COUNTED),
        (raising(SamjaxError('x.png is damaged (crc): copy it again')), REFUSED),
        (raising(InvalidExample('wrong size', 'it has 3 x 4 px')), REFUSED),
    ],
)
def test_outcomes(read, expected, tmp_path):
    assert damage.outcome(Reader(None, read), tmp_path, Reading('a')) == expected


@pytest.mark.parametrize(
    ('read', 'reason'),
    [
        (raising(KeyError('images')), "KeyError: 'images'"),
        (raising(SystemExit(1)), 'SystemExit'),
        (warning, 'UserWarning: as pillow does'),
        (lambda folder: np.empty(2**40), 'MemoryError'),
        (raising(InvalidExample('unreadable image', '')), 'no reason'),
        (raising(SamjaxError('x.png cannot be read (): copy it again')), 'no reason'),
        (raising(SamjaxError('x' * 2000)), 'too long'),
        (reading('a', 'unreadable image: <BytesIO object at 0x7f2c>'), 'the address of an object'),
        (reading('a', 'unreadable image: x\ny'), 'several lines'),
        (reading('a', 'unreadable image: x\x1b[2J'), 'control characters'),
        (reading('a', 'unreadable image: x\ud800'), 'half a character'),
    ],
)
def test_faults(read, reason, tmp_path):
    with pytest.raises(Fault, match=reason):
        damage.outcome(Reader(None, read), tmp_path, Reading('a'))


def test_hanging_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(damage, 'SECONDS', 1)
    with pytest.raises(Fault, match='takes more than 1 s'):
        damage.outcome(Reader(None, hanging), tmp_path, Reading('a'))


def test_silent_change_of_a_file_with_a_checksum_is_a_fault(tmp_path):
    with pytest.raises(Fault, match='content changed without a word'):
        damage.outcome(Reader(None, reading('b'), has_checksum=True), tmp_path, Reading('a'))


def test_damage_is_of_many_kinds_and_repeatable():
    text = json.dumps({'images': [{'id': 1, 'size': [3, 4]}], 'name': 'x'})

    def damaged(suffix):
        return [damage.damaged(text.encode(), random.Random(number), suffix) for number in range(300)]

    assert damaged('.json') == damaged('.json')
    assert len(set(damaged('.json'))) > 200
    assert len(set(damaged('.png'))) > 200
    valid = []
    for data in damaged('.json'):
        try:
            valid.append(json.loads(data))
        except (ValueError, RecursionError):
            continue
    assert 100 < len(valid) < 250
    assert any(len(data) < len(text) / 2 for data in damaged('.png'))
    assert any(len(data) > len(text) for data in damaged('.png'))
