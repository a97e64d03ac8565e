"""Runs that are killed, preempted, moved to other devices or shared by processes: nothing is lost, repeated or changed.

The processes train the model of tests/stand_in.py, whose curve depends on every image, in its order.  One test runs the
real, tiny SAM on two processes.
"""

import json
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from samjax.training import metric_logger

TESTS = pathlib.Path(__file__).parent
LIMIT = 300  # s, for a process that hangs


def start(workdir, steps, seconds=0.0, devices=8, job=()):
    """A training process; `job` is (port, processes, process), and 'sam' for the real model."""
    words = [sys.executable, TESTS / 'support/stand_in.py', workdir, steps, seconds, devices, *job]
    return subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*processes, code=0):
    """Waits for processes that should end with `code`; returns what the first wrote."""
    written = []
    try:
        for process in processes:
            written.append(process.communicate(timeout=LIMIT))
            assert process.returncode == code, written[-1]
    finally:
        for process in processes:
            process.kill()
    return written[0]


def port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def losses(workdir):
    """[(step, loss)] of metrics.jsonl."""
    return [(line['step'], line['train/loss']) for line in metric_logger.read_metrics(workdir) if 'train/loss' in line]


def saved_steps(workdir):
    folder = workdir / 'checkpoints'
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


def wait_for(condition, process):
    """Waits until it is true, or the process has ended."""
    deadline = time.monotonic() + LIMIT
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The curve of a run of 40 steps that nothing disturbs."""
    workdir = tmp_path_factory.mktemp('whole')
    finish(start(workdir, 40))
    assert [step for step, _ in losses(workdir)] == list(range(1, 41))
    return losses(workdir)


def is_saving(workdir):
    folder = workdir / 'checkpoints'
    return folder.exists() and any('tmp' in path.name for path in folder.iterdir())


def test_killed_at_random_moments(tmp_path, whole):
    rng, kills, saving = random.Random(7), 0, 0
    while True:
        before = len(losses(tmp_path)) if (tmp_path / 'metrics.jsonl').exists() else 0
        process = start(tmp_path, 40, seconds=0.05)
        if kills < 5:
            goal = before + rng.randint(3, 7)
            wait_for(lambda goal=goal: (tmp_path / 'metrics.jsonl').exists() and len(losses(tmp_path)) >= goal, process)
            if kills % 2:
                wait_for(lambda: is_saving(tmp_path), process)
                saving += is_saving(tmp_path)
            else:
                time.sleep(rng.uniform(0, 0.15))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                # `stand_in` saves every 2 steps; one more save may have been on its way.
                assert max(saved_steps(tmp_path), default=0) >= losses(tmp_path)[-1][0] - 4
                continue
        out, _ = finish(process)
        break
    assert kills == 5
    assert saving
    assert 'continues at step' in out
    assert losses(tmp_path) == whole


def test_killed_before_anything_is_saved(tmp_path, whole):
    process = start(tmp_path, 40, seconds=0.3)
    wait_for(lambda: (tmp_path / 'metrics.jsonl').exists() and losses(tmp_path), process)
    process.kill()
    process.communicate()
    finish(start(tmp_path, 40))
    assert losses(tmp_path) == whole


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signal_saves_and_says_so_by_its_code(tmp_path, whole, number, code):
    process = start(tmp_path, 40, seconds=0.05)
    wait_for(lambda: (tmp_path / 'metrics.jsonl').exists() and len(losses(tmp_path)) >= 5, process)
    process.send_signal(number)
    out, err = finish(process, code=code)
    stopped = int(re.search(r'stopped and saved at step (\d+); the same command continues\n', out)[1])
    assert saved_steps(tmp_path)[-1] == stopped
    assert 'Traceback' not in err
    finish(start(tmp_path, 40))
    assert losses(tmp_path) == whole


def test_run_goes_on_with_other_devices_and_processes(tmp_path, whole):
    """8 devices, then 2, then 2 processes with 4 each, of which one is preempted, then 8 again."""
    finish(start(tmp_path, 10))
    finish(start(tmp_path, 20, devices=2))
    job = port()
    pair = [start(tmp_path, 40, 0.05, devices=4, job=(job, 2, i)) for i in range(2)]
    wait_for(lambda: len(losses(tmp_path)) >= 24, pair[0])
    pair[1].send_signal(signal.SIGTERM)
    finish(*pair, code=75)
    assert 24 <= saved_steps(tmp_path)[-1] < 40
    finish(start(tmp_path, 40))
    steps, values = zip(*losses(tmp_path), strict=True)
    assert steps == tuple(range(1, 41))
    np.testing.assert_allclose(values, [loss for _, loss in whole], rtol=1e-5)


def test_killed_process_of_two_loses_nothing(tmp_path, whole):
    job = port()
    pair = [start(tmp_path, 40, 0.05, devices=4, job=(job, 2, i)) for i in range(2)]
    wait_for(lambda: (tmp_path / 'metrics.jsonl').exists() and len(losses(tmp_path)) >= 6, pair[0])
    pair[1].kill()
    for process in pair:
        process.communicate(timeout=LIMIT)
    assert pair[0].returncode != 0
    job = port()
    finish(*(start(tmp_path, 40, devices=4, job=(job, 2, i)) for i in range(2)))
    steps, values = zip(*losses(tmp_path), strict=True)
    assert steps == tuple(range(1, 41))
    np.testing.assert_allclose(values, [loss for _, loss in whole], rtol=1e-5)


def test_only_the_first_process_writes(tmp_path):
    job = port()
    first, second = (start(tmp_path, 4, devices=4, job=(job, 2, i)) for i in range(2))
    out, _ = finish(first, second)
    assert 'step 4/4' in out
    assert len(list((tmp_path / 'tensorboard').iterdir())) == 1
    assert [step for step, _ in losses(tmp_path)] == [1, 2, 3, 4]
    assert json.loads((tmp_path / 'config.json').read_text())['train']['num_steps'] == 4


def test_two_processes_train_and_evaluate_sam_as_one_does(tmp_path):
    """A step of eight images, and an evaluation of three, of which one process has two."""
    alone = start(tmp_path / 'alone', 1, job=('', '', '', 'sam'))
    finish(alone)
    job = port()
    finish(*(start(tmp_path / 'two', 1, devices=4, job=(job, 2, i, 'sam')) for i in range(2)))
    (train, evaluation), (expected_train, expected_evaluation) = map(
        metric_logger.read_metrics, (tmp_path / 'two', tmp_path / 'alone')
    )
    assert train.keys() == expected_train.keys()
    for name in ('loss', 'focal', 'dice', 'iou', 'grad_norm', 'objects', 'mask_iou_first', 'mask_iou_last'):
        assert train[f'train/{name}'] == pytest.approx(expected_train[f'train/{name}'], rel=1e-5, abs=1e-6), name
    assert evaluation.keys() == expected_evaluation.keys()
    assert evaluation['eval/masks'] == expected_evaluation['eval/masks']
    assert evaluation['eval/images'] == 3
    assert evaluation['eval/miou@1'] == pytest.approx(expected_evaluation['eval/miou@1'], abs=1e-3)
