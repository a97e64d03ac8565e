"""The training input: sources of `Example`s -> endless, shuffled, batched `Batch`es through Grain.

Batch s is made of the images s * batch, s * batch + 1, .. of one endless stream (epoch after epoch,
each shuffled anew), and what is sampled from an image depends on its place in that stream.  So the
data depend on the seed and the step alone: not on worker or process counts, nor on interruptions.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import weakref
from collections.abc import Sequence

import grain
import jax
import numpy as np
from absl import flags

from samjax.data.example import Example
from samjax.data.records.source import Source, open_source
from samjax.data.synthetic import Scenes
from samjax.data.transforms import FLIPS, sample_example
from samjax.errors import SamjaxError
from samjax.masks import packing
from samjax.structs import Batch

PATIENCE = 0.5  # s between looks at workers that let training wait
SLOW = 60  # s of waiting that are worth a line
ATTEMPTS = 3  # to read a batch whose workers died
ENDLESS = 2**48  # images; Grain's own endless repetition cannot be cut into batches of one


def open_set(
    path: str,
    *,
    seed: int,
    image_size: tuple[int, int],
    length: int,
    cache: str | os.PathLike,
    max_invalid_fraction: float,
) -> Scenes | Source:
    """`length` drawn scenes of `image_size` if `path` is 'scenes', else the images below `path`."""
    if path == 'scenes':
        return Scenes(seed, length, image_size)
    return open_source(path, cache, max_invalid_fraction)


def train_loader(
    sources: Sequence[tuple[Sequence[Example], float]],
    *,
    seed: int,
    frame: tuple[int, int],
    batch: int,
    max_objects: int,
    max_area: float,
    flip: str,
    jitter: tuple[float, float],
    workers: int,
    prefetch: int,
    process_index: int | None = None,
    process_count: int | None = None,
) -> Batches:
    """This process's share of each global batch, as numpy arrays: rows of process 0 come first.

    sources: with weights: of how many images of one with weight 1 an image is worth, so with weight 10 each is shown 10
    times as often; frame: (height, width) in px; batch: images per step over all processes; max_objects, max_area,
    flip, jitter: see `sample_example`; workers: loader processes, 0 reads in a thread of this one; prefetch:
    batches that each worker keeps ready.  The process defaults to what JAX says.
    Raises SamjaxError if the batch cannot be shared out evenly, nothing would be prefetched, or the weights, flip or
    jitter make no sense.
    """
    process_index = jax.process_index() if process_index is None else process_index
    process_count = jax.process_count() if process_count is None else process_count
    if batch < 1 or batch % process_count:
        raise SamjaxError(
            f'train.batch_size is {batch}, it must be a positive multiple of the {process_count} processes'
        )
    if prefetch < 1:
        raise SamjaxError(f'data.prefetch is {prefetch}, it must be at least 1')
    if flip not in FLIPS:
        raise SamjaxError(f'data.flip {flip!r} is not known: set it to one of {", ".join(FLIPS)}')
    if len(jitter) != 2 or not 0 < jitter[0] <= jitter[1]:
        raise SamjaxError(
            f'data.scale_jitter {jitter} is not (least, greatest) size: (1.0, 1.0) is none, (0.1, 2.0) usual'
        )
    if not all(weight > 0 for _, weight in sources):
        raise SamjaxError(f'the weights in data.mix are {[weight for _, weight in sources[1:]]}, they must be over 0')
    sample = functools.partial(
        _sample, frame=frame, max_objects=max_objects, max_area=max_area, flip=flip, jitter=jitter
    )
    stream = _mixed(sources, seed).random_map(sample)
    batches = stream.batch(batch // process_count, batch_fn=_stack)[process_index::process_count]
    return Batches(batches, workers, prefetch)


def _mixed(sources: Sequence[tuple[Sequence[Example], float]], seed: int) -> grain.MapDataset:
    """One endless stream; each source goes through epochs of its own."""

    def endless(source, seed):
        return grain.MapDataset.source(source).seed(seed).shuffle().repeat(ENDLESS // len(source) + 1)

    if len(sources) == 1:
        return endless(sources[0][0], seed)
    streams = [endless(source, (seed + n) % 2**32) for n, (source, _) in enumerate(sources)]
    return grain.MapDataset.mix(streams, [weight * len(source) for source, weight in sources]).seed(seed)


class Batches(grain.DatasetIterator):
    """Iterator over a Grain dataset of batches; its state is the number of batches taken.

    Grain's own state of several workers fits no other number of workers; this one does.
    """

    def __init__(self, batches: grain.MapDataset, workers: int, prefetch: int):
        super().__init__()
        self._batches = batches
        self._workers, self._prefetch = workers, prefetch
        self._taken = 0
        self._readers = []  # the one at work, if any
        self._others, self._processes = [], []  # processes that are not its workers, and those that are
        weakref.finalize(self, _close, self._readers)  # at exit too, while Grain still can

    def __next__(self) -> Batch:
        """Raises SamjaxError if a worker dies again and again at the same batch."""
        for attempt in range(ATTEMPTS):
            self.start_prefetch()
            try:
                batch = self._wait()
            except _WorkerDied as died:
                for worker in self._processes:
                    worker.kill()
                self._readers.clear()  # closing it might wait for the dead, too
                print(f'warning: {died}; starts them again (attempt {attempt + 1})', file=sys.stderr, flush=True)
                continue
            self._meet()
            self._taken += 1
            return batch._replace(packed_masks_BNVW=packing.to_dense(batch.packed_masks_BNVW))
        raise SamjaxError(
            f'data workers died {ATTEMPTS} times at batch {self._taken}: the system ends processes for want of memory, '
            f'so lower --config.data.num_workers or --config.data.prefetch'
        )

    def _wait(self) -> Batch:
        """The next batch; says so when it takes long, and finds out if it will never come.

        Grain notices a dead worker, unless it died while it held the lock of its queue: then Grain waits for ever.
        """
        answer, begun, told = _ask(self._readers[0]), time.monotonic(), 0
        while True:
            try:
                batch, error = answer.get(timeout=PATIENCE)
                if error is None:
                    return batch
                if 'terminated unexpectedly' not in str(error):
                    raise error
            except queue.Empty:
                pass
            self._meet()
            dead = [worker for worker in self._processes if not worker.is_alive()]
            if dead:
                raise _WorkerDied(f'{len(dead)} of {len(self._processes)} data workers died ({_cause(dead[0])})')
            waited = int(time.monotonic() - begun)
            if waited >= told + SLOW:
                told = waited
                print(
                    f'warning: batch {self._taken} is not there after {waited} s: is the storage slow, or are there '
                    f'too few data.num_workers?',
                    file=sys.stderr,
                    flush=True,
                )

    def _meet(self) -> None:
        """Notes who the workers are: Grain starts them in its own time, and whoever died is found nowhere."""
        known = self._others + self._processes
        self._processes += [child for child in multiprocessing.active_children() if child not in known]

    def get_state(self) -> dict[str, int]:
        return {'taken': self._taken}

    def set_state(self, state: dict[str, int]) -> None:
        self.close()
        self._taken = state['taken']

    def start_prefetch(self) -> None:
        if not self._readers:
            self._others, self._processes = multiprocessing.active_children(), []
            self._readers.append(iter(self._read(self._batches[self._taken :])))
            self._readers[0].start_prefetch()

    def close(self) -> None:
        """Ends the workers; the next batch would start them again."""
        while self._readers:
            self._readers.pop().close()

    def _read(self, batches: grain.MapDataset) -> grain.IterDataset:
        if self._workers == 0:
            return batches.to_iter_dataset(grain.ReadOptions(1, self._prefetch))
        if not flags.FLAGS.is_parsed():  # outside of train.py; Grain asks for a flag of its own
            flags.FLAGS.mark_as_parsed()
        # Pipes, not shared memory: containers have little of that (a worker that runs out dies by a
        # signal) and an interrupted run would leave it occupied.
        pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        read = batches.to_iter_dataset(grain.ReadOptions(0, 0))
        read = grain.experimental.WithOptionsIterDataset(read, pipes)
        options = grain.MultiprocessingOptions(self._workers, self._prefetch)
        return read.mp_prefetch(options, worker_init_fn=_deafen)


class _WorkerDied(Exception):
    pass


def _ask(reader) -> queue.SimpleQueue:
    """A place for (next batch, None) or (None, error) of `reader`; who looks there need not wait."""
    place = queue.SimpleQueue()

    def take():
        try:
            place.put((next(reader), None))
        except Exception as error:
            place.put((None, error))

    threading.Thread(target=take, daemon=True).start()
    return place


def _cause(worker: multiprocessing.Process) -> str:
    code = worker.exitcode
    return f'by signal {signal.Signals(-code).name}' if code and code < 0 else f'with exit code {code}'


def _deafen(index: int, count: int) -> None:
    """Ctrl-C goes to every process of a terminal, SIGTERM may go to every process of a job: training acts on them."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _close(readers: list) -> None:
    while readers:
        readers.pop().close()


def _sample(example: Example, rng: np.random.Generator, **options) -> Batch:
    return sample_example(example, rng=rng, **options)


def _stack(rows: list[Batch]) -> Batch:
    """Rows as one batch, its masks `Sparse`."""
    batch = Batch(*map(np.stack, zip(*rows, strict=True)))
    return batch._replace(packed_masks_BNVW=packing.to_sparse(batch.packed_masks_BNVW))
