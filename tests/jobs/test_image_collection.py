"""Images of any origin get names that files can have, and are upright RGB."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from samples import add, encoded, jpeg, random_image, smooth, write

from samjax.data.formats.detect import open_index
from samjax.data.records.prepare import prepare
from samjax.errors import InvalidExample, SamjaxError
from samjax.images.open import SUFFIXES
from samjax.jobs.image_collection import find_images


def save(image, file, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)
    return file


def collect(*inputs):
    return find_images([str(path) for path in inputs])


def test_folder_gives_images_at_any_depth_in_order(tmp_path):
    for name in ('b.png', 'a/2.jpg', 'a/1.webp', 'a/c/x.BMP', 'z.tif', '.hidden.png', '.cache/a.png'):
        save(random_image(1), tmp_path / name)
    (tmp_path / 'notes.txt').write_text('no image')
    (tmp_path / 'a' / 'loop').symlink_to(tmp_path)
    images = collect(tmp_path)
    assert images.names == ['b', 'z', 'a/1', 'a/2', 'a/c/x']
    assert len(images) == 5
    assert [loaded.suffix for loaded in images] == ['.png', '.tif', '.webp', '.jpg', '.bmp']
    assert images.location(3) == f'{tmp_path}/a/2.jpg'
    for n in (0, 1, 4):
        np.testing.assert_array_equal(images[n].image_HW3, np.asarray(random_image(1)))
    with pytest.raises(IndexError):
        images[5]


def test_files_keep_the_order_of_the_command(tmp_path):
    files = [save(random_image(n), tmp_path / name) for n, name in enumerate(('b.png', 'sub/a.png', 'c.d.png'))]
    images = collect(*files)
    assert images.names == ['b', 'a', 'c.d']
    assert images[0].data == files[0].read_bytes()
    assert collect(*files, files[0], tmp_path / 'sub').names == ['b', 'a', 'c.d']  # nothing twice


def test_clashing_names_begin_with_the_name_of_their_input(tmp_path):
    for name in ('train/x', 'train/y', 'val/x', 'old/val/x'):
        save(random_image(len(name)), tmp_path / f'{name}.png')
    assert collect(tmp_path / 'train', tmp_path / 'val').names == ['train/x', 'train/y', 'val/x']
    assert collect(tmp_path / 'train/x.png', tmp_path / 'val/x.png').names == ['train/x', 'val/x']
    assert collect(tmp_path / 'val', tmp_path / 'old/val').names == ['val/x', 'val_2/x']
    assert collect(tmp_path / 'train/y.png', tmp_path / 'val').names == ['y', 'x']


def test_same_stem_in_one_folder_is_numbered(tmp_path):
    for name in ('x.jpg', 'x.png', 'x_2.png', 'y.png', 'y/a.png'):
        save(random_image(1), tmp_path / name)
    assert collect(tmp_path).names == ['x', 'x_3', 'x_2', 'y_2', 'y/a']


def test_tar_is_read_where_its_members_lie(tmp_path):
    data = encoded(random_image(1))
    with tarfile.open(tmp_path / 'set.tar', 'w') as tar:
        add(tar, '/', b'')
        for name in ('./a/1.jpg', '2.png', '../../up.jpg', '/abs.jpg', '._2.png', '.git/x.jpg', 'a/1.json'):
            add(tar, name, data)
    images = collect(tmp_path / 'set.tar')
    assert images.names == ['a/1', '2', 'up', 'abs']
    assert images[0].data == images[1].data == data
    assert images[1].suffix == '.jpg'  # whatever its name ends in
    assert collect(tmp_path).names == ['set.tar/a/1', 'set.tar/2', 'set.tar/up', 'set.tar/abs']
    assert images.location(0) == f'{tmp_path}/set.tar/a/1.jpg'


def test_damaged_tar_gives_its_whole_images_and_an_invalid_one(tmp_path):
    with tarfile.open(tmp_path / 'set.tar', 'w') as tar:
        for n in range(3):
            add(tar, f'{n}.jpg', encoded(random_image(n)))
    whole = (tmp_path / 'set.tar').read_bytes()
    (tmp_path / 'set.tar').write_bytes(whole[: whole.index(b'2.jpg') + 600])
    images = collect(tmp_path / 'set.tar')
    assert images.names == ['0', '1', '2', 'set.tar']
    images[1]
    for n, cause in ((2, 'unreadable image'), (3, 'damaged tar')):
        with pytest.raises(InvalidExample) as error:
            images[n]
        assert error.value.cause == cause


def test_prepared_set_gives_its_images(tmp_path):
    for name in ('a', 'sub/b'):
        (tmp_path / 'set' / name).parent.mkdir(parents=True, exist_ok=True)
        write((tmp_path / 'set' / name).parent, name[-1], image=random_image(len(name)))
    prepare(open_index(str(tmp_path / 'set')), 'set', tmp_path / 'out', max_invalid_fraction=0.0, num_workers=1)
    images = collect(tmp_path / 'out')
    assert images.names == ['a', 'sub/b']
    assert images[1].data == (tmp_path / 'set/sub/b.jpg').read_bytes()
    assert images[1].as_stored
    np.testing.assert_array_equal(images[1].image_HW3, collect(tmp_path / 'set')[1].image_HW3)
    assert images.location(0) == f'{tmp_path}/out/a'
    assert pickle.loads(pickle.dumps(images))[1].data == images[1].data


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (
            b'x\n',
            'images.txt has 1 different names in 1 lines, and there are 2 records: remove the folder, and prepare',
        ),
        (b'x\ny\nz\n', 'has 3 different names in 3 lines, and there are 2 records'),
        (b'xx\nxx\n', 'has 1 different names in 2 lines, and there are 2 records'),
    ],
)
def test_list_of_names_must_fit_the_records(tmp_path, names, message):
    [file] = prepared_pair(tmp_path).rglob('images.txt')
    file.write_bytes(names)
    with pytest.raises(SamjaxError, match=message):
        collect(tmp_path / 'out')


def test_names_must_be_those_of_the_records(tmp_path):
    [file] = prepared_pair(tmp_path).rglob('images.txt')
    file.write_text('xx\nz\n')
    images = collect(tmp_path / 'out')
    assert images[0].name == 'xx'
    with pytest.raises(InvalidExample) as error:
        images[1]
    assert error.value.args == ('other name than in images.txt', "record 1 is 'y': prepare the data set again")


def prepared_pair(tmp_path):
    """A prepared set of the images xx and y."""
    for name in ('xx', 'y'):
        write(tmp_path / 'source', name)
    index = open_index(str(tmp_path / 'source'))
    prepare(index, 'source', tmp_path / 'out', max_invalid_fraction=0, num_workers=1)
    return tmp_path / 'out'


def test_image_rotated_by_exif_is_upright_and_not_copied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / 'x.jpg').write_bytes(jpeg(smooth(20, 40), exif=exif))
    (tmp_path / 'y.jpg').write_bytes(jpeg(smooth(20, 40)))
    rotated, upright = collect(tmp_path)
    np.testing.assert_array_equal(rotated.image_HW3, np.rot90(upright.image_HW3, -1))
    assert (rotated.as_stored, upright.as_stored) == (False, True)
    assert rotated.image_HW3.flags.c_contiguous


@pytest.mark.parametrize(
    ('mode', 'suffix', 'as_stored'),
    [
        ('RGB', '.png', True), ('RGB', '.jpg', True), ('RGB', '.webp', False), ('RGB', '.bmp', False),
        ('RGBA', '.png', False), ('L', '.jpg', False), ('LA', '.png', False), ('P', '.png', False),
        ('1', '.png', False), ('CMYK', '.jpg', False),
    ],
)  # fmt: skip
def test_every_colour_becomes_rgb(tmp_path, mode, suffix, as_stored):
    save(smooth(20, 40).convert(mode), tmp_path / f'x{suffix}')
    [loaded] = collect(tmp_path)
    assert (loaded.image_HW3.shape, loaded.image_HW3.dtype) == ((20, 40, 3), np.uint8)
    assert loaded.as_stored == as_stored
    with Image.open(io.BytesIO(loaded.data)) as image:
        np.testing.assert_array_equal(loaded.image_HW3, np.asarray(image.convert('RGB')))


def test_opacity_is_dropped_without_a_warning(tmp_path):
    image_HW4 = np.dstack([np.asarray(random_image(1)), np.full((24, 40), 7, np.uint8)])
    save(Image.fromarray(image_HW4), tmp_path / 'a.png')
    save(random_image(1).convert('P'), tmp_path / 'b.png', transparency=bytes(range(256)))
    save(random_image(1), tmp_path / 'c.png', transparency=(1, 2, 3))
    rgba, palette, rgb = collect(tmp_path)
    np.testing.assert_array_equal(rgba.image_HW3, np.asarray(random_image(1)))
    np.testing.assert_array_equal(rgb.image_HW3, np.asarray(random_image(1)))
    assert [loaded.as_stored for loaded in (rgba, palette, rgb)] == [False] * 3


def test_what_is_no_whole_image_is_named(tmp_path):
    data = encoded(random_image(1))
    (tmp_path / 'cut.jpg').write_bytes(data[: len(data) // 2])
    (tmp_path / 'empty.png').write_bytes(b'')
    save(Image.fromarray(np.zeros((9, 9), np.uint16)), tmp_path / 'grey.png')
    (tmp_path / 'link.png').symlink_to(tmp_path / 'nowhere.png')
    (tmp_path / 'text.webp').write_text('no image')
    images = collect(tmp_path)
    assert images.names == ['cut', 'empty', 'grey', 'link', 'text']
    causes = []
    for n in range(5):
        with pytest.raises(InvalidExample) as error:
            images[n]
        causes.append(error.value.cause)
    assert causes == ['unreadable image', 'unreadable image', 'not 8 bits', 'unreadable image', 'unreadable image']


def test_digest_changes_with_the_files(tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    files = [save(random_image(n), folder / f'{n}.png') for n in range(2)]
    digests = [collect(folder).digest, collect(folder).digest]
    os.utime(files[0], ns=(1, 1))
    digests.append(collect(folder).digest)
    files[1].rename(folder / '2.png')
    digests.append(collect(folder).digest)
    save(random_image(5), folder / '3.png')
    digests.append(collect(folder).digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4
    folder.rename(tmp_path / 'moved')
    assert collect(tmp_path / 'moved').digest == digests[-1]


def test_nothing_to_find_is_one_sentence(tmp_path):
    (tmp_path / 'x.json').write_text('{}')
    with pytest.raises(SamjaxError, match=r'nowhere does not exist: name an image'):
        collect(tmp_path / 'nowhere')
    for path in (tmp_path, tmp_path / 'x.json'):
        with pytest.raises(SamjaxError, match=f'^{path} holds no image: name a file that ends in .jpg'):
            collect(path)


# ---- data sets -------------------------------------------------------------------------------------------------------


def mask_picture(file):
    return save(Image.fromarray(np.eye(24, 40, dtype=np.uint8) * 255), file)


def test_masks_of_the_images_beside_them_are_left_out(tmp_path, caplog):
    for name in ('a', 'b'):
        save(random_image(1), tmp_path / f'set/images/{name}.jpg')
        mask_picture(tmp_path / f'set/masks/{name}.png')
    assert collect(tmp_path / 'set').names == ['images/a', 'images/b']
    [line] = caplog.messages
    assert line.startswith(f'{tmp_path}/set: 2 files, such as {tmp_path}/set/masks/a.png, are masks of the images')
    assert 'name their folder, or the files' in line
    caplog.clear()
    assert collect(tmp_path / 'set/images').names == ['a', 'b']
    assert collect(tmp_path / 'set/masks').names == ['a', 'b']
    assert collect(tmp_path / 'set/images', tmp_path / 'set/masks').names == [
        'images/a', 'images/b', 'masks/a', 'masks/b',
    ]  # fmt: skip
    assert collect(tmp_path / 'set', tmp_path / 'set/masks/a.png').names == ['images/a', 'images/b', 'a']


@pytest.mark.parametrize(
    ('images', 'masks'),
    [
        (['x.jpg', 'y.jpg'], ['x_mask.png', 'y_mask_0.png', 'y_mask_1.png']),
        (['x.jpg', 'y.jpg', 'z.jpg'], ['x.png', 'y.png']),
        (['leftImg8bit/a/a_leftImg8bit.png'], ['gtFine/a/a_gtFine_color.png', 'gtFine/a/a_gtFine_instanceIds.png']),
        (['JPEGImages/x.jpg', 'JPEGImages/y.jpg'], ['SegmentationClass/x.png', 'SegmentationObject/x.png']),
        (['imagesTr/x_0000.png'], ['labelsTr/x.png']),
    ],
)
def test_masks_of_each_layout_are_left_out(images, masks, tmp_path):
    for file in images:
        save(random_image(1), tmp_path / file)
    for file in masks:
        mask_picture(tmp_path / file)
    images_in_order = sorted(collect(tmp_path).names)
    assert images_in_order == sorted(os.path.splitext(file)[0] for file in images)


def test_folder_with_a_report_json_of_someone_else(tmp_path):
    save(random_image(1), tmp_path / 'x.png')
    (tmp_path / 'report.json').write_text('{"author": "someone", "images": 2}')
    (tmp_path / 'dataset_info.json').write_text('{"name": "of someone"}')
    (tmp_path / 'report.jsonl').write_text('[]')
    assert collect(tmp_path).names == ['x']


def test_every_reader_has_the_same_suffixes(tmp_path):
    for number, suffix in enumerate(SUFFIXES):
        save(random_image(1), tmp_path / f'{number}{suffix}', format=None if suffix != '.jfif' else 'JPEG')
    assert len(collect(tmp_path)) == len(SUFFIXES)
    assert all(image.image_HW3.shape == (24, 40, 3) for image in collect(tmp_path))


def test_animation_is_refused(tmp_path):
    save(random_image(1), tmp_path / 'x.gif', save_all=True, append_images=[random_image(2)])
    with pytest.raises(InvalidExample, match='it holds 2 images'):
        collect(tmp_path)[0]


def test_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    save(random_image(1), tmp_path / 'x.png')
    save(random_image(1), tmp_path / 'private/y.png')
    scandir = os.scandir

    def refuse(path='.'):
        if str(path).endswith('private'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    images = collect(tmp_path)
    assert images.names == ['x', 'private']
    with pytest.raises(InvalidExample) as error:
        images[1]
    assert (error.value.cause, error.value.detail) == ('unreadable folder', 'Permission denied')
    assert images.location(1) == f'{tmp_path}/private'


def test_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b'\xff')
    write(tmp_path / 'set', name)
    write(tmp_path / 'set', 'two\nlines')
    prepare(open_index(str(tmp_path / 'set')), 'set', tmp_path / 'out', max_invalid_fraction=0.0, num_workers=1)
    assert collect(tmp_path / 'set').names == ['two\nlines', name]
    images = collect(tmp_path / 'out')
    assert images.names == ['two lines', name]
    assert images[1].data == (tmp_path / 'set' / f'{name}.jpg').read_bytes()
