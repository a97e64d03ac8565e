"""samjax.evaluation.during_training: its options, what it logs, and when it draws."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from samjax.config import get_config
from samjax.data.formats.read_options import ReadOptions
from samjax.evaluation import during_training, eval_config
from samjax.evaluation.eval_config import EvalConfig, EvalData
from samjax.evaluation.eval_model import EvalModel
from samjax.images.open import ImageOptions

CHANGED = {
    'seed': 17,
    'model.size': 'test',
    'model.image_size': (48, 32),
    'model.dtype': 'float32',
    'data.eval_path': '/data/val',
    'data.cache': '/cache',
    'data.layout': 'folder',
    'data.images': 'i',
    'data.masks': 'm',
    'data.mask_kind': 'soft',
    'data.bit_depth_range': (0, 4095),
    'data.max_pixels': 1000,
    'data.max_invalid_fraction': 0.25,
    'data.synthetic_eval_images': 13,
    'train.eval_max_images': 5,
    'train.eval_max_objects': 6,
    'eval.clicks': (1, 4),
    'eval.first_click': 'random',
    'eval.prompt_batch_size': 7,
    'eval.devices': 2,
    'eval.num_visualizations': 9,
    'eval.points_per_side': 10,
}
EVAL = EvalConfig((1, 4), 'random', 7, 2, 9, 10)
READ = ReadOptions('folder', 'i', 'm', 'soft', ImageOptions((0, 4095), 1000))
DATA = EvalData('/data/val', '/cache', 0.25, READ, 13, (48, 32))


@pytest.fixture
def config():
    config = get_config()
    config.update_from_flattened_dict(CHANGED)
    return config


def test_options_of_an_evaluation_arrive(config, monkeypatch):
    assert EvalConfig(**config.eval) == EVAL
    assert EvalData.from_config(config) == DATA
    opened = []
    monkeypatch.setattr(
        eval_config.pipeline, 'open_dataset', lambda path, **options: opened.append((path, options)) or 'images'
    )
    assert DATA.open() == 'images'
    options = {
        'seed': eval_config.EVAL_SEED, 'image_size': (48, 32), 'length': 13, 'cache': '/cache',
        'max_invalid_fraction': 0.25, 'options': READ,
    }  # fmt: skip
    assert opened == [('/data/val', options)]


def test_options_of_the_model_under_evaluation_arrive(config, params):
    config.model.image_size = (32, 48)
    model = EvalModel.from_params(config, *params, step=3, params_digest='digest')
    assert (model.config, model.seed, model.step, model.digest, model.dtype) == (EVAL, 17, 3, 'digest', 'float32')
    assert model.data.image_size == model.sam.image_size == (32, 48)
    assert [next(iter(jax.tree.leaves(p.model[1]))).device for p in model.predictors] == jax.devices()[:2]


class Interactive:
    """Stands in for the click protocol: one finite score, one that is not, and the images to draw."""

    def __init__(self, source, config, seed, *, max_images, max_objects):
        self.given = source, config, seed, max_images, max_objects

    def run(self, segmenters):
        self.segmenters = segmenters
        scores = [('miou@1', 0.5), ('iou_spearman', math.nan), ('box', math.inf)]
        return SimpleNamespace(values=lambda: scores, first_images=['an image'])


@pytest.mark.parametrize('process', [0, 1])
def test_evaluation_during_training(config, monkeypatch, tmp_path, process):
    drawn, copied = [], []
    monkeypatch.setattr(during_training, 'Interactive', Interactive)
    monkeypatch.setattr(EvalData, 'open', lambda self: self)
    monkeypatch.setattr(
        during_training.sharding, 'local_copy', lambda tree, mesh: copied.append((tree, mesh)) or ('params', 'buffers')
    )
    monkeypatch.setattr(during_training, 'on_devices', lambda *args: args)
    monkeypatch.setattr(during_training, 'sam_segmenters', lambda *args: args)
    monkeypatch.setattr(during_training, 'draw_first_clicks', lambda *args: drawn.append(args))
    monkeypatch.setattr(jax, 'process_index', lambda: process)
    evaluation = during_training.TrainingEvaluation(config, str(tmp_path), 'mesh')
    assert evaluation._interactive.given == (DATA, EVAL, 17, 5, 6)
    state = SimpleNamespace(params='p', buffers='b', step=jnp.int32(42))
    assert evaluation(state) == {'eval/miou@1': 0.5}
    assert copied == [(('p', 'b'), 'mesh')]
    name, (sam, *others), given = evaluation._interactive.segmenters
    assert (name, given, others) == ('sam', EVAL, ['float32', 'params', 'buffers', 2])
    assert sam.image_size == (48, 32)
    assert drawn == ([] if process else [(tmp_path / 'pictures' / 'step_000042.png', ['an image'])])
