"""Masks of everything in many images, in files: shared out over devices and processes, and resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from samjax import cluster, survey
from samjax.automatic import formats
from samjax.automatic.formats import FORMATS, Output
from samjax.automatic.generator import AutomaticMaskGenerator, Settings
from samjax.convert import convert, weights
from samjax.data.layouts.labelled import Unusable
from samjax.errors import SamjaxError
from samjax.evaluation.subject import digest
from samjax.photos import Photos, find_photos
from samjax.predictor import Predictor
from samjax.survey import Ledger

# Hidden, and of a kind that no layout of images with masks looks at, so that neither is taken for a part of the set.
UNFINISHED = f'.{survey.UNFINISHED}'  # folder in the output: what is done, and pieces of files
REPORT = 'report.jsonl'
FULL = errno.ENOSPC, errno.EDQUOT


class Report(NamedTuple):
    """What became of the images."""

    found: int  # images
    without: int  # of them, those in which no mask was found
    masks: int
    bad: dict[str, list[str]]  # cause -> places of images with details
    stamp: dict  # what the masks depend on

    @property
    def images(self) -> int:
        """That were good."""
        return self.found - sum(map(len, self.bad.values()))

    @classmethod
    def read(cls, file: Path) -> Report | None:
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
        yield json.dumps({**self._asdict(), 'bad': {cause: len(places) for cause, places in self.bad.items()}})
        for cause, places in self.bad.items():
            yield from (json.dumps({'cause': cause, 'image': place}) for place in places)

    def summary(self) -> str:
        """Of the bad images, such as '2 unreadable image, 1 not 8 bits'."""
        return ', '.join(f'{len(places)} {cause}' for cause, places in self.bad.items())


def masks(inputs: Sequence[str], model: str, out: Path, form: str, settings: Settings, devices: int = 0) -> Report:
    """Writes the masks of all images as `form`, one of `FORMATS`, and a report; goes on where an earlier call stopped.

    inputs: see `find_photos`; model: what `samjax convert` reads; devices: of each process, 0 is all.
    Images that cannot be read are left out and named in the report.

    Raises:
        SamjaxError: an input or the model cannot be read, no image is good, `out` holds something else or lies within
            an input, another process writes to it, or the disk or the device's memory is full.
    """
    if form not in FORMATS:
        raise SamjaxError(f'the format {form!r} is not known: choose one of {", ".join(FORMATS)}')
    photos = find_photos(inputs)
    for text in inputs:
        if Path(out).resolve().is_relative_to(Path(text).expanduser().resolve()):
            raise SamjaxError(f'{out} lies in {text}, where the images are: choose another folder for --out')
    arrays, config, _ = convert.read(Path(model), force=False)
    states = convert.to_states(arrays, config)
    size = [weights.size_name(config), *config.image_size]
    stamp = _stamp(photos, {'size': size, 'digest': digest(states[0])}, settings, form)
    _check_agreement(stamp)
    output = Output(Path(out), Path(out) / UNFINISHED)
    with contextlib.ExitStack() as stack, _full_disk_said(out):
        is_first = jax.process_index() == 0
        begun = cluster.gather(_begin(output, stamp, stack) if is_first else None)[0]
        if isinstance(begun, str):
            raise SamjaxError(begun)
        if begun is not None:
            return begun
        ledger = Ledger(output.unfinished, stamp)
        askers = []
        for device in jax.local_devices()[: devices or None]:
            predictor = Predictor(config, *jax.device_put(states, device))
            generator = AutomaticMaskGenerator(predictor, settings, output_mode='coco_rle')
            # While one image is on the device the host decodes the next and writes the last; a CPU is the host.
            askers += [_asker(photos, generator, form, output)] * (1 if device.platform == 'cpu' else 2)
        answers = survey.survey(len(photos), askers, 'masks', ledger)
        report = _report(answers, stamp)
        if not report.images:
            cause, [first, *_] = next(iter(report.bad.items()))
            if is_first:
                shutil.rmtree(output.unfinished)
            raise SamjaxError(
                f'none of the {report.found} images can be used ({report.summary()}), the first is {first} ({cause}): '
                'name others'
            )
        if is_first:
            if form == 'coco':
                formats.write_instances(output, [None if 'cause' in answer else answer for answer in answers])
            output.put(REPORT, ''.join(f'{line}\n' for line in report.lines()).encode())
            shutil.rmtree(output.unfinished)
    return report


def _stamp(photos: Photos, model: dict, settings: Settings, form: str) -> dict:
    """What the files depend on."""
    chosen = dataclasses.asdict(settings)
    del chosen['points_per_batch']  # may be lowered in between, if memory is short
    return {'images': photos.digest, 'model': model, 'settings': chosen, 'format': form}


def _differing(one: dict, other: dict) -> str:
    return ' and '.join(key for key in one if one[key] != other.get(key))


def _check_agreement(stamp: dict) -> None:
    stamps = cluster.gather(stamp)
    for process, other in enumerate(stamps):
        if differing := _differing(stamps[0], other):
            raise SamjaxError(
                f'process {process} has other {differing} than process 0: give all the same command, with paths on a '
                'disk that all machines see'
            )


def _begin(output: Output, stamp: dict, stack: contextlib.ExitStack) -> Report | str | None:
    """The report if all was done before, what is wrong with the folder, or None if there is work to do.

    Keeps others out of the folder as long as the stack stands.
    """
    out = output.folder
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not stack.enter_context(_only_one(out)):
            return f'another process writes to {out}: wait for it, or choose another --out'
        report, here = Report.read(out / REPORT), sorted(os.listdir(out))
        begun = report.stamp if report else _read_stamp(output.unfinished)
        if begun is not None and (differing := _differing(begun, stamp)):
            which = 'masks' if report else 'an unfinished run'
            return f'{out} holds {which} of other {differing}: choose another --out, or remove that folder'
        if report:
            shutil.rmtree(output.unfinished, ignore_errors=True)
        elif begun is None and set(here) - {UNFINISHED}:
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
def _only_one(folder: Path) -> Iterator[bool]:
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


def _asker(photos: Photos, generator: AutomaticMaskGenerator, form: str, output: Output) -> Callable[[int], dict]:
    """A function of the number of an image that writes its masks and says what became of it."""

    def ask(place: int) -> dict:
        try:
            loaded = photos[place]
        except Unusable as why:
            return {'cause': why.cause, 'detail': f'{photos.place(place)}: {why.detail}'}
        try:
            records = generator.generate(loaded.image_HW3)
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            raise SamjaxError(
                f'{photos.place(place)}: the memory of the device is full: give fewer --points-per-batch than '
                f'{generator.settings.points_per_batch}, and the same command goes on'
            ) from error
        file = formats.write(form, output, place, loaded, records)
        return {'file': file, 'size': loaded.image_HW3.shape[:2], 'masks': len(records)}

    return ask


def _report(answers: Sequence[dict], stamp: dict) -> Report:
    bad = {}
    for answer in answers:
        if 'cause' in answer:
            bad.setdefault(answer['cause'], []).append(answer['detail'])
    counts = [answer['masks'] for answer in answers if 'cause' not in answer]
    return Report(len(answers), counts.count(0), sum(counts), bad, stamp)
