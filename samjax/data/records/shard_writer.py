"""One shard of a set -> one ArrayRecord file and what is to be said about it, all or nothing."""

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

from samjax.data.formats.dataset_index import InvalidExample, Shard
from samjax.data.records import record
from samjax.errors import SamjaxError

TOLD = 1.0  # s between notes of how far a shard is


class Written(NamedTuple):
    """What became of a shard."""

    found: int  # images
    names: list[str]  # of those kept, in the order of the file
    masks: int
    bytes: int
    bad: list[tuple[str, str]]  # (cause, place and detail)
    no_masks: list[str]  # places of images that have none
    left_out: dict[str, int]  # masks by cause


class Task(NamedTuple):
    """Writes STEM.array_record (if any image is good) and then STEM.json, which says that the shard is finished."""

    shard: Shard
    stem: str  # path
    share: float  # of the images that is taken, by a hash of their names

    @property
    def records(self) -> Path:
        return Path(f'{self.stem}.array_record')

    def written(self) -> Written | None:
        """What an earlier call left, None if it was interrupted."""
        try:
            return Written(**json.loads(Path(f'{self.stem}.json').read_text()))
        except FileNotFoundError:
            return None

    def progress(self) -> tuple[int, int]:
        """Images done and images there, (0, 0) before the first are."""
        try:
            return tuple(json.loads(Path(f'{self.stem}.progress').read_text()))
        except FileNotFoundError:
            return 0, 0

    def write(self) -> Written:
        """Raises SamjaxError if the disk is full."""
        if done := self.written():
            return done
        part = Path(f'{self.stem}.{uuid.uuid4().hex}.part')  # nobody else's, should two processes do the same
        try:
            written = self._write(part)
            part.rename(self.records) if written.names else part.unlink()
            _replace(Path(f'{self.stem}.json'), json.dumps(written._asdict()))
        except (OSError, RuntimeError) as error:  # RuntimeError is all that ArrayRecord says of a full disk
            part.unlink(missing_ok=True)
            raise SamjaxError(
                f'{part.parent} cannot be written ({str(error).splitlines()[0]}): free some space or choose another '
                'disk (data.cache, or --out), and run the same command again to go on'
            ) from error
        Path(f'{self.stem}.progress').unlink(missing_ok=True)
        return written

    def _write(self, part: Path) -> Written:
        features = record.features()
        items = [item for item in self.shard.items() if is_taken(item.name, self.share)]
        written = Written(len(items), [], 0, 0, [], [], collections.Counter())
        masks = size = 0
        writer = ArrayRecordWriter(str(part), 'group_size:1')
        told = time.monotonic()
        for n, item in enumerate(items):
            if time.monotonic() > told + TOLD:
                _replace(Path(f'{self.stem}.progress'), json.dumps([n, len(items)]))
                told = time.monotonic()
            try:
                made, left_out = record.make_record(item)
            except InvalidExample as why:
                written.bad.append((why.cause, f'{item.place}: {why.detail}'))
                continue
            written.left_out.update(left_out)
            if not any(annotation['area'] for annotation in made['annotations']):
                written.no_masks.append(item.place)
                continue
            # A protobuf has its map in another order in each process, unless told otherwise.
            example = tf_example_pb2.Example.FromString(features.serialize_example(made))
            data = example.SerializeToString(deterministic=True)
            writer.write(data)
            written.names.append(item.name)
            masks += len(made['annotations'])
            size += len(data)
        writer.close()
        return written._replace(masks=masks, bytes=size)


def is_taken(name: str, share: float) -> bool:
    """Whether an image is in the subset: by its own name, not by its folder or shard, and more with a larger share."""
    digest = hashlib.sha256(os.fsencode(os.path.basename(name))).digest()
    return int.from_bytes(digest[:8], 'big') < share * 2**64


def _replace(file: Path, text: str) -> None:
    part = file.with_name(f'{file.name}.{uuid.uuid4().hex}.part')
    part.write_text(text)
    part.replace(file)
