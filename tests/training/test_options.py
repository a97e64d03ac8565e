"""Options that make no sense are refused before anything is read or compiled, by a sentence that names them."""

import math

import pytest
from stand_in import Evaluation, quick
from stand_in import build as build_stand_in

from samjax.errors import SamjaxError
from samjax.evaluation.eval_config import EvalConfig
from samjax.training import loop
from samjax.training.compiled_step import build

NAN, INF = math.nan, math.inf
IMPOSSIBLE = {
    'seed': (-1, 2**32),
    'model.size': ('', 'vit_x'),
    'model.image_size': ((), (32,), (0, 48), (-32, 48), (33, 48), (32, 48, 3), ('32', '48'), (32.0, 48.0), (NAN, 48)),
    'model.dtype': ('', 'float16', 'int8', 'float99'),
    'model.drop_path': (-0.1, 1.0, NAN),
    'model.dropout': (-0.1, 1.0, 7.0, NAN),
    'model.remat': ('', 'some'),
    'data.path': ('',),
    'data.mix': (('a',), (('a', 1, 2),), ((3, 1),), (('a', 0),), (('a', -1),), (('a', NAN),), (('a', 'b'),),
                 (('', 1),)),
    'data.layout': ('voc',),
    'data.images': ('photos',),
    'data.masks': ('gts',),
    'data.mask_kind': ('', 'grey'),
    'data.bit_depth_range': ((1,), (2, 1), (0, NAN), (0, 1, 2)),
    'data.max_pixels': (0, -1, 2**31),
    'data.max_invalid_fraction': (-0.1, 1.1, NAN),
    'data.max_objects': (0, -2, 3),
    'data.max_area_fraction': (0.0, -1.0, NAN),
    'data.flip': ('', 'vertical'),
    'data.scale_jitter': ((), (1.0,), (0, 1), (2, 1), (1, INF), (NAN, 1), ('a', 'b'), (1, 2, 3)),
    'data.num_workers': (-1,),
    'data.prefetch': (0, -1),
    'data.synthetic_train_images': (0, -1),
    'data.synthetic_eval_images': (0, -1),
    'prompts.rounds': (0, -1),
    'prompts.box_probability': (-0.1, 1.5, NAN),
    'prompts.box_noise': ('', 'normal'),
    'prompts.box_noise_fraction': (-0.1, NAN, INF),
    'prompts.box_noise_max': (-1.0, NAN),
    'prompts.objects_per_chunk': (0, -1),
    'loss.focal': (-1.0, NAN, INF),
    'loss.dice': (-1.0, NAN, INF),
    'loss.iou': (-1.0, NAN, INF),
    'loss.focal_alpha': (-0.1, 1.1, NAN),
    'loss.focal_gamma': (-1.0, NAN, INF),
    'loss.resolution': ('', 'frame'),
    'loss.padding': ('', 'none'),
    'loss.iou_supervision': ('', 'best'),
    'optimizer.name': ('', 'sgd'),
    'optimizer.lr': (0.0, -1e-3, NAN, INF),
    'optimizer.warmup_steps': (-1,),
    'optimizer.milestones': ((-1,), (0.5,), ('foo',), (NAN,), (2**31,)),
    'optimizer.timescale': (-1,),
    'optimizer.cooldown': ((), (5,), (7, 3), (5, 5), (-1, 5), (1.0, 2.0), ('a', 'b'), (NAN, 3)),
    'optimizer.b1': (-0.1, 1.0, NAN),
    'optimizer.b2': (-0.1, 1.0, NAN),
    'optimizer.weight_decay': (-0.1, NAN, INF),
    'optimizer.weight_decay_on': ('', 'some'),
    'optimizer.layer_decay': (0.0, -1.0, 1.1, NAN),
    'optimizer.clip_norm': (-1.0, NAN, INF),
    'mesh.data': (-1, 3),
    'mesh.fsdp': (-8, 3),
    'mesh.tensor': (0, -1, 3),
    'train.num_steps': (0, -1),
    'train.batch_size': (0, -8, 7),
    'train.grad_accum_steps': (0, -1, 3),
    'train.log_every': (0, -1),
    'train.save_every': (0, -1),
    'train.max_to_keep': (0, -1),
    'train.max_skipped': (-1,),
    'train.profile_steps': ((), (3,), (3, 2), (0, 2), (-1, 2), (1.0, 2.0), ('a', 'b')),
    'train.eval_every': (0, -1),
    'train.eval_max_images': (-1,),
    'train.eval_max_objects': (-1,),
    'eval.clicks': ((), (0,), (-1,), ('1',), (1.5,), ('',)),
    'eval.first_click': ('', 'edge'),
    'eval.prompt_batch_size': (0, -1),
    'eval.devices': (-1,),
    'eval.num_visualizations': (-1,),
    'eval.points_per_side': (0, -1),
}  # fmt: skip
# Any text is possible, or another part of the run refuses it.
FREE = {'data.eval_path', 'data.cache', 'prompts.stop_mask_gradient', 'train.init_from'}


def test_every_option_is_in_the_table():
    config = quick(1)
    names = {f'{section}.{name}' for section in config if section != 'seed' for name in config[section]} | {'seed'}
    assert names == IMPOSSIBLE.keys() | FREE


@pytest.mark.parametrize(
    ('name', 'value'), [(name, value) for name, values in IMPOSSIBLE.items() for value in values], ids=str
)
def test_impossible_value_is_refused_by_name(tmp_path, monkeypatch, name, value):
    def open_evaluation(config, workdir, mesh):
        EvalConfig(**config.eval)
        return Evaluation(config, workdir, mesh)

    monkeypatch.setattr(loop.sharding, 'to_global', lambda *arguments: pytest.fail('a step was about to run'))
    if name.partition('.')[0] in ('data', 'train', 'eval') and 'max_objects' not in name:
        monkeypatch.setattr(loop, 'build', build_stand_in)  # which is made sooner
    section, option = name.rsplit('.', 1) if '.' in name else (None, name)
    config = quick(2)
    if section is None:
        config[option] = value
    else:
        config[section][option] = value
    with pytest.raises(SamjaxError) as caught:
        loop.train(config, str(tmp_path), open_evaluation)
    assert option in str(caught.value)
    assert '\n' not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_loss_of_masks_without_weight():
    config = quick(1, **{'loss.focal': 0.0, 'loss.dice': 0.0})
    with pytest.raises(SamjaxError, match='loss.focal and loss.dice are both 0'):
        build(config)


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('data.max_area_fraction', 5.0),
        ('data.mix', (('scenes', 2),)),
        ('data.scale_jitter', (0.1, 2)),
        ('optimizer.milestones', ()),
        ('optimizer.cooldown', (0, 1)),
        ('train.profile_steps', (1, 1)),
        ('train.max_skipped', 0),
        ('prompts.box_noise_max', INF),
        ('prompts.rounds', 1),
        ('prompts.rounds', 2),
        ('model.dropout', 0),
    ],
)
def test_unusual_value_is_possible(name, value):
    config = quick(1, **{name: value})
    loop.check_options(config)
    build(config)
