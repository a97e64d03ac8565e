"""The TFDS builder of data sets of images with masks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from samjax.data.records import record
from samjax.data.records.shard_writer import ShardResult

SPLIT = 'images'


def dataset_folder(out: Path) -> Path:
    """Where the builder with the data_dir `out` puts its data set."""
    return out / ObjectMasks.name / str(ObjectMasks.VERSION)


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Does nothing: TFDS would look for this data set in its bucket, over the network, and leave files in /tmp."""


class ObjectMasks(tfds.core.GeneratorBasedBuilder):
    """Makes a TFDS data set of the files of finished shards: one shard each, in their order.

    TFDS derives the data set's name, object_masks, from the name of this class.
    """

    VERSION = tfds.core.Version('2.0.0')

    def __init__(
        self, *, shards: Sequence[tuple[Path, ShardResult]] = (), texts: Mapping[str, str] | None = None, **kwargs
    ):
        """shards: file of the records and result of each; texts: more files to be written beside the records."""
        self._shards, self._texts = shards, texts or {}
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
        """Moves the files into the data set.

        TFDS would generate and sort the records here, in one process, which beyond 1 GB takes TensorFlow and a second
        copy on disk, or in Beam, which cannot resume after an interruption.
        """
        del dl_manager, download_config
        folder = Path(self.data_dir)
        kept = [(records, result) for records, result in self._shards if result.names]
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=self.name, split=SPLIT, filetype_suffix='array_record'
        )
        for (records, _), path in zip(kept, template.sharded_filepaths(len(kept)), strict=True):
            _link(records, Path(path))
        lengths, size = [len(result.names) for _, result in kept], sum(result.num_bytes for _, result in kept)
        split = tfds.core.SplitInfo(name=SPLIT, shard_lengths=lengths, num_bytes=size, filename_template=template)
        self.info.set_splits(tfds.core.splits.SplitDict([split]))
        for name, text in self._texts.items():
            (folder / name).write_bytes(os.fsencode(text))  # names of files may be any bytes


def _link(source: Path, target: Path) -> None:
    """Keeps `source` where the disk has links, so that an interrupted preparation need not write it again."""
    try:
        os.link(source, target)
    except OSError:
        shutil.move(source, target)
