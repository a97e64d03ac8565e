"""A folder of files about many images: each comes into it whole, from one command at a time, which can go on later."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import jax

from samjax.data.formats.dataset_index import InvalidExample
from samjax.distributed import processes
from samjax.distributed.map import UNFINISHED, ResultJournal, distributed_map
from samjax.errors import SamjaxError
from samjax.jobs.image_collection import ImageCollection, LoadedImage

# Hidden, and of a kind that no layout of images with masks looks at, so that neither is taken for a part of a set.
HIDDEN = f'.{UNFINISHED}'
REPORT = 'report.jsonl'
FULL = errno.ENOSPC, errno.EDQUOT


class OutputFolder:
    """A folder that files come into whole.

    unfinished: a folder on the same disk for what is being written; goes when all is done.
    """

    def __init__(self, folder: Path, unfinished: Path):
        self.folder, self.unfinished = folder, unfinished

    def put(self, file: str, data: bytes) -> None:
        """A file, at a path below the folder."""
        with self.part() as part:
            part.write_bytes(data)
            self._move(part, file)

    def put_folder(self, name: str, files: Mapping[str, bytes]) -> None:
        """A folder with just these files."""
        with self.part() as part:
            part.mkdir()
            for file, data in files.items():
                (part / file).write_bytes(data)
            shutil.rmtree(self.folder / name, ignore_errors=True)  # of someone who was killed
            self._move(part, name)

    @contextlib.contextmanager
    def part(self) -> Iterator[Path]:
        """A path of one's own for something unfinished."""
        part = self.unfinished / 'parts' / uuid.uuid4().hex
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
        except BaseException:
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
            raise

    def _move(self, part: Path, file: str) -> None:
        target = self.folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, target)


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the images."""

    found: int  # images
    bad: dict[str, list[str]]  # cause -> places of images with details
    stamp: dict  # what the files depend on

    @classmethod
    def of(cls, answers: Sequence[dict], stamp: dict) -> Self:
        bad = {}
        for answer in answers:
            if 'cause' in answer:
                bad.setdefault(answer['cause'], []).append(answer['detail'])
        return cls(len(answers), bad, stamp, **cls.figures([answer for answer in answers if 'cause' not in answer]))

    @classmethod
    def figures(cls, answers: Sequence[dict]) -> dict:
        """What a kind of report says besides, of the images that were good."""
        return {}

    @property
    def images(self) -> int:
        """That were good."""
        return self.found - sum(map(len, self.bad.values()))

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """None if there is no such file, or it is something else."""
        try:
            head, *lines = map(json.loads, file.read_text().splitlines())
            report = cls(**{**head, 'bad': {cause: [] for cause in head['bad']}})
            for line in lines:
                report.bad[line['cause']].append(line['image'])
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None
        return report

    def lines(self) -> Iterator[str]:
        """JSON: the figures, then each bad image."""
        yield json.dumps({**vars(self), 'bad': {cause: len(places) for cause, places in self.bad.items()}})
        for cause, places in self.bad.items():
            yield from (json.dumps({'cause': cause, 'image': place}) for place in places)

    def summary(self) -> str:
        """Of the bad images, such as '2 unreadable image, 1 not 8 bits'."""
        return ', '.join(f'{len(places)} {cause}' for cause, places in self.bad.items())


ProcessImage = Callable[
    [int, LoadedImage], dict
]  # writes the files of an image, by its number, and says what there is to count


def process_images(
    out: Path,
    images: ImageCollection,
    stamp: dict,
    look_on: Callable[[jax.Device, OutputFolder], ProcessImage],
    title: str,
    kind: type[Report],
    devices: int = 0,
    finish: Callable[[OutputFolder, Sequence[dict]], None] | None = None,
) -> Report:
    """Files about all images in folder `out`, and a report; goes on where an earlier call with this stamp stopped.

    look_on: gives what does an image on a device; title: what the files are; kind: of the report; devices: of each
    process, 0 is all; finish: writes what is about all images, from all answers.
    Images that cannot be read are left out and named in the report; their answers have a cause.

    Raises:
        SamjaxError: no image is good, `out` holds something else, another process writes to it, or the disk is full.
    """
    _check_agreement(stamp)
    output, is_first = OutputFolder(out, out / HIDDEN), jax.process_index() == 0
    with contextlib.ExitStack() as stack, _full_disk_said(out):
        begun = processes.all_gather_objects(_begin(output, stamp, title, kind, stack) if is_first else None)[0]
        if isinstance(begun, str):
            raise SamjaxError(begun)
        if begun is not None:
            return begun
        journal = ResultJournal(output.unfinished, stamp)
        workers = []
        for device in jax.local_devices()[: devices or None]:
            # While one image is on the device the host decodes the next and writes the last; a CPU is the host.
            workers += [_worker(images, look_on(device, output))] * (1 if device.platform == 'cpu' else 2)
        answers = distributed_map(len(images), workers, title, journal)
        report = kind.of(answers, stamp)
        if not report.images:
            cause, [first, *_] = next(iter(report.bad.items()))
            if is_first:
                shutil.rmtree(output.unfinished)
            raise SamjaxError(
                f'none of the {report.found} images can be used ({report.summary()}), the first is {first} ({cause}): '
                'name others'
            )
        if is_first:
            if finish:
                finish(output, answers)
            output.put(REPORT, ''.join(f'{line}\n' for line in report.lines()).encode())
            shutil.rmtree(output.unfinished)
    return report


def _worker(images: ImageCollection, look: ProcessImage) -> Callable[[int], dict]:
    def ask(place: int) -> dict:
        try:
            loaded = images[place]
        except InvalidExample as why:
            return {'cause': why.cause, 'detail': f'{images.place(place)}: {why.detail}'}
        return look(place, loaded)

    return ask


def _differing(one: dict, other: dict) -> str:
    return ' and '.join(key for key in one if one[key] != other.get(key))


def _check_agreement(stamp: dict) -> None:
    stamps = processes.all_gather_objects(stamp)
    for process, other in enumerate(stamps):
        if differing := _differing(stamps[0], other):
            raise SamjaxError(
                f'process {process} has other {differing} than process 0: give all the same command, with paths on a '
                'disk that all machines see'
            )


def _begin(
    output: OutputFolder, stamp: dict, title: str, kind: type[Report], stack: contextlib.ExitStack
) -> Report | str | None:
    """The report if all was done before, what is wrong with the folder, or None if there is work to do.

    Keeps others out of the folder as long as the stack stands.
    """
    out = output.folder
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not stack.enter_context(only_one(out)):
            return f'another process writes to {out}: wait for it, or choose another --out'
        report, here = kind.read(out / REPORT), sorted(os.listdir(out))
        begun = report.stamp if report else _read_stamp(output.unfinished)
        if begun is not None and (differing := _differing(begun, stamp)):
            which = title if report else 'an unfinished run'
            return f'{out} holds {which} of other {differing}: choose another --out, or remove that folder'
        if report:
            shutil.rmtree(output.unfinished, ignore_errors=True)
        elif begun is None and set(here) - {HIDDEN}:
            return f'{out} is not empty, it holds {here[-1]}: choose another --out'
        else:
            shutil.rmtree(output.unfinished / 'parts', ignore_errors=True)
    except OSError as error:
        return f'{out} is no folder that can be written ({error.strerror}): choose another --out'
    return report


def _read_stamp(unfinished: Path) -> dict | None:
    try:
        return json.loads((unfinished / 'stamp.json').read_text())
    except (FileNotFoundError, ValueError):  # killed at once
        return None


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[bool]:
    """Whether nobody else holds the folder; a disk without locks is taken at its word."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True
    finally:
        os.close(opened)


@contextlib.contextmanager
def _full_disk_said(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise SamjaxError(
            f'{out} cannot be written ({error.strerror}): free some space, and the same command goes on'
        ) from error
