"""Folders of images and label images: masks are matched with their image, and values read as the right objects."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from samjax.data.formats import folder
from samjax.data.formats.dataset_index import InvalidItem
from samjax.data.formats.read_options import ReadOptions
from samjax.errors import InvalidExample, SamjaxError
from samjax.images.open import ImageOptions

BINARY = [[0, 1, 0], [0, 1, 1]]


def put(path, values=BINARY, dtype=np.uint8, mode=None, palette=None, **options):
    """Writes an image of literal values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(values, dtype))
    if palette:
        image.putpalette(palette)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def put_all(root, *files):
    for file in files:
        put(root / file)


def items(path):
    return [item for shard in folder.open_index(path).shards for item in shard.items()]


def matched(path):
    """Name of each image that has masks: its masks."""
    return {item.name: list(item.masks) for item in items(path) if not isinstance(item, InvalidItem) and item.masks}


def bare(path):
    """Names of images without masks."""
    return [item.name for item in items(path) if not isinstance(item, InvalidItem) and not item.masks]


def invalid(path):
    return [(item.cause, item.name, item.location) for item in items(path) if isinstance(item, InvalidItem)]


def load(path):
    (item,) = items(path)
    return item.load()


def decoded(annotated):
    for rle in annotated.masks:
        assert rle['size'] == list(annotated.size)
    return [coco.decode(rle).tolist() for rle in annotated.masks]


def read(tmp_path, values, *more, suffix='.png', **how):
    """The annotated image with these mask files."""
    put(tmp_path / 'images/x.png')
    for number, values_HW in enumerate((values, *more)):
        put(tmp_path / f'masks/x_{number}{suffix}', values_HW, **how)
    return load(tmp_path)


def refused(tmp_path, *values, **how):
    with pytest.raises(InvalidExample) as error:
        read(tmp_path, *values, **how)
    return error.value


# ---- which masks are whose -------------------------------------------------------------------------------------------


def test_images_beside_masks(tmp_path):
    put_all(tmp_path, 'images/a.jpg', 'masks/a.png', 'images/b.png', 'masks/b.png')
    assert matched(tmp_path) == {'a': ['masks/a.png'], 'b': ['masks/b.png']}
    assert invalid(tmp_path) == []
    assert folder.open_index(tmp_path).layout == 'images and masks'
    first = items(tmp_path)[0]
    assert (first.name, first.location) == ('a', 'images/a.jpg')
    annotated = pickle.loads(pickle.dumps(first)).load()
    assert annotated.image == (tmp_path / 'images/a.jpg').read_bytes()
    assert annotated.size == (2, 3)
    assert decoded(annotated) == [[[0, 1, 0], [0, 1, 1]]]
    assert annotated.skipped_masks.counts == {}


@pytest.mark.parametrize('images', ['images', 'image', 'imgs', 'img', 'input', 'inputs', 'JPEGImages', 'IMAGES'])
def test_names_of_image_folders(tmp_path, images):
    put_all(tmp_path, f'{images}/x.png', 'masks/x.png')
    assert matched(tmp_path) == {'x': ['masks/x.png']}


MASK_FOLDERS = (
    'masks mask labels label annotations annotation gt ground_truth groundtruth segmentation segmentations '
    'SegmentationObject SegmentationClass target targets Masks'
)


@pytest.mark.parametrize('masks', MASK_FOLDERS.split())
def test_names_of_mask_folders(tmp_path, masks):
    put_all(tmp_path, 'images/x.png', f'{masks}/x.png')
    assert matched(tmp_path) == {'x': [f'{masks}/x.png']}


def test_voc_is_read_by_objects(tmp_path):
    put_all(tmp_path, 'JPEGImages/x.jpg', 'SegmentationClass/x.png', 'SegmentationObject/x.png')
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'Annotations/x.xml').touch()
    assert matched(tmp_path) == {'x': ['SegmentationObject/x.png']}
    assert invalid(tmp_path) == []


def test_folders_at_any_depth_and_mirrored_subfolders(tmp_path):
    put_all(tmp_path, 'd/train/images/x.jpg', 'd/train/masks/x.png', 'd/val/images/x.jpg', 'd/val/masks/x.png')
    put_all(tmp_path, 'e/JPEGImages/480p/bear/00000.jpg', 'e/Annotations/480p/bear/00000.png')
    assert matched(tmp_path) == {
        'd/train/x': ['d/train/masks/x.png'],
        'd/val/x': ['d/val/masks/x.png'],
        'e/480p/bear/00000': ['e/Annotations/480p/bear/00000.png'],
    }
    assert invalid(tmp_path) == []
    assert matched(tmp_path / 'd/train') == {'x': ['masks/x.png']}


def test_one_file_per_object(tmp_path):
    put_all(tmp_path, *(f'images/{name}.jpg' for name in 'abcde'))
    put_all(tmp_path, 'masks/a_0.png', 'masks/a_1.png', 'masks/b-left.png', 'masks/b-right.png')
    put_all(tmp_path, 'masks/c/one.png', 'masks/c/two.png', 'masks/d_mask.png', 'masks/e_seg.png')
    assert matched(tmp_path) == {
        'a': ['masks/a_0.png', 'masks/a_1.png'],
        'b': ['masks/b-left.png', 'masks/b-right.png'],
        'c': ['masks/c/one.png', 'masks/c/two.png'],
        'd': ['masks/d_mask.png'],
        'e': ['masks/e_seg.png'],
    }
    assert invalid(tmp_path) == []


def test_longest_name_wins(tmp_path):
    put_all(tmp_path, 'images/a.png', 'images/a_1.png', 'images/ab.png')
    put_all(tmp_path, 'masks/a_1.png', 'masks/a_2.png', 'masks/a_1_0.png', 'masks/a_1-1.png', 'masks/ab.png')
    assert matched(tmp_path) == {
        'a': ['masks/a_2.png'],
        'a_1': ['masks/a_1-1.png', 'masks/a_1.png', 'masks/a_1_0.png'],
        'ab': ['masks/ab.png'],
    }


def test_masks_of_a_single_image_have_any_name(tmp_path):
    """Data Science Bowl 2018."""
    put_all(tmp_path, '00ae/images/00ae.png', '00ae/masks/07a9.png', '00ae/masks/0e54.png')
    put_all(tmp_path, '0121/images/0121.png', '0121/masks/f7e3.png')
    assert matched(tmp_path) == {
        '00ae/00ae': ['00ae/masks/07a9.png', '00ae/masks/0e54.png'],
        '0121/0121': ['0121/masks/f7e3.png'],
    }
    assert invalid(tmp_path) == []


def test_mask_of_any_name_is_not_one_of_two_images(tmp_path):
    put_all(tmp_path, 'images/a.png', 'images/b.png', 'masks/c.png', 'masks/b.png')
    assert matched(tmp_path) == {'b': ['masks/b.png']}
    assert bare(tmp_path) == ['a']
    assert invalid(tmp_path) == [('no image', 'masks/c.png', 'masks/c.png')]


def test_masks_of_other_names_and_two_images(tmp_path):
    put_all(tmp_path, 'images/a.png', 'images/b.png', 'masks/c.png')
    assert bare(tmp_path) == ['a', 'b']
    assert [cause for cause, *_ in invalid(tmp_path)] == ['no image']


def test_mask_of_any_name_beside_masks_that_match(tmp_path):
    put_all(tmp_path, 'images/a.png', 'masks/c.png', 'masks/a_1.png')
    assert matched(tmp_path) == {'a': ['masks/a_1.png']}
    assert invalid(tmp_path) == [('no image', 'masks/c.png', 'masks/c.png')]


def test_both_in_one_folder(tmp_path):
    put_all(tmp_path, 'same.jpg', 'same.png', 'm.png', 'm_mask.png', 'ms.jpg', 'ms_masks.png', 'l.tif', 'l_label.png')
    put_all(tmp_path, 's.bmp', 's_seg.png', 'dash.webp', 'dash-mask.png', 'deep/n.png', 'deep/n_mask_0.png')
    put_all(tmp_path, 'deep/n_mask_1.png', 'deep/a.jpg', 'deep/a_1.jpg', 'deep/a_mask.png', 'deep/a_1_mask.png')
    assert matched(tmp_path) == {
        'same': ['same.png'],
        'm': ['m_mask.png'],
        'ms': ['ms_masks.png'],
        'l': ['l_label.png'],
        's': ['s_seg.png'],
        'dash': ['dash-mask.png'],
        'deep/n': ['deep/n_mask_0.png', 'deep/n_mask_1.png'],
        'deep/a': ['deep/a_mask.png'],
        'deep/a_1': ['deep/a_1_mask.png'],
    }
    assert invalid(tmp_path) == []


def test_in_one_folder_names_are_equal(tmp_path):
    """x_b_mask is the mask of an image that is missing."""
    put_all(tmp_path, 'x.jpg', 'x_b_mask.png', 'y.jpg', 'y_mask.png')
    assert matched(tmp_path) == {'y': ['y_mask.png']}
    assert bare(tmp_path) == ['x']
    assert invalid(tmp_path) == [('no image', 'x_b_mask.png', 'x_b_mask.png')]


def test_in_one_folder_a_single_image_has_no_mask_of_another_name(tmp_path):
    put_all(tmp_path, 'x.jpg', 'y_mask.png')
    assert bare(tmp_path) == ['x']
    assert invalid(tmp_path) == [('no image', 'y_mask.png', 'y_mask.png')]


def test_png_beside_a_marked_mask_is_an_image(tmp_path):
    put_all(tmp_path, 'x.jpg', 'x.png', 'x_mask.png')
    assert matched(tmp_path) == {'x': ['x_mask.png']}
    assert invalid(tmp_path) == [('duplicate name', 'x.png', 'x.png')]


def test_duplicate_names(tmp_path):
    put_all(tmp_path, 'images/x.jpg', 'images/x.png', 'masks/x.png')
    assert matched(tmp_path) == {'x': ['masks/x.png']}
    assert invalid(tmp_path) == [('duplicate name', 'images/x.png', 'images/x.png')]


def test_names_stay_unique_across_forms(tmp_path):
    put_all(tmp_path, 'images/a/x.jpg', 'masks/a/x.png', 'a/images/x.jpg', 'a/masks/x.png', 'a/x.jpg', 'a/x_mask.png')
    assert sorted(matched(tmp_path)) == ['a/images/x.jpg', 'a/x', 'a/x.jpg']


def test_image_without_mask_file_has_no_masks(tmp_path):
    put_all(tmp_path, 'images/a.png', 'images/b.png', 'masks/b.png')
    item, _ = items(tmp_path)
    annotated = item.load()
    with Image.open(tmp_path / 'images/a.png') as image:
        assert (annotated.size, annotated.masks) == (image.size[::-1], [])
    (tmp_path / 'images/a.png').write_bytes(b'no image')
    with pytest.raises(InvalidExample, match='unreadable image'):
        item.load()


def test_invalid_items_have_a_cause(tmp_path):
    put_all(tmp_path, 'images/b.png', 'masks/b.png', 'images/c.png', 'masks/a.png')
    (item,) = (item for item in items(tmp_path) if isinstance(item, InvalidItem))
    with pytest.raises(InvalidExample) as error:
        item.load()
    assert error.value.cause == 'no image'


def test_suffixes_of_images(tmp_path):
    for number, suffix in enumerate(['jpg', 'jpeg', 'png', 'webp', 'bmp', 'tif', 'gif', 'JPG', 'Png']):
        put_all(tmp_path, f'images/{number}.{suffix}', f'masks/{number}.png')
    (tmp_path / 'images/notes.txt').touch()
    assert list(matched(tmp_path)) == ['0', '1', '2', '3', '4', '5', '6', '7', '8']
    assert invalid(tmp_path) == []


@pytest.mark.parametrize('suffix', ['png', 'bmp', 'tif', 'tiff', 'gif', 'GIF'])
def test_suffixes_of_masks(tmp_path, suffix):
    assert decoded(read(tmp_path, BINARY, suffix=f'.{suffix}')) == [[[0, 1, 0], [0, 1, 1]]]


def test_hidden_files_are_skipped(tmp_path):
    put_all(tmp_path, 'images/x.png', 'masks/x.png', 'images/.y.png', '.cache/images/z.png', '.cache/masks/z.png')
    assert matched(tmp_path) == {'x': ['masks/x.png']}
    assert invalid(tmp_path) == []


def test_spaces_and_other_alphabets(tmp_path):
    root = tmp_path / 'my dätä'
    put_all(root, 'images/é 日本 x.png', 'masks/é 日本 x.png')
    assert matched(root) == {'é 日本 x': ['masks/é 日本 x.png']}
    assert decoded(load(root)) == [BINARY]


@pytest.mark.parametrize(
    'files',
    [
        ['a.jpg', 'b.png'],
        ['images/a.png'],
        ['masks/a.png'],
        ['photos/a.png', 'masks/a.png'],
        ['a_mask.png'],
        ['images/a.png', 'masks/.a.png'],
    ],
)
def test_nothing_of_this_form(tmp_path, files):
    put_all(tmp_path, *files)
    assert folder.open_index(tmp_path) is None


def test_no_folder(tmp_path):
    assert folder.open_index(tmp_path / 'missing') is None
    assert folder.open_index(put(tmp_path / 'x.png')) is None


def test_other_images_do_not_belong_to_the_data_set(tmp_path):
    put_all(tmp_path, 'images/x.png', 'masks/x.png', 'preview.png', 'docs/figure.jpg')
    assert len(items(tmp_path)) == 1


# ---- names that differ -----------------------------------------------------------------------------------------------

NFC, NFD = '\u00e9', 'e\u0301'  # é as one character and as two


@pytest.mark.parametrize(('image', 'mask'), [(NFC, NFD), (NFD, NFC)])
def test_unicode_form_does_not_matter(tmp_path, image, mask):
    put_all(tmp_path, f'images/{image}/{image}.jpg', f'masks/{mask}/{mask}_1.png', 'images/b.jpg')
    put_all(tmp_path, f'one/{image}.jpg', f'one/{mask}.png', f'two/{image}.png', f'two/{mask}_mask.png')
    assert matched(tmp_path) == {
        f'{image}/{image}': [f'masks/{mask}/{mask}_1.png'],
        f'one/{image}': [f'one/{mask}.png'],
        f'two/{image}': [f'two/{mask}_mask.png'],
    }
    assert (invalid(tmp_path), folder.open_index(tmp_path).warnings) == ([], {})


def test_both_unicode_forms_are_two_names(tmp_path):
    put_all(tmp_path, *(f'{side}/{name}.png' for side in ('images', 'masks') for name in (NFC, NFD)))
    assert matched(tmp_path) == {name: [f'masks/{name}.png'] for name in (NFC, NFD)}


def test_letter_case_is_a_warning(tmp_path):
    put_all(tmp_path, 'images/Image_1.JPG', 'masks/image_1.png', 'images/B.jpg', 'masks/b_0.PNG', 'masks/b_1.png')
    put_all(tmp_path, 'images/c.jpg', 'masks/c.png', 'one/IMG_1.JPG', 'one/img_1.png')
    assert matched(tmp_path) == {
        'Image_1': ['masks/image_1.png'],
        'B': ['masks/b_0.PNG', 'masks/b_1.png'],
        'c': ['masks/c.png'],
        'one/IMG_1': ['one/img_1.png'],
    }
    [(cause, (count, example))] = folder.open_index(tmp_path).warnings.items()
    assert (cause, count) == ('mask name(s) that differ from the image in letter case', 4)
    assert example in ('masks/b_0.PNG', 'masks/image_1.png')


def test_letter_case_that_decides(tmp_path):
    put_all(tmp_path, 'images/x.jpg', 'images/X.jpg', 'masks/x.png', 'masks/X.png', 'images/y.jpg', 'images/Y.jpg')
    put_all(tmp_path, 'masks/z.png')
    assert matched(tmp_path) == {'x': ['masks/x.png'], 'X': ['masks/X.png']}
    put_all(tmp_path, 'images/aB.jpg', 'images/Ab.jpg', 'masks/ab.png')  # may belong to either
    assert ('no image', 'masks/ab.png', 'masks/ab.png') in invalid(tmp_path)


# ---- layouts of well-known tools and data sets -----------------------------------------------------------------------


@pytest.mark.parametrize('masks', ['gts', 'GT', 'ann_dir'])
def test_more_names_of_folders(tmp_path, masks):
    put_all(tmp_path, 'imgs/x.jpg', f'{masks}/x.png')
    assert matched(tmp_path) == {'x': [f'{masks}/x.png']}


def test_mmseg(tmp_path):
    put_all(tmp_path, 'img_dir/train/x.jpg', 'ann_dir/train/x.png', 'img_dir/val/y.jpg', 'ann_dir/val/y.png')
    assert matched(tmp_path) == {'train/x': ['ann_dir/train/x.png'], 'val/y': ['ann_dir/val/y.png']}
    assert invalid(tmp_path) == []


def test_ade20k(tmp_path):
    put_all(tmp_path, 'images/training/ADE_1.jpg', 'annotations/training/ADE_1.png')
    assert matched(tmp_path) == {'training/ADE_1': ['annotations/training/ADE_1.png']}


def test_ade20k_with_parts(tmp_path):
    put_all(tmp_path, 'a/ADE_1.jpg', 'a/ADE_1_seg.png', 'a/ADE_1_parts_1.png', 'a/ADE_1_parts_2.png')
    assert matched(tmp_path) == {'a/ADE_1': ['a/ADE_1_seg.png']}
    assert (bare(tmp_path), invalid(tmp_path)) == ([], [])


def test_cityscapes(tmp_path):
    forms = ('color', 'instanceIds', 'labelIds', 'labelTrainIds')
    for name in ('train/aachen/aachen_000000_000019', 'train/aachen/aachen_000001_000019', 'val/ulm/ulm_000000_000019'):
        put_all(tmp_path, f'leftImg8bit/{name}_leftImg8bit.png')
        put_all(tmp_path, *(f'gtFine/{name}_gtFine_{form}.png' for form in forms))
        put_all(tmp_path, *(f'gtCoarse/{name}_gtCoarse_{form}.png' for form in forms[:3]))
    assert matched(tmp_path) == {
        f'{name}_leftImg8bit': [f'gtFine/{name}_gtFine_instanceIds.png']
        for name in (
            'train/aachen/aachen_000000_000019',
            'train/aachen/aachen_000001_000019',
            'val/ulm/ulm_000000_000019',
        )
    }
    assert (bare(tmp_path), invalid(tmp_path)) == ([], [])
    assert folder.open_index(tmp_path).ignored.counts == {folder.OTHER_FORM: 3 * (3 + 3)}
    expected = folder.mask_files(tmp_path)
    assert len(expected) == 3 * 7


def test_values_of_cityscapes(tmp_path):
    """Below 1000 a class without objects, from there on class * 1000 + number: each value is one mask."""
    put_all(tmp_path, 'leftImg8bit/a/a_leftImg8bit.png')
    values_HW = [[0, 7, 26000], [24000, 24001, 24001]]
    put(tmp_path / 'gtFine/a/a_gtFine_instanceIds.png', values_HW, np.uint16)
    expected = [[[int(value == other) for value in row] for row in values_HW] for other in (7, 24000, 24001, 26000)]
    assert decoded(load(tmp_path)) == expected


def test_best_form_that_is_there(tmp_path):
    put_all(tmp_path, 'images/a.jpg', 'annotations/a.png', 'annotations/a_labelTrainIds.png')
    put_all(tmp_path, 'images/b.jpg', 'annotations/b_labelTrainIds.png', 'images/c.jpg')
    put_all(tmp_path, 'annotations/c_color.png', 'annotations/c_labelIds.png')
    assert matched(tmp_path) == {
        'a': ['annotations/a.png'],
        'b': ['annotations/b_labelTrainIds.png'],
        'c': ['annotations/c_labelIds.png'],
    }


def test_nnunet(tmp_path):
    put_all(tmp_path, 'imagesTr/case_1_0000.png', 'labelsTr/case_1.png', 'imagesTr/case_2_0000.png')
    put_all(tmp_path, 'labelsTr/case_2.png', 'imagesTs/case_3_0000.png', 'labelsTs/case_3.png')
    assert matched(tmp_path) == {
        'case_1': ['labelsTr/case_1.png'],
        'case_2': ['labelsTr/case_2.png'],
        'case_3': ['labelsTs/case_3.png'],
    }
    assert invalid(tmp_path) == []


def test_several_channels_of_nnunet(tmp_path):
    put_all(tmp_path, 'imagesTr/a_0000.png', 'labelsTr/a.png')
    put_all(tmp_path, *(f'imagesTr/b_000{channel}.png' for channel in range(3)), 'labelsTr/b.png')
    assert matched(tmp_path) == {'a': ['labelsTr/a.png']}
    assert invalid(tmp_path) == [('several channels', 'b', 'imagesTr/b_0000.png')]


def test_masks_of_a_few_images_do_not_decide(tmp_path):
    """An early attempt in masks/ and the whole set in gts/."""
    for number in range(12):
        put_all(tmp_path, f'images/{number}.jpg', f'gts/{number}.png')
    put_all(tmp_path, 'masks/3.png')
    assert matched(tmp_path) == {str(number): [f'gts/{number}.png'] for number in range(12)}
    assert folder.open_index(tmp_path).ignored.counts == {folder.OTHER_FORM: 1}


# ---- folders that are named ------------------------------------------------------------------------------------------


def named(path, images, masks):
    """As `matched`, of folders that are named."""
    index = folder.open_index(path, ReadOptions(images=images, masks=masks))
    found = [item for shard in index.shards for item in shard.items()]
    return {item.name: list(item.masks) for item in found if not isinstance(item, InvalidItem)}


def test_named_folders(tmp_path):
    put_all(
        tmp_path, 'photos/a/x.jpg', 'silhouettes/a/x.png', 'photos/b/x.jpg', 'silhouettes/b/x_1.png', 'images/z.png'
    )
    put_all(tmp_path, 'masks/z.png')
    expected = {'a/x': ['silhouettes/a/x.png'], 'b/x': ['silhouettes/b/x_1.png']}
    assert named(tmp_path, 'photos', 'silhouettes') == expected
    assert named(tmp_path, 'photos/', './silhouettes') == expected
    assert named(tmp_path / 'images', '../photos', '../silhouettes').keys() == expected.keys()


def test_named_folders_elsewhere(tmp_path):
    put_all(tmp_path, 'photos/x.jpg', 'elsewhere/x.png', 'data/notes.png')
    masks = str(tmp_path / 'elsewhere')
    assert named(tmp_path, 'photos', masks) == {'x': ['elsewhere/x.png']}
    found = named(tmp_path / 'data', str(tmp_path / 'photos'), masks)
    assert found == {'x': [str(tmp_path / 'elsewhere/x.png')]}
    index = folder.open_index(tmp_path / 'data', ReadOptions(images=str(tmp_path / 'photos'), masks=masks))
    (item,) = index.shards[0].items()
    assert decoded(item.load()) == [BINARY]


def test_named_folders_within_each_other(tmp_path):
    put_all(tmp_path, 'all/x.jpg', 'all/truth/x.png', 'all/more/y.jpg', 'all/truth/more/y.png')
    assert named(tmp_path, 'all', 'all/truth') == {'x': ['all/truth/x.png'], 'more/y': ['all/truth/more/y.png']}
    put_all(tmp_path, 'b/x.png', 'b/photos/x.jpg')
    assert named(tmp_path, 'b/photos', 'b') == {'x': ['b/x.png']}


def test_named_folder_with_both(tmp_path):
    put_all(tmp_path, 'both/x.jpg', 'both/x_mask.png')
    assert named(tmp_path, 'both', 'both') == {'both/x': ['both/x_mask.png']}


def test_named_folder_that_is_not_there(tmp_path):
    put_all(tmp_path, 'photos/x.jpg')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(SamjaxError, match='/gts is no folder: masks must name one, relative to '):
        named(tmp_path, 'photos', 'gts')
    with pytest.raises(SamjaxError, match='/empty holds no image file: masks must name a folder that does'):
        named(tmp_path, 'photos', 'empty')


def test_digest_of_named_folders(tmp_path):
    put_all(tmp_path, 'photos/x.jpg', 'a/x.png', 'b/x.png')
    digests = {folder.open_index(tmp_path, ReadOptions(images='photos', masks=masks)).digest for masks in 'ab'}
    assert len(digests) == 2


# ---- links, rights, changes ------------------------------------------------------------------------------------------


def test_loops_of_links(tmp_path):
    put_all(tmp_path, 'images/x.png', 'masks/x.png')
    (tmp_path / 'images/up').symlink_to(tmp_path)
    (tmp_path / 'masks/self').symlink_to(tmp_path / 'masks')
    assert matched(tmp_path) == {'x': ['masks/x.png']}
    assert invalid(tmp_path) == []


def test_images_that_two_folders_link_to(tmp_path):
    put_all(tmp_path, 'all/x.png', 'train/masks/x.png', 'val/masks/x.png')
    for part in ('train', 'val'):
        (tmp_path / part / 'images').symlink_to(tmp_path / 'all')
    assert matched(tmp_path) == {'train/x': ['train/masks/x.png'], 'val/x': ['val/masks/x.png']}


def test_folder_that_cannot_be_read(tmp_path, monkeypatch):
    put_all(tmp_path, 'images/x.png', 'masks/x.png')
    scandir = os.scandir

    def no_masks(path):
        if str(path).endswith('masks'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', no_masks)
    assert folder.open_index(tmp_path) is None  # `detect` names the folder
    put_all(tmp_path, 'b/images/x.png', 'b/gt/x.png')
    assert matched(tmp_path) == {'b/x': ['b/gt/x.png']}


def test_digest(tmp_path):
    image, mask = put(tmp_path / 'images/x.png'), put(tmp_path / 'masks/x.png')
    first = folder.open_index(tmp_path).digest
    assert len(first) == 32
    assert folder.open_index(tmp_path).digest == first
    put(tmp_path / 'preview.png')
    assert folder.open_index(tmp_path).digest == first
    digests = {first}
    for file in (image, mask):
        os.utime(file, ns=(1, 1))
        digests.add(folder.open_index(tmp_path).digest)
    mask.rename(tmp_path / 'masks/x_1.png')
    digests.add(folder.open_index(tmp_path).digest)
    put(tmp_path / 'images/without.png')
    digests.add(folder.open_index(tmp_path).digest)
    assert len(digests) == 5


def test_broken_link(tmp_path):
    put_all(tmp_path, 'images/y.png', 'masks/x.png', 'masks/y.png')
    (tmp_path / 'images/x.png').symlink_to(tmp_path / 'gone.png')
    first, _ = items(tmp_path)
    with pytest.raises(InvalidExample) as error:
        first.load()
    assert error.value.cause == 'unreadable image'
    assert 'it is a link to' in error.value.detail


# ---- tables ----------------------------------------------------------------------------------------------------------


def put_jsonl(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(row if isinstance(row, str) else json.dumps(row) for row in rows))


@pytest.mark.parametrize('image', ['file_name', 'image_file_name'])
@pytest.mark.parametrize('mask', ['mask_file_name', 'mask', 'label', 'annotation', 'segmentation', 'seg_file_name'])
def test_columns(tmp_path, image, mask):
    put_all(tmp_path, 'train/1.jpg', 'train/other/2.png')
    put_jsonl(tmp_path / 'train/metadata.jsonl', {image: '1.jpg', 'text': 'a cat', mask: 'other/2.png'})
    assert matched(tmp_path) == {'train/1': ['train/other/2.png']}


def test_column_of_masks_goes_first(tmp_path):
    put_all(tmp_path, '1.jpg', 'depth.png', 'mask.png')
    row = {'depth_file_name': 'depth.png', 'file_name': '1.jpg', 'label': 3, 'mask_file_name': 'mask.png'}
    put_jsonl(tmp_path / 'metadata.jsonl', row)
    assert matched(tmp_path) == {'1': ['mask.png']}


def test_list_of_masks(tmp_path):
    put_all(tmp_path, '1.jpg', 'a.png', 'b.png')
    put_jsonl(tmp_path / 'metadata.jsonl', {'file_name': '1.jpg', 'masks_file_names': ['b.png', 'a.png']})
    assert matched(tmp_path) == {'1': ['b.png', 'a.png']}


def test_csv(tmp_path):
    put_all(tmp_path, 'images/1.jpg', 'images/2.jpg', 'masks/a.png', 'masks/b.png')
    text = '\ufefffile_name,caption,mask_file_name\nimages/1.jpg,"one, two",masks/b.png\nimages/2.jpg,,./masks/a.png\n'
    (tmp_path / 'metadata.csv').write_text(text, encoding='utf-8')
    assert matched(tmp_path) == {'images/1': ['masks/b.png'], 'images/2': ['masks/a.png']}
    assert invalid(tmp_path) == []


def test_invalid_rows(tmp_path):
    put_all(tmp_path, '1.jpg', '2.jpg', 'm.png')
    rows = [
        {'file_name': '1.jpg', 'mask': 'm.png'},
        {'file_name': '2.jpg'},
        {'mask': 'm.png'},
        {'file_name': '2.jpg', 'mask': []},
        {'file_name': 2, 'mask': 'm.png'},
        'no JSON',
        '[]',
        {'file_name': '1.jpg', 'mask': 'm.png'},
        {'file_name': '3.jpg', 'mask': 'm.png'},
        {'file_name': '2.jpg', 'mask': 'n.png'},
    ]
    put_jsonl(tmp_path / 'metadata.jsonl', *rows)
    assert matched(tmp_path) == {'1': ['m.png']}
    locations = [f'metadata.jsonl, line {line}' for line in range(11)]
    assert invalid(tmp_path) == [
        *(('missing key', location, location) for location in locations[2:8]),
        ('duplicate name', locations[8], locations[8]),
        ('no image', '3', locations[9]),
        ('no mask file', '2', locations[10]),
    ]


def test_table_of_something_else(tmp_path):
    put_all(tmp_path, 'images/x.png', 'masks/x.png')
    (tmp_path / 'metadata.csv').write_text('id,file_name,label\n1,images/x.png,cat\n')
    assert matched(tmp_path) == {'x': ['masks/x.png']}


@pytest.mark.parametrize('spoil', ['too long', 'link'])
def test_table_that_cannot_be_read_is_counted(tmp_path, spoil):
    put_all(tmp_path, 'images/x.png', 'masks/x.png')
    if spoil == 'link':
        (tmp_path / 'metadata.csv').symlink_to('/nowhere.csv')
    else:
        (tmp_path / 'metadata.csv').write_text(f'file_name,mask\n1.jpg,{"m" * 200_000}.png\n')
    assert matched(tmp_path) == {'x': ['masks/x.png']}
    [(cause, (count, example))] = folder.open_index(tmp_path).ignored.items()
    assert (cause, count) == ('table(s) that cannot be read', 1)
    assert example.startswith('metadata.csv (')


def test_table_of_fewer_images_than_the_folders_have(tmp_path):
    put_all(tmp_path, 'images/x.png', 'masks/x.png', 'images/y.png', 'masks/y.png', '1.jpg', 'm.png')
    put_jsonl(tmp_path / 'metadata.jsonl', {'file_name': '1.jpg', 'mask': 'm.png'})
    assert matched(tmp_path) == {'x': ['masks/x.png'], 'y': ['masks/y.png']}
    assert folder.open_index(tmp_path).ignored == {'table(s) of fewer images': (1, 'metadata.jsonl')}


def test_table_in_another_unicode_form(tmp_path):
    put_all(tmp_path, f'{NFD}.jpg', 'm.png')
    put_jsonl(tmp_path / 'metadata.jsonl', {'file_name': f'{NFC}.jpg', 'mask': 'm.png'})
    assert matched(tmp_path) == {NFD: ['m.png']}


def test_digest_of_a_table(tmp_path):
    put_all(tmp_path, '1.jpg', 'm.png')
    put_jsonl(tmp_path / 'metadata.jsonl', {'file_name': '1.jpg', 'mask': 'm.png'})
    first = folder.open_index(tmp_path).digest
    os.utime(tmp_path / 'metadata.jsonl', ns=(1, 1))
    assert folder.open_index(tmp_path).digest != first


# ---- values of one mask file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('value', [1, 128, 255])
def test_one_value_is_one_object(tmp_path, value):
    annotated = read(tmp_path, [[value, 0, value], [0, 0, value]])
    assert decoded(annotated) == [[[1, 0, 1], [0, 0, 1]]]


def test_one_bit(tmp_path):
    assert decoded(read(tmp_path, [[True, False], [False, True]], dtype=bool)) == [[[1, 0], [0, 1]]]


def test_labels(tmp_path):
    annotated = read(tmp_path, [[0, 3, 3], [7, 7, 3]])
    assert annotated.size == (2, 3)
    assert decoded(annotated) == [[[0, 1, 1], [0, 0, 1]], [[0, 0, 0], [1, 1, 0]]]


def test_void(tmp_path):
    assert decoded(read(tmp_path, [[0, 3, 255], [7, 7, 255]])) == [[[0, 1, 0], [0, 0, 0]], [[0, 0, 0], [1, 1, 0]]]


def test_palette(tmp_path):
    annotated = read(tmp_path, [[0, 1], [2, 255]], palette=[0, 0, 0, 128, 0, 0, 0, 128, 0, *[224, 224, 192] * 253])
    assert decoded(annotated) == [[[0, 1], [0, 0]], [[0, 0], [1, 0]]]


def test_palette_with_opacities(tmp_path):
    """pillow warns when it converts such an image."""
    palette = [0, 0, 0, 255, 255, 255]
    assert decoded(read(tmp_path, [[0, 1]], palette=palette, transparency=b'\x00\x80')) == [[[0, 1]]]


def test_black_and_white_palette_in_any_order(tmp_path):
    assert decoded(read(tmp_path, [[0, 1], [1, 1]], palette=[255, 255, 255, 0, 0, 0])) == [[[1, 0], [0, 0]]]


def test_sixteen_bits(tmp_path):
    annotated = read(tmp_path, [[0, 255], [300, 65535]], dtype=np.uint16)
    assert decoded(annotated) == [[[0, 1], [0, 0]], [[0, 0], [1, 0]], [[0, 0], [0, 1]]]
    assert decoded(read(tmp_path, [[0, 255], [300, 0]], dtype=np.uint16)) == [[[0, 1], [0, 0]], [[0, 0], [1, 0]]]


def test_thirty_two_bits(tmp_path):
    annotated = read(tmp_path, [[0, 70000], [1, 70000]], dtype=np.int32, suffix='.tif')
    assert decoded(annotated) == [[[0, 0], [1, 0]], [[0, 1], [0, 1]]]


def test_floats(tmp_path):
    annotated = read(tmp_path, [[0, 2], [1, 0]], dtype=np.float32, suffix='.tif')
    assert decoded(annotated) == [[[0, 0], [1, 0]], [[0, 1], [0, 0]]]
    for value, cause in ((0.5, 'fractional labels'), (np.nan, 'labels that are not finite')):
        assert refused(tmp_path, [[0, value]], dtype=np.float32, suffix='.tif').cause == cause


def soft_square():
    """64 x 64: 20 x 20 at 255, around it 36 greys; the outermost are below the middle."""
    values_HW = np.zeros((64, 64), np.uint8)
    values_HW[9:31, 9:31] = np.arange(20, 20 + 22, dtype=np.uint8)
    values_HW[10:30, 9] = np.linspace(130, 230, 20, dtype=np.uint8)
    values_HW[10:30, 10:30] = 255
    return values_HW


def rectangle(top, left, bottom, right, size=64):
    return [[int(top <= y < bottom and left <= x < right) for x in range(size)] for y in range(size)]


@pytest.mark.parametrize('mode', [None, 'RGB', 'RGBA', 'LA'])
def test_soft_edges(tmp_path, mode):
    assert decoded(read(tmp_path, soft_square(), mode=mode)) == [rectangle(10, 9, 30, 30)]


def test_few_greys_are_labels(tmp_path):
    values_HW = np.zeros((64, 64), np.uint8)
    values_HW[10:30, 10:30] = 200
    values_HW[0, :2] = 100
    assert decoded(read(tmp_path, values_HW)) == [rectangle(0, 0, 1, 2), rectangle(10, 10, 30, 30)]


def test_many_small_objects_are_labels(tmp_path):
    """200 pixels of 4096 with a value each: almost all is nearly black, and still each is an object."""
    values_HW = np.zeros((64, 64), np.uint8)
    values_HW.flat[: 5 * 200 : 5] = np.arange(1, 201)
    annotated = read(tmp_path, values_HW)
    assert len(annotated.masks) == 200
    assert {coco.area(rle) for rle in annotated.masks} == {1}


def test_much_grey_is_labels(tmp_path):
    values_HW = np.repeat(np.arange(100, 164, dtype=np.uint8)[:, None], 64, 1)
    values_HW[:, 16:] = 250
    assert len(read(tmp_path, values_HW).masks) == 65


def test_palette_is_not_greys(tmp_path):
    values_HW = soft_square()
    palette = [0, 0, 0, *[128, 0, 0] * 255]
    assert len(read(tmp_path, values_HW, palette=palette).masks) == len(np.unique(values_HW)) - 2  # 0 and void


def test_jpeg(tmp_path):
    values_HW = np.array(rectangle(9, 17, 25, 42), np.uint8) * 255
    put(tmp_path / 'images/x.png')
    put(tmp_path / 'masks/x.jpg', values_HW, quality=60)
    assert len(np.unique(np.asarray(Image.open(tmp_path / 'masks/x.jpg')))) > 2
    assert decoded(load(tmp_path)) == [rectangle(9, 17, 25, 42)]


def test_jpeg_in_colour_and_called_png(tmp_path):
    values_HW = np.array(rectangle(9, 17, 25, 42), np.uint8) * 255
    annotated = read(tmp_path, values_HW, mode='RGB', format='JPEG')
    assert decoded(annotated) == [rectangle(9, 17, 25, 42)]


RED, GREEN, BLACK, WHITE = [255, 0, 0], [0, 1, 0], [0, 0, 0], [255, 255, 255]


def test_colours(tmp_path):
    annotated = read(tmp_path, [[BLACK, RED], [GREEN, RED], [WHITE, WHITE]])
    assert decoded(annotated) == [  # in the order of R + 256 G + 256^2 B
        [[0, 1], [0, 1], [0, 0]],
        [[0, 0], [1, 0], [0, 0]],
        [[0, 0], [0, 0], [1, 1]],
    ]


def test_red_is_not_void(tmp_path):
    assert decoded(read(tmp_path, [[BLACK, RED, [128, 0, 0]]])) == [[[0, 0, 1]], [[0, 1, 0]]]


def test_black_and_white_in_colour(tmp_path):
    assert decoded(read(tmp_path, [[BLACK, WHITE, WHITE]])) == [[[0, 1, 1]]]


@pytest.mark.parametrize('opacity', [255, 0, 7])
def test_constant_opacity_means_nothing(tmp_path, opacity):
    annotated = read(tmp_path, [[[*BLACK, opacity], [*RED, opacity], [*GREEN, opacity]]])
    assert decoded(annotated) == [[[0, 1, 0]], [[0, 0, 1]]]


def test_transparent_is_background(tmp_path):
    annotated = read(tmp_path, [[[*WHITE, 0], [*RED, 255], [*GREEN, 90]]])
    assert decoded(annotated) == [[[0, 1, 0]], [[0, 0, 1]]]


def test_mask_by_opacity_alone(tmp_path):
    for most in (255, 81):
        annotated = read(tmp_path, [[[*BLACK, 0], [*BLACK, 40], [*BLACK, most], [*BLACK, most - 1]]])
        assert decoded(annotated) == [[[0, 0, 1, 1]]]


def test_greys_in_colour(tmp_path):
    assert decoded(read(tmp_path, [[[0] * 3, [3] * 3, WHITE]])) == [[[0, 1, 0]]]


def test_grey_with_opacity(tmp_path):
    assert decoded(read(tmp_path, [[0, 3, 5]], mode='LA')) == [[[0, 1, 0]], [[0, 0, 1]]]


def test_thousands_of_values(tmp_path):
    """Cells of 2 x 2 px are read; values that change at every pixel are no label map."""
    values_HW = np.arange(1, 1 + 40 * 50).reshape(40, 50).repeat(2, 0).repeat(2, 1)
    annotated = read(tmp_path, values_HW, dtype=np.uint16)
    assert [coco.area(rle) for rle in annotated.masks] == [4] * 2000
    error = refused(tmp_path, np.arange(1001 + 1).reshape(2, 501), dtype=np.uint16)
    assert error.cause == 'unclear mask'
    assert error.detail.startswith(f'{tmp_path}/masks/x_0.png has 1001 different colours')


def test_colour_image_as_mask(tmp_path):
    pixels_HW3 = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert refused(tmp_path, pixels_HW3).cause == 'unclear mask'


def test_empty_mask(tmp_path):
    annotated = read(tmp_path, [[0, 0]])
    assert (annotated.size, annotated.masks, annotated.skipped_masks.counts) == ((1, 2), [], {'no pixels': 1})


def test_orientation_of_png_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    annotated = read(tmp_path, [[1, 0, 0], [1, 1, 0]], exif=exif)
    assert decoded(annotated) == [[[1, 0, 0], [1, 1, 0]]]


# ---- several mask files ----------------------------------------------------------------------------------------------


def test_each_of_several_files_is_one_object(tmp_path):
    annotated = read(tmp_path, [[0, 1, 2]], [[255, 0, 0]], [[9, 255, 0]])
    assert decoded(annotated) == [[[0, 1, 1]], [[1, 0, 0]], [[0, 1, 0]]]  # 9 of 255 is no part of it
    assert annotated.warnings == {'several values in the file of one object, are read as one': (1, 'masks/x_0.png')}
    assert annotated.skipped_masks.counts == {}


def test_several_jpegs(tmp_path):
    first, second = rectangle(9, 17, 25, 42), rectangle(0, 0, 7, 64)
    annotated = read(tmp_path, np.array(first) * 255, np.array(second) * 255, suffix='.jpg')
    assert decoded(annotated) == [first, second]


def test_several_with_soft_edges(tmp_path):
    annotated = read(tmp_path, soft_square(), soft_square().T)
    assert decoded(annotated) == [rectangle(10, 9, 30, 30), rectangle(9, 10, 30, 30)]


def test_several_in_colour(tmp_path):
    assert decoded(read(tmp_path, [[BLACK, RED, GREEN]], [[RED, BLACK, BLACK]])) == [[[0, 1, 1]], [[1, 0, 0]]]


def test_empty_among_several(tmp_path):
    annotated = read(tmp_path, [[0, 0]], [[0, 1]], [[0, 0]])
    assert decoded(annotated) == [[[0, 1]]]
    assert annotated.skipped_masks.counts == {'no pixels': 2}


def test_sizes_differ(tmp_path):
    error = refused(tmp_path, [[0, 1]], [[0], [1]])
    assert error.cause == 'wrong size'
    assert error.detail == 'masks/x_1.png has (height, width) (2, 1), masks/x_0.png has (1, 2)'


# ---- files that cannot be read ---------------------------------------------------------------------------------------


def test_damaged_mask(tmp_path):
    put_all(tmp_path, 'images/x.png')
    mask = put(tmp_path / 'masks/x.png', np.random.default_rng(0).integers(0, 9, (99, 99)))
    for content in (b'', b'not an image', mask.read_bytes()[:500]):
        mask.write_bytes(content)
        with pytest.raises(InvalidExample) as error:
            load(tmp_path)
        assert error.value.cause == 'unreadable mask'
        assert error.value.detail.startswith(f'{mask}: ')


def test_image_that_is_gone(tmp_path):
    put_all(tmp_path, 'images/x.png', 'masks/x.png')
    (item,) = items(tmp_path)
    Path(tmp_path / 'images/x.png').unlink()
    with pytest.raises(InvalidExample) as error:
        item.load()
    assert error.value.cause == 'unreadable image'


def test_huge_mask(tmp_path, monkeypatch):
    """The limit is that of the options, not pillow's."""
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 2)
    assert decoded(read(tmp_path, BINARY)) == [BINARY]
    for most, size in ((5, '2 x 3'), (6, None)):
        index = folder.open_index(tmp_path, ReadOptions(image=ImageOptions(max_pixels=most)))
        item = index.shards[0].listed[0]
        if size is None:
            assert decoded(item.load()) == [BINARY]
            continue
        with pytest.raises(InvalidExample, match=f'x_0.png: it has {size} px, more than 5') as error:
            item.load()
        assert error.value.cause == 'too many pixels'


def test_several_images_in_one_file(tmp_path):
    put_all(tmp_path, 'images/x.png')
    pages = [Image.fromarray(np.array(values, np.uint8)) for values in ([[0, 1]], [[1, 0]])]
    (tmp_path / 'masks').mkdir()
    pages[0].save(tmp_path / 'masks/x.tif', save_all=True, append_images=pages[1:])
    with pytest.raises(InvalidExample) as error:
        load(tmp_path)
    assert error.value.cause == 'several images in a file'
    assert error.value.detail.endswith('x.tif has 2 images: save one file per object')


# ---- how mask files are read -----------------------------------------------------------------------------------------


def test_what_mask_files_are_read_as(tmp_path):
    """By the folder of mask files, with anything above it shortened."""
    put_all(tmp_path, 'images/a/x.jpg', 'images/b/x.jpg', 'd/1/images/x.jpg', 'd/2/images/x.jpg')
    put_all(tmp_path, 'masks/a/x/0.png', 'masks/a/x/1.png', 'd/1/masks/x.png', 'loose.jpg', 'loose_mask.png')
    put(tmp_path / 'masks/b/x.png', [[0, 1], [2, 255]])
    put(tmp_path / 'd/2/masks/x.png', [[0, 0]])
    annotated = [item.load() for item in items(tmp_path)]
    assert sum((list(each.read_as.items()) for each in annotated), []) == [
        ('masks: one object (binary)', 2),
        ('masks: an object per number (label map)', 1),
        ('*/masks: one object (binary)', 1),
        ('*/masks: no object (empty)', 1),
        ('.: one object (binary)', 1),
    ]
    assert annotated[1].skipped_masks == {'void (value 255)': (1, 'masks/b/x.png')}


def test_kind_of_masks(tmp_path):
    values = [[0, 9, 9], [0, 85, 255], [0, 170, 255]]
    put(tmp_path / 'images/x.png')
    put(tmp_path / 'masks/x.png', values)
    for kind, areas in (('binary', [6]), ('soft', [3]), ('labels', [2, 1, 1])):
        index = folder.open_index(tmp_path, ReadOptions(mask_kind=kind))
        (item,) = index.shards[0].listed
        assert [coco.area(rle) for rle in item.load().masks] == areas
