"""`samjax eval`: where its options come from, and mistakes in one line."""

import pathlib

import pytest
from tiny import tiny_run_config

from samjax.checkpoints.run import restore_params
from samjax.cli import common
from samjax.cli.evaluate import main
from samjax.errors import SamjaxError
from samjax.evaluation import evaluate as module
from samjax.evaluation.eval_result import EvalOptions
from samjax.evaluation.tasks import suite_sets


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setattr(common, 'use_compilation_cache', lambda: None)


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A run without a checkpoint, in the working directory."""
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/config.json').write_text(tiny_run_config().to_json())
    monkeypatch.chdir(tmp_path)
    return 'run'


@pytest.fixture
def calls(monkeypatch):
    """What the command asks for."""
    calls = []
    monkeypatch.setattr(
        module, 'evaluate', lambda *arguments: calls.append(arguments) or ('a table', pathlib.Path('x'))
    )
    return calls


def test_options_are_those_of_the_run(workdir, calls, capsys):
    main(['--workdir', workdir])
    assert calls == [(tiny_run_config(), 'run', 'interactive', EvalOptions(suite=suite_sets.get_config()))]
    assert capsys.readouterr().out == 'a table\nx/report.html\n'


def test_flags_and_changes_reach_the_evaluation(workdir, calls):
    words = ['--task=suite', '--untrained', '--baselines', 'flood,grabcut', '--max-images=3', '--max-objects', '4']
    words += ['--boxes=b.json', '--ground-truth=g', '--suite.root=D', '--suite.sets.doors.path=P', '--config.seed=5']
    main(['--workdir', workdir, *words])
    [(config, _, task, options)] = calls
    assert (config.seed, config.model.size, task) == (5, 'test', 'suite')
    assert options.baselines == ('untrained', 'flood', 'grabcut')
    assert options[1:5] == (3, 4, 'b.json', 'g')
    assert (options.suite.root, options.suite.sets.doors.path, options.suite.sets.lvis.path) == ('D', 'P', 'lvis')


def test_recipe_instead_of_the_options_of_the_run(workdir, calls):
    pathlib.Path('recipe.py').write_text(
        'from samjax import config\ndef get_config():\n    c = config.get_config()\n    c.seed = 9\n    return c\n'
    )
    main(['--workdir', workdir, '--config', 'recipe.py', '--config.data.eval_path=P'])
    [(config, *_)] = calls
    assert (config.seed, config.model.size, config.data.eval_path) == (9, 'vit_b', 'P')


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--workdir=nowhere'], 'nowhere does not exist: name the --workdir of a training run'),
        (['--workdir=run', '--config.eval.clickz=3'], 'the command line sets an option that does not exist'),
        (['--workdir=run', '--suite.sets.door.path=3'], 'the command line sets an option that does not exist'),
        (['--workdir=run', '--config.eval.max_images=3'], 'or --max-images for samjax eval'),
        (['--workdir=run', '--suite=sets.py'], 'the recipe sets.py does not exist'),
    ],
)
def test_wrong_option_is_one_line(workdir, words, message):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code.startswith('error: ')
    assert message in stop.value.code
    assert '\n' not in stop.value.code


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ([], 'run holds no checkpoint'),
        (['--task=guess'], '--task=guess is unknown: choose one of interactive, '),
    ],
)
def test_error_of_the_evaluation_is_one_line(workdir, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main(['--workdir', workdir, *words])
    assert stop.value.code == 1
    text = capsys.readouterr().err
    assert text.startswith('error: ')
    assert message in text
    assert text.count('\n') == 1


def test_word_that_is_no_option_is_code_2(workdir, capsys):
    with pytest.raises(SystemExit) as stop:
        main(['--workdir', workdir, '--config.eval.prompt_batch_size=3', 'stray'])
    assert stop.value.code == 2
    assert "'stray' is not an option" in capsys.readouterr().err


def test_help_names_every_task(capsys):
    with pytest.raises(SystemExit):
        main(['--help'])
    text = capsys.readouterr().out
    assert all(task in text for task in module.TASKS)


@pytest.mark.parametrize('name', ['sam.pth', 'hf'])
def test_checkpoint_of_another_kind_names_the_command_that_converts_it(workdir, name):
    pathlib.Path('sam.pth').write_bytes(b'x')
    pathlib.Path('hf').mkdir()
    pathlib.Path('hf/config.json').write_text('{"model_type": "sam"}')
    pathlib.Path('hf/model.safetensors').write_bytes(b'x')
    with pytest.raises(SystemExit) as stop:
        main(['--workdir', name])
    remedy = f'make one with samjax convert {name} DIR, and name DIR'
    assert stop.value.code == f'error: {name} is not the folder of a run: {remedy}'


def test_so_does_a_recipe_with_such_a_checkpoint(workdir):
    pathlib.Path('sam.pth').write_bytes(b'x')
    with pytest.raises(SamjaxError, match='sam.pth is not the folder of a run: make one with samjax convert'):
        restore_params('sam.pth', tiny_run_config())


def test_a_checkpoint_of_a_run_names_the_run(workdir):
    pathlib.Path('run/checkpoints/7/params').mkdir(parents=True)
    for name in ('run/checkpoints', 'run/checkpoints/7'):
        with pytest.raises(SystemExit) as stop:
            main(['--workdir', name])
        assert stop.value.code == f'error: {name} is a part of the run {pathlib.Path("run").absolute()}: name that'


@pytest.mark.parametrize('text', ['{"seed": 3}', '[]', '{"model": "sam", "seed": 1}', '{}'])
def test_config_json_of_something_else(workdir, text):
    pathlib.Path('run/config.json').write_text(text)
    with pytest.raises(SystemExit, match='^error: run holds no config.json of a run: name the --workdir of a training'):
        main(['--workdir', 'run'])


def test_damaged_config_json(workdir):
    pathlib.Path('run/config.json').write_text('{"seed": 3')
    with pytest.raises(SystemExit, match='^error: run/config.json is damaged .*: restore it, or choose another'):
        main(['--workdir', 'run'])
