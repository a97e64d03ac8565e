"""The source that `open_source` returns: prepares a folder once, then reads `Example`s from it."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from samjax.data.sa1b.files import digest
from samjax.data.sa1b.sa1b_dataset_builder import REPORT, SPLIT, Builder, Report
from samjax.errors import SamjaxError
from samjax.structs import Example


def open_source(path: str | os.PathLike, cache: str | os.PathLike, max_bad_share: float) -> Source:
    """The images below `path`, prepared under `cache` unless they already are.

    path: folder in the layout of SA-1B, or one tar shard; a file added, changed or removed there
    means a new preparation.  cache: folder; `~` is expanded.  max_bad_share: see `Builder`.
    Warns in one line if images were left out; the report beside the records names them.
    Raises SamjaxError if the path is missing, holds no usable image, or too many bad ones.
    """
    path, cache = Path(path).expanduser(), Path(cache).expanduser()
    home = cache / digest(path)
    builder = Builder(path=path, max_bad_share=max_bad_share, data_dir=home)
    folder = Path(builder.data_dir)
    if not folder.exists():
        with _lock(home):
            if not folder.exists():
                _prepare(builder, folder)
    report = Report.read(folder / REPORT)
    report.check(max_bad_share)  # an earlier preparation may have been told to accept more
    if report.bad or report.no_masks:
        logging.getLogger(__name__).warning(
            '%s: %d of %d images left out (%s), see %s',
            path, report.found - report.kept, report.found, report.summary(), folder / REPORT,
        )  # fmt: skip
    return Source(folder)


class Source:
    """Random access to the `Example`s of a prepared folder; images are decoded when asked for."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = folder
        reader = tfds.builder_from_directory(folder)
        self._records = reader.as_data_source(SPLIT, decoders={'image': tfds.decode.SkipDecoding()})

    def __reduce__(self):
        return Source, (self.folder,)  # a worker process opens the files itself

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f'{self.folder} has {len(self)} images, none has the index {index}')
        record = self._records[index]
        with Image.open(io.BytesIO(record['image'])) as image:
            image_HW3 = np.asarray(image.convert('RGB'))
        annotations = record['annotations']
        rles = [
            {'size': size.tolist(), 'counts': counts}
            for size, counts in zip(annotations['size'], annotations['counts'], strict=True)
        ]
        return Example(record['name'].decode(), image_HW3, rles)


def _prepare(builder: Builder, folder: Path) -> None:
    """Runs the builder, which writes to a folder beside `folder` and renames it when all is there."""
    for stale in folder.parent.glob('*incomplete*') if folder.parent.exists() else ():
        shutil.rmtree(stale, ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download
        builder.download_and_prepare()


@contextlib.contextmanager
def _lock(home: Path):
    """Only one process at a time prepares `home`; the others wait."""
    home.mkdir(parents=True, exist_ok=True)
    with open(home / 'lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise SamjaxError(f'{home} cannot be locked ({error}): set data.cache to a disk with file locks') from error
        yield
