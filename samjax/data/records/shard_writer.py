"""A shard of a data set -> an ArrayRecord file and a summary, both complete or absent."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from samjax.data.formats.causes import Causes
from samjax.data.formats.dataset_index import Shard
from samjax.data.records import record
from samjax.errors import InvalidExample, SamjaxError
from samjax.images.open import ImageOptions
from samjax.storage import atomic, os_errors

PROGRESS_INTERVAL = 1.0  # s between notes of a shard's progress


class ShardResult(NamedTuple):
    """The outcome of a shard."""

    num_images: int  # all of them, invalid ones too
    names: list[str]  # of the images that were kept, in the order of the file
    num_masks: int
    num_bytes: int
    invalid: list[tuple[str, str]]  # cause, and location with details
    no_masks: list[str]  # locations of images that have none
    skipped_masks: Causes
    warnings: Causes
    read_as: dict[str, int]  # how mask files were interpreted -> number of files
    num_scaled: int  # images of more than 8 bits per channel that were scaled to 8


class ShardTask(NamedTuple):
    """Writes STEM.array_record, if any image is valid, and then STEM.json, which marks the shard as finished."""

    shard: Shard
    stem: str  # path
    fraction: float  # of the images to be taken, see `is_selected`
    image_options: ImageOptions

    @property
    def records(self) -> Path:
        return Path(f'{self.stem}.array_record')

    def result(self) -> ShardResult | None:
        """The result of an earlier call of `write`, None if there is none."""
        try:
            return ShardResult(**json.loads(Path(f'{self.stem}.json').read_text()))
        except FileNotFoundError:
            return None

    def progress(self) -> tuple[int, int]:
        """Number of images done and of all images, (0, 0) at first."""
        try:
            return tuple(json.loads(Path(f'{self.stem}.progress').read_text()))
        except FileNotFoundError:
            return 0, 0

    def write(self) -> ShardResult:
        """Writes the shard, unless it is finished.

        Raises:
            SamjaxError: the disk is full.
        """
        if finished := self.result():
            return finished
        part = Path(f'{self.stem}.{uuid.uuid4().hex}.part')  # unique, should two processes write the same shard
        try:
            result = self._write(part)
            part.rename(self.records) if result.names else part.unlink()
            atomic.write_text(Path(f'{self.stem}.json'), json.dumps(result._asdict()))
        except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError if the disk is full
            part.unlink(missing_ok=True)
            raise SamjaxError(
                f'{part.parent} cannot be written ({str(error).splitlines()[0]}): {os_errors.remedy(error)} or choose '
                'another disk (data.cache, or --out), and run the same command again to go on'
            ) from error
        Path(f'{self.stem}.progress').unlink(missing_ok=True)
        return result

    def _write(self, part: Path) -> ShardResult:
        features = record.features()
        items = [item for item in self.shard.items() if is_selected(item.name, self.fraction)]
        result = ShardResult(len(items), [], 0, 0, [], [], Causes(), Causes(), collections.Counter(), 0)
        num_masks = num_bytes = num_scaled = 0
        writer = ArrayRecordWriter(str(part), 'group_size:1')
        noted = time.monotonic()
        for n, item in enumerate(items):
            if time.monotonic() > noted + PROGRESS_INTERVAL:
                atomic.write_text(Path(f'{self.stem}.progress'), json.dumps([n, len(items)]))
                noted = time.monotonic()
            try:
                made = record.make_record(item, self.image_options)
            except InvalidExample as error:
                result.invalid.append((error.cause, f'{item.location}: {error.detail}'))
                continue
            result.skipped_masks.add_all(made.skipped_masks, item.location)
            result.warnings.add_all(made.warnings, item.location)
            result.read_as.update(made.read_as)
            num_scaled += made.is_scaled
            if not any(annotation['area'] for annotation in made.content['annotations']):
                result.no_masks.append(item.location)
                continue
            # A protobuf has its map in another order in each process, unless serialized deterministically.
            example = tf_example_pb2.Example.FromString(features.serialize_example(made.content))
            data = example.SerializeToString(deterministic=True)
            writer.write(data)
            result.names.append(item.name)
            num_masks += len(made.content['annotations'])
            num_bytes += len(data)
        writer.close()
        return result._replace(num_masks=num_masks, num_bytes=num_bytes, num_scaled=num_scaled)


def is_selected(name: str, fraction: float) -> bool:
    """Whether an image is in the subset with this fraction of all.

    It depends on the image's own name, without folder and shard; a larger fraction contains a smaller one.
    """
    digest = hashlib.sha256(os.fsencode(os.path.basename(name))).digest()
    return int.from_bytes(digest[:8], 'big') < fraction * 2**64
