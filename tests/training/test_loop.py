"""samjax.training.loop: the order of things, resuming, and what stops a run.

Most tests train the model of tests/stand_in.py, which compiles at once.  One trains a real, tiny SAM.
"""

import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from PIL import Image
from samples import mask, random_image
from stand_in import Evaluation, build, quick, summed_gradients

from samjax.checkpoints import run
from samjax.config import get_config
from samjax.convert.convert import convert
from samjax.data import pipeline
from samjax.data.formats.read_options import ReadOptions
from samjax.data.transforms import Sampling
from samjax.distributed import sharding
from samjax.errors import SamjaxError
from samjax.evaluation.during_training import TrainingEvaluation
from samjax.model.config import from_options
from samjax.model.params import init_params
from samjax.training import batches, loop, metric_logger
from samjax.training.checkpoints import Checkpoints
from samjax.training.compiled_step import build as build_real


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(loop, 'build', build)
    return monkeypatch


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


UNTIMED = ('train/images_per_second', 'train/data_wait')


def lines_without_time(workdir):
    return [{k: v for k, v in line.items() if k not in UNTIMED} for line in metric_logger.read_metrics(workdir)]


def test_two_and_two_steps_equal_four(stand_in, tmp_path):
    whole = loop.train(quick(4), str(tmp_path / 'whole'), Evaluation)
    first = loop.train(quick(2), str(tmp_path / 'parts'), Evaluation)
    assert int(first.step) == 2
    second = loop.train(quick(4), str(tmp_path / 'parts'), Evaluation)
    assert_same(whole, second)
    assert not np.array_equal(first.params['layer']['bias'], second.params['layer']['bias'])
    lines = lines_without_time(tmp_path / 'whole')
    assert [line['step'] for line in lines] == [1, 2, 2, 3, 4, 4]
    assert lines_without_time(tmp_path / 'parts') == lines


def test_finished_run_is_left_alone(stand_in, tmp_path):
    done = loop.train(quick(2), str(tmp_path), Evaluation)
    before = lines_without_time(tmp_path)
    assert_same(loop.train(quick(2), str(tmp_path), Evaluation), done)
    assert lines_without_time(tmp_path) == before


def test_order_is_evaluate_save_batch_step_log(stand_in, tmp_path):
    events = []

    def spy(owner, name, event):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            events.append(event(*args))
            return original(*args, **kwargs)

        stand_in.setattr(owner, name, wrapped)

    spy(Evaluation, '__call__', lambda self, state: f'evaluate {int(state.step)}')
    spy(Checkpoints, 'save', lambda self, state, data: f'save {int(state.step)}')
    spy(pipeline.Batches, '__next__', lambda self: 'batch')
    spy(metric_logger.MetricLogger, 'step', lambda self, step, metrics: f'log {step}')
    loop.train(quick(5, **{'train.save_every': 3}), str(tmp_path), Evaluation)
    assert events == [
        *('batch', 'batch', 'log 1', 'log 2', 'evaluate 2'),  # read one step late, but before evaluating and saving
        *('batch', 'log 3', 'save 3'),
        *('batch', 'log 4', 'evaluate 4'),
        *('batch', 'log 5', 'evaluate 5', 'save 5'),
    ]


def test_hidden_transfers_are_refused(stand_in, tmp_path):
    stand_in.setattr(sharding, 'to_global', lambda local, mesh: local)
    with pytest.raises(Exception, match='Disallowed host-to-device transfer'):
        loop.train(quick(2), str(tmp_path), Evaluation)


def spoil(at, name, summed_gradients=summed_gradients):
    """`summed_gradients` whose loss or gradients are not finite in the steps `at`."""

    def spoiled_sums(params, buffers, batch, index_B, key):
        grads, sums = summed_gradients(params, buffers, batch, index_B, key)
        # The key is that of the step.
        bad = jnp.any(jnp.stack([jnp.all(random.key_data(key) == random.key_data(key_of(step))) for step in at]))
        factor = jnp.where(bad, jnp.nan if name == 'loss' else jnp.inf, 1.0)
        if name == 'loss':
            return grads, sums | {'dice': sums['dice'] * factor}
        return jax.tree.map(lambda g: g * factor, grads), sums

    return spoiled_sums


def key_of(step):
    return random.fold_in(random.key(0), step - 1)


@pytest.mark.parametrize(
    ('at', 'name', 'message'),
    [
        (5, 'loss', r'loss is nan at step 5, training stops \(the last good checkpoint is step 4\): lower'),
        (4, 'grad_norm', r'grad_norm is (inf|nan) at step 4, .*checkpoint is step 2'),
        (6, 'loss', r'loss is nan at step 6, .*checkpoint is step 4'),  # the last one
        (1, 'loss', r'loss is nan at step 1, .*no checkpoint exists yet'),
    ],
)
def test_loss_that_is_not_finite_stops_and_is_not_saved(stand_in, tmp_path, at, name, message):
    config = quick(6, **{'train.max_skipped': 0})
    stand_in.setattr('stand_in.summed_gradients', spoil([at], name))
    with pytest.raises(SamjaxError, match=message):
        loop.train(config, str(tmp_path), Evaluation)
    # The checkpoint that is left is good: the same command goes on from it, once the cause is gone.
    stand_in.undo()
    stand_in.setattr(loop, 'build', build)
    assert_same(loop.train(config, str(tmp_path), Evaluation), loop.train(config, str(tmp_path / 'whole'), Evaluation))
    assert [line['step'] for line in metric_logger.read_metrics(tmp_path)] == [1, 2, 2, 3, 4, 4, 5, 6, 6]


def test_bad_steps_are_skipped_and_counted_until_there_are_too_many(stand_in, tmp_path, capsys):
    stand_in.setattr('stand_in.summed_gradients', spoil([2, 3], 'loss'))
    loop.train(quick(5, **{'train.max_skipped': 2}), str(tmp_path / 'two'), Evaluation)
    out = capsys.readouterr().out
    assert 'loss is nan at step 2: the step is skipped' in out
    assert [
        line['train/skipped'] for line in metric_logger.read_metrics(tmp_path / 'two') if 'train/skipped' in line
    ] == [
        0,
        1,
        2,
        0,
        0,
    ]
    stand_in.setattr('stand_in.summed_gradients', spoil([2, 3, 4], 'loss'))
    with pytest.raises(SamjaxError, match='loss is nan at step 4, training stops'):
        loop.train(quick(5, **{'train.max_skipped': 2}), str(tmp_path / 'three'), Evaluation)


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signal_saves_and_the_same_command_continues(stand_in, tmp_path, capsys, number, code):
    def evaluate_and_signal(self, state):
        if int(state.step) == 2:
            os.kill(os.getpid(), number)
        return {}

    before = signal.getsignal(number)
    stand_in.setattr(Evaluation, '__call__', evaluate_and_signal)
    with pytest.raises(loop.Stopped, match='stopped and saved at step 4; the same command continues') as stopped:
        loop.train(quick(6, **{'train.save_every': 100}), str(tmp_path), Evaluation)
    assert stopped.value.code == code
    assert f'{number.name}: saves after this step; a second signal stops at once' in capsys.readouterr().out
    assert signal.getsignal(number) is before
    stand_in.setattr(Evaluation, '__call__', lambda self, state: {})
    assert_same(
        loop.train(quick(6), str(tmp_path), Evaluation), loop.train(quick(6), str(tmp_path / 'whole'), Evaluation)
    )


def test_signal_that_is_noticed_before_an_evaluation_saves_at_once(stand_in, tmp_path):
    """The signal comes while batch 4 is taken; it is known when step 4 is settled, before the evaluation at 4."""
    take, taken, evaluated = pipeline.Batches.__next__, [], []

    def take_and_signal(self):
        taken.append(1)
        if len(taken) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self)

    stand_in.setattr(pipeline.Batches, '__next__', take_and_signal)
    stand_in.setattr(Evaluation, '__call__', lambda self, state: evaluated.append(int(state.step)) or {})
    with pytest.raises(loop.Stopped, match='stopped and saved at step 4'):
        loop.train(quick(6, **{'train.save_every': 100, 'train.eval_every': 4}), str(tmp_path), Evaluation)
    assert evaluated == []
    assert [path.name for path in (tmp_path / 'checkpoints').iterdir()] == ['4']


def test_nothing_is_compiled_after_the_first_evaluation_and_save(stand_in, tmp_path):
    compiled, at = [], {}
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **facts: compiled.append(name) if 'backend_compile' in name else None
    )
    original_step = metric_logger.MetricLogger.step

    def note(self, step, metrics):
        at[step] = len(compiled)
        original_step(self, step, metrics)

    stand_in.setattr(metric_logger.MetricLogger, 'step', note)
    loop.train(quick(12), str(tmp_path), Evaluation)
    assert at[1] > 0
    assert at[12] == at[4]  # evaluations and saves come every two steps


@pytest.mark.parametrize('steps', [(2, 3), (4, 9)])
def test_profile_is_traced(stand_in, tmp_path, steps):
    """Also if the run ends before the trace does."""
    loop.train(quick(4, **{'train.profile_steps': steps}), str(tmp_path), Evaluation)
    [trace] = (tmp_path / 'profile').rglob('*.xplane.pb')
    assert trace.stat().st_size > 1000


def test_start_tells_parameters_and_devices(stand_in, tmp_path, capsys):
    loop.train(quick(1), str(tmp_path), Evaluation)
    out = capsys.readouterr().out
    assert re.search(r'^layer/kernel +4$', out, re.MULTILINE)
    assert '8 x cpu (cpu) in 1 process(es), mesh data 1 x fsdp 8 x tensor 1; 8 images per step' in out
    assert f'starts at step 0 of 1 in {tmp_path}' in out
    loop.train(quick(2), str(tmp_path), Evaluation)
    assert 'continues at step 1 of 2' in capsys.readouterr().out


def test_batch_must_fit_the_devices(stand_in, tmp_path):
    with pytest.raises(SamjaxError, match='train.batch_size=4 cannot be split evenly over 8 devices'):
        loop.train(quick(2, **{'train.batch_size': 4}), str(tmp_path), Evaluation)
    assert list(tmp_path.iterdir()) == []


def test_sam_trains_ten_and_ten_as_twenty(tmp_path):
    """The real model, step, data and evaluation; the compiled programs are kept from one run to the next."""
    jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'xla'))
    try:
        rare = {'train.log_every': 5, 'train.save_every': 100, 'train.eval_every': 100}
        whole = loop.train(quick(20, **rare), str(tmp_path / 'whole'), TrainingEvaluation)
        loop.train(quick(10, **rare), str(tmp_path / 'parts'), TrainingEvaluation)
        assert_same(whole, loop.train(quick(20, **rare), str(tmp_path / 'parts'), TrainingEvaluation))
    finally:
        jax.config.update('jax_compilation_cache_dir', None)
    lines = lines_without_time(tmp_path / 'whole')
    trained = [line for line in lines if 'train/loss' in line]
    assert [line['step'] for line in trained] == [5, 10, 15, 20]
    assert [line for line in lines_without_time(tmp_path / 'parts') if 'train/loss' in line] == trained
    assert trained[-1]['train/loss'] < trained[0]['train/loss']
    assert {'eval/miou@1', 'eval/miou@2', 'eval/oracle@1', 'eval/box'} <= lines[-1].keys()
    for name in ('step_000020.png', 'curves.png'):
        with Image.open(tmp_path / 'whole' / 'pictures' / name) as picture:
            assert picture.size > (300, 100)


DATA = {
    'seed': 17,
    'model.image_size': (48, 32),
    'data.path': '/data/a',
    'data.mix': (('/data/b', 10.0),),
    'data.cache': '/cache',
    'data.max_invalid_fraction': 0.2,
    'data.synthetic_train_images': 123,
    'data.max_objects': 5,
    'data.max_area_fraction': 0.7,
    'data.flip': 'any',
    'data.scale_jitter': (0.1, 2.0),
    'data.num_workers': 3,
    'data.prefetch': 6,
    'train.batch_size': 24,
}


def test_options_of_the_data_arrive(monkeypatch):
    opened, given, checked = [], {}, []
    monkeypatch.setattr(
        batches.pipeline, 'open_dataset', lambda path, **options: opened.append((path, options)) or path
    )
    monkeypatch.setattr(batches.pipeline, 'train_loader', lambda sources, **given_: given.update(given_) or sources)
    monkeypatch.setattr(batches, 'refuse_never_sampled', lambda *args: checked.append(args))
    config = get_config()
    config.update_from_flattened_dict(DATA)
    assert batches.open_batches(config) == [('/data/a', 1.0), ('/data/b', 10.0)]
    options = {
        'seed': 17, 'image_size': (48, 32), 'length': 123, 'cache': '/cache', 'max_invalid_fraction': 0.2,
        'options': ReadOptions.of(config.data),
    }  # fmt: skip
    assert opened == [('/data/a', options), ('/data/b', options)]
    sampling = Sampling((48, 32), 5, 0.7, 'any', (0.1, 2.0))
    assert given == {'seed': 17, 'sampling': sampling, 'batch_size': 24, 'num_workers': 3, 'prefetch': 6}
    assert checked == [('/data/a', '/data/a', sampling), ('/data/b', '/data/b', sampling)]


def test_options_of_training_arrive(stand_in, tmp_path):
    given = {}

    def spy(name):
        original = getattr(loop, name)
        stand_in.setattr(loop, name, lambda *args: given.update({name: args}) or original(*args))

    for name in ('MetricLogger', 'Checkpoints', 'PendingStep', 'ProfilerTrace', 'initial_state', 'utilization'):
        spy(name)
    config = quick(
        1,
        **{
            'train.log_every': 4,
            'train.max_to_keep': 7,
            'train.max_skipped': 8,
            'train.profile_steps': (90, 91),
            'train.batch_size': 16,
        },
    )
    loop.train(config, str(tmp_path), Evaluation)
    workdir, start, num_steps, every, batch_size, rate, begun, _ = given['MetricLogger']
    assert (workdir, start, num_steps, every, batch_size) == (str(tmp_path), 0, 1, 4, 16)
    assert rate(0) == given['initial_state'][1].rate(0)
    assert given['Checkpoints'] == (str(tmp_path), 7, config)
    assert given['PendingStep'][1] == 8
    assert given['ProfilerTrace'] == ((90, 91), str(tmp_path))
    assert given['utilization'] == given['initial_state']


def test_utilization_is_the_fraction_of_the_peak_of_all_devices(stand_in, monkeypatch):
    config = quick(1, **{'data.max_objects': 3})
    compiled = build(config)
    monkeypatch.setattr(loop.hardware, 'peak', lambda kind: 1e12)
    monkeypatch.setattr(
        loop.flops,
        'train_flops',
        lambda model, objects, rounds: 1e9 * objects * rounds if model is compiled.model else 0,
    )
    assert loop.utilization(config, compiled)(20.0) == pytest.approx(20 * 12e9 / 8e12)
    monkeypatch.setattr(loop.hardware, 'peak', lambda kind: None)
    assert np.isnan(loop.utilization(config, compiled)(20.0))


def masks_folder(folder, *masks):
    """Images with a binary mask each."""
    for name in ('images', 'masks'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for n, mask_HW in enumerate(masks):
        random_image(n, *mask_HW.shape).save(folder / 'images' / f'{n}.png')
        Image.fromarray(255 * mask_HW).save(folder / 'masks' / f'{n}.png')
    return folder


OBJECT, BACKGROUND, DOT = mask(5, 5, 15, 30), 1 - mask(10, 10, 12, 14), mask(4, 4, 5, 5)


@pytest.mark.parametrize(
    ('masks', 'options', 'reason'),
    [
        ([BACKGROUND] * 3, {}, r'3 masks: 3 cover more than 90 % of the image \(data.max_area_fraction\)'),
        ([DOT] * 2, {'model.image_size': (8, 8)}, r'2 masks: 2 vanish when resized to 8 x 8 px \(model.image_size\)'),
        ([DOT, BACKGROUND], {'model.image_size': (8, 8)}, r'2 masks: 1 .*, 1 '),
        ([OBJECT], {'data.max_area_fraction': 0.01}, r'1 masks: 1 cover more than 1 % of the image'),
    ],
)
@pytest.mark.parametrize('mixed', [False, True])
def test_set_of_which_no_mask_can_be_sampled_stops_at_the_start(stand_in, tmp_path, masks, options, reason, mixed):
    folder, good = masks_folder(tmp_path / 'bad', *masks), masks_folder(tmp_path / 'good', mask(0, 0, 12, 40))
    paths = {'data.path': str(folder)}
    if mixed:
        paths = {'data.path': str(good), 'data.mix': ((str(folder), 2.0),)}
        options = options | {'data.max_area_fraction': options.get('data.max_area_fraction', 0.9)}
        if options['data.max_area_fraction'] == 0.01:
            paths['data.path'] = 'scenes'
    config = quick(2, **paths, **options, **{'data.cache': str(tmp_path / 'cache')})
    with pytest.raises(SamjaxError, match=f'{folder}: training can sample none of its {reason}'):
        loop.train(config, str(tmp_path / 'run'), Evaluation)
    assert not (tmp_path / 'run').exists()


def test_images_without_masks_that_can_be_sampled_are_counted(stand_in, tmp_path, caplog):
    folder = masks_folder(tmp_path / 'set', OBJECT, BACKGROUND, OBJECT, BACKGROUND, OBJECT)
    loop.train(quick(1, **{'data.path': str(folder), 'data.cache': str(tmp_path)}), str(tmp_path / 'run'), Evaluation)
    assert caplog.messages == [
        f'{folder}: training never samples 2 of 5 masks, on 2 of 5 images all masks: '
        '2 cover more than 90 % of the image (data.max_area_fraction)'
    ]


def without_objects(stand_in, at):
    """Takes the objects from the batches with these numbers, counted from 1."""
    take, taken = pipeline.Batches.__next__, []

    def take_without(self):
        taken.append(take(self))
        batch = taken[-1]
        if len(taken) not in at:
            return batch
        return batch._replace(
            packed_masks_BNVW=np.zeros_like(batch.packed_masks_BNVW), valid_BN=np.zeros_like(batch.valid_BN)
        )

    stand_in.setattr(pipeline.Batches, '__next__', take_without)


@pytest.mark.parametrize(
    ('steps', 'stops_at'),
    [
        (40, 13),  # 104 images
        (3, 3),  # a short run: when it ends
    ],
)
def test_run_without_objects_stops(stand_in, tmp_path, steps, stops_at):
    without_objects(stand_in, range(1, 100))
    message = (
        rf'the loss is 0, since no object is visible in the first {8 * stops_at} images; training never samples of '
        r'scenes: 0 of .* masks: none; other masks may be outside of the crops of data.scale_jitter=\(1.0, 1.0\)'
    )
    config = quick(steps, **{'train.save_every': 100, 'train.eval_every': 100})
    with pytest.raises(SamjaxError, match=message):
        loop.train(config, str(tmp_path), Evaluation)
    assert not list(tmp_path.glob('checkpoints/*'))
    assert len(metric_logger.read_metrics(tmp_path)) == stops_at - 1


def test_steps_without_objects_later_change_nothing_and_are_counted(stand_in, tmp_path, capsys):
    before = []
    original = loop.PendingStep.add
    stand_in.setattr(loop.PendingStep, 'add', lambda *args: before.append(args[2]) or original(*args))
    without_objects(stand_in, range(2, 40))
    config = quick(30, **{'train.log_every': 3, 'train.save_every': 100, 'train.eval_every': 100})
    after_30 = loop.train(config, str(tmp_path / 'long'), Evaluation)
    out = capsys.readouterr().out
    assert out.count('2 of the last 3 step(s) had no object and changed nothing') == 1
    assert out.count('3 of the last 3 step(s) had no object and changed nothing') == 9
    lines = [line for line in metric_logger.read_metrics(tmp_path / 'long') if 'train/objects' in line]
    assert lines[0]['train/loss'] > 0
    assert lines[0]['train/objects'] > 0
    assert 'train/loss' not in lines[1]
    assert lines[1]['train/objects'] == 0
    stand_in.undo()
    stand_in.setattr(loop, 'build', build)
    after_1 = loop.train(quick(1), str(tmp_path / 'short'), Evaluation)
    assert_same((after_30.params, after_30.opt_state), (after_1.params, after_1.opt_state))


def test_learning_rate_that_ends_before_the_run_is_told(stand_in, tmp_path, capsys):
    loop.train(quick(3, **{'optimizer.cooldown': (0, 2)}), str(tmp_path), Evaluation)
    assert (
        'warning: the learning rate is 0 from step 2 on: set the last step of --config.optimizer.cooldown to 3'
        in capsys.readouterr().out
    )


def test_training_starts_from_the_parameters_of_another_run(tmp_path):
    config = quick(1, **{'train.init_from': str(tmp_path / 'first')})
    params, buffers = init_params(from_options(**config.model)[0], 3)
    run.save_params(str(tmp_path / 'first'), config, params, buffers)
    compiled = build_real(config)
    started = loop.initial_state(config, compiled)
    assert_same(params, started.params)
    assert_same(buffers, started.buffers)
    assert int(started.step) == 0
    assert jax.tree.map(lambda x: x.sharding, started) == jax.tree.map(lambda x: x.sharding, compiled.state)
    convert(str(tmp_path / 'first'), str(tmp_path / 'sam.pth'), None, None, False)
    convert(str(tmp_path / 'sam.pth'), str(tmp_path / 'hf'), 'huggingface', (32, 32), False)
    config.train.init_from = str(tmp_path / 'sam.pth')  # of PyTorch
    assert_same(started, loop.initial_state(config, compiled))
    assert jax.tree.map(lambda x: x.sharding, started) == jax.tree.map(lambda x: x.sharding, compiled.state)
    config.train.init_from = str(tmp_path / 'nowhere')
    with pytest.raises(SamjaxError, match='nowhere does not exist'):
        loop.initial_state(config, compiled)
    convert(str(tmp_path / 'hf'), str(tmp_path / 'resized'), None, None, False)
    for name in ('hf', 'resized'):  # folder of Hugging Face and run, for another image size
        config.train.init_from = str(tmp_path / name)
        with pytest.raises(SamjaxError, match=rf'{name}.* for \(32, 32\) px .* --image-size 32,48 and set'):
            loop.initial_state(config, compiled)


def test_a_workdir_that_can_be_none_is_refused_before_anything_is_done(tmp_path):
    (tmp_path / 'sam.pth').touch()
    (tmp_path / 'hf').mkdir()
    (tmp_path / 'hf/config.json').write_text('{"model_type": "sam"}')
    (tmp_path / 'hf/model.safetensors').touch()
    for name, message in (
        ('sam.pth', r'sam.pth is a file: name a folder for the run, .* by --config.train.init_from'),
        ('hf', 'hf is not the folder of a run: make one with samjax convert'),
    ):
        with pytest.raises(SamjaxError, match=message):
            loop.train(quick(1), str(tmp_path / name), None)
    assert (tmp_path / 'hf/config.json').read_text() == '{"model_type": "sam"}'
    with pytest.raises(SamjaxError, match='gs://bucket/run is in a bucket'):
        loop.train(quick(1), 'gs://bucket/run', None)
