"""The layout of a data set is what most of its images are; other files are counted and decide nothing."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import HEIGHT, WIDTH, content, encoded, mask, random_image, write

from samjax.data.formats.detect import OPEN, mask_files, open_index
from samjax.data.formats.read_options import LAYOUTS, ReadOptions
from samjax.data.records import source
from samjax.errors import InvalidExample, SamjaxError

CAMERA = {'camera': 'X100', 'iso': 200, 'image': 'x.jpg'}
PACKAGE = {'name': 'labels', 'version': '1.0', 'annotations': []}
LABELME = {
    'version': '5.0',
    'shapes': [{'label': 'a', 'points': [[2, 2], [9, 2], [9, 9]], 'shape_type': 'polygon'}],
    'imageHeight': HEIGHT,
    'imageWidth': WIDTH,
}


def put(file, data=b''):
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, (dict, list)):
        data = json.dumps(data).encode()
    file.write_bytes(data)
    return file


def put_image(file, number=0):
    return put(file, encoded(random_image(number), '.png' if file.suffix == '.png' else '.jpg'))


def put_mask(file):
    put(file)
    Image.fromarray(mask(2, 3, 9, 20)).save(file, 'PNG')
    return file


def make_folder(root, count=6, images='images', masks='masks'):
    for number in range(count):
        put_image(root / images / f'f{number}.jpg', number)
        put_mask(root / masks / f'f{number}.png')
    return root


def make_sa1b(root, count=6, prefix='sa_'):
    for number in range(count):
        write(root, f'{prefix}{number}', image=random_image(number))
    return root


def make_coco(root, count=6, name='instances.json'):
    images = [{'id': n, 'file_name': f'c{n}.jpg', 'height': HEIGHT, 'width': WIDTH} for n in range(count)]
    annotations = [{'id': n, 'image_id': n, 'segmentation': [[2, 2, 9, 2, 9, 9]]} for n in range(count)]
    for number in range(count):
        put_image(root / f'c{number}.jpg', number)
    put(root / name, {'images': images, 'annotations': annotations})
    return root


def make_labelme(root, count=6):
    for number in range(count):
        put_image(root / f'l{number}.jpg', number)
        put(root / f'l{number}.json', {**LABELME, 'imagePath': f'l{number}.jpg'})
    return root


MAKE = {'sa1b': make_sa1b, 'coco': make_coco, 'labelme': make_labelme, 'folder': make_folder}
TITLES = {'sa1b': 'SA-1B', 'coco': 'COCO instances', 'labelme': 'labelme', 'folder': 'images and masks'}


def opened(root, **options):
    return open_index(str(root), ReadOptions(**options))


def counts(root, **options):
    return dict(opened(root, **options).images_by_layout)


def ignored(root, **options):
    return opened(root, **options).ignored.counts


def names(root, **options):
    return [item.name for shard in opened(root, **options).shards for item in shard.items()]


def read(root, tmp_path, max_invalid_fraction=0.0):
    """Names of the images that are read."""
    return [e.name for e in source.open_records(root, tmp_path / 'cache', max_invalid_fraction)]


def test_layouts_have_tests():
    assert set(MAKE) == set(OPEN) == set(LAYOUTS)


@pytest.mark.parametrize('layout', MAKE)
def test_layout_is_recognized(layout, tmp_path):
    MAKE[layout](tmp_path / 'data')
    index = opened(tmp_path / 'data')
    assert (index.layout, index.images_by_layout) == (TITLES[layout], {layout: 6})
    assert (index.ignored, index.warnings) == ({}, {})
    assert len(read(tmp_path / 'data', tmp_path)) == 6


# ---- strays ----------------------------------------------------------------------------------------------------------


def report_json(root):
    put(root / 'report.json', {'author': 'someone', 'images': 2})


def camera_json(root):
    """Beside an image, of the data set or not."""
    image = next((file for file in sorted(root.rglob('f*.jpg'))), root / 'photo.jpg')
    put(image.with_suffix('.json') if image.exists() else put_image(root / 'photos/p.jpg').with_suffix('.json'), CAMERA)


def list_json(root):
    put(root / 'classes.json', ['cat', 'dog'])


def package_json(root):
    put(root / 'package.json', PACKAGE)


def damaged_json(root):
    put(root / 'cut.json', b'{"images": [')


def huge_depth_json(root):
    put(root / 'deep.json', b'[' * 100_000)


def hugging_face_json(root):
    put(root / 'dataset_info.json', {'name': 'someone', 'features': {}})


def coco_json_of_others(root):
    put(root / 'other.json', {'images': [{'id': 1, 'file_name': 'gone.jpg'}], 'annotations': []})


def old_tar(root):
    with tarfile.open(root / 'old.tar', 'w') as tar:
        tar.add(put_image(root.parent / 'tar/y.jpg'), 'y.jpg')


def source_code_tar(root):
    with tarfile.open(root / 'code.tar', 'w') as tar:
        tar.add(put(root.parent / 'tar/a.py', b'pass'), 'a.py')


def preview(root):
    put_image(root / 'figures/preview.png')


def zero_bytes_image(root):
    put(root / 'figures/empty.png')


def broken_image_link(root):
    (root / 'figures').mkdir()
    (root / 'figures/x.png').symlink_to('/nowhere/x.png')


def broken_json_link(root):
    (root / 'x.json').symlink_to('/nowhere/x.json')


def link_to_itself(root):
    (root / 'x.json').symlink_to(root / 'x.json')


STRAYS = {
    report_json: {'JSON file(s)': 1},
    list_json: {'JSON file(s)': 1},
    package_json: {'JSON file(s)': 1},
    damaged_json: {'JSON file(s)': 1},
    huge_depth_json: {'JSON file(s)': 1},
    hugging_face_json: {'JSON file(s)': 1},
    source_code_tar: {'tar file(s)': 1},
    preview: {'image(s)': 1},
    zero_bytes_image: {'image(s)': 1},
    broken_image_link: {'image(s)': 1},
    broken_json_link: {'JSON file(s)': 1},
    link_to_itself: {'JSON file(s)': 1},
}


@pytest.mark.parametrize('layout', MAKE)
@pytest.mark.parametrize('stray', STRAYS, ids=lambda stray: stray.__name__)
def test_stray_file_is_counted(stray, layout, tmp_path):
    root = MAKE[layout](tmp_path / 'data')
    before = names(root)
    stray(root)
    index = opened(root)
    assert index.layout == TITLES[layout]
    assert names(root) == before
    assert sum(index.ignored.counts.values()) == 1
    (kind,) = index.ignored
    assert kind.startswith(next(iter(STRAYS[stray])))


@pytest.mark.parametrize('stray', [coco_json_of_others, old_tar, camera_json], ids=lambda stray: stray.__name__)
@pytest.mark.parametrize('layout', ['folder', 'sa1b', 'coco', 'labelme'])
def test_minority_of_another_layout_is_counted(stray, layout, tmp_path):
    root = MAKE[layout](tmp_path / 'data')
    before = names(root)
    stray(root)
    index = opened(root)
    assert index.layout == TITLES[layout]
    if (layout, stray) not in (('sa1b', camera_json), ('labelme', camera_json)):
        assert names(root) == before
        assert index.ignored


@pytest.mark.parametrize(
    'files',
    [
        ['Thumbs.db', 'images/desktop.ini', 'README.txt', 'images/.DS_Store'],
        ['.ipynb_checkpoints/x.json', 'images/.ipynb_checkpoints/f0-checkpoint.jpg'],
        ['__MACOSX/images/._f0.jpg', '__MACOSX/._x.json', 'images/._f1.jpg', 'masks/._f1.png'],
    ],
)
def test_files_of_systems_are_not_even_counted(files, tmp_path):
    make_folder(tmp_path)
    before = names(tmp_path)
    for file in files:
        put(tmp_path / file, b'nothing')
    assert (names(tmp_path), ignored(tmp_path)) == (before, {})


def test_stray_layout_among_many_images(tmp_path):
    """As one colleague leaves it: 6 images with masks, a labelled one, a SA-1B pair and a COCO file of two."""
    make_folder(tmp_path)
    make_labelme(tmp_path / 'try', 1)
    make_sa1b(tmp_path / 'sample', 1)
    make_coco(tmp_path, 2)
    index = opened(tmp_path)
    assert index.layout == 'images and masks'
    assert index.images_by_layout == {'folder': 6, 'coco': 2, 'sa1b': 1, 'labelme': 1}
    assert list(index.images_by_layout)[0] == 'folder'
    assert index.ignored.counts == {'image(s)': 4, 'JSON file(s)': 3}
    assert index.warnings == {}


@pytest.mark.parametrize(('layout', 'other'), [(a, b) for a in MAKE for b in MAKE if a != b])
def test_layout_of_most_images_is_chosen(layout, other, tmp_path):
    MAKE[layout](tmp_path, 5)
    MAKE[other](tmp_path / 'other' if other != 'coco' else tmp_path, 1)
    index = opened(tmp_path)
    assert index.layout == TITLES[layout]
    assert index.images_by_layout[layout] >= 5
    assert (index.warnings, opened(tmp_path, layout=other).layout) == ({}, TITLES[other])


def test_similar_number_of_images_is_a_warning(tmp_path):
    make_sa1b(tmp_path / 'a', 5)
    make_folder(tmp_path / 'b', 4)
    index = opened(tmp_path)
    assert (index.layout, index.images_by_layout) == ('SA-1B', {'sa1b': 5, 'folder': 4})
    (line,) = index.warnings.lines()
    assert line.startswith("4 image(s) could also be read by the layout 'folder'")
    assert '--layout folder' in line
    assert index.ignored.counts == {'image(s)': 8}


def test_json_of_something_else_beside_every_image(tmp_path):
    make_folder(tmp_path)
    for file in sorted((tmp_path / 'images').iterdir()):
        put(file.with_suffix('.json'), CAMERA)
    assert counts(tmp_path)['folder'] == 6
    assert opened(tmp_path).layout == 'images and masks'
    assert ignored(tmp_path) == {'JSON file(s)': 6}


def test_photos_with_a_single_stray_json_are_no_data_set(tmp_path):
    for number in range(5):
        put_image(tmp_path / f'{number}.jpg')
    put(tmp_path / '0.json', CAMERA)
    with pytest.raises(
        SamjaxError, match=r'no images with masks \(it has 5 image.s., such as 0.jpg; 1 JSON file.s., such as 0.json\)'
    ):
        opened(tmp_path)


def test_pictures_in_other_folders_of_sa1b(tmp_path):
    """A folder without any pair is no part of the data set; an image without JSON beside pairs is."""
    make_sa1b(tmp_path / 'data', 3)
    put_image(tmp_path / 'data/overlays/a.png')
    put_image(tmp_path / 'data/lonely.jpg')
    assert names(tmp_path / 'data') == ['lonely', 'sa_0', 'sa_1', 'sa_2']
    assert ignored(tmp_path / 'data') == {'image(s)': 1}
    with pytest.raises(SamjaxError, match='1 of 4 images are invalid .1 no JSON.'):
        read(tmp_path / 'data', tmp_path)


# ---- tar files -------------------------------------------------------------------------------------------------------


def shard(file, folder):
    with tarfile.open(file, 'w') as tar:
        for member in sorted(folder.iterdir()):
            tar.add(member, f'./{member.name}')


def test_tar_of_a_few_pairs_beside_images_and_masks(tmp_path):
    root = make_folder(tmp_path / 'data')
    shard(root / 'sa_0.tar', make_sa1b(tmp_path / 'pairs', 2))
    assert (opened(root).layout, counts(root)) == ('images and masks', {'folder': 6, 'sa1b': 2})
    assert ignored(root) == {'tar file(s)': 1}


def test_damaged_tar_beside_images_and_masks(tmp_path):
    root = make_folder(tmp_path / 'data')
    for name, data in (('empty.tar', b''), ('cut.tar', b'compressed?' * 200)):
        put(root / name, data)
    (root / 'gone.tar').symlink_to('/nowhere.tar')
    assert (opened(root).layout, ignored(root)) == ('images and masks', {'tar file(s)': 3})


def test_tar_that_was_unpacked_beside_it(tmp_path):
    root = make_sa1b(tmp_path / 'data', 3)
    shard(root.parent / 'sa_0.tar', root)
    shutil.move(root.parent / 'sa_0.tar', root / 'sa_0.tar')
    assert names(root) == ['sa_0', 'sa_1', 'sa_2']
    assert ignored(root) == {'tar file(s) that are unpacked beside them': 1}
    write(tmp_path / 'more', 'sa_9')
    shard(root / 'sa_1.tar', tmp_path / 'more')
    assert names(root) == ['sa_1.tar/sa_9', 'sa_0', 'sa_1', 'sa_2']


def test_broken_tar_link_among_shards_is_invalid(tmp_path):
    (tmp_path / 'data').mkdir()
    shard(tmp_path / 'data/sa_0.tar', make_sa1b(tmp_path / 'pairs', 2))
    (tmp_path / 'data/sa_1.tar').symlink_to('/nowhere.tar')
    items = [item for part in opened(tmp_path / 'data').shards for item in part.items()]
    assert [item.name for item in items] == ['sa_0.tar/sa_0', 'sa_0.tar/sa_1', 'sa_1.tar']
    with pytest.raises(InvalidExample) as error:
        items[2].load()
    assert error.value.cause == 'damaged tar'


# ---- the layout as an option -----------------------------------------------------------------------------------------


def test_unknown_layout(tmp_path):
    with pytest.raises(SamjaxError, match="layout 'voc' is not known: set it to one of sa1b, coco, labelme, folder"):
        opened(make_folder(tmp_path), layout='voc')


@pytest.mark.parametrize('layout', ['sa1b', 'coco', 'labelme'])
def test_layout_that_does_not_fit(layout, tmp_path):
    with pytest.raises(SamjaxError, match=f"holds nothing of the layout '{layout}'.*name another of sa1b, coco"):
        opened(make_folder(tmp_path), layout=layout)


def test_layout_changes_the_digest(tmp_path):
    make_folder(tmp_path, 3)
    make_labelme(tmp_path / 'images', 3)
    digests = {opened(tmp_path, layout=layout).digest for layout in ('', 'folder', 'labelme')}
    assert len(digests) == 3


def test_folders_of_another_layout(tmp_path):
    with pytest.raises(SamjaxError, match="those of the layout 'folder', not 'coco'"):
        opened(make_folder(tmp_path), images='images', masks='masks', layout='coco')


def test_several_coco_files(tmp_path):
    make_coco(tmp_path, 2, 'train.json')
    make_coco(tmp_path, 3, 'val.json')
    with pytest.raises(SamjaxError, match=r'has 2 JSON files of COCO: name one, .*/train.json with 2 images or .*val'):
        opened(tmp_path)
    assert counts(tmp_path / 'val.json') == {'coco': 3}
    make_folder(tmp_path, 6)
    assert opened(tmp_path).layout == 'images and masks'
    with pytest.raises(SamjaxError, match='has 2 JSON files of COCO'):
        opened(tmp_path, layout='coco')


def test_images_that_a_coco_file_does_not_list(tmp_path):
    make_coco(tmp_path)
    put_image(tmp_path / 'unlisted.jpg')
    assert ignored(tmp_path) == {'image(s)': 1}
    assert len(names(tmp_path)) == 6


def test_archive(tmp_path):
    with pytest.raises(SamjaxError, match='set.zip is an archive: unpack it'):
        opened(put(tmp_path / 'set.zip', b'PK'))


# ---- what cannot be read ---------------------------------------------------------------------------------------------


@pytest.fixture
def unreadable(monkeypatch):
    """Makes folders of a name unreadable; for root, permissions do not."""

    def refuse(name):
        for function in (os.scandir, os.listdir):

            def refusing(path='.', function=function):
                if os.path.basename(path) == name:
                    raise PermissionError(13, 'Permission denied', str(path))
                return function(path)

            monkeypatch.setattr(os, function.__name__, refusing)

    return refuse


@pytest.mark.parametrize('layout', MAKE)
@pytest.mark.parametrize('name', ['private', 'annotations'])
def test_unreadable_subfolder_is_counted(name, layout, tmp_path, unreadable):
    root = MAKE[layout](tmp_path / 'data')
    before = names(root)
    put_image(root / f'{name}/x.jpg')
    unreadable(name)
    assert names(root) == before
    assert opened(root).ignored == {'folder(s) that cannot be read': (1, f'{name} (Permission denied)')}


def test_unreadable_folder_of_masks_is_named(tmp_path, unreadable):
    make_folder(tmp_path)
    unreadable('masks')
    with pytest.raises(SamjaxError, match=r'such as masks \(Permission denied\)'):
        opened(tmp_path)


def test_unreadable_root(tmp_path, unreadable):
    make_folder(tmp_path / 'data')
    unreadable('data')
    with pytest.raises(SamjaxError, match=r'data cannot be read \(Permission denied\): change its permissions'):
        opened(tmp_path / 'data')


@pytest.mark.parametrize('layout', ['sa1b', 'folder', 'labelme'])
def test_name_that_is_not_utf_8(layout, tmp_path, capsys):
    root = MAKE[layout](tmp_path / 'data', 3)
    for file in sorted(root.rglob('?*0.*')):
        file.rename(Path(os.fsdecode(os.fsencode(file.parent) + b'/\xff 0' + os.fsencode(file.suffix))))
    records = source.open_records(root, tmp_path / 'cache', 0.0)
    (name,) = {e.name for e in records} - set(names(MAKE[layout](tmp_path / 'other', 3)))
    assert os.fsencode(name) == b'\xff 0'
    assert b'\xff 0\n' in (Path(records.folder) / 'images.txt').read_bytes()


@pytest.mark.parametrize('layout', ['sa1b', 'folder', 'labelme'])
def test_damaged_image_whose_name_is_not_utf_8(layout, tmp_path):
    root = MAKE[layout](tmp_path / 'data', 3)
    for file in sorted(root.rglob('?*0.*')):
        renamed = file.rename(Path(os.fsdecode(os.fsencode(file.parent) + b'/\xff' + os.fsencode(file.suffix))))
        if renamed.suffix == '.jpg':
            renamed.write_bytes(b'')
    records = source.open_records(root, tmp_path / 'cache', 0.5)
    report = json.loads((Path(records.folder) / 'report.json').read_text())
    [[location]] = report['invalid'].values()
    assert b'\xff' in os.fsencode(location)


@pytest.mark.parametrize('layout', MAKE)
@pytest.mark.parametrize('spoil', ['broken link', 'no bytes', 'link to itself', 'folder'])
def test_image_that_cannot_be_opened_costs_one_image(layout, spoil, tmp_path):
    root = MAKE[layout](tmp_path / 'data', 4)
    image = sorted(root.rglob('*0.jpg'))[0]
    image.unlink()
    if spoil == 'folder':
        put(image / 'notes.txt')
    elif spoil == 'no bytes':
        image.touch()
    else:
        image.symlink_to('/nowhere.jpg' if spoil == 'broken link' else image)
    assert len(read(root, tmp_path, 0.5)) == 3


# ---- prepared data ---------------------------------------------------------------------------------------------------


def test_own_report_json_is_not_prepared_data(tmp_path):
    root = make_folder(tmp_path / 'data', 3)
    report_json(root)
    hugging_face_json(root)
    assert len(read(root, tmp_path)) == 3


@pytest.mark.parametrize('text', ['', '{}', '[]', '3', '{"author": "someone"}', None])
def test_prepared_data_whose_report_is_damaged(text, tmp_path):
    records = source.open_records(make_folder(tmp_path / 'data', 2), tmp_path / 'cache', 0.0)
    report = Path(records.folder) / 'report.json'
    report.unlink() if text is None else report.write_text(text)
    with pytest.raises(SamjaxError, match='report.json is not what .*: .*prepare the data set again'):
        source.open_records(records.folder, tmp_path / 'cache', 0.0)


# ---- masks among images ----------------------------------------------------------------------------------------------


def relative(root):
    return sorted(os.path.relpath(file, root) for file in mask_files(root))


def test_mask_files(tmp_path):
    make_folder(tmp_path / 'a', 2)
    put_mask(tmp_path / 'a/masks/other.png')
    for name in ('x.jpg', 'y.png'):
        put_image(tmp_path / 'b' / name)
    put_mask(tmp_path / 'b/x_mask.png')
    assert relative(tmp_path) == ['a/masks/f0.png', 'a/masks/f1.png', 'a/masks/other.png', 'b/x_mask.png']
    assert relative(tmp_path / 'a/masks') == []


def test_png_beside_jpeg_is_a_mask_if_most_images_have_one(tmp_path):
    for name in 'abc':
        put_image(tmp_path / f'{name}.jpg')
    put_mask(tmp_path / 'a.png')
    assert relative(tmp_path) == []
    put_mask(tmp_path / 'b.png')
    assert relative(tmp_path) == ['a.png', 'b.png']
    random_image(1, 60, 60).save(tmp_path / 'b.png')  # a photograph in two formats
    assert relative(tmp_path) == []


def test_photograph_called_mask(tmp_path):
    for name in ('x.jpg', 'carnival_mask.jpg'):
        put_image(tmp_path / name)
    assert relative(tmp_path) == []


def test_pictures_of_panoptic_segments_are_masks(tmp_path):
    put_image(tmp_path / 'val/1.jpg')
    segments = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    segments[2:9, 2:9] = 7, 0, 0
    put(tmp_path / 'panoptic/1.png')
    Image.fromarray(segments).save(tmp_path / 'panoptic/1.png')
    annotation = {'image_id': 1, 'file_name': '1.png', 'segments_info': [{'id': 7}]}
    image = {'id': 1, 'file_name': '1.jpg', 'height': HEIGHT, 'width': WIDTH}
    put(tmp_path / 'panoptic.json', {'images': [image], 'annotations': [annotation]})
    assert relative(tmp_path) == ['panoptic/1.png']


def test_images_of_sa1b_are_no_masks(tmp_path):
    assert relative(make_sa1b(tmp_path, 2)) == []
    assert content()  # its JSON files are no pictures
