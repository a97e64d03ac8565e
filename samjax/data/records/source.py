"""Random access to the examples of a prepared data set, which `open_records` prepares if necessary."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from samjax.data.example import Example
from samjax.data.formats.detect import open_index
from samjax.data.formats.read_options import DEFAULT, ReadOptions
from samjax.data.records import record
from samjax.data.records.builder import SPLIT, ObjectMasks, dataset_folder
from samjax.data.records.prepare import PREPARE_AGAIN, REPORT, PreparationReport, prepare
from samjax.errors import SamjaxError, reason
from samjax.images.encoded_image import EncodedImage


def open_records(
    path: str | os.PathLike,
    cache: str | os.PathLike,
    max_invalid_fraction: float,
    options: ReadOptions = DEFAULT,
) -> RecordSource:
    """The images of a data set, prepared in `cache` unless they already are.

    path: anything that `samjax.data.formats.detect` reads (a file added, changed or removed there means a new
    preparation), or a folder that `samjax data prepare` wrote.  cache: folder; `~` is expanded.
    max_invalid_fraction: see `prepare`; options: how a data set that is not prepared is read.
    Warns, a line each, of what was left out, not used or looks wrong; the report beside the records names the images.

    Raises:
        SamjaxError: there is nothing at the path, it holds no usable image, or too many are invalid.
    """
    folder = prepared_folder(Path(path).expanduser())
    if folder is None:
        index = open_index(str(path), options)
        out = Path(cache).expanduser() / index.digest
        folder, report = prepare(index, str(path), out, max_invalid_fraction=max_invalid_fraction, options=options)
    else:
        report = PreparationReport.read(folder)
        report.check(max_invalid_fraction)
        if options.changes not in ({}, report.options):
            logging.getLogger(__name__).warning(
                '%s: prepared with %s, which %s do not change',
                path, _described(report.options) or 'the default options', _described(options.changes),
            )  # fmt: skip
    lines = [f'not used: {line}' for line in report.ignored.lines()]
    lines += [f'masks left out: {line}' for line in report.skipped_masks.lines()]
    for line in [*lines, *report.warnings.lines()]:
        logging.getLogger(__name__).warning('%s: %s', path, line)
    if report.dropped:
        logging.getLogger(__name__).warning(
            '%s: %d of %d images left out (%s), see %s',
            path, report.num_images - report.num_kept, report.num_images, report.summary(), folder / REPORT,
        )  # fmt: skip
    return RecordSource(folder)


def _described(options: dict[str, object]) -> str:
    return ', '.join(f'{name}={value}' for name, value in options.items())


def prepared_folder(path: Path) -> Path | None:
    """The folder of the TFDS data set that `samjax data prepare` wrote below `path`, None if there is none."""
    return next((folder for folder in (path, dataset_folder(path)) if _is_prepared(folder)), None)


def _is_prepared(folder: Path) -> bool:
    return any(folder.glob(f'{ObjectMasks.name}-{SPLIT}.array_record*'))


def open_split(folder: str | os.PathLike) -> Sequence[dict]:
    """The records of a prepared data set, images encoded.

    Raises:
        SamjaxError: the files that describe the records are damaged, or do not list as many as there are.
    """
    try:
        builder = tfds.builder_from_directory(folder)
        records = builder.as_data_source(SPLIT, decoders={'image': tfds.decode.SkipDecoding()})
        count, is_ours = len(records), builder.info.features.get_tensor_info() == record.features().get_tensor_info()
    except Exception as error:  # TFDS, protobuf and ArrayRecord raise nearly anything on damaged files
        raise SamjaxError(f'{folder} cannot be read ({reason(error)}): {PREPARE_AGAIN}') from error
    if not is_ours:
        raise SamjaxError(f'{folder} has other features than `samjax data prepare` writes: {PREPARE_AGAIN}')
    expected = PreparationReport.read(Path(folder)).num_kept
    if count != expected:
        raise SamjaxError(f'{folder} has {count} records, and {REPORT} says {expected}: {PREPARE_AGAIN}')
    return records


class RecordSource:
    """The examples of a prepared data set; images are decoded when their pixels are needed."""

    def __init__(self, folder: str | os.PathLike):
        """Raises SamjaxError if the files that describe the records are damaged."""
        self.folder = folder
        self._records = open_split(folder)

    def __reduce__(self):
        return RecordSource, (self.folder,)  # a worker process opens the files itself

    @functools.cached_property
    def digest(self) -> str:
        """Identifies the files that it was prepared from, and the fraction that was taken."""
        return PreparationReport.read(Path(self.folder)).fingerprint

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        """Raises IndexError, or SamjaxError if the record is damaged."""
        if not 0 <= index < len(self):
            raise IndexError(f'{self.folder} has {len(self)} images, none has the index {index}')
        try:
            content = self._records[index]
        except Exception as error:  # ArrayRecord raises what its C++ reports
            raise SamjaxError(
                f'record {index} of {self.folder} cannot be read ({reason(error)}): {PREPARE_AGAIN}'
            ) from error
        annotations = content['annotations']
        rles = [
            {'size': size.tolist(), 'counts': counts}
            for size, counts in zip(annotations['size'], annotations['counts'], strict=True)
        ]
        image = EncodedImage.from_bytes(content['image'], int(content['orientation']))
        return Example(os.fsdecode(content['name']), image, rles)
