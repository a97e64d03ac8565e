"""Data sets as tensorflow-datasets prepares them, written with their builders' own features."""

import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.features.feature import TensorInfo


def prepare(name, shards, split='train', version=None, file_format='array_record', features=None):
    """Writes what `tfds build` would into TFDS_DATA_DIR; returns the folder.  shards: records by file."""
    builder = builder_of(name, file_format)
    builder.info._features = features = features or builder.info.features
    folder = Path(builder.data_dir)
    folder.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=builder.name, split=split, filetype_suffix=file_format
    )
    for file, records in zip(template.sharded_filepaths(len(shards)), shards, strict=True):
        writer = ArrayRecordWriter(str(file), 'group_size:1')
        for record in records:
            writer.write(serialized(features, record))
        writer.close()
    lengths = [len(records) for records in shards]
    split_info = tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=1, filename_template=template)
    builder.info.set_splits(tfds.core.splits.SplitDict([split_info]))
    builder.info.write_to_directory(folder)
    return folder.rename(folder.parent / version) if version else folder


def builder_of(name, file_format):
    name, _, config = name.partition('/')
    chosen = {'config': config} if config else {}
    builder_class = tfds.builder_cls(name)
    with pytest.MonkeyPatch.context() as patch:
        if name == 'coco':  # all that its features take of tensorflow
            tensorflow = types.SimpleNamespace(int64=np.int64)
            patch.setattr(sys.modules[builder_class.__module__], 'tf', tensorflow)
        return builder_class(data_dir=os.environ['TFDS_DATA_DIR'], file_format=file_format, **chosen)


def serialized(features, record):
    with pytest.MonkeyPatch.context() as patch:
        # Sequences of sequences are written without tensorflow but for the type of their elements.
        patch.setattr(TensorInfo, 'dtype', property(lambda info: info.np_dtype))
        return features.serialize_example(record)
