"""samjax.training.metric_logger: files without repeated steps, and lines a person can read."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from tensorboardX.proto import event_pb2

from samjax.training import metric_logger as logs

METRICS = {'loss': 3.0, 'focal': 0.1, 'dice': 0.5, 'iou': 0.5, 'mask_iou_first': 0.25, 'mask_iou_last': 0.5}
METRICS |= {'objects': 9.0}


def rate(count):
    return 0.1 * (count + 1)


def utilization(images_per_second):
    return math.nan


def run(workdir, start, stop, steps=6):
    """Logs updates start + 1 ... stop with loss = step, a line every 2 updates, and a score after update 4."""
    log = logs.MetricLogger(
        str(workdir), start, steps, every=2, batch_size=8, rate=rate, begun=0.0, utilization=utilization
    )
    for step in range(start + 1, stop + 1):
        log.step(step, METRICS | {'loss': float(step)})
        if step == 4:
            log.values(4, {'eval/miou@1': 0.5})
    log.close()


def test_lines_are_means_over_intervals(tmp_path):
    run(tmp_path, 0, 6)
    lines = logs.read_metrics(tmp_path)
    assert [line['step'] for line in lines] == [2, 4, 4, 6]
    assert [line['train/loss'] for line in lines if 'train/loss' in line] == [1.5, 3.5, 5.5]
    assert lines[0]['train/lr'] == pytest.approx(0.2)  # of update 2
    assert lines[0]['train/images_per_second'] > 0
    assert lines[2] == {'step': 4, 'eval/miou@1': 0.5}


def test_steps_without_objects_are_not_in_the_means(tmp_path, capsys):
    log = logs.MetricLogger(str(tmp_path), 0, 6, every=3, batch_size=8, rate=rate, begun=0.0, utilization=utilization)
    nothing = dict.fromkeys(METRICS, 0.0)
    for step, metrics in enumerate([METRICS, nothing, METRICS | {'loss': 5.0}, nothing, nothing, nothing], start=1):
        log.step(step, metrics | {'skipped': 0})
    first, second = logs.read_metrics(tmp_path)
    assert (first['train/loss'], first['train/dice'], first['train/objects']) == (4.0, 0.5, 6.0)
    assert {'train/objects', 'train/skipped', 'train/lr'} <= second.keys()
    assert 'train/loss' not in second
    lines = capsys.readouterr().out.splitlines()
    assert '1 of the last 3 step(s) had no object and changed nothing' in lines[1]
    assert '| loss nan (focal nan,' in lines[2]
    assert '3 of the last 3 step(s) had no object and changed nothing' in lines[3]


def test_last_interval_may_be_short(tmp_path):
    run(tmp_path, 0, 5, steps=5)
    last = logs.read_metrics(tmp_path)[-1]
    assert (last['step'], last['train/loss']) == (5, 5.0)


def test_resumed_run_has_each_step_once(tmp_path):
    run(tmp_path, 0, 6)
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 7, "trai')  # a crash in the middle of a line
    run(tmp_path, 4, 6)
    lines = logs.read_metrics(tmp_path)
    assert [line['step'] for line in lines] == [2, 4, 4, 6]
    assert lines[-1]['train/loss'] == 5.5


def test_new_run_starts_an_empty_file(tmp_path):
    run(tmp_path, 0, 6)
    run(tmp_path, 0, 2)
    assert [line['step'] for line in logs.read_metrics(tmp_path)] == [2]


def test_events_say_the_same(tmp_path):
    run(tmp_path, 0, 6)
    values = [
        (event.step, value.tag, value.simple_value)
        for path in (tmp_path / 'tensorboard').iterdir()
        for event in events(path)
        for value in event.summary.value
    ]
    assert [v for v in values if v[1] == 'train/loss'] == [(2, 'train/loss', 1.5), (4, 'train/loss', 3.5),
                                                           (6, 'train/loss', 5.5)]  # fmt: skip
    assert (4, 'eval/miou_1', 0.5) in values


def events(path):
    """A TensorBoard file: uint64 length, 4 bytes, event, 4 bytes, and so on."""
    data = path.read_bytes()
    while data:
        length = int.from_bytes(data[:8], 'little')
        yield event_pb2.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_progress_line_is_one_line_with_everything(capsys, tmp_path):
    line = logs.progress(50, 200, METRICS, 8e-4, per_second=0.5, batch_size=8, mfu=math.nan)
    assert line == (
        'step 50/200 | 4.0 images/s | loss 3.0000 (focal 0.1000, dice 0.5000, iou 0.5000) | '
        'mask IoU 0.250 to 0.500 | lr 8.00e-04 | ETA 5 min 00 s'
    )
    run(tmp_path, 0, 4)
    assert [line.split(' | ')[0] for line in capsys.readouterr().out.splitlines()] == ['step 2/6', 'step 4/6']


def test_first_step_of_a_process_is_not_timed():
    line = logs.progress(1, 200, METRICS, 8e-4, per_second=math.nan, batch_size=8, mfu=math.nan)
    assert '| - images/s |' in line
    assert line.endswith('ETA -')


def test_time_outside_training_does_not_count(tmp_path, monkeypatch):
    clock = iter([10.0, 11.0, 51.0, 54.0])  # first step ends, evaluation begins, ends, second step ends
    monkeypatch.setattr(logs.time, 'perf_counter', lambda: next(clock))
    log = logs.MetricLogger(str(tmp_path), 0, 6, every=2, batch_size=8, rate=rate, begun=0.0, utilization=utilization)
    log.step(1, METRICS)
    with log.time_of('evaluation'):
        pass
    log.step(2, METRICS)
    assert logs.read_metrics(tmp_path)[0]['train/images_per_second'] == pytest.approx(8 / 4)


def test_share_of_the_peak_is_in_the_line():
    line = logs.progress(50, 200, METRICS, 8e-4, per_second=0.5, batch_size=8, mfu=0.412)
    assert '| 4.0 images/s (MFU 41%) |' in line


def test_waiting_for_data_counts_only_if_the_devices_are_idle(tmp_path, monkeypatch, capsys):
    # First step ends; a wait of 2 s, one that is not counted; second step ends; the run ends.
    clock = itertools.chain([10.0, 11.0, 13.0, 14.0, 20.0], itertools.repeat(30.0))
    monkeypatch.setattr(logs.time, 'perf_counter', lambda: next(clock))
    log = logs.MetricLogger(str(tmp_path), 0, 2, every=2, batch_size=8, rate=rate, begun=0.0, utilization=utilization)
    log.step(1, METRICS)
    for idle in (True, False):
        with log.waiting(lambda idle=idle: idle):
            pass
    log.step(2, METRICS)
    assert logs.read_metrics(tmp_path)[0]['train/data_wait'] == pytest.approx(0.2)
    log.finish()
    out = capsys.readouterr().out
    assert 'the devices waited 20% of the time for data: raise --config.data.num_workers' in out
    assert 'goodput 60.0% of 30 s (else: start 10 s, data 2 s)' in out


def test_waits_of_all_intervals_are_summed(tmp_path, monkeypatch, capsys):
    """Steps end at 10, 20 and 30 s; before the second and the third the devices wait 2 s each; the run ends at 40 s."""
    clock = itertools.chain([10.0, 10.5, 11.0, 13.0, 20.0, 21.0, 23.0, 30.0], itertools.repeat(40.0))
    monkeypatch.setattr(logs.time, 'perf_counter', lambda: next(clock))
    log = logs.MetricLogger(str(tmp_path), 0, 3, every=1, batch_size=8, rate=rate, begun=0.0, utilization=utilization)
    log.step(1, METRICS)
    for step in (2, 3):
        with log.waiting(lambda: True):
            pass
        log.step(step, METRICS)
    log.finish()
    assert 'data 4 s' in capsys.readouterr().out


def test_parameter_table_counts_modules():
    params = nnx.State(
        {
            'encoder': {'blocks': {0: {'w': nnx.Param(jnp.ones((30, 50)))}, 1: {'w': nnx.Param(jnp.ones(7))}}},
            'token': nnx.Param(jnp.ones((2, 3))),
        }
    )
    assert [line.split() for line in logs.parameter_table(params).splitlines()] == [
        ['encoder/blocks', '1,507'],
        ['token', '6'],
        ['total', '1,513'],
    ]


def test_device_line_names_the_devices():
    mesh = jax.make_mesh((2, 4), ('data', 'fsdp'))
    kind = jax.devices()[0].device_kind
    assert logs.device_line(mesh) == f'8 x {kind} (cpu) in 1 process(es), mesh data 2 x fsdp 4'


def test_only_the_first_process_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    run(tmp_path, 0, 6)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ''


def test_values_are_json_of_the_standard(tmp_path):
    log = logs.MetricLogger(str(tmp_path), 0, 6, every=2, batch_size=8, rate=rate, begun=0.0, utilization=utilization)
    log.values(3, {'eval/iou_spearman': 0.5})
    assert json.loads((tmp_path / 'metrics.jsonl').read_text()) == {'step': 3, 'eval/iou_spearman': 0.5}


def refuse_constant(name):
    raise ValueError(f'{name} is no JSON')


@pytest.mark.parametrize('spoiled', [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_leave_valid_json(tmp_path, spoiled):
    """The loss of a step that is skipped, and a score of nothing."""
    log = logs.MetricLogger(str(tmp_path), 0, 6, every=2, batch_size=8, rate=rate, begun=0.0, utilization=utilization)
    for step in range(1, 5):
        log.step(step, METRICS | ({'loss': spoiled, 'grad_norm': spoiled} if step == 2 else {'grad_norm': 1.0}))
    log.values(4, {'eval/a': spoiled, 'eval/b': 0.5})
    log.close()
    text = (tmp_path / 'metrics.jsonl').read_text()
    first, second, scores = (json.loads(line, parse_constant=refuse_constant) for line in text.splitlines())
    assert 'train/loss' not in first
    assert first['train/dice'] == 0.5
    assert (second['train/loss'], second['train/grad_norm']) == (3.0, 1.0)
    assert scores == {'step': 4, 'eval/b': 0.5}
    tags = {
        value.tag for path in (tmp_path / 'tensorboard').iterdir() for e in events(path) for value in e.summary.value
    }
    assert 'eval/b' in tags
    assert 'eval/a' not in tags
    assert logs.draw_curves(str(tmp_path)).exists()


def test_curves_are_drawn(tmp_path):
    run(tmp_path, 0, 6)
    path = logs.draw_curves(str(tmp_path))
    assert path == tmp_path / 'pictures' / 'curves.png'
    with Image.open(path) as picture:
        assert picture.size == (1440, 540)


def test_curves_show_losses_left_and_scores_right(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr('matplotlib.figure.Figure.savefig', lambda figure, path, dpi: drawn.append(figure))
    run(tmp_path, 0, 6)
    logs.draw_curves(str(tmp_path))
    left, right = drawn[0].axes
    assert (left.get_yscale(), right.get_ylim()) == ('log', (0, 1))
    labels = [[line.get_label() for line in axes.lines] for axes in (left, right)]
    assert labels[0] == ['train/loss', 'train/focal', 'train/dice', 'train/iou']
    assert labels[1] == ['train/mask_iou_first', 'train/mask_iou_last', 'eval/miou@1']
    np.testing.assert_allclose(left.lines[0].get_xydata(), [(2, 1.5), (4, 3.5), (6, 5.5)])
    np.testing.assert_allclose(right.lines[2].get_xydata(), [(4, 0.5)])


def test_curves_of_a_run_without_lines(tmp_path):
    assert logs.draw_curves(str(tmp_path)).exists()
