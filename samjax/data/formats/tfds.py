"""Data sets of images that tensorflow-datasets prepares, each with a small function from record to masks; no videos."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from tensorflow_datasets.core.constants import get_default_data_dir

from samjax.data.formats.causes import Causes
from samjax.data.formats.dataset_index import SHARD_SIZE, AnnotatedImage, DatasetIndex
from samjax.errors import InvalidExample, SamjaxError, reason
from samjax.images.open import image_size
from samjax.masks.rle import encode_labels
from samjax.storage import digest

PREFIX = 'tfds:'
FORMAT = 'array_record'  # the only format with random access without TensorFlow
PATH = re.compile(PREFIX + r'(?P<name>\w+(/[\w.-]+)?)(:(?P<version>\d+\.\d+\.\d+))?(@(?P<split>[\w.-]+))?')
VERSION = re.compile(r'\d+\.\d+\.\d+')


def open_index(path: str) -> DatasetIndex:
    """The split that `path` names, as TFDS prepared it in TFDS_DATA_DIR or else in ~/tensorflow_datasets.

    path: tfds:NAME[/CONFIG][:VERSION][@SPLIT], such as tfds:coco/2017_panoptic@validation; NAME[/CONFIG]
    is one of DATASETS, the default VERSION is the latest on disk, the default SPLIT is train.

    Raises:
        SamjaxError: the path is not of this form, DATASETS lacks the name, or the split is not there as ArrayRecord
            with all its files and records and the features that DATASETS needs.
    """
    name, version, split = _parse(path)
    folder = _folder(path, name, version)
    info = _info(path, name, folder)
    if split not in info.splits:
        known = ', '.join(info.splits)
        raise SamjaxError(f'{path}: {folder} has no split {split!r}: name one of those that it has, {known}')
    prepared = PreparedSplit(path, name, str(folder), split)
    try:
        files = info.splits[split].filepaths
    except Exception as error:  # a damaged pattern of their names
        raise SamjaxError(f'{path}: {folder} cannot be read ({reason(error)}): prepare the data set again') from error
    if not files:
        raise SamjaxError(f'{path}: {folder} says that the split {split!r} is empty: prepare the data set again')
    _check_counts(path, files, info.splits[split].shard_lengths)
    count = info.splits[split].num_examples
    shards = [RecordRange(prepared, first, min(first + SHARD_SIZE, count)) for first in range(0, count, SHARD_SIZE)]
    return DatasetIndex(f'{name} of tensorflow-datasets', shards, _digest(prepared, files))


class PreparedSplit(NamedTuple):
    """A split of one of DATASETS on disk."""

    path: str  # as the user wrote it
    name: str  # key of DATASETS
    folder: str
    split: str


class RecordRange(NamedTuple):
    """The shard of the records from `first` to before `stop`."""

    prepared: PreparedSplit
    first: int
    stop: int

    @property
    def key(self) -> str:
        return f'{self.first:08d}'

    @property
    def weight(self) -> float:
        return float(self.stop - self.first)

    def items(self) -> Iterator[Record]:
        return (Record(self.prepared, index) for index in range(self.first, self.stop))


class Record(NamedTuple):
    """The item of a record; its name is its number, since the name that TFDS gives it would have to be read."""

    prepared: PreparedSplit
    index: int

    @property
    def name(self) -> str:
        return f'{self.index:08d}'

    @property
    def location(self) -> str:
        return f'{self.prepared.path} record {self.index}'

    def load(self) -> AnnotatedImage:
        """Raises InvalidExample."""
        _, name, folder, split = self.prepared
        try:
            record = _data_source(name, folder, split, os.getpid())[self.index]
            return DATASETS[name].annotated(record)._replace(as_stored=True)
        except InvalidExample:
            raise
        except Exception as error:  # ArrayRecord, protobuf and pillow raise nearly anything on damaged data
            raise InvalidExample('unreadable record', reason(error)) from error


class TfdsFormat(NamedTuple):
    """How the records of a data set are read."""

    encoded: tuple[str, ...]  # features that hold an encoded image, which is not to be decoded
    annotated: Callable[[dict], AnnotatedImage]  # of a record


# ---- from record to masks --------------------------------------------------------------------------


def _coco_panoptic(record: dict) -> AnnotatedImage:
    """Each thing and each kind of stuff; pixels of no segment are void."""
    with Image.open(io.BytesIO(record['panoptic_image'])) as image:
        rgb_HW3 = np.asarray(image.convert('RGB'), np.int64)
    ids_HW = rgb_HW3 @ [1, 256, 256**2]
    rles = encode_labels(ids_HW)
    segments, masks, skipped = record['panoptic_objects'], [], Causes()
    is_crowd = {int(id): bool(crowd) for id, crowd in zip(segments['id'], segments['is_crowd'], strict=True)}
    for id, crowd in is_crowd.items():
        if crowd:
            skipped.add('crowd', f'segment {id}')
        elif id not in rles:
            skipped.add('no pixels', f'segment {id}')
        else:
            masks.append(rles[id])
    return AnnotatedImage(record['image'], ids_HW.shape, masks, skipped)


def _lvis(record: dict) -> AnnotatedImage:
    return _mask_files(record['image'], record['objects']['segmentation'])


def _ref_coco(record: dict) -> AnnotatedImage:
    """Each object that expressions refer to, once."""
    objects = record['objects']
    files = dict(zip(objects['id'], objects['mask'], strict=True))
    return _mask_files(record['image'], files.values())


def _breasts(record: dict) -> AnnotatedImage:
    """Each abnormality."""
    return _mask_files(record['image'], record['abnormalities']['mask'])


def _segment_anything(record: dict) -> AnnotatedImage:
    image, annotations = record['image'], record['annotations']
    rles = annotations['segmentation']
    scores = annotations['predicted_iou'], annotations['stability_score']
    masks = [
        {'size': size.tolist(), 'counts': counts, 'predicted_iou': float(iou), 'stability_score': float(stability)}
        for size, counts, iou, stability in zip(rles['size'], rles['counts'], *scores, strict=True)
    ]
    return AnnotatedImage(image['content'], (image['height'], image['width']), masks)


def _scene_parse(record: dict) -> AnnotatedImage:
    """Each instance of ADE20K's 100 classes of things; red is the class, green the instance within the image."""
    with Image.open(io.BytesIO(record['annotation'])) as image:
        instances_HW = np.asarray(image.convert('RGB'))[..., 1]
    return _label_map(record['image'], instances_HW)


def _cityscapes(record: dict) -> AnnotatedImage:
    """One mask per class present, of labelIds.png: TFDS has no instances of this data set."""
    void = *range(7), 255  # unlabeled, ego vehicle, .. ground are of category void; 255 would be id -1
    return _label_map(record['image_left'], _pixels(record['segmentation_label']), void)


def _lost_and_found(record: dict) -> AnnotatedImage:
    """The free space on the road, and each obstacle, of instanceIds.png: 1000 x class + number, in 16 bits.

    TFDS would decode to 8 bits and so mix up the obstacles.
    """
    return _label_map(record['image_left'], _pixels(record['instance_id']))


def _lost_and_found_classes(record: dict) -> AnnotatedImage:
    """The free space on the road, and one mask per class of obstacle present, of labelIds.png."""
    return _label_map(record['image_left'], _pixels(record['segmentation_label']))


def _pet(record: dict) -> AnnotatedImage:
    """The pet: 1 and 3 of the trimap, whose 2 is background."""
    # 3 is a band along the outline left undecided; without it the pet would lose ears, paws and tail.
    return _label_map(record['image'], _pixels(record['segmentation_mask']) != 2)


def _birds_2010(record: dict) -> AnnotatedImage:
    """The bird."""
    return _label_map(record['image'], _pixels(record['segmentation_mask']) > 0)


def _birds_2011(record: dict) -> AnnotatedImage:
    """The bird by majority: the file has a step of 51 for each of five annotators who marked the pixel."""
    return _label_map(record['image'], _pixels(record['segmentation_mask']) > 127)


def _mask_files(image: bytes, files: Iterable[bytes]) -> AnnotatedImage:
    """One mask per file, where it is not 0; files of zeros only are left out."""
    masks_HW = [_pixels(file) > 0 for file in files]
    masks = [rle for mask_HW in masks_HW for rle in encode_labels(mask_HW).values()]
    return AnnotatedImage(image, masks_HW[0].shape if masks_HW else image_size(image), masks)


def _label_map(image: bytes, labels_HW: np.ndarray, ignore: tuple[int, ...] = (0,)) -> AnnotatedImage:
    """One mask per label, but those to ignore."""
    return AnnotatedImage(image, labels_HW.shape, list(encode_labels(labels_HW, ignore).values()))


def _pixels(file: bytes) -> np.ndarray:
    """[H, W] as the file has them: 1, 8 or 16 bits, or indices of a palette.  Raises ValueError for colours."""
    with Image.open(io.BytesIO(file)) as image:
        pixels_HW = np.asarray(image)
    if pixels_HW.ndim != 2:
        raise ValueError(f'labels as an image of mode {image.mode}, which has several numbers per pixel')
    return pixels_HW


REF_COCO = TfdsFormat(('image', 'objects/mask'), _ref_coco)
BREASTS = TfdsFormat(('image', 'abnormalities/mask'), _breasts)
CITYSCAPES = TfdsFormat(('image_left', 'segmentation_label'), _cityscapes)

DATASETS = {
    'caltech_birds2010': TfdsFormat(('image', 'segmentation_mask'), _birds_2010),
    'caltech_birds2011': TfdsFormat(('image', 'segmentation_mask'), _birds_2011),
    'cityscapes/semantic_segmentation': CITYSCAPES,
    'cityscapes/semantic_segmentation_extra': CITYSCAPES,
    'coco/2017_panoptic': TfdsFormat(('image', 'panoptic_image'), _coco_panoptic),
    'curated_breast_imaging_ddsm/original-calc': BREASTS,
    'curated_breast_imaging_ddsm/original-mass': BREASTS,
    'lost_and_found/full': TfdsFormat(('image_left', 'instance_id'), _lost_and_found),
    'lost_and_found/semantic_segmentation': TfdsFormat(('image_left', 'segmentation_label'), _lost_and_found_classes),
    'lvis': TfdsFormat(('image', 'objects/segmentation'), _lvis),
    'oxford_iiit_pet': TfdsFormat(('image', 'segmentation_mask'), _pet),
    'ref_coco/refcoco_google': REF_COCO,
    'ref_coco/refcoco_unc': REF_COCO,
    'ref_coco/refcocog_google': REF_COCO,
    'ref_coco/refcocog_umd': REF_COCO,
    'ref_coco/refcocoplus_unc': REF_COCO,
    'scene_parse150': TfdsFormat(('image', 'annotation'), _scene_parse),
    'segment_anything': TfdsFormat(('image/content',), _segment_anything),
}


# ---- files on disk -----------------------------------------------------------------------------


def _parse(path: str) -> tuple[str, str | None, str]:
    """Name as in DATASETS, version if the path has one, and split."""
    parts = PATH.fullmatch(path)
    if not parts:
        raise SamjaxError(
            f'{path} cannot be read: it must be tfds:NAME[/CONFIG][:VERSION][@SPLIT], '
            'such as tfds:coco/2017_panoptic@train'
        )
    if parts['name'] not in DATASETS:
        raise SamjaxError(
            f'{path}: samjax has no masks for {parts["name"]} of tensorflow-datasets: name one of {", ".join(DATASETS)}'
        )
    return parts['name'], parts['version'], parts['split'] or 'train'


def _folder(path: str, name: str, version: str | None) -> Path:
    """The folder of this version, or else of the latest."""
    data = Path(get_default_data_dir()).expanduser()
    versions = [file.parent for file in (data / name).glob('*/features.json') if VERSION.fullmatch(file.parent.name)]
    if version:
        versions = [folder for folder in versions if folder.name == version]
    if not versions:
        wanted = f'{name}:{version}' if version else name
        raise SamjaxError(
            f'{path}: {wanted} is not in {data}: prepare it with `tfds build {wanted} --file_format={FORMAT}`, '
            'which needs tensorflow, or set TFDS_DATA_DIR to the folder where it is'
        )
    return max(versions, key=lambda folder: tfds.core.Version(folder.name)).resolve()


def _info(path: str, name: str, folder: Path) -> tfds.core.DatasetInfo:
    """TFDS's description of the data set, checked."""
    try:
        info = tfds.builder_from_directory(folder).info
    except Exception as error:  # nearly anything, if a JSON is damaged
        raise SamjaxError(f'{path}: {folder} cannot be read ({reason(error)}): prepare the data set again') from error
    formats = [known.value for known in info.available_file_formats()]
    if FORMAT not in formats:
        raise SamjaxError(
            f'{path}: {folder} is in the format {" and ".join(formats)}: prepare it with --file_format={FORMAT}, or '
            f'run `tfds convert_format --dataset_version_dir={folder} --out_file_format={FORMAT}`; both need tensorflow'
        )
    info.set_file_format(FORMAT, override=True, override_if_initialized=True)  # it may have another one as well
    for feature in DATASETS[name].encoded:
        if not _has(info.features, feature):
            raise SamjaxError(f'{path}: {folder} has no feature {feature}: prepare a later version of {name}')
    return info


def _check_counts(path: str, files: Sequence[os.PathLike], counts: Sequence[int]) -> None:
    """Raises SamjaxError if the description of a split counts other records than a file has."""
    for file, count in zip(files, counts, strict=True):
        try:
            with contextlib.closing(ArrayRecordReader(str(file))) as reader:
                actual = reader.num_records()
        except Exception:  # what is damaged is reported record by record, what is missing by `_digest`
            continue
        if actual != count:
            raise SamjaxError(
                f'{path}: {file} has {actual} records, and dataset_info.json says {count}: prepare the data set again'
            )


def _has(features: tfds.features.FeatureConnector, feature: str) -> bool:
    outer, _, inner = feature.partition('/')
    return outer in features and (not inner or _has(features[outer], inner))


def _digest(prepared: PreparedSplit, files: list[os.PathLike]) -> str:
    """Digest of the folder, the split, and the description and files of the split."""
    for file in files:
        try:
            os.stat(file)
        except OSError as error:
            raise SamjaxError(
                f'{prepared.path}: {file} cannot be read ({error.strerror}): prepare the data set again'
            ) from error
    folder = Path(prepared.folder)
    named = [(f'{prepared.split}/{Path(file).name}', file) for file in files]
    return digest.of_files(folder, [('dataset_info.json', folder / 'dataset_info.json'), *named])


@functools.lru_cache
def _data_source(name: str, folder: str, split: str, process: int):
    """Random access to the records; opened anew in a forked `process`, which cannot share the readers' threads."""
    decoders: dict = {}
    for feature in DATASETS[name].encoded:
        *outer, inner = feature.split('/')
        level = decoders
        for part in outer:
            level = level.setdefault(part, {})
        level[inner] = KeepEncoded()
    return tfds.builder_from_directory(folder).as_data_source(split, decoders=decoders, file_format=FORMAT)


class KeepEncoded(tfds.decode.SkipDecoding):
    """Leaves images encoded, within a sequence too, where SkipDecoding fails without TensorFlow."""

    def decode_batch_example_np(self, files: Iterable[bytes]) -> list[bytes]:
        return list(files)
