"""Masks in files: each format holds every mask, is read back by others, and appears whole or not at all."""

import errno
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from samples import check, encoded, files, random_image, record

from samjax.jobs import mask_formats
from samjax.jobs.image_collection import LoadedImage
from samjax.jobs.output_folder import OutputFolder
from samjax.visualization.overlays import TINT

RECORDS = [record(2, 3, 9, 20), record(5, 30, 6, 31), record(0, 0, 24, 40)]
JPEG = encoded(random_image(1))
STORED = LoadedImage('sub/a', JPEG, '.jpg', np.array(Image.open(io.BytesIO(JPEG))), True)
ROTATED = LoadedImage('b.c', b'a file of other pixels', '.jpg', np.array(random_image(2)), False)


def masks_of(records):
    return [coco_mask.decode(record['segmentation']) for record in records]


@pytest.fixture
def output(tmp_path):
    return OutputFolder(tmp_path / 'out', tmp_path / 'out' / '.unfinished')


def assert_read(folder, layout, tmp_path, capsys, caplog):
    """`samjax data check` finds both images and all of their masks, without a warning."""
    lines, _ = check(folder, tmp_path, capsys)
    assert lines[0].startswith(f'{folder}: {layout} (')
    assert lines[1:3] == [
        'images: 2; 2 can be used, 0 have no mask, 0 are invalid',
        'masks: 4; least, median and most per image: 1, 2, 3',
    ]
    assert not caplog.records


def test_sa1b_is_as_sa1b(output, tmp_path, capsys, caplog):
    assert mask_formats.write('sa1b', output, 0, STORED, RECORDS) == 'sub/a.jpg'
    assert mask_formats.write('sa1b', output, 1, ROTATED, RECORDS[:1]) == 'b.c.png'
    assert files(output.folder) == ['b.c.json', 'b.c.png', 'sub/a.jpg', 'sub/a.json']
    assert (output.folder / 'sub/a.jpg').read_bytes() == JPEG
    with Image.open(output.folder / 'b.c.png') as image:
        np.testing.assert_array_equal(np.asarray(image), ROTATED.image_HW3)
    content = json.loads((output.folder / 'sub/a.json').read_text())
    assert content['image'] == {'image_id': 1, 'width': 40, 'height': 24, 'file_name': 'a.jpg'}
    first = content['annotations'][0]
    assert first == RECORDS[0] | {'id': 1, 'bbox': [3.0, 2.0, 17.0, 7.0]}
    ids = [annotation['id'] for annotation in json.loads((output.folder / 'b.c.json').read_text())['annotations']]
    assert ids == [100_001]
    assert_read(output.folder, 'SA-1B', tmp_path, capsys, caplog)


def test_coco_is_read_by_pycocotools(output, tmp_path, capsys):
    images = []
    for index, (image, records) in enumerate([(STORED, RECORDS), (ROTATED, []), (ROTATED._replace(name='c'), RECORDS)]):
        file = mask_formats.write('coco', output, index, image, records)
        images.append({'file': file, 'size': [24, 40]})
    mask_formats.write_instances(output, [*images[:1], None, *images[1:2]])  # the second is invalid
    read = json.loads((output.folder / 'instances.json').read_text())
    assert [image['id'] for image in read['images']] == [1, 3]
    assert len(read['annotations']) == 6
    mask_formats.write_instances(output, images)
    read = COCO(output.folder / 'instances.json')
    assert read.loadImgs([1, 2, 3]) == [
        {'id': 1, 'file_name': 'images/sub/a.jpg', 'height': 24, 'width': 40},
        {'id': 2, 'file_name': 'images/b.c.png', 'height': 24, 'width': 40},
        {'id': 3, 'file_name': 'images/c.png', 'height': 24, 'width': 40},
    ]
    assert read.getAnnIds() == [1, 2, 3, 4, 5, 6]
    assert read.getAnnIds(imgIds=[2]) == []
    for image in (1, 3):
        annotations = read.loadAnns(read.getAnnIds(imgIds=[image]))
        for annotation, mask_HW, expected in zip(annotations, masks_of(RECORDS), RECORDS, strict=True):
            np.testing.assert_array_equal(read.annToMask(annotation), mask_HW)
            assert (annotation['category_id'], annotation['iscrowd'], annotation['area']) == (1, 0, expected['area'])
            assert (annotation['predicted_iou'], annotation['stability_score']) == (0.9, 0.97)
    assert read.cats == {1: {'id': 1, 'name': 'object'}}
    capsys.readouterr()  # of pycocotools
    lines, _ = check(output.folder, tmp_path, capsys)
    assert lines[0].startswith(f'{output.folder}: COCO instances (')
    assert lines[1] == 'images: 3; 2 can be used, 1 have no mask, 0 are invalid'


def test_instances_without_any_mask_or_image(output):
    mask_formats.write_instances(
        output, [{'file': mask_formats.write('coco', output, 0, STORED, []), 'size': [24, 40]}]
    )
    content = json.loads((output.folder / 'instances.json').read_text())
    assert (len(content['images']), content['annotations']) == (1, [])


def test_png_is_as_segment_anything_writes_it(output, tmp_path, capsys, caplog):
    assert mask_formats.write('png', output, 0, STORED, RECORDS) == 'images/sub/a.jpg'
    mask_formats.write('png', output, 1, ROTATED, RECORDS[:1])
    assert files(output.folder) == [
        'images/b.c.png', 'images/sub/a.jpg', 'masks/b.c/0.png', 'masks/b.c/metadata.csv', 'masks/sub/a/0.png',
        'masks/sub/a/1.png', 'masks/sub/a/2.png', 'masks/sub/a/metadata.csv',
    ]  # fmt: skip
    for n, mask_HW in enumerate(masks_of(RECORDS)):
        with Image.open(output.folder / f'masks/sub/a/{n}.png') as mask:
            assert mask.mode == 'L'
            np.testing.assert_array_equal(np.asarray(mask), 255 * mask_HW)
    text = (output.folder / 'masks/sub/a/metadata.csv').read_text()
    assert text.startswith('id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,')
    assert text.splitlines()[1] == '0,119,3.0,2.0,16.0,6.0,3.5,2.25,0.9,0.97,0.0,0.0,40.0,24.0'
    assert [len(line.split(',')) for line in text.splitlines()] == [14] * 4
    assert_read(output.folder, 'images and masks', tmp_path, capsys, caplog)


def test_png_written_again_has_nothing_of_before(output):
    mask_formats.write('png', output, 0, STORED, RECORDS)
    mask_formats.write('png', output, 0, STORED, RECORDS[:1])
    assert files(output.folder / 'masks') == ['sub/a/0.png', 'sub/a/metadata.csv']


def test_overlay_shows_small_masks_over_large_ones(output):
    assert mask_formats.write('overlay', output, 0, STORED, RECORDS) == 'sub/a.png'
    assert files(output.folder) == ['sub/a.png']
    with Image.open(output.folder / 'sub/a.png') as image:
        drawn_HW3 = np.asarray(image).astype(int)
    shift_HW3 = drawn_HW3 - (1 - TINT) * STORED.image_HW3
    inside, around = shift_HW3[4:7, 6:15].reshape(-1, 3), shift_HW3[12:22, 2:38].reshape(-1, 3)
    assert np.ptp(inside, axis=0).max() <= 1
    assert np.ptp(around, axis=0).max() <= 1
    assert np.abs(inside.mean(0) - around.mean(0)).max() > 50
    border = {tuple(colour) for colour in drawn_HW3[2, 3:20]}
    assert len(border) == 1
    np.testing.assert_array_equal(mask_formats.draw_masks(STORED.image_HW3, []), STORED.image_HW3)


def test_every_format_takes_an_image_without_masks(output):
    for name in mask_formats.FORMATS:
        folder = OutputFolder(output.folder / name, output.folder / name / '.unfinished')
        file = mask_formats.write(name, folder, 0, STORED, [])
        assert (folder.folder / file).is_file()
    assert json.loads((output.folder / 'sa1b/sub/a.json').read_text())['annotations'] == []
    assert files(output.folder / 'png/masks') == ['sub/a/metadata.csv']


@pytest.mark.parametrize(
    ('output_format', 'which'),
    [('sa1b', 0), ('sa1b', 1), ('coco', 0), ('coco', 1), ('png', 0), ('png', 1), ('overlay', 0)],
)
def test_error_leaves_nothing_cut_off(output, monkeypatch, output_format, which):
    """The disk gets full in the middle of the first or second file."""
    written, write_bytes = [], Path.write_bytes

    def full(path, data):
        if len(written) == which:
            write_bytes(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        return write_bytes(path, data)

    monkeypatch.setattr(Path, 'write_bytes', full)
    monkeypatch.setattr(Path, 'write_text', lambda path, text: full(path, text.encode()))
    with pytest.raises(OSError, match='No space left'):
        mask_formats.write(output_format, output, 0, STORED, RECORDS)
    whole = ['sub/a.jpg', 'images/sub/a.jpg']
    assert [file for file in files(output.folder) if file not in whole] == []
    monkeypatch.undo()
    mask_formats.write(output_format, output, 0, STORED, RECORDS)
