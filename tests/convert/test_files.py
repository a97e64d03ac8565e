"""Files of weights: known by what is in them, whatever they are called; and what they may be instead."""

import contextlib
import gzip
import io
import json
import os
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from samjax.convert import files
from samjax.convert.torch_pickle import NotRead
from samjax.errors import SamjaxError

POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 375042383\n'
A, B = torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])


def save_pth(path):
    torch.save({'a': A, 'b': B}, path)


def save_old(path):
    torch.save({'a': A, 'b': B}, path, _use_new_zipfile_serialization=False)


def save_safetensors(path):
    save_file({'a': A, 'b': B}, path)


def assert_read(path):
    arrays = files.read(path)
    assert arrays.keys() == {'a', 'b'}
    np.testing.assert_array_equal(arrays['a'], A)
    np.testing.assert_array_equal(arrays['b'], B)


@pytest.mark.parametrize('name', ['x.pth', 'x.PTH', 'x.bin', 'x.safetensors', 'x.SafeTensors', 'x.ckpt', 'x', 'x.v1'])
@pytest.mark.parametrize('save', [save_pth, save_old, save_safetensors])
def test_the_content_decides_and_not_the_name(tmp_path, name, save):
    save(tmp_path / name)
    assert_read(tmp_path / name)


@pytest.mark.parametrize('name', ['float8_e4m3fn', 'float8_e5m2', 'float8_e4m3fnuz', 'float8_e5m2fnuz', 'bfloat16'])
def test_safetensors_of_narrow_floats(tmp_path, name):
    values = torch.tensor([[0.0, 1.5], [-2.0, 0.25]])
    save_file(
        {'x': values.to(getattr(torch, name)), 'odd': torch.ones(1, dtype=torch.uint8)}, tmp_path / 'x.safetensors'
    )
    array = files.read(tmp_path / 'x.safetensors')['x']
    assert array.dtype.name == name
    np.testing.assert_array_equal(array.astype(np.float32), values)


def test_safetensors_of_a_type_that_is_not_read(tmp_path):
    save_file({'x': torch.ones(2).to(torch.float8_e8m0fnu), 'a': A}, tmp_path / 'x.safetensors')
    arrays = files.read(tmp_path / 'x.safetensors')
    assert isinstance(arrays['x'], NotRead)
    assert arrays['x'].name == 'F8_E8M0'
    np.testing.assert_array_equal(arrays['a'], A)


# ---- several files ---------------------------------------------------------------------------------


def write_shards(folder, stem, suffix, save):
    folder.mkdir()
    names = [f'{stem}-0000{n}-of-00002.{suffix}' for n in (1, 2)]
    for name, arrays in zip(names, ({'a': A}, {'b': B}), strict=True):
        save(arrays, folder / name)
    index = {'metadata': {'total_size': 12}, 'weight_map': {'a': names[0], 'b': names[1]}}
    (folder / f'{stem}.{suffix}.index.json').write_text(json.dumps(index))
    return names


KINDS = pytest.mark.parametrize(
    ('stem', 'suffix', 'save'),
    [('model', 'safetensors', save_file), ('pytorch_model', 'bin', torch.save), ('pytorch_model', 'bin', save_file)],
)


@KINDS
def test_shards_by_their_folder_or_index(tmp_path, stem, suffix, save):
    write_shards(tmp_path / 'hf', stem, suffix, save)
    assert_read(tmp_path / 'hf')
    assert_read(tmp_path / 'hf' / f'{stem}.{suffix}.index.json')


@KINDS
def test_missing_shards_and_single_ones_are_named(tmp_path, stem, suffix, save):
    first, second = write_shards(tmp_path / 'hf', stem, suffix, save)
    with pytest.raises(SamjaxError, match=f'{second} is one of 2 parts of a checkpoint: name their folder'):
        files.read(tmp_path / 'hf' / second)
    (tmp_path / 'hf' / second).write_text(POINTER)
    with pytest.raises(SamjaxError, match=f'{second} is a Git LFS pointer'):
        files.read(tmp_path / 'hf')
    (tmp_path / 'hf' / second).unlink()
    with pytest.raises(SamjaxError, match=rf'lists files that are not there \({second}\): fetch them'):
        files.read(tmp_path / 'hf')


def test_only_part_of_one_is_a_whole_checkpoint(tmp_path):
    save_pth(tmp_path / 'pytorch_model-00001-of-00001.bin')
    assert_read(tmp_path / 'pytorch_model-00001-of-00001.bin')


@pytest.mark.parametrize('text', ['{"weight_map": 3}', '{}', '{"weight_map": {"a": 3}}', '{', '{"error": "404"}'])
def test_damaged_index(tmp_path, text):
    (tmp_path / 'model.safetensors.index.json').write_text(text)
    for path in (tmp_path, tmp_path / 'model.safetensors.index.json'):
        with pytest.raises(SamjaxError, match=r'index.json is not an index of weights: fetch it again$'):
            files.read(path)


def test_folder_without_weights_names_what_is_there(tmp_path):
    with pytest.raises(SamjaxError, match='holds neither .*: name a folder of weights'):
        files.read(tmp_path)
    save_pth(tmp_path / 'sam_vit_b.PTH')
    with pytest.raises(SamjaxError, match=r'holds neither .*: name a file, such as .*/sam_vit_b.PTH$'):
        files.read(tmp_path)


# ---- what else a file may be -----------------------------------------------------------------------


def zip_of(name, data=b'x'):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr(name, data)
    return file.getvalue()


def tar_of(name):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as archive:
        archive.addfile(tarfile.TarInfo(name))
    return file.getvalue()


@pytest.mark.parametrize('name', ['x.pth', 'x.PT', 'x.bin', 'x.safetensors'])
@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (POINTER.encode(), r'is a Git LFS pointer, not the file itself: run git lfs pull in its folder'),
        (b'', 'is empty: fetch or save it again'),
        (b'<!DOCTYPE html>\n<html lang="en">', 'is a web page, not a checkpoint: fetch the file itself'),
        (b'\n  <html><body>404', 'is a web page'),
        (b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>AccessDenied', 'is a web page'),
        (gzip.compress(b'x', mtime=0), 'is an archive: unpack it, and name the checkpoint in it'),
        (tar_of('x.pth'), 'is an archive: unpack it'),
        (b'7z\xbc\xaf\x27\x1c' + bytes(30), 'is an archive: unpack it'),
        (zip_of('sam/x.pth'), 'is a zip file but not one that torch.save wrote'),
        (bytes(1000), r'(begins with zeros only|is not a complete safetensors file)'),
        (b'{"error": "Repository not found"}', 'is not an index of weights'),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SamjaxError, match=f'^{tmp_path / name} {message}'):
        files.read(tmp_path / name)


def test_pointers_in_a_folder_are_named(tmp_path):
    for name in ('pytorch_model.bin', 'model.safetensors'):
        (tmp_path / name).write_text(POINTER)
        with pytest.raises(SamjaxError, match=f'{name} is a Git LFS pointer'):
            files.read(tmp_path)


def test_torchscript_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / 'x.pt', 'w') as archive:
        for name in ('data.pkl', 'constants.pkl', 'code/__torch__.py', 'version'):
            archive.writestr(f'x/{name}', b'N.')
    with pytest.raises(SamjaxError, match='is a TorchScript program: save the state dict'):
        files.read(tmp_path / 'x.pt')


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(SamjaxError, match='pipe is neither a file nor a folder'):
        files.read(tmp_path / 'pipe')
    with pytest.raises(SamjaxError, match=r'cannot be read \(File name too long\): choose a shorter name'):
        files.read(tmp_path / ('x' * 300))


# ---- damage ----------------------------------------------------------------------------------------


def test_a_changed_byte_of_a_storage_is_noticed(tmp_path):
    save_pth(tmp_path / 'x.pth')
    data = bytearray((tmp_path / 'x.pth').read_bytes())
    data[data.index(A.numpy().tobytes())] ^= 1
    (tmp_path / 'x.pth').write_bytes(data)
    with pytest.raises(SamjaxError, match=r'x.pth is damaged \(wrong CRC-32 of x/data/0\): fetch or save it again'):
        files.read(tmp_path / 'x.pth')


@pytest.mark.parametrize('save', [save_pth, save_old, save_safetensors])
def test_damaged_files_are_one_sentence_or_read(tmp_path, save):
    """Cut anywhere, or with one to four bytes changed: no other error comes."""
    save(tmp_path / 'x')
    whole, rng = (tmp_path / 'x').read_bytes(), np.random.default_rng(0)
    for case in range(120):
        data = bytearray(whole)
        if case % 3 == 0:
            data = data[: rng.integers(len(data))]
        else:
            for at in rng.integers(len(data), size=rng.integers(1, 5)):
                data[at] = rng.integers(256)
        (tmp_path / 'y').write_bytes(data)
        with contextlib.suppress(SamjaxError):
            files.read(tmp_path / 'y')


@pytest.mark.parametrize('name', ['x.safetensors', 'x.pth'])
def test_files_have_the_permissions_of_any_new_file(tmp_path, name):
    write = files.write_safetensors if name.endswith('.safetensors') else files.write_pth
    write(tmp_path / name, {'a': np.zeros(2, np.float32)})
    (tmp_path / 'other').touch()
    assert (tmp_path / name).stat().st_mode == (tmp_path / 'other').stat().st_mode
