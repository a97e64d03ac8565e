"""A data set in any format -> ArrayRecord: shards over processes or Beam, resumable, with progress and a report."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import io
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

from samjax.data.formats.causes import Causes
from samjax.data.formats.dataset_index import DatasetIndex
from samjax.data.formats.read_options import DEFAULT, ReadOptions
from samjax.data.records.builder import ObjectMasks, dataset_folder
from samjax.data.records.shard_writer import ShardResult, ShardTask
from samjax.distributed.workers import initialize_worker
from samjax.errors import SamjaxError, reason
from samjax.storage import atomic
from samjax.storage.lock import wait_for_lock
from samjax.storage.progress import Progress

REPORT = 'report.json'  # beside the records: counts, and which images were left out and why
PREPARE_AGAIN = 'remove the folder, and prepare the data set again'
NAMES = 'images.txt'  # beside the records: names of the images, in their order
# Names that fields of report.json had before version 0.2
OLD_FIELDS = {
    'share': 'fraction',
    'found': 'num_images',
    'kept': 'num_kept',
    'masks': 'num_masks',
    'bad': 'invalid',
    'left_out': 'skipped_masks',
}


class Beam(NamedTuple):
    """Where a pipeline of Apache Beam runs."""

    runner: str  # DirectRunner, DataflowRunner, SparkRunner, FlinkRunner, ..
    options: list[str]  # of the runner, such as --project=..


class PreparationReport(NamedTuple):
    """The images and masks of a data set that were kept, and those that were left out, by cause."""

    path: str
    layout: str  # the format, for messages
    digest: str  # of the data set that was prepared
    fraction: float  # of its images that were taken
    num_images: int  # that were taken, invalid ones too
    num_kept: int  # images in the records
    num_masks: int  # masks in the records
    invalid: dict[str, list[str]]  # cause -> locations of images, with details
    no_masks: list[str]  # locations of images
    skipped_masks: Causes = Causes()
    warnings: Causes = Causes()  # what was read, and may not be what was meant
    ignored: Causes = Causes()  # files at the path that are not read, by what they are
    images_by_layout: dict[str, int] = {}  # see `DatasetIndex`
    read_as: dict[str, int] = {}  # how mask files were interpreted -> number of files
    num_scaled: int = 0  # images of more than 8 bits per channel that were scaled to 8
    options: dict[str, object] = {}  # how the data set was read, see `ReadOptions`, where that is not the default

    @property
    def num_invalid(self) -> int:
        return sum(map(len, self.invalid.values()))

    @property
    def dropped(self) -> dict[str, list[str]]:
        """Locations of all images that were left out, by cause."""
        return self.invalid | ({'no masks': self.no_masks} if self.no_masks else {})

    @property
    def fingerprint(self) -> str:
        """Identifies what the records were made of."""
        return f'{self.digest} {self.fraction:g}'

    @classmethod
    def read(cls, folder: Path) -> PreparationReport:
        """The report beside the records in `folder`.  Raises SamjaxError if it is missing or damaged."""
        try:
            report = cls._from_json(json.loads((folder / REPORT).read_text()))
            report._check_fields()
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise SamjaxError(
                f'{folder / REPORT} is not what this version of `samjax data prepare` writes ({reason(error)}): '
                f'{PREPARE_AGAIN}'
            ) from error
        return report

    @classmethod
    def _from_json(cls, fields: dict) -> PreparationReport:
        fields = {OLD_FIELDS.get(name, name): value for name, value in fields.items()}
        for name in ('skipped_masks', 'warnings', 'ignored'):
            counts = fields.get(name, {}).items()
            causes = {cause: value if isinstance(value, list) else (value, '') for cause, value in counts}
            fields[name] = Causes()
            fields[name].add_all(causes)
        return cls(**fields)

    def _check_fields(self) -> None:
        """Raises ValueError, TypeError or AttributeError if a field has another type or the numbers do not add up."""
        causes = [*self.skipped_masks.items(), *self.warnings.items(), *self.ignored.items()]
        causes = [(cause, *value) for cause, value in causes]
        texts = [self.path, self.layout, self.digest, *self.invalid]
        texts += [*self.read_as, *self.images_by_layout, *self.options]
        texts += [location for locations in self.dropped.values() for location in [*locations]]
        texts += [text for cause, _, example in causes for text in (cause, example)]
        counts = [self.num_images, self.num_kept, self.num_masks, self.num_scaled, *self.read_as.values()]
        counts += [*self.images_by_layout.values(), *(count for _, count, _ in causes)]
        wrong = [text for text in texts if type(text) is not str]
        wrong += [count for count in counts if type(count) is not int or count < 0]
        wrong += [self.fraction] * (type(self.fraction) not in (int, float))
        if wrong:
            raise ValueError(f'{str(wrong[0])[:40]!r} in a field of another kind')
        if self.num_kept + self.num_invalid + len(self.no_masks) != self.num_images:
            raise ValueError('its numbers of images do not add up')

    def check(self, max_invalid_fraction: float, scale: float = 1.0) -> None:
        """Checks the number of invalid images.

        scale: size of the whole data set relative to what has been read so far.

        Raises:
            SamjaxError: there are more than `max_invalid_fraction` of the whole data set.
        """
        if self.num_invalid <= max_invalid_fraction * self.num_images * scale:
            return
        cause, locations = next(iter(self.invalid.items()))
        raise SamjaxError(
            f'{self.path}: {self.num_invalid} of {self.num_images} images are invalid ({self.summary()}), more than '
            f'data.max_invalid_fraction = {max_invalid_fraction:g} allows; the first is {locations[0]} ({cause}); '
            'fix or remove such files, or raise data.max_invalid_fraction'
        )

    def summary(self) -> str:
        """Of the images that were left out, such as '2 invalid JSON, 1 no masks'."""
        return ', '.join(f'{len(locations)} {cause}' for cause, locations in self.dropped.items())

    def reason(self) -> str:
        """Why no image can be used: causes of images and of masks with counts, the first of each with its location."""
        images = [f'{len(locations)} {cause}, such as {locations[0]}' for cause, locations in self.dropped.items()]
        texts = ['images left out: ' + '; '.join(images)] * bool(images)
        texts += ['masks left out: ' + '; '.join(self.skipped_masks.lines())] * bool(self.skipped_masks)
        return '. '.join(texts)


def prepare(
    index: DatasetIndex,
    path: str,
    out: Path,
    *,
    max_invalid_fraction: float,
    fraction: float = 1.0,
    num_workers: int | None = None,
    beam: Beam | None = None,
    options: ReadOptions = DEFAULT,
) -> tuple[Path, PreparationReport]:
    """Writes a data set below `out`, unless it is there; continues an interrupted preparation.

    path: of the data set, for messages; max_invalid_fraction: of the images, above which preparation stops; fraction:
    of the images to be taken, chosen by a hash of their names; num_workers: processes on this machine, None is one for
    each core; options: with which the index was opened.
    Returns the folder of the TFDS data set and the report beside its records.

    Raises:
        SamjaxError: too many images are invalid, none is valid, the disk is full, `out` holds another data set, a
            worker is killed, or Beam is wanted and not installed.
    """
    folder, work = dataset_folder(out), out / 'unfinished'
    with wait_for_lock(out):
        if folder.exists():
            report = PreparationReport.read(folder)
            if (report.digest, report.fraction) != (index.digest, fraction):
                raise SamjaxError(
                    f'{out} holds another data set, or another state of {report.path}: choose another folder'
                )
        else:
            _open_work_folder(work, index, fraction)
            report = _prepare(index, path, out, work, max_invalid_fraction, fraction, num_workers, beam, options)
        shutil.rmtree(work, ignore_errors=True)
    report.check(max_invalid_fraction)  # an earlier preparation may have allowed more
    return folder, report


def _open_work_folder(work: Path, index: DatasetIndex, fraction: float) -> None:
    """Makes an empty folder, or keeps the finished shards of an interrupted preparation of the same data set."""
    fingerprint = json.dumps(
        {'digest': index.digest, 'fraction': fraction, 'shards': [shard.key for shard in index.shards]}
    )
    with contextlib.suppress(FileNotFoundError):
        if (work / 'set.json').read_text() != fingerprint:
            shutil.rmtree(work)
    work.mkdir(exist_ok=True)
    atomic.write_text(work / 'set.json', fingerprint)
    for stale in (*work.glob('*.part'), *work.glob('*.progress')):
        stale.unlink()
    for stale in work.parent.glob('*/*incomplete*'):
        shutil.rmtree(stale)


def _prepare(index, path, out, work, max_invalid_fraction, fraction, num_workers, beam, options) -> PreparationReport:
    tasks = [ShardTask(shard, str(work / f'{n:05d}'), fraction, options.image) for n, shard in enumerate(index.shards)]
    total = sum(shard.weight for shard in index.shards)
    results: dict[str, ShardResult] = {}
    empty = PreparationReport(
        path, index.layout, index.digest, fraction, 0, 0, 0, {}, [],
        warnings=index.warnings, ignored=index.ignored, images_by_layout=dict(index.images_by_layout),
        options=options.changes,
    )  # fmt: skip
    report = _report(empty, ())
    with _show_progress(f'preparing {path}', tasks):
        for task, result in _run(tasks, num_workers or os.cpu_count(), beam):
            results[task.stem] = result
            finished = [task for task in tasks if task.stem in results]
            report = _report(empty, (results[task.stem] for task in finished))
            report.check(max_invalid_fraction, total / sum(task.shard.weight for task in finished))
    if not report.num_kept:
        reason = f' ({report.reason()})' if report.dropped else ''
        raise SamjaxError(
            f'{path}: none of its {report.num_images} images can be used{reason}; '
            'training needs images that each have at least one mask'
        )
    # A line is a name, so that the line number is the index of the record.
    names = ''.join(f'{" ".join(name.splitlines())}\n' for task in tasks for name in results[task.stem].names)
    texts = {REPORT: json.dumps(report._asdict(), indent=1), NAMES: names}
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download
        shards = [(task.records, results[task.stem]) for task in tasks]
        ObjectMasks(data_dir=out, shards=shards, texts=texts).download_and_prepare(download_dir=work)
    return report


def _report(empty: PreparationReport, results: Iterable[ShardResult]) -> PreparationReport:
    report = empty._replace(
        invalid={}, no_masks=[], skipped_masks=Causes(), warnings=Causes(empty.warnings), read_as=collections.Counter()
    )
    num_images = num_kept = num_masks = num_scaled = 0
    for result in results:
        num_images += result.num_images
        num_kept += len(result.names)
        num_masks += result.num_masks
        num_scaled += result.num_scaled
        report.skipped_masks.add_all(result.skipped_masks)
        report.warnings.add_all(result.warnings)
        report.read_as.update(result.read_as)
        report.no_masks.extend(result.no_masks)
        for cause, location in result.invalid:
            report.invalid.setdefault(cause, []).append(location)
    return report._replace(num_images=num_images, num_kept=num_kept, num_masks=num_masks, num_scaled=num_scaled)


# ---- processes -------------------------------------------------------------------------------------


def _run(tasks: Sequence[ShardTask], num_workers: int, beam: Beam | None) -> Iterator[tuple[ShardTask, ShardResult]]:
    """Each task with its result, in the order in which they finish."""
    if beam is not None:
        _run_beam(tasks, beam)
    elif min(num_workers, len(tasks)) > 1:
        yield from _run_processes(tasks, num_workers)
        return
    for task in tasks:
        yield task, task.write()


def _run_processes(tasks: Sequence[ShardTask], num_workers: int) -> Iterator[tuple[ShardTask, ShardResult]]:
    spawn = multiprocessing.get_context('spawn')  # JAX may be running here, and does not survive a fork
    pool = concurrent.futures.ProcessPoolExecutor(min(num_workers, len(tasks)), spawn, initializer=initialize_worker)
    before = multiprocessing.active_children()
    try:
        futures = {pool.submit(task.write): task for task in tasks}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise SamjaxError(
            'a process that prepared data was killed, probably because memory ran out: run the same command again to '
            'continue, with a smaller --num-workers if this happens again'
        ) from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - set(before):
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _run_beam(tasks: Sequence[ShardTask], beam_options: Beam) -> None:
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise SamjaxError('Apache Beam is not installed: pip install apache-beam') from None
    with beam.Pipeline(beam_options.runner, PipelineOptions(beam_options.options)) as pipeline:
        shards = pipeline | beam.Create(tasks) | beam.Reshuffle()  # each to a worker of its own
        shards | beam.Map(lambda task: len(task.write().names))


# ---- progress --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _show_progress(title: str, tasks: Sequence[ShardTask]) -> Iterator[None]:
    """Shows images, rate and time left on stderr while the tasks run in any process of any machine."""
    state = WorkState(tasks)
    count, fraction = state.measure()
    ended = threading.Event()
    with Progress(title, count=count, fraction=fraction) as progress:

        def show():
            while not ended.wait(progress.interval):
                progress.update(*state.measure())

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class WorkState:
    """How much of the tasks is done, according to their files in the work folder."""

    def __init__(self, tasks: Sequence[ShardTask]):
        self._tasks = tasks
        self._weight = sum(task.shard.weight for task in tasks) or 1.0
        self._finished: dict[str, int] = {}  # stem -> images

    def measure(self) -> tuple[int, float]:
        """Number of images done, and the fraction of the whole work that this is."""
        images = weight = 0
        # Listing the folder once spares opening two files for each of perhaps a thousand shards that have not begun.
        files = {entry.name for task in self._tasks[:1] for entry in os.scandir(os.path.dirname(task.stem))}
        for task in self._tasks:
            name, fraction = os.path.basename(task.stem), 0.0
            if task.stem not in self._finished and f'{name}.json' in files:
                self._finished[task.stem] = task.result().num_images
            if task.stem in self._finished:
                done, fraction = self._finished[task.stem], 1.0
            elif f'{name}.progress' in files:
                done, total = task.progress()
                fraction = done / total if total else 0.0
            else:
                continue
            images += done
            weight += task.shard.weight * fraction
        return images, weight / self._weight
