"""Options of a config on the command line."""

import re

import pytest

from samjax.cli.common import change, read_config, split_changes
from samjax.config import get_config
from samjax.errors import SamjaxError
from samjax.evaluation.tasks import suite_sets


def test_changes_are_split_from_the_other_words():
    argv = ['--a', '1', '--config.x.y=(1, 2)', '--config', 'p.py', '--config.lr', '0.5', '--noconfig.z', '--b', 'c']
    argv += ['--suite.root=D', '--configs.x=1']
    words, changes = split_changes(argv, ['config', 'suite'])
    assert words == ['--a', '1', '--config', 'p.py', '--b', 'c', '--configs.x=1']
    assert changes == {
        'config': ['--config.x.y=(1, 2)', '--config.lr', '0.5', '--noconfig.z'],
        'suite': ['--suite.root=D'],
    }


def test_changes_have_the_type_of_the_option():
    words = ['--config.train.num_steps=7', '--config.optimizer.lr', '1e-3', '--config.model.image_size=(32, 48)']
    words += ['--config.prompts.stop_mask_gradient', '--config.data.eval_path=a=b']
    config = read_config(None, words)
    assert config.train.num_steps == 7
    assert config.optimizer.lr == 1e-3
    assert config.model.image_size == (32, 48)
    assert config.prompts.stop_mask_gradient is True
    assert config.data.eval_path == 'a=b'
    assert config.is_locked
    assert read_config(None, ['--noconfig.prompts.stop_mask_gradient']) == get_config()
    suite = change(suite_sets.get_config(), 'suite', ['--suite.root=D', '--suite.sets.doors.path=tfds:doors@test'])
    assert (suite.root, suite.sets.doors.path) == ('D', 'tfds:doors@test')


def test_recipe(tmp_path):
    recipe = tmp_path / 'recipe.py'
    recipe.write_text(
        'from samjax import config\n'
        'def get_config():\n    c = config.get_config()\n    c.seed, c.train.num_steps = 3, 4\n    return c\n'
    )
    config = read_config(str(recipe), ['--config.train.num_steps=5'])
    assert (config.seed, config.train.num_steps) == (3, 5)


@pytest.mark.parametrize(
    ('word', 'message'),
    [
        ('--config.trian.num_steps=3', 'the command line sets an option that does not exist: .*Did you mean "train"'),
        ('--config.train.stepz=3', "the command line sets an option that does not exist: 'stepz'"),
        ('--config.seed.x=3', 'the command line sets an option that does not exist: .*seed.x'),
        (
            '--config.train.num_steps=many',
            '--config.train.num_steps=many is not possible: train.num_steps is a whole number',
        ),
        ('--config.optimizer.lr', 'Missing value for flag --config.optimizer.lr'),
        (
            '--config.train.batch=3',
            'the option train.batch is now called train.batch_size: write --config.train.batch_',
        ),
        (
            '--config.eval.max_images=3',
            'the option eval.max_images is now called train.eval_max_images .* or --max-images for samjax eval',
        ),
        (
            '--config.eval.max_objects=3',
            'the option eval.max_objects is now called train.eval_max_objects .* or --max-objects for samjax eval',
        ),
    ],
)
def test_wrong_option_is_a_sentence(word, message):
    with pytest.raises(SamjaxError, match=message) as caught:
        read_config(None, [word])
    assert '\n' not in str(caught.value)


def test_word_that_is_no_option():
    with pytest.raises(SamjaxError, match=re.escape("'stray' is not an option: write --config.section.key=value")):
        read_config(None, ['--config.prompts.stop_mask_gradient', 'stray'])
