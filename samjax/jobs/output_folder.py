"""A folder of files about many images: each file appears whole, one command writes at a time, and it can be resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import jax

from samjax.distributed import processes
from samjax.distributed.map import UNFINISHED, ResultJournal, distributed_map
from samjax.errors import InvalidExample, SamjaxError
from samjax.jobs.image_collection import ImageCollection, LoadedImage
from samjax.storage import atomic, os_errors
from samjax.storage.lock import try_lock

# Hidden, so that no format of images with masks takes it for a part of a data set.
HIDDEN = f'.{UNFINISHED}'
REPORT = 'report.jsonl'


class OutputFolder:
    """A folder in which files and folders appear whole.

    unfinished: a folder on the same disk for what is being written; it is removed when everything is done.
    """

    def __init__(self, folder: Path, unfinished: Path):
        self.folder, self.unfinished = folder, unfinished

    def write_file(self, file: str, data: bytes) -> None:
        """Writes `file`, a path below the folder."""
        with self.replacing(file) as temporary:
            temporary.write_bytes(data)

    def write_folder(self, name: str, files: Mapping[str, bytes]) -> None:
        """Writes the folder `name`, which then holds just these files."""
        with self.replacing(name) as temporary:
            temporary.mkdir()
            for file, data in files.items():
                (temporary / file).write_bytes(data)

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Yields a path to write a file or folder at, which becomes `name` below the folder at the end."""
        target, parts = self.folder / name, self.unfinished / 'parts'
        for folder in (target.parent, parts):
            folder.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(target, parts) as temporary:
            yield temporary


@dataclasses.dataclass(frozen=True)
class ImageReport:
    """What a command did with its images.

    The first line of its file is a JSON object of the fields, each under its key of `KEYS`; each further line names an
    invalid image.
    """

    num_images: int  # valid or not
    invalid: dict[str, list[str]]  # cause -> locations of images with details; the first line has their number
    fingerprint: dict  # what the files depend on

    KEYS: ClassVar[Mapping[str, str]] = {'num_images': 'found', 'invalid': 'bad', 'fingerprint': 'stamp'}

    @classmethod
    def from_results(cls, results: Sequence[dict], fingerprint: dict) -> Self:
        """Of the results of all images; those of invalid ones have a cause and a detail."""
        invalid = {}
        for result in results:
            if 'cause' in result:
                invalid.setdefault(result['cause'], []).append(result['detail'])
        counts = cls.counts([result for result in results if 'cause' not in result])
        return cls(len(results), invalid, fingerprint, **counts)

    @classmethod
    def counts(cls, results: Sequence[dict]) -> dict:
        """The fields that a subclass adds, from the results of the valid images."""
        return {}

    @property
    def num_valid(self) -> int:
        return self.num_images - self.num_invalid

    @property
    def num_invalid(self) -> int:
        return sum(map(len, self.invalid.values()))

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """None if there is no such file, or if it is something else."""
        try:
            first, *others = map(json.loads, file.read_text().splitlines())
            if set(first) != set(cls.KEYS.values()):
                return None
            report = cls(**{field: first[key] for field, key in cls.KEYS.items()})
            invalid = {cause: [] for cause in report.invalid}
            for line in others:
                invalid[line['cause']].append(line['image'])
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None
        return dataclasses.replace(report, invalid=invalid)

    def lines(self) -> Iterator[str]:
        """The lines of the file."""
        counts = {cause: len(locations) for cause, locations in self.invalid.items()}
        fields = vars(self) | {'invalid': counts}
        yield json.dumps({key: fields[field] for field, key in self.KEYS.items()})
        for cause, locations in self.invalid.items():
            yield from (json.dumps({'cause': cause, 'image': location}) for location in locations)

    def summary(self) -> str:
        """The numbers of invalid images, such as '2 unreadable image, 1 not 8 bits'."""
        return ', '.join(f'{len(locations)} {cause}' for cause, locations in self.invalid.items())


# Writes the files of an image, given its index, and returns its result, which JSON can hold: what a report counts.
ProcessImage = Callable[[int, LoadedImage], dict]


def process_images(
    out: Path,
    images: ImageCollection,
    fingerprint: dict,
    prepare_device: Callable[[jax.Device, OutputFolder], ProcessImage],
    title: str,
    report_class: type[ImageReport],
    devices: int = 0,
    finish: Callable[[OutputFolder, Sequence[dict]], None] | None = None,
) -> ImageReport:
    """Writes files about all images to the folder `out`, and a report; resumes an earlier run of this fingerprint.

    fingerprint: what the files depend on, for JSON; prepare_device: makes the function that processes images on a
    device; title: names the files in messages; devices: number for each process, 0 for all; finish: writes what is
    about all images, given all results.
    Images that cannot be read are left out and named in the report; their results have a cause and a detail.

    Raises:
        SamjaxError: this process has not as many devices, no image is valid, `out` holds something else, another
            process writes to it, or the disk is full.
    """
    if not 0 <= devices <= jax.local_device_count():
        raise SamjaxError(
            f'devices is {devices}, and this process has {jax.local_device_count()}: give at most that many, 0 for all'
        )
    _check_same_fingerprint(fingerprint)
    output, is_first = OutputFolder(out, out / HIDDEN), jax.process_index() == 0
    with contextlib.ExitStack() as stack, _disk_full_as_samjax_error(out):
        state = _open(output, fingerprint, title, report_class, stack) if is_first else None
        state = processes.all_gather_objects(state)[0]
        if isinstance(state, str):
            raise SamjaxError(state)
        if state is not None:
            return state
        journal = ResultJournal(output.unfinished, fingerprint)
        workers = []
        for device in jax.local_devices()[: devices or None]:
            # While one image is on the device the host decodes the next and writes the last; a CPU is the host.
            workers += [_worker(images, prepare_device(device, output))] * (1 if device.platform == 'cpu' else 2)
        results = distributed_map(len(images), workers, title, journal)
        report = report_class.from_results(results, fingerprint)
        if not report.num_valid:
            cause, [first, *_] = next(iter(report.invalid.items()))
            if is_first:
                shutil.rmtree(output.unfinished)
            raise SamjaxError(
                f'none of the {report.num_images} images can be used ({report.summary()}), the first is {first} '
                f'({cause}): name others'
            )
        if is_first:
            if finish:
                finish(output, results)
            output.write_file(REPORT, ''.join(f'{line}\n' for line in report.lines()).encode())
            shutil.rmtree(output.unfinished)
    return report


def _worker(images: ImageCollection, process_image: ProcessImage) -> Callable[[int], dict]:
    def process(index: int) -> dict:
        try:
            image = images[index]
        except InvalidExample as error:
            return {'cause': error.cause, 'detail': f'{images.location(index)}: {error.detail}'}
        return process_image(index, image)

    return process


def _differing_keys(first: dict, second: dict) -> str:
    return ' and '.join(key for key in first if first[key] != second.get(key))


def _check_same_fingerprint(fingerprint: dict) -> None:
    fingerprints = processes.all_gather_objects(fingerprint)
    for process, other in enumerate(fingerprints):
        if differing := _differing_keys(fingerprints[0], other):
            raise SamjaxError(
                f'process {process} has other {differing} than process 0: give all the same command, with paths on a '
                'disk that all machines see'
            )


def _open(
    output: OutputFolder, fingerprint: dict, title: str, report_class: type[ImageReport], stack: contextlib.ExitStack
) -> ImageReport | str | None:
    """The report if everything is done already, what is wrong with the folder, or None if there is work to do.

    Locks the folder until the stack is closed.
    """
    out = output.folder
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not stack.enter_context(try_lock(out)):
            return f'another process writes to {out}: wait for it, or choose another --out'
        report, names = report_class.read(out / REPORT), sorted(os.listdir(out))
        earlier = report.fingerprint if report else ResultJournal.read_fingerprint(output.unfinished)
        if earlier is not None and (differing := _differing_keys(earlier, fingerprint)):
            which = title if report else 'an unfinished run'
            return f'{out} holds {which} of other {differing}: choose another --out, or remove that folder'
        if report:
            shutil.rmtree(output.unfinished, ignore_errors=True)
        elif earlier is None and set(names) - {HIDDEN}:
            return f'{out} is not empty, it holds {names[-1]}: choose another --out'
        else:
            shutil.rmtree(output.unfinished / 'parts', ignore_errors=True)
    except OSError as error:
        return f'{out} is no folder that can be written ({error.strerror}): choose another --out'
    return report


@contextlib.contextmanager
def _disk_full_as_samjax_error(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in os_errors.DISK_FULL:
            raise
        raise SamjaxError(
            f'{out} cannot be written ({error.strerror}): free some space, then the same command continues'
        ) from error
