"""Each image is computed once, however many workers and processes there are and however often they are interrupted."""

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from samjax.distributed import map
from samjax.distributed.map import ResultJournal, choose_subset, distributed_map


def compute(index):
    return {'square': index * index, 'half': index / 2}


def test_subset_is_in_order_and_reproducible():
    assert choose_subset(5, 0, np.random.default_rng(0)) == choose_subset(5, 9, None) == [0, 1, 2, 3, 4]
    subset = choose_subset(100, 10, np.random.default_rng(0))
    assert subset == sorted(set(subset)) == choose_subset(100, 10, np.random.default_rng(0))
    assert len(subset) == 10


def test_results_come_in_order():
    assert distributed_map(5, [compute], 'compute') == [compute(index) for index in range(5)]
    assert distributed_map(0, [compute], 'compute') == []


def test_workers_run_at_the_same_time_and_divide_the_images():
    barrier, computed = threading.Barrier(3, timeout=10), []

    def slow(index):
        if index < 3:
            barrier.wait()  # fails unless three run at once
        computed.append(index)
        return index

    assert distributed_map(20, [slow] * 3, 'compute') == list(range(20))
    assert sorted(computed) == list(range(20))


def test_error_of_a_worker_is_raised_and_earlier_results_stay(tmp_path):
    def fail(index):
        if index == 3:
            raise ValueError('no such image')
        return index

    with pytest.raises(ValueError, match='no such image'):
        distributed_map(5, [fail], 'compute', ResultJournal(tmp_path / 'l', {}))
    computed = []
    results = distributed_map(
        5, [lambda index: computed.append(index) or index], 'compute', ResultJournal(tmp_path / 'l', {})
    )
    assert results == [0, 1, 2, 3, 4]
    assert computed == [3, 4]


def test_another_fingerprint_removes_earlier_results(tmp_path):
    distributed_map(3, [compute], 'compute', ResultJournal(tmp_path / 'l', {'checkpoint': 'a'}))
    assert len(ResultJournal(tmp_path / 'l', {'checkpoint': 'a'}).results) == 3
    assert ResultJournal(tmp_path / 'l', {'checkpoint': 'b'}).results == {}
    assert ResultJournal(tmp_path / 'l', {'checkpoint': 'a'}).results == {}


def test_line_that_was_cut_off_does_not_count(tmp_path):
    distributed_map(3, [compute], 'compute', ResultJournal(tmp_path / 'l', {}))
    file = tmp_path / 'l' / 'process_0.jsonl'
    file.write_text(file.read_text()[:-5])
    journal = ResultJournal(tmp_path / 'l', {})
    assert sorted(journal.results) == [0, 1]
    journal.add(2, compute(2))
    assert ResultJournal(tmp_path / 'l', {}).results == {index: compute(index) for index in range(3)}


def _compute_and_note(folder, seconds):
    def slow(index):
        time.sleep(seconds)
        with open(Path(folder) / 'computed', 'a') as file:
            file.write(f'{index}\n')
        return compute(index)

    results = distributed_map(40, [slow] * 2, 'compute', ResultJournal(Path(folder) / 'l', {}))
    (Path(folder) / 'results').write_text(json.dumps(results))


def test_killed_and_run_again_gives_the_same_and_computes_nothing_twice(tmp_path):
    spawn = multiprocessing.get_context('spawn')
    process = spawn.Process(target=_compute_and_note, args=(tmp_path, 0.1))
    process.start()
    while not (tmp_path / 'computed').exists() or len((tmp_path / 'computed').read_text().split()) < 6:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    _compute_and_note(tmp_path, 0)
    assert json.loads((tmp_path / 'results').read_text()) == [compute(index) for index in range(40)]
    computed = (tmp_path / 'computed').read_text().split()
    assert set(computed) == {str(index) for index in range(40)}
    assert len(computed) <= 42  # two may have been noted by the worker and not yet by the journal


@pytest.mark.parametrize('count', [2, 3])
def test_processes_divide_what_is_left_whatever_their_number_was(tmp_path, monkeypatch, count):
    distributed_map(4, [compute], 'compute', ResultJournal(tmp_path / 'l', {}))  # one process, images 0 .. 3
    gathered, computed = [], []
    monkeypatch.setattr(jax, 'process_count', lambda: count)
    for process in range(count):
        monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
        monkeypatch.setattr(map.processes, 'all_gather_objects', lambda mine: [mine])
        journal = ResultJournal(tmp_path / 'l', {})
        journal.results = {index: result for index, result in journal.results.items() if index < 4}
        monkeypatch.setattr(
            map.processes,
            'all_gather_objects',
            lambda mine: gathered.append(mine) or [[(index, 0) for index in range(11)]],
        )
        distributed_map(11, [lambda index: computed.append(index) or compute(index)], 'compute', journal)
    assert sorted(computed) == list(range(4, 11))
    monkeypatch.setattr(map.processes, 'all_gather_objects', lambda mine: gathered)
    journal = ResultJournal(tmp_path / 'l', {})
    assert distributed_map(11, [None], 'compute', journal) == [compute(index) for index in range(11)]
    assert len(list((tmp_path / 'l').glob('process_*.jsonl'))) == count


def test_progress(capsys):
    distributed_map(3, [compute], 'evaluate sam')
    line = capsys.readouterr().err.strip().split('\n')[-1]
    assert line.startswith('evaluate sam: 3/3 images, ')
    assert line.endswith('images/s, 0 s left')


@pytest.mark.parametrize('before', [0, 4, 9])
def test_progress_of_a_continued_run_counts_what_is_left(tmp_path, capsys, monkeypatch, before):
    """Every image at its time: the totals, the rate and the time left are of the images that this call computes."""
    now = [100.0]
    monkeypatch.setattr(map.Progress, 'update', lambda self, count: lines.append(self.line(count)))
    monkeypatch.setattr('samjax.storage.progress.time.monotonic', lambda: now[0])
    lines = []

    def two_seconds(index):
        now[0] += 2
        return index

    distributed_map(before, [two_seconds], 'x', ResultJournal(tmp_path / 'l', {}))
    lines.clear()
    distributed_map(10, [two_seconds], 'x', ResultJournal(tmp_path / 'l', {}))
    left = 10 - before
    assert lines[0] == f'x: 1/{left} images, 0.50 images/s, {2 * (left - 1)} s left'
    assert lines[-1] == f'x: {left}/{left} images, 0.50 images/s, 0 s left'
    assert len(lines) == left


def test_progress_of_processes_counts_the_images_of_each(tmp_path, capsys, monkeypatch):
    distributed_map(4, [compute], 'x', ResultJournal(tmp_path / 'l', {}))
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    for process, images in ((0, 4), (1, 3)):  # of the seven that are left
        monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
        monkeypatch.setattr(map.processes, 'all_gather_objects', lambda mine: [mine])
        journal = ResultJournal(tmp_path / 'l', {})
        journal.results = {index: result for index, result in journal.results.items() if index < 4}
        monkeypatch.setattr(map.processes, 'all_gather_objects', lambda mine: [[(index, 0) for index in range(11)]])
        capsys.readouterr()
        distributed_map(11, [compute], 'x', journal)
        assert capsys.readouterr().err.startswith(f'x: {images}/{images} images, ')
