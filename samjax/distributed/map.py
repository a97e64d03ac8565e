"""The same question about each of many images: shared out over devices and processes, and never asked twice."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from samjax.distributed import processes

SHOWN = 5.0  # s between lines of progress
UNFINISHED = 'unfinished'  # folder, beside what a task writes, of what it has found so far


def choose(length: int, limit: int, rng: np.random.Generator) -> list[int]:
    """`limit` of `length` numbers in order, at random, or all if `limit` is 0."""
    if not limit or limit >= length:
        return list(range(length))
    return sorted(rng.permutation(length)[:limit].tolist())


class ResultJournal:
    """Answers by the number of the image, written down as they come; whoever is killed goes on where it was.

    folder: on a disk that all processes see; stamp: what the answers depend on, for JSON: if it is another one than
    before, what is there is dropped.  Answers are whatever JSON can hold.
    """

    def __init__(self, folder: Path, stamp: dict):
        self._folder = folder
        text = json.dumps(stamp, sort_keys=True)
        if jax.process_index() == 0:
            if not (folder / 'stamp.json').exists() or (folder / 'stamp.json').read_text() != text:
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / 'stamp.json').write_text(text)
        processes.all_gather_objects(None)  # nobody reads before that is done,
        self.answers = {}
        for file in sorted(folder.glob('process_*.jsonl')):
            *lines, cut = file.read_text().split('\n')  # the last is empty, or was cut off
            for line in lines:
                place, answer = json.loads(line)
                self.answers[place] = answer
            if cut and file == self._file:
                file.write_text(''.join(f'{line}\n' for line in lines))
        processes.all_gather_objects(None)  # or writes before all have read
        self._lock = threading.Lock()

    @property
    def _file(self) -> Path:
        return self._folder / f'process_{jax.process_index()}.jsonl'

    def add(self, place: int, answer) -> None:
        with self._lock:
            self.answers[place] = answer
            with open(self._file, 'a') as file:
                file.write(json.dumps([place, answer]) + '\n')


def distributed_map(
    count: int, workers: Sequence[Callable[[int], object]], title: str, journal: ResultJournal | None = None
) -> list:
    """The answers about images 0 .. count - 1, in order; every process gets all.

    workers: functions of the number of an image that work at the same time, one for each device of this process.
    Raises whatever an worker does.
    """
    found = dict(journal.answers) if journal else {}
    open_places = [place for place in range(count) if place not in found]
    mine = open_places[jax.process_index() :: jax.process_count()]
    progress = _Progress(title, len(mine))
    places, errors, lock = iter(mine), [], threading.Lock()

    def work(ask):
        while not errors:
            with lock:
                place = next(places, None)
            if place is None:
                return
            try:
                answer = ask(place)
                with lock:
                    found[place] = answer
                    if journal:
                        journal.add(place, answer)
                    progress.step()
            except BaseException as error:  # told by the main thread
                errors.append(error)
                return

    threads = [threading.Thread(target=work, args=(ask,), daemon=True) for ask in workers]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:  # Ctrl-C: the images that are being asked about are lost
        errors.append(error)
        raise
    if errors:
        raise errors[0]
    everyone = dict(itertools.chain.from_iterable(processes.all_gather_objects(list(found.items()))))
    return [everyone[place] for place in range(count)]


class _Progress:
    """One line on stderr: images done, rate, time left."""

    def __init__(self, title: str, images: int):
        self._title, self._images, self._done = title, images, 0
        self._start = self._shown = time.monotonic()

    def step(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._shown < SHOWN and self._done < self._images:
            return
        self._shown = now
        rate = self._done / max(now - self._start, 1e-9)
        left = math.ceil((self._images - self._done) / rate)
        end = '\r' if sys.stderr.isatty() and self._done < self._images else '\n'
        print(
            f'{self._title}: {self._done}/{self._images} images, {rate:.2f} images/s, '
            f'{left // 60}:{left % 60:02d} left ',
            end=end,
            file=sys.stderr,
            flush=True,
        )
