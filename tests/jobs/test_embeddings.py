"""Embeddings in files give the masks that the image gives, and equal those of segment-anything."""

import dataclasses
import errno
import io
import json
import os
import zipfile
from pathlib import Path

import jax
import numpy as np
import oracle
import pytest
import torch
from PIL import Image
from samples import files, random_image, tree
from tiny import tiny_run_config

from samjax.cli import main as command
from samjax.errors import SamjaxError
from samjax.evaluation.eval_model import open_eval_model
from samjax.inference.load import load
from samjax.inference.predictor import Predictor
from samjax.jobs import embeddings
from samjax.jobs.embeddings import Embedding, write_embeddings
from samjax.jobs.model import JobModel
from samjax.jobs.output_folder import HIDDEN, REPORT, ImageReport
from samjax.model.config import SIZES

CALL = {'point_coords': np.array([[30, 20]]), 'point_labels': np.array([1])}


@pytest.fixture(scope='module')
def predictor(model):
    return load(model)


@pytest.fixture
def quick(model, monkeypatch):
    """The model read once for all calls."""
    job_model = JobModel.read(Path(model))
    monkeypatch.setattr(JobModel, 'read', lambda path: job_model)


@pytest.fixture
def images(tmp_path):
    """Five images of different sizes."""
    folder = tmp_path / 'images'
    (folder / 'sub').mkdir(parents=True)
    for number, name in enumerate(['a', 'b', 'c', 'sub/d', 'sub/e']):
        random_image(number, 24 + number, 40).save(folder / f'{name}.png')
    return folder


def pixels(file):
    return np.asarray(Image.open(file).convert('RGB'))


def assert_same(first, second):
    for x, y in zip(first, second, strict=True):
        np.testing.assert_array_equal(x, y)


# ---- one embedding ---------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_masks_of_an_embedding_are_those_of_the_image(model, images, tmp_path, dtype):
    ours, fresh = (load(model, dtype) for _ in range(2))
    ours.set_image(pixels(images / 'b.png'))
    expected, embedding = ours.predict(**CALL), ours.embedding()
    assert (embedding.original, embedding.size, embedding.frame) == ((25, 40), (30, 48), (32, 48))
    assert (embedding.embed_hwC.shape, embedding.embed_hwC.dtype) == ((4, 6, 16), np.float32)
    embeddings.write(tmp_path / 'new/b.npz', embedding)
    again = embeddings.read(tmp_path / 'new/b.npz')
    np.testing.assert_array_equal(again.embed_hwC, embedding.embed_hwC)
    assert dataclasses.replace(again, embed_hwC=None) == dataclasses.replace(embedding, embed_hwC=None)
    fresh.set_embedding(again)
    assert (fresh.is_image_set, fresh.original_size, fresh.input_size) == (True, (25, 40), (30, 48))
    assert fresh.get_image_embedding().dtype == dtype
    assert_same(fresh.predict(**CALL), expected)
    np.testing.assert_array_equal(fresh.embedding().embed_hwC, embedding.embed_hwC)


def test_embedding_lies_on_the_device_of_the_model(predictor, images):
    predictor.set_image(pixels(images / 'a.png'))
    device = jax.devices()[3]
    elsewhere = Predictor(predictor.config, *jax.device_put(predictor.model[1:], device))
    elsewhere.set_embedding(predictor.embedding())
    assert elsewhere.get_image_embedding().devices() == {device}
    assert_same(elsewhere.predict(**CALL), predictor.predict(**CALL))


def test_digest_is_that_of_the_evaluation(model, predictor):
    assert predictor.digest == open_eval_model(model, tiny_run_config()).digest


def test_other_model_is_refused(predictor, images):
    predictor.set_image(pixels(images / 'a.png'))
    embedding = predictor.embedding()
    config, (_, params, buffers) = predictor.config, predictor.model
    other = Predictor(config, jax.tree.map(lambda x: x + 1e-3, params), buffers)
    with pytest.raises(SamjaxError, match=r'the embedding is of another model \(parameters .* take that model'):
        other.set_embedding(embedding)
    assert not other.is_image_set
    for change in (
        {'embed_hwC': embedding.embed_hwC[:, 1:]},
        {'size': (32, 47)},
        {'frame': (48, 32)},
        {'original': (24, 80)},
    ):
        with pytest.raises(SamjaxError, match=r'the embedding has shape .*: embed the image again'):
            predictor.set_embedding(dataclasses.replace(embedding, **change))
    assert predictor.is_image_set


def test_no_image_no_embedding(predictor):
    predictor.reset_image()
    with pytest.raises(SamjaxError, match='no image is set'):
        predictor.embedding()


def test_damaged_file_is_one_sentence(tmp_path):
    embedding = Embedding(np.ones((4, 6, 16), np.float32), (24, 40), (29, 48), (32, 48), 'abc')
    embeddings.write(tmp_path / 'x.npz', embedding)
    data = (tmp_path / 'x.npz').read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 3] ^= 255
    pickled = dict(vars(embedding), model=np.array({'a': 1}, object))
    for content in (b'', b'text'):
        (tmp_path / 'x.npz').write_bytes(content)
        with pytest.raises(SamjaxError, match='x.npz is no .npz: name one of `samjax embed`'):
            embeddings.read(tmp_path / 'x.npz')
    for content in (data[: len(data) // 2], bytes(flipped)):
        (tmp_path / 'x.npz').write_bytes(content)
        with pytest.raises(
            SamjaxError, match=r'x.npz is no complete .npz of `samjax embed` .*: embed the image again$'
        ):
            embeddings.read(tmp_path / 'x.npz')
    for arrays, message in (
        ({'a': np.ones(3)}, 'no complete .npz'),
        (pickled, 'no complete .npz'),
        (vars(embedding) | {'size': np.array([3, -1])}, 'not what `samjax embed` writes'),
        (vars(embedding) | {'frame': np.array([3])}, 'not what `samjax embed` writes'),
        (vars(embedding) | {'original': np.array(3)}, 'no complete .npz'),
        (vars(embedding) | {'embed_hwC': np.ones((4, 6), np.float32)}, 'not what `samjax embed` writes'),
    ):
        np.savez(tmp_path / 'x.npz', **arrays)
        with pytest.raises(SamjaxError, match=message):
            embeddings.read(tmp_path / 'x.npz')
    np.save(tmp_path / 'x.npy', np.ones(3))
    with pytest.raises(SamjaxError, match='x.npy is an array without the size of its image: name an .npz'):
        embeddings.read(tmp_path / 'x.npy')
    with pytest.raises(SamjaxError, match=r'nowhere.npz cannot be read \(No such file or directory\): name an .npz'):
        embeddings.read(tmp_path / 'nowhere.npz')


def test_header_of_an_array_is_not_believed(tmp_path):
    """numpy reads as much as the header says, and then not the checksum; or takes the memory that it says."""
    embedding = Embedding(np.ones((4, 6, 16), np.float32), (24, 40), (29, 48), (32, 48), 'abc')
    for shape in (b'(4, 2, 16), }', b'(4, 6, 10000000000000), }'):
        embeddings.write(tmp_path / 'x.npz', embedding)
        data = (tmp_path / 'x.npz').read_bytes()
        changed = data.replace(b'(4, 6, 16), }'.ljust(len(shape)), shape)
        assert changed != data
        (tmp_path / 'x.npz').write_bytes(changed)
        with pytest.raises(SamjaxError, match=r'x.npz is no complete .npz of `samjax embed` \(.*Bad CRC-32'):
            embeddings.read(tmp_path / 'x.npz')
        (tmp_path / 'x.npz').unlink()


def test_array_with_more_bytes_than_its_shape(tmp_path):
    header = io.BytesIO()
    np.save(header, np.ones((4, 2, 16), np.float32))
    with zipfile.ZipFile(tmp_path / 'x.npz', 'w') as archive:
        archive.writestr('embed_hwC.npy', header.getvalue() + bytes(512))
    with pytest.raises(SamjaxError, match='embed_hwC has more bytes than its shape'):
        embeddings.read(tmp_path / 'x.npz')


def test_arrays_of_npz_files_keep_their_names(tmp_path):
    embed_hwC = np.ones((4, 6, 16), np.float32)
    np.savez(tmp_path / 'x.npz', embed_hwC=embed_hwC, original=(24, 40), size=(29, 48), frame=(32, 48), model='abc')
    embedding = embeddings.read(tmp_path / 'x.npz')
    np.testing.assert_array_equal(embedding.embed_hwC, embed_hwC)
    assert dataclasses.replace(embedding, embed_hwC=None) == Embedding(None, (24, 40), (29, 48), (32, 48), 'abc')


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path, monkeypatch):
    embedding = Embedding(np.ones((4, 6, 16), np.float32), (24, 40), (29, 48), (32, 48), 'abc')

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'write_bytes', full)
        with pytest.raises(SamjaxError, match=r'x.npz cannot be written \(No space left on device\)'):
            embeddings.write(tmp_path / 'x.npz', embedding)
    assert files(tmp_path) == []
    embeddings.write(tmp_path / 'x.npz', embedding)
    with pytest.raises(SamjaxError, match='x.npz exists'):
        embeddings.write(tmp_path / 'x.npz', embedding)


# ---- many images -----------------------------------------------------------------------------------


def test_npy_is_what_segment_anything_gives(tmp_path):
    torch_sam = oracle.randomize(oracle.build(SIZES['vit_xxs']), 3)
    torch.save(torch_sam.state_dict(), tmp_path / 'sam.pth')
    random_image(1, 90, 128).save(tmp_path / 'wide.png')
    random_image(2, 300, 41).save(tmp_path / 'tall.png')
    inputs = [str(tmp_path / name) for name in ('wide.png', 'tall.png')]
    write_embeddings(inputs, str(tmp_path / 'sam.pth'), tmp_path / 'out', output_format='npy', devices=1)
    reference = oracle.segment_anything.SamPredictor(torch_sam)
    for name in ('wide', 'tall'):
        reference.set_image(pixels(tmp_path / f'{name}.png'))
        expected, array = reference.get_image_embedding().cpu().numpy(), np.load(tmp_path / f'out/{name}.npy')
        assert (array.shape, array.dtype) == (expected.shape, expected.dtype) == ((1, 64, 16, 16), np.float32)
        assert np.abs(array - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize('devices', [-1, 9, 100])
def test_devices_that_are_not_there(images, tmp_path, model, quick, devices):
    message = f'^devices is {devices}, and this process has 8: give at most that many, 0 for all$'
    with pytest.raises(SamjaxError, match=message):
        write_embeddings([str(images)], model, tmp_path / 'out', devices=devices)
    assert not (tmp_path / 'out').exists()


def test_each_image_has_a_file_whatever_the_devices(images, tmp_path, model, quick, predictor):
    report = write_embeddings([str(images)], model, tmp_path / 'out', devices=1)
    assert (report.num_images, report.num_valid, report.invalid) == (5, 5, {})
    assert ImageReport.read(tmp_path / 'out' / REPORT) == report
    names = ['a', 'b', 'c', 'sub/d', 'sub/e']
    assert files(tmp_path / 'out') == sorted([REPORT, *(f'{name}.npz' for name in names)])
    for name in names:
        predictor.set_image(pixels(images / f'{name}.png'))
        expected = predictor.predict(**CALL)
        predictor.set_embedding(embeddings.read(tmp_path / f'out/{name}.npz'))
        assert_same(predictor.predict(**CALL), expected)
    write_embeddings([str(images)], model, tmp_path / 'two', devices=2)
    assert tree(tmp_path / 'two') == tree(tmp_path / 'out')


def test_float16_takes_half_the_room_and_is_close(images, tmp_path, model, quick, predictor):
    write_embeddings([str(images)], model, tmp_path / 'out', dtype='float16', devices=1)
    half = embeddings.read(tmp_path / 'out/a.npz')
    assert half.embed_hwC.dtype == np.float16
    predictor.set_image(pixels(images / 'a.png'))
    expected = predictor.predict(**CALL, return_logits=True)[0]
    np.testing.assert_allclose(half.embed_hwC, predictor.embedding().embed_hwC, rtol=1e-3, atol=1e-6)
    predictor.set_embedding(half)
    logits_MHW = predictor.predict(**CALL, return_logits=True)[0]
    np.testing.assert_allclose(logits_MHW, expected, atol=0.02 * expected.std())


def test_values_too_large_for_float16_are_refused(images, tmp_path, model, quick, monkeypatch):
    monkeypatch.setattr(Predictor, 'encode', _encode_large(Predictor.encode))
    with pytest.raises(SamjaxError, match='the embedding of .*png has values up to 100000, too large for float16'):
        write_embeddings([str(images)], model, tmp_path / 'out', dtype='float16', devices=1)


def _encode_large(encode):
    def encoded(self, images):
        frames, embed_BhwC = encode(self, images)
        return frames, np.full(embed_BhwC.shape, 1e5, np.float32)

    return encoded


def test_invalid_images_are_named_and_the_others_done(images, tmp_path, model, quick):
    (images / 'b.png').write_bytes((images / 'b.png').read_bytes()[:300])
    report = write_embeddings([str(images)], model, tmp_path / 'out', devices=1)
    assert (report.num_images, report.num_valid, report.summary()) == (5, 4, '1 unreadable image')
    assert report.invalid['unreadable image'][0].startswith(f'{images}/b.png: ')
    assert not (tmp_path / 'out/b.npz').exists()
    for file in images.rglob('*.png'):
        file.write_bytes(b'no image')
    with pytest.raises(SamjaxError, match='none of the 5 images can be used'):
        write_embeddings([str(images)], model, tmp_path / 'none', devices=1)
    for file in images.rglob('*.png'):
        file.unlink()
    with pytest.raises(SamjaxError, match='images holds no image'):
        write_embeddings([str(images)], model, tmp_path / 'none', devices=1)


def test_full_disk_is_one_sentence_and_the_same_command_goes_on(images, tmp_path, model, quick, monkeypatch):
    write_embeddings([str(images)], model, tmp_path / 'whole', devices=1)
    replaced, replace, encoded, encode = [], os.replace, [], Predictor.encode

    def full(source, target):
        replaced.append(HIDDEN not in Path(target).parts)
        if sum(replaced) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', full)
        with pytest.raises(SamjaxError, match=r'out cannot be written \(No space left on device\): free some space'):
            write_embeddings([str(images)], model, tmp_path / 'out', devices=1)
    assert (tmp_path / 'out' / HIDDEN).is_dir()
    with pytest.raises(SamjaxError, match='out holds an unfinished run of other format: choose another --out'):
        write_embeddings([str(images)], model, tmp_path / 'out', output_format='npy')
    monkeypatch.setattr(Predictor, 'encode', lambda *arguments: encoded.append(1) or encode(*arguments))
    write_embeddings([str(images)], model, tmp_path / 'out', devices=1)
    assert len(encoded) == 2
    assert tree(tmp_path / 'out') == tree(tmp_path / 'whole')
    write_embeddings([str(images)], model, tmp_path / 'out', devices=1)  # is done
    assert len(encoded) == 2


def test_output_of_something_else_is_refused(images, tmp_path, model, quick):
    def refusal(**options):
        with pytest.raises(SamjaxError) as error:
            write_embeddings([str(images)], model, tmp_path / 'out', **options, devices=1)
        return str(error.value).replace(str(tmp_path), 'TMP')

    write_embeddings([str(images)], model, tmp_path / 'out', devices=1)
    assert refusal(dtype='float16').startswith('TMP/out holds embeddings of other dtype: choose another --out')
    random_image(9).save(images / 'new.png')
    assert refusal().startswith('TMP/out holds embeddings of other images: ')
    assert refusal(output_format='png') == "the format 'png' is not known: choose one of npz, npy"
    assert refusal(dtype='int8') == "the dtype 'int8' is not known: choose one of float32, float16"
    assert refusal(output_format='npy', dtype='float16').startswith('.npy files are float32')


# ---- the commands ----------------------------------------------------------------------------------


@pytest.fixture
def no_cache(monkeypatch):
    monkeypatch.setattr(jax.config, 'update', lambda *_: None)


def test_commands_give_the_same_masks_with_and_without(images, tmp_path, model, quick, no_cache, capsys):
    (images / 'c.png').write_bytes(b'no image')
    command.main(['embed', str(images), '--model', model, '--out', str(tmp_path / 'out'), '--devices=1'])
    assert capsys.readouterr().out.splitlines() == [
        f'{tmp_path}/out: 4 embeddings',
        'left out 1 of 5 images: 1 unreadable image',
        'report.jsonl there names what was left out and why',
    ]
    words = ['predict', '--model', model, '--point', '7,5']
    image, encoded = str(images / 'a.png'), ['--embedding', str(tmp_path / 'out/a.npz')]
    for name, what in (('image', [image]), ('embedding', encoded), ('both', [image, *encoded])):
        outs = [f'--out={tmp_path}/{name}/{file}' for file in ('x.json', 'mask.png')]
        outs += [f'--out={tmp_path}/{name}/overlay.png'] * (name != 'embedding')
        command.main([*words, *what, *outs])
    alone = tree(tmp_path / 'image')
    assert tree(tmp_path / 'both') == alone
    assert tree(tmp_path / 'embedding') == {file: alone[file] for file in map(Path, ('x.json', 'mask.png'))}
    assert len(json.loads((tmp_path / 'image/x.json').read_text())['masks']) == 3

    def refusal(*more):
        with pytest.raises(SystemExit) as stop:
            command.main([*words, *more])
        return stop.value.code.replace(str(tmp_path), 'TMP')

    assert refusal() == 'error: there is no image: name one, or the --embedding of one'
    assert refusal(*encoded, '--out', 'o.png').startswith('error: o.png would show the image: name that too')
    assert refusal(*encoded, '--point', '70,5') == (
        'error: the point 70,5 is outside the image of 40 x 24 px: give x from 0 to 40 and y from 0 to 24'
    )
    message = (
        'error: TMP/out/a.npz is of an image of 40 x 24 px, and TMP/images/b.png has 40 x 25 px: name its own image'
    )
    assert refusal(*encoded, str(images / 'b.png')) == message
    embedding = embeddings.read(tmp_path / 'out/a.npz')
    embeddings.write(tmp_path / 'other.npz', dataclasses.replace(embedding, model='abc'))
    assert refusal('--embedding', str(tmp_path / 'other.npz')).startswith(
        'error: TMP/other.npz cannot be used: the embedding is of another model (parameters abc, '
    )


def test_image_rotated_by_exif_gives_the_same_masks(tmp_path, model, no_cache):
    exif = Image.Exif()
    exif[0x0112] = 6
    random_image(1).save(tmp_path / 'x.png', exif=exif)
    command.main(['embed', str(tmp_path / 'x.png'), '--model', model, '--out', str(tmp_path / 'out'), '--devices=1'])
    assert embeddings.read(tmp_path / 'out/x.npz').original == (40, 24)
    words = ['predict', '--model', model, '--point', '5,35']
    command.main([*words, str(tmp_path / 'x.png'), '--out', str(tmp_path / 'a.json')])
    command.main([*words, '--embedding', str(tmp_path / 'out/x.npz'), '--out', str(tmp_path / 'b.json')])
    assert (tmp_path / 'a.json').read_bytes() == (tmp_path / 'b.json').read_bytes()
