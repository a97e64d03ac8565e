"""The training input: sources of `Example`s -> endless, shuffled `Batch`es through Grain.

Batch s consists of the images s * batch_size, s * batch_size + 1, .. of an endless stream (epoch after
epoch, each shuffled anew), and what is sampled from an image depends on its index in that stream.  So the
data depend on the seed and the step alone: not on worker or process counts, nor on interruptions.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import grain
import jax
import numpy as np
from absl import flags

from samjax.data.example import Example
from samjax.data.formats.read_options import DEFAULT, ReadOptions
from samjax.data.records.source import RecordSource, open_records
from samjax.data.synthetic import Scenes
from samjax.data.transforms import SampledExample, Sampling, sample_example
from samjax.errors import SamjaxError, check_option
from samjax.masks import packing
from samjax.structs import Batch

POLL_INTERVAL = 0.5  # s between checks of the workers while a batch is awaited
WARNING_INTERVAL = 60  # s of waiting between warnings
MAX_ATTEMPTS = 3  # to read a batch whose workers died
ENDLESS = 2**48  # images; Grain's own endless repetition has no batches of a single image


def open_dataset(
    path: str,
    *,
    seed: int,
    image_size: tuple[int, int],
    length: int,
    cache: str | os.PathLike,
    max_invalid_fraction: float,
    options: ReadOptions = DEFAULT,
) -> Scenes | RecordSource:
    """`length` synthetic scenes of `image_size` (H, W) if `path` is 'scenes', else the images of a data set on disk.

    cache, max_invalid_fraction, options: see `open_records`.

    Raises:
        SamjaxError: a value is not possible, or see `open_records`.
    """
    check_option(
        'data.max_invalid_fraction', max_invalid_fraction, lambda x: 0 <= x <= 1, 'a fraction of the images, 0 to 1'
    )
    if path == 'scenes':
        return Scenes(seed, length, image_size)
    return open_records(path, cache, max_invalid_fraction, options)


def train_loader(
    sources: Sequence[tuple[Sequence[Example], float]],
    *,
    sampling: Sampling,
    seed: int,
    batch_size: int,
    num_workers: int,
    prefetch: int,
    process_index: int | None = None,
    process_count: int | None = None,
) -> Batches:
    """This process's rows of each global batch, as numpy arrays: rows of process 0 come first.

    sources: with weights: with weight 10 each image is shown 10 times as often as one of a source with weight 1;
    batch_size: images per step over all processes; num_workers: loader processes, 0 reads in a thread of this one;
    prefetch: batches that each worker keeps ready.  The process defaults to JAX's.

    Raises:
        SamjaxError: the batch size is no multiple of the processes, or the weights, the number of workers or of
            batches that are prefetched, or the seed are not possible.
    """
    process_index = jax.process_index() if process_index is None else process_index
    process_count = jax.process_count() if process_count is None else process_count
    if batch_size < 1 or batch_size % process_count:
        raise SamjaxError(
            f'train.batch_size is {batch_size}, it must be a positive multiple of the {process_count} processes'
        )
    check_loading(seed, num_workers, prefetch, [weight for _, weight in sources[1:]])
    stream = _mixed(sources, seed).random_map(functools.partial(_sample, sampling=sampling))
    batches = stream.batch(batch_size // process_count, batch_fn=_stack)[process_index::process_count]
    return Batches(batches, num_workers, prefetch)


def check_loading(seed: int, num_workers: int, prefetch: int, mix_weights: Sequence[float]) -> None:
    """Raises SamjaxError if an option of `train_loader` is not possible; can be called before the sources are open."""
    check_option('seed', seed, lambda n: 0 <= n < 2**32, '0 or more, less than 2^32')
    check_option('data.num_workers', num_workers, lambda n: n >= 0, '0 or more')
    check_option('data.prefetch', prefetch, lambda n: n >= 1, 'at least 1')
    check_option(
        'the list of weights in data.mix',
        list(mix_weights),
        lambda weights: all(0 < weight < math.inf for weight in weights),
        'numbers over 0',
    )


def _mixed(sources: Sequence[tuple[Sequence[Example], float]], seed: int) -> grain.MapDataset:
    """An endless stream of examples; each source has epochs of its own."""

    def endless(source, seed):
        return grain.MapDataset.source(source).seed(seed).shuffle().repeat(ENDLESS // len(source) + 1)

    if len(sources) == 1:
        return endless(sources[0][0], seed)
    streams = [endless(source, (seed + n) % 2**32) for n, (source, _) in enumerate(sources)]
    return grain.MapDataset.mix(streams, [weight * len(source) for source, weight in sources]).seed(seed)


class SparseBatch(NamedTuple):
    """A `Batch` with its masks without zeros, as data workers send it to the training process."""

    image_BHW3: np.ndarray
    sparse_masks: packing.SparseArray  # of packed_masks_BNVW
    valid_BN: np.ndarray
    size_B2: np.ndarray

    def to_batch(self) -> Batch:
        return Batch(self.image_BHW3, packing.to_dense(self.sparse_masks), self.valid_BN, self.size_B2)


class Batches(grain.DatasetIterator):
    """Iterator over a Grain dataset of batches; its state is the number of batches taken.

    Grain's own state of several workers fits no other number of workers; this one does.
    """

    def __init__(self, batches: grain.MapDataset, num_workers: int, prefetch: int):
        super().__init__()
        self._batches = batches
        self._num_workers, self._prefetch = num_workers, prefetch
        self._taken = 0
        self._readers = []  # the active one, if any
        self._others, self._workers = [], []  # child processes that are not its workers, and those that are
        weakref.finalize(self, _close, self._readers)  # at exit too, while Grain still can

    def __next__(self) -> Batch:
        """Raises SamjaxError if a worker dies repeatedly at the same batch."""
        for attempt in range(MAX_ATTEMPTS):
            self.start_prefetch()
            try:
                batch = self._wait()
            except _WorkerDied as error:
                for worker in self._workers:
                    worker.kill()
                self._readers.clear()  # closing it might wait for the dead, too
                print(f'warning: {error}; starts them again (attempt {attempt + 1})', file=sys.stderr, flush=True)
                continue
            self._note_workers()
            self._taken += 1
            return batch.to_batch()
        raise SamjaxError(
            f'data workers died {MAX_ATTEMPTS} times at batch {self._taken}, probably because memory ran out: lower '
            '--config.data.num_workers or --config.data.prefetch'
        )

    def _wait(self) -> SparseBatch:
        """The next batch; warns when it takes long, and raises _WorkerDied if it will never come.

        Grain notices a dead worker, unless it died while it held the lock of its queue: then Grain waits for ever.
        """
        results, start, warned = _read_in_thread(self._readers[0]), time.monotonic(), 0
        while True:
            try:
                batch, error = results.get(timeout=POLL_INTERVAL)
                if error is None:
                    return batch
                if 'terminated unexpectedly' not in str(error):
                    raise error
            except queue.Empty:
                pass
            self._note_workers()
            dead = [worker for worker in self._workers if not worker.is_alive()]
            if dead:
                raise _WorkerDied(f'{len(dead)} of {len(self._workers)} data workers died ({_cause(dead[0])})')
            waited = int(time.monotonic() - start)
            if waited >= warned + WARNING_INTERVAL:
                warned = waited
                print(
                    f'warning: batch {self._taken} is not there after {waited} s: is the storage slow, or are there '
                    f'too few data.num_workers?',
                    file=sys.stderr,
                    flush=True,
                )

    def _note_workers(self) -> None:
        """Adds new child processes to the workers: Grain starts them late, and a dead one is not listed any more."""
        known = self._others + self._workers
        self._workers += [child for child in multiprocessing.active_children() if child not in known]

    def get_state(self) -> dict[str, int]:
        return {'taken': self._taken}

    def set_state(self, state: dict[str, int]) -> None:
        self.close()
        self._taken = state['taken']

    def start_prefetch(self) -> None:
        if not self._readers:
            self._others, self._workers = multiprocessing.active_children(), []
            self._readers.append(iter(self._read(self._batches[self._taken :])))
            self._readers[0].start_prefetch()

    def close(self) -> None:
        """Ends the workers; the next batch would start them again."""
        _close(self._readers)

    def _read(self, batches: grain.MapDataset) -> grain.IterDataset:
        if self._num_workers == 0:
            return batches.to_iter_dataset(grain.ReadOptions(1, self._prefetch))
        # Grain reads a flag of its own from absl's global flags when it starts workers.  absl refuses that until a
        # command line has been parsed into them, which samjax never does.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # Pipes, not shared memory: containers have little of that (a worker that runs out of it is killed by a
        # signal), and an interrupted run would leave it occupied.
        pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        read = batches.to_iter_dataset(grain.ReadOptions(0, 0))
        read = grain.experimental.WithOptionsIterDataset(read, pipes)
        options = grain.MultiprocessingOptions(self._num_workers, self._prefetch)
        return read.mp_prefetch(options, worker_init_fn=_ignore_signals)


class _WorkerDied(Exception):
    pass


def _read_in_thread(reader) -> queue.SimpleQueue:
    """A queue that will hold (next batch, None) or (None, error) of `reader`, so that waiting for it can be limited."""
    results = queue.SimpleQueue()

    def read():
        try:
            results.put((next(reader), None))
        except Exception as error:
            results.put((None, error))

    threading.Thread(target=read, daemon=True).start()
    return results


def _cause(worker: multiprocessing.Process) -> str:
    code = worker.exitcode
    return f'by signal {signal.Signals(-code).name}' if code and code < 0 else f'with exit code {code}'


def _ignore_signals(index: int, count: int) -> None:
    """Ctrl-C goes to every process of a terminal, SIGTERM may go to every process of a job: training handles them."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _close(readers: list) -> None:
    while readers:
        readers.pop().close()


def _sample(example: Example, rng: np.random.Generator, sampling: Sampling) -> SampledExample:
    return sample_example(example, sampling, rng)


def _stack(rows: list[SampledExample]) -> SparseBatch:
    image_BHW3, packed_masks_BNVW, valid_BN, size_B2 = map(np.stack, zip(*rows, strict=True))
    return SparseBatch(image_BHW3, packing.to_sparse(packed_masks_BNVW), valid_BN, size_B2)
