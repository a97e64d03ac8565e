"""Folders and tar shards in SA-1B layout: valid ones read back equal, invalid ones are named."""

import json
import logging
import multiprocessing
import os
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from pycocotools import mask as coco
from samples import HEIGHT, MASKS, WIDTH, content, encoded, mask, random_image, write

from samjax.data.formats import dataset_index, sa1b
from samjax.data.formats.sa1b import Pair
from samjax.data.formats.tar import ByteRange
from samjax.data.records import record, shard_writer, source
from samjax.errors import InvalidExample, SamjaxError
from samjax.images.open import ImageOptions


@pytest.fixture
def folder(tmp_path):
    """Three good images: JPEG and PNG, one in a subfolder, one upright."""
    folder = tmp_path / 'data'
    write(folder, 'sa_1')
    write(folder, 'sa_22', '.png')
    upright = content([mask(1, 1, 30, 5, 40, 24)], 40, 24)
    write(folder / 'more', 'sa_333', image=random_image(3, 40, 24), json_content=upright)
    return folder


def open_records(path, tmp_path, max_invalid_fraction=0.0):
    return source.open_records(path, tmp_path / 'cache', max_invalid_fraction)


def report(source):
    return json.loads((Path(source.folder) / 'report.json').read_text())


def assert_equal(examples, expected):
    assert [Path(e.name).name for e in examples] == [Path(e.name).name for e in expected]
    for a, b in zip(examples, expected, strict=True):
        np.testing.assert_array_equal(a.image.pixels(), b.image.pixels())
        assert a.rles == b.rles


# ---- valid input ------------------------------------------------------------------------------------


def test_folder_reads_back_as_it_was(folder, tmp_path):
    source = open_records(folder, tmp_path)
    examples = list(source)
    assert len(source) == 3
    assert sorted(e.name for e in examples) == ['more/sa_333', 'sa_1', 'sa_22']
    for example in examples:
        file = next(folder.glob(f'{example.name}.[jp][pn]g'))
        expected = np.asarray(Image.open(file).convert('RGB'))
        pixels_HW3 = example.image.pixels()
        np.testing.assert_array_equal(pixels_HW3, expected)
        assert pixels_HW3.dtype == np.uint8
        assert (example.image.height, example.image.width) == expected.shape[:2]
        expected = json.loads(file.with_suffix('.json').read_text())['annotations']
        for rle, annotation in zip(example.rles, expected, strict=True):
            assert rle['size'] == annotation['segmentation']['size']
            assert rle['counts'] == annotation['segmentation']['counts'].encode()
            assert isinstance(rle['counts'], bytes)
            assert coco.area(rle) == annotation['area']


def test_tar_shards_and_folder_give_equal_examples(tmp_path):
    folder, shards = tmp_path / 'data', tmp_path / 'shards'
    shards.mkdir()
    for number in range(5):
        write(folder, 'x' * (number + 1), '.png' if number % 2 else '.jpg')
    files = sorted(folder.iterdir())
    with tarfile.open(shards / 'sa_0.tar', 'w') as tar:
        for file in reversed(files[:6]):
            tar.add(file, f'./{file.name}')
    with tarfile.open(shards / 'sa_1.tar', 'w') as tar:
        for file in files[6:]:
            tar.add(file, file.name)
    loose = list(open_records(folder, tmp_path))
    assert [e.name for e in loose] == ['x', 'xx', 'xxx', 'xxxx', 'xxxxx']
    assert_equal(loose, list(open_records(shards, tmp_path)))
    assert_equal(loose[:3], list(open_records(shards / 'sa_0.tar', tmp_path)))


def test_tar_and_loose_files_mix(folder, tmp_path):
    extra = write(tmp_path / 'extra', 'z')
    with tarfile.open(folder / 'more' / 'sa_0.tar', 'w') as tar:
        for file in extra:
            tar.add(file, f'inner/{file.name}')
    source = open_records(folder, tmp_path)
    assert sorted(e.name for e in source) == ['more/sa_0.tar/inner/z', 'more/sa_333', 'sa_1', 'sa_22']


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    for mode in ('L', 'P', 'RGBA', '1'):
        write(tmp_path / 'data', mode, '.png', random_image(1).convert(mode))
    source = open_records(tmp_path / 'data', tmp_path)
    assert [e.image.pixels().shape for e in source] == [(HEIGHT, WIDTH, 3)] * 4


def test_capital_suffixes_hidden_and_other_files(folder, tmp_path):
    (folder / 'sa_1.jpg').rename(folder / 'sa_1.JPEG')
    (folder / '._sa_1.jpg').write_bytes(b'no image')
    (folder / 'README.txt').write_text('about')
    assert len(open_records(folder, tmp_path)) == 3


@pytest.mark.parametrize(
    ('json_name', 'cause'),
    [('Cafe\u0301 1', []), ('CAF\u00c9 1', ['JSON name(s) that differ from the image in letter case'])],
)
def test_names_in_another_form_are_a_pair(folder, tmp_path, json_name, cause):
    """The image is called Café with é as one character; its JSON has it as two, or in capitals."""
    image, file = write(folder, 'Caf\u00e9 1')
    file.rename(folder / f'{json_name}.json')
    with tarfile.open(tmp_path / 'sa_0.tar', 'w') as tar:
        tar.add(folder / f'{json_name}.json', f'{json_name}.json')
        tar.add(image, 'Caf\u00e9 1.jpg')
    [item] = sa1b.open_index(tmp_path / 'sa_0.tar').shards[0].items()
    assert (item.name, len(item.load().masks)) == ('sa_0.tar/Caf\u00e9 1', 3)
    source = open_records(folder, tmp_path)
    assert [e.name for e in source][0] == 'Caf\u00e9 1'
    assert list(report(source)['warnings']) == cause


def test_names_in_another_form_of_two_images_are_no_pair(folder, tmp_path):
    image, file = write(folder, 'x')
    image.rename(folder / 'A.jpg')
    file.rename(folder / 'a.json')
    write(folder, 'a', '.png')[1].unlink()
    write(folder, 'a', json_content=content([mask(1, 1, 5, 5)]))[0].unlink()
    names = [e.name for e in open_records(folder, tmp_path, 0.9)]
    assert names == ['a', 'more/sa_333', 'sa_1', 'sa_22']


def test_uncompressed_counts_are_accepted(folder, tmp_path):
    masks = [mask(0, 0, 3, 2), mask(4, 4, 6, 9)]
    changed = content(masks)
    for annotation, mask_HW in zip(changed['annotations'], masks, strict=True):
        change = np.flatnonzero(np.diff(mask_HW.ravel('F'), prepend=0, append=2))
        annotation['segmentation']['counts'] = np.diff(change, prepend=0).tolist()
    assert changed['annotations'][0]['segmentation']['counts'][:4] == [0, 3, 21, 3]
    write(folder, 'a', json_content=changed)
    example = open_records(folder, tmp_path)[0]
    assert example.name == 'a'
    np.testing.assert_array_equal(coco.decode(example.rles), np.stack(masks, -1))


def test_keys_that_nothing_needs_may_be_missing(folder, tmp_path):
    lean = content()
    for annotation in lean['annotations']:
        for key in list(annotation):
            if key != 'segmentation':
                del annotation[key]
    write(folder, 'a', json_content=lean)
    assert len(open_records(folder, tmp_path)) == 4


def test_more_than_255_masks(folder, tmp_path):
    write(folder, 'a', json_content=content([mask(1, 1, 3, 3)] * 300))
    assert len(open_records(folder, tmp_path)[0].rles) == 300


def test_index_outside_raises(folder, tmp_path):
    source = open_records(folder, tmp_path)
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f'has 3 images, none has the index {index}'):
            source[index]


def test_source_goes_to_another_process(folder, tmp_path):
    source = open_records(folder, tmp_path)
    data = pickle.dumps(source)
    assert len(data) < 1000
    assert_equal(list(pickle.loads(data)), list(source))


def test_tensorflow_is_not_imported():
    assert 'tensorflow' not in sys.modules


# ---- preparation -----------------------------------------------------------------------------------


def test_an_unchanged_folder_is_prepared_once(folder, tmp_path, monkeypatch, capfd):
    first = open_records(folder, tmp_path)
    written = report(first)
    assert len(written.pop('digest')) == 32
    assert written == {
        'path': str(folder), 'layout': 'SA-1B', 'fraction': 1.0, 'num_images': 3, 'num_kept': 3, 'num_masks': 7,
        'invalid': {}, 'no_masks': [], 'skipped_masks': {}, 'warnings': {}, 'ignored': {},
        'images_by_layout': {'sa1b': 3}, 'read_as': {}, 'num_scaled': 0, 'options': {},
    }  # fmt: skip
    assert (Path(first.folder) / 'images.txt').read_text() == 'more/sa_333\nsa_1\nsa_22\n'
    monkeypatch.setattr(record, 'make_record', None)  # would fail
    again = open_records(folder, tmp_path)
    assert again.folder == first.folder
    assert capfd.readouterr() == ('', '')  # little to do: no output


def test_a_changed_folder_is_prepared_anew(folder, tmp_path):
    before = open_records(folder, tmp_path)
    write(folder, 'sa_4')
    assert len(open_records(folder, tmp_path)) == 4
    assert len(before) == 3
    file = folder / 'sa_4.json'
    changed = file.read_text().replace('0.95', '0.85')
    file.write_text(changed)  # same size
    os.utime(file, ns=(1, 1))
    assert len({open_records(folder, tmp_path).folder, before.folder}) == 2
    for file in folder.glob('sa_1.*'):
        file.unlink()
    assert len(open_records(folder, tmp_path)) == 3


def test_an_interrupted_preparation_is_not_taken_for_a_finished_one(folder, tmp_path, monkeypatch):
    def interrupt(pair, options):
        if pair.name == 'sa_22':
            raise KeyboardInterrupt
        return make_record(pair, options)

    make_record = record.make_record
    monkeypatch.setattr(record, 'make_record', interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_records(folder, tmp_path)
    monkeypatch.undo()
    [home] = (tmp_path / 'cache').iterdir()
    stale = home / 'object_masks' / 'incomplete.killed_2.0.0'  # what a killed process leaves
    stale.mkdir(parents=True, exist_ok=True)
    assert len(open_records(folder, tmp_path)) == 3
    assert not stale.exists()


def test_a_full_disk_stops_and_leaves_nothing(folder, tmp_path, monkeypatch):
    class Full(shard_writer.ArrayRecordWriter):
        def write(self, data):
            raise RuntimeError('write() failed: No space left on device; at byte 4096')

    monkeypatch.setattr(shard_writer, 'ArrayRecordWriter', Full)
    with pytest.raises(SamjaxError, match='No space left on device.*free some space or choose another'):
        open_records(folder, tmp_path)
    assert not list((tmp_path / 'cache').rglob('*.part'))
    monkeypatch.undo()
    assert len(open_records(folder, tmp_path)) == 3


def test_shards_are_split_and_read_in_order(tmp_path, monkeypatch):
    for number in range(5):
        write(tmp_path / 'data', f'sa_{number}')
    monkeypatch.setattr(dataset_index, 'SHARD_SIZE', 2)
    source = open_records(tmp_path / 'data', tmp_path)
    assert [e.name for e in source] == [f'sa_{number}' for number in range(5)]
    names = sorted(file.name for file in Path(source.folder).glob('*array_record*'))
    assert names == [f'object_masks-images.array_record-0000{n}-of-00003' for n in range(3)]


def _open_at_once(path, cache, queue):
    queue.put([e.name for e in source.open_records(path, cache, 0.0)])


def test_several_processes_prepare_the_same_folder_at_once(folder, tmp_path):
    spawn = multiprocessing.get_context('spawn')
    queue = spawn.Queue()
    processes = [spawn.Process(target=_open_at_once, args=(folder, tmp_path / 'cache', queue)) for _ in range(2)]
    for process in processes:
        process.start()
    names = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert names[0] == names[1]
    assert len(names[0]) == 3


# ---- invalid input -------------------------------------------------------------------------------------


def truncate_image(folder):
    file = folder / 'bad.jpg'
    file.write_bytes(file.read_bytes()[: os.path.getsize(file) // 2])


def truncate_png(folder):
    (folder / 'bad.jpg').unlink()
    data = encoded(random_image(1), '.png')
    (folder / 'bad.png').write_bytes(data[: len(data) // 2])


def sixteen_bits(folder):
    (folder / 'bad.jpg').unlink()
    deep = Image.fromarray(np.full((HEIGHT, WIDTH), 5000, np.uint16))
    (folder / 'bad.png').write_bytes(encoded(deep, '.png'))


def break_json(folder):
    (folder / 'bad.json').write_text('{"image": ')


def other_rle_size(folder):
    changed = content()
    changed['annotations'][1]['segmentation']['size'] = [WIDTH, HEIGHT]
    (folder / 'bad.json').write_text(json.dumps(changed))


def other_image_size(folder):
    (folder / 'bad.json').write_text(json.dumps(content(height=WIDTH, width=HEIGHT, masks=[])))


def damage_counts(folder):
    changed = content()
    counts = changed['annotations'][0]['segmentation']['counts']
    changed['annotations'][0]['segmentation']['counts'] = counts[:-2]
    (folder / 'bad.json').write_text(json.dumps(changed))


def drop_json(folder):
    (folder / 'bad.json').unlink()


def drop_image(folder):
    (folder / 'bad.jpg').unlink()


def drop_key(folder):
    changed = content()
    del changed['annotations'][2]['segmentation']['counts']
    (folder / 'bad.json').write_text(json.dumps(changed))


def two_images(folder):
    (folder / 'bad.png').write_bytes(encoded(random_image(1), '.png'))


INVALID = [
    (truncate_image, 'unreadable image', 'truncated'),
    (truncate_png, 'unreadable image', 'truncated'),
    (sixteen_bits, 'not 8 bits', 'pixels are 16-bit grey (I;16): save it with 8 bits per channel'),
    (break_json, 'invalid JSON', 'Expecting value'),
    (other_image_size, 'wrong size', 'the masks are for 40 x 24, the image has 24 x 40 px'),
    (drop_json, 'no JSON', 'no JSON of the same name'),
    (drop_image, 'no image', 'no image of the same name'),
    (two_images, 'duplicate name', 'several images'),
]


@pytest.mark.parametrize(
    ('spoil', 'cause', 'detail'),
    [
        (other_rle_size, 'damaged RLE', 'mask 1: its size is [40, 24], the image has [24, 40] px'),
        (damage_counts, 'damaged RLE', 'mask 0: its runs do not add up to the image'),
        (drop_key, 'no mask', 'mask 2 has no segmentation.counts'),
    ],
)
def test_invalid_mask_is_left_out_and_named(spoil, cause, detail, folder, tmp_path):
    write(folder, 'bad')
    before = [len(example.rles) for example in open_records(folder, tmp_path)]
    spoil(folder)
    source = open_records(folder, tmp_path)
    assert sum(len(example.rles) for example in source) == sum(before) - 1
    assert report(source)['skipped_masks'] == {cause: [1, f'bad: {detail}']}
    assert report(source)['invalid'] == {}


@pytest.mark.parametrize(('spoil', 'cause', 'detail'), INVALID, ids=[case[0].__name__ for case in INVALID])
def test_invalid_pair_is_left_out_and_named(spoil, cause, detail, folder, tmp_path, caplog):
    write(folder, 'bad')
    spoil(folder)
    with caplog.at_level(logging.WARNING):
        source = open_records(folder, tmp_path, max_invalid_fraction=0.25)
    assert [e.name for e in source] == [e.name for e in source if e.name != 'bad']
    assert len(source) == 3
    written = report(source)
    assert (written['num_images'], written['num_kept']) == (4, 3)
    [[named]] = [written['invalid'].pop(cause)]
    assert written['invalid'] == {}
    assert named.startswith('bad: ')
    assert detail in named
    [line] = caplog.messages
    assert f'{folder}: 1 of 4 images left out (1 {cause}), see ' in line
    assert '\n' not in line


@pytest.mark.parametrize(
    ('spoil', 'cause', 'detail'),
    [
        (other_rle_size, 'damaged RLE', 'mask 1: its size is [40, 24], the image has [24, 40] px'),
        (damage_counts, 'damaged RLE', 'mask 0: '),
        (drop_key, 'no mask', 'mask 2 has no segmentation.counts'),
    ],
)
def test_invalid_mask_costs_no_other(spoil, cause, detail, folder, tmp_path):
    write(folder, 'bad')
    spoil(folder)
    source = open_records(folder, tmp_path)
    assert [len(example.rles) for example in source if example.name == 'bad'] == [2]
    [[count, example]] = [report(source)['skipped_masks'].pop(cause)]
    assert count == 1
    assert example.startswith(f'bad: {detail}')


@pytest.mark.parametrize(('spoil', 'cause', 'detail'), INVALID, ids=[case[0].__name__ for case in INVALID])
def test_too_large_a_fraction_of_invalid_pairs_stops(spoil, cause, detail, folder, tmp_path):
    write(folder, 'bad')
    spoil(folder)
    with pytest.raises(SamjaxError) as error:
        open_records(folder, tmp_path, max_invalid_fraction=0.2)
    message = str(error.value)
    assert message.startswith(f'{folder}: 1 of 4 images are invalid (1 {cause}), more than ')
    assert 'data.max_invalid_fraction = 0.2' in message
    assert 'the first is bad: ' in message
    assert detail in message
    assert 'fix or remove such files, or raise data.max_invalid_fraction' in message
    assert '\n' not in message


def test_a_stricter_fraction_applies_to_what_is_prepared_already(folder, tmp_path):
    write(folder, 'bad')
    break_json(folder)
    open_records(folder, tmp_path, max_invalid_fraction=0.5)
    with pytest.raises(SamjaxError, match='1 of 4 images are invalid'):
        open_records(folder, tmp_path, max_invalid_fraction=0.2)


def test_truncated_tar_gives_what_is_whole(tmp_path):
    folder, shard = tmp_path / 'data', tmp_path / 'sa_0.tar'
    for number in range(4):
        write(folder, f'sa_{number}')
    with tarfile.open(shard, 'w') as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
    with tarfile.open(shard) as tar:
        end = tar.getmember('sa_2.jpg').offset_data + 20
    shard.write_bytes(shard.read_bytes()[:end])
    source = open_records(shard, tmp_path, 0.9)
    assert [e.name for e in source] == ['sa_0.tar/sa_0', 'sa_0.tar/sa_1']
    assert sorted(report(source)['invalid']) == ['damaged tar', 'no JSON']
    (tmp_path / 'cache').rename(tmp_path / 'old')
    with pytest.raises(SamjaxError, match='sa_0.tar: unexpected end of data'):
        open_records(shard, tmp_path, 0.3)


def test_no_tar_at_all(folder, tmp_path):
    (folder / 'sa_0.tar').write_bytes(b'compressed?' * 200)
    source = open_records(folder, tmp_path, 0.5)
    assert len(source) == 3
    assert list(report(source)['invalid']) == ['damaged tar']


def test_the_names_of_shards_keep_images_apart(folder, tmp_path):
    with tarfile.open(folder / 'sa_0.tar', 'w') as tar:
        for file in write(tmp_path / 'other', 'sa_1', image=random_image(9)):
            tar.add(file, file.name)
    source = open_records(folder, tmp_path, 0.5)
    assert [e.name for e in source] == ['sa_0.tar/sa_1', 'more/sa_333', 'sa_1', 'sa_22']


def test_images_without_masks_are_counted_apart(folder, tmp_path, caplog):
    write(folder, 'none', json_content=content([]))
    write(folder, 'empty', json_content=content([mask(0, 0, 0, 0)]))
    source = open_records(folder, tmp_path, max_invalid_fraction=0.0)
    assert len(source) == 3
    assert report(source)['invalid'] == {}
    assert report(source)['no_masks'] == ['empty', 'none']
    assert '2 of 5 images left out (2 no masks)' in caplog.text


def test_nothing_but_images_without_masks(tmp_path):
    write(tmp_path / 'data', 'none', json_content=content([]))
    with pytest.raises(SamjaxError, match=r'none of its 1 images can be used .*1 no masks, such as none'):
        open_records(tmp_path / 'data', tmp_path)


def test_missing_path(tmp_path):
    with pytest.raises(SamjaxError, match="nowhere does not exist: data.path .*, or be 'scenes'"):
        open_records(tmp_path / 'nowhere', tmp_path)


def test_empty_folder_and_folder_without_images(tmp_path):
    (tmp_path / 'data').mkdir()
    for _ in range(2):
        with pytest.raises(SamjaxError, match='data holds no images with masks.*: it must be a folder or tar'):
            open_records(tmp_path / 'data', tmp_path)
        (tmp_path / 'data' / 'lonely.json').write_text('{}')


def test_file_that_is_no_tar(tmp_path):
    (tmp_path / 'image.jpg').write_bytes(encoded(random_image(1)))
    with pytest.raises(SamjaxError, match='image.jpg holds no images with masks'):
        open_records(tmp_path / 'image.jpg', tmp_path)


# ---- annotations -----------------------------------------------------------------------------------


def read(text, tmp_path):
    """The record of a white image of 2 x 3 px with that JSON."""
    image = encoded(Image.new('RGB', (3, 2), 'white'), '.png')
    (tmp_path / 'x').write_bytes(image + text)
    parts = ByteRange(str(tmp_path / 'x'), 0, len(image)), ByteRange(str(tmp_path / 'x'), len(image), len(text))
    made = record.make_record(Pair('x', 'x', *parts), ImageOptions())
    return made.content['annotations'], made.skipped_masks.counts


@pytest.mark.parametrize(
    ('text', 'cause'),
    [
        (b'', 'invalid JSON'),
        (b'\xff\xfe\x00', 'invalid JSON'),
        (b'[' * 100_000, 'invalid JSON'),
        (b'3', 'missing key'),
        (b'[]', 'missing key'),
        (b'{}', 'missing key'),
        (b'{"image": {"height": 2, "width": "3"}}', 'missing key'),
        (b'{"image": {"height": 2, "width": 3}}', 'missing key'),
        (b'{"image": {"height": 2, "width": 3}, "annotations": {}}', 'missing key'),
    ],
)
def test_pair_survives_any_json(text, cause, tmp_path):
    with pytest.raises(InvalidExample) as error:
        read(text, tmp_path)
    assert error.value.cause == cause


@pytest.mark.parametrize(
    ('counts', 'cause'),
    [
        ([1, 2, 3], None),
        ([0, 6], None),
        ([1, 2], 'damaged RLE'),
        ([1, -1, 6], 'damaged RLE'),
        ([1, 2, 'x'], 'damaged RLE'),
        ([[1], [5]], 'damaged RLE'),
        ([10**30], 'damaged RLE'),
        ([2**62] * 4 + [0, 6], 'damaged RLE'),  # the sum is 6 in 64 bits
        ('ooooooooooooo0', 'damaged RLE'),
        ('', 'damaged RLE'),
        ('\u00e9', 'damaged RLE'),
        ('6', None),
        ('5', 'damaged RLE'),
        ('7', 'damaged RLE'),
        (5, 'no mask'),
        (None, 'no mask'),
    ],
)
def test_record_checks_counts(counts, cause, tmp_path):
    annotation = {'segmentation': {'size': [2, 3], 'counts': counts}}
    text = json.dumps({'image': {'height': 2, 'width': 3}, 'annotations': [annotation]}).encode()
    if cause is None:
        [annotation], _ = read(text, tmp_path)
        assert coco.area({'size': [2, 3], 'counts': annotation['counts']}) == annotation['area']
        assert (annotation['predicted_iou'], annotation['stability_score']) == (1.0, 1.0)
    else:
        assert read(text, tmp_path) == ([], {cause: 1})


# ---- images as they come ---------------------------------------------------------------------------


def test_image_that_exif_rotates_is_read_as_the_masks_are(tmp_path):
    """A camera stored 24 x 40 px; viewers show 40 x 24.  Masks are for either."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, masks in (('seen', [mask(1, 2, 30, 5, 40, 24)]), ('stored', MASKS)):
        files = write(tmp_path / 'data', name, json_content=content(masks, *masks[0].shape))
        random_image(7).save(files[0], 'JPEG', exif=exif)
    seen, stored = open_records(tmp_path / 'data', tmp_path)
    assert (seen.image.height, seen.image.width) == (40, 24)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / 'data' / 'seen.jpg'))
    np.testing.assert_array_equal(seen.image.pixels(), upright)
    with Image.open(tmp_path / 'data' / 'stored.jpg') as image:
        np.testing.assert_array_equal(stored.image.pixels(), image)


def test_cmyk_and_other_formats(tmp_path):
    for name, image in (('cmyk', random_image(1).convert('CMYK')), ('grey', random_image(2).convert('L'))):
        write(tmp_path / 'data', name, image=image)
    files = write(tmp_path / 'data', 'webp', '.png')
    random_image(3).save(files[0], 'WEBP', lossless=True)  # whatever its suffix says
    cmyk, grey, webp = open_records(tmp_path / 'data', tmp_path)
    for example in (cmyk, grey, webp):
        assert example.image.pixels().shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(webp.image.pixels(), random_image(3))
    assert (np.ptp(grey.image.pixels(), axis=-1) == 0).all()


def test_path_with_spaces_and_other_letters(tmp_path):
    write(tmp_path / 'größe und 画像' / 'é', 'ein Bild ü')
    with tarfile.open(tmp_path / 'größe und 画像' / 'sa_0 ß.tar', 'w') as tar:
        for file in sorted((tmp_path / 'größe und 画像' / 'é').iterdir()):
            tar.add(file, f'n {file.name}')
    source = open_records(tmp_path / 'größe und 画像', tmp_path)
    assert [e.name for e in source] == ['sa_0 ß.tar/n ein Bild ü', 'é/ein Bild ü']


def test_folder_that_cannot_be_read(folder, tmp_path, monkeypatch):
    scandir = os.scandir

    def refuse(path='.'):
        if str(path).endswith('more'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    source = open_records(folder, tmp_path)
    assert [e.name for e in source] == ['sa_1', 'sa_22']
    assert report(source)['ignored'] == {'folder(s) that cannot be read': [1, 'more (Permission denied)']}


# ---- real data -------------------------------------------------------------------------------------


def test_real_masks_decode_as_pycocotools_says(tmp_path, real_data):
    folder = real_data('bbbc038/val')
    subset = tmp_path / 'subset'
    subset.mkdir()
    for file in sorted(folder.glob('*.json'))[:6]:
        (subset / file.name).symlink_to(file.resolve())
        (subset / file.with_suffix('.png').name).symlink_to(file.with_suffix('.png').resolve())
    source = open_records(subset, tmp_path)
    assert len(source) == 6
    for example in source:
        text = (subset / f'{example.name}.json').read_text()
        annotations = json.loads(text)['annotations']
        assert len(example.rles) == len(annotations)
        for rle, annotation in zip(example.rles, annotations, strict=True):
            mask_HW = coco.decode(rle)
            np.testing.assert_array_equal(mask_HW, coco.decode(annotation['segmentation']))
            assert mask_HW.sum() == annotation['area']
            assert mask_HW.shape == example.image.pixels().shape[:2]
