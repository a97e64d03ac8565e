"""`samjax train`: mistakes in one line, options, and how a run ends."""

import pathlib
import re
import signal
import subprocess
import sys

import pytest
from stand_in import QUICK, Evaluation, build, quick

from samjax.cli import common
from samjax.cli.train import main
from samjax.training import loop

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setattr(common, 'use_compilation_cache', lambda: None)


def run(workdir, *words):
    """The exit code."""
    with pytest.raises(SystemExit) as stop:
        main([f'--workdir={workdir}', *words])
    return stop.value.code


@pytest.mark.parametrize(
    ('word', 'message'),
    [
        ('--config.trian.steps=3', "the command line sets an option that does not exist: 'trian'.*"),
        ('--config.train.steps=3', 'the option train.steps is now called train.num_steps: .*'),
        ('--config=configs/nowhere.py', 'the recipe configs/nowhere.py does not exist.*'),
    ],
)
def test_wrong_option_is_one_line(tmp_path, word, message):
    assert re.fullmatch(f'error: {message}', run(tmp_path / 'run', word))
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('word', 'message'),
    [
        ('--config.optimizer.weight_decay_on=some', "optimizer.weight_decay_on='some' is unknown: .*"),
        ('--processes=2', '--processes and --process need --coordinator=HOST:PORT.*'),
    ],
)
def test_wrong_value_is_one_line(tmp_path, capsys, word, message):
    assert run(tmp_path / 'run', *small(), word) == 1
    assert re.fullmatch(f'error: {message}\n', capsys.readouterr().err)
    assert not (tmp_path / 'run').exists()


def small():
    return [f'--config.{key}={value}' for key, value in QUICK.items()]


def test_word_that_is_no_option_is_code_2(tmp_path, capsys):
    assert run(tmp_path / 'run', 'train.num_steps=3') == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "'train.num_steps=3' is not an option: write --config.section.key=value" in last


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_exit_code_of_a_run_that_was_stopped(tmp_path, capsys, monkeypatch, number):
    def stop(config, workdir, open_evaluation):
        raise loop.Stopped(f'stopped in {workdir}', loop.EXIT[number])

    monkeypatch.setattr(loop, 'train', stop)
    assert run(tmp_path) == {signal.SIGINT: 130, signal.SIGTERM: 75}[number]
    assert capsys.readouterr().out == f'stopped in {tmp_path}\n'


def test_unexpected_error_shows_its_traceback(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, 'train', lambda *arguments: 1 / 0)
    assert run(tmp_path) == 1
    assert 'ZeroDivisionError' in capsys.readouterr().err


def test_options_reach_the_run(monkeypatch, tmp_path):
    """train.py stops at the folder of another run, after its options have been compared with those."""
    monkeypatch.setattr(loop, 'build', build)
    loop.train(quick(2), str(tmp_path), Evaluation)
    words = [sys.executable, 'train.py', f'--workdir={tmp_path}', *small(), '--config.optimizer.lr=0.5']
    process = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.stderr == (
        f'error: {tmp_path} belongs to a run with another config (optimizer.lr is 0.0008 there and 0.5 here): '
        f'choose another --workdir, or give the same options\n'
    )
    assert process.returncode == 1
