"""`samjax data check`: what a data set is, what is wrong with it, and what training would draw of it."""

import json

import numpy as np
import pytest
from PIL import Image
from samples import check, content, mask, random_image, write

from samjax.cli.main import main


def polygon(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def test_everything_wrong_with_a_coco_file_is_reported(tmp_path, capsys):
    folder = tmp_path / 'my sét'
    folder.mkdir()
    for name in ('a.jpg', 'b.jpg'):
        random_image(1, 30, 40).save(folder / name)
    (folder / 'c.jpg').write_bytes(b'no image')
    annotations = [
        {'id': 1, 'image_id': 1, 'segmentation': polygon(5, 5, 15, 25)},
        {'id': 2, 'image_id': 1, 'segmentation': polygon(6, 6, 7, 7)},  # 1 px
        {'id': 2, 'image_id': 1, 'segmentation': polygon(5, 5, 15, 25)},  # the first again
        {'id': 3, 'image_id': 1, 'segmentation': polygon(50, 50, 60, 60)},  # outside
        {'id': 4, 'image_id': 1, 'segmentation': [[1, 2, 3]]},
        {'id': 5, 'image_id': 1, 'segmentation': polygon(0, 0, 20, 20), 'iscrowd': 1},
        {'id': 6, 'image_id': 1, 'segmentation': polygon(0, 0, 40, 30)},
        {'id': 7, 'image_id': 3, 'segmentation': polygon(0, 0, 20, 20)},
        {'id': 8, 'image_id': 9, 'segmentation': polygon(0, 0, 20, 20)},
    ]
    images = [{'id': n, 'file_name': f'{name}.jpg', 'height': 30, 'width': 40} for n, name in enumerate('abcd', 1)]
    (folder / 'set.json').write_text(json.dumps({'images': images, 'annotations': annotations}))
    lines, sheet_HW3 = check(folder, tmp_path, capsys)
    assert lines[:3] == [
        f'{folder}: COCO instances (coco: 3 images)',
        'images: 5; 1 can be used, 1 have no mask, 3 are invalid',
        'masks: 3; least, median and most per image: 3, 3, 3',
    ]
    assert 'area of masks in px: 1, 200, 1200; in % of the image: 0.083, 17, 1e+02' in lines
    assert (
        'never sampled in training with default options: 1 of 3 masks: 1 cover more than 90 % of the image '
        '(data.max_area_fraction)'
    ) in lines
    skipped = {'duplicate mask': 2, 'no pixels': 3, 'invalid polygon': 4, 'crowd': 5}
    for cause, number in skipped.items():
        assert any(line.startswith(f'masks left out: 1 {cause}, such as a.jpg: annotation {number}') for line in lines)
    assert lines[lines.index('unreadable image: 1') + 1].startswith(
        '  c.jpg: it is no JPEG, PNG, WebP, BMP, TIFF or GIF file'
    )
    assert lines[lines.index('no image: 1') + 1].startswith('  d.jpg: d.jpg is not below the folder of the JSON')
    assert lines[lines.index('unknown image id: 1') + 1].startswith('  set.json: 1 annotations have the image_id 9')
    assert lines[lines.index('no masks: 1') + 1] == '  b.jpg'
    assert sheet_HW3.shape[1] > 480


def test_contact_sheet_shows_masks_where_they_are(tmp_path, capsys):
    black = Image.fromarray(np.zeros((60, 90, 3), np.uint8))
    masks = [mask(10, 20, 30, 50, 60, 90), mask(0, 0, 0, 0, 60, 90)]
    write(tmp_path / 'data', 'a', '.png', black, content(masks, 60, 90))
    _, sheet_HW3 = check(tmp_path / 'data', tmp_path, capsys)
    panel_HW3 = sheet_HW3[26 : 26 + 320, 8 : 8 + 480]  # the image, upscaled by 16 / 3
    lit_HW = panel_HW3.max(-1) > 60
    rows, columns = np.flatnonzero(lit_HW.any(1)), np.flatnonzero(lit_HW.any(0))
    assert (rows[0], rows[-1] + 1) == pytest.approx((10 * 16 / 3, 30 * 16 / 3), abs=1)
    assert (columns[0], columns[-1] + 1) == pytest.approx((20 * 16 / 3, 50 * 16 / 3), abs=1)
    assert lit_HW[rows[0] : rows[-1], columns[0] : columns[-1]].all()


def test_nothing_to_use_is_one_line(tmp_path):
    write(tmp_path / 'data', 'a', json_content=content([]))
    with pytest.raises(SystemExit) as stop:
        main(['data', 'check', str(tmp_path / 'data'), '--cache', str(tmp_path / 'cache')])
    assert stop.value.code.startswith(
        f'error: {tmp_path}/data: none of its 1 images can be used (images left out: 1 no'
    )


def test_sample_of_coco_panoptic(tmp_path, capsys, real_data):
    folder = real_data('coco_panoptic_sample')
    lines, sheet_HW3 = check(folder / 'panoptic_examples.json', tmp_path, capsys)
    assert lines[1:3] == [
        'images: 2; 2 can be used, 0 have no mask, 0 are invalid',
        'masks: 47; least, median and most per image: 17, 24, 30',
    ]
    assert 'masks left out: 3 crowd, such as input_images/000000142238.jpg: segment 3153362' in lines
    assert len(np.unique(sheet_HW3.reshape(-1, 3), axis=0)) > 10_000
    with pytest.raises(SystemExit, match=None) as stop:
        main(['data', 'check', str(folder), '--cache', str(tmp_path / 'cache')])
    assert 'has 2 JSON files of COCO: name one, ' in stop.value.code


def run_check(tmp_path, capsys, path, *flags):
    main(['data', 'check', str(path), '--cache', str(tmp_path / 'cache'), '--sheet', str(tmp_path / 's.png'), *flags])
    return capsys.readouterr().out.splitlines()


def test_layout_and_why(tmp_path, capsys):
    """Three pairs of SA-1B, an image with a mask, a camera's JSON: most decide, an option overrules."""
    path = tmp_path / 'data'
    for name in 'abc':
        write(path, name)
    for folder in ('images', 'masks'):
        (path / folder).mkdir()
    random_image(1, 30, 40).save(path / 'images/x.png')
    Image.fromarray(mask(2, 3, 9, 20, 30, 40) * 255).save(path / 'masks/x.png')
    (path / 'camera.json').write_text('{"iso": 200}')
    lines = run_check(tmp_path, capsys, path)
    assert lines[0] == f'{path}: SA-1B (sa1b: 3 images; folder: 1 images)'
    assert 'not used: 1 JSON file(s), such as camera.json' in lines
    assert 'not used: 2 image(s), such as images/x.png' in lines
    assert not any(line.startswith('warning') for line in lines)
    lines = run_check(tmp_path, capsys, path, '--layout', 'folder')
    assert lines[0] == f'{path}: images and masks (folder: 1 images)'
    assert 'option: layout = folder' in lines
    for flags, sentence in (
        (('--layout', 'voc'), "error: layout 'voc' is not known: set it to one of sa1b, coco, labelme, folder"),
        (('--layout', 'coco'), f"error: {path} holds nothing of the layout 'coco'"),
    ):
        with pytest.raises(SystemExit) as error:
            run_check(tmp_path, capsys, path, *flags)
        assert str(error.value).startswith(sentence)


def test_folders_that_are_named(tmp_path, capsys):
    path = tmp_path / 'data'
    for folder in ('photos', 'silhouettes'):
        (path / folder).mkdir(parents=True)
    random_image(1, 30, 40).save(path / 'photos/x.png')
    Image.fromarray(mask(2, 3, 9, 20, 30, 40) * 255).save(path / 'silhouettes/x.png')
    lines = run_check(tmp_path, capsys, path, '--images', 'photos', '--masks', 'silhouettes')
    assert lines[0] == f'{path}: images and masks (folder: 1 images)'
    assert 'images: 1; 1 can be used, 0 have no mask, 0 are invalid' in lines
    assert 'option: images = photos' in lines
