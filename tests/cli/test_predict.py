"""`samjax predict`: what it prints and writes; `tests/jobs/test_embeddings.py` has the same from embeddings."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from samjax.cli.predict import main
from samjax.inference.load import load

IMAGE_HW3 = np.random.default_rng(0).integers(0, 256, (90, 128, 3), np.uint8)


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(IMAGE_HW3).save(tmp_path / 'photo.png')
    return tmp_path / 'photo.png'


def test_every_kind_of_file_is_written(photo, tmp_path, model, capsys):
    out = [tmp_path / name for name in ('overlay.png', 'a_mask.png', 'masks.json')]
    main([str(photo), '--model', model, '--point', '30,20', *(f'--out={path}' for path in out)])
    predictor = load(model)
    predictor.set_image(IMAGE_HW3)
    masks_MHW, iou_predictions_M, _ = predictor.predict(np.array([[30, 20]]), np.array([1]))
    annotations = json.loads(out[2].read_text())['masks']
    scores = [annotation['predicted_iou'] for annotation in annotations]
    assert scores == sorted(scores, reverse=True)
    best = int(iou_predictions_M.argmax())
    np.testing.assert_array_equal(coco.decode(annotations[0]['segmentation']), masks_MHW[best])
    assert annotations[0]['area'] == masks_MHW[best].sum()
    with Image.open(out[0]) as overlay, Image.open(out[1]) as mask:
        np.testing.assert_array_equal(np.array(mask), masks_MHW[best] * np.uint8(255))
        assert overlay.width > 3 * 400
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f'mask {best + 1}: predicted IoU {iou_predictions_M[best]:.3f}, ')
    assert lines[3:] == [f'wrote {path}' for path in out]


def test_several_prompts_give_one_mask(photo, model, capsys):
    main([str(photo), '--model', model, '--point', '30,20', '--negative', '60,60', '--box', '10,10,80,80'])
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ([], 'there is no prompt: give --point x,y or --box'),
        (
            ['--point', '500,20'],
            'the point 500,20 is outside the image of 128 x 90 px: give x from 0 to 128 and y from 0 to 90',
        ),
        (['--point', '-1,12'], 'the point -1,12 is outside the image of 128 x 90 px'),
        (['--point=-1,12'], 'the point -1,12 is outside the image of 128 x 90 px'),
        (['--negative', '-.5,12', '--point', '1,2'], 'the point -0.5,12 is outside the image'),
        (['--point', '5,-1e-3'], 'the point 5,-0.001 is outside the image'),
        (['--box', '5,20,30,91'], 'the corner of the box 30,91 is outside the image of 128 x 90 px'),
        (['--box', '-5,20,30,40'], 'the corner of the box -5,20 is outside the image'),
        (['--box=-5,20,30,40'], 'the corner of the box -5,20 is outside the image'),
        (['--point', '5,20', '--out', 'x.tif'], 'x.tif is neither a .json nor a .png file'),
        (['--box', '5,20,30,40', '--box', '1,2,3,4'], '--box is given 2 times: an object has one box, give one'),
        (['--point', '5,20', '--out', __file__ + '/x.png'], '.*x.png cannot be written to .*test_predict.py: choose'),
        (['--point', '5,20', '--out', 'x.json', '--out', './x.json'], 'x.json is named twice: choose another name'),
    ],
)
def test_mistakes_are_one_line(photo, words, message):
    with pytest.raises(SystemExit, match=f'^error: {message}'):
        main([str(photo), '--model', 'm', *words])


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--point', 'nan,3'], "argument --point: 'nan,3' is not 2 numbers with commas between them, as in 30,20"),
        (['--point', '-inf,3'], "argument --point: '-inf,3' is not 2 numbers"),
        (['--point=-1'], "argument --point: '-1' is not 2 numbers"),
        (['--negative', '3;4'], "argument --negative: '3;4' is not 2 numbers"),
        (
            ['--box', '1,2,3,1e999'],
            "argument --box: '1,2,3,1e999' is not 4 numbers with commas between them, as in 30,",
        ),
        (['--box', '-1,2,3'], "argument --box: '-1,2,3' is not 4 numbers"),
        (['--point', '--out=x.png'], 'argument --point: expected one argument'),
        (['--point', '-v'], 'argument --point: expected one argument'),
    ],
)
def test_what_is_no_point_is_named(photo, words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(photo), '--model', 'm', *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize('name', ['overlay.png', 'a_mask.png', 'masks.json', 'a_mask.PNG', 'masks.Json'])
def test_no_file_is_replaced(photo, tmp_path, name):
    (tmp_path / name).write_text('mine')
    words = [str(photo), '--model', 'no model', '--point', '5,5', f'--out={tmp_path / "new.json"}']
    with pytest.raises(SystemExit, match=f'^error: .*/{name} exists: choose another name, or remove it first$'):
        main([*words, f'--out={tmp_path / name}'])
    assert (tmp_path / name).read_text() == 'mine'
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(['photo.png', name])


def test_suffixes_in_any_letter_case(photo, tmp_path, model):
    names = ['sheet.PNG', 'a_Mask.Png', 'MASK.PNG', 'masks.JSON']
    main([str(photo), '--model', model, '--point', '30,20', *(f'--out={tmp_path / "new" / name}' for name in names)])
    assert sorted(path.name for path in (tmp_path / 'new').iterdir()) == sorted(names)
    sizes = []
    for name in names[:3]:
        with Image.open(tmp_path / 'new' / name) as image:
            assert image.format == 'PNG'
            sizes.append(image.size)
    assert sizes[1:] == [(128, 90)] * 2
    assert sizes[0][0] > 3 * 400
    assert len(json.loads((tmp_path / 'new' / 'masks.JSON').read_text())['masks']) == 3


def test_a_file_is_written_whole_or_not_at_all(photo, tmp_path, model, monkeypatch):
    def fail(self, path, *_):
        path.write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Image.Image, 'save', fail)
    for name in ('sheet.png', 'mask.png'):
        with pytest.raises(SystemExit, match=f'^error: .*{name} cannot be written'):
            main([str(photo), '--model', model, '--point', '30,20', f'--out={tmp_path / name}'])
    assert [path.name for path in tmp_path.iterdir()] == ['photo.png']


@pytest.mark.parametrize('box', ['80,10,10,60', '10,60,80,10', '80,60,10,20', '128,0,128,90'])
def test_box_with_its_corners_the_wrong_way_round(photo, tmp_path, model, capsys, box):
    main([str(photo), '--model', model, '--box', box, f'--out={tmp_path / "sheet.png"}'])
    errors = capsys.readouterr().err.splitlines()
    if box.startswith('128'):  # no width, but right
        assert errors == []
    else:
        [line] = errors
        assert line.startswith(f'warning: the box {box} has its corners the wrong way round: give x0, y0, x1, y1')
    assert (tmp_path / 'sheet.png').exists()


def test_image_that_cannot_be_read(photo):
    words = [str(photo), '--model', 'm', '--point', '5,5']
    photo.write_bytes(photo.read_bytes()[:500])
    with pytest.raises(SystemExit, match='^error: .*photo.png cannot be used, unreadable image '):
        main(words)
    photo.unlink()
    with pytest.raises(SystemExit, match='^error: .*photo.png does not exist'):
        main(words)


def test_neither_image_nor_embedding():
    with pytest.raises(SystemExit, match='^error: there is no image: name one, or the --embedding of one'):
        main(['--model', 'm', '--point', '5,5'])
