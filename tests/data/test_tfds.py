"""Sets as tensorflow-datasets prepares them: each is written with its builder's own features, then read."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from pycocotools import mask as coco
from tfds_sets import prepare

from samjax.data.formats import tfds as tfds_format
from samjax.errors import InvalidExample, SamjaxError

BOX = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
ANNOTATION = {'id': 1, 'area': 2, 'bbox': BOX, 'label': 3}

# 3 x 4 px: two objects and nothing
A = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], np.uint8)
B = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], np.uint8)
O = np.zeros((3, 4), np.uint8)
PIXELS = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """The folder that TFDS_DATA_DIR names."""
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'data'))
    return tmp_path / 'data'


def encoded(pixels, mode='PNG'):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, mode)
    return file.getvalue()


def pet(pixels=A, **changed):
    return {
        'image': encoded(PIXELS), 'label': 0, 'species': 0, 'file_name': 'x.jpg', 'head_bbox': BOX,
        'segmentation_mask': encoded(np.where(pixels, 1, 2).astype(np.uint8)), **changed,
    }  # fmt: skip


# ---- each set --------------------------------------------------------------------------------------


def bird(pixels):
    return {
        'image': encoded(PIXELS, 'JPEG'), 'image/filename': 'x.jpg', 'label': 0, 'label_name': 'x', 'bbox': BOX,
        'segmentation_mask': encoded(np.array(pixels, np.uint8)),
    }  # fmt: skip


def street(feature, pixels, **others):
    labels = encoded(np.array(pixels))
    return {'image_left': encoded(PIXELS), 'image_id': 'x', feature: labels, **others}


def panoptic():
    """Ids 70000 and 300 with pixels, 5 a crowd, 7 without pixels; 0 and 9, which are not listed, are void."""
    ids = np.array([[70000, 70000, 0, 9], [70000, 5, 300, 300], [5, 5, 300, 300]])
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], -1).astype(np.uint8)
    segments = [
        ANNOTATION | {'id': id, 'is_crowd': crowd}
        for id, crowd in [(300, False), (5, True), (70000, False), (7, False)]
    ]
    return {
        'image': encoded(PIXELS, 'JPEG'), 'image/filename': 'x.jpg', 'image/id': 1, 'panoptic_image': encoded(rgb),
        'panoptic_image/filename': 'x.png', 'panoptic_objects': segments,
    }  # fmt: skip


def lvis(masks):
    objects = [ANNOTATION | {'segmentation': encoded(mask * np.uint8(255))} for mask in masks]
    return {
        'image': encoded(PIXELS, 'JPEG'), 'image/id': 1, 'neg_category_ids': [2], 'not_exhaustive_category_ids': [],
        'objects': objects,
    }  # fmt: skip


def expressions(masks):
    """The last object comes twice; two expressions for the first, one for each of the others."""
    objects = [
        ANNOTATION | {
            'id': id,
            'gt_box_index': 0,
            'mask': encoded(mask.astype(bool)),
            'refexp': [{'refexp_id': 1, 'raw': 'left'}] * (2 if id == 0 else 1),
        }
        for id, mask in enumerate(masks)
    ]  # fmt: skip
    return {
        'image': encoded(PIXELS, 'JPEG'), 'image/id': 1, 'objects': objects + objects[-1:],
        'coco_annotations': [ANNOTATION],
    }  # fmt: skip


def breast(masks, **others):
    abnormalities = [
        {'id': 1, 'mask': encoded(mask * np.uint8(255)), 'assessment': 0, 'pathology': 0, 'subtlety': 0, **others}
        for mask in masks
    ]
    return {
        'id': 'x', 'breast': 0, 'image': encoded(PIXELS[..., 0]), 'view': 0, 'patient': 'x',
        'abnormalities': abnormalities,
    }  # fmt: skip


def sa1b(masks):
    annotations = [
        {
            'area': mask.sum(), 'bbox': np.array([0.0, 0, 1, 1]), 'crop_box': np.array([0.0, 0, 1, 1]), 'id': 1,
            'point_coords': [[1.5, 2.5]], 'predicted_iou': 0.75, 'stability_score': 0.5,
            'segmentation': {'size': [3, 4], 'counts': coco.encode(np.asfortranarray(mask))['counts'].decode()},
        }
        for mask in masks
    ]  # fmt: skip
    image = {'content': encoded(PIXELS, 'JPEG'), 'file_name': 'x.jpg', 'height': 3, 'width': 4, 'image_id': 1}
    return {'image': image, 'annotations': annotations}


TWO_CLASSES = np.where(A, 24, 0) + np.where(B, 11, 0)
LABELS = TWO_CLASSES.astype(np.uint8)
LABELS[0, 2:] = 255, 6
INSTANCES = (np.where(A, 26002, 0) + np.where(B, 26258, 0)).astype(np.uint16)  # equal but for the upper 8 bits
INSTANCES[0, 3] = 1
ROAD = np.array([[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]], np.uint8)
SCENE = np.stack([5 * (A | B), A + 2 * B, O], -1)
STEREO = {'image_right': encoded(PIXELS), 'disparity_map': encoded(O), 'segmentation_label': encoded(O)}
TRIMAP = np.array([[1, 3, 2, 2], [3, 2, 2, 2], [2, 2, 2, 2]], np.uint8)
VOTES = [[255, 153, 102, 0], [204, 51, 0, 0], [0, 0, 0, 0]]

CASES = {
    'caltech_birds2010': (bird(A), [A]),
    'caltech_birds2011': (bird(VOTES), [A]),
    'cityscapes/semantic_segmentation': (street('segmentation_label', LABELS), [B, A]),
    'cityscapes/semantic_segmentation_extra': (street('segmentation_label', LABELS), [B, A]),
    'coco/2017_panoptic': (panoptic(), [B, A]),
    'curated_breast_imaging_ddsm/original-calc': (breast([A, B], calc_type=0, calc_distribution=0), [A, B]),
    'curated_breast_imaging_ddsm/original-mass': (breast([A, B], mass_shape=0, mass_margins=0), [A, B]),
    'lost_and_found/full': (street('instance_id', INSTANCES, **STEREO), [ROAD, A, B]),
    'lost_and_found/semantic_segmentation': (street('segmentation_label', A + 2 * B), [A, B]),
    'lvis': (lvis([A, O, B]), [A, B]),
    'oxford_iiit_pet': (pet(segmentation_mask=encoded(TRIMAP)), [A]),
    'ref_coco/refcoco_google': (expressions([A, B]), [A, B]),
    'ref_coco/refcoco_unc': (expressions([A, B]), [A, B]),
    'ref_coco/refcocog_google': (expressions([A, B]), [A, B]),
    'ref_coco/refcocog_umd': (expressions([A, B]), [A, B]),
    'ref_coco/refcocoplus_unc': (expressions([A, B]), [A, B]),
    'scene_parse150': ({'image': encoded(PIXELS, 'JPEG'), 'annotation': encoded(SCENE)}, [A, B]),
    'segment_anything': (sa1b([A, B]), [A, B]),
}


def test_every_set_has_a_case():
    assert CASES.keys() == tfds_format.DATASETS.keys()


@pytest.mark.parametrize('name', CASES)
def test_masks_of_a_set(name):
    record, masks = CASES[name]
    prepare(name, [[record]], 'validation')
    index = tfds_format.open_index(f'tfds:{name}@validation')
    assert index.layout == f'{name} of tensorflow-datasets'
    [item] = items(index)
    assert (item.name, item.location) == ('00000000', f'tfds:{name}@validation record 0')
    annotated = item.load()
    image = record['image'] if 'image' in record else record['image_left']
    assert annotated.image == (image['content'] if isinstance(image, dict) else image)
    assert annotated.size == (3, 4)
    assert_masks(annotated, masks)
    assert annotated.skipped_masks.counts == ({'crowd': 1, 'no pixels': 1} if name == 'coco/2017_panoptic' else {})


def test_scores_of_segment_anything():
    prepare('segment_anything', [[sa1b([A])]])
    [item] = items(tfds_format.open_index('tfds:segment_anything'))
    [mask] = item.load().masks
    assert mask == coco.encode(np.asfortranarray(A)) | {'predicted_iou': 0.75, 'stability_score': 0.5}


NOTHING = {
    'lvis': lvis([]),
    'ref_coco/refcoco_unc': expressions([]),
    'segment_anything': sa1b([]),
    'coco/2017_panoptic': panoptic() | {'panoptic_objects': []},
    'cityscapes/semantic_segmentation': street('segmentation_label', O),
}


@pytest.mark.parametrize('name', NOTHING)
def test_an_image_without_masks(name):
    prepare(name, [[NOTHING[name]]])
    [item] = items(tfds_format.open_index(f'tfds:{name}'))
    annotated = item.load()
    assert (annotated.size, annotated.masks, annotated.skipped_masks.counts) == ((3, 4), [], {})


def test_size_is_that_of_the_masks():
    prepare('lvis', [[lvis([A.T])]])  # as for an image that EXIF rotates
    [item] = items(tfds_format.open_index('tfds:lvis'))
    assert item.load().size == (4, 3)


def items(index):
    return [item for shard in index.shards for item in shard.items()]


def assert_masks(annotated, expected):
    assert len(annotated.masks) == len(expected)
    for mask, expected_HW in zip(annotated.masks, expected, strict=True):
        np.testing.assert_array_equal(coco.decode(mask), expected_HW)


# ---- shards and items -------------------------------------------------------------------------------


@pytest.fixture
def five():
    """Five records in two files, the number of object pixels telling them apart; returns the folder."""
    records = [pet(np.arange(12).reshape(3, 4) <= number) for number in range(5)]
    return prepare('oxford_iiit_pet', [records[:3], records[3:]])


def areas(items):
    return [int(coco.area(mask)) for item in items for mask in item.load().masks]


def test_shards_cover_the_records_in_order(five, monkeypatch):
    monkeypatch.setattr(tfds_format, 'SHARD_SIZE', 2)
    shards = tfds_format.open_index('tfds:oxford_iiit_pet@train').shards
    assert [shard.weight for shard in shards] == [2.0, 2.0, 1.0]
    assert [shard.key for shard in shards] == ['00000000', '00000002', '00000004']
    assert [[item.name for item in shard.items()] for shard in shards] == [
        ['00000000', '00000001'], ['00000002', '00000003'], ['00000004'],
    ]  # fmt: skip
    assert [areas(shard.items()) for shard in shards] == [[1, 2], [3, 4], [5]]
    assert shards[2].prepared.split == 'train'


def test_shards_and_items_are_pickled_small(five):
    [shard] = tfds_format.open_index('tfds:oxford_iiit_pet').shards
    item = list(shard.items())[3]
    item.load()  # opens the files
    for part in (shard, item):
        data = pickle.dumps(part)
        assert len(data) < 1000
        assert pickle.loads(data) == part
    assert areas(pickle.loads(pickle.dumps(shard)).items()) == [1, 2, 3, 4, 5]


def test_files_are_opened_once_per_process(five, monkeypatch):
    [shard] = tfds_format.open_index('tfds:oxford_iiit_pet').shards
    opened = []
    build = tfds.builder_from_directory
    monkeypatch.setattr(tfds, 'builder_from_directory', lambda folder: opened.append(folder) or build(folder))
    assert areas(shard.items()) == [1, 2, 3, 4, 5]
    assert len(opened) == 1
    monkeypatch.setattr(tfds_format.os, 'getpid', lambda: -1)  # as after a fork
    assert areas(shard.items()) == [1, 2, 3, 4, 5]
    assert len(opened) == 2


def test_digest_follows_what_the_split_consists_of(five):
    def digest(split='train'):
        return tfds_format.open_index(f'tfds:oxford_iiit_pet@{split}').digest

    before = digest()
    assert len(before) == 32
    assert digest() == before
    file = sorted(five.glob('*.array_record*'))[1]
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    os.utime(file, ns=(times[0], times[1] + 1000))
    assert digest() != before
    os.utime(file, ns=times)
    assert digest() == before
    info = five / 'dataset_info.json'
    info.write_text(info.read_text() + '\n')
    assert digest() != before


def test_digest_depends_on_the_folder_that_links_lead_to(five, data, monkeypatch):
    digest = tfds_format.open_index('tfds:oxford_iiit_pet').digest
    shutil.copytree(data, data.with_name('copy'))
    monkeypatch.setenv('TFDS_DATA_DIR', str(data.with_name('copy')))
    assert tfds_format.open_index('tfds:oxford_iiit_pet').digest != digest
    data.with_name('link').symlink_to(data)
    monkeypatch.setenv('TFDS_DATA_DIR', str(data.with_name('link')))
    assert tfds_format.open_index('tfds:oxford_iiit_pet').digest == digest


# ---- where it looks --------------------------------------------------------------------------------


def test_default_folder_and_split(five, data, monkeypatch):
    monkeypatch.delenv('TFDS_DATA_DIR')
    monkeypatch.setenv('HOME', str(data.parent))
    data.rename(data.parent / 'tensorflow_datasets')
    assert len(items(tfds_format.open_index('tfds:oxford_iiit_pet'))) == 5
    monkeypatch.setenv('TFDS_DATA_DIR', '~/tensorflow_datasets')
    assert len(items(tfds_format.open_index('tfds:oxford_iiit_pet'))) == 5


def test_latest_version_unless_one_is_named():
    for version, count in [('3.10.0', 3), ('3.9.0', 2), ('incomplete.3.11.0', 1)]:
        prepare('oxford_iiit_pet', [[pet()] * count], version=version)
    assert len(items(tfds_format.open_index('tfds:oxford_iiit_pet'))) == 3
    assert len(items(tfds_format.open_index('tfds:oxford_iiit_pet:3.9.0@train'))) == 2
    with pytest.raises(SamjaxError, match='oxford_iiit_pet:3.8.0 is not in .*`tfds build oxford_iiit_pet:3.8.0 '):
        tfds_format.open_index('tfds:oxford_iiit_pet:3.8.0')


def test_array_record_beside_another_format(five):
    info = five / 'dataset_info.json'
    text = info.read_text().replace('"fileFormat": "array_record"', '"fileFormat": "tfrecord"')
    info.write_text(text.replace('{', '{"alternativeFileFormats": ["array_record"],', 1))
    assert areas(items(tfds_format.open_index('tfds:oxford_iiit_pet'))) == [1, 2, 3, 4, 5]


def test_tensorflow_is_not_imported():
    for name, (record, _) in CASES.items():
        prepare(name, [[record]])
    code = """
        import sys
        from samjax.data.formats import tfds as tfds_format

        for name in tfds_format.DATASETS:
            [shard] = tfds_format.open_index(f'tfds:{name}').shards
            print(name, *[len(item.load().masks) for item in shard.items()])
        assert 'tensorflow' not in sys.modules
    """
    run = [sys.executable, '-c', textwrap.dedent(code)]
    out = subprocess.run(run, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert out.stderr == ''
    assert out.stdout.splitlines() == [f'{name} {len(masks)}' for name, (_, masks) in CASES.items()]


# ---- invalid input -------------------------------------------------------------------------------------


def refusal(path):
    with pytest.raises(SamjaxError) as error:
        tfds_format.open_index(path)
    message = str(error.value)
    assert message.startswith(path)
    assert '\n' not in message
    return message


@pytest.mark.parametrize('path', ['tfds:', 'tfds:lvis@', 'tfds:lvis/', 'tfds:lvis:latest', 'tfds:lvis@train[:10%]'])
def test_malformed_path(path):
    assert 'must be tfds:NAME[/CONFIG][:VERSION][@SPLIT], such as tfds:coco/2017_panoptic@train' in refusal(path)


@pytest.mark.parametrize('name', ['mnist', 'coco/2017', 'cityscapes', 'davis/480p'])
def test_unknown_set(name):
    message = refusal(f'tfds:{name}@train')
    assert f'samjax has no masks for {name} of tensorflow-datasets: ' in message
    assert message.endswith(', '.join(tfds_format.DATASETS))


def test_set_that_is_not_there(data):
    message = refusal('tfds:coco/2017_panoptic@train')
    assert f'coco/2017_panoptic is not in {data}: ' in message
    assert '`tfds build coco/2017_panoptic --file_format=array_record`, which needs tensorflow' in message
    assert 'or set TFDS_DATA_DIR to the folder where it is' in message


def test_split_that_is_not_there(five):
    message = refusal('tfds:oxford_iiit_pet@validation')
    assert f"{five} has no split 'validation': name one of those that it has, train" in message


def test_another_file_format(data):
    folder = prepare('oxford_iiit_pet', [[pet()]], file_format='tfrecord')
    message = refusal('tfds:oxford_iiit_pet')
    assert f'{folder} is in the format tfrecord: prepare it with --file_format=array_record, or ' in message
    assert f'`tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record`' in message


def test_version_without_masks():
    features = tfds.features.FeaturesDict({'image': tfds.features.Image(), 'objects': {'id': np.int64}})
    record = {'image': encoded(PIXELS), 'objects': {'id': 1}}
    folder = prepare('ref_coco/refcoco_unc', [[record]], version='1.0.0', features=features)
    message = refusal('tfds:ref_coco/refcoco_unc')
    assert f'{folder} has no feature objects/mask: prepare a later version of ref_coco/refcoco_unc' in message


@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json'])
def test_damaged_description(name, five):
    (five / name).write_text('{')
    message = refusal('tfds:oxford_iiit_pet')
    assert f'{five} cannot be read (' in message
    assert message.endswith('): prepare the data set again')


def test_missing_file(five):
    file = sorted(five.glob('*.array_record*'))[1]
    file.unlink()
    message = refusal('tfds:oxford_iiit_pet')
    assert f'{file} cannot be read (No such file or directory): prepare the data set again' in message


def test_description_that_counts_other_records(five):
    """Fewer would be left out without a word."""
    info = five / 'dataset_info.json'
    text = info.read_text()
    assert text.count('"3"') == 1
    for count in ('2', '4'):
        info.write_text(text.replace('"3"', f'"{count}"'))
        message = refusal('tfds:oxford_iiit_pet')
        assert f'-00000-of-00002 has 3 records, and dataset_info.json says {count}: prepare the data' in message


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('{SHARD_X_OF_Y}"', '{SHARD_{X_OF_Y}"', 'cannot be read ('),
        ('{SHARD_X_OF_Y}"', '{X}"', 'cannot be read ('),
        ('"3",', '', '-00001 cannot be read (No such file or directory)'),
        ('"shardLengths"', '"numBytes"', 'cannot be read ('),
    ],
)
def test_description_of_other_files(five, old, new, message):
    info = five / 'dataset_info.json'
    text = info.read_text()
    assert old in text
    info.write_text(text.replace(old, new))
    assert message in refusal('tfds:oxford_iiit_pet')


def test_split_without_files(five):
    info = five / 'dataset_info.json'
    content = json.loads(info.read_text())
    del content['splits'][0]['shardLengths']
    info.write_text(json.dumps(content))
    assert f"{five} says that the split 'train' is empty: " in refusal('tfds:oxford_iiit_pet')


def test_unreadable_record():
    colours = pet(segmentation_mask=encoded(PIXELS))
    prepare('oxford_iiit_pet', [[pet(), pet(segmentation_mask=b'no image'), colours, pet()]])
    good, no_image, colours, last = items(tfds_format.open_index('tfds:oxford_iiit_pet'))
    assert areas([good, last]) == [3, 3]
    assert 'cannot identify image file' in invalid_detail(no_image)
    assert 'labels as an image of mode RGB, which has several numbers per pixel' in invalid_detail(colours)


def test_damaged_file(five):
    first, second = sorted(five.glob('*.array_record*'))
    second.write_bytes(second.read_bytes()[:100])
    damaged = items(tfds_format.open_index('tfds:oxford_iiit_pet'))
    assert areas(damaged[:3]) == [1, 2, 3]
    assert invalid_detail(damaged[3])


def invalid_detail(item):
    with pytest.raises(InvalidExample) as error:
        item.load()
    assert error.value.cause == 'unreadable record'
    assert '\n' not in error.value.detail
    return error.value.detail
