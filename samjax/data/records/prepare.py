"""A set in any layout -> ArrayRecord: shards over processes or Beam, resumable, with progress and a report."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import fcntl
import io
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

from samjax.data.formats.dataset_index import DatasetIndex
from samjax.data.records.builder import Builder, folder_below
from samjax.data.records.shard_writer import Task, Written
from samjax.distributed.workers import attach
from samjax.errors import SamjaxError

REPORT = 'report.json'  # beside the records: counts, what was left out, and why
NAMES = 'images.txt'  # beside the records: the images that are in, in their order


class Beam(NamedTuple):
    """Where a pipeline of Apache Beam runs."""

    runner: str  # DirectRunner, DataflowRunner, SparkRunner, FlinkRunner, ..
    options: list[str]  # of the runner, such as --project=..


class Report(NamedTuple):
    """What preparation found, kept, and left out by cause."""

    path: str
    layout: str
    digest: str
    share: float
    found: int  # images
    kept: int
    masks: int
    bad: dict[str, list[str]]  # cause -> places with details
    no_masks: list[str]  # places
    left_out: dict[str, int]  # masks by cause

    @property
    def bad_images(self) -> int:
        return sum(map(len, self.bad.values()))

    @property
    def unused(self) -> dict[str, list[str]]:
        """Places of all images left out, by cause."""
        return self.bad | ({'no masks': self.no_masks} if self.no_masks else {})

    @classmethod
    def read(cls, folder: Path) -> Report:
        return cls(**json.loads((folder / REPORT).read_text()))

    def check(self, max_invalid_fraction: float, whole: float = 1.0) -> None:
        """Raises SamjaxError if more images are bad than `max_invalid_fraction` of a set `whole` times as large as this."""
        if self.bad_images <= max_invalid_fraction * self.found * whole:
            return
        cause, places = next(iter(self.bad.items()))
        raise SamjaxError(
            f'{self.path}: {self.bad_images} of {self.found} images are bad ({self.summary()}), more than '
            f'data.max_invalid_fraction = {max_invalid_fraction:g} allows; the first is {places[0]} ({cause}); '
            'mend or remove such files, or raise data.max_invalid_fraction'
        )

    def summary(self) -> str:
        """Of the images left out, such as '2 invalid JSON, 1 no masks'."""
        return ', '.join(f'{len(places)} {cause}' for cause, places in self.unused.items())


def prepare(
    found: DatasetIndex,
    path: str,
    out: Path,
    *,
    max_invalid_fraction: float,
    share: float = 1.0,
    workers: int | None = None,
    beam: Beam | None = None,
) -> tuple[Path, Report]:
    """Writes a set below `out`, unless it is there; goes on where an interrupted call stopped.

    path: of the set, for people; max_invalid_fraction: of the images, how many may be unusable before preparation stops;
    share: of the images taken, by a hash of the name; workers: processes on this machine, None is one for each core.
    Returns the folder of the TFDS set and the report beside its records.
    Raises SamjaxError if too many images are bad, none is good, the disk is full, `out` holds another set, a worker
    is killed, or Beam is asked for and not installed.
    """
    folder, work = folder_below(out), out / 'unfinished'
    with _lock(out):
        if folder.exists():
            report = Report.read(folder)
            if (report.digest, report.share) != (found.digest, share):
                raise SamjaxError(f'{out} holds another set, or another state of {report.path}: choose another folder')
        else:
            _start(work, found, share)
            report = _prepare(found, path, out, work, max_invalid_fraction, share, workers, beam)
        shutil.rmtree(work, ignore_errors=True)
    report.check(max_invalid_fraction)  # an earlier preparation may have been told to accept more
    return folder, report


def _start(work: Path, found: DatasetIndex, share: float) -> None:
    """An empty folder, or what an interrupted preparation of the same set finished."""
    stamp = json.dumps([found.digest, share, [shard.key for shard in found.shards]])
    with contextlib.suppress(FileNotFoundError):
        if (work / 'set.json').read_text() != stamp:
            shutil.rmtree(work)
    work.mkdir(exist_ok=True)
    (work / 'set.json').write_text(stamp)
    for stale in (*work.glob('*.part'), *work.glob('*.progress')):
        stale.unlink()
    for stale in work.parent.glob('*/*incomplete*'):
        shutil.rmtree(stale)


def _prepare(found, path, out, work, max_invalid_fraction, share, workers, beam) -> Report:
    tasks = [Task(shard, str(work / f'{n:05d}'), share) for n, shard in enumerate(found.shards)]
    total = sum(shard.weight for shard in found.shards)
    done: dict[str, Written] = {}
    report = _report(found, path, share, ())
    with Progress(f'preparing {path}', tasks):
        for task, written in _run(tasks, workers or os.cpu_count(), beam):
            done[task.stem] = written
            finished = [task for task in tasks if task.stem in done]
            report = _report(found, path, share, (done[task.stem] for task in finished))
            report.check(max_invalid_fraction, total / sum(task.shard.weight for task in finished))
    if not report.kept:
        first = next(iter(report.unused.values()), None)
        why = f' ({report.summary()}; the first is {first[0]})' if first else ''
        raise SamjaxError(
            f'{path}: none of the {report.found} images found can be used{why}; '
            'training needs images that each have at least one mask'
        )
    names = ''.join(f'{name}\n' for task in tasks for name in done[task.stem].names)
    files = {REPORT: json.dumps(report._asdict(), indent=1), NAMES: names}
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download
        written = [(task.records, done[task.stem]) for task in tasks]
        Builder(data_dir=out, shards=written, files=files).download_and_prepare(download_dir=work)
    return report


def _report(found: DatasetIndex, path: str, share: float, written: Iterable[Written]) -> Report:
    report = Report(path, found.layout, found.digest, share, 0, 0, 0, {}, [], collections.Counter())
    images = kept = masks = 0
    for shard in written:
        images, kept, masks = images + shard.found, kept + len(shard.names), masks + shard.masks
        report.left_out.update(shard.left_out)
        report.no_masks.extend(shard.no_masks)
        for cause, place in shard.bad:
            report.bad.setdefault(cause, []).append(place)
    return report._replace(found=images, kept=kept, masks=masks)


def _run(tasks: Sequence[Task], workers: int, beam: Beam | None) -> Iterator[tuple[Task, Written]]:
    """Each task with its result, as they get finished."""
    if beam is not None:
        _run_beam(tasks, beam)
    elif min(workers, len(tasks)) > 1:
        yield from _run_processes(tasks, workers)
        return
    for task in tasks:
        yield task, task.write()


def _run_processes(tasks: Sequence[Task], workers: int) -> Iterator[tuple[Task, Written]]:
    spawn = multiprocessing.get_context('spawn')  # JAX may be running here, and does not survive a fork
    pool = concurrent.futures.ProcessPoolExecutor(min(workers, len(tasks)), spawn, initializer=attach)
    before = multiprocessing.active_children()
    try:
        futures = {pool.submit(task.write): task for task in tasks}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise SamjaxError(
            'a process that prepared data was killed, as the system does for want of memory: run the same command '
            'again to go on, with fewer --workers if it comes again'
        ) from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - set(before):
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _run_beam(tasks: Sequence[Task], where: Beam) -> None:
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise SamjaxError('Apache Beam is not installed: pip install apache-beam') from None
    with beam.Pipeline(where.runner, PipelineOptions(where.options)) as pipeline:
        shards = pipeline | beam.Create(tasks) | beam.Reshuffle()  # each to a worker of its own
        shards | beam.Map(lambda task: len(task.write().names))


class Progress:
    """Images, rate and time left on one line of stderr, from what shards note; silent at first."""

    def __init__(self, title: str, tasks: Sequence[Task]):
        self.title, self.tasks = title, tasks
        self.weight = sum(task.shard.weight for task in tasks) or 1.0
        self.terminal = sys.stderr.isatty()
        self.interval = 1.0 if self.terminal else 60.0  # s; a log file gets few lines
        self._finished: dict[str, int] = {}  # stem -> images
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> None:
        self._before, self._start = self._look(), time.monotonic()
        self._thread.start()

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()

    def line(self) -> str:
        """Such as '1200 images, 35.0/s, 40 %, 0:00:51 left'."""
        images, share = self._look()
        seconds = time.monotonic() - self._start
        rate = (images - self._before[0]) / seconds
        text = f'{self.title}: {images} images, {rate:.1f}/s, {share:.0%}'
        if share > self._before[1]:
            left = int((1 - share) * seconds / (share - self._before[1]))
            text += f', {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left'
        return text

    def _look(self) -> tuple[int, float]:
        """Images done, and the share of the whole work that this is."""
        images = weight = 0
        # One look into the folder instead of two files opened for each of a thousand shards that have not begun.
        notes = {entry.name for task in self.tasks[:1] for entry in os.scandir(os.path.dirname(task.stem))}
        for task in self.tasks:
            name, share = os.path.basename(task.stem), 0.0
            if task.stem not in self._finished and f'{name}.json' in notes:
                self._finished[task.stem] = task.written().found
            if task.stem in self._finished:
                done, share = self._finished[task.stem], 1.0
            elif f'{name}.progress' in notes:
                done, of = task.progress()
                share = done / of if of else 0.0
            else:
                continue
            images += done
            weight += task.shard.weight * share
        return images, weight / self.weight

    def _show(self) -> None:
        shown = False
        while not self._ended.wait(self.interval):
            sys.stderr.write(f'\r{self.line()}\x1b[K' if self.terminal else f'{self.line()}\n')
            sys.stderr.flush()
            shown = True
        if shown and self.terminal:
            sys.stderr.write('\n')


@contextlib.contextmanager
def _lock(out: Path):
    """Only one process at a time prepares `out`; the others wait."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / 'lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise SamjaxError(f'{out} cannot be locked ({error}): choose a disk with file locks') from error
        yield
