"""Each image is asked about once, whoever shares the work and however often it is interrupted."""

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import jax
import pytest

from samjax.distributed import map
from samjax.distributed.map import ResultJournal


def ask(place):
    return {'square': place * place, 'half': place / 2}


def test_answers_come_in_order():
    assert map.distributed_map(5, [ask], 'ask') == [ask(place) for place in range(5)]
    assert map.distributed_map(0, [ask], 'ask') == []


def test_askers_work_at_the_same_time_and_share_the_images():
    meeting, asked = threading.Barrier(3, timeout=10), []

    def slow(place):
        if place < 3:
            meeting.wait()  # fails unless three ask at once
        asked.append(place)
        return place

    assert map.distributed_map(20, [slow] * 3, 'ask') == list(range(20))
    assert sorted(asked) == list(range(20))


def test_error_of_an_asker_is_raised_and_what_was_found_stays(tmp_path):
    def fail(place):
        if place == 3:
            raise ValueError('no such image')
        return place

    with pytest.raises(ValueError, match='no such image'):
        map.distributed_map(5, [fail], 'ask', ResultJournal(tmp_path / 'l', {}))
    asked = []
    answers = map.distributed_map(
        5, [lambda place: asked.append(place) or place], 'ask', ResultJournal(tmp_path / 'l', {})
    )
    assert answers == [0, 1, 2, 3, 4]
    assert asked == [3, 4]


def test_another_stamp_drops_what_was_found(tmp_path):
    map.distributed_map(3, [ask], 'ask', ResultJournal(tmp_path / 'l', {'checkpoint': 'a'}))
    assert len(ResultJournal(tmp_path / 'l', {'checkpoint': 'a'}).answers) == 3
    assert ResultJournal(tmp_path / 'l', {'checkpoint': 'b'}).answers == {}
    assert ResultJournal(tmp_path / 'l', {'checkpoint': 'a'}).answers == {}


def test_line_that_was_cut_off_does_not_count(tmp_path):
    map.distributed_map(3, [ask], 'ask', ResultJournal(tmp_path / 'l', {}))
    file = tmp_path / 'l' / 'process_0.jsonl'
    file.write_text(file.read_text()[:-5])
    journal = ResultJournal(tmp_path / 'l', {})
    assert sorted(journal.answers) == [0, 1]
    journal.add(2, ask(2))
    assert ResultJournal(tmp_path / 'l', {}).answers == {place: ask(place) for place in range(3)}


def _ask_and_note(folder, seconds):
    def slowly(place):
        time.sleep(seconds)
        with open(Path(folder) / 'asked', 'a') as file:
            file.write(f'{place}\n')
        return ask(place)

    answers = map.distributed_map(40, [slowly] * 2, 'ask', ResultJournal(Path(folder) / 'l', {}))
    (Path(folder) / 'answers').write_text(json.dumps(answers))


def test_killed_and_run_again_gives_the_same_and_asks_nothing_twice(tmp_path):
    spawn = multiprocessing.get_context('spawn')
    process = spawn.Process(target=_ask_and_note, args=(tmp_path, 0.1))
    process.start()
    while not (tmp_path / 'asked').exists() or len((tmp_path / 'asked').read_text().split()) < 6:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    _ask_and_note(tmp_path, 0)
    assert json.loads((tmp_path / 'answers').read_text()) == [ask(place) for place in range(40)]
    asked = (tmp_path / 'asked').read_text().split()
    assert set(asked) == {str(place) for place in range(40)}
    assert len(asked) <= 42  # two may have been noted by the worker and not yet by the journal


@pytest.mark.parametrize('processes', [2, 3])
def test_processes_share_what_is_left_whatever_their_number_was(tmp_path, monkeypatch, processes):
    map.distributed_map(4, [ask], 'ask', ResultJournal(tmp_path / 'l', {}))  # one process, images 0 .. 3
    found, asked = [], []
    monkeypatch.setattr(jax, 'process_count', lambda: processes)
    for process in range(processes):
        monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
        monkeypatch.setattr(map.cluster, 'gather', lambda mine: [mine])
        journal = ResultJournal(tmp_path / 'l', {})
        journal.answers = {place: answer for place, answer in journal.answers.items() if place < 4}
        monkeypatch.setattr(
            map.cluster, 'gather', lambda mine: found.append(mine) or [[(place, 0) for place in range(11)]]
        )
        map.distributed_map(11, [lambda place: asked.append(place) or ask(place)], 'ask', journal)
    assert sorted(asked) == list(range(4, 11))
    monkeypatch.setattr(map.cluster, 'gather', lambda mine: found)
    assert map.distributed_map(11, [None], 'ask', ResultJournal(tmp_path / 'l', {})) == [
        ask(place) for place in range(11)
    ]
    assert len(list((tmp_path / 'l').glob('process_*.jsonl'))) == processes


def test_progress(capsys):
    map.distributed_map(3, [ask], 'evaluate sam')
    line = capsys.readouterr().err.strip().split('\n')[-1]
    assert line.startswith('evaluate sam: 3/3 images, ')
    assert line.endswith('images/s, 0:00 left')
