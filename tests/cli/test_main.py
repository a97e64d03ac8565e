"""The command `samjax`: its commands, its help, and what it imports."""

import re
import subprocess
import sys

import pytest

import samjax
from samjax.cli.main import COMMANDS, main
from samjax.config import get_config


def exit_code(*words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    return stop.value.code


def test_help_lists_the_commands(capsys):
    assert exit_code('--help') == 0
    text = capsys.readouterr().out
    assert re.findall(r'^    (\w+)', text.partition('COMMAND\n')[2], re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize('command', [*COMMANDS, 'data prepare', 'data sa1b', 'data check'])
def test_commands_have_a_help_with_dashes_only(command, capsys):
    assert exit_code(*command.split(), '--help') == 0
    text = capsys.readouterr().out
    assert text.startswith(f'usage: samjax {command} ')
    assert not re.findall(r'(?<!\S)--\w*_\w*', text)


def test_version(capsys):
    assert exit_code('--version') == 0
    assert capsys.readouterr().out == f'samjax {samjax.__version__}\n'


@pytest.mark.parametrize('words', [[], ['fly'], ['data'], ['data', 'fly']])
def test_unknown_command_is_code_2(words, capsys):
    assert exit_code(*words) == 2
    assert 'error: ' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['eval', '--workdir=x', '--max_images', '3'], '--max_images is not an option: write --max-images'),
        (['masks', 'x', '--points_per_side=8', '--model=m', '--out=o'], 'write --points-per-side'),
        (['masks', 'x', '--max-mask-share=.5', '--model=m', '--out=o'], 'write --max-mask-fraction'),
        (['data', 'prepare', '--source=x', '--out=o', '--max_bad_share=1'], 'write --max-invalid-fraction'),
        (['data', 'sa1b', '--source=x', '--out=o', '--share', '1'], '--share is not an option: write --fraction'),
        (['data', 'check', 'x', '--sheat=s'], "'--sheat=s' is not an option: see samjax data check --help"),
        (['convert', 'a', 'b', '--forc'], "'--forc' is not an option: see samjax convert --help"),
        (['convert', 'a', 'b', '--image-size', '32'], 'invalid height,width in px value'),
        (['predict', '--model', 'm', '--point', 'here'], 'is not 2 numbers with commas between them, as in 30,20'),
        (
            ['preflight', '--topology=v5e:2x4', '--bogus'],
            "'--bogus' is not an option: write --config.section.key=value",
        ),
    ],
)
def test_wrong_flag_is_code_2_and_names_the_right_one(words, message, capsys):
    assert exit_code(*words) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_help_is_fast():
    """Nothing heavy is imported before a command runs; worker processes import the modules of commands again."""
    light = ', '.join(f'samjax.cli.{name}' for name in ('main', 'common', 'train', 'evaluate', 'data', 'preflight'))
    code = f'import sys, {light}; print(sorted({{"jax", "numpy", "absl", "ml_collections"}} & set(sys.modules)))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == '[]\n'


BUCKET = 'gs://bucket/x'


@pytest.mark.parametrize(
    'words',
    [
        ['train', '--workdir', BUCKET],
        ['train', f'--workdir={BUCKET}'],
        ['train', '--workdir=run', f'--config={BUCKET}.py'],
        ['train', '--workdir=run', f'--config.data.path={BUCKET}'],
        ['train', '--workdir=run', '--config.data.path', BUCKET],
        ['train', '--workdir=run', f"--config.data.mix=(('{BUCKET}', 10.0),)"],
        ['train', '--workdir=run', f'--config.train.init_from={BUCKET}'],
        ['train', '--workdir=run', f'--config.data.cache={BUCKET}'],
        ['train', '--workdir=run', '--config=recipe.py'],
        ['eval', '--workdir', BUCKET],
        ['eval', '--workdir=run', f'--config.data.eval_path={BUCKET}'],
        ['eval', '--workdir=run', '--task=suite', f'--suite.root={BUCKET}'],
        ['eval', '--workdir=run', '--task=instances', '--boxes', BUCKET],
        ['eval', '--workdir=run', '--task=edges', f'--ground-truth={BUCKET}'],
        ['convert', 'x.pth', BUCKET],
        ['convert', BUCKET, 'run'],
        ['predict', BUCKET, '--model=m', '--point=1,2'],
        ['predict', 'x.jpg', '--model', BUCKET, '--point=1,2'],
        ['predict', 'x.jpg', '--model=m', '--point=1,2', f'--out={BUCKET}.json'],
        ['masks', 'x.jpg', BUCKET, '--model=m', '--out=o'],
        ['masks', 'x.jpg', '--model=m', '--out', BUCKET],
        ['embed', BUCKET, '--model=m', '--out=o'],
        ['embed', 'x.jpg', f'--model={BUCKET}', '--out=o'],
        ['data', 'check', BUCKET],
        ['data', 'check', 'x', '--cache', BUCKET],
        ['data', 'prepare', '--source', BUCKET, '--out=o'],
        ['data', 'sa1b', '--source=x', '--out', BUCKET],
        ['preflight', '--topology=v5e:16x16', '--save', BUCKET],
        ['preflight', '--topology=v5e:16x16', f'--config.train.init_from={BUCKET}'],
    ],
    ids=' '.join,
)
def test_buckets_are_refused_in_one_sentence_and_nothing_is_written(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'recipe.py').write_text(
        f'from samjax import config\ndef get_config():\n    c = config.get_config()\n'
        f'    c.data.eval_path = "{BUCKET}"\n    return c\n'
    )
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/config.json').write_text(get_config().to_json())
    code = exit_code(*words)
    assert code.startswith(f'error: {BUCKET}')
    assert code.endswith('mount the bucket, with gcsfuse for example, and name the path of the mount (docs/launch.md)')
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != '__pycache__') == ['recipe.py', 'run']


def test_options_of_beam_may_name_buckets(capsys):
    words = ['data', 'prepare', '--source=nowhere', '--out=o', '--beam=DataflowRunner']
    assert 'nowhere does not exist' in exit_code(*words, '--beam-option', f'temp_location={BUCKET}')
    assert 'nowhere does not exist' in exit_code(*words, f'--beam-option=temp_location={BUCKET}')
