"""`samjax eval` on runs: its files; devices, processes and kills change no number."""

import json
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny import tiny_run_config

from samjax.checkpoints import run as run_files
from samjax.data import pipeline
from samjax.data.example import Example
from samjax.errors import SamjaxError
from samjax.evaluation.eval_result import EvalOptions
from samjax.evaluation.evaluate import evaluate
from samjax.images.encoded_image import EncodedImage

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def restored(monkeypatch, params):
    """A run whose newest checkpoint, of step 12, is random."""
    config = tiny_run_config()
    monkeypatch.setattr(run_files, 'restore_params', lambda workdir, config: (*params, 12))
    return config


def test_evaluation_of_a_run_on_scenes(tmp_path, restored):
    restored.eval.devices = 1
    text, folder = evaluate(restored, tmp_path, 'interactive', EvalOptions(max_images=1, max_objects=3))
    assert folder == tmp_path / 'eval' / 'scenes'
    results = json.loads((folder / 'results.json').read_text())
    assert (results['task'], results['step'], results['data']['path']) == ('interactive', 12, 'scenes')
    assert len(results['checkpoint']) == 32
    assert results['config']['model']['size'] == 'test'
    assert results['scores']['sam']['images'] == 1
    assert results['scores']['sam']['masks'] <= 3
    assert '| sam ' in text
    assert (folder / 'table.md').read_text() == text
    report = (folder / 'report.html').read_text()
    assert report.count('data:image/png;base64,') >= 5
    assert not (folder / 'unfinished').exists()


def test_unknown_baseline_and_task_are_named(tmp_path, restored):
    with pytest.raises(SamjaxError, match="'snake' is unknown"):
        evaluate(restored, tmp_path, 'interactive', EvalOptions(baselines=('snake',)))
    with pytest.raises(SamjaxError, match='--task=tracking is unknown: choose one of interactive, suite'):
        evaluate(restored, tmp_path, 'tracking', EvalOptions())


class Empty(list):
    digest = 'none'


def test_data_without_objects_is_named(tmp_path, restored, monkeypatch):
    empty = Empty([Example('a', EncodedImage.from_array(np.zeros((9, 9, 3), np.uint8)), [])])
    monkeypatch.setattr(pipeline, 'open_dataset', lambda path, **options: empty)
    with pytest.raises(SamjaxError, match='scenes has no object'):
        evaluate(restored, tmp_path, 'interactive', EvalOptions())


# ---- devices, processes, kills ---------------------------------------------------------------------


@pytest.fixture(scope='module')
def run(tmp_path_factory, params):
    """A run with random parameters, to be evaluated on 7 scenes."""
    config = tiny_run_config()
    config.data.synthetic_eval_images = 7
    folder = tmp_path_factory.mktemp('run')
    run_files.save_params(str(folder), config, *params)
    return folder


def command(run, *more):
    return [sys.executable, str(ROOT / 'eval.py'), f'--workdir={run}', *more]


def environment(devices=1):
    flags = f'--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}'
    return os.environ | {'XLA_FLAGS': flags}


def results(run):
    scores = json.loads((run / 'eval' / 'scenes' / 'results.json').read_text())['scores']['sam']
    del scores['seconds']
    lines = (run / 'eval' / 'scenes' / 'masks.csv').read_text()
    return scores, lines


@pytest.fixture(scope='module')
def single(run):
    """The results of a single process with a single device."""
    subprocess.run(command(run), check=True, env=environment(), stdout=subprocess.DEVNULL, timeout=300)
    return results(run)


def test_eight_devices(run, single):
    subprocess.run(command(run), check=True, env=environment(8), stdout=subprocess.DEVNULL, timeout=300)
    assert results(run) == single
    assert not math.isnan(single[0]['miou@1'])
    assert single[0]['images'] == 7


def test_two_processes(run, single):
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            command(run, f'--coordinator=localhost:{port}', '--processes=2', f'--process={n}'),
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert results(run) == single
    assert 'report.html' in outputs[0]
    assert 'report.html' not in outputs[1]


def test_killed_and_run_again(run, single):
    (run / 'eval' / 'scenes' / 'results.json').unlink()
    journal = run / 'eval' / 'scenes' / 'unfinished' / 'sam' / 'process_0.jsonl'
    process = subprocess.Popen(command(run), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 200
    while not journal.exists() or not journal.read_text():
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = journal.read_text().count('\n')
    done = subprocess.run(command(run), check=True, env=environment(), capture_output=True, text=True, timeout=300)
    assert results(run) == single
    if before < 7:
        assert f'{7 - before}/{7 - before} images' in done.stderr
    assert not journal.exists()
