"""The TFDS builder of sets of images with masks; found by TFDS through the file's name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from samjax.data.records import record
from samjax.data.records.shard_writer import Written

SPLIT = 'images'


def folder_below(out: Path) -> Path:
    """Where the builder with the data_dir `out` puts its set."""
    return out / 'object_masks' / str(Builder.VERSION)


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Asks nobody: TFDS would look for this set in its bucket, over the network, and leave a folder in /tmp."""


class Builder(tfds.core.GeneratorBasedBuilder):
    """Makes a TFDS set of the files of finished shards: one shard each, in their order.

    shards: file of the records and what became of it, of each; files: more texts to lie beside the records, by name.
    """

    VERSION = tfds.core.Version('2.0.0')

    def __init__(self, *, shards: Sequence[tuple[Path, Written]] = (), files: dict[str, str] | None = None, **kwargs):
        self._units, self._files = shards, files or {}
        super().__init__(file_format='array_record', **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(
            builder=self,
            description='Images with any number of object masks each.',
            homepage='https://arxiv.org/abs/2304.02643',
            features=record.features(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        raise NotImplementedError('shards are written by samjax.data.records.prepare')

    _generate_examples = _split_generators

    def _download_and_prepare(self, dl_manager, download_config):
        """Takes the files in.

        TFDS would generate and sort the records here, in one process, which beyond 1 GB takes TensorFlow and a second
        copy on disk, or in Beam, which forgets what was done when it is interrupted.
        """
        del dl_manager, download_config
        folder = Path(self.data_dir)
        kept = [(records, written) for records, written in self._units if written.names]
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=self.name, split=SPLIT, filetype_suffix='array_record'
        )
        for (records, _), path in zip(kept, template.sharded_filepaths(len(kept)), strict=True):
            _link(records, Path(path))
        lengths, size = [len(written.names) for _, written in kept], sum(written.bytes for _, written in kept)
        split = tfds.core.SplitInfo(name=SPLIT, shard_lengths=lengths, num_bytes=size, filename_template=template)
        self.info.set_splits(tfds.core.splits.SplitDict([split]))
        for name, text in self._files.items():
            (folder / name).write_text(text)


def _link(source: Path, target: Path) -> None:
    """`source` stays until all is done, as far as the disk has links: who is killed now need not write it again."""
    try:
        os.link(source, target)
    except OSError:
        shutil.move(source, target)
