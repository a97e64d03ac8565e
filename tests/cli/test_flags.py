"""Every flag of `embed`, `convert`, `preflight` and `data`, and those of several processes, arrive where they act."""

import argparse
import os
import pathlib
from types import SimpleNamespace

import pytest

from samjax.cli import check_dataset, common
from samjax.cli.main import main
from samjax.convert import convert
from samjax.data.formats import detect
from samjax.data.formats.read_options import ReadOptions
from samjax.data.records import prepare
from samjax.distributed import processes
from samjax.images.open import ImageOptions
from samjax.jobs import embeddings
from samjax.parity import verify
from samjax.preflight import compile_ahead

SCALED = ImageOptions((10.0, 4000.0), 5000)
IMAGE_FLAGS = ['--bit-depth-range=10,4000', '--max-pixels=5000']


@pytest.fixture
def calls(monkeypatch):
    """What the functions were given that commands call, in their order; the functions do nothing."""
    noted = []

    def note(owner, name, result):
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: noted.append((name, args, kwargs)) or result)

    monkeypatch.setattr(common, 'use_compilation_cache', lambda: None)
    note(processes, 'initialize', None)
    report = SimpleNamespace(num_valid=3, num_images=4, num_invalid=1, invalid={'a': ['b']}, summary=lambda: '1 a')
    note(embeddings, 'write_embeddings', report)
    note(convert, 'convert', 'converted')
    note(convert, 'read', ('arrays', 'config', 'origin'))
    note(verify, 'verify', SimpleNamespace(lines=lambda: ['verified']))
    note(compile_ahead, 'preflight', SimpleNamespace(lines=lambda: ['line'], refusal=None))
    note(detect, 'open_shards', 'some shards')
    note(detect, 'open_index', 'an index')
    report = SimpleNamespace(num_kept=3, num_masks=5, num_images=4, summary=lambda: '1 no masks')
    note(prepare, 'prepare', (pathlib.Path('/nowhere'), report))
    monkeypatch.setattr(check_dataset, 'notes', lambda report: ['a note'])
    note(check_dataset, 'check', ['line 1', 'line 2'])
    return noted


def test_embed(calls, capsys):
    words = ['a.png', 'b', '--model', 'm', '--out', 'o', '--format=npy', '--dtype', 'float16', '--devices', '2']
    main(['embed', *words, *IMAGE_FLAGS])
    [_, (name, args, _)] = calls
    assert (name, args) == ('write_embeddings', (['a.png', 'b'], 'm', pathlib.Path('o'), 'npy', 'float16', 2, SCALED))
    assert capsys.readouterr().out.splitlines()[:2] == ['o: 3 embeddings', 'left out 1 of 4 images: 1 a']
    main(['embed', 'a.png', '--model', 'm', '--out', 'o'])
    assert calls[-1][1] == (['a.png'], 'm', pathlib.Path('o'), 'npz', 'float32', 0, ImageOptions())


def test_convert(calls, capsys):
    main(['convert', 'a', 'b'])
    assert calls == [('convert', ('a', 'b', None, None, False, None, []), {})]
    calls.clear()
    main(
        [
            'convert',
            'a',
            'b',
            '--to=meta',
            '--image-size=32,48',
            '--force',
            '--verify',
            '--key=ema',
            '--ignore-extra=x',
            '--ignore-extra=y',
        ]
    )
    assert calls == [
        ('convert', ('a', 'b', 'meta', (32, 48), True, 'ema', ['x', 'y']), {}),
        ('read', (pathlib.Path('b'), True), {}),
        ('verify', ('arrays', 'config'), {}),
    ]
    assert capsys.readouterr().out.splitlines() == ['converted', 'converted', 'verified']


def test_preflight(calls, capsys, monkeypatch):
    monkeypatch.setattr(os, 'environ', dict(os.environ))
    main(['preflight', '--topology=v5e:2x4'])
    main(['preflight', '--topology=v5e:2x4', '--slices=3', '--save=f', '--config.train.batch_size=24'])
    (_, (default, *first), _), (_, (config, *second), _) = calls
    assert first == ['v5e:2x4', 1, None]
    assert second == ['v5e:2x4', 3, 'f']
    assert (default.train.batch_size, config.train.batch_size) == (128, 24)
    assert os.environ['TPU_SKIP_MDS_QUERY'] == '1'
    monkeypatch.setattr(
        compile_ahead, 'preflight', lambda *args: SimpleNamespace(lines=lambda: ['does not fit'], refusal='no')
    )
    with pytest.raises(SystemExit) as stop:
        main(['preflight', '--topology=v5e:2x4'])
    assert stop.value.code == 2


READ_FLAGS = ['--layout=folder', '--images=i', '--masks=m', '--mask-kind=soft']
READ = ReadOptions('folder', 'i', 'm', 'soft', SCALED)


def test_data_prepare(calls, capsys):
    words = ['--source=s', '--out=o', '--fraction=0.5', '--max-invalid-fraction=0.25', '--num-workers=3']
    beam = ['--beam=SparkRunner', '--beam-option=a=1', '--beam-option=b=2']
    main(['data', 'prepare', *words, *beam, *READ_FLAGS, *IMAGE_FLAGS])
    (_, opened, _), (_, args, options) = calls
    assert opened == ('s', READ)
    assert args == ('an index', 's', pathlib.Path('o'))
    assert options == {
        'max_invalid_fraction': 0.25, 'fraction': 0.5, 'num_workers': 3, 'options': READ,
        'beam': prepare.Beam('SparkRunner', ['--a=1', '--b=2']),
    }  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ['left out 1 of 4 images: 1 no masks', 'a note']
    assert lines[-1] == 'train with --config.data.path=o'
    calls.clear()
    main(['data', 'prepare', '--source=s', '--out=o'])
    (_, opened, _), (_, _, options) = calls
    assert opened == ('s', ReadOptions())
    assert options == {
        'max_invalid_fraction': 0.01, 'fraction': 1.0, 'num_workers': None, 'options': ReadOptions(), 'beam': None,
    }  # fmt: skip


@pytest.mark.parametrize('fraction', ['0', '-0.5', '1.5', 'nan'])
def test_data_fraction_is_more_than_nothing_and_at_most_all(calls, fraction):
    with pytest.raises(SystemExit, match='error: --fraction is .*: give more than 0 and at most 1'):
        main(['data', 'prepare', '--source=s', '--out=o', f'--fraction={fraction}'])
    assert calls == []


def test_data_sa1b_takes_some_shards(calls):
    main(['data', 'sa1b', '--source=s', '--out=o', '--shards=0-2,7', *IMAGE_FLAGS])
    assert calls[0] == ('open_shards', ('s', '0-2,7', ReadOptions(image=READ.image)), {})
    assert calls[1][1][0] == 'some shards'


def test_data_check(calls, capsys):
    main(['data', 'check', 'p', '--sheet=x.png', '--cache=c', *READ_FLAGS, *IMAGE_FLAGS])
    main(['data', 'check', 'p'])
    assert calls[0] == ('check', ('p', 'c', pathlib.Path('x.png'), READ), {})
    assert calls[1] == ('check', ('p', '~/.cache/samjax', pathlib.Path('contact_sheet.png'), ReadOptions()), {})
    assert capsys.readouterr().out.splitlines()[:2] == ['line 1', 'line 2']


@pytest.mark.parametrize(
    ('words', 'given'),
    [
        ([], (False, None, None, None, 300)),
        (['--distributed'], (True, None, None, None, 300)),
        (
            ['--coordinator=h:1', '--processes=3', '--process=2', '--start-timeout=9'],
            (False, 'h:1', 3, 2, 9),
        ),
    ],
)
def test_several_processes(calls, words, given):
    parser = argparse.ArgumentParser()
    common.add_processes(parser)
    with common.job(parser.parse_args(words)):
        pass
    assert calls == [('initialize', given, {})]
