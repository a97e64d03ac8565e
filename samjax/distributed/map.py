"""A function applied to each of many images, distributed over devices and processes; no result is computed twice."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from samjax.distributed import processes
from samjax.storage import atomic
from samjax.storage.progress import Progress

UNFINISHED = 'unfinished'  # name of the folder of a journal, beside what a task writes
FINGERPRINT = 'fingerprint.json'  # in it


def choose_subset(length: int, limit: int, rng: np.random.Generator) -> list[int]:
    """`limit` of the indices 0 .. length - 1 at random, in ascending order; all if `limit` is 0."""
    if not limit or limit >= length:
        return list(range(length))
    return sorted(rng.permutation(length)[:limit].tolist())


class ResultJournal:
    """Results by image index, each written to disk as soon as it is there, so that an interrupted run can go on.

    Results are whatever JSON can hold; `results` has all of them, those of earlier runs too.
    """

    def __init__(self, folder: Path, fingerprint: dict):
        """Every process calls this at the same time.

        folder: on a disk that all processes see; fingerprint: what the results depend on, for JSON: if it is not that
        of the results in `folder`, these are removed.
        """
        self._folder = folder
        if jax.process_index() == 0:
            text = json.dumps(fingerprint, sort_keys=True)
            if self.read_fingerprint(folder) != json.loads(text):
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            atomic.write_text(folder / FINGERPRINT, text)
        processes.all_gather_objects(None)  # none reads before that is done,
        self.results = {}
        for file in sorted(folder.glob('process_*.jsonl')):
            *lines, rest = file.read_text().split('\n')  # the rest is empty, or a line that was cut off
            for line in lines:
                index, result = json.loads(line)
                self.results[index] = result
            if rest and file == self._file:
                file.write_text(''.join(f'{line}\n' for line in lines))
        processes.all_gather_objects(None)  # or writes before all have read
        self._lock = threading.Lock()

    @staticmethod
    def read_fingerprint(folder: Path) -> dict | None:
        """That of the results in `folder`, None if there are none."""
        try:
            return json.loads((folder / FINGERPRINT).read_text())
        except FileNotFoundError:
            return None

    @property
    def _file(self) -> Path:
        return self._folder / f'process_{jax.process_index()}.jsonl'

    def add(self, index: int, result) -> None:
        """Writes the result of an image; any thread may call this."""
        with self._lock:
            self.results[index] = result
            with open(self._file, 'a') as file:
                file.write(json.dumps([index, result]) + '\n')


def distributed_map(
    count: int, workers: Sequence[Callable[[int], object]], title: str, journal: ResultJournal | None = None
) -> list:
    """The results of images 0 .. count - 1, in order; every process gets all.

    workers: functions of an image index that run at the same time, in a thread each, such as one for each device of
    this process; title: of the progress line.
    An error of a worker is raised here, after the other workers have finished the image that they are at.
    """
    results = dict(journal.results) if journal else {}
    missing = [index for index in range(count) if index not in results]
    of_process = missing[jax.process_index() :: jax.process_count()]
    indices, errors, lock = iter(of_process), [], threading.Lock()
    done = itertools.count(1)

    def run(worker: Callable[[int], object]) -> None:
        while not errors:
            with lock:
                index = next(indices, None)
            if index is None:
                return
            try:
                result = worker(index)
                with lock:
                    results[index] = result
                    if journal:
                        journal.add(index, result)
                    progress.update(next(done))
            except BaseException as error:  # raised by the main thread
                errors.append(error)
                return

    threads = [threading.Thread(target=run, args=(worker,), daemon=True) for worker in workers]
    with Progress(title, len(of_process)) as progress:
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:  # Ctrl-C: the images that the workers are at are lost
            errors.append(error)
            raise
    if errors:
        raise errors[0]
    by_index = dict(itertools.chain.from_iterable(processes.all_gather_objects(list(results.items()))))
    return [by_index[index] for index in range(count)]
