"""samjax.convert: torch's files and ours, both ways, bit for bit; and what it refuses."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import oracle
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from samjax.checkpoints import run
from samjax.cli import main as command
from samjax.convert import key_map, torch_file, weights
from samjax.convert.convert import convert, read_torch
from samjax.errors import SamjaxError
from samjax.inference.load import load
from samjax.masks import resize
from samjax.model.config import SIZES
from samjax.model.encoders import vit_checkpoints

CONFIG = dataclasses.replace(SIZES['test'], image_size=(48, 48))
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def sam():
    return oracle.randomize(oracle.build(CONFIG), 0)


@pytest.fixture
def pth(sam, tmp_path):
    path = tmp_path / 'sam.pth'
    torch.save(sam.state_dict(), path)
    return path


def convert_to(source, target, form=None, image_size=None, force=False):
    return convert(str(source), str(target), form, image_size, force)


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype == torch.float32
        assert torch.equal(a[key], b[key]), key


# ---- there and back --------------------------------------------------------------------------------


def test_to_a_run_and_back_is_bit_equal(sam, pth, tmp_path):
    said = convert_to(pth, tmp_path / 'run')
    assert said.endswith(f'{tmp_path}/run (samjax): test, 48 x 48 px, 24,136 numbers')
    convert_to(tmp_path / 'run', tmp_path / 'back.pth')
    assert_equal(torch.load(tmp_path / 'back.pth', weights_only=True), sam.state_dict())


@pytest.mark.parametrize('chain', [('a.safetensors', 'b.pth'), ('hf', 'b.pth'), ('hf', 'a.safetensors', 'b.pt')])
def test_through_other_files_and_back_is_bit_equal(sam, pth, tmp_path, chain):
    source = pth
    for name in chain:
        convert_to(source, tmp_path / name, 'huggingface' if name == 'hf' else None)
        source = tmp_path / name
    assert_equal(torch.load(source, weights_only=True), sam.state_dict())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(['sam.pth', *chain])  # nothing else is left


def test_safetensors_are_readable_by_torch(sam, pth, tmp_path):
    convert_to(pth, tmp_path / 'sam.safetensors')
    assert_equal(load_file(tmp_path / 'sam.safetensors'), sam.state_dict())


@pytest.mark.parametrize('size', ['vit_b', 'vit_l', 'vit_h'])
def test_table_has_every_array_of_the_real_models_once(size):
    """Names and shapes of Meta's own modules, built without memory, are those of the table."""
    with torch.device('meta'):
        state = oracle.build(SIZES[size]).state_dict()
    keys, shapes = key_map.checkpoint_keys(SIZES[size]), weights.our_shapes(SIZES[size])
    assert {key.meta: weights.torch_shape(key, shapes) for key in keys} == {k: tuple(v.shape) for k, v in state.items()}
    assert len({key.meta for key in keys}) == len({key.hugging_face for key in keys}) == len(keys)
    assert {key.ours for key in keys} == shapes.keys()


def test_orders_of_axes_are_inverted():
    shapes = weights.our_shapes(CONFIG)
    for key in key_map.checkpoint_keys(CONFIG):
        shape = shapes[key.ours][len(key.index) :]
        ours = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        np.testing.assert_array_equal(key.axes.to_ours(key.axes.to_torch(ours), shape), ours, err_msg=key.ours)


# ---- what is out there -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    'wrap',
    [
        lambda state: {'model': state, 'optimizer': {'state': {0: {'step': torch.ones(1)}}}, 'epoch': 3},
        lambda state: {'state_dict': {f'module.{key}': value for key, value in state.items()}},
        lambda state: {'model_state': {f'sam.{key}': value for key, value in state.items()}, 'iteration': 7},
        lambda state: {key: torch.nn.Parameter(value) for key, value in state.items()},
        lambda state: {key: value.to(torch.bfloat16).float().to(torch.bfloat16) for key, value in state.items()},
        lambda state: {key: value.half() for key, value in state.items()},
        lambda state: {key: value.double() for key, value in state.items()},
    ],
    ids=['model', 'module', 'sam', 'parameters', 'bfloat16', 'float16', 'float64'],
)
def test_checkpoints_as_they_are_found(sam, tmp_path, wrap):
    wrapped = wrap(sam.state_dict())
    torch.save(wrapped, tmp_path / 'sam.pth')
    arrays, config, _ = read_torch(tmp_path / 'sam.pth', force=False)
    assert config == CONFIG
    back = weights.to_torch(weights.META, arrays, config)
    tolerance = (
        1e-2 if any(getattr(v, 'dtype', None) in (torch.bfloat16, torch.float16) for v in wrapped.values()) else 0
    )
    for key, value in sam.state_dict().items():
        np.testing.assert_allclose(back[key], value.numpy(), rtol=tolerance, atol=tolerance, err_msg=key)


def test_safetensors_in_bfloat16(sam, tmp_path):
    save_file({key: value.bfloat16() for key, value in sam.state_dict().items()}, tmp_path / 'sam.safetensors')
    arrays, _, _ = read_torch(tmp_path / 'sam.safetensors', force=False)
    expected = sam.state_dict()['image_encoder.pos_embed'][0].bfloat16().float().numpy()
    np.testing.assert_array_equal(arrays['image_encoder/pos_embed'], expected)


def test_tensors_that_share_a_storage_or_are_views(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({'a': whole, 'row': whole[1], 'turned': whole.T, 'none': torch.zeros(0, 3)}, tmp_path / 'x.pth')
    arrays = torch_file.read(tmp_path / 'x.pth')
    np.testing.assert_array_equal(arrays['row'], [4, 5, 6, 7])
    np.testing.assert_array_equal(arrays['turned'], whole.T)
    assert arrays['none'].shape == (0, 3)


def mae_state(config, grid):
    """An MAE encoder of the width of `config`, pre-trained at `grid` x `grid` patches."""
    state = {
        key.removeprefix('image_encoder.').replace('mlp.lin', 'mlp.fc'): value
        for key, value in oracle.randomize(oracle.build(config), 1).state_dict().items()
        if key.startswith('image_encoder.') and 'neck' not in key and 'rel_pos' not in key
    }
    return state | {
        'pos_embed': torch.randn(1, 1 + grid * grid, config.encoder.width),
        'cls_token': torch.zeros(1, 1, config.encoder.width),
        'mask_token': torch.zeros(1, 1, 8),
        'norm.weight': torch.ones(config.encoder.width),
        'norm.bias': torch.zeros(config.encoder.width),
        'decoder_embed.weight': torch.zeros(8, config.encoder.width),
    }


def test_mae_gives_the_encoder_and_resizes_positions_as_torch_does(tmp_path):
    """vit_xxs has a width and depth of its own, which is all that tells the size of an MAE encoder."""
    config = SIZES['vit_xxs']
    state = mae_state(config, 14)
    torch.save({'model': state}, tmp_path / 'mae.pth')
    arrays, found, origin = read_torch(tmp_path / 'mae.pth', force=False)
    assert found in (SIZES['vit_xs'], config)
    assert 'MAE' in origin
    square = state['pos_embed'][:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(square, found.embedding_size, mode='bicubic', align_corners=False)
    np.testing.assert_allclose(arrays['image_encoder/pos_embed'], expected[0].permute(1, 2, 0), atol=2e-6)
    assert (arrays['image_encoder/global_blocks/attention/rel_h_RE'] == 0).all()
    fc1 = arrays['image_encoder/windowed_blocks/mlp/layers/0/kernel']
    np.testing.assert_array_equal(fc1[0, 0], state['blocks.0.mlp.fc1.weight'].T)
    assert arrays.keys() == weights.our_shapes(found).keys()


def test_mae_encoder_of_other_patches_is_resized(tmp_path):
    """As MAE's ViT-H, whose patches have 14 px; here 6 px become 8."""
    state = mae_state(SIZES['vit_xxs'], 14)
    kernel = torch.randn(SIZES['vit_xxs'].encoder.width, 3, 6, 6)
    torch.save({'model': state | {'patch_embed.proj.weight': kernel}}, tmp_path / 'mae.pth')
    arrays, _, _ = read_torch(tmp_path / 'mae.pth', force=False)
    expected = torch.nn.functional.interpolate(kernel, (8, 8), mode='bicubic', align_corners=False)
    ours = arrays['image_encoder/patch_embed/kernel']
    np.testing.assert_allclose(ours, expected.permute(2, 3, 1, 0), atol=2e-6)


def test_mae_patches_of_14_px_become_16_as_torch_does_it():
    kernel = torch.randn(5, 3, 14, 14)
    expected = torch.nn.functional.interpolate(kernel, (16, 16), mode='bicubic', align_corners=False)
    np.testing.assert_allclose(vit_checkpoints.mae_patches(kernel.numpy(), 16), expected, atol=2e-6)


@pytest.mark.parametrize(('n_in', 'n_out'), [(5, 12), (12, 5), (7, 7), (1, 4)])
def test_cubic_matrix_is_torchs_bicubic(n_in, n_out):
    x = np.random.default_rng(0).normal(size=(n_in, 3)).astype(np.float32)
    image = torch.tensor(x.T)[None, :, :, None].expand(1, 3, n_in, 2)
    expected = torch.nn.functional.interpolate(image, (n_out, 2), mode='bicubic', align_corners=False)[0, :, :, 0].T
    np.testing.assert_allclose(resize.cubic_matrix(n_in, n_out) @ x, expected, atol=1e-6)


def test_another_image_size_resizes_both_position_tables(pth, tmp_path):
    said = convert_to(pth, tmp_path / 'run', image_size=(32, 64))
    assert 'position tables resized from 48 x 48 px to 32 x 64 px' in said
    before, config, _ = read_torch(pth, force=False)
    options = run.read_config(str(tmp_path / 'run'))
    assert options.model.image_size == (32, 64)
    params, buffers, _ = run.restore_params(str(tmp_path / 'run'), options)
    after = weights.flat(params, buffers)
    table = torch.tensor(before['image_encoder/pos_embed']).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(table, (4, 8), mode='bilinear', align_corners=False)[0].permute(1, 2, 0)
    np.testing.assert_allclose(after['image_encoder/pos_embed'], expected, atol=1e-6)
    for axis, length in (('h', 7), ('w', 15)):
        name = f'image_encoder/global_blocks/attention/rel_{axis}_RE'
        relative = torch.tensor(before[name]).swapaxes(1, 2)
        expected = torch.nn.functional.interpolate(relative, length, mode='linear').swapaxes(1, 2)
        np.testing.assert_allclose(after[name], expected, atol=4e-6)  # float32 rounding of numbers up to 3
        windowed = name.replace('global', 'windowed')
        np.testing.assert_array_equal(after[windowed], before[windowed])


# ---- bad input -------------------------------------------------------------------------------------


class Malicious:
    def __reduce__(self):
        return os.system, ('touch stolen',)


def test_code_in_a_pickle_is_refused_by_name_and_never_runs(sam, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(sam.state_dict() | {'x': Malicious()}, 'sam.pth')
    with pytest.raises(SamjaxError, match=r'sam.pth asks to run (posix|os).system, and only tensors and plain'):
        convert_to('sam.pth', 'run')
    assert [path.name for path in tmp_path.iterdir()] == ['sam.pth']


def test_tensor_that_reaches_beyond_its_storage_is_refused(pth):
    """The pickle of a whole file is changed by hand to claim one row more than the storage has."""
    with zipfile.ZipFile(pth) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(n for n in members if n.endswith('data.pkl'))
    small = b'K\x01K\x10\x86'  # the shape (1, 16) of the IoU token
    assert small in members[name]
    members[name] = members[name].replace(small, b'K\x02K\x10\x86')
    with zipfile.ZipFile(pth, 'w') as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    with pytest.raises(SamjaxError, match='is damaged .a tensor reaches beyond its storage'):
        torch_file.read(pth)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite(path):
    path.write_bytes(b'not a checkpoint at all')


def other_zip(path):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('readme.txt', 'hello')


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (cut, 'is cut off'),
        (overwrite, 'is not a PyTorch checkpoint'),
        (other_zip, 'not one that torch.save wrote'),
        (lambda path: path.unlink(), 'does not exist'),
        (lambda path: torch.save({'a': torch.ones(3)}, path), 'holds no SAM and no MAE encoder'),
    ],
)
def test_broken_files_are_one_sentence(pth, tmp_path, spoil, message):
    spoil(pth)
    with pytest.raises(SamjaxError, match=message) as raised:
        convert_to(pth, tmp_path / 'run')
    assert '\n' not in str(raised.value)
    assert not (tmp_path / 'run').exists()


def test_cut_safetensors_is_one_sentence(sam, tmp_path):
    save_file(sam.state_dict(), tmp_path / 'sam.safetensors')
    cut(tmp_path / 'sam.safetensors')
    with pytest.raises(SamjaxError, match='sam.safetensors is not a complete safetensors file'):
        convert_to(tmp_path / 'sam.safetensors', tmp_path / 'run')


def test_all_wrong_tensors_are_named_at_once(sam, tmp_path):
    state = dict(sam.state_dict())
    state['mask_decoder.extra'] = state.pop('mask_decoder.iou_token.weight')
    state['image_encoder.neck.1.bias'] = torch.zeros(3)
    state['image_encoder.neck.3.bias'] = torch.zeros(16, dtype=torch.int64)
    torch.save(state, tmp_path / 'sam.pth')
    with pytest.raises(SamjaxError) as raised:
        convert_to(tmp_path / 'sam.pth', tmp_path / 'run')
    for part in (
        'mask_decoder.iou_token.weight is missing',
        'mask_decoder.extra is unknown',
        'image_encoder.neck.1.bias is (3,) and should be (16,)',
        'image_encoder.neck.3.bias is int64 and should be floating point',
    ):
        assert part in str(raised.value)


def test_weights_that_are_not_finite_are_refused_unless_forced(sam, tmp_path):
    state = dict(sam.state_dict())
    state['image_encoder.neck.1.bias'] = torch.full((16,), torch.nan)
    torch.save(state, tmp_path / 'sam.pth')
    with pytest.raises(SamjaxError, match='neck.1.bias is not finite: samjax convert --force'):
        convert_to(tmp_path / 'sam.pth', tmp_path / 'run')
    convert_to(tmp_path / 'sam.pth', tmp_path / 'back.pth', force=True)
    assert torch.load(tmp_path / 'back.pth')['image_encoder.neck.1.bias'].isnan().all()


def test_unknown_architecture_is_described(tmp_path):
    odd = dataclasses.replace(CONFIG, encoder=dataclasses.replace(CONFIG.encoder, width=24))
    torch.save(oracle.build(odd).state_dict(), tmp_path / 'sam.pth')
    with pytest.raises(SamjaxError, match='architecture .width 24, depth 2, patch_size 8, embed_dim 16, num_heads 2'):
        convert_to(tmp_path / 'sam.pth', tmp_path / 'run')


# ---- one of several models, and what lies beside it ------------------------------------------------


def changed(state):
    return {key: value + 1 for key, value in state.items()}


def prefixed(prefix, state):
    return {f'{prefix}{key}': value for key, value in state.items()}


@pytest.mark.parametrize(
    ('wrap', 'keys', 'accepted'),
    [
        (lambda a, b: {'student': a, 'teacher': b}, ("'student'", "'teacher'"), ['teacher']),
        (lambda a, b: {'model': a, 'ema': prefixed('module.', b)}, ("'model'", "'ema.module'"), ['ema', 'ema.module']),
        (
            lambda a, b: {'state_dict': prefixed('model.', a) | prefixed('ema_model.', b)},
            ("'state_dict.model'", "'state_dict.ema_model'"),
            ['ema_model', 'state_dict.ema_model', 'state_dict/ema_model/'],
        ),
        (lambda a, b: {**a, 'ema': b}, ("''", "'ema'"), ['ema']),
        (lambda a, b: [{'net': a}, {'net': b}], ("'0.net'", "'1.net'"), ['1', '1.net']),
    ],
    ids=['two', 'ema', 'lightning', 'nested', 'list'],
)
def test_one_of_several_models_is_chosen_by_key(sam, tmp_path, wrap, keys, accepted):
    state, other = sam.state_dict(), changed(sam.state_dict())
    torch.save(wrap(state, other), tmp_path / 'x.pth')
    remedy = rf'holds 2 models \({", ".join(keys)}\): choose one with samjax convert .*x.pth DIR --key {keys[0]}$'
    for read in (load, lambda path: convert_to(path, tmp_path / 'run')):
        with pytest.raises(SamjaxError, match=remedy):
            read(tmp_path / 'x.pth')
    for key in accepted:
        arrays, _, _ = read_torch(tmp_path / 'x.pth', force=False, key=key)
        found = weights.to_torch(weights.META, arrays, CONFIG)
        np.testing.assert_array_equal(found['mask_decoder.iou_token.weight'], other['mask_decoder.iou_token.weight'])
    for key in ('optimizer', 'ema.model', 'mode'):
        with pytest.raises(SamjaxError, match=f"holds no model at --key '{key}': give {', '.join(keys)}"):
            read_torch(tmp_path / 'x.pth', force=False, key=key)


def test_key_that_fits_both_is_refused(sam, tmp_path):
    state = sam.state_dict()
    torch.save({'a': {'model': state}, 'b': {'model': changed(state)}}, tmp_path / 'x.pth')
    with pytest.raises(SamjaxError, match="holds 2 models .'a.model', 'b.model'.: choose one .* --key 'a.model'"):
        read_torch(tmp_path / 'x.pth', force=False, key='model')


def test_a_model_under_two_names_is_one(sam, tmp_path):
    state, cyclic = sam.state_dict(), []
    cyclic.append(cyclic)
    torch.save({'model': state, 'ema': state, 'cyclic': cyclic}, tmp_path / 'x.pth')
    assert read_torch(tmp_path / 'x.pth', force=False)[1] == CONFIG


def test_arrays_outside_the_prefix_are_left_out_and_named(sam, tmp_path):
    state = prefixed('sam.', sam.state_dict())
    beside = {f'clip.y{n}': torch.ones(n) for n in range(6)} | {'criterion.weight': torch.ones(3, dtype=torch.int32)}
    beside |= {'clip.cls_token': torch.ones(1), 'clip.pos_embed': torch.ones(1, 5, 16)}  # no MAE beside a SAM
    torch.save(state | beside, tmp_path / 'x.pth')
    said = convert_to(tmp_path / 'x.pth', tmp_path / 'out.PTH')
    names = 'clip.cls_token, clip.pos_embed, clip.y0, clip.y1, clip.y2, 4 more'
    assert f"x.pth (Meta's layout; left out 9 of its arrays: {names}) -> " in said
    assert_equal(torch.load(tmp_path / 'out.PTH', weights_only=True), sam.state_dict())


def test_extra_arrays_are_refused_unless_named(sam, tmp_path):
    extra = {'image_encoder.adapter.0.weight': torch.ones(2), 'image_encoder.adapter.0.n': torch.ones(1).int()}
    torch.save({'model': sam.state_dict() | extra | {'logit_scale': torch.ones(1)}}, tmp_path / 'x.pth')
    with pytest.raises(SamjaxError, match='adapter.0.weight is unknown; logit_scale is unknown: .* --ignore-extra to'):
        convert_to(tmp_path / 'x.pth', tmp_path / 'run')
    with pytest.raises(SamjaxError, match='test: logit_scale is unknown: '):
        convert(str(tmp_path / 'x.pth'), str(tmp_path / 'run'), None, None, False, None, ['*.adapter.*'])
    command.main(
        ['convert', str(tmp_path / 'x.pth'), str(tmp_path / 'out.pth')]
        + ['--ignore-extra', '*.adapter.*', '--ignore-extra=logit_scale', '--key=model']
    )
    assert_equal(torch.load(tmp_path / 'out.pth', weights_only=True), sam.state_dict())


def test_patterns_never_leave_out_what_the_model_needs(sam, tmp_path):
    torch.save(sam.state_dict() | {'extra': torch.ones(1)}, tmp_path / 'x.pth')
    said = convert(str(tmp_path / 'x.pth'), str(tmp_path / 'out.pth'), None, None, False, None, ['*'])
    assert 'left out 1 of its arrays: extra)' in said
    assert_equal(torch.load(tmp_path / 'out.pth', weights_only=True), sam.state_dict())


def test_key_of_a_run_is_refused(pth, tmp_path):
    convert_to(pth, tmp_path / 'run')
    with pytest.raises(SamjaxError, match='run is a run of samjax: leave out --key'):
        convert(str(tmp_path / 'run'), str(tmp_path / 'x.pth'), None, None, False, 'model')
    for part in ('checkpoints', 'checkpoints/0'):
        with pytest.raises(SamjaxError, match=f'{part} is a part of the run {tmp_path}/run: name that'):
            load(tmp_path / 'run' / part)


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (torch.ones(1, 16, dtype=torch.complex64), 'iou_token.weight is complex64 and should be floating point'),
        (torch.ones(1, 16, dtype=torch.uint16), 'iou_token.weight is uint16 and should be floating point'),
        (torch.ones(1, 16).to_sparse(), r'not read .mask_decoder.iou_token.weight is torch._utils._rebuild_sparse'),
        (torch.Size([1]), 'mask_decoder.iou_token.weight is missing'),
    ],
)
def test_values_that_are_no_floats_are_named(sam, tmp_path, value, message):
    torch.save(sam.state_dict() | {'mask_decoder.iou_token.weight': value}, tmp_path / 'x.pth')
    with pytest.raises(SamjaxError, match=message):
        convert_to(tmp_path / 'x.pth', tmp_path / 'run')


@pytest.mark.parametrize('save', [torch.save, save_file])
def test_float8_becomes_float32(sam, tmp_path, save):
    state = {key: value.to(torch.float8_e4m3fn) for key, value in sam.state_dict().items()}
    save(state, tmp_path / 'x.pth')
    convert_to(tmp_path / 'x.pth', tmp_path / 'out.safetensors')
    assert_equal(load_file(tmp_path / 'out.safetensors'), {key: value.float() for key, value in state.items()})


@pytest.mark.parametrize('name', ['out.PTH', 'out.Bin', 'out.ckpt', 'out.SafeTensors'])
def test_suffixes_of_targets_in_any_case(sam, pth, tmp_path, name):
    convert_to(pth, tmp_path / name)
    read_file = load_file if 'safe' in name.lower() else torch.load
    assert_equal(read_file(tmp_path / name), sam.state_dict())


@pytest.mark.parametrize('address', ['gs://bucket/x', 's3://b/x.pth', 'https://host/x.pth'])
def test_addresses_are_refused_and_nothing_is_written(pth, tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    for source, target in ((pth, address), (address, 'run')):
        with pytest.raises(SamjaxError, match=f'^{address} is '):
            convert(str(source), target, None, None, False)
    with pytest.raises(SamjaxError, match=f'^{address} is '):
        load(address)
    assert os.listdir() == ['sam.pth']


# ---- what is there already, and disks ---------------------------------------------------------------


def test_output_that_exists_is_kept(pth, tmp_path):
    for name in ('run', 'out.pth'):
        (tmp_path / name).write_text('mine')
        with pytest.raises(SamjaxError, match=f'{name} exists: choose another name'):
            convert_to(pth, tmp_path / name)
        assert (tmp_path / name).read_text() == 'mine'


@pytest.mark.parametrize(
    ('name', 'form'), [('run', 'samjax'), ('x.pth', 'meta'), ('x.safetensors', 'meta'), ('hf', 'huggingface')]
)
def test_full_disk_leaves_nothing(pth, tmp_path, name, form):
    """No file may grow beyond 4 kB: the system refuses the write as it does on a full disk."""
    code = (
        'import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));'
        'from samjax.cli.main import main; main(sys.argv[1:])'
    )
    arguments = ['convert', str(pth), str(tmp_path / name), '--to', form]
    process = subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 1
    assert process.stderr.startswith('error: ')
    assert 'cannot be written' in process.stderr
    assert 'Traceback' not in process.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['sam.pth']


def test_square_only_at_hugging_face(pth, tmp_path):
    with pytest.raises(SamjaxError, match='Hugging Face has only square images, not 32 x 64 px'):
        convert_to(pth, tmp_path / 'hf', 'huggingface', (32, 64))


def test_image_size_that_is_no_multiple_of_the_patch_is_named(pth, tmp_path):
    with pytest.raises(SamjaxError, match='must be multiples of the patch, 8 px'):
        convert_to(pth, tmp_path / 'run', image_size=(32, 60))


# ---- Hugging Face ----------------------------------------------------------------------------------


def test_hugging_face_loads_the_folder_and_answers_alike(sam, pth, tmp_path):
    """Its two-way transformer takes Meta's eps from our config.json, so that only rounding remains."""
    convert_to(pth, tmp_path / 'hf', 'huggingface')
    theirs, report = transformers.SamModel.from_pretrained(tmp_path / 'hf', output_loading_info=True)
    assert not report['missing_keys']
    assert not report['unexpected_keys']
    image = torch.randn(1, 3, 48, 48)
    points = torch.tensor([[10.0, 20.0], [30.0, 5.0]])
    with torch.no_grad():
        mine = sam.image_encoder(image)
        np.testing.assert_allclose(theirs.get_image_embeddings(image), mine, atol=1e-5)
        sparse, dense = sam.prompt_encoder((points[None], torch.tensor([[1, 0]])), None, None)
        logits, iou = sam.mask_decoder(mine, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
        answer = theirs(
            image_embeddings=mine, input_points=points[None, None], input_labels=torch.tensor([[[1, 0]]]),
            multimask_output=True,
        )  # fmt: skip
    np.testing.assert_allclose(answer.pred_masks[0], logits, atol=1e-4)
    np.testing.assert_allclose(answer.iou_scores[0], iou, atol=1e-5)


# ---- the command -----------------------------------------------------------------------------------


def test_command_prints_what_it_did(pth, tmp_path, capsys):
    command.main(['convert', str(pth), str(tmp_path / 'out.safetensors')])
    assert "sam.pth (Meta's layout) -> " in capsys.readouterr().out


def test_command_says_mistakes_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match='^error: .*nowhere.pth does not exist'):
        command.main(['convert', str(tmp_path / 'nowhere.pth'), str(tmp_path / 'out')])


def test_importing_samjax_needs_no_torch():
    code = (
        'import sys\n'
        'class Refuse:\n'
        '    def find_spec(name, path=None, target=None):\n'
        '        if name in ("torch", "transformers", "segment_anything"): raise ImportError(name)\n'
        'sys.meta_path.insert(0, Refuse)\n'
        'import samjax.cli.main, samjax.cli.predict, samjax.training.loop, samjax.evaluation.evaluate\n'
        'import samjax.parity.verify'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
