"""Options of a config on the command line."""

import ast
import re

import pytest

from samjax.cli.common import change, read_config, split_changes
from samjax.config import get_config, read_recipe
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


START = 'from samjax import config\ndef get_config():\n    c = config.get_config()\n'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('def get_config(:\n  pass', ', line 1, fails: SyntaxError: invalid syntax'),
        ('\nimport no_such_module', ", line 2, fails: ModuleNotFoundError: No module named 'no_such_module'"),
        ('def get_config():\n    return undefined', ", line 2, fails: NameError: name 'undefined' is not defined"),
        ('def f():\n    1 / 0\ndef get_config():\n    f()', ', line 2, fails: ZeroDivisionError: division by zero'),
        ('import sys\nsys.exit(3)', ', line 2, fails: SystemExit: 3'),
        ('def get_config(name):\n    pass', r' fails: TypeError: get_config\(\) missing 1 required .*'),
        ('def get_config():\n    return {}["x"]', ", line 2, fails: KeyError: 'x'"),
        ('x = 1', ' has no function get_config: see samjax/config.py for an example'),
        ('get_config = 3', ' has no function get_config: .*'),
        (START + '    c.train.stepz = 3', ', line 4, sets an option that does not exist: Key "stepz" .*'),
        (START + '    c.nosuch.x = 3', ", line 4, sets an option that does not exist: 'nosuch'"),
        (START + '    c.train.steps = 3', r', line 4, sets an option .*"steps".* \(now called train.num_steps\)'),
        (
            START + '    c.train.num_steps = "abc"',
            ', line 4, fails: TypeError: Could not override field .*',
        ),
        (START + '    c.unlock().train.extra = 3\n    return c', ' sets an option that does not exist: train.extra'),
        (
            START + '    with c.unlocked():\n        del c.train.batch_size\n    return c',
            r' lacks the option train.batch_size: begin with samjax.config.get_config\(\)',
        ),
    ],
)
def test_recipe_that_fails_is_a_sentence(tmp_path, text, message):
    recipe = tmp_path / 'recipe.py'
    recipe.write_text(text)
    with pytest.raises(SamjaxError) as caught:
        read_config(str(recipe), [])
    assert re.fullmatch(f'the recipe {recipe}{message}', str(caught.value))


@pytest.mark.parametrize('result', ['None', '{}', '3'])
def test_recipe_that_returns_something_else(tmp_path, result):
    recipe = tmp_path / 'recipe.py'
    recipe.write_text(f'def get_config():\n    return {result}')
    kind = type(ast.literal_eval(result)).__name__
    with pytest.raises(SamjaxError, match=f'get_config of the recipe {recipe} returns {kind} instead of a ConfigDict'):
        read_config(str(recipe), [])


def test_recipe_that_is_no_file(tmp_path):
    with pytest.raises(SamjaxError, match=f'the recipe {tmp_path} is a folder: name a Python file'):
        read_config(str(tmp_path), [])
    for path in (tmp_path / 'a.py', ''):
        with pytest.raises(SamjaxError, match='does not exist: name a Python file'):
            read_config(str(path), [])


def test_recipe_of_a_suite_is_one(tmp_path):
    for text in ('ConfigDict({"a": 1})', 'ConfigDict({"root": "x", "max_masks": 1, "sets": {"a": {"path": "x"}}})'):
        (tmp_path / 'suite.py').write_text(
            f'from ml_collections import ConfigDict\ndef get_config():\n    return {text}'
        )
        with pytest.raises(SamjaxError, match='the recipe of the suite is not like samjax/evaluation/tasks/suite_sets'):
            suite_sets.SuiteConfig.from_config(read_recipe(tmp_path / 'suite.py'))


@pytest.mark.parametrize(
    ('word', 'message'),
    [
        ('--config.optimizer.lr=abc', '--config.optimizer.lr=abc is not possible: optimizer.lr is a number'),
        ('--config.optimizer.lr=', '--config.optimizer.lr= is not possible: optimizer.lr is a number'),
        ('--config.train.num_steps=1.5', '.* train.num_steps is a whole number'),
        ('--config.prompts.stop_mask_gradient=maybe', '.* prompts.stop_mask_gradient is true or false'),
        ('--config.data.mix=(("a",1),', r".* data.mix is a tuple, which the shell needs in quotes: '\(1, 2\)'"),
        ('--config.train=3', '.* train is a section: write --config.section.key=value'),
        ('--config.', "'--config.' names no option: write --config.section.key=value"),
        ('--config.=3', "'--config.=3' names no option: write --config.section.key=value"),
    ],
)
def test_value_of_another_kind_is_a_sentence(word, message):
    with pytest.raises(SamjaxError) as caught:
        read_config(None, [word])
    assert re.fullmatch(message, str(caught.value))


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
