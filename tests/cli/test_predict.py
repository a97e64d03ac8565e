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
        (['--point', '500,20'], '500,20 is outside the image of 128 x 90 px'),
        (['--box', '5,20,30,91'], '30,91 is outside the image of 128 x 90 px'),
        (['--point', '5,20', '--out', 'x.tif'], 'x.tif is neither a .json nor a .png file'),
    ],
)
def test_mistakes_are_one_line(photo, words, message):
    with pytest.raises(SystemExit, match=f'^error: {message}'):
        main([str(photo), '--model', 'm', *words])


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
