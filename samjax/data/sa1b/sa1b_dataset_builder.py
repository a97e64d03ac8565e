"""The TFDS builder of a folder in the layout of SA-1B; found by TFDS through the file's name."""

from __future__ import annotations

import collections
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from samjax.data.sa1b.files import BrokenTar, Pair, find_pairs
from samjax.data.sa1b.record import Unusable, make_record
from samjax.errors import SamjaxError

SPLIT = 'images'
REPORT = 'skipped.json'  # beside the records: what was left out, and why
SHARD = 4096  # images per ArrayRecord file


class Builder(tfds.core.GeneratorBasedBuilder):
    """Checks every image and mask below `path` and writes the good ones as ArrayRecord.

    max_bad_share: of all images found, the share that may be unusable before preparation stops.
    """

    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, *, path: str | os.PathLike, max_bad_share: float, **kwargs):
        self._path = Path(path)
        self._max_bad_share = max_bad_share
        super().__init__(file_format='array_record', **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        annotation = {
            'size': tfds.features.Tensor(shape=(2,), dtype=np.int32),
            'counts': tfds.features.Text(),
            'area': np.int64,
            'predicted_iou': np.float32,
            'stability_score': np.float32,
        }
        features = {
            'image': tfds.features.Image(shape=(None, None, 3)),
            'name': tfds.features.Text(),
            'height': np.int32,
            'width': np.int32,
            'annotations': tfds.features.Sequence(annotation),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description='Images with any number of object masks each, in the layout of SA-1B.',
            homepage='https://arxiv.org/abs/2304.02643',
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict]]:
        """Good records in the order of `find_pairs`; raises SamjaxError if too many are bad."""
        total = sum(1 for _ in find_pairs(self._path))
        self._report = report = Report(str(self._path), total)
        progress = Progress(f'preparing {self._path}', total)
        names = set()
        for done, (pair, outcome) in enumerate(_in_threads(_try_record, find_pairs(self._path)), 1):
            progress.show(done)
            if isinstance(outcome, Unusable):
                report.add_bad(pair.place, outcome)
            elif pair.name in names:
                report.add_bad(pair.place, Unusable('duplicate name', 'an earlier image has it'))
            elif not any(annotation['area'] for annotation in outcome['annotations']):
                report.no_masks.append(pair.place)
            else:
                names.add(pair.name)
                report.kept += 1
                yield pair.name, outcome
            report.check(self._max_bad_share)
        progress.close()
        if not report.kept:
            raise SamjaxError(
                f'{self._path}: none of the {total} images found can be used ({report.summary()}); '
                'training needs images that each have a JSON with at least one mask'
            )

    def _download_and_prepare(self, dl_manager, download_config):
        """Writes records as they come.

        TFDS would first sort them, which beyond 1 GB takes TensorFlow and a second copy on disk.
        """
        del download_config
        folder = Path(self.data_dir)
        records = self._split_generators(dl_manager)[SPLIT]
        parts, lengths, sizes = [], [], []
        for first in records:
            part = folder / f'part-{len(parts)}'
            length, size = self._write(part, itertools.chain([first], records))
            parts.append(part)
            lengths.append(length)
            sizes.append(size)
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=self.name, split=SPLIT, filetype_suffix='array_record'
        )
        for part, path in zip(parts, template.sharded_filepaths(len(parts)), strict=True):
            part.rename(path)
        split = tfds.core.SplitInfo(name=SPLIT, shard_lengths=lengths, num_bytes=sum(sizes), filename_template=template)
        self.info.set_splits(tfds.core.splits.SplitDict([split]))
        self._report.write(folder / REPORT)

    def _write(self, file: Path, records: Iterator[tuple[str, dict]]) -> tuple[int, int]:
        """Writes up to SHARD records; returns their number and size in bytes."""
        length = size = 0
        try:
            writer = ArrayRecordWriter(str(file), 'group_size:1')
            for _, record in itertools.islice(records, SHARD):
                data = self.info.features.serialize_example(record)
                writer.write(data)
                length += 1
                size += len(data)
            writer.close()
        except RuntimeError as error:  # all that ArrayRecord says of a full disk
            raise SamjaxError(
                f'{file.parent} cannot be written ({str(error).splitlines()[0]}): free some space or '
                'set data.cache to another disk'
            ) from error
        return length, size


class Report:
    """What preparation left out, by cause."""

    def __init__(self, path: str, found: int, kept: int = 0, bad=None, no_masks=None):
        self.path, self.found, self.kept = path, found, kept
        self.bad: dict[str, list[str]] = bad or {}
        self.no_masks: list[str] = no_masks or []

    @classmethod
    def read(cls, file: Path) -> Report:
        return cls(**json.loads(file.read_text()))

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(vars(self), indent=1))

    def add_bad(self, place: str, why: Unusable) -> None:
        self.bad.setdefault(why.cause, []).append(f'{place}: {why.detail}')

    def check(self, max_bad_share: float) -> None:
        """Raises SamjaxError if the share of bad images is over `max_bad_share`."""
        bad = sum(len(places) for places in self.bad.values())
        if bad <= max_bad_share * self.found:
            return
        cause, places = next(iter(self.bad.items()))
        raise SamjaxError(
            f'{self.path}: {bad} of {self.found} images are bad ({self.summary()}), more than '
            f'data.max_bad_share = {max_bad_share:g} allows; the first is {places[0]} ({cause}); '
            'mend or remove such files, or raise data.max_bad_share'
        )

    def summary(self) -> str:
        """Such as '2 invalid JSON, 1 no masks'."""
        counts = {cause: len(places) for cause, places in self.bad.items()}
        counts |= {'no masks': len(self.no_masks)} if self.no_masks else {}
        return ', '.join(f'{count} {cause}' for cause, count in counts.items())


class Progress:
    """Count, rate and time left on one line of stderr; silent while little has been done."""

    def __init__(self, title: str, total: int):
        self.title, self.total = title, total
        self.start = self.shown = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.interval = 0.5 if self.terminal else 60.0  # seconds; a log file gets few lines

    def show(self, done: int) -> None:
        now = time.monotonic()
        if now - self.start < 2.0 or now - self.shown < self.interval:
            return
        rate = done / (now - self.start)
        left = int((self.total - done) / rate)
        line = f'{self.title}: {done} of {self.total} images, {rate:.1f}/s, '
        line += f'{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left'
        sys.stderr.write(f'\r{line}\x1b[K' if self.terminal else f'{line}\n')
        sys.stderr.flush()
        self.shown = now

    def close(self) -> None:
        if self.terminal and self.shown > self.start:
            sys.stderr.write('\n')


def _try_record(pair: Pair | BrokenTar):
    if isinstance(pair, BrokenTar):
        return pair, Unusable('damaged tar', pair.reason)
    try:
        return pair, make_record(pair)
    except Unusable as why:
        return pair, why


def _in_threads(function, items) -> Iterator:
    """Like map, in threads (PIL decodes outside the interpreter lock), a few items ahead."""
    workers = os.cpu_count()
    with ThreadPoolExecutor(workers) as pool:
        ahead = collections.deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
