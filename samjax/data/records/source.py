"""The source that `open_source` returns: prepares a set once, then reads `Example`s from it."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path

import tensorflow_datasets as tfds

from samjax.data.example import Example
from samjax.data.formats.detect import find
from samjax.data.records.builder import SPLIT, folder_below
from samjax.data.records.prepare import REPORT, Report, prepare
from samjax.errors import SamjaxError
from samjax.images.encoded_image import EncodedImage


def open_source(path: str | os.PathLike, cache: str | os.PathLike, max_invalid_fraction: float) -> Source:
    """The images of a set, prepared under `cache` unless they already are.

    path: whatever `samjax.data.formats.detect` reads (a file added, changed or removed there means a new preparation),
    or a folder that `samjax data prepare` wrote.  cache: folder; `~` is expanded.  max_invalid_fraction: see `prepare`.
    Warns in one line if images were left out; the report beside the records names them.
    Raises SamjaxError if the path is missing, holds no usable image, or too many bad ones.
    """
    folder = prepared(Path(path).expanduser())
    if folder is None:
        found = find(str(path))
        home = Path(cache).expanduser() / found.digest
        folder, report = prepare(found, str(path), home, max_invalid_fraction=max_invalid_fraction)
    else:
        report = Report.read(folder)
        report.check(max_invalid_fraction)
    if report.bad or report.no_masks:
        logging.getLogger(__name__).warning(
            '%s: %d of %d images left out (%s), see %s',
            path, report.found - report.kept, report.found, report.summary(), folder / REPORT,
        )  # fmt: skip
    return Source(folder)


def prepared(path: Path) -> Path | None:
    """The folder of the TFDS set that `samjax data prepare` wrote below `path`, None if there is none."""
    return next((folder for folder in (path, folder_below(path)) if (folder / REPORT).is_file()), None)


class Source:
    """Random access to the `Example`s of a prepared set; images are decoded when asked for."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = folder
        reader = tfds.builder_from_directory(folder)
        self._records = reader.as_data_source(SPLIT, decoders={'image': tfds.decode.SkipDecoding()})

    def __reduce__(self):
        return Source, (self.folder,)  # a worker process opens the files itself

    @functools.cached_property
    def digest(self) -> str:
        """Of the files that it was prepared from, and the share that was taken."""
        report = Report.read(Path(self.folder))
        return f'{report.digest} {report.share:g}'

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f'{self.folder} has {len(self)} images, none has the index {index}')
        try:
            record = self._records[index]
        except Exception as error:  # ArrayRecord raises what its C++ says
            raise SamjaxError(
                f'record {index} of {self.folder} cannot be read ({error}): remove the folder, and the same command '
                'prepares it again'
            ) from error
        annotations = record['annotations']
        rles = [
            {'size': size.tolist(), 'counts': counts}
            for size, counts in zip(annotations['size'], annotations['counts'], strict=True)
        ]
        photo = EncodedImage.from_bytes(record['image'], int(record['orientation']))
        return Example(record['name'].decode(), photo, rles)
